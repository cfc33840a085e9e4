"""The film strip of the page: which picture supplied what, along a clip."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mrfomm.reenactment.animator import Breakdown
from mrfomm.reenactment.pictures import picture, tile

TILE = 128  # pixels: smaller frames are enlarged
GAP = 4
MARGIN = 104  # pixels on the left, for the names of the rows
HEAD = 44  # pixels at the top, for the times and, above them, the page's buttons
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
INK = (70, 70, 70)
Shown = tuple[np.ndarray, np.ndarray]


def film_strip(
    references: Sequence[np.ndarray], shown: Sequence[Shown], breakdown: Breakdown, seconds: Sequence[float]
) -> np.ndarray:
    """Driving frames, each reference's share of the results, and the results.

    Args:
        references: K uint8 [S,S,3]. shown: N pairs of uint8 [S,S,3], driving frame and result.
        breakdown: Breakdown of the N results. seconds: N times of the driving frames.

    Returns:
        uint8 picture: below the times, a column a result. Rows: the driving frames, a row per reference with the
        reference in front and then its warp times its mask, and the results. Enlarged by a whole number if the frames
        are small.
    """
    image = film(references, shown, breakdown)
    names = ["driving\nclip", *row_names(breakdown.mask), "result"]
    height, width = image.shape[:2]
    canvas = Image.new("RGB", (MARGIN + width, HEAD + height), "white")
    canvas.paste(Image.fromarray(image), (MARGIN, HEAD))
    draw, font = ImageDraw.Draw(canvas), ImageFont.truetype(str(FONT), 15)
    for number, name in enumerate(names):
        middle = HEAD + (number + 0.5) * (height + GAP) / len(names)
        draw.multiline_text((8, middle), name, INK, font, anchor="lm", spacing=5)
    for number, second in enumerate(seconds, 1):
        middle = MARGIN + (number + 0.5) * (width + GAP) / (1 + len(seconds))
        draw.text((middle, HEAD - GAP), f"{second:.1f} s", INK, font, anchor="mb")
    return np.asarray(canvas)


def film(references: Sequence[np.ndarray], shown: Sequence[Shown], breakdown: Breakdown) -> np.ndarray:
    """The pictures of ``film_strip``, without names and times."""
    factor = max(1, TILE // len(references[0]))
    blank = np.full_like(references[0], 255)
    shares = (breakdown.warped * breakdown.mask).swapaxes(0, 1)  # [K,N,3,S,S]
    rows = [[blank, *(frame for frame, _ in shown)]]
    rows += [[reference, *map(picture, row)] for reference, row in zip(references, shares)]
    rows += [[blank, *(image for _, image in shown)]]
    return tile([[image.repeat(factor, axis=0).repeat(factor, axis=1) for image in row] for row in rows], GAP)


def row_names(mask: np.ndarray) -> list[str]:
    """What stands before each reference's row: its number and its share of the masks [N,K,1,S,S]."""
    return [f"picture {k}\nsupplies\n{share:.0%}" for k, share in enumerate(mask.mean(axis=(0, 2, 3, 4)), 1)]
