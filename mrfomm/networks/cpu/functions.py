"""The operators as nnabla functions: convolution by oneDNN, the others by compiled loops.

They compute on float32 arrays in main memory, whatever the current context, and equal nnabla's own functions up to
rounding. Results repeat bit for bit as long as the number of threads stays the same.
"""

import ctypes

import nnabla as nn
import numpy as np
from nnabla.function import PythonFunction

from mrfomm.networks.cpu import kernels
from mrfomm.networks.cpu.backend import backend
from mrfomm.networks.cpu.onednn import Convolution, ConvolutionShape


def convolution(x, w, b=None, pad=0, stride=1):
    """``F.convolution`` with the same padding and stride on both axes.

    Args:
        x: [N,C,H,W].
        w: [O,C,kh,kw].
        b: [O] or None.
        pad, stride: pixels.

    Returns:
        [N,O,H',W'] with H' = (H + 2 pad - kh) // stride + 1.

    Raises:
        ValueError: the shapes don't fit.
    """
    inputs = [x, w] if b is None else [x, w, b]
    shape = ConvolutionShape(tuple(x.shape), tuple(w.shape), b is not None, pad, stride)
    fits = x.ndim == w.ndim == 4 and x.shape[1] == w.shape[1] and min(shape.y) > 0
    if not fits or (b is not None and b.shape != w.shape[:1]):
        raise ValueError(f"convolution of shapes {[v.shape for v in inputs]} with pad {pad}, stride {stride}")
    return _Convolution(shape)(*inputs)


def batch_norm_relu(x, gamma, beta, mean, var, batch_stat, decay=0.9, eps=1e-5, relu=True):
    """``F.batch_normalization`` of the channels, then ``F.relu``.

    Args:
        x: [N,C,H,W].
        gamma, beta: scale and shift, C numbers in any shape.
        mean, var: running statistics, C numbers in any shape. No gradient flows to them.
        batch_stat: normalize by the batch's own mean and (biased) variance, and replace the running ones, in place, by
            decay * running + (1 - decay) * batch, with the batch's unbiased variance. Otherwise normalize by the
            running ones.
        relu: False leaves the ReLU out.

    Returns:
        Like x.

    Raises:
        ValueError: the shapes don't fit.
    """
    inputs = [x, gamma, beta, mean, var]
    if x.ndim != 4 or any(v.size != x.shape[1] for v in inputs[1:]):
        raise ValueError(f"batch normalization of shapes {[v.shape for v in inputs]}")
    if batch_stat and x.size == x.shape[1]:
        raise ValueError(f"batch normalization of one value per channel has no variance: {x.shape}")
    return _BatchNormRelu(batch_stat, decay, eps, relu)(*inputs)


def multiply(x, weight):
    """``x * weight``, where the weight may be the same for all channels.

    Args:
        x: [...,C,H,W].
        weight: [...,1,H,W] or like x.

    Returns:
        Like x.

    Raises:
        ValueError: the shapes don't fit.
    """
    *batch, channels, height, width = x.shape
    if weight.shape not in (x.shape, (*batch, 1, height, width)):
        raise ValueError(f"multiplication of shapes {x.shape}, {weight.shape}")
    return _Multiply()(x, weight)


def halve(x):
    """``F.average_pooling`` of 2x2: [N,C,H,W] -> [N,C,H//2,W//2]; H and W at least 2, else ValueError."""
    if x.ndim != 4 or min(x.shape[2:]) < 2:
        raise ValueError(f"halving of shape {x.shape}")
    return _Halve()(x)


def double(x):
    """Nearest ``F.interpolate`` by 2: [N,C,H,W] -> [N,C,2H,2W]; other shapes raise ValueError."""
    if x.ndim != 4:
        raise ValueError(f"doubling of shape {x.shape}")
    return _Double()(x)


def warp(x, grid):
    """``F.warp_by_grid`` with linear interpolation, zeros outside of the image and corners on pixel centres.

    Args:
        x: [N,C,H,W].
        grid: [N,h,w,2], (x, y) in [-1,1].

    Returns:
        [N,C,h,w].

    Raises:
        ValueError: the shapes don't fit.
    """
    if x.ndim != 4 or grid.ndim != 4 or x.shape[0] != grid.shape[0] or grid.shape[3] != 2:
        raise ValueError(f"warp of shapes {x.shape}, {grid.shape}")
    return _Warp()(x, grid)


QUARTER = np.float32(0.25)
_CONTEXT = nn.Context(["cpu:float"], "CpuCachedArray", "0")


class _Function(PythonFunction):
    """A function with one output. nnabla passes variables; ``forward`` and ``backward`` see arrays.

    In ``backward`` an input that no wanted gradient depends on is None, as is a gradient that is not wanted.
    """

    def __init__(self):
        super().__init__(_CONTEXT)
        self._backend = backend()

    @property
    def name(self):
        return type(self).__name__.lstrip("_")

    def min_outputs(self):
        return 1

    def grad_depends_output_data(self, i, o):
        return False

    def grad_depends_input_data(self, i, j):
        return True

    def forward_impl(self, inputs, outputs):
        self._backend.enter_thread()
        self.forward(*(_array(v.data) for v in inputs), _array(outputs[0].data, write_only=True))

    def backward_impl(self, inputs, outputs, propagate_down, accum):
        self._backend.enter_thread()
        wanted = [i for i, propagate in enumerate(propagate_down) if propagate]
        # What no wanted gradient depends on may have been freed.
        needed = [any(self.grad_depends_input_data(i, j) for i in wanted) for j in range(len(inputs))]
        arrays = [_array(v.data) if need else None for v, need in zip(inputs, needed)]
        grads = [_Gradient(v.grad, accum[i]) if i in wanted else None for i, v in enumerate(inputs)]
        self.backward(arrays, _array(outputs[0].grad), grads)


def _array(data, write_only=False):
    """The float32 array inside an NdArray: a reference, good while the NdArray lives.

    ``NdArray.data`` and ``cast`` look for a missing Python module in every call, which takes 0.1 ms.
    """
    address = data.data_ptr(np.float32, _CONTEXT, write_only)
    return np.ndarray(data.shape, np.float32, (ctypes.c_byte * (4 * data.size)).from_address(address))


class _Gradient:
    """Where the gradient of one input goes: its array, and whether to add to what it holds."""

    def __init__(self, grad, add):
        self.array, self.add = _array(grad, write_only=not add), add

    def put(self, value):
        """Write or add ``value``, which may have another shape of the same size."""
        value = value.reshape(self.array.shape)
        if self.add:
            self.array += value
        else:
            self.array[...] = value


class _Convolution(_Function):
    def __init__(self, shape):
        super().__init__()
        self._shape = shape
        self._operation = Convolution(self._backend.dnn, shape)

    def setup_impl(self, inputs, outputs):
        outputs[0].reset_shape(self._shape.y, True)

    def grad_depends_input_data(self, i, j):
        return (i, j) in ((0, 1), (1, 0), (2, 0))  # oneDNN makes the bias's gradient along with the weights'

    def forward(self, *arrays):
        self._operation.forward(*arrays)

    def backward(self, inputs, dy, grads):
        dx, *dparameters = grads
        if dx is not None:
            target = np.empty_like(dx.array) if dx.add else dx.array
            self._operation.backward_x(inputs[1], dy, target)
            if dx.add:
                dx.array += target
        if any(d is not None for d in dparameters):
            values = [np.empty(shape, np.float32) for shape in self._shape.parameters]
            self._operation.backward_weights(inputs[0], dy, *values)
            for d, value in zip(dparameters, values):
                if d is not None:
                    d.put(value)


class _BatchNormRelu(_Function):
    def __init__(self, batch_stat, decay, eps, relu):
        super().__init__()
        self._batch_stat, self._decay, self._eps = batch_stat, decay, np.float32(eps)
        self._floor = np.float32(0 if relu else -np.inf)

    def setup_impl(self, inputs, outputs):
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward(self, x, gamma, beta, running_mean, running_var, y):
        x = _flat(x)
        if self._batch_stat:
            self._batch = np.empty((2, x.shape[1]), np.float32)  # mean, variance
            kernels.batch_statistics(x, *self._batch)
            self._update(running_mean, self._batch[0])
            self._update(running_var, self._batch[1] * _unbias(x))
        mean, inverse_std = self._statistics(running_mean, running_var)
        kernels.normalize(x, mean, gamma.ravel() * inverse_std, beta.ravel(), self._floor, _flat(y))

    def _update(self, running, batch):
        running *= self._decay
        running += (1 - self._decay) * batch.reshape(running.shape)

    def _statistics(self, running_mean, running_var):
        """Mean and inverse standard deviation [C] that this function normalizes by."""
        mean, var = self._batch if self._batch_stat else (running_mean.ravel(), running_var.ravel())
        return mean, 1 / np.sqrt(var + self._eps)

    def backward(self, inputs, dy, grads):
        x, gamma, beta, *running = inputs
        dx, dgamma, dbeta, _, _ = grads
        x, dy = _flat(x), _flat(dy)
        mean, inverse_std = self._statistics(*running)
        scale = gamma.ravel() * inverse_std
        line = (mean, scale, beta.ravel(), self._floor)
        sum_dz, sum_dz_x = sums = np.empty((2, x.shape[1]), np.float32)
        kernels.normalize_sums(x, dy, *line, *sums)
        if dgamma is not None:
            dgamma.put(sum_dz_x * inverse_std)
        if dbeta is not None:
            dbeta.put(sum_dz)
        if dx is not None:
            # The share of the gradient that comes through the batch's mean and variance.
            share = -scale / (x.size // x.shape[1]) if self._batch_stat else np.zeros_like(scale)
            slope, offset = share * inverse_std**2 * sum_dz_x, share * sum_dz
            kernels.normalize_backward(x, dy, *line, slope, offset, dx.add, _flat(dx.array))


def _unbias(x):
    """Unbiased over biased variance of the channels of x [N,C,S]."""
    count = x.size // x.shape[1]
    return count / (count - 1)


class _Multiply(_Function):
    def setup_impl(self, inputs, outputs):
        x, weight = inputs
        outputs[0].reset_shape(x.shape, True)
        size = x.shape[-2] * x.shape[-1]
        self._maps = (weight.size // size, size)
        self._images = (self._maps[0], -1, size)  # the channels that share each of the maps

    def grad_depends_input_data(self, i, j):
        return i != j

    def forward(self, x, weight, y):
        kernels.multiply(x.reshape(self._images), weight.reshape(self._maps), False, y.reshape(self._images))

    def backward(self, inputs, dy, grads):
        x, weight = inputs
        dx, dweight = grads
        dy = dy.reshape(self._images)
        if dx is not None:
            kernels.multiply(dy, weight.reshape(self._maps), dx.add, dx.array.reshape(self._images))
        if dweight is not None:
            kernels.multiply_sum(x.reshape(self._images), dy, dweight.add, dweight.array.reshape(self._maps))


class _Halve(_Function):
    def setup_impl(self, inputs, outputs):
        *batch, height, width = inputs[0].shape
        outputs[0].reset_shape((*batch, height // 2, width // 2), True)

    def grad_depends_input_data(self, i, j):
        return False

    def forward(self, x, y):
        kernels.halve(_maps(x), QUARTER, False, _maps(y))

    def backward(self, inputs, dy, grads):
        kernels.double(_maps(dy), QUARTER, grads[0].add, _maps(grads[0].array))


class _Double(_Function):
    def setup_impl(self, inputs, outputs):
        *batch, height, width = inputs[0].shape
        outputs[0].reset_shape((*batch, 2 * height, 2 * width), True)

    def grad_depends_input_data(self, i, j):
        return False

    def forward(self, x, y):
        kernels.double(_maps(x), kernels.ONE, False, _maps(y))

    def backward(self, inputs, dy, grads):
        kernels.halve(_maps(dy), kernels.ONE, grads[0].add, _maps(grads[0].array))


class _Warp(_Function):
    def setup_impl(self, inputs, outputs):
        x, grid = inputs
        outputs[0].reset_shape((*x.shape[:2], *grid.shape[1:3]), True)
        self._size = x.shape[2:]
        self._points = (grid.shape[0], grid.shape[1] * grid.shape[2], 2)

    def grad_depends_input_data(self, i, j):
        return i == 1 or j == 1

    def _taps(self, grid):
        """Positions and weights [N,h*w,4] of the pixels around every point of the grid."""
        shape = (*self._points[:2], 4)
        index, weight = np.empty(shape, np.int32), np.empty(shape, np.float32)
        kernels.warp_taps(grid.reshape(self._points), *self._size, index, weight)
        return index, weight

    def forward(self, x, grid, y):
        kernels.warp_forward(_flat(x), *self._taps(grid), _flat(y))

    def backward(self, inputs, dy, grads):
        x, grid = inputs
        dx, dgrid = grads
        index, weight = self._taps(grid)
        dy = _flat(dy)
        if dx is not None:
            if not dx.add:
                dx.array[...] = 0
            kernels.warp_backward_x(dy, index, weight, _flat(dx.array))
        if dgrid is not None:
            products = np.empty_like(weight)
            kernels.warp_products(_flat(x), dy, index, products)
            points, dpoints = grid.reshape(self._points), dgrid.array.reshape(self._points)
            kernels.warp_backward_grid(points, *self._size, products, dgrid.add, dpoints)


def _maps(array):
    """[N,C,H,W] -> [N*C,H,W]."""
    return array.reshape(-1, *array.shape[2:])


def _flat(array):
    """[N,C,H,W] -> [N,C,H*W]."""
    return array.reshape(*array.shape[:2], -1)
