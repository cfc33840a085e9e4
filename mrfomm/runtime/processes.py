"""Where computation runs: the nnabla context, and the processes that share a training run.

One process needs nothing::

    python train.py --config configs/vox-256.yaml --data data/vox

Several processes, one per GPU (or one per share of the cores, on a CPU), are started by Open MPI's ``mpirun``, which
``pip install -e .[mpi]`` puts beside the interpreter::

    mpirun -n 4 python train.py --config configs/vox-256.yaml --data data/vox

Several machines need the same environment and checkout at the same paths, the data under the same path, a shared
folder for the run, and ssh without a password from the first to the others. A host file names them and how many
processes each gets, as many as it has GPUs::

    node1 slots=8
    node2 slots=8

    mpirun --hostfile hosts.txt -n 16 --map-by slot --bind-to none -x PATH -x LD_LIBRARY_PATH \\
        python train.py --config configs/vox-256.yaml --data /shared/vox --output /shared/runs/vox-256

The first node's first process is rank 0, the only one that writes and prints. ``--bind-to none`` lets the loader's
workers leave the core that Open MPI would bind each process to.
"""

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import io
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.ext_utils import get_extension_context

from mrfomm.errors import UserError, as_reported
from mrfomm.networks import ops
from mrfomm.networks.ops import BATCH_NORM_DECAY, BATCH_NORM_EPS
from mrfomm.runtime.sync_batch_norm import NumpyKernels, compiled_kernels, sync_batch_normalization

if TYPE_CHECKING:
    from mpi4py import MPI

CONTEXTS = ("auto", "cpu", "cudnn")

# Number of processes, as told by Open MPI, and by MPICH and Intel MPI.
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
_PATIENCE = 3.0  # seconds that other ranks leave rank 0 to report an error that all have met
_CUDA_LIBRARIES = (  # what nnabla's CUDA extension and its communicator load, of pip's nvidia-* wheels
    "cuda_runtime/lib/libcudart.so.12",
    "cublas/lib/libcublas.so.12",
    "cusolver/lib/libcusolver.so.11",
    "curand/lib/libcurand.so.10",
    "cufft/lib/libcufft.so.11",
    "cudnn/lib/libcudnn.so.8",
    "nccl/lib/libnccl.so.2",
)

_Shared = TypeVar("_Shared")
_BatchNormalization = Callable[  # (x, beta, gamma, mean, var, relu)
    [nn.Variable, nn.Variable, nn.Variable, nn.Variable, nn.Variable, bool], nn.Variable
]


class SingleProcess:
    """The communicator of a run with one process: nothing to exchange."""

    rank = 0
    size = 1
    local_rank = 0

    def synchronised(self, operators: ops.Operators) -> ops.Operators:
        """The ``ops.Operators`` as they are."""
        return operators

    def average_gradients(self, parameters: Mapping[str, nn.Variable]) -> None:
        """Leave the gradients as they are."""

    def broadcast(self, parameters: Mapping[str, nn.Variable]) -> None:
        """Leave the parameters as they are."""

    def share(self, value: _Shared) -> _Shared:
        """The value itself."""
        return value

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The array itself."""
        return values

    def union(self, names: set[str]) -> set[str]:
        """The set itself."""
        return names

    def any(self, flag: bool) -> bool:
        """The flag itself."""
        return flag

    def barrier(self) -> None:
        """Nothing to wait for."""


class MpiProcesses:
    """The communicator of several processes on CPUs.

    Methods that exchange something are collective: all processes call them, in the same order.

    Args:
        world: mpi4py communicator of all processes.
        local: mpi4py communicator of the processes on this machine.
    """

    def __init__(self, world: "MPI.Intracomm", local: "MPI.Comm") -> None:
        from mpi4py import MPI

        self._mpi, self._world = MPI, world
        self.rank, self.size, self.local_rank = world.rank, world.size, local.rank

    def synchronised(self, operators: ops.Operators) -> ops.Operators:
        """The ``ops.Operators`` with batch norm over the global batch wherever it uses the batch's statistics."""
        local, synchronised = operators.batch_normalization, self._sync_batch_normalization(operators)

        def batch_normalization(
            x: nn.Variable,
            beta: nn.Variable,
            gamma: nn.Variable,
            mean: nn.Variable,
            var: nn.Variable,
            batch_stat: bool,
            relu: bool,
        ) -> nn.Variable:
            if not batch_stat:
                return local(x, beta, gamma, mean, var, False, relu)
            return synchronised(x, beta, gamma, mean, var, relu)

        return operators._replace(batch_normalization=batch_normalization)

    def _sync_batch_normalization(self, operators: ops.Operators) -> _BatchNormalization:
        """The function (x, beta, gamma, mean, var, relu) that goes with the other operators."""
        kernels = NumpyKernels if operators is ops.NNABLA else compiled_kernels()
        return functools.partial(sync_batch_normalization, add_up=self._add_up, processes=self.size, kernels=kernels)

    def average_gradients(self, parameters: Mapping[str, nn.Variable]) -> None:
        """Replace the gradients of the parameters (name -> Variable) by their means over the processes."""
        gradients = [parameters[name].g for name in sorted(parameters)]
        fused = np.concatenate([gradient.ravel() for gradient in gradients])  # one message instead of hundreds
        self._add_up(fused)
        fused /= self.size
        start = 0
        for gradient in gradients:
            gradient[...] = fused[start : start + gradient.size].reshape(gradient.shape)
            start += gradient.size

    def broadcast(self, parameters: Mapping[str, nn.Variable]) -> None:
        """Give the parameters (name -> Variable) of every process the values they have on rank 0."""
        for name in sorted(parameters):
            self._world.Bcast(parameters[name].d, root=0)

    def share(self, value: _Shared) -> _Shared:
        """Rank 0's value (any object that can be pickled), on every process."""
        return self._world.bcast(value, root=0)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean over the processes of a float64 array."""
        total = np.array(values, dtype=np.float64)
        self._add_up(total)
        return total / self.size

    def union(self, names: set[str]) -> set[str]:
        """The union of all processes' sets."""
        return set().union(*self._world.allgather(names))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return self._world.allreduce(bool(flag), op=self._mpi.LOR)

    def barrier(self) -> None:
        """Wait until every process is here."""
        self._world.Barrier()

    def _add_up(self, array: np.ndarray) -> None:
        """Replace an array by its sum over the processes."""
        self._world.Allreduce(self._mpi.IN_PLACE, array, op=self._mpi.SUM)


class NcclProcesses(MpiProcesses):
    """The communicator of several processes with a GPU each: what is large goes through NCCL, the rest through MPI.

    **Untested**: written from nnabla's documentation, without a GPU.

    Args:
        world, local: as for MpiProcesses.
        context: the cuDNN context of this process, with its local rank as the device.
    """

    def __init__(self, world: "MPI.Intracomm", local: "MPI.Comm", context: nn.Context) -> None:
        super().__init__(world, local)
        from nnabla.communicators import MultiProcessDataParallelCommunicator

        self._nccl = MultiProcessDataParallelCommunicator(context)
        self._nccl.init()

    def _sync_batch_normalization(self, operators: ops.Operators) -> _BatchNormalization:
        options = {"axes": [1], "decay_rate": BATCH_NORM_DECAY, "eps": BATCH_NORM_EPS, "batch_stat": True}

        def synchronised(
            x: nn.Variable, beta: nn.Variable, gamma: nn.Variable, mean: nn.Variable, var: nn.Variable, relu: bool
        ) -> nn.Variable:
            y = F.sync_batch_normalization(x, beta, gamma, mean, var, self._nccl, group="world", **options)
            return F.relu(y) if relu else y

        return synchronised

    def average_gradients(self, parameters: Mapping[str, nn.Variable]) -> None:
        """Replace the gradients of the parameters (name -> Variable) by their means over the processes."""
        # After backward, not in a callback during it: a callback sends a shared parameter's gradient half done.
        gradients = [parameters[name].grad for name in sorted(parameters)]
        # inplace=False packs them into one message. Without division the result is a sum.
        self._nccl.all_reduce(gradients, division=True, inplace=False)


Communicator = SingleProcess | MpiProcesses


@contextlib.contextmanager
def first_process_speaks() -> Iterator[None]:
    """Context manager for what comes before ``start_processes``, such as reading the command line: prints once."""
    rank = next((int(os.environ[name]) for name in _RANK_VARIABLES if name in os.environ), 0)
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
    An error in one ends them all: it is reported once, by rank 0 if rank 0 has met it too, and the exit code is 2 for
    a UserError, else 1.

    Args:
        context_name: one of CONTEXTS.

    Raises:
        UserError: mpi4py is missing or doesn't fit this ``mpirun``, which every process tells for itself; or the
            context can't be had, in a single process only: several end here.
    """
    announced = next((int(os.environ[name]) for name in _SIZE_VARIABLES if name in os.environ), None)
    if announced is None:
        with use_context(context_name):
            yield SingleProcess()
        return
    world, local = _join(announced)
    try:
        _share_cores(local)
        with _silence(world.rank > 0), _mpi_for_nnabla(), _agreed_context(context_name, world, local.rank):
            yield _communicator(world, local)
            sys.stdout.flush()
            world.Barrier()  # leave together: mpirun would end the others when the first one's exit code is not 0
    except (Exception, KeyboardInterrupt) as error:
        _end_all(world.rank, as_reported(error))


def _communicator(world: "MPI.Intracomm", local: "MPI.Comm") -> MpiProcesses:
    context = nn.get_current_context()
    on_gpu = context.backend[0].startswith("cudnn")
    return NcclProcesses(world, local, context) if on_gpu else MpiProcesses(world, local)


def _join(announced: int) -> tuple["MPI.Intracomm", "MPI.Comm"]:
    """mpi4py's communicators of all processes and of those on this machine.

    Raises:
        UserError: there are not as many as announced by ``mpirun``.
    """
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
    with contextlib.ExitStack() as stack:
        if wanted:
            sink = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(sink))
            stack.enter_context(contextlib.redirect_stderr(sink))
        yield


def _agreed_context(name: str, world: "MPI.Intracomm", device: int) -> AbstractContextManager[object]:
    """``use_context``, on which all processes agree.

    Raises:
        UserError: not all have a GPU.
    """
    context = choose_context(name, device)
    if len(set(world.allgather(context.backend[0]))) > 1:
        raise UserError(
            "some processes have a GPU and others have none; start as many on each machine as it has GPUs, "
            "or use --context cpu"
        )
    return nn.context_scope(context)


def _end_all(rank: int, error: BaseException) -> NoReturn:
    """Report an error of this process and end all processes. Never returns."""
    if rank:
        time.sleep(_PATIENCE + 0.1 * rank)
    if isinstance(error, UserError):
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    else:
        print(f"rank {rank}:", file=sys.stderr)
        traceback.print_exception(type(error), error, error.__traceback__)
    sys.stdout.flush()
    sys.stderr.flush()
    # mpirun ends the others when a process leaves like this. A regular exit would wait for them for ever, and MPI's
    # Abort, which ends them too, may lose what was printed just now.
    os._exit(2 if isinstance(error, UserError) else 1)


def choose_context(name: str, device: int = 0) -> nn.Context:
    """The nnabla context for ``auto``, ``cpu`` or ``cudnn``.

    ``auto`` takes cuDNN where a small computation on it works, else the CPU, with a warning if nnabla's extension is
    installed.

    Args:
        device: index of the GPU on this machine (the local rank).

    Raises:
        UserError: ``cudnn`` was asked for and doesn't work here.
    """
    installed = importlib.util.find_spec("nnabla_ext.cudnn") is not None
    if name == "cpu" or (name == "auto" and not installed):
        return get_extension_context("cpu")
    if not installed:
        raise UserError("--context cudnn: nnabla's CUDA extension is missing; pip install -e .[cuda]")
    try:
        return _working_cudnn(device)
    except Exception as error:  # ImportError, RuntimeError, NVML's own: all mean "no GPU here"
        reason = " ".join(str(error).split())
        if name == "cudnn":
            raise UserError(f"--context cudnn: GPU {device} doesn't work ({reason}); use --context cpu") from error
        logging.getLogger(__name__).warning("GPU %d doesn't work (%s); computing on the CPU", device, reason)
        return get_extension_context("cpu")


def _working_cudnn(device: int) -> nn.Context:
    """The cuDNN context, after a small computation on it: some failures show only then."""
    _load_cuda_wheels()
    with contextlib.redirect_stdout(io.StringIO()):  # without a GPU the extension prints, then raises
        extension = importlib.import_module("nnabla_ext.cudnn")
    context = extension.context(device_id=str(device))
    with nn.context_scope(context):
        F.relu(nn.Variable.from_numpy_array(np.ones((1, 1), np.float32))).forward()
    return context


def _load_cuda_wheels() -> None:
    """Load the CUDA libraries that pip has installed: the extension finds them in memory, but not in pip's folders."""
    spec = importlib.util.find_spec("nvidia")
    folders = (spec.submodule_search_locations if spec else None) or ()
    for path in (Path(folder, name) for name in _CUDA_LIBRARIES for folder in folders):
        if path.is_file():
            ctypes.CDLL(str(path))


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


@contextlib.contextmanager
def use_context(name: str, device: int = 0) -> Iterator[None]:
    """Context manager: graphs built inside use ``choose_context(name, device)`` and its fastest operators."""
    context = choose_context(name, device)
    with nn.context_scope(context), ops.implementation(ops.fastest(context)):
        yield


def seed_initialisers(seed: int) -> None:
    """Make the parameter initialisers draw from ``seed``."""
    nn.random.prng = np.random.RandomState(seed)
