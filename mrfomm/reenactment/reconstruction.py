"""Reconstruction: every frame of a test clip rebuilt from a few of its own frames (paper, section 4).

A run is a folder that can be continued after a crash, and scored by ``python -m eval.reconstruction``::

    reconstruction/
      settings.json            what decides the frames, and how many clips there are in all
      manifest.jsonl           one line a clip, written when all its frames are on the disk
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mrfomm.data.clips import Clip, open_clip
from mrfomm.data.sampling import reference_indices
from mrfomm.errors import AnyPath, UserError
from mrfomm.media.reading import FOLDER_FPS
from mrfomm.media.writing import open_sink
from mrfomm.provenance import clip_digest
from mrfomm.reenactment.animator import AnyAnimator, MakeAnimator, array_to_images, batches, images_to_array
from mrfomm.store import locked, whole_file

MANIFEST = "manifest.jsonl"
SETTINGS = "settings.json"
_SAME_L1 = 1e-9  # all sides compute it from the same bytes

_Built = TypeVar("_Built")


class Settings(NamedTuple):
    """What decides the frames of a run: it is only continued with the same.

    weights: digest of the model and of the code that draws with it (``export.fingerprint``); data: the data's folder;
    image_size in pixels; references: K; fusion: mode; pseudo: whether K single-reference results compete (the paper's
    pseudo multi-reference baseline); backend: what runs the model, whose pictures differ from another's by rounding.
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
    """clip: name; source: path of the truth; references: frame numbers given; l1: mean; frames: FrameRows.

    digest: SHA-256 of the pictures' files, one after the other; truth: ``provenance.clip_digest`` of the source. They
    are "" where they aren't known.
    """

    clip: str
    source: str
    references: tuple[int, ...]
    l1: float
    frames: tuple[FrameRow, ...]
    digest: str = ""
    truth: str = ""


class Run(NamedTuple):
    """folder; settings: Settings; clips: how many there are to be; rows: a ClipRow for each that is done."""

    folder: Path
    settings: Settings
    clips: int
    rows: tuple[ClipRow, ...]


# Rebuilding


class Rebuilder:
    """Rebuilds frames of one clip.

    Args:
        make_animator: function of (references, batch) that gives an ``animation.Animator``.
        references: uint8 [K,S,S,3], frames of the clip.
        batch: driving frames per call of the network.
        pseudo: one animator per reference, of whose pictures the one closest to the truth is taken, frame by frame.
            As this looks at the truth, it is a baseline and not a method.
    """

    def __init__(self, make_animator: MakeAnimator, references: np.ndarray, batch: int, pseudo: bool) -> None:
        references = images_to_array(references)
        groups = [references[k : k + 1] for k in range(len(references))] if pseudo else [references]
        self._animators = [make_animator(group, batch) for group in groups]

    def __call__(self, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """uint8 frames [N,S,S,3] -> (pictures uint8 [N,S,S,3], L1D float64 [N], index of the animator taken [N])."""
        driving = images_to_array(truth)
        candidates = np.stack([array_to_images(_absolute(animator, driving)) for animator in self._animators])
        distances = np.stack([l1_distances(pictures, truth) for pictures in candidates])  # [A,N]
        best = distances.argmin(axis=0)
        frames = np.arange(len(truth))
        return candidates[best, frames], distances[best, frames], best


def _absolute(animator: AnyAnimator, driving: np.ndarray) -> np.ndarray:
    return animator.render(animator.keypoints(driving))


def l1_distances(pictures: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each of N pictures, pixels in [0,1]: uint8 [N,H,W,3] twice -> float64 [N]."""
    difference = np.abs(pictures.astype(np.int16) - truth)
    return difference.mean(axis=(1, 2, 3), dtype=np.float64) / 255


def check_l1(distance: float, frame: FrameRow, folder: AnyPath, truth: AnyPath) -> None:
    """Raise UserError unless a FrameRow's L1D is that of its picture and its frame of the clip ``truth`` today."""
    if abs(distance - frame.l1) > _SAME_L1:
        raise UserError(
            f"{Path(folder) / frame.file}: L1D {distance:.6f} to frame {frame.frame} of {truth}, but {frame.l1:.6f} in "
            "the manifest: one of them has changed; reconstruct again"
        )


def rebuild_clip(clip: Clip, make_animator: MakeAnimator, batch: int, run: Run) -> ClipRow:
    """Rebuild every frame of a clip into the run's folder, in the place of what an interrupted run left of it.

    Args:
        clip: Clip. make_animator, batch: see Rebuilder. run: Run.

    Returns:
        ClipRow: not yet in the manifest.

    Raises:
        BrokenClip: the clip can't be read. UserError: the folder can't be written.
    """
    settings = run.settings
    truth = clip_digest(clip.path)
    frames = open_clip(clip)
    given = tuple(int(index) for index in reference_indices(frames.length, settings.references))
    size = settings.image_size
    rebuild = Rebuilder(make_animator, frames.read(given, size), batch, settings.pseudo)
    folder = run.folder / "frames" / clip.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)  # first, as open_sink would take a name with a dot for a video's
    rows = []
    with open_sink(folder, FOLDER_FPS) as sink:
        for indices in batches(range(frames.length), batch):
            pictures, distances, taken = rebuild(frames.read(indices, size))
            for index, picture, distance, animator in zip(indices, pictures, distances, taken):
                file = f"frames/{clip.name}/{sink.count:06d}.png"
                sink.write(picture)
                references = (given[animator],) if settings.pseudo else given
                rows.append(FrameRow(index, file, references, float(distance)))
    mean = float(np.mean([row.l1 for row in rows]))
    digest = files_digest(run.folder, rows)
    return ClipRow(clip.name, str(clip.path.resolve()), given, mean, tuple(rows), digest, truth)


# The run folder


@contextlib.contextmanager
def locked_run(folder: AnyPath, settings: Settings, clips: Sequence[Clip]) -> Iterator[Run]:
    """Context manager of ``open_run`` that keeps other processes out of the folder."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise _something_else(folder)
    with locked(folder, make=True):
        yield open_run(folder, settings, clips)


def open_run(folder: AnyPath, settings: Settings, clips: Sequence[Clip]) -> Run:
    """Begin a run, or continue one: clips stay that are whole and whose truth is the same, others go from the manifest.

    Args:
        folder: the run folder.
        settings: Settings.
        clips: Clips that are to be rebuilt.

    Returns:
        Run: its rows are of the clips that need no more work.

    Raises:
        UserError: the folder holds something else, a run with other settings, or can't be written.
    """
    folder = Path(folder)
    rows = []
    if (folder / SETTINGS).exists():
        earlier = read_run(folder, torn_line=True)
        _check_same(folder, earlier.settings, settings)
        rows = _kept(folder, earlier.rows, clips)
    elif folder.exists() and not (folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())):
        raise _something_else(folder)
    record = {"settings": settings._asdict(), "clips": len(clips)}
    for name, text in ((SETTINGS, json.dumps(record, indent=1) + "\n"), (MANIFEST, "".join(map(_line, rows)))):
        with whole_file(folder / name) as aside:
            aside.write_text(text, encoding="utf-8")
    return Run(folder, settings, len(clips), tuple(rows))


def _kept(folder: Path, rows: Iterable[ClipRow], clips: Iterable[Clip]) -> list[ClipRow]:
    """The rows of the clips that need no more work; says which clips are others than their frames were made of."""
    paths = {clip.name: clip.path for clip in clips}
    by_clip = {row.clip: row for row in rows}
    changed = [row.clip for row in by_clip.values() if row.clip in paths and row.truth != clip_digest(paths[row.clip])]
    gone = [name for name in by_clip if name not in paths]
    for names, what in (
        (changed, "clips were replaced and are rebuilt"),
        (gone, "clips left the data and are removed"),
    ):
        if names:
            print(f"{folder}: {what}: {', '.join(names[:5])}{' ...' * (len(names) > 5)}", file=sys.stderr)
    for name in gone:
        shutil.rmtree(folder / "frames" / name, ignore_errors=True)
    return [row for name, row in by_clip.items() if name not in (*changed, *gone) and is_whole(folder, row)]


def _something_else(folder: AnyPath) -> UserError:
    return UserError(f"{folder}: holds something else than a reconstruction; choose another --output")


def append_clip(run: Run, row: ClipRow) -> None:
    """Enter a clip into a run's manifest; the line is on the disk when this returns."""
    with open(run.folder / MANIFEST, "a", encoding="utf-8") as file:
        file.write(_line(row))
        file.flush()
        os.fsync(file.fileno())


def read_run(folder: AnyPath, torn_line: bool = False) -> Run:
    """Read what ``open_run`` and ``append_clip`` wrote.

    Args:
        folder: the run folder.
        torn_line: pass over a last line that a crash has cut short.

    Returns:
        Run.

    Raises:
        UserError: no such files, or they are damaged.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file() or not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder}: no reconstruction ({SETTINGS} and {MANIFEST}); make one with reconstruct.py --output {folder}"
        )
    text = (folder / SETTINGS).read_text(encoding="utf-8", errors="replace")
    settings, clips = _parsed(folder / SETTINGS, 1, text, _settings)
    text = (folder / MANIFEST).read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    if whole != text and not torn_line:
        raise UserError(f"{folder / MANIFEST}: ends in half a line; run the same reconstruct.py again to finish it")
    rows = [_parsed(folder / MANIFEST, number, line, _clip_row) for number, line in enumerate(whole.splitlines(), 1)]
    return Run(folder, settings, clips, tuple(rows))


def is_whole(folder: AnyPath, row: ClipRow) -> bool:
    """Whether every picture of a ClipRow is there, as it was written."""
    try:
        return files_digest(folder, row.frames) == row.digest
    except OSError:
        return False


def files_digest(folder: AnyPath, frames: Iterable[FrameRow]) -> str:
    """SHA-256 of the files of FrameRows, one after the other."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update((Path(folder) / frame.file).read_bytes())
    return digest.hexdigest()


def _check_same(folder: AnyPath, earlier: Settings, settings: Settings) -> None:
    changed = [
        f"{name} was {old}, is {new}" for name, old, new in zip(Settings._fields, earlier, settings) if old != new
    ]
    if changed:
        raise UserError(f"{folder}: made with other settings ({'; '.join(changed)}); choose another --output")


def _line(row: ClipRow) -> str:
    frames = [frame._asdict() for frame in row.frames]
    return json.dumps({**row._asdict(), "frames": frames}) + "\n"


def _parsed(path: Path, number: int, text: str, build: Callable[[dict[str, Any]], _Built]) -> _Built:
    try:
        return build(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path}: line {number} is not what reconstruct.py writes; mend it, or choose another --output"
        ) from error


def _settings(record: dict[str, Any]) -> tuple[Settings, int]:
    settings = Settings(**record["settings"])
    types = dict(zip(Settings._fields, (str, str, int, int, str, bool, str)))
    if any(type(value) is not types[name] for name, value in settings._asdict().items()) or settings.image_size < 1:
        raise TypeError("settings of other types")
    return settings, _natural(record["clips"])


def _clip_row(record: dict[str, Any]) -> ClipRow:
    clip, frames = _name(record["clip"]), tuple(_frame_row(frame) for frame in record["frames"])
    if not frames:
        raise ValueError("a clip without frames")
    references = tuple(map(_natural, record["references"]))
    digest, truth = (str(record.get(name, "")) for name in ("digest", "truth"))
    return ClipRow(clip, str(record["source"]), references, _distance(record["l1"]), frames, digest, truth)


def _frame_row(record: dict[str, Any]) -> FrameRow:
    references = tuple(map(_natural, record["references"]))
    file = str(record["file"])
    if Path(file).parts[:1] != ("frames",) or ".." in Path(file).parts:
        raise ValueError("a file of another folder")
    return FrameRow(_natural(record["frame"]), file, references, _distance(record["l1"]))


def _name(value: object) -> str:
    """A clip's name, which becomes a folder's and a file's here and in what reads the manifest."""
    if not isinstance(value, str) or value in ("", ".", "..") or "/" in value or "\0" in value:
        raise ValueError("not a clip's name")
    return value


def _natural(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("not a natural number")
    return value


def _distance(value: Any) -> float:
    if isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError("not an L1D")
    return float(value)
