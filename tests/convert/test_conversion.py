"""The converter: published FOMM shapes at full size, VGG19, and errors. Values: test_parity and test_name_map."""

import itertools
from pathlib import Path

import nnabla as nn
import numpy as np
import pytest
import tiny
import yaml
from test_torch_file import Storage, Tensor, save, torch_names  # noqa: F401 - the latter is a fixture for all tests

from mrfomm.config import ModelConfig, config_to_yaml, read_yaml
from mrfomm.convert import conversion
from mrfomm.convert.__main__ import main
from mrfomm.convert.name_map import nnabla_examples_names, vgg19_names
from mrfomm.convert.torch_file import read_torch
from mrfomm.errors import UserError
from mrfomm.model import create_parameters, load_model
from mrfomm.model.checkpoint import ParameterTree, load_checkpoint, read_h5, write_h5
from mrfomm.networks.perceptual import vgg19_shapes

GOLDEN = Path(__file__).parent.parent / "golden" / "fomm-tiny"


def sony_file(path, model, extra=None):
    """A checkpoint as nnabla-examples would write it, with random weights of a ModelConfig, and those weights."""
    ours = {name: value.d for name, value in tiny.random_tree(model).all().items() if not name.startswith("fusion/")}
    names = nnabla_examples_names(ours)
    write_h5(path, {**{names[name]: value for name, value in ours.items()}, **(extra or {})})
    return ours


def run(*arguments):
    return main([str(argument) for argument in arguments])


def our_yaml(path):
    path.write_text(config_to_yaml(tiny.config(model={"fusion": {"mode": "mean"}})), encoding="utf-8")
    return path


def test_our_own_configuration(tmp_path):
    expected = sony_file(tmp_path / "s.h5", tiny.config().model, {"VGG19/conv1/conv/W": np.zeros((64, 3, 3, 3))})
    assert run(tmp_path / "s.h5", "-o", tmp_path / "c", "--config", our_yaml(tmp_path / "c.yaml")) == 0
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.config.model == tiny.config(model={"fusion": {"mode": "mean"}}).model
    assert loaded.parameters.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded.parameters[name], value)
    load_model(tmp_path / "c")


def test_a_folder_with_something_else_stays_as_it_is(tmp_path):
    """Not even beside the source, where one may well want the result."""
    folder = tmp_path / "weights"
    (folder / "other").mkdir(parents=True)
    sony_file(folder / "s.h5", tiny.config().model)
    before = (folder / "s.h5").read_bytes()
    with pytest.raises(UserError, match=r"weights: holds something other than a checkpoint \(other\)"):
        run(folder / "s.h5", "-o", folder, "--config", our_yaml(tmp_path / "c.yaml"))
    assert sorted(path.name for path in folder.iterdir()) == ["other", "s.h5"]  # nothing beside them
    assert (folder / "s.h5").read_bytes() == before
    for _ in range(2):  # a checkpoint is replaced
        assert run(folder / "s.h5", "-o", tmp_path / "c", "--config", our_yaml(tmp_path / "c.yaml")) == 0


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_failures_name_the_key(tmp_path, change):
    model = tiny.config().model
    sony_file(tmp_path / "s.h5", model)
    arrays = read_h5(tmp_path / "s.h5")
    key = "generator/final_conv/conv/b"
    if change == "missing":
        del arrays[key]
    elif change == "extra":
        key = "generator/unheard/W"
        arrays[key] = np.zeros(1)
    else:
        arrays[key] = np.zeros(4)
    write_h5(tmp_path / "bad.h5", arrays)
    with pytest.raises(UserError, match=key):
        run(tmp_path / "bad.h5", "-o", tmp_path / "c", "--config", our_yaml(tmp_path / "c.yaml"))
    assert not (tmp_path / "c").exists()


def test_default_is_vox():
    assert conversion.vox_config({}).model.discriminator == ModelConfig().discriminator
    adversarial = conversion.vox_config({"discriminator": {"discs.1.conv.weight": 0}}).model.discriminator
    assert (adversarial.spectral_norm, adversarial.keypoint_input) == (False, True)
    vox = conversion.vox_config({"discriminator": {"discs.1.conv.weight_orig": 0}}).model.discriminator
    assert (vox.spectral_norm, vox.keypoint_input) == (True, False)


def test_vgg19(tmp_path):
    rng = np.random.default_rng(0)
    small = {name: rng.normal(size=shape).astype(np.float32) for name, shape in vgg19_shapes().items()}
    names = vgg19_names({"conv1/conv/W": 0})
    write_h5(tmp_path / "sony.h5", {names[name]: value for name, value in small.items()})
    assert run(tmp_path / "sony.h5", "-o", tmp_path / "vgg19.h5") == 0
    converted = read_h5(tmp_path / "vgg19.h5")
    assert converted.keys() == small.keys()
    np.testing.assert_array_equal(converted["vgg19/conv5_1/W"], small["vgg19/conv5_1/W"])
    with pytest.raises(UserError, match="ends in .h5"):
        run(tmp_path / "sony.h5", "-o", tmp_path / "folder")
    with pytest.raises(UserError, match="--config"):
        run(tmp_path / "sony.h5", "-o", tmp_path / "v.h5", "--config", f"{GOLDEN}/config.yaml")


def test_wrong_configuration_is_named(tmp_path):
    values = read_yaml(f"{GOLDEN}/config.yaml")
    values["model_params"]["common_params"]["num_kp"] = 10
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(UserError, match="shape"):
        run(f"{GOLDEN}/checkpoint.pth.tar", "-o", tmp_path / "c", "--config", tmp_path / "wrong.yaml")


def test_missing_source(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        run(tmp_path / "none.pth.tar", "-o", tmp_path / "c")


def test_full_size_shapes():
    """FACTS: trainable parameters at vox-256, with and without the adversarial discriminator."""
    tree = ParameterTree()
    with tree.scope():
        create_parameters(conversion.vox_config({}).model, discriminator=True)
        trainable = nn.get_parameters()
    count = lambda prefix: sum(v.size for name, v in trainable.items() if name.startswith(prefix))  # noqa: E731
    assert count("keypoints/") == 14_215_368
    assert count("generator/") + count("motion/") == 45_575_391
    assert count("discriminator/") == 2_758_849


def saved(path, checkpoint, kind, prefix=""):
    """A FOMM checkpoint as torch.save writes it: floats of a kind, and a prefix before every name."""
    keys = map(str, itertools.count())

    def tensor(array):
        strides = [step // array.itemsize for step in array.strides]
        stored = kind if array.dtype.kind == "f" else "LongStorage"
        return Tensor(Storage(stored, array.ravel().tolist(), next(keys)), 0, array.shape, tuple(strides))

    parts = {
        part: {prefix + name: tensor(array) for name, array in state.items()} if isinstance(state, dict) else state
        for part, state in checkpoint.items()
    }
    return save(path, parts, "zip")


def rounded(array, kind):
    """The nearest values of a storage type, as float32."""
    if kind == "HalfStorage":
        return array.astype(np.float16).astype(np.float32)
    bits = array.astype(np.float32).view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).astype(np.uint32).view(np.float32)  # to even


def networks(change):
    """The golden checkpoint's networks with a function of every array of floats."""
    checkpoint = read_torch(f"{GOLDEN}/checkpoint.pth.tar")
    parts = ("generator", "kp_detector", "discriminator")
    return {
        part: {name: change(a) if a.dtype.kind == "f" else a for name, a in checkpoint[part].items()}
        for part in parts
        if part in checkpoint
    }


def parameters_of(path, tmp_path):
    """What a file of the golden checkpoint's configuration is converted into."""
    assert run(path, "-o", tmp_path / "converted", "--config", f"{GOLDEN}/config.yaml") == 0
    return load_checkpoint(tmp_path / "converted").parameters


@pytest.mark.parametrize("kind", ["HalfStorage", "BFloat16Storage"])
@pytest.mark.parametrize("widened", [False, True])
def test_weights_in_less_precision_are_those_values(tmp_path, kind, widened):
    """Whether they are stored so or were widened before."""
    weights = networks(lambda array: rounded(array, kind))
    path = saved(tmp_path / "w.pth", weights, "FloatStorage" if widened else kind)
    found = parameters_of(path, tmp_path)
    exact = parameters_of(f"{GOLDEN}/checkpoint.pth.tar", tmp_path)
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        np.testing.assert_array_equal(found[name], rounded(value, kind), err_msg=name)


@pytest.mark.parametrize(("kind", "unit"), [("HalfStorage", 2**-11), ("BFloat16Storage", 2**-8)])
def test_a_kernel_off_by_more_than_its_type_rounds_is_another_one(tmp_path, kind, unit):
    weights = networks(lambda array: rounded(array, kind))
    kernel = weights["kp_detector"]["down.weight"]
    weights["kp_detector"]["down.weight"] = rounded(kernel * (1 + 4 * unit), kind)
    with pytest.raises(UserError, match="kp_detector.down.weight isn't that of scale"):
        parameters_of(saved(tmp_path / "w.pth", weights, kind), tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "module.module."])
@pytest.mark.parametrize("parts", [("generator",), ("kp_detector", "discriminator"), None])
def test_names_of_data_parallel_networks(tmp_path, prefix, parts):
    weights = networks(lambda array: array)
    wrapped = {
        part: {(prefix if parts is None or part in parts else "") + name: array for name, array in state.items()}
        for part, state in weights.items()
    }
    found = parameters_of(saved(tmp_path / "w.pth", wrapped, "FloatStorage"), tmp_path)
    for name, value in parameters_of(f"{GOLDEN}/checkpoint.pth.tar", tmp_path).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_an_unknown_name_is_told_before_a_kernel_that_is_missing(tmp_path):
    weights = networks(lambda array: array)
    weights["kp_detector"] = {f"net.{name}": array for name, array in weights["kp_detector"].items()}
    with pytest.raises(UserError, match=r"kp_detector\.net\.\S+ is unknown"):
        parameters_of(saved(tmp_path / "w.pth", weights, "FloatStorage"), tmp_path)


def test_vgg19_of_a_data_parallel_network(tmp_path):
    weight = Tensor(Storage("FloatStorage", [1.0]), 0, (1,), (1,))
    path = save(tmp_path / "vgg19.pth", {"module.features.0.weight": weight}, "zip")
    assert conversion.is_vgg19(conversion.read_source(path))
