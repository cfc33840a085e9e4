"""Clips and folders of frames as streams of RGB frames at a constant rate, in step with the sound."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import gcd
from typing import NamedTuple

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.media import container as containers
from mrfomm.media.images import (
    IMAGE_SUFFIXES,
    animation,
    is_animation,
    list_images,
    read_image,
    read_text,
)
from mrfomm.media.pixels import Converter
from mrfomm.media.timeline import Clock, Span, constant_rate, offsets, on_grid
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
    side of the first. A folder's images come in natural order (2 before 10) and may differ in size.

    Args:
        path: the clip or folder.
        fps: of a folder, 25 if None.

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
    return _open_image(path) if is_animation(path) else _open_video(path)


def read_comment(path: AnyPath) -> str | None:
    """The comment in the metadata of a video, a gif, an image or the first image of a folder; None without one.

    Raises:
        UserError: missing, or none of these.
    """
    if os.path.isdir(path):
        path = list_images(path)[0]
    if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
        return read_text(path)
    with containers.open_container(path) as container:
        by_name = {name.lower(): text for name, text in container.metadata.items()}
    return by_name.get("comment")


_Timed = tuple[Fraction, Fraction, np.ndarray]


class _Video(NamedTuple):
    rate: Fraction
    timing: containers.Timing
    times: list[Span] | None  # of all frames in order, where the container's stamps don't tell


def _open_video(path: AnyPath) -> FrameSource:
    with containers.open_container(path) as container:
        _check_moving(container, path)
        stream = containers.picture_stream(container, path)
        check_whole(container, path)
        video, count = _measured(container, stream, path)
        told = Fraction(container.duration or 0, 10**6)  # the longest track's
        if container.format.name in _SHORT_WITHOUT_A_WORD and count < told * video.rate * Fraction(9, 10):
            _log.warning("%s: tells of %.1f s, has pictures for %.1f s; it may be cut", path, told, count / video.rate)
        has_audio, look = bool(container.streams.audio), containers.look(container, stream)
    with containers.open_container(path) as container:
        try:
            first = next(containers.decode(container, containers.picture_stream(container, path)))
            side = min(Converter(look)(first).shape[:2])
        except containers.Damage as error:
            raise containers.unreadable(path, str(error)) from error
        except StopIteration:
            raise containers.unreadable(path, "no frame in it") from None
    if first.interlaced_frame:
        _log.warning("%s: filmed in half frames (interlaced); what moves has combed edges", path)
    if first.rotation % 90:
        _log.warning("%s: turned by %d degrees; shown by the nearest quarter turn", path, first.rotation)
    frames = functools.partial(_frames, str(path), video, look, side, set())
    return FrameSource(str(path), float(video.rate), count, has_audio, frames)


def _open_image(path: AnyPath) -> FrameSource:
    """An animation that FFmpeg's libraries don't read, by Pillow."""
    spans = [(start, duration) for start, duration, _ in animation(path)]
    durations = [duration for _, duration in spans]
    rate = constant_rate(durations, Fraction(1000, gcd(*(int(1000 * duration) for duration in durations))))
    count = sum(1 for _ in on_grid(((*span, 0) for span in spans), rate))
    return FrameSource(str(path), float(rate), count, False, lambda: on_grid(animation(path), rate))


def _check_moving(container: InputContainer, path: AnyPath) -> None:
    name, video = container.format.name, container.streams.video
    is_avif = name.startswith("mov") and len(video) == 1 and video[0].frames == 1 and container.duration is None
    if name in ("image2", "tty") or name.endswith("_pipe") or is_avif:
        raise UserError(f"{path}: a still image or text; give a video, a gif or a folder of images")


def _measured(container: InputContainer, stream: VideoStream, path: AnyPath) -> tuple[_Video, int]:
    """The grid, and how many places the frames have on it: without decoding them."""
    stamps = containers.stamps(container, stream)
    if any(stamp.is_torn for stamp in stamps):
        _log.warning("%s: parts are missing on the way, as where it was received badly or joined", path)
    found = containers.spans(container, stream, stamps)
    times = [span for part in found for span in part]
    clock = Clock(Fraction(0), offsets(found))
    shown = [clock(*span) for span in times]
    steps = [time - before for before, time in zip(shown, shown[1:])] + [length for _, length in times[-1:] if length]
    guess = stream.guessed_rate or Fraction(0)
    is_told = containers.is_broadcast(container) and 0 < guess <= 60  # whose stamps have holes
    rate = guess if is_told else constant_rate(steps, guess)
    timing = containers.timing(container, rate, found)
    clock = timing()
    count = sum(1 for _ in on_grid(((clock(*span), span[1], 0) for span in times), rate))
    return _Video(rate, timing, None if containers.is_stamped(container, stamps) else times), count


def _frames(path: str, video: _Video, look: containers.Look, side: int, said: set[str]) -> Iterator[np.ndarray]:
    shape, previous = None, None
    try:
        with containers.open_container(path) as container:
            stream = containers.picture_stream(container, path)
            for pixels in on_grid(_timed(container, stream, video, Converter(look, side)), video.rate):
                shape = shape or pixels.shape
                if pixels.shape != shape and path not in said:
                    said.add(path)
                    _log.warning("%s: the picture's shape changes on the way, from %s to %s", path, shape, pixels.shape)
                yield pixels.copy() if pixels is previous else pixels
                previous = pixels
    except containers.Damage as error:
        raise UserError(
            f"{path}: damaged or cut short ({error}); get a whole copy, or keep what is left of it: "
            f"ffmpeg -i {path} repaired.mp4"
        ) from error


def _timed(container: InputContainer, stream: VideoStream, video: _Video, convert: Converter) -> Iterator[_Timed]:
    clock, step, unit = video.timing(), 1 / video.rate, stream.time_base or Fraction(1)
    for number, frame in enumerate(containers.decode(container, stream)):
        if video.times is None and frame.pts is not None:
            span = frame.pts * unit, (frame.duration or 0) * unit
        else:
            known = (video.times or [])[number : number + 1]
            span = known[0] if known else (number * step, step)
        yield clock(*span), span[1], convert(frame)
