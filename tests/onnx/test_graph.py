"""nnabla's functions as ONNX: every converter and rewrite against nnabla itself, run by onnxruntime."""

import nnabla as nn
import nnabla.functions as F
import numpy as np
import onnx
import pytest
from reference.graphs import variable

from mrfomm.errors import UserError
from mrfomm.onnx import functions, trace
from mrfomm.onnx.convolutions import REWRITES
from mrfomm.reenactment.onnx_backend import OnnxGraphs

SIZES = (trace.Sizes(1, 1), trace.Sizes(3, 2), trace.Sizes(1, 4))


def constant(*shape, low=-1.0, high=1.0):
    """The same random Variable every time: what a graph reads besides its inputs."""
    return variable(np.random.default_rng(1).uniform(low, high, shape))


def convolution(x, channels, kernel, pad, **options):
    weight = constant(channels, x.shape[1] // options.get("group", 1), kernel, kernel)
    return F.convolution(x, weight, constant(channels), pad=(pad, pad), **options)


def batch_norm(x):
    shape = (1, x.shape[1], 1, 1)
    statistics = constant(*shape), constant(*shape, low=0.5)
    return F.batch_normalization(x, constant(*shape), constant(*shape, low=0.5), *statistics, eps=0.1, batch_stat=False)


def upsample(x, factor=2):
    return F.interpolate(x, scale=(factor, factor), mode="nearest")


def resize(x, height, width):
    return F.interpolate(x, output_size=(height, width), mode="linear", half_pixel=True)


def enlarge(x):
    return F.interpolate(x, output_size=(7, 13), mode="linear", align_corners=True)


def weigh(x):
    """Fusion's use of K: [B,K,C] weighed by 1/K and by its place among the K."""
    shares = np.full((*x.shape[:2], 1), 1 / x.shape[1], np.float32)
    return x * nn.Variable.from_numpy_array(shares) + F.softmax(x, axis=1)


def warp(x, grid, align):
    return F.warp_by_grid(x, grid, mode="linear", padding_mode="zero", align_corners=align)


# nnabla's function -> (shapes of the inputs for B and K, graphs that use it)
CASES = {
    "Add2": (lambda b, k: [(b, k, 3), (b, 1, 3)], [lambda x, y: x + y]),
    "AddScalar": (lambda b, k: [(b, k)], [lambda x: x + 3]),
    "Affine": (
        lambda b, k: [(b * k, 4)],
        [lambda x: F.affine(x, constant(4, 5)), lambda x: F.affine(x, constant(4, 5), constant(5))],
    ),
    "AveragePooling": (
        lambda b, k: [(b * k, 3, 6, 9)],
        [lambda x: F.average_pooling(x, (2, 3)), lambda x: F.average_pooling(x, (3, 3), (1, 2))],
    ),
    "BatchMatmul": (lambda b, k: [(b, 4, 5), (b, 5, k)], [F.batch_matmul]),
    "BatchNormalization": (lambda b, k: [(b * k, 3, 4, 5)], [batch_norm]),
    "Broadcast": (
        lambda b, k: [(b, k, 3)],
        [lambda x: F.broadcast(F.reshape(x, (x.shape[0], 1, *x.shape[1:])), (x.shape[0], 2, *x.shape[1:]))],
    ),
    "Concatenate": (lambda b, k: [(b, k, 3), (b, k, 2)], [lambda x, y: F.concatenate(x, y, axis=2)]),
    "Convolution": (
        lambda b, k: [(b * k, 4, 9, 8)],
        [
            lambda x: convolution(x, 13, 3, 1),
            lambda x: convolution(x, 13, 4, 0, stride=(2, 3)),
            lambda x: convolution(x, 2, 3, 1, dilation=(2, 1)),
            lambda x: convolution(x, 6, 3, 1, group=2),
            lambda x: F.convolution(x, constant(13, 4, 3, 3)),
            lambda x: batch_norm(F.convolution(x, constant(13, 4, 3, 3))),
        ],
    ),
    "Div2": (lambda b, k: [(b, k)], [lambda x: x / (x * x + 1)]),
    "Exp": (lambda b, k: [(b, k)], [F.exp]),
    "Interpolate": (
        lambda b, k: [(b * k, 3, 4, 6)],
        [upsample, lambda x: upsample(x, 3), lambda x: resize(x, 8, 9), lambda x: resize(x, 3, 3), enlarge],
    ),
    "Mean": (
        lambda b, k: [(b, k, 3)],
        [lambda x: F.mean(x, axis=2), lambda x: F.mean(x, axis=(1, 2), keepdims=True)],
    ),
    "MinimumScalar": (lambda b, k: [(b, k)], [lambda x: F.minimum_scalar(x, 0.1)]),
    "Mul2": (lambda b, k: [(b, k, 3), (b, k, 1)], [lambda x, y: x * y]),
    "MulScalar": (lambda b, k: [(b, k)], [lambda x: -x, lambda x: x / 7]),
    "PowScalar": (lambda b, k: [(b, k)], [lambda x: x**2, lambda x: (x * x + 1) ** 0.5]),
    "ReLU": (lambda b, k: [(b, k)], [F.relu]),
    "Reshape": (
        lambda b, k: [(b * k, 4, 6)],
        [lambda x: F.reshape(x, (-1, 3, 4)), lambda x: F.reshape(x, (x.shape[0] * 4, 6))],
    ),
    "Sigmoid": (lambda b, k: [(b, k)], [F.sigmoid]),
    "Slice": (
        lambda b, k: [(b, k, 5, 4)],
        [lambda x: x[:, :, 1:5:2, :3], lambda x: F.slice(x, stop=x.shape), lambda x: x[..., 3:]],
    ),
    "Softmax": (lambda b, k: [(b, k, 3)], [lambda x: F.softmax(x, axis=1), lambda x: F.softmax(x, axis=2), weigh]),
    "Sub2": (lambda b, k: [(b, k), (b, 1)], [lambda x, y: x - y]),
    "Sum": (
        lambda b, k: [(b, k, 3)],
        [lambda x: F.sum(x, axis=1), lambda x: F.sum(x, axis=(1, 2), keepdims=True)],
    ),
    "Transpose": (lambda b, k: [(b, k, 3)], [lambda x: F.transpose(x, (2, 0, 1))]),
    "WarpByGrid": (
        lambda b, k: [(b * k, 3, 5, 6), (b * k, 4, 7, 2)],
        [lambda x, grid: warp(x, 1.3 * grid, True), lambda x, grid: warp(x, 1.3 * grid, False)],
    ),
}


def build(shapes, function):
    """What ``trace`` asks for, from shapes by (B, K) and a function of Variables."""

    def signature(sizes):
        # The first input only says what B and K are.
        inputs = {"sizes": nn.Variable(sizes)}
        inputs.update({f"x{i}": nn.Variable(shape) for i, shape in enumerate(shapes(*sizes))})
        return trace.Signature(inputs, {"y": function(*list(inputs.values())[1:])})

    return signature


def convert(builder, folder, rewrites=REWRITES):
    """Export a graph as graph.onnx -> the traced Calls and the ONNX model."""
    functions.export(builder, "graph", folder / "graph.onnx", rewrites)
    _, calls = trace.trace(builder)
    proto = onnx.load(folder / "graph.onnx")
    onnx.checker.check_model(proto, full_check=True)
    return calls, proto


def operators(proto):
    return [node.op_type for node in proto.graph.node]


def check_equal(builder, folder, tolerance=1e-6):
    """Run graph.onnx and nnabla at sizes other than those it was traced at."""
    graphs, rng = OnnxGraphs(folder), np.random.default_rng(0)
    for sizes in SIZES:
        inputs, outputs = builder(sizes)
        for x in inputs.values():
            x.d = rng.uniform(-1, 1, x.shape).astype(np.float32)
        arrays = {name: x.d.copy() for name, x in inputs.items()}
        actual = graphs.run("graph", arrays)["y"]
        outputs["y"].forward()
        expected = outputs["y"].d
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= tolerance * max(1, np.abs(expected).max())


# --- functions -------------------------------------------------------------------------------------------------------


def test_every_converter_has_its_case():
    assert CASES.keys() == functions.CONVERTERS.keys()


@pytest.mark.parametrize(("kind", "i"), [(kind, i) for kind, (_, graphs) in CASES.items() for i in range(len(graphs))])
def test_function_equals_nnabla(kind, i, tmp_path):
    shapes, graphs = CASES[kind]
    builder = build(shapes, graphs[i])
    calls, _ = convert(builder, tmp_path)
    assert kind in {call.kind for call in calls}
    check_equal(builder, tmp_path)


def test_unknown_function_is_named():
    with pytest.raises(UserError, match=r"nnabla's Tanh; add it to CONVERTERS in mrfomm/onnx/functions.py"):
        functions.convert(*trace.trace(build(lambda b, k: [(b, k)], F.tanh)))


UNKNOWN_ARGUMENTS = {
    "Interpolate with align_corners=True": lambda x: F.interpolate(x, scale=(2, 2), mode="nearest", align_corners=True),
    "Interpolate with half_pixel=False": lambda x: F.interpolate(x, scale=(2, 2), mode="linear"),
    "BatchNormalization with batch_stat=True": lambda x: F.batch_normalization(
        x, *(constant(1, 4, 1, 1) for _ in range(4)), batch_stat=True
    ),
    "BatchMatmul with transpose_b=True": lambda x: F.batch_matmul(x, x, transpose_b=True),
    "WarpByGrid with padding_mode=reflect": lambda x: F.warp_by_grid(
        x, F.reshape(x, (-1, 4, 4, 2)), padding_mode="reflect"
    ),
    "AveragePooling with pad": lambda x: F.average_pooling(x, (2, 2), pad=(1, 1)),
    "Affine of other than matrices": lambda x: F.affine(x, constant(32, 3)),
    "Slice from 1 to 2 by 1 of axis 0": lambda x: x[1:2],
    "Slice": lambda x: x[:, ::-1],
}


@pytest.mark.parametrize("what", UNKNOWN_ARGUMENTS)
def test_unknown_arguments_are_named(what):
    with pytest.raises(UserError, match=f"nnabla's {what}"):
        functions.convert(*trace.trace(build(lambda b, k: [(b * k, 4, 4, 2)], UNKNOWN_ARGUMENTS[what])))


@pytest.mark.parametrize(
    ("lengths", "axis", "label"),
    [
        ((12, 12), trace.Axis(12), 12),
        ((2, 5), trace.Axis(1, batch=1), "B"),
        ((3, 7), trace.Axis(1, references=1), "K"),
        ((60, 350), trace.Axis(10, 1, 1), "10*B*K"),
    ],
)
def test_axes_scale_with_the_sizes(lengths, axis, label):
    tensor = trace.Tensor(*(nn.Variable((length,)) for length in lengths))
    assert tensor.shape == (axis,)
    assert axis.label == label


def test_an_axis_that_scales_otherwise_is_an_error():
    with pytest.raises(ValueError, match="no multiple of B, K or BK"):
        _ = trace.Tensor(nn.Variable((4,)), nn.Variable((25,))).shape


def test_a_constant_that_differs_along_the_batch_is_an_error():
    def count(x):
        return x + nn.Variable.from_numpy_array(np.arange(x.shape[0], dtype=np.float32).reshape(-1, 1))

    with pytest.raises(ValueError, match="depends on B and K"):
        functions.convert(*trace.trace(build(lambda b, k: [(b, 3)], lambda x: count(x) + 1)))


def test_a_graph_that_differs_with_the_sizes_is_an_error():
    with pytest.raises(ValueError, match="other functions"):
        trace.trace(build(lambda b, k: [(b, 3)], lambda x: x if x.shape[0] == 2 else x + 1))


def test_what_depends_on_no_input_is_computed_once(tmp_path):
    def network(x):
        weight = F.concatenate(constant(2, 4, 1, 1), constant(3, 4, 1, 1) * 2, axis=0)
        return F.convolution(x, weight)

    builder = build(lambda b, k: [(b, 4, 6, 6)], network)
    _, proto = convert(builder, tmp_path)
    assert operators(proto) == ["Conv", "Identity"]
    check_equal(builder, tmp_path)


# --- convolutions ----------------------------------------------------------------------------------------------------


def test_batch_norm_becomes_part_of_the_convolution_before_it(tmp_path):
    builder = build(lambda b, k: [(b, 4, 6, 6)], lambda x: batch_norm(F.relu(batch_norm(convolution(x, 13, 3, 1)))))
    _, proto = convert(builder, tmp_path)
    assert operators(proto) == ["Conv", "Relu", "BatchNormalization", "Identity"]
    check_equal(builder, tmp_path)


def test_a_convolution_that_others_read_too_keeps_its_values(tmp_path):
    def network(x):
        x = convolution(x, 13, 3, 1)
        return F.concatenate(batch_norm(x), x, axis=1)

    builder = build(lambda b, k: [(b, 4, 6, 6)], network)
    _, proto = convert(builder, tmp_path)
    assert operators(proto).count("Conv") == operators(proto).count("BatchNormalization") == 1
    check_equal(builder, tmp_path)


REWRITTEN = {
    "upsampling": ((4, 8, 10), lambda x: batch_norm(convolution(upsample(x), 13, 3, 1)), 4, "Resize", 1e-6),
    "tiles": ((128, 32, 36), lambda x: convolution(x, 130, 3, 1), 2, None, 1e-5),
    "columns": ((20, 9, 8), lambda x: convolution(x, 3, 7, 3), 1, None, 1e-6),
    "columns without padding": ((20, 9, 8), lambda x: batch_norm(convolution(x, 11, 5, 0)), 1, None, 1e-6),
    "upsampling of few": ((4, 8, 8), lambda x: convolution(upsample(x), 3, 3, 1), 4, "Resize", 1e-6),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_rewritten_convolutions_equal_nnabla(name, tmp_path):
    shape, function, convolutions, replaced, tolerance = REWRITTEN[name]
    builder = build(lambda b, k: [(b * k, *shape)], function)
    _, proto = convert(builder, tmp_path)
    assert operators(proto).count("Conv") == convolutions
    assert {"DepthToSpace", "Sum"} & set(operators(proto))
    assert replaced not in operators(proto)
    check_equal(builder, tmp_path, tolerance)
    _, plain = convert(builder, tmp_path, rewrites=())
    assert operators(plain) == ["Resize"] * bool(replaced) + ["Conv", "Identity"]


NOT_REWRITTEN = {
    "upsampling of a small map": ((4, 4, 8), lambda x: convolution(upsample(x), 13, 3, 1)),
    "upsampling by 3": ((4, 8, 8), lambda x: convolution(upsample(x, 3), 13, 3, 1)),
    "linear upsampling": ((4, 8, 8), lambda x: convolution(resize(x, 16, 16), 13, 3, 1)),
    "upsampling and another kernel": ((4, 8, 8), lambda x: convolution(upsample(x), 13, 5, 1)),
    "tiles of few channels": ((16, 32, 32), lambda x: convolution(x, 128, 3, 1)),
    "tiles of another size": ((128, 33, 32), lambda x: convolution(x, 128, 3, 1)),
    "tiles without padding": ((128, 32, 32), lambda x: convolution(x, 128, 3, 0)),
    "1x1": ((20, 8, 8), lambda x: convolution(x, 3, 1, 0)),
    "stride": ((20, 8, 8), lambda x: convolution(x, 3, 3, 1, stride=(2, 2))),
    "groups": ((20, 8, 8), lambda x: convolution(x, 4, 3, 1, group=2)),
}


@pytest.mark.parametrize("name", NOT_REWRITTEN)
def test_other_convolutions_stay(name, tmp_path):
    shape, function = NOT_REWRITTEN[name]
    _, proto = convert(build(lambda b, k: [(b, *shape)], function), tmp_path)
    assert [kind for kind in operators(proto) if kind != "Resize"] == ["Conv", "Identity"]
