"""Batch normalisation with a ReLU, around loops over its input: numba's or numpy's, for one process or several."""

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from mrfomm.networks.cpu.array_function import ArrayFunction, Gradient, flat

BATCH_NORM_EPS = 1e-5
BATCH_NORM_DECAY = 0.9  # nnabla's sense: running = 0.9 * running + 0.1 * batch

# mean, scale, shift [C] and floor of what is done to each value: max(z, floor) with z = (x - mean) * scale + shift
Line = tuple[np.ndarray, np.ndarray, np.ndarray, np.float32]


class BatchNormRelu(ArrayFunction):
    """Inputs x [N,C,H,W], then shift, scale, running mean and running variance, C numbers in any shape.

    Args:
        kernels: the loops: the module ``kernels`` or ``numpy_kernels``.
        batch_stat: normalise by the batch's own mean and (biased) variance, and update the running ones in place, by
            the unbiased variance. Otherwise normalise by the running ones.
        relu: False leaves the ReLU out.
    """

    needs = frozenset((i, j) for i in range(3) for j in range(5))
    sum_type: type[np.floating] = np.float32  # what sums over the batch are kept in

    def __init__(self, shape: Sequence[int], kernels: ModuleType, batch_stat: bool, relu: bool) -> None:
        super().__init__(shape)
        self._kernels, self._batch_stat, self._floor = kernels, batch_stat, np.float32(0 if relu else -np.inf)
        self._count = math.prod(shape) // shape[1]  # values per channel

    def forward(self, *arrays: np.ndarray) -> None:
        x, beta, gamma, running_mean, running_var, y = arrays
        if self._batch_stat:
            self._batch = mean, var = self.batch_statistics(flat(x))
            _update(running_mean, mean)
            _update(running_var, var * (self._count / (self._count - 1)))
        mean, inverse_std = self._statistics(running_mean, running_var)
        self._kernels.normalize(flat(x), (mean, gamma.ravel() * inverse_std, beta.ravel(), self._floor), flat(y))

    def batch_statistics(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and biased variance [C] of the batch x [N,C,S]."""
        mean, var = np.empty((2, x.shape[1]), self.sum_type)
        self._kernels.batch_statistics(x, mean, var)
        return mean, var

    def _statistics(self, running_mean: np.ndarray, running_var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and inverse standard deviation [C] that this function normalises by."""
        mean, var = self._batch if self._batch_stat else (running_mean.ravel(), running_var.ravel())
        return mean.astype(np.float32), 1 / np.sqrt(var.astype(np.float32) + np.float32(BATCH_NORM_EPS))

    def backward(self, inputs: list[np.ndarray], dy: np.ndarray, grads: list[Gradient | None]) -> None:
        x, beta, gamma, *running = inputs
        dx, dbeta, dgamma, *_ = grads
        mean, inverse_std = self._statistics(*running)
        scale = gamma.ravel() * inverse_std
        arrays = (flat(x), flat(dy), (mean, scale, beta.ravel(), self._floor))
        sums = np.empty((2, scale.size), self.sum_type)  # of dz and of dz * (x - mean)
        self._kernels.normalize_sums(*arrays, *sums)
        if dbeta is not None:
            dbeta.put(sums[0])
        if dgamma is not None:
            dgamma.put(sums[1] * inverse_std)
        sum_dz, sum_dz_x = self.total(sums)
        if dx is not None:
            # The share of the gradient that comes through the batch's mean and variance.
            share = -scale / self._count if self._batch_stat else np.zeros_like(scale)
            slope, offset = share * inverse_std**2 * sum_dz_x, share * sum_dz
            self._kernels.normalize_backward(*arrays, slope, offset, dx.add, flat(dx.array))

    def total(self, sums: np.ndarray) -> np.ndarray:
        """The float32 sums over the whole batch, of those over this process' part."""
        return sums


def _update(running: np.ndarray, batch: np.ndarray) -> None:
    running *= BATCH_NORM_DECAY
    running += (1 - BATCH_NORM_DECAY) * batch.reshape(running.shape)
