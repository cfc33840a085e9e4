"""Batch normalisation over the batches of all processes, on CPUs: n processes of batch b compute as one of batch n*b.

nnabla synchronises batch norm on GPUs only. What makes runs with different numbers of processes comparable is that
every sum over the batch stays in float64 until it is complete: it then rounds to the same float32 however the batch was
divided, and so the activations are the same to the bit. Sums in float32 differ in their last bits, and the warps and
softmaxes that follow make much of that: the first gradients then agree to 1e-4 only.
"""

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
from nnabla import Variable

from mrfomm.networks.cpu.batch_norm import BatchNormRelu

AddUp = Callable[[np.ndarray], None]


def sync_batch_normalization(
    inputs: Sequence[Variable], relu: bool, add_up: AddUp, processes: int, kernels: ModuleType
) -> Variable:
    """Batch normalisation by the statistics of the global batch, which also update the running ones -> like x.

    All processes must run their functions in the same order, as they do when they build the same graph. The gradients
    of beta and gamma are those of this process' samples alone, like all gradients of parameters before their average
    is taken: where every process' loss is the mean over its samples, that average is the gradient of the global mean.

    Args:
        inputs: x [N,C,H,W], N the same in every process, then beta, gamma, mean, var as of ``ops.Operators``.
        relu: apply a ReLU to the result.
        add_up: replaces a float64 array by its sum over the processes. Called once in the forward and once in the
            backward pass.
        processes: how many there are.
        kernels: the loops over x: the module ``numpy_kernels``, or what ``compiled_kernels`` returns.

    Raises:
        ValueError: the shapes don't fit, or the global batch has one value per channel and so no variance.
    """
    x, *parameters = inputs
    if x.ndim != 4 or any(v.shape != (1, x.shape[1], 1, 1) for v in parameters):
        raise ValueError(f"batch normalization of shapes {[v.shape for v in inputs]}")
    if x.size * processes == x.shape[1]:
        raise ValueError(f"batch normalization of one value per channel has no variance: {x.shape}")
    return _SyncBatchNormalization(x.shape, kernels, relu, add_up, processes)(*inputs)


class _SyncBatchNormalization(BatchNormRelu):
    sum_type = np.float64

    def __init__(self, shape: Sequence[int], kernels: ModuleType, relu: bool, add_up: AddUp, processes: int) -> None:
        super().__init__(shape, kernels, True, relu)
        self._count *= processes
        self._add_up, self._processes = add_up, processes

    def batch_statistics(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, var = super().batch_statistics(x)
        moments = np.stack([mean, var + mean**2])
        self._add_up(moments)
        mean, second = moments / self._processes
        return mean, np.maximum(second - mean**2, 0)

    def total(self, sums: np.ndarray) -> np.ndarray:
        self._add_up(sums)
        return sums.astype(np.float32)


def compiled_kernels() -> ModuleType:
    """The loops of the CPU operators (extra ``cpu``), whose outputs are then theirs to the bit.

    The running statistics may differ in the last bit: here they are added up in double precision.
    """
    from mrfomm.networks.cpu import kernels
    from mrfomm.networks.cpu.backend import backend

    backend().enter_thread()
    return kernels
