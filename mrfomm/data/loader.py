"""Batches of training samples, made in this process or by worker processes."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mrfomm.data.augment import AugmentOptions, augment
from mrfomm.data.clips import IMAGE_SUFFIXES, BrokenClip, Clip, Frames, angles_of, labels_of, open_clip, twin_of
from mrfomm.data.sampling import PoseRule, SamplePlan, draw_sample, epoch_order, group_items, spread
from mrfomm.data.workers import WorkerPool
from mrfomm.errors import UserError
from mrfomm.media.container import Damage, decode, open_container, picture_stream
from mrfomm.media.images import read_image
from mrfomm.media.reading import open_frames

_ATTEMPTS = 100  # draws for one sample before giving up; only reached when nearly all clips are broken
_BATCHES_AHEAD = 2
_LOOKED_AT = 500  # clips whose frames are counted before the first step

Sample = tuple[np.ndarray, list[BrokenClip]]


class Batch(NamedTuple):
    """Training samples, RGB in [0,1].

    references float32 [B,K,3,H,W]; driving float32 [B,3,H,W]: the frames to be drawn.
    movers float32 [B,2,3,H,W]: whose motion is taken, as on the first reference and as on the driving frame: the person
    again, or the twin; None without twins.
    """

    references: np.ndarray
    driving: np.ndarray
    movers: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class SampleMaker:
    """Makes samples of K references from (epoch, index); a copy of it works in every worker."""

    items: Sequence[Sequence[Clip]]  # of ``sampling.group_items``
    size: int  # side of the frames
    num_references: int
    options: AugmentOptions
    seed: int
    wide_pairs: float  # of ``sampling.PoseRule``, likewise
    references: str
    twins: float  # of ``sampling.draw_sample``
    _angles: dict[Clip, np.ndarray] = dataclasses.field(default_factory=dict, init=False)
    _opened: dict[Clip, Frames] = dataclasses.field(default_factory=dict, init=False)  # opening costs a decoding

    def __call__(self, task: tuple[int, int]) -> Sample:
        """The sample of ``task = (epoch, index)``; a broken clip is replaced by another draw.

        Returns:
            uint8 array [K+1,3,H,W] with the driving frame last, or with two movers behind it [K+3,3,H,W], and the list
            of the BrokenClips met.

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
        rule = PoseRule(self._angles_of, self.wide_pairs, self.references) if self.needs_labels else None
        how = self._length, attempt, rule, self.twins
        plan = draw_sample(self.seed, epoch, index, self.items, self.num_references, *how)
        frames = self._augmented(plan, self._open(plan.clip))
        if self.twins:
            frames = np.concatenate([frames, self._movers(plan, frames)])
        return np.rint(frames * 255).astype(np.uint8).transpose(0, 3, 1, 2)  # [K+1 or K+3,3,H,W]

    def _augmented(self, plan: SamplePlan, clip: Frames) -> np.ndarray:
        frames = clip.read([*plan.references, plan.driving], self.size).astype(np.float32) / 255  # [K+1,H,W,3]
        return augment(frames, self.options, np.random.default_rng(plan.augmentation_seed))

    def _movers(self, plan: SamplePlan, frames: np.ndarray) -> np.ndarray:
        """Two frames, of the twin where the plan says so: the same flips and jitter as the sample's."""
        if plan.twin:
            twin = self._open(twin_of(plan.clip))
            if twin.length != self._length(plan.clip):
                raise BrokenClip(twin.clip, f"{twin.length} frames; its twin has {self._length(plan.clip)}")
            frames = self._augmented(plan, twin)
        return frames[[0, -1]]

    @property
    def needs_labels(self) -> bool:
        """Whether frames are drawn by the head's angles."""
        return self.wide_pairs > 0 or self.references != "random"

    def _angles_of(self, clip: Clip) -> np.ndarray:
        if clip not in self._angles:
            self._angles[clip] = angles_of(self._open(clip))
        return self._angles[clip]

    def _open(self, clip: Clip) -> Frames:
        if clip not in self._opened:
            self._opened[clip] = open_clip(clip)
        return self._opened[clip]

    def _length(self, clip: Clip) -> int:
        return self._open(clip).length


@dataclasses.dataclass(kw_only=True, eq=False)
class Loader:
    """Batches of an epoch, the same for every number of workers, and together for every number of processes.

    Broken clips are replaced by other draws, warned about once and their names collected in ``broken``.

    Raises:
        UserError: the epoch doesn't fill a global batch, or a clip lacks labels or a twin that are needed.
    """

    clips: Sequence[Clip] = dataclasses.field(kw_only=False)
    options: AugmentOptions = dataclasses.field(kw_only=False)
    size: int  # side of the frames
    num_references: int
    batch_size: int  # of this process
    seed: int  # of the whole run: every process gives the same
    num_repeats: int = 1  # passes over the items that make one epoch
    id_sampling: bool = True  # an item is an identity, with a random clip of it each time; else a clip
    num_workers: int = 0  # processes; 0 makes the samples in this one
    rank: int = 0  # of this process among ``world``, which share every global batch
    world: int = 1
    max_broken: float = 0.1  # share of the clips
    wide_pairs: float = 0.0  # of ``sampling.PoseRule``, likewise
    references: str = "random"
    twins: float = 0.0  # of ``sampling.draw_sample``

    def __post_init__(self) -> None:
        self.broken: set[str] = set()
        self._items = group_items(self.clips, self.id_sampling)
        samples, needed = len(self._items) * self.num_repeats, self.batch_size * self.world
        if samples < needed:
            raise UserError(
                f"an epoch of {len(self._items)} items x {self.num_repeats} repeats doesn't fill a batch of {needed}; "
                f"set data.num_repeats to at least {-(-needed // len(self._items))} or lower train.batch_size"
            )
        self.steps_per_epoch = samples // needed
        drawing = self.seed, self.wide_pairs, self.references, self.twins
        self._maker = SampleMaker(self._items, self.size, self.num_references, self.options, *drawing)
        if self._maker.needs_labels:
            check_labels(self.clips)
        if self.twins:
            check_twins(self.clips)
        frames = self.num_references + (3 if self.twins else 1)
        self._shape = self.batch_size, frames, 3, self.size, self.size
        ahead = _BATCHES_AHEAD * self.batch_size
        self._pool = WorkerPool(self._maker, self.num_workers, self._shape[1:], ahead) if self.num_workers else None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers. Also happens when the loader is garbage or the program ends."""
        if self._pool:
            self._pool.close()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the names of all clips, and of the sizes of those that are files."""
        sizes = [clip.path.stat().st_size if clip.path.is_file() else 0 for clip in self.clips]
        return hashlib.sha256(repr([(clip.name, size) for clip, size in zip(self.clips, sizes)]).encode()).hexdigest()

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The ``steps_per_epoch - start_step`` Batches of an epoch from a step on; ends an earlier such iterator.

        Raises:
            UserError: more than ``max_broken`` of the clips are broken, or a worker was killed.
        """
        shares = self.batch_size, self.rank, self.world
        order = epoch_order(self.seed, epoch, len(self._items), self.num_repeats, *shares)[start_step:]  # [steps,B]
        tasks = ((epoch, int(index)) for index in order.ravel())
        samples = self._pool.map(tasks) if self._pool else map(self._maker, tasks)
        for _ in order:
            frames = np.empty(self._shape, np.float32)  # [B,K+1 or K+3,3,H,W]
            for place, sample in zip(frames, samples):  # in this order: zip asks for no sample that has no place
                np.divide(self._checked(sample), np.float32(255), out=place)
            count = self.num_references
            yield Batch(frames[:, :count], frames[:, count], frames[:, count + 1 :] if self.twins else None)

    def _checked(self, sample: Sample) -> np.ndarray:
        frames, errors = sample
        for error in errors:
            if error.clip.name in self.broken:
                continue
            self.broken.add(error.clip.name)
            logging.getLogger(__name__).warning("skipping a broken clip: %s", error)
            if len(self.broken) > self.max_broken * len(self.clips):
                raise UserError(
                    f"{len(self.broken)} of {len(self.clips)} clips are broken, more than data.max_broken = "
                    f"{self.max_broken:g} allows; the last one: {error}"
                )
        return frames


def check_labels(clips: Sequence[Clip]) -> None:
    """Raise UserError, naming the file, if a clip has no labels."""
    for path in map(labels_of, clips):
        if not path.is_file():
            remedy = "label the clips (python -m eval.pose), or set data.wide_pairs=0 and data.references=random"
            raise UserError(f"{path}: not there, and frames are to be drawn by the head's angles; {remedy}")


def check_twins(clips: Sequence[Clip]) -> None:
    """Raise UserError, naming the file, if a clip has no twin."""
    for clip in map(twin_of, clips):
        if not clip.path.exists():
            raise UserError(f"{clip.path}: not there, and data.twins asks for it; put it there, or set data.twins=0")


def check_lengths(clips: Sequence[Clip], num_references: int) -> None:
    """Say on stderr how many clips are too short for as many different frames as a sample has. Looks at some hundred.

    Raises:
        UserError: no clip has more frames than one, so that none shows motion.
    """
    wanted = num_references + 1
    looked_at = tqdm(spread(len(clips), _LOOKED_AT), "looking at clips", unit="clip", leave=False, delay=1)
    lengths = [frames_up_to(clips[i], wanted) for i in looked_at]
    if max(lengths) == 1 and all(frames_up_to(clip, 2) < 2 for clip in clips):
        raise UserError(
            f"{clips[0].path.parent}: all clips are single pictures, which show no motion; give videos, or put the "
            "pictures of one shot into a folder of their own"
        )
    if short := sum(0 < length < wanted for length in lengths):
        tell = f"{short} of {len(lengths)} training clips have fewer than {wanted} frames"
        print(f"{tell}: their references and driving frame repeat each other", file=sys.stderr)


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


def frame_shape(clip: Clip) -> tuple[int, int]:
    """Height and width of a clip's first frame, in pixels; 0 if it can't be read."""
    with contextlib.suppress(UserError, OSError, StopIteration):
        if clip.path.suffix.lower() in IMAGE_SUFFIXES and clip.path.is_file():  # frames side by side
            return (len(read_image(clip.path)),) * 2
        height, width = next(iter(open_frames(clip.path))).shape[:2]
        return height, width
    return 0, 0
