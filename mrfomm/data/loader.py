"""Batches of training samples, made in this process or by worker processes."""

import contextlib
import functools
import hashlib
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mrfomm.data.augment import AugmentOptions, augment
from mrfomm.data.clips import IMAGE_SUFFIXES, BrokenClip, Clip, Frames, open_clip
from mrfomm.data.sampling import draw_sample, epoch_order, group_items, spread
from mrfomm.data.workers import WorkerPool
from mrfomm.errors import UserError
from mrfomm.media.container import Damage, decode, open_container, picture_stream

_ATTEMPTS = 100  # draws for one sample before giving up; only reached when nearly all clips are broken
_BATCHES_AHEAD = 2
_LOOKED_AT = 500  # clips whose frames are counted before the first step

Sample = tuple[np.ndarray, list[BrokenClip]]


class Batch(NamedTuple):
    """Training samples: references float32 [B,K,3,H,W] and driving frames float32 [B,3,H,W], RGB in [0,1]."""

    references: np.ndarray
    driving: np.ndarray


class SampleMaker:
    """Makes samples from (epoch, index); a copy of it works in every worker.

    Args:
        items: what ``sampling.group_items`` returns.
        size: side of the frames.
        num_references: K.
        options: AugmentOptions.
        seed: of the whole run.
    """

    def __init__(
        self, items: Sequence[Sequence[Clip]], size: int, num_references: int, options: AugmentOptions, seed: int
    ) -> None:
        self.items = items
        self.size = size
        self.num_references = num_references
        self.options = options
        self.seed = seed
        self._opened: dict[Clip, Frames] = {}  # opening costs a decoding

    def __call__(self, task: tuple[int, int]) -> Sample:
        """Make the sample of ``task = (epoch, index)``; a broken clip is replaced by another draw.

        Returns:
            uint8 array [K+1,3,H,W] with the driving frame last, and the list of the BrokenClips met.

        Raises:
            UserError: only broken clips were met.
        """
        broken: list[BrokenClip] = []
        for attempt in range(_ATTEMPTS):
            try:
                return self._make(*task, attempt), broken
            except BrokenClip as error:
                broken.append(error)
        raise UserError(f"{_ATTEMPTS} clips in a row can't be read; the last one: {broken[-1]}")

    def _make(self, epoch: int, index: int, attempt: int) -> np.ndarray:
        plan = draw_sample(self.seed, epoch, index, self.items, self.num_references, self._length, attempt)
        frames = self._open(plan.clip).read([*plan.references, plan.driving], self.size)  # [K+1,H,W,3]
        frames = frames.astype(np.float32) / 255
        frames = augment(frames, self.options, np.random.default_rng(plan.augmentation_seed))
        return np.rint(frames * 255).astype(np.uint8).transpose(0, 3, 1, 2)  # [K+1,3,H,W]

    def _open(self, clip: Clip) -> Frames:
        if clip not in self._opened:
            self._opened[clip] = open_clip(clip)
        return self._opened[clip]

    def _length(self, clip: Clip) -> int:
        return self._open(clip).length


class Loader:
    """Batches of an epoch, the same for every number of workers, and together for every number of processes.

    Args:
        clips: what ``clips.find_clips`` returns.
        options: AugmentOptions.
        size: side of the frames.
        num_references: K.
        batch_size: samples per batch of this process.
        seed: of the whole run; every process gives the same.
        num_repeats: passes over the items that make one epoch.
        id_sampling: one item per identity, with a random clip of it each time, instead of one item per clip.
        num_workers: worker processes; 0 makes the samples in this process.
        rank, world: number of this process, and how many share every global batch.
        max_broken: share of the clips that may be broken.

    Broken clips are replaced by other draws, warned about once and their names collected in ``broken``.

    Raises:
        UserError: the epoch doesn't fill a global batch.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        options: AugmentOptions,
        *,
        size: int,
        num_references: int,
        batch_size: int,
        seed: int,
        num_repeats: int = 1,
        id_sampling: bool = True,
        num_workers: int = 0,
        rank: int = 0,
        world: int = 1,
        max_broken: float = 0.1,
    ) -> None:
        self._items = group_items(clips, id_sampling)
        self._clips = clips
        self._seed, self._num_repeats = seed, num_repeats
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._max_broken = max_broken
        self.broken: set[str] = set()
        self.steps_per_epoch = self._count_steps()
        self._maker = SampleMaker(self._items, size, num_references, options, seed)
        self._sample_shape = (num_references + 1, 3, size, size)
        self._pool = None
        if num_workers:
            self._pool = WorkerPool(self._maker, num_workers, self._sample_shape, _BATCHES_AHEAD * batch_size)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. Also happens when the loader is garbage or the program ends."""
        if self._pool:
            self._pool.close()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the names of all clips, and of the sizes of those that are files."""
        sizes = (clip.path.stat().st_size if clip.path.is_file() else 0 for clip in self._clips)
        return hashlib.sha256(repr([(clip.name, size) for clip, size in zip(self._clips, sizes)]).encode()).hexdigest()

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch from a step on. An earlier iterator that wasn't used up ends.

        Returns:
            Iterator of ``steps_per_epoch - start_step`` Batches.

        Raises:
            UserError: more than ``max_broken`` of the clips are broken, or a worker was killed.
        """
        order = self._order(epoch)[start_step:]  # [steps,B]
        tasks = ((epoch, int(index)) for index in order.ravel())
        samples = self._pool.map(tasks) if self._pool else map(self._maker, tasks)
        for _ in range(len(order)):
            yield self._collect(samples)

    def _order(self, epoch: int) -> np.ndarray:
        shares = self._batch_size, self._rank, self._world
        return epoch_order(self._seed, epoch, len(self._items), self._num_repeats, *shares)

    def _count_steps(self) -> int:
        samples, needed = len(self._items) * self._num_repeats, self._batch_size * self._world
        if samples < needed:
            repeats = -(-needed // len(self._items))
            raise UserError(
                f"an epoch of {len(self._items)} items x {self._num_repeats} repeats doesn't fill a batch of "
                f"{needed}; set data.num_repeats to at least {repeats} or lower train.batch_size"
            )
        return samples // needed

    def _collect(self, samples: Iterator[Sample]) -> Batch:
        """The next Batch of an iterator of samples, whose arrays are only valid until the next one."""
        frames_per_sample, *image = self._sample_shape
        B, K = self._batch_size, frames_per_sample - 1
        references = np.empty((B, K, *image), dtype=np.float32)  # [B,K,3,H,W]
        driving = np.empty((B, *image), dtype=np.float32)  # [B,3,H,W]
        for i in range(B):
            frames, broken = next(samples)  # [K+1,3,H,W]
            self._note(broken)
            np.divide(frames[:-1], np.float32(255), out=references[i])
            np.divide(frames[-1], np.float32(255), out=driving[i])
        return Batch(references, driving)

    def _note(self, errors: Iterable[BrokenClip]) -> None:
        for error in errors:
            if error.clip.name in self.broken:
                continue
            self.broken.add(error.clip.name)
            logging.getLogger(__name__).warning("skipping a broken clip: %s", error)
            if len(self.broken) > self._max_broken * len(self._clips):
                raise UserError(
                    f"{len(self.broken)} of {len(self._clips)} clips are broken, more than data.max_broken = "
                    f"{self._max_broken:g} allows; the last one: {error}"
                )


def check_lengths(clips: Sequence[Clip], num_references: int) -> None:
    """Say on stderr how many clips are too short for as many different frames as a sample has. Looks at some hundred.

    Raises:
        UserError: no clip has more frames than one, so that none shows motion.
    """
    wanted = num_references + 1
    looked_at = [clips[i] for i in spread(len(clips), _LOOKED_AT)]
    lengths = [frames_up_to(clip, wanted) for clip in looked_at]
    if max(lengths) == 1 and all(frames_up_to(clip, 2) < 2 for clip in clips):
        raise UserError(
            f"{clips[0].path.parent}: all clips are single pictures, which show no motion; give videos, or put the "
            "pictures of one shot into a folder of their own"
        )
    short = sum(0 < length < wanted for length in lengths)
    if short:
        print(
            f"{short} of {len(looked_at)} training clips have fewer than {wanted} frames: their references and driving "
            "frame repeat each other",
            file=sys.stderr,
        )


def frames_up_to(clip: Clip, most: int) -> int:
    """The number of a clip's frames, or ``most`` if it has more, which aren't decoded; 0 if it can't be read."""
    count = 0
    with contextlib.suppress(UserError, Damage):
        if clip.path.is_dir() or clip.path.suffix.lower() in IMAGE_SUFFIXES:
            return min(most, open_clip(clip).length)
        with open_container(clip.path) as container:
            for _ in itertools.islice(decode(container, picture_stream(container, clip.path)), most):
                count += 1
    return count
