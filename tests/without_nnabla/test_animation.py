"""Where nnabla isn't, an exported model animates: the same frames as by nnabla, within one grey level.

These tests run twice: with the others, where commands run in processes whose imports find neither nnabla nor anything
else that setup.py leaves out; and by `make test-without-nnabla` on a newer CPython, where it really isn't installed.
MRFOMM_EXPECTED is then the folder of frames that nnabla has drawn.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import mrfomm
from mrfomm import Reenactor, bundled
from mrfomm.errors import UserError, as_called_here
from mrfomm.media import provenance
from mrfomm.media.reading import open_frames
from mrfomm.media.writing import open_sink
from mrfomm.reenactment.backends import load_weights, open_engine
from mrfomm.reenactment.live import Puppet
from mrfomm.reenactment.motion import Transfer

HERE = Path(mrfomm.__file__).parent.parent
OF_TRAINING = ["nnabla", "nnabla_ext", "h5py", "onnx", "numba", "mpi4py", "tensorboardX", "scipy", "torch", "mediapipe"]
OF_THE_PAGE = ["matplotlib", "gradio", "starlette", "pandas", "jinja2", "markdown_it"]
WITHOUT = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {left_out} else super().find_spec(name, path, target)
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
ELSEWHERE = """
import os, signal
sys.modules["fcntl"] = None
for module, name in ((os, "sched_getaffinity"), (os, "getuid"), (signal, "SIGHUP"), (signal, "SIGUSR1")):
    delattr(module, name)
"""


def python(folder, code, *arguments, left_out=(*OF_TRAINING, *OF_THE_PAGE)):
    """Run code in ``folder`` where some packages aren't; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(left_out=left_out) + code, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HERE), "XDG_CACHE_HOME": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def animate(folder, *arguments, before=""):
    return python(folder, f"{before}\nfrom mrfomm.commands.animate import command; command()", *arguments)


def frames(path):
    return np.array(list(open_frames(path)), int)


@pytest.fixture(scope="module")
def expected():
    """The bundled animation as nnabla draws it, int [N,64,64,3]."""
    if "MRFOMM_EXPECTED" in os.environ:
        return frames(os.environ["MRFOMM_EXPECTED"])
    from mrfomm.runtime.context import use_context

    with use_context("cpu"):
        return np.array([*Reenactor(bundled.MODELS["patch"], backend="nnabla").animate(bundled.SAMPLE_DRIVING)], int)


@pytest.fixture
def exported(tmp_path):
    """A copy of the bundled exported model."""
    return Path(shutil.copytree(bundled.EXPORTED, tmp_path / "exported"))


# frames


def test_animate_without_arguments(tmp_path, expected):
    """But for the place of the frames."""
    done = animate(tmp_path, "--output", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out\n"
    drawn = frames(tmp_path / "out")
    assert drawn.shape == expected.shape
    difference = np.abs(drawn - expected)
    assert difference.max() <= 1
    assert 0 < difference.mean() < 0.05  # rounding alone, but of other weights than nnabla's: halves
    assert provenance.read(tmp_path / "out")["weights"] == load_weights(bundled.EXPORTED).digest


def test_the_python_of_the_documentation(tmp_path, expected):
    reenactor = Reenactor(bundled.EXPORTED)
    drawn = np.array(list(reenactor.animate(bundled.SAMPLE_DRIVING)), int)
    assert np.abs(drawn - expected).max() <= 1
    reenactor.save(tmp_path / "frames", bundled.SAMPLE_DRIVING)
    np.testing.assert_array_equal(frames(tmp_path / "frames"), drawn)
    record = provenance.read(tmp_path / "frames")
    assert record["synthetic"] is True
    assert record["driving"] == provenance.clip_digest(bundled.SAMPLE_DRIVING)


def test_saving_keeps_rate_and_sound_unless_told(tmp_path):
    source = open_frames(bundled.SAMPLE_DRIVING)
    reenactor = Reenactor(bundled.EXPORTED, bundled.SAMPLE_REFERENCES[:1])
    reenactor.save(tmp_path / "loud.mp4", bundled.SAMPLE_DRIVING)
    reenactor.save(tmp_path / "mute.mp4", source, sound=False)
    loud, mute = (open_frames(tmp_path / name) for name in ("loud.mp4", "mute.mp4"))
    assert (loud.fps, loud.has_audio, mute.has_audio) == (source.fps, source.has_audio, False)
    with pytest.raises(UserError, match=r"none\.mp4"):
        reenactor.save(tmp_path / "x.mp4", "none.mp4")
    assert not (tmp_path / "x.mp4").exists()


def test_arrays_are_saved_with_a_record_of_no_file(tmp_path):
    pictures = list(open_frames(bundled.SAMPLE_DRIVING))[:3]
    Reenactor(bundled.EXPORTED, pictures[:1]).save(tmp_path / "out", pictures)
    record = provenance.read(tmp_path / "out")
    assert (record["references"], record["driving"]) == ([None], None)
    assert open_frames(tmp_path / "out").count_hint == 3


def test_frame_by_frame_as_from_a_clip_and_in_the_window():
    driving = list(open_frames(bundled.SAMPLE_DRIVING))[:6]
    reenactor, start = Reenactor(bundled.EXPORTED), Transfer(start=0)
    expected = list(reenactor.animate(driving, start))
    follow = reenactor.follow()
    np.testing.assert_array_equal([follow(frame) for frame in driving], expected)
    again = reenactor.follow()
    assert (again(driving[5]) != expected[5]).any()  # its motion starts there
    puppet = Puppet(reenactor, Transfer(), None, False, print)
    np.testing.assert_array_equal([puppet(frame) for frame in driving], expected)
    puppet.restart()
    np.testing.assert_array_equal(puppet(driving[5]), reenactor.follow()(driving[5]))


def test_elsewhere_than_on_linux(tmp_path, expected):
    """Not macOS or Windows, but without what only Linux or Unix has."""
    done = animate(tmp_path, "--output", "out", before=ELSEWHERE)
    assert done.returncode == 0, done.stderr
    assert np.abs(frames(tmp_path / "out") - expected).max() <= 1


# what can't be had


WANTED = {
    "mrfomm.commands.train": ["--set", "train.epochs=1"],
    "mrfomm.commands.reconstruct": [],
    "mrfomm.commands.export": [bundled.MODELS["patch"], "-o", "x"],
    "mrfomm.export": [bundled.MODELS["patch"], "-o", "x"],
    "mrfomm.convert": ["x.pth", "-o", "x"],
}


@pytest.mark.parametrize("module", WANTED)
def test_what_needs_nnabla_says_so_in_one_line(tmp_path, module):
    code = f"import runpy; runpy.run_module({module!r}, run_name='__main__')"
    done = python(tmp_path, code, *WANTED[module])
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this needs nnabla, which isn't installed (Python 3.")
    assert "use CPython 3.10 on Linux, or animate with an exported model" in line
    assert list(tmp_path.iterdir()) == []


def test_what_needs_matplotlib_says_so_in_one_line(tmp_path):
    done = python(tmp_path, "import runpy; runpy.run_module('mrfomm.app', run_name='__main__')")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("error: this needs matplotlib; pip install matplotlib")


@pytest.mark.parametrize("command", ["animate", "reconstruct", "train"])
def test_outside_the_environment_one_line_says_so(tmp_path, command):
    code = f"from mrfomm.commands.{command} import command"  # as the scripts begin
    done = python(tmp_path, code, left_out=(*OF_TRAINING, "numpy"))
    line = f"error: numpy isn't installed for {sys.executable}; make venv, then . .venv/bin/activate\n"
    assert (done.returncode, done.stderr) == (2, as_called_here(line))


def test_what_else_is_missing_keeps_its_traceback(tmp_path):
    done = python(tmp_path, "import mrfomm, other_package")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "ModuleNotFoundError: No module named 'other_package'",
    )


def test_weights_for_nnabla_too(tmp_path):
    done = animate(tmp_path, "--weights", bundled.MODELS["patch"])
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "this needs nnabla" in done.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--backend", "nnabla"], "--backend nnabla: .* is an exported model; leave it out, or give the checkpoint"),
        (["--context", "cudnn"], "--context cudnn: an exported model runs on a CPU"),
        (["--fusion", "mean"], "--fusion mean: .* was exported with patch; leave --fusion out, or export the model"),
    ],
)
def test_options_that_an_exported_model_has_not(tmp_path, options, named):
    done = animate(tmp_path, "--weights", bundled.EXPORTED, *options)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.match(f"error: {named}", line), line


def test_another_error_keeps_its_traceback(tmp_path):
    done = python(tmp_path, "import mrfomm, no_such_module")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "no_such_module" in done.stderr


DAMAGE = {
    "cut": lambda text: text[:-20],
    "list": lambda text: "[]",
    "later": lambda text: text.replace('"format": 1', '"format": 2'),
    "size": lambda text: text.replace('"size": 64', '"size": "64"'),
    "none": lambda text: text.replace('"size": 64', '"size": 0'),
    "bool": lambda text: text.replace('"keypoints": 10', '"keypoints": true'),
    "elsewhere": lambda text: text.replace('"frame"', '"../frame"'),
    "lacking": lambda text: text.replace('"digest"', '"other"'),
    "deep": lambda text: "[" * 50_000,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_record_is_named(exported, kind):
    record = exported / "export.json"
    record.write_text(DAMAGE[kind](record.read_text()))
    with pytest.raises(UserError, match=r"export\.json: (damaged|format 2).*python -m mrfomm.export"):
        load_weights(exported)


@pytest.mark.parametrize("name", ["reference", "keypoints", "frame"])
def test_a_damaged_graph_is_named_before_anything_is_drawn(exported, name):
    graph = exported / f"{name}.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}\.onnx: missing or damaged"):
        open_engine(exported)
    graph.unlink()
    with pytest.raises(UserError, match=rf"{name}\.onnx: missing or damaged"):
        open_engine(exported)


def test_shares_that_were_not_exported(exported):
    record = json.loads((exported / "export.json").read_text())
    del record["graphs"]["breakdown"]
    (exported / "export.json").write_text(json.dumps(record))
    assert open_engine(exported).size == 64
    with pytest.raises(UserError, match=r"breakdown\.onnx: was not exported; .* --breakdown"):
        open_engine(exported, breakdown=True)


# what the model knows


def test_a_line_on_what_to_expect_of_the_users_own_files(tmp_path):
    with open_sink(tmp_path / "mine.mp4", 25) as sink:
        for frame in list(open_frames(bundled.SAMPLE_DRIVING))[:2]:
            sink.write(frame)
    shutil.copy(bundled.SAMPLE_REFERENCES[0], tmp_path / "me.png")
    options = ["--output", "out", "--start", "0"]
    quiet = animate(tmp_path, "--driving", bundled.SAMPLE_DRIVING, *options)
    assert "trained on" not in quiet.stderr
    for mine in (["--driving", "mine.mp4"], ["--refs", "me.png"], ["--driving", "mine.mp4", "--refs", "me.png"]):
        done = animate(tmp_path, *mine, *options)
        assert done.returncode == 0, done.stderr
        (line,) = (line for line in done.stderr.splitlines() if "trained on" in line)
        assert "rendered heads" in line
        assert line.endswith("python -m mrfomm.convert --download vox")


def test_the_line_is_the_models_own(exported):
    text = (exported / "export.json").read_text()
    knowledge = load_weights(exported).knowledge
    assert knowledge.expect
    milder = text.replace(knowledge.expect, "a little \\u001b[31msoft\\n" + "." * 999)
    (exported / "export.json").write_text(milder)
    line = load_weights(exported).expectation(["me.png"])
    assert "; a little [31msoft ...." in line  # nothing that a terminal would obey
    assert len(line) < 600
    (exported / "export.json").write_text(text.replace(f'"{knowledge.expect}"', "7"))
    assert load_weights(exported).expectation(["me.png"]) is None
    (exported / "export.json").write_text(text.replace('"expect"', '"of a later version"'))
    assert load_weights(exported).expectation(["me.png"]) is None


# the page

ORDER = """
from mrfomm import bundled
from mrfomm.app.studio import Limits, Order, Workshop
from mrfomm.reenactment.motion import Transfer
shop = Workshop(bundled.EXPORTED, "auto", "auto", Limits(999, 1))
order = Order(tuple(map(str, bundled.SAMPLE_REFERENCES)), str(bundled.SAMPLE_DRIVING), "patch", Transfer(), False)
print(shop.fusion_modes, shop.animate(order, "", lambda items, total, what: items).strip.name)
"""


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="the extra `app` isn't installed")
def test_the_page_answers_and_fills_an_order(tmp_path):
    code = WITHOUT.format(left_out=OF_TRAINING) + "from mrfomm.app.__main__ import command; command()"
    command = [sys.executable, "-c", code, "--weights", str(bundled.EXPORTED)]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as server:
        try:
            address = server.stdout.readline().strip().rstrip("/")
            with urllib.request.urlopen(f"{address}/config", timeout=60) as answer:
                page = answer.read().decode()
        finally:
            server.terminate()
    assert "This model was trained on 800 clips of 400 rendered heads" in page
    assert "python -m mrfomm.convert --download vox" in page

    done = python(tmp_path, ORDER, left_out=OF_TRAINING)
    assert done.stdout == "['patch'] strip.png\n", done.stderr
    assert {path.name for path in tmp_path.iterdir()} >= {"beside.mp4", "result.mp4", "strip.png"}
