"""Geometry: every coordinate convention against numpy; the gradients of warp and inverse against differences."""

import nnabla.functions as F
import numpy as np
import pytest
from reference import geometry as expected
from reference.graphs import double, gradients, leaves, numeric_gradients, run, variable, variables
from reference.layers import grid_sample, resize_bilinear

from mrfomm.networks import geometry, ops


def well_conditioned(rng, *shape):
    """Matrices [...,2,2] near the identity."""
    return double(np.eye(2) + rng.normal(0, 0.3, (*shape, 2, 2)))


def test_grid_has_its_corners_on_pixel_centres_and_x_first():
    grid = geometry.coordinate_grid(3, 5)
    assert grid.dtype == np.float32
    np.testing.assert_array_equal(grid[0, 0], [-1, -1])
    np.testing.assert_array_equal(grid[0, -1], [1, -1])
    np.testing.assert_array_equal(grid[-1, 0], [-1, 1])
    np.testing.assert_array_equal(grid[-1, -1], [1, 1])
    np.testing.assert_array_equal(grid[1, 3], [0.5, 0])
    np.testing.assert_allclose(geometry.coordinate_grid(58, 7), expected.coordinate_grid(58, 7), atol=1e-6)


@pytest.mark.parametrize("variance", [0.01, 0.3])
def test_gaussian_heatmaps(variance):
    points = double(np.random.default_rng(0).uniform(-1.2, 1.2, (2, 3, 2)))
    heatmaps = run(geometry.gaussian_heatmaps(variable(points), 9, 12, variance))
    np.testing.assert_allclose(heatmaps, expected.gaussian_heatmaps(points, 9, 12, variance), rtol=3e-5, atol=1e-7)


def test_heatmap_difference():
    points, others = double(np.random.default_rng(2).uniform(-1.2, 1.2, (2, 2, 3, 2)))
    difference = run(geometry.heatmap_difference(variable(points), variable(others), 9, 12, 0.1))
    wanted = expected.gaussian_heatmaps(points, 9, 12, 0.1) - expected.gaussian_heatmaps(others, 9, 12, 0.1)
    np.testing.assert_allclose(difference, wanted, atol=1e-6)


def test_gaussian_heatmap_is_one_at_its_point():
    heatmaps = run(geometry.gaussian_heatmaps(variable([[[1, -1], [0, 0.5]]]), 5, 3, 0.01))
    assert heatmaps[0, 0, 0, 2] == 1
    assert heatmaps[0, 1, 3, 1] == 1
    assert np.sum(heatmaps == 1) == 2


def test_gaussian_heatmap_gradient():
    rng = np.random.default_rng(1)
    points = double(rng.uniform(-1, 1, (2, 2, 2)))
    weights = rng.normal(size=(2, 2, 6, 5))
    (leaf,) = leaves(points)
    (actual,) = gradients(geometry.gaussian_heatmaps(leaf, 6, 5, 0.1), [leaf], weights)
    (numeric,) = numeric_gradients(lambda p: expected.gaussian_heatmaps(p, 6, 5, 0.1), [points], weights)
    np.testing.assert_allclose(actual, numeric, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1,), (2, 3), (4, 2, 3)])
def test_inverse_and_product_of_matrices(shape):
    rng = np.random.default_rng(2)
    left, right = well_conditioned(rng, *shape), well_conditioned(rng, *shape)
    inverse, product = run(geometry.inverse_2x2(variable(left)), geometry.matmul_2x2(variable(left), variable(right)))
    np.testing.assert_allclose(inverse, np.linalg.inv(left), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(product, left @ right, rtol=1e-5, atol=1e-6)


def test_inverse_of_a_matrix_far_from_the_identity_is_precise():
    matrix = np.array([[[3e-3, 1.0], [-250.0, 7.0]]])
    inverse = run(geometry.inverse_2x2(variable(matrix)))
    np.testing.assert_allclose(inverse, np.linalg.inv(double(matrix)), rtol=1e-6)


def test_inverse_of_a_singular_matrix_is_not_finite():
    inverse = run(geometry.inverse_2x2(variable([[[1, 2], [2, 4]], [[2, 0], [0, 4]]])))
    assert not np.isfinite(inverse[0]).any()
    np.testing.assert_array_equal(inverse[1], [[0.5, 0], [0, 0.25]])


def test_gradients_of_inverse_and_product():
    rng = np.random.default_rng(3)
    left, right = well_conditioned(rng, 2, 2), well_conditioned(rng, 2, 2)
    weights = rng.normal(size=left.shape)
    matrices = leaves(left, right)
    actual = gradients(geometry.matmul_2x2(geometry.inverse_2x2(matrices[0]), matrices[1]), matrices, weights)
    numeric = numeric_gradients(lambda a, b: np.linalg.inv(a) @ b, [left, right], weights)
    for one, other in zip(actual, numeric):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_apply_affine_against_a_loop():
    rng = np.random.default_rng(4)
    matrix, offset = well_conditioned(rng, 2, 3), double(rng.normal(size=(2, 3, 2)))
    moved = run(geometry.apply_affine(variable(matrix), variable(offset), 4, 5))
    assert moved.shape == (2, 3, 2, 4, 5)
    grid = expected.coordinate_grid(4, 5)
    for n, k, y, x in np.ndindex(2, 3, 4, 5):
        np.testing.assert_allclose(moved[n, k, :, y, x], matrix[n, k] @ grid[y, x] + offset[n, k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scale", "size"), [(0.5, 5), (1 / 3, 9), (0.25, 13), (0.125, 29)])
def test_antialias_kernel(scale, size):
    kernel = np.squeeze(geometry.antialias_kernel(scale))
    np.testing.assert_allclose(kernel, expected.antialias_kernel(scale), rtol=1e-5, atol=1e-9)
    assert kernel.shape == (size, size)
    assert abs(kernel.sum(dtype=float) - 1) < 1e-6


@pytest.mark.parametrize("scale", [0.5, 1 / 3, 0.25])
def test_downsample(scale):
    x = double(np.random.default_rng(5).random((2, 3, 24, 36)))
    small = run(geometry.downsample(variable(x), scale))
    assert small.shape == (2, 3, 24 * scale, 36 * scale)
    np.testing.assert_allclose(small, expected.downsample(x, scale), rtol=1e-5, atol=1e-6)


def test_downsample_keeps_the_first_pixel_and_darkens_the_border():
    """The kept pixels start at 0; the padding is zero, so a white picture is darker at its border."""
    small = run(geometry.downsample(variable(np.ones((1, 1, 64, 64))), 0.25))[0, 0]
    kernel = expected.antialias_kernel(0.25)
    assert abs(small[8, 8] - 1) < 1e-6
    assert abs(small[0, 0] - kernel[6:, 6:].sum()) < 1e-6
    assert abs(small[0, 15] - kernel[6:, :10].sum()) < 1e-6


def test_downsample_by_one_is_the_input():
    x = variable(np.zeros((1, 3, 4, 4)))
    assert geometry.downsample(x, 1) is x


def test_downsample_gradient_is_its_transpose():
    """<downsample(x), w> = <x, gradient> for every x, as downsampling is linear."""
    rng = np.random.default_rng(6)
    weights = rng.normal(size=(1, 2, 4, 6))
    (leaf,) = leaves(np.zeros((1, 2, 16, 24)))
    (gradient,) = gradients(geometry.downsample(leaf, 0.25), [leaf], weights)
    x = rng.normal(size=leaf.shape)
    assert np.sum(gradient * x) == pytest.approx(np.sum(expected.downsample(x, 0.25) * weights), rel=1e-4)


@pytest.mark.parametrize("size", [(4, 6), (8, 3), (16, 12), (5, 13)])
def test_resize(size):
    x = double(np.random.default_rng(7).normal(size=(2, 2, 8, 6)))
    np.testing.assert_allclose(
        run(geometry.resize(variable(x), *size)), resize_bilinear(x, *size), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("size", [(1, 3), (4, 1), (1, 1)])
def test_resize_to_a_single_row_or_column_is_refused(size):
    """nnabla would take the first pixel where PyTorch takes the half-pixel centre."""
    with pytest.raises(ValueError, match="at least 2 pixels"):
        geometry.resize(variable(np.zeros((2, 2, 8, 6))), *size)


def test_resize_to_its_own_size_is_the_input():
    x = variable(np.zeros((1, 3, 4, 6)))
    assert geometry.resize(x, 4, 6) is x
    assert geometry.resize(x, 6, 4).shape == (1, 3, 6, 4)


def test_warp_by_the_identity_returns_the_image():
    x = np.random.default_rng(8).random((2, 3, 5, 7))
    grid = np.stack([geometry.coordinate_grid(5, 7)] * 2)
    np.testing.assert_allclose(run(ops.warp(variable(x), variable(grid))), x, atol=1e-6)


def test_warp_takes_x_from_columns_and_y_from_rows():
    x = np.arange(12.0).reshape(1, 1, 3, 4)
    grid = [[[[1, -1], [-1, 1], [-1 / 3, 0], [-1, 0.5]]]]
    np.testing.assert_allclose(run(ops.warp(variable(x), variable(grid)))[0, 0, 0], [3, 8, 5, 6], atol=1e-5)


def test_warp_within_and_outside_the_image():
    rng = np.random.default_rng(9)
    x, grid = double(rng.normal(size=(2, 3, 6, 5))), double(rng.uniform(-1.8, 1.8, (2, 7, 8, 2)))
    np.testing.assert_allclose(run(ops.warp(variable(x), variable(grid))), grid_sample(x, grid), rtol=1e-5, atol=2e-6)


def test_warp_fades_to_zero_over_one_pixel_outside():
    x, step = np.ones((1, 1, 3, 3)), 1.0  # a pixel is 1 unit of the grid wide
    grid = [[[[1 + 0.25 * step, 0], [1 + step, 0], [0, -1 - 0.75 * step], [5, 0], [0, -5]]]]
    np.testing.assert_allclose(run(ops.warp(variable(x), variable(grid)))[0, 0, 0], [0.75, 0, 0.25, 0, 0])


def test_warp_gradients():
    rng = np.random.default_rng(10)
    height, width = 5, 6
    x = double(rng.normal(size=(2, 3, height, width)))
    # Positions in pixels, from two pixels outside to two outside, at a distance from the kinks at whole pixels.
    pixel = rng.integers(-2, [width + 1, height + 1], (2, 4, 5, 2)) + rng.uniform(0.15, 0.85, (2, 4, 5, 2))
    grid = double(pixel / [(width - 1) / 2, (height - 1) / 2] - 1)
    weights = rng.normal(size=(2, 3, 4, 5))
    inputs = leaves(x, grid)
    actual = gradients(ops.warp(*inputs), inputs, weights)
    numeric = numeric_gradients(grid_sample, [x, grid], weights)
    for one, other in zip(actual, numeric):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)
    outside = (pixel < -1).any(-1) | (pixel > [width, height]).any(-1)
    assert outside.any()
    assert not outside.all()
    assert not actual[1][outside].any()


def test_affine_heatmap_and_warp_gradients_reach_the_keypoints():
    """The chain from keypoints to a warped image, as the motion network uses it."""
    rng = np.random.default_rng(11)
    image, matrix = double(rng.random((1, 2, 6, 7))), well_conditioned(rng, 1, 1)
    offset = double(rng.normal(0, 0.2, (1, 1, 2)))
    weights = rng.normal(size=(1, 2, 4, 5))

    def warped(matrix, offset):
        grid = np.einsum("nkij,hwj->nkhwi", matrix, expected.coordinate_grid(4, 5)) + offset[:, :, None, None]
        return grid_sample(image, grid[:, 0])

    inputs = leaves(matrix, offset)
    grid = F.transpose(F.reshape(geometry.apply_affine(*inputs, 4, 5), (1, 2, 4, 5)), (0, 2, 3, 1))
    actual = gradients(ops.warp(*variables(image), grid), inputs, weights)
    numeric = numeric_gradients(warped, [matrix, offset], weights, step=1e-6)
    for one, other in zip(actual, numeric):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
