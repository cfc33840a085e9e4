"""The film at the top of README: `python -m scripts.make_film FOMM=CKPT ours=CKPT -o docs/film.webp`.

Three references, the driving head and what each model makes of it, in columns, over a full turn of the head: yaw to
both sides and back, then pitch, from recordings as eval.bins takes them. Another person drives, in motion relative to
that person's frontal frame. A model trained with one reference gets the frontal one. Models and recordings may have any
size: cells are as large as the largest model's pictures, and at least 128 pixels. The film loops.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from eval.generation import FRONTAL, SIDES, start_frame
from eval.labels import pattern_folders, read_patterns
from mrfomm import bundled
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.media.provenance import describe
from mrfomm.media.writing import open_sink
from mrfomm.store import whole_file
from scripts.models import POSES, parse_model, person_of, references_of
from scripts.sheets import CELL, degrees, sheet

MODELS = (f"FOMM={bundled.MODELS['fomm']}", f"ours={bundled.MODELS['patch']}")
TURNS = {"yaw": (60, 120), "pitch": (22, 60)}  # degrees to each side, frames for there and back
FPS = 25


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    usage, layout = "[OPTION ...] -o OUT [NAME=CKPT ...]", argparse.RawDescriptionHelpFormatter
    parser = command_parser(__doc__, usage, description=__doc__, formatter_class=layout)
    add = parser.add_argument
    add("models", metavar="NAME=CKPT", nargs="*", default=MODELS, help="models and their names (the bundled ones)")
    add("--data", metavar="DIR", default=bundled.BENCHMARK, help="recordings with angles (the bundled ones)")
    add("--subject", metavar="PATTERN", help="folder in it of the person shown (the first)")
    add("--driver", metavar="PATTERN", help="folder in it of the person who drives (the first of another person)")
    add("--quality", type=int, default=80, help="quality of a .webp, 0 to 100 (%(default)s)")
    add("-o", "--output", required=True, metavar="OUT", type=Path, help="film to write, .webp, .gif or .mp4")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    if args.output.suffix not in (".webp", ".gif", ".mp4"):
        raise UserError(f"{args.output}: name a .webp, .gif or .mp4")
    if not 0 <= args.quality <= 100:
        raise UserError(f"--quality {args.quality}: give a number from 0 to 100")
    subject, driver = read_patterns(chosen_folders(pattern_folders(args.data), args.subject, args.driver))
    models = [parse_model(text) for text in args.models]
    frames = film(models, subject, driver)
    sources = subject.sequences["yaw"].path, driver.sequences["yaw"].path
    write(frames, args.output, args.quality, describe([sources[0]], sources[1], models[-1].engine.digest()))
    size = f"{frames[0].shape[1]}x{frames[0].shape[0]} pixels, {args.output.stat().st_size / 1e6:.2f} MB"
    print(f"{args.output}: {driver.name} drives {subject.name}, {len(frames)} frames, {size}")
    return 0


def chosen_folders(folders, subject, driver):
    """The two patterns' folders, subject and driver, by name; None: see the options."""
    by_name = {folder.name: folder for folder in folders}
    subject = subject or folders[0].name
    if subject not in by_name:
        raise UserError(f"--subject {subject}: no such pattern; there are {', '.join(by_name)}")
    others = [name for name in by_name if person_of(name) != person_of(subject)]
    if not others or (driver and driver not in others):
        found = f"there are {', '.join(others)}" if others else f"all patterns are of {person_of(subject)}"
        raise UserError(f"--driver {driver or ''}: needs a pattern of another person; {found}")
    return by_name[subject], by_name[driver or others[0]]


def film(models, subject, driver):
    """The labelled frames uint8 [H,W,3], a list."""
    columns = [degrees(yaw, "reference") for yaw in (FRONTAL, *SIDES)] + ["driving head"] + [m.name for m in models]
    still = references_of(subject, max(CELL, *(model.engine.size for model in models)))
    turns = [turned(models, subject, driver.sequences[kind]) for kind in TURNS if kind in driver.sequences]
    return [sheet([[*still, *row]], columns) for turn in turns for row in turn]


def turned(models, subject, sequence):
    """The driving head and what each model makes of it, frame by frame, over one turn of a recording."""
    numbers, start = turn(sequence.own_angles, *TURNS[sequence.kind]), start_frame(sequence, POSES)
    watched = tqdm(models, desc=f"drawing the turn in {sequence.kind}", unit="model")
    results = [model.follow(references_of(subject, model.engine.size), sequence, start, numbers) for model in watched]
    return zip(sequence.content.frames.read(numbers, max(CELL, *(len(frames[0]) for frames in results))), *results)


def turn(angles, reach, count):
    """Numbers of the frames at angles [N] nearest to 0, ``reach``, 0, ``-reach`` and 0 again: slow at the ends."""
    wanted = reach * np.sin(2 * np.pi * np.arange(count) / count)
    return [int(number) for number in np.abs(angles - wanted[:, None]).argmin(axis=1)]


def write(frames, output, quality, comment):
    """A .webp, or with a comment what ``open_sink`` writes, of frames uint8 [H,W,3]."""
    if output.suffix != ".webp":
        with open_sink(output, FPS, comment=comment) as sink:
            for frame in frames:
                sink.write(frame)
        return
    first, *others = map(Image.fromarray, frames)
    with whole_file(output) as aside:
        first.save(aside, save_all=True, append_images=others, duration=1000 // FPS, loop=0, quality=quality, method=4)


if __name__ == "__main__":
    run_command(main)
