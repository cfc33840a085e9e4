"""A pool of worker processes that maps tasks to results, in order.

The processes are fresh interpreters with a pipe each, not those of ``multiprocessing``: forking is unsafe once MPI,
CUDA or nnabla's threads run in the parent, and its other methods import the parent's main script in every worker,
which here would load nnabla (and perhaps MPI, under the parent's rank).

A worker ends when its pipe closes, so none outlives the parent, however that ends; and a worker's death closes its
pipe, so the parent notices.
"""

import json
import pickle
import signal
import subprocess
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from multiprocessing.connection import Connection, Pipe
from typing import Any

from mrfomm.errors import UserError
from mrfomm.runtime.threads import one_thread_each

# Ask a training to save and stop. mpirun forwards SIGUSR1 and leaves time to save; a terminal that closes sends SIGHUP.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_WORKER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mrfomm.data.workers import run_worker; run_worker(int(sys.argv[2]))"
)
_Worker = tuple[subprocess.Popen, Connection]


class WorkerPool:
    """Processes that each hold a copy of a function and apply it to tasks.

    Args:
        function: callable of an importable module. It, tasks and results can be pickled; tasks are small.
        num_workers: number of processes, at least 1.
        ahead: number of results that may be computed before they are asked for; at least two of each worker.
    """

    def __init__(self, function: Callable[[Any], Any], num_workers: int, ahead: int) -> None:
        self._ahead = max(ahead, 2 * num_workers)
        self._pending: deque[int] = deque()  # the workers whose replies haven't been read, in the order of the tasks
        self._workers: list[_Worker] = []
        self.close = weakref.finalize(self, _end, self._workers)
        for _ in range(num_workers):
            self._workers.append(_start())
        for worker in range(num_workers):
            self._send(worker, function)

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield the result of every task, in order. Starting a map ends an earlier one that wasn't used up.

        Raises:
            UserError: raised by the function, or a worker was killed.
            RuntimeError: the function raised something else; the message holds the worker's traceback.
        """
        while self._pending:
            self._receive()
        pending = self._pending = deque()
        assigned = zip(cycle(range(len(self._workers))), tasks)
        self._submit(islice(assigned, self._ahead))
        while pending:
            succeeded, result = self._receive()
            if not succeeded:
                raise result
            yield result
            if self._pending is not pending:
                raise RuntimeError("this iterator ended when a later one was started on the same workers")
            self._submit(islice(assigned, 1))

    def _submit(self, assigned: Iterable[tuple[int, Any]]) -> None:
        for worker, task in assigned:
            self._send(worker, task)
            self._pending.append(worker)

    def _send(self, worker: int, message: Any) -> None:
        try:
            self._workers[worker][1].send(message)
        except OSError:
            raise self._death(worker) from None

    def _receive(self) -> tuple[bool, Any]:
        worker = self._pending.popleft()
        try:
            return self._workers[worker][1].recv()
        except (EOFError, OSError):
            raise self._death(worker) from None

    def _death(self, worker: int) -> UserError:
        code = self._workers[worker][0].wait(timeout=10)
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return UserError(f"data loader worker {worker} {cause}; if memory ran out, lower data.workers")


def _start() -> _Worker:
    """Start a worker. Returns its process and our end of its pipe."""
    ours, theirs = Pipe()
    with theirs, _stop_signals_blocked(), one_thread_each():
        command = [sys.executable, "-c", _WORKER, json.dumps(sys.path), str(theirs.fileno())]
        return subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL), ours


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Context manager whose child processes never see the signals that ask to stop.

    Ctrl-C, `timeout` and job schedulers send them to every process at once. The parent, which gets them when this ends,
    still needs its workers for the step in progress, and ends them itself.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # a mask outlives exec, a handler doesn't
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _end(workers: list[_Worker]) -> None:
    for process, connection in workers:
        connection.close()
        process.kill()  # it holds nothing that would need an orderly end
    for process, _ in workers:
        process.wait()


def run_worker(pipe: int) -> None:
    """Body of a worker process: answer tasks until the pipe, a file descriptor, closes.

    Replies are sent by a thread, as a pipe holds less than one: the next ones are computed while they wait.
    """
    with Connection(pipe) as connection, ThreadPoolExecutor(1) as sender, suppress(EOFError, ConnectionError):
        function = connection.recv()
        while True:
            reply = pickle.dumps(_reply(function, connection.recv()), pickle.HIGHEST_PROTOCOL)
            sender.submit(connection.send_bytes, reply)


def _reply(function: Callable[[Any], Any], task: Any) -> tuple[bool, Any]:
    """(True, result), or (False, exception) with an exception that can be pickled."""
    try:
        return True, function(task)
    except UserError as error:
        return False, error
    except Exception:
        return False, RuntimeError(f"in a data loader worker:\n{traceback.format_exc()}")
