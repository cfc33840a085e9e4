"""Clips and folders of frames as streams of RGB frames at a constant rate, in step with the sound."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
from fractions import Fraction
from math import gcd
from typing import Callable, Iterator, List, NamedTuple, Optional, Set, Tuple

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from mrfomm.errors import AnyPath, UserError
from mrfomm.media import container as containers
from mrfomm.media.images import (
    IMAGE_SUFFIXES,
    animation,
    as_browsers,
    is_moving_webp,
    list_images,
    read_image,
    read_text,
)
from mrfomm.media.pixels import Converter
from mrfomm.media.timeline import constant_rate, on_grid
from mrfomm.media.whole import check_whole

FOLDER_FPS = 25.0  # VoxCeleb's rate: a folder of images says nothing of time

_MAY_JUMP = 0x0200  # AVFMT_TS_DISCONT
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
    count_hint: Optional[int]
    has_audio: bool
    _open: Callable[[], Iterator[np.ndarray]] = dataclasses.field(repr=False)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._open()


def open_frames(path: AnyPath, fps: Optional[float] = None) -> FrameSource:
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
            frame it has patched up is not what was filmed. A cut transport stream (.ts) or browser's recording passes
            for a short one.
    """
    if os.path.isdir(path):
        files = list_images(path)
        return FrameSource(str(path), fps or FOLDER_FPS, len(files), False, functools.partial(map, read_image, files))
    if fps is not None:
        raise UserError(f"{path}: a video has a rate of its own; give --fps with a folder of frames only")
    return _open_webp(path) if is_moving_webp(path) else _open_video(path)


def read_comment(path: AnyPath) -> Optional[str]:
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


_Span = Tuple[Fraction, Fraction]  # when a frame is shown first, and for how long, in seconds


class _Video(NamedTuple):
    rate: Fraction
    start: Fraction  # of the grid
    times: Optional[List[_Span]]  # of all frames in order, where the container's stamps don't tell
    may_jump: bool


def _open_video(path: AnyPath) -> FrameSource:
    with containers.open_container(path) as container:
        _check_moving(container, path)
        stream = containers.picture_stream(container, path)
        check_whole(container, path)
        video, times = _measured(container, stream)
        has_audio, aspect = bool(container.streams.audio), stream.sample_aspect_ratio
    with containers.open_container(path) as container:
        try:
            first = next(containers.decode(container, containers.picture_stream(container, path)))
        except containers.Damage as error:
            raise containers.unreadable(path, str(error)) from error
        except StopIteration:
            raise containers.unreadable(path, "no frame in it") from None
    if first.interlaced_frame:
        _log.warning("%s: filmed in half frames (interlaced); what moves has combed edges", path)
    count = sum(1 for _ in on_grid(((*time, 0) for time in times), video.rate, video.start))
    side = min(Converter(aspect)(first).shape[:2])
    frames = functools.partial(_frames, str(path), video, side, set())
    return FrameSource(str(path), float(video.rate), count, has_audio, frames)


def _open_webp(path: AnyPath) -> FrameSource:
    """An animation that FFmpeg's libraries don't read, by Pillow."""
    spans = [(start, duration) for start, duration, _ in animation(path)]
    durations = [duration for _, duration in spans]
    rate = constant_rate(durations, Fraction(1000, gcd(*(int(1000 * duration) for duration in durations))))
    count = sum(1 for _ in on_grid(((*span, 0) for span in spans), rate, Fraction(0)))
    return FrameSource(str(path), float(rate), count, False, lambda: on_grid(animation(path), rate, Fraction(0)))


def _check_moving(container: InputContainer, path: AnyPath) -> None:
    name, video = container.format.name, container.streams.video
    is_avif = name.startswith("mov") and len(video) == 1 and video[0].frames == 1 and container.duration is None
    if name in ("image2", "tty") or name.endswith("_pipe") or is_avif:
        raise UserError(f"{path}: a still image or text; give a video, a gif or a folder of images")


def _measured(container: InputContainer, stream: VideoStream) -> Tuple[_Video, List[_Span]]:
    """The grid, and when frames are shown and for how long, in order, in seconds: without decoding them."""
    guess: Fraction = stream.guessed_rate or Fraction(0)
    unit: Fraction = stream.time_base or Fraction(1)
    packets = _whole_packets(container, stream)
    is_stamped = container.format.name not in ("avi", "gif") and all(pts is not None for pts, _, _ in packets)
    if container.format.name == "gif":
        shown = [as_browsers(duration * unit) for _, _, duration in packets]
        times = list(zip(itertools.accumulate([Fraction(0), *shown]), shown))
    elif is_stamped:
        times = sorted(((pts or 0) * unit, duration * unit) for pts, _, duration in packets)
    elif all(dts is not None for _, dts, _ in packets):
        times = [((dts or 0) * unit, duration * unit) for _, dts, duration in packets]
    else:
        step = 1 / (guess or Fraction(25))
        times = [(n * step, step) for n in range(len(packets))]
    may_jump = bool(container.format.flags & _MAY_JUMP)
    steps = [time - before for (before, _), (time, _) in zip(times, times[1:])]
    steps += [duration for _, duration in times[-1:] if duration]
    rate = guess if may_jump and 0 < guess <= 60 else constant_rate(steps, guess)
    return _Video(rate, containers.clock_start(container, rate), None if is_stamped else times, may_jump), times


def _whole_packets(container: InputContainer, stream: VideoStream) -> List[Tuple[Optional[int], Optional[int], int]]:
    """pts, dts and duration of every packet up to the first damage, which is told when the frames are read."""
    found = []
    with contextlib.suppress(containers.Damage):
        for packet in containers.packets(container, stream):
            if packet.size and not packet.is_discard:
                found.append((packet.pts, packet.dts, packet.duration or 0))
    return found


def _frames(path: str, video: _Video, side: int, said: Set[str]) -> Iterator[np.ndarray]:
    shape, previous = None, None
    try:
        with containers.open_container(path) as container:
            stream = containers.picture_stream(container, path)
            for pixels in on_grid(_timed(container, stream, video, side), video.rate, video.start, video.may_jump):
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


def _timed(
    container: InputContainer, stream: VideoStream, video: _Video, side: int
) -> Iterator[Tuple[Fraction, Fraction, np.ndarray]]:
    convert, unit = Converter(stream.sample_aspect_ratio, side), stream.time_base or Fraction(1)
    step = 1 / video.rate
    for number, frame in enumerate(containers.decode(container, stream)):
        if video.times is None and frame.pts is not None:
            yield frame.pts * unit, (frame.duration or 0) * unit, convert(frame)
        else:
            known = (video.times or [])[number : number + 1]
            yield (*(known[0] if known else (number * step, step)), convert(frame))
