"""Dense motion: sparse motions, mask, deformation and occlusion against numpy, and what must hold for any weights."""

import numpy as np
import pytest
from reference import geometry
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
    variables,
)

from mrfomm.networks.keypoints import Keypoints
from mrfomm.networks.motion import Motion, estimate_motion, sparse_motions

POINTS, HEIGHT, WIDTH = 3, 16, 20
VARIANCE = 0.02


def draw_keypoints(rng, batch=2):
    """A (value, jacobian) pair of arrays."""
    value = double(rng.uniform(-0.9, 0.9, (batch, POINTS, 2)))
    return value, double(np.eye(2) + rng.normal(0, 0.2, (batch, POINTS, 2, 2)))


def estimate(image, reference, driving, **options):
    return estimate_motion(image, reference, driving, 4, 12, 2, VARIANCE, **options)


def test_sparse_motions():
    rng = np.random.default_rng(0)
    reference, driving = draw_keypoints(rng), draw_keypoints(rng)
    motions = run(sparse_motions(Keypoints(*variables(*reference)), Keypoints(*variables(*driving)), 5, 7))
    assert motions.shape == (2, POINTS + 1, 2, 5, 7)
    wanted = geometry.sparse_motions(reference, driving, 5, 7).transpose(0, 1, 4, 2, 3)
    np.testing.assert_allclose(motions, wanted, rtol=1e-5, atol=1e-5)


def test_sparse_motions_take_the_driving_keypoint_to_the_reference_keypoint():
    """At the pixel of a driving keypoint, its motion points at the reference's; next to it, as the jacobians say."""
    driving, reference = [[[0.5, -1.0]]], [[[-0.25, 0.75]]]
    turn = [[[[0.0, -1.0], [1.0, 0.0]]]]  # a quarter turn from the driving pose to the reference
    motions = run(
        sparse_motions(Keypoints(*variables(reference, turn)), Keypoints(*variables(driving, [[np.eye(2)]])), 5, 5)
    )
    np.testing.assert_allclose(motions[0, 1, :, 0, 3], [-0.25, 0.75], atol=1e-6)
    np.testing.assert_allclose(motions[0, 1, :, 0, 4], [-0.25, 1.25], atol=1e-6)  # a step right becomes one down
    np.testing.assert_allclose(motions[0, 1, :, 1, 3], [-0.75, 0.75], atol=1e-6)  # a step down becomes one left
    np.testing.assert_allclose(motions[0, 0, :, 0, 3], [0.5, -1], atol=1e-6)  # the background stays


def test_sparse_motion_gradients():
    rng = np.random.default_rng(1)
    arrays = [*draw_keypoints(rng, 1), *draw_keypoints(rng, 1)]
    weights = rng.normal(size=(1, POINTS + 1, 2, 3, 4))
    inputs = leaves(*arrays)
    actual = gradients(sparse_motions(Keypoints(*inputs[:2]), Keypoints(*inputs[2:]), 3, 4), inputs, weights)

    def reference(*arrays):
        return geometry.sparse_motions(arrays[:2], arrays[2:], 3, 4).transpose(0, 1, 4, 2, 3)

    for one, other in zip(actual, numeric_gradients(reference, arrays, weights)):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_motion_matches_its_reference(training):
    rng = np.random.default_rng(2)
    image = double(rng.random((2, 3, HEIGHT, WIDTH)))
    reference, driving = draw_keypoints(rng), draw_keypoints(rng)
    motion, tree = build(
        lambda: estimate(
            variable(image), Keypoints(*variables(*reference)), Keypoints(*variables(*driving)), training=training
        ),
        rng,
    )
    p = reference_parameters(tree, training)
    wanted = Motion(*expected.estimate_motion(image, reference, driving, p, VARIANCE))
    actual = Motion(*run(*motion))
    assert actual.deformation.shape == (2, HEIGHT, WIDTH, 2)
    assert actual.occlusion.shape == (2, 1, HEIGHT, WIDTH)
    assert actual.mask.shape == (2, POINTS + 1, HEIGHT, WIDTH)
    for one, other in zip(actual, wanted):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(actual.mask.sum(1), 1, rtol=1e-5)
    assert wanted.occlusion.std() > 0.01  # not a comparison of constants
    assert wanted.mask.std() > 0.01


def test_equal_keypoints_mean_no_motion():
    rng = np.random.default_rng(3)
    keypoints = Keypoints(*variables(*draw_keypoints(rng)))
    image = variable(rng.random((2, 3, HEIGHT, WIDTH)))
    motion, _ = build(lambda: estimate(image, keypoints, keypoints), rng)
    grid = geometry.coordinate_grid(HEIGHT, WIDTH)
    np.testing.assert_allclose(run(motion.deformation), np.stack([grid, grid]), atol=1e-5)


@pytest.mark.parametrize("chosen", range(POINTS + 1))
def test_a_mask_of_one_keypoint_gives_its_motion(chosen):
    rng = np.random.default_rng(4)
    reference, driving = draw_keypoints(rng), draw_keypoints(rng)
    image = variable(rng.random((2, 3, HEIGHT, WIDTH)))
    motion, tree = build(
        lambda: estimate(image, Keypoints(*variables(*reference)), Keypoints(*variables(*driving))), rng
    )
    tree.all()["motion/mask/conv/W"].d = 0
    tree.all()["motion/mask/conv/b"].d = 200 * np.eye(POINTS + 1, dtype=np.float32)[chosen]
    deformation, mask = run(motion.deformation, motion.mask)
    wanted = geometry.sparse_motions(reference, driving, HEIGHT, WIDTH)[:, chosen]
    np.testing.assert_allclose(deformation, wanted, rtol=1e-5, atol=1e-5)
    assert (mask[:, chosen] == 1).all()


@pytest.mark.cpu
def test_gradients_at_the_keypoints_and_the_image():
    rng = np.random.default_rng(5)
    image = double(rng.random((1, 3, HEIGHT, WIDTH)))
    arrays = [image, *draw_keypoints(rng, 1), *draw_keypoints(rng, 1)]
    inputs = leaves(*arrays)
    motion, tree = build(lambda: estimate(inputs[0], Keypoints(*inputs[1:3]), Keypoints(*inputs[3:])), rng)
    p = reference_parameters(tree)
    directions = [rng.normal(size=array.shape) for array in arrays]
    for part, output in enumerate(motion):
        weights = rng.normal(size=output.shape)
        actual = gradients(output, inputs, weights)
        for i, (gradient, direction) in enumerate(zip(actual, directions)):

            def value(array, i=i, part=part, weights=weights):
                image, *keypoints = [*arrays[:i], array, *arrays[i + 1 :]]
                parts = expected.estimate_motion(image, keypoints[:2], keypoints[2:], p, VARIANCE)
                return np.sum(weights * parts[part])

            slope = numeric_slope(value, arrays[i], direction)
            assert np.sum(gradient * direction) == pytest.approx(slope, rel=2e-3, abs=1e-3)
