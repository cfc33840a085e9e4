"""A decoded frame as players show it: RGB by its own matrix and range, tone-mapped, upright, with square pixels."""

from collections.abc import Iterable
from typing import cast

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideData, Type
from av.video.reformatter import ColorPrimaries, ColorTrc

from mrfomm.media.container import Damage, Look, reason
from mrfomm.media.images import over_white

# FFmpeg's fast conversion between RGB and YUV darkens a frame by one level of 255.
EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"

_WHITE = 203  # cd/m2: where diffuse white lies in HDR (ITU-R BT.2408)
_KNEE = 0.85  # of white: lights above it are rolled off, colours below it stay
_TO_709 = {  # primaries of linear light
    int(ColorPrimaries.BT2020): ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    int(ColorPrimaries.SMPTE431): ((1.1575, -0.1550, -0.0026), (-0.0415, 1.0456, -0.0041), (-0.0181, -0.0786, 1.0966)),
    int(ColorPrimaries.SMPTE432): ((1.2249, -0.2247, 0), (-0.0420, 1.0419, 0), (-0.0197, -0.0786, 1.0979)),  # P3
}


class Converter:
    """Turns the frames of one stream, looked at so, into uint8 [H,W,3]; ``side`` is the shorter one, None: as it is."""

    def __init__(self, look: Look, side: int | None = None) -> None:
        width = f"(iw*{look.aspect or 'if(sar,sar,1)'})"
        factor = f"{side}/min({width},ih)" if side else "1"
        sizes = (f"max(1,round({length}*{factor}))" for length in (width, "ih"))
        self._scale = "w='{}':h='{}'".format(*sizes) + f":eval=frame:{EXACT}"
        left, right, top, bottom = look.crop
        crop = f"iw-{left + right}:ih-{top + bottom}:{left}:{top}:exact=1"
        self._crop = [("crop", crop)] if any(look.crop) else []
        self._kind: tuple = ()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """The frame as RGB; raises Damage if FFmpeg can't convert its colours."""
        colours = (frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries)
        kind = (frame.width, frame.height, frame.format.name, *colours)
        try:
            if kind != self._kind:
                self._kind, self._graph = kind, self._filters(frame)
            self._graph.push(frame)
            pixels = cast(av.VideoFrame, self._graph.pull()).to_ndarray()
        except av.FFmpegError as error:
            named = f"matrix {int(frame.colorspace)}, transfer {int(frame.color_trc)} of ITU-T H.273"
            raise Damage(f"its colours can't be converted here: {named}, {reason(error)}") from error
        pixels = over_white(pixels)
        if pixels.dtype == np.uint16:
            pixels = _to_srgb(pixels, frame.color_trc, frame.color_primaries)
        return np.ascontiguousarray(_upright(pixels, frame))

    def _filters(self, frame: av.VideoFrame) -> Graph:
        is_deep = frame.color_trc in _TO_LIGHT or frame.color_primaries in _TO_709
        is_clear = any(part.is_alpha for part in frame.format.components)
        graph = Graph()
        graph.threads = 1
        size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1"
        colours = f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
        wanted = ("rgb48le", "rgba64le")[is_clear] if is_deep else ("rgb24", "rgba")[is_clear]
        steps = (("buffer", f"{size}:{colours}"), *self._crop, ("scale", self._scale), ("format", wanted))
        graph.link_nodes(*(graph.add(*step) for step in steps), graph.add("buffersink")).configure()
        return graph


def _upright(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Turn and mirror by the display matrix (ISO 14496-12): (x, y) is shown at (a x + c y, b x + d y)."""
    found = [side for side in cast(Iterable[SideData], frame.side_data) if side.type == Type.DISPLAYMATRIX]
    if not found:
        return pixels
    a, b, _, c, d = np.frombuffer(memoryview(cast(bytes, found[0])), np.int32)[:5]
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _hlg_to_light(signal: np.ndarray) -> np.ndarray:
    """The light of a screen in cd/m2 by hybrid log-gamma (BT.2100, table 5). The screen's gamma of 1.2, at 1000 cd/m2,
    is taken by channel, as FFmpeg's zscale has it."""
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return 1000 * scene**1.2


def _pq_to_light(signal: np.ndarray) -> np.ndarray:
    """The light of a screen in cd/m2 by the perceptual quantiser (BT.2100, table 4)."""
    power = signal ** (1 / 78.84375)
    return 10000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)


_TO_LIGHT = {int(ColorTrc.ARIB_STD_B67): _hlg_to_light, int(ColorTrc.SMPTE2084): _pq_to_light}


def _to_srgb(pixels: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """HDR and wide gamuts: uint16 [H,W,3] to uint8 [H,W,3]."""
    signal = np.arange(65536) / 65535
    is_hdr = transfer in _TO_LIGHT
    curve = _TO_LIGHT[transfer](signal) / _WHITE if is_hdr else _srgb_to_light(signal)
    light = np.maximum(curve.astype(np.float32)[pixels] @ np.array(_TO_709.get(primaries, np.eye(3)), np.float32).T, 0)
    if is_hdr:
        peak = np.maximum(light.max(axis=2, keepdims=True), 1e-6)
        over = np.maximum(peak - _KNEE, 0) / (1 - _KNEE)
        light *= np.where(over > 0, _KNEE + (1 - _KNEE) * over / (1 + over), peak) / peak
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).clip(0, 255).astype(np.uint8)


def _srgb_to_light(signal: np.ndarray) -> np.ndarray:
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
