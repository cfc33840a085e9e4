"""Score what reconstruct.py has rebuilt (the paper's L1D, AKD and AED): `python -m eval.reconstruction RESULT...`.

Every RESULT is a run folder of reconstruct.py, a row of the table, and so is every --generated, a folder of another
method's frames. Without any, ./reconstruction is scored, and made first from the bundled clips with the bundled model
if it isn't there.

::

    reconstruction-scores/
      table.md                 what is printed
      summary.jsonl            one line per method and measure: mean, interval, frames counted and dropped, versions
      METHOD/CLIP.jsonl        one line per frame; null where a measure can't be taken
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from mrfomm import bundled
from mrfomm.commands import reconstruct
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.runtime.context import CONTEXTS, use_context
from mrfomm.store import locked, sha256_of

from ..detectors import IDENTITY_BACKENDS, LANDMARK_BACKENDS, identity_backend, landmark_backend
from ..lpips import load_lpips
from ..results import json_text, method_names, named_folder, notes_list, write_rows, write_text
from .metrics import Measures
from .runs import Method, open_runs, score_runs
from .tables import (
    PAPER_IDENTITY,
    difference_rows,
    difference_table,
    notes,
    score_table,
    sizes,
    summary_rows,
)

DEFAULT_RESULT = "reconstruction"
DEFAULT_OUTPUT = "reconstruction-scores"
GENERATED = "another method's frames: a folder or video for each test clip, of its name; again for more methods"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[OPTION ...] [RESULT ...]")
    add = parser.add_argument
    names_help = "{}, separated by commas: {}, or none (%(default)s)"
    landmarks_help = names_help.format("landmarks for AKD", ", ".join(LANDMARK_BACKENDS))
    identity_help = names_help.format("face embeddings for AED", ", ".join(IDENTITY_BACKENDS))
    add("results", metavar="RESULT", nargs="*", help=f"run folders that reconstruct wrote (./{DEFAULT_RESULT})")
    add("--generated", metavar="[NAME=]DIR", action="append", default=[], help=GENERATED)
    add("--method", metavar="NAME", nargs="+", help="names in the table, RESULTs first (their folders' names)")
    add("--data", metavar="DIR", help="folder of the true clips, with test/, if it has moved")
    add("--size", metavar="N", type=int, help="bring all frames to N x N pixels (as they are, if all have one size)")
    add("--landmarks", metavar="NAMES", default="mediapipe", help=landmarks_help)
    add("--identity", metavar="NAMES", default="dlib", help=identity_help)
    add("--openface-weights", metavar="FILE", help="nn4.small2.v1.t7 of the OpenFace project, for --identity openface")
    add("--lpips-weights", metavar="FILE", default=bundled.LPIPS_ALEXNET, help="LPIPS weights (the bundled AlexNet)")
    add("-o", "--output", metavar="DIR", default=DEFAULT_OUTPUT, help="folder for tables and rows (%(default)s)")
    add("--context", choices=CONTEXTS, default="auto", help="where LPIPS is computed (%(default)s)")
    add("--batch", type=int, default=8, metavar="N", help="frames per call of a network (%(default)s)")
    add("--json", action="store_true", help="print the scores as JSON, not as tables")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    for option, value in (("batch", args.batch), ("size", args.size)):
        if value is not None and value < 1:
            raise UserError(f"--{option} {value}: at least 1")
    measures = load_measures(args)
    weights = [sha256_of(path) for path in (args.lpips_weights, args.openface_weights) if path]
    methods = open_methods(args)
    if args.size is not None:
        print(sizes(methods), file=sys.stderr)
    with locked(args.output, make=True):
        with use_context(args.context):
            score_runs(measures, methods, args.output, args.batch, weights)
        remarks, columns = list(notes(methods, measures.columns)), measures.columns
        tables = [score_table(methods, columns), difference_table(methods, columns)]
        text = "\n".join(filter(None, [*tables, notes_list(remarks, "reconstruction", arguments)]))
        scores = list(summary_rows(methods, columns))
        write_rows(Path(args.output, "summary.jsonl"), scores)
        write_text(Path(args.output, "table.md"), text)
    if args.json:
        differences = list(difference_rows(methods, columns))
        record = {"size": methods[0].size, "scores": scores, "differences": differences, "notes": remarks}
        text = json_text(record, "reconstruction", arguments)
    print(text, end="")
    return 0


def load_measures(args: argparse.Namespace) -> Measures:
    """The Measures asked for; UserError for an unknown back end, a missing extra, or unreadable weights."""
    landmarks = _chosen(args.landmarks, LANDMARK_BACKENDS, "--landmarks")
    identity = _chosen(args.identity, IDENTITY_BACKENDS, "--identity")
    if args.openface_weights and PAPER_IDENTITY not in identity:
        raise UserError("--openface-weights: only for --identity openface; leave it out")
    weights = {PAPER_IDENTITY: args.openface_weights}
    points = {name: landmark_backend(name) for name in landmarks}
    faces = {name: identity_backend(name, weights.get(name)) for name in identity}
    return Measures(load_lpips(args.lpips_weights), points, faces)


def _chosen(text: str, known: Sequence[str], option: str) -> list[str]:
    names = [] if text == "none" else text.split(",")
    if any(name not in known or names.count(name) > 1 for name in names):
        raise UserError(f"{option} {text}: give {', '.join(known)}, once each with commas between, or none")
    return names


def open_methods(args: argparse.Namespace) -> list[Method]:
    """What is to be scored; the default result is made if it isn't there."""
    is_default = not (args.results or args.generated)
    if is_default and not Path(DEFAULT_RESULT).exists():
        print(f"no result given: rebuilding the bundled clips into ./{DEFAULT_RESULT}", file=sys.stderr)
        with contextlib.redirect_stdout(sys.stderr):
            reconstruct.main(["--output", DEFAULT_RESULT, "--context", args.context])
    results = [DEFAULT_RESULT] if is_default else args.results
    found = [named_folder(text) for text in (*results, *args.generated)]
    names = method_names(args.method, [name for name, _ in found], "results")
    folders = [(name, folder) for name, (_, folder) in zip(names, found)]
    return open_runs(dict(folders[: len(results)]), args.data, dict(folders[len(results) :]), args.size)


if __name__ == "__main__":
    run_command(main)
