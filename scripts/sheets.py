"""Labelled pictures of pictures, for the scripts that draw them."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mrfomm.reenactment.pictures import tile

CELL = 128  # pixels: no cell of a sheet is smaller
TEXT, GAP = 14, 2  # pixels


def sheet(rows: Sequence[Sequence[np.ndarray]], columns: Sequence[str] = (), names: Sequence[str] = ()) -> np.ndarray:
    """Rows of square pictures uint8 [S,S,3] as one, with texts above the columns and to the left of the rows.

    All are brought to the largest size of them, at least to CELL, by cubic interpolation; short rows end in white.
    """
    side = max(CELL, *(len(picture) for row in rows for picture in row))
    pictures = tile([[enlarged(picture, side) for picture in row] for row in rows], GAP)
    font = ImageFont.load_default(TEXT)
    left = max((round(font.getlength(line)) + TEXT for name in names for line in name.split("\n")), default=0)
    top = TEXT * 2 if any(columns) else 0
    canvas = Image.new("RGB", (left + pictures.shape[1], top + pictures.shape[0]), "white")
    canvas.paste(Image.fromarray(pictures), (left, top))
    draw, step = ImageDraw.Draw(canvas), side + GAP
    for number, text in enumerate(columns):
        draw.text((left + number * step + side / 2, top / 2), text, "black", font, "mm")
    for number, text in enumerate(names):
        draw.multiline_text((TEXT / 2, top + number * step + side / 2), text, "black", font, "lm")
    return np.asarray(canvas)


def stacked(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Sheets uint8 [H,W,3] below each other, with their right sides in line."""
    width = max(one.shape[1] for one in sheets)
    return np.concatenate(
        [np.pad(one, [(0, 0), (width - one.shape[1], 0), (0, 0)], constant_values=255) for one in sheets]
    )


def enlarged(picture, side):
    """A square picture uint8 [S,S,3] with that side."""
    return picture if len(picture) == side else cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC)


def degrees(angle, what):
    """What stands above a column of pictures at an angle: "yaw -30°"."""
    return f"{what} {angle:+g}°" if angle else f"{what} 0°"
