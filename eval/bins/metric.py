"""The paper's bin metric (arXiv 2202.10758, section 4): how far generated heads are from true ones of the same angle.

The axis of angles is split into bins without overlap. In each bin the features of the true images are averaged, and
those of the generated ones: y_l = 1/N sum F_l(I_n), raw activations, layer by layer. The score of a bin is LPIPS
between the two averages; a bin without a true or without a generated image is ignored. The score of a pair is the mean
over its bins.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mrfomm.errors import UserError

OUTSIDE = -1
MOST_BINS = 36_000  # a hundredth of a degree all around


class Extractor(Protocol):
    """Describes images: ``eval.lpips.Lpips`` or ``IdentityFeatures``."""

    def features(self, images: np.ndarray) -> list[np.ndarray]:
        """uint8 [N,H,W,3] -> an array [M,...] a layer, M <= N: images that can't be described are left out."""

    def distance(self, features_a: Sequence[np.ndarray], features_b: Sequence[np.ndarray]) -> np.ndarray:
        """Two such lists -> [M]."""


class Axis(NamedTuple):
    """Bins [a, a + width) from -limit to +limit, in degrees; the last one holds +limit too."""

    width: float
    limit: float

    @property
    def edges(self) -> np.ndarray:
        """The bins' edges, float64 [n+1]: rounded, so that an edge such as 0.3 is the number a label file says."""
        count = round(2 * self.limit / self.width)
        return np.round(-self.limit + self.width * np.arange(count + 1), 9)

    @property
    def centres(self) -> np.ndarray:
        """The bins' middles, float64 [n]."""
        return (self.edges[:-1] + self.edges[1:]) / 2

    def bins(self, angles: np.ndarray) -> np.ndarray:
        """Number of the bin of each angle: [N] degrees -> int [N], OUTSIDE where |angle| > limit."""
        angles, edges = np.asarray(angles, np.float64), self.edges
        bins = np.searchsorted(edges, angles, side="right") - 1
        bins[angles == edges[-1]] = len(edges) - 2
        bins[(angles < edges[0]) | (angles > edges[-1])] = OUTSIDE
        return bins


def make_axis(width: float, limit: float) -> Axis:
    """An Axis; UserError if its bins don't fill the range."""
    given = f"--bin-width {width:g} --range {limit:g}"
    if not (np.isfinite([width, limit]).all() and width > 0 and limit > 0):
        raise UserError(f"{given}: give positive numbers of degrees")
    count = 2 * limit / width
    if count > MOST_BINS:
        raise UserError(f"{given}: more than {MOST_BINS} bins; give wider ones")
    if count < 0.5 or abs(count - round(count)) > 1e-6:
        raise UserError(
            f"--bin-width {width:g}: doesn't divide the {2 * limit:g} degrees from -{limit:g} to {limit:g}; change one"
        )
    return Axis(width, limit)


class Images(NamedTuple):
    """Images with angles: float [N] in degrees; read: int [n] -> uint8 [n,H,W,3], an array's ``__getitem__``."""

    angles: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]


class Bin(NamedTuple):
    """A bin's score: its middle in degrees, the distance of the averages, how many images each is the average of."""

    angle: float
    distance: float
    true: int
    generated: int


class Score(NamedTuple):
    """Of one set of generated images: its bins, and how many images the extractor left out."""

    bins: list[Bin]
    dropped: int

    @property
    def mean(self) -> float:
        """The mean over the bins; NaN without a bin."""
        return float(np.mean([b.distance for b in self.bins])) if self.bins else float("nan")


class BinTask(NamedTuple):
    """The images that fall into one bin: angle is its middle; true int [n]; generated: set number -> int [n]."""

    angle: float
    true: np.ndarray
    generated: dict[int, np.ndarray]

    @property
    def images(self) -> int:
        """How many images have to be read."""
        return len(self.true) + sum(map(len, self.generated.values()))


def plan_bins(axis: Axis, true: np.ndarray, generated: Iterable[np.ndarray]) -> list[BinTask]:
    """The bins, in their order, that a true image and one of some set fall into, by their angles [N] in degrees."""
    true_bins, set_bins = axis.bins(true), [axis.bins(angles) for angles in generated]
    tasks = []
    for number, angle in enumerate(axis.centres):
        indices = np.flatnonzero(true_bins == number)
        found = {i: np.flatnonzero(bins == number) for i, bins in enumerate(set_bins) if (bins == number).any()}
        if len(indices) and found:
            tasks.append(BinTask(float(angle), indices, found))
    return tasks


def score(
    extractor: Extractor,
    axis: Axis,
    true: Images,
    generated: Sequence[Images],
    batch: int = 4,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Score]:
    """Score sets of generated images against one set of true ones, which are described once for all -> a Score a set.

    The features of one bin are in memory at a time. ``batch`` images are described at once, which changes speed and
    memory only; ``advance`` is called with their number then.
    """

    def average(images: Images, indices: np.ndarray) -> FeatureMean:
        total = FeatureMean()
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            total.add(extractor.features(images.read(part)))
            advance(len(part))
        return total

    bins: list[list[Bin]] = [[] for _ in generated]
    dropped = [0] * len(generated)
    for task in plan_bins(axis, true.angles, [images.angles for images in generated]):
        true_mean = average(true, task.true)
        for i, indices in task.generated.items():
            mean = average(generated[i], indices)
            dropped[i] += len(task.true) - true_mean.count + len(indices) - mean.count
            if true_mean.count and mean.count:
                (distance,) = extractor.distance(true_mean.mean(), mean.mean())
                bins[i].append(Bin(task.angle, float(distance), true_mean.count, mean.count))
    return [Score(*parts) for parts in zip(bins, dropped)]


class FeatureMean:
    """Running mean of features. It holds one float64 sum a layer, however many images are added."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: list[np.ndarray] = []

    def add(self, features: Sequence[np.ndarray]) -> None:
        """Add a list of arrays [N,...], N >= 0, one array a layer."""
        if len(features[0]):
            sums = [array.sum(axis=0, dtype=np.float64) for array in features]
            self._sums = [a + b for a, b in zip(self._sums, sums)] if self.count else sums
            self.count += len(features[0])

    def mean(self) -> list[np.ndarray]:
        """The mean as a list of arrays [1,...], empty if nothing was added."""
        return [total[None] / self.count for total in self._sums]


class IdentityFeatures:
    """A face embedding in place of AlexNet's features, as the paper suggests; its distance is squared, as in AED.

    embed: uint8 [H,W,3] -> array [D], or None where it sees no face.
    """

    def __init__(self, embed: Callable[[np.ndarray], np.ndarray | None]) -> None:
        self._embed = embed

    def features(self, images: np.ndarray) -> list[np.ndarray]:
        """uint8 [N,H,W,3] -> a list of one array [M,D]: one row for each image with a face."""
        found = [row for row in map(self._embed, images) if row is not None]
        return [np.stack(found)] if found else [np.zeros((0, 1))]

    def distance(self, features_a: Sequence[np.ndarray], features_b: Sequence[np.ndarray]) -> np.ndarray:
        """Squared distances of embeddings: two lists of one array [M,D] -> [M]."""
        return ((features_a[0] - features_b[0]) ** 2).sum(axis=1)
