"""Threads of worker processes: one each, as the processes are the parallelism already."""

import contextlib
import os
from collections.abc import Iterator

# OpenMP (OpenBLAS, oneDNN and onnxruntime here go by it too), OpenBLAS' own, numba, OpenCV. Read when they are loaded.
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Context manager: processes started inside compute in one thread each. Else n on n cores start n*n threads."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(dict.fromkeys(_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
