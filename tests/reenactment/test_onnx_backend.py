"""OnnxGraphs against NnablaGraphs on converted FOMM weights, in every fusion mode, for several B and K."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mrfomm.config import FUSION_MODES, FusionConfig
from mrfomm.convert import __main__ as convert
from mrfomm.errors import UserError
from mrfomm.model import Model, create_parameters
from mrfomm.model.checkpoint import ParameterTree, load_checkpoint
from mrfomm.networks.fusion import mode_of
from mrfomm.onnx import graphs as export
from mrfomm.reenactment import onnx_backend
from mrfomm.reenactment.animator import Animator, images_to_array
from mrfomm.reenactment.motion import KeypointArrays
from mrfomm.reenactment.nnabla_backend import NnablaGraphs
from mrfomm.reenactment.onnx_backend import OnnxGraphs, default_threads

FIXTURE = Path(__file__).parent.parent / "golden" / "fomm-tiny"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden():
    return np.load(FIXTURE / "data.npz")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    convert.main([str(FIXTURE / "checkpoint.pth.tar"), "-o", str(folder), "--config", str(FIXTURE / "config.yaml")])
    return load_checkpoint(folder)


@pytest.fixture(scope="module", params=FUSION_MODES)
def exported(request, converted, golden, tmp_path_factory):
    """(Model, folder with all its graphs), for each fusion mode."""
    mode, config = request.param, converted.config.model
    config = dataclasses.replace(config, fusion=FusionConfig(mode=mode, kernel=3))
    arrays = {name: value for name, value in converted.parameters.items() if not name.startswith("discriminator/")}
    if mode_of(mode).learned:
        fusion = {"W": golden[f"fusion_{mode}_weight"], "b": golden[f"fusion_{mode}_bias"]}
        arrays.update({f"fusion/conv/{name}": value for name, value in fusion.items()})
    tree = ParameterTree()
    with tree.scope():
        create_parameters(config)
    tree.assign(arrays, FIXTURE)
    model, folder = Model(config, tree), tmp_path_factory.mktemp(mode)
    for name in export.GRAPHS:
        export.export_graph(name, model, folder / f"{name}.onnx")
    return model, folder


def assert_close(actual, expected):
    for one, other in zip(actual, expected):
        assert one.shape == other.shape
        assert one.dtype == other.dtype == np.float32
        assert np.abs(one - other).max() <= TOLERANCE


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("count", [1, 3])
def test_equals_nnabla(exported, golden, count, batch):
    model, folder = exported
    references, driving = (images_to_array(golden[name]) for name in ("refs", "driving"))
    nnabla = Animator(NnablaGraphs(*model), references[:count], batch)
    onnx = Animator(OnnxGraphs(folder), references[:count], batch)
    assert_close(onnx.reference_keypoints, nnabla.reference_keypoints)
    keypoints = nnabla.keypoints(driving)
    assert_close(onnx.keypoints(driving), keypoints)
    assert_close([onnx.render(keypoints)], [nnabla.render(keypoints)])


@pytest.mark.parametrize("exported", ["patch", "element"], indirect=True)
def test_equals_upstream(exported, golden):
    """The frames that FOMM's PyTorch code makes of the same pictures, without nnabla in between."""
    model, folder = exported
    animator = Animator(OnnxGraphs(folder), images_to_array(golden["refs"]), batch=3)
    predictions = animator.render(animator.keypoints(images_to_array(golden["driving"])))
    assert np.abs(predictions - golden[f"fusion_{model.config.fusion.mode}_prediction"]).max() <= TOLERANCE


def test_breakdown_equals_nnabla(exported, golden):
    model, folder = exported
    references, driving = (images_to_array(golden[name]) for name in ("refs", "driving"))
    nnabla = Animator(NnablaGraphs(*model), references, batch=2, breakdown=True)
    onnx = Animator(OnnxGraphs(folder), references, batch=2, breakdown=True)
    keypoints = nnabla.keypoints(driving[:3])
    (expected, shares), (actual, own) = nnabla.render_breakdown(keypoints), onnx.render_breakdown(keypoints)
    assert_close([actual, *own], [expected, *shares])
    assert_close([onnx.render(keypoints)], [expected])


@pytest.fixture
def folder(exported):
    return exported[1]


def test_one_set_of_graphs_serves_several_sets_of_references(folder, golden):
    graphs = OnnxGraphs(folder)
    images = images_to_array(golden["refs"])
    first, second = Animator(graphs, images[:1]), Animator(graphs, images[1:])
    keypoints = first.keypoints(images_to_array(golden["driving"][:1]))
    alone = Animator(OnnxGraphs(folder), images[:1]).render(keypoints)
    assert not np.allclose(second.render(keypoints), alone, atol=1e-3)
    np.testing.assert_array_equal(first.render(keypoints), alone)


@pytest.mark.parametrize(("asked", "threads"), [("1", 1), ("2", 2), ("99", 4), ("0", 4), ("many", 4), ("", 4)])
def test_omp_num_threads_limits_the_threads(monkeypatch, asked, threads):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert default_threads() == threads


def test_number_of_threads_changes_nothing(folder, golden):
    images = images_to_array(golden["refs"])
    results = []
    for threads in (1, 2):
        animator = Animator(OnnxGraphs(folder, threads), images)
        results.append(animator.render(animator.reference_keypoints))
    np.testing.assert_allclose(*results, atol=1e-6)


def test_needs_a_reference(folder):
    with pytest.raises(ValueError, match="at least one reference"):
        Animator(OnnxGraphs(folder), np.zeros((0, 3, 64, 64), np.float32))


def test_missing_and_damaged_graphs(tmp_path):
    with pytest.raises(UserError, match=r"frame.onnx: no such graph; write it with python -m mrfomm.export"):
        OnnxGraphs(tmp_path).run("frame", {})
    (tmp_path / "frame.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"frame.onnx: onnxruntime can't load it"):
        OnnxGraphs(tmp_path).run("frame", {})


def test_missing_extra(tmp_path, monkeypatch):
    assert onnx_backend.is_installed()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e .\[onnx\]"):
        OnnxGraphs(tmp_path).run("frame", {})
    monkeypatch.setattr(onnx_backend.importlib.util, "find_spec", lambda name: None)
    assert not onnx_backend.is_installed()


def test_importing_the_backend_loads_neither_package():
    """So that commands may always import it."""
    code = "import sys, mrfomm.onnx.graphs; sys.exit(bool({'onnx', 'onnxruntime'} & set(sys.modules)))"
    root = Path(__file__).parent.parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_keypoints_are_split_into_batches(folder, golden):
    """More frames than a batch, and not a multiple of it."""
    images = images_to_array(golden["driving"])
    animator = Animator(OnnxGraphs(folder), images_to_array(golden["refs"]), batch=3)
    together = animator.keypoints(images)
    one_by_one = [animator.keypoints(images[i : i + 1]) for i in range(len(images))]
    assert_close(together, KeypointArrays(*map(np.concatenate, zip(*one_by_one))))
