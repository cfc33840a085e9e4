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
from typing import NamedTuple, TypedDict

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.initializer import BaseInitializer, ConstantInitializer, UniformInitializer
from nnabla.parameter import get_parameter_or_create

from mrfomm.networks import cpu

BATCH_NORM_EPS = 1e-5
BATCH_NORM_DECAY = 0.9  # nnabla's sense: running = 0.9 * running + 0.1 * batch


class Operators(NamedTuple):
    """One implementation of each operator.

    convolution(x, weight, bias, pad, stride): x [N,C,H,W], weight [O,C,kh,kw], bias [O] or None -> [N,O,H',W'].
    batch_normalization(x, beta, gamma, mean, var, batch_stat, relu): statistics [1,C,1,1], mean and var updated in
        place when batch_stat is true; a ReLU follows if ``relu`` -> like x.
    warp(x, grid): x [N,C,H,W] sampled bilinearly at grid [N,h,w,2] ((x, y) in [-1,1], corners on pixel centres, zeros
        outside) -> [N,C,h,w].
    multiply(x, weight): x [...,C,H,W] times weight [...,1 or C,H,W] -> like x.
    halve(x): the average of every 2x2 pixels, x [N,C,H,W] -> [N,C,H//2,W//2].
    double(x): every pixel as 2x2 of the same, x [N,C,H,W] -> [N,C,2H,2W].
    """

    convolution: Callable[[nn.Variable, nn.Variable, nn.Variable | None, int, int], nn.Variable]
    batch_normalization: Callable[
        [nn.Variable, nn.Variable, nn.Variable, nn.Variable, nn.Variable, bool, bool], nn.Variable
    ]
    warp: Callable[[nn.Variable, nn.Variable], nn.Variable]
    multiply: Callable[[nn.Variable, nn.Variable], nn.Variable]
    halve: Callable[[nn.Variable], nn.Variable]
    double: Callable[[nn.Variable], nn.Variable]


class FilterOptions(TypedDict, total=False):
    """Options of one of the :func:`convolutions`, as of :func:`convolution`."""

    zero: bool
    bias: np.ndarray


def _convolution(x: nn.Variable, weight: nn.Variable, bias: nn.Variable | None, pad: int, stride: int) -> nn.Variable:
    return F.convolution(x, weight, bias, pad=(pad, pad), stride=(stride, stride))


def _batch_normalization(
    x: nn.Variable,
    beta: nn.Variable,
    gamma: nn.Variable,
    mean: nn.Variable,
    var: nn.Variable,
    batch_stat: bool,
    relu: bool,
) -> nn.Variable:
    options = {"decay_rate": BATCH_NORM_DECAY, "eps": BATCH_NORM_EPS, "batch_stat": batch_stat}
    y = F.batch_normalization(x, beta, gamma, mean, var, axes=[1], **options)
    return F.relu(y) if relu else y


def _warp(x: nn.Variable, grid: nn.Variable) -> nn.Variable:
    return F.warp_by_grid(x, grid, mode="linear", padding_mode="zero", align_corners=True)


def _multiply(x: nn.Variable, weight: nn.Variable) -> nn.Variable:
    return x * weight


def _halve(x: nn.Variable) -> nn.Variable:
    return F.average_pooling(x, kernel=(2, 2))


def _double(x: nn.Variable) -> nn.Variable:
    return F.interpolate(x, scale=(2, 2), mode="nearest")


NNABLA = Operators(_convolution, _batch_normalization, _warp, _multiply, _halve, _double)
SWITCH = "MRFOMM_CPU_OPERATORS"  # environment variable; "0" leaves everything to nnabla

_current = contextvars.ContextVar("operators", default=NNABLA)
_with_values = contextvars.ContextVar("with_values", default=True)


@contextlib.contextmanager
def implementation(operators: Operators) -> Iterator[None]:
    """Graphs built inside this context use ``operators`` (an :class:`Operators`)."""
    token = _current.set(operators)
    try:
        yield
    finally:
        _current.reset(token)


def fastest(context: nn.Context) -> Operators:
    """The fastest Operators for an nnabla context.

    On the CPU these are oneDNN's and numba's (extra ``cpu``), where they are installed and the environment variable
    MRFOMM_CPU_OPERATORS isn't 0; elsewhere nnabla's own.
    """
    on_cpu = all(backend.startswith("cpu") for backend in context.backend)
    if not on_cpu or os.environ.get(SWITCH) == "0" or not cpu.available():
        return NNABLA
    from mrfomm.networks.cpu import functions

    def batch_normalization(
        x: nn.Variable,
        beta: nn.Variable,
        gamma: nn.Variable,
        mean: nn.Variable,
        var: nn.Variable,
        batch_stat: bool,
        relu: bool,
    ) -> nn.Variable:
        return functions.batch_norm_relu(x, gamma, beta, mean, var, batch_stat, BATCH_NORM_DECAY, BATCH_NORM_EPS, relu)

    f = functions
    return Operators(f.convolution, batch_normalization, f.warp, f.multiply, f.halve, f.double)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Context manager in which new parameters get a shape and no values: for weights that are read from a file.

    They take no memory before they are filled, so that shapes can be compared first.
    """
    token = _with_values.set(False)
    try:
        yield
    finally:
        _with_values.reset(token)


def parameter(name: str, shape: tuple[int, ...], start: BaseInitializer | np.ndarray, **options: bool) -> nn.Variable:
    """nnabla's ``get_parameter_or_create`` with the initializer ``start``."""
    return get_parameter_or_create(name, shape, start if _with_values.get() else None, **options)


def multiply(x: nn.Variable, weight: nn.Variable) -> nn.Variable:
    """x [...,C,H,W] times weight [...,1,H,W] or like x -> like x."""
    return _current.get().multiply(x, weight)


def halve(x: nn.Variable) -> nn.Variable:
    """Average every 2x2 pixels: [N,C,H,W] -> [N,C,H//2,W//2]."""
    return _current.get().halve(x)


def double(x: nn.Variable) -> nn.Variable:
    """Repeat every pixel as 2x2 (nearest upsampling): [N,C,H,W] -> [N,C,2H,2W]."""
    return _current.get().double(x)


def warp(x: nn.Variable, grid: nn.Variable) -> nn.Variable:
    """Sample x [N,C,H,W] at grid [N,h,w,2], (x, y) in [-1,1] with corners on pixel centres -> [N,C,h,w]."""
    return _current.get().warp(x, grid)


def raw_convolution(
    x: nn.Variable, weight: nn.Variable, bias: nn.Variable | None, pad: int = 0, stride: int = 1
) -> nn.Variable:
    """Convolution of x [N,C,H,W] with given Variables: weight [O,C,k,k], bias [O] or None -> [N,O,H',W']."""
    return _current.get().convolution(x, weight, bias, pad, stride)


def convolution(
    x: nn.Variable,
    channels: int,
    kernel: int,
    pad: int = 0,
    zero: bool = False,
    bias: np.ndarray | None = None,
    fixed: bool = False,
    transform: Callable[[nn.Variable], nn.Variable] | None = None,
) -> nn.Variable:
    """Convolution with its own parameters ``conv/W`` [channels,C,kernel,kernel] and ``conv/b`` [channels].

    Args:
        x: [N,C,H,W].
        channels: output channels.
        kernel, pad: square kernel size and symmetric zero padding, pixels.
        zero: weights start at zero (neutral layers) instead of PyTorch's default U(-1/sqrt(fan_in), 1/sqrt(fan_in)),
            which FOMM was trained from.
        bias: initial value of the bias, [channels]; by default as the weights.
        fixed: no gradient flows to the parameters in this graph.
        transform: function of the weight Variable applied before use (spectral normalisation).

    Returns:
        [N,channels,H',W'].
    """
    weight, offset = _filter(x.shape[1], channels, kernel, zero, bias, fixed)
    if transform is not None:
        with nn.parameter_scope("conv"):
            weight = transform(weight)
    return raw_convolution(x, weight, offset, pad)


def convolutions(
    x: nn.Variable, layers: Sequence[tuple[str, int, FilterOptions]], kernel: int, pad: int = 0
) -> list[nn.Variable]:
    """Several convolutions of the same ``x``, computed as one, which is faster.

    Args:
        x: [N,C,H,W].
        layers: (scope, channels, options) of each; options are ``zero`` and ``bias`` of :func:`convolution`.
        kernel, pad: as of :func:`convolution`.

    Returns:
        list of [N,channels,H',W'].
    """
    filters = []
    for scope, channels, options in layers:
        with nn.parameter_scope(scope):
            filters.append(_filter(x.shape[1], channels, kernel, **options))
    weight, offset = (F.concatenate(*parts, axis=0) for parts in zip(*filters))
    y = raw_convolution(x, weight, offset, pad)
    ends = np.cumsum([channels for _, channels, _ in layers])
    return [y[:, end - channels : end] for end, (_, channels, _) in zip(ends, layers)]


def _filter(
    depth: int, channels: int, kernel: int, zero: bool = False, bias: np.ndarray | None = None, fixed: bool = False
) -> tuple[nn.Variable, nn.Variable]:
    """The parameters ``conv/W`` [channels,depth,kernel,kernel] and ``conv/b`` [channels], see :func:`convolution`."""
    limit = 0.0 if zero else 1.0 / np.sqrt(depth * kernel * kernel)
    start = UniformInitializer((-limit, limit)) if limit else ConstantInitializer(0)
    with nn.parameter_scope("conv"):
        shape = (channels, depth, kernel, kernel)
        weight = parameter("W", shape, start, as_need_grad=not fixed)
        offset = parameter("b", (channels,), start if bias is None else bias, as_need_grad=not fixed)
    return weight, offset


def batch_normalization(x: nn.Variable, batch_stat: bool, relu: bool = False) -> nn.Variable:
    """Batch normalisation with parameters ``bn/{beta,gamma,mean,var}`` [1,C,1,1] (eps 1e-5, running decay 0.9).

    Args:
        x: [N,C,H,W].
        batch_stat: normalise by the batch and update the running statistics (training), or use them (inference).
        relu: apply a ReLU to the result.
    """
    parameters = (*_affine("bn", x.shape[1]), *_statistics(x.shape[1]))
    return _current.get().batch_normalization(x, *parameters, batch_stat, relu)


def instance_normalization(x: nn.Variable, fixed: bool = False) -> nn.Variable:
    """Instance normalisation with parameters ``in/{beta,gamma}`` [1,C,1,1] (eps 1e-5): x [N,C,H,W] -> like x."""
    batch, channels, height, width = x.shape
    folded = (1, batch * channels, height, width)
    beta, gamma = (
        F.reshape(F.broadcast(each, (batch, channels, 1, 1)), (1, -1, 1, 1)) for each in _affine("in", channels, fixed)
    )
    # Batch normalisation of each picture's channels apart: nnabla's own function dies on Hopper, see networks/sums.py.
    y = F.batch_normalization(F.reshape(x, folded), beta, gamma, None, None, eps=BATCH_NORM_EPS)
    return F.reshape(y, x.shape)


def _affine(scope: str, channels: int, fixed: bool = False) -> tuple[nn.Variable, nn.Variable]:
    shape = (1, channels, 1, 1)
    with nn.parameter_scope(scope):
        beta = parameter("beta", shape, ConstantInitializer(0), as_need_grad=not fixed)
        gamma = parameter("gamma", shape, ConstantInitializer(1), as_need_grad=not fixed)
    return beta, gamma


def _statistics(channels: int) -> tuple[nn.Variable, nn.Variable]:
    shape = (1, channels, 1, 1)
    with nn.parameter_scope("bn"):
        mean = parameter("mean", shape, ConstantInitializer(0), need_grad=False)
        var = parameter("var", shape, ConstantInitializer(1), need_grad=False)
    return mean, var
