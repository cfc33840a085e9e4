"""What nnabla computes on: the context, the operators that go with it, and the random numbers that parameters start
from."""

import contextlib
import ctypes
import importlib
import importlib.util
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.ext_utils import get_extension_context

from mrfomm.errors import UserError
from mrfomm.networks import ops
from mrfomm.runtime import CONTEXTS as CONTEXTS

_CUDA_LIBRARIES = (  # what nnabla's CUDA extension and its communicator load, of pip's nvidia-* wheels
    "cuda_runtime/lib/libcudart.so.12",
    "cublas/lib/libcublas.so.12",
    "cusolver/lib/libcusolver.so.11",
    "curand/lib/libcurand.so.10",
    "cufft/lib/libcufft.so.11",
    "cudnn/lib/libcudnn.so.8",
    "nccl/lib/libnccl.so.2",
)


@contextlib.contextmanager
def use_context(name: str) -> Iterator[None]:
    """Context manager: graphs built inside use ``choose_context(name)`` and its fastest operators."""
    context = choose_context(name)
    with nn.context_scope(context), ops.implementation(ops.fastest(context)):
        yield


def choose_context(name: str, device: int = 0) -> nn.Context:
    """The nnabla context for one of CONTEXTS, on the machine's GPU number ``device``.

    ``auto`` takes cuDNN where a small computation on it works, else the CPU, with a warning if nnabla's extension is
    installed.

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
    load_cuda_wheels()
    with contextlib.redirect_stdout(io.StringIO()):  # without a GPU the extension prints, then raises
        extension = importlib.import_module("nnabla_ext.cudnn")
    context = extension.context(device_id=str(device))
    with nn.context_scope(context):
        F.relu(nn.Variable.from_numpy_array(np.ones((1, 1), np.float32))).forward()
    return context


def load_cuda_wheels() -> list[str]:
    """Load the CUDA libraries that pip has installed: the extension finds them in memory, but not in pip's folders.
    Returns their names; an OSError tells of one that can't be loaded."""
    spec = importlib.util.find_spec("nvidia")
    folders = (spec.submodule_search_locations if spec else None) or ()
    found = [path for name in _CUDA_LIBRARIES for folder in folders if (path := Path(folder, name)).is_file()]
    for path in found:
        ctypes.CDLL(str(path))
    return [path.name for path in found]


def seed_initialisers(seed: int) -> None:
    """Make the parameter initialisers draw from ``seed``."""
    nn.random.prng = np.random.RandomState(seed)
