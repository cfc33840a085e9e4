"""The jobs of the page: pictures and a driving clip in, videos and a film strip out. Nothing here knows of browsers."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from PIL import Image

from mrfomm.app.strip import film_strip
from mrfomm.data.sampling import spread
from mrfomm.errors import AnyPath, UserError
from mrfomm.media import provenance
from mrfomm.media.crop import Box, Framed, Paste, resized
from mrfomm.media.reading import FrameSource, is_clip, open_frames
from mrfomm.reenactment.animator import Breakdown
from mrfomm.reenactment.backends import load_weights, open_engine
from mrfomm.reenactment.motion import KeypointArrays, Transfer
from mrfomm.reenactment.reenactor import Reenactor, Tell, Watch, open_writers
from mrfomm.reenactment.references import FromClip

MAX_REFERENCES = 8
MAX_SIDE = 4096  # pixels of a clip's frame: a few of them are in memory at a time
MAX_RESULT = 1280  # pixels of a picture that a face is put back into
STRIP_FRAMES = 8


class Limits(NamedTuple):
    """What a visitor may ask for. frames: of one clip; queue: jobs that wait."""

    frames: int
    queue: int


class Order(NamedTuple):
    """What a visitor asks for. references: paths of pictures or of one clip, of which ``frames`` are taken;
    driving: path; fusion: mode or None for the trained one; paste: put the face back into the first picture."""

    references: tuple[str, ...]
    driving: str
    fusion: str | None
    transfer: Transfer
    crop: bool = False
    paste: bool = False
    frames: int = 3


class Delivery(NamedTuple):
    """beside, alone: videos with sound; strip: PNG, see ``film_strip``; notes: lines of text."""

    beside: Path
    alone: Path
    strip: Path
    notes: tuple[str, ...]


def bounded(source: FrameSource, frames: int) -> FrameSource:
    """A FrameSource of at most ``frames``, of MAX_SIDE at most.

    Raises:
        UserError: here if the source tells that it is longer, else at the first frame beyond, or that is larger.
    """

    def refuse(length: str) -> NoReturn:
        raise UserError(f"{source.path}: {length}; cut it to {frames} ({frames / source.fps:.0f} seconds)")

    def checked() -> Iterator[np.ndarray]:
        for number, frame in enumerate(source):
            height, width = frame.shape[:2]
            if number == frames:
                refuse(f"more than {frames} frames")
            if max(height, width) > MAX_SIDE:
                raise UserError(f"{source.path}: {width}x{height} pixels; make it {MAX_SIDE} or less on each side")
            yield frame

    if source.count_hint is not None and source.count_hint > frames:
        refuse(f"about {source.count_hint} frames")
    return replace(source, _open=checked)


def check(order: Order) -> None:
    """Refuse an order that lacks something, or has too much of it."""
    count = len(order.references)
    if count > 1 and any(map(is_clip, order.references)):
        raise UserError("a clip among the pictures; give pictures alone, or 1 clip of the face")
    if not 1 <= count <= MAX_REFERENCES:
        raise UserError(f"{count or 'no'} pictures; give 1 to {MAX_REFERENCES} of one face")
    if not order.driving:
        raise UserError("no driving clip; give a video, or record one")


def within(picture: Framed, side: int) -> Framed:
    """The picture shrunk, with its box, to ``side`` pixels at most."""
    height, longest = len(picture.image), max(picture.image.shape)
    shrunk = resized(picture.image, max(1, height * min(side, longest) // longest))
    return Framed(shrunk, picture.box and Box(*(value * len(shrunk) // height for value in picture.box)))


class Workshop:
    """Fills the orders of the page's visitors, one at a time. Arguments are as of animate.py.

    ``fusion_modes`` are those that the weights can do, the trained one first; ``knowledge`` is what they know.

    Raises:
        UserError: the weights can't be loaded, or not run as asked for.
    """

    def __init__(self, weights: AnyPath, context: str, backend: str, limits: Limits) -> None:
        self.limits = limits
        self._weights = weights
        self._context = context
        self._backend = backend
        self._busy = threading.Lock()
        loaded = load_weights(weights)
        self.fusion_modes, self.knowledge = list(loaded.fusion_modes), loaded.knowledge
        with loaded.context(context):
            for breakdown in (False, True):  # what can't be done is said at the start; what is exported is kept
                open_engine(loaded, backend=backend, breakdown=breakdown)

    def animate(self, order: Order, folder: AnyPath, watch: Watch, say: Tell = lambda line: None) -> Delivery:
        """Fill an Order: write its files into a folder. ``watch``: see Reenactor; ``say``: takes what is done next.

        An order that its visitor has stopped goes on until it next looks at ``watch``; the next one waits for that, as
        nnabla's parameter scope is the process's and no thread's own.

        Raises:
            UserError: what was asked for is missing, broken or beyond the limits.
        """
        check(order)
        with self._busy:
            return self._animate(order, Path(folder), watch, say)

    def _open(self, clip: str) -> FrameSource:
        return bounded(open_frames(clip), self.limits.frames)

    def _references(self, order: Order) -> Sequence[str] | FromClip:
        clip = order.references[0]
        return FromClip(self._open(clip), order.frames) if is_clip(clip) else order.references

    def _animate(self, order: Order, folder: Path, watch: Watch, say: Tell) -> Delivery:
        say("opening the clip")
        source, references = self._open(order.driving), self._references(order)
        say("making the model ready")
        notes: list[str] = []
        weights = load_weights(self._weights, order.fusion)
        comment = provenance.describe(order.references, order.driving, weights.digest)
        make = partial(Reenactor, weights, backend=self._backend)
        videos, strip = (folder / "beside.mp4", folder / "result.mp4"), folder / "strip.png"
        with weights.context(self._context):
            reenactor = make(references, crop=order.crop, tell=notes.append, watch=watch)
            driving = reenactor.fitted(source)
            keypoints = reenactor.targets(driving, order.transfer)
            finished = Paste(within(reenactor.pictures[0], MAX_RESULT)) if order.paste else lambda image: image
            count = len(keypoints.value)
            chosen = spread(count, STRIP_FRAMES)
            shown = []
            with open_writers([(path, order.driving) for path in videos], source.fps, comment) as writers:
                images = watch(reenactor.render(keypoints), count, "animating")
                for number, (frame, image) in enumerate(driving.beside(images)):
                    result = finished(image)
                    for write, picture in zip(writers, (np.hstack([resized(frame, len(result)), result]), result)):
                        write(picture)
                    if number in chosen:
                        shown.append((frame, image))
            poses = KeypointArrays(*(part[chosen] for part in keypoints))
            say("drawing the film strip")
            _, parts = zip(*make(reenactor.references, breakdown=True).render_breakdown(poses))
        seconds = [number / source.fps for number in chosen]
        breakdown = Breakdown(*map(np.stack, zip(*parts)))
        Image.fromarray(film_strip(reenactor.references, shown, breakdown, seconds)).save(strip)
        height, width = result.shape[:2]
        notes.insert(0, f"{count} frames at {source.fps:g} per second, {width}x{height} pixels")
        return Delivery(*videos, strip, tuple(notes))
