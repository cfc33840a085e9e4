"""Equivariance against numpy: FOMM's random deformation, its derivative, both losses and their gradients."""

import numpy as np
import pytest
from reference import geometry as expected
from reference.graphs import double, gradients, leaves, numeric_gradients, run, variable, variables
from reference.layers import grid_sample

from mrfomm.networks.keypoints import Keypoints
from mrfomm.networks.ops import warp
from mrfomm.training.equivariance import (
    deform_grid,
    deform_points,
    draw_deformation,
    equivariance_losses,
    mirrored,
)


def draw(rng, batch=2, sigma=0.05, points=5):
    """A deformation strong enough that the spline matters."""
    theta = double(np.eye(2, 3) + rng.normal(0, 0.1, (batch, 2, 3)))
    return theta, double(rng.normal(0, sigma, (batch, points**2)))


def draw_keypoints(rng, batch=2, count=3):
    value = double(rng.uniform(-0.9, 0.9, (batch, count, 2)))
    return value, double(np.eye(2) + rng.normal(0, 0.2, (batch, count, 2, 2)))


def test_drawn_deformations_have_the_given_spread():
    deformation = draw_deformation(np.random.default_rng(0), 4000, 0.05, 0.005, 5)
    assert deformation.theta.shape == (4000, 2, 3)
    assert deformation.control.shape[0] == 4000
    assert np.squeeze(deformation.control).shape == (4000, 25)
    assert deformation.theta.dtype == deformation.control.dtype == np.float32
    noise = deformation.theta - np.eye(2, 3)
    np.testing.assert_allclose(noise.mean(0), 0, atol=4 * 0.05 / 4000**0.5)
    np.testing.assert_allclose(noise.std(0), 0.05, rtol=0.06)
    np.testing.assert_allclose(deformation.control.std(0), 0.005, rtol=0.06)
    assert abs(deformation.control.mean()) < 1e-4


def test_drawn_deformations_follow_the_generator():
    one, again = (draw_deformation(np.random.default_rng(1), 2, 0.05, 0.005, 3) for _ in range(2))
    other = draw_deformation(np.random.default_rng(2), 2, 0.05, 0.005, 3)
    np.testing.assert_array_equal(one.theta, again.theta)
    np.testing.assert_array_equal(one.control, again.control)
    assert (one.theta != other.theta).all()
    assert (one.control != other.control).all()
    assert (one.theta[0] != one.theta[1]).all()


@pytest.mark.parametrize("points", [3, 5])
def test_deformed_grid(points):
    theta, control = draw(np.random.default_rng(3), points=points)
    grid = run(deform_grid(*variables(theta, control), 6, 9))
    assert grid.shape == (2, 6, 9, 2)
    pixels = np.broadcast_to(expected.coordinate_grid(6, 9).reshape(1, -1, 2), (2, 54, 2))
    np.testing.assert_allclose(
        grid.reshape(2, -1, 2), expected.warp_coordinates(pixels, theta, control), rtol=1e-5, atol=1e-5
    )
    without = expected.warp_coordinates(pixels, theta, 0 * control)
    assert np.abs(grid.reshape(2, -1, 2) - without).max() > 0.05  # the spline has a part in it


def test_neutral_deformation_is_the_identity():
    grid = deform_grid(*variables(np.eye(2, 3)[None], np.zeros((1, 25))), 5, 7)
    np.testing.assert_allclose(run(grid)[0], expected.coordinate_grid(5, 7), atol=1e-6)
    frame = variable(np.random.default_rng(4).random((1, 3, 5, 7)))
    np.testing.assert_allclose(run(warp(frame, mirrored(grid))), frame.d, atol=1e-6)


def test_deformed_points_and_their_derivative():
    rng = np.random.default_rng(5)
    (theta, control), (points, _) = draw(rng), draw_keypoints(rng)
    value, jacobian = run(*deform_points(*variables(points, theta, control)))
    np.testing.assert_allclose(value, expected.warp_coordinates(points, theta, control), rtol=1e-5, atol=1e-5)
    wanted = expected.warp_coordinates_jacobian(points, theta, control)
    np.testing.assert_allclose(jacobian, wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(wanted - theta[:, None, :, :2]).max() > 0.05  # the spline has a part in it


def test_deformed_points_on_a_control_point_are_finite():
    rng = np.random.default_rng(6)
    theta, control = draw(rng, batch=1, points=5)
    points = np.array([[[0.0, 0.0], [0.5, -1.0]]])
    inputs = leaves(points)
    value, jacobian = deform_points(inputs[0], *variables(theta, control))
    np.testing.assert_allclose(run(value), expected.warp_coordinates(points, theta, control), rtol=1e-5, atol=1e-5)
    assert np.isfinite(run(jacobian)).all()
    assert np.isfinite(gradients(jacobian, inputs, np.ones(jacobian.shape))).all()


def test_gradients_of_the_deformed_points_and_of_their_derivative():
    rng = np.random.default_rng(7)
    (theta, control), (points, _) = draw(rng), draw_keypoints(rng)
    (leaf,) = leaves(points)
    outputs = deform_points(leaf, *variables(theta, control))
    for output, reference in zip(outputs, (expected.warp_coordinates, smooth_jacobian)):
        weights = rng.normal(size=output.shape)
        (actual,) = gradients(output, [leaf], weights)
        (numeric,) = numeric_gradients(lambda p, r=reference: r(p, theta, control), [points], weights, step=1e-4)
        np.testing.assert_allclose(actual, numeric, rtol=2e-3, atol=2e-3)


def smooth_jacobian(points, theta, control):
    """Steps wide enough that the second difference is not lost in rounding."""
    return expected.warp_coordinates_jacobian(points, theta, control, step=1e-5)


def test_losses():
    rng = np.random.default_rng(8)
    (theta, control), keypoints, transformed = draw(rng), draw_keypoints(rng), draw_keypoints(rng)
    losses = equivariance_losses(
        Keypoints(*variables(*keypoints)), Keypoints(*variables(*transformed)), *variables(theta, control)
    )
    actual = run(*losses)
    wanted = expected.equivariance_losses(keypoints, transformed, theta, control)
    assert [a.size for a in actual] == [1, 1]
    assert [a.item() for a in actual] == pytest.approx(list(wanted), rel=1e-4)


def test_losses_are_zero_for_a_detector_that_follows_the_deformation():
    """p = T(p_T) and J = dT/dz J_T: the constraint is met; any other keypoint is punished."""
    rng = np.random.default_rng(9)
    (theta, control), transformed = draw(rng), draw_keypoints(rng)
    value = expected.warp_coordinates(transformed[0], theta, control)
    jacobian = expected.warp_coordinates_jacobian(transformed[0], theta, control) @ transformed[1]

    def losses(value, jacobian):
        keypoints = Keypoints(*variables(value, jacobian))
        return run(*equivariance_losses(keypoints, Keypoints(*variables(*transformed)), *variables(theta, control)))

    assert max(losses(value, jacobian)) < 1e-5
    assert losses(value + 0.25, jacobian)[0] == pytest.approx(0.25, rel=1e-4)
    assert losses(value, jacobian / 2)[1] == pytest.approx(0.5, rel=1e-4)  # |I - 2 I|: half of the entries are 1


@pytest.mark.parametrize("part", [0, 1])
def test_gradients_of_the_losses_at_the_keypoints(part):
    rng = np.random.default_rng(10)
    theta, control = draw(rng)
    arrays = [*draw_keypoints(rng), *draw_keypoints(rng)]
    inputs = leaves(*arrays)
    losses = equivariance_losses(Keypoints(*inputs[:2]), Keypoints(*inputs[2:]), *variables(theta, control))
    actual = gradients(losses[part], inputs, np.ones(()))

    def reference(*arrays):
        return expected.equivariance_losses(arrays[:2], arrays[2:], theta, control)[part]

    for one, other in zip(actual, numeric_gradients(reference, arrays, 1.0)):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-4)


def test_warped_frame_mirrors_at_the_centres_of_its_border_pixels():
    """PyTorch's reflection padding with align_corners=True; the grid goes two widths beyond the frame."""
    rng = np.random.default_rng(11)
    frame, grid = double(rng.random((2, 3, 5, 8))), double(rng.uniform(-5, 5, (2, 9, 7, 2)))
    warped = run(warp(variable(frame), mirrored(variable(grid))))
    np.testing.assert_allclose(warped, grid_sample(frame, grid, "reflection"), rtol=1e-4, atol=1e-5)


def test_mirroring_by_example():
    row = np.arange(4.0).reshape(1, 1, 1, 4).repeat(3, 2)
    pixel = 2 / 3  # of the grid, for a frame 4 pixels wide
    steps = np.array([-2, -1, -0.5, 0, 3, 3.5, 4, 5, 6, 7, 8])
    grid = np.zeros((1, 1, len(steps), 2))
    grid[0, 0, :, 0] = -1 + pixel * steps
    warped = run(warp(variable(row), mirrored(variable(grid))))[0, 0, 0]
    np.testing.assert_allclose(warped, [2, 1, 0.5, 0, 3, 2.5, 2, 1, 0, 1, 2], atol=1e-5)


def test_keypoints_of_a_warped_frame_follow_the_convention():
    """What is at T(z) in the frame appears at z in the warped frame: so p = T(p_T)."""
    rng = np.random.default_rng(12)
    deformation = draw_deformation(rng, 1, 0.05, 0.005, 5)
    size = 129
    at = expected.coordinate_grid(size, size)
    seen = np.array([0.2, -0.3])  # p_T
    target = run(deform_points(*variables([[seen]], *deformation))[0])[0, 0]
    frame = np.exp(-((at - target) ** 2).sum(-1) / 0.01)[None, None]
    warped = run(warp(variable(frame), mirrored(deform_grid(*variables(*deformation), size, size))))[0, 0]
    row, column = np.unravel_index(warped.argmax(), warped.shape)
    np.testing.assert_allclose(at[row, column], seen, atol=2 / (size - 1))
