"""Faces in motion: weights of the face units (ARKit's names) for speech, expressions, blinks and gaze."""

import numpy as np

from mrfomm.heads.motion import FPS, Pace, smooth, wander


def both(**weights):
    """Units of the left and the right side: ``both(eyeBlink=1)``."""
    return {f"{name}{side}": weight for name, weight in weights.items() for side in ("Left", "Right")}


# Mouth shapes of speech. The consonants that close the mouth make it lively.
VISEMES = {
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

EXPRESSIONS = {
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

_ALWAYS_MOVING = (
    "browInnerUp", "browDownLeft", "browDownRight", "browOuterUpLeft", "browOuterUpRight", "eyeSquintLeft",
    "eyeSquintRight", "mouthLeft", "mouthRight", "jawLeft", "jawRight", "mouthSmileLeft", "mouthSmileRight",
)  # fmt: skip
_BLINK = np.array([0.35, 0.95, 1.0, 0.8, 0.4, 0.1])  # one value a frame
_GAZE = 0.85  # the greatest weight of a gaze unit
_IDLE_PACE = Pace(0.3, 1.2, 0.15)


def weights_of(names, pose):
    """A pose {unit: weight} as float32 [units] in the order of ``names``."""
    vector = np.zeros(len(names), np.float32)
    for name, weight in pose.items():
        vector[names.index(name)] = weight
    return vector


def random_performance(names, count, rng):
    """Weights of the face units over a clip: speech with pauses, changing expressions, blinks and glances.

    Args:
        names: names of the units, in order.
        count: number of frames at motion.FPS.
        rng: numpy Generator.

    Returns:
        float32 [count,units] in [0,1].
    """
    face = _sequence(EXPRESSIONS, names, _expression_beats(count, rng), 0.13, count)
    speech = _sequence(VISEMES, names, _speech_beats(count, rng), 0.045, count)
    calm = 1 - 0.55 * np.minimum(1, speech[:, [names.index("jawOpen")]] * 2)  # a wide grin would hide the speech
    weights = speech + face * np.where(np.char.startswith(np.array(names), "mouth"), calm, 1.0)
    for name in _ALWAYS_MOVING:
        weights[:, names.index(name)] += np.maximum(0, wander(count, -0.35, 0.35, _IDLE_PACE, rng))
    _add_blinks(weights, names, rng)
    _add_gaze(weights, names, rng)
    return np.clip(weights, 0, 1).astype(np.float32)


def _sequence(poses, names, beats, smoothing, count):
    """Hold poses one after the other, smoothed [count,units]; beats: triples (name, strength, frames)."""
    held = [np.tile(weights_of(names, poses[name]) * strength, (frames, 1)) for name, strength, frames in beats]
    return smooth(np.concatenate(held)[:count].astype(np.float64), smoothing)


def _expression_beats(count, rng):
    others = [name for name in EXPRESSIONS if name != "neutral"]
    frames = 0
    while frames < count:
        name = "neutral" if rng.random() < 0.2 else str(rng.choice(others))
        beat = name, rng.uniform(0.45, 1.0), int(rng.integers(8, 40))
        frames += beat[2]
        yield beat


def _speech_beats(count, rng):
    """Phrases of syllables, two to five frames each, between pauses."""
    others = [name for name in VISEMES if name != "rest"]
    loudness = rng.uniform(0.6, 1.15)
    frames = 0
    while frames < count:
        for _ in range(int(rng.integers(4, 18))):
            beat = str(rng.choice(others)), loudness * rng.uniform(0.5, 1.1), int(rng.integers(2, 6))
            frames += beat[2]
            yield beat
        pause = int(rng.integers(3, 28))
        frames += pause
        yield "rest", 0.0, pause


def _add_blinks(weights, names, rng):
    """Blinks of both eyes at random, about every two seconds."""
    count = len(weights)
    start = int(rng.exponential(1.2 * FPS))
    while start < count:
        for side in ("Left", "Right"):
            unit = weights[start : start + len(_BLINK), names.index(f"eyeBlink{side}")]
            np.maximum(unit, _BLINK[: len(unit)], out=unit)
        start += int(5 + rng.exponential(1.8 * FPS))


def _add_gaze(weights, names, rng):
    """Glances: both eyes jump to a new direction and rest there."""
    count = len(weights)
    start = 0
    while start < count:
        stop = start + int(rng.integers(5, 40))
        aside, up = np.clip(rng.normal(0, (0.45, 0.3)), -_GAZE, _GAZE)
        for side, inward in (("Left", -aside), ("Right", aside)):  # the person's left eye is on image right
            weights[start:stop, names.index(f"eyeLook{'In' if inward > 0 else 'Out'}{side}")] = abs(inward)
            weights[start:stop, names.index(f"eyeLook{'Up' if up > 0 else 'Down'}{side}")] = abs(up)
        start = stop
