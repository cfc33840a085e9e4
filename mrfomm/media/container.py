"""A container of pictures and sound, opened through FFmpeg's libraries (PyAV), and what of it is used."""

import contextlib
import logging
import os
from fractions import Fraction
from typing import Callable, Iterator, List, TypeVar

import av
import av.logging
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream
from PIL import Image

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.media.timeline import nearest

_T = TypeVar("_T")

# What FFmpeg may take a file for: containers, streams, sound, and stills and text, which are refused with a better
# message. A playlist or a list of files (hls, concat, dash, sdp) would have it open others.
_FORMATS = (
    "mov,matroska,webm,avi,gif,apng,webp,avif,flv,asf,mpeg,mpegts,mpegvideo,ogg,mxf,dv,nut,ivf,rm,wtv,h264,hevc,m4v,"
    "mjpeg,yuv4mpegpipe,wav,mp3,aac,flac,"
    "image2,tty,bmp_pipe,jpeg_pipe,pam_pipe,pgm_pipe,png_pipe,ppm_pipe,tiff_pipe,webp_pipe"
)
_ADMITTED = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}

_HARMLESS = "mmco: unref short failure"  # of clips trimmed without encoding: they refer to frames before their start

# FFmpeg says there what it patches up; nothing is printed
av.logging.set_level(av.logging.ERROR)
av.logging.set_skip_repeated(False)
logging.getLogger("libav").propagate = False


class Damage(Exception):  # noqa: N818 - named as what it tells
    """Not all of a stream can be decoded; the text says why."""


@contextlib.contextmanager
def open_container(path: AnyPath) -> Iterator[InputContainer]:
    """Open a file for reading.

    Raises:
        UserError: missing, no regular file, or nothing that FFmpeg can open.
    """
    check_is_file(path)
    with av.logging.Capture():
        try:
            # "file:" keeps names such as "-x.mp4" and "a:b.mp4" whole
            container = av.open(f"file:{os.fspath(path)}", options=_ADMITTED, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            raise unreadable(path, reason(error)) from error
    with container:
        yield container


def reason(error: BaseException) -> str:
    """FFmpeg's words for an error, without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def unreadable(path: AnyPath, why: str) -> UserError:
    """The error for a file that isn't a video."""
    return UserError(f"{path}: not a readable video ({why}); give a whole mp4 or another video")


def picture_stream(container: InputContainer, path: AnyPath) -> VideoStream:
    """The stream that players show: the default one, not a cover picture; of several the one with most frames.

    Raises:
        UserError: there is none, it can't be decoded, or its frames are too large.
    """
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        raise unreadable(path, "no pictures in it")
    stream = max(moving, key=lambda s: (bool(s.disposition & Disposition.default), s.frames))
    if stream.codec_context is None:
        raise UserError(f"{path}: its pictures can't be decoded here; encode them anew, as H.264 for one")
    if stream.width * stream.height > (Image.MAX_IMAGE_PIXELS or 0):
        raise unreadable(path, f"Picture size {stream.width}x{stream.height}, more than 89 megapixels")
    stream.codec_context.options = {"max_pixels": str(Image.MAX_IMAGE_PIXELS)}  # of a frame, as for images
    stream.codec_context.thread_count = 1
    return stream


def sound_streams(container: InputContainer) -> List[Stream]:
    """The sound tracks, the default one first."""
    return sorted(container.streams.audio, key=lambda s: not s.disposition & Disposition.default)


def first_time(stream: Stream) -> Fraction:
    """When a stream begins, in seconds of the container's clock."""
    return (stream.start_time or 0) * (stream.time_base or Fraction(0))


def clock_start(container: InputContainer, rate: Fraction) -> Fraction:
    """When the grid of ``rate`` places a second begins on which a clip is read and its sound is laid: with pictures or
    sound, whichever is first, and so that the first picture lies on it."""
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    begin = min(first_time(stream) for stream in (*moving[:1], *sound_streams(container)[:1]))
    first = first_time(moving[0]) if moving else begin
    return first - nearest((first - begin) * rate) / rate


def packets(container: InputContainer, stream: Stream) -> Iterator[av.Packet]:
    """The packets of one stream, and an empty one at the end.

    Raises:
        Damage: the file ends too early, or is damaged between two packets.
    """
    return _read(container, stream, lambda packet: packet)


def decode(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """The frames of one stream. Any error that FFmpeg reports ends them: a frame it patched up wasn't filmed so.

    Raises:
        Damage: after the good frames.
    """
    for frames in _read(container, stream, av.Packet.decode):
        if any(frame.is_corrupt for frame in frames):
            raise Damage("a frame is incomplete")
        yield from frames


def _read(container: InputContainer, stream: Stream, use: Callable[[av.Packet], _T]) -> Iterator[_T]:
    incoming = container.demux(stream)
    while True:
        packet, complaint = None, ""
        with av.logging.Capture() as log:
            try:
                packet = next(incoming, None)
                results = [use(packet)] if packet is not None else []
            except av.EOFError:
                return
            except (av.FFmpegError, ValueError) as error:
                complaint = reason(error)
        told = [text.strip() for level, _, text in log if level <= av.logging.ERROR and _HARMLESS not in text]
        is_end = packet is None or not packet.size
        # a live recording's header knows no length, and so its end comes as a surprise, however whole it is
        if (told or complaint) and not (is_end and container.duration is None):
            raise Damage((told or [complaint])[0])
        if packet is None:
            return
        yield from results
