"""Whole programs, one call of the library against the command: `python -m benchmarks.library`.

Both read the same pictures and clip and write the same video; they take turns, and each pair gives a ratio. The target
is at most 1.1. Leave the machine alone meanwhile.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrfomm import bundled
from mrfomm.errors import command_parser, run_command
from mrfomm.media.reading import open_frames
from mrfomm.media.writing import open_sink

ROOT = Path(__file__).parent.parent
CALL = "import sys; from mrfomm import Reenactor; Reenactor(sys.argv[1]).save(sys.argv[2], sys.argv[3])"


class Times(NamedTuple):
    """Seconds: on the clock, and of all processors, which others' work changes less."""

    wall: float
    processor: float


def main(arguments=None):
    """Run the command; returns its exit code."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--weights", metavar="CKPT", default=bundled.MODEL, help="checkpoint or exported model (bundled)")
    add("--repeats", type=int, default=4, metavar="N", help="how often the bundled clip is repeated (%(default)s)")
    add("--runs", type=int, default=7, metavar="N", help="pairs that count; one goes before them (%(default)s)")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "driving.mp4")
        frames = repeat(clip, args.repeats)
        library = [sys.executable, "-c", CALL, args.weights, f"{folder}/library.mp4", clip]
        command = [sys.executable, "animate.py", "--weights", args.weights, "--driving", clip]
        command += ["--output", f"{folder}/command.mp4"]
        pairs = [(measure(library), measure(command)) for _ in range(args.runs + 1)][1:]
        videos = [list(open_frames(f"{folder}/{name}.mp4")) for name in ("library", "command")]
    print(f"{frames} frames, {args.runs} pairs; same frames: {np.array_equal(*videos)}")
    for name in Times._fields:
        times = [(getattr(ours, name), getattr(theirs, name)) for ours, theirs in pairs]
        ours, theirs = map(statistics.median, zip(*times))
        ratios = [one / other for one, other in times]
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{name}: library {ours:.2f} s, command {theirs:.2f} s, ratio {spread}")
    return 0


def repeat(clip, times):
    """Write the bundled clip, repeated; returns the number of its frames."""
    frames = list(open_frames(bundled.SAMPLE_DRIVING)) * times
    with open_sink(clip, 25) as sink:
        for frame in frames:
            sink.write(frame)
    return len(frames)


def measure(command):
    """The Times of a command, from its start to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*map(str, command)], cwd=ROOT, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Times(time.perf_counter() - start, processor)


if __name__ == "__main__":
    run_command(main)
