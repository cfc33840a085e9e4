"""Parity with upstream FOMM (PyTorch) and Sony's nnabla-examples, on their own arrays, and through the command line."""

from pathlib import Path

import imageio.v2 as imageio
import nnabla as nn
import numpy as np
import pytest

from mrfomm.commands import animate
from mrfomm.config import config_from_dict
from mrfomm.convert import __main__ as convert
from mrfomm.model import encode_references, keypoints_of, load_model, synthesise
from mrfomm.model.checkpoint import ParameterTree, load_checkpoint, save_checkpoint
from mrfomm.reenactment.animator import images_to_array

GOLDEN = Path(__file__).parent.parent / "golden"
TOLERANCE = 1e-5


def convert_golden(source, tmp_path):
    path = GOLDEN / source
    output = tmp_path / path.name
    convert.main([str(path), "-o", str(output), "--config", str(path.parent / "config.yaml")])
    return output


def with_fusion(checkpoint, golden, mode, folder):
    """The converted checkpoint with the fixture's fusion weights added."""
    loaded = load_checkpoint(checkpoint)
    values = {"mode": mode, "kernel": 3}
    config = config_from_dict({"model": {**_as_dict(loaded.config.model), "fusion": values}}, "test")
    extra = {"fusion/conv/W": golden[f"fusion_{mode}_weight"], "fusion/conv/b": golden[f"fusion_{mode}_bias"]}
    save_checkpoint(folder, config, {**loaded.parameters, **extra})
    return folder


def _as_dict(node):
    return {k: _as_dict(v) if hasattr(v, "__dataclass_fields__") else v for k, v in vars(node).items()}


def run(checkpoint, references, driving):
    """Everything a forward pass computes for references [K,H,W,3] and one driving frame, as arrays by golden name."""
    config, tree = load_model(checkpoint)
    with tree.scope():
        encoded = encode_references(nn.Variable.from_numpy_array(images_to_array(references)[None]), config)
        detected = keypoints_of(nn.Variable.from_numpy_array(images_to_array([driving])), config)
        synthesis = synthesise(encoded, detected, config)
    outputs = {
        "kp_ref_value": encoded.keypoints.value,
        "kp_ref_jacobian": encoded.keypoints.jacobian,
        "kp_driving_value": detected.value,
        "kp_driving_jacobian": detected.jacobian,
        "mask": synthesis.motion.mask,
        "deformation": synthesis.motion.deformation,
        "occlusion_map": synthesis.motion.occlusion,
        "warped_feature": synthesis.warped,
        "fusion_mask": synthesis.mask,
        "prediction": synthesis.prediction,
    }
    for variable in outputs.values():
        variable.persistent = True
    nn.forward_all(list(outputs.values()))
    return {name: variable.d[0] if name == "prediction" else variable.d.copy() for name, variable in outputs.items()}


def entry(array, name, i, k):
    """Driving frame i and reference k of a golden array: [4,3,...], or one axis where the other doesn't matter."""
    if array.shape[:2] == (4, 3):
        return array[i, k]
    return array[k if name.startswith("kp_ref") else i]


@pytest.mark.parametrize(
    "source", ["fomm-tiny/checkpoint.pth.tar", "fomm-tiny/checkpoint-zip.pth.tar", "nnabla-examples-tiny/params.h5"]
)
def test_single_reference_arrays(source, tmp_path, record_property):
    golden = np.load(GOLDEN / source.split("/")[0] / "data.npz")
    checkpoint = convert_golden(source, tmp_path)
    worst = {}
    for i, driving in enumerate(golden["driving"]):
        for k, reference in enumerate(golden["refs"]):
            ours = run(checkpoint, [reference], driving)
            for name in ours.keys() & set(golden.files):
                expected = entry(golden[name], name, i, k)
                error = np.abs(ours[name].reshape(expected.shape) - expected).max()
                worst[name] = max(worst.get(name, 0), float(error))
    assert {"prediction", "mask", "occlusion_map", "kp_ref_value", "kp_driving_jacobian"} <= set(worst)
    assert ("warped_feature" in worst) == ("warped_feature" in golden.files)
    record_property("largest errors", worst)
    print(source, worst)
    assert max(worst.values()) <= TOLERANCE, worst


@pytest.mark.parametrize("mode", ["patch", "element"])
def test_fusion_arrays(mode, tmp_path):
    golden = np.load(GOLDEN / "fomm-tiny" / "data.npz")
    converted = convert_golden("fomm-tiny/checkpoint.pth.tar", tmp_path)
    checkpoint = with_fusion(converted, golden, mode, tmp_path / mode)
    for i, driving in enumerate(golden["driving"]):
        ours = run(checkpoint, golden["refs"], driving)
        assert np.abs(ours["warped_feature"][0] - golden["warped_feature"][i]).max() <= TOLERANCE
        assert np.abs(ours["fusion_mask"][0] - golden[f"fusion_{mode}_mask"][i]).max() <= TOLERANCE
        assert np.abs(ours["prediction"] - golden[f"fusion_{mode}_prediction"][i]).max() <= TOLERANCE


@pytest.fixture
def frames(tmp_path):
    """The fixture's references and driving frames as files: (list of paths, folder)."""
    golden = np.load(GOLDEN / "fomm-tiny" / "data.npz")
    (tmp_path / "driving").mkdir()
    for i, image in enumerate(golden["driving"]):
        imageio.imwrite(tmp_path / "driving" / f"{i:03d}.png", image)
    references = [tmp_path / f"ref{k}.png" for k in range(len(golden["refs"]))]
    for path, image in zip(references, golden["refs"]):
        imageio.imwrite(path, image)
    return [str(path) for path in references], str(tmp_path / "driving")


def command_line(weights, references, driving, output, *options):
    arguments = ["--weights", str(weights), "--refs", *references, "--driving", driving, "--output", str(output)]
    assert animate.main([*arguments, "--context", "cpu", *options]) == 0
    return np.stack([imageio.imread(path) for path in sorted(Path(output).glob("*.png"))])


def as_images(predictions):
    return np.round(predictions.transpose(0, 2, 3, 1) * 255)


def test_command_line(frames, tmp_path):
    golden = np.load(GOLDEN / "fomm-tiny" / "data.npz")
    converted = convert_golden("fomm-tiny/checkpoint.pth.tar", tmp_path)
    references, driving = frames
    absolute = ("--motion", "absolute")
    for k, reference in enumerate(references):
        ours = command_line(converted, [reference], driving, tmp_path / f"single{k}", *absolute)
        assert np.abs(ours.astype(float) - as_images(golden["prediction"][:, k])).max() <= 1
    for mode in ("patch", "element"):
        weights = with_fusion(converted, golden, mode, tmp_path / mode)
        ours = command_line(weights, references, driving, tmp_path / f"out-{mode}", *absolute, "--batch", "3")
        assert np.abs(ours.astype(float) - as_images(golden[f"fusion_{mode}_prediction"])).max() <= 1


def test_unknown_parameters_are_refused(tmp_path):
    tree = ParameterTree()
    with pytest.raises(Exception, match="has no place"):
        tree.assign({"generator/none/W": np.zeros(1, np.float32)}, "here")
