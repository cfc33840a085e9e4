"""Convolutions as ONNX operators, rewritten where that is faster.

onnxruntime computes a convolution at its machine's peak, so only fewer operations help. Some convolutions have a form
with fewer that gives the same numbers up to rounding: REWRITES. What each saves was measured at vox-256's sizes on a
CPU with AVX2, in processor time of one thread.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mrfomm.onnx.graph import Graph
from mrfomm.onnx.trace import Call, Tensor


class Filter(NamedTuple):
    """The numbers of a convolution with symmetric padding, stride 1 and one group: weight [O,C,k,k], bias [O], pad."""

    weight: np.ndarray
    bias: np.ndarray
    pad: int

    @property
    def is_common(self) -> bool:
        """Whether it is 3x3 and keeps the size."""
        return (self.weight.shape[2:], self.pad) == ((3, 3), 1)


Rewrite = Callable[[Graph, Tensor, Filter], str | None]  # the name of the result, or None where it doesn't apply


def add_convolution(graph: Graph, call: Call, scale: np.ndarray | float = 1.0, shift: np.ndarray | float = 0.0) -> str:
    """Add a convolution, followed by ``scale`` and ``shift`` per output channel."""
    x, weight, *biases = call.inputs
    weights = weight.first.d * np.reshape(np.float64(scale), (-1, 1, 1, 1))
    bias = np.broadcast_to((biases[0].first.d if biases else 0.0) * scale + shift, len(weights))
    pads, strides, dilations, group = (call.arguments[name] for name in ("pad", "stride", "dilation", "group"))
    if strides == dilations == [1, 1] and pads[0] == pads[1] and group == 1:
        for rewrite in graph.rewrites:
            output = rewrite(graph, x, Filter(weights, bias, pads[0]))
            if output is not None:
                return output
    geometry = {"pads": tuple(pads) * 2, "strides": tuple(strides), "dilations": tuple(dilations), "group": group}
    return graph.add("Conv", x, graph.weight(weights), bias, **geometry)


# [parity][tap of the 2x2 kernel, tap of the 3x3 kernel]
PARITIES = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float64)


def fold_upsampling(graph: Graph, x: Tensor, kernel: Filter) -> str | None:
    """Nearest upsampling by 2 and a 3x3 convolution as four 2x2 convolutions, one for each parity of row and column.

    Two of the three rows (or columns) under the kernel are copies of one, so their weights add up: 2.25 times fewer
    products, 1.9 times faster. On the smallest maps, 16/9 times as many weights to read cost more than that.
    """
    upsampling = graph.producer(x, "Interpolate")
    if upsampling is None or upsampling.arguments["mode"] != "nearest" or scales(upsampling) != [2, 2]:
        return None
    (source,) = upsampling.inputs
    if not kernel.is_common or min(_sides(source)) < 8:
        return None
    parts = []
    for row, column in itertools.product((0, 1), repeat=2):
        weight = np.einsum("ia,jb,ocab->ocij", PARITIES[row], PARITIES[column], kernel.weight)
        pads = (1 - row, 1 - column, row, column)
        parts.append(graph.add("Conv", source, graph.weight(weight), kernel.bias, pads=pads))
    return graph.add("DepthToSpace", graph.add("Concat", *parts, axis=1), blocksize=2, mode="DCR")


# The matrices of F(4, 3) with the points 0, 1, -1, 2, -2 and infinity.
WINOGRAD_INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float64,
)
WINOGRAD_WEIGHT = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
WINOGRAD_OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float)


def convolve_tiles(graph: Graph, x: Tensor, kernel: Filter) -> str | None:
    """A 3x3 convolution by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308).

    Each 4x4 tile of the result takes 36 products per pair of channels instead of 144; with many channels, where the
    transforms before and after weigh little, 1.9 times faster. Relative rounding errors grow from 1e-6 to 1e-5.
    """
    outputs, inputs = kernel.weight.shape[:2]
    height, width = _sides(x)
    h, w = height // 4, width // 4
    if not kernel.is_common or min(outputs, inputs) < 128 or min(h, w) < 8 or (4 * h, 4 * w) != (height, width):
        return None

    def reshape(value: str | Tensor, *lengths: int) -> str:
        return graph.add("Reshape", value, list(lengths))

    weight = np.einsum("ia,jb,ocab->ijoc", WINOGRAD_WEIGHT, WINOGRAD_WEIGHT, kernel.weight)
    result = np.einsum("ia,jb->ijab", WINOGRAD_OUTPUT, WINOGRAD_OUTPUT)
    rows, columns = WINOGRAD_INPUT.reshape(6, 1, 6, 1), WINOGRAD_INPUT.reshape(6, 1, 1, 6)
    tiles = graph.add("Conv", reshape(x, -1, 1, height, width), rows, strides=(4, 1), pads=(1, 0, 1, 0))
    tiles = graph.add("Conv", reshape(tiles, -1, 1, h, width), columns, strides=(1, 4), pads=(0, 1, 0, 1))
    tiles = graph.add("Transpose", reshape(tiles, -1, inputs, 36, h * w), perm=(0, 2, 1, 3))  # [N,36,C,h*w]
    products = graph.add("MatMul", graph.weight(weight.reshape(36, outputs, inputs)), tiles)  # [N,36,O,h*w]
    tiles = graph.add("MatMul", result.reshape(16, 36), reshape(products, -1, 36, outputs * h * w))
    tiles = graph.add("DepthToSpace", reshape(tiles, -1, 16 * outputs, h, w), blocksize=4, mode="DCR")  # [N,O,H,W]
    return graph.add("Add", tiles, kernel.bias.reshape(-1, 1, 1))


def split_columns(graph: Graph, x: Tensor, kernel: Filter) -> str | None:
    """A convolution with few output channels O as one with k O channels, those of each kernel column, and their sum.

    onnxruntime computes output channels in blocks of 8 or 16. With 3 of them (7x7 kernel), this is 4.5 times faster.
    """
    outputs, inputs, height, width = kernel.weight.shape
    if outputs > 12 or width == 1:
        return None
    columns = kernel.weight.transpose(3, 0, 1, 2).reshape(width * outputs, inputs, height, 1)
    bias = np.concatenate([kernel.bias, np.zeros((width - 1) * outputs)])
    wide = graph.add("Conv", x, graph.weight(columns), bias, pads=(kernel.pad,) * 4)
    length = _sides(x)[1] + 2 * kernel.pad - width + 1
    bounds = [([i * outputs, i], [(i + 1) * outputs, i + length]) for i in range(width)]
    return graph.add("Sum", *(graph.add("Slice", wide, *bound, [1, 3]) for bound in bounds))


REWRITES: tuple[Rewrite, ...] = (fold_upsampling, convolve_tiles, split_columns)


def scales(interpolation: Call) -> list[float]:
    """By how much an Interpolate enlarges [N,C,H,W] along H and W."""
    before, after = _sides(interpolation.inputs[0]), _sides(interpolation.output)
    return [big / small for big, small in zip(after, before)]


def _sides(tensor: Tensor) -> list[int]:
    """Height and width of [N,C,H,W]."""
    return [axis.factor for axis in tensor.shape[2:]]
