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

# module or package -> what of mrfomm it may import
ALLOWED = {
    "mrfomm.errors": set(),
    "mrfomm.media": {"mrfomm.media", "mrfomm.errors"},
    "mrfomm.video": {"mrfomm.media"},
    "mrfomm.media.crop": {"mrfomm.errors"},
    "mrfomm.media.pictures": set(),
    "mrfomm.data": {
        "mrfomm.data",
        "mrfomm.errors",
        "mrfomm.store",
        "mrfomm.media",
        "mrfomm.runtime.threads",
        "mrfomm.media.crop",
    },
    "mrfomm.runtime.threads": set(),
    "mrfomm.config": {"mrfomm.data.augment", "mrfomm.errors"},
    "mrfomm.model": {"mrfomm.networks", "mrfomm.config", "mrfomm.checkpoint", "mrfomm.errors"},
    "mrfomm.training.losses": {"mrfomm.networks"},
    "mrfomm.training.equivariance": {"mrfomm.networks"},
}

# eval: the measures themselves, and the commands, which alone may use what nobody else imports
METRICS = [f"eval.{name}" for name in ("angle_bins", "detectors", "lpips", "metrics", "results")]
EVAL_COMMANDS = {"eval.bins", "eval.reconstruction", "eval.report"}
ALLOWED.update({name: {"mrfomm.errors", "mrfomm.networks", *METRICS} for name in METRICS})
ALLOWED["eval.results"] = {"mrfomm.errors", "mrfomm.store"}  # measures nothing: it writes


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


@pytest.mark.parametrize("package", ALLOWED)
def test_allowed_arrows(package):
    for module in (name for name in GRAPH if within(name, {package})):
        ours = {name for name in GRAPH[module] if within(name, {"mrfomm", "eval"})}
        assert not {name for name in ours if not within(name, ALLOWED[package])}, module


def test_nobody_imports_the_ends():
    ends = {"mrfomm.commands", "mrfomm.app", "train", "animate", "reconstruct"}
    for module, names in GRAPH.items():
        if not within(module, {"mrfomm.commands", "mrfomm.app", "mrfomm.export", *EVAL_COMMANDS}):
            assert not {name for name in names if within(name, ends)}, module


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
