"""The meshes of one person at rest: the head itself and what is put on it: hair, beard, glasses, earrings, a collar."""

from typing import NamedTuple

import numpy as np

from mrfomm.heads import regions, rendering
from mrfomm.heads.geometry import PARTS

# the materials, rows of rendering.Materials
MATERIALS = ("skin", "eye", "mouth", "lashes", "hair", "strands", "beard", "fabric", "frame")
_GOLDEN = 2.399963  # radians: successive values spread evenly


class Body(NamedTuple):
    """Meshes with a rest position, before expressions and poses.

    vertices float64 [N,3]; source int [N]: the template's vertex whose expression a vertex shares; moved float64 [N]:
    to what share; follow float64 [N]: share of the head's rotation; openness float32 [N]; triangles int32 [T,3];
    uv float32 [T,3,2]; material int32 [T] counts MATERIALS.
    """

    vertices: np.ndarray
    source: np.ndarray
    moved: np.ndarray
    follow: np.ndarray
    openness: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray
    material: np.ndarray


class Frame(NamedTuple):
    """Measures of an identity: half width and half depth of the skull above the ears, its centre [3], its top; and the
    centres of the eyes [2,3], image left first."""

    width: float
    depth: float
    center: np.ndarray
    top: float
    eyes: np.ndarray


def measure(template, vertices):
    """The Frame of an identity's vertices [V,3]."""
    base = template.vertices
    skull = (template.follow == 1) & (base[:, 1] > 0.25) & (base[:, 1] < 0.6)
    low, high = vertices[skull].min(0), vertices[skull].max(0)
    eyes = np.unique(template.triangles[template.of("eye")])
    left = vertices[eyes[base[eyes, 0] < 0]].mean(0)
    right = vertices[eyes[base[eyes, 0] > 0]].mean(0)
    center = np.array([0.0, (low[1] + high[1]) / 2, (low[2] + high[2]) / 2])
    skin = np.unique(template.triangles[template.of("skin")])
    top = vertices[skin, 1].max()
    return Frame((high[0] - low[0]) / 2, (high[2] - low[2]) / 2, center, top, np.stack([left, right]))


def build_body(template, vertices, look):
    """All meshes of a person.

    Args:
        template: geometry.Template.
        vertices: float [V,3], the identity with a neutral face.
        look: appearance.Look.

    Returns:
        Body.
    """
    vertices = vertices.astype(np.float64)
    skin_triangles = template.triangles[template.of("skin")]
    normals = rendering.vertex_normals(vertices, skin_triangles)
    frame = measure(template, vertices)
    dressed = vertices + normals * _thickness(template, look.clothing)[:, None]
    pieces = [_head(template, dressed), *_hair(template, vertices, normals, frame, look)]
    pieces += _beard(template, vertices, normals, look)
    pieces += _collar(template, vertices, look.clothing)
    if look.glasses.worn:
        pieces += _glasses(frame, look.glasses)
    if look.earrings:
        pieces += _earrings(template, vertices)
    return _joined(pieces)


def _joined(pieces):
    starts = np.cumsum([0] + [len(piece.vertices) for piece in pieces])
    fields = [np.concatenate(field) for field in zip(*pieces)]
    joined = Body(*fields)
    triangles = [piece.triangles + start for piece, start in zip(pieces, starts)]
    return joined._replace(triangles=np.ascontiguousarray(np.concatenate(triangles), np.int32))


def _piece(vertices, triangles, uv, material, source=None, follow=1.0, openness=1.0):
    """A Body of one material; without a source it does not share in expressions."""
    count = len(vertices)
    return Body(
        vertices=np.asarray(vertices, np.float64),
        source=np.zeros(count, np.int64) if source is None else source,
        moved=np.full(count, 0.0 if source is None else 1.0),
        follow=np.broadcast_to(np.asarray(follow, np.float64), (count,)),
        openness=np.broadcast_to(np.asarray(openness, np.float32), (count,)),
        triangles=np.asarray(triangles, np.int32),
        uv=np.asarray(uv, np.float32),
        material=np.full(len(triangles), MATERIALS.index(material), np.int32),
    )


def _thickness(template, clothing):
    return 0.05 * regions.cloth(template.vertices.astype(np.float64), clothing)


def _head(template, vertices):
    materials = {"teeth": "mouth", "tongue": "mouth"}
    material = np.array([MATERIALS.index(materials.get(part, part)) for part in PARTS], np.int32)
    uv = template.uv.copy()
    for part, project in (("eye", _eye_uv), ("lashes", _lashes_uv), ("teeth", _teeth_uv), ("tongue", _tongue_uv)):
        chosen = template.of(part)
        uv[chosen] = project(template.vertices[template.triangles[chosen]])
    own = np.arange(len(vertices))
    piece = _piece(vertices, template.triangles, uv, "skin", own, template.follow, template.openness)
    return piece._replace(material=material[template.part])


def _eye_uv(corners):
    """Corners [T,3,3] seen from the front: each eyeball fills the texture; its back takes the white of the rim."""
    uv = np.empty((*corners.shape[:2], 2), np.float32)
    for side in (corners[:, 0, 0] < 0, corners[:, 0, 0] >= 0):
        points = corners[side]
        low, high = points.min((0, 1)), points.max((0, 1))
        center, radius = (low + high) / 2, (high - low)[1] / 2
        offset = (points - center) / radius
        uv[side] = 0.5 + 0.49 * np.stack([offset[..., 0], -offset[..., 1]], -1)
        uv[side] = np.where(offset[..., 2:] < 0, np.float32([0.02, 0.5]), uv[side])
    return uv


def _lashes_uv(corners):
    """u counts hairs along the lid; v is 0."""
    along = np.abs(corners[..., 0]) * 2
    return np.stack([along % 1.0, np.full_like(along, 0.5)], -1)


def _teeth_uv(corners):
    return np.stack([0.5 + corners[..., 0] / 0.7, np.full(corners.shape[:2], 0.25)], -1)


def _tongue_uv(corners):
    return np.stack([0.5 + corners[..., 0] / 0.7, np.full(corners.shape[:2], 0.75)], -1)


def _shell(template, vertices, offset, coverage, material, openness=1.0):
    """A copy of the part of the skin where ``coverage`` [V] is positive, moved by ``offset`` [V,3]."""
    skin = template.of("skin")
    triangles, uv = template.triangles[skin], template.uv[skin]
    kept = coverage[triangles].max(1) > 0.02
    used, compact = np.unique(triangles[kept], return_inverse=True)
    return _piece(
        (vertices + offset)[used], compact.reshape(-1, 3), uv[kept], material, used, template.follow[used], openness
    )


def _hair(template, vertices, normals, frame, look):
    hair = look.hair
    if hair.style == "bald":
        return []
    base = template.vertices.astype(np.float64)
    coverage = regions.scalp(base, hair, soft=0.09) * (template.follow > 0.5)
    offset = normals * _hair_height(base, hair, look.seed)[:, None] * coverage[:, None] ** 0.6
    if hair.style == "swept":
        front = regions.bump(base[:, 2], -0.15, 0.45) * regions.ramp(base[:, 1], 0.45, 0.75) * coverage
        offset += front[:, None] * hair.length * np.array([0.3 * np.sign(hair.parting), 1.0, 0.35])
    if hair.style == "beanie":
        wool = regions.ramp(base[:, 1] - 0.25 * (base[:, 2] + 0.4), 0.42, 0.5) * (template.follow == 1)
        return [_shell(template, vertices, normals * (hair.length * wool**0.4)[:, None], wool, "fabric")]
    # the inner layer keeps the skin from showing between the strands of the outer one
    pieces = [
        _shell(template, vertices, offset * share + normals * 0.004, coverage, "hair", openness=share)
        for share in (0.55, 1.0)
    ]
    if hair.style in ("bob", "long"):
        pieces += [_curtain(frame, hair, layer) for layer in (0.0, 0.07)]
    if hair.style in ("bun", "ponytail"):
        pieces.append(_knot(frame, hair))
    return pieces


def _hair_height(base, hair, seed):
    """How far the hair stands off at base positions [V,3]: more on top, lumpy, and round for an afro."""
    x, y, _ = regions.split(base)
    top = regions.ramp(y, 0.1, 0.9)
    height = hair.length * (0.55 + 0.45 * top * (1 + 0.5 * hair.volume))
    if hair.style == "afro":
        height = hair.length * (0.75 + 0.25 * top)
    phase = (seed % 997) * _GOLDEN
    waves = np.array([[5, 1.5, 2.5], [-3.2, 6.4, 5.6], [7.8, -6.5, 13]])  # radians per decimetre
    lumps = sum(np.sin(base @ wave + phase * number) for number, wave in enumerate(waves))
    groove = 0.35 * regions.bump(x, hair.parting, 0.07) * top if hair.flow == 1 else 0.0
    return height * (1 + (0.05 + 0.12 * hair.curl) * lumps - groove)


def _grid(rows, columns):
    """Triangles [2*(rows-1)*(columns-1),3] of a grid of vertices, row by row, and their uv: u along columns, v rows."""
    number = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    triangles = np.stack([np.stack([a, c, b], -1), np.stack([b, c, d], -1)], 2).reshape(-1, 3)
    v, u = np.divmod(triangles, columns)
    return triangles, np.stack([u / (columns - 1), v / (rows - 1)], -1)


def _curtain(frame, hair, layer):
    """Long hair hanging from the skull around the back of the head, a grid from its upper edge to the tips."""
    rows, columns = 16, 56
    angle = np.deg2rad(np.linspace(hair.opening, 360 - hair.opening, columns))
    start = frame.center[1] + 0.12
    drop = np.linspace(0, 1, rows)[:, None]
    height = start + (hair.fall - start) * drop  # [R,1]
    swell = 0.65 + 0.45 * np.sin(np.pi * np.minimum(drop * 1.2, 1)) + 0.3 * hair.volume * drop
    out = 1.0 - layer + hair.length * swell
    wave = 0.05 * hair.curl * np.sin(14 * height + 3 * np.sin(3 * angle + layer * 40))
    lean = 0.25 * np.clip(-height - 0.4, 0, 1.2)  # long hair comes closer to the neck
    radius = out + wave - 0.35 * lean
    across = np.sin(angle) * radius * (frame.width + 0.05)
    back = np.cos(angle) * radius * (frame.depth + 0.02) + frame.center[2] - 0.15 * drop
    points = np.stack(np.broadcast_arrays(across, height, back), -1).reshape(-1, 3)
    triangles, uv = _grid(rows, columns)
    uv[..., 0] = (uv[..., 0] + layer * 3) % 1.001
    hang = 1 - 0.5 * regions.ramp(points[:, 1], -0.6, -2.2)
    return _piece(points, triangles, uv, "strands", follow=hang, openness=0.45 + 0.55 * (layer == 0))


def _knot(frame, hair):
    """A bun on top or at the back, or a ponytail: an ellipsoid."""
    rows, columns = 12, 20
    rise, turn = np.linspace(-np.pi / 2, np.pi / 2, rows)[:, None], np.linspace(0, 2 * np.pi, columns)
    axes = np.cos(rise) * np.sin(turn), np.sin(rise), np.cos(rise) * np.cos(turn)
    ball = np.stack(np.broadcast_arrays(*axes), -1).reshape(-1, 3)
    if hair.style == "bun":
        on_top, behind = (0, frame.top - frame.center[1] + 0.12, -0.25), (0, 0.1, -frame.depth - 0.1)
        center = frame.center + np.array(on_top if hair.volume > 0.8 else behind)
        points = center + ball * (0.30 + 0.08 * hair.volume) * np.array([1, 0.85, 1])
    else:
        points = ball * np.array([0.24, 0.95, 0.24])
        points[:, 0] += 0.45 * hair.parting * (0.5 - points[:, 1])
        points += frame.center + np.array([0, -0.6, -frame.depth - 0.22])
    triangles, uv = _grid(rows, columns)
    return _piece(points, triangles, uv, "strands", openness=0.9)


def _beard(template, vertices, normals, look):
    if look.beard.kind in ("none", "stubble"):
        return []
    coverage = regions.beard(template.vertices.astype(np.float64), look.beard.kind)
    height = look.beard.length * coverage * (0.7 + 0.6 * regions.ramp(template.vertices[:, 1], -0.8, -1.1))
    offsets = [normals * (height * share + 0.006)[:, None] for share in (0.5, 1)]
    return [_shell(template, vertices, offset, coverage, "beard") for offset in offsets]


def _ring(path, radius, sides=6):
    """A thin tube around a path [P,3]: vertices, triangles and uv."""
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    helper = np.where(np.abs(along[:, 2:]) < 0.9, np.array([0.0, 0, 1]), np.array([0.0, 1, 0]))
    first = np.cross(along, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    angle = np.linspace(0, 2 * np.pi, sides + 1)[:, None, None]
    points = path + radius * (np.cos(angle) * first + np.sin(angle) * second)  # [S+1,P,3]
    triangles, uv = _grid(sides + 1, len(path))
    return points.reshape(-1, 3), triangles, uv


def _glasses(frame, glasses):
    """Two rims, a bridge and two temples."""
    turn = np.linspace(0, 2 * np.pi, 33)
    cos, sin = np.cos(turn), np.sin(turn)
    outline = np.stack(
        [
            np.sign(cos) * np.abs(cos) ** (2 / glasses.power) * glasses.width,
            np.sign(sin) * np.abs(sin) ** (2 / glasses.power) * glasses.height,
            -0.35 * (np.abs(cos) * glasses.width) ** 2,
        ],
        1,
    )
    pieces = []
    spots = []
    for sign, eye in zip((-1, 1), frame.eyes):
        center = np.array([eye[0] + sign * 0.02, eye[1] - 0.03, eye[2] + 0.29])
        pieces.append(center + outline)
        spots.append(center)
        hinge = center + np.array([sign * glasses.width, 0.05, -0.03])
        ear = np.array([sign * (frame.width + 0.03), eye[1] + 0.06, -0.85])
        pieces.append(np.linspace(hinge, ear, 8))
    bridge = np.linspace(spots[0] + [glasses.width, 0.03, 0], spots[1] + [-glasses.width, 0.03, 0], 7)
    bridge[:, 1:] += 0.05 * np.sin(np.linspace(0, np.pi, 7))[:, None]
    pieces.append(bridge)
    return [_piece(*_ring(path, glasses.thickness), "frame") for path in pieces]


def _earrings(template, vertices):
    """A small ring below each ear lobe: where the ear is lowest on the base mesh."""
    base = template.vertices
    pieces = []
    for sign in (-1, 1):
        lobe = np.flatnonzero((sign * base[:, 0] > 0.78) & (base[:, 1] > -0.6) & (template.follow == 1))
        spot = vertices[lobe[np.argmin(base[lobe, 1])]]
        turn = np.linspace(0, 2 * np.pi, 17)
        ring = spot + np.stack([0 * turn, 0.07 * np.sin(turn) - 0.06, 0.07 * np.cos(turn)], 1)
        pieces.append(_piece(*_ring(ring, 0.014), "frame"))
    return pieces


def _collar(template, vertices, clothing):
    """A folded collar or a hood's rim around the neck; other garments have none."""
    if clothing.garment not in ("shirt", "suit", "hoodie"):
        return []
    base = template.vertices
    neck = (base[:, 1] > -1.5) & (base[:, 1] < -1.25) & (np.abs(base[:, 0]) < 0.75) & (template.follow < 0.6)
    low, high = vertices[neck].min(0), vertices[neck].max(0)
    center, reach = (low + high) / 2, (high - low) / 2
    rows, columns = 5, 40
    gap = 14 if clothing.garment != "hoodie" else 4
    angle = np.deg2rad(np.linspace(gap, 360 - gap, columns))
    share = np.linspace(0, 1, rows)[:, None]
    thick = 0.30 if clothing.garment == "hoodie" else 0.12
    out = 1.04 + thick * share + (0.12 * np.sin(np.pi * share) if clothing.garment == "hoodie" else 0)
    height = clothing.neckline + 0.22 - 0.34 * share - 0.18 * np.maximum(0, np.cos(angle))
    across, back = center[0] + np.sin(angle) * reach[0] * out, center[2] + np.cos(angle) * reach[2] * out
    points = np.stack(np.broadcast_arrays(across, height, back), -1).reshape(-1, 3)
    triangles, uv = _grid(rows, columns)
    nearest = np.linalg.norm(points[:, None] - vertices[neck], axis=2).argmin(1)
    follow = 0.6 * template.follow[neck][nearest]
    return [_piece(points, triangles, uv, "fabric", follow=follow, openness=0.85)]
