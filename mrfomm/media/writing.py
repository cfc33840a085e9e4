"""Videos, gifs and folders of frames, written frame by frame; whole when they appear, or not there."""

import contextlib
import os
import stat
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
from av.filter import Graph
from av.filter.context import FilterContext
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from PIL import Image, PngImagePlugin

from mrfomm.errors import AnyPath, UserError, remedy
from mrfomm.media.gif import with_comment
from mrfomm.media.images import entries
from mrfomm.media.pixels import EXACT
from mrfomm.media.sound import Sound, SoundTrack, find_sound
from mrfomm.media.staging import FRAME_NAME, is_staging, named_errors, publish, staging_folder

_MARK = b"mrFM"  # the chunk by which our PNG frames are known; editors don't copy it (PNG, 4.7.1)
_FASTEST_GIF = 50  # frames per second: browsers show a delay of 1/100 s as 1/10 s


class _Container(NamedTuple):
    codec: str = "libx264"
    pixels: str = "yuv420p"
    multiple: int = 2  # what height and width must be a multiple of
    options: tuple[tuple[str, str], ...] = (("crf", "18"),)
    muxing: tuple[tuple[str, str], ...] = ()
    copied_audio: tuple[str, ...] = ()  # the codecs that players expect in it
    other_audio: str = "aac"  # the encoder for all others; "": the container has no sound


_MP4 = _Container(muxing=(("movflags", "+faststart"),), copied_audio=("aac", "mp3", "mp3float"))
_CONTAINERS = {
    ".mp4": _MP4,
    ".mov": _MP4,
    ".mkv": _Container(copied_audio=("aac", "mp3", "mp3float", "opus", "vorbis", "flac")),
    # AVI has no time stamps: B-frames and a codec's delay would move the pictures
    ".avi": _Container(options=(("crf", "18"), ("bf", "0")), other_audio="pcm_s16le"),
    ".gif": _Container("gif", "pal8", 1, (), other_audio=""),
}


class FrameSink:
    """Takes frames one by one; made by :func:`open_sink`. ``count`` is the number of frames taken so far."""

    def __init__(self, target: Path) -> None:
        self.count = 0
        self._target = target

    def write(self, frame: np.ndarray) -> None:
        """Add one frame, uint8 [H,W,3] RGB.

        Raises:
            UserError: the disk is full or the encoder fails.
            ValueError: not such an array, or not the size of the frames before it in a video or gif.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame is uint8 [H,W,3], not {frame.dtype} {list(frame.shape)}")
        self._put(frame)
        self.count += 1

    def _put(self, frame: np.ndarray) -> None:
        raise NotImplementedError

    def _finish(self) -> Path:
        """Complete the output; return where it stands aside."""
        raise NotImplementedError

    def _release(self) -> None:
        """Stop what is still running, after success or failure."""


class _FolderSink(FrameSink):
    def __init__(self, target: Path, staging: Path, comment: str | None) -> None:
        super().__init__(target)
        self._folder = staging / "frames"
        self._folder.mkdir()
        self._text = PngImagePlugin.PngInfo()
        self._text.add(_MARK, b"")
        if comment is not None:
            self._text.add_text("Comment", comment)

    def _put(self, frame: np.ndarray) -> None:
        with named_errors(self._target):
            # level 1 is three times as fast as the default and a tenth larger
            path = self._folder / f"{self.count:06d}.png"
            Image.fromarray(frame).save(path, compress_level=1, pnginfo=self._text)

    def _finish(self) -> Path:
        return self._folder


class _VideoSink(FrameSink):
    def __init__(self, target: Path, staging: Path, fps: Fraction, sound: Sound | None, comment: str | None) -> None:
        super().__init__(target)
        self._path = staging / f"video{target.suffix.lower()}"
        self._rate, self._sound, self._comment = fps, sound, comment
        self._shape: tuple[int, ...] = ()
        self._movie: _Movie | None = None

    def _put(self, frame: np.ndarray) -> None:
        with named_errors(self._target):
            if self._movie is None:
                self._shape = frame.shape
                self._movie = _Movie(self._path, self._shape, self._rate, self._sound, self._comment)
            if frame.shape != self._shape:
                raise ValueError(f"frame {self.count} is {list(frame.shape)}, the first is {list(self._shape)}")
            self._movie.put(frame, self.count)

    def _finish(self) -> Path:
        if self._movie is None:
            raise ValueError("no frame was written")
        with named_errors(self._target):
            self._movie.finish()
            if self._path.suffix == ".gif" and self._comment is not None:
                return with_comment(self._path, self._path.with_name("comment.gif"), self._comment)
        return self._path

    def _release(self) -> None:
        if self._movie is not None:
            self._movie.close()


class _Movie:
    """A container being written: pictures, and the sound as far as they have come."""

    def __init__(
        self, path: Path, shape: tuple[int, ...], rate: Fraction, sound: Sound | None, comment: str | None
    ) -> None:
        kind = _CONTAINERS[path.suffix]
        self._rate, self._padding = rate, [(0, -length % kind.multiple) for length in shape[:2]]
        height, width = (length + more for length, (_, more) in zip(shape, self._padding))
        self._container = av.open(f"file:{path}", "w", options=dict(kind.muxing))
        if comment is not None:
            self._container.metadata["comment"] = comment
        stream = self._container.add_stream(kind.codec, rate=rate, options=dict(kind.options))
        self._stream = _described(cast(VideoStream, stream), width, height, kind.pixels)
        self._stream.codec_context.time_base = 1 / rate
        self._stream.codec_context.thread_count = 1  # the same bytes on every machine
        self._graph, self._source, self._sink = _filters(width, height, rate, kind.pixels)
        self._sound = None
        if sound is not None and kind.other_audio:
            self._sound = SoundTrack(sound, self._container, kind.copied_audio, kind.other_audio)

    def put(self, frame: np.ndarray, number: int) -> None:
        picture = av.VideoFrame.from_ndarray(np.pad(frame, [*self._padding, (0, 0)], mode="edge"), "rgb24")
        picture.pts, picture.time_base = number, 1 / self._rate
        self._source.push(picture)
        self._encode()
        if self._sound is not None:
            self._sound.write_to((number + 1) / self._rate)

    def finish(self) -> None:
        self._source.push(None)
        self._encode()
        self._container.mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.finish()
        self._container.close()

    def close(self) -> None:
        if self._sound is not None:
            self._sound.close()
        with contextlib.suppress(av.FFmpegError):  # told already, if anything was to be told
            self._container.close()

    def _encode(self) -> None:
        with contextlib.suppress(av.BlockingIOError, av.EOFError):
            while True:
                self._container.mux(self._stream.encode(cast(av.VideoFrame, self._sink.pull())))


def _described(stream: VideoStream, width: int, height: int, pixels: str) -> VideoStream:
    """Set the size, and say in which colours the frames are."""
    stream.width, stream.height, stream.pix_fmt = width, height, pixels
    if pixels != "pal8":
        context = stream.codec_context
        context.colorspace, context.color_range = Colorspace.SMPTE170M, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def _filters(width: int, height: int, rate: Fraction, pixels: str) -> tuple[Graph, FilterContext, FilterContext]:
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
        for one, other, out, into in ((source, split, 0, 0), (split, use, 0, 0), (split, palette, 1, 0)):
            one.link_to(other, out, into)
        palette.link_to(use, 0, 1)
        use.link_to(sink)
    else:
        scale = graph.add("scale", f"out_color_matrix=smpte170m:out_range=tv:{EXACT}")
        graph.link_nodes(source, scale, graph.add("format", pixels), sink)
    graph.configure()
    return graph, source, sink  # the graph is to be kept: it owns the others


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
        comment: one line that goes into the file's metadata, in a folder into every PNG (as tEXt); see
            :func:`mrfomm.media.reading.read_comment`. Nothing else does.

    Raises:
        UserError: on entering, before any work: a suffix that is not listed, a place that cannot be written, a folder
            that holds anything but frames written here, fps out of range, sound that can't be read. On leaving: no
            frame was written, or it couldn't be.
    """
    target = Path(os.path.realpath(path) if os.path.islink(path) else path)  # a link stays, and leads to the result
    _check_target(target)
    is_gif = target.suffix.lower() == ".gif" and not target.is_dir()
    fastest = _FASTEST_GIF if is_gif else 1000
    if not 0.01 <= fps <= fastest:
        told = "; browsers show no faster gif: give an .mp4" if is_gif and fps > fastest else ""
        raise UserError(f"{target}: {fps} frames per second{told or f'; give a number from 0.01 to {fastest}'}")
    rate = Fraction(float(fps)).limit_denominator(1001)  # 23.976... becomes 24000/1001 again
    sound = None if audio_from is None or os.path.isdir(audio_from) else find_sound(audio_from, rate)
    with staging_folder(target) as staging:
        is_folder = _is_folder(target)
        sink = _FolderSink(target, staging, comment) if is_folder else _VideoSink(target, staging, rate, sound, comment)
        try:
            yield sink
            if not sink.count:
                raise UserError(f"{target}: not written, as there was no frame")
            finished = sink._finish()
        finally:
            sink._release()
        with named_errors(target):
            publish(finished, target)


def _is_folder(target: Path) -> bool:
    return target.is_dir() or not target.suffix


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
    if not FRAME_NAME.fullmatch(entry.name):
        raise UserError(f"{target}: holds {entry.name}, which is no frame; give a new or empty folder")
    try:
        with Image.open(entry) as image:
            is_ours = any(name == _MARK for name, *_ in getattr(image, "private_chunks", ()))
    except (OSError, SyntaxError, ValueError):
        is_ours = False
    if not is_ours:
        raise UserError(f"{target}: holds {entry.name}, which this program didn't write; give a new or empty folder")
