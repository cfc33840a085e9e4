"""VoxCeleb's metadata: one text file per utterance with the face's box in every frame.

A file has header lines (``Identity : <tab> id10001``, ``Reference``, ``Offset``, ``FV Conf``, ``ASD Conf``), an empty
line, and a table ``FRAME X Y W H``. Frames are counted at 25 per second. VoxCeleb2 gives boxes as shares of the
frame, VoxCeleb1 as pixels of the video at a height of 360 (so FOMM's video-preprocessing reads them). The size of
the numbers tells which it is: no face is one pixel wide.
"""

import math
from pathlib import Path
from typing import NamedTuple

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.media.crop import Place, Region
from mrfomm.store import files_below

FPS = 25
_PIXELS_HEIGHT = 360
_HEADER = ("Identity", "Reference", "Offset", "FV Conf", "ASD Conf")
_COLUMNS = ["FRAME", "X", "Y", "W", "H"]

# VoxCeleb1's official test speakers, who are FOMM's test set too.
TEST_IDENTITIES = frozenset(f"id{number}" for number in range(10270, 10310))


class Utterance(NamedTuple):
    """One utterance: who, in which video (``Reference``), and the face's track of (frame number, Region)."""

    identity: str
    video: str
    track: tuple[Place, ...]
    in_shares: bool

    def pixels(self, region: Region, frame_shape: tuple[int, ...]) -> Region:
        """A Region of the track in pixels of a frame of ``frame_shape`` (H, W, ...)."""
        height, width = frame_shape[:2]
        factor = height / _PIXELS_HEIGHT
        return region.scaled(width, height) if self.in_shares else region.scaled(factor, factor)


def read_utterances(folder: AnyPath) -> list[Utterance]:
    """Read all text files below a folder, in the order of their paths.

    Raises:
        UserError: no such folder, no text file, or a file that isn't in the format; file and line are named.
    """
    paths = [path for path in files_below(folder) if path.suffix == ".txt"] if Path(folder).is_dir() else []
    if not paths:
        raise UserError(f"{folder}: holds no .txt file; give the unpacked folder of VoxCeleb's metadata")
    return [read_utterance(path) for path in paths]


def read_utterance(path: AnyPath) -> Utterance:
    """Read one text file. Raises UserError, which names the file and the line."""
    check_is_file(path)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: can't be read ({error}); get the file again") from error
    header = [_header_value(path, lines, i, key) for i, key in enumerate(_HEADER)]
    rows = [(i, line) for i, line in enumerate(lines) if i >= len(_HEADER) and line.strip()]
    if not rows or rows[0][1].split() != _COLUMNS:
        raise _misformatted(path, rows[0][0] if rows else len(lines), f"the columns {' '.join(_COLUMNS)}")
    track = tuple(_row(path, i, line) for i, line in rows[1:])
    if not track:
        raise _misformatted(path, len(lines), "a row for every frame")
    for (i, _), (number, _), (following, _) in zip(rows[2:], track, track[1:]):
        if following <= number:
            raise _misformatted(path, i, f"a frame after {number}")
    in_shares = all(box.right - box.left <= 1 and box.bottom - box.top <= 1 for _, box in track)
    return Utterance(header[0], header[1], track, in_shares)


def _header_value(path: AnyPath, lines: list[str], i: int, key: str) -> str:
    name, _, value = lines[i].partition(":") if i < len(lines) else ("", "", "")
    if name.strip() != key or not value.strip():
        raise _misformatted(path, i, f"'{key} : <value>'")
    return value.strip()


def _row(path: AnyPath, i: int, line: str) -> Place:
    try:
        frame, *numbers = line.split()
        number, (x, y, w, h) = int(frame), map(float, numbers)
    except ValueError:
        raise _misformatted(path, i, "a frame number and four numbers") from None
    if number < 0 or not all(map(math.isfinite, (x, y, w, h))) or min(w, h) <= 0:
        raise _misformatted(path, i, "a frame number and a box of positive size")
    return number, Region(x, y, x + w, y + h)


def _misformatted(path: AnyPath, i: int, expected: str) -> UserError:
    return UserError(f"{path}, line {i + 1}: expected {expected}; is this VoxCeleb's metadata?")
