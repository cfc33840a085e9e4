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
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import get_ident
from typing import Literal, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.media.container import Damage, Look, decode, look, open_container, picture_stream
from mrfomm.media.images import fit, natural_order, read_image
from mrfomm.media.pixels import Converter
from mrfomm.media.whole import check_whole

VIDEO_SUFFIXES = (".mp4", ".mov")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
SUFFIXES = (*VIDEO_SUFFIXES, ".gif", *IMAGE_SUFFIXES)

_Bomb = Image.DecompressionBombError
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
    """The clips directly in a folder, such as ``data/vox/train``. Hidden files are left out.

    Args:
        root: path of a folder.

    Returns:
        List of Clip, sorted by name.

    Raises:
        UserError: the folder is missing, has no clip, holds a file that is no clip, or two clips of one name.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give a folder of clips (a dataset has train/ and test/)")
    clips = [_clip(path) for path in root.iterdir() if not _is_hidden(path)]
    if not clips:
        raise UserError(f"{root}: holds no clip; put videos, gifs, folders of frames or stacked images there")
    clips.sort(key=lambda clip: (clip.name, clip.path))
    for clip, following in zip(clips, clips[1:]):
        if clip.name == following.name:
            raise UserError(f"{following.path}: has the same name as {clip.path.name}; rename one of them")
    return clips


def _clip(path: Path) -> Clip:
    is_folder = path.is_dir()
    if not is_folder and path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: not a clip (a folder of frames or {' '.join(SUFFIXES)}); move it away")
    name = path.name if is_folder else path.stem
    return Clip(path, name, name.split("#")[0])


def open_clip(clip: Clip) -> "Frames":
    """Look through a clip once, so that its frames can be read by number.

    Args:
        clip: Clip.

    Returns:
        Frames: ``length`` is the number of frames that can be decoded, ``read(indices, size)`` reads some. It
        holds no open file and is small, so keep it: opening a video decodes all of it.

    Raises:
        BrokenClip: the clip has no frame that can be read.
    """
    suffix = clip.path.suffix.lower()
    if clip.path.is_dir():
        return FolderFrames(clip)
    try:
        check_is_file(clip.path)
    except UserError as error:
        raise BrokenClip(clip, str(error)) from error
    return StackedFrames(clip) if suffix in IMAGE_SUFFIXES else VideoFrames(clip)


class Frames:
    """The frames of one clip by number. Subclasses define ``_decode``."""

    def __init__(self, clip: Clip, length: int) -> None:
        if length < 1:
            raise BrokenClip(clip, "no frame can be decoded")
        self.clip = clip
        self.length = length

    def read(self, indices: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
        """Read frames. Only these are converted, and a video is decoded from a key frame near them.

        Args:
            indices: frame numbers in 0..length-1, in any order, with or without repetition.
            size: side of the returned frames; others are cut to a centred square and resized (``fit``).

        Returns:
            uint8 array [N,size,size,3], RGB, in the order of ``indices``.

        Raises:
            BrokenClip: a frame can't be decoded (any more).
        """
        wanted = sorted({int(index) for index in indices})
        if not 0 <= wanted[0] <= wanted[-1] < self.length:
            raise IndexError(f"{self.clip.path}: frames {wanted} asked for, it has {self.length}")
        decoded = {index: fit(frame, size) for index, frame in zip(wanted, self._decode(wanted))}
        return np.stack([decoded[int(index)] for index in indices])  # [N,H,W,3]

    def _decode(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the RGB uint8 frames of ascending, distinct indices."""
        raise NotImplementedError


class VideoFrames(Frames):
    """Frames of an mp4, mov or gif. A damaged video has the frames before the damage."""

    def __init__(self, clip: Clip) -> None:
        stamps: list[int] = []
        keyframes: list[int] = []
        is_stamped = True
        with _open_video(clip) as (container, stream):
            self._look = look(container, stream)
            try:
                for frame in decode(container, stream):
                    if not stamps:
                        Converter(self._look)(frame)
                    if frame.key_frame:
                        keyframes.append(len(stamps))
                    is_stamped = is_stamped and frame.pts is not None
                    stamps.append(frame.pts or 0)
                check_whole(container, clip.path)
            except (Damage, UserError) as damage:
                if not stamps:
                    raise BrokenClip(clip, f"no frame can be decoded ({damage})") from damage
                _log.warning("%s: damaged (%s); its first %d frames are used", clip.path, damage, len(stamps))
        super().__init__(clip, len(stamps))
        # Times that don't ascend don't identify frames; without key frames to go to, nothing seeks.
        is_ascending = is_stamped and bool(np.all(np.diff(stamps) > 0))
        self._stamps = np.array(stamps if is_ascending else [], np.int64)
        self._keyframes = np.array(keyframes if is_ascending else [], np.int64)

    def _decode(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        done = 0
        try:
            for frame in self._seek(indices) if self._stamps.size else self._decode_in_order(indices):
                done += 1
                yield frame
        except (av.FFmpegError, Damage, _Lost):
            yield from self._decode_in_order(indices[done:])

    def _seek(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Decode each from the last key frame before it; frames that no other needs are passed over.

        Where a seek landed is told by the frame's time alone. What FFmpeg complains of isn't heard, which is faster:
        it was when the clip was opened.
        """
        wanted = {int(stamp) for stamp in self._stamps[list(indices)]}
        with _open_video(self.clip) as (container, stream):
            convert, frames, position = _converter(self._look, get_ident()), _some(container, stream, wanted), -1
            for index in indices:
                key = np.searchsorted(self._keyframes, index, side="right") - 1
                if key >= 0 and self._keyframes[key] > position + 1:
                    container.seek(int(self._stamps[self._keyframes[key]]), stream=stream)
                    frames = _some(container, stream, wanted)
                stamp = self._stamps[index]
                frame = next((frame for frame in frames if frame.pts is None or frame.pts >= stamp), None)
                if frame is None or frame.pts != stamp:
                    raise _Lost
                yield convert(frame)
                position = index

    def _decode_in_order(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        wanted, number, reason = set(indices), -1, ""
        with _open_video(self.clip) as (container, stream):
            convert = Converter(self._look)
            try:
                for number, frame in enumerate(decode(container, stream)):
                    if number in wanted:
                        yield convert(frame)
                    if number == indices[-1]:
                        return
            except Damage as damage:
                reason = f" ({damage})"
        raise BrokenClip(self.clip, f"frame {number + 1} of {self.length} can't be decoded{reason}")


class _Lost(Exception):  # noqa: N818
    """A seek landed on an unknown frame, or behind the one that was asked for."""


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
def _open_video(clip: Clip) -> Iterator[tuple[InputContainer, VideoStream]]:
    with contextlib.ExitStack() as stack:
        try:
            container = stack.enter_context(open_container(clip.path))
            stream = picture_stream(container, clip.path)
        except UserError as error:
            raise BrokenClip(clip, str(error).replace(f"{clip.path}: ", "", 1)) from error
        yield container, stream


class FolderFrames(Frames):
    """Frames that are the png and jpg files of a folder, in natural order (``2.png`` before ``10.png``)."""

    def __init__(self, clip: Clip) -> None:
        with _broken_if_unreadable(clip):
            paths = [path for path in clip.path.iterdir() if not _is_hidden(path)]
        self._paths = sorted((p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES), key=natural_order)
        if not self._paths:
            raise BrokenClip(clip, "a folder without png or jpg frames")
        super().__init__(clip, len(self._paths))

    def _decode(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        for index in indices:
            yield _read_image(self.clip, self._paths[index])


class StackedFrames(Frames):
    """Square frames side by side in one png or jpg."""

    def __init__(self, clip: Clip) -> None:
        with _broken_if_unreadable(clip), Image.open(clip.path) as image:
            width, height = image.size
        if not height or width % height:
            raise BrokenClip(clip, f"{width} x {height} pixels are not square frames side by side")
        super().__init__(clip, width // height)

    def _decode(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        image = _read_image(self.clip, self.clip.path)
        side, width = image.shape[:2]
        for index in indices:
            if (index + 1) * side > width:
                raise BrokenClip(self.clip, f"frame {index} of {self.length} isn't there any more")
            yield image[:, index * side : (index + 1) * side]


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


@contextlib.contextmanager
def _broken_if_unreadable(clip: Clip) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, _Bomb) as error:  # Pillow's decoders
        raise BrokenClip(clip, f"can't be read ({error})") from error


def _read_image(clip: Clip, path: Path) -> np.ndarray:
    try:
        return read_image(path)
    except UserError as error:
        raise BrokenClip(clip, str(error)) from error
