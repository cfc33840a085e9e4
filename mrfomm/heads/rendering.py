"""A rasteriser in software: z-buffer, textures with cut-out, one shadow, and light that wraps around skin.

Compiled by numba, which only this module needs. All runs in one thread and in a fixed order, so equal input gives equal
bytes. Frames are rendered with several samples a pixel, in linear light, and averaged.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mrfomm.errors import UserError
from mrfomm.heads.scene import GAMMA, Light, Stage, project

try:
    import numba
except ImportError as error:
    raise UserError(f"rendering heads needs numba ({error}); pip install -e .[cpu]") from error

Arrays = tuple[np.ndarray, ...]

SAMPLES, SOFT_SAMPLES = 2, 3  # per pixel, along each axis; the latter where a material is soft, for its 9 degrees
_SHADOW_BIAS = 0.07  # decimetres: the shadow map's own roughness must cast no shadow
_CUTOUT = 0.5  # a texture's alpha below this is a hole
# a surface without holes that is seen from both sides
_BARE = (
    np.empty((0, 3, 2), np.float32),
    np.empty(0, np.int32),
    np.empty((0, 1, 1, 4), np.uint8),
    *2 * (np.empty(0, np.bool_),),
)


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
    soft: np.ndarray  # bool [M]: whether alpha is the share of a pixel's samples that are covered, or a cut-out


def render(mesh: Mesh, materials: Materials, stage: Stage) -> np.ndarray:
    """Draw one frame, uint8 [S,S,3] RGB."""
    size, light, samples = len(stage.backdrop), stage.light, SOFT_SAMPLES if materials.soft.any() else SAMPLES
    pixels = project(mesh.vertices, stage.camera) * np.array([samples, samples, 1])
    pixels[:, 2] = 1 / pixels[:, 2]
    surface = mesh.uv, mesh.material, materials.texture, materials.two_sided, materials.soft
    triangle, weights, _ = rasterize(pixels, mesh.triangles, samples * size, surface)
    casting = mesh.triangles[materials.casts[mesh.material]]
    places, highest = depth_map(mesh.vertices, casting, light.direction[0], stage.focus, 4 * size)
    view, normals = stage.camera.position - mesh.vertices, vertex_normals(mesh.vertices, mesh.triangles)
    corners = np.concatenate([view, normals, places], 1)
    color, seen = np.repeat(np.repeat(stage.backdrop, samples, 0), samples, 1), triangle >= 0
    color[seen] = _shade((triangle[seen], weights[seen]), mesh, materials, light, corners, highest)
    return tone_map(average(color, samples))


def average(color: np.ndarray, side: int) -> np.ndarray:
    """Means of side x side blocks: float [H,W,C] -> [H/side,W/side,C]."""
    return np.mean([color[row::side, column::side] for row, column in np.ndindex(side, side)], 0)


def tone_map(linear: np.ndarray) -> np.ndarray:
    """Linear light to uint8: the brightest tones are compressed smoothly, then GAMMA."""
    knee = 0.7
    over = np.maximum(linear - knee, 0)
    soft = np.minimum(linear, knee) + (1 - knee) * (1 - np.exp(-over / (1 - knee)))
    return (255 * soft ** (1 / GAMMA) + 0.5).astype(np.uint8)


def rasterize(points: np.ndarray, triangles: np.ndarray, size: int, surface: Arrays = _BARE) -> Arrays:
    """Find what is seen in every pixel of a raster.

    Args:
        points: float64 [N,3], x and y of vertices in pixels of this raster, and 1 / depth.
        triangles: int32 [T,3].
        size: side of the raster.
        surface: uv and material of a Mesh; texture, two_sided and soft of Materials; of the texture alpha counts.

    Returns:
        triangle int32 [size,size], -1 where there is none; weights float32 [size,size,2]: the barycentric coordinates
        of the first and second vertex in space (not in the image); 1 / depth float64 [size,size], or 0.
    """
    seen = np.full((size, size), -1, np.int32), np.zeros((size, size, 2), np.float32), np.zeros((size, size))
    _draw(points, triangles, surface, seen)
    return seen


def depth_map(
    vertices: np.ndarray, triangles: np.ndarray, direction: np.ndarray, focus: tuple[np.ndarray, float], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """What a lamp at infinity sees of triangles int32 [T,3] over vertices [N,3].

    Returns:
        (places [N,3], highest [size,size]): the column and row of every vertex, and its height towards the lamp, at
        least 1; the greatest height of the triangles, 0 where nothing is.
    """
    point, radius = focus
    side = np.cross([0.0, 1.0, 0.0], direction)
    side /= np.linalg.norm(side)
    axes = np.stack([side, np.cross(side, direction), direction]) * [[size / (2 * radius)], [size / (2 * radius)], [1]]
    places = (vertices - point) @ axes.T + [size / 2, size / 2, 0]
    places[:, 2] += 1 - places[:, 2].min()
    return places, rasterize(places, triangles, size)[2]


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
def _draw(points: np.ndarray, triangles: np.ndarray, surface: Arrays, seen: Arrays) -> None:
    (uv, material, texture, two_sided, soft), (triangle, weights, nearest) = surface, seen
    size = len(nearest)
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)  # twice; negative seen from the front, as y points down
        if abs(area) < 1e-12 or (area > 0 and len(texture) and not two_sided[material[t]]):
            continue
        left, right = max(0, int(np.ceil(min(ax, bx, cx) - 0.5))), min(size - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
        top, bottom = max(0, int(np.ceil(min(ay, by, cy) - 0.5))), min(size - 1, int(np.floor(max(ay, by, cy) - 0.5)))
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                x, y = column + 0.5, row + 0.5
                wa = ((bx - x) * (cy - y) - (cx - x) * (by - y)) / area
                wb = ((cx - x) * (ay - y) - (ax - x) * (cy - y)) / area
                wc = 1 - wa - wb
                inverse = wa * points[a, 2] + wb * points[b, 2] + wc * points[c, 2]
                if wa < 0 or wb < 0 or wc < 0 or inverse <= nearest[row, column]:
                    continue
                ga, gb = wa * points[a, 2] / inverse, wb * points[b, 2] / inverse
                if len(texture):
                    # layers differ in which samples they leave out, or they would hide nothing of each other
                    step = (row % SOFT_SAMPLES * SOFT_SAMPLES + column % SOFT_SAMPLES + 4 * t) % SOFT_SAMPLES**2
                    least = (step + 0.5) / SOFT_SAMPLES**2 if soft[material[t]] else _CUTOUT
                    if _sample(texture, material[t], uv[t], ga, gb, 3) < least:
                        continue
                nearest[row, column], triangle[row, column] = inverse, t
                weights[row, column, 0], weights[row, column, 1] = ga, gb


@_compiled
def _shade(
    seen: Arrays, mesh: Mesh, materials: Materials, light: Light, corners: np.ndarray, highest: np.ndarray
) -> np.ndarray:
    """Linear light [P,3] of samples that show triangles [P], given with the weights [P,2] of two of their corners.

    Of every vertex corners [N,9] holds the way to the eye, the normal, and the place in ``highest``, the shadow map.
    """
    color, at = np.empty((len(seen[0]), 3)), np.empty(12)
    view, normal, place, base = at[:3], at[3:6], at[6:9], at[9:]
    for sample, t in enumerate(seen[0]):
        first, second = seen[1][sample, 0], seen[1][sample, 1]
        third, m = 1 - first - second, mesh.material[t]
        a, b, c = mesh.triangles[t]
        for k in range(9):
            at[k] = first * corners[a, k] + second * corners[b, k] + third * corners[c, k]
        openness = first * mesh.openness[a] + second * mesh.openness[b] + third * mesh.openness[c]
        distance, length = np.sqrt(_dot(view, view)), np.sqrt(_dot(normal, normal)) + 1e-12
        if materials.two_sided[m] and _dot(normal, view) < 0:
            length = -length
        sky, ahead = 0.5 + 0.5 * normal[1] / length, _dot(normal, view) / length / distance
        lit = _lit_share(highest, place)
        for channel in range(3):
            base[channel] = _sample(materials.texture, m, mesh.uv[t], first, second, channel) ** GAMMA
            ambient = light.below[channel] * (1 - sky) + light.above[channel] * sky
            color[sample, channel] = base[channel] * ambient * openness
        for n in range(len(light.direction)):
            direction = light.direction[n]
            facing, shine = _dot(normal, direction) / length, 0.0
            if facing > 0:
                half = (facing + ahead) / (np.sqrt(2 * max(0, 1 + _dot(view, direction) / distance)) + 1e-9)
                shine = materials.gloss[m] * max(0, half) ** materials.hardness[m]
            for channel in range(3):
                soft, reach = materials.wrap[m, channel], openness if n else lit
                reach = (reach + (1 - reach) * 0.4 * soft) * light.color[n, channel]
                color[sample, channel] += (base[channel] * max(0, (facing + soft) / (1 + soft)) + shine) * reach
    return color


@_compiled
def _lit_share(highest: np.ndarray, place: np.ndarray) -> float:
    """The share of 3 x 3 texels of the shadow map that the first lamp reaches, around a place."""
    size, lit = len(highest), 0
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            x, y = int(place[0]) + dx, int(place[1]) + dy
            if not (0 <= x < size and 0 <= y < size) or place[2] + _SHADOW_BIAS >= highest[y, x]:
                lit += 1
    return lit / 9


@_compiled
def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@_compiled
def _sample(texture: np.ndarray, material: int, uv: np.ndarray, first: float, second: float, channel: int) -> float:
    """One channel of a texture, in 0..1, between a triangle's corners uv [3,2]: bilinear, texel centres at halves."""
    size, third = texture.shape[1], 1 - first - second
    u = first * uv[0, 0] + second * uv[1, 0] + third * uv[2, 0]
    v = first * uv[0, 1] + second * uv[1, 1] + third * uv[2, 1]
    x, y = min(max(u * size - 0.5, 0.0), size - 1.0), min(max(v * size - 0.5, 0.0), size - 1.0)
    x0, y0 = int(x), int(y)
    x1, y1 = min(x0 + 1, size - 1), min(y0 + 1, size - 1)
    fx, fy = x - x0, y - y0
    top = texture[material, y0, x0, channel] * (1 - fx) + texture[material, y0, x1, channel] * fx
    bottom = texture[material, y1, x0, channel] * (1 - fx) + texture[material, y1, x1, channel] * fx
    return (top * (1 - fy) + bottom * fy) / 255
