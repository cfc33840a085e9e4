"""Motion transfer scored in bins of the head's angle (the paper's LPIPS table): `python -m eval.bins --weights CKPT`.

Every pattern (a subject under one illumination) is driven by every other one; what comes out is compared with the true
recordings of the same head angle. `eval/labels.py` describes the data, `eval/angle_bins.py` the metric.
"""

import hashlib
import itertools
import os
import shlex
import shutil
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from eval import generation
from eval.angle_bins import IdentityFeatures, Images, Score, make_axis, plan_bins, score_sets
from eval.detectors import IDENTITY_BACKENDS, identity_backend
from eval.generation import MOTIONS, Poses, generate, missing_entries, pairs_of, plan_transfers
from eval.labels import (
    KINDS,
    Content,
    Pattern,
    check_same_size,
    find_media,
    pattern_folders,
    read_content,
    read_patterns,
)
from eval.lpips import load_lpips
from eval.results import ENCODING, bootstrap_interval, markdown_table, paired_difference, provenance, write_rows
from mrfomm import bundled
from mrfomm.checkpoint import find_checkpoint
from mrfomm.config import FUSION_MODES, load_config
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.model import Model, load_model
from mrfomm.onnx.graphs import fingerprint
from mrfomm.reenactment.backends import BACKENDS, backend_name, open_engine
from mrfomm.runtime.context import CONTEXTS, use_context
from mrfomm.store import PARTIAL, locked, sha256_of, whole_file

PAPER = {  # yaw, pitch, roll; arXiv 2202.10758, LPIPS with AlexNet
    "FOMM": (0.117, 0.131, 0.160),
    "patch-wise": (0.086, 0.108, 0.142),
    "element-wise": (0.085, 0.107, 0.141),
}
FUSION_NAMES = {"patch": "patch-wise", "element": "element-wise"}
REFERENCE_COUNTS = {"frontal": 1, "all": 3}


class Contestant(NamedTuple):
    """A model that takes part. references: 1 (the frontal picture) or 3."""

    name: str
    model: Model
    references: int


class Method(NamedTuple):
    """Frames to score: ``root/<reference>/<driving>/<kind>``, a folder or an mp4."""

    name: str
    root: Path


class Generated(NamedTuple):
    """The frames of one method for one pair and kind of sequence. path: of the clip."""

    method: str
    driving: Pattern
    path: Path
    content: Content


class Result(NamedTuple):
    """A Score and what it is of. frames: path of the generated clip; digests: ``digest_of`` it and the true one."""

    method: str
    reference: str
    driving: str
    kind: str
    score: Score
    frames: str = ""
    digests: tuple[str, ...] = ()


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add(
        "--data",
        metavar="DIR",
        default=bundled.BENCHMARK,
        help="recordings with angles, a folder per pattern (bundled)",
    )
    add("--weights", metavar="CKPT", nargs="+", default=[], help="checkpoints or run folders (the bundled one)")
    add("--generated", metavar="DIR", nargs="+", default=[], help="frames of other methods: REFERENCE/DRIVING/yaw.mp4")
    add("--method", metavar="NAME", nargs="+", help="names, those of --weights first (from what they are)")
    add("--fusion", choices=FUSION_MODES, help="how references are fused (as the weights were trained)")
    add(
        "--refs",
        choices=("auto", *REFERENCE_COUNTS),
        default="auto",
        help="frontal, or yaw 0, -30, 30 (auto: frontal if trained with one)",
    )
    add("--motion", choices=MOTIONS, default="relative", help="move the frontal reference, or copy poses (%(default)s)")
    add("--features", choices=("lpips", "identity"), default="lpips", help="what is averaged per bin (%(default)s)")
    add("--lpips-weights", metavar="FILE", help="of --features lpips (the bundled AlexNet)")
    add(
        "--identity-backend",
        choices=IDENTITY_BACKENDS,
        help=f"embedding of --features identity ({IDENTITY_BACKENDS[0]})",
    )
    add("--identity-weights", metavar="FILE", help="weights for a face embedding without any (openface)")
    add("--bin-width", type=float, default=2, metavar="DEGREES", help="width of the bins [a, a + width) (%(default)s)")
    add("--range", type=float, default=60, metavar="DEGREES", help="bins from -range to +range (%(default)s)")
    add(
        "--pose-tolerance",
        type=float,
        default=5,
        metavar="DEGREES",
        help="how far a reference's angle may be off (%(default)s)",
    )
    add("--allow-missing-poses", action="store_true", help="take the nearest frame then (else an error)")
    add("-o", "--output", metavar="DIR", default="bins", help="table, plot, rows and generated frames (%(default)s)")
    add("--context", choices=CONTEXTS, default="auto", help="where to compute (%(default)s)")
    add("--backend", choices=BACKENDS, default="auto", help="what runs it (auto: onnx on a CPU, if installed)")
    add("--batch", type=int, default=4, metavar="N", help="frames per call of a network (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    axis = check(args)
    contestants, given = contestants_of(args), [Path(path) for path in args.generated]
    names = method_names(args, contestants, given)
    contestants = [one._replace(name=name) for one, name in zip(contestants, names)]
    folders, output = pattern_folders(args.data), Path(args.output)
    with locked(output, make=True), use_context(args.context):
        for unfinished in output.glob(f"generated/*/*/*/.*{PARTIAL}"):  # by a run that was killed
            shutil.rmtree(unfinished, ignore_errors=True)
        with tqdm(folders, desc="checking recordings", unit="pattern") as bar:
            patterns = read_patterns(bar)
        extractor = load_extractor(args)
        methods = generate_all(args, contestants, patterns, output / "generated")
        methods += [Method(name, root) for name, root in zip(names[len(contestants) :], given)]
        sets = open_sets(methods, patterns)
        size = scored_size(sets)
        results = score_all(extractor, axis, patterns, sets, size, args.batch)
        if not any(result.score.bins for result in results):
            raise UserError(f"{args.data}: no bin holds both a true and a generated frame; see --range and the labels")
        write_results(args, output, results, patterns, names, size, sys.argv[1:] if arguments is None else arguments)
    print((output / "table.md").read_text(**ENCODING), end="")
    return 0


# What takes part


def check(args):
    """Refuse arguments that make no sense, before any work; return the Axis."""
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


def contestants_of(args):
    """A Contestant for each of --weights, with the name that the table of the paper gives such a model."""
    contestants = []
    for path in args.weights or ([] if args.generated else [bundled.MODEL]):
        model = load_model(path, args.fusion)
        trained = load_config(find_checkpoint(path) / "config.yaml").data.num_references
        count = REFERENCE_COUNTS.get(args.refs, 1 if trained == 1 else 3)
        contestants.append(Contestant(_name(model.config.fusion.mode, trained, count), model, count))
    return contestants


def _name(mode, trained, count):
    """The name of a model that was trained with some number of references and gets another."""
    if trained == count == 1:
        return "FOMM"
    return FUSION_NAMES.get(mode, mode) + (", frontal alone" if count == 1 else "")


def method_names(args, contestants, given):
    """The names of all methods: --method, or else what the weights are and what the folders are called."""
    folders = [os.path.basename(os.path.realpath(path)) for path in given]
    names = args.method or [one.name for one in contestants] + folders
    count = len(contestants) + len(given)
    if len(names) != count:
        raise UserError(f"--method: {len(names)} names for {count} methods; give one for each, --weights first")
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"--method: two methods are called {name}; give each its own name")
        if not name or name.startswith(".") or "/" in name:
            raise UserError(f"--method {name!r}: a name becomes a folder; leave out slashes and leading dots")
    return names


def load_extractor(args):
    """What describes images: Lpips or IdentityFeatures."""
    if args.features == "identity":
        name = args.identity_backend or IDENTITY_BACKENDS[0]
        return IdentityFeatures(identity_backend(name, args.identity_weights).embed)
    return load_lpips(args.lpips_weights or bundled.LPIPS_ALEXNET)


# Frames


def generate_all(args, contestants, patterns, folder):
    """Generate what the cache lacks; returns a Method for each contestant."""
    poses = Poses(args.pose_tolerance, args.allow_missing_poses)
    methods, work = [], []
    for one in contestants:
        root = folder / one.name
        backend = backend_name(args.backend)
        origin = {"model": fingerprint(one.model), "backend": backend, "code": sha256_of(generation.__file__)}
        plans = plan_transfers(patterns, root, one.references, args.motion, poses, origin)
        work.append((one.model, missing_entries(plans)))
        methods.append(Method(one.name, root))
    entries = [entry for _, plans in work for plan in plans for entry in plan.entries]
    total = sum(entry.driving.content.frames.length for entry in entries)
    with tqdm(total=total, desc="generating", unit="frame", disable=not total) as bar:
        for model, plans in work:
            engine = open_engine(model, backend=args.backend) if plans else None
            for plan in plans:
                generate(plan, engine, args.batch, bar.update)
    return methods


def open_sets(methods, patterns):
    """Every method's frames, decoded once and checked.

    Returns:
        (reference's name, kind) -> list of Generated.

    Raises:
        UserError: a clip is missing or damaged, has not its driving sequence's frames, or differs in size.
    """
    pairs = [(reference, *pair) for reference in patterns for pair in pairs_of(reference, patterns)]
    clips = [(method, *pair) for method in methods for pair in pairs]
    sets, first = {}, None
    with tqdm(clips, desc="checking frames", unit="clip") as bar:
        for method, reference, driving, kind in bar:
            path, content = open_generated(method.root / reference.name / driving.name, driving.sequences[kind])
            first = first or (path, content)
            check_same_size(path, content, *first)
            sets.setdefault((reference.name, kind), []).append(Generated(method.name, driving, path, content))
    return sets


def open_generated(folder, driving):
    """The frames that were generated from a driving Sequence: (path, Content)."""
    path = find_media(folder, driving.kind)
    if path is None:
        missing = folder / driving.kind
        raise UserError(f"{missing}: no such folder, and no {missing.name}.mp4; a method needs the frames of all pairs")
    content = read_content(path)
    length, wanted = content.frames.length, driving.content.frames.length
    if length != wanted:
        raise UserError(f"{path}: {length} frames, its driving sequence has {wanted}; generate it again")
    return path, content


# Scores


def scored_size(sets):
    """Side of the square that all images are cut to (``fit``): the generated ones' shorter side."""
    content = next(iter(sets.values()))[0].content
    return min(content.height, content.width)


def score_all(extractor, axis, patterns, sets, size, batch):
    """Score all sets of generated frames against the recordings of their reference pattern -> list of Result."""
    by_name = {pattern.name: pattern for pattern in patterns}
    jobs = []
    for (reference, kind), generated in sets.items():
        sequence = by_name[reference].sequences[kind]
        true = Images(sequence.own_angles, reader(sequence.content, size))
        candidates = [Images(g.driving.sequences[kind].own_angles, reader(g.content, size)) for g in generated]
        jobs.append((reference, kind, generated, true, candidates))
    results = []
    with tqdm(total=sum(total_images(axis, *job[-2:]) for job in jobs), desc="scoring", unit="frame") as bar:
        for reference, kind, generated, true, candidates in jobs:
            scores = score_sets(extractor, axis, true, candidates, batch, bar.update)
            truth = digest_of(by_name[reference].sequences[kind].content, true.angles)
            for g, images, score in zip(generated, candidates, scores):
                digests = digest_of(g.content, images.angles), truth
                results.append(Result(g.method, reference, g.driving.name, kind, score, str(g.path), digests))
    return results


def digest_of(content, angles):
    """What a clip with angles is known by."""
    return hashlib.sha256(content.digest.encode() + angles.tobytes()).hexdigest()


def reader(content, size):
    """Function of frame numbers that reads a clip's frames at a size."""
    return partial(content.frames.read, size=size)


def total_images(axis, true, generated):
    """How many images ``score_sets`` describes."""
    return sum(task.images for task in plan_bins(axis, true.angles, [images.angles for images in generated]))


# Results


def write_results(args, output, results, patterns, names, size, arguments):
    """Write scores.jsonl, bins.jsonl, curves.png and table.md."""
    write_rows(output / "scores.jsonl", score_rows(args, results, size))
    write_rows(output / "bins.jsonl", bin_rows(args, results))
    draw_curves(output / "curves.png", results, names, args.features)
    parts = [score_table(args, results, names), difference_table(results, names)]
    parts.append(notes(args, results, patterns, size, arguments))
    with whole_file(output / "table.md") as aside:
        aside.write_text("\n".join(filter(None, parts)), **ENCODING)


def labels_of(result):
    """The columns that name a result."""
    return {
        "method": result.method,
        "reference": result.reference,
        "driving": result.driving,
        "sequence": result.kind,
    }


def score_rows(args, results, size):
    """A row a pair and sequence: its score (None without a bin), bins, images averaged and left out, and what it is of:
    the path of the frames (from --output) and the digests of these and of the truth."""
    versions = provenance()
    for result in results:
        score = result.score
        yield {
            **labels_of(result),
            args.features: score.mean if score.bins else None,
            "bins": len(score.bins),
            "true": sum(b.true for b in score.bins),
            "generated": sum(b.generated for b in score.bins),
            "dropped": score.dropped,
            "frames": os.path.relpath(result.frames, args.output),
            "digests": result.digests,
            "size": size,
            "bin_width": args.bin_width,
            "range": args.range,
            "versions": versions,
        }


def bin_rows(args, results):
    """A row a bin: the angle of its middle, its score, and how many images each side averaged."""
    for result in results:
        for b in result.score.bins:
            yield {
                **labels_of(result),
                "angle": b.angle,
                args.features: b.distance,
                "true": b.true,
                "generated": b.generated,
            }


def scores_by_pair(results, method, kind) -> dict[tuple[str, str], Score]:
    """(reference, driving) -> Score, of the pairs with a bin."""
    return {
        (result.reference, result.driving): result.score
        for result in results
        if (result.method, result.kind) == (method, kind) and result.score.bins
    }


def common_means(results, first, second, kind) -> tuple[list[float], list[float]]:
    """Two methods' scores of the pairs that both have, each the mean over the bins that both have.

    A method that loses its faces where they are hardest (``--features identity``) must not gain by that.
    """
    scores = [scores_by_pair(results, method, kind) for method in (first, second)]
    ours, theirs = [], []
    for pair in sorted(scores[0].keys() & scores[1].keys()):
        a, b = ({one.angle: one.distance for one in each[pair].bins} for each in scores)
        common = sorted(a.keys() & b.keys())
        if common:
            ours.append(float(np.mean([a[angle] for angle in common])))
            theirs.append(float(np.mean([b[angle] for angle in common])))
    return ours, theirs


def score_table(args, results, names):
    """The paper's table: methods by kinds of sequence, with bootstrap intervals over the pairs."""
    rows = []
    for name in names:
        means = [[score.mean for score in scores_by_pair(results, name, kind).values()] for kind in KINDS]
        rows.append([name, *map(_interval_cell, means)])
    if args.features == "lpips" and Path(args.lpips_weights or bundled.LPIPS_ALEXNET) == bundled.LPIPS_ALEXNET:
        for name, values in PAPER.items():
            rows.append([f"{name}, paper (its own recordings)", *(f"{value:.3f}" for value in values)])
    return markdown_table([args.features, *KINDS], rows)


def difference_table(results, names):
    """Every two methods, the mean difference over the pairs and bins that both have; empty with one method."""
    rows = []
    for a, b in itertools.combinations(names, 2):
        rows.append([f"{a} - {b}", *(_interval_cell(*common_means(results, a, b, kind)) for kind in KINDS)])
    return markdown_table(["difference", *KINDS], rows) if rows else ""


def _interval_cell(values: list[float], subtracted=None):
    if not values:
        return None
    interval = bootstrap_interval(values) if subtracted is None else paired_difference(values, subtracted)
    return f"{interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def notes(args, results, patterns, size, arguments):
    """What has to be known about the numbers."""
    scored = [result for result in results if result.score.bins]
    pairs = pairs_scored(scored)
    frames = {pattern.name: pattern.sequences for pattern in patterns}
    total = sum(frames[result.driving][result.kind].content.frames.length for result in results)
    used = sum(b.generated for result in scored for b in result.score.bins)
    dropped = sum(result.score.dropped for result in results)
    versions = ", ".join(f"{name} {version}" for name, version in provenance().items())
    lines = [
        "Lower is better; in brackets 95 % bootstrap intervals over pairs (too narrow: pairs share patterns).",
        f"{len(patterns)} patterns; pairs scored: {pairs}; {len(results) - len(scored)} results without a common bin.",
        f"Recordings: {args.data}",
        f"Bins of {args.bin_width:g} degrees, {-args.range:g} to {args.range:g}.",
        f"All frames are scored at {size}x{size} pixels; LPIPS depends on the size.",
        f"{used} of {total} generated frames were averaged in a bin that has true ones.",
    ]
    if args.features == "identity":
        lines.append(f"{dropped} true or generated frames, counted in every comparison, show no face and are left out.")
    lines += [f"Command: `python -m eval.bins {shlex.join(map(str, arguments))}`", f"Versions: {versions}"]
    return "".join(f"- {line}\n" for line in lines)


def pairs_scored(scored):
    """How many pairs of each kind have a score, method by method where they differ."""
    counts = {}
    for result in scored:
        counts.setdefault(result.method, Counter())[result.kind] += 1
    texts = {name: ", ".join(f"{kind} {count[kind]}" for kind in KINDS) for name, count in counts.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name} {text}" for name, text in texts.items())


def draw_curves(path, results, names, measure):
    """A panel a kind of sequence: the mean over pairs against the angle, one line a method."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(KINDS), sharey=True), KINDS):
        for name in names:
            angles, values = curve(results, name, kind)
            axes.plot(angles, values, marker=".", linewidth=1, label=name)
        axes.set_title(f"{kind} sequences", fontsize=10)
        axes.set_xlabel(f"{kind}, degrees")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(measure)
    figure.axes[0].legend(fontsize=8)
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=100)


def curve(results, method, kind):
    """Angles of the bins that any pair has, ascending, and the mean of the pairs that have them."""
    found = {}
    for result in results:
        if (result.method, result.kind) == (method, kind):
            for b in result.score.bins:
                found.setdefault(b.angle, []).append(b.distance)
    angles = sorted(found)
    return angles, [float(np.mean(found[angle])) for angle in angles]


if __name__ == "__main__":
    run_command(main)
