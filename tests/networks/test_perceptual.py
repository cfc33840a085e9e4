"""Frozen networks on random weights against numpy; their layers, shapes and frozenness."""

import nnabla as nn
import numpy as np
import pytest
from reference import networks as expected
from reference.graphs import double, gradients, leaves, numeric_slope, run, variable

from mrfomm.networks.perceptual import alexnet_features, load_frozen, normalise, vgg19_features, vgg19_shapes


@pytest.fixture(scope="module")
def vgg19():
    return expected.draw_frozen_weights(expected.vgg19_shapes())


@pytest.fixture(scope="module")
def alexnet():
    return expected.draw_frozen_weights(expected.alexnet_shapes())


def reference(arrays):
    return expected.Parameters({name: np.asarray(array, np.float64) for name, array in arrays.items()})


def test_vgg19_shapes_are_torchvisions_up_to_relu5_1():
    assert {name: tuple(shape) for name, shape in vgg19_shapes().items()} == expected.vgg19_shapes()


def test_vgg19_features(vgg19):
    x = double(np.random.default_rng(1).normal(size=(2, 3, 16, 32)))
    features = run(*vgg19_features(variable(x), load_frozen(vgg19)))
    assert [f.shape for f in features] == [
        (2, 64, 16, 32),
        (2, 128, 8, 16),
        (2, 256, 4, 8),
        (2, 512, 2, 4),
        (2, 512, 1, 2),
    ]
    for one, other in zip(features, expected.vgg19_features(x, reference(vgg19))):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
        assert other.std() > 0.05


@pytest.mark.parametrize("size", [(31, 31), (40, 67)])
def test_alexnet_features(alexnet, size):
    x = double(np.random.default_rng(2).normal(size=(2, 3, *size)))
    features = run(*alexnet_features(variable(x), load_frozen(alexnet)))
    assert [f.shape[1] for f in features] == [64, 192, 384, 256, 256]
    for one, other in zip(features, expected.alexnet_features(x, reference(alexnet))):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
        assert other.std() > 0.05


def test_alexnet_takes_no_smaller_image_than_it_says(alexnet):
    nn.clear_parameters()
    features = alexnet_features(nn.Variable((1, 3, 31, 31)), load_frozen(alexnet))
    assert [f.shape[2] for f in features] == [7, 3, 1, 1, 1]


@pytest.mark.parametrize("name", ["vgg19", "alexnet"])
def test_the_gradient_passes_through_but_stops_at_the_weights(name, request):
    arrays = request.getfixturevalue(name)
    network = {"vgg19": vgg19_features, "alexnet": alexnet_features}[name]
    slow = getattr(expected, f"{name}_features")
    rng = np.random.default_rng(3)
    x = double(rng.normal(size=(1, 3, 16, 16) if name == "vgg19" else (1, 3, 35, 31)))
    (leaf,) = leaves(x)
    parameters = load_frozen(arrays)
    assert not any(p.need_grad for p in parameters.values())
    last = network(leaf, parameters)[-1]
    weights, direction = rng.normal(size=last.shape), rng.normal(size=x.shape)
    (actual,) = gradients(last, [leaf], weights)
    p = reference(arrays)
    slope = numeric_slope(lambda x: np.sum(weights * slow(x, p)[-1]), x, direction)
    assert np.sum(actual * direction) == pytest.approx(slope, rel=1e-3)


def test_load_frozen_keeps_names_and_values_apart_from_the_global_parameters(alexnet):
    nn.clear_parameters()
    parameters = load_frozen(alexnet)
    alexnet_features(nn.Variable((1, 3, 31, 31)), parameters)
    assert set(parameters) == set(alexnet)
    for name, array in alexnet.items():
        np.testing.assert_array_equal(parameters[name].d, array)
        assert parameters[name].d.dtype == np.float32
    assert not nn.get_parameters(grad_only=False)


def test_normalise():
    image = double(np.random.default_rng(4).random((2, 3, 3, 4)))
    np.testing.assert_allclose(
        run(normalise(variable(image))), expected.imagenet_normalise(image), rtol=1e-5, atol=1e-6
    )
    given = run(normalise(variable(image), np.float32([1, 2, 3]), np.float32([0.5, 2, 4])))
    np.testing.assert_allclose(given[:, 2], (image[:, 2] - 3) / 4, rtol=1e-5)
    np.testing.assert_allclose(given[:, 0], (image[:, 0] - 1) / 0.5, rtol=1e-5, atol=1e-6)
