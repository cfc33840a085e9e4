"""Where on the head hair, brows, beard, clothes and so on are: functions of a point's place on the base mesh.

Every function takes positions [...,3] on the *base* mesh, in decimetres from the point between its eyes, so that an
identity's own form does not move them off its features. They return values [...] in [0,1] if not said otherwise.
"""

import numpy as np

MOUTH = -0.60  # height of the closed lips
CROWN = np.array([0.0, 1.0, -0.95])


def ramp(value, start, stop):
    """0 up to ``start``, 1 from ``stop``, smooth between; ``stop`` may be less than ``start``."""
    share = np.clip((value - start) / (stop - start), 0, 1)
    return share * share * (3 - 2 * share)


def bump(value, center, width):
    """1 at the center, falling to about 0 at two widths."""
    return np.exp(-(((value - center) / width) ** 2))


def split(points):
    """x, y and z of points [...,3]."""
    return points[..., 0], points[..., 1], points[..., 2]


def scalp(points, hair, soft=0.05, noise=0.0):
    """Where hair grows. ``noise`` [...] in decimetres makes the line ragged."""
    x, y, z = split(points)
    side = np.abs(x)
    front = hair.hairline + hair.slant * x - 0.10 * (side / 0.5) ** 2
    front = front + hair.recession * bump(side, 0.42, 0.16) - 0.35 * ramp(side, 0.55, 0.75)
    temple = np.maximum(hair.sideburns, 0.1)
    behind = -0.25 - 1.5 * (-z - 0.9)  # rises over the ear, falls towards the nape
    before = np.maximum(front, temple)
    line = before + (np.clip(behind, -0.85, 0.42) - before) * ramp(z, -0.55, -0.85)
    covered = ramp(y + noise, line - soft, line + soft)
    burn = ramp(y, hair.sideburns - 0.04, hair.sideburns + 0.04) * bump(z, -0.62, 0.13) * ramp(side, 0.6, 0.68)
    covered = np.maximum(covered, burn * ramp(0.5 - y, 0, 0.05))
    return covered * (1 - ears(points))


def ears(points):
    """The ears and the skin right behind them."""
    x, y, z = split(points)
    return ramp(np.abs(x), 0.76, 0.80) * ramp(y, 0.24, 0.16) * ramp(z, -0.62, -0.70) * ramp(z, -1.25, -1.10)


def brows(points, brow):
    """The band of the brows."""
    x, y, z = split(points)
    along = (np.abs(x) - 0.10) / 0.46
    bend = brow.arch * np.sin(np.pi * np.clip(along, 0, 1) ** 1.3)
    middle = 0.215 + brow.height + brow.tilt * (np.abs(x) - 0.3) + bend
    half = brow.thickness * np.clip(1.2 - along, 0.25, 1) * ramp(along, -0.05, 0.12)
    return ramp(np.abs(y - middle), half, half - 0.03) * ramp(along, -0.03, 0.05) * ramp(along, 1.05, 0.9) * (z > -0.5)


def beard(points, kind, noise=0.0):
    """Where a beard of a kind of appearance.BEARDS grows (all over the jaw for stubble)."""
    x, y, z = split(points)
    side = np.abs(x)
    jaw = ramp(y - noise, -0.30 - 0.32 * ramp(side, 0.75, 0.2), -0.48 - 0.32 * ramp(side, 0.75, 0.2))
    jaw = jaw * ramp(z, -0.85, -0.65) * ramp(y + 0.25 * (z + 0.2), -1.32, -1.18)
    around_mouth = ramp(np.hypot(side / 0.34, (y - MOUTH + 0.02) / 0.20), 0.82, 1.02)
    moustache = bump(y, MOUTH + 0.135 - 0.25 * side, 0.045) * ramp(side, 0.36, 0.26) * ramp(z, -0.2, 0.0)
    if kind == "none":
        return np.zeros_like(y)
    if kind == "moustache":
        return moustache
    if kind == "goatee":
        chin = ramp(y, MOUTH - 0.14, MOUTH - 0.2) * ramp(side, 0.34, 0.24) * ramp(y, -1.3, -1.15)
        ring = bump(side, 0.31, 0.05) * ramp(y, MOUTH + 0.12, MOUTH + 0.02) * ramp(y, MOUTH - 0.3, MOUTH - 0.2)
        return np.maximum(np.maximum(moustache, chin), ring) * ramp(z, -0.6, -0.4)
    return np.maximum(jaw * around_mouth, moustache)


def cloth(points, clothing):
    """Where the garment is."""
    x, y, z = split(points)
    side = np.abs(x)
    rise = {"wide": -0.18, "turtleneck": 0.55, "shirt": 0.12, "suit": 0.12, "hoodie": 0.06}.get(clothing.garment, 0.0)
    line = clothing.neckline + rise - 0.16 * np.clip(z + 0.6, -1, 1) + 0.10 * np.clip(side - 0.5, 0, 1)
    if clothing.garment == "vneck":
        line = line - ramp(z, -0.5, -0.1) * np.clip(0.9 - 2.2 * side, 0, None)
    if clothing.garment == "wide":
        line = line + 0.25 * np.clip(side - 0.6, 0, 1)
    return ramp(y, line + 0.012, line - 0.012)


def opening(points, clothing):
    """The V between the lapels of a suit, where the shirt shows."""
    x, y, z = split(points)
    width = 0.08 + 0.42 * np.clip((y + 2.5) / 0.9, 0, 1)
    return ramp(np.abs(x), width + 0.01, width - 0.01) * ramp(z, -0.7, -0.6)


def tie(points):
    """A tie below the chin."""
    x, y, z = split(points)
    return ramp(np.abs(x), 0.09 + 0.03 * np.clip(-1.9 - y, 0, 1), 0.08) * ramp(z, -0.6, -0.5)
