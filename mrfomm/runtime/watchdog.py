"""Ends a process that waits too long for the others of its job, and then the launcher that doesn't notice.

When the link between two machines is cut, MPI waits for ever, in code that no Python runs beside, and mpirun waits for
the other machine even after SIGTERM. So each process of a job has this module beside it, run as a program, which reads
on its stdin what the process does: lines of a patience in seconds and some words.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

LAUNCHERS = {"prterun", "prted", "mpirun", "orterun", "orted"}  # of Open MPI 5 and 4
_AT_FIRST = 600.0  # seconds, until somebody sets another patience
_GRACE = 5.0  # seconds that a launcher has to end by itself


class Watchdog:
    """Watches over this process from now on; ``patience``: seconds that may pass between two calls of ``doing``."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", __file__, str(os.getppid())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)
        self.patience = _AT_FIRST
        self.doing("the start")

    def doing(self, what: str) -> None:
        """Tell what is done next, such as "step 120"; it is named if it takes too long."""
        with contextlib.suppress(OSError):  # somebody has killed the other process; the work goes on unwatched
            self._process.stdin.write(f"{self.patience:g} {what}\n".encode())  # type: ignore[union-attr]

    def close(self) -> None:
        """Stop watching: the work is done."""
        with self._process:
            self._process.kill()


def watch(launcher: int) -> None:
    """Read what the parent process does until it ends or is ended for its silence; then see to the launcher."""
    parent, what = os.getppid(), ""
    patience: float | None = None
    while select.select([0], [], [], patience)[0]:
        lines = os.read(0, 1 << 16).decode().splitlines()
        if not lines:
            break
        seconds, _, what = lines[-1].partition(" ")
        patience = float(seconds)
    else:
        with contextlib.suppress(OSError):
            os.write(2, _complaint(what, patience).encode())
        os.kill(parent, signal.SIGKILL)
    for stream in (1, 2):
        os.close(stream)  # the launcher reads to their end
    end_launcher(launcher)


def _complaint(what: str, patience: float | None) -> str:
    return (
        f"\nerror: on {os.uname().nodename}: {what} has taken more than {patience:g} s: another process is gone or out "
        "of reach, or the work is slow (then raise train.patience); go on with --resume from the newest checkpoint\n"
    )


def end_launcher(pid: int) -> None:
    """Kill a launcher that doesn't end by itself in time. Any other program of this pid is left alone."""
    deadline = time.monotonic() + _GRACE
    while _name(pid) in LAUNCHERS and time.monotonic() < deadline:
        time.sleep(0.1)
    if _name(pid) in LAUNCHERS:
        os.kill(pid, signal.SIGKILL)


def _name(pid: int) -> str:
    """The name of a process, "" if there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


if __name__ == "__main__":
    watch(int(sys.argv[1]))
