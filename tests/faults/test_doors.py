"""What can't be read, listed or written, as an ordinary user meets it: exit code 2 and one line, at every option."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from mrfomm import bundled
from mrfomm.errors import run_command

GOLDEN = Path(__file__).parent.parent / "golden" / "fomm-tiny"
CONVERT = ("fomm.pth.tar", "--config", "upstream.yaml")
SCORE = ("rebuilt", "--landmarks", "none", "--identity")
CAPABILITIES = "-dac_override,-dac_read_search"  # root's, to which permissions are nothing
READ, LISTED, ENTERED, WRITTEN = "READ", "LISTED", "ENTERED", "WRITTEN"  # a place in a command, by what is done there
ANY = (READ, LISTED, ENTERED, WRITTEN)
DOORS = (
    ("mrfomm.commands.animate", "--refs", READ),
    ("mrfomm.commands.animate", "--driving", READ),
    ("mrfomm.commands.animate", "--driving", LISTED),
    ("mrfomm.commands.animate", "--weights", LISTED),
    ("mrfomm.commands.animate", "--weights", "weights", "--output", WRITTEN),
    ("mrfomm.commands.animate", "--weights", "weights", "--masks", WRITTEN),
    ("mrfomm.commands.train", "--config", READ),
    ("mrfomm.commands.train", "--data", LISTED),
    ("mrfomm.commands.train", "--init", LISTED),
    ("mrfomm.commands.train", "--resume", LISTED),
    ("mrfomm.commands.train", "--output", WRITTEN),
    ("mrfomm.commands.train", "--set", "loss.perceptual_network=vgg19", f"loss.perceptual_weights={READ}"),
    ("mrfomm.commands.reconstruct", "--data", LISTED),
    ("mrfomm.commands.reconstruct", "--weights", LISTED),
    ("mrfomm.commands.reconstruct", "--output", WRITTEN),
    ("eval.bins.__main__", "--data", LISTED),
    ("eval.bins.__main__", "--weights", LISTED),
    ("eval.bins.__main__", "--generated", ENTERED),
    ("eval.bins.__main__", "--weights", "weights", "--lpips-weights", READ),
    ("eval.bins.__main__", "--weights", "weights", "--output", WRITTEN),
    ("eval.reconstruction.__main__", ENTERED),
    ("eval.reconstruction.__main__", *SCORE, "none", "--data", ENTERED),
    ("eval.reconstruction.__main__", *SCORE, "none", "--lpips-weights", READ),
    ("eval.reconstruction.__main__", *SCORE, "openface", "--openface-weights", READ),
    ("eval.reconstruction.__main__", *SCORE, "none", "--output", WRITTEN),
    ("eval.reconstruction.__main__", *SCORE, "none", "--generated", ENTERED),
    ("eval.pairs", READ, READ),
    ("eval.pose", READ, "-o", "pose.csv"),
    ("eval.pose", "frames", "-o", WRITTEN),
    ("eval.pose", "frames", "-o", "pose.csv", "--labels", READ),
    ("eval.report", LISTED),
    ("eval.report", "rebuilt", "-o", WRITTEN),
    ("mrfomm.data.prepare", LISTED, "-o", "data"),
    ("mrfomm.data.prepare", "samples", "-o", WRITTEN),
    ("mrfomm.data.prepare", "samples", "-o", "data", "--vox-metadata", LISTED),
    ("mrfomm.heads.__main__", "--subjects", "1", "--clips", "1", "--frames", "2", "--workers", "1", "--out", WRITTEN),
    ("mrfomm.convert.__main__", READ, "-o", "converted"),
    ("mrfomm.convert.__main__", "fomm.pth.tar", "--config", READ, "-o", "converted"),
    ("mrfomm.convert.__main__", *CONVERT, "-o", WRITTEN),
    ("mrfomm.commands.export", LISTED, "-o", "onnx"),
    ("mrfomm.commands.export", "weights", "-o", WRITTEN),
    ("mrfomm.media.provenance", READ),
    ("mrfomm.media.provenance", LISTED),
    ("mrfomm.app.__main__", "--weights", LISTED),
)
LONG = 300 * "a"
FAULTS = {  # path -> the places it is put into, what the line about it says
    "closed/x": (ANY, r"permissions|choose another"),
    "locked": (READ, "permissions"),
    "dark": (LISTED, "permissions"),
    LONG: (ANY, "File name too long.*; (give a shorter one|choose another)"),
    "loop/x": (ANY, "; "),
    "file/x": (ANY, "; "),
}
# Each case in a fork of one process that imports everything once, as in fuzz.py
DRIVER = """
import importlib, json, os, sys, traceback
from mrfomm.errors import run_command
said = []
for number, (name, *arguments) in enumerate(json.loads(sys.argv[1])):
    main = importlib.import_module(name).main
    child = os.fork()
    if not child:
        for stream, path in ((1, os.devnull), (2, f"stderr-{number}")):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        code = 1
        try:
            run_command(lambda: main(arguments))
        except SystemExit as leaving:
            code = leaving.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said.append((code, open(f"stderr-{number}", errors="replace").read()))
json.dump(said, open("said.json", "w"))
"""


def as_user(command):
    """A command line without root's right to read and write everything."""
    if os.geteuid():
        return command
    return ["setpriv", f"--bounding-set={CAPABILITIES}", f"--inh-caps={CAPABILITIES}", *command]


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """A run folder of reconstruct.py."""
    from mrfomm.commands import reconstruct

    folder = tmp_path_factory.mktemp("rebuilt")
    weights = str(tiny.checkpoint(folder / "weights"))
    reconstruct.main(["--weights", weights, "--backend", "nnabla", "--context", "cpu", "--output", str(folder / "run")])
    return folder / "run"


@pytest.fixture
def place(tmp_path, rebuilt):
    """A folder with healthy files for all commands, and those that are refused."""
    if not os.geteuid() and not shutil.which("setpriv"):
        pytest.skip("root, whom permissions don't stop, and no setpriv to change that")
    tiny.checkpoint(tmp_path / "weights")
    shutil.copytree(rebuilt, tmp_path / "rebuilt")
    (tmp_path / "samples").symlink_to(Path(bundled.SAMPLE_DRIVING).parent)
    shutil.copytree(next((tmp_path / "rebuilt" / "frames").iterdir()), tmp_path / "frames")
    shutil.copy(GOLDEN / "checkpoint.pth.tar", tmp_path / "fomm.pth.tar")
    shutil.copy(GOLDEN / "config.yaml", tmp_path / "upstream.yaml")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    (tmp_path / "locked").touch(0o000)
    (tmp_path / "closed").mkdir(0o000)
    (tmp_path / "dark").mkdir()
    for name in ("train", "test"):  # their names are known, but not that they are there
        (tmp_path / "dark" / name).mkdir(0o000)
    (tmp_path / "dark").chmod(0o111)
    readable = subprocess.run(as_user(["cat", "locked"]), cwd=tmp_path, capture_output=True).returncode == 0
    yield tmp_path
    for path in (tmp_path / "dark", *(tmp_path / "dark").iterdir(), tmp_path / "closed"):
        path.chmod(0o700)
    assert not readable, "permissions stop nobody here"


def put(argument, path):
    """An argument with the path in its place, if it has one."""
    for word in ANY:
        argument = argument.replace(word, path)
    return argument


def is_one_line(code, stderr, path, problem):
    """Whether a command has ended as it should; bars and notices may come before."""
    lines = stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith(("error: ", "Traceback"))]
    return code == 2 and errors == lines[-1:] and path in lines[-1] and re.search(problem, lines[-1])


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if path in ("closed/x", "dark") else pytest.mark.long, id=path[:8])
        for path in FAULTS
    ],
)
def test_one_line_at_every_door(place, path):
    places, problem = FAULTS[path]
    doors = [door for door in DOORS if any(argument.endswith(places) for argument in door)]
    cases = [[put(argument, path) for argument in door] for door in doors]
    driver = as_user([sys.executable, "-c", DRIVER, json.dumps(cases)])
    environment = {**os.environ, "PYTHONPATH": str(GOLDEN.parents[2]), "XDG_CACHE_HOME": str(place / "cache")}
    done = subprocess.run(driver, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads((place / "said.json").read_text())
    wrong = {" ".join(case): end for case, end in zip(cases, said) if not is_one_line(*end, path, problem)}
    assert not wrong


def test_what_a_rename_or_a_full_disk_says(capsys):
    """Of a rename the place that was asked for; without a name of a file at least the remedy."""
    for error, expected in (
        (OSError(errno.EXDEV, "Invalid cross-device link", ".aside", None, "weights"), "weights: Invalid cross-device"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device; make room"),
        (SystemError("wrapped"), "clips: Permission denied; check its permissions"),
    ):

        def fail(error=error):
            raise error from PermissionError(errno.EACCES, "Permission denied", "clips")

        with pytest.raises(SystemExit) as left:
            run_command(fail)
        assert left.value.code == 2
        assert expected in capsys.readouterr().err
