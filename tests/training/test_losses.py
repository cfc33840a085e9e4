"""Losses against numpy on random images, scores and features; which sides take a gradient."""

import numpy as np
import pytest
from reference import networks as expected
from reference.geometry import coordinate_grid, downsample
from reference.graphs import double, gradients, leaves, numeric_gradients, numeric_slope, run, variable, variables
from reference.layers import grid_sample

from mrfomm.networks.perceptual import load_frozen
from mrfomm.training import losses

UNTOUCHED = 7  # a gradient no backward pass leaves behind


def images(seed, size=32, count=2):
    rng = np.random.default_rng(seed)
    return [double(rng.random((count, 3, size, size))) for _ in range(2)]


@pytest.fixture(scope="module")
def weights():
    """Random weights for each network: name -> arrays by parameter name."""
    shapes = {"vgg19": expected.vgg19_shapes(), "alexnet": expected.alexnet_shapes()}
    return {network: expected.draw_frozen_weights(shapes[network]) for network in shapes}


def reference_perceptual(network, arrays, predictions, targets):
    features = getattr(expected, f"{network}_features")
    p = expected.Parameters({name: np.float64(array) for name, array in arrays.items()})
    total = 0
    for prediction, target in zip(predictions, targets):
        of_prediction = features(expected.imagenet_normalise(prediction), p)
        of_target = features(expected.imagenet_normalise(target), p)
        total += sum(np.abs(a - b).mean() for a, b in zip(of_prediction, of_target))
    return total


def backward(loss, takes, refuses):
    """Run backward; every Variable in ``takes`` must get a gradient, none in ``refuses``."""
    for leaf in takes:
        leaf.g = 0
    for leaf in refuses:
        leaf.g = UNTOUCHED
    loss.forward()
    loss.backward()
    for leaf in takes:
        assert leaf.g.any()
    for leaf in refuses:
        np.testing.assert_array_equal(leaf.g, UNTOUCHED)


def test_image_pyramid():
    (image, _) = images(1)
    scales = (1, 0.5, 0.25, 0.125)
    pyramid = run(*losses.image_pyramid(variable(image), scales))
    assert [level.shape[-1] for level in pyramid] == [32, 16, 8, 4]
    for level, scale in zip(pyramid, scales):
        np.testing.assert_allclose(level, downsample(image, scale), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("network", "size"), [("vgg19", 32), ("alexnet", 64)])
def test_perceptual_loss(weights, network, size):
    prediction, target = images(2, size)
    scales, arrays = (1, 0.5), weights[network]
    pyramids = [losses.image_pyramid(variable(image), scales) for image in (prediction, target)]
    loss = losses.perceptual_loss(*pyramids, network, load_frozen(arrays))
    wanted = reference_perceptual(
        network,
        arrays,
        [downsample(prediction, scale) for scale in scales],
        [downsample(target, scale) for scale in scales],
    )
    actual = run(loss)
    assert actual.size == 1
    assert actual.item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(("network", "size"), [("vgg19", 16), ("alexnet", 31)])
def test_perceptual_loss_gradient(weights, network, size):
    prediction, target = images(3, size, count=1)
    (leaf,) = leaves(prediction)
    parameters = load_frozen(weights[network])
    loss = losses.perceptual_loss([leaf], [variable(target)], network, parameters)
    backward(loss, [leaf], [])
    direction = np.random.default_rng(4).normal(size=prediction.shape)
    slope = numeric_slope(
        lambda x: reference_perceptual(network, weights[network], [x], [target]), prediction, direction
    )
    assert np.sum(leaf.g * direction) == pytest.approx(slope, rel=2e-3)


def test_perceptual_loss_gives_no_gradient_to_the_targets_and_the_weights(weights):
    prediction, target = leaves(*images(3, 16, count=1))
    parameters = load_frozen(weights["vgg19"])
    loss = losses.perceptual_loss([prediction], [target], "vgg19", parameters)
    backward(loss, [prediction], [target, *parameters.values()])


def test_pixel_loss_sums_the_scales_means():
    predictions, targets = zip(images(5), images(6, 8), images(7, 16))
    loss = losses.pixel_loss(list(map(variable, predictions)), list(map(variable, targets)))
    wanted = sum(np.abs(a - b).mean() for a, b in zip(predictions, targets))
    assert run(loss).item() == pytest.approx(wanted, rel=1e-5)
    inputs = leaves(*predictions)
    backward(losses.pixel_loss(inputs, list(map(variable, targets))), inputs, [])
    for leaf, a, b in zip(inputs, predictions, targets):
        np.testing.assert_allclose(leaf.g, np.sign(a - b) / a.size, rtol=1e-5)


def test_feature_matching_loss():
    rng = np.random.default_rng(8)
    shapes = [(2, 4, 9, 9), (2, 8, 3, 3)]
    generated, real = ([double(rng.normal(size=shape)) for shape in shapes] for _ in range(2))
    takes, refuses = leaves(*generated), leaves(*real)
    loss = losses.feature_matching_loss(tuple(takes), tuple(refuses))
    assert run(loss).item() == pytest.approx(sum(np.abs(a - b).mean() for a, b in zip(generated, real)), rel=1e-5)
    backward(loss, takes, refuses)
    for leaf, a, b in zip(takes, generated, real):
        np.testing.assert_allclose(leaf.g, np.sign(a - b) / a.size, rtol=1e-5)


def test_adversarial_losses():
    rng = np.random.default_rng(9)
    real, generated = double(rng.normal(size=(2, 1, 3, 4))), double(rng.normal(size=(2, 1, 3, 4)))
    assert run(losses.generator_adversarial_loss(variable(generated))).item() == pytest.approx(
        ((1 - generated) ** 2).mean(), rel=1e-5
    )
    assert run(losses.discriminator_loss(*variables(real, generated))).item() == pytest.approx(
        ((1 - real) ** 2).mean() + (generated**2).mean(), rel=1e-5
    )


def test_adversarial_losses_at_their_optima():
    ones, zeros = np.ones((1, 1, 2, 2)), np.zeros((1, 1, 2, 2))
    assert run(losses.generator_adversarial_loss(variable(ones))).item() == 0
    assert run(losses.generator_adversarial_loss(variable(zeros))).item() == 1
    assert run(losses.discriminator_loss(*variables(ones, zeros))).item() == 0
    assert run(losses.discriminator_loss(*variables(zeros, ones))).item() == 2


def test_adversarial_gradients():
    rng = np.random.default_rng(10)
    arrays = [double(rng.normal(size=(1, 1, 3, 2))) for _ in range(2)]
    inputs, one = leaves(*arrays), np.ones(())
    actual = gradients(losses.discriminator_loss(*inputs), inputs, one)
    numeric = numeric_gradients(lambda r, g: ((1 - r) ** 2).mean() + (g**2).mean(), arrays, one)
    for mine, theirs in zip(actual, numeric):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    (actual,) = gradients(losses.generator_adversarial_loss(inputs[0]), inputs[:1], one)
    (numeric,) = numeric_gradients(lambda g: ((1 - g) ** 2).mean(), arrays[:1], one)
    np.testing.assert_allclose(actual, numeric, rtol=1e-4, atol=1e-6)


def test_mean_absolute():
    assert run(losses.mean_absolute(*variables([[1, 2], [3, 4]], [[1, 0], [6, 5]]))).item() == 1.5


def test_warp_loss():
    rng = np.random.default_rng(5)
    image, driving = double(rng.random((2, 3, 32, 32))), double(rng.random((2, 3, 32, 32)))
    grid = double(rng.uniform(-1.2, 1.2, (2, 32, 32, 2)))
    warped = grid_sample(image, grid)
    wanted = sum(np.abs(downsample(warped, s) - downsample(driving, s)).mean() for s in (1, 0.5, 0.25))
    image, grid, driving = variables(image, grid, driving)
    assert run(losses.warp_loss(image, grid, driving)).item() == pytest.approx(wanted, rel=1e-5)


def test_warp_loss_is_zero_where_the_deformation_undoes_a_shift():
    image = double(np.random.default_rng(6).random((1, 3, 32, 32)))
    image[..., :4] = image[..., -4:] = 0  # nothing leaves the picture
    driving = np.roll(image, 3, axis=3)
    grid = coordinate_grid(32, 32)[None] - [3 * 2 / 31, 0]
    image, grid, driving = variables(image, grid, driving)
    assert run(losses.warp_loss(image, grid, driving)).item() == pytest.approx(0, abs=1e-6)


def test_separation_loss_counts_what_pairs_lack():
    points = [[[0, 0], [0.1, 0], [0.9, 0.9]], [[0.5, 0.5], [0.5, 0.5], [-0.5, 0]]]
    # squared distances below 0.1: 0.01 in the first, 0 in the second; every pair counts twice
    wanted = (2 * (0.1 - 0.01) + 2 * 0.1) / 2
    assert run(losses.separation_loss(variable(points), 0.1)).item() == pytest.approx(wanted, abs=1e-6)


def test_separation_loss_pushes_near_points_apart_and_leaves_far_ones():
    points = leaves(np.array([[[0, 0], [0.1, 0], [0.9, 0.9]]]))[0]
    (gradient,) = gradients(losses.separation_loss(points, 0.1), [points], 1.0)
    np.testing.assert_allclose(gradient, [[[0.4, 0], [-0.4, 0], [0, 0]]], atol=1e-6)
