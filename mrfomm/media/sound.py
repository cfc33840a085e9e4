"""The sound of a clip, laid beside the pictures of another one: copied where players know its codec, else encoded."""

import contextlib
import itertools
import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple, cast

import av
from av.container import InputContainer, OutputContainer
from av.filter import Graph

from mrfomm.errors import AnyPath, UserError
from mrfomm.media import container as containers
from mrfomm.media.timeline import Clock

_BLOCK = 1024  # samples that are encoded at once, and so how exactly the end is cut
_KNOWN_LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "7.1")  # others are mixed down, as players do
_RATES = (44100, 48000, 32000, 24000, 22050, 16000)  # samples per second that every player takes
_SLOWEST = 16000  # samples per second: MP4 takes no slower MP3
_TS_NEGATIVE = 0x40000  # AVFMT_TS_NEGATIVE
_log = logging.getLogger(__name__)


class Sound(NamedTuple):
    """A track that can be decoded: the number of its stream, and the clock of the clip as its pictures are read."""

    path: str
    track: int
    start: Fraction
    ahead: list[Fraction]


def find_sound(path: AnyPath, fps: Fraction) -> Sound | None:
    """The default sound track of a clip or sound file, or the next one that can be decoded; None if it has none.
    ``fps`` is the rate at which the clip's pictures are shown. A UserError if the file can't be opened, or none of its
    tracks decoded."""
    with containers.open_container(path) as container:
        tracks = containers.sound_streams(container)
        if not tracks:
            return None
        course = containers.course(container, containers.shown(container))
        start = containers.start(container, fps, course)
        for track in tracks:
            if _can_be_decoded(path, track.index):
                return Sound(str(path), track.index, start, course.ahead)
    raise UserError(f"{path}: its sound can't be decoded here; leave it out (--no-audio), or encode it again as AAC")


def _can_be_decoded(path: AnyPath, index: int) -> bool:
    with containers.open_container(path) as container:
        stream = container.streams[index]
        return stream.codec_context is not None and next(_decoded(container, stream), None) is not None


def _decoded(container: InputContainer, stream: Any) -> Iterator[Any]:
    """The frames that can be decoded; what is damaged between them is told."""
    is_damaged = False
    with contextlib.suppress(containers.Damage):
        for packet in itertools.chain(containers.packets(container, stream), [None]):
            try:
                yield from stream.decode(packet) if packet is None or packet.size else []
            except (av.FFmpegError, ValueError):
                is_damaged = True
    if is_damaged:
        _log.warning("%s: its sound is damaged in places", container.name)


class SoundTrack:
    """Writes a Sound into a container beside the pictures, as far as they have come: copied if its codec is among
    ``copied``, else by ``encoder``. Nothing may have been written into the container before."""

    def __init__(self, sound: Sound, output: OutputContainer, copied: tuple[str, ...], encoder: str) -> None:
        self._closing = contextlib.ExitStack()
        self._input = self._closing.enter_context(containers.open_container(sound.path))
        self._from = cast(Any, self._input.streams[sound.track])  # PyAV's types don't tell kinds of streams apart
        self._clock, self._output = Clock(sound.start, sound.ahead), output
        can_be_copied = self._from.codec_context.name in copied and self._from.rate >= _SLOWEST
        if can_be_copied and not containers.is_broadcast(self._input):  # whose layout may change on the way
            self._to: Any = output.add_stream_from_template(self._from)
            self._blocks = self._copied()
        else:
            layout = self._from.layout.name if self._from.layout.name in _KNOWN_LAYOUTS else "stereo"
            rate = self._from.rate if self._from.rate in _RATES else 48000
            self._to = output.add_stream(encoder, rate=rate, layout=layout)
            self._blocks = self._encoded()
        self._next: tuple[Fraction, list[av.Packet]] | None = Fraction(-1), []

    def write_to(self, seconds: Fraction) -> None:
        """Write what begins before ``seconds``, counted from the first picture."""
        while self._next is not None and self._next[0] < seconds:
            self._output.mux(self._next[1])
            self._next = next(self._blocks, None)

    def finish(self) -> None:
        """Write what the encoder still holds."""
        if self._to.codec_context.is_encoder and self._to.codec_context.is_open:
            self._output.mux(self._to.encode(None))

    def close(self) -> None:
        """Let the clip go."""
        self._closing.close()

    def _copied(self) -> Iterator[tuple[Fraction, list[av.Packet]]]:
        unit, last = self._from.time_base, None
        can_hide = bool(self._output.format.flags & _TS_NEGATIVE)  # a codec's run-in, before the pictures
        with contextlib.suppress(containers.Damage):
            for packet in containers.packets(self._input, self._from):
                if not packet.size or packet.pts is None:
                    continue
                duration = packet.duration or 0
                time = round(self._clock(packet.pts * unit, duration * unit) / unit)
                if time > (-1 - can_hide * duration if last is None else last):
                    last = packet.pts = packet.dts = time
                    packet.stream = self._to
                    yield last * unit, [packet]

    def _encoded(self) -> Iterator[tuple[Fraction, list[av.Packet]]]:
        done = 0
        for frame in self._blocks_in_time():
            frame.pts, frame.time_base = done, Fraction(1, frame.sample_rate)
            yield done * frame.time_base, self._to.encode(frame)
            done += frame.samples

    def _blocks_in_time(self) -> Iterator[Any]:
        """Blocks of even length from the first picture on; gaps are filled with silence."""
        graph = None
        for frame in _of_one_kind(_decoded(self._input, self._from)):
            unit = Fraction(1, frame.sample_rate)
            graph = graph or _filling(frame, unit)
            if frame.pts is not None:
                frame.pts = round(self._clock(frame.pts * frame.time_base, frame.samples * unit) / unit)
                frame.time_base = unit
            graph.push(frame)
            yield from containers.pulled(graph)
        if graph is not None:
            graph.push(None)
            yield from containers.pulled(graph)


def _of_one_kind(frames: Iterator[Any]) -> Iterator[Any]:
    """What follows in another format, layout or rate, as in broadcasts, made like the first."""
    first, last, resampler = None, None, None
    for frame in frames:
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        first = first or kind
        if kind != last:
            last, resampler = kind, av.AudioResampler(*first) if kind != first else None
        yield from resampler.resample(frame) if resampler else [frame]


def _filling(frame: av.AudioFrame, unit: Fraction) -> Graph:
    graph = Graph()
    source = graph.add_abuffer(sample_rate=frame.sample_rate, format=frame.format, layout=frame.layout, time_base=unit)
    filling = graph.add("aresample", "async=1:first_pts=0:min_hard_comp=0.04")
    graph.link_nodes(source, filling, graph.add("abuffersink")).configure()
    graph.set_audio_frame_size(_BLOCK)
    return graph
