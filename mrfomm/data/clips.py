"""Clips in FOMM's format, and single frames out of them without decoding the rest.

A clip is a video (mp4, mov), a gif, a folder of frames, or one png or jpg with the frames side by side (its
width is a multiple of its height). What comes before the first ``#`` of its name is the identity it shows.

Frames of a video are found by their exact time. The container's frame count can be wrong (videos cut without
re-encoding) and seeking by frame number misses where the frame rate varies. So a video is decoded once,
without converting a frame, to list the time of every frame; a later seek is only trusted if the time of the
frame it landed on is in that list.
"""

import contextlib
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence, Union

import cv2
import numpy as np
from PIL import Image

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.video import fit, read_image

VIDEO_SUFFIXES = (".mp4", ".mov")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
SUFFIXES = (*VIDEO_SUFFIXES, ".gif", *IMAGE_SUFFIXES)

_SILENT = 0  # of OpenCV's own log levels
_Bomb = Image.DecompressionBombError

# OpenCV's seek decodes from the last key frame that is at least this many frames before the one asked for.
_SEEK_MARGIN = 16


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


def find_clips(root: AnyPath) -> List[Clip]:
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
    if suffix in VIDEO_SUFFIXES:
        return VideoFrames(clip)
    return GifFrames(clip) if suffix == ".gif" else StackedFrames(clip)


class Frames:
    """The frames of one clip by number. Subclasses define ``_decode``."""

    def __init__(self, clip: Clip, length: int) -> None:
        if length < 1:
            raise BrokenClip(clip, "no frame can be decoded")
        self.clip = clip
        self.length = length

    def read(self, indices: Union[Sequence[int], np.ndarray], size: int) -> np.ndarray:
        """Read frames. Only these are converted, and a video is decoded from a key frame near them.

        Args:
            indices: frame numbers in 0..length-1, in any order, with or without repetition.
            size: side of the returned frames; others are cut to a centred square and resized (``video.fit``).

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
    """Frames of an mp4 or mov. A damaged video has the frames that can be decoded."""

    def __init__(self, clip: Clip) -> None:
        capture = self._open(clip)
        times: List[float] = []
        keyframes: List[int] = []
        while capture.grab():
            if capture.get(cv2.CAP_PROP_FRAME_TYPE) == ord("I"):
                keyframes.append(len(times))
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC))
        super().__init__(clip, len(times))
        self._times = np.array(times)
        # Times that don't ascend don't identify frames; without key frames to go to, nothing seeks.
        self._keyframes = np.array(keyframes if np.all(np.diff(times) > 0) else [], dtype=np.int64)

    @staticmethod
    def _open(clip: Clip) -> cv2.VideoCapture:
        # FFmpeg prints warnings for healthy videos too (open GOPs); what is broken, we report.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        cv2.setLogLevel(_SILENT)
        # One thread: every seek flushes the decoder, which several threads only delay (measured: 0 to 60 %).
        capture = cv2.VideoCapture(_utf8_name(clip), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not capture.isOpened():
            raise BrokenClip(clip, "not a video that can be opened")
        return capture

    def _decode(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        capture, position = self._open(self.clip), -1  # position: number of the last frame grabbed
        for index in indices:
            if self._keyframe_before(index) > position + _SEEK_MARGIN:
                found = self._seek(capture, index)
                if found is None:
                    capture, position = self._open(self.clip), -1
                else:
                    position = found
            while position < index:
                if not capture.grab():
                    raise BrokenClip(self.clip, f"frame {position + 1} of {self.length} can't be decoded")
                position += 1
            decoded, frame = capture.retrieve()
            if not decoded:
                raise BrokenClip(self.clip, f"frame {index} of {self.length} can't be decoded")
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def _keyframe_before(self, index: int) -> int:
        """The key frame from which a seek to ``index`` decodes, or -1."""
        count = np.searchsorted(self._keyframes, index - _SEEK_MARGIN, side="right")
        return self._keyframes[count - 1] if count else -1

    def _seek(self, capture: cv2.VideoCapture, index: int) -> Optional[int]:
        """Seek to ``index`` and grab a frame. Returns its number, or None if that is unknown or beyond."""
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        if not capture.grab():
            return None
        time = capture.get(cv2.CAP_PROP_POS_MSEC)
        position = int(np.searchsorted(self._times, time))
        return position if position <= index and self._times[position] == time else None


class GifFrames(Frames):
    """Frames of a gif."""

    def __init__(self, clip: Clip) -> None:
        with _broken_if_unreadable(clip), Image.open(clip.path) as image:
            length = getattr(image, "n_frames", 1)  # what another format calls itself .gif may be a still
        super().__init__(clip, length)

    def _decode(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        with _broken_if_unreadable(self.clip), Image.open(self.clip.path) as image:
            for index in indices:
                image.seek(index)
                yield np.asarray(image.convert("RGB"))


class FolderFrames(Frames):
    """Frames that are the png and jpg files of a folder, in natural order (``2.png`` before ``10.png``)."""

    def __init__(self, clip: Clip) -> None:
        with _broken_if_unreadable(clip):
            paths = [path for path in clip.path.iterdir() if not _is_hidden(path)]
        self._paths = sorted((p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES), key=_natural_order)
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


def _utf8_name(clip: Clip) -> str:
    """The path as OpenCV takes it: it crashes on bytes that Python couldn't read as letters, as in an ASCII locale."""
    try:
        return os.fsencode(clip.path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BrokenClip(clip, "the name is not UTF-8; rename it") from error


def _natural_order(path: Path) -> List[Union[int, str]]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


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
