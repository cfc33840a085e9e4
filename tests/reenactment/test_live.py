"""Live animation: frames dropped, not queued; the same pictures as from a clip; a window on a virtual screen."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
import tiny
from PIL import Image

from mrfomm.commands import animate
from mrfomm.errors import UserError
from mrfomm.media.crop import Box, square_box
from mrfomm.media.images import fit
from mrfomm.media.writing import open_sink
from mrfomm.reenactment import live
from mrfomm.reenactment.motion import Transfer
from mrfomm.reenactment.reenactor import Reenactor

ROOT = Path(__file__).parent.parent.parent
SCREEN = (1280, 480)  # width, height

# animate.py with a clip in the camera's place: 25 frames a second, again and again until a file appears
FILMED = """
import os, sys, time
import cv2
from mrfomm.reenactment import live
from mrfomm.commands.animate import command

class Filmed:
    def __init__(self, path, stop):
        self._file = cv2.VideoCapture(path)
        self._stop = stop
    def read(self):
        time.sleep(0.04)
        good, image = self._file.read()
        if not good:
            self._file.set(cv2.CAP_PROP_POS_FRAMES, 0)
            good, image = self._file.read()
        return good and not os.path.exists(self._stop), image
    def release(self):
        self._file.release()

clip, stop = sys.argv.pop(1), sys.argv.pop(1)
live.open_capture = lambda number: Filmed(clip, stop)
command()
"""


class Gate:
    """A capture whose frames come only when the test lets them; frame n is grey n everywhere, blue 1 more."""

    def __init__(self):
        self._allowed = threading.Semaphore(0)
        self._asked = threading.Semaphore(0)
        self._number = -1
        self.last = None
        self.released = False

    def read(self):
        self._asked.release()
        self._allowed.acquire()
        self._number += 1
        if self.last is not None and self._number > self.last:
            return False, None
        image = np.full((8, 8, 3), self._number, np.uint8)
        image[:, :, 0] += 1
        return True, image

    def let(self, count):
        """Let ``count`` frames through; returns when all of them have been read and the next one is asked for."""
        for _ in range(count):
            self._asked.acquire()
            self._allowed.release()
        self._asked.acquire()  # the camera has stored the last one by the time it asks again
        self._asked.release()

    def end(self):
        """No frames beyond the ones that were let through."""
        self.last = self._number
        self._allowed.release()

    def release(self):
        self.released = True


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class FakeWindow:
    """Keeps what is shown; ``keys`` are pressed one by one, one after each picture."""

    def __init__(self, keys=()):
        self.pictures = []
        self._keys = list(keys)

    def show(self, picture):
        self.pictures.append(picture)
        return self._keys.pop(0) if self._keys else -1

    def poll(self):
        return -1


class SlowPuppet:
    """Takes half a second of the clock for a picture, while five frames come in at a tenth of a second."""

    looking = False

    def __init__(self, gate, clock, pictures):
        self._gate, self._clock, self._left = gate, clock, pictures
        self.seen = []
        self.restarts = []

    def __call__(self, image):
        self.seen.append(int(image[0, 0, 0]))
        assert tuple(image[0, 0]) == (self.seen[-1], self.seen[-1], self.seen[-1] + 1)  # RGB
        self._left -= 1
        if self._left == 0:
            self._gate.end()
            return np.zeros((64, 64, 3), np.uint8)
        for _ in range(5):
            self._clock.now += 0.1
            self._gate.let(1)
        return np.zeros((64, 64, 3), np.uint8)

    def restart(self):
        self.restarts.append(len(self.seen))


def play(pictures, keys=()):
    gate, clock, window = Gate(), Clock(), FakeWindow(keys)
    puppet = SlowPuppet(gate, clock, pictures)
    camera = live.Camera(gate, clock)
    gate.let(1)
    line = live.play(camera, window, puppet, clock)
    gate.end()
    camera.close()
    assert gate.released
    return line, puppet, window


def test_what_comes_meanwhile_is_dropped():
    line, puppet, window = play(pictures=4)
    assert puppet.seen == [0, 5, 10, 15]
    assert len(window.pictures) == 4
    # shown at 100.5, 101, 101.5 and at once, each of a frame that arrived when the one before was done
    assert line == "4 frames shown, 12 dropped; 375 ms, 3.0 frames a second"


@pytest.mark.parametrize("key", [ord("q"), 27])
def test_keys(key):
    _, puppet, window = play(pictures=100, keys=[-1, ord("r"), -1, key])
    assert len(window.pictures) == 4
    assert puppet.restarts == [2]


def test_a_camera_without_pictures():
    gate = Gate()
    camera = live.Camera(gate, Clock())
    gate.end()
    with pytest.raises(UserError, match="no picture"):
        live.play(camera, FakeWindow(), None, Clock())
    camera.close()


def test_take_waits_for_a_frame_and_gives_up():
    gate = Gate()
    camera = live.Camera(gate, Clock())
    assert camera.take(0.01) is None
    gate.let(3)
    assert camera.take(10).number == 2
    assert camera.take(0.01) is None
    gate.end()
    camera.close()
    assert camera.ended


def test_the_line_of_measures():
    meter = live.Meter()
    assert str(meter) == "measuring"
    for frame in range(100):  # the first 70, which took ten times as long, are forgotten
        meter.add(frame / 20 - (0.3 if frame < 70 else 0.03), frame / 20)
    assert str(meter) == "30 ms, 20.0 frames a second"


@pytest.mark.parametrize(("text", "number"), [("webcam", 0), ("webcam:12", 12), ("webcam:", None), ("a/webcam", None)])
def test_camera_number(text, number):
    assert live.camera_number(text) == number
    assert live.camera_number(Path(text)) == number


# The pictures


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with weights, reference.png and driving.avi."""
    folder = tmp_path_factory.mktemp("files")
    tiny.checkpoint(folder / "weights")
    Image.fromarray(tiny.frames(1)[0]).save(folder / "reference.png")
    with open_sink(folder / "driving.avi", 25) as sink:
        for image in tiny.frames(25, seed=3):
            sink.write(image)
    return folder


@pytest.fixture(scope="module")
def reenactor(files):
    return Reenactor(files / "weights", tiny.frames(3), backend="nnabla")


@pytest.mark.parametrize("transfer", [Transfer(start=0), Transfer(start=0, adapt_scale=True), Transfer("absolute")])
def test_the_same_pictures_as_from_a_clip(reenactor, transfer):
    """Driven by n frames, and by the rest of them after a restart: as by two clips whose motion starts at frame 0."""
    clips = tiny.frames(3, seed=3), tiny.frames(3, seed=4)
    puppet = live.Puppet(reenactor, transfer, None, False, print)
    for clip in clips:
        expected = list(reenactor.animate(clip, transfer))
        puppet.restart()
        np.testing.assert_array_equal([puppet(frame) for frame in clip], expected)


def test_side_by_side(reenactor):
    references, frame = tiny.frames(3), tiny.frames(1, seed=3)[0]
    alone = live.Puppet(reenactor, Transfer(), None, False, print)(frame)
    row = live.Puppet(reenactor, Transfer(), None, True, print)(frame)
    np.testing.assert_array_equal(row, np.concatenate([*references, frame, alone], axis=1))


def test_the_face_is_looked_for_until_it_is_found_once(reenactor):
    """Until then the camera's own picture is shown, and motion doesn't start."""
    found = [None, None, Box(30, 20, 20)]
    told = []
    puppet = live.Puppet(reenactor, Transfer("absolute"), lambda image: found.pop(0), False, told.append)
    frames = tiny.frames(4, size=80)
    for frame in frames[:3]:
        assert puppet.looking
        np.testing.assert_array_equal(puppet(frame), fit(frame, 32))
    assert not puppet.looking
    assert (found, len(told)) == ([], 1)
    x, y, size = square_box(Box(30, 20, 20), (80, 80))
    cropped = fit(frames[3][y : y + size, x : x + size], 32)
    (expected,) = reenactor.animate([cropped], Transfer("absolute"))
    np.testing.assert_array_equal(puppet(frames[3]), expected)


# The command


@pytest.mark.parametrize(
    "options",
    [
        ["--output", "a.mp4"],
        ["--masks", "m"],
        ["--paste-back", "--crop"],
        ["--size", "64"],
        ["--save-motion", "m.npz"],
        ["--no-audio"],
        ["--no-provenance"],
        ["--batch", "2"],
        ["--start", "3"],
    ],
)
def test_options_that_need_a_clip(options):
    with pytest.raises(UserError, match=f"{options[0]}: a camera's result is shown"):
        animate.main(["--driving", "webcam", *options])


def command(files, *arguments):
    inputs = ["--refs", str(files / "reference.png"), "--weights", str(files / "weights"), "--driving"]
    return [*inputs, *arguments, "--context", "cpu", "--backend", "nnabla"]


def test_without_a_display_one_line_says_so(files):
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    arguments = [sys.executable, str(ROOT / "animate.py"), *command(files, "webcam")]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: --driving webcam: no window can be opened here")


@pytest.fixture(scope="module")
def screen():
    """The environment variables with a virtual screen."""
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed (apt-get install xvfb)")
    if not cv2.currentUIFramework():
        pytest.skip("this OpenCV has no windows")
    size = "x".join(map(str, SCREEN))
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-screen", "0", f"{size}x24", "-nolisten", "tcp", "-noreset"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    yield {**os.environ, "DISPLAY": f":{server.stdout.readline().decode().strip()}"}
    server.terminate()
    server.wait()
    server.stdout.close()


def photograph(screen):
    """The virtual screen as uint8 [H,W,3]."""
    size = "x".join(map(str, SCREEN))
    grab = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "x11grab", "-draw_mouse", "0"]
    grab += ["-video_size", size, "-i", screen["DISPLAY"], "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = subprocess.run(grab, check=True, stdin=subprocess.DEVNULL, capture_output=True).stdout
    return np.frombuffer(pixels, np.uint8).reshape(SCREEN[1], SCREEN[0], 3)


class Observed(NamedTuple):
    """code, output, messages: of the process. moments: pairs of pictures (driving frame, result) seen on the screen."""

    code: int
    output: str
    messages: str
    moments: list


def observe(files, stop, screen):
    """Run the command until two moments were seen."""
    side = 32 * (SCREEN[0] // (3 * 32))
    reference = cv2.resize(tiny.frames(1)[0], (side, side), interpolation=cv2.INTER_LINEAR)
    rows = slice(60, side - 60)  # free of text
    still = slice(0, side - 20)  # enlarging mixes the colours at the edge between two pictures
    inputs = [files / "driving.avi", stop, *command(files, "webcam", "--side-by-side")]
    process = subprocess.Popen(
        [sys.executable, "-c", FILMED, *map(str, inputs)],
        cwd=ROOT,
        env=screen,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    moments, deadline = [], time.monotonic() + 600
    try:
        while len(moments) < 2 and process.poll() is None and time.monotonic() < deadline:
            row = photograph(screen)[rows, : 3 * side]
            if (row[:, still] == reference[rows, still]).all():
                moves = [row[:, side : 2 * side], row[:, 2 * side :]]
                if not moments or all((new != old).any() for new, old in zip(moves, moments[0])):
                    moments.append(moves)
        stop.touch()
        output, messages = process.communicate(timeout=600)
    finally:
        process.kill()
    return Observed(process.returncode, output, messages, moments)


def test_the_window_moves_until_the_camera_ends(files, tmp_path, screen):
    """Reference, driving frame and result, in colour and enlarged: the first stands still, the others move.

    Several attempts, as on a busy machine Qt leaves one window in twenty black for ever: ten lines of OpenCV that show
    a grey picture on Xvfb do it too.
    """
    for attempt in range(4):
        seen = observe(files, tmp_path / f"stop-{attempt}", screen)
        assert seen.code == 0, seen.messages
        assert re.fullmatch(r"\d+ frames shown, \d+ dropped; \d+ ms, [\d.]+ frames a second\n", seen.output)
        if seen.moments:
            break
    assert len(seen.moments) == 2, seen.messages


def test_without_a_camera_one_line_says_so(files, screen):
    arguments = [sys.executable, str(ROOT / "animate.py"), *command(files, "webcam:99")]
    result = subprocess.run(arguments, env=screen, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --driving webcam:99: no such camera")
    assert len(result.stderr.splitlines()) == 1
