"""Clips and folders of frames as streams of RGB frames at a constant rate, in step with the sound."""

import dataclasses
import functools
import logging
import mimetypes
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import gcd

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.media import container as containers
from mrfomm.media.images import IMAGE_SUFFIXES, animation, is_animation, list_images, read_image, read_text
from mrfomm.media.pixels import Converter
from mrfomm.media.timeline import Clock, Span, constant_rate, on_grid
from mrfomm.media.whole import check_whole

FOLDER_FPS = 25.0  # VoxCeleb's rate: a folder of images says nothing of time

_SHORT_WITHOUT_A_WORD = ("flv", "ivf", "mxf")  # FFmpeg's readers of these take any end for the end
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FrameSource:
    """Frames of a clip or folder, uint8 [H,W,3] RGB. Every ``iter()`` is a new pass from the first frame.

    Attributes:
        path: where the frames come from.
        fps: constant rate in frames per second.
        count_hint: number of frames for a progress bar: counted in a folder, by the time stamps of a whole clip.
        has_audio: whether there is a sound track.
    """

    path: str
    fps: float
    count_hint: int | None
    has_audio: bool
    _open: Callable[[], Iterator[np.ndarray]] = dataclasses.field(repr=False)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._open()


def open_frames(path: AnyPath, fps: float | None = None) -> FrameSource:
    """Open a video (mp4, mov, avi, mkv, webm...), a gif, or a folder of images as uint8 [H,W,3] RGB frames.

    Videos are turned upright, given square pixels and, if they are HDR, tone-mapped. Their time stamps give the
    constant rate: every frame comes at least once, and again while it is still shown; the first one also while only
    the sound runs. Where the picture's size changes in mid-clip, frames keep their shape and are scaled to the shorter
    side of the first. A folder's images come in natural order (2 before 10) and may differ in size; ``fps`` is the
    folder's, 25 if None.

    Raises:
        UserError: here for what is missing, empty or no video, and for ``fps`` given with a video; while iterating,
            after the good frames, for a file that is damaged or cut short. Any error that FFmpeg reports counts, as a
            frame it has patched up is not what was filmed. A transport stream (.ts) begins with its first key frame;
            cut, it passes for a short one, as do a browser's recording, a wmv and streams without a container.
    """
    if os.path.isdir(path):
        files = list_images(path)
        rate = FOLDER_FPS if fps is None else fps
        return FrameSource(str(path), rate, len(files), False, functools.partial(map, read_image, files))
    check_is_file(path)
    if fps is not None:
        raise UserError(f"{path}: a video has a rate of its own; give --fps with a folder of frames only")
    if is_animation(path):
        return _open_image(path)
    video = _Video(path)
    return FrameSource(str(path), float(video.rate), video.count, video.has_audio, video.frames)


def is_clip(path: AnyPath) -> bool:
    """Whether it is a video, by its name."""
    return (mimetypes.guess_type(path)[0] or "").startswith("video/")


def read_comment(path: AnyPath) -> str | None:
    """The comment in the metadata of a video, a gif, an image or the first image of a folder; None without one. A
    UserError if it is missing or none of these."""
    if os.path.isdir(path):
        path = list_images(path)[0]
    if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
        return read_text(path)
    with containers.open_container(path) as container:
        return {name.lower(): text for name, text in container.metadata.items()}.get("comment")


def _open_image(path: AnyPath) -> FrameSource:
    """An animation that FFmpeg's libraries don't read, by Pillow."""
    spans = [(start, duration) for start, duration, _ in animation(path)]
    durations = [duration for _, duration in spans]
    rate = constant_rate(durations, Fraction(1000, gcd(*(int(1000 * duration) for duration in durations))))
    count = sum(1 for _ in on_grid(((*span, 0) for span in spans), rate))
    return FrameSource(str(path), float(rate), count, False, lambda: on_grid(animation(path), rate))


class _Video:
    """A clip that FFmpeg reads, on the grid of its constant ``rate``."""

    def __init__(self, path: AnyPath) -> None:
        self._path, self._is_change_told = str(path), False
        with containers.open_container(path) as container:
            _check_moving(container, path)
            stream = containers.picture_stream(container, path)
            check_whole(container, path)
            self._look, self.has_audio = containers.look(container, stream), bool(container.streams.audio)
            course = containers.course(container, stream)
            self.rate = _rate(container, stream, course.spans)
            start = self._start = containers.start(container, self.rate, course)
            self._ahead, self._times = course.ahead, None if course.is_stamped else course.spans
            self.count = sum(1 for _ in on_grid(((time - start, long, 0) for time, long in course.spans), self.rate))
            if course.is_torn:
                _log.warning("%s: parts are missing on the way, as where it was received badly or joined", path)
            told, seen = Fraction(container.duration or 0, 10**6), self.count / self.rate  # the longest track's
            if container.format.name in _SHORT_WITHOUT_A_WORD and seen < told * Fraction(9, 10):
                _log.warning("%s: tells of %.1f s, has pictures for %.1f s; it may be cut", path, told, seen)
        self._side = self._side_of_the_first()

    def _side_of_the_first(self) -> int:
        with containers.open_container(self._path) as container:
            try:
                first = next(containers.decode(container, containers.picture_stream(container, self._path)))
                side = min(Converter(self._look)(first).shape[:2])
            except containers.Damage as error:
                raise containers.unreadable(self._path, str(error)) from error
            except StopIteration:
                raise containers.unreadable(self._path, "no frame in it") from None
        if first.interlaced_frame:
            _log.warning("%s: filmed in half frames (interlaced); what moves has combed edges", self._path)
        if first.rotation % 90:
            _log.warning("%s: turned by %d degrees; shown by the nearest quarter turn", self._path, first.rotation)
        return side

    def frames(self) -> Iterator[np.ndarray]:
        """One pass."""
        shape = previous = None
        try:
            with containers.open_container(self._path) as container:
                for pixels in on_grid(self._timed(container), self.rate):
                    shape = shape or pixels.shape
                    if pixels.shape != shape and not self._is_change_told:
                        self._is_change_told = True
                        told = "the picture's shape changes on the way"
                        _log.warning("%s: %s, from %s to %s", self._path, told, shape, pixels.shape)
                    yield pixels.copy() if pixels is previous else pixels
                    previous = pixels
        except containers.Damage as error:
            raise UserError(
                f"{self._path}: damaged or cut short ({error}); get a whole copy, or keep what is left of it: "
                f"ffmpeg -i {self._path} repaired.mp4"
            ) from error

    def _timed(self, container: InputContainer) -> Iterator[tuple[Fraction, Fraction, np.ndarray]]:
        stream = containers.picture_stream(container, self._path)
        clock, convert = Clock(self._start, self._ahead), Converter(self._look, self._side)
        step, unit = 1 / self.rate, stream.time_base or Fraction(1)
        for number, frame in enumerate(containers.decode(container, stream)):
            if self._times is None and frame.pts is not None:
                length = (frame.duration or 0) * unit
                yield clock(frame.pts * unit, length), length, convert(frame)
            else:
                known = (self._times or [])[number : number + 1] or [(number * step, step)]
                yield known[0][0] - self._start, known[0][1], convert(frame)


def _check_moving(container: InputContainer, path: AnyPath) -> None:
    name, video = container.format.name, container.streams.video
    is_avif = name.startswith("mov") and len(video) == 1 and video[0].frames == 1 and container.duration is None
    if name in ("image2", "tty") or name.endswith("_pipe") or is_avif:
        raise UserError(f"{path}: a still image or text; give a video, a gif or a folder of images")


def _rate(container: InputContainer, stream: VideoStream, spans: list[Span]) -> Fraction:
    guess = stream.guessed_rate or Fraction(0)
    if containers.is_broadcast(container) and 0 < guess <= 60:
        return guess  # its stamps have holes
    steps = [after[0] - before[0] for before, after in zip(spans, spans[1:])]
    return constant_rate(steps + [length for _, length in spans[-1:] if length], guess)
