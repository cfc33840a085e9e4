"""From files to the frames of an animation: what the command and the page have in common.

``tell`` is a function of one line of text that says what was decided on the way (where a face was found, where the
motion starts). ``progress`` is a function of (items, total or None, what) that yields the items and shows how far they
are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from mrfomm.errors import AnyPath, UserError
from mrfomm.media.crop import crop, find_clip_box, find_image_box
from mrfomm.media.images import fit, read_image
from mrfomm.media.pictures import breakdown_picture
from mrfomm.media.reading import FrameSource
from mrfomm.reenactment.animator import (
    AnyAnimator,
    KeypointArrays,
    array_to_images,
    batches,
    check_finite,
    find_start,
    images_to_array,
    movement_scale,
    relative_motion,
)
from mrfomm.runtime.overlap import read_ahead

Tell = Callable[[str], object]
Progress = Callable[[Iterable[np.ndarray], int | None, str], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Driving:
    """A driving clip as the network takes it. source: FrameSource; prepare: frame of any size -> [S,S,3]."""

    source: FrameSource
    prepare: Callable[[np.ndarray], np.ndarray]

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 frames [S,S,3]; every iteration is a new pass."""
        return map(self.prepare, self.source)


class Transfer(NamedTuple):
    """How driving poses become the poses to synthesise.

    motion: "relative" moves a reference, "absolute" copies poses. The rest is for relative motion. adapt_scale: scale
    it by the sizes of the faces; start: driving frame it starts from, None for the closest to a reference.
    """

    motion: str = "relative"
    adapt_scale: bool = False
    start: int | None = None


class Origin(NamedTuple):
    """Where relative motion starts. anchor, initial: KeypointArrays of one frame; scale: of the movement."""

    anchor: KeypointArrays
    initial: KeypointArrays
    scale: float

    def move(self, driving: KeypointArrays) -> KeypointArrays:
        """The anchor moved as the driving clip has moved since its initial frame: KeypointArrays of N -> of N."""
        return relative_motion(self.anchor, driving, self.initial, self.scale)


def read_reference(path: AnyPath, size: int, cropped: bool, tell: Tell) -> np.ndarray:
    """A picture file as uint8 [size,size,3], cropped to its face if asked for."""
    image = read_image(path)
    if cropped:
        image = crop(image, find_image_box(image, path, tell))
    return fit(image, size)


def prepare_driving(source: FrameSource, size: int, cropped: bool, tell: Tell) -> Driving:
    """A FrameSource as a Driving clip, cropped to one box for all frames if asked for."""
    if not cropped:
        return Driving(source, partial(fit, size=size))
    box = find_clip_box(source, source.path, tell=tell)
    return Driving(source, lambda frame: fit(crop(frame, box), size))


def detect(animator: AnyAnimator, driving: Driving, batch: int, progress: Progress) -> KeypointArrays:
    """KeypointArrays of every driving frame (a few hundred bytes a frame)."""
    parts = [
        animator.keypoints(images_to_array(frames))
        for frames in batches(progress(read_ahead(driving), driving.source.count_hint, "reading poses"), batch)
    ]
    return KeypointArrays(*(np.concatenate(part) for part in zip(*parts)))


def target_keypoints(
    transfer: Transfer, references: KeypointArrays, driving: KeypointArrays, tell: Tell
) -> KeypointArrays:
    """The keypoints to synthesise: the driving ones, or their motion transferred to the anchor reference.

    Args:
        transfer: Transfer.
        references: KeypointArrays of K. driving: KeypointArrays of N.

    Returns:
        KeypointArrays of N.

    Raises:
        UserError: the clip has no frame ``transfer.start``.
    """
    if transfer.motion == "absolute":
        return driving
    return find_origin(transfer, references, driving, tell).move(driving)


def find_origin(transfer: Transfer, references: KeypointArrays, driving: KeypointArrays, tell: Tell) -> Origin:
    """The Origin of relative motion. Arguments and errors as of ``target_keypoints``."""
    count = len(driving.value)
    if transfer.start is not None and transfer.start >= count:
        raise UserError(f"--start {transfer.start}: the driving clip has {count} frames, 0 to {count - 1}")
    start = find_start(references, driving, transfer.start)
    tell(f"motion starts at driving frame {start.frame} from reference {start.anchor + 1}")
    anchor, initial = references.frame(start.anchor), driving.frame(start.frame)
    return Origin(anchor, initial, movement_scale(anchor, initial) if transfer.adapt_scale else 1.0)


class Follower:
    """``target_keypoints`` for driving frames that come one by one: relative motion starts from the first.

    Args:
        transfer: Transfer; its start is of no effect. references: KeypointArrays of K. tell: see above.
    """

    def __init__(self, transfer: Transfer, references: KeypointArrays, tell: Tell) -> None:
        self._transfer = transfer._replace(start=0)
        self._references = references
        self._tell = tell
        self._origin: Origin | None = None

    def restart(self) -> None:
        """Let relative motion start from the next frame."""
        self._origin = None

    def __call__(self, pose: KeypointArrays) -> KeypointArrays:
        """The keypoints to synthesise for the next frame: KeypointArrays of one -> of one."""
        if self._transfer.motion == "absolute":
            return pose
        if self._origin is None:
            self._origin = find_origin(self._transfer, self._references, pose, self._tell)
        return self._origin.move(pose)


def synthesise(animator: AnyAnimator, keypoints: KeypointArrays, batch: int) -> Iterator[np.ndarray]:
    """Yield the frames of the result, uint8 [S,S,3]."""
    for start in range(0, len(keypoints.value), batch):
        yield from array_to_images(animator.render(keypoints.frames(start, start + batch)))


def synthesise_with_masks(
    animator: AnyAnimator,
    keypoints: KeypointArrays,
    batch: int,
    references: np.ndarray | Sequence[np.ndarray],
    write_masks: Callable[[np.ndarray], object],
) -> Iterator[np.ndarray]:
    """Like ``synthesise``; each frame's breakdown into uint8 ``references`` [K,S,S,3] is a picture for write_masks."""
    inputs = images_to_array(references)
    for start in range(0, len(keypoints.value), batch):
        prediction, breakdown = animator.render_breakdown(keypoints.frames(start, start + batch))
        images = array_to_images(prediction)
        check_finite(breakdown.warped)
        for warped, mask, image in zip(*breakdown, prediction):
            write_masks(breakdown_picture(inputs, warped, mask, image))
        yield from images
