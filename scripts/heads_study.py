"""Questions to models trained on rendered heads: `python scripts/heads_study.py sheet NAME=CKPT ... -o sheet.png`.

``sheet`` draws what every model makes of driving poses at yaw -60 to 60, ``counts`` measures L1D against the number of
references, and ``choices`` which references help: L1D against the driving yaw for several sets of reference poses.
A model is given as NAME=CKPT, or NAME=CKPT:MODE to fuse in another mode (mean, occlusion), or NAME=CKPT:pseudo for the
best of the single-reference results. One trained with one reference and given without a mode gets one in ``sheet``.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from eval.generation import Poses, reference_frames, start_frame
from eval.labels import pattern_folders, read_patterns
from eval.results import bootstrap_interval, write_rows
from mrfomm import bundled
from mrfomm.config import load_config
from mrfomm.data.clips import find_clips, open_clip
from mrfomm.data.sampling import reference_indices
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.model import load_model
from mrfomm.model.checkpoint import find_checkpoint
from mrfomm.reenactment.backends import Engine, open_engine
from mrfomm.reenactment.motion import Transfer
from mrfomm.reenactment.pictures import tile
from mrfomm.reenactment.reconstruction import rebuild, rebuilders
from mrfomm.reenactment.reenactor import Reenactor

YAWS = (-60, -40, -20, 0, 20, 40, 60)
POSES = Poses(tolerance=5, allow_missing=False)
BATCH = 4
CHOICES = {  # yaw of the references, degrees
    "frontal alone": (0,),
    "three similar": (-4, 0, 4),
    "front and sides": (0, -30, 30),
    "front and far sides": (0, -60, 60),
    "one side twice": (0, 30, 60),
}


class Model(NamedTuple):
    """One of the command line.

    engine: Engine. single: takes one reference. pseudo: the best of the single-reference results.
    """

    name: str
    engine: Engine
    single: bool
    pseudo: bool


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = command_parser(
        __doc__,
        "[OPTION ...] -o OUT QUESTION NAME=CKPT ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("question", choices=QUESTIONS, help="see above")
    add("models", metavar="NAME=CKPT", nargs="+", help="models and their names")
    add("--data", metavar="DIR", help="data of `python -m mrfomm.heads` (sheet, choices: the bundled ones)")
    add("-o", "--output", required=True, help="picture; counts and choices also write rows beside it, as .jsonl")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    QUESTIONS[args.question]([parse_model(text) for text in args.models], args.data, Path(args.output))
    print(args.output)
    return 0


def parse_model(text):
    """NAME=CKPT[:MODE] -> Model."""
    name, separator, rest = text.partition("=")
    if not separator:
        raise UserError(f"{text}: give models as NAME=CKPT or NAME=CKPT:MODE")
    path, _, mode = rest.partition(":")
    model = load_model(path, mode if mode not in ("", "pseudo") else None)
    single = not mode and load_config(find_checkpoint(path) / "config.yaml").data.num_references == 1
    return Model(name, open_engine(model), single, mode == "pseudo")


# sheet


def sheet(models, data, output):
    """A block for every subject: its references; the driving head's poses; the subject's own; each model's result."""
    patterns = read_patterns(pattern_folders(data or bundled.BENCHMARK))
    firsts = list({pattern.name.partition("_")[0]: pattern for pattern in reversed(patterns)}.values())[::-1]
    rows = []
    for i, pattern in enumerate(firsts):
        rows += [*block(models, pattern, firsts[(i + 1) % len(firsts)]), []]
    Image.fromarray(tile(rows[:-1])).save(output)


def block(models, pattern, driving):
    """Rows of pictures of one subject (its own head as the driving one), then driven by another."""
    size = models[0].engine.size
    own, other = pattern.sequences["yaw"], driving.sequences["yaw"]
    references = own.content.frames.read(reference_frames(pattern, 3, POSES), size)
    blank = np.full_like(references[0], 255)
    truth = frames_at(own, size)
    rows = [[*references, *truth]]
    rows += [[blank] * 3 + result(model, references, truth, Transfer("absolute")) for model in models]
    rows += [[blank] * 3 + list(frames_at(other, size))]
    initial = other.content.frames.read([start_frame(other, POSES)], size)
    moved, transfer = [*initial, *rows[-1][3:]], Transfer(start=0, anchor=0)
    rows += [[blank] * 3 + result(model, references, moved, transfer)[1:] for model in models]
    return rows


def result(model, references, driving, transfer):
    """Pictures of one model."""
    return list(Reenactor(model.engine, references[:1] if model.single else references).animate(driving, transfer))


def frames_at(sequence, size):
    """The frames of a yaw sequence nearest to YAWS."""
    numbers = [int(np.abs(sequence.own_angles - yaw).argmin()) for yaw in YAWS]
    return sequence.content.frames.read(numbers, size)


# counts


def counts(models, data, output):
    """L1D of the test clips with 1 to 6 references, evenly over each clip, means over clips with intervals."""
    clips = find_clips(Path(data or bundled.SAMPLE_DATA) / "test")
    rows = []
    jobs = [(model, count) for model in models for count in range(1, 7)]
    for model, count in tqdm(jobs, desc="counts", unit="run"):
        distances = [clip_distance(model, open_clip(clip), count) for clip in clips]
        rows.append({"method": model.name, "x": count, **bootstrap_interval(distances)._asdict()})
    write_rows(output.with_suffix(".jsonl"), rows)
    draw(rows, output, "references", "L1D, mean over clips, 95 %")


def clip_distance(model, clip, count):
    """Mean L1D over all frames of a clip."""
    references = clip.read([int(i) for i in reference_indices(clip.length, count)], model.engine.size)
    return float(rebuilt(model, references, clip.read(range(clip.length), model.engine.size)).mean())


def rebuilt(model, references, truth):
    """L1D of a model's pictures of frames."""
    return rebuild(rebuilders(model.engine, references, BATCH, model.pseudo), truth)[1]


# choices


def choices(models, data, output):
    """L1D of all patterns' yaw sweeps, by bins of 10 degrees, for each of CHOICES; one line per model and choice."""
    patterns = read_patterns(pattern_folders(data or bundled.BENCHMARK))
    rows = []
    for model in models:
        for choice, poses in tqdm(CHOICES.items(), desc=model.name, unit="choice"):
            binned = [distances_by_yaw(model, pattern.sequences["yaw"], poses) for pattern in patterns]
            for yaw in binned[0]:
                interval = bootstrap_interval([one[yaw] for one in binned])
                rows.append({"method": f"{model.name}, {choice}", "x": yaw, **interval._asdict()})
    write_rows(output.with_suffix(".jsonl"), rows)
    draw(rows, output, "driving yaw, degrees", "L1D, mean over patterns, 95 %")


def distances_by_yaw(model, sequence, poses):
    """Middle of a bin of 10 degrees -> mean L1D of a sweep rebuilt from its frames at some poses."""
    angles = sequence.own_angles
    numbers = [int(np.abs(angles - yaw).argmin()) for yaw in poses]
    frames = sequence.content.frames
    size = model.engine.size
    distances = rebuilt(model, frames.read(numbers, size), frames.read(range(frames.length), size))
    bins = np.floor(angles / 10 + 0.5) * 10  # np.round() makes bins of 9 and 11 whole degrees by turns
    return {int(yaw): float(distances[bins == yaw].mean()) for yaw in np.unique(bins)}


def draw(rows, output, x, y):
    """A curve with its interval for every method."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["method"] for row in rows):
        points = [row for row in rows if row["method"] == name]
        where = [row["x"] for row in points]
        axes.plot(where, [row["mean"] for row in points], marker="o", markersize=3, label=name)
        axes.fill_between(where, [row["low"] for row in points], [row["high"] for row in points], alpha=0.12)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(output, dpi=120)


QUESTIONS = {"sheet": sheet, "counts": counts, "choices": choices}

if __name__ == "__main__":
    run_command(main)
