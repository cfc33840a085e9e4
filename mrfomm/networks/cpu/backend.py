"""What the operators share in a process: the oneDNN library and the number of threads."""

import functools
import os
import sys
import threading

import numba

from mrfomm.networks.cpu.onednn import OneDNN


class Backend:
    """oneDNN, and the number of threads that its loops and numba's run in, both in the system's libgomp.

    ``OMP_NUM_THREADS`` sets the number; without it a process started by Open MPI takes its share of the cores, and any
    other process takes all.

    Raises:
        ImportError: oneDNN is not installed or can't be loaded.
    """

    def __init__(self) -> None:
        # Waiting threads must sleep. By default they spin, and where another process holds one of the cores, the thread
        # that is waited for gets its turn milliseconds late, in every single loop. Read when libgomp is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        self.dnn = OneDNN()
        numba.config.THREADING_LAYER = "omp"  # the one that several threads may call at once
        # nnabla's compiled modules look for these, which don't exist, at every access to a Variable from a
        # PythonFunction: 0.05 ms each, ten times per function. None tells Python not to search the disk.
        for missing in ("nnabla.nnabla", "nnabla.nnabla_ext"):
            sys.modules.setdefault(missing, None)  # type: ignore[arg-type]
        self._threads = self._count_threads()
        self._thread = threading.local()

    def _count_threads(self) -> int:
        threads = self.dnn.library.omp_get_max_threads()
        if "OMP_NUM_THREADS" not in os.environ:
            threads //= int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
        return max(1, min(threads, numba.config.NUMBA_NUM_THREADS))

    def enter_thread(self) -> None:
        """Set the number of threads in the calling thread, for which both libraries keep numbers of their own."""
        if not hasattr(self._thread, "ready"):
            numba.set_num_threads(self._threads)  # the first call in a process sets OpenMP's number too
            self.dnn.library.omp_set_num_threads(self._threads)
            self._thread.ready = True


@functools.cache
def backend() -> Backend:
    """The process's only :class:`Backend`, loaded when it is first asked for."""
    return Backend()
