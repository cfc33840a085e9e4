"""References chosen from a clip: sharp frames that cover its poses.

A frame's pose is its keypoints, centred, scaled by the face's size and turned upright: place, size and turns in the
picture's plane show nothing new. The choice begins with the frame nearest to the mean pose, and takes the frame that is
farthest from those chosen until there are enough (greedy farthest-point). Those lie at the rim, so each then moves to
the frame nearest to the mean of the poses that are nearest to it (k-means), until none moves. What that brings stands
in docs/your-photos.md.

A frame's sharpness is the variance of the Laplacian of its grey values, in the middle half of the picture at the
model's size. Frames below BLURRED times the clip's median are left out.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from mrfomm.errors import AnyPath, UserError
from mrfomm.media.crop import Framed, find_clip_box
from mrfomm.media.images import fit
from mrfomm.media.reading import FrameSource, open_frames
from mrfomm.reenactment.animator import SEARCHING, Watch, find_keypoints
from mrfomm.reenactment.backends import Engine
from mrfomm.reenactment.motion import normalised_points
from mrfomm.runtime.overlap import read_ahead

BLURRED = 0.5
_MOST_MOVES = 100
_MEANS = 3  # the mean of turned poses is another one: after this many it stays


@dataclass(frozen=True)
class FromClip:
    """References to be chosen: ``Reenactor(weights, FromClip("clip.mp4", 3))``.

    clip: video, gif or folder of frames, or a FrameSource; count: how many, at least 1.
    """

    clip: AnyPath | FrameSource
    count: int

    def open(self) -> FrameSource:
        """The clip, to be read several times."""
        return self.clip if isinstance(self.clip, FrameSource) else open_frames(self.clip)


def choose_references(
    wanted: FromClip, engine: Engine, crop: bool, batch: int, tell: Callable[[str], object], watch: Watch
) -> list[Framed]:
    """The frames that a clip gives, in the order in which they were chosen; with ``crop``, one square for all of them.

    The clip is read two or three times and not kept: a few hundred bytes a frame. The rest is as of ``Reenactor``.

    Raises:
        UserError: the clip can't be read, has too few sharp frames, or no face to crop to.
    """
    source = wanted.open()
    total, sharpness = source.count_hint, []
    box = find_clip_box(watch(source, total, SEARCHING), source.path, tell=tell) if crop else None

    def frames() -> Iterator[np.ndarray]:
        for image in watch(read_ahead(source), total, "looking for references"):
            frame = fit(Framed(image, box).cut(), engine.size)
            sharpness.append(sharpness_of(frame))
            yield frame

    poses = find_keypoints(engine.graphs, frames(), batch)
    sharp = sharp_frames(np.array(sharpness))
    if wanted.count > len(sharp):
        found = f"{len(sharpness)} frames, of which {len(sharp)} are sharp"
        raise UserError(f"--count {wanted.count}: {source.path} has {found}; choose no more than that")
    numbers = sharp[cover(upright(normalised_points(poses.value[sharp])), wanted.count)].tolist()
    places = ", ".join(f"{number} ({number / source.fps:.2f} s)" for number in numbers)
    tell(f"{source.path}: references are frames {places}; {len(sharpness) - len(sharp)} blurred ones were left out")
    through = max(numbers) + 1
    read = enumerate(watch(itertools.islice(source, through), through, "fetching references"))
    images = {number: image for number, image in read if number in numbers}
    return [Framed(images[number], box) for number in numbers]


def sharpness_of(frame: np.ndarray) -> float:
    """The variance of the Laplacian in the middle half of uint8 [S,S,3], in squared grey values."""
    middle = slice(len(frame) // 4, len(frame) - len(frame) // 4)
    grey = cv2.cvtColor(frame[middle, middle], cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def sharp_frames(sharpness: np.ndarray) -> np.ndarray:
    """The numbers of the frames that aren't blurred, at least half of them: float [N] -> int [M]."""
    return np.flatnonzero(sharpness >= BLURRED * np.median(sharpness))


def upright(poses: np.ndarray) -> np.ndarray:
    """Turn each of the poses [N,n,2], which are centred, as near to their mean as can be (Procrustes)."""
    points = poses[..., 0] + 1j * poses[..., 1]
    for _ in range(_MEANS):
        toward = (points.conj() * points.mean(axis=0)).sum(axis=1, keepdims=True)
        points = points * np.exp(1j * np.angle(toward))
    return np.stack([points.real, points.imag], axis=-1)


def cover(poses: np.ndarray, count: int) -> list[int]:
    """Numbers of ``count`` different poses of [N,n,2], N >= count, to which the others are near."""
    points = poses.reshape(len(poses), -1)
    chosen = farthest(points, count)
    for _ in range(_MOST_MOVES):
        distances = [((points - points[number]) ** 2).sum(axis=1) for number in chosen]
        groups = np.argmin(distances, axis=0)
        groups[chosen] = range(count)  # none is empty, even where all are one pose
        moved = [_nearest_to_mean(points, np.flatnonzero(groups == group)) for group in range(count)]
        if moved == chosen:
            break
        chosen = moved
    return chosen


def _nearest_to_mean(points: np.ndarray, members: np.ndarray) -> int:
    """The number of the member nearest to the members' mean."""
    distances = ((points[members] - points[members].mean(axis=0)) ** 2).sum(axis=1)
    return int(members[distances.argmin()])


def farthest(points: np.ndarray, count: int) -> list[int]:
    """Numbers of ``count`` points of [N,d], N >= count: the one nearest to the mean, then always the farthest one."""
    chosen = [_nearest_to_mean(points, np.arange(len(points)))]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        nearest[chosen] = -1  # even where all are one pose, none comes twice
        chosen.append(int(nearest.argmax()))
    return chosen
