"""A person with photographed skin: the bundled head in MakeHuman's assets, ready for rendering."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mrfomm.heads.geometry import Template, dense, shape_vertices
from mrfomm.heads.motion import weights_of
from mrfomm.heads.painted import meshes, regions
from mrfomm.heads.painted.canvas import Canvas
from mrfomm.heads.painted.look import Look, mix
from mrfomm.heads.painted.textures import MATERIALS, paint_complexion, paint_hairs, paint_materials
from mrfomm.heads.person import Identity, Person, head_bounds
from mrfomm.heads.photographed.assets import EYEBALLS, TEETH, TONGUE, Assets
from mrfomm.heads.photographed.outfit import RESTING, Outfit
from mrfomm.heads.photographed.parts import Part, blend, mirror, place, with_helpers
from mrfomm.heads.rendering import Materials, Mesh
from mrfomm.heads.scene import Color, cover, noise, single

_ROOM = 0.06  # decimetres


class Piece(NamedTuple):
    """Something that is put on a head; its materials come after MATERIALS, in the order of the pieces."""

    part: Part
    texture: np.ndarray  # uint8 [S,S,4]
    like: str  # the one of MATERIALS that answers light as this does
    soft: bool  # whether its alpha is gradual
    moves: bool  # whether it shares in expressions


def dress(template: Template, canvas: Canvas, assets: Assets, identity: Identity, outfit: Outfit) -> Person:
    """The Person of an Identity in an Outfit. Head, its motion and what the head wears are those of the painted one."""
    units = dense(template.units, len(template.vertices))
    rest = weights_of(list(template.units), dict(zip(RESTING, outfit.rest)))
    vertices = shape_vertices(template, identity.shape) + np.tensordot(rest, units, 1)
    look = soften(identity.look, outfit)
    pieces = list(_pieces(assets, look, outfit))
    body = meshes.measure(template, vertices.astype(np.float64))
    roots = regions.scalp(body.base, look.hair) * bool(outfit.hair)
    style = "beanie" if look.hair.style == "beanie" else "bald"  # other hair is the assets', or flat on the skin
    grown = look._replace(hair=look.hair._replace(style=style))
    mesh = meshes.join([_skin(body, pieces, roots), *meshes.hairs(body, grown), *meshes.worn(body, look)])
    everywhere = with_helpers(assets.fit, units)
    for number, piece in enumerate(pieces, len(MATERIALS)):
        mesh = meshes.join([mesh, _fitted(body, assets, piece, number, units.shape[1])])
        if piece.moves:
            units = np.concatenate([units, blend(piece.part, everywhere)], 1)
    materials = _materials(canvas, look, _paint_skin(canvas, assets, look, outfit), pieces)
    pivot = vertices[template.pivot].mean(0).astype(float)
    return Person(mesh, units, pivot, head_bounds(template, vertices), materials)


def soften(look: Look, outfit: Outfit) -> Look:
    """The painted look without what the assets have, and with less of what is too plain to see on photographed skin."""
    skin = look.skin._replace(wrinkles=0.0, moles=0.0, freckles=0.4 * look.skin.freckles)
    beard = look.beard._replace(density=look.beard.density * (0.5 if look.beard.kind == "stubble" else 1))
    hair = look.hair._replace(color=mix(look.hair.color, look.brows.color, 0.35 if outfit.hair else 0.9))
    clothing = look.clothing._replace(color=mix(look.clothing.color, (0.2, 0.2, 0.2), 0.4))  # of caps
    if outfit.hair:  # of its roots, the crown shows in gaps
        hair = hair._replace(style="long", hairline=0.8, recession=0.0, slant=0.0, sideburns=0.3)
    brows = look.brows._replace(density=0.0)
    return look._replace(skin=skin, beard=beard, hair=hair, clothing=clothing, brows=brows)


def _pieces(assets: Assets, look: Look, outfit: Outfit) -> Iterator[Piece]:
    parts, textures = assets.parts, assets.textures
    yield Piece(parts[EYEBALLS], textures[f"eyes/{outfit.eyes}"], "eye", soft=False, moves=True)
    yield Piece(parts[TEETH], textures[TEETH], "mouth", soft=False, moves=True)
    yield Piece(parts[TONGUE], tinted(textures[TONGUE], (0.6, 0.55, 0.55)), "mouth", soft=False, moves=True)
    brows, lashes, clothes = f"eyebrows/{outfit.brows}", f"eyelashes/{outfit.lashes}", f"clothes/{outfit.clothes}"
    yield Piece(parts[brows], recolor(textures[brows], look.brows.color, 1.6), "lashes", soft=True, moves=True)
    yield Piece(parts[lashes], textures[lashes], "lashes", soft=True, moves=True)
    yield Piece(parts[clothes], tinted(textures[clothes], outfit.dye), "fabric", soft=False, moves=False)
    if outfit.hair:
        name = f"hair/{outfit.hair}"
        part = mirror(parts[name], assets.fit) if outfit.flipped else parts[name]
        yield Piece(part, recolor(textures[name], look.hair.color), "strands", soft=True, moves=False)


def _skin(body: meshes.Head, pieces: list[Piece], roots: np.ndarray) -> Mesh:
    """The skin, without what clothes cover. Where hair has its ``roots`` [V] it makes room for the assets' hair, which
    is made for the base mesh."""
    vertices = body.vertices - _ROOM * roots[:, None] * body.normals
    template, own = body.template, np.arange(len(body.vertices))
    hidden = np.concatenate([piece.part.hidden for piece in pieces])
    shown = template.of("skin") & ~np.isin(template.triangles, hidden).all(1)
    uv, triangles = template.uv[shown], template.triangles[shown]
    return meshes.piece(vertices, triangles, uv, "skin", template.openness, own, template.follow)


def _fitted(body: meshes.Head, assets: Assets, piece: Piece, material: int, first: int) -> Mesh:
    """A piece on the head; the expressions of its vertices, if it has any, stand from ``first`` on."""
    part, template = piece.part, body.template
    shares = np.stack([template.openness, template.follow], 1)
    openness, follow = np.clip(blend(part, with_helpers(assets.fit, shares)), 0, 1).T
    source = np.arange(first, first + len(part.corners)) if piece.moves else None
    vertices = place(part, assets.fit, body.vertices)
    mesh = meshes.piece(vertices, part.triangles, part.uv, "skin", openness, source, follow)
    return mesh._replace(material=np.full(len(part.triangles), material, np.int32))


def _materials(canvas: Canvas, look: Look, skin: np.ndarray, pieces: list[Piece]) -> Materials:
    """MATERIALS with another skin, and after them the pieces'."""
    painted = paint_materials(canvas, look)
    rows = [*range(len(MATERIALS)), *(MATERIALS.index(piece.like) for piece in pieces)]
    texture = np.stack([skin, *painted.texture[1:], *(piece.texture for piece in pieces)])
    soft = np.array([False] * len(MATERIALS) + [piece.soft for piece in pieces])
    return Materials(*(field[rows] for field in painted))._replace(texture=texture, soft=soft)


def _paint_skin(canvas: Canvas, assets: Assets, look: Look, outfit: Outfit) -> np.ndarray:
    """The blended skins uint8 [S,S,4] in the person's tone, with what is painted on it."""
    rng, size = np.random.default_rng(look.seed), len(canvas.points)
    color = blend_skins(assets.skins, outfit.skins)
    ratio = single(look.skin.tone) / color[canvas.masks["face"] > 0.5].mean(0)
    color *= np.clip(ratio.mean(), 0.75, 1.3) ** outfit.tint * (ratio / ratio.mean()) ** 0.4
    fine, grain = noise(rng, size, size // 2), noise(rng, size, size // 8)
    paint_complexion(color, canvas, look.skin, grain, rng)
    if look.skin.shadow:  # made up
        cover(color, look.skin.lips, canvas.masks["lips"] * 0.5)
    cover(color, (0.3, 0.1, 0.09), canvas.masks["inside-mouth"])
    paint_hairs(color, canvas, look, rng, fine)
    return np.dstack([np.clip(255 * color + 0.5, 0, 255), np.full((size, size), 255)]).astype(np.uint8)


def blend_skins(skins: np.ndarray, shares: ArrayLike) -> np.ndarray:
    """The mean, float32 [S,S,3] in [0,1], of uint8 skins [n,S,S,3] with shares [n] that sum to 1."""
    return np.tensordot(single(shares), skins, 1) / np.float32(255)


def tinted(texture: np.ndarray, tint: Color) -> np.ndarray:
    """A texture uint8 [S,S,4] with its colours multiplied."""
    return np.clip(texture * single([*tint, 1]), 0, 255).astype(np.uint8)


def recolor(texture: np.ndarray, color: Color, density: float = 1.0) -> np.ndarray:
    """A texture uint8 [S,S,4] with ``color`` for its mean grey; light and dark strands stay. Its alpha is multiplied by
    ``density``."""
    grey, alpha = single(texture[..., :3].mean(2)), texture[..., 3]
    relative = np.minimum(1.7, (grey + 12) / (12 + np.average(grey, weights=alpha.astype(float) + 1e-9)))
    hue = relative[..., None] ** 0.8 * single(color)
    return np.clip(np.dstack([255 * hue, density * alpha]), 0, 255).astype(np.uint8)
