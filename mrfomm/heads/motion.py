"""Trajectories of the head's angles: smooth and random, or the sweeps of the paper's protocol."""

from typing import NamedTuple

import numpy as np

LIMITS = (60.0, 30.0, 30.0)  # degrees of yaw, pitch and roll, to both sides
AXES = ("yaw", "pitch", "roll")
FPS = 25.0  # VoxCeleb's


class Pace(NamedTuple):
    """Seconds: least and greatest time between two poses, and the width of the Gaussian that smooths the way."""

    least: float
    greatest: float
    smoothing: float


_YAW = Pace(0.55, 1.1, 0.16)
_OTHERS = Pace(0.35, 0.8, 0.14)
_JITTER_PACE = Pace(0.4, 0.9, 0.15)


def wander(count: int, low: float, high: float, pace: Pace, rng: np.random.Generator) -> np.ndarray:
    """A smooth random curve [count] within low..high, a value per frame.

    Its turning points are spread evenly over the range, in random order, so that even a short curve covers it.
    """
    span = count / FPS + 2 * pace.greatest
    times = np.cumsum(rng.uniform(pace.least, pace.greatest, int(span / pace.least) + 2)) - pace.greatest
    knots = int(np.searchsorted(times, count / FPS)) + 2
    values = np.full(len(times), (low + high) / 2)
    values[:knots] = low + (high - low) * (rng.permutation(knots) + rng.random(knots)) / knots
    return smooth(np.interp(np.arange(count) / FPS, times, values), pace.smoothing)


def smooth(curve: np.ndarray, seconds: float) -> np.ndarray:
    """Convolve [N] or [N,C] along the first axis with a Gaussian of this standard deviation; the ends are held."""
    reach = int(np.ceil(3 * seconds * FPS))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (seconds * FPS)) ** 2)
    kernel /= kernel.sum()
    padded = np.concatenate([np.repeat(curve[:1], reach, 0), curve, np.repeat(curve[-1:], reach, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), 0)  # [N,...,window]
    return windows @ kernel


def random_motion(count: int, rng: np.random.Generator) -> np.ndarray:
    """Angles float64 [count,3] (yaw, pitch, roll in degrees) that wander over a part of LIMITS.

    People differ in how much they move: the range of each angle is a fifth to the whole of its limits, about a middle
    of its own, nearer to the front than to the side. The further the head is turned, the less it nods and tilts, down
    to two fifths at yaw 60: such a pose is hard to hold, and shows no face that a detector would find.
    """
    curves = [wander(count, -1, 1, pace, rng) for pace in (_YAW, _OTHERS, _OTHERS)]
    angles = np.stack([_stretch(curve, *_range(limit, rng)) for curve, limit in zip(curves, LIMITS)], 1)
    angles[:, 1:] *= 1 - 0.6 * (angles[:, :1] / LIMITS[0]) ** 2
    return angles


def _range(limit: float, rng: np.random.Generator) -> tuple[float, float]:
    """Lowest and highest value of an angle in a clip."""
    reach = limit * rng.uniform(0.2, 1)
    middle = (limit - reach) * rng.uniform(-0.5, 0.5)
    return middle - reach, middle + reach


def _stretch(curve: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """Scale and shift a curve so that it goes from lowest to highest."""
    low, high = curve.min(), curve.max()
    return lowest + (highest - lowest) * (curve - low) / (high - low)


def sweep(axis: str, count: int, rng: np.random.Generator, jitter: float = 1.5) -> np.ndarray:
    """Angles [count,3] that go along one axis from -limit to +limit evenly; the others stay within ``jitter`` degrees.

    Args:
        axis: one of AXES.
        count: number of frames, at least 2.
        rng: numpy Generator.
        jitter: degrees.
    """
    swept = AXES.index(axis)
    angles = np.stack([wander(count, -jitter, jitter, _JITTER_PACE, rng) for _ in AXES], 1)
    angles[:, swept] = np.linspace(-LIMITS[swept], LIMITS[swept], count)
    return angles
