"""Score what reconstruct.py has rebuilt (the paper's L1D, AKD and AED): `python -m eval.reconstruction RESULT...`.

Every RESULT is a run folder of reconstruct.py, a row of the table. Without one, ./reconstruction is scored, and made
first from the bundled clips with the bundled model if it isn't there.

::

    reconstruction-scores/
      table.md                 what is printed
      summary.jsonl            one line per method and measure: mean, interval, frames counted and dropped, versions
      METHOD/CLIP.jsonl        one line per frame; null where a measure can't be taken
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.detectors import IDENTITY_BACKENDS, LANDMARK_BACKENDS, identity_backend, landmark_backend
from eval.lpips import load_lpips
from eval.reconstruction.metrics import Measures
from eval.reconstruction.runs import open_runs, score_runs
from eval.reconstruction.tables import PAPER_IDENTITY, difference_table, notes, score_table, summary_rows
from eval.results import notes_list, write_rows, write_text
from mrfomm import bundled
from mrfomm.commands import reconstruct
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.runtime.context import CONTEXTS, use_context
from mrfomm.store import locked, sha256_of

DEFAULT_RESULT = "reconstruction"
DEFAULT_OUTPUT = "reconstruction-scores"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[OPTION ...] [RESULT ...]")
    add = parser.add_argument
    names_help = "{}, separated by commas: {}, or none (%(default)s)"
    landmarks_help = names_help.format("landmarks for AKD", ", ".join(LANDMARK_BACKENDS))
    identity_help = names_help.format("face embeddings for AED", ", ".join(IDENTITY_BACKENDS))
    add("results", metavar="RESULT", nargs="*", help=f"run folders that reconstruct wrote (./{DEFAULT_RESULT})")
    add("--method", metavar="NAME", nargs="+", help="names of the results in the table (their folders' names)")
    add("--data", metavar="DIR", help="folder of the true clips, with test/, if it has moved")
    add("--landmarks", metavar="NAMES", default="mediapipe", help=landmarks_help)
    add("--identity", metavar="NAMES", default="dlib", help=identity_help)
    add("--openface-weights", metavar="FILE", help="nn4.small2.v1.t7 of the OpenFace project, for --identity openface")
    add("--lpips-weights", metavar="FILE", default=bundled.LPIPS_ALEXNET, help="LPIPS weights (the bundled AlexNet)")
    add("-o", "--output", metavar="DIR", default=DEFAULT_OUTPUT, help="folder for tables and rows (%(default)s)")
    add("--context", choices=CONTEXTS, default="auto", help="where LPIPS is computed (%(default)s)")
    add("--batch", type=int, default=8, metavar="N", help="frames per call of a network (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: at least 1")
    measures = load_measures(args)
    weights = [sha256_of(path) for path in (args.lpips_weights, args.openface_weights) if path]
    methods = open_runs(folders_of(args), args.data)
    with locked(args.output, make=True):
        with use_context(args.context):
            score_runs(measures, methods, args.output, args.batch, weights)
        remarks = notes_list(notes(methods, measures.columns), "eval.reconstruction", arguments)
        tables = [score_table(methods, measures.columns), difference_table(methods, measures.columns)]
        text = "\n".join(filter(None, [*tables, remarks]))
        write_rows(Path(args.output, "summary.jsonl"), summary_rows(methods, measures.columns))
        write_text(Path(args.output, "table.md"), text)
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


def folders_of(args: argparse.Namespace) -> dict[str, Path]:
    """Run folders by their names in the table; the default one is made if it isn't there."""
    if not args.results and not Path(DEFAULT_RESULT).exists():
        print(f"no result given: rebuilding the bundled clips into ./{DEFAULT_RESULT}", file=sys.stderr)
        reconstruct.main(["--output", DEFAULT_RESULT, "--context", args.context])
    folders = [Path(folder) for folder in args.results or [DEFAULT_RESULT]]
    names = args.method or [os.path.basename(os.path.realpath(folder)) for folder in folders]
    if len(names) != len(folders):
        raise UserError(f"--method: {len(names)} names for {len(folders)} results; give one for each")
    for name in names:
        if names.count(name) > 1 or name in ("", ".", "..") or "/" in name:
            raise UserError(f"--method {name!r}: every result needs a name of its own that can be a folder's")
    return dict(zip(names, folders))


if __name__ == "__main__":
    run_command(main)
