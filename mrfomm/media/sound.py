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
from mrfomm.media.container import Damage, Timing, is_broadcast, open_container, packets, sound_streams, timing

_BLOCK = 1024  # samples that are encoded at once, and so how exactly the end is cut
_KNOWN_LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "7.1")  # others are mixed down, as players do
_RATES = (44100, 48000, 32000, 24000, 22050, 16000)  # samples per second that every player takes
_SLOWEST = 16000  # samples per second: MP4 takes no slower MP3
_TS_NEGATIVE = 0x40000  # AVFMT_TS_NEGATIVE
_log = logging.getLogger(__name__)


class Sound(NamedTuple):
    """A track that can be decoded. ``timing``: of the clip that it is from, as its pictures are read."""

    path: str
    track: int  # the number of its stream
    timing: Timing


def find_sound(path: AnyPath, fps: Fraction) -> Sound | None:
    """The default sound track of a clip or sound file, or the next one that can be decoded; None if it has none.

    Args:
        path: the file.
        fps: the rate at which the clip's pictures are shown.

    Raises:
        UserError: the file can't be opened, or none of its tracks can be decoded.
    """
    with open_container(path) as container:
        tracks = sound_streams(container)
        if not tracks:
            return None
        begin = timing(container, fps)
        for track in tracks:
            if _can_be_decoded(path, track.index):
                return Sound(str(path), track.index, begin)
    raise UserError(f"{path}: its sound can't be decoded here; leave it out (--no-audio), or encode it anew as AAC")


def _can_be_decoded(path: AnyPath, index: int) -> bool:
    with open_container(path) as container:
        stream = container.streams[index]
        return stream.codec_context is not None and next(_decoded(container, stream), None) is not None


def _decoded(container: InputContainer, stream: Any) -> Iterator[Any]:
    """The frames that can be decoded; what is damaged between them is told."""
    is_damaged = False
    with contextlib.suppress(Damage):
        for packet in itertools.chain(packets(container, stream), [None]):
            try:
                yield from stream.decode(packet) if packet is None or packet.size else []
            except (av.FFmpegError, ValueError):
                is_damaged = True
    if is_damaged:
        _log.warning("%s: its sound is damaged in places", container.name)


class SoundTrack:
    """Writes a Sound into a container beside the pictures, as far as they have come.

    Args:
        sound: what to write.
        output: the container; nothing may have been written into it.
        copied: the codecs that players expect in it.
        encoder: for all others.
    """

    def __init__(self, sound: Sound, output: OutputContainer, copied: tuple[str, ...], encoder: str) -> None:
        self._closing = contextlib.ExitStack()
        self._input = self._closing.enter_context(open_container(sound.path))
        self._from = cast(Any, self._input.streams[sound.track])  # PyAV's types don't tell kinds of streams apart
        self._timing, self._output = sound.timing, output
        can_be_copied = self._from.codec_context.name in copied and self._from.rate >= _SLOWEST
        if can_be_copied and not is_broadcast(self._input):  # whose layout may change on the way
            self._to: Any = output.add_stream_from_template(self._from)
            self._blocks = self._copied()
        else:
            self._to = _encoder(output, encoder, self._from)
            self._blocks = self._encoded()
        self._waiting: tuple[Fraction, list[av.Packet]] | None = None

    def write_to(self, seconds: Fraction) -> None:
        """Write what begins before ``seconds``, counted from the first picture."""
        while True:
            self._waiting = self._waiting or next(self._blocks, None)
            if self._waiting is None or self._waiting[0] >= seconds:
                return
            self._output.mux(self._waiting[1])
            self._waiting = None

    def finish(self) -> None:
        """Write what the encoder still holds."""
        if self._to.codec_context.is_encoder and self._to.codec_context.is_open:
            self._output.mux(self._to.encode(None))

    def close(self) -> None:
        """Let the clip go."""
        self._closing.close()

    def _copied(self) -> Iterator[tuple[Fraction, list[av.Packet]]]:
        unit, last = self._from.time_base, None
        clock = self._timing()
        can_hide = bool(self._output.format.flags & _TS_NEGATIVE)  # a codec's run-in, before the pictures
        with contextlib.suppress(Damage):
            for packet in packets(self._input, self._from):
                before = -1 - can_hide * (packet.duration or 0) if last is None else last
                if not packet.size or packet.pts is None:
                    continue
                time = round(clock(packet.pts * unit, (packet.duration or 0) * unit) / unit)
                if time > before:
                    last = time
                    packet.pts, packet.dts, packet.stream = last, last, self._to
                    yield last * unit, [packet]

    def _encoded(self) -> Iterator[tuple[Fraction, list[av.Packet]]]:
        done = 0
        for frame in self._blocks_in_time():
            frame.pts, frame.time_base = done, Fraction(1, frame.sample_rate)
            yield done * frame.time_base, self._to.encode(frame)
            done += frame.samples

    def _blocks_in_time(self) -> Iterator[Any]:
        """Blocks of even length from the first picture on; gaps are filled with silence."""
        graph, clock = None, self._timing()
        for frame in _of_one_kind(_decoded(self._input, self._from)):
            unit = Fraction(1, frame.sample_rate)
            graph = graph or _filling(frame)
            if frame.pts is not None:
                frame.pts = round(clock(frame.pts * frame.time_base, frame.samples * unit) / unit)
                frame.time_base = unit
            graph.push(frame)
            yield from _pulled(graph)
        if graph is not None:
            graph.push(None)
            yield from _pulled(graph)


def _of_one_kind(frames: Iterator[Any]) -> Iterator[Any]:
    """What follows in another format, layout or rate, as in broadcasts, made like the first."""
    first, other, resampler = None, None, None
    for frame in frames:
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        first = first or kind
        if kind not in (first, other):
            other, resampler = kind, av.AudioResampler(*first)
        yield from [frame] if kind == first or resampler is None else resampler.resample(frame)


def _encoder(output: OutputContainer, codec: str, source: Any) -> Any:
    layout = source.layout.name if source.layout.name in _KNOWN_LAYOUTS else "stereo"
    rate = source.rate if source.rate in _RATES else 48000
    return output.add_stream(codec, rate=rate, layout=layout)


def _filling(frame: av.AudioFrame) -> Graph:
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=frame.sample_rate,
        format=frame.format,
        layout=frame.layout,
        time_base=Fraction(1, frame.sample_rate),
    )
    graph.link_nodes(
        source, graph.add("aresample", "async=1:first_pts=0:min_hard_comp=0.04"), graph.add("abuffersink")
    ).configure()
    graph.set_audio_frame_size(_BLOCK)
    return graph


def _pulled(graph: Graph) -> Iterator[Any]:
    with contextlib.suppress(av.BlockingIOError, av.EOFError):
        while True:
            yield graph.pull()
