"""A pool of worker processes that maps tasks to arrays, in order.

The processes are fresh interpreters with a pipe each, not those of ``multiprocessing``: forking is unsafe once MPI,
CUDA or nnabla's threads run in the parent, and its other methods import the parent's main script in every worker,
which here would load nnabla (and perhaps MPI, under the parent's rank).

Arrays come back through shared memory without a name, which goes with the processes: through a pipe they would cost
the parent, which trains, several times as long. A worker ends when its pipe closes, so none outlives the parent,
however that ends; and a worker's death closes its pipe, so the parent notices.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np

from mrfomm.errors import UserError
from mrfomm.runtime.stopping import STOP_SIGNALS
from mrfomm.runtime.threads import one_thread_each

_WORKER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mrfomm.data.workers import run_worker; run_worker(int(sys.argv[2]), int(sys.argv[3]))"
)
_Function = Callable[[Any], tuple[np.ndarray, Any]]
_Worker = tuple[subprocess.Popen, Connection]
_Place = tuple[int, ...]  # of an array in shared memory: slot and worker


class WorkerPool:
    """Processes that each hold a copy of a function and apply it to tasks.

    Args:
        function: callable of an importable module: task -> (uint8 array of ``shape``, note). It, tasks and notes can be
            pickled; tasks and notes are small.
        num_workers: number of processes, at least 1.
        shape: of every array.
        ahead: number of results that may be computed before they are asked for; at least two of each worker.
    """

    def __init__(self, function: _Function, num_workers: int, shape: tuple[int, ...], ahead: int) -> None:
        self._pending: deque[_Place] = deque()  # of the tasks whose replies haven't been read
        self._workers: list[_Worker] = []
        self.close = weakref.finalize(self, _end, self._workers)
        whole = max(2, -(-ahead // num_workers)), num_workers, *shape
        self._places = list(np.ndindex(whole[:2]))
        with open(os.memfd_create("results"), "r+b") as memory:
            self._arrays = np.asarray(np.memmap(memory, shape=whole))
            for _ in range(num_workers):
                self._workers.append(_start(memory.fileno()))
        for worker in range(num_workers):
            with self._pipe(worker) as pipe:
                pipe.send((function, whole))

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield (array, note) for every task, in order. The array is valid until the next one is asked for.

        Starting a map ends an earlier one that wasn't used up.

        Raises:
            UserError: raised by the function, or a worker was killed.
            RuntimeError: the function raised something else; the message holds the worker's traceback.
        """
        while self._pending:
            self._receive(self._pending.popleft())
        pending = self._pending = deque()
        assigned = zip(cycle(self._places), tasks)
        self._submit(islice(assigned, len(self._places)))
        while pending:
            place = pending.popleft()
            succeeded, note = self._receive(place)
            if not succeeded:
                raise note
            yield self._arrays[place], note
            if self._pending is not pending:
                raise RuntimeError("this iterator ended when a later one was started on the same workers")
            self._submit(islice(assigned, 1))

    def _submit(self, assigned: Iterable[tuple[_Place, Any]]) -> None:
        for place, task in assigned:
            with self._pipe(place[1]) as pipe:
                pipe.send((place, task))
            self._pending.append(place)

    def _receive(self, place: _Place) -> tuple[bool, Any]:
        with self._pipe(place[1]) as pipe:
            return pipe.recv()

    @contextmanager
    def _pipe(self, worker: int) -> Iterator[Connection]:
        """Our end of a worker's pipe; a UserError tells how the worker died if that is found inside."""
        process, connection = self._workers[worker]
        try:
            yield connection
        except (EOFError, OSError):
            code = process.wait(timeout=10)
            cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            tell = f"data loader worker {worker} {cause}; if memory ran out, lower data.workers"
            raise UserError(tell) from None


def _start(memory: int) -> _Worker:
    """Start a worker that never sees the signals that ask to stop. Returns its process and our end of its pipe.

    Ctrl-C, `timeout` and job schedulers send them to every process at once. The parent, which gets them when this ends,
    still needs its workers for the step in progress, and ends them itself.
    """
    ours, theirs = Pipe()
    descriptors = theirs.fileno(), memory
    command = [sys.executable, "-c", _WORKER, json.dumps(sys.path), *map(str, descriptors)]
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # a mask outlives exec, a handler doesn't
    try:
        with theirs, one_thread_each():
            return subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL), ours
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def _end(workers: list[_Worker]) -> None:
    for process, connection in workers:
        connection.close()
        process.kill()  # it holds nothing that would need an orderly end
    for process, _ in workers:
        process.wait()


def run_worker(pipe: int, memory: int) -> None:
    """Body of a worker process: answer tasks until the pipe closes. The arguments are file descriptors."""
    with Connection(pipe) as connection, open(memory, "r+b") as file, suppress(EOFError, ConnectionError):
        function, shape = connection.recv()
        arrays = np.memmap(file, shape=shape)
        while True:
            place, task = connection.recv()
            connection.send(_reply(function, task, arrays[place]))


def _reply(function: _Function, task: Any, out: np.ndarray) -> tuple[bool, Any]:
    """(True, note), or (False, exception) with an exception that can be pickled."""
    try:
        out[...], note = function(task)
        return True, note
    except UserError as error:
        return False, error
    except Exception:
        return False, RuntimeError(f"in a data loader worker:\n{traceback.format_exc()}")
