"""From nnabla's functions to ONNX operators: one table, CONVERTERS. A function that is not in it fails by name."""

from collections.abc import Callable, Sequence
from typing import Any

import nnabla as nn
import numpy as np

from mrfomm.errors import AnyPath, UserError
from mrfomm.onnx.convolutions import REWRITES, Rewrite, add_convolution, scales
from mrfomm.onnx.graph import Graph
from mrfomm.onnx.trace import Call, Signature, Sizes, trace

Converter = Callable[[Graph, Call], str]


def export(
    build: Callable[[Sizes], Signature],
    name: str,
    path: AnyPath,
    rewrites: Sequence[Rewrite] = REWRITES,
    half: bool = False,
) -> None:
    """Write what ``build`` makes as an ONNX file, in one step.

    Args:
        rewrites: see REWRITES; () leaves convolutions as they are, for a GPU or for other runtimes than onnxruntime.
        half: store convolutions' weights in half precision: half the size, and pictures less than a grey level apart.

    Raises:
        UserError: the extra `onnx` is missing, a function has no ONNX form, or the file can't be written.
    """
    try:
        graph = convert(*trace(build), rewrites, half)
    except ValueError as error:  # of a plugged fusion that loops over K, for instance
        raise UserError(f"{name}: can't become an ONNX graph ({error}); use --backend nnabla") from error
    graph.write(name, path)


def convert(signature: Signature, calls: Sequence[Call], rewrites: Sequence[Rewrite] = (), half: bool = False) -> Graph:
    """A traced graph as an ONNX graph."""
    calls = _fold_constants(signature, calls)
    graph = Graph(signature, calls, rewrites, half)
    for call in calls:
        if call.kind not in CONVERTERS:
            raise _unknown(call.kind)
        _check(call, SUPPORTED.get(call.kind, {}))
        if graph.folded(call.output) is None:
            converter = CONVERTERS[call.kind]
            graph.bind(call.output, converter(graph, call))
    return graph


def _fold_constants(signature: Signature, calls: Sequence[Call]) -> list[Call]:
    """The calls that depend on an input. The others are computed now, and become leaves."""
    varying = {tensor.first for tensor in signature.inputs.values()}
    kept = []
    for call in calls:
        if any(tensor.first in varying for tensor in call.inputs):
            varying.add(call.output.first)
            kept.append(call)
        else:
            nn.forward_all([call.output.first, call.output.second])
    return kept


SUPPORTED: dict[str, dict[str, Any]] = {  # the arguments that the ONNX forms below stand for
    "AveragePooling": {"ignore_border": True, "channel_last": False, "pad": [0, 0]},
    "BatchMatmul": {"transpose_a": False, "transpose_b": False},
    "BatchNormalization": {"batch_stat": False, "no_scale": False, "no_bias": False, "axes": [1]},
    "Convolution": {"channel_last": False, "base_axis": 1},
    "Interpolate": {"channel_last": False, "half_pixel_for_nn": False},
    "WarpByGrid": {"mode": "linear", "padding_mode": "zero", "channel_last": False},
}


def _check(call: Call, supported: dict[str, Any]) -> None:
    for key, value in supported.items():
        if call.arguments[key] != value:
            raise _unknown(f"{call.kind} with {key}={call.arguments[key]}")


def _unknown(what: str) -> UserError:
    remedy = "add it to CONVERTERS in mrfomm/onnx/functions.py, or use --backend nnabla"
    return UserError(f"no ONNX form is known for nnabla's {what}; {remedy}")


def _as(op: str, **attributes: str) -> Converter:
    """The operator ``op`` on the same inputs; attributes: names of the function's arguments, by ONNX's names."""

    def converter(graph: Graph, call: Call) -> str:
        values = {name: call.arguments[theirs] for name, theirs in attributes.items()}
        plain = {name: tuple(value) if isinstance(value, list) else int(value) for name, value in values.items()}
        return graph.add(op, *call.inputs, **plain)

    return converter


def _with_scalar(op: str) -> Converter:
    return lambda graph, call: graph.add(op, *call.inputs, np.array(call.arguments["val"], np.float32))


def _with_shape(op: str) -> Converter:
    return lambda graph, call: graph.add(op, *call.inputs, graph.shape(call.output.shape))


def _affine(graph: Graph, call: Call) -> str:
    x, weight, *bias = call.inputs
    if len(x.shape) != 2 or len(weight.shape) != 2:
        raise _unknown("Affine of other than matrices")
    product = graph.add("MatMul", x, weight)
    return graph.add("Add", product, *bias) if bias else product


def _batch_normalization(graph: Graph, call: Call) -> str:
    """Batch norm with running statistics. After a convolution, it becomes part of that one's weights."""
    x, *parameters = call.inputs
    beta, gamma, mean, var = (tensor.first.d.ravel() for tensor in parameters)
    convolution = graph.folded(x)
    if convolution is None:
        return graph.add("BatchNormalization", x, gamma, beta, mean, var, epsilon=call.arguments["eps"])
    scale = gamma / np.sqrt(np.float64(var) + call.arguments["eps"])
    return add_convolution(graph, convolution, scale, beta - mean * scale)


def _interpolate(graph: Graph, call: Call) -> str:
    (x,), mode = call.inputs, call.arguments["mode"]
    nearest, aligned = mode == "nearest", call.arguments["align_corners"]
    _check(call, {"align_corners": False, "half_pixel": False} if nearest else {"half_pixel": not aligned})
    if len(x.shape) != 4:
        raise _unknown("Interpolate of other than [N,C,H,W]")
    where = "asymmetric" if nearest else "align_corners" if aligned else "half_pixel"
    rules = {"coordinate_transformation_mode": where, "nearest_mode": "floor"}
    return graph.add("Resize", x, None, [1.0, 1.0, *scales(call)], mode=mode, **rules)


def _sum(graph: Graph, call: Call) -> str:
    arguments = call.arguments
    return graph.add("ReduceSum", *call.inputs, list(arguments["axes"]), keepdims=int(arguments["keep_dims"]))


def _slice(graph: Graph, call: Call) -> str:
    """Only the axes of which a part is taken appear in ONNX; of free axes, all is taken."""
    arguments, (x,) = call.arguments, call.inputs
    bounds = enumerate(zip(arguments["start"], arguments["stop"], arguments["step"], x.first.shape))
    taken = [(axis, *bound) for axis, bound in bounds if bound != (0, bound[3], 1, bound[3])]
    for axis, start, stop, step, length in taken:
        if x.shape[axis].is_free or step < 1 or not 0 <= start < stop <= length:
            raise _unknown(f"Slice from {start} to {stop} by {step} of axis {axis}, length {length}")
    axes, starts, stops, steps, _ = np.reshape(np.array(taken, np.int64), (-1, 5)).T
    return graph.add("Slice", x, starts, stops, axes, steps)


def _warp_by_grid(graph: Graph, call: Call) -> str:
    align = int(call.arguments["align_corners"])
    return graph.add("GridSample", *call.inputs, mode="bilinear", padding_mode="zeros", align_corners=align)


CONVERTERS: dict[str, Converter] = {
    "Add2": _as("Add"),
    "AddScalar": _with_scalar("Add"),
    "Affine": _affine,
    "AveragePooling": _as("AveragePool", kernel_shape="kernel", strides="stride"),
    "BatchMatmul": _as("MatMul"),
    "BatchNormalization": _batch_normalization,
    "Broadcast": _with_shape("Expand"),
    "Concatenate": _as("Concat", axis="axis"),
    "Convolution": add_convolution,
    "Div2": _as("Div"),
    "Exp": _as("Exp"),
    "Interpolate": _interpolate,
    "Mean": _as("ReduceMean", axes="axes", keepdims="keep_dims"),
    "MinimumScalar": _with_scalar("Min"),
    "Mul2": _as("Mul"),
    "MulScalar": _with_scalar("Mul"),
    "PowScalar": _with_scalar("Pow"),
    "ReLU": _as("Relu"),
    "Reshape": _with_shape("Reshape"),
    "Sigmoid": _as("Sigmoid"),
    "Slice": _slice,
    "Softmax": _as("Softmax", axis="axis"),
    "Sub2": _as("Sub"),
    "Sum": _sum,
    "Transpose": _as("Transpose", perm="axes"),
    "WarpByGrid": _warp_by_grid,
}
