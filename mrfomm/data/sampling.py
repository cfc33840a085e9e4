"""Which frames a sample is made of: pure functions of the seed, the epoch and the sample's number.

No generator lives from one sample to the next. So a run can be repeated, or resumed at any step, from these
numbers alone, and the samples of a step are the same for every number of processes and loader workers.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mrfomm.data.clips import Clip

_ORDER, _SAMPLE = 0, 1  # what a random stream is for: keeps streams of one seed and epoch apart


class PoseRule(NamedTuple):
    """How frames are drawn by the head's angles.

    angles: function from a Clip to the angles of its frames, [N,3] degrees, yaw first; may raise BrokenClip.
    wide_pairs: see ``draw_by_pose``. references: ``spread`` or ``random``.
    """

    angles: Callable[[Clip], np.ndarray]
    wide_pairs: float
    references: str


class SamplePlan(NamedTuple):
    """The frames of one training sample, and the seed of its augmentation."""

    clip: Clip
    references: tuple[int, ...]
    driving: int
    augmentation_seed: int
    twin: bool  # whether the clip's twin drives


def group_items(clips: Iterable[Clip], id_sampling: bool) -> tuple[tuple[Clip, ...], ...]:
    """What one pass over the data visits: all clips of an identity together (FOMM, vox), or without ``id_sampling``
    each clip by itself."""
    items: dict[str | Clip, list[Clip]] = {}
    for clip in clips:
        items.setdefault(clip.identity if id_sampling else clip, []).append(clip)
    return tuple(tuple(items[key]) for key in (sorted(items) if id_sampling else items))


def epoch_order(
    seed: int, epoch: int, n_items: int, num_repeats: int, batch_size: int, rank: int = 0, world: int = 1
) -> np.ndarray:
    """The sample numbers of one epoch, shuffled, for one process: int64 [steps,batch_size].

    An epoch has ``n_items * num_repeats`` samples; sample i shows item ``i % n_items``. They are cut into
    global batches of ``world * batch_size``, of which rank r takes positions r*batch_size..(r+1)*batch_size.
    The remainder that fills no global batch is dropped, as in FOMM; it is another one in the next epoch.
    """
    order = _generator(_ORDER, seed, epoch).permutation(n_items * num_repeats)
    steps = len(order) // (world * batch_size)
    return order[: steps * world * batch_size].reshape(steps, world, batch_size)[:, rank]


def draw_sample(
    seed: int,
    epoch: int,
    index: int,
    items: Sequence[Sequence[Clip]],
    num_references: int,
    clip_length: Callable[[Clip], int],
    attempt: int = 0,
    rule: PoseRule | None = None,
    twins: float = 0.0,
) -> SamplePlan:
    """Draw a clip of the sample's item, then ``num_references + 1`` frames of the clip, the driving one last.

    The frames are distinct if the clip has enough of them. They come in random order. FOMM sorts its pair,
    which its time flip undoes; of several sorted frames, only the first and the last would ever drive.

    Args:
        index: of the sample, from :func:`epoch_order`. items: what :func:`group_items` returns.
        clip_length: function from a Clip to its number of frames; may raise BrokenClip.
        attempt: 0 for the sample itself; 1, 2... for its replacements, which may show any item.
        rule: for clips that have enough frames; None draws all frames alike.
        twins: how probable it is that the clip's twin drives.
    """
    generator = _generator(_SAMPLE, seed, epoch, index, attempt)
    item = items[index % len(items)] if attempt == 0 else items[generator.integers(len(items))]
    clip = item[generator.integers(len(item))]
    augmentation_seed = int(generator.integers(2**63))
    length, count = clip_length(clip), num_references + 1
    if rule and length >= count:
        *references, driving = draw_by_pose(rule, rule.angles(clip), num_references, generator)
    else:
        *references, driving = generator.choice(length, count, replace=length < count).tolist()
    return SamplePlan(clip, tuple(references), driving, augmentation_seed, bool(generator.random() < twins))


def draw_by_pose(rule: PoseRule, angles: np.ndarray, num_references: int, generator: np.random.Generator) -> list[int]:
    """Draw K references, then the driving frame, of more than K frames of angles [N,3]; all are distinct.

    ``spread`` takes the references out of a random half of the frames, so that others of the clip turn further at
    times. With the probability ``wide_pairs`` a frame drives with one proportional to its distance from the nearest
    reference, the length of the difference of their angles; else, or where all distances are 0, all drive alike.
    """
    order = generator.permutation(len(angles))
    references = order[:num_references]
    if rule.references == "spread":
        half = order[: max(num_references, len(angles) // 2)]
        references = half[spread_in_yaw(angles[half, 0], num_references)]
    others = np.setdiff1d(order, references)
    weights = np.linalg.norm(angles[others, None] - angles[references], axis=2).min(axis=1)  # [N-K]
    if generator.random() >= rule.wide_pairs or not weights.any():
        weights = np.ones(len(others))
    return [*references.tolist(), int(generator.choice(others, p=weights / weights.sum()))]


def spread_in_yaw(yaw: np.ndarray, count: int) -> list[int]:
    """The most frontal of N >= count frames by their yaw [N], then always the one furthest from those that there are.

    Three are a frontal one and the extremes, as the references of the paper's protocol, if the head turns both ways.
    """
    chosen = [int(np.abs(yaw).argmin())]
    while len(chosen) < count:
        distance = np.abs(yaw[:, None] - yaw[chosen]).min(axis=1)
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return chosen


def reference_indices(length: int, num_references: int) -> list[int]:
    """The references of a held-out clip: the first frame, the last, then evenly spaced ones between.

    K = 1: the first; K = 3: first, last and middle (paper, section 4). Frames of clips shorter than K repeat.
    """
    inner = [i * (length - 1) // (num_references - 1) for i in range(1, num_references - 1)]
    return ([0, length - 1] + inner)[:num_references]


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` evenly spaced numbers of 0 to ``count`` - 1, the first and the last included."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([int(part) for part in key]))
