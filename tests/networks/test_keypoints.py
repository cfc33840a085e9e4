"""Keypoint detector: against numpy, on pictures whose answer is known, and its gradients."""

import nnabla as nn
import numpy as np
import pytest
from reference import networks as expected
from reference.geometry import coordinate_grid
from reference.graphs import build, double, gradients, leaves, numeric_slope, reference_parameters, run, variable

from mrfomm.networks.keypoints import detect_keypoints

POINTS = 3


def detect(image, scale=0.5, temperature=0.1, **options):
    return detect_keypoints(image, POINTS, 4, 12, 2, scale, temperature, **options)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("scale", [1, 0.5])
def test_detector_matches_its_reference(scale, training):
    rng = np.random.default_rng(0)
    image = double(rng.random((2, 3, 32, 40)))
    keypoints, tree = build(lambda: detect(variable(image), scale, training=training), rng)
    value, jacobian = expected.detect_keypoints(image, reference_parameters(tree, training), scale, 0.1)
    actual = run(*keypoints)
    assert actual[0].shape == (2, POINTS, 2)
    assert actual[1].shape == (2, POINTS, 2, 2)
    np.testing.assert_allclose(actual[0], value, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(actual[1], jacobian, rtol=1e-3, atol=1e-4)


def test_untrained_detector_has_identity_jacobians():
    image = np.random.default_rng(1).random((2, 3, 32, 32))
    keypoints, _ = build(lambda: detect(variable(image)))
    value, jacobian = run(*keypoints)
    np.testing.assert_allclose(jacobian, np.broadcast_to(np.eye(2), jacobian.shape), atol=1e-6)
    assert np.abs(value).max() < 1


def heatmaps_only(tree, bias=0.0):
    """Let the network see nothing but its input: keypoint k is where channel k of the image is bright.

    The hourglass's output ends with its input; the heatmap convolution picks those channels at its kernel's centre.
    """
    for name, parameter in tree.all().items():
        if "hourglass" not in name and not name.startswith("keypoints/jacobian"):
            parameter.d = 0
    weight = tree.all()["keypoints/heatmap/conv/W"]
    values = np.zeros(weight.shape, np.float32)
    for k in range(POINTS):
        values[k, weight.shape[1] - 3 + k, 3, 3] = 1
    weight.d = values
    tree.all()["keypoints/heatmap/conv/b"].d = bias


def test_keypoints_are_where_the_maps_are_bright():
    """Three bright pixels; the 7x7 convolution without padding leaves out three pixels on each side."""
    bright = [(3, 3), (12, 20), (9, 5)]  # row, column
    image = np.zeros((1, 3, 16, 24))
    for k, (row, column) in enumerate(bright):
        image[0, k, row, column] = 1
    keypoints, tree = build(lambda: detect(variable(image), scale=1, temperature=0.01))
    heatmaps_only(tree, bias=5.0)
    grid = coordinate_grid(16 - 6, 24 - 6)
    wanted = [grid[row - 3, column - 3] for row, column in bright]
    np.testing.assert_allclose(run(keypoints.value)[0], wanted, atol=1e-5)


def test_soft_argmax_between_two_equally_bright_pixels_is_their_mean():
    image = np.zeros((1, 3, 16, 16))
    image[0, 0, 4, 5] = image[0, 0, 10, 7] = 1
    keypoints, tree = build(lambda: detect(variable(image), scale=1, temperature=0.01))
    heatmaps_only(tree)
    grid = coordinate_grid(10, 10)
    np.testing.assert_allclose(run(keypoints.value)[0, 0], (grid[1, 2] + grid[7, 4]) / 2, atol=1e-5)


def test_temperature_divides_the_logits():
    """Of two pixels whose logits differ by d, the brighter has the weight of a sigmoid of d / temperature."""
    image = np.full((1, 3, 16, 16), -60.0)
    image[0, 0, 8, 3], image[0, 0, 8, 12] = 0.2, 0.0
    keypoints, tree = build(lambda: detect(variable(image), scale=1, temperature=0.25))
    heatmaps_only(tree)
    x, y = run(keypoints.value)[0, 0]
    assert x == pytest.approx(-np.tanh(0.2 / 0.25 / 2), abs=1e-5)
    assert y == pytest.approx(2 * 5 / 9 - 1, abs=1e-5)


def test_jacobian_is_read_at_the_keypoint_row_by_row():
    """A jacobian map that is one on the left half and two on the right, for a keypoint on the right."""
    image = np.zeros((1, 3, 16, 16))
    image[0, 0, 8, 12] = 1
    keypoints, tree = build(lambda: detect(variable(image), scale=1, temperature=0.005))
    heatmaps_only(tree)
    weight = tree.all()["keypoints/jacobian/conv/W"]
    values = np.zeros(weight.shape, np.float32)
    values[:4, weight.shape[1] - 3, 3, 3] = [1, 2, 3, 4]
    weight.d = values
    tree.all()["keypoints/jacobian/conv/b"].d = np.float32([0, 0, 0, 0] + [10, 20, 30, 40] * 2)
    jacobian = run(keypoints.jacobian)[0]
    np.testing.assert_allclose(jacobian[0], [[1, 2], [3, 4]], rtol=1e-5)
    np.testing.assert_allclose(jacobian[1], [[10, 20], [30, 40]], rtol=1e-5)


@pytest.mark.cpu
def test_gradient_at_the_image():
    rng = np.random.default_rng(2)
    image = double(rng.random((1, 3, 32, 32)))
    (leaf,) = leaves(image)
    keypoints, tree = build(lambda: detect(leaf, temperature=1.0), rng)
    p = reference_parameters(tree)
    direction = rng.normal(size=image.shape)
    for output, part in ((keypoints.value, 0), (keypoints.jacobian, 1)):
        weights = rng.normal(size=output.shape)
        (actual,) = gradients(output, [leaf], weights)
        slope = numeric_slope(
            lambda x, part=part, w=weights: np.sum(w * expected.detect_keypoints(x, p, 0.5, 1.0)[part]),
            image,
            direction,
        )
        assert np.sum(actual * direction) == pytest.approx(slope, rel=1e-3)


def test_maps_of_vox_256_have_58_pixels_a_side():
    image = nn.Variable((1, 3, 256, 256))
    keypoints, _ = build(lambda: detect_keypoints(image, 10, 32, 1024, 5, 0.25, 0.1))
    shapes = set()
    keypoints.jacobian.visit(lambda function: shapes.update(output.shape for output in function.outputs))
    assert {(1, 10, 58, 58), (1, 40, 58, 58)} <= shapes
