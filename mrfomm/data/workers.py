"""A pool of worker processes that maps tasks to arrays, in order.

The processes are fresh interpreters with a pipe each, not those of ``multiprocessing``. Forking is unsafe
once MPI, CUDA or nnabla's threads run in the parent; and the spawn and forkserver methods import the parent's
main script in every worker, which here would load nnabla (and perhaps MPI, under the parent's rank).

Arrays come back through a shared file without a name, which goes with the processes. A worker ends when its
pipe closes, so none outlives the parent, however that ends. A worker's death closes its pipe, so the parent
notices.
"""

import contextlib
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections import deque
from itertools import islice
from multiprocessing.connection import Connection, Pipe

import numpy as np

from mrfomm.errors import UserError
from mrfomm.runtime.threads import one_thread_each

# Ask a training to save and stop. mpirun forwards SIGUSR1 and leaves time to save; a terminal that closes sends SIGHUP.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_WORKER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mrfomm.data.workers import run_worker; run_worker(int(sys.argv[2]), int(sys.argv[3]))"
)


class WorkerPool:
    """Processes that each hold a copy of a function and apply it to tasks.

    Args:
        function: picklable callable of an importable module: task -> (uint8 array of ``shape``, note). Tasks
            and notes are small picklable objects.
        num_workers: number of processes, at least 1.
        shape: shape of every array.
        ahead: number of results that may be computed before they are asked for.
    """

    def __init__(self, function, num_workers, shape, ahead):
        self._slots = max(2, -(-ahead // num_workers))  # arrays of one worker in shared memory
        all_slots = (num_workers, self._slots, *shape)
        self._pending = deque()  # numbers of the tasks sent whose replies haven't been read
        self._turn = None  # identifies the map whose tasks are pending
        self._workers = []
        self.close = weakref.finalize(self, _end, self._workers)
        size = int(np.prod(all_slots))
        with tempfile.TemporaryFile(dir=_folder_for(size)) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # fails here, not by a signal at the first write
            self._arrays = _map_arrays(file.fileno(), all_slots)
            for _ in range(num_workers):
                self._workers.append(_start(file.fileno()))
        for worker in range(num_workers):
            self._send(worker, (function, all_slots, worker))

    def map(self, tasks):
        """Yield (array, note) for every task, in order. The array is valid until the next one is asked for.

        Starting a map ends an earlier one that wasn't used up.

        Raises:
            UserError: raised by the function, or a worker was killed.
            RuntimeError: the function raised something else; the message holds the worker's traceback.
        """
        turn = self._turn = object()
        while self._pending:
            self._receive(self._pending.popleft())
        numbered = enumerate(tasks)
        self._submit(islice(numbered, len(self._workers) * self._slots))
        while self._pending:
            number = self._pending.popleft()
            succeeded, note = self._receive(number)
            if not succeeded:
                raise note
            yield self._arrays[self._place(number)], note
            if self._turn is not turn:
                raise RuntimeError("this iterator ended when a later one was started on the same workers")
            self._submit(islice(numbered, 1))

    def _place(self, number):
        """Worker and slot of a task: free again when as many tasks as there are slots have been yielded."""
        return number % len(self._workers), number // len(self._workers) % self._slots

    def _submit(self, numbered):
        for number, task in numbered:
            worker, slot = self._place(number)
            self._send(worker, (slot, task))
            self._pending.append(number)

    def _send(self, worker, message):
        try:
            self._workers[worker][1].send(message)
        except OSError:
            raise self._death(worker) from None

    def _receive(self, number):
        worker, _ = self._place(number)
        try:
            return self._workers[worker][1].recv()
        except (EOFError, OSError):
            raise self._death(worker) from None

    def _death(self, worker):
        code = self._workers[worker][0].wait(timeout=10)
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return UserError(f"data loader worker {worker} {cause}; if memory ran out, lower data.workers")


def _folder_for(size):
    """Where to put a shared file: in memory, unless /dev/shm is small (as in containers)."""
    return "/dev/shm" if shutil.disk_usage("/dev/shm").free > 2 * size else None


def _map_arrays(descriptor, shape):
    return np.frombuffer(mmap.mmap(descriptor, 0), dtype=np.uint8).reshape(shape)


def _start(memory):
    """Start a worker. Returns its process and our end of its pipe."""
    ours, theirs = Pipe()
    with theirs, _stop_signals_blocked(), one_thread_each():
        descriptors = (theirs.fileno(), memory)
        command = [sys.executable, "-c", _WORKER, json.dumps(sys.path), *map(str, descriptors)]
        process = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)
    return process, ours


@contextlib.contextmanager
def _stop_signals_blocked():
    """Context manager whose child processes never see the signals that ask to stop.

    Ctrl-C, `timeout` and job schedulers send them to every process at once. The parent, which gets them when this ends,
    still needs its workers for the step in progress, and ends them itself.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # a mask outlives exec, a handler doesn't
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _end(workers):
    for process, connection in workers:
        connection.close()
        process.kill()  # it holds nothing that would need an orderly end
    for process, _ in workers:
        process.wait()


def run_worker(pipe, memory):
    """Body of a worker process: answer tasks until the pipe closes. The arguments are file descriptors."""
    with Connection(pipe) as connection:
        try:
            _answer_tasks(connection, memory)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the parent closed the pool, or is gone


def _answer_tasks(connection, memory):
    function, shape, worker = connection.recv()
    arrays = _map_arrays(memory, shape)[worker]
    while True:
        slot, task = connection.recv()
        connection.send(_answer(function, task, arrays[slot]))


def _answer(function, task, out):
    """Returns (True, note), or (False, exception) with an exception that can be pickled."""
    try:
        out[...], note = function(task)
    except UserError as error:
        return False, error
    except Exception:
        return False, RuntimeError(f"in a data loader worker:\n{traceback.format_exc()}")
    return True, note
