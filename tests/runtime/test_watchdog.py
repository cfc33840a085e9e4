"""A process that hangs is ended, one that goes on isn't, and a launcher doesn't outlive its process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mrfomm.runtime import watchdog

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import sys, time
from mrfomm.runtime.watchdog import Watchdog
dog = Watchdog()
dog.patience = 1.5
for step in range(8):
    dog.doing(f"step {step}")
    time.sleep(60 if sys.argv[1] == "hangs" and step == 3 else 0.3)
if sys.argv[1] == "unwatched":
    dog._process.kill()
    dog._process.wait()
    dog.doing("step 8")
if sys.argv[1] != "leaves":
    dog.close()
print("done")
"""
# A launcher that doesn't heed SIGTERM: it waits for ever after its child has ended.
LAUNCHER = """
import ctypes, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ctypes.CDLL(None).prctl(15, b"prterun")  # PR_SET_NAME
print(subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[2]]).returncode, flush=True)
time.sleep(600 if sys.argv[2] != "ends" else 0)
"""

pytestmark = pytest.mark.slow


def run(*command):
    return subprocess.run([sys.executable, "-c", *command], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("how", ["ends", "leaves", "unwatched"])
def test_who_goes_on_is_left_alone(how):
    done = run(PROGRAM, how)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_who_hangs_is_ended_and_named():
    done = run(PROGRAM, "hangs")
    assert done.returncode == -signal.SIGKILL
    (line,) = done.stderr.split("\n", 1)[1].splitlines()
    assert line.startswith(f"error: on {os.uname().nodename}: step 3 has taken more than 1.5 s")


def test_a_launcher_that_waits_for_ever_is_ended():
    done = run(LAUNCHER, PROGRAM, "hangs")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, f"{-signal.SIGKILL}\n")


def test_a_launcher_that_ends_is_not_killed():
    done = run(LAUNCHER, PROGRAM, "ends")
    assert (done.returncode, done.stdout) == (0, "done\n0\n")


def test_nobody_else_is_taken_for_a_launcher():
    watchdog.end_launcher(os.getpid())  # else this ends the test
