"""Where on the head hair, brows, beard, clothes and so on are: functions of a point's place on the base mesh.

Every function takes positions [...,3] on the *base* mesh, in decimetres from the point between its eyes, so that an
identity's own form does not move them off its features. They return values [...] in [0,1].
"""

import numpy as np

from mrfomm.heads.painted.look import Brows, Clothing, Hair

MOUTH = -0.60  # height of the closed lips
CROWN = np.array([0.0, 1.0, -0.95])
_NECKLINES = {"wide": -0.18, "turtleneck": 0.55, "shirt": 0.12, "suit": 0.12, "hoodie": 0.06}  # above the crew's


def ramp(value: np.ndarray | float, start: np.ndarray | float, stop: np.ndarray | float) -> np.ndarray:
    """0 up to ``start``, 1 from ``stop``, smooth between; ``stop`` may be less than ``start``."""
    share = np.clip((value - start) / (stop - start), 0, 1)
    return share * share * (3 - 2 * share)


def bump(value: np.ndarray | float, center: np.ndarray | float, width: float) -> np.ndarray:
    """1 at the center, falling to about 0 at two widths."""
    return np.exp(-(((value - center) / width) ** 2))


def split(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y, z of points [...,3], and the distance from the middle of the face, |x|."""
    return points[..., 0], points[..., 1], points[..., 2], np.abs(points[..., 0])


def scalp(points: np.ndarray, hair: Hair, soft: float = 0.05, noise: np.ndarray | float = 0.0) -> np.ndarray:
    """Where hair grows. ``noise`` [...] in decimetres makes the line ragged."""
    x, y, z, side = split(points)
    front = hair.hairline + hair.slant * x - 0.10 * (side / 0.5) ** 2
    front = front + hair.recession * bump(side, 0.42, 0.16) - 0.35 * ramp(side, 0.55, 0.75)
    before = np.maximum(front, np.maximum(hair.sideburns, 0.1))
    behind = -0.25 - 1.5 * (-z - 0.9)  # rises over the ear, falls towards the nape
    line = before + (np.clip(behind, -0.85, 0.42) - before) * ramp(z, -0.55, -0.85)
    covered = ramp(y + noise, line - soft, line + soft)
    burn = ramp(y, hair.sideburns - 0.04, hair.sideburns + 0.04) * bump(z, -0.62, 0.13) * ramp(side, 0.6, 0.68)
    return np.maximum(covered, burn * ramp(0.5 - y, 0, 0.05)) * (1 - _ears(points))


def _ears(points: np.ndarray) -> np.ndarray:
    """The ears and the skin right behind them."""
    _, y, z, side = split(points)
    return ramp(side, 0.76, 0.80) * ramp(y, 0.24, 0.16) * ramp(z, -0.62, -0.70) * ramp(z, -1.25, -1.10)


def brows(points: np.ndarray, brow: Brows) -> np.ndarray:
    """The band of the brows."""
    _, y, z, side = split(points)
    along = (side - 0.10) / 0.46
    bend = brow.arch * np.sin(np.pi * np.clip(along, 0, 1) ** 1.3)
    middle = 0.215 + brow.height + brow.tilt * (side - 0.3) + bend
    half = brow.thickness * np.clip(1.2 - along, 0.25, 1) * ramp(along, -0.05, 0.12)
    return ramp(np.abs(y - middle), half, half - 0.03) * ramp(along, -0.03, 0.05) * ramp(along, 1.05, 0.9) * (z > -0.5)


def beard(points: np.ndarray, kind: str, noise: np.ndarray | float = 0.0) -> np.ndarray:
    """Where a beard of a kind of look.BEARDS grows (all over the jaw for stubble)."""
    _, y, z, side = split(points)
    if kind == "none":
        return np.zeros_like(y)
    moustache = bump(y, MOUTH + 0.135 - 0.25 * side, 0.045) * ramp(side, 0.36, 0.26) * ramp(z, -0.2, 0.0)
    if kind == "moustache":
        return moustache
    if kind == "goatee":
        chin = ramp(y, MOUTH - 0.14, MOUTH - 0.2) * ramp(side, 0.34, 0.24) * ramp(y, -1.3, -1.15)
        ring = bump(side, 0.31, 0.05) * ramp(y, MOUTH + 0.12, MOUTH + 0.02) * ramp(y, MOUTH - 0.3, MOUTH - 0.2)
        return np.maximum(np.maximum(moustache, chin), ring) * ramp(z, -0.6, -0.4)
    jaw = ramp(y - noise, -0.30 - 0.32 * ramp(side, 0.75, 0.2), -0.48 - 0.32 * ramp(side, 0.75, 0.2))
    jaw = jaw * ramp(z, -0.85, -0.65) * ramp(y + 0.25 * (z + 0.2), -1.32, -1.18)
    around_mouth = ramp(np.hypot(side / 0.34, (y - MOUTH + 0.02) / 0.20), 0.82, 1.02)
    return np.maximum(jaw * around_mouth, moustache)


def cloth(points: np.ndarray, clothing: Clothing) -> np.ndarray:
    """Where the garment is."""
    _, y, z, side = split(points)
    rise = _NECKLINES.get(clothing.garment, 0.0)
    line = clothing.neckline + rise - 0.16 * np.clip(z + 0.6, -1, 1) + 0.10 * np.clip(side - 0.5, 0, 1)
    if clothing.garment == "vneck":
        line = line - ramp(z, -0.5, -0.1) * np.clip(0.9 - 2.2 * side, 0, None)
    if clothing.garment == "wide":
        line = line + 0.25 * np.clip(side - 0.6, 0, 1)
    return ramp(y, line + 0.012, line - 0.012)


def opening(points: np.ndarray) -> np.ndarray:
    """The V between the lapels of a suit, where the shirt shows."""
    _, y, z, side = split(points)
    width = 0.08 + 0.42 * np.clip((y + 2.5) / 0.9, 0, 1)
    return ramp(side, width + 0.01, width - 0.01) * ramp(z, -0.7, -0.6)


def tie(points: np.ndarray) -> np.ndarray:
    """A tie below the chin."""
    _, y, z, side = split(points)
    return ramp(side, 0.09 + 0.03 * np.clip(-1.9 - y, 0, 1), 0.08) * ramp(z, -0.6, -0.5)
