"""The operators that exist in more than one implementation, and the parametric layers on top of them.

Networks call :func:`convolution`, :func:`batch_normalization`, :func:`warp` and :func:`multiply` and never ask what
runs beneath. Which implementation a graph is built with is decided around the building of it::

    with ops.implementation(ops.fastest(context)):
        prediction = generator(...)
"""

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla import Variable
from nnabla.initializer import BaseInitializer, ConstantInitializer, UniformInitializer
from nnabla.parameter import get_parameter_or_create

from mrfomm.networks import cpu
from mrfomm.networks.cpu.batch_norm import BATCH_NORM_DECAY, BATCH_NORM_EPS

SWITCH = "MRFOMM_CPU_OPERATORS"  # environment variable; "0" leaves everything to nnabla


class Operators(NamedTuple):
    """One implementation of each operator; what is not said here stands at the functions of these names below.

    convolution(x, weight, bias, pad, stride): as ``raw_convolution``.
    batch_normalization(x, beta, gamma, mean, var, batch_stat, relu): parameters [1,C,1,1], of which mean and var are
        updated in place when ``batch_stat`` is true.
    """

    convolution: Callable[[Variable, Variable, Variable | None, int, int], Variable]
    batch_normalization: Callable[[Variable, Variable, Variable, Variable, Variable, bool, bool], Variable]
    warp: Callable[[Variable, Variable], Variable]
    multiply: Callable[[Variable, Variable], Variable]
    halve: Callable[[Variable], Variable]
    double: Callable[[Variable], Variable]


def _convolution(x: Variable, weight: Variable, bias: Variable | None, pad: int, stride: int) -> Variable:
    return F.convolution(x, weight, bias, pad=(pad, pad), stride=(stride, stride))


def _batch_normalization(
    x: Variable, beta: Variable, gamma: Variable, mean: Variable, var: Variable, batch_stat: bool, relu: bool
) -> Variable:
    options = {"decay_rate": BATCH_NORM_DECAY, "eps": BATCH_NORM_EPS, "batch_stat": batch_stat}
    y = F.batch_normalization(x, beta, gamma, mean, var, axes=[1], **options)
    return F.relu(y) if relu else y


def _warp(x: Variable, grid: Variable) -> Variable:
    return F.warp_by_grid(x, grid, mode="linear", padding_mode="zero", align_corners=True)


def _multiply(x: Variable, weight: Variable) -> Variable:
    return x * weight


def _halve(x: Variable) -> Variable:
    return F.average_pooling(x, kernel=(2, 2))


def _double(x: Variable) -> Variable:
    return F.interpolate(x, scale=(2, 2), mode="nearest")


NNABLA = Operators(_convolution, _batch_normalization, _warp, _multiply, _halve, _double)

_current = contextvars.ContextVar("operators", default=NNABLA)
_with_values = contextvars.ContextVar("with_values", default=True)


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def implementation(operators: Operators) -> contextlib.AbstractContextManager[None]:
    """Context manager: graphs built inside use these operators."""
    return _set(_current, operators)


def without_values() -> contextlib.AbstractContextManager[None]:
    """Context manager in which new parameters get a shape and no values: for weights that are read from a file.

    They take no memory before they are filled, so that shapes can be compared first.
    """
    return _set(_with_values, False)


def fastest(context: nn.Context) -> Operators:
    """The fastest Operators for an nnabla context.

    On the CPU these are oneDNN's and numba's (extra ``cpu``), where they are installed and the environment variable
    MRFOMM_CPU_OPERATORS isn't 0; elsewhere nnabla's own.
    """
    on_cpu = all(backend.startswith("cpu") for backend in context.backend)
    if not on_cpu or os.environ.get(SWITCH) == "0" or not cpu.available():
        return NNABLA
    from mrfomm.networks.cpu import functions as f

    return Operators(f.convolution, f.batch_norm_relu, f.warp, f.multiply, f.halve, f.double)


def multiply(x: Variable, weight: Variable) -> Variable:
    """x [...,C,H,W] times weight [...,1,H,W] or like x -> like x."""
    return _current.get().multiply(x, weight)


def halve(x: Variable) -> Variable:
    """Average every 2x2 pixels: [N,C,H,W] -> [N,C,H//2,W//2]."""
    return _current.get().halve(x)


def double(x: Variable) -> Variable:
    """Repeat every pixel as 2x2 (nearest upsampling): [N,C,H,W] -> [N,C,2H,2W]."""
    return _current.get().double(x)


def warp(x: Variable, grid: Variable) -> Variable:
    """Sample x [N,C,H,W] bilinearly at grid [N,h,w,2] -> [N,C,h,w].

    The grid is (x, y) in [-1,1] with corners on pixel centres; outside of x are zeros.
    """
    return _current.get().warp(x, grid)


def raw_convolution(x: Variable, weight: Variable, bias: Variable | None, pad: int = 0, stride: int = 1) -> Variable:
    """Convolution of x [N,C,H,W] with given Variables: weight [O,C,k,k], bias [O] or None -> [N,O,H',W']."""
    return _current.get().convolution(x, weight, bias, pad, stride)


def convolution(
    x: Variable,
    channels: int,
    kernel: int,
    pad: int = 0,
    zero: bool = False,
    fixed: bool = False,
    transform: Callable[[Variable], Variable] | None = None,
) -> Variable:
    """Convolution of x [N,C,H,W] with parameters of its own, see :func:`filters` -> [N,channels,H',W'].

    ``transform`` is a function of the weights, applied before use (spectral normalisation).
    """
    weight, bias = filters(x.shape[1], channels, kernel, zero, fixed=fixed)
    if transform is not None:
        with nn.parameter_scope("conv"):
            weight = transform(weight)
    return raw_convolution(x, weight, bias, pad)


def convolutions(x: Variable, several: Sequence[tuple[Variable, Variable]], pad: int = 0) -> list[Variable]:
    """Convolutions of the same x [N,C,H,W] with several :func:`filters`, computed as one, which is faster.

    The results are [N,channels,H',W'].
    """
    weight, bias = (F.concatenate(*parts, axis=0) for parts in zip(*several))
    y = raw_convolution(x, weight, bias, pad)
    widths = [bias.size for _, bias in several]
    return [y[:, end - width : end] for end, width in zip(np.cumsum(widths), widths)]


def filters(
    depth: int, channels: int, kernel: int, zero: bool = False, bias: np.ndarray | None = None, fixed: bool = False
) -> tuple[Variable, Variable]:
    """The parameters ``conv/W`` [channels,depth,kernel,kernel] and ``conv/b`` [channels].

    Args:
        zero: weights start at zero (neutral layers) instead of PyTorch's default U(-1/sqrt(fan_in), 1/sqrt(fan_in)),
            which FOMM was trained from.
        bias: initial value of the bias; by default as the weights.
        fixed: no gradient flows to the parameters in this graph.
    """
    limit = 1.0 / np.sqrt(depth * kernel * kernel)
    start = ConstantInitializer(0) if zero else UniformInitializer((-limit, limit))
    with nn.parameter_scope("conv"):
        weight = parameter("W", (channels, depth, kernel, kernel), start, as_need_grad=not fixed)
        return weight, parameter("b", (channels,), start if bias is None else bias, as_need_grad=not fixed)


def batch_normalization(x: Variable, batch_stat: bool, relu: bool = False) -> Variable:
    """Batch normalisation with parameters ``bn/{beta,gamma,mean,var}`` [1,C,1,1] (eps 1e-5, running decay 0.9).

    ``batch_stat``: normalise x [N,C,H,W] by the batch and update the running statistics (training), or use them.
    ``relu``: a ReLU follows.
    """
    with nn.parameter_scope("bn"):
        affine = _pair("beta", "gamma", x.shape[1])
        statistics = _pair("mean", "var", x.shape[1], need_grad=False)
    return _current.get().batch_normalization(x, *affine, *statistics, batch_stat, relu)


def instance_normalization(x: Variable, fixed: bool = False) -> Variable:
    """Instance normalisation with parameters ``in/{beta,gamma}`` [1,C,1,1] (eps 1e-5): x [N,C,H,W] -> like x."""
    batch, channels, height, width = x.shape
    with nn.parameter_scope("in"):
        pair = _pair("beta", "gamma", channels, as_need_grad=not fixed)
    beta, gamma = (F.reshape(F.broadcast(each, (batch, channels, 1, 1)), (1, -1, 1, 1)) for each in pair)
    # Batch normalisation of each picture's channels apart: nnabla's own function dies on Hopper, see networks/sums.py.
    folded = F.reshape(x, (1, batch * channels, height, width))
    y = F.batch_normalization(folded, beta, gamma, None, None, eps=BATCH_NORM_EPS)
    return F.reshape(y, x.shape)


def _pair(zero: str, one: str, channels: int, **options: bool) -> tuple[Variable, Variable]:
    """Two parameters [1,C,1,1] by name, which start at 0 and at 1."""
    shape = (1, channels, 1, 1)
    first = parameter(zero, shape, ConstantInitializer(0), **options)
    return first, parameter(one, shape, ConstantInitializer(1), **options)


def parameter(name: str, shape: tuple[int, ...], start: BaseInitializer | np.ndarray, **options: bool) -> Variable:
    """nnabla's ``get_parameter_or_create`` with the initializer ``start``."""
    return get_parameter_or_create(name, shape, start if _with_values.get() else None, **options)
