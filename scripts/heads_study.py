"""Questions to models trained on rendered heads: `python -m scripts.heads_study sheet NAME=CKPT ... -o sheet.png`.

``sheet`` draws what every model makes of driving poses at yaw -60 to 60, the subject's own and another person's,
``angles`` what each makes of every pattern driven by another person, in steps of 15 degrees; ``counts`` measures L1D
against the number of references, and ``choices`` which references help: L1D against the driving yaw for several sets of
reference poses. A model is given as NAME=CKPT, or NAME=CKPT:MODE to fuse in another mode (mean, occlusion), or
NAME=CKPT:pseudo for the best of the single-reference results (``counts`` and ``choices``). One trained with one
reference and given without a mode gets one in ``sheet`` and ``angles``.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from eval.generation import FRONTAL, SIDES, nearest_frames, start_frame
from eval.labels import pattern_folders, read_patterns
from eval.results import bootstrap_interval, write_rows
from mrfomm import bundled
from mrfomm.data.clips import find_clips, open_clip
from mrfomm.data.sampling import reference_indices
from mrfomm.errors import command_parser, run_command
from mrfomm.reenactment.motion import Transfer
from mrfomm.reenactment.reconstruction import rebuild, rebuilders
from mrfomm.store import whole_file
from scripts.models import POSES, parse_model, person_of, references_of
from scripts.sheets import degrees, sheet, stacked

YAWS = (-60, -40, -20, 0, 20, 40, 60)  # degrees, of sheet
STEPS = tuple(range(-60, 61, 15))  # of angles
COLOURS = 160
BATCH = 4
CHOICES = {  # yaw of the references, degrees
    "frontal alone": (0,),
    "three similar": (-4, 0, 4),
    "front and sides": (0, -30, 30),
    "front and far sides": (0, -60, 60),
    "one side twice": (0, 30, 60),
}


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


# sheet, angles


def draw_sheet(models, data, output):
    """A block for every person, of the first pattern."""
    patterns = read_patterns(pattern_folders(data or bundled.BENCHMARK))
    people = list({person_of(pattern.name): pattern for pattern in reversed(patterns)}.values())[::-1]  # their first
    columns = [degrees(yaw, "ref.") for yaw in (FRONTAL, *SIDES)] + [degrees(yaw, "yaw") for yaw in YAWS]
    save_sheet([block(models, pattern, another(pattern, people)) for pattern in people], columns, output)


def block(models, pattern, driving):
    """Rows (name, pictures) of one subject: its own head as the driving one, then another's."""
    size = models[0].engine.size
    truth = list(frames_at(pattern.sequences["yaw"], YAWS, size))
    yield f"{pattern.name}", [*references_of(pattern, size), *truth]
    blank = [np.full((size, size, 3), 255, np.uint8)] * 3
    for model in models:
        own = model.animate(references_of(pattern, model.engine.size), truth, Transfer("absolute"))
        yield f"{model.name},\nby itself", [*blank, *own]
    yield f"{driving.name}\ndrives", [*blank, *frames_at(driving.sequences["yaw"], YAWS, size)]
    for model in models:
        yield f"{model.name},\nby {driving.name}", [*blank, *moved(model, pattern, driving, YAWS)]


def draw_angles(models, data, output):
    """A block for every pattern: its frontal picture and the yaw of a driving person, and each model's result."""
    patterns = read_patterns(pattern_folders(data or bundled.BENCHMARK))
    blocks = [driven(models, pattern, another(pattern, patterns)) for pattern in patterns]
    save_sheet(blocks, ["reference", *(degrees(yaw, "yaw") for yaw in STEPS)], output)


def driven(models, pattern, driving):
    """Rows (name, pictures) of one pattern, driven by another person."""
    size = models[0].engine.size
    front = references_of(pattern, size)[0]
    yield f"{pattern.name}\nby {driving.name}", [front, *frames_at(driving.sequences["yaw"], STEPS, size)]
    for model in models:
        yield model.name, [np.full_like(front, 255), *moved(model, pattern, driving, STEPS)]


def another(pattern, patterns):
    """The next pattern of another person, after the last the first."""
    start = patterns.index(pattern)
    return next(other for other in patterns[start:] + patterns if person_of(other.name) != person_of(pattern.name))


def moved(model, pattern, driving, yaws):
    """What a model makes of a pattern, driven to yaws by another person."""
    sequence = driving.sequences["yaw"]
    references = references_of(pattern, model.engine.size)
    return model.follow(references, sequence, start_frame(sequence, POSES), nearest_frames(sequence, yaws, POSES))


def frames_at(sequence, yaws, size):
    """The frames of a yaw sequence nearest to some yaws, uint8 [N,S,S,3]; UserError if one isn't near enough."""
    return sequence.content.frames.read(nearest_frames(sequence, yaws, POSES), size)


def save_sheet(blocks, columns, output):
    """A picture of blocks of rows (name, pictures); a .png in few colours: a quarter of the bytes."""
    sheets = [sheet([row for _, row in rows], columns, [name for name, _ in rows]) for rows in map(list, blocks)]
    picture = Image.fromarray(stacked(sheets))
    with whole_file(output) as aside:
        if output.suffix == ".png":
            picture.quantize(COLOURS).save(aside, optimize=True)
        else:
            picture.save(aside, quality=90)


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
    draw(rows, output, "number of references", "clips")


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
                where = " ".join(f"{pose:+d}" if pose else "0" for pose in poses)
                rows.append({"method": f"{model.name}, {choice} ({where})", "x": yaw, **interval._asdict()})
    write_rows(output.with_suffix(".jsonl"), rows)
    draw(rows, output, "driving yaw, degrees", "patterns")


def distances_by_yaw(model, sequence, poses):
    """Middle of a bin of 10 degrees -> mean L1D of a sweep rebuilt from its frames at some poses."""
    angles, frames, size = sequence.own_angles, sequence.content.frames, model.engine.size
    distances = rebuilt(model, frames_at(sequence, poses, size), frames.read(range(frames.length), size))
    bins = np.floor(angles / 10 + 0.5) * 10  # np.round() makes bins of 9 and 11 whole degrees by turns
    return {int(yaw): float(distances[bins == yaw].mean()) for yaw in np.unique(bins)}


def draw(rows, output, x, units):
    """A curve with its interval for every method."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["method"] for row in rows):
        points = [row for row in rows if row["method"] == name]
        where = [row["x"] for row in points]
        axes.plot(where, [row["mean"] for row in points], marker="o", markersize=3, label=name)
        axes.fill_between(where, [row["low"] for row in points], [row["high"] for row in points], alpha=0.12)
    axes.set_title(f"Lines: means over {units}; bands: 95 % intervals. Lower is better.", fontsize=9)
    axes.set(xlabel=x, ylabel="L1D: mean difference of pixels in [0,1]")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with whole_file(output) as aside:
        figure.savefig(aside, dpi=120)


QUESTIONS = {"sheet": draw_sheet, "angles": draw_angles, "counts": counts, "choices": choices}

if __name__ == "__main__":
    run_command(main)
