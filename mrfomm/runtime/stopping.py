"""Signals that ask a run to end: they are noted, and heeded where the run can be saved."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

# mpirun forwards SIGUSR1 and leaves time to save; a terminal that closes sends SIGHUP
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
HEARD = b"\nstopping after this step, which is saved; Ctrl-C again stops at once\n"


@contextlib.contextmanager
def stop_requests(speaks: bool = False) -> Iterator[list[int]]:
    """Context manager whose list takes up the STOP_SIGNALS that arrive; ``speaks``: tell Ctrl-C that it was heard."""
    requests: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if requests and number == signal.SIGINT:
            raise KeyboardInterrupt
        requests.append(number)
        if speaks and number == signal.SIGINT:
            with contextlib.suppress(OSError):  # Ctrl-C ends the reader of a pipe as well
                os.write(2, HEARD)  # print() may be what was interrupted

    is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # started so as to outlive its terminal
    numbers = [number for number in STOP_SIGNALS if not (is_nohup and number == signal.SIGHUP)]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
