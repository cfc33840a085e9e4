"""Commands killed with SIGKILL at random moments, and damaged caches: see kills.py, which is also a command."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kills.py")


def run(folder, *options):
    """The lines that kills.py prints."""
    command = [sys.executable, SCRIPT, "--folder", folder, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if "kills" in line or "damaged" in line]


def test_one_kill_of_every_command(tmp_path):
    lines = run(tmp_path, "--kills", 1, "--damages", 1)
    assert len(lines) == 10
    assert any(" 1 kills" in line for line in lines)  # now and then one comes too late, again and again


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_many_kills_of_every_command(tmp_path, seed):
    for line in run(tmp_path, "--kills", 10, "--damages", 5, "--seed", seed):
        print(line)
