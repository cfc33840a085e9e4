"""The paper's bin metric (arXiv 2202.10758, section 4): how far generated heads are from true ones of the same angle.

The axis of angles is split into bins without overlap. In each bin the features of the true images are averaged, and
those of the generated ones: y_l = 1/N sum F_l(I_n), raw activations, layer by layer. The score of a bin is LPIPS
between the two averages; a bin without a true or without a generated image is ignored. The score of a pair is the mean
over its bins.

Features come from an *extractor*, an object with two methods (``eval.lpips.Lpips`` or ``IdentityFeatures``)::

    features(images): uint8 [N,H,W,3] -> list of arrays [M,...], M <= N: images it can't describe are left out
    distance(a, b): two such lists -> [M]
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mrfomm.errors import UserError

OUTSIDE = -1
MOST_BINS = 36_000  # a hundredth of a degree all around


class Extractor(Protocol):
    """Describes images; see the head of this module."""

    def features(self, images: np.ndarray) -> list[np.ndarray]: ...

    def distance(self, features_a: Sequence[np.ndarray], features_b: Sequence[np.ndarray]) -> np.ndarray: ...


class Axis(NamedTuple):
    """Bins of ``width`` degrees from -limit to +limit.

    A bin holds its lower edge and not its upper one, [a, a + width); the last one holds +limit too.
    """

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
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2

    def bins(self, angles: np.ndarray) -> np.ndarray:
        """Number of the bin of each angle: [N] degrees -> int [N], OUTSIDE where |angle| > limit."""
        angles, edges = np.asarray(angles, np.float64), self.edges
        bins = np.searchsorted(edges, angles, side="right") - 1
        bins[angles == edges[-1]] = len(edges) - 2
        bins[(angles < edges[0]) | (angles > edges[-1])] = OUTSIDE
        return bins


def make_axis(width: float, limit: float) -> Axis:
    """An Axis.

    Raises:
        UserError: the bins don't fill the range.
    """
    if not (np.isfinite([width, limit]).all() and width > 0 and limit > 0):
        raise UserError(f"--bin-width {width:g} --range {limit:g}: give positive numbers of degrees")
    count = 2 * limit / width
    if count > MOST_BINS:
        raise UserError(f"--bin-width {width:g} --range {limit:g}: more than {MOST_BINS} bins; give wider ones")
    if count < 0.5 or abs(count - round(count)) > 1e-6:
        raise UserError(
            f"--bin-width {width:g}: doesn't divide the {2 * limit:g} degrees from -{limit:g} to {limit:g}; change one"
        )
    return Axis(width, limit)


class Images(NamedTuple):
    """Images with angles: angles float [N] in degrees; read(indices) -> uint8 [n,H,W,3]."""

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
    """The images that fall into one bin: angle is its middle; true [n]; generated: set number -> [n]."""

    angle: float
    true: np.ndarray
    generated: dict[int, np.ndarray]

    @property
    def images(self) -> int:
        """How many images have to be read."""
        return len(self.true) + sum(map(len, self.generated.values()))


class FeatureMean:
    """Running mean of features. It holds one float64 sum a layer, however many images are added."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: list[np.ndarray] | None = None

    def add(self, features: Sequence[np.ndarray]) -> None:
        """Add a list of arrays [N,...], N >= 0, one array a layer."""
        if not len(features[0]):
            return
        sums = [array.sum(axis=0, dtype=np.float64) for array in features]
        self._sums = sums if self._sums is None else [a + b for a, b in zip(self._sums, sums)]
        self.count += len(features[0])

    def mean(self) -> list[np.ndarray]:
        """The mean as a list of arrays [1,...]; there must be something to average."""
        if self._sums is None:
            raise ValueError("no features to average")
        return [total[None] / self.count for total in self._sums]


def plan_bins(axis: Axis, true_angles: np.ndarray, generated_angles: Iterable[np.ndarray]) -> list[BinTask]:
    """Which images of which set meet in which bin.

    Args:
        axis: Axis.
        true_angles: [N] degrees.
        generated_angles: one such array for each set of generated images.

    Returns:
        list of BinTask: the bins with at least one true image and one of some set, in the order of the axis.
    """
    true_bins = axis.bins(true_angles)
    generated_bins = [axis.bins(angles) for angles in generated_angles]
    tasks = []
    for number, angle in enumerate(axis.centres):
        true = np.flatnonzero(true_bins == number)
        found = {i: np.flatnonzero(bins == number) for i, bins in enumerate(generated_bins)}
        found = {i: indices for i, indices in found.items() if len(indices)}
        if len(true) and found:
            tasks.append(BinTask(float(angle), true, found))
    return tasks


def score_sets(
    extractor: Extractor,
    axis: Axis,
    true: Images,
    generated: Sequence[Images],
    batch: int,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Score]:
    """Score sets of generated images against one set of true ones.

    Bin after bin: the features of one bin are in memory at a time, and true images are described once for all sets.

    Args:
        extractor: see the head of this module.
        axis: Axis.
        true: Images.
        generated: list of Images.
        batch: images described at once; it changes speed and memory only.
        advance: called with a number of images when they are described.

    Returns:
        list of Score, one a set.
    """
    bins: list[list[Bin]] = [[] for _ in generated]
    dropped = [0] * len(generated)
    for task in plan_bins(axis, true.angles, [images.angles for images in generated]):
        true_mean = _average(extractor, true, task.true, batch, advance)
        for i, indices in task.generated.items():
            mean = _average(extractor, generated[i], indices, batch, advance)
            dropped[i] += len(task.true) - true_mean.count + len(indices) - mean.count
            if true_mean.count and mean.count:
                (distance,) = extractor.distance(true_mean.mean(), mean.mean())
                bins[i].append(Bin(task.angle, float(distance), true_mean.count, mean.count))
    return [Score(*parts) for parts in zip(bins, dropped)]


def _average(
    extractor: Extractor, images: Images, indices: np.ndarray, batch: int, advance: Callable[[int], object]
) -> FeatureMean:
    """FeatureMean of some images."""
    total = FeatureMean()
    for start in range(0, len(indices), batch):
        part = indices[start : start + batch]
        total.add(extractor.features(images.read(part)))
        advance(len(part))
    return total


class IdentityFeatures:
    """A face embedding in place of AlexNet's features, as the paper suggests for identity.

    The distance is the squared Euclidean one, as in AED.

    Args:
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
