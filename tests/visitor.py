"""What a visitor of the page brings, good and bad, and the page itself in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import wave
from pathlib import Path
from typing import NamedTuple

import imageio.v2 as imageio
import numpy as np
import tiny

from mrfomm.app.visitors import files_below
from mrfomm.media.writing import open_sink

ROOT = Path(__file__).parent.parent
MAX_MEGABYTES, MAX_FRAMES = 1, 120

# Runs the page; writes down every address beyond this machine that it asks for, and refuses it.
GUARDED = """
import sys
log = sys.argv.pop(1)
def guard(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect"):
        host = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        host = host[0] if isinstance(host, tuple) else host
        if isinstance(host, str) and host not in ("127.0.0.1", "localhost", "::1"):
            with open(log, "a") as file:
                print(event, host, file=file)
            raise OSError("no network in this test")
sys.addaudithook(guard)
from mrfomm.app.__main__ import command
command()
"""


class Server(NamedTuple):
    """address: of the page, without the last slash; folder: of its temporary files; log: its messages; pid."""

    address: str
    folder: Path
    log: Path
    pid: int

    def files(self):
        """All its temporary files."""
        return {path for path, _ in files_below(next(self.folder.glob("mrfomm-app-*"))) if path.is_file()}


@contextlib.contextmanager
def served(folder, *options):
    """The page of the bundled model; it must end in order, remove its files and ask nobody but this machine."""
    folder.mkdir()
    network, log = folder / "network.txt", folder / "server.txt"
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    limits = ["--max-megabytes", str(MAX_MEGABYTES), "--max-frames", str(MAX_FRAMES)]
    command = [sys.executable, "-c", GUARDED, str(network), *limits, *options]
    with (
        open(log, "w") as messages,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=messages, text=True
        ) as process,
    ):
        try:
            address = process.stdout.readline().strip().rstrip("/")
            assert address.startswith("http://127.0.0.1:"), log.read_text()
            yield Server(address, folder, log, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(600) == 130
    assert not list(folder.glob("mrfomm-app-*"))
    assert not network.exists(), network.read_text()


def write_files(folder):
    """Good pictures and clips, and bad ones, in a folder."""
    for i, image in enumerate(tiny.frames(3)):
        imageio.imwrite(folder / f"r{i}.png", image)
    with wave.open(str(folder / "tone.wav"), "wb") as tone:
        tone.setnchannels(1)
        tone.setsampwidth(2)
        tone.setframerate(8000)
        tone.writeframes((8000 * np.sin(np.arange(32000) / 3)).astype("<i2").tobytes())
    write_clip(folder / "driving.mp4", tiny.frames(30, seed=3), folder / "tone.wav")
    write_clip(folder / "long.mp4", tiny.frames(MAX_FRAMES + 1, seed=3))
    write_clip(folder / "wide.mp4", np.zeros((2, 16, 4098, 3), np.uint8))
    (folder / "text.png").write_text("no picture")
    (folder / "<b>bold&.png").write_text("no picture")
    (folder / "text.mp4").write_text("no video")
    (folder / "half.mp4").write_bytes((folder / "driving.mp4").read_bytes()[:3000])
    (folder / "half.png").write_bytes(bytes(600_000))
    (folder / "large.mp4").write_bytes(bytes(1_100_000))
    return folder


def write_clip(path, images, sound=None):
    """An mp4 of 25 frames a second."""
    with open_sink(path, 25, audio_from=sound) as sink:
        for image in images:
            sink.write(image)
