"""Frames of a video below each other: `python scripts/show_video.py demo.mp4 -o docs/demo.png`."""

import numpy as np
from PIL import Image

from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.media.reading import open_frames
from mrfomm.store import whole_file


def main(arguments=None):
    parser = command_parser(__doc__, "[OPTION ...] -o OUT.png VIDEO")
    parser.add_argument("video", metavar="VIDEO", help="clip to show")
    parser.add_argument("--frames", type=int, default=4, help="number of frames, evenly spaced (%(default)s)")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.png", help="picture to write")
    options = parser.parse_args(arguments)
    if options.frames < 1:
        raise UserError(f"--frames {options.frames}: give a number, at least 1")
    frames = list(open_frames(options.video))
    chosen = np.linspace(0, len(frames) - 1, options.frames + 2)[1:-1].astype(int)
    with whole_file(options.output) as aside:
        Image.fromarray(np.concatenate([frames[i] for i in chosen])).save(aside, optimize=True)


if __name__ == "__main__":
    run_command(main)
