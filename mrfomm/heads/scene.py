"""What is around a head in a clip: light, backdrop, and a camera with its framing.

Colours are sRGB-like triples in [0,1] unless said to be linear; lengths are decimetres, space is that of geometry.py.
"""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike

GAMMA = 2.2
BACKDROPS = ("plain", "clouds", "room", "lights")
_LEAST_ASPECT = 1.5  # height over width of a head, below which it is framed by its width

Color = tuple[float, float, float]


class Light(NamedTuple):
    """Lamps at infinity, of which the first throws the shadow, and ambient light; linear."""

    direction: np.ndarray  # float64 [L,3]: unit vectors towards the lamps
    color: np.ndarray  # [L,3]
    below: np.ndarray  # [3]: ambient light from the ground
    above: np.ndarray  # [3]: and from the sky


class Backdrop(NamedTuple):
    """A blurred background: kind is one of BACKDROPS, seed that of its pattern."""

    kind: str
    colors: tuple[Color, Color, Color]
    seed: int


class Framing(NamedTuple):
    """Where the head is in the picture, and how far from the camera."""

    fill: float  # height of the head without its hair as a share of the picture's
    shift: tuple[float, float]  # of its middle, to the right and up, as shares of the picture
    distance: float  # of the camera


class Scene(NamedTuple):
    """What changes from clip to clip."""

    light: Light
    backdrop: Backdrop
    framing: Framing


class Camera(NamedTuple):
    """A pinhole camera that looks along -z."""

    position: np.ndarray  # [3]
    focal: float  # pixels
    center: np.ndarray  # [2], pixels


class Stage(NamedTuple):
    """A scene made ready for one head and size of frame."""

    camera: Camera
    light: Light
    backdrop: np.ndarray  # float32 [S,S,3], linear
    focus: tuple[np.ndarray, float]  # centre [3] and radius of the ball that the shadow map covers


PAPER_FRAMING = Framing(fill=0.75, shift=(0.0, 0.0), distance=13.0)


def make_stage(bounds: np.ndarray, scene: Scene, size: int) -> Stage:
    """Place camera, light and backdrop of a scene for a head without hair in the box ``bounds`` [2,3]."""
    low, high = bounds
    middle, framing = (low + high) / 2, scene.framing
    position = np.array([0.0, middle[1], high[2] - 0.5 + framing.distance])
    height = max(high[1] - low[1], _LEAST_ASPECT * (high[0] - low[0]))
    focal = framing.fill * size * framing.distance / height
    center = size * np.array([0.5 + framing.shift[0], 0.5 - framing.shift[1]])
    backdrop = paint_backdrop(scene.backdrop, size)
    return Stage(Camera(position, focal, center), scene.light, backdrop, (middle, 1.6 * height))  # with the hair


def project(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Pixels and depth of points [N,3]: float64 [N,3], x right and y down (a pixel's centre is at .5), distance."""
    across, up, depth = ((points - camera.position) * [1, 1, -1]).T
    x, y = camera.center[0] + camera.focal * across / depth, camera.center[1] - camera.focal * up / depth
    return np.stack([x, y, depth], 1)


def to_linear(color: ArrayLike) -> np.ndarray:
    """sRGB-like values in [0,1] to linear light, float32."""
    return single(color) ** GAMMA


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random Scene."""
    return Scene(_sample_light(rng), sample_backdrop(rng), _sample_framing(rng))


def _sample_light(rng: np.random.Generator) -> Light:
    """A key lamp somewhere in front, a fill lamp opposite, perhaps a rim lamp from behind, and ambient light."""
    side = rng.choice([-1, 1])
    front = side * rng.uniform(0, 75), rng.uniform(-5, 60)
    contrast = rng.beta(1.2, 1.5)  # 0 flat, 1 hard
    key = _lamp_color(rng) * (0.55 + 0.55 * contrast)
    fill = _lamp_color(rng) * (0.4 - 0.32 * contrast)
    rim = _lamp_color(rng) * (rng.uniform(0.2, 0.9) if rng.random() < 0.4 else 0.0)
    ambient = _lamp_color(rng) * (0.42 - 0.3 * contrast)
    exposure = rng.uniform(0.8, 1.2)
    opposite = -side * rng.uniform(30, 80), rng.uniform(0, 30)
    behind = -side * rng.uniform(120, 165), rng.uniform(5, 50)
    lamps, above = np.stack([key, fill, rim]) * exposure, ambient * exposure
    return make_light([front, opposite, behind], lamps, above * rng.uniform(0.5, 1.0), above)


def _lamp_color(rng: np.random.Generator) -> np.ndarray:
    """Linear colour of a lamp, from candle light (-1) to blue sky (1), now and then with a tint of its own."""
    warmth = rng.normal(0, 0.45)
    color = np.array([1 - 0.22 * warmth, 1.0, 1 + 0.30 * warmth])
    if rng.random() < 0.12:
        color = color * (0.6 + 0.8 * rng.random(3))
    return np.clip(color, 0.2, 1.8)


def make_light(places: Sequence[tuple[float, float]], color: ArrayLike, below: ArrayLike, above: ArrayLike) -> Light:
    """Light from lamps at (azimuth, elevation) in degrees: azimuth 0 is the camera's side, > 0 is image right."""
    azimuth, elevation = np.deg2rad(np.array(places, float)).T
    flat = np.cos(elevation)
    direction = np.stack([flat * np.sin(azimuth), np.sin(elevation), flat * np.cos(azimuth)], 1)
    return Light(direction, np.asarray(color, float), np.asarray(below, float), np.asarray(above, float))


def paper_lights() -> dict[str, Light]:
    """The two illuminations of the paper's protocol: soft and neutral, or hard and warm from the side."""
    soft = [(15, 30), (-60, 15), (80, 10)], [[0.72] * 3, [0.24] * 3, [0.1] * 3], [0.18] * 3, [0.32] * 3
    warm = [[1.25, 0.92, 0.58], [0.03, 0.05, 0.12], [0.25, 0.35, 0.6]]
    hard = [(-70, 20), (60, 10), (150, 30)], warm, [0.03, 0.035, 0.05], [0.06, 0.075, 0.11]
    return {"soft": make_light(*soft), "side": make_light(*hard)}


def _sample_framing(rng: np.random.Generator) -> Framing:
    """A random Framing like that of VoxCeleb's crops."""
    shift = rng.normal(0, 0.025), rng.normal(0.0, 0.02)
    return Framing(rng.uniform(0.70, 0.82), shift, rng.uniform(9, 18))


def sample_backdrop(rng: np.random.Generator) -> Backdrop:
    """A random Backdrop."""
    first, second, third = (from_hsv(rng.uniform(0, 1), rng.beta(1, 2.2), rng.uniform(0.08, 0.85)) for _ in range(3))
    return Backdrop(str(rng.choice(BACKDROPS)), (first, second, third), int(rng.integers(2**31)))


def from_hsv(hue: float, saturation: float, value: float) -> Color:
    """Hue, saturation and value in [0,1] as a Color."""
    return colorsys.hsv_to_rgb(hue, saturation, value)


def paint_backdrop(backdrop: Backdrop, size: int) -> np.ndarray:
    """The background float32 [size,size,3] in linear light."""
    rng = np.random.default_rng(backdrop.seed)
    first, second, third = map(single, backdrop.colors)
    fall = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    image = np.ones((size, size, 1), np.float32) * (first * (1 - fall) + (0.6 * first + 0.4 * second) * fall)
    if backdrop.kind == "clouds":
        cover(image, second, noise(rng, size, 3))
        cover(image, third, 0.7 * noise(rng, size, 6))
    elif backdrop.kind == "room":
        image = _add_furniture(image, (second, third), rng)
    elif backdrop.kind == "lights":
        _add_lights(image, (second, third), rng)
    image = image * (0.94 + 0.12 * noise(rng, size, 5))[..., None]
    return to_linear(np.clip(image, 0, 1))


def _add_furniture(image: np.ndarray, colors: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Blurred upright boxes: furniture, doors, windows, books."""
    size = len(image)
    for _ in range(int(rng.integers(3, 9))):
        left, top = rng.integers(-size // 4, size, 2).tolist()
        corner = int(left + size * rng.uniform(0.1, 0.6)), int(top + size * rng.uniform(0.15, 0.9))
        tint = colors[int(rng.integers(len(colors)))] * rng.uniform(0.5, 1.2)
        cv2.rectangle(image, (left, top), corner, np.clip(tint, 0, 1).tolist(), -1)
    return cv2.GaussianBlur(image, (0, 0), size * rng.uniform(0.01, 0.04))


def _add_lights(image: np.ndarray, colors: Sequence[np.ndarray], rng: np.random.Generator) -> None:
    """Discs out of focus, in place."""
    size = len(image)
    for _ in range(int(rng.integers(6, 18))):
        left, top = rng.integers(0, size, 2).tolist()
        color = colors[0 if rng.random() < 0.5 else 1]
        disc = cv2.circle(
            np.zeros((size, size), np.float32), (left, top), int(size * rng.uniform(0.03, 0.13)), (1.0,), -1
        )
        cover(image, np.clip(color * 1.4, 0, 1), 0.6 * cv2.GaussianBlur(disc, (0, 0), size * 0.012))


def noise(rng: np.random.Generator, size: int, across: int, down: int | None = None) -> np.ndarray:
    """Smooth noise float32 [size,size], uniform-like in [0,1], with ``across`` x ``down`` cells."""
    cells = rng.random((max(2, down or across), max(2, across)), dtype=np.float32)
    return np.clip(cv2.resize(cells, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)


def cover(image: np.ndarray, color: ArrayLike, share: np.ndarray) -> None:
    """Paint ``color`` over image [S,S,3] in place, covering ``share`` [S,S] of it."""
    image += share[..., None] * (single(color) - image)


def single(values: ArrayLike) -> np.ndarray:
    """Numbers as float32, in which pictures are painted."""
    return np.asarray(values, np.float32)
