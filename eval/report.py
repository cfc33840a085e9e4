"""One page of results that can be mailed: `python -m eval.report RESULT... -o report.html`.

A RESULT is a folder written by `python -m eval.bins` (tables, curves per angle, and with --data the best and worst
bins), `python -m eval.reconstruction` (tables), `reconstruct.py` (best and worst frames beside the truth) or
`animate.py --masks` (which reference supplied what). The page holds its pictures and needs nothing else.
"""

import base64
import heapq
import io
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from eval.angle_bins import Bin, Score
from eval.bins import Result, digest_of, draw_curves
from eval.labels import KINDS, find_media, read_content, read_labels
from eval.results import provenance, read_rows
from mrfomm.data.clips import Clip, open_clip
from mrfomm.data.sampling import spread
from mrfomm.errors import UserError, check_is_file, command_parser, run_command
from mrfomm.media.images import read_image
from mrfomm.media.pictures import tile
from mrfomm.reenactment.reconstruction import SETTINGS, FrameRow, check_l1, l1_distances, read_run
from mrfomm.store import whole_file

MASK_PICTURES = 4
SMALLEST_FRAME, SMALLEST_MASKS = 128, 400  # pixels: smaller pictures are enlarged


class Figure(NamedTuple):
    """source: data URI of a PNG; caption: a line of text."""

    source: str
    caption: str


class Group(NamedTuple):
    """Figures under a heading."""

    title: str
    figures: list[Figure]


class Section(NamedTuple):
    """What the page shows of one result. table: HTML; configuration: text, or "" where the table's notes hold it."""

    title: str
    table: str
    groups: list[Group]
    configuration: str


class Frame(NamedTuple):
    """A rebuilt frame of a run. l1: L1D; clip: name; truth: path of the clip; row: FrameRow."""

    l1: float
    clip: str
    truth: Path
    row: FrameRow


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[OPTION ...] RESULT ...")
    add = parser.add_argument
    add("results", metavar="RESULT", nargs="+", help="folders of eval.bins, eval.reconstruction, reconstruct.py, masks")
    add("-o", "--output", metavar="FILE", default="report.html", help="the page (%(default)s)")
    add("--title", default="mrfomm: results", help="title of the page (%(default)s)")
    add("--data", metavar="DIR", help="the recordings of eval.bins, to show frames of its best and worst bins")
    add("--frames", type=int, default=4, metavar="N", help="best and worst frames each (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    if args.frames < 1:
        raise UserError(f"--frames {args.frames}: give a number, at least 1")
    sections = [read_result(Path(path), args) for path in args.results]
    command = shlex.join(map(str, sys.argv[1:] if arguments is None else arguments))
    versions = ", ".join(f"{name} {version}" for name, version in provenance().items())
    made = f"Made by python -m eval.report {command}; {versions}"
    page = render(sections, args.title, made)
    with whole_file(args.output) as aside:
        aside.write_text(page, encoding="utf-8", errors="backslashreplace")  # names of files needn't be text
    print(args.output)
    return 0


# Results


def read_result(folder, args):
    """The Section of a RESULT.

    Raises:
        UserError: the folder holds no result, or a part of it is missing or damaged.
    """
    if (folder / "bins.jsonl").is_file():
        return bins_section(folder, args)
    if (folder / "summary.jsonl").is_file():
        return Section(f"Scores: {folder}", read_table(folder), [], settings_of_scores(folder))
    if (folder / SETTINGS).is_file():
        return run_section(folder, args.frames)
    if folder.is_dir() and any(path.suffix == ".png" for path in folder.iterdir()):
        return masks_section(folder)
    raise UserError(
        f"{folder}: no result; give a folder of eval.bins, eval.reconstruction, reconstruct.py or animate.py --masks"
    )


def bins_section(folder, args):
    """Tables, curves per angle, and frames of the best and worst bins if the recordings are given."""
    rows = read_rows(folder / "bins.jsonl")
    measure = next((name for name in ("lpips", "identity") if rows and name in rows[0]), None)
    if measure is None:
        raise UserError(f"{folder / 'bins.jsonl'}: no row with a score; run eval.bins again")
    drawn = Figure(curves(rows, measure), f"{measure}, mean over pairs; lower is better")
    groups = [Group("Curves per angle", [drawn])]
    scores = read_rows(folder / "scores.jsonl")
    first = scores[0]  # there are bins, so there are scores
    if args.data:
        for title, choose in (("Best bins", heapq.nsmallest), ("Worst bins", heapq.nlargest)):
            chosen = choose(args.frames, rows, key=lambda row: row[measure])
            figures = [bin_figure(folder, Path(args.data), row, measure, scores) for row in chosen]
            groups.append(Group(title, figures))
    configuration = {key: first[key] for key in ("size", "bin_width", "range", "versions")}
    return Section(f"Angle bins: {folder}", read_table(folder), groups, as_text(configuration))


def curves(rows, measure):
    """The plot of eval.bins, of its rows, as a data URI."""
    scores = {}
    for row in rows:
        scores.setdefault(key_of(row), []).append(Bin(row["angle"], row[measure], row["true"], row["generated"]))
    results = [Result(*key, Score(found, 0)) for key, found in scores.items()]
    names = list(dict.fromkeys(result.method for result in results))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curves.png"
        draw_curves(path, results, names, measure)
        return data_uri(path.read_bytes())


def key_of(row):
    """Method, reference, driving and sequence of a row of eval.bins."""
    return tuple(row[name] for name in ("method", "reference", "driving", "sequence"))


def bin_figure(folder, data, row, measure, scores):
    """Of one bin: the reference pattern's true frame and the generated frame nearest to the middle of the bin."""
    method, reference, driving, kind = key_of(row)
    score = next((score for score in scores if key_of(score) == key_of(row)), {})
    if not score.get("digests"):
        raise UserError(f"{folder / 'scores.jsonl'}: doesn't name the frames; leave out --data, or run eval.bins again")
    generated, truth = folder / score["frames"], find_media(data / reference, kind) or data / reference / kind
    pictures = [
        frame_at(path, digest, data / pattern / f"{kind}.csv", kind, row["angle"], score["size"])
        for path, digest, pattern in zip((truth, generated), reversed(score["digests"]), (reference, driving))
    ]
    caption = f"{measure} {row[measure]:.4f} at {kind} {row['angle']:g}: {method}, {reference} driven by {driving}"
    return Figure(picture_row(pictures), f"{caption}; left the truth")


def frame_at(path, digest, labels, kind, angle, size):
    """The frame of a clip whose own angle, by a label file, is nearest; uint8 [S,S,3]. The clip is the one scored."""
    if not path.exists():
        raise UserError(f"{path}: no such clip; leave out --data, or run eval.bins again")
    angles, content = read_labels(labels)[:, KINDS.index(kind)], read_content(path)
    if digest_of(content, angles) != digest:
        raise UserError(f"{path}: it or {labels} isn't what was scored; give the same --data, or run eval.bins again")
    return content.frames.read([int(np.abs(angles - angle).argmin())], size)[0]


def settings_of_scores(folder):
    """The settings of every method that eval.reconstruction has scored."""
    return as_text({row["method"]: row["settings"] for row in read_rows(folder / "summary.jsonl")})


def run_section(folder, count):
    """The best and worst frames of a run of reconstruct.py by L1D, each beside its truth."""
    run = read_run(folder)
    frames = [Frame(frame.l1, row.clip, Path(row.source), frame) for row in run.rows for frame in row.frames]
    if not frames:
        raise UserError(f"{folder}: holds no frame; make it again with reconstruct.py")
    groups = []
    for title, choose in (("Best frames", heapq.nsmallest), ("Worst frames", heapq.nlargest)):
        groups.append(Group(f"{title} by L1D", [frame_figure(folder, frame) for frame in choose(count, frames)]))
    summary = f"{len(frames)} frames of {len(run.rows)} of {run.clips} clips, L1D {np.mean([f.l1 for f in frames]):.4f}"
    configuration = f"{summary}\n{as_text(run.settings._asdict())}"
    return Section(f"Reconstruction: {folder}", "", groups, configuration)


def frame_figure(folder, frame):
    """A rebuilt frame of a run's folder beside its truth."""
    number, picture = frame.row.frame, read_image(folder / frame.row.file)
    truth = read_frame(frame.truth, number, len(picture))
    check_l1(float(l1_distances(picture[None], truth[None])[0]), frame.row, folder, frame.truth)
    return Figure(picture_row([truth, picture]), f"L1D {frame.l1:.4f}: {frame.clip}, frame {number}; left the truth")


def read_frame(path, number, size):
    """One frame of a clip as it was scored: the central square at a size, uint8 [size,size,3]."""
    clip = open_clip(Clip(path, path.stem, path.stem))
    if number >= clip.length:
        raise UserError(f"{path}: has {clip.length} frames, but frame {number} was scored; make the result again")
    return clip.read([number], size)[0]


def masks_section(folder):
    """An even choice of the pictures that animate.py --masks wrote."""
    files = sorted(folder.glob("*.png"))
    chosen = spread(len(files), MASK_PICTURES)
    note = "a row a reference: input, its warp, mask, masked warp; at the end the result"
    figures = [Figure(picture_row([read_image(files[i])], SMALLEST_MASKS), f"{files[i].name}: {note}") for i in chosen]
    return Section(f"Masks: {folder}", "", [Group("What each reference supplies", figures)], "")


# The page


def read_table(folder):
    """table.md as HTML."""
    markdown_it, _ = _import_libraries()
    path = folder / "table.md"
    check_is_file(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: can't be read ({error}); run the command that wrote the folder again") from error
    return markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table").render(text)


def render(sections, title, made):
    """The page as HTML; everything is escaped but the tables, which come without HTML from ``read_table``."""
    _, jinja2 = _import_libraries()
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template("report.html").render(sections=sections, title=title, made=made)


def picture_row(pictures: list[np.ndarray], smallest=SMALLEST_FRAME) -> str:
    """Pictures side by side, enlarged by a whole number if they are small, as a data URI."""
    joined = tile([pictures])
    factor = max(1, smallest // len(joined))
    file = io.BytesIO()
    Image.fromarray(joined.repeat(factor, axis=0).repeat(factor, axis=1)).save(file, "PNG")
    return data_uri(file.getvalue())


def data_uri(png):
    """Bytes of a PNG as an address that holds them."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def as_text(values):
    """Plain values by name, for people."""
    return json.dumps(values, indent=1, ensure_ascii=False)


def _import_libraries() -> tuple:
    try:
        import jinja2
        import markdown_it
    except ImportError as error:
        raise UserError(f"a report needs Jinja2 and markdown-it-py ({error}); pip install -e .[report]") from error
    return markdown_it, jinja2


if __name__ == "__main__":
    run_command(main)
