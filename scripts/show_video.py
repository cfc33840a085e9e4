"""Frames of a video below each other: `python scripts/show_video.py demo.mp4 -o docs/demo.png`."""

import argparse

import numpy as np
from PIL import Image

from mrfomm import video
from mrfomm.errors import run_command


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", metavar="VIDEO")
    parser.add_argument("--frames", type=int, default=4, help="how many, evenly spaced (%(default)s)")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.png")
    options = parser.parse_args(arguments)
    frames = list(video.open_frames(options.video))
    chosen = np.linspace(0, len(frames) - 1, options.frames + 2)[1:-1].astype(int)
    Image.fromarray(np.concatenate([frames[i] for i in chosen])).save(options.output, optimize=True)


if __name__ == "__main__":
    run_command(main)
