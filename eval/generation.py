"""Motion transfer for the bin metric (arXiv 2202.10758, section 4): references, poses, and frames kept on the disk.

The frames of one pair of patterns and one sequence stand in a folder of PNGs with a ``manifest.json``: what they were
made from, and every file's checksum. A folder gets its name when it is whole. It is used again if its manifest says
that it was made from the same model, references, motion and driving frames, and if no file has changed since. Frames
without a manifest are somebody else's, and stay.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrfomm.errors import AnyPath, UserError
from mrfomm.media.reading import FOLDER_FPS
from mrfomm.media.writing import open_sink
from mrfomm.reenactment.animator import batches
from mrfomm.reenactment.backends import Engine
from mrfomm.reenactment.motion import Transfer
from mrfomm.reenactment.reenactor import Reenactor
from mrfomm.store import sha256_of, whole_folder

from .labels import Pattern, Sequence, pairs_of

FRONTAL, SIDES = 0.0, (-30.0, 30.0)  # yaw of the references, degrees (paper, section 4)
MOTIONS = ("relative", "absolute")
MANIFEST = "manifest.json"
VERSION = 1  # of how frames are made: raise it where they change, and kept ones are made again
CHUNK = 16  # driving frames in memory


class Poses(NamedTuple):
    """tolerance: degrees that a frame may be off the pose asked for; allow_missing: take the nearest all the same."""

    tolerance: float
    allow_missing: bool


class Entry(NamedTuple):
    """A driving sequence transferred to a reference pattern, as the frames in ``folder``.

    start: driving frame that relative motion starts from, None with absolute motion; manifest: what the frames depend
    on, plain values by name.
    """

    folder: Path
    driving: Sequence
    start: int | None
    manifest: dict[str, object]


class Plan(NamedTuple):
    """Everything to generate with one reference pattern. references: frames of its yaw sequence; entries: Entries."""

    pattern: Pattern
    references: list[int]
    entries: list[Entry]


def reference_frames(pattern: Pattern, count: int, poses: Poses) -> list[int]:
    """The ``nearest_frames`` of a pattern's yaw sequence to yaw 0 and, if ``count`` is 3 and not 1, to -30 and +30."""
    return nearest_frames(pattern.sequences["yaw"], (FRONTAL, *SIDES)[:count], poses)


def nearest_frames(sequence: Sequence, yaws: Iterable[float], poses: Poses) -> list[int]:
    """The frames of a yaw sequence nearest to some yaws; UserError if one isn't near enough."""
    wanted = ((yaw, f"yaw {yaw:+g}" if yaw else "yaw 0") for yaw in yaws)
    return [_nearest(np.abs(sequence.own_angles - yaw), sequence, what, poses) for yaw, what in wanted]


def start_frame(sequence: Sequence, poses: Poses) -> int:
    """The frame of a sequence nearest to yaw, pitch and roll 0, by the largest of the three; UserError without one."""
    return _nearest(np.abs(sequence.angles).max(axis=1), sequence, "frontal, where relative motion starts", poses)


def _nearest(off: np.ndarray, sequence: Sequence, what: str, poses: Poses) -> int:
    """The first of the frames that are least ``off``, [N] degrees."""
    frame = int(np.argmin(off))
    if off[frame] > poses.tolerance and not poses.allow_missing:
        raise UserError(
            f"{sequence.path}: no frame within {poses.tolerance:g} degrees of {what}; the nearest, frame {frame}, is "
            f"{off[frame]:.1f} degrees off (use it with --allow-missing-poses)"
        )
    return frame


def plan_transfers(
    patterns: list[Pattern], folder: AnyPath, count: int, motion: str, poses: Poses, origin: Mapping[str, object]
) -> list[Plan]:
    """What has to be generated: every ordered pair of patterns but a pattern with itself, every kind both have.

    Relative motion is FOMM's way from one person to another, as it leaves the driving person's proportions behind: it
    carries the movement since a frontal driving frame over to the frontal reference, so that the generated head has
    the driving head's angles, which the metric relies on. Absolute motion copies the driving keypoints; it needs no
    frontal driving frame, but brings the driving face's shape along.

    Args:
        patterns, poses: of what, and how near.
        folder: entries go to ``folder/<reference>/<driving>/<kind>``.
        count: references of a pattern, 1 or 3.
        motion: one of MOTIONS.
        origin: what else the frames depend on (the model), plain values by name.

    Raises:
        UserError: a pose is missing.
    """
    plans = []
    for reference in patterns:
        frames = reference_frames(reference, count, poses)
        source = {"references": frames, "reference_clip": reference.sequences["yaw"].content.digest}
        entries = []
        for driving, kind in pairs_of(reference, patterns):
            sequence = driving.sequences[kind]
            start = start_frame(sequence, poses) if motion == "relative" else None
            manifest = {**origin, **source, "motion": motion, "start": start, "driving_clip": sequence.content.digest}
            entries.append(Entry(Path(folder, reference.name, driving.name, kind), sequence, start, manifest))
        plans.append(Plan(reference, frames, entries))
    return plans


def missing_entries(plans: Iterable[Plan]) -> list[Plan]:
    """The plans with only those entries whose folder is absent, damaged or made from something else."""
    reduced = (plan._replace(entries=[entry for entry in plan.entries if not is_whole(entry)]) for plan in plans)
    return [plan for plan in reduced if plan.entries]


def is_whole(entry: Entry) -> bool:
    """Whether an entry's folder holds what its manifest promises, undamaged; UserError if it isn't ours to replace."""
    if entry.folder.exists() and not (entry.folder / MANIFEST).exists():
        raise UserError(f"{entry.folder}: holds something other than frames of eval.bins; choose another --output")
    try:
        manifest = json.loads((entry.folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest.pop("files")
        count = entry.driving.content.frames.length
        return manifest == entry.manifest and len(files) == count and files == _checksums(entry.folder)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False  # then it is made again


def generate(plan: Plan, engine: Engine, batch: int, advance: Callable[[int], object] = lambda count: None) -> None:
    """Generate the frames of all entries of a plan.

    Args:
        plan: Plan.
        engine: Engine of the model.
        batch: driving frames per call of the network.
        advance: called with a number of frames when they are done.

    Raises:
        UserError: a frame can't be read or written; entries that are done stay.
    """
    images = plan.pattern.sequences["yaw"].content.frames.read(plan.references, engine.size)
    reenactor = Reenactor(engine, list(images), batch=batch)
    for entry in plan.entries:
        write_entry(entry, _reenacted(reenactor, entry, advance))


def _reenacted(reenactor: Reenactor, entry: Entry, advance: Callable[[int], object]) -> Iterator[np.ndarray]:
    """Yield the frames of an entry, uint8 [S,S,3]."""
    frames = entry.driving.content.frames
    chunks = (frames.read(indices, reenactor.size) for indices in batches(range(frames.length), CHUNK))
    transfer = Transfer("absolute") if entry.start is None else Transfer(start=entry.start, anchor=0)
    for image in reenactor.animate(chain.from_iterable(chunks), transfer):
        yield image
        advance(1)


def write_entry(entry: Entry, images: Iterable[np.ndarray]) -> None:
    """Write frames and manifest, in one step. What stood there before is replaced."""
    with whole_folder(entry.folder) as aside:
        with open_sink(aside, FOLDER_FPS) as sink:
            for image in images:
                sink.write(image)
        manifest = {**entry.manifest, "files": _checksums(aside)}
        (aside / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _checksums(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 of the frames in a folder."""
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.png"))}
