"""The ffmpeg program, whose reading and writing of clips ours is compared with."""

import subprocess

import imageio_ffmpeg


def ffmpeg(*arguments):
    """Run it; returns what it writes to standard output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True).stdout


def describe(path):
    """What it says of a file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    return subprocess.run(command, capture_output=True, text=True).stderr
