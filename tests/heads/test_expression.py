"""Expressions, speech, blinks and gaze."""

import numpy as np
import pytest

from mrfomm.heads.geometry import load_template
from mrfomm.heads.motion import EXPRESSIONS, VISEMES, both, random_performance, weights_of

FRAMES = 200


@pytest.fixture(scope="module")
def names():
    return list(load_template().units)


@pytest.fixture(scope="module")
def performances(names):
    return np.stack([random_performance(names, FRAMES, np.random.default_rng(seed)) for seed in range(12)])


def test_both_sides():
    assert both(eyeBlink=1, eyeWide=0.5) == {
        "eyeBlinkLeft": 1,
        "eyeBlinkRight": 1,
        "eyeWideLeft": 0.5,
        "eyeWideRight": 0.5,
    }


@pytest.mark.parametrize("poses", [VISEMES, EXPRESSIONS], ids=["visemes", "expressions"])
def test_every_pose_uses_units_of_the_asset(names, poses):
    for pose in poses.values():
        assert set(pose) <= set(names)
        assert all(0 <= weight <= 1 for weight in pose.values())
        assert weights_of(names, pose).sum() == pytest.approx(sum(pose.values()))


def test_performance_is_lively_and_in_range(names, performances):
    assert performances.shape == (12, FRAMES, len(names))
    assert performances.min() >= 0
    assert performances.max() <= 1
    jaw = performances[..., names.index("jawOpen")]
    assert (np.ptp(jaw, axis=1) > 0.35).all()  # every clip opens and closes the mouth
    speech = np.abs(np.diff(jaw, axis=1)).mean(1)
    assert (speech > 0.01).all()
    assert np.abs(np.diff(jaw, axis=1)).max() < 0.5  # without jumps
    used = performances.max((0, 1))
    assert (used > 0.2).sum() > 40  # of 52 units


def test_blinks_close_both_eyes_about_every_two_seconds(names, performances):
    left, right = (performances[..., names.index(f"eyeBlink{side}")] for side in ("Left", "Right"))
    closed = left > 0.9
    assert (closed == (right > 0.9)).all()
    blinks = (np.diff(closed.astype(int), axis=1) == 1).sum(1)
    assert 1.5 < blinks.mean() < 8  # in 8 seconds


def test_eyes_look_the_same_way(names, performances):
    def unit(name):
        return performances[..., names.index(name)]

    np.testing.assert_array_equal(unit("eyeLookInLeft"), unit("eyeLookOutRight"))
    np.testing.assert_array_equal(unit("eyeLookOutLeft"), unit("eyeLookInRight"))
    np.testing.assert_array_equal(unit("eyeLookUpLeft"), unit("eyeLookUpRight"))
    assert (unit("eyeLookInLeft") * unit("eyeLookOutLeft")).max() == 0


def test_same_seed_same_performance(names, performances):
    np.testing.assert_array_equal(performances[3], random_performance(names, FRAMES, np.random.default_rng(3)))
