"""A rasteriser in software: z-buffer, textures with cut-out, one shadow, and light that wraps around skin.

Compiled by numba, which only this module needs. All runs in one thread and in a fixed order, so equal input gives equal
bytes. Frames are rendered with several samples a pixel, in linear light, and averaged.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from mrfomm.errors import UserError
from mrfomm.heads.scene import GAMMA, Light, Stage, project

try:
    import numba
except ImportError as error:
    raise UserError(f"rendering heads needs numba ({error}); pip install -e .[cpu]") from error

SAMPLES = 2  # per pixel, along each axis
_SHADOW_BIAS = 0.07  # decimetres: the shadow map's own roughness must cast no shadow
_CUTOUT = 0.5  # a texture's alpha below this is a hole

Vector = tuple[float, float, float]


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
    """Draw one frame, uint8 [H,W,3] RGB."""
    camera, light, backdrop, focus = stage
    height, width = backdrop.shape[:2]
    pixels = project(mesh.vertices, camera) * np.array([SAMPLES, SAMPLES, 1.0])
    surface = mesh.triangles, mesh.uv, mesh.material, materials.texture, materials.two_sided
    triangle, weights = rasterize(pixels, *surface, height * SAMPLES, width * SAMPLES)
    casting = mesh.triangles[materials.casts[mesh.material]]
    shadow, frame = depth_map(mesh.vertices, casting, light.direction[0], focus, 4 * height)
    normals = vertex_normals(mesh.vertices, mesh.triangles)
    color = np.repeat(np.repeat(backdrop, SAMPLES, 0), SAMPLES, 1)
    _shade(triangle, weights, mesh, normals, materials, light, camera.position, shadow, frame, color)
    return tone_map(average(color))


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
    opaque, both_sides = np.full((1, 1, 1, 4), 255, np.uint8), np.ones(1, np.bool_)
    flat, material = np.zeros((len(uv), 3, 2), np.float32), np.zeros(len(uv), np.int32)
    triangle, weights = rasterize(points, triangles, flat, material, opaque, both_sides, size, size)
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


def average(samples: np.ndarray) -> np.ndarray:
    """Means of SAMPLES x SAMPLES blocks: float [H,W,C] -> [H/SAMPLES,W/SAMPLES,C]."""
    height, width, channels = samples.shape
    blocks = samples.reshape(height // SAMPLES, SAMPLES, width // SAMPLES, SAMPLES, channels)  # [H,s,W,s,C]
    return blocks.mean((1, 3))


def tone_map(linear: np.ndarray) -> np.ndarray:
    """Linear light to uint8: the brightest tones are compressed smoothly, then GAMMA."""
    knee = 0.7
    over = np.maximum(linear - knee, 0)
    soft = np.minimum(linear, knee) + (1 - knee) * (1 - np.exp(-over / (1 - knee)))
    return (255 * soft ** (1 / GAMMA) + 0.5).astype(np.uint8)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # there is no folder for compiled code
        return numba.njit(nogil=True)(function)


@_compiled
def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@_compiled
def _row(values: np.ndarray, number: int) -> Vector:
    return values[number, 0], values[number, 1], values[number, 2]


@_compiled
def _minus(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@_compiled
def _unit(a: Vector, length: float) -> Vector:
    return a[0] / length, a[1] / length, a[2] / length


@_compiled
def _blend(values: np.ndarray, corners: Vector, weights: Vector, channel: int) -> float:
    a, b, c = corners
    return weights[0] * values[a, channel] + weights[1] * values[b, channel] + weights[2] * values[c, channel]


@_compiled
def _point(values: np.ndarray, corners: Vector, weights: Vector) -> Vector:
    """The vector between three rows of values [N,3]."""
    x, y = _blend(values, corners, weights, 0), _blend(values, corners, weights, 1)
    return x, y, _blend(values, corners, weights, 2)


@_compiled
def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals [N,3] of vertices [N,3]: the area-weighted mean of their triangles' normals."""
    normals = np.zeros_like(vertices)
    for t in range(len(triangles)):
        a, b, c = _row(triangles, t)
        origin = _row(vertices, a)
        e, f = _minus(_row(vertices, b), origin), _minus(_row(vertices, c), origin)
        cross = e[1] * f[2] - e[2] * f[1], e[2] * f[0] - e[0] * f[2], e[0] * f[1] - e[1] * f[0]
        for corner in (a, b, c):
            for axis in range(3):
                normals[corner, axis] += cross[axis]
    for n in range(len(normals)):
        length = np.sqrt(_dot(_row(normals, n), _row(normals, n))) + 1e-12
        for axis in range(3):
            normals[n, axis] /= length
    return normals


@_compiled
def _covered(
    points: np.ndarray, corners: np.ndarray, both_sides: bool, height: int, width: int
) -> Iterator[tuple[int, int, Vector]]:
    """The pixels (row, column) whose centres a triangle covers, with the weights of its corners there."""
    a, b, c = corners
    ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)  # twice; negative seen from the front, as y points down
    if abs(area) < 1e-12 or (area > 0 and not both_sides):
        return
    left, right = max(0, int(np.ceil(min(ax, bx, cx) - 0.5))), min(width - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
    top, bottom = max(0, int(np.ceil(min(ay, by, cy) - 0.5))), min(height - 1, int(np.floor(max(ay, by, cy) - 0.5)))
    for row in range(top, bottom + 1):
        for column in range(left, right + 1):
            x, y = column + 0.5, row + 0.5
            wa = ((bx - x) * (cy - y) - (cx - x) * (by - y)) / area
            wb = ((cx - x) * (ay - y) - (ax - x) * (cy - y)) / area
            wc = 1 - wa - wb
            if wa >= 0 and wb >= 0 and wc >= 0:
                yield row, column, (wa, wb, wc)


@_compiled
def _nearest(points: np.ndarray, triangles: np.ndarray, size: int) -> np.ndarray:
    """The least third coordinate of triangles over points [N,3], float64 [size,size]."""
    nearest = np.full((size, size), np.inf)
    for t in range(len(triangles)):
        corners = _row(triangles, t)
        for row, column, weights in _covered(points, corners, True, size, size):
            nearest[row, column] = min(nearest[row, column], _blend(points, corners, weights, 2))
    return nearest


@_compiled
def rasterize(
    pixels: np.ndarray, triangles: np.ndarray, uv: np.ndarray, material: np.ndarray, texture: np.ndarray,
    two_sided: np.ndarray, height: int, width: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Find what is seen in every pixel of a raster.

    Args:
        pixels: float64 [N,3], x, y and depth of vertices in pixels of this raster.
        triangles, uv, material, texture, two_sided: as in Mesh and Materials; of the texture alpha counts.
        height, width: of the raster.

    Returns:
        triangle int32 [height,width], -1 where there is none, and weights float32 [height,width,2]: the barycentric
        coordinates of the first and second vertex in space (not in the image).
    """
    nearest = np.zeros((height, width))  # 1 / depth
    triangle = np.full((height, width), -1, np.int32)
    seen = np.zeros((height, width, 2), np.float32)
    for t in range(len(triangles)):
        corners = _row(triangles, t)
        a, b, c = corners
        ia, ib, ic = 1 / pixels[a, 2], 1 / pixels[b, 2], 1 / pixels[c, 2]
        for y, x, (wa, wb, wc) in _covered(pixels, corners, two_sided[material[t]], height, width):
            inverse = wa * ia + wb * ib + wc * ic
            if inverse <= nearest[y, x]:
                continue
            ga, gb = wa * ia / inverse, wb * ib / inverse
            u, v = _texel(uv[t], (ga, gb, 1 - ga - gb))
            if _sample(texture, material[t], u, v, 3) >= _CUTOUT:
                nearest[y, x], triangle[y, x] = inverse, t
                seen[y, x, 0], seen[y, x, 1] = ga, gb
    return triangle, seen


@_compiled
def _texel(uv: np.ndarray, weights: Vector) -> tuple[float, float]:
    return _blend(uv, (0, 1, 2), weights, 0), _blend(uv, (0, 1, 2), weights, 1)


@_compiled
def _sample(texture: np.ndarray, material: int, u: float, v: float, channel: int) -> float:
    """One channel of a texture at (u, v) in [0,1], bilinear, in 0..1. Texel centres are at halves."""
    size = texture.shape[1]
    x = min(max(u * size - 0.5, 0.0), size - 1.0)
    y = min(max(v * size - 0.5, 0.0), size - 1.0)
    x0, y0 = int(x), int(y)
    x1, y1 = min(x0 + 1, size - 1), min(y0 + 1, size - 1)
    fx, fy = x - x0, y - y0
    top = texture[material, y0, x0, channel] * (1 - fx) + texture[material, y0, x1, channel] * fx
    bottom = texture[material, y1, x0, channel] * (1 - fx) + texture[material, y1, x1, channel] * fx
    return (top * (1 - fy) + bottom * fy) / 255


@_compiled
def _lit_share(shadow: np.ndarray, frame: np.ndarray, point: Vector) -> float:
    """The share of 3 x 3 texels of the shadow map that the first lamp reaches, around a point."""
    size = len(shadow)
    column, row = _dot(_row(frame, 0), point) + frame[0, 3], _dot(_row(frame, 1), point) + frame[1, 3]
    depth = _dot(_row(frame, 2), point) + frame[2, 3] - _SHADOW_BIAS
    lit = 0.0
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            x, y = int(column) + dx, int(row) + dy
            if x < 0 or y < 0 or x >= size or y >= size or depth <= shadow[y, x]:
                lit += 1
    return lit / 9


@_compiled
def _shade(
    triangle: np.ndarray, weights: np.ndarray, mesh: Mesh, normals: np.ndarray, materials: Materials, light: Light,
    eye: np.ndarray, shadow: np.ndarray, frame: np.ndarray, color: np.ndarray,
) -> None:  # fmt: skip
    """Give every pixel that shows a triangle its linear light in ``color``, in place."""
    for y, x in np.argwhere(triangle >= 0):
        t = triangle[y, x]
        corners, m = _row(mesh.triangles, t), mesh.material[t]
        share = weights[y, x, 0], weights[y, x, 1], 1 - weights[y, x, 0] - weights[y, x, 1]
        point, normal = _point(mesh.vertices, corners, share), _point(normals, corners, share)
        view = _minus(eye, point)
        view = _unit(view, np.sqrt(_dot(view, view)))
        length = np.sqrt(_dot(normal, normal)) + 1e-12
        turned_away = materials.two_sided[m] and _dot(normal, view) < 0
        normal = _unit(normal, -length if turned_away else length)
        lit = _lit_share(shadow, frame, point)
        a, b, c = corners
        open_share = share[0] * mesh.openness[a] + share[1] * mesh.openness[b] + share[2] * mesh.openness[c]
        u, v = _texel(mesh.uv[t], share)
        for channel in range(3):
            base = _sample(materials.texture, m, u, v, channel) ** GAMMA
            diffuse, shine = _lighting(normal, view, materials, m, light, channel, lit, open_share)
            color[y, x, channel] = base * diffuse + shine


@_compiled
def _lighting(
    normal: Vector,
    view: Vector,
    materials: Materials,
    m: int,
    light: Light,
    channel: int,
    lit: float,
    open_share: float,
) -> tuple[float, float]:
    """Diffuse and glossy light of one channel; lit: the first lamp's share, open_share: that of all else."""
    sky, wrap = 0.5 + 0.5 * normal[1], materials.wrap[m, channel]
    diffuse = (light.below[channel] * (1 - sky) + light.above[channel] * sky) * open_share
    shine = 0.0
    for number in range(len(light.direction)):
        lamp = _row(light.direction, number)
        facing = _dot(normal, lamp)
        reach = lit if number == 0 else open_share
        reach = reach + (1 - reach) * 0.4 * wrap
        diffuse += max(0.0, (facing + wrap) / (1 + wrap)) * reach * light.color[number, channel]
        if facing > 0:
            half = lamp[0] + view[0], lamp[1] + view[1], lamp[2] + view[2]
            cosine = max(0.0, _dot(normal, half) / (np.sqrt(_dot(half, half)) + 1e-9))
            shine += materials.gloss[m] * cosine ** materials.hardness[m] * reach * light.color[number, channel]
    return diffuse, shine
