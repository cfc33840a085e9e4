"""The protocol of the bin metric on the disk, so that another method can generate what is to be scored.

::

    DIR/
      pairs.csv                          a row for each sequence to generate; its paths begin in its own folder
      references/PATTERN/yaw_0.png       the frontal picture; yaw_-30.png and yaw_30.png, if there are three references
      driving/PATTERN/yaw/000000.png     every frame of a sequence; pitch and roll alike
      generated/REFERENCE/DRIVING/yaw    where a method's frames are looked for: a folder, or yaw.mp4

The columns of ``pairs.csv``: reference and driving (patterns), sequence (yaw, pitch or roll), yaw_0 and maybe yaw_-30
and yaw_30 (pictures), frames (folder), count (of frames), start (the frame, counted from 0, that relative motion starts
from; empty with absolute motion), generated, recordings (a digest, by which other recordings of the same names are
noticed).
"""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

from mrfomm.errors import AnyPath, UserError
from mrfomm.media.reading import FOLDER_FPS, open_frames
from mrfomm.media.writing import open_sink
from mrfomm.store import entries, whole_folder

from ..generation import FRONTAL, SIDES, Poses, reference_frames, start_frame
from ..labels import Advance, Pattern, pairs_of
from .folders import PAIRS, recordings_digest


def export_protocol(
    folder: AnyPath, patterns: list[Pattern], count: int, motion: str, poses: Poses, advance: Advance
) -> int:
    """Write the protocol into a new folder; returns the number of sequences to generate.

    count: references of a pattern, 1 or 3; motion, poses: as for ``generation.plan_transfers``. UserError: a pose is
    missing, the folder holds something, or can't be written.
    """
    if Path(folder).exists() and (not Path(folder).is_dir() or entries(folder)):
        raise UserError(f"{folder}: is there already; name a new folder for the protocol")
    names = [f"yaw_{yaw:g}" for yaw in (FRONTAL, *SIDES)[:count]]
    chosen = {pattern.name: dict(zip(names, reference_frames(pattern, count, poses))) for pattern in patterns}
    rows = [row for pattern in patterns for row in _rows(pattern, patterns, names, motion, poses)]
    with whole_folder(folder) as aside:
        for pattern in patterns:
            _write_pattern(aside, pattern, chosen[pattern.name], advance)
        with open(aside / PAIRS, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return len(rows)


def _rows(
    reference: Pattern, patterns: list[Pattern], names: list[str], motion: str, poses: Poses
) -> Iterator[dict[str, object]]:
    for driving, kind in pairs_of(reference, patterns):
        sequence = driving.sequences[kind]
        yield {
            **{"reference": reference.name, "driving": driving.name, "sequence": kind},
            **{name: f"references/{reference.name}/{name}.png" for name in names},
            "frames": f"driving/{driving.name}/{kind}",
            "count": sequence.content.frames.length,
            "start": start_frame(sequence, poses) if motion == "relative" else "",
            "generated": f"generated/{reference.name}/{driving.name}/{kind}",
            "recordings": recordings_digest(reference, driving, kind),
        }


def _write_pattern(folder: Path, pattern: Pattern, chosen: dict[str, int], advance: Advance) -> None:
    driving, references = folder / "driving" / pattern.name, folder / "references" / pattern.name
    for kind, sequence in pattern.sequences.items():
        with open_sink(driving / kind, FOLDER_FPS) as sink:
            for frame in open_frames(sequence.path):
                sink.write(frame)
                advance(1)
    references.mkdir(parents=True)
    for name, number in chosen.items():
        shutil.copy(driving / "yaw" / f"{number:06d}.png", references / f"{name}.png")
