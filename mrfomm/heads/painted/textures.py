"""Paints the textures of a person; a texture is uint8 [S,S,4], colour and alpha."""

import cv2
import numpy as np
from numpy.typing import ArrayLike

from mrfomm.heads.painted import regions
from mrfomm.heads.painted.canvas import Canvas
from mrfomm.heads.painted.look import Beard, Clothing, Eyes, Hair, Look, Skin
from mrfomm.heads.rendering import Materials
from mrfomm.heads.scene import cover, noise, single

# material -> (wrap of red, green, blue; gloss; hardness; two-sided; casts a shadow): the columns of Materials
_OPTICS = {
    "skin": ((0.35, 0.18, 0.12), 0.05, 14, False, True),
    "eye": ((0.25, 0.22, 0.2), 0.55, 160, False, False),
    "mouth": ((0.2, 0.15, 0.12), 0.12, 40, True, False),
    "lashes": ((0.3, 0.3, 0.3), 0.0, 1, True, False),
    "hair": ((0.4, 0.4, 0.4), 0.05, 12, True, True),
    "strands": ((0.4, 0.4, 0.4), 0.05, 12, True, True),
    "beard": ((0.4, 0.4, 0.4), 0.04, 8, True, False),
    "fabric": ((0.2, 0.2, 0.2), 0.01, 5, True, True),
    "frame": ((0.1, 0.1, 0.1), 0.5, 50, True, True),
}
MATERIALS = tuple(_OPTICS)


def paint_materials(canvas: Canvas, look: Look) -> Materials:
    """All materials of a person, in the order of MATERIALS."""
    rng = np.random.default_rng(look.seed)
    size = len(canvas.points)
    textures = (
        paint_skin(canvas, look, rng),
        paint_eye(look.eyes, size, rng),
        _paint_mouth(size),
        _paint_lashes(size),
        _paint_hair(canvas, look.hair, rng),
        _paint_strands(look.hair, size, rng),
        _paint_beard(canvas, look.beard, rng),
        _paint_fabric(look.clothing, size, rng),
        _opaque(np.full((size, size, 3), look.glasses.color, np.float32)),
    )
    wrap, gloss, hardness, two_sided, casts = zip(*_OPTICS.values())
    answers = single(wrap), single(gloss), single(hardness), np.array(two_sided), np.array(casts)
    return Materials(np.stack(textures), *answers, soft=np.zeros(len(MATERIALS), bool))


def _texture(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return (np.dstack([np.clip(color, 0, 1), np.clip(alpha, 0, 1)]) * 255 + 0.5).astype(np.uint8)


def _opaque(color: np.ndarray) -> np.ndarray:
    return _texture(color, np.ones(color.shape[:2], np.float32))


def _dim(color: np.ndarray, share: np.ndarray, by: ArrayLike) -> None:
    """Darken color [S,S,3] in place where ``share`` [S,S] is, its channels ``by`` [3]."""
    color *= 1 - share[..., None] * single(by)


def paint_skin(canvas: Canvas, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Skin with everything that lies flat on it: lips, brows, stubble, roots of the hair, and clothes."""
    size, skin = len(canvas.points), look.skin
    y = canvas.points[..., 1]
    fine, grain, patch = noise(rng, size, size // 2), noise(rng, size, size // 8), noise(rng, size, 14)
    color = np.ones((size, size, 3), np.float32) * single(skin.tone)
    color *= (1 + 0.07 * (fine - 0.5) + 0.06 * (grain - 0.5) + 0.12 * (patch - 0.5))[..., None]
    paint_complexion(color, canvas, skin, grain, rng)
    lips = canvas.masks["lips"] * 0.85
    cover(color, single(skin.lips) * (0.94 + 0.12 * grain[..., None]), lips)
    cover(color, (0.42, 0.14, 0.13), canvas.masks["inside-mouth"])
    cover(color, (0.25, 0.06, 0.06), regions.bump(y, regions.MOUTH, 0.012) * lips * 0.5)  # the line between the lips
    paint_hairs(color, canvas, look, rng, fine)
    _paint_clothes(color, canvas, look.clothing, fine)
    return _opaque(color)


def paint_complexion(
    color: np.ndarray, canvas: Canvas, skin: Skin, grain: np.ndarray, rng: np.random.Generator
) -> None:
    """Redness of cheeks, nose and ears, dark rims of the eyes, freckles, moles, wrinkles and make-up."""
    size = len(canvas.points)
    x, y, z, side = regions.split(canvas.points)
    cheeks = regions.bump(side, 0.42, 0.2) * regions.bump(y, -0.36, 0.2) * (z > -0.5)
    nose = regions.bump(x, 0, 0.14) * regions.bump(y, -0.33, 0.12) * (z > -0.1)
    red = np.clip(0.5 * canvas.masks["ears"] + 0.5 * cheeks + 0.45 * nose + 0.2 * (grain - 0.5), 0, 1)
    _dim(color, red * skin.redness, (0.0, 0.2, 0.18))
    below = regions.bump(side, 0.3, 0.13) * regions.bump(y, -0.13, 0.05) * (z > -0.4)
    _dim(color, below * (0.08 + 0.14 * skin.wrinkles), (0.8, 1, 0.9))
    lids = canvas.masks["eyelids"] * regions.ramp(y, -0.02, 0.04)
    cover(color, single(skin.tone) * single([0.55, 0.42, 0.45]), lids * (0.15 + 0.5 * skin.shadow))
    spots = regions.ramp(noise(rng, size, size // 5), 0.72, 0.9) * (cheeks + nose + 0.3) * (z > -0.6)
    _dim(color, np.clip(spots * skin.freckles, 0, 1), (0.2, 0.32, 0.38))
    _dim(color, _wrinkles(canvas.points, grain) * skin.wrinkles, (0.28, 0.34, 0.34))
    for _ in range(int(3 * skin.moles)):
        spot = rng.uniform((-0.6, -0.9), (0.6, 0.5))
        mole = regions.ramp(np.hypot(x - spot[0], y - spot[1]), 0.026, 0.014) * (z > -0.6)
        cover(color, single(skin.tone) * 0.35, mole)


def _wrinkles(points: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """Lines [S,S] of the forehead, beside the mouth and beside the eyes."""
    x, y, z, side = regions.split(points)
    wavy = y + 0.02 * np.sin(9 * x) + 0.02 * (grain - 0.5)
    forehead = sum(regions.bump(wavy, height, 0.012) for height in (0.36, 0.45, 0.54)) * regions.ramp(side, 0.5, 0.3)
    fold = regions.bump(side, 0.20 - 0.28 * (y + 0.38), 0.016)
    fold = fold * regions.ramp(y, -0.72, -0.62) * regions.ramp(y, -0.34, -0.42)
    feet = sum(regions.bump(y - 0.03 - slope * (side - 0.5), 0, 0.010) for slope in (-0.5, 0.0, 0.5))
    feet = feet * regions.ramp(side, 0.5, 0.54) * regions.ramp(side, 0.68, 0.6)
    return np.clip(forehead * 0.7 + fold + 0.7 * feet, 0, 1) * (z > -0.6)


def paint_hairs(color: np.ndarray, canvas: Canvas, look: Look, rng: np.random.Generator, fine: np.ndarray) -> None:
    """Brows, stubble or the skin below a beard, and the roots of the hair."""
    points, size, hair, beard = canvas.points, len(canvas.points), look.hair, look.beard
    ragged = 0.08 * (noise(rng, size, size // 6) - 0.5)
    hairs = 0.55 + 0.9 * (noise(rng, size, size // 3, size // 24) - 0.35)
    cover(color, look.brows.color, np.clip(regions.brows(points, look.brows) * look.brows.density * hairs, 0, 0.95))
    dots = 0.55 + 0.9 * (fine > 0.5) if beard.kind == "stubble" else 1.0
    share = regions.beard(points, beard.kind, ragged) * beard.density * dots * (1 - canvas.masks["lips"])
    cover(color, beard.color, np.clip(share, 0, 0.9))
    if hair.style != "beanie":
        roots = regions.scalp(points, hair, noise=ragged) * (0.12 if hair.style == "bald" else 0.95)
        roots = np.clip(roots * (0.8 + 0.4 * fine), 0, 1)
        cover(color, single(hair.color) * (0.6 + 0.4 * fine[..., None]), roots)


def _paint_clothes(color: np.ndarray, canvas: Canvas, clothing: Clothing, fine: np.ndarray) -> None:
    points, own = canvas.points, single(clothing.color)
    x, y, _, _ = regions.split(points)
    cloth = np.ones_like(color) * own
    if clothing.stripes:
        across = y if clothing.garment in ("crew", "wide", "hoodie", "turtleneck") else x
        cover(cloth, clothing.second, regions.ramp(np.sin(2 * np.pi * clothing.stripes / 2 * across), 0.2, 0.4))
    if clothing.garment == "suit":
        inner = regions.opening(points)
        cover(cloth, clothing.second, inner)
        cover(cloth, clothing.tie, regions.tie(points) * inner)
    if clothing.garment == "shirt":
        cover(cloth, own * 0.5, regions.bump(x, 0.0, 0.012))
    cloth *= (1 + clothing.texture * 0.3 * (fine - 0.5))[..., None]
    cover(color, cloth, regions.cloth(points, clothing))


def paint_eye(eyes: Eyes, size: int, rng: np.random.Generator) -> np.ndarray:
    """An eyeball seen from the front: the iris in the middle."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    radius, turn = np.hypot(grid, grid[:, None]), np.arctan2(grid[:, None], grid)
    color = np.ones((size, size, 3), np.float32) * single(eyes.sclera)
    color *= (1 - 0.22 * radius**2)[..., None] * (1 - radius[..., None] ** 3 * single([0, 0.12, 0.1]))
    rim, hole = 0.47, 0.47 * eyes.pupil
    fibres = 0.8 + 0.2 * np.sin(37 * turn + 3 * np.sin(11 * turn)) + 0.15 * (noise(rng, size, 24) - 0.5)
    iris = single(eyes.iris) * (fibres * (0.7 + 0.7 * radius / rim))[..., None]
    cover(color, iris, regions.ramp(radius, rim, rim - 0.04))
    cover(color, single(eyes.iris) * 0.3, regions.bump(radius, rim - 0.02, 0.025) * 0.8)
    cover(color, (0.015, 0.015, 0.015), regions.ramp(radius, hole + 0.02, hole - 0.02))
    return _opaque(color)


def _paint_mouth(size: int) -> np.ndarray:
    """Teeth in the upper half, tongue in the lower."""
    u = np.linspace(0, 1, size, dtype=np.float32)
    gap = np.abs(((u - 0.5) / 0.115) % 1 - 0.5)
    teeth = single([0.93, 0.89, 0.82]) * (0.82 + 0.18 * regions.ramp(gap, 0.5, 0.4))[:, None]
    color = np.tile(teeth, (size, 1, 1))
    color[size // 2 :] = single([0.72, 0.36, 0.36])
    return _opaque(color)


def _paint_lashes(size: int) -> np.ndarray:
    """Dark hairs with gaps between them along u."""
    hair = 0.5 + 0.5 * np.sin(2 * np.pi * 48 * (np.arange(size, dtype=np.float32) / size))
    return _texture(np.full((size, size, 3), 0.1, np.float32), np.tile(0.2 + 0.6 * hair, (size, 1)))


def _strands(along: np.ndarray, across: np.ndarray, curl: float, rng: np.random.Generator) -> np.ndarray:
    """Light and dark strands float32 [S,S] in [0,1] from coordinates along and across them (about decimetres)."""
    bent = across + curl * (0.05 * np.sin(17 * along) + 0.03 * np.sin(31 * along + 5 * across))
    layers = []
    for cells in (40, 110):
        sheet = rng.random((64, 512), dtype=np.float32)
        u, v = single((bent * cells) % 512), single((along * 3 + cells) % 64)
        layers.append(cv2.remap(sheet, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP))
    return 0.55 * layers[0] + 0.45 * layers[1]


def _flow(points: np.ndarray, hair: Hair) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across the strands on the skull, each [S,S]."""
    x, y, z, _ = regions.split(points)
    dx, dz = x - regions.CROWN[0], z - regions.CROWN[2]
    if hair.flow == 0:
        return np.hypot(dx, dz) - y, np.arctan2(dx, dz) * 0.7
    if hair.flow == 1:
        return np.abs(x - hair.parting) - y, z + 0.15 * x
    return -z, np.arctan2(x, y + 0.3) * 0.9


def _hair_color(hair: Hair, pattern: np.ndarray) -> np.ndarray:
    strands = pattern[..., None]
    return single(hair.color) * (0.45 + 0.95 * strands) + 0.06 * strands  # black hair shines too


def _paint_hair(canvas: Canvas, hair: Hair, rng: np.random.Generator) -> np.ndarray:
    """The shell of hair on the skull, with gaps between the strands at its edge."""
    size = len(canvas.points)
    pattern = _strands(*_flow(canvas.points, hair), hair.curl, rng)
    if hair.style in ("afro", "curly", "buzz"):
        pattern = 0.3 * pattern + 0.7 * noise(rng, size, size // (2 if hair.style == "buzz" else 5))
    coverage = regions.scalp(canvas.points, hair, soft=0.09)
    alpha = regions.ramp(coverage, 0.0, 0.75) + 0.9 * (pattern - 0.5)
    return _texture(_hair_color(hair, pattern), np.where(coverage > 0.95, 1, alpha))


def _paint_strands(hair: Hair, size: int, rng: np.random.Generator) -> np.ndarray:
    """Long hair: u around the head, v downwards; frayed at the tips."""
    line = np.linspace(0, 1, size, dtype=np.float32)
    u, v = np.meshgrid(line, line)
    pattern = _strands(v * 2, u * 4, hair.curl, rng)
    tips = regions.ramp(v, 1.0, 0.86) + 0.9 * (pattern - 0.5)
    edges = regions.ramp(np.minimum(u, 1 - u), 0.0, 0.03) + 0.8 * (pattern - 0.5)
    alpha = np.minimum(np.where(v < 0.8, 1, tips), np.where(np.abs(u - 0.5) < 0.45, 1, edges))
    return _texture(_hair_color(hair, pattern), alpha)


def _paint_beard(canvas: Canvas, beard: Beard, rng: np.random.Generator) -> np.ndarray:
    """The shell of a beard, frayed at its edge."""
    x, y, z, _ = regions.split(canvas.points)
    pattern = _strands(-y, np.arctan2(x, z + 1.0), 0.6, rng)
    kind = "none" if beard.kind == "stubble" else beard.kind
    alpha = (regions.beard(canvas.points, kind) + 0.9 * (pattern - 0.5)) * (canvas.masks["lips"] < 0.4)
    return _texture(single(beard.color) * (0.5 + 0.9 * pattern)[..., None], alpha)


def _paint_fabric(clothing: Clothing, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cloth of collars, hoods and caps."""
    color = single(clothing.second if clothing.garment == "suit" else clothing.color)
    weave = 1 + 0.35 * clothing.texture * (noise(rng, size, size // 3) - 0.5)
    return _opaque(color * weave[..., None])
