"""The processes that share a training run: one, or several that Open MPI's ``mpirun`` starts (extra ``mpi``).

One per GPU, or one per share of the cores on a CPU, on one machine or several (docs/install.md)::

    mpirun -n 4 python train.py --config configs/vox-256.yaml --data data/vox

The first node's first process is rank 0, the only one that writes and prints.
"""

import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla import Variable

from mrfomm.errors import UserError, as_reported
from mrfomm.networks import ops
from mrfomm.networks.cpu import numpy_kernels
from mrfomm.runtime.context import choose_context, use_context
from mrfomm.runtime.sync_batch_norm import compiled_kernels, sync_batch_normalization
from mrfomm.runtime.watchdog import Watchdog

if TYPE_CHECKING:
    from mpi4py import MPI

_PATIENCE = 3.0  # seconds that other ranks leave rank 0 to report an error that all have met
_Shared = TypeVar("_Shared")


class Communicator:
    """What processes exchange: here nothing, as this is the one of a run with a single process.

    All methods but the first three are collective: all processes call them, in the same order.
    """

    rank = 0
    size = 1

    def synchronised(self, operators: ops.Operators) -> ops.Operators:
        """The operators with batch norm over the global batch wherever it uses the batch's statistics."""
        return operators

    def watch(self, patience: float) -> None:
        """From now on, end a process that says nothing of what it is ``doing`` for longer than a patience, seconds."""

    def doing(self, what: str) -> None:
        """Tell what is done next, such as "step 120"; it is named if it takes too long."""

    def average_gradients(self, parameters: Mapping[str, Variable]) -> None:
        """Replace the gradients of the parameters (name -> Variable) by their means over the processes."""

    def broadcast(self, parameters: Mapping[str, Variable]) -> None:
        """Give the parameters (name -> Variable) of every process the values they have on rank 0."""

    def gather(self, value: _Shared) -> list[_Shared]:
        """The values of all processes by rank, of any kind that can be pickled."""
        return [value]

    def share(self, value: _Shared) -> _Shared:
        """Rank 0's value, on every process."""
        return self.gather(value)[0]

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean over the processes of a float64 array."""
        return np.mean(self.gather(values), axis=0)

    def union(self, names: set[str]) -> set[str]:
        """The union of all processes' sets."""
        return set().union(*self.gather(names))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return any(self.gather(flag))

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.gather(None)


class MpiProcesses(Communicator):
    """The communicator of several processes on CPUs; ``world`` is mpi4py's of all of them, the Watchdog this one's."""

    def __init__(self, world: "MPI.Intracomm", watchdog: Watchdog) -> None:
        self._world, self.rank, self.size, self._watchdog = world, world.rank, world.size, watchdog

    def watch(self, patience: float) -> None:
        self._watchdog.patience = patience + _turn(self.rank)
        self.doing("the preparation")

    def doing(self, what: str) -> None:
        self._watchdog.doing(what)

    def synchronised(self, operators: ops.Operators) -> ops.Operators:
        def batch_normalization(
            x: Variable, beta: Variable, gamma: Variable, mean: Variable, var: Variable, batch_stat: bool, relu: bool
        ) -> Variable:
            if not batch_stat:
                return operators.batch_normalization(x, beta, gamma, mean, var, False, relu)
            return self._batch_normalization(operators, relu, x, beta, gamma, mean, var)

        return operators._replace(batch_normalization=batch_normalization)

    def _batch_normalization(self, operators: ops.Operators, relu: bool, *inputs: Variable) -> Variable:
        kernels = numpy_kernels if operators is ops.NNABLA else compiled_kernels()
        return sync_batch_normalization(inputs, relu, self._add_up, self.size, kernels)

    def average_gradients(self, parameters: Mapping[str, Variable]) -> None:
        gradients = [parameters[name].g for name in sorted(parameters)]
        fused = np.concatenate([gradient.ravel() for gradient in gradients])  # one message instead of hundreds
        self._add_up(fused)
        fused /= self.size
        parts = np.split(fused, np.cumsum([gradient.size for gradient in gradients])[:-1])
        for gradient, part in zip(gradients, parts):
            gradient[...] = part.reshape(gradient.shape)

    def broadcast(self, parameters: Mapping[str, Variable]) -> None:
        for name in sorted(parameters):
            self._world.Bcast(parameters[name].d, root=0)

    def gather(self, value: _Shared) -> list[_Shared]:
        return self._world.allgather(value)

    def _add_up(self, array: np.ndarray) -> None:
        """Replace an array by its sum over the processes."""
        from mpi4py import MPI

        self._world.Allreduce(MPI.IN_PLACE, array, op=MPI.SUM)


class NcclProcesses(MpiProcesses):
    """The communicator of several processes with a GPU each: what is large goes through NCCL, the rest through MPI.

    ``context`` is the cuDNN context of this process, with its local rank as the device.

    **Untested**: written from nnabla's documentation, without a GPU.
    """

    def __init__(self, world: "MPI.Intracomm", watchdog: Watchdog, context: nn.Context) -> None:
        super().__init__(world, watchdog)
        from nnabla.communicators import MultiProcessDataParallelCommunicator

        self._nccl = MultiProcessDataParallelCommunicator(context)
        self._nccl.init()

    def _batch_normalization(self, operators: ops.Operators, relu: bool, *inputs: Variable) -> Variable:
        options = {"decay_rate": ops.BATCH_NORM_DECAY, "eps": ops.BATCH_NORM_EPS, "batch_stat": True}
        y = F.sync_batch_normalization(*inputs, self._nccl, group="world", axes=[1], **options)
        return F.relu(y) if relu else y

    def average_gradients(self, parameters: Mapping[str, Variable]) -> None:
        # After backward, not in a callback during it: a callback sends a shared parameter's gradient half done.
        gradients = [parameters[name].grad for name in sorted(parameters)]
        # inplace=False packs them into one message. Without division the result is a sum.
        self._nccl.all_reduce(gradients, division=True, inplace=False)


@contextlib.contextmanager
def first_process_speaks() -> Iterator[None]:
    """Context manager for what comes before ``start_processes``, such as reading the command line: prints once."""
    rank = _told("RANK") or 0
    try:
        with _silence(rank > 0):
            yield
    except SystemExit:
        if rank:  # mpirun ends the others when a process leaves with an error
            time.sleep(_PATIENCE)
        raise


@contextlib.contextmanager
def start_processes(context_name: str) -> Iterator[Communicator]:
    """Context manager around a run: yields this process' communicator; graphs built inside use the context.

    Under ``mpirun`` this joins the processes, gives each its share of the machine's cores and lets only rank 0 print.
    An error in one ends them all: it is reported once, by rank 0 if rank 0 has met it too, else with the host's name,
    and the exit code is 2 for a UserError, else 1. ``context_name`` is one of ``CONTEXTS``.

    Raises:
        UserError: mpi4py is missing or doesn't fit this ``mpirun``, which every process tells for itself; or the
            context can't be had, in a single process only: several end here.
    """
    announced = _told("SIZE")
    if announced is None:
        with use_context(context_name):
            yield Communicator()
        return
    with contextlib.closing(Watchdog()) as watchdog:
        world, local = _join(announced)
        try:
            _share_cores(local)
            with _silence(world.rank > 0), _mpi_for_nnabla():
                context = _agreed_context(context_name, world, local.rank)
                with nn.context_scope(context):
                    on_gpu = context.backend[0].startswith("cudnn")
                    yield NcclProcesses(world, watchdog, context) if on_gpu else MpiProcesses(world, watchdog)
                sys.stdout.flush()
                world.Barrier()  # leave together: mpirun would end the others when the first one's exit code is not 0
        except (Exception, KeyboardInterrupt) as error:
            _end_all(world.rank, as_reported(error))


def _turn(rank: int) -> float:
    """Seconds that a process leaves those before it to report what all have met, and mpirun to end it then."""
    return _PATIENCE + 0.1 * rank if rank else 0.0


def _told(what: str) -> int | None:
    """This process' RANK or the SIZE of all as told by Open MPI, or by MPICH and Intel MPI; None without mpirun."""
    names = (f"OMPI_COMM_WORLD_{what}", f"PMI_{what}")
    return next((int(os.environ[name]) for name in names if name in os.environ), None)


def _join(announced: int) -> tuple["MPI.Intracomm", "MPI.Comm"]:
    """mpi4py's communicators of all processes, which must be as many as announced, and of those on this machine."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError(f"under mpirun mpi4py is needed ({error}): pip install -e .[mpi]") from error
    world = MPI.COMM_WORLD
    if world.size != announced:  # each would train on its own, into the same folder
        raise UserError(
            f"mpirun started {announced} processes, mpi4py sees {world.size}: it belongs to another MPI than this "
            "mpirun; use the mpirun that `pip install -e .[mpi]` puts beside the interpreter"
        )
    return world, world.Split_type(MPI.COMM_TYPE_SHARED)


def _share_cores(local: "MPI.Comm") -> None:
    """Give this process its share of the machine's cores, before the libraries with threads of their own are loaded."""
    cores = set().union(*local.allgather(os.sched_getaffinity(0)))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(cores) // local.size)))


@contextlib.contextmanager
def _silence(wanted: bool) -> Iterator[None]:
    """Context manager in which nothing is printed, if wanted. What is logged still shows: it is this process' own."""
    if not wanted:
        yield
        return
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


@contextlib.contextmanager
def _mpi_for_nnabla() -> Iterator[None]:
    """Context manager in which nnabla's CUDA extension finds the Open MPI that pip has installed.

    It opens ``$OMPI_HOME/lib/libmpi.so``. The wheel's file of that name is a script for linkers.
    """
    library = Path(sys.prefix, "lib", "libmpi.so.40")
    if "OMPI_HOME" in os.environ or not library.is_file():
        yield
        return
    with tempfile.TemporaryDirectory() as home:
        link = Path(home, "lib", "libmpi.so")
        link.parent.mkdir()
        link.symlink_to(library)
        os.environ["OMPI_HOME"] = home
        try:
            yield
        finally:
            del os.environ["OMPI_HOME"]


def _agreed_context(name: str, world: "MPI.Intracomm", device: int) -> nn.Context:
    """``choose_context``, on which all processes agree; a UserError where not all have a GPU."""
    context = choose_context(name, device)
    if len(set(world.allgather(context.backend[0]))) > 1:
        raise UserError(
            "some processes have a GPU and others have none; start as many on each machine as it has GPUs, "
            "or use --context cpu"
        )
    return context


def _end_all(rank: int, error: BaseException) -> NoReturn:
    """Report an error of this process and end all processes. Never returns."""
    time.sleep(_turn(rank))
    if isinstance(error, UserError):
        where = f"on {os.uname().nodename}: " if rank else ""
        print(f"error: {where}{' '.join(str(error).split())}", file=sys.stderr)
    else:
        print(f"rank {rank}:", file=sys.stderr)
        traceback.print_exception(type(error), error, error.__traceback__)
    sys.stdout.flush()
    sys.stderr.flush()
    # mpirun ends the others when a process leaves like this. A regular exit would wait for them for ever, and MPI's
    # Abort, which ends them too, may lose what was printed just now.
    os._exit(2 if isinstance(error, UserError) else 1)
