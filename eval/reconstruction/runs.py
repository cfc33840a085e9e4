"""Rebuilt frames scored: they meet their truth by clip and frame number, and clips are known by their content.

Frames are those of a run of reconstruct.py, or of another method: a folder of pictures or a video for each test clip.
"""

import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mrfomm.data.clips import Clip, find_clips, open_clip
from mrfomm.errors import AnyPath, UserError, named
from mrfomm.media.images import fit, read_image
from mrfomm.media.provenance import clip_digest
from mrfomm.store import whole_file

from ..labels import find_media, read_content
from ..results import progress, provenance, read_rows, write_rows
from .metrics import Measures, score_each

if TYPE_CHECKING:
    from mrfomm.reenactment.reconstruction import ClipRow, FrameRow, Run


class Pictures(NamedTuple):
    """What a method made of a clip. frames: the numbers of the clip's frames; side: of the square pictures, pixels.

    read: positions in ``frames`` -> uint8 [n,side,side,3]; known_by: what changes with the pictures, for JSON; folder,
    promised: of a run, whose manifest says the L1D of each.
    """

    clip: str
    frames: Sequence[int]
    side: int
    read: Callable[[Sequence[int]], np.ndarray]
    known_by: object
    folder: Path = Path()
    promised: Sequence["FrameRow"] = ()


class Method(NamedTuple):
    """A row of the table.

    truth: clip -> path of the true one; digests: clip -> its digest; rows: clip -> a dictionary a frame, of ``score``
    with the clip's name and the frame's number, once it is scored; settings: how the frames were made, for JSON, and
    remark, for people; size: of the squares that are scored, pixels.
    """

    name: str
    made: Sequence[Pictures]
    truth: dict[str, Path]
    digests: dict[str, str]
    rows: dict[str, list[dict[str, Any]]]
    settings: Mapping[str, object] = {}
    remark: str = ""
    size: int = 0


def open_runs(
    folders: Mapping[str, AnyPath],
    data: AnyPath | None = None,
    generated: Mapping[str, AnyPath] = {},
    size: int | None = None,
) -> list[Method]:
    """Methods that aren't scored yet, of run folders by name, and of other methods' folders by name.

    data: where the true clips are, if not where they were; size: to bring all frames to, if not all have one.

    UserError: no reconstruction, an unfinished one, frames or their truth are missing, or can't be compared.
    """
    methods = [_open_run(name, Path(folder), data) for name, folder in folders.items()]
    if generated:
        truth = _true_clips(methods, data)
        with progress(None, "checking frames") as bar:
            others = [_open_others(name, Path(folder), truth, bar.update) for name, folder in generated.items()]
        methods += others
    sides = {pictures.side for method in methods for pictures in method.made}
    if len(sides) > 1 and size is None:
        found = " and ".join(map(str, sorted(sides)))
        raise UserError(f"results of {found} pixels: score them apart from each other, or at one size with --size")
    for first, second in itertools.combinations(methods, 2):
        _check_same_clips(first, second)
    return [method._replace(size=size or min(sides)) for method in methods]


def _open_run(name: str, folder: Path, data: AnyPath | None) -> Method:
    from mrfomm.reenactment.reconstruction import read_run  # not with this module: it brings all of the networks

    run = read_run(folder)
    if len(run.rows) != run.clips:
        raise UserError(f"{folder}: {len(run.rows)} of {run.clips} clips; run the same reconstruct.py again to finish")
    if not run.rows:
        raise UserError(f"{folder}: holds no clip; make it again with reconstruct.py")
    truth = {row.clip: Path(data, "test", Path(row.source).name) if data else Path(row.source) for row in run.rows}
    checked = tqdm(run.rows, desc="checking clips", unit="clip", delay=1)  # seconds: mostly it is done by then
    digests = {row.clip: _digest_of_truth(truth[row.clip], row, folder) for row in checked}
    settings, pictures = run.settings, [_pictures_of_run(run, row) for row in run.rows]
    made = "per frame the best by L1D of results from each of" if settings.pseudo else "from"
    references = f"{settings.references} reference{'' if settings.references == 1 else 's'}"
    remark = f"{made} {references}, fusion {settings.fusion}, model {settings.weights[:12]}"
    return Method(name, pictures, truth, digests, {}, settings._asdict(), remark)


def _pictures_of_run(run: "Run", row: "ClipRow") -> Pictures:
    side = run.settings.image_size

    def read(positions: Sequence[int]) -> np.ndarray:
        return np.stack([_read_picture(run.folder / row.frames[i].file, side) for i in positions])

    numbers = [frame.frame for frame in row.frames]
    return Pictures(row.clip, numbers, side, read, (row.digest, row.l1), run.folder, row.frames)


def _digest_of_truth(source: Path, row: "ClipRow", folder: Path) -> str:
    if not source.exists():
        raise UserError(f"{source}: this true clip of {folder} is missing; name the data's folder with --data")
    digest = clip_digest(source)
    if digest != (row.truth or digest):
        raise UserError(f"{source}: not the clip that {folder} was made of; reconstruct again, or see --data")
    return digest


def _true_clips(methods: Sequence[Method], data: AnyPath | None) -> dict[str, Path]:
    """Name -> path of the clips that other methods have to have: the data's, or else those of the runs."""
    if data is not None:
        return {clip.name: clip.path for clip in find_clips(Path(data, "test"))}
    found = {clip: path for method in methods for clip, path in method.truth.items()}
    if not found:
        raise UserError("--generated: whose truth is where? Name the data's folder with --data")
    return found


def _open_others(name: str, folder: Path, truth: dict[str, Path], advance: Callable[[int], object]) -> Method:
    """Frames of another method: for each true clip a folder or video of its name, decoded once and checked."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one with a folder of frames or a video for each test clip")
    paths = {clip: find_media(folder, clip) for clip in truth}
    if missing := [clip for clip, path in paths.items() if path is None]:
        others = f" (nor of {len(missing) - 1} more)" * (len(missing) > 1)
        remedy = f"a method needs all {len(truth)} test clips"
        raise UserError(f"{folder}: no folder or video of the test clip {missing[0]}{others}; {remedy}")
    made = [_others_pictures(clip, path, truth[clip], advance) for clip, path in paths.items() if path]
    digests = {clip: clip_digest(path) for clip, path in truth.items()}
    return Method(name, made, truth, digests, {}, {"generated": str(folder)}, f"frames in {folder}")


def _others_pictures(clip: str, path: Path, truth: Path, advance: Callable[[int], object]) -> Pictures:
    content = read_content(path, advance)
    length, wanted = content.frames.length, open_clip(Clip(truth, clip, clip)).length
    if length != wanted:
        raise UserError(f"{path}: {length} frames, but the true clip {truth} has {wanted}; generate it again")
    if content.height != content.width:
        raise UserError(f"{path}: {content.size} pixels; cut out the central square, as the true frames are cut")

    def read(positions: Sequence[int]) -> np.ndarray:
        return content.frames.read(positions, content.height)

    return Pictures(clip, range(length), content.height, read, content.digest)


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
        frames = {pictures.clip: pictures.known_by for pictures in method.made}
        made_of = {"run": method.settings, "frames": frames, "truth": method.digests, "size": method.size}
        _prepare_folder(Path(output, method.name), {**made_with, **made_of})
    jobs = sorted(((method, made) for method in methods for made in method.made), key=lambda job: job[1].clip)
    with progress(sum(len(made.frames) for _, made in jobs), "scoring") as bar:
        for clip, group in itertools.groupby(jobs, key=lambda job: job[1].clip):
            measures.begin_clip()
            for method, made in group:
                path = Path(output, method.name, f"{clip}.jsonl")
                if not path.exists():
                    write_rows(path, list(_counted(score_clip(measures, method, made, batch), bar.update)))
                else:
                    bar.update(len(made.frames))
                method.rows[clip] = read_rows(path)
    return methods


def _counted(rows: Iterator[dict[str, Any]], advance: Callable[[int], object]) -> Iterator[dict[str, Any]]:
    for row in rows:
        advance(1)
        yield row


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


def score_clip(measures: Measures, method: Method, made: Pictures, batch: int) -> Iterator[dict[str, Any]]:
    """Yield a dictionary for every frame of a clip's Pictures: clip, frame, and a number or None for every column."""
    path = method.truth[made.clip]
    truth = open_clip(Clip(path, made.clip, made.clip))
    last = max(made.frames)
    if last >= truth.length:
        raise UserError(f"{path}: {truth.length} frames, but {made.clip} was rebuilt to frame {last}; see --data")
    for start in range(0, len(made.frames), batch):
        numbers = made.frames[start : start + batch]
        true, pictures = truth.read(numbers, made.side), made.read(range(start, start + len(numbers)))
        _check_promised(made, start, true, pictures, path)
        if made.side != method.size:
            true = truth.read(numbers, method.size)
            pictures = np.stack([fit(picture, method.size) for picture in pictures])
        for frame, values in zip(numbers, score_each(measures, true, pictures)):
            yield {"clip": made.clip, "frame": frame, **values}


def _check_promised(made: Pictures, start: int, true: np.ndarray, pictures: np.ndarray, path: Path) -> None:
    """Raise UserError unless the frames from ``start`` on are those of a run's manifest."""
    from mrfomm.reenactment.reconstruction import check_l1, l1_distances

    for frame, distance in zip(made.promised[start:], l1_distances(pictures, true)):
        check_l1(float(distance), frame, made.folder, path)


def _read_picture(path: Path, size: int) -> np.ndarray:
    picture = read_image(path)
    if picture.shape != (size, size, 3):
        height, width = picture.shape[:2]
        raise UserError(f"{path}: {width}x{height} pixels, the others have {size}x{size}; reconstruct again")
    return picture
