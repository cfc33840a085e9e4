"""Recordings with the head's angles, as the bin metric takes them.

::

    DIR/<subject>_<illumination>/     a pattern
      yaw.mp4    or a folder yaw/ of PNGs: the head turns about this axis
      yaw.csv    its labels (mrfomm/data/labels.py)
      pitch...   roll...

Every clip is decoded once when it is read, so that damage shows before any work is done.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrfomm.data.clips import Clip, Frames, open_clip
from mrfomm.data.labels import KINDS, check_labelled, read_labels
from mrfomm.errors import AnyPath, UserError
from mrfomm.media.reading import open_frames

VIDEOS = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".gif")
Advance = Callable[[int], object]  # called with a number of frames that are done


class Content(NamedTuple):
    """What a clip holds. frames: to read by number; height, width: of every frame; digest: SHA-256 of the pixels."""

    frames: Frames
    height: int
    width: int
    digest: str

    @property
    def size(self) -> str:
        """Width and height for people."""
        return f"{self.width}x{self.height}"


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


def read_patterns(
    folders: Iterable[Path], advance: Advance = lambda count: None, scaled: bool = False
) -> list[Pattern]:
    """Read the recordings in patterns' folders; ``scaled``: their sizes may differ.

    UserError names a file that is missing, unreadable or doesn't fit.
    """
    patterns = [_read_pattern(folder, advance) for folder in folders]
    first, *others = (sequence for pattern in patterns for sequence in pattern.sequences.values())
    for other in others:
        check_same_size(other.path, other.content, first.path, first.content, scaled)
    return patterns


def pairs_of(reference: Pattern, patterns: Iterable[Pattern]) -> list[tuple[Pattern, str]]:
    """The (driving pattern, kind) that a reference pattern is paired with: kinds are those of both patterns."""
    others = (pattern for pattern in patterns if pattern.name != reference.name)
    return [(driving, kind) for driving in others for kind in driving.sequences if kind in reference.sequences]


def _read_pattern(folder: Path, advance: Advance) -> Pattern:
    sequences = {}
    for kind in KINDS:
        path, labels = find_media(folder, kind), folder / f"{kind}.csv"
        if path is not None:
            sequences[kind] = _read_sequence(path, labels, kind, advance)
        elif labels.exists():
            raise UserError(f"{labels}: labels without a clip; add {kind}.mp4 or a folder {kind} beside it")
    if "yaw" not in sequences:
        raise UserError(f"{folder}: no yaw sequence, from which the references are taken; add yaw.mp4 and yaw.csv")
    return Pattern(folder.name, sequences)


def find_media(folder: AnyPath, name: str) -> Path | None:
    """The clip ``name.mp4``, or of another of VIDEOS, or the folder of frames ``name`` in a folder; UserError if there
    are several."""
    found = [path for path in (Path(folder, name + suffix) for suffix in (*VIDEOS, "")) if path.exists()]
    if len(found) > 1:
        raise UserError(f"{found[0]}: there is {'a folder ' * found[1].is_dir()}{found[1].name} too; keep one of them")
    return found[0] if found else None


def _read_sequence(path: Path, labels: Path, kind: str, advance: Advance) -> Sequence:
    angles = read_labels(labels)
    check_labelled(path, labels)
    content = read_content(path, advance)
    length = content.frames.length
    if len(angles) != length:
        raise UserError(f"{labels}: {len(angles)} rows, but {path} has {length} frames; mend one of them")
    return Sequence(path, kind, angles, content)


def read_content(path: AnyPath, advance: Advance = lambda count: None) -> Content:
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
        advance(1)
    frames = open_clip(Clip(Path(path), Path(path).stem, Path(path).stem))
    if not count or frames.length != count:
        remedy = "encode it again at a constant frame rate"
        raise UserError(f"{path}: {frames.length} frames, {count} at a constant rate; {remedy}")
    return Content(frames, height, width, digest.hexdigest())


def check_same_size(path: AnyPath, content: Content, other_path: AnyPath, other: Content, scaled: bool = False) -> None:
    """Raise UserError unless two clips' frames have one size, as LPIPS depends on it, or, to be ``scaled``, one shape:
    else each would lose other parts when the central square is cut out."""
    if content.size == other.size or scaled and content.width * other.height == other.width * content.height:
        return
    remedy = "cut them to one shape" if scaled else "make them alike, or bring all to one size with --size"
    raise UserError(f"{path}: {content.size} pixels, but {other_path}: {other.size}; {remedy}")
