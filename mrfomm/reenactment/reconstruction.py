"""Reconstruction: every frame of a test clip rebuilt from a few of its own frames (paper, section 4).

A run is a folder that can be continued after a crash, and scored by ``python -m eval.reconstruction``::

    reconstruction/
      settings.json            what decides the frames, and how many clips there are in all
      manifest.jsonl           one line per clip, written when all its frames are on the disk
      frames/CLIP/000000.png   lossless

A line of the manifest names the truth (clip and frame number) of every picture and its L1 distance (L1D) to it. The
digest in it tells a clip that was replaced by another of its name.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import numpy as np

from mrfomm.data.clips import Clip, open_clip
from mrfomm.data.sampling import reference_indices
from mrfomm.errors import AnyPath, UserError
from mrfomm.media.provenance import clip_digest
from mrfomm.media.reading import FOLDER_FPS
from mrfomm.media.writing import open_sink
from mrfomm.reenactment.animator import batches
from mrfomm.reenactment.backends import Engine
from mrfomm.reenactment.reenactor import Reenactor
from mrfomm.store import locked, whole_file

MANIFEST = "manifest.jsonl"
SETTINGS = "settings.json"
_SAME_L1 = 1e-9  # all sides compute it from the same bytes


class RunSettings(NamedTuple):
    """What decides the frames of a run: it is only continued with the same.

    weights: ``onnx.graphs.fingerprint``; data: folder; image_size: pixels; references: K; fusion: mode; pseudo: whether
    K single-reference results compete (the paper's pseudo multi-reference baseline); backend: ``backend_name``.
    """

    weights: str
    data: str
    image_size: int
    references: int
    fusion: str
    pseudo: bool
    backend: str = "unknown"  # as of results from before it was written down


class FrameRow(NamedTuple):
    """frame: its number in the clip; file: below the run folder; references: frames it was made from; l1: L1D."""

    frame: int
    file: str
    references: tuple[int, ...]
    l1: float


class ClipRow(NamedTuple):
    """clip: name; source: path of the truth; references: frame numbers given; l1: mean of the frames'.

    digest: SHA-256 of the pictures' files, one after the other; truth: ``clip_digest`` of the source; "" if not known.
    """

    clip: str
    source: str
    references: tuple[int, ...]
    l1: float
    frames: tuple[FrameRow, ...]
    digest: str = ""
    truth: str = ""


class _Head(NamedTuple):
    settings: RunSettings
    clips: int


class Run(NamedTuple):
    """clips: how many there are to be; rows: a ClipRow for each that is done."""

    folder: Path
    settings: RunSettings
    clips: int
    rows: tuple[ClipRow, ...]


# Rebuilding


def rebuilders(engine: Engine, references: np.ndarray, batch: int, pseudo: bool) -> list[Reenactor]:
    """The Reenactor of references uint8 [K,S,S,3]; if ``pseudo``, one of each reference."""
    groups = [[reference] for reference in references] if pseudo else [list(references)]
    return [Reenactor(engine, group, batch=batch) for group in groups]


def rebuild(reenactors: Sequence[Reenactor], truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames uint8 [N,S,S,3] -> (pictures uint8 [N,S,S,3], their L1D float64 [N], index of the Reenactor taken [N]).

    Of several Reenactors the one closest to the truth is taken: as that looks at it, a baseline and not a method.
    """
    candidates = np.stack([list(each.render(each.keypoints(truth))) for each in reenactors])
    distances = np.stack([l1_distances(pictures, truth) for pictures in candidates])  # [A,N]
    best, frames = distances.argmin(axis=0), np.arange(len(truth))
    return candidates[best, frames], distances[best, frames], best


def l1_distances(pictures: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each of N pictures, pixels in [0,1]: uint8 [N,H,W,3] twice -> float64 [N]."""
    difference = np.abs(pictures.astype(np.int16) - truth)
    return difference.mean(axis=(1, 2, 3), dtype=np.float64) / 255


def check_l1(distance: float, frame: FrameRow, folder: AnyPath, truth: AnyPath) -> None:
    """Raise UserError unless a FrameRow's L1D is that of its picture and its frame of the clip ``truth`` today."""
    if abs(distance - frame.l1) > _SAME_L1:
        found = f"{Path(folder) / frame.file}: L1D {distance:.6f} to frame {frame.frame} of {truth}"
        changed = "one of them has changed; reconstruct again"
        raise UserError(f"{found}, but {frame.l1:.6f} in the manifest: {changed}")


def rebuild_clip(clip: Clip, engine: Engine, batch: int, run: Run) -> ClipRow:
    """Rebuild every frame of a clip into the run's folder, in the place of what an interrupted run left of it.

    The ClipRow isn't in the manifest yet. Raises BrokenClip if the clip can't be read, UserError if the folder can't be
    written.
    """
    settings, truth, frames = run.settings, clip_digest(clip.path), open_clip(clip)
    given = tuple(int(index) for index in reference_indices(frames.length, settings.references))
    size, pseudo = settings.image_size, settings.pseudo
    reenactors = rebuilders(engine, frames.read(given, size), batch, pseudo)
    folder = run.folder / "frames" / clip.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)  # first, as open_sink would take a name with a dot for a video's
    rows = []
    with open_sink(folder, FOLDER_FPS) as sink:
        for indices in batches(range(frames.length), batch):
            for index, picture, distance, best in zip(indices, *rebuild(reenactors, frames.read(indices, size))):
                file = f"frames/{clip.name}/{sink.count:06d}.png"
                sink.write(picture)
                rows.append(FrameRow(index, file, (given[best],) if pseudo else given, float(distance)))
    mean = float(np.mean([row.l1 for row in rows]))
    digest = _files_digest(run.folder, rows)
    return ClipRow(clip.name, str(clip.path.resolve()), given, mean, tuple(rows), digest, truth)


# The run folder


@contextlib.contextmanager
def locked_run(folder: AnyPath, settings: RunSettings, clips: Sequence[Clip]) -> Iterator[Run]:
    """Context manager of ``open_run`` that keeps other processes out of the folder."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise _something_else(folder)
    with locked(folder, make=True):
        yield open_run(folder, settings, clips)


def open_run(folder: AnyPath, settings: RunSettings, clips: Sequence[Clip]) -> Run:
    """Begin a run of some clips, or continue one: rows stay of clips that are whole and whose truth is the same.

    Raises:
        UserError: the folder holds something else, a run with other settings, or can't be written.
    """
    folder = Path(folder)
    rows: list[ClipRow] = []
    if (folder / SETTINGS).exists():
        earlier = read_run(folder, torn_line=True)
        pairs = zip(RunSettings._fields, earlier.settings, settings)
        changed = "; ".join(f"{name} was {old}, is {new}" for name, old, new in pairs if old != new)
        if changed:
            raise UserError(f"{folder}: made with other settings ({changed}); choose another --output")
        rows = _kept(folder, earlier.rows, clips)
    elif folder.exists() and not (folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())):
        raise _something_else(folder)
    record = {"settings": settings._asdict(), "clips": len(clips)}
    for name, text in ((SETTINGS, json.dumps(record, indent=1) + "\n"), (MANIFEST, "".join(map(_line, rows)))):
        with whole_file(folder / name) as aside:
            aside.write_text(text, encoding="utf-8")
    return Run(folder, settings, len(clips), tuple(rows))


def append_clip(run: Run, row: ClipRow) -> None:
    """Enter a clip into a run's manifest; the line is on the disk when this returns."""
    with open(run.folder / MANIFEST, "a", encoding="utf-8") as file:
        file.write(_line(row))
        file.flush()
        os.fsync(file.fileno())


def read_run(folder: AnyPath, torn_line: bool = False) -> Run:
    """Read what ``open_run`` and ``append_clip`` wrote; ``torn_line``: pass over one at the end that a crash cut short.

    Raises:
        UserError: no such files, or they are damaged.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file() or not (folder / MANIFEST).is_file():
        remedy = f"make one with reconstruct.py --output {folder}"
        raise UserError(f"{folder}: no reconstruction ({SETTINGS} and {MANIFEST}); {remedy}")
    head, text = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in (SETTINGS, MANIFEST))
    with _named(folder / SETTINGS, 1):
        settings, clips = _typed(_Head, json.loads(head))
        if settings.image_size < 1:
            raise ValueError("no picture is so small")
    whole = text[: text.rfind("\n") + 1]
    if whole != text and not torn_line:
        raise UserError(f"{folder / MANIFEST}: ends in half a line; run the same reconstruct.py again to finish it")
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        with _named(folder / MANIFEST, number):
            rows.append(_checked(_typed(ClipRow, json.loads(line))))
    return Run(folder, settings, clips, tuple(rows))


def is_whole(folder: AnyPath, row: ClipRow) -> bool:
    """Whether every picture of a ClipRow is there, as it was written."""
    try:
        return _files_digest(folder, row.frames) == row.digest
    except OSError:
        return False


def _files_digest(folder: AnyPath, frames: Iterable[FrameRow]) -> str:
    digest = hashlib.sha256()
    for frame in frames:
        digest.update((Path(folder) / frame.file).read_bytes())
    return digest.hexdigest()


def _kept(folder: Path, rows: Iterable[ClipRow], clips: Iterable[Clip]) -> list[ClipRow]:
    """The rows of the clips that need no more work; says which clips are others than their frames were made of."""
    paths = {clip.name: clip.path for clip in clips}
    by_clip = {row.clip: row for row in rows}
    gone = [name for name in by_clip if name not in paths]
    changed = [name for name, row in by_clip.items() if name in paths and row.truth != clip_digest(paths[name])]
    for names, what in ((changed, "were replaced and are rebuilt"), (gone, "left the data and are removed")):
        if names:
            print(f"{folder}: clips {what}: {', '.join(names[:5])}{' ...' * (len(names) > 5)}", file=sys.stderr)
    for name in gone:
        shutil.rmtree(folder / "frames" / name, ignore_errors=True)
    return [row for name, row in by_clip.items() if name not in (*changed, *gone) and is_whole(folder, row)]


def _something_else(folder: AnyPath) -> UserError:
    return UserError(f"{folder}: holds something other than a reconstruction; choose another --output")


# Records


def _line(row: ClipRow) -> str:
    return json.dumps({**row._asdict(), "frames": [frame._asdict() for frame in row.frames]}) + "\n"


@contextlib.contextmanager
def _named(path: Path, number: int) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        problem = f"line {number} is not what reconstruct.py writes; mend it, or choose another --output"
        raise UserError(f"{path}: {problem}") from error


def _typed(kind: Any, value: Any) -> Any:
    """A value of JSON as its annotation says: a NamedTuple, a tuple or a plain type; an int from 0 on, a float in 0..1.

    Raises:
        TypeError, AttributeError: it is none.
    """
    if hasattr(kind, "_fields"):
        return kind(**{name: _typed(kind.__annotations__[name], each) for name, each in value.items()})
    if get_origin(kind) is tuple:
        return tuple(_typed(get_args(kind)[0], each) for each in value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is int and value < 0) or (kind is float and not 0 <= value <= 1):
        raise TypeError(f"{value!r} is no {kind}")
    return value


def _checked(row: ClipRow) -> ClipRow:
    """A ClipRow whose names stay below the run's folder, and below those of others that are named by its clip."""
    parts = [Path(frame.file).parts for frame in row.frames]
    is_name = row.clip not in ("", ".", "..") and not {"/", "\0"} & set(row.clip)
    if not is_name or not parts or any(part[:1] != ("frames",) or ".." in part for part in parts):
        raise ValueError("a file of another folder")
    return row
