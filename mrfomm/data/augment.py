"""FOMM's augmentation of the frames of one sample: flips, and colour jitter shared by all of them.

FOMM jitters through PIL, which rounds to 8 bits after every adjustment, and the grey mean of the contrast to
a whole level. Here everything is float32; the two differ by rounding only.
"""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class AugmentOptions:
    """What may happen to a sample; the defaults are FOMM's (vox).

    A jitter is half the range of the random factor around 1, or for the hue of the random shift around 0,
    which is a share of the hue circle. 0 turns it off.
    """

    time_flip: bool = True
    horizontal_flip: bool = True
    jitter_brightness: float = 0.1
    jitter_contrast: float = 0.1
    jitter_saturation: float = 0.1
    jitter_hue: float = 0.1


def augment(frames: np.ndarray, options: AugmentOptions, generator: np.random.Generator) -> np.ndarray:
    """Flip and jitter one sample's frames, float32 [N,H,W,3] RGB in [0,1]; the result may share their memory."""
    return jitter(flip(frames, options, generator), options, generator)


def flip(frames: np.ndarray, options: AugmentOptions, generator: np.random.Generator) -> np.ndarray:
    """Reverse the order of the frames with probability 1/2; else mirror them with probability 1/2 (FOMM)."""
    reverse, mirror = generator.random(2) < 0.5
    if reverse and options.time_flip:
        return frames[::-1]
    if mirror and options.horizontal_flip:
        return frames[:, :, ::-1]
    return frames


def jitter(frames: np.ndarray, options: AugmentOptions, generator: np.random.Generator) -> np.ndarray:
    """Adjust brightness, contrast, saturation and hue in random order, shared by all frames (FOMM)."""
    steps = (
        (adjust_brightness, options.jitter_brightness, 1),
        (adjust_contrast, options.jitter_contrast, 1),
        (adjust_saturation, options.jitter_saturation, 1),
        (adjust_hue, options.jitter_hue, 0),
    )
    amounts = [generator.uniform(max(0, 1 - by) if centre else -by, centre + by) for _, by, centre in steps]
    for i in generator.permutation(len(steps)):
        adjust, by, _ = steps[i]
        frames = adjust(frames, amounts[i]) if by else frames
    return frames


def adjust_brightness(frames: np.ndarray, factor: float) -> np.ndarray:
    """Multiply frames by a factor. As all adjustments: float32 [N,H,W,3] in [0,1] to the same, clipped."""
    return _blend(frames, np.float32(0), factor)


def adjust_contrast(frames: np.ndarray, factor: float) -> np.ndarray:
    """Blend every frame with the mean of its grey version: factor 0 gives that mean, 1 the frame."""
    mean = _grey(frames).mean(axis=(1, 2, 3), keepdims=True, dtype=np.float64)  # [N,1,1,1]
    return _blend(frames, mean.astype(np.float32), factor)


def adjust_saturation(frames: np.ndarray, factor: float) -> np.ndarray:
    """Blend every pixel with its grey value: factor 0 gives grey, 1 the frame."""
    return _blend(frames, _grey(frames), factor)


def adjust_hue(frames: np.ndarray, shift: float) -> np.ndarray:
    """Turn the hue by ``shift`` (-0.5..0.5) of the hue circle; value and saturation stay."""
    hsv = _convert(frames, cv2.COLOR_RGB2HSV)
    hsv[..., 0] += np.float32(360 * (shift % 1))  # OpenCV takes angles above 360, but no negative ones
    rgb = _convert(hsv, cv2.COLOR_HSV2RGB)
    return np.clip(rgb, 0, 1, out=rgb)


def _grey(frames: np.ndarray) -> np.ndarray:
    """[N,H,W,1], by the weights of ITU-R 601, as in PIL's mode "L"."""
    return _convert(frames, cv2.COLOR_RGB2GRAY)


def _convert(frames: np.ndarray, code: int) -> np.ndarray:
    N, H, W, _ = frames.shape
    pixels = np.ascontiguousarray(frames).reshape(N * H, W, 3)
    return cv2.cvtColor(pixels, code).reshape(N, H, W, -1)  # [N,H,W,C]


def _blend(frames: np.ndarray, other: np.ndarray | np.float32, factor: float) -> np.ndarray:
    blended = np.float32(factor) * frames
    blended += np.float32(1 - factor) * other
    return np.clip(blended, 0, 1, out=blended)
