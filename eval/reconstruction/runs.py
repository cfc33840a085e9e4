"""Runs of reconstruct.py scored: frames meet their truth by clip and frame number, clips are known by their content."""

import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from eval.reconstruction.metrics import Measures, score
from eval.results import provenance, read_rows, write_rows
from mrfomm.data.clips import Clip, open_clip
from mrfomm.errors import AnyPath, UserError, named
from mrfomm.media.images import read_image
from mrfomm.media.provenance import clip_digest
from mrfomm.store import whole_file

if TYPE_CHECKING:
    from mrfomm.reenactment.reconstruction import ClipRow, FrameRow, Run


class Method(NamedTuple):
    """A row of the table. truth: clip -> path of the true one; digests: clip -> its digest; rows: clip -> a dictionary
    a frame, of ``score`` with the clip's name and the frame's number, once it is scored."""

    name: str
    run: "Run"
    truth: dict[str, Path]
    digests: dict[str, str]
    rows: dict[str, list[dict[str, Any]]]


def open_runs(folders: Mapping[str, AnyPath], data: AnyPath | None = None) -> list[Method]:
    """Methods that aren't scored yet, of run folders by name. data: where the true clips are, if not where they were.

    UserError: no reconstruction, an unfinished one, no truth for it, or runs that can't be compared.
    """
    methods = [_open_run(name, Path(folder), data) for name, folder in folders.items()]
    sizes = {method.run.settings.image_size for method in methods}
    if len(sizes) > 1:
        raise UserError(f"results of {' and '.join(map(str, sorted(sizes)))} pixels: score them apart from each other")
    for first, second in itertools.combinations(methods, 2):
        _check_same_clips(first, second)
    return methods


def _open_run(name: str, folder: Path, data: AnyPath | None) -> Method:
    from mrfomm.reenactment.reconstruction import read_run  # not with this module: it brings all of the networks

    run = read_run(folder)
    if len(run.rows) != run.clips:
        raise UserError(f"{folder}: {len(run.rows)} of {run.clips} clips; run the same reconstruct.py again to finish")
    if not run.rows:
        raise UserError(f"{folder}: holds no clip; make it again with reconstruct.py")
    truth = {row.clip: Path(data, "test", Path(row.source).name) if data else Path(row.source) for row in run.rows}
    return Method(name, run, truth, {row.clip: _digest_of_truth(truth[row.clip], row, folder) for row in run.rows}, {})


def _digest_of_truth(source: Path, row: "ClipRow", folder: Path) -> str:
    if not source.exists():
        raise UserError(f"{source}: this true clip of {folder} is missing; name the data's folder with --data")
    digest = clip_digest(source)
    if digest != (row.truth or digest):
        raise UserError(f"{source}: not the clip that {folder} was made of; reconstruct again, or see --data")
    return digest


def _check_same_clips(first: Method, second: Method) -> None:
    """Refuse clips of one name that are not the same clip: their frames are no pairs."""
    for clip in sorted(first.digests.keys() & second.digests.keys()):
        if first.digests[clip] != second.digests[clip]:
            raise UserError(
                f"{first.truth[clip]} and {second.truth[clip]} are two clips of one name: {first.name} and "
                f"{second.name} are results of different data; score them apart from each other"
            )


def score_runs(
    measures: Measures, methods: Sequence[Method], output: AnyPath, batch: int = 8, weights: Sequence[str] = ()
) -> Sequence[Method]:
    """Fill the methods' rows: score every clip, or take the scores of an earlier run of the same.

    Clip by clip, as the methods share its truth. A clip's scores are on the disk, as ``output/METHOD/CLIP.jsonl``,
    before the next one begins, and stay there if that one fails. Those of other frames, measures, versions or weights
    (digests of their files) are replaced.

    UserError: a frame or its truth is missing, damaged or of another size, or not what the manifest says.
    """
    made_with = {"columns": [column.key for column in measures.columns], "weights": weights, "versions": provenance()}
    for method in methods:
        frames = {row.clip: (row.digest, row.l1) for row in method.run.rows}
        made_of = {"run": method.run.settings._asdict(), "frames": frames, "truth": method.digests}
        _prepare_folder(Path(output, method.name), {**made_with, **made_of})
    jobs = sorted(((method, row) for method in methods for row in method.run.rows), key=lambda job: job[1].clip)
    with tqdm(total=len(jobs), desc="scoring", unit="clip") as progress:
        for clip, group in itertools.groupby(jobs, key=lambda job: job[1].clip):
            measures.begin_clip()
            for method, row in group:
                path = Path(output, method.name, f"{clip}.jsonl")
                if not path.exists():
                    write_rows(path, list(score_clip(measures, method, row, batch)))
                method.rows[clip] = read_rows(path)
                progress.update()
    return methods


def _prepare_folder(folder: Path, made_of: Mapping[str, object]) -> None:
    """A folder for scores that are made of this; scores that are made of something else are removed from it."""
    path = folder / "measured.json"
    text = json.dumps(made_of, indent=1, sort_keys=True) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    if folder.exists() and not path.exists():
        raise UserError(f"{folder}: is there already and holds no scores; choose another --output")
    if path.exists():
        print(f"{folder}: its scores are of another result, back end or version, and are replaced", file=sys.stderr)
    with named(folder, "can't be written", "choose another --output"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)  # fails if anything is left
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def score_clip(measures: Measures, method: Method, row: "ClipRow", batch: int) -> Iterator[dict[str, Any]]:
    """Yield a dictionary for every frame of a ClipRow: clip, frame, and a number or None for every column."""
    from mrfomm.reenactment.reconstruction import check_l1

    path, size = method.truth[row.clip], method.run.settings.image_size
    truth = open_clip(Clip(path, row.clip, row.clip))
    last = max(frame.frame for frame in row.frames)
    if last >= truth.length:
        raise UserError(f"{path}: {truth.length} frames, but {row.clip} was rebuilt to frame {last}; see --data")
    for start in range(0, len(row.frames), batch):
        frames: Sequence[FrameRow] = row.frames[start : start + batch]
        pictures = np.stack([_read_picture(method.run.folder / frame.file, size) for frame in frames])
        true = truth.read([frame.frame for frame in frames], size)
        for frame, values in zip(frames, score(measures, true, pictures)):
            check_l1(values["l1"] or 0.0, frame, method.run.folder, path)
            yield {"clip": row.clip, "frame": frame.frame, **values}


def _read_picture(path: Path, size: int) -> np.ndarray:
    picture = read_image(path)
    if picture.shape != (size, size, 3):
        height, width = picture.shape[:2]
        raise UserError(f"{path}: {width}x{height} pixels, the others have {size}x{size}; reconstruct again")
    return picture
