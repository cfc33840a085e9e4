"""One of several processes fails while the others wait for it. Run by test_processes.py under mpirun."""

import os
import signal
import sys

from mrfomm.errors import UserError, run_command
from mrfomm.runtime.processes import start_processes


def main():
    how, rank = sys.argv[1], int(sys.argv[2])
    with start_processes("cpu") as communicator:
        # As the training loop does it: a process that is asked to stop finishes its step first.
        signal.signal(signal.SIGTERM, lambda *_: None)
        print("hello from", communicator.rank)
        if communicator.rank == rank:
            if how in ("killed", "stopped"):
                os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            error = {"bug": ZeroDivisionError}.get(how, UserError)("the\nmessage")
            if how == "wrapped":  # as nnabla does with the errors of a PythonFunction
                raise SystemError("returned a result with an exception set") from error
            raise error
        if how == "stopped":
            communicator.watch(2)
            communicator.doing("waiting for the other")
        communicator.barrier()


run_command(main)
