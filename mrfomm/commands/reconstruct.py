"""Rebuild test clips from a few of their own frames: `python reconstruct.py --data data/vox --weights runs/vox-256`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mrfomm import bundled
from mrfomm.commands import overview
from mrfomm.commands.options import add_computing, add_fusion
from mrfomm.data.clips import Clip, find_clips
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.model import Model, load_model
from mrfomm.onnx.graphs import fingerprint
from mrfomm.reenactment.backends import backend_name, open_engine
from mrfomm.reenactment.reconstruction import ClipRow, Run, RunSettings, append_clip, locked_run, rebuild_clip
from mrfomm.runtime.context import use_context

NAMED_REFERENCES = {"first": 1, "first-last": 2, "first-last-middle": 3}


DATA = "data in FOMM's format, with test/ (the bundled set)"
REFS = "which frames of a clip are its references: first, first-last, first-last-middle, or how many (%(default)s)"
PSEUDO = "of K single-reference results keep the one closest to the truth (the paper's pseudo multi-reference baseline)"
EPILOG = "An interrupted run is continued by the same command. `python -m eval.reconstruction DIR` scores it."


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("--data", metavar="DIR", default=bundled.SAMPLE_DATA, help=DATA)
    add("--weights", metavar="CKPT", default=bundled.MODEL, help="checkpoint or run folder (the bundled one)")
    add("--refs", default="first-last-middle", help=REFS)
    add_fusion(parser)
    add("--pseudo", action="store_true", help=PSEUDO)
    add("-o", "--output", metavar="DIR", default="reconstruction", help="folder for frames and manifest (%(default)s)")
    add_computing(parser, batch=4)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    count = number_of_references(args.refs)
    clips = find_clips(Path(args.data) / "test")
    overview.tell_cut(overview.shapes_of(clips))
    model = load_model(args.weights, args.fusion)
    size, mode = model.config.image_size, model.config.fusion.mode
    with use_context(args.context):
        data, backend = str(Path(args.data).resolve()), backend_name(args.backend)
        settings = RunSettings(fingerprint(model), data, size, count, mode, args.pseudo, backend)
        with locked_run(args.output, settings, clips) as run:
            rows = [*run.rows, *rebuild_missing(clips, model, args.backend, args.batch, run)]
    frames = [frame.l1 for row in rows for frame in row.frames]
    method = "pseudo multi-reference, the best of" if args.pseudo else "from"
    print(
        f"L1D {np.mean(frames):.4f} over {len(frames)} frames of {len(rows)} clips, "
        f"{method} {count} reference{'s' if count > 1 else ''}; frames in {args.output}"
    )
    return 0


def number_of_references(text: str) -> int:
    """K of --refs."""
    if text in NAMED_REFERENCES:
        return NAMED_REFERENCES[text]
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--refs {text}: give first, first-last, first-last-middle or a number, at least 1")
    return int(text)


def rebuild_missing(clips: Sequence[Clip], model: Model, backend: str, batch: int, run: Run) -> list[ClipRow]:
    """Rebuild the clips that a Run lacks, one after the other; returns their ClipRows."""
    done = {row.clip for row in run.rows}
    if done:
        print(f"{run.folder}: {len(done)} of {len(clips)} clips are there already", file=sys.stderr)
    missing, rows = [clip for clip in clips if clip.name not in done], []
    if missing:
        engine = open_engine(model, backend=backend)
        for clip in tqdm(missing, unit="clip"):
            rows.append(rebuild_clip(clip, engine, batch, run))
            append_clip(run, rows[-1])
    return rows


def command() -> None:
    """The console command."""
    run_command(main)
