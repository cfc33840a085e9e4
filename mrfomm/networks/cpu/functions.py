"""The operators of :mod:`mrfomm.networks.ops` as nnabla functions: convolution by oneDNN, the others by compiled loops.

They equal nnabla's own functions up to rounding. Results repeat bit for bit as long as the number of threads stays the
same. Shapes that don't fit raise a ValueError.
"""

from collections.abc import Callable, Sequence

import numpy as np
from nnabla import Variable

from mrfomm.networks.cpu import kernels
from mrfomm.networks.cpu.array_function import ArrayFunction, Gradient, flat
from mrfomm.networks.cpu.backend import backend
from mrfomm.networks.cpu.batch_norm import BatchNormRelu
from mrfomm.networks.cpu.onednn import Convolution, ConvolutionShape

QUARTER = np.float32(0.25)


def convolution(x: Variable, w: Variable, b: Variable | None = None, pad: int = 0, stride: int = 1) -> Variable:
    """``F.convolution`` of x [N,C,H,W] with w [O,C,kh,kw] and b [O], the same padding and stride on both axes."""
    inputs = [x, w] if b is None else [x, w, b]
    shape = ConvolutionShape(tuple(x.shape), tuple(w.shape), b is not None, pad, stride)
    fits = x.ndim == w.ndim == 4 and x.shape[1] == w.shape[1] and min(shape.y) > 0
    if not fits or (b is not None and b.shape != w.shape[:1]):
        raise ValueError(f"convolution of shapes {[v.shape for v in inputs]} with pad {pad}, stride {stride}")
    return _Convolution(shape)(*inputs)


def batch_norm_relu(
    x: Variable, beta: Variable, gamma: Variable, mean: Variable, var: Variable, batch_stat: bool, relu: bool = True
) -> Variable:
    """``F.batch_normalization`` of the channels of x [N,C,H,W], then ``F.relu``. See :class:`BatchNormRelu`."""
    inputs = [x, beta, gamma, mean, var]
    _check(x.ndim == 4 and all(v.size == x.shape[1] for v in inputs[1:]), "batch normalization", inputs)
    if batch_stat and x.size == x.shape[1]:
        raise ValueError(f"batch normalization of one value per channel has no variance: {x.shape}")
    return _BatchNormRelu(x.shape, kernels, batch_stat, relu)(*inputs)


def multiply(x: Variable, weight: Variable) -> Variable:
    """``x * weight`` of x [...,C,H,W] and a weight [...,1,H,W], the same for all channels, or like x."""
    *batch, _, height, width = x.shape
    _check(weight.shape in (x.shape, (*batch, 1, height, width)), "multiplication", [x, weight])
    return _Multiply(x.shape, weight.size // (height * width))(x, weight)


def halve(x: Variable) -> Variable:
    """``F.average_pooling`` of 2x2: [N,C,H,W] -> [N,C,H//2,W//2]; H and W at least 2."""
    _check(x.ndim == 4 and min(x.shape[2:]) >= 2, "halving", [x])
    shape = (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
    return _Resample(shape, kernels.halve, kernels.double, QUARTER)(x)


def double(x: Variable) -> Variable:
    """Nearest ``F.interpolate`` by 2: [N,C,H,W] -> [N,C,2H,2W]."""
    _check(x.ndim == 4, "doubling", [x])
    shape = (*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    return _Resample(shape, kernels.double, kernels.halve, kernels.ONE)(x)


def warp(x: Variable, grid: Variable) -> Variable:
    """``F.warp_by_grid`` of x [N,C,H,W] at grid [N,h,w,2]: linear, zeros outside, corners on pixel centres."""
    _check(x.ndim == grid.ndim == 4 and x.shape[0] == grid.shape[0] and grid.shape[3] == 2, "warp", [x, grid])
    return _Warp((*x.shape[:2], *grid.shape[1:3]), x.shape[2:])(x, grid)


def _check(fits: bool, what: str, inputs: Sequence[Variable]) -> None:
    if not fits:
        raise ValueError(f"{what} of shapes {[v.shape for v in inputs]}")


class _Function(ArrayFunction):
    def prepare(self) -> None:
        backend().enter_thread()


class _BatchNormRelu(_Function, BatchNormRelu):
    """The one of this process alone."""


class _Convolution(_Function):
    needs = frozenset([(0, 1), (1, 0), (2, 0)])  # oneDNN makes the bias's gradient along with the weights'

    def __init__(self, shape: ConvolutionShape) -> None:
        super().__init__(shape.y)
        self._parameters = [shape.weights, shape.weights[:1]][: 1 + shape.bias]
        self._operation = Convolution(backend().dnn, shape)

    def forward(self, *arrays: np.ndarray) -> None:
        self._operation.forward(*arrays)

    def backward(self, inputs: list[np.ndarray], dy: np.ndarray, grads: list[Gradient | None]) -> None:
        dx, *dparameters = grads
        if dx is not None:
            target = np.empty_like(dx.array) if dx.add else dx.array
            self._operation.backward_x(inputs[1], dy, target)
            if dx.add:
                dx.put(target)
        if any(dparameters):
            values = [np.empty(shape, np.float32) for shape in self._parameters]
            self._operation.backward_weights(inputs[0], dy, *values)
            for d, value in zip(dparameters, values):
                if d is not None:
                    d.put(value)


class _Multiply(_Function):
    """``maps``: how many maps the weight has."""

    needs = frozenset([(0, 1), (1, 0)])

    def __init__(self, shape: Sequence[int], maps: int) -> None:
        super().__init__(shape)
        self._maps = (maps, shape[-2] * shape[-1])
        self._images = (maps, -1, shape[-2] * shape[-1])  # the channels that share each of the maps

    def forward(self, x: np.ndarray, weight: np.ndarray, y: np.ndarray) -> None:
        kernels.multiply(x.reshape(self._images), weight.reshape(self._maps), False, y.reshape(self._images))

    def backward(self, inputs: list[np.ndarray], dy: np.ndarray, grads: list[Gradient | None]) -> None:
        (x, weight), (dx, dweight), dy = inputs, grads, dy.reshape(self._images)
        if dx is not None:
            kernels.multiply(dy, weight.reshape(self._maps), dx.add, dx.array.reshape(self._images))
        if dweight is not None:
            kernels.multiply_sum(x.reshape(self._images), dy, dweight.add, dweight.array.reshape(self._maps))


class _Resample(_Function):
    """``there`` is one of the kernels ``halve`` and ``double``, ``back`` the other; both multiply by ``scale``."""

    def __init__(self, shape: Sequence[int], there: Callable, back: Callable, scale: np.float32) -> None:
        super().__init__(shape)
        self._there, self._back, self._scale = there, back, scale

    def forward(self, x: np.ndarray, y: np.ndarray) -> None:
        self._there(_maps(x), self._scale, False, _maps(y))

    def backward(self, inputs: list[np.ndarray], dy: np.ndarray, grads: list[Gradient]) -> None:
        (dx,) = grads
        self._back(_maps(dy), self._scale, dx.add, _maps(dx.array))


class _Warp(_Function):
    """``size``: height and width of the image that is warped."""

    needs = frozenset([(0, 1), (1, 0), (1, 1)])

    def __init__(self, shape: Sequence[int], size: Sequence[int]) -> None:
        super().__init__(shape)
        self._size = size

    def _taps(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions and weights [N,P,4] of the pixels around every point [N,P,2]."""
        shape = (*points.shape[:2], 4)
        index, weight = np.empty(shape, np.int32), np.empty(shape, np.float32)
        kernels.warp_taps(points, *self._size, index, weight)
        return index, weight

    def forward(self, x: np.ndarray, grid: np.ndarray, y: np.ndarray) -> None:
        kernels.warp_forward(flat(x), *self._taps(_points(grid)), flat(y))

    def backward(self, inputs: list[np.ndarray], dy: np.ndarray, grads: list[Gradient | None]) -> None:
        (x, grid), (dx, dgrid), dy = inputs, grads, flat(dy)
        index, weight = self._taps(_points(grid))
        if dx is not None:
            if not dx.add:
                dx.array[...] = 0
            kernels.warp_backward_x(dy, index, weight, flat(dx.array))
        if dgrid is not None:
            products = np.empty_like(weight)
            kernels.warp_products(flat(x), dy, index, products)
            kernels.warp_backward_grid(_points(grid), *self._size, products, dgrid.add, _points(dgrid.array))


def _points(grid: np.ndarray) -> np.ndarray:
    """[N,h,w,2] -> [N,h*w,2]."""
    return grid.reshape(len(grid), -1, 2)


def _maps(array: np.ndarray) -> np.ndarray:
    """[N,C,H,W] -> [N*C,H,W]."""
    return array.reshape(-1, *array.shape[2:])
