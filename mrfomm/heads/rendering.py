"""A rasteriser in software: z-buffer, textures with cut-out, one shadow, and light that wraps around skin.

Compiled by numba, which only this module needs. All runs in one thread and in a fixed order, so equal input gives equal
bytes. Frames are rendered with several samples a pixel, in linear light, and averaged.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from mrfomm.errors import UserError
from mrfomm.heads.geometry import Camera

try:
    import numba
except ImportError as error:
    raise UserError(f"rendering heads needs numba ({error}); pip install -e .[cpu]") from error

SAMPLES = 2  # per pixel, along each axis
GAMMA = 2.2
_SHADOW_BIAS = 0.07  # decimetres: the shadow map's own roughness must cast no shadow
_CUTOUT = 0.5  # a texture's alpha below this is a hole

_Function = TypeVar("_Function", bound=Callable[..., object])


class Mesh(NamedTuple):
    """Triangles to draw.

    vertices float64 [N,3]; triangles int32 [T,3], anticlockwise from outside; uv float32 [T,3,2]; material int32 [T]
    counts the textures and the rows of :class:`Materials`; openness float32 [N]: the share of the sky a vertex sees.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray
    material: np.ndarray
    openness: np.ndarray


class Materials(NamedTuple):
    """How M materials answer light.

    texture uint8 [M,S,S,4]: colour and alpha, sRGB-like with GAMMA; wrap float32 [M,3]: how far red, green and blue
    light creeps around the edge of a shadow, 0..1; gloss [M]: strength of the highlight; hardness [M]: its exponent;
    two_sided bool [M]; casts bool [M]: whether it throws a shadow.
    """

    texture: np.ndarray
    wrap: np.ndarray
    gloss: np.ndarray
    hardness: np.ndarray
    two_sided: np.ndarray
    casts: np.ndarray


class Light(NamedTuple):
    """Lamps and ambient light, linear.

    direction float64 [L,3]: unit vectors towards the lamps, of which the first throws the shadow; color [L,3]; below,
    above [3]: the ambient light from the ground and from the sky.
    """

    direction: np.ndarray
    color: np.ndarray
    below: np.ndarray
    above: np.ndarray


def _compiled(function: _Function) -> _Function:
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # there is no folder for compiled code
        return numba.njit(nogil=True)(function)


def render(
    mesh: Mesh,
    materials: Materials,
    light: Light,
    camera: Camera,
    backdrop: np.ndarray,
    pixels: np.ndarray,
    focus: tuple[np.ndarray, float],
) -> np.ndarray:
    """Draw one frame.

    Args:
        mesh: Mesh.
        materials: Materials.
        light: Light.
        camera: geometry.Camera for an image of the backdrop's size, which gave ``pixels``.
        backdrop: float32 [H,W,3] in linear light, what shows where no mesh is.
        pixels: float64 [N,3], the vertices projected by ``geometry.project``.
        focus: (point [3], radius): the ball the shadow map covers.

    Returns:
        uint8 [H,W,3], RGB.
    """
    height, width = backdrop.shape[:2]
    normals = vertex_normals(mesh.vertices, mesh.triangles)
    fine = pixels * np.array([SAMPLES, SAMPLES, 1.0])
    visible = rasterize(fine, mesh, materials, height * SAMPLES, width * SAMPLES)
    shadow = cast_shadow(mesh, materials, light.direction[0], focus, 4 * height)
    color = np.repeat(np.repeat(backdrop, SAMPLES, 0), SAMPLES, 1)
    _shade(*visible, *mesh, normals, *materials, *light, camera.position, *shadow, color)
    return tone_map(average(color))


def rasterize(
    pixels: np.ndarray, mesh: Mesh, materials: Materials, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find what is seen in every pixel.

    Args:
        pixels: float64 [N,3], x, y and depth of the vertices in pixels of this raster.
        mesh, materials: Mesh, Materials; of these uv, alpha and two_sided count.
        height, width: of the raster.

    Returns:
        triangle int32 [height,width], -1 where there is none, and weights float32 [height,width,2]: the barycentric
        coordinates of the first and second vertex in space (not in the image).
    """
    nearest = np.zeros((height, width))  # 1 / depth
    triangle = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 2), np.float32)
    surface = mesh.triangles, mesh.uv, mesh.material, materials.texture, materials.two_sided
    _draw(pixels, *surface, nearest, triangle, weights)
    return triangle, weights


def cast_shadow(
    mesh: Mesh, materials: Materials, direction: np.ndarray, focus: tuple[np.ndarray, float], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Depth seen from a lamp at infinity.

    Returns:
        (nearest float64 [size,size], frame [3,4]): frame maps a point to column, row and distance from the lamp;
        nearest holds the least distance.
    """
    return depth_map(mesh.vertices, mesh.triangles[materials.casts[mesh.material]], direction, focus, size)


def depth_map(
    vertices: np.ndarray, triangles: np.ndarray, direction: np.ndarray, focus: tuple[np.ndarray, float], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`cast_shadow` for bare vertices [N,3] and triangles int32 [T,3]."""
    point, radius = focus
    side = np.cross([0.0, 1.0, 0.0], direction)
    side /= np.linalg.norm(side)
    up = np.cross(direction, side)
    axes = np.stack([side * size / (2 * radius), -up * size / (2 * radius), -direction])
    offset = np.array([size / 2, size / 2, 0.0]) - axes @ point
    seen = vertices @ axes.T + offset
    nearest = np.full((size, size), np.inf)
    _draw_depth(seen, triangles, nearest)
    return nearest, np.concatenate([axes, offset[:, None]], 1)


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
    triangle = np.full((size, size), -1, np.int32)
    weights = np.zeros((size, size, 2), np.float32)
    own = np.arange(len(points), dtype=np.int32).reshape(-1, 3)
    opaque = np.full((1, 1, 1, 4), 255, np.uint8)
    material = np.zeros(len(uv), np.int32)
    flat = np.zeros((len(uv), 3, 2), np.float32)
    _draw(points, own, flat, material, opaque, np.ones(1, np.bool_), np.zeros((size, size)), triangle, weights)
    first, second = weights[..., :1], weights[..., 1:]
    at = np.asarray(values, np.float32)[corners[triangle]]  # [S,S,3,C]
    image = first * at[..., 0, :] + second * at[..., 1, :] + (1 - first - second) * at[..., 2, :]
    return _grow(image, triangle >= 0)


def _grow(image: np.ndarray, known: np.ndarray, steps: int = 6) -> np.ndarray:
    """Fill unknown texels beside known ones with one of them, ``steps`` times; the rest becomes 0."""
    image, known = np.where(known[..., None], image, 0), known.copy()
    for _ in range(steps):
        for axis, shift in ((0, 1), (0, -1), (1, 1), (1, -1)):
            neighbour, there = np.roll(image, shift, axis), np.roll(known, shift, axis)
            fresh = there & ~known
            image[fresh] = neighbour[fresh]
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


def to_linear(color: np.ndarray | Sequence[float]) -> np.ndarray:
    """sRGB-like values in [0,1] to linear light."""
    return np.asarray(color, np.float32) ** GAMMA


@_compiled
def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals [N,3] of vertices [N,3]: the area-weighted mean of their triangles' normals."""
    normals = np.zeros_like(vertices)
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        e0, e1, e2 = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        f0, f1, f2 = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        n0, n1, n2 = e1 * f2 - e2 * f1, e2 * f0 - e0 * f2, e0 * f1 - e1 * f0
        for corner in (a, b, c):
            normals[corner, 0] += n0
            normals[corner, 1] += n1
            normals[corner, 2] += n2
    for n in range(len(normals)):
        length = np.sqrt(normals[n, 0] ** 2 + normals[n, 1] ** 2 + normals[n, 2] ** 2) + 1e-12
        for axis in range(3):
            normals[n, axis] /= length
    return normals


@_compiled
def _bounds(first: float, second: float, third: float, size: int) -> tuple[int, int]:
    """The pixels whose centres can lie between three coordinates: first to last, within 0..size-1."""
    low = max(0, int(np.ceil(min(first, second, third) - 0.5)))
    high = min(size - 1, int(np.floor(max(first, second, third) - 0.5)))
    return low, high


@_compiled
def _barycentric(
    x: float, y: float, ax: float, ay: float, bx: float, by: float, cx: float, cy: float, area: float
) -> tuple[float, float, float]:
    """The weights of a triangle's corners a, b, c at a point; area: twice the triangle's, signed."""
    wa = ((bx - x) * (cy - y) - (cx - x) * (by - y)) / area
    wb = ((cx - x) * (ay - y) - (ax - x) * (cy - y)) / area
    return wa, wb, 1 - wa - wb


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
def _draw(
    pixels: np.ndarray,
    triangles: np.ndarray,
    uv: np.ndarray,
    material: np.ndarray,
    texture: np.ndarray,
    two_sided: np.ndarray,
    nearest: np.ndarray,
    triangle: np.ndarray,
    weights: np.ndarray,
) -> None:
    height, width = nearest.shape
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        ax, ay, bx, by, cx, cy = pixels[a, 0], pixels[a, 1], pixels[b, 0], pixels[b, 1], pixels[c, 0], pixels[c, 1]
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)  # negative seen from the front, as y points down
        if abs(area) < 1e-12 or (area > 0 and not two_sided[material[t]]):
            continue
        ia, ib, ic = 1 / pixels[a, 2], 1 / pixels[b, 2], 1 / pixels[c, 2]
        left, right = _bounds(ax, bx, cx, width)
        top, bottom = _bounds(ay, by, cy, height)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                wa, wb, wc = _barycentric(x + 0.5, y + 0.5, ax, ay, bx, by, cx, cy, area)
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                inverse = wa * ia + wb * ib + wc * ic
                if inverse <= nearest[y, x]:
                    continue
                ga, gb = wa * ia / inverse, wb * ib / inverse
                gc = 1 - ga - gb
                u = ga * uv[t, 0, 0] + gb * uv[t, 1, 0] + gc * uv[t, 2, 0]
                v = ga * uv[t, 0, 1] + gb * uv[t, 1, 1] + gc * uv[t, 2, 1]
                if _sample(texture, material[t], u, v, 3) < _CUTOUT:
                    continue
                nearest[y, x] = inverse
                triangle[y, x] = t
                weights[y, x, 0] = ga
                weights[y, x, 1] = gb


@_compiled
def _draw_depth(seen: np.ndarray, triangles: np.ndarray, nearest: np.ndarray) -> None:
    height, width = nearest.shape
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        ax, ay, bx, by, cx, cy = seen[a, 0], seen[a, 1], seen[b, 0], seen[b, 1], seen[c, 0], seen[c, 1]
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if abs(area) < 1e-12:
            continue
        left, right = _bounds(ax, bx, cx, width)
        top, bottom = _bounds(ay, by, cy, height)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                wa, wb, wc = _barycentric(x + 0.5, y + 0.5, ax, ay, bx, by, cx, cy, area)
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                depth = wa * seen[a, 2] + wb * seen[b, 2] + wc * seen[c, 2]
                if depth < nearest[y, x]:
                    nearest[y, x] = depth


@_compiled
def _lit_share(shadow: np.ndarray, frame: np.ndarray, p0: float, p1: float, p2: float) -> float:
    """The share of 3 x 3 texels of the shadow map that the first lamp reaches, around a point."""
    size = len(shadow)
    column = frame[0, 0] * p0 + frame[0, 1] * p1 + frame[0, 2] * p2 + frame[0, 3]
    row = frame[1, 0] * p0 + frame[1, 1] * p1 + frame[1, 2] * p2 + frame[1, 3]
    depth = frame[2, 0] * p0 + frame[2, 1] * p1 + frame[2, 2] * p2 + frame[2, 3] - _SHADOW_BIAS
    lit = 0.0
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            x, y = int(column) + dx, int(row) + dy
            if x < 0 or y < 0 or x >= size or y >= size or depth <= shadow[y, x]:
                lit += 1
    return lit / 9


@_compiled
def _shade(
    triangle: np.ndarray,
    weights: np.ndarray,
    vertices: np.ndarray,
    triangles: np.ndarray,
    uv: np.ndarray,
    material: np.ndarray,
    openness: np.ndarray,
    normals: np.ndarray,
    texture: np.ndarray,
    wrap: np.ndarray,
    gloss: np.ndarray,
    hardness: np.ndarray,
    two_sided: np.ndarray,
    casts: np.ndarray,
    direction: np.ndarray,
    lamp: np.ndarray,
    below: np.ndarray,
    above: np.ndarray,
    eye: np.ndarray,
    shadow: np.ndarray,
    frame: np.ndarray,
    color: np.ndarray,
) -> None:
    height, width = triangle.shape
    for y in range(height):
        for x in range(width):
            t = triangle[y, x]
            if t < 0:
                continue
            a, b, c = triangles[t]
            m = material[t]
            ga, gb = weights[y, x, 0], weights[y, x, 1]
            gc = 1 - ga - gb
            p0 = ga * vertices[a, 0] + gb * vertices[b, 0] + gc * vertices[c, 0]
            p1 = ga * vertices[a, 1] + gb * vertices[b, 1] + gc * vertices[c, 1]
            p2 = ga * vertices[a, 2] + gb * vertices[b, 2] + gc * vertices[c, 2]
            n0 = ga * normals[a, 0] + gb * normals[b, 0] + gc * normals[c, 0]
            n1 = ga * normals[a, 1] + gb * normals[b, 1] + gc * normals[c, 1]
            n2 = ga * normals[a, 2] + gb * normals[b, 2] + gc * normals[c, 2]
            length = np.sqrt(n0 * n0 + n1 * n1 + n2 * n2) + 1e-12
            v0, v1, v2 = eye[0] - p0, eye[1] - p1, eye[2] - p2
            distance = np.sqrt(v0 * v0 + v1 * v1 + v2 * v2)
            v0, v1, v2 = v0 / distance, v1 / distance, v2 / distance
            if two_sided[m] and n0 * v0 + n1 * v1 + n2 * v2 < 0:
                length = -length
            n0, n1, n2 = n0 / length, n1 / length, n2 / length
            lit = _lit_share(shadow, frame, p0, p1, p2)
            sky = 0.5 + 0.5 * n1
            open_share = ga * openness[a] + gb * openness[b] + gc * openness[c]
            u = ga * uv[t, 0, 0] + gb * uv[t, 1, 0] + gc * uv[t, 2, 0]
            v = ga * uv[t, 0, 1] + gb * uv[t, 1, 1] + gc * uv[t, 2, 1]
            for channel in range(3):
                diffuse = (below[channel] * (1 - sky) + above[channel] * sky) * open_share
                shine = 0.0
                for lamp_number in range(len(direction)):
                    l0, l1, l2 = direction[lamp_number]
                    facing = n0 * l0 + n1 * l1 + n2 * l2
                    reach = lit if lamp_number == 0 else open_share
                    reach = reach + (1 - reach) * 0.4 * wrap[m, channel]
                    spread = max(0.0, (facing + wrap[m, channel]) / (1 + wrap[m, channel]))
                    diffuse += spread * reach * lamp[lamp_number, channel]
                    h0, h1, h2 = l0 + v0, l1 + v1, l2 + v2
                    half = max(0.0, (n0 * h0 + n1 * h1 + n2 * h2) / (np.sqrt(h0 * h0 + h1 * h1 + h2 * h2) + 1e-9))
                    if facing > 0:
                        shine += gloss[m] * half ** hardness[m] * reach * lamp[lamp_number, channel]
                base = _sample(texture, m, u, v, channel) ** GAMMA
                color[y, x, channel] = base * diffuse + shine
