"""Clips in FOMM's format, and single frames out of them without decoding the rest.

A clip is a video (mp4, mov), a gif, a folder of frames, or one png or jpg with the frames side by side (its
width is a multiple of its height). What comes before the first ``#`` of its name is the identity it shows.

Frames of a video are found by their exact time. The container's frame count can be wrong (videos cut without
re-encoding). So a video is decoded once, without converting a frame, to list the time of every frame; a later seek
is only trusted if the time of the frame it landed on is in that list.
"""

import contextlib
import functools
import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image

from mrfomm.data.labels import check_labelled, read_labels
from mrfomm.errors import AnyPath, UserError, check_is_file, named
from mrfomm.media.container import Damage, Look, decode, look, open_container, picture_stream
from mrfomm.media.images import fit, natural_order, read_image
from mrfomm.media.pixels import Converter
from mrfomm.media.whole import check_whole

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
SUFFIXES = (".mp4", ".mov", ".gif", *IMAGE_SUFFIXES)

_PILLOW = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)
_log = logging.getLogger(__name__)


class Clip(NamedTuple):
    """Where a clip is, its name (without suffix, unique in its folder) and the identity it shows."""

    path: Path
    name: str
    identity: str


class BrokenClip(UserError):  # noqa: N818 - named as what it tells
    """A clip that can't be read: ``clip`` is the Clip, ``problem`` says what is wrong with it."""

    def __init__(self, clip: Clip, problem: str) -> None:
        super().__init__(clip, problem)
        self.clip = clip
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.clip.path}: {self.problem}; replace the clip or move it away"


def find_clips(root: AnyPath) -> list[Clip]:
    """The clips directly in a folder, such as ``data/vox/train``, sorted by name. Hidden files are left out.

    Raises:
        UserError: the folder is missing, has no clip, holds a file that is no clip, or two clips of one name.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give a folder of clips (a dataset has train/ and test/)")
    clips = sorted((_clip(path) for path in _shown(root)), key=lambda clip: (clip.name, clip.path))
    if not clips:
        raise UserError(f"{root}: holds no clip; put videos, gifs, folders of frames or stacked images there")
    for clip, following in zip(clips, clips[1:]):
        if clip.name == following.name:
            raise UserError(f"{following.path}: has the same name as {clip.path.name}; rename one of them")
    return clips


def _shown(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _clip(path: Path) -> Clip:
    is_folder = path.is_dir()
    if not is_folder and path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: not a clip (a folder of frames or {' '.join(SUFFIXES)}); move it away")
    name = path.name if is_folder else path.stem
    return Clip(path, name, name.split("#")[0])


@dataclass(frozen=True)
class Frames:
    """The frames of a clip by number; holds no open file and is small."""

    clip: Clip
    length: int
    _decode: Callable[[Sequence[int]], Iterator[np.ndarray]]  # yields uint8 RGB of ascending, distinct numbers

    def read(self, indices: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
        """Frames in the order of ``indices`` (0..length-1, maybe repeated): uint8 [N,size,size,3] RGB, by ``fit``.

        Only these are converted, and a video is decoded from a key frame near them.

        Raises:
            BrokenClip: a frame can't be decoded (any more).
        """
        wanted = sorted({int(index) for index in indices})
        if not 0 <= wanted[0] <= wanted[-1] < self.length:
            raise IndexError(f"{self.clip.path}: frames {wanted} asked for, it has {self.length}")
        with _named(self.clip):
            decoded = {index: fit(frame, size) for index, frame in zip(wanted, self._decode(wanted))}
        return np.stack([decoded[int(index)] for index in indices])  # [N,H,W,3]


def open_clip(clip: Clip) -> Frames:
    """Look through a clip once, so that its frames can be read by number. Keep it: opening a video decodes all of it.

    Raises:
        BrokenClip: the clip has no frame that can be read.
    """
    with _named(clip):
        if clip.path.is_dir():
            return _frames_of_folder(clip)
        check_is_file(clip.path)
        if clip.path.suffix.lower() in IMAGE_SUFFIXES:
            return _frames_side_by_side(clip)
        video = _Video(clip.path)
        return Frames(clip, video.length, video.decode)


def twin_of(clip: Clip) -> Clip:
    """Somebody else who moves as a clip's person does, frame by frame: ``DIR/twins/train/NAME.mp4``, by this name."""
    path = clip.path.parent.parent / "twins" / clip.path.parent.name / clip.path.name
    return Clip(path, clip.name, clip.identity)


def labels_of(clip: Clip) -> Path:
    """Where the angles of a clip's frames are: ``DIR/labels/train/NAME.csv`` for ``DIR/train/NAME.mp4``."""
    return clip.path.parent.parent / "labels" / clip.path.parent.name / f"{clip.name}.csv"


def angles_of(frames: Frames) -> np.ndarray:
    """The angles of a clip's frames, [length,3] degrees, yaw first, from its labels.

    Raises:
        BrokenClip: they can't be read, or are of another clip or of another number of frames.
    """
    path = labels_of(frames.clip)
    with _named(frames.clip):
        angles = read_labels(path)
        check_labelled(frames.clip.path, path)
        if len(angles) != frames.length:
            raise UserError(f"{path}: {len(angles)} rows, but the clip has {frames.length} frames; label it again")
    return angles


@contextlib.contextmanager
def _named(clip: Clip) -> Iterator[None]:
    """Tell what is wrong inside as the clip's."""
    try:
        yield
    except UserError as error:
        raise BrokenClip(clip, str(error).replace(f"{clip.path}: ", "", 1)) from error


def _frames_of_folder(clip: Clip) -> Frames:
    """The png and jpg files of a folder, in natural order (``2.png`` before ``10.png``)."""
    with named(clip.path, "can't be read"):
        paths = sorted((p for p in _shown(clip.path) if p.suffix.lower() in IMAGE_SUFFIXES), key=natural_order)
    if not paths:
        raise UserError("a folder without png or jpg frames")
    return Frames(clip, len(paths), lambda indices: (read_image(paths[index]) for index in indices))


def _frames_side_by_side(clip: Clip) -> Frames:
    """Square frames in one png or jpg."""
    try:
        with Image.open(clip.path) as image:
            width, height = image.size
    except _PILLOW as error:
        raise UserError(f"can't be read ({error})") from error
    if not height or width % height:
        raise UserError(f"{width} x {height} pixels are not square frames side by side")

    def decode(indices: Sequence[int]) -> Iterator[np.ndarray]:
        pixels = read_image(clip.path)
        side = len(pixels)
        for index in indices:
            if (index + 1) * side > pixels.shape[1]:
                raise UserError(f"frame {index} of {width // height} isn't there any more")
            yield pixels[:, index * side : (index + 1) * side]

    return Frames(clip, width // height, decode)


class _Video:
    """An mp4, mov or gif. A damaged one has the frames before the damage."""

    def __init__(self, path: Path) -> None:
        stamps: list[Any] = []  # int; None: a frame without a time
        keyframes: list[int] = []
        with _opened(path) as (container, stream):
            self._path, self._look = path, look(container, stream)
            try:
                for number, frame in enumerate(decode(container, stream)):
                    if not number:
                        Converter(self._look)(frame)
                    if frame.key_frame:
                        keyframes.append(number)
                    stamps.append(frame.pts)
                check_whole(container, path)
            except (Damage, UserError) as damage:
                if not stamps:
                    raise UserError(f"no frame can be decoded ({damage})") from damage
                _log.warning("%s: damaged (%s); its first %d frames are used", path, damage, len(stamps))
        self.length = len(stamps)
        if not stamps:
            raise UserError("no frame can be decoded")
        # Times that don't ascend don't identify frames; without key frames to go to, nothing seeks.
        is_ascending = None not in stamps and bool(np.all(np.diff(stamps) > 0))
        self._stamps = np.array(stamps if is_ascending else [], np.int64)
        self._keyframes = np.array(keyframes if is_ascending else [], np.int64)

    def decode(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        done = 0
        with contextlib.suppress(av.FFmpegError, Damage):
            for frame in self._seek(indices) if self._stamps.size else ():
                done += 1
                yield frame
        if done < len(indices):
            yield from self._decode_in_order(indices[done:])

    def _seek(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Decode each from the last key frame before it; frames that no other needs are passed over.

        Where a seek landed is told by the frame's time alone. What FFmpeg complains of isn't heard, which is faster:
        it was when the clip was opened.
        """
        wanted = {int(stamp) for stamp in self._stamps[list(indices)]}
        with _opened(self._path) as (container, stream):
            convert, frames, position = _converter(self._look, get_ident()), _some(container, stream, wanted), -1
            for index in indices:
                key = np.searchsorted(self._keyframes, index, side="right") - 1
                if key >= 0 and self._keyframes[key] > position + 1:
                    container.seek(int(self._stamps[self._keyframes[key]]), stream=stream)
                    frames = _some(container, stream, wanted)
                stamp = self._stamps[index]
                frame = next((frame for frame in frames if frame.pts is None or frame.pts >= stamp), None)
                if frame is None or frame.pts != stamp:
                    raise Damage("a seek landed on an unknown frame, or behind the one that was asked for")
                yield convert(frame)
                position = index

    def _decode_in_order(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        wanted, number, reason = set(indices), -1, ""
        with _opened(self._path) as (container, stream):
            convert = Converter(self._look)
            try:
                for number, frame in enumerate(decode(container, stream)):
                    if number in wanted:
                        yield convert(frame)
                    if number == indices[-1]:
                        return
            except Damage as damage:
                reason = f" ({damage})"
        raise UserError(f"frame {number + 1} of {self.length} can't be decoded{reason}")


@functools.lru_cache(maxsize=4)
def _converter(look: Look, thread: int) -> Converter:
    """One for all clips of a kind that a thread reads: making one takes as long as converting three frames."""
    return Converter(look)


def _some(container: InputContainer, stream: VideoStream, wanted: set[int]) -> Iterator[av.VideoFrame]:
    """The frames with these time stamps, and such others as had to be decoded."""
    passing = ""
    for packet in container.demux(stream):
        wish: Literal["DEFAULT", "NONREF"] = "DEFAULT" if packet.pts in wanted or packet.pts is None else "NONREF"
        if wish != passing:  # setting it takes a while
            passing = stream.codec_context.skip_frame = wish
        yield from packet.decode()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    with open_container(path) as container:
        yield container, picture_stream(container, path)
