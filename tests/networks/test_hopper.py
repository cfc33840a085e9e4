"""No graph asks a GPU for what nnabla's CUDA extension computes by warp shuffles, of which a Hopper GPU dies.

Graphs are built in their true sizes, never computed. The rules are those of the extension's sources, version 1.39 (its
context is cudnn), and of what an H200 was seen to die of: see docs/scaling.md.
"""

import dataclasses

import nnabla as nn
import nnabla.functions as F
import pytest
from tiny import vgg_arrays

from eval.lpips import Lpips, load_lpips
from mrfomm import bundled
from mrfomm.config import FUSION_MODES, load_config
from mrfomm.model.checkpoint import ParameterTree
from mrfomm.networks import ops
from mrfomm.networks.perceptual import vgg19_shapes
from mrfomm.onnx.graphs import GRAPHS
from mrfomm.onnx.trace import Sizes
from mrfomm.training.step import DiscriminatorStep, GeneratorStep, figures_of, load_perceptual

CONFIGS = sorted(bundled.CONFIGS.glob("*.yaml"))

REDUCTIONS = {"Sum", "Mean", "Max", "Norm", "Prod"}
# The sources give these the whole mask when they broadcast; on the H200 they were reported to die all the same.
BINARY = {"Add2", "Sub2", "Mul2", "Div2", "Pow2", "Maximum2", "Minimum2", "AbsoluteError", "SquaredError", "HuberLoss"}
# A function of none of these kinds is not known to be safe; InstanceNormalization, SpectralNorm and Min are not.
HARMLESS = {
    *(
        "Abs",
        "AddScalar",
        "Exp",
        "Identity",
        "LeakyReLU",
        "Log",
        "MinimumScalar",
        "MulScalar",
        "PowScalar",
        "RSubScalar",
        "ReLU",
    ),
    *("Floor", "Sigmoid", "Sign"),  # element by element
    *("Assign", "Concatenate", "Reshape", "Slice", "Transpose"),  # copies
    *("Affine", "BatchMatmul"),  # cuBLAS
    *("AveragePooling", "Convolution", "MaxPooling", "Softmax"),  # cuDNN
    *("Interpolate", "WarpByGrid"),  # gathered in the forward pass, added up atomically in the backward pass
}


def check(outputs, losses=()):
    found = offences(outputs, losses)
    assert not found, "\n".join(found)


def offences(outputs, losses=()):
    """Descriptions of what dies in the forward pass of all Variables and the backward pass of the losses, each once."""
    found = [
        describe(function, "forward") for root in (*outputs, *losses) for function in functions(root) if dies(function)
    ]
    for loss in losses:
        found += [describe(*each) for each in backward_offences(loss)]
    return list(dict.fromkeys(found))


def functions(root):
    """The functions behind a Variable in the order of computation."""
    found = []
    root.visit(found.append)
    return found


def describe(function, direction):
    shapes = " ".join(str(variable.shape) for variable in function.inputs)
    axes = f" axes={function.info.args['axes']}" if "axes" in function.info.args else ""
    return f"{function.info.type_name} {direction}: {shapes} -> {function.outputs[0].shape}{axes}"


def dies(function):
    """Whether the forward pass does."""
    kind, args = function.info.type_name, function.info.args
    if kind in REDUCTIONS:
        return reduces_innermost(function.inputs[0].shape, args["axes"])
    if kind == "BatchNormalization":
        return len(function.outputs) > 1  # cuDNN's has one; the extension's own kernel does the others
    return kind not in HARMLESS | BINARY | {"Broadcast"}


def reduces_innermost(shape, axes):
    """The extension drops axes of length 1 first."""
    long = [axis for axis, length in enumerate(shape) if length > 1]
    return bool(long) and long[-1] in axes


def backward_offences(loss):
    """Pairs (function, "backward of input I")."""
    wanted = {loss}  # Variables whose gradients are computed
    for function in reversed(functions(loss)):
        if wanted.isdisjoint(function.outputs):
            continue
        for number, variable in enumerate(function.inputs):
            if variable.need_grad:
                wanted.add(variable)
                if dies_backward(function, variable.shape):
                    yield function, f"backward of input {number}"


def dies_backward(function, shape):
    """Whether the gradient at an input of this shape does."""
    kind, result = function.info.type_name, function.outputs[0].shape
    if kind in BINARY:
        return bool(shape) and shape[-1] == 1 != result[-1]
    if kind == "Broadcast":
        lengths = (1,) * (len(result) - len(shape)) + shape
        return reduces_innermost(result, [axis for axis, length in enumerate(lengths) if length != result[axis]])
    return kind == "BatchNormalization" and not function.info.args["batch_stat"]  # sums for gamma and beta


def with_fusion(config, mode):
    fusion = dataclasses.replace(config.model.fusion, mode=mode)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, fusion=fusion))


@pytest.fixture
def parameters():
    """A ParameterTree of the test's own, of which nothing takes memory."""
    tree = ParameterTree()
    with tree.scope(), ops.without_values():
        yield tree


@pytest.mark.parametrize("mode", FUSION_MODES)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_training(parameters, path, mode):
    """Both stages: the first one's graph is part of the second's."""
    config = load_config(path, ["train.discriminator=true"])
    is_vgg = config.loss.perceptual_network == "vgg19"
    perceptual = {n: nn.Variable(s) for n, s in vgg19_shapes().items()} if is_vgg else load_perceptual(config.loss)
    generator = GeneratorStep(with_fusion(config, mode), config.train.batch_size, perceptual)
    discriminator = DiscriminatorStep(config, generator)
    figures = figures_of(generator.losses.values(), [parameters.trainable(side) for side in ("", "discriminator/")])
    assert figures.shape == (len(generator.losses) + 2,)
    check([*generator._shown, figures], [generator.total, discriminator.loss])


@pytest.mark.parametrize("mode", FUSION_MODES)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_inference(parameters, path, mode):
    model = with_fusion(load_config(path, []), mode).model
    signatures = [build(model, sizes) for build in GRAPHS.values() for sizes in (Sizes(1, 1), Sizes(2, 3))]
    check([output for signature in signatures for output in signature.outputs.values()])


@pytest.mark.parametrize("metric", [load_lpips(bundled.LPIPS_ALEXNET), Lpips(vgg_arrays())], ids=["alexnet", "vgg16"])
def test_lpips(metric):
    metric._prepare((2, 3, 64, 64))
    check(metric._outputs)


def leaf(*shape):
    return nn.Variable(shape, need_grad=True)


@pytest.mark.parametrize(
    ("graph", "count"),
    [
        (lambda: F.sum(leaf(3, 4, 5), axis=1), 0),
        (lambda: F.sum(leaf(3, 4, 5), axis=(0, 2)), 1),
        (lambda: F.sum(leaf(3, 4, 1), axis=1), 1),
        (lambda: F.sum(leaf(3, 4, 1), axis=2), 0),
        (lambda: F.mean(leaf(3, 4)), 1),
        (lambda: F.max(leaf(3, 4), axis=1), 1),
        (lambda: F.norm(leaf(3, 4)), 1),
        (lambda: F.broadcast(leaf(3, 1), (3, 4)), 1),
        (lambda: F.broadcast(leaf(1, 4), (3, 4)), 0),
        (lambda: F.broadcast(nn.Variable((3, 1)), (3, 4)) + leaf(3, 4), 0),
        (lambda: leaf(3, 4) / leaf(3, 1), 1),
        (lambda: leaf(3, 4) / leaf(1, 4), 0),
        (lambda: leaf(3, 1) - leaf(1, 4), 1),
        (lambda: leaf(3, 4) / nn.Variable((3, 1)), 0),
        (lambda: leaf(3, 4) / (leaf(3, 1) + 1).get_unlinked_variable(need_grad=False), 0),
        (lambda: F.instance_normalization(leaf(2, 3, 4, 4), leaf(1, 3, 1, 1), leaf(1, 3, 1, 1)), 1),
        (lambda: F.spectral_norm(leaf(3, 4), nn.Variable((3,))), 1),
        (lambda: F.cumsum(leaf(3, 4), axis=1), 1),
    ],
)
def test_rules(graph, count):
    assert len(offences([], [graph()])) == count
