"""Export to ONNX: `python -m mrfomm.export weights/vox -o onnx/vox --check`.

Animation is three graphs (B driving frames, K references, n keypoints, image size S; B and K are free):

  reference.onnx   image [K,3,S,S] -> reference_value, reference_jacobian, reference_image, reference_features
  keypoints.onnx   image [B,3,S,S] -> driving_value [B,n,2], driving_jacobian [B,n,2,2]
  frame.onnx       the outputs of both -> prediction [B,3,S,S]

Keypoints and frame are apart because relative motion changes the driving keypoints in between. With --breakdown,
breakdown.onnx is the frame with each reference's share: warped [B,K,3,S,S] and mask [B,K,1,S,S]. With --quantize int8,
frame-int8.onnx is the frame with 8-bit convolutions.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, NamedTuple, Tuple, Union

import nnabla as nn
import nnabla.functions as F
import numpy as np

import mrfomm
from mrfomm import video
from mrfomm.animation import Animator, contributions, images_to_array, load_model
from mrfomm.config import FUSION_MODES
from mrfomm.errors import UserError, run_command
from mrfomm.model import References, encode_references, keypoints_of, repeat_references, synthesise
from mrfomm.networks import ops
from mrfomm.networks.keypoints import Keypoints
from mrfomm.onnx_backend import OnnxAnimator, OnnxGraphs, quantize

OPSET = 16  # the first with GridSample
IR_VERSION = 8
TOLERANCE = 1e-4  # of --check
CALIBRATION_FRAMES = 32
CACHED_MODELS = 4  # the cache keeps those that were used last


# --- nnabla graphs whose batch size and number of references are free ------------------------------------------------
# nnabla's graphs have fixed shapes. Each is built twice, for different B and K. An axis that differs between the two is
# a multiple of B, of K or of BK.


class Sizes(NamedTuple):
    """batch: B, driving frames; references: K."""

    batch: int
    references: int


SIZES = (Sizes(2, 3), Sizes(5, 7))


class Axis(NamedTuple):
    """The length of an axis: factor * B^batch * K^references, with exponents 0 or 1."""

    factor: int
    batch: int = 0
    references: int = 0

    @property
    def is_free(self):
        """Whether the length depends on B or K."""
        return bool(self.batch or self.references)

    @property
    def label(self):
        """How ONNX names the axis: its length, or text such as `B` or `3*K`."""
        names = [name for name, power in (("B", self.batch), ("K", self.references)) if power]
        if not names:
            return self.factor
        return "*".join(names if self.factor == 1 else [str(self.factor), *names])


class Tensor(NamedTuple):
    """One Variable of a graph, as built for the first and for the second of SIZES."""

    first: nn.Variable
    second: nn.Variable

    @property
    def shape(self):
        """A tuple of Axis."""
        return tuple(map(_fit_axis, self.first.shape, self.second.shape))


class Call(NamedTuple):
    """A function of a graph. kind: nnabla's name for it; arguments: as in the first build, shapes included."""

    kind: str
    arguments: Dict[str, Any]
    inputs: Tuple[Tensor, ...]
    output: Tensor


class Signature(NamedTuple):
    """Names of a graph's inputs and outputs -> Variables, or Tensors once it is traced."""

    inputs: Dict[str, Union[nn.Variable, Tensor]]
    outputs: Dict[str, Union[nn.Variable, Tensor]]


def _fit_axis(first, second):
    for batch, references in itertools.product((0, 1), repeat=2):
        lengths = [size.batch**batch * size.references**references for size in SIZES]
        factor, rest = divmod(first, lengths[0])
        if rest == 0 and factor * lengths[1] == second:
            return Axis(factor, batch, references)
    raise ValueError(f"an axis of {first} at {SIZES[0]} and {second} at {SIZES[1]} is no multiple of B, K or BK")


def trace(build):
    """Build a graph for both SIZES and read it.

    Args:
        build: Sizes -> Signature of Variables.

    Returns:
        (Signature of Tensors, list of Call in the order of computation).
    """
    with ops.implementation(ops.NNABLA):
        first, second = (build(sizes) for sizes in SIZES)
    signature = Signature(*({name: Tensor(a[name], b[name]) for name in a} for a, b in zip(first, second)))
    functions = _functions(first.outputs), _functions(second.outputs)
    kinds, others = ([function.info.type_name for function in each] for each in functions)
    if kinds != others:
        raise ValueError(f"the graph has other functions at {SIZES[0]} than at {SIZES[1]}")
    return signature, [_pair(*pair) for pair in zip(*functions)]


def _functions(outputs):
    """The functions behind Variables by name, each once, in the order of computation."""
    found = {}
    for output in outputs.values():
        output.visit(lambda function: found.setdefault(function.outputs[0], function))
    return list(found.values())


def _pair(first, second):
    return Call(
        first.info.type_name,
        dict(first.info.args),
        tuple(map(Tensor, first.inputs, second.inputs)),
        Tensor(first.outputs[0], second.outputs[0]),
    )


# --- ONNX graphs -----------------------------------------------------------------------------------------------------


class Node(NamedTuple):
    """One ONNX operator: inputs and output are names of values."""

    op: str
    inputs: Tuple[str, ...]
    output: str
    attributes: Tuple[Tuple[str, Any], ...]


class Graph:
    """An ONNX graph in the making.

    Args:
        signature, calls: of the traced graph.
        rewrites: of REWRITES, those to apply to convolutions.
    """

    def __init__(self, signature, calls, rewrites=()):
        self.rewrites = rewrites
        self._signature = signature
        self._producers = {call.output.first: call for call in calls}
        self._readers = {tensor.first: ["output"] for tensor in signature.outputs.values()}
        for call in calls:
            for tensor in call.inputs:
                self._readers.setdefault(tensor.first, []).append(call.kind)
        self._names = {tensor.first: name for name, tensor in signature.inputs.items()}
        self._nodes = {}  # Node without its output -> Node: what is computed once needn't be twice
        self._constants = {}  # digest -> (name, array)
        for call in calls:
            if call.kind not in CONVERTERS:
                raise _unknown(call.kind)
            if self.folded(call.output) is None:
                self._names[call.output.first] = CONVERTERS[call.kind](self, call)

    def add(self, op, *inputs, **attributes):
        """Add an operator and return the name of its output.

        Args:
            inputs: names, arrays, Tensors of the traced graph, or None for an optional input left out.
            attributes: of the operator; sequences as tuples.
        """
        node = Node(op, tuple(map(self._name, inputs)), "", tuple(sorted(attributes.items())))
        return self._nodes.setdefault(node, node._replace(output=f"{op}_{len(self._nodes)}")).output

    def shape(self, axes):
        """The name of an int64 vector with the lengths of axes."""
        if not any(axis.is_free for axis in axes):
            return self._name(np.int64([axis.factor for axis in axes]))
        return self.add("Concat", *map(self._length, axes), axis=0)

    def producer(self, tensor, kind):
        """The Call that computes ``tensor`` if it is of that kind, else None."""
        call = self._producers.get(tensor.first)
        return call if call is not None and call.kind == kind else None

    def folded(self, tensor):
        """The convolution that computes ``tensor`` if batch norm, and nothing else, reads it, else None."""
        alone = self._readers[tensor.first] == ["BatchNormalization"]
        return self.producer(tensor, "Convolution") if alone else None

    def finish(self):
        """(nodes that the outputs need, in order; constants that these need: name -> array)."""
        nodes = [Node("Identity", (self._name(tensor),), name, ()) for name, tensor in self._signature.outputs.items()]
        needed = {name for node in nodes for name in node.inputs}
        for node in reversed(list(self._nodes.values())):
            if node.output in needed:
                nodes.insert(0, node)
                needed.update(node.inputs)
        return nodes, {name: array for name, array in self._constants.values() if name in needed}

    def _name(self, value):
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        if isinstance(value, Tensor):
            if value.first not in self._names:
                self._names[value.first] = self._leaf(value)
            return self._names[value.first]
        array = np.asarray(value)
        array = np.ascontiguousarray(array, np.int64 if array.dtype == np.int64 else np.float32)
        key = (hashlib.sha256(array).digest(), array.shape, array.dtype.char)
        return self._constants.setdefault(key, (f"constant_{len(self._constants)}", array))[0]

    def _leaf(self, tensor):
        """A Variable that nothing computes. Along free axes it has to repeat itself; it may scale with 1/K."""
        first, second = tensor.first.d, tensor.second.d
        once = tuple(slice(0, 1) if axis.is_free else slice(None) for axis in tensor.shape)
        one, other = first[once], second[once]
        repeats = np.array_equal(first, np.broadcast_to(one, first.shape))
        if repeats and np.array_equal(one, other):
            entry = one
        elif repeats and np.allclose(one * SIZES[0].references, other * SIZES[1].references):
            count = self.add("Cast", self._length(Axis(1, references=1)), to=1)  # 1: float32
            entry = self.add("Div", one * SIZES[0].references, count)
        else:
            raise ValueError(f"a constant of shape {first.shape} depends on B and K in an unknown way")
        if first.shape == second.shape:
            return self._name(entry)
        return self.add("Expand", entry, self.shape(tensor.shape))

    def _length(self, axis):
        """The name of an int64 vector [1] with the length of an axis."""
        lengths = [self._size(Axis(1, batch=1))] if axis.batch else []
        lengths += [self._size(Axis(1, references=1))] if axis.references else []
        lengths += [] if axis.factor == 1 and lengths else [self._name(np.int64([axis.factor]))]
        product = lengths[0]
        for length in lengths[1:]:
            product = self.add("Mul", product, length)
        return product

    def _size(self, wanted):
        for name, tensor in self._signature.inputs.items():
            for i, axis in enumerate(tensor.shape):
                if axis == wanted:
                    return self.add("Shape", name, start=i, end=i + 1)
        raise ValueError(f"no input has an axis {wanted.label}")


# --- From nnabla's functions to ONNX operators -----------------------------------------------------------------------


def _unknown(what):
    return UserError(f"no ONNX form is known for nnabla's {what}; add it to CONVERTERS in mrfomm/export.py")


def _renamed(op):
    return lambda graph, call: graph.add(op, *call.inputs)


def _with_scalar(op):
    return lambda graph, call: graph.add(op, *call.inputs, np.float32(call.arguments["val"]))


def _only(call, **arguments):
    """Refuse a function with other arguments than those the ONNX form stands for."""
    for key, value in arguments.items():
        if call.arguments[key] != value:
            raise _unknown(f"{call.kind} with {key}={call.arguments[key]}")


def _affine(graph, call):
    x, weight, *bias = call.inputs
    if len(x.shape) != 2 or len(weight.shape) != 2:
        raise _unknown("Affine of other than matrices")
    product = graph.add("MatMul", x, weight)
    return graph.add("Add", product, *bias) if bias else product


def _average_pooling(graph, call):
    _only(call, ignore_border=True, channel_last=False, pad=[0, 0])
    arguments = call.arguments
    return graph.add(
        "AveragePool", *call.inputs, kernel_shape=tuple(arguments["kernel"]), strides=tuple(arguments["stride"])
    )


def _batch_matmul(graph, call):
    _only(call, transpose_a=False, transpose_b=False)
    return graph.add("MatMul", *call.inputs)


def _batch_normalization(graph, call):
    """Batch norm with running statistics. After a convolution, it becomes part of that one's weights."""
    _only(call, batch_stat=False, no_scale=False, no_bias=False, axes=[1])
    x, *parameters = call.inputs
    beta, gamma, mean, var = (tensor.first.d.ravel() for tensor in parameters)
    convolution = graph.folded(x)
    if convolution is None:
        return graph.add("BatchNormalization", x, gamma, beta, mean, var, epsilon=call.arguments["eps"])
    scale = gamma / np.sqrt(np.float64(var) + call.arguments["eps"])
    return _convolution(graph, convolution, scale, beta - mean * scale)


def _broadcast(graph, call):
    return graph.add("Expand", *call.inputs, graph.shape(call.output.shape))


def _concatenate(graph, call):
    return graph.add("Concat", *call.inputs, axis=call.arguments["axis"])


def _interpolate(graph, call):
    arguments, (x,) = call.arguments, call.inputs
    nearest = arguments["mode"] == "nearest"
    _only(call, channel_last=False, align_corners=False, half_pixel=not nearest, half_pixel_for_nn=False)
    if len(x.shape) != 4:
        raise _unknown("Interpolate of other than [N,C,H,W]")
    rules = {"coordinate_transformation_mode": "asymmetric" if nearest else "half_pixel", "nearest_mode": "floor"}
    return graph.add("Resize", x, None, np.float32([1, 1, *_scales(call)]), mode=arguments["mode"], **rules)


def _scales(call):
    """By how much an Interpolate enlarges [N,C,H,W] along H and W."""
    return [after.factor / before.factor for before, after in zip(call.inputs[0].shape[2:], call.output.shape[2:])]


def _reduce_mean(graph, call):
    arguments = call.arguments
    return graph.add("ReduceMean", *call.inputs, axes=tuple(arguments["axes"]), keepdims=int(arguments["keep_dims"]))


def _reduce_sum(graph, call):
    arguments = call.arguments
    return graph.add("ReduceSum", *call.inputs, np.int64(arguments["axes"]), keepdims=int(arguments["keep_dims"]))


def _reshape(graph, call):
    return graph.add("Reshape", *call.inputs, graph.shape(call.output.shape))


def _slice(graph, call):
    """Only the axes of which a part is taken appear in ONNX; of free axes, all is taken."""
    arguments, (x,) = call.arguments, call.inputs
    bounds = enumerate(zip(arguments["start"], arguments["stop"], arguments["step"], x.first.shape))
    taken = [(axis, *bound) for axis, bound in bounds if bound != (0, bound[3], 1, bound[3])]
    for axis, start, stop, step, length in taken:
        if x.shape[axis].is_free or step < 1 or not 0 <= start < stop <= length:
            raise _unknown(f"Slice from {start} to {stop} by {step} of axis {axis}, length {length}")
    axes, starts, stops, steps, _ = (np.int64([bound[i] for bound in taken]) for i in range(5))
    return graph.add("Slice", x, starts, stops, axes, steps)


def _softmax(graph, call):
    return graph.add("Softmax", *call.inputs, axis=call.arguments["axis"])


def _transpose(graph, call):
    return graph.add("Transpose", *call.inputs, perm=tuple(call.arguments["axes"]))


def _warp_by_grid(graph, call):
    _only(call, mode="linear", padding_mode="zero", channel_last=False)
    align = int(call.arguments["align_corners"])
    return graph.add("GridSample", *call.inputs, mode="bilinear", padding_mode="zeros", align_corners=align)


# --- Convolutions ----------------------------------------------------------------------------------------------------
# onnxruntime computes a convolution at its machine's peak, so only fewer operations help. Some convolutions have a form
# with fewer that gives the same numbers up to rounding: the rewrites below. What each saves was measured at vox-256's
# sizes on a CPU with AVX2, in processor time of one thread.


class Filter(NamedTuple):
    """The numbers of a convolution with symmetric padding, stride 1 and one group: weight [O,C,k,k], bias [O], pad."""

    weight: np.ndarray
    bias: np.ndarray
    pad: int


def _convolution(graph, call, scale=1.0, shift=0.0):
    """A convolution, followed by ``scale`` and ``shift`` per output channel."""
    _only(call, channel_last=False, base_axis=1)
    x, weight, *bias = call.inputs
    weight = weight.first.d * np.reshape(np.float64(scale), (-1, 1, 1, 1))
    bias = np.broadcast_to((bias[0].first.d if bias else 0.0) * scale + shift, len(weight))
    pads, strides, dilations, group = (call.arguments[name] for name in ("pad", "stride", "dilation", "group"))
    if strides == dilations == [1, 1] and pads[0] == pads[1] and group == 1:
        for rewrite in graph.rewrites:
            output = rewrite(graph, x, Filter(weight, bias, pads[0]))
            if output is not None:
                return output
    geometry = {"pads": tuple(pads) * 2, "strides": tuple(strides), "dilations": tuple(dilations), "group": group}
    return graph.add("Conv", x, weight, bias, **geometry)


# [parity][tap of the 2x2 kernel, tap of the 3x3 kernel]
PARITIES = np.float64([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])


def fold_upsampling(graph, x, kernel):
    """Nearest upsampling by 2 and a 3x3 convolution as four 2x2 convolutions, one for each parity of row and column.

    Two of the three rows (or columns) under the kernel are copies of one, so their weights add up: 2.25 times fewer
    products, 1.9 times faster. On the smallest maps, 16/9 times as many weights to read cost more than that.
    """
    upsampling = graph.producer(x, "Interpolate")
    if (
        upsampling is None
        or upsampling.arguments["mode"] != "nearest"
        or _scales(upsampling) != [2, 2]
        or (kernel.weight.shape[2:], kernel.pad) != ((3, 3), 1)
        or min(_sides(upsampling.inputs[0])) < 8
    ):
        return None
    parts = []
    for row, column in itertools.product((0, 1), repeat=2):
        weight = np.einsum("ia,jb,ocab->ocij", PARITIES[row], PARITIES[column], kernel.weight)
        pads = (1 - row, 1 - column, row, column)
        parts.append(graph.add("Conv", upsampling.inputs[0], weight, kernel.bias, pads=pads))
    return graph.add("DepthToSpace", graph.add("Concat", *parts, axis=1), blocksize=2, mode="DCR")


# The matrices of F(4, 3) with the points 0, 1, -1, 2, -2 and infinity.
WINOGRAD_INPUT = np.float64(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
WINOGRAD_WEIGHT = np.float64([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
WINOGRAD_OUTPUT = np.float64([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


def convolve_tiles(graph, x, kernel):
    """A 3x3 convolution by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308).

    Each 4x4 tile of the result takes 36 products per pair of channels instead of 144; with many channels, where the
    transforms before and after weigh little, 1.9 times faster. Relative rounding errors grow from 1e-6 to 1e-5.
    """
    outputs, inputs = kernel.weight.shape[:2]
    sides = _sides(x)
    if (
        (kernel.weight.shape[2:], kernel.pad) != ((3, 3), 1)
        or min(outputs, inputs) < 128
        or min(sides) < 32
        or any(side % 4 for side in sides)
    ):
        return None

    def reshape(value, *lengths):
        return graph.add("Reshape", value, np.int64(lengths))

    height, width = sides
    h, w = height // 4, width // 4
    weight = np.einsum("ia,jb,ocab->ijoc", WINOGRAD_WEIGHT, WINOGRAD_WEIGHT, kernel.weight)
    result = np.einsum("ia,jb->ijab", WINOGRAD_OUTPUT, WINOGRAD_OUTPUT)
    rows, columns = WINOGRAD_INPUT.reshape(6, 1, 6, 1), WINOGRAD_INPUT.reshape(6, 1, 1, 6)
    tiles = graph.add("Conv", reshape(x, -1, 1, height, width), rows, strides=(4, 1), pads=(1, 0, 1, 0))
    tiles = graph.add("Conv", reshape(tiles, -1, 1, h, width), columns, strides=(1, 4), pads=(0, 1, 0, 1))
    tiles = graph.add("Transpose", reshape(tiles, -1, inputs, 36, h * w), perm=(0, 2, 1, 3))  # [N,36,C,h*w]
    products = graph.add("MatMul", weight.reshape(36, outputs, inputs), tiles)  # [N,36,O,h*w]
    tiles = graph.add("MatMul", result.reshape(16, 36), reshape(products, -1, 36, outputs * h * w))
    tiles = graph.add("DepthToSpace", reshape(tiles, -1, 16 * outputs, h, w), blocksize=4, mode="DCR")  # [N,O,H,W]
    return graph.add("Add", tiles, kernel.bias.reshape(-1, 1, 1))


def split_columns(graph, x, kernel):
    """A convolution with few output channels O as one with k O channels, those of each kernel column, and their sum.

    onnxruntime computes output channels in blocks of 8 or 16. With 3 of them (7x7 kernel), this is 4.5 times faster.
    """
    outputs, inputs, height, width = kernel.weight.shape
    if outputs > 12 or width == 1:
        return None
    columns = kernel.weight.transpose(3, 0, 1, 2).reshape(width * outputs, inputs, height, 1)
    bias = np.concatenate([kernel.bias, np.zeros((width - 1) * outputs)])
    wide = graph.add("Conv", x, columns, bias, pads=(kernel.pad,) * 4)
    length = _sides(x)[1] + 2 * kernel.pad - width + 1
    bounds = [((i * outputs, i), ((i + 1) * outputs, i + length)) for i in range(width)]
    axes = np.int64([1, 3])
    return graph.add(
        "Sum", *(graph.add("Slice", wide, np.int64(start), np.int64(stop), axes) for start, stop in bounds)
    )


def _sides(tensor):
    """Height and width of [N,C,H,W]."""
    return [axis.factor for axis in tensor.shape[2:]]


REWRITES = (fold_upsampling, convolve_tiles, split_columns)
INT8_REWRITES = (fold_upsampling, split_columns)  # 8-bit numbers have no room for Winograd's sums

CONVERTERS = {
    "Add2": _renamed("Add"),
    "AddScalar": _with_scalar("Add"),
    "Affine": _affine,
    "AveragePooling": _average_pooling,
    "BatchMatmul": _batch_matmul,
    "BatchNormalization": _batch_normalization,
    "Broadcast": _broadcast,
    "Concatenate": _concatenate,
    "Convolution": _convolution,
    "Div2": _renamed("Div"),
    "Exp": _renamed("Exp"),
    "Interpolate": _interpolate,
    "Mean": _reduce_mean,
    "Mul2": _renamed("Mul"),
    "MulScalar": _with_scalar("Mul"),
    "PowScalar": _with_scalar("Pow"),
    "ReLU": _renamed("Relu"),
    "Reshape": _reshape,
    "Sigmoid": _renamed("Sigmoid"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Sub2": _renamed("Sub"),
    "Sum": _reduce_sum,
    "Transpose": _transpose,
    "WarpByGrid": _warp_by_grid,
}


# --- The graphs of animation -----------------------------------------------------------------------------------------


def reference_graph(config, sizes):
    """What is computed once for K references, see ``model.encode_references``."""
    image = nn.Variable((sizes.references, 3, config.image_size, config.image_size))
    references = encode_references(F.reshape(image, (1, *image.shape)), config)
    return Signature({"image": image}, _reference_names(references))


def keypoint_graph(config, sizes):
    """The driving frames' keypoints."""
    image = nn.Variable((sizes.batch, 3, config.image_size, config.image_size))
    return Signature({"image": image}, _driving_names(keypoints_of(image, config)))


def frame_graph(config, sizes):
    """Driving keypoints and references -> prediction."""
    inputs, synthesis = _synthesis(config, sizes)
    return Signature(inputs, {"prediction": synthesis.prediction})


def breakdown_graph(config, sizes):
    """Driving keypoints and references -> prediction, and each reference's share (see ``animation.Breakdown``)."""
    inputs, synthesis = _synthesis(config, sizes)
    warped, mask = contributions(synthesis, config)
    return Signature(inputs, {"prediction": synthesis.prediction, "warped": warped, "mask": mask})


def _synthesis(config, sizes):
    example = reference_graph(config, sizes).outputs
    references = {name: nn.Variable(variable.shape) for name, variable in example.items()}
    count = config.num_keypoints
    driving = Keypoints(nn.Variable((sizes.batch, count, 2)), nn.Variable((sizes.batch, count, 2, 2)))
    value, jacobian, image, features = references.values()
    repeated = repeat_references(References(image, Keypoints(value, jacobian), features), sizes.batch)
    return {**_driving_names(driving), **references}, synthesise(repeated, driving, config)


def _reference_names(references):
    image, (value, jacobian), features = references
    names = ("reference_value", "reference_jacobian", "reference_image", "reference_features")
    return dict(zip(names, (value, jacobian, image, features)))


def _driving_names(keypoints):
    return {"driving_value": keypoints.value, "driving_jacobian": keypoints.jacobian}


GRAPHS = {"reference": reference_graph, "keypoints": keypoint_graph, "frame": frame_graph, "breakdown": breakdown_graph}


def export_graph(name, model, path, rewrites=REWRITES):
    """Write one of GRAPHS of an ``animation.Model`` as an ONNX file, in one step.

    Args:
        rewrites: see REWRITES; () leaves convolutions as they are, for a GPU or for other runtimes than onnxruntime.

    Raises:
        UserError: the extra `onnx` is missing, a function has no ONNX form, or the file can't be written.
    """
    with model.tree.scope():
        signature, calls = trace(lambda sizes: GRAPHS[name](model.config, sizes))
    write_onnx(signature, Graph(signature, calls, rewrites), name, path)


def write_onnx(signature, graph, name, path):
    """Write a Graph as an ONNX file, aside and then renamed."""
    onnx = _import_onnx()
    nodes, constants = graph.finish()
    body = onnx.helper.make_graph(
        [onnx.helper.make_node(op, inputs, [output], output, **dict(rest)) for op, inputs, output, rest in nodes],
        name,
        *([_value_info(onnx, *item) for item in values.items()] for values in signature),
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    producer = {"producer_name": "mrfomm", "producer_version": mrfomm.__version__}
    proto = onnx.helper.make_model(body, opset_imports=[opset], ir_version=IR_VERSION, **producer)
    for key, array in constants.items():  # one by one: the helpers above would copy the weights twice more
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(proto.SerializeToString())
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise UserError(f"{path}: can't write there ({error}); make room or choose another folder") from error


def _value_info(onnx, name, tensor):
    labels = [axis.label for axis in tensor.shape]
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, labels)


def _import_onnx():
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise UserError(f"exporting needs the package onnx ({error}); pip install -e .[onnx]") from error
    return onnx


# --- Graphs for the onnx backend, kept for the next time -------------------------------------------------------------


def cached_graphs(model, breakdown=False):
    """The graphs of an ``animation.Model`` for OnnxAnimator, exported if the user's cache doesn't hold them.

    Args:
        breakdown: breakdown.onnx in place of frame.onnx.

    Returns:
        OnnxGraphs.

    Raises:
        UserError: the extra `onnx` is missing, or there is no room.
    """
    root = cache_root()
    folder = root / fingerprint(model)
    names = ("reference", "keypoints", "breakdown" if breakdown else "frame")
    missing = [name for name in names if not (folder / f"{name}.onnx").is_file()]
    if missing:
        print(f"preparing the model for onnxruntime; kept in {folder}", file=sys.stderr)
    for name in missing:
        export_graph(name, model, folder / f"{name}.onnx")
    os.utime(folder)
    for old in sorted(root.iterdir(), key=os.path.getmtime)[:-CACHED_MODELS]:
        shutil.rmtree(old, ignore_errors=True)  # another process may be at it
    return OnnxGraphs(folder)


def fingerprint(model):
    """A digest of what the graphs depend on: configuration (with the fusion mode), parameters, the code behind them."""
    package = Path(__file__).parent
    digest = hashlib.sha256(repr(model.config).encode())
    for name in ("export.py", "animation.py", "model.py"):
        digest.update((package / name).read_bytes())
    for path in sorted(package.glob("networks/*.py")):
        digest.update(path.read_bytes())
    for name, parameter in sorted(model.tree.all().items()):
        digest.update(name.encode())
        digest.update(parameter.d)
    return digest.hexdigest()


def cache_root():
    """The user's cache folder (below XDG_CACHE_HOME or ~/.cache), or one for temporary files where that can't be."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "mrfomm")
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        print(f"{root}: can't write there ({error}); using the folder for temporary files", file=sys.stderr)
        root = Path(tempfile.gettempdir(), f"mrfomm-{os.getuid()}")
        root.mkdir(mode=0o700, exist_ok=True)
        if root.stat().st_uid != os.getuid():
            raise UserError(f"{root}: belongs to somebody else; set XDG_CACHE_HOME to a folder of yours") from error
    return root


# --- The command -----------------------------------------------------------------------------------------------------


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        prog="python -m mrfomm.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("weights", metavar="CKPT", help="checkpoint or run folder")
    add("-o", "--output", metavar="DIR", required=True, help="folder for the .onnx files")
    add("--fusion", choices=FUSION_MODES, help="how references are fused (as the weights were trained)")
    add("--breakdown", action="store_true", help="write breakdown.onnx too")
    add("--plain", action="store_true", help="leave convolutions as they are: for a GPU, or other runtimes")
    add("--check", action="store_true", help="compare with nnabla on random input")
    add("--quantize", choices=["int8"], help="write the frame with 8-bit convolutions too")
    add("--calibration", metavar="CLIP", help="video or folder of frames to choose the 8-bit ranges from")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    if bool(args.quantize) != bool(args.calibration):
        raise UserError("--quantize needs --calibration CLIP, typical frames to choose the 8-bit ranges from")
    model = load_model(args.weights, args.fusion)
    folder = Path(args.output)
    names = ["reference", "keypoints", "frame"] + ["breakdown"] * args.breakdown
    for name in names:
        export_graph(name, model, folder / f"{name}.onnx", () if args.plain else REWRITES)
    print(folder)
    if args.check:
        report_errors(largest_errors(model, OnnxGraphs(folder), args.breakdown))
    if args.quantize:
        export_int8(model, folder, args.calibration, () if args.plain else INT8_REWRITES)
    return 0


def largest_errors(model, graphs, breakdown=False, sizes=SIZES[0]):
    """How far onnxruntime is from nnabla on random images.

    Returns:
        name of an output -> largest difference, as a share of the largest value where that is above 1.
    """
    rng, size = np.random.default_rng(0), model.config.image_size
    references, driving = (rng.random((count, 3, size, size), np.float32) for count in reversed(sizes))
    expected = Animator(model.config, model.tree, references, sizes.batch, breakdown)
    actual = OnnxAnimator(graphs, references, sizes.batch, breakdown)
    detected = expected.keypoints(driving)
    pairs = {
        "reference keypoints": (expected.reference_keypoints, actual.reference_keypoints),
        "driving keypoints": (detected, actual.keypoints(driving)),
    }
    if breakdown:
        (prediction, shares), (other, other_shares) = (each.render_breakdown(detected) for each in (expected, actual))
        pairs["breakdown"] = ([prediction, *shares], [other, *other_shares])
    actual = OnnxAnimator(graphs, references, sizes.batch)
    pairs["prediction"] = ([expected.render(detected)], [actual.render(detected)])
    return {name: max(map(_error, *arrays)) for name, arrays in pairs.items()}


def _error(expected, actual):
    return float(np.abs(expected - actual).max() / max(1.0, np.abs(expected).max()))


def report_errors(errors):
    """Print the largest errors; UserError if one is too large."""
    for name, error in errors.items():
        print(f"{name}: differs from nnabla by at most {error:.1e}")
    if not max(errors.values()) <= TOLERANCE:
        raise UserError(f"onnxruntime and nnabla differ by more than {TOLERANCE:g}; please report it with the above")


def spread_frames(path, size, count):
    """At least ``count`` (or all) and less than twice as many evenly spaced frames of a clip, uint8 [size,size,3]."""
    frames, step = [], 1
    for i, frame in enumerate(video.open_frames(path)):
        if i % step == 0:
            frames.append(video.fit(frame, size))
        if len(frames) == 2 * count:
            frames, step = frames[::2], 2 * step
    return frames


def export_int8(model, folder, clip, rewrites):
    """Write frame-int8.onnx and print what it loses and gains against frame.onnx.

    References are the clip's first, middle and last frame. Of its other frames, every second serves to choose the
    ranges of the 8-bit numbers, and the others to compare.
    """
    images = images_to_array(spread_frames(clip, model.config.image_size, CALIBRATION_FRAMES))
    graphs = OnnxGraphs(folder)
    animator = OnnxAnimator(graphs, images[[0, len(images) // 2, -1]])
    keypoints = animator.keypoints(images)
    inputs = [animator.frame_inputs(keypoints.frame(i)) for i in range(len(images))]
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        source, result = Path(aside, "frame.onnx"), Path(aside, "int8.onnx")
        export_graph("frame", model, source, rewrites)
        quantize(source, result, inputs[::2])
        result.replace(folder / "frame-int8.onnx")
    compared = inputs[1::2] or inputs
    (exact, seconds), (rounded, seconds_int8) = (_render(graphs, name, compared) for name in ("frame", "frame-int8"))
    psnr = -10 * np.log10(np.mean((exact - rounded) ** 2))
    print(f"int8: {psnr:.1f} dB against float over {len(compared)} frames, {seconds / seconds_int8:.2f} times as fast")


def _render(graphs, name, inputs):
    """Predictions [N,3,S,S] of a graph, and the median seconds a frame."""
    graphs.run(name, inputs[0])  # the first run of a session is slower
    images, times = [], []
    for each in inputs:
        start = time.perf_counter()
        images.append(graphs.run(name, each)["prediction"])
        times.append(time.perf_counter() - start)
    return np.concatenate(images), np.median(times)


if __name__ == "__main__":
    run_command(main)
