"""A rasteriser in software: z-buffer, textures with cut-out, one shadow, and light that wraps around skin.

What goes from triangle to triangle is compiled by numba, which only this module needs. All runs in one thread and in a
fixed order, so equal input gives equal bytes. Frames are rendered with several samples a pixel, in linear light, and
averaged.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from mrfomm.errors import UserError
from mrfomm.heads.scene import GAMMA, Stage, project

try:
    import numba
except ImportError as error:
    raise UserError(f"rendering heads needs numba ({error}); pip install -e .[cpu]") from error

SAMPLES = 2  # per pixel, along each axis
_SHADOW_BIAS = 0.07  # decimetres: the shadow map's own roughness must cast no shadow
_CUTOUT = 0.5  # a texture's alpha below this is a hole


class Mesh(NamedTuple):
    """Triangles to draw, and how their vertices move with the head."""

    vertices: np.ndarray  # float64 [N,3], decimetres
    triangles: np.ndarray  # int32 [T,3], anticlockwise seen from outside
    uv: np.ndarray  # float32 [T,3,2] in [0,1], v down
    material: np.ndarray  # int32 [T], rows of Materials
    openness: np.ndarray  # float32 [N] in [0,1]: the share of the sky a vertex sees
    source: np.ndarray  # int [N]: the vertex of the template whose expression a vertex shares,
    moved: np.ndarray  # float64 [N] in [0,1]: to what share,
    follow: np.ndarray  # float64 [N] in [0,1]: and its share of the head's rotation


class Materials(NamedTuple):
    """How M materials answer light."""

    texture: np.ndarray  # uint8 [M,S,S,4]: colour and alpha, sRGB-like with GAMMA
    wrap: np.ndarray  # float32 [M,3]: how far red, green and blue light creeps around the edge of a shadow, 0..1
    gloss: np.ndarray  # float32 [M]: strength of the highlight
    hardness: np.ndarray  # float32 [M]: its exponent
    two_sided: np.ndarray  # bool [M]
    casts: np.ndarray  # bool [M]: whether it throws a shadow


def render(mesh: Mesh, materials: Materials, stage: Stage) -> np.ndarray:
    """Draw one frame, uint8 [S,S,3] RGB."""
    size = len(stage.backdrop)
    pixels = project(mesh.vertices, stage.camera) * np.array([SAMPLES, SAMPLES, 1.0])
    surface = mesh.triangles, mesh.uv, mesh.material, materials.texture, materials.two_sided
    triangle, weights = rasterize(pixels, surface, size * SAMPLES)
    color, seen = np.repeat(np.repeat(stage.backdrop, SAMPLES, 0), SAMPLES, 1), triangle >= 0
    color[seen] = _shade(triangle[seen], weights[seen], mesh, materials, stage).T
    return tone_map(average(color))


def average(samples: np.ndarray) -> np.ndarray:
    """Means of SAMPLES x SAMPLES blocks: float [H,W,C] -> [H/SAMPLES,W/SAMPLES,C]."""
    height, width, channels = samples.shape
    return samples.reshape(height // SAMPLES, SAMPLES, width // SAMPLES, SAMPLES, channels).mean((1, 3))  # [H,s,W,s,C]


def tone_map(linear: np.ndarray) -> np.ndarray:
    """Linear light to uint8: the brightest tones are compressed smoothly, then GAMMA."""
    knee = 0.7
    over = np.maximum(linear - knee, 0)
    soft = np.minimum(linear, knee) + (1 - knee) * (1 - np.exp(-over / (1 - knee)))
    return (255 * soft ** (1 / GAMMA) + 0.5).astype(np.uint8)


def depth_map(
    vertices: np.ndarray, triangles: np.ndarray, direction: np.ndarray, focus: tuple[np.ndarray, float], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The least distance of triangles int32 [T,3] over vertices [N,3] from a lamp at infinity.

    Returns:
        (nearest float64 [size,size], frame [3,4]): frame maps a point to column, row and distance from the lamp;
        nearest holds the least distance, infinity where nothing is.
    """
    point, radius = focus
    side = np.cross([0.0, 1.0, 0.0], direction)
    side /= np.linalg.norm(side)
    up = np.cross(direction, side)
    axes = np.stack([side * size / (2 * radius), -up * size / (2 * radius), -direction])
    offset = np.array([size / 2, size / 2, 0.0]) - axes @ point
    return _nearest(vertices @ axes.T + offset, triangles, size), np.concatenate([axes, offset[:, None]], 1)


def _shade(triangle: np.ndarray, weights: np.ndarray, mesh: Mesh, materials: Materials, stage: Stage) -> np.ndarray:
    """Linear light [3,P] of samples that show ``triangle`` [P], with ``weights`` [P,2] of its first two corners."""
    light, material, corners = stage.light, mesh.material[triangle], mesh.triangles[triangle].T
    first, second = np.ascontiguousarray(weights.T)
    share = first, second, 1 - first.astype(np.float64) - second

    def between(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:  # [...,P], values at the corners
        return share[0] * a + share[1] * b + share[2] * c

    point = between(*(mesh.vertices.T[:, corner] for corner in corners))
    view = stage.camera.position[:, None] - point
    view /= _length(view)
    normals = vertex_normals(mesh.vertices, mesh.triangles).T
    normal = between(*(normals[:, corner] for corner in corners))
    normal = np.where(materials.two_sided[material] & (_dot(normal, view) < 0), -normal, normal)
    normal /= _length(normal) + 1e-12
    sky, openness = 0.5 + 0.5 * normal[1], between(*mesh.openness[corners])
    diffuse = (light.below[:, None] * (1 - sky) + light.above[:, None] * sky) * openness
    shine, wrap = np.zeros_like(normal), materials.wrap[material].T.astype(np.float64)
    gloss, hardness = materials.gloss[material], materials.hardness[material].astype(np.float64)
    casting = mesh.triangles[materials.casts[mesh.material]]
    shadow = depth_map(mesh.vertices, casting, light.direction[0], stage.focus, 4 * len(stage.backdrop))
    for number, (direction, lamp) in enumerate(zip(light.direction[..., None], light.color[..., None])):
        facing, half = _dot(normal, direction), direction + view
        reach = openness if number else _lit_share(point, *shadow)
        reach = reach + (1 - reach) * 0.4 * wrap
        diffuse += np.maximum(0, (facing + wrap) / (1 + wrap)) * reach * lamp
        mirrored = np.maximum(0, _dot(normal, half) / (_length(half) + 1e-9))
        shine += np.where(facing > 0, gloss * mirrored**hardness * reach * lamp, 0)
    uv = between(*mesh.uv[triangle].transpose(1, 2, 0))
    colors = _sample_colors(materials.texture, material, uv)
    return colors**GAMMA * diffuse + shine


def _lit_share(points: np.ndarray, nearest: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """The share [P] of 3 x 3 texels of the shadow map that the first lamp reaches, around points [3,P]."""
    x, y, depth = (_dot(row, points) + row[3] for row in frame)
    around = np.pad(nearest, 3, constant_values=np.inf)  # nothing casts a shadow from outside
    column, row = (np.clip(place.astype(int), -2, len(nearest) + 1) + 2 for place in (x, y))
    return sum(depth - _SHADOW_BIAS <= around[row + dy, column + dx] for dy, dx in np.ndindex(3, 3)) / 9


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Products [P] of vectors [3,P]. sum() would add in another order, and frames would change."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(_dot(vectors, vectors))


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # there is no folder for compiled code
        return numba.njit(nogil=True)(function)


@_compiled
def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals [N,3] of vertices [N,3]: the area-weighted mean of their triangles' normals."""
    normals = np.zeros_like(vertices)
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        for x, y, z in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            first = (vertices[b, y] - vertices[a, y]) * (vertices[c, z] - vertices[a, z])
            second = (vertices[b, z] - vertices[a, z]) * (vertices[c, y] - vertices[a, y])
            for corner in (a, b, c):
                normals[corner, x] += first - second
    for normal in normals:
        normal /= np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2) + 1e-12
    return normals


@_compiled
def _covered(
    points: np.ndarray, a: int, b: int, c: int, both_sides: bool, size: int
) -> Iterator[tuple[int, int, float, float, float]]:
    """The pixels (row, column) whose centres a triangle covers, with the weights of its corners there."""
    ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)  # twice; negative seen from the front, as y points down
    if abs(area) < 1e-12 or (area > 0 and not both_sides):
        return
    left, right = max(0, int(np.ceil(min(ax, bx, cx) - 0.5))), min(size - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
    top, bottom = max(0, int(np.ceil(min(ay, by, cy) - 0.5))), min(size - 1, int(np.floor(max(ay, by, cy) - 0.5)))
    for row in range(top, bottom + 1):
        for column in range(left, right + 1):
            x, y = column + 0.5, row + 0.5
            wa = ((bx - x) * (cy - y) - (cx - x) * (by - y)) / area
            wb = ((cx - x) * (ay - y) - (ax - x) * (cy - y)) / area
            wc = 1 - wa - wb
            if wa >= 0 and wb >= 0 and wc >= 0:
                yield row, column, wa, wb, wc


@_compiled
def _nearest(points: np.ndarray, triangles: np.ndarray, size: int) -> np.ndarray:
    """The least third coordinate of triangles over points [N,3], float64 [size,size]."""
    nearest = np.full((size, size), np.inf)
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        for row, column, wa, wb, wc in _covered(points, a, b, c, True, size):
            depth = wa * points[a, 2] + wb * points[b, 2] + wc * points[c, 2]
            nearest[row, column] = min(nearest[row, column], depth)
    return nearest


@_compiled
def rasterize(pixels: np.ndarray, surface: tuple[np.ndarray, ...], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Find what is seen in every pixel of a raster.

    Args:
        pixels: float64 [N,3], x, y and depth of vertices in pixels of this raster.
        surface: triangles, uv and material of a Mesh, texture and two_sided of Materials; of the texture alpha counts.
        size: side of the raster.

    Returns:
        triangle int32 [size,size], -1 where there is none, and weights float32 [size,size,2]: the barycentric
        coordinates of the first and second vertex in space (not in the image).
    """
    triangles, uv, material, texture, two_sided = surface
    nearest = np.zeros((size, size))  # 1 / depth
    triangle, weights = np.full((size, size), -1, np.int32), np.zeros((size, size, 2), np.float32)
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        ia, ib, ic = 1 / pixels[a, 2], 1 / pixels[b, 2], 1 / pixels[c, 2]
        for row, column, wa, wb, wc in _covered(pixels, a, b, c, two_sided[material[t]], size):
            inverse = wa * ia + wb * ib + wc * ic
            if inverse <= nearest[row, column]:
                continue
            ga, gb = wa * ia / inverse, wb * ib / inverse
            gc = 1 - ga - gb
            u = ga * uv[t, 0, 0] + gb * uv[t, 1, 0] + gc * uv[t, 2, 0]
            v = ga * uv[t, 0, 1] + gb * uv[t, 1, 1] + gc * uv[t, 2, 1]
            if _sample(texture, material[t], u, v, 3) >= _CUTOUT:
                nearest[row, column], triangle[row, column] = inverse, t
                weights[row, column, 0], weights[row, column, 1] = ga, gb
    return triangle, weights


@_compiled
def _sample_colors(texture: np.ndarray, material: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Red, green and blue float64 [3,P] in [0,1] of textures of ``material`` [P] at ``uv`` [2,P]."""
    colors = np.empty((3, len(material)))
    for n in range(len(material)):
        for channel in range(3):
            colors[channel, n] = _sample(texture, material[n], uv[0, n], uv[1, n], channel)
    return colors


@_compiled
def _sample(texture: np.ndarray, material: int, u: float, v: float, channel: int) -> float:
    """One channel of a texture at (u, v) in [0,1], bilinear, in 0..1. Texel centres are at halves."""
    size = texture.shape[1]
    x, y = min(max(u * size - 0.5, 0.0), size - 1.0), min(max(v * size - 0.5, 0.0), size - 1.0)
    x0, y0 = int(x), int(y)
    x1, y1 = min(x0 + 1, size - 1), min(y0 + 1, size - 1)
    fx, fy = x - x0, y - y0
    top = texture[material, y0, x0, channel] * (1 - fx) + texture[material, y0, x1, channel] * fx
    bottom = texture[material, y1, x0, channel] * (1 - fx) + texture[material, y1, x1, channel] * fx
    return (top * (1 - fy) + bottom * fy) / 255
