"""Batch normalisation over the batches of all processes, on CPUs: n processes of batch b compute as one of batch n*b.

nnabla synchronises batch norm on GPUs only. What makes runs with different numbers of processes comparable is that
every sum over the batch stays in float64 until it is complete: it then rounds to the same float32 however the batch was
divided, and so the activations are the same to the bit. Sums in float32 differ in their last bits, and the warps and
softmaxes that follow make much of that: the first gradients then agree to 1e-4 only.
"""

import nnabla as nn
import numpy as np
from nnabla.function import PythonFunction

from mrfomm.networks.ops import BATCH_NORM_DECAY, BATCH_NORM_EPS

_CONTEXT = nn.Context(["cpu:float"], "CpuCachedArray", "0")


def sync_batch_normalization(x, beta, gamma, mean, var, relu, add_up, processes, kernels):
    """Batch normalisation by the statistics of the global batch, which also update the running ones.

    All processes must run their functions in the same order, as they do when they build the same graph. The gradients
    of beta and gamma are those of this process' samples alone, like all gradients of parameters before their average
    is taken: where every process' loss is the mean over its samples, that average is the gradient of the global mean.

    Args:
        x: [N,C,H,W], N the same in every process.
        beta, gamma: shift and scale [1,C,1,1].
        mean, var: running statistics [1,C,1,1], updated in place: 0.9 * running + 0.1 * batch, with the unbiased
            variance of the global batch.
        relu: apply a ReLU to the result.
        add_up: function that replaces a float64 array by its sum over the processes. Called once in the forward and
            once in the backward pass.
        processes: how many there are.
        kernels: the loops over x: NumpyKernels, or what ``compiled_kernels`` returns.

    Returns:
        Like x.

    Raises:
        ValueError: the shapes don't fit, or the global batch has one value per channel and so no variance.
    """
    if x.ndim != 4 or any(v.shape != (1, x.shape[1], 1, 1) for v in (beta, gamma, mean, var)):
        raise ValueError(f"batch normalization of shapes {[v.shape for v in (x, beta, gamma, mean, var)]}")
    if x.size * processes == x.shape[1]:
        raise ValueError(f"batch normalization of one value per channel has no variance: {x.shape}")
    return _SyncBatchNormalization(relu, add_up, processes, kernels)(x, beta, gamma, mean, var)


def compiled_kernels():
    """The loops of the CPU operators (extra ``cpu``), whose outputs are then theirs to the bit.

    The running statistics may differ in the last bit: here they are added up in double precision.
    """
    from mrfomm.networks.cpu import kernels
    from mrfomm.networks.cpu.backend import backend

    backend().enter_thread()
    return kernels


class NumpyKernels:
    """The loops of ``mrfomm.networks.cpu.kernels`` that are needed here, without numba.

    x, y, dy, dx: float32 [N,C,S]; floor: a number; all else [C].
    """

    @staticmethod
    def batch_statistics(x, mean, var):
        """Mean and biased variance of x over N and S, into float64 arrays."""
        count = x.size // x.shape[1]
        mean[:] = _sum(x) / count
        # Squares of float32 numbers are exact in float64, where their cancellation costs nothing that x holds.
        var[:] = np.maximum(_sum(np.square(x, dtype=np.float64)) / count - mean**2, 0)

    @staticmethod
    def normalize(x, mean, scale, shift, floor, y):
        """y = max(z, floor) with z = (x - mean) * scale + shift."""
        np.subtract(x, mean[:, None], out=y)
        y *= scale[:, None]
        y += shift[:, None]
        np.maximum(y, floor, out=y)

    @staticmethod
    def normalize_sums(x, dy, mean, scale, shift, floor, sum_dz, sum_dz_x):
        """The sums over N and S of dz and of dz * (x - mean), into float64 arrays; dz is dy where z > floor, else 0."""
        centred = x - mean[:, None]
        dz = dy * (centred * scale[:, None] + shift[:, None] > floor)
        sum_dz[:] = _sum(dz)
        sum_dz_x[:] = _sum(np.multiply(dz, centred, out=dz))

    @staticmethod
    def normalize_backward(x, dy, mean, scale, shift, floor, slope, offset, accumulate, dx):
        """dx (+)= dz * scale + (x - mean) * slope + offset."""
        centred = x - mean[:, None]
        value = dy * (centred * scale[:, None] + shift[:, None] > floor)
        value *= scale[:, None]
        centred *= slope[:, None]
        value += centred
        value += offset[:, None]
        if accumulate:
            dx += value
        else:
            dx[...] = value


class _SyncBatchNormalization(PythonFunction):
    """Inputs x, beta, gamma, running mean, running variance; output like x."""

    def __init__(self, relu, add_up, processes, kernels):
        super().__init__(_CONTEXT)
        self._floor = np.float32(0 if relu else -np.inf)
        self._add_up, self._processes, self._kernels = add_up, processes, kernels

    @property
    def name(self):
        return "SyncBatchNormalization"

    def min_outputs(self):
        return 1

    def grad_depends_output_data(self, i, o):
        return False

    def grad_depends_input_data(self, i, j):
        return True

    def setup_impl(self, inputs, outputs):
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs, outputs):
        x, beta, gamma, running_mean, running_var = (variable.d for variable in inputs)
        mean, var = self._statistics(_flat(x))
        count = self._count(x)
        _update(running_mean, mean)
        _update(running_var, var * count / (count - 1))
        self._mean = mean.astype(np.float32)
        self._inverse_std = 1 / np.sqrt(var.astype(np.float32) + np.float32(BATCH_NORM_EPS))
        self._kernels.normalize(_flat(x), *self._line(beta, gamma), _flat(outputs[0].d))

    def _statistics(self, x):
        """Mean and biased variance of the global batch, float64 [C]."""
        moments = np.empty((2, x.shape[1]))
        mean, second = moments
        self._kernels.batch_statistics(x, mean, second)
        second += mean**2
        self._add_up(moments)
        moments /= self._processes
        return mean, np.maximum(second - mean**2, 0)

    def backward_impl(self, inputs, outputs, propagate_down, accum):
        x, beta, gamma = (variable.d for variable in inputs[:3])
        arrays = _flat(x), _flat(outputs[0].g), *self._line(beta, gamma)
        local = np.empty((2, x.shape[1]))
        self._kernels.normalize_sums(*arrays, *local)
        for i, gradient in ((1, local[0]), (2, local[1] * self._inverse_std)):
            if propagate_down[i]:
                _put(inputs[i].g, gradient, accum[i])
        total = local.copy()
        self._add_up(total)  # whether or not the gradient of x is asked for: the other processes wait
        if propagate_down[0]:
            sum_dy, sum_dy_x = total.astype(np.float32)
            share = -gamma.ravel() * self._inverse_std / self._count(x)
            slope, offset = share * self._inverse_std**2 * sum_dy_x, share * sum_dy
            self._kernels.normalize_backward(*arrays, slope, offset, accum[0], _flat(inputs[0].g))

    def _line(self, beta, gamma):
        """mean, scale, shift and floor of the kernels: what this function does to each value of x."""
        return self._mean, gamma.ravel() * self._inverse_std, beta.ravel(), self._floor

    def _count(self, x):
        """Values per channel of the global batch."""
        return self._processes * (x.size // x.shape[1])


def _flat(array):
    """[N,C,H,W] -> [N,C,H*W], a view."""
    return array.reshape(*array.shape[:2], -1)


def _sum(x):
    """Sum of [N,C,S] over all but the channels, in float64: [C]."""
    return x.sum(axis=2, dtype=np.float64).sum(axis=0)


def _update(running, batch):
    running *= BATCH_NORM_DECAY
    running += (1 - BATCH_NORM_DECAY) * batch.reshape(running.shape)


def _put(target, values, add):
    values = values.reshape(target.shape)
    if add:
        target += values
    else:
        target[...] = values
