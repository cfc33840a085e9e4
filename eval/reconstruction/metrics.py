"""Measures of reconstruction: arrays in, numbers out, accumulated in float64.

Images are arrays [H,W,C] in [0,1]; landmarks are [n,2], (x, y) in pixels; embeddings are [D]. Two names marked
*community* follow the programs whose numbers papers report; the names with ``euclidean`` are what their names promise.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from ..detectors import Find

if TYPE_CHECKING:
    from ..lpips import Lpips

AKD_SIZE = 256  # pixels: AKD is defined at this size
SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2  # for a data range of 1

ScoreRow = dict[str, float | None]  # Column's key -> value of a frame, None where the measure can't be taken


def l1(a: np.ndarray, b: np.ndarray) -> float:
    """L1D: mean absolute difference of two images."""
    return float(np.abs(_difference(a, b)).mean())


def akd(a: np.ndarray, b: np.ndarray) -> float:
    """AKD of one frame (community): mean absolute difference over all 2n coordinates. It is no distance of points."""
    return float(np.abs(_difference(a, b)).mean())


def akd_euclidean(a: np.ndarray, b: np.ndarray) -> float:
    """Mean Euclidean distance of corresponding landmarks."""
    return float(np.sqrt((_difference(a, b) ** 2).sum(axis=-1)).mean())


def aed(a: np.ndarray, b: np.ndarray) -> float:
    """AED of one frame (community): sum of squared differences of two embeddings, without a square root."""
    return float((_difference(a, b) ** 2).sum())


def aed_euclidean(a: np.ndarray, b: np.ndarray) -> float:
    """Euclidean distance of two embeddings."""
    return math.sqrt(aed(a, b))


def at_akd_size(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Landmarks [n,2] of a square image of ``size`` pixels, in pixels of the same image at 256.

    Differences scale with the image; without this a smaller image would have the smaller AKD.
    """
    return np.asarray(landmarks, np.float64) * (AKD_SIZE / size)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1; infinite for equal images."""
    error = float((_difference(a, b) ** 2).mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004): Gaussian window of 11x11 with sigma 1.5, where it fits in the image.

    Data range 1, K1 = 0.01, K2 = 0.03; the mean over pixels and channels (Wang et al. use luminance alone). An image
    smaller than the window is a ValueError.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or min(a.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"{a.shape} and {b.shape}: SSIM needs two images of one size, {SSIM_WINDOW} pixels or more")
    mean_a, mean_b = _local_mean(a), _local_mean(b)
    variance_a = _local_mean(a * a) - mean_a**2
    variance_b = _local_mean(b * b) - mean_b**2
    covariance = _local_mean(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + _SSIM_C1) * (2 * covariance + _SSIM_C2)
    return float((likeness / ((mean_a**2 + mean_b**2 + _SSIM_C1) * (variance_a + variance_b + _SSIM_C2))).mean())


def gradient_ratio(picture: np.ndarray, truth: np.ndarray) -> float | None:
    """Mean magnitude of the gradient of a picture by that of its truth: 1 is as sharp, less is blurred or paler, more
    has edges or noise that the truth hasn't; None if the truth is of one colour. It says nothing of *where* edges are.
    """
    own, true = mean_gradient(picture), mean_gradient(truth)
    return own / true if true else None


def mean_gradient(image: np.ndarray) -> float:
    """Mean over pixels and channels of the Euclidean length of the differences to the pixels at the right and below."""
    image = np.asarray(image, np.float64)
    return float(np.hypot(image[:-1, 1:] - image[:-1, :-1], image[1:, :-1] - image[:-1, :-1]).mean())


def _local_mean(image: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean around every pixel whose window fits in: [H,W,C] -> [H-10,W-10,C]."""
    margin = SSIM_WINDOW // 2
    blurred = cv2.GaussianBlur(image, (SSIM_WINDOW, SSIM_WINDOW), _SSIM_SIGMA)
    return blurred[margin:-margin, margin:-margin]


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b in float64; never broadcast."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape}: what is compared must have one shape")
    return a - b


class Column(NamedTuple):
    """A measure: key in the rows, title in the table, back end or "" (numbers of two back ends have two columns)."""

    key: str
    title: str
    backend: str = ""


def columns_of(landmarks: Iterable[str], identity: Iterable[str], backbone: str = "") -> list[Column]:
    """The columns of a table, in order, for back ends and LPIPS' network by name."""
    akd, aed = (
        [Column(f"{key}_{name}", f"{title} ({name})", name) for name in names]
        for key, title, names in (("akd", "AKD", landmarks), ("aed", "AED", identity))
    )
    euclidean = [Column(c.key.replace("_", "_euclidean_", 1), f"Euclidean {c.title}", c.backend) for c in (*akd, *aed)]
    of_pixels = [Column("psnr", "PSNR"), Column("ssim", "SSIM"), Column("lpips", f"LPIPS ({backbone})", backbone)]
    sharpness = Column("gradient", "gradient ratio")
    return [Column("l1", "L1D"), *akd, *aed, *of_pixels, sharpness, *euclidean]


class Measures:
    """What ``score`` takes of every frame: L1D, PSNR, SSIM, LPIPS, gradient ratio; AKD and AED by eval.detectors."""

    def __init__(self, lpips: "Lpips", landmarks: Mapping[str, Find] = {}, identity: Mapping[str, Find] = {}) -> None:
        self.lpips, self.landmarks, self.identity = lpips, landmarks, identity
        self.columns = columns_of(landmarks, identity, lpips.backbone.name)
        self._found: dict[tuple[Find, bytes], np.ndarray | None] = {}  # by back end and digest of a true frame

    def begin_clip(self) -> None:
        """Forget what was found in true frames; until the next call, back ends see each of them once."""
        self._found.clear()

    def find_both(self, find: Find, truth: np.ndarray, picture: np.ndarray) -> list[np.ndarray]:
        """What a back end finds in a true frame and its picture, uint8 [S,S,3]; empty if it misses one."""
        key = find, hashlib.sha256(truth.tobytes()).digest()
        if key not in self._found:
            self._found[key] = find(truth)
        first, second = self._found[key], find(picture)
        return [] if first is None or second is None else [first, second]


def score(measures: Measures, truth: np.ndarray, pictures: np.ndarray) -> list[ScoreRow]:
    """Every measure of each of N pictures, uint8 [N,S,S,3], against its true frame, uint8 [N,S,S,3]."""
    return list(score_each(measures, truth, pictures))


def score_each(measures: Measures, truth: np.ndarray, pictures: np.ndarray) -> Iterator[ScoreRow]:
    """``score``, picture by picture: back ends take their time."""
    perceptual = measures.lpips(truth, pictures)
    for a, b, lpips in zip(truth, pictures, perceptual):
        yield _score_frame(measures, a, b, float(lpips))


def _score_frame(measures: Measures, truth: np.ndarray, picture: np.ndarray, lpips: float) -> ScoreRow:
    a, b = truth / 255, picture / 255
    decibels = psnr(a, b)
    row: ScoreRow = {"l1": l1(a, b), "psnr": decibels if math.isfinite(decibels) else None}
    row.update(ssim=ssim(a, b), lpips=lpips, gradient=gradient_ratio(b, a))
    for name, find in measures.landmarks.items():
        points = [at_akd_size(found, len(truth)) for found in measures.find_both(find, truth, picture)]
        row[f"akd_{name}"] = akd(*points) if points else None
        row[f"akd_euclidean_{name}"] = akd_euclidean(*points) if points else None
    for name, find in measures.identity.items():
        vectors = measures.find_both(find, truth, picture)
        row[f"aed_{name}"] = aed(*vectors) if vectors else None
        row[f"aed_euclidean_{name}"] = aed_euclidean(*vectors) if vectors else None
    return row
