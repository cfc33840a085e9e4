"""What is printed can't be written: the reader went away, the disk of the log is full, the stream was closed."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import pytest
import tiny

ROOT = Path(__file__).parent.parent.parent

# prints more than a pipe holds, asks a child to complain on stderr, then writes its result and a last line
COMMAND = """
import subprocess, sys
from pathlib import Path
from tqdm import tqdm
from mrfomm.errors import run_command

def main():
    for number in tqdm(range(2000)):
        print("x" * 100)
    with open("result", "w") as result:
        subprocess.run(["sh", "-c", "echo complaint >&2"], check=False)
        result.write("whole")
    print("last line")
    return 0

run_command(main)
"""
WHOLE = ("x" * 100 + "\n") * 2000 + "last line\n"


def shell(folder, command, *options):
    """Run a command in bash, which exits with the code of the pipe's first part."""
    words = ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}", *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize("unbuffered", ["", "-u"])
@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("2>&1 | head -c 10 > /dev/null", 141),
        ("| head -c 10 > /dev/null", 141),
        ("2> >(head -c 10 > /dev/null) > out", 0),
        ("> /dev/full", 2),
        ("> /dev/full 2>&1", 2),
        ("2> /dev/full > out", 0),
        ("2>&- > out", 0),
        (">&-", 0),
        ("<&- >&- 2>&-", 0),
    ],
)
def test_work_is_done_whatever_becomes_of_the_words(tmp_path, where, code, unbuffered):
    (tmp_path / "command.py").write_text(COMMAND)
    done = shell(tmp_path, f"{shlex.quote(sys.executable)} {unbuffered} command.py {where}")
    assert done.returncode == code, done.stderr
    assert (tmp_path / "result").read_text() == "whole"  # and nobody's complaint
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if where == "> /dev/full":
        (line,) = errors
        assert "standard output: can't be written (No space left on device)" in line
    else:
        assert not errors
    if (tmp_path / "out").exists():
        assert (tmp_path / "out").read_text() == WHOLE


def test_a_wrong_input_is_told_by_its_code_where_nothing_can_be_printed(tmp_path):
    code = "from mrfomm.errors import *; run_command(lambda: check_is_file('none'))"
    assert shell(tmp_path, f'{shlex.quote(sys.executable)} -c "{code}" > /dev/full 2>&-').returncode == 2


@pytest.mark.parametrize("where", ["2>&-", "> /dev/full"])
def test_animate_writes_its_result(tmp_path, where):
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(tiny.frames(2)):
        imageio.imwrite(tmp_path / "frames" / f"{number}.png", frame)
    weights = tiny.checkpoint(tmp_path / "weights")
    options = f"--driving frames --refs frames/0.png --weights {weights} --context cpu --backend nnabla --output out"
    done = shell(tmp_path, f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'animate.py'))} {options} {where}")
    assert len(list((tmp_path / "out").glob("*.png"))) == 2, done.stderr
    assert done.returncode == (2 if "full" in where else 0)
    assert "Traceback" not in done.stderr
