"""When frames are shown: the constant rate that fits a clip's time stamps, and the place of every frame on its grid."""

from fractions import Fraction
from math import floor
from typing import Iterable, Iterator, List, Optional, Tuple, TypeVar

import numpy as np

_T = TypeVar("_T")

_COARSE = 60  # frames per second: FFmpeg's guess above it may be a unit of time, such as 1/1000 s
_PAUSE = 3  # typical steps: what takes longer tells nothing of the rate
_JUMP = 10  # seconds


def constant_rate(steps: List[Fraction], guess: Optional[Fraction]) -> Fraction:
    """Frames per second of the coarsest usual grid on which no two frames fall together.

    Args:
        steps: seconds from each frame to the next, in order; the last one's duration too, where it is known.
        guess: what FFmpeg takes the rate for: the coarsest grid that all stamps lie on.

    Returns:
        The guess or a rate near the typical step's; pauses don't lower it. Frames that come too unevenly for any grid
        are placed in order on that of their typical step.
    """
    positive = [step for step in steps if step > 0]
    if not positive:
        return guess if guess and guess <= _COARSE else Fraction(25)
    longest = _PAUSE * float(np.median([float(step) for step in positive]))
    typical = [step for step in positive if step <= longest]
    own = len(typical) / sum(typical, Fraction(0))
    usual = [Fraction(round(own)), Fraction(round(own * 1001 / 1000) * 1000, 1001)]
    close = [rate for rate in usual if rate and abs(rate - own) * sum(typical) <= Fraction(1, 2)]
    grids = [guess] if guess and guess <= _COARSE else []
    close.sort(key=lambda rate: abs(rate - own))
    return next((rate for rate in grids + close if _is_apart(steps, rate)), own.limit_denominator(1001))


def _is_apart(steps: List[Fraction], rate: Fraction) -> bool:
    """Whether every frame has a place of its own."""
    times = np.concatenate([[0], np.cumsum([float(step) for step in steps])])
    return bool(np.all(np.diff(np.floor(times * float(rate) + 0.5)) >= 1))


def on_grid(
    frames: Iterable[Tuple[Fraction, Fraction, _T]], rate: Fraction, start: Fraction, may_jump: bool = False
) -> Iterator[_T]:
    """Yield every frame once, and again while it is still shown; the first one also before it, from ``start`` on.

    Args:
        frames: (time, duration, frame), in seconds of the container's clock.
        rate: of the grid, places per second.
        start: the time of its first place.
        may_jump: whether the clock may be set anew on the way, as in broadcasts: a step back, or one of more than ten
            seconds, is then none in time.
    """
    shown, offset, time, end, last = 0, Fraction(0), start, start, None
    for stamp, duration, frame in frames:
        if may_jump and last is not None and not time <= stamp - offset <= end + _JUMP:
            offset = stamp - end
        time = stamp - offset
        place = max(shown + (last is not None), nearest((time - start) * rate))
        for _ in range(place - shown):
            yield frame if last is None else last
        shown, last, end = place, frame, time + duration
    if last is not None:
        for _ in range(max(1, nearest((end - start) * rate) - shown)):
            yield last


def nearest(value: Fraction) -> int:
    """The whole number nearest to it, the larger one of two."""
    return floor(value + Fraction(1, 2))
