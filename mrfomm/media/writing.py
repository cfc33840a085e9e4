"""Videos, gifs and folders of frames, written frame by frame; whole when they appear, or not there."""

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.filter import Graph
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from PIL import Image, PngImagePlugin

from mrfomm.errors import AnyPath, UserError, remedy
from mrfomm.media.container import pulled, reason
from mrfomm.media.pixels import EXACT
from mrfomm.media.sound import Sound, SoundTrack, find_sound
from mrfomm.media.whole import add_comment
from mrfomm.store import entries, is_staging, staging_folder

_FRAME_NAME = re.compile(r"\d{6,}\.png")
_MARK = b"mrFM"  # the chunk by which our PNG frames are known; editors don't copy it (PNG, 4.7.1)
_FASTEST_GIF = 50  # frames per second: browsers show a delay of 1/100 s as 1/10 s


# Macroblock trees read memory that x264 has not set: without them the same frames give the same bytes.
_H264 = {"crf": "18", "x264-params": "mbtree=0"}


class _Container(NamedTuple):
    codec: str = "libx264"
    pixels: str = "yuv420p"
    multiple: int = 2  # what height and width must be a multiple of
    options: dict[str, str] = _H264
    muxing: dict[str, str] = {}
    copied_audio: tuple[str, ...] = ()  # the codecs that players expect in it
    other_audio: str = "aac"  # the encoder for all others; "": the container has no sound


_MP4 = _Container(muxing={"movflags": "+faststart"}, copied_audio=("aac", "mp3", "mp3float"))
_CONTAINERS = {
    ".mp4": _MP4,
    ".mov": _MP4,
    ".mkv": _Container(copied_audio=("aac", "mp3", "mp3float", "opus", "vorbis", "flac")),
    # AVI has no time stamps: B-frames and a codec's delay would move the pictures
    ".avi": _Container(options={**_H264, "bf": "0"}, other_audio="pcm_s16le"),
    ".gif": _Container("gif", "pal8", 1, {}, other_audio=""),
}


class FrameSink:
    """Takes frames one by one; made by :func:`open_sink`. ``count`` is the number of frames taken so far."""

    def __init__(self, target: Path, put: Callable[[np.ndarray, int], None]) -> None:
        self.count = 0
        self._target, self._put = target, put

    def write(self, frame: np.ndarray) -> None:
        """Add one frame, uint8 [H,W,3] RGB: a ValueError if it isn't, or not of the size of the frames before it in a
        video or gif; a UserError if the disk is full or the encoder fails."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame is uint8 [H,W,3], not {frame.dtype} {list(frame.shape)}")
        with _named_errors(self._target):
            self._put(frame, self.count)
        self.count += 1


def _png_writer(folder: Path, comment: str | None) -> Callable[[np.ndarray, int], None]:
    """Make the folder; the function returned puts the n-th frame into it."""
    text = PngImagePlugin.PngInfo()
    text.add(_MARK, b"")
    if comment is not None:
        text.add_text("Comment", comment)
    folder.mkdir()

    def put(frame: np.ndarray, number: int) -> None:
        # level 1 is three times as fast as the default and a tenth larger
        Image.fromarray(frame).save(folder / f"{number:06d}.png", compress_level=1, pnginfo=text)

    return put


class _Movie:
    """A video or gif being written: pictures, and the sound as far as they have come."""

    def __init__(self, path: Path, rate: Fraction, sound: Sound | None, comment: str | None) -> None:
        self._path, self._rate, self._sound, self._comment = path, rate, sound, comment
        self._kind = _CONTAINERS[path.suffix]
        self._closing = contextlib.ExitStack()
        self._track: SoundTrack | None = None

    def _begin(self, shape: tuple[int, ...]) -> None:
        self._shape, self._padding = shape, [(0, -length % self._kind.multiple) for length in shape[:2]]
        self._container = av.open(f"file:{self._path}", "w", options=dict(self._kind.muxing))
        self._closing.callback(self._container.close)
        if self._comment is not None:
            self._container.metadata["comment"] = self._comment
        height, width = (length + more for length, (_, more) in zip(shape, self._padding))
        self._stream = self._picture_stream(width, height)
        self._graph = _filters(width, height, self._rate, self._kind.pixels)
        if self._sound is not None and self._kind.other_audio:
            self._track = SoundTrack(self._sound, self._container, self._kind.copied_audio, self._kind.other_audio)
            self._closing.callback(self._track.close)

    def _picture_stream(self, width: int, height: int) -> VideoStream:
        """One that says in which colours its frames are."""
        stream = cast(VideoStream, self._container.add_stream(self._kind.codec, self._rate, dict(self._kind.options)))
        stream.width, stream.height, stream.pix_fmt = width, height, self._kind.pixels
        context = stream.codec_context
        context.time_base = 1 / self._rate
        context.thread_count = 1  # the same bytes on every machine
        if self._kind.pixels != "pal8":
            context.colorspace, context.color_range = Colorspace.SMPTE170M, ColorRange.MPEG
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        return stream

    def put(self, frame: np.ndarray, number: int) -> None:
        if not number:
            self._begin(frame.shape)
        if frame.shape != self._shape:
            raise ValueError(f"frame {number} is {list(frame.shape)}, the first is {list(self._shape)}")
        picture = av.VideoFrame.from_ndarray(np.pad(frame, [*self._padding, (0, 0)], mode="edge"), "rgb24")
        picture.pts, picture.time_base = number, 1 / self._rate
        self._encode(picture)
        if self._track is not None:
            self._track.write_to((number + 1) / self._rate)

    def _encode(self, picture: av.VideoFrame | None) -> None:
        self._graph.push(picture)
        for frame in pulled(self._graph):
            self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        self._encode(None)
        self._container.mux(self._stream.encode(None))
        if self._track is not None:
            self._track.finish()
        self._container.close()
        if self._path.suffix == ".gif" and self._comment is not None:
            add_comment(self._path, self._comment)

    def close(self) -> None:
        with contextlib.suppress(av.FFmpegError):  # told already, if anything was to be told
            self._closing.close()


def _filters(width: int, height: int, rate: Fraction, pixels: str) -> Graph:
    """From RGB to what the encoder takes: by the matrix that the stream names, or by a palette for every frame.

    The matrix is BT.601's, whatever the size: readers that look at none take it, as OpenCV does. A palette for the
    whole clip would hold all frames in memory.
    """
    graph = Graph()
    source = graph.add("buffer", f"video_size={width}x{height}:pix_fmt=rgb24:time_base={1 / rate}:frame_rate={rate}")
    sink = graph.add("buffersink")
    if pixels == "pal8":
        split, use = graph.add("split"), graph.add("paletteuse", "new=1")
        palette = graph.add("palettegen", "stats_mode=single")
        graph.link_nodes(source, split, use, sink)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
    else:
        scale = graph.add("scale", f"out_color_matrix=smpte170m:out_range=tv:{EXACT}")
        graph.link_nodes(source, scale, graph.add("format", pixels), sink)
    graph.configure()
    return graph


@contextlib.contextmanager
def open_sink(
    path: AnyPath, fps: float, audio_from: AnyPath | None = None, comment: str | None = None
) -> Iterator[FrameSink]:
    """Write a video, gif or folder of frames: ``with open_sink("out.mp4", 25) as sink: sink.write(frame)``.

    ``.mp4 .mov .mkv .avi`` become H.264, yuv420p, crf 18, by BT.601's matrix and named so; an odd height or width
    repeats its last row or column. ``.gif`` has one palette per frame. A path without a suffix, and any existing
    folder, takes lossless ``000000.png``, ``000001.png``... Missing parent folders are made. The output appears only
    when the block ends well: until then an old file or old frames stay, and after an error nothing new is left.

    Args:
        path: the output.
        fps: frames per second, 0.01 to 1000, of a gif to 50; of no effect on a folder.
        audio_from: clip or sound file whose default sound track, or the next one that can be decoded, goes along, as
            far from its pictures as it was and cut to their length: copied if players expect its codec in this
            container, else encoded (AAC; PCM in avi). Of no effect if it has no sound or is a folder, and on a gif or
            folder output.
        comment: one line for the file's metadata, in a folder for every PNG's (tEXt); nothing else goes into them.

    Raises:
        UserError: on entering, before any work: a suffix that is not listed, a place that cannot be written, a folder
            that holds anything but frames written here, fps out of range, sound that can't be read. On leaving: no
            frame was written, or it couldn't be.
    """
    target = Path(os.path.realpath(path) if os.path.islink(path) else path)  # a link stays, and leads to the result
    _check_target(target)
    rate = _checked_rate(target, fps)
    sound = None if audio_from is None or os.path.isdir(audio_from) else find_sound(audio_from, rate)
    with contextlib.ExitStack() as stack:
        with _named_errors(target):
            staging = stack.enter_context(staging_folder(target))
        is_folder = target.is_dir() or not target.suffix
        finished = staging / ("frames" if is_folder else f"video{target.suffix.lower()}")
        movie = None if is_folder else stack.enter_context(contextlib.closing(_Movie(finished, rate, sound, comment)))
        sink = FrameSink(target, movie.put if movie else _png_writer(finished, comment))
        yield sink
        if not sink.count:
            raise UserError(f"{target}: not written, as there was no frame")
        with _named_errors(target):
            if movie is not None:
                movie.finish()
            _publish(finished, target)


@contextlib.contextmanager
def _named_errors(target: Path) -> Iterator[None]:
    """Name the output in what the disk or an encoder raises."""
    try:
        yield
    except (OSError, av.FFmpegError, UnknownCodecError) as error:
        raise UserError(f"{target}: cannot be written ({reason(error)}); make room or use another place") from error


def _publish(finished: Path, target: Path) -> None:
    """Put what is finished into its place; of a folder the frames that are no longer in it go."""
    if not target.is_dir():
        os.replace(finished, target)
        return
    fresh = {entry.name for entry in finished.iterdir()}
    for name in sorted(fresh):
        os.replace(finished / name, target / name)
    for entry in target.iterdir():
        if _FRAME_NAME.fullmatch(entry.name) and entry.name not in fresh:
            entry.unlink()


def _checked_rate(target: Path, fps: float) -> Fraction:
    is_gif = target.suffix.lower() == ".gif" and not target.is_dir()
    fastest = _FASTEST_GIF if is_gif else 1000
    if not 0.01 <= fps <= fastest:
        is_fast_gif = is_gif and fps > fastest
        told = "browsers show no faster gif: give an .mp4" if is_fast_gif else f"give a number from 0.01 to {fastest}"
        raise UserError(f"{target}: {fps} frames per second; {told}")
    return Fraction(float(fps)).limit_denominator(1001)  # 23.976... becomes 24000/1001 again


def _check_target(target: Path) -> None:
    try:
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):  # a place that can't be made is told when it is to be made
        mode = 0
    except OSError as error:
        raise UserError(f"{target}: {error.strerror}; {remedy(error)}") from error
    if target.is_dir():
        for entry in sorted(entries(target)):
            _check_ours(target, entry)
    elif target.suffix.lower() not in (*_CONTAINERS, ""):
        known = " ".join(_CONTAINERS)
        raise UserError(f"{target}: unknown suffix; use one of {known}, or none for a folder of PNG")
    elif mode and not (target.suffix and stat.S_ISREG(mode)):
        kind = "a file" if stat.S_ISREG(mode) else "a pipe or device"
        raise UserError(f"{target}: is {kind}; give a folder, or a name that ends with .mp4")


def _check_ours(target: Path, entry: Path) -> None:
    """Refuse to clear a folder of what isn't ours: frames are known by their mark, not by their names."""
    if is_staging(entry.name):
        return
    if not _FRAME_NAME.fullmatch(entry.name):
        raise UserError(f"{target}: holds {entry.name}, which is no frame; give a new or empty folder")
    with contextlib.suppress(OSError, SyntaxError, ValueError), Image.open(entry) as image:
        if any(name == _MARK for name, *_ in getattr(image, "private_chunks", ())):
            return
    raise UserError(f"{target}: holds {entry.name}, which this program didn't write; give a new or empty folder")
