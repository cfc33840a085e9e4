"""Where the texels of the skin are on the base mesh."""

from typing import NamedTuple

import cv2
import numpy as np

from mrfomm.heads.geometry import Template
from mrfomm.heads.rendering import rasterize


class Canvas(NamedTuple):
    """What the skin's texels are on the base mesh."""

    points: np.ndarray  # float32 [S,S,3]: their places
    masks: dict[str, np.ndarray]  # name -> float32 [S,S] in [0,1]


def make_canvas(template: Template, size: int) -> Canvas:
    """The Canvas of a template for textures of a size."""
    skin = template.of("skin")
    points = bake(template.uv[skin], template.triangles[skin], template.vertices, size)
    return Canvas(points, {name: cv2.resize(mask, (size, size)) for name, mask in template.masks.items()})


def bake(uv: np.ndarray, corners: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Interpolate values over a texture: what a point of the surface has goes to its texel.

    Args:
        uv: [T,3,2] in [0,1], where the triangles lie in the texture.
        corners: int [T,3], rows of ``values``.
        values: [N,C].
        size: side of the texture.

    Returns:
        float32 [size,size,C]; texels near a triangle, which bilinear sampling reaches, are filled from the nearest.
    """
    points = np.concatenate([uv.reshape(-1, 2) * size, np.ones((3 * len(uv), 1))], 1).astype(np.float64)
    triangles = np.arange(len(points), dtype=np.int32).reshape(-1, 3)
    triangle, weights, _ = rasterize(points, triangles, size)
    first, second = weights[..., :1], weights[..., 1:]
    at = np.asarray(values, np.float32)[corners[triangle]]  # [S,S,3,C]
    image = first * at[..., 0, :] + second * at[..., 1, :] + (1 - first - second) * at[..., 2, :]
    return _grow(image, triangle >= 0)


def _grow(image: np.ndarray, known: np.ndarray, steps: int = 6) -> np.ndarray:
    """Fill unknown texels beside known ones with one of them, ``steps`` times; the rest becomes 0."""
    image, known = np.where(known[..., None], image, 0), known.copy()
    for axis, shift in steps * ((0, 1), (0, -1), (1, 1), (1, -1)):
        fresh = np.roll(known, shift, axis) & ~known
        image[fresh] = np.roll(image, shift, axis)[fresh]
        known |= fresh
    return image
