"""Trajectories of the angles."""

import numpy as np
import pytest

from mrfomm.heads import motion

LIMITS = np.array(motion.LIMITS)


def test_random_motion_is_smooth_and_stays_within_the_limits():
    for seed in range(20):
        angles = motion.random_motion(64, np.random.default_rng(seed))
        assert angles.shape == (64, 3)
        assert (np.abs(angles) <= LIMITS + 1e-9).all()
        assert np.abs(np.diff(angles, axis=0)).max() < 20  # degrees a frame
        assert np.abs(np.diff(angles, 2, axis=0)).max() < 6


def test_some_move_much_and_some_little():
    clips = [motion.random_motion(64, np.random.default_rng(seed)) for seed in range(200)]
    yaw = np.array([np.ptp(angles[:, 0]) for angles in clips])
    assert 24 - 1e-9 <= yaw.min() < 30
    assert 110 < yaw.max() <= 120
    assert 65 < yaw.mean() < 79  # of reaches even from 12 to 60, to both sides: 72
    everything = np.concatenate(clips)
    assert (everything.max(axis=0) > 0.85 * LIMITS).all()
    assert (everything.min(axis=0) < -0.85 * LIMITS).all()


def test_turned_heads_nod_and_tilt_less():
    angles = np.concatenate([motion.random_motion(64, np.random.default_rng(seed)) for seed in range(30)])
    bound = LIMITS[1:] * (1 - 0.6 * (angles[:, :1] / 60) ** 2)
    assert (np.abs(angles[:, 1:]) <= bound + 1e-9).all()


@pytest.mark.parametrize(("axis", "limit"), list(zip(motion.AXES, motion.LIMITS)))
def test_sweeps(axis, limit):
    angles = motion.sweep(axis, 121, np.random.default_rng(3))
    swept = motion.AXES.index(axis)
    np.testing.assert_allclose(angles[:, swept], np.linspace(-limit, limit, 121))
    assert np.abs(np.delete(angles, swept, 1)).max() <= 1.5
    if axis == "yaw":  # the references of the paper's protocol
        assert {-30.0, 0.0, 30.0} <= set(angles[:, 0].round(9))


def test_same_seed_same_motion():
    first, same, other = (motion.random_motion(30, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1


def test_smooth_against_a_loop():
    curve = np.random.default_rng(0).normal(size=(20, 2))
    seconds, reach = 0.06, 5  # 3 * 0.06 * 25 = 4.5 frames
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (seconds * motion.FPS)) ** 2)
    expected = np.empty_like(curve)
    for row in range(20):
        rows = [min(max(row + step, 0), 19) for step in range(-reach, reach + 1)]
        expected[row] = sum(weight * curve[at] for weight, at in zip(kernel, rows)) / kernel.sum()
    np.testing.assert_allclose(motion.smooth(curve, seconds), expected)
