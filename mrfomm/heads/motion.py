"""How a head moves in a clip: its angles (at random, or the sweeps of the paper's protocol) and its face.

Faces are weights in [0,1] of face units with ARKit's names, for speech, expressions, blinks and gaze.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

LIMITS = (60.0, 30.0, 30.0)  # degrees of yaw, pitch and roll, to both sides
AXES = ("yaw", "pitch", "roll")
FPS = 25.0  # VoxCeleb's

# seconds: least and greatest time between two turning points, and the width of the Gaussian that smooths the way
Pace = tuple[float, float, float]
_PACES: tuple[Pace, Pace, Pace] = ((0.55, 1.1, 0.16), (0.35, 0.8, 0.14), (0.35, 0.8, 0.14))  # of AXES
_JITTER_PACE: Pace = (0.4, 0.9, 0.15)
_IDLE_PACE: Pace = (0.3, 1.2, 0.15)

_BLINK = np.array([0.35, 0.95, 1.0, 0.8, 0.4, 0.1])  # one value a frame
_GAZE = 0.85  # the greatest weight of a gaze unit
_ALWAYS_MOVING = (
    "browInnerUp", "browDownLeft", "browDownRight", "browOuterUpLeft", "browOuterUpRight", "eyeSquintLeft",
    "eyeSquintRight", "mouthLeft", "mouthRight", "jawLeft", "jawRight", "mouthSmileLeft", "mouthSmileRight",
)  # fmt: skip


Poses = Mapping[str, Mapping[str, float]]  # name -> unit -> weight
Beats = Iterator[tuple[str, float, int]]  # names of poses, their strengths, how many frames they are held


def both(**weights: float) -> dict[str, float]:
    """Units of the left and the right side: ``both(eyeBlink=1)``."""
    return {f"{name}{side}": weight for name, weight in weights.items() for side in ("Left", "Right")}


# Mouth shapes of speech. The consonants that close the mouth make it lively.
VISEMES: Poses = {
    "rest": {},
    "aa": {"jawOpen": 0.62, **both(mouthLowerDown=0.25, mouthUpperUp=0.1)},
    "ae": {"jawOpen": 0.45, **both(mouthStretch=0.35, mouthUpperUp=0.25, mouthLowerDown=0.3)},
    "ee": {"jawOpen": 0.16, **both(mouthSmile=0.45, mouthStretch=0.4, mouthLowerDown=0.4, mouthUpperUp=0.25)},
    "oh": {"jawOpen": 0.45, "mouthFunnel": 0.7},
    "oo": {"jawOpen": 0.16, "mouthPucker": 0.9, "mouthFunnel": 0.3},
    "mm": {"mouthClose": 0.05, "mouthRollLower": 0.45, "mouthRollUpper": 0.4, **both(mouthPress=0.6)},
    "ff": {"jawOpen": 0.06, "mouthRollLower": 0.7, **both(mouthUpperUp=0.45)},
    "ll": {"jawOpen": 0.28, "tongueOut": 0.12, **both(mouthLowerDown=0.25)},
    "ss": {"jawOpen": 0.08, **both(mouthStretch=0.45, mouthLowerDown=0.5, mouthUpperUp=0.3)},
    "sh": {"jawOpen": 0.1, "mouthFunnel": 0.75, **both(mouthUpperUp=0.25, mouthLowerDown=0.3)},
}

EXPRESSIONS: Poses = {
    "neutral": {},
    "smile": both(mouthSmile=0.75, cheekSquint=0.45, eyeSquint=0.25, mouthDimple=0.3),
    "grin": {"jawOpen": 0.1, **both(mouthSmile=0.95, mouthUpperUp=0.5, mouthLowerDown=0.25, cheekSquint=0.7)},
    "laugh": {"jawOpen": 0.5, **both(mouthSmile=0.9, mouthUpperUp=0.45, cheekSquint=0.6, eyeSquint=0.45)},
    "surprise": {"browInnerUp": 0.9, "jawOpen": 0.45, "mouthFunnel": 0.25, **both(browOuterUp=0.9, eyeWide=0.8)},
    "anger": both(browDown=0.95, eyeSquint=0.3, noseSneer=0.5, mouthFrown=0.45, mouthPress=0.5),
    "sorrow": {"browInnerUp": 0.9, "mouthShrugLower": 0.5, **both(mouthFrown=0.85, eyeSquint=0.25)},
    "disgust": {"mouthShrugUpper": 0.5, **both(noseSneer=0.9, browDown=0.5, eyeSquint=0.5, mouthUpperUp=0.5)},
    "pout": {"mouthPucker": 0.85, "mouthShrugLower": 0.6, **both(browDown=0.3)},
    "smirk": {"mouthLeft": 0.3, "mouthSmileLeft": 0.85, "cheekSquintLeft": 0.5, "browOuterUpRight": 0.5},
    "doubt": {"mouthRight": 0.55, "browOuterUpLeft": 0.9, "browDownRight": 0.7, "mouthPressLeft": 0.5},
    "puff": {"cheekPuff": 0.9, **both(eyeWide=0.3, mouthPress=0.4)},
    "yell": {"jawOpen": 0.95, **both(browDown=0.4, eyeSquint=0.5, mouthStretch=0.5, noseSneer=0.3)},
    "sleepy": {"browInnerUp": 0.3, **both(eyeBlink=0.45)},
}


def random_motion(count: int, rng: np.random.Generator) -> np.ndarray:
    """Angles float64 [count,3] (yaw, pitch, roll in degrees) that wander over a part of LIMITS.

    The further the head is turned, the less it nods and tilts, down to two fifths at yaw 60: such a pose is hard to
    hold, and shows no face that a detector would find.
    """
    curves = [wander(count, -1, 1, pace, rng) for pace in _PACES]
    angles = np.stack([_stretch(curve, limit, rng) for curve, limit in zip(curves, LIMITS)], 1)
    angles[:, 1:] *= 1 - 0.6 * (angles[:, :1] / LIMITS[0]) ** 2
    return angles


def _stretch(curve: np.ndarray, limit: float, rng: np.random.Generator) -> np.ndarray:
    """Give a curve the range of one person's angle: a fifth to the whole of the limits, about a middle of its own."""
    reach = limit * rng.uniform(0.2, 1)
    middle = (limit - reach) * rng.uniform(-0.5, 0.5)
    lowest, highest = middle - reach, middle + reach
    return lowest + (highest - lowest) * (curve - curve.min()) / (curve.max() - curve.min())


def sweep(axis: str, count: int, rng: np.random.Generator, jitter: float = 1.5) -> np.ndarray:
    """Angles [count,3] that go evenly along one of AXES from -limit to limit; the others stay within jitter degrees."""
    swept = AXES.index(axis)
    angles = np.stack([wander(count, -jitter, jitter, _JITTER_PACE, rng) for _ in AXES], 1)
    angles[:, swept] = np.linspace(-LIMITS[swept], LIMITS[swept], count)
    return angles


def wander(count: int, low: float, high: float, pace: Pace, rng: np.random.Generator) -> np.ndarray:
    """A smooth random curve [count] within low..high, a value per frame.

    Its turning points are spread evenly over the range, in random order, so that even a short curve covers it.
    """
    least, greatest, smoothing = pace
    span = count / FPS + 2 * greatest
    times = np.cumsum(rng.uniform(least, greatest, int(span / least) + 2)) - greatest
    knots = int(np.searchsorted(times, count / FPS)) + 2
    values = np.full(len(times), (low + high) / 2)
    values[:knots] = low + (high - low) * (rng.permutation(knots) + rng.random(knots)) / knots
    return smooth(np.interp(np.arange(count) / FPS, times, values), smoothing)


def smooth(curve: np.ndarray, seconds: float) -> np.ndarray:
    """Convolve [N] or [N,C] along the first axis with a Gaussian of this standard deviation; the ends are held."""
    reach = int(np.ceil(3 * seconds * FPS))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (seconds * FPS)) ** 2)
    kernel /= kernel.sum()
    padded = np.concatenate([np.repeat(curve[:1], reach, 0), curve, np.repeat(curve[-1:], reach, 0)])
    return np.lib.stride_tricks.sliding_window_view(padded, len(kernel), 0) @ kernel  # [N,...,window] @ [window]


def random_performance(names: Sequence[str], count: int, rng: np.random.Generator) -> np.ndarray:
    """A face that speaks with pauses, changes its expression, blinks and glances: float32 [count,units] in the order of
    ``names``."""
    names = list(names)
    face = _sequence(EXPRESSIONS, names, _expression_beats(count, rng), 0.13, count)
    speech = _sequence(VISEMES, names, _speech_beats(count, rng), 0.045, count)
    calm = 1 - 0.55 * np.minimum(1, speech[:, [names.index("jawOpen")]] * 2)  # a wide grin would hide the speech
    weights = speech + face * np.where(np.char.startswith(np.array(names), "mouth"), calm, 1.0)
    for name in _ALWAYS_MOVING:
        weights[:, names.index(name)] += np.maximum(0, wander(count, -0.35, 0.35, _IDLE_PACE, rng))
    _add_blinks(weights, names, rng)
    _add_gaze(weights, names, rng)
    return np.clip(weights, 0, 1).astype(np.float32)


def weights_of(names: Sequence[str], pose: Mapping[str, float]) -> np.ndarray:
    """A pose {unit: weight} as float32 [units] in the order of ``names``."""
    return np.array([pose.get(name, 0) for name in names], np.float32)


def _sequence(poses: Poses, names: Sequence[str], beats: Beats, smoothing: float, count: int) -> np.ndarray:
    """Hold poses one after the other, smoothed [count,units]."""
    held = [np.tile(weights_of(names, poses[name]) * strength, (frames, 1)) for name, strength, frames in beats]
    return smooth(np.concatenate(held)[:count].astype(np.float64), smoothing)


def _expression_beats(count: int, rng: np.random.Generator) -> Beats:
    others = [name for name in EXPRESSIONS if name != "neutral"]
    while count > 0:
        name = "neutral" if rng.random() < 0.2 else str(rng.choice(others))
        strength, frames = rng.uniform(0.45, 1.0), int(rng.integers(8, 40))
        yield name, strength, frames
        count -= frames


def _speech_beats(count: int, rng: np.random.Generator) -> Beats:
    """Phrases of syllables, two to five frames each, between pauses."""
    others = [name for name in VISEMES if name != "rest"]
    loudness = rng.uniform(0.6, 1.15)
    while count > 0:
        for _ in range(int(rng.integers(4, 18))):
            name, strength, frames = str(rng.choice(others)), loudness * rng.uniform(0.5, 1.1), int(rng.integers(2, 6))
            yield name, strength, frames
            count -= frames
        pause = int(rng.integers(3, 28))
        yield "rest", 0.0, pause
        count -= pause


def _add_blinks(weights: np.ndarray, names: Sequence[str], rng: np.random.Generator) -> None:
    """Blinks of both eyes at random, about every two seconds."""
    eyes = [names.index(f"eyeBlink{side}") for side in ("Left", "Right")]
    start = int(rng.exponential(1.2 * FPS))
    while start < len(weights):
        blink = _BLINK[: len(weights) - start, None]
        rows = slice(start, start + len(blink))
        weights[rows, eyes] = np.maximum(weights[rows, eyes], blink)
        start += int(5 + rng.exponential(1.8 * FPS))


def _add_gaze(weights: np.ndarray, names: Sequence[str], rng: np.random.Generator) -> None:
    """Glances: both eyes jump to a new direction and rest there."""
    start = 0
    while start < len(weights):
        stop = start + int(rng.integers(5, 40))
        aside, up = np.clip(rng.normal(0, (0.45, 0.3)), -_GAZE, _GAZE)
        for side, inward in (("Left", -aside), ("Right", aside)):  # the person's left eye is on image right
            weights[start:stop, names.index(f"eyeLook{'In' if inward > 0 else 'Out'}{side}")] = abs(inward)
            weights[start:stop, names.index(f"eyeLook{'Up' if up > 0 else 'Down'}{side}")] = abs(up)
        start = stop
