"""A container of pictures and sound, opened through FFmpeg's libraries (PyAV), and what of it is used."""

import contextlib
import io
import itertools
import logging
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import av.logging
from av.container import InputContainer
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.stream import Disposition, Stream
from av.video.stream import VideoStream
from PIL import Image

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.media.images import as_browsers
from mrfomm.media.timeline import Span, nearest, running_on

# What FFmpeg may take a file for: containers, streams, sound, and stills and text, which are refused with a better
# message. A playlist or a list of files (hls, concat, dash, sdp) would have it open others.
_FORMATS = (
    "mov,matroska,webm,avi,gif,apng,webp,avif,flv,asf,mpeg,mpegts,mpegvideo,ogg,mxf,dv,nut,ivf,rm,wtv,h264,hevc,m4v,"
    "mjpeg,obu,yuv4mpegpipe,wav,mp3,aac,flac,"
    "image2,tty,bmp_pipe,jpeg_pipe,pam_pipe,pgm_pipe,png_pipe,ppm_pipe,tiff_pipe,webp_pipe"
)
_ADMITTED = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}

_HARMLESS = "mmco: unref short failure"  # of clips trimmed without encoding: they refer to frames before their start

# FFmpeg says there what it patches up; nothing is printed
av.logging.set_level(av.logging.ERROR)
av.logging.set_skip_repeated(False)
logging.getLogger("libav").addHandler(logging.NullHandler())
logging.getLogger("libav").propagate = False
# PyAV 17 raises on side data of a kind that it doesn't know, such as EXIF: it then counts as one that isn't looked at
setattr(Type, "_missing_", classmethod(lambda kinds, value: kinds.AFD))  # noqa: B010 - mypy knows Type by a stub

_MAY_JUMP = 0x0200  # AVFMT_TS_DISCONT
_UNSTAMPED = ("avi", "gif", "mpegvideo", "ogg")  # the stamps of their frames are wanting, or not those that are shown
# Seconds back, and without a picture: more is a clock set anew
_JUMPS = (Fraction(1, 100), 10)  # in a broadcast
_ODD_STAMPS = (Fraction(1), 3600)  # elsewhere

# Elements in the head of a Matroska file: rows and columns that aren't shown, then the size of what is
_SIDE = rb"\x54([\xaa\xbb\xcc\xdd])(?:\x81(.)|\x82(..))"
_CROPPED = rb"(?:\x54[\xaa\xbb\xcc\xdd](?:\x81.|\x82..))+\x54[\xb0\xb2]"


class Damage(Exception):  # noqa: N818 - named as what it tells
    """Not all of a stream can be decoded; the text says why."""


@contextlib.contextmanager
def open_container(path: AnyPath) -> Iterator[InputContainer]:
    """Open a file for reading; a UserError if it is missing, no regular file, or nothing that FFmpeg can open."""
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


def pulled(graph: Graph) -> Iterator[Any]:
    """The frames that have come out of filters."""
    with contextlib.suppress(av.BlockingIOError, av.EOFError):
        while True:
            yield graph.pull()


def is_broadcast(container: InputContainer) -> bool:
    """Whether it may be cut anywhere, change on the way, and have its clock set anew."""
    return bool(container.format.flags & _MAY_JUMP)


def picture_stream(container: InputContainer, path: AnyPath) -> VideoStream:
    """The stream that players show (:func:`shown`), ready to be decoded. A UserError if there is none, it can't be
    decoded, or its frames are too large."""
    stream = shown(container)
    if stream is None:
        raise unreadable(path, "no pictures in it")
    context, limit = stream.codec_context, Image.MAX_IMAGE_PIXELS or 0
    if context is None:
        raise UserError(f"{path}: its pictures can't be decoded here; encode them again, as H.264 for one")
    if stream.width * stream.height * max(1, stream.sample_aspect_ratio or 1) > limit:
        raise unreadable(path, f"Picture size {stream.width}x{stream.height}, more than 89 megapixels")
    # the limit holds for each frame, as for images; columns are cut off exactly, not to a multiple of 32
    context.options, context.thread_count = {"max_pixels": str(limit), "flags": "+unaligned"}, 1
    return stream


def shown(container: InputContainer) -> VideoStream | None:
    """The default stream of pictures, not a cover; of several the one with most frames; None if there is none."""

    def rank(stream: VideoStream) -> tuple[bool, bool, int]:
        is_known = getattr(stream, "width", 0) > 0  # it may be announced, but not be there
        return is_known, bool(stream.disposition & Disposition.default), stream.frames

    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return max(moving, key=rank, default=None)


def sound_streams(container: InputContainer) -> list[Stream]:
    """The sound tracks, the default one first."""
    return sorted(container.streams.audio, key=lambda s: not s.disposition & Disposition.default)


class Look(NamedTuple):
    """How a container wants its pictures shown: width over height of a pixel (None: as each frame says), and how many
    columns and rows aren't shown: left, right, top, bottom."""

    aspect: Fraction | None
    crop: tuple[int, ...]


def look(container: InputContainer, stream: VideoStream) -> Look:
    """PyAV hides a stream's cropping (of mp4 and mkv), but FFmpeg writes it into the head of a Matroska copy (RFC 9559:
    PixelCropLeft and so on)."""
    head = io.BytesIO()
    with contextlib.suppress(av.FFmpegError, ValueError), av.open(head, "w", format="matroska") as copy:
        copy.add_stream_from_template(stream, opaque=True)
        copy.start_encoding()
    found = re.search(_CROPPED, head.getvalue(), re.DOTALL)
    told = re.findall(_SIDE, found[0] if found else b"", re.DOTALL)
    sides = {side: int.from_bytes(one + two, "big") for side, one, two in told}
    crop = tuple(sides.get(side, 0) for side in (b"\xcc", b"\xdd", b"\xbb", b"\xaa"))
    return Look(None if is_broadcast(container) else stream.sample_aspect_ratio, crop)


class Course(NamedTuple):
    """How the pictures of a clip run: the spans of all frames in order, and what the container's clock is ahead
    (:func:`running_on`); whether decoded frames say when they are shown, otherwise the n-th has the n-th span; whether
    parts of packets are missing."""

    spans: list[Span]
    ahead: list[Fraction]
    is_stamped: bool
    is_torn: bool


def course(container: InputContainer, stream: VideoStream | None) -> Course:
    """That of the pictures up to the first damage, which is told when they are decoded; empty without a stream."""
    if stream is None:
        return Course([], [Fraction(0)], True, False)
    found, is_torn = _stamps(container, stream)
    shown, decoded, lengths = ([stamp[n] for stamp in found] for n in range(3))
    kind, step = container.format.name, 1 / (stream.guessed_rate or Fraction(25))
    is_stamped = kind not in _UNSTAMPED and None not in shown
    if kind == "gif":
        lengths = [as_browsers(length) for length in lengths]
        shown = decoded = list(itertools.accumulate([Fraction(0), *lengths]))
    elif not is_stamped and None in decoded:
        lengths = [step] * len(found)
        shown = decoded = [n * step for n in range(len(found))]
    elif not is_stamped:
        shown = decoded
    spans, ahead = running_on(zip(shown, decoded, lengths), *(_JUMPS if is_broadcast(container) else _ODD_STAMPS))
    return Course(spans, ahead, is_stamped, is_torn)


def _stamps(container: InputContainer, stream: VideoStream) -> tuple[list[list[Any]], bool]:
    """When each packet is shown and decoded, if it tells, and for how long, in seconds; and whether parts are missing.
    One that is empty shows the frame before it for longer; of a broadcast, what is cut off before the first key frame
    is left out."""
    found: list[list[Any]] = []
    is_torn, has_begun, unit = False, not is_broadcast(container), stream.time_base or Fraction(1)
    with contextlib.suppress(Damage):
        for packet in packets(container, stream):
            length = (packet.duration or 0) * unit
            if packet.is_keyframe and not has_begun:
                found, is_torn, has_begun = [], False, True
            if packet.size and not packet.is_discard:
                found.append([None if at is None else at * unit for at in (packet.pts, packet.dts)] + [length])
                is_torn = is_torn or packet.is_corrupt
            elif found and not packet.size:
                found[-1][2] += length
    return found, is_torn


def start(container: InputContainer, rate: Fraction, pictures: Course) -> Fraction:
    """The container's time that is 0: where pictures or sound begin, whichever is first, and so that the first picture
    lies on the grid of ``rate`` places a second."""
    sounds = [(sound.start_time or 0) * (sound.time_base or Fraction(0)) for sound in sound_streams(container)[:1]]
    begins = [time for time, _ in pictures.spans[:1]] + sounds or [Fraction(0)]
    return begins[0] - nearest((begins[0] - min(begins)) * rate) / rate


def packets(container: InputContainer, stream: Stream) -> Iterator[av.Packet]:
    """The packets of one stream; those that are empty carry nothing but time. Damage is raised where the file ends too
    early, or is damaged between two packets."""
    for packet, _, complaint in _read(container, stream, False):
        if complaint and (packet is None or not is_broadcast(container)):  # there, decoding tells what is damaged
            raise Damage(complaint)
        if packet is not None:
            yield packet


def decode(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """The frames of one stream. Any error that FFmpeg reports ends them, by Damage: a frame it patched up wasn't filmed
    so. A broadcast begins with its first key frame: what is cut off before it is no damage."""
    has_begun = not is_broadcast(container)
    for _, frames, complaint in _read(container, stream, True):
        is_bad = complaint or any(frame.is_corrupt for frame in frames)
        if is_bad and has_begun:
            raise Damage(complaint or "a frame is incomplete")
        if not is_bad:
            has_begun = has_begun or bool(frames)
            yield from frames


def _read(
    container: InputContainer, stream: Any, is_decoding: bool
) -> Iterator[tuple[av.Packet | None, list[av.VideoFrame], str]]:
    """Each packet, what came out of it, and what FFmpeg complained of meanwhile."""
    incoming = container.demux(stream)
    packet: av.Packet | None
    is_end = False
    while not is_end:
        packet, frames, complaint = None, [], ""
        with av.logging.Capture() as log:
            try:
                packet = next(incoming, None)
                if packet is not None and packet.is_corrupt and not is_broadcast(container):
                    complaint = "a packet is incomplete"
                elif is_decoding and (packet is None or packet.size):
                    frames = stream.decode(packet)
            except (av.FFmpegError, ValueError) as error:
                complaint = reason(error)
            except IndexError:  # PyAV 17, at the end of a file in which streams came in late
                frames = stream.decode(None) if is_decoding else []
        is_end = packet is None
        told = [text.strip() for level, _, text in log if level <= av.logging.ERROR and _HARMLESS not in text]
        # a live recording's header knows no length, and so its end comes as a surprise, however whole it is
        is_live = container.duration is None and (packet is None or not packet.size)
        yield packet, frames, "" if is_live else (told or [complaint])[0]
