"""The import arrows of the house, read from the code itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.draw_architecture import draw, imports, modules, read_graph, within

ROOT = Path(__file__).parent.parent.parent
THIRD_PARTY_OF_NETWORKS = {"nnabla", "numpy"}
LIGHT = [
    "mrfomm",
    "mrfomm.errors",
    "mrfomm.config",
    "mrfomm.media.reading",
    "mrfomm.media.writing",
    "mrfomm.media.crop",
    "mrfomm.data.loader",
    "mrfomm.data.clips",
    "mrfomm.onnx.exported",  # from here on, what animates where nnabla isn't
    "mrfomm.reenactment.backends",
    "mrfomm.reenactment.live",
    "mrfomm.commands.animate",
    "mrfomm.app.studio",
]
STANDARD = {*sys.builtin_module_names, *getattr(sys, "stdlib_module_names", ())}

# room -> the rooms that it may import, besides itself: docs/architecture.md. Everybody stands on errors and store.
STANDS_ON = {
    "errors": "",
    "store": "",
    "bundled": "",
    "networks": "",
    "runtime": "networks",  # batch norm over several processes
    "media": "",
    "data": "media runtime.threads runtime.stopping",
    "heads": "media runtime.threads bundled",
    "config": "data.augment",
    "model": "networks config",
    "onnx": "networks config model",
    "convert": "networks config model bundled",
    "reenactment": "networks config model onnx media data runtime bundled",
    "training": "networks config model reenactment data runtime bundled",
    "eval": "networks.perceptual reenactment media data",  # and its commands on everything
}
GROUND = {"errors", "store"}
TOPS = {"commands", "app", "export", "doctor", "provenance", "__main__"}  # they may import everything, and nobody them
METRICS = ["eval.bins.metric", "eval.detectors", "eval.lpips", "eval.reconstruction.metrics", "eval.results"]
EVAL_COMMANDS = {f"eval.{name}" for name in ("__main__", "bins.__main__", "reconstruction.__main__")}
EVAL_COMMANDS |= {f"eval.{name}" for name in ("pairs", "pose", "report")}


GRAPH = {name: imports(path) for name, path in modules()}


def test_the_graph_is_read():
    assert within("mrfomm.networks.fusion.fuse", GRAPH["mrfomm.model.composition"])
    assert len(GRAPH) > 20


def test_the_picture_is_up_to_date():
    """Else: python scripts/draw_architecture.py -o docs/architecture.svg"""
    assert (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8") == draw(read_graph())


@pytest.mark.parametrize("module", [name for name in GRAPH if name.startswith("mrfomm.networks")])
def test_networks_know_nnabla_and_numpy_only(module):
    for name in GRAPH[module]:
        top = name.split(".")[0]
        if module.startswith("mrfomm.networks.cpu") and top in ("numba", "ctypes", "importlib"):
            continue
        assert top in THIRD_PARTY_OF_NETWORKS | STANDARD or within(name, {"mrfomm.networks"}), name


def room_of(name):
    """The room of a dotted name, such as `networks` of `mrfomm.networks.ops.warp`; None for others' modules."""
    top, *rest = name.split(".")
    return top if top == "eval" else rest[0] if top == "mrfomm" and rest else None


def test_every_room_has_its_place():
    assert {room_of(name) for name in GRAPH} - {None, "mrfomm"} == STANDS_ON.keys() | TOPS


def ours(module):
    """What a module imports of this project, but the version."""
    return {name for name in GRAPH[module] if within(name, {"mrfomm", "eval"})} - {"mrfomm", "mrfomm.__version__"}


@pytest.mark.parametrize("room", STANDS_ON)
def test_arrows_point_down(room):
    floor = {room, *STANDS_ON[room].split(), *(GROUND if room not in {"errors", "networks", "bundled"} else ())}
    allowed = {f"mrfomm.{name}" for name in floor} | ({"eval"} & {room})
    for module in (name for name in GRAPH if room_of(name) == room and name not in EVAL_COMMANDS):
        assert not {name for name in ours(module) if not within(name, allowed)}, module


@pytest.mark.parametrize("module", METRICS)
def test_metrics_stand_alone(module):
    allowed = {"mrfomm.errors", "mrfomm.store", "mrfomm.networks.perceptual", "mrfomm.reenactment.identity", *METRICS}
    assert not {name for name in ours(module) if not within(name, allowed)}


def test_nobody_imports_the_tops():
    tops = {f"mrfomm.{name}" for name in TOPS} | EVAL_COMMANDS | {"train", "animate", "reconstruct"}
    for module in (name for name in GRAPH if room_of(name) not in TOPS and name not in EVAL_COMMANDS):
        assert not {name for name in ours(module) if within(name, tops)}, module


def test_mrfomm_never_imports_eval():
    for module, names in GRAPH.items():
        if within(module, {"mrfomm"}):
            assert not {name for name in names if within(name, {"eval"})}, module


@pytest.mark.parametrize("module", LIGHT)
def test_loader_workers_need_no_nnabla(module):
    code = f"import {module}, sys; sys.exit('nnabla' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("script", ["train.py", "animate.py", "reconstruct.py"])
def test_scripts_are_wiring(script):
    assert len((ROOT / script).read_text(encoding="utf-8").splitlines()) <= 100
