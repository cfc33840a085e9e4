"""The mesh of a painted person at rest: the head, and on it hair, beard, glasses, earrings and a collar."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mrfomm.heads.geometry import PARTS, Template
from mrfomm.heads.painted import regions
from mrfomm.heads.painted.look import Clothing, Glasses, Hair, Look
from mrfomm.heads.painted.textures import MATERIALS
from mrfomm.heads.rendering import Mesh, vertex_normals
from mrfomm.heads.scene import single

_GOLDEN = 2.399963  # radians: successive values spread evenly
_TONGUE_AND_TEETH = {"teeth": "mouth", "tongue": "mouth"}  # the parts whose material has another name


class Head(NamedTuple):
    """A head without anything on it, and its measures."""

    template: Template
    base: np.ndarray  # float64 [V,3], the template's vertices
    vertices: np.ndarray  # float64 [V,3], the identity's, with a neutral face
    normals: np.ndarray  # float64 [V,3]
    width: float  # half width of the skull above the ears
    depth: float  # its half depth
    center: np.ndarray  # [3]
    top: float
    eyes: np.ndarray  # [2,3], their centres, image left first


def measure(template: Template, vertices: np.ndarray) -> Head:
    """The Head of an identity's vertices [V,3]."""
    base, eyes = template.vertices, template.eyes()
    skull = vertices[(template.follow == 1) & (base[:, 1] > 0.25) & (base[:, 1] < 0.6)]
    low, high = skull.min(0), skull.max(0)
    sides = np.stack([vertices[eyes[base[eyes, 0] < 0]].mean(0), vertices[eyes[base[eyes, 0] > 0]].mean(0)])
    center = np.array([0.0, (low[1] + high[1]) / 2, (low[2] + high[2]) / 2])
    skin = template.triangles[template.of("skin")]
    normals = vertex_normals(vertices.astype(np.float64), skin)
    half, top = (high - low) / 2, vertices[np.unique(skin), 1].max()
    return Head(template, base.astype(np.float64), vertices, normals, half[0], half[2], center, top, sides)


def build_mesh(template: Template, vertices: np.ndarray, look: Look) -> Mesh:
    """All meshes of a person as one; vertices: float [V,3], the identity with a neutral face."""
    head = measure(template, vertices.astype(np.float64))
    return join([_skin(head, look.clothing), *hairs(head, look), *_collar(head, look.clothing), *worn(head, look)])


def hairs(head: Head, look: Look) -> Iterator[Mesh]:
    """Hair on the skull and beard."""
    yield from _hair(head, look.hair, look.seed)
    yield from _beard(head, look)


def worn(head: Head, look: Look) -> Iterator[Mesh]:
    """Glasses and earrings."""
    if look.glasses.worn:
        yield from _glasses(head, look.glasses)
    if look.earrings:
        yield from _earrings(head)


def join(pieces: Sequence[Mesh]) -> Mesh:
    """Several meshes as one."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in pieces])
    triangles = [mesh.triangles + start for mesh, start in zip(pieces, starts)]
    joined = Mesh(*(np.concatenate(field) for field in zip(*pieces)))
    return joined._replace(triangles=np.ascontiguousarray(np.concatenate(triangles), np.int32))


def piece(
    vertices: np.ndarray, triangles: np.ndarray, uv: np.ndarray, material: str, openness: ArrayLike = 1.0,
    source: np.ndarray | None = None, follow: ArrayLike = 1.0,
) -> Mesh:  # fmt: skip
    """A Mesh of one material; without a source it does not share in expressions."""
    count = len(vertices)
    return Mesh(
        vertices=np.asarray(vertices, np.float64),
        triangles=np.asarray(triangles, np.int32),
        uv=np.asarray(uv, np.float32),
        material=np.full(len(triangles), MATERIALS.index(material), np.int32),
        openness=np.broadcast_to(np.asarray(openness, np.float32), (count,)),
        source=np.zeros(count, np.int64) if source is None else source,
        moved=np.full(count, 0.0 if source is None else 1.0),
        follow=np.broadcast_to(np.asarray(follow, np.float64), (count,)),
    )


def _skin(head: Head, clothing: Clothing) -> Mesh:
    """The template's own parts; clothes are a little thicker than the skin."""
    template, uv = head.template, head.template.uv.copy()
    dressed = head.vertices + head.normals * (0.05 * regions.cloth(head.base, clothing))[:, None]
    teeth_uv, tongue_uv = functools.partial(_mouth_uv, v=0.25), functools.partial(_mouth_uv, v=0.75)
    for part, place in (("eye", _eye_uv), ("lashes", _lashes_uv), ("teeth", teeth_uv), ("tongue", tongue_uv)):
        chosen = template.of(part)
        uv[chosen] = place(template.vertices[template.triangles[chosen]])
    own = np.arange(len(dressed))
    mesh = piece(dressed, template.triangles, uv, "skin", template.openness, own, template.follow)
    material = np.array([MATERIALS.index(_TONGUE_AND_TEETH.get(part, part)) for part in PARTS], np.int32)
    return mesh._replace(material=material[template.part])


def _eye_uv(corners: np.ndarray) -> np.ndarray:
    """Corners [T,3,3] seen from the front: each eyeball fills the texture; its back takes the white of the rim."""
    uv = np.empty((*corners.shape[:2], 2), np.float32)
    for side in (corners[:, 0, 0] < 0, corners[:, 0, 0] >= 0):
        points = corners[side]
        low, high = points.min((0, 1)), points.max((0, 1))
        offset = (points - (low + high) / 2) / ((high - low)[1] / 2)
        seen = 0.5 + 0.49 * np.stack([offset[..., 0], -offset[..., 1]], -1)
        uv[side] = np.where(offset[..., 2:] < 0, single([0.02, 0.5]), seen)
    return uv


def _lashes_uv(corners: np.ndarray) -> np.ndarray:
    """u counts hairs along the lid."""
    along = np.abs(corners[..., 0]) * 2
    return np.stack([along % 1.0, np.full_like(along, 0.5)], -1)


def _mouth_uv(corners: np.ndarray, v: float) -> np.ndarray:
    """Teeth are in the upper half of their texture, the tongue in the lower."""
    return np.stack([0.5 + corners[..., 0] / 0.7, np.full(corners.shape[:2], v)], -1)


def _shell(head: Head, offset: np.ndarray, coverage: np.ndarray, material: str, openness: float = 1.0) -> Mesh:
    """A copy of the part of the skin where ``coverage`` [V] is positive, moved by ``offset`` [V,3]."""
    template, skin = head.template, head.template.of("skin")
    triangles = template.triangles[skin]
    kept = coverage[triangles].max(1) > 0.02
    used, compact = np.unique(triangles[kept], return_inverse=True)
    vertices, uv = (head.vertices + offset)[used], template.uv[skin][kept]
    return piece(vertices, compact.reshape(-1, 3), uv, material, openness, used, template.follow[used])


def _hair(head: Head, hair: Hair, seed: int) -> Iterator[Mesh]:
    base, follow = head.base, head.template.follow
    if hair.style == "bald":
        return
    if hair.style == "beanie":
        wool = regions.ramp(base[:, 1] - 0.25 * (base[:, 2] + 0.4), 0.42, 0.5) * (follow == 1)
        yield _shell(head, head.normals * (hair.length * wool**0.4)[:, None], wool, "fabric")
        return
    coverage = regions.scalp(base, hair, soft=0.09) * (follow > 0.5)
    offset = head.normals * _hair_height(base, hair, seed)[:, None] * coverage[:, None] ** 0.6
    if hair.style == "swept":
        front = regions.bump(base[:, 2], -0.15, 0.45) * regions.ramp(base[:, 1], 0.45, 0.75) * coverage
        offset += front[:, None] * hair.length * np.array([0.3 * np.sign(hair.parting), 1.0, 0.35])
    for share in (0.55, 1.0):  # the inner layer keeps the skin from showing between the strands of the outer one
        yield _shell(head, offset * share + head.normals * 0.004, coverage, "hair", share)
    if hair.style in ("bob", "long"):
        yield _curtain(head, hair, 0.0)
        yield _curtain(head, hair, 0.07)
    if hair.style in ("bun", "ponytail"):
        yield _knot(head, hair)


def _hair_height(base: np.ndarray, hair: Hair, seed: int) -> np.ndarray:
    """How far the hair stands off at base positions [V,3]: more on top, lumpy, and round for an afro."""
    x, y, _, _ = regions.split(base)
    top = regions.ramp(y, 0.1, 0.9)
    height = hair.length * (0.55 + 0.45 * top * (1 + 0.5 * hair.volume))
    if hair.style == "afro":
        height = hair.length * (0.75 + 0.25 * top)
    phase = (seed % 997) * _GOLDEN
    waves = np.array([[5, 1.5, 2.5], [-3.2, 6.4, 5.6], [7.8, -6.5, 13]])  # radians per decimetre
    lumps = sum(np.sin(base @ wave + phase * number) for number, wave in enumerate(waves))
    groove = 0.35 * regions.bump(x, hair.parting, 0.07) * top if hair.flow == 1 else 0.0
    return height * (1 + (0.05 + 0.12 * hair.curl) * lumps - groove)


def _grid(*axes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sheet from its x, y, z, which broadcast to [R,C]: vertices [R*C,3] row by row, triangles [2*(R-1)*(C-1),3] and
    their uv [...,3,2]: u along columns, v along rows."""
    points = np.stack(np.broadcast_arrays(*axes), -1)
    rows, columns = points.shape[:2]
    number = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    triangles = np.stack([np.stack([a, c, b], -1), np.stack([b, c, d], -1)], 2).reshape(-1, 3)
    v, u = np.divmod(triangles, columns)
    return points.reshape(-1, 3), triangles, np.stack([u / (columns - 1), v / (rows - 1)], -1)


def _curtain(head: Head, hair: Hair, layer: float) -> Mesh:
    """Long hair hanging from the skull around the back of the head, a grid from its upper edge to the tips."""
    angle = np.deg2rad(np.linspace(hair.opening, 360 - hair.opening, 56))
    start, drop = head.center[1] + 0.12, np.linspace(0, 1, 16)[:, None]
    height = start + (hair.fall - start) * drop  # [R,1]
    swell = 0.65 + 0.45 * np.sin(np.pi * np.minimum(drop * 1.2, 1)) + 0.3 * hair.volume * drop
    out = 1.0 - layer + hair.length * swell
    wave = 0.05 * hair.curl * np.sin(14 * height + 3 * np.sin(3 * angle + layer * 40))
    lean = 0.25 * np.clip(-height - 0.4, 0, 1.2)  # long hair comes closer to the neck
    radius = out + wave - 0.35 * lean
    across = np.sin(angle) * radius * (head.width + 0.05)
    back = np.cos(angle) * radius * (head.depth + 0.02) + head.center[2] - 0.15 * drop
    points, triangles, uv = _grid(across, height, back)
    uv[..., 0] = (uv[..., 0] + layer * 3) % 1.001
    hang = 1 - 0.5 * regions.ramp(points[:, 1], -0.6, -2.2)
    return piece(points, triangles, uv, "strands", 0.45 if layer else 1.0, follow=hang)


def _knot(head: Head, hair: Hair) -> Mesh:
    """A bun on top or at the back, or a ponytail: an ellipsoid."""
    rise, turn = np.linspace(-np.pi / 2, np.pi / 2, 12)[:, None], np.linspace(0, 2 * np.pi, 20)
    ball, triangles, uv = _grid(np.cos(rise) * np.sin(turn), np.sin(rise), np.cos(rise) * np.cos(turn))
    if hair.style == "bun":
        on_top, behind = (0, head.top - head.center[1] + 0.12, -0.25), (0, 0.1, -head.depth - 0.1)
        center = head.center + np.array(on_top if hair.volume > 0.8 else behind)
        points = center + ball * (0.30 + 0.08 * hair.volume) * np.array([1, 0.85, 1])
    else:
        points = ball * np.array([0.24, 0.95, 0.24])
        points[:, 0] += 0.45 * hair.parting * (0.5 - points[:, 1])
        points += head.center + np.array([0, -0.6, -head.depth - 0.22])
    return piece(points, triangles, uv, "strands", 0.9)


def _beard(head: Head, look: Look) -> Iterator[Mesh]:
    if look.beard.kind not in ("none", "stubble"):
        coverage = regions.beard(head.base, look.beard.kind)
        height = look.beard.length * coverage * (0.7 + 0.6 * regions.ramp(head.template.vertices[:, 1], -0.8, -1.1))
        for share in (0.5, 1):
            yield _shell(head, head.normals * (height * share + 0.006)[:, None], coverage, "beard")


def _tube(path: np.ndarray, radius: float) -> Mesh:
    """A thin tube of six sides around a path [P,3]."""
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    helper = np.where(np.abs(along[:, 2:]) < 0.9, np.array([0.0, 0, 1]), np.array([0.0, 1, 0]))
    first = np.cross(along, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    angle = np.linspace(0, 2 * np.pi, 7)[:, None, None]
    points = path + radius * (np.cos(angle) * first + np.sin(angle) * np.cross(along, first))  # [7,P,3]
    return piece(*_grid(*np.moveaxis(points, -1, 0)), "frame")


def _glasses(head: Head, glasses: Glasses) -> Iterator[Mesh]:
    """Two rims and temples, and a bridge."""
    turn = np.linspace(0, 2 * np.pi, 33)
    cos, sin = np.cos(turn), np.sin(turn)
    across = np.sign(cos) * np.abs(cos) ** (2 / glasses.power) * glasses.width
    up = np.sign(sin) * np.abs(sin) ** (2 / glasses.power) * glasses.height
    rim = np.stack([across, up, -0.35 * (np.abs(cos) * glasses.width) ** 2], 1)
    outwards = np.array([[-1], [1]])
    centers = head.eyes + outwards * [0.02, 0, 0] + [0, -0.03, 0.29]
    hinges = centers + outwards * [glasses.width, 0, 0] + [0, 0.05, -0.03]
    for sign, eye, center, hinge in zip((-1, 1), head.eyes, centers, hinges):
        yield _tube(center + rim, glasses.thickness)
        ear = np.array([sign * (head.width + 0.03), eye[1] + 0.06, -0.85])
        yield _tube(np.linspace(hinge, ear, 8), glasses.thickness)
    bridge = np.linspace(centers[0] + [glasses.width, 0.03, 0], centers[1] + [-glasses.width, 0.03, 0], 7)
    bridge[:, 1:] += 0.05 * np.sin(np.linspace(0, np.pi, 7))[:, None]
    yield _tube(bridge, glasses.thickness)


def _earrings(head: Head) -> Iterator[Mesh]:
    """A small ring below each ear lobe: where the ear is lowest on the base mesh."""
    base, turn = head.template.vertices, np.linspace(0, 2 * np.pi, 17)
    ring = np.stack([0 * turn, 0.07 * np.sin(turn) - 0.06, 0.07 * np.cos(turn)], 1)
    for sign in (-1, 1):
        ear = np.flatnonzero((sign * base[:, 0] > 0.78) & (base[:, 1] > -0.6) & (head.template.follow == 1))
        yield _tube(head.vertices[ear[np.argmin(base[ear, 1])]] + ring, 0.014)


def _collar(head: Head, clothing: Clothing) -> Iterator[Mesh]:
    """A folded collar or a hood's rim around the neck; other garments have none."""
    if clothing.garment not in ("shirt", "suit", "hoodie"):
        return
    base, share = head.template.vertices, np.linspace(0, 1, 5)[:, None]
    around = (base[:, 1] > -1.5) & (base[:, 1] < -1.25) & (np.abs(base[:, 0]) < 0.75) & (head.template.follow < 0.6)
    neck = head.vertices[around]
    low, high = neck.min(0), neck.max(0)
    center, reach = (low + high) / 2, (high - low) / 2
    gap, out = 14, 1.04 + 0.12 * share
    if clothing.garment == "hoodie":
        gap, out = 4, 1.04 + 0.30 * share + 0.12 * np.sin(np.pi * share)
    angle = np.deg2rad(np.linspace(gap, 360 - gap, 40))
    height = clothing.neckline + 0.22 - 0.34 * share - 0.18 * np.maximum(0, np.cos(angle))
    across, back = center[0] + np.sin(angle) * reach[0] * out, center[2] + np.cos(angle) * reach[2] * out
    points, triangles, uv = _grid(across, height, back)
    nearest = np.linalg.norm(points[:, None] - neck, axis=2).argmin(1)
    yield piece(points, triangles, uv, "fabric", 0.85, follow=0.6 * head.template.follow[around][nearest])
