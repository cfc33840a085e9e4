"""The import arrows of the house, read from the code itself."""

import re
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
]
STANDARD = {*sys.builtin_module_names, *getattr(sys, "stdlib_module_names", ())}

# room -> the rooms that it may import, besides itself: docs/architecture.md
GROUND = {"errors", "store"}
STANDS_ON = {
    "errors": set(),
    "store": {"errors"},
    "bundled": set(),
    "networks": set(),
    "runtime": {"errors"},
    "media": GROUND,
    "video": {"media"},
    "crop": {"media"},
    "provenance": {"media", *GROUND},
    "data": {"media", "provenance", "runtime.threads", *GROUND},
    "heads": {"media", "provenance", "runtime.threads", "bundled", *GROUND},
    "config": {"data.augment", *GROUND},
    "checkpoint": {"config", *GROUND},
    "model": {"networks", "config", "checkpoint", *GROUND},
    "training": {"model", "networks", "config", "checkpoint", "data", "media.pictures", "runtime", "bundled", *GROUND},
    "onnx": {"model", "networks", "config", *GROUND},
    "convert": {"model", "networks", "config", "checkpoint", *GROUND},
    "reenactment": {
        "model",
        "networks",
        "config",
        "onnx",
        "media",
        "data",
        "provenance",
        "runtime",
        "bundled",
        *GROUND,
    },
    "eval": {
        "reenactment",
        "model",
        "networks.perceptual",
        "media",
        "data",
        "provenance",
        "runtime",
        "bundled",
        *GROUND,
    },
}
TOPS = {"commands", "app", "export", "__main__"}  # they may import everything, and nobody them

# eval: the measures themselves, and the commands, which alone may use what nobody else imports
METRICS = [f"eval.{name}" for name in ("angle_bins", "detectors", "lpips", "metrics", "results")]


GRAPH = {name: imports(path) for name, path in modules()}


def test_the_graph_is_read():
    assert within("mrfomm.networks.fusion.fuse", GRAPH["mrfomm.model"])
    assert len(GRAPH) > 20


def test_the_picture_is_up_to_date():
    """Else: python scripts/draw_architecture.py -o docs/architecture.svg"""
    assert (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8") == draw(read_graph())


def test_where_types_are_insisted_on_there_are_modules():
    """Else mypy passes over the name of a module that was renamed, with a note."""
    listed = re.search(r"module = \[\n(.*?)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.DOTALL)
    assert set(re.findall(r'"([\w.]+)"', listed.group(1))) <= set(GRAPH)


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
    assert {room_of(name) for name in GRAPH} - {None} == STANDS_ON.keys() | TOPS


@pytest.mark.parametrize("room", STANDS_ON)
def test_arrows_point_down(room):
    allowed = {f"mrfomm.{other}" for other in {room, "__version__"} | STANDS_ON[room]} | ({"eval"} & {room})
    for module in (name for name in GRAPH if room_of(name) == room):
        ours = {name for name in GRAPH[module] if within(name, {"mrfomm", "eval"})}
        assert not {name for name in ours if not within(name, allowed)}, module


@pytest.mark.parametrize("module", METRICS)
def test_metrics_stand_alone(module):
    allowed = {"mrfomm.errors", "mrfomm.store", "mrfomm.networks.perceptual", "mrfomm.__version__", *METRICS}
    ours = {name for name in GRAPH[module] if within(name, {"mrfomm", "eval"})}
    assert not {name for name in ours if not within(name, allowed)}


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
