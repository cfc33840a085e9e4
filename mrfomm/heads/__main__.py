"""Render talking heads with exact angles: `python -m mrfomm.heads -o DIR`."""

import argparse
import os
import sys
from collections.abc import Sequence

from mrfomm.errors import UserError, command_parser, run_command

DETAILS = """
train and test write clips of random motion in FOMM's format, with labels in DIR/labels; paper writes the yaw, pitch and
roll sweeps of the paper's protocol with labels beside them. No person is in two of the three. A run that was stopped
goes on where it was when started again.
"""
# subjects, clips per subject, frames per clip
DEFAULTS = {"train": (250, 2, 64), "test": (20, 1, 64), "paper": (5, 1, 121)}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[OPTION ...] -o DIR", epilog=DETAILS)
    add = parser.add_argument
    add("-o", "--output", metavar="DIR", required=True, help="folder of the set; train and test may share one")
    add("--protocol", choices=DEFAULTS, default="train", help="what to render (%(default)s)")
    add("--subjects", type=int, metavar="N", help="number of people (train 250, test 20, paper 5)")
    add("--clips", type=int, metavar="N", help="clips of each person (train 2, test 1; paper: three for each light)")
    add("--frames", type=int, metavar="M", help="frames of each clip (train, test 64; paper 121)")
    add("--size", type=int, default=64, metavar="S", help="side of the frames in pixels (%(default)s)")
    add("--seed", type=int, default=0, help="the same seed makes the same set (%(default)s)")
    add("--assets", metavar="DIR", help="people with photographed skin: a folder of MakeHuman's assets (docs/heads.md)")
    add("--twins", action="store_true", help="beside each clip one of somebody else who moves alike, for data.twins")
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (%(default)s, one per core)")
    args = parser.parse_args(arguments)
    if args.protocol == "paper" and args.clips is not None:
        raise UserError("--clips: the paper's protocol has three clips for each illumination; leave it out")
    for name, default in zip(("subjects", "clips", "frames"), DEFAULTS[args.protocol]):
        if getattr(args, name) is None:
            setattr(args, name, default)
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    from mrfomm.heads.dataset import SetOptions, make_dataset  # here, as it may raise UserError: numba is an extra

    sizes = args.subjects, args.clips, args.frames, args.size
    options = SetOptions(args.protocol, *sizes, args.seed, args.assets, args.twins)
    clips = make_dataset(args.output, options, args.workers)
    print(f"{len(clips)} clips of {args.frames} frames, {args.size} x {args.size}, in {args.output}")
    return 0


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
