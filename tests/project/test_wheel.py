"""The wheel, from an empty folder, with its own model, clips and configurations."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mrfomm import bundled
from mrfomm.media import provenance
from mrfomm.media.reading import open_frames
from mrfomm.media.writing import open_sink

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that `pip install --target` made, with bin/ in it."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"  # a copy of what the Dockerfiles see: setuptools builds beside setup.py
    checkout.mkdir()
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in (pattern[1:] for pattern in patterns if pattern.startswith("!")):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, checkout)
    pip("wheel", checkout, "--wheel-dir", folder, "--no-build-isolation")
    (wheel,) = folder.glob("*.whl")
    pip("install", wheel, "--target", folder / "lib")
    shutil.rmtree(checkout)
    return folder / "lib"


def pip(command, *arguments):
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", command, *options, *map(str, arguments)], check=True)


def run(installed, folder, *command):
    """Run a command of the wheel in ``folder``; the checkout is out of sight. Returns its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    environment["MRFOMM_CPU_OPERATORS"] = "0"  # they would be compiled anew, which takes most of a minute
    program = [sys.executable, str(installed / "bin" / command[0])]
    result = subprocess.run(
        [*program, *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_its_modules_are_used(installed, tmp_path):
    (installed / "bin" / "where").write_text("import mrfomm_eval, mrfomm; print(mrfomm_eval.__file__, mrfomm.__file__)")
    assert run(installed, tmp_path, "where").split() == [
        str(installed / name / "__init__.py") for name in ("mrfomm_eval", "mrfomm")
    ]


def test_it_brings_no_general_name(installed):
    """Its modules are the distribution's own, and no file of eval imports it under the checkout's name."""
    found = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert found == {"bin", "mrfomm", "mrfomm_eval"}
    for path in (installed / "mrfomm_eval").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) eval\b", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_animate(installed, tmp_path):
    frames = itertools.islice(open_frames(bundled.SAMPLE_DRIVING), 3)
    with open_sink(tmp_path / "short.mkv", 25) as sink:
        for frame in frames:
            sink.write(frame)
    output = run(installed, tmp_path, "mrfomm-animate", "--driving", "short.mkv", "--backend", "nnabla")
    assert output == "result.mp4\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.mp4", "short.mkv"]
    assert len(list(open_frames(tmp_path / "result.mp4"))) == 3
    assert provenance.read(tmp_path / "result.mp4")["synthetic"] is True


def test_train_by_default(installed, tmp_path):
    """All of the bundled configuration but the length and the size of the network."""
    small = ["keypoints", "motion", "generator"]
    values = ["train.epochs=1", "train.milestones=[]", "data.num_repeats=1", "train.batch_size=2"]
    values += [f"model.{part}.{key}" for part in small for key in ("expansion=2", "max_features=4")]
    run(installed, tmp_path, "mrfomm-train", "--set", *values)
    assert (tmp_path / "runs" / "demo-64" / "config.yaml").is_file()
    assert any((tmp_path / "runs" / "demo-64").glob("*/parameters.h5"))


COMMANDS = [f"mrfomm-eval {name}" for name in ("bins", "reconstruction", "pairs", "pose", "report")]


@pytest.mark.parametrize(
    "command", ["mrfomm-reconstruct", "mrfomm-eval", *COMMANDS, "mrfomm", "mrfomm bins", "mrfomm reconstruct"]
)
def test_help(installed, tmp_path, command):
    """Under the name that was typed; other commands are named as they are installed."""
    text = run(installed, tmp_path, *command.split(), "--help")
    assert text.startswith(f"usage: {command} ")
    assert "python" not in text


def test_pairs(installed, tmp_path):
    for folder, path in zip(("a", "b"), bundled.SAMPLE_REFERENCES):
        (tmp_path / folder).mkdir()
        shutil.copy(path, tmp_path / folder / "x.png")
    record = json.loads(run(installed, tmp_path, "mrfomm-eval", "pairs", "a", "b", "--json", "--context", "cpu"))
    assert record["command"].startswith("mrfomm-eval pairs a b")
    assert record["pictures"][0]["l1"] > 0


def test_a_missing_extra_is_named_as_it_is_installed(installed, tmp_path):
    code = "import sys; sys.modules['gradio'] = None\nfrom mrfomm import __main__, errors\n"
    code += "try: __main__.main(['app'])\nexcept errors.UserError as error: print(error)"
    (installed / "bin" / "app").write_text(code)
    assert "; pip install mrfomm[app]\n" in run(installed, tmp_path, "app")
