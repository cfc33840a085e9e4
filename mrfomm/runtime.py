"""Where computation runs: the nnabla context, and the processes that share a training run."""

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.ext_utils import get_extension_context

from mrfomm.errors import UserError

CONTEXTS = ("auto", "cpu", "cudnn")


class SingleProcess:
    """The communicator of a run with one process: nothing to exchange."""

    rank = 0
    size = 1
    local_rank = 0

    def average_gradients(self, parameters):
        """Leave the gradients as they are."""

    def broadcast(self, parameters):
        """Leave the parameters as they are."""

    def mean(self, values):
        """The mean of float64 arrays over the processes: the array itself."""
        return values

    def any(self, flag):
        """Whether the flag is set in any process."""
        return flag

    def barrier(self):
        """Nothing to wait for."""


def choose_context(name, device=0):
    """The nnabla context for ``auto``, ``cpu`` or ``cudnn``.

    ``auto`` takes cuDNN where a small computation on it works, else the CPU. cuDNN fails in several ways without a GPU
    (missing package, driver or device), hence the trial.

    Args:
        device: index of the GPU on this machine (the local rank).

    Raises:
        UserError: ``cudnn`` was asked for and doesn't work here.
    """
    if name == "cpu":
        return get_extension_context("cpu")
    try:
        context = get_extension_context("cudnn", device_id=str(device))
        with nn.context_scope(context):
            F.relu(nn.Variable.from_numpy_array(np.ones((1, 1), np.float32))).forward()
        return context
    except Exception as error:  # ModuleNotFoundError, ImportError, RuntimeError, NVML's own: all mean "no GPU here"
        if name == "auto":
            return get_extension_context("cpu")
        raise UserError(
            f"--context cudnn: no usable GPU here ({error}); pip install -e .[cuda], or use --context cpu"
        ) from error


def use_context(name, device=0):
    """Context manager: graphs built and run inside it use ``choose_context(name, device)``."""
    return nn.context_scope(choose_context(name, device))


def seed_initialisers(seed):
    """Make the parameter initialisers draw from ``seed``."""
    nn.random.prng = np.random.RandomState(seed)
