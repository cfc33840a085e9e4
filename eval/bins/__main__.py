"""Motion transfer scored in bins of the head's angle (the paper's LPIPS table): `python -m eval.bins --weights CKPT`.

Every pattern (a subject under one illumination) is driven by every other one; what comes out is compared with the true
recordings of the same head angle. `eval/labels.py` describes the data, `eval/bins/metric.py` the metric.
"""

import argparse
import functools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mrfomm import bundled
from mrfomm.commands.options import add_computing, add_fusion
from mrfomm.config import load_config
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.model import Model, load_model
from mrfomm.model.checkpoint import find_checkpoint
from mrfomm.onnx.graphs import fingerprint
from mrfomm.reenactment.backends import backend_name, open_engine
from mrfomm.runtime.context import use_context
from mrfomm.store import PARTIAL, locked, whole_file

from ..detectors import IDENTITY_BACKENDS, identity_backend
from ..generation import MOTIONS, VERSION, Poses, generate, missing_entries, plan_transfers
from ..labels import Pattern, pattern_folders, read_patterns
from ..lpips import load_lpips
from ..results import command_line, json_text, method_names, named_folder, notes_list, progress, write_rows, write_text
from .folders import PairScore, score_folders
from .metric import Axis, Extractor, IdentityFeatures, make_axis
from .protocol import PAIRS, export_protocol
from .tables import bin_rows, difference_table, draw_curves, notes, score_rows, score_table, summaries

FUSION_NAMES = {"patch": "patch-wise", "element": "element-wise"}
REFERENCE_COUNTS = {"frontal": 1, "all": 3}


class Contestant(NamedTuple):
    """A model that takes part. references: 1 (the frontal picture) or 3."""

    name: str
    model: Model
    references: int


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    wide = functools.partial(argparse.HelpFormatter, max_help_position=31)
    parser = command_parser(__doc__, formatter_class=wide)
    add = parser.add_argument
    data_help = "recordings with angles, by pattern (bundled)"
    generated_help = "other methods' frames; NAME=DIR names a method"
    refs_help = "poses: frontal, or yaw 0, -30 and 30 (auto: as trained)"
    backend_help = f"embedding of --features identity ({IDENTITY_BACKENDS[0]})"
    tolerance_help = "largest error of a reference's angle (%(default)s)"
    add("--data", metavar="DIR", default=bundled.BENCHMARK, help=data_help)
    add("--weights", metavar="CKPT", nargs="+", default=[], help="checkpoints or run folders (the bundled one)")
    add("--generated", metavar="DIR", action="extend", nargs="+", default=[], help=generated_help)
    add("--method", metavar="NAME", nargs="+", help="names, --weights first (from what they are)")
    add("--export-protocol", metavar="DIR", help="write what others generate from (else: score)")
    add("--size", metavar="N", type=int, help="score all at N x N pixels (as methods are)")
    add_fusion(parser)
    add("--refs", choices=("auto", *REFERENCE_COUNTS), default="auto", help=refs_help)
    add("--motion", choices=MOTIONS, default="relative", help="move the reference, or copy poses (%(default)s)")
    add("--features", choices=("lpips", "identity"), default="lpips", help="what is averaged per bin (%(default)s)")
    add("--lpips-weights", metavar="FILE", help="weights for --features lpips (the bundled AlexNet)")
    add("--identity-backend", choices=IDENTITY_BACKENDS, help=backend_help)
    add("--identity-weights", metavar="FILE", help="weights of the back end openface (none)")
    add("--bin-width", type=float, default=2, metavar="DEGREES", help="width of the bins [a, a + width) (%(default)s)")
    add("--range", type=float, default=60, metavar="DEGREES", help="bins go from -range to +range (%(default)s)")
    add("--pose-tolerance", type=float, default=5, metavar="DEGREES", help=tolerance_help)
    add("--allow-missing-poses", action="store_true", help="take the nearest frame if none is that close")
    add("-o", "--output", metavar="DIR", default="bins", help="folder for tables, plot and frames (%(default)s)")
    add("--json", action="store_true", help="print the scores as JSON, not as tables")
    add_computing(parser, batch=4)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    axis = check(args)
    folders, output = pattern_folders(args.data), Path(args.output)
    if args.export_protocol is not None:
        return export(args, folders, arguments)
    contestants, others = contestants_of(args), [named_folder(text) for text in args.generated]
    found = [one.name for one in contestants] + [name for name, _ in others]
    names = method_names(args.method, found, "methods, --weights first")
    with locked(output, make=True), use_context(args.context):
        for unfinished in output.glob(f"generated/*/*/*/.*{PARTIAL}"):  # by a run that was killed
            shutil.rmtree(unfinished, ignore_errors=True)
        patterns = read_recordings(args, folders)
        extractor = load_extractor(args)
        ours = [one._replace(name=name) for one, name in zip(contestants, names)]
        roots = [output / "generated" / one.name for one in ours] + [path for _, path in others]
        generate_all(args, ours, patterns, output / "generated")
        pairs = score_folders(extractor, axis, patterns, dict(zip(names, roots)), args.batch, args.size)
        if not any(pair.score.bins for pair in pairs):
            raise UserError(f"{args.data}: no bin holds both a true and a generated frame; see --range and the labels")
        write_rows(output / "scores.jsonl", score_rows(pairs, args.features, axis, output))
        write_rows(output / "bins.jsonl", bin_rows(pairs, args.features))
        with whole_file(output / "curves.png") as aside:
            draw_curves(aside, pairs, names, args.features)
        remarks = list(notes(pairs, patterns, args.data, axis, faces=args.features == "identity"))
        text = table_text(args, pairs, names, remarks, arguments)
        write_text(output / "table.md", text)
    if args.json:
        record = {"measure": args.features, "size": pairs[0].size, **axis._asdict(), **summaries(pairs, names)}
        text = json_text({**record, "notes": remarks}, "bins", arguments)
    print(text, end="")
    return 0


def read_recordings(args: argparse.Namespace, folders: Sequence[Path]) -> list[Pattern]:
    """The patterns in the folders."""
    if args.size is not None:
        print(f"all frames are brought to {args.size}x{args.size} pixels before they are scored", file=sys.stderr)
    with progress(None, "checking recordings") as bar:
        return read_patterns(folders, bar.update, scaled=args.size is not None)


def table_text(
    args: argparse.Namespace,
    pairs: Sequence[PairScore],
    names: Sequence[str],
    remarks: Sequence[str],
    arguments: Sequence[str] | None,
) -> str:
    """The tables and what has to be known about them."""
    weights = Path(args.lpips_weights or bundled.LPIPS_ALEXNET)
    of_paper = args.features == "lpips" and weights == bundled.LPIPS_ALEXNET
    tables = [score_table(pairs, names, args.features, of_paper), difference_table(pairs, names)]
    return "\n".join(filter(None, [*tables, notes_list(remarks, "bins", arguments)]))


def export(args: argparse.Namespace, folders: Sequence[Path], arguments: Sequence[str] | None) -> int:
    """--export-protocol; returns the exit code."""
    options = "weights", "generated", "method", "fusion", "size"
    if given := [f"--{name}" for name in options if getattr(args, name)]:
        raise UserError(f"--export-protocol: generates and scores nothing; leave out {', '.join(given)}")
    patterns, target = read_recordings(args, folders), Path(args.export_protocol)
    poses, count = Poses(args.pose_tolerance, args.allow_missing_poses), REFERENCE_COUNTS.get(args.refs, 3)
    total = sum(clip.content.frames.length for pattern in patterns for clip in pattern.sequences.values())
    with progress(total, "exporting") as bar:
        sequences = export_protocol(target, patterns, count, args.motion, poses, bar.update)
    record = {"pairs": str(target / PAIRS), "sequences": sequences, "patterns": len(patterns), "frames": total}
    text = f"{target / PAIRS}: {sequences} sequences to generate; then: {command_line('bins')} --generated {target}\n"
    print(json_text(record, "bins", arguments) if args.json else text, end="")
    return 0


def check(args: argparse.Namespace) -> Axis:
    """Refuse arguments that make no sense, before any work."""
    if args.size is not None and args.size < 1:
        raise UserError(f"--size {args.size}: give a number of pixels, at least 1")
    if not args.pose_tolerance >= 0:
        raise UserError(f"--pose-tolerance {args.pose_tolerance:g}: give a number of degrees, at least 0")
    options = ("fusion", args.fusion), ("refs", args.refs != "auto"), ("motion", args.motion != MOTIONS[0])
    for name, given in options if args.generated and not args.weights else ():
        if given:
            raise UserError(f"--{name} is for --weights; leave it out")
    for name in ("lpips_weights", "identity_backend", "identity_weights"):
        features = name.split("_")[0]
        if getattr(args, name) is not None and features != args.features:
            raise UserError(f"--{name.replace('_', '-')} is for --features {features}; leave it out")
    return make_axis(args.bin_width, args.range)


def contestants_of(args: argparse.Namespace) -> list[Contestant]:
    """A Contestant for each of --weights, with the name that the table of the paper gives such a model."""
    contestants = []
    for path in args.weights or ([] if args.generated else [bundled.MODEL]):
        model = load_model(path, args.fusion)
        trained = load_config(find_checkpoint(path) / "config.yaml").data.num_references
        count = REFERENCE_COUNTS.get(args.refs, 1 if trained == 1 else 3)
        mode = model.config.fusion.mode
        name = FUSION_NAMES.get(mode, mode) + (", frontal alone" if count == 1 else "")
        contestants.append(Contestant("FOMM" if trained == count == 1 else name, model, count))
    return contestants


def load_extractor(args: argparse.Namespace) -> Extractor:
    """What describes images."""
    if args.features == "identity":
        backend = args.identity_backend or IDENTITY_BACKENDS[0]
        return IdentityFeatures(identity_backend(backend, args.identity_weights))
    return load_lpips(args.lpips_weights or bundled.LPIPS_ALEXNET)


def generate_all(
    args: argparse.Namespace, contestants: Sequence[Contestant], patterns: list[Pattern], folder: Path
) -> None:
    """Generate what ``folder``, which has one of each contestant's name, lacks."""
    poses = Poses(args.pose_tolerance, args.allow_missing_poses)
    work, count = [], 0
    for one in contestants:
        origin = {"model": fingerprint(one.model), "backend": backend_name(args.backend), "version": VERSION}
        planned = plan_transfers(patterns, folder / one.name, one.references, args.motion, poses, origin)
        count += sum(len(plan.entries) for plan in planned)
        if missing := missing_entries(planned):
            work.append((one.model, missing))
    if not work:
        return
    entries = [entry for _, plans in work for plan in plans for entry in plan.entries]
    total = sum(entry.driving.content.frames.length for entry in entries)
    kept = f" ({count - len(entries)} are there)" * (len(entries) < count)
    print(f"sequences to generate: {len(entries)}{kept}, {total} frames; then all are scored", file=sys.stderr)
    with progress(total, "generating") as bar:
        for model, plans in work:
            engine = open_engine(model, backend=args.backend)
            for plan in plans:
                generate(plan, engine, args.batch, bar.update)


if __name__ == "__main__":
    run_command(main)
