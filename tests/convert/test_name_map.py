"""Translating foreign checkpoints: against the networks themselves and the originals' outputs."""

import copy
import dataclasses
import operator
import re
from pathlib import Path

import nnabla as nn
import numpy as np
import pytest

from mrfomm.config import ModelConfig, read_yaml
from mrfomm.convert.conversion import parameter_shapes
from mrfomm.convert.name_map import (
    NNABLA_EXAMPLES_IGNORED,
    UPSTREAM_IGNORED,
    VGG19_IGNORED,
    check_antialias,
    nnabla_examples_names,
    translate,
    upstream_arrays,
    upstream_names,
    vgg19_names,
)
from mrfomm.convert.torch_file import read_torch
from mrfomm.convert.upstream_config import config_from_upstream
from mrfomm.errors import UserError
from mrfomm.model import encode_references, keypoints_of, synthesise
from mrfomm.model.checkpoint import read_h5
from mrfomm.networks.discriminator import discriminate
from mrfomm.networks.perceptual import vgg19_shapes

GOLDEN = Path(__file__).parent.parent / "golden"
UPSTREAM = GOLDEN / "fomm-tiny"
NNABLA_EXAMPLES = GOLDEN / "nnabla-examples-tiny"


def model_config(folder):
    return config_from_upstream(read_yaml(folder / "config.yaml"))


def upstream_source():
    return upstream_arrays(read_torch(UPSTREAM / "checkpoint.pth.tar")), upstream_names, UPSTREAM_IGNORED


def nnabla_examples_source():
    return read_h5(NNABLA_EXAMPLES / "params.h5"), nnabla_examples_names, NNABLA_EXAMPLES_IGNORED


def images(data):
    """uint8 [N,H,W,3] -> float32 [N,3,H,W] in [0,1]."""
    return (data.transpose(0, 3, 1, 2) / 255).astype(np.float32)


class Network:
    """The model of one reference in a parameter dictionary of its own."""

    def __init__(self, model):
        size, self.parameters = model.image_size, {}
        fusion = dataclasses.replace(model.fusion, mode="mean")  # no parameters, no effect on one reference
        model = dataclasses.replace(model, fusion=fusion)
        self.reference, self.driving = nn.Variable((1, 1, 3, size, size)), nn.Variable((1, 3, size, size))
        with nn.parameter_scope("", self.parameters):
            references = encode_references(self.reference, model)
            self.keypoints = keypoints_of(self.driving, model)
            self.prediction = synthesise(references, self.keypoints, model).prediction
            self.variables = dict(nn.get_parameters(grad_only=False))
        self.shapes = {name: variable.shape for name, variable in self.variables.items()}


@pytest.mark.parametrize(
    ("folder", "open_source"),
    [(UPSTREAM, upstream_source), (NNABLA_EXAMPLES, nnabla_examples_source)],
    ids=["upstream", "nnabla-examples"],
)
def test_translated_checkpoints_predict_what_the_originals_do(folder, open_source):
    """Also tells apart parameters of equal shape, such as the two halves of a residual block."""
    model = model_config(folder)
    network = Network(model)
    source, names_of, ignored = open_source()
    arrays = translate(source, names_of(network.shapes), network.shapes, ignored)
    assert list(arrays) == list(network.shapes)
    for name, array in arrays.items():
        assert array.dtype == np.float32
        network.variables[name].d = array
    data = np.load(folder / "data.npz")
    network.reference.d = images(data["refs"])[None, :1]
    network.driving.d = images(data["driving"])[:1]
    nn.forward_all([network.prediction, network.keypoints.value])
    np.testing.assert_allclose(network.prediction.d[0], data["prediction"][0, 0], atol=2e-6)
    expected = data["kp_driving_value"].reshape(-1, 5, 2)[0]
    np.testing.assert_allclose(network.keypoints.value.d[0], expected, atol=2e-6)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_discriminator_names_are_those_the_network_has(spectral_norm):
    parameters = {}
    with nn.parameter_scope("", parameters):
        discriminate(nn.Variable((1, 3, 16, 16)), 4, 8, 2, spectral_norm)
        shapes = {name: variable.shape for name, variable in nn.get_parameters(grad_only=False).items()}
    names = upstream_names(shapes)
    # The state_dict of upstream's MultiScaleDiscriminator([1], num_blocks=2).
    weights = ("weight_orig", "weight_u") if spectral_norm else ("weight",)
    assert set(names.values()) == {
        *(
            f"discriminator.discs.1.{layer}.{kind}"
            for layer in ("down_blocks.0.conv", "down_blocks.1.conv", "conv")
            for kind in (*weights, "bias")
        ),
        "discriminator.discs.1.down_blocks.1.norm.weight",
        "discriminator.discs.1.down_blocks.1.norm.bias",
    }
    assert names["discriminator/down_1/in/gamma"] == "discriminator.discs.1.down_blocks.1.norm.weight"
    assert names["discriminator/final/conv/b"] == "discriminator.discs.1.conv.bias"
    source = {
        theirs: np.ones(shapes[ours][1] if ours.endswith(("beta", "gamma")) else shapes[ours], np.float32)
        for ours, theirs in names.items()
    }
    source["discriminator.discs.1.conv.weight_v"] = np.ones(8, np.float32)
    arrays = translate(source, names, shapes, UPSTREAM_IGNORED)
    assert {name: array.shape for name, array in arrays.items()} == shapes


def test_a_discriminator_counts_where_there_is_one():
    model = ModelConfig()
    assert not any("discriminator" in name for name in parameter_shapes(model, ["generator.final.bias"]))
    for name in ("discriminator.discs.1.conv.bias", "discriminator/1/prediction/conv/b"):
        shapes = parameter_shapes(model, [name])
        assert sum(name.startswith("discriminator/down_") and name.endswith("/W") for name in shapes) == 4


# Strictness

SOURCE = {
    "a.weight": np.float64([[1.5, -2.0]]),
    "a.norm": np.float32([3.0, 4.0]),
    "a.var": np.float32([0.5, 0.0]),
    "a.num_batches_tracked": np.int64(7),
}
NAMES = {"x/conv/W": "a.weight", "x/bn/gamma": "a.norm", "x/bn/var": "a.var"}
SHAPES = {"x/conv/W": (1, 2), "x/bn/gamma": (1, 2, 1, 1), "x/bn/var": (1, 2, 1, 1)}


def test_translation():
    arrays = translate(SOURCE, NAMES, SHAPES, ["*.num_batches_tracked"])
    np.testing.assert_array_equal(arrays["x/conv/W"], [[1.5, -2.0]])
    np.testing.assert_array_equal(arrays["x/bn/gamma"], np.reshape([3, 4], (1, 2, 1, 1)))
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert arrays["x/bn/gamma"].flags.writeable
    assert not np.shares_memory(arrays["x/bn/gamma"], SOURCE["a.norm"])


def without(values, key):
    return {name: value for name, value in values.items() if name != key}


@pytest.mark.parametrize(
    ("source", "names", "shapes", "problem"),
    [
        ({**SOURCE, "b.weight": np.ones(1)}, NAMES, SHAPES, "b.weight is unknown"),
        (without(SOURCE, "a.norm"), NAMES, SHAPES, "a.norm is missing"),
        (SOURCE, NAMES, {**SHAPES, "x/conv/W": (2, 1)}, "a.weight has shape (1, 2), x/conv/W needs (2, 1)"),
        (SOURCE, NAMES, {**SHAPES, "x/bn/gamma": (1, 3, 1, 1)}, "a.norm has shape (2,)"),
        ({**SOURCE, "a.weight": np.ones(2)}, NAMES, {**SHAPES, "x/conv/W": (1, 2, 1, 1)}, "a.weight has sh"),
        ({**SOURCE, "a.weight": np.ones((1, 2), int)}, NAMES, SHAPES, "a.weight holds int64"),
        ({**SOURCE, "a.norm": np.float32([1, np.nan])}, NAMES, SHAPES, "a.norm has values that are not"),
        ({**SOURCE, "a.norm": np.float32([1, -np.inf])}, NAMES, SHAPES, "a.norm has values that are not"),
        ({**SOURCE, "a.norm": np.float64([1, 1e300])}, NAMES, SHAPES, "a.norm has values that are not"),
        ({**SOURCE, "a.var": np.float32([1, -1e-9])}, NAMES, SHAPES, "a.var has negative variances"),
    ],
)
def test_what_does_not_fit_is_named(source, names, shapes, problem):
    with pytest.raises(UserError, match=re.escape(f"file.pth: {problem}")):
        translate(source, names, shapes, ["*.num_batches_tracked"], "file.pth")


def test_nothing_is_ignored_unless_listed():
    with pytest.raises(UserError, match=r"a\.num_batches_tracked is unknown"):
        translate(SOURCE, NAMES, SHAPES)


# The parts of upstream's checkpoints


def test_training_state_is_left_out():
    networks = {"generator": {"w": np.ones(1)}, "kp_detector": {"w": np.ones(2)}}
    state = {"epoch": 3, "optimizer_generator": {"state": {}}, "optimizer_kp_detector": {}}
    assert list(upstream_arrays({**networks, **state})) == ["generator.w", "kp_detector.w"]
    full = {**networks, "discriminator": {"w": np.ones(3)}, "optimizer_discriminator": {}}
    assert list(upstream_arrays(full)) == ["generator.w", "kp_detector.w", "discriminator.w"]


@pytest.mark.parametrize(
    ("checkpoint", "problem"),
    [
        ({"kp_detector": {}}, "generator is missing"),
        ({"generator": {}}, "kp_detector is missing"),
        ({"generator": {}, "kp_detector": {}, "he_estimator": {}}, "he_estimator is not a part"),
        ({"generator": {}, "kp_detector": 5}, "kp_detector is not a part"),
        ({"generator": {"w": 5}, "kp_detector": {}}, "generator.w is not a tensor"),
    ],
)
def test_other_checkpoints_are_refused(checkpoint, problem):
    with pytest.raises(UserError, match=re.escape(f"file.pth: {problem}")):
        upstream_arrays(checkpoint, "file.pth")


@pytest.mark.parametrize("name", ["kp_detector.down.weight", "generator.dense_motion_network.down.weight"])
def test_antialias_kernels_are_checked(name):
    model = model_config(UPSTREAM)
    source, _, _ = upstream_source()
    check_antialias(source, model)
    with pytest.raises(UserError, match=f"{name} is missing"):
        check_antialias(without(source, name), model)
    with pytest.raises(UserError, match=f"{name} isn't that of scale 0.25"):
        check_antialias({**source, name: source[name] + 1e-4}, model)
    section = "keypoints" if name.startswith("kp") else "motion"
    for scale, problem in ((0.5, "isn't that of scale 0.5"), (1, "is superfluous at scale 1")):
        other = dataclasses.replace(getattr(model, section), scale=scale)
        with pytest.raises(UserError, match=f"{name} {problem}"):
            check_antialias(source, dataclasses.replace(model, **{section: other}))


# VGG19

TORCHVISION_INDICES = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28)  # to relu5_1
CONVOLUTIONS = "1_1 1_2 2_1 2_2 3_1 3_2 3_3 3_4 4_1 4_2 4_3 4_4 5_1"  # the same ones in the paper's terms


@pytest.fixture(scope="module")
def vgg19():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in vgg19_shapes().items()}


def vgg19_layout(arrays, layout):
    """The arrays under another project's names, and some of what else is in its file."""
    kinds = {"W": "weight", "b": "bias"} if layout == "torchvision" else {"W": "conv/W", "b": "conv/b"}
    source = {}
    for number, (index, name) in enumerate(zip(TORCHVISION_INDICES, CONVOLUTIONS.split()), start=1):
        for ours, theirs in kinds.items():
            scope = f"features.{index}." if layout == "torchvision" else f"conv{number}/"
            source[scope + theirs] = arrays[f"vgg19/conv{name}/{ours}"]
    rest = {"torchvision": ("features.30.weight", "features.34.bias", "classifier.6.weight")}
    others = rest.get(layout, ("conv14/conv/W", "conv16/conv/b", "classifier/0/affine/W"))
    return {**source, **{name: np.ones(1) for name in others}}


@pytest.mark.parametrize("layout", ["torchvision", "nnabla-examples"])
def test_vgg19(vgg19, layout):
    source = vgg19_layout(vgg19, layout)
    arrays = translate(source, vgg19_names(source), vgg19_shapes(), VGG19_IGNORED)
    for name, array in vgg19.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_other_networks_than_vgg19_are_refused(vgg19):
    with pytest.raises(UserError, match=r"vgg\.h5: neither torchvision's nor nnabla-examples' VGG19"):
        vgg19_names({"block1_conv1/block1_conv1/kernel:0": np.ones(1)}, "vgg.h5")
    source = vgg19_layout(vgg19, "torchvision")
    vgg16 = {**without(source, "features.16.weight"), "features.17.weight": np.ones((512, 256, 3, 3), "f")}
    with pytest.raises(UserError, match=r"features\.17\.weight is unknown"):
        translate(vgg16, vgg19_names(vgg16), vgg19_shapes(), VGG19_IGNORED)


# Configuration

VOX_ADV = {
    "dataset_params": {"root_dir": "data/vox-png", "frame_shape": [256, 256, 3], "id_sampling": True},
    "model_params": {
        "common_params": {"num_kp": 10, "num_channels": 3, "estimate_jacobian": True},
        "kp_detector_params": {
            "temperature": 0.1,
            "block_expansion": 32,
            "max_features": 1024,
            "scale_factor": 0.25,
            "num_blocks": 5,
        },
        "generator_params": {
            "block_expansion": 64,
            "max_features": 512,
            "num_down_blocks": 2,
            "num_bottleneck_blocks": 6,
            "estimate_occlusion_map": True,
            "dense_motion_params": {"block_expansion": 64, "max_features": 1024, "num_blocks": 5, "scale_factor": 0.25},
        },
        "discriminator_params": {
            "scales": [1],
            "block_expansion": 32,
            "max_features": 512,
            "num_blocks": 4,
            "use_kp": True,
        },
    },
    "train_params": {"num_epochs": 150, "batch_size": 36},
    "log_dir": "anything",
}


def changed(path, value):
    """VOX_ADV with one key set, or removed if the value is None."""
    values = copy.deepcopy(VOX_ADV)
    *sections, name = path.split(".")
    node = values
    for section in sections:
        node = node[section]
    if value is None:
        del node[name]
    else:
        node[name] = value
    return values


def test_vox_adv_is_this_projects_default_but_for_the_discriminator():
    model = config_from_upstream(VOX_ADV)
    vox = dataclasses.replace(model.discriminator, spectral_norm=True, keypoint_input=False)
    assert dataclasses.replace(model, discriminator=vox) == ModelConfig()
    assert (model.discriminator.spectral_norm, model.discriminator.keypoint_input) == (False, True)


def test_the_golden_configuration():
    model = model_config(UPSTREAM)
    assert (model.image_size, model.num_keypoints) == (64, 5)
    assert dataclasses.astuple(model.keypoints) == (8, 64, 3, 0.25, 0.1)
    assert dataclasses.astuple(model.motion) == (8, 64, 3, 0.25, 0.01)
    assert dataclasses.astuple(model.generator) == (8, 64, 2, 2, False)
    assert dataclasses.astuple(model.discriminator) == (16, 64, 4, True, False)


@pytest.mark.parametrize(
    ("path", "ours", "default"),
    [
        ("model_params.kp_detector_params.scale_factor", "keypoints.scale", 1),
        ("model_params.generator_params.dense_motion_params.scale_factor", "motion.scale", 1),
        ("model_params.discriminator_params.max_features", "discriminator.max_features", 512),
        ("model_params.discriminator_params.block_expansion", "discriminator.expansion", 128),
        ("model_params.discriminator_params.use_kp", "discriminator.keypoint_input", False),
        ("dataset_params.frame_shape", "image_size", 256),
        ("dataset_params", "image_size", 256),
    ],
)
def test_upstreams_defaults(path, ours, default):
    assert operator.attrgetter(ours)(config_from_upstream(changed(path, None))) == default


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model_params.common_params.num_channels", 1),
        ("model_params.common_params.estimate_jacobian", False),
        ("model_params.common_params.estimate_jacobian", None),  # upstream's default is off
        ("model_params.common_params.num_kp", "ten"),
        ("model_params.common_params.num_kp", None),
        ("model_params.common_params", None),
        ("model_params.kp_detector_params.single_jacobian_map", True),
        ("model_params.kp_detector_params.pad", 3),
        ("model_params.kp_detector_params.scale_factor", 0.3),
        ("model_params.kp_detector_params.scale_factor", 2),
        ("model_params.kp_detector_params.temperature", 0),
        ("model_params.kp_detector_params.num_blocks", 5.0),
        ("model_params.kp_detector_params.num_blocks", True),
        ("model_params.kp_detector_params", 5),
        ("model_params.generator_params.estimate_occlusion_map", False),
        ("model_params.generator_params.scale_factor", 0.25),
        ("model_params.generator_params.dense_motion_params", None),
        ("model_params.generator_params.dense_motion_params.kp_variance", -1),
        ("model_params.generator_params.dense_motion_params.max_featuers", 64),
        ("model_params.discriminator_params.scales", [1, 0.5]),
        ("model_params.discriminator_params.sn", 1),
        ("model_params.discriminator_params.kp_variance", 0.02),
        ("model_params.he_estimator_params", {}),
        ("model_params", None),
        ("dataset_params", []),
        ("dataset_params.frame_shape", [256, 128, 3]),
        ("dataset_params.frame_shape", [256, 256, 1]),
        ("dataset_params.frame_shape", [0, 0, 3]),
        ("dataset_params.frame_shape", 256),
    ],
)
def test_unsupported_and_malformed_keys_are_named(path, value):
    with pytest.raises(UserError, match=rf"fomm\.yaml: .*\b{re.escape(path)}\b"):
        config_from_upstream(changed(path, value), "fomm.yaml")
