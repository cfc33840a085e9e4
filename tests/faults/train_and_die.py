"""train.py, killed (-9) right before one of its changes to the run folder. Run by test_training_faults.py.

``python train_and_die.py N ARGUMENTS...`` dies at change N: a file opened for writing, a folder made, anything renamed
or deleted. With N = 0 it lives.
"""

import os
import signal
import sys

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def die_at(number, folder):
    """Kill this process right before the given change (from 1) below a folder."""
    left = number

    def watch(event, arguments):
        nonlocal left
        if event in CHANGES:
            path = str(arguments[0])
            counts = path.startswith(str(folder)) or not os.path.isabs(path)  # in a folder that is being deleted
        else:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            counts = writes and str(arguments[0]).startswith(str(folder))
        if counts:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


if __name__ == "__main__":
    from mrfomm.commands.train import main
    from mrfomm.errors import run_command

    number, *arguments = sys.argv[1:]
    option = "--resume" if "--resume" in arguments else "--output"
    die_at(int(number), arguments[arguments.index(option) + 1])
    run_command(lambda: main(arguments))
