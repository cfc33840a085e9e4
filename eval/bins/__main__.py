"""Motion transfer scored in bins of the head's angle (the paper's LPIPS table): `python -m eval.bins --weights CKPT`.

Every pattern (a subject under one illumination) is driven by every other one; what comes out is compared with the true
recordings of the same head angle. `eval/labels.py` describes the data, `eval/bins/metric.py` the metric.
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from eval.bins.folders import score_folders
from eval.bins.metric import Axis, Extractor, IdentityFeatures, make_axis
from eval.bins.tables import bin_rows, difference_table, draw_curves, notes, score_rows, score_table
from eval.detectors import IDENTITY_BACKENDS, identity_backend
from eval.generation import MOTIONS, VERSION, Poses, generate, missing_entries, plan_transfers
from eval.labels import Pattern, pattern_folders, read_patterns
from eval.lpips import load_lpips
from eval.results import notes_list, write_rows, write_text
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

FUSION_NAMES = {"patch": "patch-wise", "element": "element-wise"}
REFERENCE_COUNTS = {"frontal": 1, "all": 3}


class Contestant(NamedTuple):
    """A model that takes part. references: 1 (the frontal picture) or 3."""

    name: str
    model: Model
    references: int


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    data_help = "recordings with angles, a folder per pattern (bundled)"
    refs_help = "frontal, or yaw 0, -30, 30 (auto: frontal if trained with one)"
    backend_help = f"embedding of --features identity ({IDENTITY_BACKENDS[0]})"
    tolerance_help = "how far a reference's angle may be off (%(default)s)"
    add("--data", metavar="DIR", default=bundled.BENCHMARK, help=data_help)
    add("--weights", metavar="CKPT", nargs="+", default=[], help="checkpoints or run folders (the bundled one)")
    add("--generated", metavar="DIR", nargs="+", default=[], help="frames of other methods: REFERENCE/DRIVING/yaw.mp4")
    add("--method", metavar="NAME", nargs="+", help="names, those of --weights first (from what they are)")
    add_fusion(parser)
    add("--refs", choices=("auto", *REFERENCE_COUNTS), default="auto", help=refs_help)
    add("--motion", choices=MOTIONS, default="relative", help="move the frontal reference, or copy poses (%(default)s)")
    add("--features", choices=("lpips", "identity"), default="lpips", help="what is averaged per bin (%(default)s)")
    add("--lpips-weights", metavar="FILE", help="of --features lpips (the bundled AlexNet)")
    add("--identity-backend", choices=IDENTITY_BACKENDS, help=backend_help)
    add("--identity-weights", metavar="FILE", help="weights for a face embedding without any (openface)")
    add("--bin-width", type=float, default=2, metavar="DEGREES", help="width of the bins [a, a + width) (%(default)s)")
    add("--range", type=float, default=60, metavar="DEGREES", help="bins from -range to +range (%(default)s)")
    add("--pose-tolerance", type=float, default=5, metavar="DEGREES", help=tolerance_help)
    add("--allow-missing-poses", action="store_true", help="take the nearest frame then (else an error)")
    add("-o", "--output", metavar="DIR", default="bins", help="table, plot, rows and generated frames (%(default)s)")
    add_computing(parser, batch=4)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    axis = check(args)
    contestants = contestants_of(args)
    names = method_names(args, contestants)
    folders, output = pattern_folders(args.data), Path(args.output)
    with locked(output, make=True), use_context(args.context):
        for unfinished in output.glob(f"generated/*/*/*/.*{PARTIAL}"):  # by a run that was killed
            shutil.rmtree(unfinished, ignore_errors=True)
        with tqdm(folders, desc="checking recordings", unit="pattern") as bar:
            patterns = read_patterns(bar)
        extractor = load_extractor(args)
        ours = [one._replace(name=name) for one, name in zip(contestants, names)]
        roots = [output / "generated" / one.name for one in ours] + [Path(path) for path in args.generated]
        generate_all(args, ours, patterns, output / "generated")
        pairs = score_folders(extractor, axis, patterns, dict(zip(names, roots)), args.batch)
        if not any(pair.score.bins for pair in pairs):
            raise UserError(f"{args.data}: no bin holds both a true and a generated frame; see --range and the labels")
        write_rows(output / "scores.jsonl", score_rows(pairs, args.features, axis, output))
        write_rows(output / "bins.jsonl", bin_rows(pairs, args.features))
        with whole_file(output / "curves.png") as aside:
            draw_curves(aside, pairs, names, args.features)
        weights = Path(args.lpips_weights or bundled.LPIPS_ALEXNET)
        of_paper = args.features == "lpips" and weights == bundled.LPIPS_ALEXNET
        remarks = notes(pairs, patterns, args.data, axis, faces=args.features == "identity")
        tables = [score_table(pairs, names, args.features, of_paper), difference_table(pairs, names)]
        text = "\n".join(filter(None, [*tables, notes_list(remarks, "eval.bins", arguments)]))
        write_text(output / "table.md", text)
    print(text, end="")
    return 0


def check(args: argparse.Namespace) -> Axis:
    """Refuse arguments that make no sense, before any work."""
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give a number of frames, at least 1")
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


def method_names(args: argparse.Namespace, contestants: Sequence[Contestant]) -> list[str]:
    """The names of all methods: --method, or else what the weights are and what the folders are called."""
    found = [one.name for one in contestants] + [os.path.basename(os.path.realpath(path)) for path in args.generated]
    names = args.method or found
    if len(names) != len(found):
        raise UserError(f"--method: {len(names)} names for {len(found)} methods; give one for each, --weights first")
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"--method: two methods are called {name}; give each its own name")
        if not name or name.startswith(".") or "/" in name:
            raise UserError(f"--method {name!r}: a name becomes a folder; leave out slashes and leading dots")
    return names


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
    work = []
    for one in contestants:
        origin = {"model": fingerprint(one.model), "backend": backend_name(args.backend), "version": VERSION}
        planned = plan_transfers(patterns, folder / one.name, one.references, args.motion, poses, origin)
        if missing := missing_entries(planned):
            work.append((one.model, missing))
    entries = [entry for _, plans in work for plan in plans for entry in plan.entries]
    total = sum(entry.driving.content.frames.length for entry in entries)
    with tqdm(total=total, desc="generating", unit="frame", disable=not total) as bar:
        for model, plans in work:
            engine = open_engine(model, backend=args.backend)
            for plan in plans:
                generate(plan, engine, args.batch, bar.update)


if __name__ == "__main__":
    run_command(main)
