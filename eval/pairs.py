"""Compare two folders of pictures, or two videos, picture by picture: `python -m eval.pairs A B`.

Pictures of folders meet by their names, frames of videos by their number. L1 is the mean absolute difference of pixels
in [0,1]; PSNR (dB) and SSIM (Wang et al. 2004, mean over colour channels) are higher for more equal pictures.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrfomm import bundled
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.media.images import list_images, read_image
from mrfomm.media.reading import open_frames
from mrfomm.runtime.context import CONTEXTS, use_context

from .lpips import load_lpips
from .reconstruction.metrics import Measures, ScoreRow, score
from .results import Values, interval_cell, json_text, markdown_table, notes_list, progress, summary_of

TITLES = {"l1": "L1", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}


class Pair(NamedTuple):
    """Two pictures, uint8 [H,W,3], and what each is called in errors; name: what both are called in results."""

    name: str
    places: tuple[str, str]
    pictures: tuple[np.ndarray, np.ndarray]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[OPTION ...] A B")
    add = parser.add_argument
    add("first", metavar="A", help="a folder of pictures, or a video")
    add("second", metavar="B", help="one with the same names, or of the same length")
    add("--lpips-weights", metavar="FILE", default=bundled.LPIPS_ALEXNET, help="LPIPS weights (the bundled AlexNet)")
    add("--context", choices=CONTEXTS, default="auto", help="where LPIPS is computed (%(default)s)")
    add("--json", action="store_true", help="print the scores as JSON, those of every picture too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    total, pairs = read_pairs(Path(args.first), Path(args.second))
    rows: dict[str, ScoreRow] = {}
    with use_context(args.context), progress(total, "scoring", "picture") as bar:
        measures = Measures(load_lpips(args.lpips_weights))
        for pair in pairs:
            rows[pair.name] = score_pair(measures, pair)
            bar.update()
    found = {key: values_of(rows, key) for key in TITLES}
    equal = len(rows) - len(found["psnr"])
    remarks = [
        f"{args.first} and {args.second}: {len(rows)} pair{'' if len(rows) == 1 else 's'} of pictures.",
        "Means; in brackets 95 % bootstrap intervals over pictures (too narrow where these are frames of one clip).",
        "PSNR and SSIM are higher for more equal pictures, L1 and LPIPS lower.",
        *[f"PSNR: {equal} of them left out: the pictures are equal, their PSNR infinite."] * (equal > 0),
    ]
    if args.json:
        scores = [{"measure": key, **summary_of(values)._asdict()} for key, values in found.items()]
        pictures = [{"name": name, **row} for name, row in rows.items()]
        record = {"first": args.first, "second": args.second, "scores": scores, "pictures": pictures}
        print(json_text({**record, "notes": remarks}, "pairs", arguments), end="")
    else:
        cells = [interval_cell(values, weighted=True) for values in found.values()]
        print(markdown_table(["pictures", *TITLES.values()], [[len(rows), *cells]]))
        print(notes_list(remarks, "pairs", arguments), end="")
    return 0


def values_of(rows: Mapping[str, ScoreRow], key: str) -> Values:
    """Picture -> its value of a measure, of the pictures that have one."""
    return {name: {0: value} for name, row in rows.items() if (value := row[key]) is not None}


def read_pairs(first: Path, second: Path) -> tuple[int | None, Iterator[Pair]]:
    """How many pairs there are, if that is known, and the pairs; UserError: they can't be read or don't match."""
    if first.is_dir() != second.is_dir() and first.exists() and second.exists():
        raise UserError(f"{first} and {second}: a folder and a file; give two folders of pictures, or two videos")
    return _pairs_of_folders(first, second) if first.is_dir() else _pairs_of_videos(first, second)


def _pairs_of_folders(first: Path, second: Path) -> tuple[int, Iterator[Pair]]:
    names, others = ([path.name for path in list_images(folder)] for folder in (first, second))
    for folder, here, there in ((second, others, names), (first, names, others)):
        if missing := [name for name in there if name not in set(here)]:
            more = f" and {len(missing) - 1} more" * (len(missing) > 1)
            raise UserError(f"{folder}: no {missing[0]}{more}, unlike the other folder; give folders of the same names")
    places = ((name, (first / name, second / name)) for name in names)
    pairs = (Pair(name, (str(a), str(b)), (read_image(a), read_image(b))) for name, (a, b) in places)
    return len(names), pairs


def _pairs_of_videos(first: Path, second: Path) -> tuple[int | None, Iterator[Pair]]:
    a, b = open_frames(first), open_frames(second)
    if a.count_hint != b.count_hint:
        raise UserError(f"{first}: {a.count_hint} frames, but {second}: {b.count_hint}; give clips of one length")
    if f"{a.fps:g}" != f"{b.fps:g}":
        rates = f"{first}: {a.fps:g} frames per second, {second}: {b.fps:g}"
        print(f"{rates}; frames are compared by their number, not by their time", file=sys.stderr)

    def pairs() -> Iterator[Pair]:
        for number, (one, other) in enumerate(itertools.zip_longest(a, b)):
            if one is None or other is None:
                raise UserError(f"{first} and {second}: only one has a frame {number}; give clips of one length")
            yield Pair(str(number), (f"{first}: frame {number}", f"{second}: frame {number}"), (one, other))

    return a.count_hint, pairs()


def score_pair(measures: Measures, pair: Pair) -> ScoreRow:
    """L1, PSNR (None if the pictures are equal), SSIM and LPIPS; UserError: two sizes, or too small ones."""
    a, b = pair.pictures
    sizes = [f"{picture.shape[1]}x{picture.shape[0]} pixels" for picture in pair.pictures]
    if a.shape != b.shape:
        raise UserError(f"{pair.places[0]}: {sizes[0]}, but {pair.places[1]}: {sizes[1]}; make them alike")
    if min(a.shape[:2]) < measures.lpips.backbone.smallest:
        raise UserError(f"{pair.places[0]}: {sizes[0]}; LPIPS needs {measures.lpips.backbone.smallest} on a side")
    (row,) = score(measures, a[None], b[None])
    return row


if __name__ == "__main__":
    run_command(main)
