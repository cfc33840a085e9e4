"""When frames are shown: the constant rate that fits a clip's time stamps, and the place of every frame on its grid."""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from math import floor
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")
Span = tuple[Fraction, Fraction]  # when a frame is shown first, and for how long, in seconds

_COARSE = 60  # frames per second: FFmpeg's guess above it may be a unit of time, such as 1/1000 s
_DENSER = 12, 15, 20, 24, 25, 30, 50, 60, 120  # frames per second
_PAUSE = 3  # typical steps: what takes longer tells nothing of the rate
_LATE = 0.04, 0.06  # seconds that a frame may come late, on a usual rate and on any


def running_on(
    stamps: Iterable[tuple[Fraction, Fraction | None, Fraction]], slip: Fraction, longest: int
) -> tuple[list[Span], list[Fraction]]:
    """The spans of frames in order, on a clock that runs on where the container's is set anew; and, for the parts
    between such places, what the container's clock is ahead of that one, in seconds.

    Args:
        stamps: when each packet is shown and decoded (if it tells), and its duration, in seconds, in the file's order.
        slip, longest: seconds back and without a picture; more says that the clock was set.
    """
    parts: list[list[Span]] = []
    last = end = Fraction(0)
    for shown, decoded, duration in stamps:
        if not parts or decoded is not None and not last - slip <= decoded <= end + longest:
            parts.append([])
            last = shown - slip if decoded is None else decoded
        last, end = (last if decoded is None else decoded), shown + duration
        parts[-1].append((shown, duration))
    spans: list[Span] = []
    ahead = [Fraction(0)]
    for part in map(sorted, parts):
        if spans:
            ahead.append(part[0][0] - sum(spans[-1]))
        spans += [(shown - ahead[-1], duration) for shown, duration in part]
    return spans, ahead


class Clock:
    """Runs on where a container's clock is set anew on the way, as in broadcasts: there, no time passes. ``start`` is
    0 here, in seconds; ``ahead`` is what stamps are ahead from one such place to the next (:func:`running_on`)."""

    def __init__(self, start: Fraction, ahead: Sequence[Fraction]) -> None:
        self._start, self._ahead = start, list(ahead)
        self._end: Fraction | None = None

    def __call__(self, stamp: Fraction, duration: Fraction) -> Fraction:
        """When something begins that the container stamps so; to be asked in order, of one stream."""
        while self._end is not None and len(self._ahead) > 1:
            stay, go = (abs(stamp - ahead - self._end) for ahead in self._ahead[:2])
            if stay <= go:
                break
            del self._ahead[0]
        self._end = stamp - self._ahead[0] + duration
        return stamp - self._ahead[0] - self._start


def constant_rate(steps: list[Fraction], guess: Fraction | None) -> Fraction:
    """Frames per second of the coarsest usual grid on which no frame comes late: FFmpeg's ``guess``, which is the
    coarsest that all stamps lie on, or a rate near the typical step's; pauses don't lower it.

    ``steps`` are the seconds from each frame to the next, in order, and the last one's duration, where it is known.
    Frames that come too unevenly for any grid are placed in order on that of their typical step, or a denser one, if
    they fell behind the sound there.
    """
    positive = [step for step in steps if step > 0]
    usual = [guess] if guess and guess <= _COARSE else []
    if not positive:
        return usual[0] if usual else Fraction(25)
    longest = _PAUSE * float(np.median([float(step) for step in positive]))
    typical = [step for step in steps if 0 <= step <= longest]
    length = sum(typical, Fraction(0))
    own = len(typical) / length

    def is_off(rate: Fraction) -> bool:
        return abs(rate - own) * length > Fraction(1, 2)

    if max(typical) < 1.5 * min(typical) and is_off(usual[0] if usual else own):
        usual = []  # steady at another rate than the file tells
    near = [Fraction(round(own)), Fraction(round(own * 1001 / 1000) * 1000, 1001)]
    usual += sorted((rate for rate in near if rate and not is_off(rate)), key=lambda rate: abs(rate - own))
    others = [own, *(Fraction(rate) for rate in _DENSER if rate > own)]
    wanted = [(rate, _LATE[0]) for rate in usual] + [(rate, _LATE[1]) for rate in others]
    chosen = next((rate for rate, late in wanted if _lateness(steps, rate) <= late), others[-1])
    return chosen if chosen in usual else max(chosen.limit_denominator(1001), Fraction(1, 1001))


def _lateness(steps: list[Fraction], rate: Fraction) -> float:
    """The most seconds that a frame comes late where each has a place of its own."""
    times = np.concatenate([[0], np.cumsum([float(step) for step in steps])])
    places = np.floor(times * float(rate) + 0.5) - np.arange(times.size)
    return float((np.maximum.accumulate(places) - places).max() / rate)


def on_grid(frames: Iterable[tuple[Fraction, Fraction, _T]], rate: Fraction) -> Iterator[_T]:
    """Yield every frame once, and again while it is still shown; the first one also before it. ``frames`` are (time,
    duration, frame), in seconds since the first of the grid's places, of which there are ``rate`` a second."""
    shown, end, last = 0, Fraction(0), None
    for time, duration, frame in frames:
        place = max(shown + (last is not None), nearest(time * rate))
        for _ in range(place - shown):
            yield frame if last is None else last
        shown, last, end = place, frame, time + duration
    if last is not None:
        for _ in range(max(1, nearest(end * rate) - shown)):
            yield last


def nearest(value: Fraction) -> int:
    """The whole number nearest to it, the larger one of two."""
    return floor(value + Fraction(1, 2))
