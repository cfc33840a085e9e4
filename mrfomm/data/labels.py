"""Label files, ``frame,yaw,pitch,roll``: the angles of the head in every frame of a clip, in degrees.

Frames are counted from 0. Where there is a column ``clip``, its first row holds the digest of the clip that the labels
are of (``provenance.clip_digest``).
"""

import csv
import math
from collections.abc import Iterable, Iterator

import numpy as np

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.media.provenance import clip_digest

KINDS = ("yaw", "pitch", "roll")  # the order of angles in an array
COLUMNS = ("frame", *KINDS)


def check_labelled(path: AnyPath, labels: AnyPath) -> None:
    """Raise UserError if a label file, one that ``read_labels`` accepts, says that it is of another clip than this."""
    with open(labels, newline="", encoding="utf-8-sig") as file:
        digest = next(csv.DictReader(file)).get("clip")
    if digest and digest != clip_digest(path):
        raise UserError(f"{labels}: of a different clip than {path}; label it again, or empty column clip if they fit")


def read_labels(path: AnyPath) -> np.ndarray:
    """Read a label file -> float64 [N,3]: yaw, pitch, roll in degrees, in the order of the frames.

    Its columns frame, yaw, pitch, roll come in any order, others are ignored; there is a row for each frame. UserError:
    missing, no such columns, no numbers, angles beyond -180..180, or frames not 0 to N-1.
    """
    remedy = f"the first line must be {','.join(COLUMNS)}"
    angles = [_row(place, row) for place, row in read_csv(path, COLUMNS, remedy)]
    if not angles:
        raise UserError(f"{path}: no row below the column names; give one for every frame")
    by_frame, length = dict(angles), len(angles)
    absent = set(range(length)) - set(by_frame)
    if absent:
        wanted = "number the frames 0, 1, 2 ... once each"
        raise UserError(f"{path}: {length} rows, but none for frame {min(absent)}; {wanted}")
    return np.array([by_frame[frame] for frame in range(length)])


def read_csv(path: AnyPath, columns: Iterable[str], remedy: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a CSV file, each after the words that name its place; UserError: it is missing, unreadable or
    lacks one of the columns."""
    check_is_file(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            missing = [name for name in columns if name not in reader.fieldnames]
            if missing:
                raise UserError(f"{path}: no column {', '.join(missing)}; {remedy}")
            for row in reader:
                yield f"{path}: line {reader.line_num}", row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable table ({error}); {remedy}") from error


def _row(place: str, row: dict[str, str]) -> tuple[int, list[float]]:
    """The frame and the angles of one row."""
    if None in row:
        raise UserError(f"{place} has more values than there are columns; write decimals with a point")
    frame, *angles = (_number(f"{place}, {name}", row[name]) for name in COLUMNS)
    if frame != int(frame):
        raise UserError(f"{place}, frame: {row['frame']} is not a whole number; count frames from 0")
    beyond = [name for name, angle in zip(KINDS, angles) if abs(angle) > 180]
    if beyond:
        raise UserError(f"{place}, {beyond[0]}: {row[beyond[0]]} is not an angle in -180..180 degrees")
    return int(frame), angles


def _number(place: str, text: str | None) -> float:
    try:
        value = math.nan if text is None else float(text)  # a short row has None
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place}: {'nothing' if text is None else repr(text)} is not a number")
    return value
