"""A camera drives the face in a window: `animate.py --driving webcam`.

A thread reads the camera and keeps the newest frame alone. What comes while the network is at work is dropped, so the
picture in the window is never older than the work on two frames, however slow the machine is.
"""

import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from mrfomm.errors import AnyPath, UserError
from mrfomm.media.crop import Box, crop, crop_text, square_box
from mrfomm.media.images import fit
from mrfomm.reenactment.motion import Transfer
from mrfomm.reenactment.pictures import tile
from mrfomm.reenactment.reenactor import Reenactor, Tell

TITLE = "mrfomm"
QUIT = (ord("q"), 27)  # 27: Esc
RESTART = ord("r")

_KIND = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL  # can be enlarged by hand
_PATIENCE = 0.05  # seconds without a frame after which the window is served all the same
_LARGEST = (512, 1280)  # height and width in pixels up to which small pictures are enlarged
_MEASURED = 30  # frames that latency and rate are averaged over


Clock = Callable[[], float]  # gives seconds


class Shot(NamedTuple):
    """image: uint8 [H,W,3] RGB. time: seconds on the clock when it arrived. number: 0 for the camera's first frame."""

    image: np.ndarray
    time: float
    number: int


class Camera:
    """Reads a capture in a thread and keeps its newest frame. To be closed."""

    def __init__(self, capture: cv2.VideoCapture, clock: Clock) -> None:
        self._capture = capture
        self._clock = clock
        self._changed = threading.Condition()
        self._newest: Shot | None = None
        self._ended = False
        self._closing = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the camera gives no more frames, and all that are wanted of it were taken."""
        with self._changed:
            return self._ended and self._newest is None

    def take(self, seconds: float) -> Shot | None:
        """The newest frame that wasn't taken yet; None if there is none within ``seconds``."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._ended, seconds)
            newest, self._newest = self._newest, None
        return newest and newest._replace(image=cv2.cvtColor(newest.image, cv2.COLOR_BGR2RGB))

    def close(self) -> None:
        """Stop reading and let the camera go."""
        self._closing = True
        self._thread.join()
        self._capture.release()

    def _read(self) -> None:
        number = 0
        try:
            while not self._closing:
                good, image = self._capture.read()
                if not good:
                    return
                with self._changed:
                    self._newest = Shot(image, self._clock(), number)
                    self._changed.notify()
                number += 1
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()


class Meter:
    """Mean latency in seconds, and frames a second, of the last frames that were shown."""

    def __init__(self) -> None:
        self._shown: deque[tuple[float, float]] = deque(maxlen=_MEASURED)  # (time, latency)

    def add(self, taken: float, shown: float) -> None:
        """Count a frame. taken, shown: seconds on one clock."""
        self._shown.append((shown, shown - taken))

    def __str__(self) -> str:
        if len(self._shown) < 2:
            return "measuring"
        latency = sum(latency for _, latency in self._shown) / len(self._shown)
        rate = (len(self._shown) - 1) / (self._shown[-1][0] - self._shown[0][0])
        return f"{1000 * latency:.0f} ms, {rate:.1f} frames a second"


class Window:
    """OpenCV's window. To be used by the main thread, and closed."""

    def __init__(self) -> None:
        cv2.namedWindow(TITLE, _KIND)
        self._shape: tuple[int, ...] = ()

    def show(self, picture: np.ndarray) -> int:
        """Draw uint8 [H,W,3] RGB; returns what ``poll`` does."""
        if picture.shape != self._shape:
            self._shape = picture.shape
            cv2.resizeWindow(TITLE, picture.shape[1], picture.shape[0])
        cv2.imshow(TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        return self.poll()

    def poll(self) -> int:
        """Serve the window; returns the code of a key that was pressed, or -1. A closed window counts as q."""
        key = cv2.waitKey(1)
        return key if cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) >= 1 else QUIT[0]

    def close(self) -> None:
        """Remove it from the screen."""
        cv2.destroyAllWindows()


@dataclass
class Puppet:
    """Makes pictures of the animated face from a camera's frames; relative motion starts from the first of them.

    find_face: a FaceFinder to crop to the first face seen, or None. beside: show references and frame beside the
    result.
    """

    reenactor: Reenactor
    transfer: Transfer
    find_face: Callable[[np.ndarray], Box | None] | None
    beside: bool
    tell: Tell
    _box: Box | None = None
    _step: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H,W,3] -> the picture to show, uint8 RGB: as long as a face is looked for, the camera's own."""
        image = image if self._box is None else crop(image, self._box)
        frame = fit(image, self.reenactor.size)
        if self.looking:
            self._look(image)
            return frame
        self._step = self._step or self.reenactor.follow(self.transfer)
        result = self._step(image)
        return tile([[*self.reenactor.references, frame, result]], gap=0) if self.beside else result

    @property
    def looking(self) -> bool:
        """Whether the face wasn't found yet."""
        return self.find_face is not None and self._box is None

    def restart(self) -> None:
        """Let relative motion start from the next frame."""
        self._step = None

    def _look(self, image: np.ndarray) -> None:
        face = self.find_face(image) if self.find_face else None
        if face is not None:
            self._box = square_box(face, image.shape)
            self.tell(crop_text("webcam", self._box))


def camera_number(driving: AnyPath) -> int | None:
    """The number in "webcam" (0) or "webcam:N"; None for any other text or path."""
    found = re.fullmatch(r"webcam(?::(\d+))?", str(driving))
    return int(found.group(1) or 0) if found else None


def check_window() -> None:
    """Raise UserError if no window can be opened. A process of its own tries, as without a display Qt ends it."""
    code = f"import cv2; cv2.namedWindow({TITLE!r}, {_KIND})"
    result = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if result.returncode:
        raise UserError(
            "--driving webcam: no window can be opened here (no display, or an OpenCV without windows); "
            "run it on a desktop, or record a clip and give that as --driving"
        )


def open_capture(number: int) -> cv2.VideoCapture:
    """The camera of that number; UserError if it can't be opened."""
    level = cv2.setLogLevel(0)  # OpenCV complains at length
    capture = cv2.VideoCapture(number)
    cv2.setLogLevel(level)
    if not capture.isOpened():
        raise UserError(
            f"--driving webcam:{number}: no such camera, or another program has it; plug it in, or try another number"
        )
    return capture


def play(camera: Camera, window: Window, puppet: Puppet, clock: Clock) -> str:
    """Show the animated face until q, Esc or the end of the window or of the camera.

    The latency is the time from a frame's arrival to the picture made of it being drawn in the window; what camera and
    screen add isn't in it.

    Returns:
        A line of text: frames shown and dropped, latency, rate.

    Raises:
        UserError: the camera gives no picture.
    """
    meter, shown, last, key = Meter(), 0, -1, -1
    while key not in QUIT and not camera.ended:
        if key == RESTART:
            puppet.restart()
        shot = camera.take(_PATIENCE)
        if shot is None:
            key = window.poll()
            continue
        looking = puppet.looking
        key = window.show(_labelled(puppet(shot.image), meter, looking))
        meter.add(shot.time, clock())
        shown, last = shown + 1, shot.number
    if camera.ended and not shown:
        raise UserError("--driving webcam: the camera gives no picture; try another number: webcam:1")
    return f"{shown} frames shown, {last + 1 - shown} dropped; {meter}"


def _labelled(picture: np.ndarray, meter: Meter, looking: bool) -> np.ndarray:
    """The picture, enlarged if it is small, with the measures above and the keys below."""
    height, width = picture.shape[:2]
    factor = max(1, min(_LARGEST[0] // height, _LARGEST[1] // width))
    picture = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    keys = "looking for a face   q: quit" if looking else "r: motion starts here   q: quit"
    for text, y in ((f"synthetic   {meter}", 20), (keys, len(picture) - 10)):
        for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):  # readable on any ground
            cv2.putText(picture, text, (8, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA)
    return picture
