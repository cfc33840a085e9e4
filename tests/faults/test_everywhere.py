"""The same commands from other places: odd paths, no HOME, another locale, a source tree that can't be written."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TAKEN = ("mrfomm", "eval", "configs", "animate.py", "train.py", "reconstruct.py")
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

COMMANDS = {
    "animate": ("animate.py", "--masks", "masks dépôt", "--output", "résultat 1.mp4"),
    "train": ("train.py", "--set", "train.epochs=1", "data.num_repeats=2", "train.validation_clips=0"),
    "heads": ("-m", "mrfomm.heads", "--out", "köpfe", "--subjects", "1", "--clips", "1", "--frames", "3"),
    "reconstruct": ("reconstruct.py", "--refs", "2"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the project in a folder whose path has spaces and letters beyond ASCII."""
    target = tmp_path_factory.mktemp("über all") / "mr fomm ñ 顔"
    target.mkdir()
    for name in TAKEN:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, target / name)
    for cache in list(target.rglob("__pycache__")):
        shutil.rmtree(cache)
    return target


def run(tree, folder, command, environment=None, read_only=False):
    """Run one of COMMANDS of the tree in a folder; returns the finished process."""
    first, *rest = COMMANDS[command]
    words = [sys.executable, *([first, *rest] if first == "-m" else [str(tree / first), *rest])]
    names = ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
    plain = {name: os.environ[name] for name in names if name in os.environ}
    values = {**plain, "PYTHONPATH": str(tree), "XDG_CACHE_HOME": str(folder / "cache"), **(environment or {})}
    if read_only:
        place = shlex.quote(str(tree))
        script = f"mount --bind {place} {place} && mount -o remount,ro,bind {place} && exec {shlex.join(words)}"
        words = ["unshare", "-m", "sh", "-c", script]
    values = {name: value for name, value in values.items() if value is not None}
    return subprocess.run(words, cwd=folder, env=values, capture_output=True, check=False, timeout=300)


def assert_done(process, folder, command):
    assert process.returncode == 0, process.stderr.decode(errors="replace")[-2000:]
    if command == "animate":
        assert (folder / "résultat 1.mp4").stat().st_size > 1000
        assert len(list((folder / "masks dépôt").glob("*.png"))) == 75
    if command == "train":
        newest = max(folder.glob("runs/*/checkpoint-*/state.json"))
        assert json.loads(newest.read_text())["state"]["step"] > 0
    if command == "heads":
        assert len(list((folder / "köpfe").rglob("*.mp4"))) == 1
    if command == "reconstruct":
        assert (folder / "reconstruction" / "manifest.jsonl").stat().st_size > 0


@pytest.mark.slow
def test_no_home_ascii_locale_and_odd_paths(tree, tmp_path):
    odd = tmp_path / "là bas"
    odd.mkdir()
    assert_done(run(tree, odd, "animate", {**ASCII, "XDG_CACHE_HOME": None}), odd, "animate")


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "environment", [{}, ASCII, {"LC_ALL": "C.utf8"}, {"HOME": "/nonexistent", "XDG_CACHE_HOME": None}]
)
def test_everywhere(tree, tmp_path, command, environment):
    assert_done(run(tree, tmp_path, command, environment), tmp_path, command)


def can_mount():
    """Whether this process may make a private read-only mount, as root may on most machines."""
    return shutil.which("unshare") and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_source_tree_that_cant_be_written(tree, tmp_path, command):
    if not can_mount():
        pytest.skip("needs root for a read-only mount")
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    home = {"HOME": "/nonexistent", "XDG_CACHE_HOME": None}
    assert_done(run(tree, tmp_path, command, home, read_only=True), tmp_path, command)
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before
