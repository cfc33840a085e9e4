"""One page of results that can be mailed: `python -m eval.report RESULT... -o report.html`.

A RESULT is a folder written by `python -m eval.bins` (tables, curves per angle, and with --data the best and worst
bins), `python -m eval.reconstruction` (tables), `reconstruct.py` (best and worst frames beside the truth) or
`animate.py --masks` (which reference supplied what). The page holds its pictures and needs nothing else.
"""

import argparse
import base64
import heapq
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mrfomm.data.clips import Clip, open_clip
from mrfomm.data.sampling import spread
from mrfomm.errors import UserError, check_is_file, command_parser, run_command
from mrfomm.media.images import read_image
from mrfomm.reenactment.pictures import tile
from mrfomm.reenactment.reconstruction import SETTINGS, FrameRow, check_l1, l1_distances, read_run
from mrfomm.store import whole_file

from .bins.folders import PairScore, digest_of
from .bins.metric import Bin, Score
from .bins.tables import draw_curves
from .labels import KINDS, find_media, read_content, read_labels
from .results import made_by, read_rows

MASK_PICTURES = 4
SMALLEST_FRAME, SMALLEST_MASKS = 128, 400  # pixels: smaller pictures are enlarged
Picture = tuple[str, str]  # data URI of a PNG, and a caption of one line
EXTREMES = (("Best", heapq.nsmallest), ("Worst", heapq.nlargest))


class Section(NamedTuple):
    """What the page shows of one result. table: HTML; groups: heading -> Pictures; configuration: text; "" for none."""

    title: str
    table: str
    groups: dict[str, list[Picture]]
    configuration: str


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[OPTION ...] RESULT ...")
    add = parser.add_argument
    add("results", metavar="RESULT", nargs="+", help="folders of bins, reconstruction, reconstruct or animate --masks")
    add("-o", "--output", metavar="FILE", default="report.html", help="page to write (%(default)s)")
    add("--title", default="mrfomm: results", help="title of the page (%(default)s)")
    add("--data", metavar="DIR", help="the recordings that bins scored, to show frames of its best and worst")
    add("--frames", type=int, default=4, metavar="N", help="number of best and of worst frames (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    if args.frames < 1:
        raise UserError(f"--frames {args.frames}: give a number, at least 1")
    data = None if args.data is None else Path(args.data)
    sections = [read_result(Path(path), data, args.frames) for path in args.results]
    page = render(sections, args.title, "Made by {}; {}".format(*made_by("report", arguments)))
    with whole_file(args.output) as aside:
        aside.write_text(page, encoding="utf-8", errors="backslashreplace")  # names of files needn't be text
    print(args.output)
    return 0


def read_result(folder: Path, data: Path | None, count: int) -> Section:
    """The Section of a RESULT with ``count`` best and worst frames; data: the recordings of eval.bins.

    UserError: the folder holds no result, or a part of it is missing or damaged.
    """
    if (folder / "bins.jsonl").is_file():
        return bins_section(folder, data, count)
    if (folder / "summary.jsonl").is_file():
        settings = {row["method"]: row["settings"] for row in read_rows(folder / "summary.jsonl")}
        return Section(f"Scores: {folder}", read_table(folder), {}, _as_text(settings))
    if (folder / SETTINGS).is_file():
        return run_section(folder, count)
    if folder.is_dir() and any(path.suffix == ".png" for path in folder.iterdir()):
        return masks_section(folder)
    raise UserError(
        f"{folder}: no result; give a folder of eval.bins, eval.reconstruction, reconstruct.py or animate.py --masks"
    )


def bins_section(folder: Path, data: Path | None, count: int) -> Section:
    """Tables, curves per angle, and frames of the best and worst bins if the recordings are given."""
    rows = read_rows(folder / "bins.jsonl")
    measure = next((name for name in ("lpips", "identity") if rows and name in rows[0]), None)
    if measure is None:
        raise UserError(f"{folder / 'bins.jsonl'}: no row with a score; run eval.bins again")
    groups = {"Curves per angle": [(curves(rows, measure), f"{measure}, mean over pairs; lower is better")]}
    scores = read_rows(folder / "scores.jsonl")
    if data:
        for title, choose in EXTREMES:
            chosen = choose(count, rows, key=lambda row: row[measure])
            groups[f"{title} bins"] = [bin_picture(folder, data, row, measure, scores) for row in chosen]
    configuration = {key: scores[0][key] for key in ("size", "bin_width", "range", "versions")}  # bins are of scores
    return Section(f"Angle bins: {folder}", read_table(folder), groups, _as_text(configuration))


def curves(rows: Sequence[dict[str, Any]], measure: str) -> str:
    """The plot of eval.bins, of its rows, as a data URI."""
    found: dict[tuple[str, str, str, str], list[Bin]] = {}
    for row in rows:
        found.setdefault(_key_of(row), []).append(Bin(row["angle"], row[measure], row["true"], row["generated"]))
    pairs = [PairScore(*key, Score(bins, 0)) for key, bins in found.items()]
    file = io.BytesIO()
    draw_curves(file, pairs, list(dict.fromkeys(pair.method for pair in pairs)), measure)
    return _data_uri(file)


def _key_of(row: dict[str, Any]) -> tuple[str, str, str, str]:
    return row["method"], row["reference"], row["driving"], row["sequence"]


def bin_picture(folder: Path, data: Path, row: dict[str, Any], measure: str, scores: list[dict[str, Any]]) -> Picture:
    """Of one bin: the reference pattern's true frame and the generated frame nearest to the middle of the bin."""
    method, reference, driving, kind = _key_of(row)
    score = next((score for score in scores if _key_of(score) == _key_of(row)), {})
    if not score.get("digests"):
        raise UserError(f"{folder / 'scores.jsonl'}: doesn't name the frames; leave out --data, or run eval.bins again")
    generated, truth = folder / score["frames"], find_media(data / reference, kind) or data / reference / kind
    pictures = [
        frame_at(path, digest, data / pattern / f"{kind}.csv", kind, row["angle"], score["size"])
        for path, digest, pattern in zip((truth, generated), reversed(score["digests"]), (reference, driving))
    ]
    caption = f"{measure} {row[measure]:.4f} at {kind} {row['angle']:g}: {method}, {reference} driven by {driving}"
    return picture_row(pictures), f"{caption}; left the truth"


def frame_at(path: Path, digest: str, labels: Path, kind: str, angle: float, size: int) -> np.ndarray:
    """The frame of a clip whose own angle, by a label file, is nearest; uint8 [S,S,3]. The clip is the one scored."""
    if not path.exists():
        raise UserError(f"{path}: no such clip; leave out --data, or run eval.bins again")
    angles, content = read_labels(labels)[:, KINDS.index(kind)], read_content(path)
    if digest_of(content, angles) != digest:
        raise UserError(f"{path}: it or {labels} isn't what was scored; give the same --data, or run eval.bins again")
    return content.frames.read([int(np.abs(angles - angle).argmin())], size)[0]


def run_section(folder: Path, count: int) -> Section:
    """The best and worst frames of a run of reconstruct.py by L1D, each beside its truth."""
    run = read_run(folder)
    frames = [(frame.l1, clip.clip, Path(clip.source), frame) for clip in run.rows for frame in clip.frames]
    if not frames:
        raise UserError(f"{folder}: holds no frame; make it again with reconstruct.py")
    groups = {
        f"{title} frames by L1D": [frame_picture(folder, *frame[1:]) for frame in choose(count, frames)]
        for title, choose in EXTREMES
    }
    mean = np.mean([l1 for l1, *_ in frames])
    summary = f"{len(frames)} frames of {len(run.rows)} of {run.clips} clips, L1D {mean:.4f}"
    configuration = f"{summary}\n{_as_text(run.settings._asdict())}"
    return Section(f"Reconstruction: {folder}", "", groups, configuration)


def frame_picture(folder: Path, clip: str, source: Path, frame: FrameRow) -> Picture:
    """A rebuilt frame of a run's folder beside its truth."""
    picture = read_image(folder / frame.file)
    truth = open_clip(Clip(source, source.stem, source.stem))
    number, length = frame.frame, truth.length
    if number >= length:
        raise UserError(f"{source}: has {length} frames, but frame {number} was scored; make the result again")
    (true,) = truth.read([number], len(picture))
    check_l1(float(l1_distances(picture[None], true[None])[0]), frame, folder, source)
    return picture_row([true, picture]), f"L1D {frame.l1:.4f}: {clip}, frame {number}; left the truth"


def masks_section(folder: Path) -> Section:
    """An even choice of the pictures that animate.py --masks wrote."""
    files = sorted(folder.glob("*.png"))
    note = "one row per reference: input, its warp, mask, masked warp; at the end the result"
    chosen = [files[i] for i in spread(len(files), MASK_PICTURES)]
    pictures = [(picture_row([read_image(file)], SMALLEST_MASKS), f"{file.name}: {note}") for file in chosen]
    return Section(f"Masks: {folder}", "", {"What each reference supplies": pictures}, "")


def read_table(folder: Path) -> str:
    """table.md as HTML."""
    markdown_it, _ = _import_libraries()
    path = folder / "table.md"
    check_is_file(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: can't be read ({error}); run the command that wrote the folder again") from error
    return markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table").render(text)


def render(sections: Sequence[Section], title: str, made: str) -> str:
    """The page as HTML; everything is escaped but the tables, which come without HTML from ``read_table``."""
    _, jinja2 = _import_libraries()
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template("report.html").render(sections=sections, title=title, made=made)


def picture_row(pictures: list[np.ndarray], smallest: int = SMALLEST_FRAME) -> str:
    """Pictures side by side, enlarged by a whole number if they are small, as a data URI."""
    joined = tile([pictures])
    factor = max(1, smallest // len(joined))
    file = io.BytesIO()
    Image.fromarray(joined.repeat(factor, axis=0).repeat(factor, axis=1)).save(file, "PNG")
    return _data_uri(file)


def _data_uri(png: io.BytesIO) -> str:
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def _as_text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False)


def _import_libraries() -> tuple[Any, Any]:
    try:
        import jinja2
        import markdown_it
    except ImportError as error:
        install = "pip install -e .[report]"
        raise UserError(f"a report needs Jinja2 and markdown-it-py ({error}); {install}") from error
    return markdown_it, jinja2


if __name__ == "__main__":
    run_command(main)
