"""Recordings with the head's angles, as the bin metric takes them.

::

    DIR/<subject>_<illumination>/     a pattern
      yaw.mp4    or a folder yaw/ of PNGs: the head turns about this axis
      yaw.csv    frame,yaw,pitch,roll: the angles of every frame in degrees, frames counted from 0; where there is a
                 column clip, its first row holds the digest of the clip that the labels are of
      pitch...   roll...

Every clip is decoded once when it is read, so that damage shows before any work is done.
"""

import csv
import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrfomm.data.clips import Clip, Frames, open_clip
from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.media.provenance import clip_digest
from mrfomm.media.reading import open_frames

KINDS = ("yaw", "pitch", "roll")  # of sequences, and the order of angles in an array
COLUMNS = ("frame", *KINDS)


class Content(NamedTuple):
    """What a clip holds. frames: to read by number; height, width: of every frame; digest: SHA-256 of the pixels."""

    frames: Frames
    height: int
    width: int
    digest: str


class Sequence(NamedTuple):
    """A clip with angles. path: of the clip; kind: one of KINDS; angles: float64 [N,3] degrees."""

    path: Path
    kind: str
    angles: np.ndarray
    content: Content

    @property
    def own_angles(self) -> np.ndarray:
        """The angles that the sequence is binned by, [N]."""
        return self.angles[:, KINDS.index(self.kind)]


class Pattern(NamedTuple):
    """A subject under one illumination. sequences: kind -> Sequence; there is one of yaw."""

    name: str
    sequences: dict[str, Sequence]


def pattern_folders(root: AnyPath) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones; UserError if there are fewer than two."""
    layout = "<subject>_<illumination>/yaw.mp4"
    if not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; give a folder of {layout} and yaw.csv ...")
    folders = sorted(path for path in Path(root).iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise UserError(f"{root}: holds fewer than two patterns (folders); give {layout} ...")
    return folders


def read_patterns(folders: Iterable[Path]) -> list[Pattern]:
    """Read the recordings in patterns' folders; UserError names a file that is missing, unreadable or doesn't fit."""
    patterns = [_read_pattern(folder) for folder in folders]
    first, *others = (sequence for pattern in patterns for sequence in pattern.sequences.values())
    for other in others:
        check_same_size(other.path, other.content, first.path, first.content)
    return patterns


def pairs_of(reference: Pattern, patterns: Iterable[Pattern]) -> list[tuple[Pattern, str]]:
    """The (driving pattern, kind) that a reference pattern is paired with: kinds are those of both patterns."""
    others = (pattern for pattern in patterns if pattern.name != reference.name)
    return [(driving, kind) for driving in others for kind in driving.sequences if kind in reference.sequences]


def _read_pattern(folder: Path) -> Pattern:
    sequences = {}
    for kind in KINDS:
        path, labels = find_media(folder, kind), folder / f"{kind}.csv"
        if path is not None:
            sequences[kind] = _read_sequence(path, labels, kind)
        elif labels.exists():
            raise UserError(f"{labels}: labels without a clip; add {kind}.mp4 or a folder {kind} beside it")
    if "yaw" not in sequences:
        raise UserError(f"{folder}: no yaw sequence, from which the references are taken; add yaw.mp4 and yaw.csv")
    return Pattern(folder.name, sequences)


def find_media(folder: AnyPath, name: str) -> Path | None:
    """The clip ``name.mp4`` or folder of frames ``name`` in a folder; UserError if there are both."""
    found = [path for path in (Path(folder, f"{name}.mp4"), Path(folder, name)) if path.exists()]
    if len(found) > 1:
        raise UserError(f"{found[0]}: there is a folder {name} too; keep one of them")
    return found[0] if found else None


def _read_sequence(path: Path, labels: Path, kind: str) -> Sequence:
    angles = read_labels(labels)
    check_labelled(path, labels)
    content = read_content(path)
    length = content.frames.length
    if len(angles) != length:
        raise UserError(f"{labels}: {len(angles)} rows, but {path} has {length} frames; mend one of them")
    return Sequence(path, kind, angles, content)


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
    check_is_file(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            missing = [name for name in COLUMNS if name not in reader.fieldnames]
            if missing:
                raise UserError(f"{path}: no column {', '.join(missing)}; the first line must be {','.join(COLUMNS)}")
            angles = [_row(f"{path}: line {reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable label file ({error}); it needs columns {','.join(COLUMNS)}") from error
    if not angles:
        raise UserError(f"{path}: no row below the column names; give one for every frame")
    by_frame, length = dict(angles), len(angles)
    absent = set(range(length)) - set(by_frame)
    if absent:
        wanted = "number the frames 0, 1, 2 ... once each"
        raise UserError(f"{path}: {length} rows, but none for frame {min(absent)}; {wanted}")
    return np.array([by_frame[frame] for frame in range(length)])


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


def read_content(path: AnyPath) -> Content:
    """Decode a clip from end to end; UserError: a frame is damaged, frames differ in size, or the frame rate varies."""
    digest, count, first = hashlib.sha256(), 0, ""
    for frame in open_frames(path):
        height, width = frame.shape[:2]
        size = f"{width}x{height}"
        first = first or size
        if size != first:
            raise UserError(f"{path}: frame {count} is {size}, the first is {first}; make them alike")
        digest.update(frame.data)
        count += 1
    frames = open_clip(Clip(Path(path), Path(path).stem, Path(path).stem))
    if not count or frames.length != count:
        remedy = "encode it again at a constant frame rate"
        raise UserError(f"{path}: {frames.length} frames, {count} at a constant rate; {remedy}")
    return Content(frames, height, width, digest.hexdigest())


def check_same_size(path: AnyPath, content: Content, other_path: AnyPath, other: Content) -> None:
    """Raise UserError unless two clips' frames have one size, as LPIPS depends on it."""
    ours, theirs = (f"{c.width}x{c.height}" for c in (content, other))
    if ours != theirs:
        raise UserError(f"{path}: {ours} pixels, but {other_path}: {theirs}; make them alike")
