"""Export: the command against nnabla, and the cache of graphs."""

import dataclasses
import json
import os
import sys
import tempfile

import numpy as np
import onnx
import pytest
import tiny

from mrfomm.commands import export
from mrfomm.config import FUSION_MODES
from mrfomm.errors import UserError
from mrfomm.model import Model, create_parameters, load_model
from mrfomm.model.checkpoint import ParameterTree, save_checkpoint
from mrfomm.onnx import graphs
from mrfomm.reenactment.animator import Animator
from mrfomm.reenactment.motion import KeypointArrays
from mrfomm.reenactment.nnabla_backend import NnablaGraphs
from mrfomm.reenactment.onnx_backend import OnnxGraphs
from mrfomm.store import locked


def operators(proto):
    return [node.op_type for node in proto.graph.node]


def random_weights(folder, **model):
    """A checkpoint whose weights are random but small: large ones amplify rounding errors beyond what is checked."""
    config = tiny.config(model=model)
    save_checkpoint(folder, config, tiny.random_tree(config.model, scale=0.1).all())
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_weights(tmp_path_factory.mktemp("export") / "weights")


def test_command_writes_free_axes(weights, tmp_path):
    assert export.main([str(weights), "-o", str(tmp_path / "out"), "--breakdown"]) == 0
    shapes = {}
    for path in (tmp_path / "out").glob("*.onnx"):
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
        assert proto.opset_import[0].version >= 16
        for value in (*proto.graph.input, *proto.graph.output):
            shape = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            shapes.setdefault(path.name, {})[value.name] = shape
    driving = {"driving_value": ["B", 3, 2], "driving_jacobian": ["B", 3, 2, 2]}
    references = {
        "reference_value": ["K", 3, 2],
        "reference_jacobian": ["K", 3, 2, 2],
        "reference_image": ["K", 3, 16, 16],
        "reference_features": ["K", 8, 16, 16],
    }
    shares = {"warped": ["B", "K", 3, 32, 32], "mask": ["B", "K", 1, 32, 32]}
    prediction = {"prediction": ["B", 3, 32, 32]}
    assert shapes == {
        "reference.onnx": {"image": ["K", 3, 32, 32], **references},
        "keypoints.onnx": {"image": ["B", 3, 32, 32], **driving},
        "frame.onnx": {**driving, **references, **prediction},
        "breakdown.onnx": {**driving, **references, **prediction, **shares},
    }


@pytest.mark.parametrize("options", [[], ["--plain"], ["--breakdown"], ["--fusion", "mean"]])
def test_check_passes(options, weights, tmp_path, capsys):
    assert export.main([str(weights), "-o", str(tmp_path), "--check", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    errors = {line.split(":")[0]: float(line.split()[-1]) for line in lines[1:]}
    assert {"reference keypoints", "driving keypoints", "prediction"} <= errors.keys()
    assert ("breakdown" in errors) == ("--breakdown" in options)
    assert 0 < max(errors.values()) <= 1e-5


@pytest.mark.parametrize("options", [[], ["--plain"], ["--breakdown"]])
def test_a_model_that_copies_pixels_is_exported_with_the_same_inputs(options, tmp_path):
    copying = random_weights(tmp_path / "weights", generator={"copy": True})
    assert export.main([str(copying), "-o", str(tmp_path / "out"), "--check", *options]) == 0
    inputs = onnx.load(
        tmp_path / "out" / ("breakdown.onnx" if options == ["--breakdown"] else "frame.onnx")
    ).graph.input
    shapes = {x.name: [axis.dim_value for axis in x.type.tensor_type.shape.dim][1:] for x in inputs}
    assert shapes["reference_features"] == [8 + 3 * 2**2, 16, 16]  # the picture's pixels, 2 x 2 of them folded
    assert len(shapes) == 6


def test_check_notices_other_weights(weights, tmp_path):
    export.main([str(weights), "-o", str(tmp_path)])
    model = load_model(weights)
    changed = tiny.random_tree(model.config, seed=5)
    errors = export.largest_errors(Model(model.config, changed), OnnxGraphs(tmp_path))
    assert min(errors.values()) > 1e-3
    with pytest.raises(UserError, match="differ by more than"):
        export.report_errors(errors)
    with pytest.raises(UserError, match="differ by more than"):
        export.report_errors({"prediction": float("nan")})
    with pytest.raises(UserError, match="differ by more than"):
        export.report_errors({"reference keypoints": 1e-6, "prediction": float("nan")})


def test_plain_leaves_convolutions(weights, tmp_path):
    for name, options in (("plain", ["--plain"]), ("fast", [])):
        export.main([str(weights), "-o", str(tmp_path / name), *options])
    plain, fast = (operators(onnx.load(tmp_path / name / "frame.onnx")) for name in ("plain", "fast"))
    assert "DepthToSpace" not in plain
    assert plain.count("Resize") > fast.count("Resize")
    assert "DepthToSpace" in fast


def test_no_graph_of_an_earlier_export_stays(weights, tmp_path):
    export.main([str(weights), "-o", str(tmp_path), "--breakdown"])
    (tmp_path / "notes.txt").write_text("mine")
    export.main([str(weights), "-o", str(tmp_path)])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".lock", "export.json", "frame.onnx", "keypoints.onnx", "reference.onnx", "notes.txt"}


def test_an_export_that_fails_leaves_the_earlier_one(weights, tmp_path, monkeypatch):
    export.main([str(weights), "-o", str(tmp_path), "--breakdown"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="pip install"):
        export.main([str(weights), "-o", str(tmp_path)])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_second_export_into_the_folder_is_refused(weights, tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another run is at work there"):
        export.main([str(weights), "-o", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_missing_extra(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e .\[onnx\]"):
        export.main([str(weights), "-o", str(tmp_path)])


def test_output_that_can_not_be_written(weights, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write there"):
        export.main([str(weights), "-o", str(tmp_path / "file")])


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mrfomm"


def contents(cache):
    return {path: path.stat().st_mtime_ns for path in cache.glob("*/*.onnx")}


def test_cache_is_used_again(weights, cache, capsys, monkeypatch):
    graphs.cached_graphs(load_model(weights))
    first = contents(cache)
    assert {path.name for path in first} == {"reference.onnx", "keypoints.onnx", "frame.onnx"}
    assert "preparing" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnx", None)  # a hit needs nothing to export with
    graphs.cached_graphs(load_model(weights))
    assert contents(cache) == first
    assert capsys.readouterr().err == ""


def test_breakdown_is_added_when_asked_for(weights, cache):
    graphs.cached_graphs(load_model(weights))
    first = contents(cache)
    graphs.cached_graphs(load_model(weights), breakdown=True)
    second = contents(cache)
    assert {path.name for path in second.keys() - first.keys()} == {"breakdown.onnx"}
    assert first.items() <= second.items()


def test_fingerprint_follows_what_the_graphs_depend_on(weights):
    model = load_model(weights)
    assert graphs.fingerprint(model) == graphs.fingerprint(load_model(weights))
    others = [load_model(weights, "mean"), load_model(weights, "occlusion")]
    variance = dataclasses.replace(model.config.motion, variance=0.02)
    others.append(Model(dataclasses.replace(model.config, motion=variance), model.tree))
    tree = ParameterTree()
    with tree.scope():
        create_parameters(model.config)
    tree.assign({name: value.d for name, value in model.tree.all().items()}, "test")
    tree.all()["generator/final/conv/b"].d[0] += 1e-6
    others.append(Model(model.config, tree))
    assert len({graphs.fingerprint(each) for each in [model, *others]}) == 5


def test_cache_forgets_what_was_not_used_for_longest(weights, cache):
    """Of models, not of others, who keep things beside them."""
    names = [f"{age:064x}" for age in range(10, 10 + graphs.CACHED_MODELS)]
    for age, name in enumerate(["browser", *names]):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (age, age))
    graphs.cached_graphs(load_model(weights))
    kept = {path.name for path in cache.iterdir()}
    assert len(kept) == graphs.CACHED_MODELS + 1
    assert "browser" in kept
    assert names[0] not in kept


def test_cache_keeps_what_a_process_may_have_open(weights, cache):
    names = [f"{number:064x}" for number in range(2 * graphs.CACHED_MODELS)]
    for name in names:
        (cache / name).mkdir(parents=True)
    graphs.cached_graphs(load_model(weights))
    assert {path.name for path in cache.iterdir()} > set(names)


def test_without_a_cache_folder_graphs_go_to_the_temporary_one(weights, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    graphs.cached_graphs(load_model(weights))
    assert len(list(tmp_path.glob(f"mrfomm-{os.getuid()}/*/frame.onnx"))) == 1
    assert f"{tmp_path / 'file' / 'mrfomm'}: can't write there" in capsys.readouterr().err
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (tmp_path / "mrfomm-12345").mkdir()
    with pytest.raises(UserError, match="belongs to somebody else"):
        graphs.cache_root()


@pytest.mark.parametrize("mode", FUSION_MODES)
def test_graphs_hold_no_dead_weights(mode, tmp_path):
    """No array twice, and none that nothing reads."""
    config = tiny.config(model={"fusion": {"mode": mode}}).model
    graphs.export_graph("breakdown", Model(config, tiny.random_tree(config)), tmp_path / "breakdown.onnx")
    graph = onnx.load(tmp_path / "breakdown.onnx").graph
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read
    arrays = [tensor.raw_data + str(tensor.dims).encode() for tensor in graph.initializer if len(tensor.raw_data) > 100]
    assert len(set(arrays)) == len(arrays)


@pytest.mark.parametrize("fusion", [None, "mean"])
def test_a_page_is_given_the_same_pictures(weights, tmp_path, fusion):
    """The blend of fusion modes against the frame of each, up to what half precision changes."""
    options = [] if fusion is None else ["--fusion", fusion]
    assert export.main([str(weights), "-o", str(tmp_path), "--web", *options]) == 0
    record = json.loads((tmp_path / "model.json").read_text())
    assert (record["size"], record["keypoints"]) == (32, 3)
    assert record["fusion"] == (["patch", "mean", "occlusion"] if fusion is None else ["mean", "occlusion"])
    page, rng = OnnxGraphs(tmp_path), np.random.default_rng(0)
    references, driving = (rng.random((count, 3, 32, 32), np.float32) for count in (3, 2))
    encoded = page.run("encoder", {"image": references})
    found, poses = (page.run("keypoints", {"image": images}) for images in (references, driving))
    names = {"reference_value": found["driving_value"], "reference_jacobian": found["driving_jacobian"]}
    for i, mode in enumerate(record["fusion"]):
        shares = np.eye(len(record["fusion"]), dtype=np.float32)[:, i : i + 1]
        drawn = page.run("blend", {**poses, **encoded, **names, "fusion": shares})
        model = load_model(weights, mode)
        animator = Animator(NnablaGraphs(*model), references, breakdown=True)
        expected, shown = animator.render_breakdown(KeypointArrays(*poses.values()))
        assert np.abs(drawn["prediction"] - expected).max() < 0.01
        assert drawn["mask"].shape == (2, 3, 16, 16)
        assert np.abs(drawn["mask"].mean((2, 3)) - shown.mask.mean((2, 3, 4))).max() < 0.01


def test_recorded_turns_are_of_known_angles(weights, tmp_path):
    export.main([str(weights), "-o", str(tmp_path), "--web"])
    turn = json.loads((tmp_path / "model.json").read_text())["turn"]
    for axis, most in (("yaw", 60), ("pitch", 30), ("roll", 30)):
        angles = turn[axis]["angles"]
        assert (angles[0], angles[len(angles) // 2], angles[-1]) == (-most, 0, most)
        assert np.shape(turn[axis]["value"]) == (len(angles), 3 * 2)
        assert np.shape(turn[axis]["jacobian"]) == (len(angles), 3 * 4)


def test_weights_are_halved(weights, tmp_path):
    model = load_model(weights)
    for half in (False, True):
        graphs.export_graph("keypoints", model, tmp_path / f"{half}.onnx", half=half)
    whole, halved = (onnx.load(tmp_path / f"{half}.onnx").graph.initializer for half in (False, True))
    assert {each.data_type for each in whole} == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    floats = [each for each in halved if each.data_type == onnx.TensorProto.FLOAT16]
    assert {len(each.dims) for each in floats} == {4}  # coordinates and biases stay as they are


@pytest.mark.parametrize("option", ["--plain", "--breakdown", "--check"])
def test_a_page_has_one_kind_of_graphs(weights, tmp_path, option):
    with pytest.raises(UserError, match="--web: its graphs are of one kind"):
        export.main([str(weights), "-o", str(tmp_path), "--web", option])
