"""Paints the textures of a person and the backdrop of a scene."""

from typing import NamedTuple

import cv2
import numpy as np

from mrfomm.heads import regions
from mrfomm.heads.meshes import MATERIALS
from mrfomm.heads.rendering import Materials, bake, to_linear

# material -> (wrap of red, green, blue; gloss; hardness; two-sided; casts a shadow)
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


class Canvas(NamedTuple):
    """Where each texel of the skin is on the base mesh: points float32 [S,S,3]; masks: name -> float32 [S,S]."""

    points: np.ndarray
    masks: dict

    @property
    def size(self):
        return len(self.points)


def make_canvas(template, size):
    """The Canvas of a geometry.Template for textures of a size."""
    skin = template.of("skin")
    points = bake(template.uv[skin], template.triangles[skin], template.vertices, size)
    masks = {name: cv2.resize(mask, (size, size)) for name, mask in template.masks.items()}
    return Canvas(points, masks)


def paint_materials(canvas, look):
    """All materials of a person, rendering.Materials, in the order of meshes.MATERIALS."""
    rng = np.random.default_rng(look.seed)
    size = canvas.size
    painters = {
        "skin": lambda: paint_skin(canvas, look, rng),
        "eye": lambda: paint_eye(look.eyes, size, rng),
        "mouth": lambda: paint_mouth(size),
        "lashes": lambda: paint_lashes(size),
        "hair": lambda: paint_hair(canvas, look.hair, rng),
        "strands": lambda: paint_strands(look.hair, size, rng),
        "beard": lambda: paint_beard(canvas, look.beard, rng),
        "fabric": lambda: paint_fabric(look.clothing, size, rng),
        "frame": lambda: _opaque(np.broadcast_to(np.float32(look.glasses.color), (size, size, 3))),
    }
    optics = [_OPTICS[name] for name in MATERIALS]
    wrap, gloss, hardness, two_sided, casts = (np.array(column) for column in zip(*optics))
    return Materials(
        texture=np.stack([painters[name]() for name in MATERIALS]),
        wrap=wrap.astype(np.float32),
        gloss=gloss.astype(np.float32),
        hardness=hardness.astype(np.float32),
        two_sided=two_sided,
        casts=casts,
    )


def noise(rng, size, across, down=None):
    """Smooth noise float32 [size,size], uniform-like in [0,1], with ``across`` x ``down`` cells."""
    cells = rng.random((max(2, down or across), max(2, across)), dtype=np.float32)
    return np.clip(cv2.resize(cells, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)


def _blend(image, color, share):
    """Paint ``color`` over image [S,S,3] in place, covering ``share`` [S,S] of it."""
    image += share[..., None] * (np.asarray(color, np.float32) - image)


def _texture(color, alpha):
    return (np.dstack([np.clip(color, 0, 1), np.clip(alpha, 0, 1)]) * 255 + 0.5).astype(np.uint8)


def _opaque(color):
    return _texture(color, np.ones(color.shape[:2], np.float32))


def paint_skin(canvas, look, rng):
    """Skin with everything that lies flat on it: lips, brows, stubble, roots of the hair, and clothes."""
    size, skin = canvas.size, look.skin
    y = canvas.points[..., 1]
    fine, grain, patch = noise(rng, size, size // 2), noise(rng, size, size // 8), noise(rng, size, 14)
    color = np.ones((size, size, 3), np.float32) * np.float32(skin.tone)
    color *= (1 + 0.07 * (fine - 0.5) + 0.06 * (grain - 0.5) + 0.12 * (patch - 0.5))[..., None]
    _paint_complexion(color, canvas, skin, grain, rng)
    lips = canvas.masks["lips"] * 0.85
    _blend(color, np.float32(skin.lips) * (0.94 + 0.12 * grain[..., None]), lips)
    mouth = canvas.masks["inside-mouth"]
    _blend(color, (0.42, 0.14, 0.13), mouth)
    _blend(color, (0.25, 0.06, 0.06), regions.bump(y, regions.MOUTH, 0.012) * lips * 0.5)  # the line between the lips
    _paint_hairs(color, canvas, look, rng, fine)
    _paint_clothes(color, canvas, look.clothing, fine)
    return _opaque(color)


def _paint_complexion(color, canvas, skin, grain, rng):
    """Redness of cheeks, nose and ears, dark rims of the eyes, freckles, moles, wrinkles and make-up."""
    size = canvas.size
    x, y, z = regions.split(canvas.points)
    side = np.abs(x)
    cheeks = regions.bump(side, 0.42, 0.2) * regions.bump(y, -0.36, 0.2) * (z > -0.5)
    nose = regions.bump(x, 0, 0.14) * regions.bump(y, -0.33, 0.12) * (z > -0.1)
    red = np.clip(0.5 * canvas.masks["ears"] + 0.5 * cheeks + 0.45 * nose + 0.2 * (grain - 0.5), 0, 1) * skin.redness
    color *= 1 - red[..., None] * np.float32([0.0, 0.2, 0.18])
    below = regions.bump(side, 0.3, 0.13) * regions.bump(y, -0.13, 0.05) * (z > -0.4)
    color *= 1 - below[..., None] * (0.08 + 0.14 * skin.wrinkles) * np.float32([0.8, 1, 0.9])
    lids = canvas.masks["eyelids"] * regions.ramp(y, -0.02, 0.04)
    _blend(color, np.float32(skin.tone) * np.float32([0.55, 0.42, 0.45]), lids * (0.15 + 0.5 * skin.shadow))
    spots = regions.ramp(noise(rng, size, size // 5), 0.72, 0.9) * (cheeks + nose + 0.3) * (z > -0.6)
    color *= 1 - np.clip(spots * skin.freckles, 0, 1)[..., None] * np.float32([0.2, 0.32, 0.38])
    _paint_wrinkles(color, canvas.points, skin.wrinkles, grain)
    for _ in range(int(3 * skin.moles)):
        spot = rng.uniform((-0.6, -0.9), (0.6, 0.5))
        mole = regions.ramp(np.hypot(x - spot[0], y - spot[1]), 0.026, 0.014) * (z > -0.6)
        _blend(color, np.float32(skin.tone) * 0.35, mole)


def _paint_wrinkles(color, points, depth, grain):
    x, y, z = regions.split(points)
    side = np.abs(x)
    wavy = y + 0.02 * np.sin(9 * x) + 0.02 * (grain - 0.5)
    forehead = sum(regions.bump(wavy, height, 0.012) for height in (0.36, 0.45, 0.54)) * regions.ramp(side, 0.5, 0.3)
    fold = regions.bump(side, 0.20 - 0.28 * (y + 0.38), 0.016)
    fold = fold * regions.ramp(y, -0.72, -0.62) * regions.ramp(y, -0.34, -0.42)
    feet = sum(regions.bump(y - 0.03 - slope * (side - 0.5), 0, 0.010) for slope in (-0.5, 0.0, 0.5))
    feet = feet * regions.ramp(side, 0.5, 0.54) * regions.ramp(side, 0.68, 0.6)
    lines = np.clip(forehead * 0.7 + fold + 0.7 * feet, 0, 1) * (z > -0.6) * depth
    color *= 1 - lines[..., None] * np.float32([0.28, 0.34, 0.34])


def _paint_hairs(color, canvas, look, rng, fine):
    """Brows, stubble and shaved beards, and the roots of the hair."""
    points, size = canvas.points, canvas.size
    ragged = 0.08 * (noise(rng, size, size // 6) - 0.5)
    hairs = 0.55 + 0.9 * (noise(rng, size, size // 3, size // 24) - 0.35)
    brow = regions.brows(points, look.brows) * look.brows.density * hairs
    _blend(color, look.brows.color, np.clip(brow, 0, 0.95))
    kind = "full" if look.beard.kind == "stubble" else look.beard.kind
    dots = 0.55 + 0.9 * (fine > 0.5) if look.beard.kind == "stubble" else 1.0
    share = regions.beard(points, kind, ragged) * look.beard.density * dots * (1 - canvas.masks["lips"])
    _blend(color, look.beard.color, np.clip(share, 0, 0.9))
    if look.hair.style == "beanie":
        return
    roots = regions.scalp(points, look.hair, noise=ragged) * (0.12 if look.hair.style == "bald" else 0.95)
    root_color = np.float32(look.hair.color) * (0.6 + 0.4 * fine[..., None])
    _blend(color, root_color, np.clip(roots * (0.8 + 0.4 * fine), 0, 1))


def _paint_clothes(color, canvas, clothing, fine):
    points = canvas.points
    x, y, _ = regions.split(points)
    cloth = np.ones_like(color) * np.float32(clothing.color)
    if clothing.stripes:
        across = y if clothing.garment in ("crew", "wide", "hoodie", "turtleneck") else x
        _blend(cloth, clothing.second, regions.ramp(np.sin(2 * np.pi * clothing.stripes / 2 * across), 0.2, 0.4))
    if clothing.garment in ("suit", "shirt"):
        inner = regions.opening(points, clothing) if clothing.garment == "suit" else np.zeros_like(x)
        _blend(cloth, clothing.second, inner)
        necktie = regions.tie(points) * (inner if clothing.garment == "suit" else 0.0)
        _blend(cloth, clothing.tie, necktie)
        _blend(cloth, np.float32(clothing.color) * 0.5, regions.bump(x, 0.0, 0.012) * (clothing.garment == "shirt"))
    cloth *= (1 + clothing.texture * 0.3 * (fine - 0.5))[..., None]
    share = regions.cloth(points, clothing)
    color += share[..., None] * (cloth - color)


def paint_eye(eyes, size, rng):
    """An eyeball seen from the front: the iris in the middle."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    radius, turn = np.hypot(grid, grid[:, None]), np.arctan2(grid[:, None], grid)
    color = np.ones((size, size, 3), np.float32) * np.float32(eyes.sclera)
    color *= (1 - 0.22 * radius**2)[..., None] * (1 - radius[..., None] ** 3 * np.float32([0, 0.12, 0.1]))
    rim = 0.47
    fibres = 0.8 + 0.2 * np.sin(37 * turn + 3 * np.sin(11 * turn)) + 0.15 * (noise(rng, size, 24) - 0.5)
    iris = np.float32(eyes.iris) * (fibres * (0.7 + 0.7 * radius / rim))[..., None]
    color += regions.ramp(radius, rim, rim - 0.04)[..., None] * (iris - color)
    _blend(color, np.float32(eyes.iris) * 0.3, regions.bump(radius, rim - 0.02, 0.025) * 0.8)
    _blend(color, (0.015, 0.015, 0.015), regions.ramp(radius, rim * eyes.pupil + 0.02, rim * eyes.pupil - 0.02))
    return _opaque(color)


def paint_mouth(size):
    """Teeth in the upper half, tongue in the lower."""
    u = np.linspace(0, 1, size, dtype=np.float32)[None].repeat(size, 0)
    gap = np.abs(((u - 0.5) / 0.115) % 1 - 0.5)
    color = np.float32([0.93, 0.89, 0.82]) * (0.82 + 0.18 * regions.ramp(gap, 0.5, 0.4))[..., None]
    color[size // 2 :] = np.float32([0.72, 0.36, 0.36])
    return _opaque(color)


def paint_lashes(size):
    """Dark hairs with gaps between them along u."""
    u = np.arange(size, dtype=np.float32) / size
    hair = 0.5 + 0.5 * np.sin(2 * np.pi * 48 * u)
    return _texture(np.full((size, size, 3), 0.1, np.float32), np.broadcast_to(0.2 + 0.6 * hair, (size, size)))


def _strand_pattern(along, across, curl, rng, size):
    """Light and dark strands float32 in [0,1] from coordinates along and across them (about decimetres)."""
    bent = across + curl * (0.05 * np.sin(17 * along) + 0.03 * np.sin(31 * along + 5 * across))
    layers = []
    for cells in (40, 110):
        sheet = rng.random((64, 512), dtype=np.float32)
        u = (bent * cells) % 512
        v = (along * 3 + cells) % 64
        layers.append(cv2.remap(sheet, np.float32(u), np.float32(v), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP))
    return 0.55 * layers[0] + 0.45 * layers[1]


def _flow(points, hair):
    """Coordinates along and across the strands on the skull, each [S,S]."""
    x, y, z = regions.split(points)
    dx, dz = x - regions.CROWN[0], z - regions.CROWN[2]
    if hair.flow == 0:
        return np.hypot(dx, dz) - y, np.arctan2(dx, dz) * 0.7
    if hair.flow == 1:
        return np.abs(x - hair.parting) - y, z + 0.15 * x
    return -z, np.arctan2(x, y + 0.3) * 0.9


def _hair_color(hair, pattern):
    strands = pattern[..., None]
    return np.float32(hair.color) * (0.45 + 0.95 * strands) + 0.06 * strands  # black hair shines too


def paint_hair(canvas, hair, rng):
    """The shell of hair on the skull, with gaps between the strands at its edge."""
    along, across = _flow(canvas.points, hair)
    pattern = _strand_pattern(along, across, hair.curl, rng, canvas.size)
    if hair.style in ("afro", "curly", "buzz"):
        frizz = noise(rng, canvas.size, canvas.size // (2 if hair.style == "buzz" else 5))
        pattern = 0.3 * pattern + 0.7 * frizz
    coverage = regions.scalp(canvas.points, hair, soft=0.09)
    alpha = regions.ramp(coverage, 0.0, 0.75) + 0.9 * (pattern - 0.5)
    return _texture(_hair_color(hair, pattern), np.where(coverage > 0.95, 1, alpha))


def paint_strands(hair, size, rng):
    """Long hair: u around the head, v downwards; frayed at the tips."""
    u, v = np.meshgrid(np.linspace(0, 1, size, dtype=np.float32), np.linspace(0, 1, size, dtype=np.float32))
    pattern = _strand_pattern(v * 2, u * 4, hair.curl, rng, size)
    tips = regions.ramp(v, 1.0, 0.86) + 0.9 * (pattern - 0.5)
    edges = regions.ramp(np.minimum(u, 1 - u), 0.0, 0.03) + 0.8 * (pattern - 0.5)
    alpha = np.minimum(np.where(v < 0.8, 1, tips), np.where(np.abs(u - 0.5) < 0.45, 1, edges))
    return _texture(_hair_color(hair, pattern), alpha)


def paint_beard(canvas, beard, rng):
    """The shell of a beard, frayed at its edge."""
    x, y, z = regions.split(canvas.points)
    pattern = _strand_pattern(-y, np.arctan2(x, z + 1.0), 0.6, rng, canvas.size)
    kind = "none" if beard.kind == "stubble" else beard.kind
    alpha = regions.beard(canvas.points, kind) + 0.9 * (pattern - 0.5)
    alpha = alpha * (canvas.masks["lips"] < 0.4)
    return _texture(np.float32(beard.color) * (0.5 + 0.9 * pattern)[..., None], alpha)


def paint_fabric(clothing, size, rng):
    """Cloth of collars, hoods and caps."""
    color = np.float32(clothing.second if clothing.garment == "suit" else clothing.color)
    weave = 1 + 0.35 * clothing.texture * (noise(rng, size, size // 3) - 0.5)
    return _opaque(color * weave[..., None])


def paint_backdrop(backdrop, size):
    """A blurred background, float32 [size,size,3] in linear light."""
    rng = np.random.default_rng(backdrop.seed)
    first, second, third = (np.float32(color) for color in backdrop.colors)
    fall = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    image = np.ones((size, size, 1), np.float32) * (first * (1 - fall) + (0.6 * first + 0.4 * second) * fall)
    if backdrop.kind == "clouds":
        _blend(image, second, noise(rng, size, 3))
        _blend(image, third, 0.7 * noise(rng, size, 6))
    elif backdrop.kind == "room":
        image = _paint_room(image, (second, third), rng)
    elif backdrop.kind == "lights":
        for _ in range(int(rng.integers(6, 18))):
            spot = tuple(int(place) for place in rng.integers(0, size, 2))
            color = second if rng.random() < 0.5 else third
            disc = cv2.circle(np.zeros((size, size), np.float32), spot, int(size * rng.uniform(0.03, 0.13)), 1.0, -1)
            _blend(image, np.clip(color * 1.4, 0, 1), 0.6 * cv2.GaussianBlur(disc, (0, 0), size * 0.012))
    image = image * (0.94 + 0.12 * noise(rng, size, 5))[..., None]
    return to_linear(np.clip(image, 0, 1))


def _paint_room(image, colors, rng):
    """Blurred upright boxes: furniture, doors, windows, books."""
    size = len(image)
    for _ in range(int(rng.integers(3, 9))):
        left, top = rng.integers(-size // 4, size), rng.integers(-size // 4, size)
        corner = int(left + size * rng.uniform(0.1, 0.6)), int(top + size * rng.uniform(0.15, 0.9))
        tint = colors[int(rng.integers(len(colors)))] * rng.uniform(0.5, 1.2)
        color = tuple(float(value) for value in np.clip(tint, 0, 1))
        image = cv2.rectangle(np.ascontiguousarray(image), (int(left), int(top)), corner, color, -1)
    return cv2.GaussianBlur(image, (0, 0), size * rng.uniform(0.01, 0.04))
