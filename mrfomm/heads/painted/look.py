"""What a painted person looks like, as plain numbers drawn from a numpy Generator.

Colours are sRGB-like triples in [0,1], lengths decimetres, positions those of the base mesh (see geometry.py).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mrfomm.heads.geometry import Shape
from mrfomm.heads.scene import Color, from_hsv

# darkest to lightest; between neighbours colours are mixed
_SKIN_TONES = (
    (0.24, 0.15, 0.11), (0.38, 0.25, 0.18), (0.54, 0.37, 0.27), (0.69, 0.50, 0.38), (0.80, 0.61, 0.49),
    (0.88, 0.70, 0.59), (0.93, 0.78, 0.69),
)  # fmt: skip
_NATURAL_HAIR = (
    (0.05, 0.045, 0.04), (0.10, 0.07, 0.05), (0.20, 0.12, 0.07), (0.34, 0.21, 0.12), (0.52, 0.36, 0.20),
    (0.72, 0.56, 0.34), (0.86, 0.74, 0.52),
)  # fmt: skip
_RED_HAIR = (0.55, 0.22, 0.09)
_DYED_HAIR = ((0.55, 0.10, 0.16), (0.16, 0.25, 0.55), (0.45, 0.18, 0.50), (0.80, 0.42, 0.55), (0.15, 0.45, 0.38))
_GREY = (0.72, 0.72, 0.72)
_LIPSTICKS = ((0.65, 0.12, 0.16), (0.72, 0.30, 0.34), (0.50, 0.14, 0.24), (0.78, 0.40, 0.34))
_FRAMES = ((0.05, 0.05, 0.05), (0.25, 0.14, 0.08), (0.6, 0.58, 0.55), (0.4, 0.1, 0.1))
_DARK_EYES = ((0.16, 0.09, 0.05), (0.27, 0.16, 0.08), (0.38, 0.25, 0.11), (0.40, 0.42, 0.20))
_LIGHT_EYES = (
    (0.40, 0.42, 0.20), (0.30, 0.45, 0.30), (0.33, 0.50, 0.62), (0.24, 0.38, 0.58), (0.48, 0.53, 0.56)
)  # fmt: skip
# style -> its chance for a man and for a woman, and the range of Hair.length
_HAIR = {
    "bald": (0.08, 0.0, 0.0, 0.0), "buzz": (0.13, 0.02, 0.012, 0.04), "short": (0.24, 0.06, 0.06, 0.16),
    "swept": (0.2, 0.05, 0.10, 0.22), "full": (0.13, 0.08, 0.16, 0.3), "curly": (0.08, 0.1, 0.18, 0.4),
    "afro": (0.03, 0.05, 0.4, 0.75), "bob": (0.02, 0.2, 0.10, 0.2), "long": (0.04, 0.25, 0.08, 0.18),
    "bun": (0.01, 0.08, 0.04, 0.09), "ponytail": (0.01, 0.08, 0.04, 0.09), "beanie": (0.03, 0.03, 0.10, 0.16),
}  # fmt: skip
HAIR_STYLES = tuple(_HAIR)
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
GARMENTS = ("crew", "vneck", "wide", "turtleneck", "shirt", "suit", "hoodie")


class Skin(NamedTuple):
    tone: Color
    lips: Color
    redness: float  # 0..1, as all that follows
    freckles: float
    wrinkles: float
    shadow: float  # make-up on the eyelids
    moles: float


class Hair(NamedTuple):
    style: str  # one of HAIR_STYLES
    color: Color
    length: float  # how far it stands off
    hairline: float  # height above the eyes, at the centre
    recession: float  # how far it is drawn back at the temples
    slant: float  # of the fringe
    parting: float  # its x
    flow: int  # 0 from the crown, 1 from the parting, 2 combed back
    curl: float  # 0..1
    fall: float  # height of the tips of long hair
    opening: float  # degrees from the front where long hair begins
    sideburns: float  # height of their end
    volume: float  # on top


class Brows(NamedTuple):
    color: Color
    thickness: float
    arch: float  # height of the bend
    tilt: float  # rise per decimetre
    height: float  # offset
    density: float  # 0..1


class Eyes(NamedTuple):
    iris: Color
    sclera: Color
    pupil: float  # its radius as a share of the iris


class Beard(NamedTuple):
    kind: str  # one of BEARDS
    color: Color
    length: float
    density: float  # 0..1


class Clothing(NamedTuple):
    garment: str  # one of GARMENTS
    color: Color
    second: Color  # of stripes, shirt or trimmings
    tie: Color
    stripes: float  # per decimetre, 0 for none
    neckline: float  # its height
    texture: float  # 0..1, coarseness of the cloth


class Glasses(NamedTuple):
    worn: bool
    color: Color
    width: float  # radii of a rim
    height: float
    power: float  # of its outline: 2 is an ellipse, more is squarer
    thickness: float


class Look(NamedTuple):
    """All of one person but the form of the head; seed is that of the noise in the textures."""

    skin: Skin
    hair: Hair
    brows: Brows
    eyes: Eyes
    beard: Beard
    clothing: Clothing
    glasses: Glasses
    earrings: bool
    seed: int


def sample_look(shape: Shape, rng: np.random.Generator) -> Look:
    """A random Look for a head's Shape; the colours go with the face without being tied to it."""
    skin = _sample_skin(shape, rng)
    darkness = float(1 - np.mean(skin.tone))
    natural = _sample_hair_color(shape, darkness, rng)
    hair = _sample_hair(shape, natural, rng)
    brow_color = mix(natural, (0.1, 0.08, 0.06), rng.uniform(0.1, 0.6))
    sclera = mix((0.93, 0.92, 0.91), (0.90, 0.83, 0.76), rng.uniform(0, 1))
    iris = _pick(_LIGHT_EYES if rng.random() < (0.65 if darkness < 0.38 else 0.12) else _DARK_EYES, rng)
    brows = Brows(
        color=brow_color,
        thickness=rng.uniform(0.028, 0.05) + 0.024 * shape.male,
        arch=rng.uniform(0.0, 0.06),
        tilt=rng.normal(-0.05, 0.06),
        height=rng.normal(0.0, 0.018),
        density=rng.uniform(0.5, 1.0),
    )
    eyes = Eyes(_jitter(iris, 0.04, rng), sclera, rng.uniform(0.3, 0.5))
    beard, clothing, glasses = _sample_beard(shape, natural, rng), _sample_clothing(rng), _sample_glasses(rng)
    earrings = rng.random() < 0.35 * (1 - shape.male)
    return Look(skin, hair, brows, eyes, beard, clothing, glasses, earrings, int(rng.integers(2**31)))


def _sample_skin(shape: Shape, rng: np.random.Generator) -> Skin:
    """African, Asian and Caucasian shapes have a typical tone, from which a person may be far."""
    place = np.dot(shape.people, (1.2, 4.3, 5.0)) + rng.normal(0, 0.9)
    warmth = 1 + np.array([0.02, 0, -0.03]) * rng.normal(0, 1.2)
    tone = _jitter(np.array(_palette(_SKIN_TONES, place)) * warmth, 0.012, rng)
    bare, painted = np.array(tone) * np.array([0.95, 0.70, 0.68]), _pick(_LIPSTICKS, rng)
    made_up = rng.random() < 0.55 * (1 - shape.male)
    return Skin(
        tone=tone,
        lips=mix(bare, painted, rng.uniform(0.4, 0.85) if made_up else rng.uniform(0, 0.12)),
        redness=rng.uniform(0.2, 1),
        freckles=float(max(0, rng.uniform(-2.5, 1)) * (place > 3.5)),
        wrinkles=float(np.clip(shape.age * 1.3 - 0.25 + rng.normal(0, 0.15), 0, 1)),
        shadow=rng.uniform(0.2, 0.8) if made_up else 0.0,
        moles=float(rng.random() < 0.3),
    )


def _sample_hair_color(shape: Shape, darkness: float, rng: np.random.Generator) -> Color:
    color = _palette(_NATURAL_HAIR, rng.gamma(1.2, 0.5) if darkness > 0.42 else rng.uniform(0, 6))
    if darkness < 0.36 and rng.random() < 0.1:
        color = _jitter(_RED_HAIR, 0.05, rng)
    grey = np.clip((shape.age - 0.4) * 2.2 + rng.normal(0, 0.35), 0, 0.95)
    return mix(color, np.array(_GREY) * rng.uniform(0.75, 1.2), grey if shape.age > 0.35 else 0.0)


def _sample_hair(shape: Shape, natural: Color, rng: np.random.Generator) -> Hair:
    chances = np.array([_HAIR[style][:2] for style in HAIR_STYLES]) @ np.array([shape.male, 1 - shape.male])
    if shape.people[0] > 0.5:
        chances = chances * np.where(np.isin(HAIR_STYLES, ("afro", "curly", "buzz")), 3.0, 1.0)
    style = str(rng.choice(HAIR_STYLES, p=chances / chances.sum()))
    dyed = rng.random() < 0.05
    fringe = style in ("full", "bob", "long", "curly") and rng.random() < 0.4
    recession = 0.0 if fringe else max(0.0, rng.normal(0.10 + 0.25 * shape.male * shape.age, 0.12))
    opening = rng.uniform(58, 82) if rng.random() < 0.65 else rng.uniform(95, 112)
    return Hair(
        style=style,
        color=_jitter(_pick(_DYED_HAIR, rng), 0.05, rng) if dyed else natural,
        length=rng.uniform(*_HAIR[style][2:]),
        hairline=rng.uniform(0.30, 0.42) if fringe else rng.uniform(0.56, 0.72) + 0.3 * recession,
        recession=recession,
        slant=rng.normal(0, 0.12) if fringe else 0.0,
        parting=float(rng.choice([-0.45, -0.3, 0.0, 0.3, 0.45])),
        flow=int({"swept": 2, "bun": 2, "ponytail": 2, "buzz": 0}.get(style, rng.integers(2))),
        curl=rng.uniform(0.6, 1) if style in ("curly", "afro") else max(0.0, rng.uniform(-0.5, 0.5)),
        fall=rng.uniform(-1.25, -0.75) if style == "bob" else rng.uniform(-2.6, -1.5),
        opening=opening,
        sideburns=rng.uniform(-0.35, 0.1),
        volume=rng.uniform(0.0, 1.6),
    )


def _sample_beard(shape: Shape, natural: Color, rng: np.random.Generator) -> Beard:
    kind = str(rng.choice(BEARDS, p=(0.45, 0.2, 0.07, 0.1, 0.18) if shape.male > 0.6 else (1.0, 0, 0, 0, 0)))
    color = mix(natural, (0.2, 0.12, 0.07), rng.uniform(0, 0.35))
    if kind == "stubble":
        return Beard(kind, color, 0.0, rng.uniform(0.25, 0.6))
    return Beard(kind, color, rng.uniform(0.03, 0.16), rng.uniform(0.7, 1))


def _sample_clothing(rng: np.random.Generator) -> Clothing:
    garment = str(rng.choice(GARMENTS))
    color = _sample_cloth_color(rng)
    white = rng.random() < 0.5
    second = _jitter((0.9, 0.9, 0.92), 0.05, rng) if garment == "suit" and white else _sample_cloth_color(rng)
    return Clothing(
        garment=garment,
        color=mix(color, (0.08, 0.09, 0.12), 0.7) if garment == "suit" else color,
        second=second,
        tie=_sample_cloth_color(rng) if rng.random() < 0.7 else second,
        stripes=rng.uniform(3, 9) if rng.random() < 0.25 else 0.0,
        neckline=rng.uniform(-1.72, -1.52),
        texture=rng.uniform(0.2, 1),
    )


def _sample_glasses(rng: np.random.Generator) -> Glasses:
    return Glasses(
        worn=rng.random() < 0.16,
        color=_jitter(_pick(_FRAMES, rng), 0.04, rng),
        width=rng.uniform(0.235, 0.285),
        height=rng.uniform(0.17, 0.235),
        power=float(rng.choice([2.0, 2.4, 4.0])),
        thickness=rng.uniform(0.012, 0.03),
    )


def _sample_cloth_color(rng: np.random.Generator) -> Color:
    """Any hue; mostly muted, sometimes black or white."""
    hue, saturation, value = rng.uniform(0, 1), rng.beta(1.2, 1.6), rng.beta(1.4, 1.2)
    return from_hsv(hue, saturation, 0.06 + 0.88 * value)


def _pick(colors: tuple[Color, ...], rng: np.random.Generator) -> Color:
    return colors[rng.integers(len(colors))]


def _palette(colors: tuple[Color, ...], place: float) -> Color:
    """The colour at a place between 0 and len(colors) - 1."""
    place = float(np.clip(place, 0, len(colors) - 1))
    first = min(int(place), len(colors) - 2)
    return mix(colors[first], colors[first + 1], place - first)


def mix(first: ArrayLike, second: ArrayLike, share: float) -> Color:
    """A Color that is the second one to a share in 0..1, else the first."""
    return _color((1 - share) * np.asarray(first) + share * np.asarray(second))


def _jitter(color: ArrayLike, deviation: float, rng: np.random.Generator) -> Color:
    return _color(np.clip(np.asarray(color) + rng.normal(0, deviation, 3), 0.01, 1))


def _color(values: np.ndarray) -> Color:
    red, green, blue = values.tolist()
    return red, green, blue
