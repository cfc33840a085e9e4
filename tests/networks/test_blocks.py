"""Operators, blocks and the hourglass against numpy; running statistics; widths and parameter counts of vox-256."""

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from reference import layers
from reference import networks as expected
from reference.graphs import (
    build,
    double,
    gradients,
    leaves,
    numeric_gradients,
    numeric_slope,
    reference_parameters,
    run,
    variable,
)
from tolerance import order_of_sums

from mrfomm.config import FusionConfig, ModelConfig
from mrfomm.model import create_parameters
from mrfomm.networks import blocks, ops
from mrfomm.networks.discriminator import discriminate


def assert_close(actual, wanted, rtol=1e-4, atol=1e-5):
    np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=atol)


def check_forward(function, reference, x, training, rng):
    """Compare a network with its reference on random parameters: its output, and the statistics it leaves behind."""
    output, tree = build(lambda: function(variable(x)), rng)
    parameters = reference_parameters(tree, training)
    wanted = reference(x, parameters)
    assert_close(run(output), wanted)
    for name, parameter in tree.all().items():
        assert_close(parameter.d, parameters.updated.get(name, parameters[name]))
    statistics = {name for name in tree.all() if name.endswith(("/mean", "/var"))}
    assert set(parameters.updated) == (statistics if training else set())


def trainable(tree, prefix=""):
    return sum(p.d.size for name, p in tree.all().items() if p.need_grad and name.startswith(prefix))


# --- operators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "pad", "stride"), [(3, 1, 1), (7, 0, 1), (4, 0, 1), (1, 0, 1), (11, 2, 4)])
def test_raw_convolution(kernel, pad, stride):
    rng = np.random.default_rng(0)
    x, weight = double(rng.normal(size=(2, 3, 13, 17))), double(rng.normal(size=(4, 3, kernel, kernel)))
    bias = double(rng.normal(size=4))
    with_bias = ops.raw_convolution(variable(x), variable(weight), variable(bias), pad, stride)
    without = ops.raw_convolution(variable(x), variable(weight), None, pad=pad, stride=stride)
    assert_close(run(with_bias), layers.conv2d(x, weight, bias, pad, stride))
    assert_close(run(without), layers.conv2d(x, weight, None, pad, stride))


def test_convolution_starts_from_pytorchs_uniform_distribution():
    _, tree = build(lambda: ops.convolution(variable(np.zeros((1, 32, 5, 5))), 64, 3))
    bound = (32 * 3 * 3) ** -0.5
    for name, shape in (("conv/W", (64, 32, 3, 3)), ("conv/b", (64,))):
        values = tree.all()[name].d
        assert values.shape == shape
        assert np.abs(values).max() <= bound
        assert values.std() == pytest.approx(bound / 3**0.5, rel=0.03 if name == "conv/W" else 0.3)


def test_convolution_with_given_start_and_transformed_weight():
    x = np.random.default_rng(1).random((1, 2, 6, 6))

    def layer():
        ops.filters(2, 3, 3, zero=True, bias=np.float32([1, -2, 3]))
        return ops.convolution(variable(x), 3, 3, transform=lambda w: w + 1)

    output, tree = build(layer)
    assert not tree.all()["conv/W"].d.any()
    np.testing.assert_array_equal(tree.all()["conv/b"].d, [1, -2, 3])
    assert_close(run(output), layers.conv2d(x, np.ones((3, 2, 3, 3)), np.array([1, -2, 3])))


def filters_of(layers):
    """The filters 3x3 of (scope, channels, options)."""
    filters = []
    for scope, channels, options in layers:
        with nn.parameter_scope(scope):
            filters.append(ops.filters(5, channels, 3, **options))
    return filters


def test_convolutions_of_one_input_equal_each_alone():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 5, 9, 7))
    layers = [("one", 3, {}), ("two", 1, {"zero": True, "bias": np.float32([2])}), ("three", 4, {})]

    def together():
        return F.concatenate(*ops.convolutions(variable(x), filters_of(layers), pad=1), axis=1)

    joined, tree = build(together, rng)
    apart = []
    for scope, channels, _ in layers:
        with tree.scope(), nn.parameter_scope(scope):
            apart.append(run(ops.convolution(variable(x), channels, 3, pad=1)))
    np.testing.assert_allclose(run(joined), np.concatenate(apart, axis=1), atol=order_of_sums(1e-6))


def test_convolutions_start_as_each_alone():
    layers = [("one", 3, {}), ("two", 1, {"zero": True, "bias": np.float32([2])})]
    _, tree = build(lambda: ops.convolutions(variable(np.zeros((1, 5, 4, 4))), filters_of(layers)))
    values = {name: value.d for name, value in tree.all().items()}
    assert values.keys() == {"one/conv/W", "one/conv/b", "two/conv/W", "two/conv/b"}
    assert values["two/conv/b"] == [2]
    assert not values["two/conv/W"].any()
    assert 0 < np.abs(values["one/conv/W"]).max() <= 1 / np.sqrt(45)


def test_fixed_convolution_passes_the_gradient_but_keeps_none():
    rng = np.random.default_rng(2)
    x, weights = double(rng.normal(size=(1, 2, 5, 5))), rng.normal(size=(1, 3, 3, 3))
    (leaf,) = leaves(x)
    output, tree = build(lambda: ops.convolution(leaf, 3, 3, fixed=True), rng)
    parameters = list(tree.all().values())
    for parameter in parameters:
        parameter.g = 7
    (actual,) = gradients(output, [leaf], weights)
    weight = np.asarray(tree.all()["conv/W"].d, np.float64)
    (numeric,) = numeric_gradients(lambda x: layers.conv2d(x, weight), [x], weights)
    assert_close(actual, numeric)
    assert all((parameter.g == 7).all() for parameter in parameters)
    assert all(parameter.need_grad for parameter in parameters)  # fixed in this graph only


@pytest.mark.parametrize("training", [False, True])
def test_batch_normalization(training):
    rng = np.random.default_rng(3)
    x = rng.normal(2, 3, (3, 4, 5, 6))
    check_forward(lambda x: ops.batch_normalization(x, training), expected.batch_norm, x, training, rng)


def test_running_statistics_decay_by_a_tenth_and_take_the_unbiased_variance():
    x = np.array([1.0, 2, 3, 6]).reshape(2, 1, 1, 2)
    output, tree = build(lambda: ops.batch_normalization(variable(x), True))
    statistics = [tree.all()[f"bn/{name}"] for name in ("mean", "var")]
    assert [s.d.item() for s in statistics] == [0, 1]
    run(output)
    assert [s.d.item() for s in statistics] == pytest.approx([0.3, 0.9 + 0.1 * 14 / 3])
    run(output)
    assert [s.d.item() for s in statistics] == pytest.approx([0.57, 0.9**2 + 0.19 * 14 / 3])
    assert not any(s.need_grad for s in statistics)


@pytest.mark.parametrize("training", [pytest.param(False, marks=pytest.mark.cpu), True])
def test_batch_normalization_gradients(training):
    rng = np.random.default_rng(4)
    x = double(rng.normal(size=(2, 2, 3, 4)))
    weights = rng.normal(size=x.shape)
    (leaf,) = leaves(x)
    output, tree = build(lambda: ops.batch_normalization(leaf, training), rng)
    p = reference_parameters(tree, training)
    parameters = [tree.all()[name] for name in ("bn/beta", "bn/gamma")]

    def normalised(x, beta, gamma):
        if training:
            return layers.batch_norm_train(x, beta, gamma)
        return layers.normalise(x, p["bn/mean"], p["bn/var"], beta, gamma)

    numeric = numeric_gradients(normalised, [x, p["bn/beta"], p["bn/gamma"]], weights)
    for one, other in zip(gradients(output, [leaf, *parameters], weights), numeric):
        assert_close(one, other, atol=1e-4)


def test_instance_normalization_and_its_gradients():
    rng = np.random.default_rng(5)
    x = double(rng.normal(1, 2, (2, 2, 4, 3)))
    weights = rng.normal(size=x.shape)
    (leaf,) = leaves(x)
    output, tree = build(lambda: ops.instance_normalization(leaf), rng)
    parameters = [tree.all()[name] for name in ("in/beta", "in/gamma")]
    arrays = [x, *(np.asarray(p.d, np.float64) for p in parameters)]
    assert_close(run(output), layers.instance_norm(*arrays))
    numeric = numeric_gradients(layers.instance_norm, arrays, weights)
    for one, other in zip(gradients(output, [leaf, *parameters], weights), numeric):
        assert_close(one, other, atol=1e-4)


@pytest.mark.parametrize(("mean", "deviation"), [(5, 0.5), (-1, 0.05), (0, 0)])
@pytest.mark.parametrize("name", ["batch_normalization", "instance_normalization"])
def test_normalisation_of_a_channel_far_from_zero_and_of_a_dead_one(name, mean, deviation):
    """nnabla takes the variance as E[x^2] - E[x]^2 in single precision; at such means that is good enough."""
    x = double(np.random.default_rng(8).normal(mean, deviation, (2, 4, 16, 16)))
    arguments = (True,) if name == "batch_normalization" else ()
    output, _ = build(lambda: getattr(ops, name)(variable(x), *arguments))
    reference = layers.batch_norm_train if name == "batch_normalization" else layers.instance_norm
    np.testing.assert_allclose(run(output), reference(x, 0, 1), rtol=1e-3, atol=1e-3)


def test_graphs_in_the_context_of_another_implementation_use_it():
    def swapped(x, weight, bias, pad, stride):
        return ops.NNABLA.convolution(x, weight * 2, bias, pad, stride)

    x, weight = variable(np.ones((1, 1, 3, 3))), variable(np.ones((1, 1, 3, 3)))
    with ops.implementation(ops.NNABLA._replace(convolution=swapped)):
        doubled = ops.raw_convolution(x, weight, None)
    assert run(doubled).item() == 18
    assert run(ops.raw_convolution(x, weight, None)).item() == 9


# --- blocks ----------------------------------------------------------------------------------------------------------

BLOCKS = {
    "same 7": (lambda x, t: blocks.same_block(x, 5, 7, t), expected.same_block),
    "same 3": (lambda x, t: blocks.same_block(x, 2, 3, t), expected.same_block),
    "down": (lambda x, t: blocks.down_block(x, 5, t), expected.down_block),
    "up": (lambda x, t: blocks.up_block(x, 5, t), expected.up_block),
    "residual": (lambda x, t: blocks.residual_block(x, t), expected.residual_block),
    "hourglass": (lambda x, t: blocks.hourglass(x, 4, 16, 2, t), expected.hourglass),
    "capped hourglass": (lambda x, t: blocks.hourglass(x, 4, 9, 3, t), expected.hourglass),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_block_matches_its_reference(name, training):
    rng = np.random.default_rng(6)
    function, reference = BLOCKS[name]
    x = double(rng.normal(size=(2, 3, 16, 24)))
    check_forward(lambda x: function(x, training), reference, x, training, rng)


@pytest.mark.cpu
@pytest.mark.parametrize("name", BLOCKS)
def test_block_gradient_at_its_input_and_parameters(name):
    """Along one random direction of each, with running statistics."""
    rng = np.random.default_rng(7)
    function, reference = BLOCKS[name]
    x = double(rng.normal(size=(1, 3, 8, 8)))
    (leaf,) = leaves(x)
    output, tree = build(lambda: function(leaf, False), rng)
    weights = rng.normal(size=output.shape)
    p = reference_parameters(tree)
    names = [name for name, parameter in tree.all().items() if parameter.need_grad]
    actual = gradients(output, [leaf, *(tree.all()[name] for name in names)], weights)

    direction = rng.normal(size=x.shape)
    slope = numeric_slope(lambda x: np.sum(weights * reference(x, p)), x, direction)
    assert np.sum(actual[0] * direction) == pytest.approx(slope, rel=1e-3, abs=1e-3)

    directions = {name: rng.normal(size=p[name].shape) for name in names}

    def moved(t):
        arrays = {name: p[name] + t * directions.get(name, 0) for name in tree.all()}
        return np.sum(weights * reference(x, expected.Parameters(arrays)))

    slope = sum(np.sum(gradient * directions[name]) for name, gradient in zip(names, actual[1:]))
    assert slope == pytest.approx(numeric_slope(moved, 0.0, 1.0), rel=1e-3, abs=1e-3)


# --- vox-256 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "expansion", "size"), [(3, 32, 64), (44, 64, 64)])
def test_widths_of_the_hourglasses_of_vox_256(channels, expansion, size):
    def network():
        return blocks.hourglass(nn.Variable((1, channels, size, size)), expansion, 1024, 5, False)

    output, tree = build(network)
    assert output.shape == (1, expansion + channels, size, size)
    shapes = {name: p.shape for name, p in tree.all().items()}
    widths = [min(1024, expansion * 2 ** (i + 1)) for i in range(5)]
    for i, (before, after) in enumerate(zip([channels, *widths], widths)):
        assert shapes[f"down_{i}/conv/W"] == (after, before, 3, 3)
    # Each decoder level sees the one below it beside the encoder's output of its own size.
    for i in range(5):
        below = widths[4] if i == 0 else 2 * widths[4 - i]
        after = expansion if i == 4 else widths[3 - i]
        assert shapes[f"up_{i}/conv/W"] == (after, below, 3, 3)


def test_parameter_counts_of_vox_256():
    """Trainable parameters of FOMM's published vox-256 networks."""
    _, tree = build(lambda: create_parameters(ModelConfig(fusion=FusionConfig(mode="mean"))))
    assert trainable(tree, "keypoints/") == 14_215_368
    assert trainable(tree, "generator/") + trainable(tree, "motion/") == 45_575_391
    assert trainable(tree) == 14_215_368 + 45_575_391


@pytest.mark.parametrize(("mode", "count"), [("patch", 256 * 9 + 1), ("element", 256 * 256 * 9 + 256)])
def test_parameters_that_fusion_adds(mode, count):
    _, tree = build(lambda: create_parameters(ModelConfig(fusion=FusionConfig(mode=mode))))
    assert trainable(tree, "fusion/") == count


def test_discriminator_parameter_counts_of_vox_256():
    image, points = nn.Variable((1, 3, 256, 256)), nn.Variable((1, 10, 2))
    _, vox = build(lambda: discriminate(image, 64, 512, 4, spectral_norm=True))
    _, adversarial = build(lambda: discriminate(image, 64, 512, 4, spectral_norm=False, points=points))
    assert trainable(vox) == 2_758_849
    assert trainable(adversarial) == 2_769_089
