"""Score what reconstruct.py has rebuilt (the paper's L1D, AKD and AED): `python -m eval.reconstruction RESULT...`.

Every RESULT is a run folder of reconstruct.py, a row of the table. Without one, ./reconstruction is scored, and made
first from the bundled clips with the bundled model if it isn't there. Frames meet their truth by clip and frame number;
clips are known by their content.

::

    reconstruction-scores/
      table.md                 what is printed
      summary.jsonl            a line a method and measure: mean, interval, frames counted and dropped, versions
      METHOD/CLIP.jsonl        a line a frame; null where a measure can't be taken
"""

import hashlib
import itertools
import json
import math
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from eval import metrics
from eval.detectors import IDENTITY_BACKENDS, LANDMARK_BACKENDS, identity_backend, landmark_backend
from eval.lpips import load_lpips
from eval.results import (
    ENCODING,
    bootstrap_interval,
    markdown_table,
    paired_difference,
    provenance,
    read_rows,
    write_rows,
)
from mrfomm import bundled
from mrfomm.commands import reconstruct
from mrfomm.data.clips import Clip, open_clip
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.media.images import read_image
from mrfomm.provenance import clip_digest
from mrfomm.reenactment.animator import batches
from mrfomm.reenactment.reconstruction import Run, check_l1, read_run
from mrfomm.runtime.context import CONTEXTS, use_context
from mrfomm.store import locked, sha256_of, whole_file

DEFAULT_RESULT = "reconstruction"
PAPER_LANDMARKS, PAPER_IDENTITY = "face_alignment", "openface"
PAPER = {  # VoxCeleb1, arXiv 2202.10758: L1D, AKD, AED
    "FOMM": (0.043, 1.294, 0.140),
    "pseudo multi-reference FOMM": (0.033, 1.191, 0.093),
    "patch-wise": (0.031, 1.159, 0.084),
    "element-wise": (0.032, 1.156, 0.078),
}


class Method(NamedTuple):
    """A row of the table. run: Run; truth: clip name -> path; folder: where its scores go; digests: clip name -> digest
    of the true clip."""

    name: str
    run: Run
    truth: dict[str, Path]
    folder: Path
    digests: dict[str, str]


class Column(NamedTuple):
    """A measure: key in the rows, title in the table, back end or "" (numbers of two back ends have two columns)."""

    key: str
    title: str
    backend: str = ""


class Scored(NamedTuple):
    """A Method and its rows, clip name -> list of one dictionary a frame."""

    method: Method
    rows: dict[str, list[dict]]


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[OPTION ...] [RESULT ...]")
    add = parser.add_argument
    add("results", metavar="RESULT", nargs="*", help=f"run folders of reconstruct.py (./{DEFAULT_RESULT})")
    add("--method", metavar="NAME", nargs="+", help="names of the results in the table (their folders' names)")
    add("--data", metavar="DIR", help="where the true clips are, if not where they were (has test/)")
    add("--landmarks", metavar="NAMES", default="mediapipe", help=_names_help("landmarks for AKD", LANDMARK_BACKENDS))
    add("--identity", metavar="NAMES", default="dlib", help=_names_help("face embeddings for AED", IDENTITY_BACKENDS))
    add("--openface-weights", metavar="FILE", help="nn4.small2.v1.t7 of the OpenFace project, for --identity openface")
    add("--lpips-weights", metavar="FILE", default=bundled.LPIPS_ALEXNET, help="LPIPS weights (the bundled AlexNet)")
    add(
        "-o",
        "--output",
        metavar="DIR",
        default="reconstruction-scores",
        help="folder for tables and rows (%(default)s)",
    )
    add("--context", choices=CONTEXTS, default="auto", help="where LPIPS is computed (%(default)s)")
    add("--batch", type=int, default=8, metavar="N", help="frames per call of a network (%(default)s)")
    return parser.parse_args(arguments)


def _names_help(measure, known):
    return f"{measure}, separated by commas: {', '.join(known)}, or none (%(default)s)"


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: at least 1")
    measures = Measures(args)
    methods = open_methods(args)
    command = shlex.join(map(str, sys.argv[1:] if arguments is None else arguments))
    with locked(args.output, make=True):
        with use_context(args.context):
            scored = score_methods(methods, measures, args.batch)
        table = report(scored, measures.columns, f"python -m eval.reconstruction {command}".strip())
        write_rows(Path(args.output) / "summary.jsonl", summary_rows(scored, measures.columns))
        with whole_file(Path(args.output) / "table.md") as aside:
            aside.write_text(table, **ENCODING)
    print(table, end="")
    return 0


# What is scored


def open_methods(args):
    """A Method for every result; the default one is made if it isn't there.

    Raises:
        UserError: no reconstruction, an unfinished one, no truth for it, or results that can't be compared.
    """
    if not args.results and not Path(DEFAULT_RESULT).exists():
        print(f"no result given: rebuilding the bundled clips into ./{DEFAULT_RESULT}", file=sys.stderr)
        reconstruct.main(["--output", DEFAULT_RESULT, "--context", args.context])
    folders = [Path(folder) for folder in args.results or [DEFAULT_RESULT]]
    names = args.method or [os.path.basename(os.path.realpath(folder)) for folder in folders]
    if len(names) != len(folders):
        raise UserError(f"--method: {len(names)} names for {len(folders)} results; give one for each")
    repeated = [name for name in names if names.count(name) > 1 or name in ("", ".", "..") or "/" in name]
    if repeated:
        raise UserError(f"--method {repeated[0]!r}: every result needs a name of its own that can be a folder's")
    methods = [_open_method(name, folder, args) for name, folder in zip(names, folders)]
    sizes = {method.run.settings.image_size for method in methods}
    if len(sizes) > 1:
        raise UserError(f"results of {' and '.join(map(str, sorted(sizes)))} pixels: score them apart from each other")
    for first, second in itertools.combinations(methods, 2):
        check_same_clips(first, second)
    return methods


def check_same_clips(first, second):
    """Refuse two Methods if clips of one name are not the same clip: their frames are no pairs."""
    for clip in sorted(first.digests.keys() & second.digests.keys()):
        if first.digests[clip] != second.digests[clip]:
            raise UserError(
                f"{first.truth[clip]} and {second.truth[clip]} are two clips of one name: {first.name} and "
                f"{second.name} are results of different data; score them apart from each other"
            )


def _open_method(name, folder, args):
    run = read_run(folder)
    if len(run.rows) != run.clips:
        raise UserError(f"{folder}: {len(run.rows)} of {run.clips} clips; run the same reconstruct.py again to finish")
    if not run.rows:
        raise UserError(f"{folder}: holds no clip; make it again with reconstruct.py")
    sources = {row.clip: Path(row.source) for row in run.rows}
    if args.data:
        sources = {clip: Path(args.data) / "test" / source.name for clip, source in sources.items()}
    digests = {row.clip: _digest_of_truth(sources[row.clip], row, folder) for row in run.rows}
    return Method(name, run, sources, Path(args.output) / name, digests)


def _digest_of_truth(source, row, folder):
    if not source.exists():
        raise UserError(f"{source}: this true clip of {folder} is missing; name the data's folder with --data")
    digest = clip_digest(source)
    if digest != (row.truth or digest):
        raise UserError(f"{source}: not the clip that {folder} was made of; reconstruct again, or see --data")
    return digest


# Measuring


class Measures:
    """All measures of one frame against its truth, with the back ends that were asked for.

    Raises:
        UserError: an unknown back end, a missing extra, or unreadable weights.
    """

    def __init__(self, args):
        landmarks = _chosen(args.landmarks, LANDMARK_BACKENDS, "--landmarks")
        identity = _chosen(args.identity, IDENTITY_BACKENDS, "--identity")
        if args.openface_weights and PAPER_IDENTITY not in identity:
            raise UserError("--openface-weights: only for --identity openface; leave it out")
        self._landmarks = [landmark_backend(name) for name in landmarks]
        self._identity = [
            identity_backend(name, args.openface_weights if name == PAPER_IDENTITY else None) for name in identity
        ]
        self._lpips = load_lpips(args.lpips_weights)
        self.columns = _columns(landmarks, identity, self._lpips.backbone.name)
        self.fingerprint = {
            "columns": [column.key for column in self.columns],
            "weights": [sha256_of(path) for path in (args.lpips_weights, args.openface_weights) if path],
            "versions": provenance(),
        }
        self._found = {}  # (function, digest of a picture) -> what it found there

    def begin_clip(self):
        """Forget what was found in true frames; until the next call, back ends see each of them once."""
        self._found.clear()

    def __call__(self, truth, pictures):
        """uint8 [N,S,S,3] twice -> list of N dictionaries, column key -> number or None."""
        perceptual = self._lpips(truth, pictures)
        return [self._frame(a, b, float(lpips)) for a, b, lpips in zip(truth, pictures, perceptual)]

    def _frame(self, truth, picture, lpips):
        a, b = truth / 255, picture / 255
        psnr = metrics.psnr(a, b)
        row = {"l1": metrics.l1(a, b), "psnr": psnr if math.isfinite(psnr) else None}
        row.update(ssim=metrics.ssim(a, b), lpips=lpips)
        for backend in self._landmarks:
            points = [self._in_truth(backend.landmarks, truth), backend.landmarks(picture)]
            if all(found is not None for found in points):
                points = [metrics.at_akd_size(found, len(truth)) for found in points]
            row.update(_pair(f"akd_{backend.name}", points, metrics.akd))
            row.update(_pair(f"akd_euclidean_{backend.name}", points, metrics.akd_euclidean))
        for backend in self._identity:
            vectors = [self._in_truth(backend.embed, truth), backend.embed(picture)]
            row.update(_pair(f"aed_{backend.name}", vectors, metrics.aed))
            row.update(_pair(f"aed_euclidean_{backend.name}", vectors, metrics.aed_euclidean))
        return row

    def _in_truth(self, find, truth):
        key = find, hashlib.sha256(truth.tobytes()).digest()
        if key not in self._found:
            self._found[key] = find(truth)
        return self._found[key]


def _pair(key, found, measure):
    """The measure of what was found in two images, or None if nothing was found in one."""
    return {key: None if any(part is None for part in found) else measure(*found)}


def _chosen(text, known, option):
    names = [] if text == "none" else text.split(",")
    unknown = [name for name in names if name not in known or names.count(name) > 1]
    if unknown:
        raise UserError(f"{option} {text}: give {', '.join(known)}, once each with commas between, or none")
    return names


def _columns(landmarks, identity, backbone):
    """Columns in the order of the table."""
    columns = [Column("l1", "L1D")]
    columns += [Column(f"akd_{name}", f"AKD ({name})", name) for name in landmarks]
    columns += [Column(f"aed_{name}", f"AED ({name})", name) for name in identity]
    columns += [Column("psnr", "PSNR"), Column("ssim", "SSIM"), Column("lpips", f"LPIPS ({backbone})", backbone)]
    columns += [Column(f"akd_euclidean_{name}", f"Euclidean AKD ({name})", name) for name in landmarks]
    columns += [Column(f"aed_euclidean_{name}", f"Euclidean AED ({name})", name) for name in identity]
    return columns


def score_methods(methods, measures, batch):
    """Score every clip of every method, or take the scores of an earlier run with the same measures.

    Clip by clip, as the methods share its truth. A clip's scores are on the disk before the next one begins, and stay
    there if that one fails.

    Returns:
        list of Scored, in the order of the methods.

    Raises:
        UserError: a frame or its truth is missing, damaged or of another size, or not what the manifest says.
    """
    for method in methods:
        settings, rows = method.run.settings._asdict(), {row.clip: (row.digest, row.l1) for row in method.run.rows}
        made_of = {"run": settings, "frames": rows, "truth": method.digests}
        _prepare_folder(method.folder, {**measures.fingerprint, **made_of})
    scored = [Scored(method, {}) for method in methods]
    jobs = sorted(((one, row) for one in scored for row in one.method.run.rows), key=lambda job: job[1].clip)
    with tqdm(total=len(jobs), desc="scoring", unit="clip") as progress:
        for clip, group in itertools.groupby(jobs, key=lambda job: job[1].clip):
            measures.begin_clip()
            for one, row in group:
                one.rows[clip] = _scores_of(one.method, row, measures, batch)
                progress.update()
    return scored


def _scores_of(method, row, measures, batch):
    """The scores of a ClipRow: those on the disk, or new ones, which are then there."""
    path = method.folder / f"{row.clip}.jsonl"
    if not path.exists():
        write_rows(path, list(score_clip(method, row, measures, batch)))
    return read_rows(path)


def _prepare_folder(folder, fingerprint):
    """A folder for scores with this fingerprint; scores with another one are removed from it."""
    path = folder / "measured.json"
    text = json.dumps(fingerprint, indent=1, sort_keys=True) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    if folder.exists() and not path.exists():
        raise UserError(f"{folder}: is there already and holds no scores; choose another --output")
    if path.exists():
        print(f"{folder}: its scores are of another result, back end or version, and are replaced", file=sys.stderr)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)  # fails if anything is left
    except OSError as error:
        raise UserError(f"{folder}: can't be written ({error.strerror}); choose another --output") from error
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def score_clip(method, row, measures, batch):
    """Yield a dictionary for every frame of a ClipRow: clip, frame, and a number or None for every column."""
    size = method.run.settings.image_size
    path = method.truth[row.clip]
    truth = open_clip(Clip(path, row.clip, row.clip))
    last = max(frame.frame for frame in row.frames)
    if last >= truth.length:
        raise UserError(f"{path}: {truth.length} frames, but {row.clip} was rebuilt to frame {last}; see --data")
    for frames in batches(row.frames, batch):
        pictures = np.stack([_read_picture(method.run.folder / frame.file, size) for frame in frames])
        true = truth.read([frame.frame for frame in frames], size)
        for frame, values in zip(frames, measures(true, pictures)):
            check_l1(values["l1"], frame, method.run.folder, path)
            yield {"clip": row.clip, "frame": frame.frame, **values}


def _read_picture(path, size):
    picture = read_image(path)
    if picture.shape != (size, size, 3):
        height, width = picture.shape[:2]
        raise UserError(f"{path}: {width}x{height} pixels, the others have {size}x{size}; reconstruct again")
    return picture


# Reporting


def clip_means(scored, key) -> tuple[list[float], list[int]]:
    """Mean over the counted frames of every clip that has some, and their number."""
    counted = [[row[key] for row in rows if row[key] is not None] for rows in scored.rows.values()]
    return [float(np.mean(values)) for values in counted if values], [len(values) for values in counted if values]


def paired_means(first, second, key):
    """Means over the frames counted by both, for every clip: two lists of means and one of numbers of frames."""
    ours, theirs, counts = [], [], []
    for clip in sorted(set(first.rows) & set(second.rows)):
        others = {row["frame"]: row[key] for row in second.rows[clip]}
        pairs = [(row[key], others.get(row["frame"])) for row in first.rows[clip]]
        pairs = [pair for pair in pairs if None not in pair]
        if pairs:
            mean = np.mean(pairs, axis=0)
            ours.append(float(mean[0]))
            theirs.append(float(mean[1]))
            counts.append(len(pairs))
    return ours, theirs, counts


def summary_rows(scored, columns):
    """A dictionary for every method and column: the mean over frames, its interval over clips, and what it rests on."""
    versions = provenance()
    for one in scored:
        settings = one.method.run.settings._asdict()
        for column in columns:
            means, counts = clip_means(one, column.key)
            interval = bootstrap_interval(means, counts) if means else None
            yield {
                "method": one.method.name,
                "measure": column.key,
                "backend": column.backend,
                **(interval._asdict() if interval else dict.fromkeys(("mean", "low", "high"))),
                "clips": len(means),
                "frames": sum(counts),
                "dropped": sum(map(len, one.rows.values())) - sum(counts),
                "settings": settings,
                "versions": versions,
            }


def report(scored, columns, command):
    """The tables and what has to be known about them, in Markdown."""
    parts = [score_table(scored, columns), difference_table(scored, columns), notes(scored, columns, command)]
    return "\n".join(part for part in parts if part)


def score_table(scored, columns):
    """Methods by measures, with the paper's rows; its AKD and AED stand in the columns of its own back ends."""
    paper = [
        Column("l1", "L1D"),
        Column(f"akd_{PAPER_LANDMARKS}", f"AKD ({PAPER_LANDMARKS})", PAPER_LANDMARKS),
        Column(f"aed_{PAPER_IDENTITY}", f"AED ({PAPER_IDENTITY})", PAPER_IDENTITY),
    ]
    shown = [*columns, *(column for column in paper if column not in columns)]
    rows = []
    for one in scored:
        name = one.method.name + _clips_if_unequal(scored, len(one.rows))
        rows.append([name, *(_cell(*clip_means(one, c.key)) if c in columns else None for c in shown)])
    for name, values in PAPER.items():
        known = {column: f"{value:.3f}" for column, value in zip(paper, values)}
        rows.append([f"{name}, paper (VoxCeleb1)", *(known.get(column) for column in shown)])
    return markdown_table(["method", *(column.title for column in shown)], rows)


def _clips_if_unequal(scored, count):
    """A number of clips for the name of a row, if rows are not all of the same clips."""
    return f" ({_counted(count, 'clip')})" if len({frozenset(one.rows) for one in scored}) > 1 else ""


def difference_table(scored, columns):
    """Every two methods: the mean difference over the frames that both have; empty with one method."""
    rows = []
    for first, second in itertools.combinations(scored, 2):
        cells = []
        for column in columns:
            ours, theirs, counts = paired_means(first, second, column.key)
            cells.append(_interval(paired_difference(ours, theirs, counts), len(ours)) if ours else None)
        common = _clips_if_unequal(scored, len(first.rows.keys() & second.rows.keys()))
        rows.append([f"{first.method.name} - {second.method.name}{common}", *cells])
    return markdown_table(["difference", *(column.title for column in columns)], rows) if rows else ""


def _cell(means, counts):
    return _interval(bootstrap_interval(means, counts), len(means)) if means else None


def _interval(interval, clips):
    """One clip has no interval."""
    return f"{interval.mean:.4f}" + (f" [{interval.low:.4f}, {interval.high:.4f}]" if clips > 1 else "")


def notes(scored, columns, command):
    """What has to be known about the numbers, as a list."""
    size = scored[0].method.run.settings.image_size
    lines = [
        "Means over frames; in brackets 95 % bootstrap intervals over clips (one clip has none).",
        "The paper's numbers are of another data set, VoxCeleb1 at 256 pixels.",
        f"Images of {size} pixels. AKD is the mean difference of landmark coordinates in pixels at 256"
        + (f", landmarks scaled by 256/{size}" if size != metrics.AKD_SIZE else "")
        + "; AED the sum of squared differences.",
        "PSNR and SSIM (Wang et al. 2004, mean over colour channels) are higher for better frames, all others lower.",
    ]
    if _clips_if_unequal(scored, 0):
        lines.append("Rows are of different clips: only differences, over the clips that both have, compare methods.")
    for one in scored:
        lines += _notes_of_method(one, columns)
    versions = ", ".join(f"{name} {version}" for name, version in provenance().items())
    lines += [f"Command: `{command}`", f"Versions: {versions}"]
    return "".join(f"- {line}\n" for line in lines)


def _notes_of_method(one, columns):
    settings, name = one.method.run.settings, one.method.name
    clips, total = len(one.rows), sum(map(len, one.rows.values()))
    made = "per frame the best by L1D of results from each of" if settings.pseudo else "from"
    folder = next(iter(one.method.truth.values())).parent
    yield f"{name}: {_counted(total, 'frame')} of {_counted(clips, 'clip')} in {folder}, {made} " + (
        f"{_counted(settings.references, 'reference')}, fusion {settings.fusion}, model {settings.weights[:12]}."
    )
    for column in columns:
        dropped = total - sum(clip_means(one, column.key)[1])
        if dropped and "euclidean" not in column.key:  # these share their frames with AKD and AED
            reason = "equal to the truth" if column.key == "psnr" else "no face in the true or the rebuilt frame"
            yield f"{name}, {column.title}: {dropped} of {total} frames dropped ({reason})."


def _counted(number, noun):
    return f"{number} {noun}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    run_command(main)
