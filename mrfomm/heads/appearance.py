"""What a person and a scene look like, as plain numbers drawn from a numpy Generator; textures.py paints them.

Colours are sRGB-like triples in [0,1], lengths decimetres, positions those of the base mesh (see geometry.py).
"""

import colorsys
from typing import NamedTuple

import numpy as np

from mrfomm.heads.rendering import Light

Color = tuple[float, float, float]

# darkest to lightest; between neighbours colours are mixed
_SKIN_TONES = np.array(
    [
        (0.24, 0.15, 0.11),
        (0.38, 0.25, 0.18),
        (0.54, 0.37, 0.27),
        (0.69, 0.50, 0.38),
        (0.80, 0.61, 0.49),
        (0.88, 0.70, 0.59),
        (0.93, 0.78, 0.69),
    ]
)
_NATURAL_HAIR = np.array(
    [
        (0.05, 0.045, 0.04),
        (0.10, 0.07, 0.05),
        (0.20, 0.12, 0.07),
        (0.34, 0.21, 0.12),
        (0.52, 0.36, 0.20),
        (0.72, 0.56, 0.34),
        (0.86, 0.74, 0.52),
    ]
)
_RED_HAIR = (0.55, 0.22, 0.09)
_DYED_HAIR = ((0.55, 0.10, 0.16), (0.16, 0.25, 0.55), (0.45, 0.18, 0.50), (0.80, 0.42, 0.55), (0.15, 0.45, 0.38))
_GREY = (0.72, 0.72, 0.72)
_FRAMES = ((0.05, 0.05, 0.05), (0.25, 0.14, 0.08), (0.6, 0.58, 0.55), (0.4, 0.1, 0.1))
_IRISES = (
    (0.16, 0.09, 0.05), (0.27, 0.16, 0.08), (0.38, 0.25, 0.11), (0.40, 0.42, 0.20), (0.30, 0.45, 0.30),
    (0.33, 0.50, 0.62), (0.24, 0.38, 0.58), (0.48, 0.53, 0.56),
)  # fmt: skip
HAIR_STYLES = ("bald", "buzz", "short", "swept", "full", "curly", "afro", "bob", "long", "bun", "ponytail", "beanie")
_HAIR_CHANCES = {  # male, female
    "bald": (0.08, 0.0), "buzz": (0.13, 0.02), "short": (0.24, 0.06), "swept": (0.2, 0.05), "full": (0.13, 0.08),
    "curly": (0.08, 0.1), "afro": (0.03, 0.05), "bob": (0.02, 0.2), "long": (0.04, 0.25), "bun": (0.01, 0.08),
    "ponytail": (0.01, 0.08), "beanie": (0.03, 0.03),
}  # fmt: skip
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
GARMENTS = ("crew", "vneck", "wide", "turtleneck", "shirt", "suit", "hoodie")
BACKDROPS = ("plain", "clouds", "room", "lights")


class Skin(NamedTuple):
    """tone, lips: Color; redness, freckles, wrinkles, shadow (make-up on the eyelids), moles in [0,1]."""

    tone: Color
    lips: Color
    redness: float
    freckles: float
    wrinkles: float
    shadow: float
    moles: float


class Hair(NamedTuple):
    """style: one of HAIR_STYLES; color; length: how far it stands off; hairline: height above the eyes, at the centre;
    recession: how far it is drawn back at the temples; slant: of the fringe; parting: its x; flow: 0 from the crown, 1
    from a parting, 2 combed back; curl in [0,1]; fall: height of the tips of long hair; opening: degrees from the front
    where long hair begins; sideburns: height of their end; volume: on top."""

    style: str
    color: Color
    length: float
    hairline: float
    recession: float
    slant: float
    parting: float
    flow: int
    curl: float
    fall: float
    opening: float
    sideburns: float
    volume: float


class Brows(NamedTuple):
    """color; thickness; arch: height of the bend; tilt: rise per decimetre; height: offset; density in [0,1]."""

    color: Color
    thickness: float
    arch: float
    tilt: float
    height: float
    density: float


class Eyes(NamedTuple):
    """iris, sclera: Color; pupil: its radius as a share of the iris."""

    iris: Color
    sclera: Color
    pupil: float


class Beard(NamedTuple):
    """kind: one of BEARDS; color; length; density in [0,1]."""

    kind: str
    color: Color
    length: float
    density: float


class Clothing(NamedTuple):
    """garment: one of GARMENTS; color, second: of the cloth and of stripes, shirt or trimmings; tie: Color or None;
    stripes: per decimetre, 0 for none; neckline: height of the neckline; texture in [0,1]: coarseness of the cloth."""

    garment: str
    color: Color
    second: Color
    tie: Color
    stripes: float
    neckline: float
    texture: float


class Glasses(NamedTuple):
    """worn; color; width, height: radii of a rim; power: 2 is an ellipse, more is squarer; thickness."""

    worn: bool
    color: Color
    width: float
    height: float
    power: float
    thickness: float


class Look(NamedTuple):
    """All of one person but the form of the head; seed: of the noise in the textures."""

    skin: Skin
    hair: Hair
    brows: Brows
    eyes: Eyes
    beard: Beard
    clothing: Clothing
    glasses: Glasses
    earrings: bool
    seed: int


class Backdrop(NamedTuple):
    """kind: one of BACKDROPS; colors: three of Color; seed."""

    kind: str
    colors: tuple[Color, Color, Color]
    seed: int


class Framing(NamedTuple):
    """fill: height of the head without its hair as a share of the picture's; shift: of its middle, to the right and
    up, as shares of the picture; distance of the camera in decimetres."""

    fill: float
    shift: tuple[float, float]
    distance: float


class Scene(NamedTuple):
    """What changes from clip to clip: light (rendering.Light), backdrop, framing."""

    light: Light
    backdrop: Backdrop
    framing: Framing


def sample_look(shape, rng):
    """A random Look for a geometry.Shape; the colours go with the face without being tied to it."""
    skin = _sample_skin(shape, rng)
    darkness = 1 - np.mean(skin.tone)
    natural = _sample_hair_color(shape, darkness, rng)
    hair = _sample_hair(shape, natural, rng)
    brow_color = _mix(natural, (0.1, 0.08, 0.06), rng.uniform(0.1, 0.6))
    sclera = _mix((0.93, 0.92, 0.91), (0.90, 0.83, 0.76), rng.uniform(0, 1))
    light_eyes = rng.random() < (0.65 if darkness < 0.38 else 0.12)
    iris = _IRISES[rng.integers(3, len(_IRISES)) if light_eyes else rng.integers(0, 4)]
    return Look(
        skin=skin,
        hair=hair,
        brows=Brows(
            color=brow_color,
            thickness=float(rng.uniform(0.028, 0.05) + 0.024 * shape.male),
            arch=float(rng.uniform(0.0, 0.06)),
            tilt=float(rng.normal(-0.05, 0.06)),
            height=float(rng.normal(0.0, 0.018)),
            density=float(rng.uniform(0.5, 1.0)),
        ),
        eyes=Eyes(_jitter(iris, 0.04, rng), sclera, float(rng.uniform(0.3, 0.5))),
        beard=_sample_beard(shape, natural, rng),
        clothing=_sample_clothing(rng),
        glasses=Glasses(
            worn=bool(rng.random() < 0.16),
            color=_jitter(_FRAMES[rng.integers(len(_FRAMES))], 0.04, rng),
            width=float(rng.uniform(0.235, 0.285)),
            height=float(rng.uniform(0.17, 0.235)),
            power=float(rng.choice([2.0, 2.4, 4.0])),
            thickness=float(rng.uniform(0.012, 0.03)),
        ),
        earrings=bool(rng.random() < 0.35 * (1 - shape.male)),
        seed=int(rng.integers(2**31)),
    )


def _sample_skin(shape, rng):
    """African, Asian and Caucasian shapes have a typical tone, from which a person may be far."""
    place = np.dot(shape.people, (1.2, 4.3, 5.0)) + rng.normal(0, 0.9)
    tone = _palette(_SKIN_TONES, place)
    tone = _jitter(np.array(tone) * (1 + np.array([0.02, 0, -0.03]) * rng.normal(0, 1.2)), 0.012, rng)
    bare = np.array(tone) * np.array([0.95, 0.70, 0.68])
    painted = ((0.65, 0.12, 0.16), (0.72, 0.30, 0.34), (0.50, 0.14, 0.24), (0.78, 0.40, 0.34))[rng.integers(4)]
    made_up = rng.random() < 0.55 * (1 - shape.male)
    lips = _mix(bare, painted, rng.uniform(0.4, 0.85) if made_up else rng.uniform(0, 0.12))
    return Skin(
        tone=tone,
        lips=lips,
        redness=float(rng.uniform(0.2, 1)),
        freckles=float(max(0, rng.uniform(-2.5, 1))) * (place > 3.5),
        wrinkles=float(np.clip(shape.age * 1.3 - 0.25 + rng.normal(0, 0.15), 0, 1)),
        shadow=float(rng.uniform(0.2, 0.8)) if made_up else 0.0,
        moles=float(rng.random() < 0.3),
    )


def _sample_hair_color(shape, darkness, rng):
    place = rng.gamma(1.2, 0.5) if darkness > 0.42 else rng.uniform(0, 6)
    color = _palette(_NATURAL_HAIR, place)
    if darkness < 0.36 and rng.random() < 0.1:
        color = _jitter(_RED_HAIR, 0.05, rng)
    grey = np.clip((shape.age - 0.4) * 2.2 + rng.normal(0, 0.35), 0, 0.95)
    return _mix(color, np.array(_GREY) * rng.uniform(0.75, 1.2), grey if shape.age > 0.35 else 0.0)


def _sample_hair(shape, natural, rng):
    chances = np.array([_HAIR_CHANCES[style] for style in HAIR_STYLES]) @ np.array([shape.male, 1 - shape.male])
    if shape.people[0] > 0.5:
        chances = chances * np.where(np.isin(HAIR_STYLES, ("afro", "curly", "buzz")), 3.0, 1.0)
    style = str(rng.choice(HAIR_STYLES, p=chances / chances.sum()))
    dyed = rng.random() < 0.05
    fringe = style in ("full", "bob", "long", "curly") and rng.random() < 0.4
    recession = max(0, rng.normal(0.10 + 0.25 * shape.male * shape.age, 0.12)) if not fringe else 0.0
    length = {
        "bald": (0.0, 0.0), "buzz": (0.012, 0.04), "short": (0.06, 0.16), "swept": (0.10, 0.22), "full": (0.16, 0.3),
        "curly": (0.18, 0.4), "afro": (0.4, 0.75), "bob": (0.10, 0.2), "long": (0.08, 0.18), "bun": (0.04, 0.09),
        "ponytail": (0.04, 0.09), "beanie": (0.10, 0.16),
    }[style]  # fmt: skip
    opening = rng.uniform(58, 82) if rng.random() < 0.65 else rng.uniform(95, 112)
    return Hair(
        style=style,
        color=_jitter(_DYED_HAIR[rng.integers(len(_DYED_HAIR))], 0.05, rng) if dyed else natural,
        length=float(rng.uniform(*length)),
        hairline=float(rng.uniform(0.30, 0.42) if fringe else rng.uniform(0.56, 0.72) + 0.3 * recession),
        recession=float(recession),
        slant=float(rng.normal(0, 0.12) if fringe else 0.0),
        parting=float(rng.choice([-0.45, -0.3, 0.0, 0.3, 0.45])),
        flow=int({"swept": 2, "bun": 2, "ponytail": 2, "buzz": 0}.get(style, rng.integers(2))),
        curl=float(rng.uniform(0.6, 1) if style in ("curly", "afro") else max(0, rng.uniform(-0.5, 0.5))),
        fall=float(rng.uniform(-1.25, -0.75) if style == "bob" else rng.uniform(-2.6, -1.5)),
        opening=float(opening),
        sideburns=float(rng.uniform(-0.35, 0.1)),
        volume=float(rng.uniform(0.0, 1.6)),
    )


def _sample_beard(shape, natural, rng):
    chance = np.array([0.45, 0.2, 0.07, 0.1, 0.18]) if shape.male > 0.6 else np.array([1.0, 0, 0, 0, 0])
    kind = str(rng.choice(BEARDS, p=chance))
    return Beard(
        kind=kind,
        color=_mix(natural, (0.2, 0.12, 0.07), rng.uniform(0, 0.35)),
        length=float(rng.uniform(0.03, 0.16) if kind != "stubble" else 0.0),
        density=float(rng.uniform(0.25, 0.6) if kind == "stubble" else rng.uniform(0.7, 1)),
    )


def _sample_clothing(rng):
    garment = str(rng.choice(GARMENTS))
    color = _sample_cloth_color(rng)
    white = rng.random() < 0.5
    second = _jitter((0.9, 0.9, 0.92), 0.05, rng) if garment == "suit" and white else _sample_cloth_color(rng)
    return Clothing(
        garment=garment,
        color=_mix(color, (0.08, 0.09, 0.12), 0.7) if garment == "suit" else color,
        second=second,
        tie=_sample_cloth_color(rng) if rng.random() < 0.7 else second,
        stripes=float(rng.uniform(3, 9)) if rng.random() < 0.25 else 0.0,
        neckline=float(rng.uniform(-1.72, -1.52)),
        texture=float(rng.uniform(0.2, 1)),
    )


def _sample_cloth_color(rng):
    """Any hue; mostly muted, sometimes black or white."""
    hue, saturation, value = rng.uniform(0, 1), rng.beta(1.2, 1.6), rng.beta(1.4, 1.2)
    return from_hsv(hue, saturation, 0.06 + 0.88 * value)


def sample_scene(rng):
    """A random Scene."""
    return Scene(sample_light(rng), sample_backdrop(rng), sample_framing(rng))


def sample_light(rng):
    """A key lamp somewhere in front, a fill lamp opposite, perhaps a rim lamp from behind, and ambient light."""
    side = rng.choice([-1, 1])
    azimuth, elevation = side * rng.uniform(0, 75), rng.uniform(-5, 60)
    contrast = rng.beta(1.2, 1.5)  # 0 flat, 1 hard
    key = _lamp_color(rng) * (0.55 + 0.55 * contrast)
    fill = _lamp_color(rng) * (0.4 - 0.32 * contrast)
    rim = _lamp_color(rng) * (rng.uniform(0.2, 0.9) if rng.random() < 0.4 else 0.0)
    ambient = _lamp_color(rng) * (0.42 - 0.3 * contrast)
    exposure = rng.uniform(0.8, 1.2)
    opposite = -side * rng.uniform(30, 80), rng.uniform(0, 30)
    behind = -side * rng.uniform(120, 165), rng.uniform(5, 50)
    lamps = np.stack([key, fill, rim]) * exposure
    above = ambient * exposure
    return make_light([(azimuth, elevation), opposite, behind], lamps, above * rng.uniform(0.5, 1.0), above)


def _lamp_color(rng):
    """Linear colour of a lamp, from candle light (-1) to blue sky (1), now and then with a tint of its own."""
    warmth = rng.normal(0, 0.45)
    color = np.array([1 - 0.22 * warmth, 1.0, 1 + 0.30 * warmth])
    if rng.random() < 0.12:
        color = color * (0.6 + 0.8 * rng.random(3))
    return np.clip(color, 0.2, 1.8)


def make_light(places, color, below, above):
    """Light from lamps at (azimuth, elevation) in degrees: azimuth 0 is the camera's side, > 0 is image right."""
    azimuth, elevation = np.deg2rad(np.array(places, float)).T
    flat = np.cos(elevation)
    direction = np.stack([flat * np.sin(azimuth), np.sin(elevation), flat * np.cos(azimuth)], 1)
    return Light(direction, np.asarray(color, float), np.asarray(below, float), np.asarray(above, float))


def paper_lights():
    """The two illuminations of the paper's protocol: soft and neutral, or hard and warm from the side."""
    soft = make_light([(15, 30), (-60, 15), (80, 10)], [[0.72] * 3, [0.24] * 3, [0.1] * 3], [0.18] * 3, [0.32] * 3)
    hard = make_light(
        [(-70, 20), (60, 10), (150, 30)],
        [[1.25, 0.92, 0.58], [0.03, 0.05, 0.12], [0.25, 0.35, 0.6]],
        [0.03, 0.035, 0.05],
        [0.06, 0.075, 0.11],
    )
    return {"soft": soft, "side": hard}


def sample_backdrop(rng):
    """A random Backdrop."""
    colors = tuple(from_hsv(rng.uniform(0, 1), rng.beta(1, 2.2), rng.uniform(0.08, 0.85)) for _ in range(3))
    return Backdrop(str(rng.choice(BACKDROPS)), colors, int(rng.integers(2**31)))


def sample_framing(rng):
    """A random Framing like that of VoxCeleb's crops."""
    shift = float(rng.normal(0, 0.025)), float(rng.normal(0.0, 0.02))
    return Framing(float(rng.uniform(0.70, 0.82)), shift, float(rng.uniform(9, 18)))


def from_hsv(hue, saturation, value):
    """Hue, saturation and value in [0,1] as a Color."""
    return _color(colorsys.hsv_to_rgb(hue, saturation, value))


def _palette(colors, place):
    """The colour at a place between 0 and len(colors) - 1."""
    place = float(np.clip(place, 0, len(colors) - 1))
    first = min(int(place), len(colors) - 2)
    return _mix(colors[first], colors[first + 1], place - first)


def _mix(first, second, share):
    return _color((1 - share) * np.asarray(first) + share * np.asarray(second))


def _jitter(color, deviation, rng):
    return _color(np.clip(np.asarray(color) + rng.normal(0, deviation, 3), 0.01, 1))


def _color(values):
    return tuple(float(value) for value in values)
