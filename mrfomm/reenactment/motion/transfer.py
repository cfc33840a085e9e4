"""Motion transfer: from the poses of driving frames to the poses that are drawn.

With several references, relative motion needs one pose to start from: the *anchor*, the reference closest in pose to
the starting driving frame. The driving motion is transferred to the anchor's keypoints, and every reference is warped
to the result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from mrfomm.errors import UserError


class KeypointArrays(NamedTuple):
    """value float32 [N,n,2], (x, y) in [-1,1]; jacobian float32 [N,n,2,2]."""

    value: np.ndarray
    jacobian: np.ndarray

    def frames(self, start: int, stop: int) -> "KeypointArrays":
        """The keypoints of frames start to stop - 1."""
        return KeypointArrays(self.value[start:stop], self.jacobian[start:stop])

    def frame(self, index: int) -> "KeypointArrays":
        """The keypoints of one frame, with a leading axis of 1."""
        return self.frames(index, index + 1)


class Start(NamedTuple):
    """frame: index of the driving frame the motion is relative to; anchor: index of the reference it starts from."""

    frame: int
    anchor: int


MOST_STRENGTH = 2.0
Move = Callable[[KeypointArrays], KeypointArrays]  # driving keypoints of N frames -> those to draw, of N


@dataclass(frozen=True)
class Transfer:
    """How driving poses become the poses to draw: "relative" motion moves a reference, "absolute" copies poses.

    The rest is for relative motion. adapt_scale: scale it by the sizes of the faces. start: number of the driving frame
    it starts from; anchor: index of the reference that is moved; None for those closest in pose. strength: how much of
    it is transferred, 0 (still) to MOST_STRENGTH.
    """

    motion: str = "relative"
    adapt_scale: bool = False
    start: int | None = None
    anchor: int | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.motion not in ("relative", "absolute"):
            raise ValueError(f"motion {self.motion!r}: relative or absolute")
        if not 0 <= self.strength <= MOST_STRENGTH or (self.motion == "absolute" and self.strength != 1):
            raise ValueError(f"strength {self.strength}: 0 to {MOST_STRENGTH:g}, and 1 with absolute motion")

    def begin(
        self, references: KeypointArrays, driving: KeypointArrays, tell: Callable[[str], object] = lambda line: None
    ) -> Move:
        """The Move from where motion starts among driving keypoints; ``tell`` takes a line of text that says where.

        Raises:
            UserError: there is no driving frame ``start``. The Move raises it where that frame's jacobian is singular.
        """
        if self.motion == "absolute":
            return lambda keypoints: keypoints
        count = len(driving.value)
        if self.start is not None and self.start >= count:
            raise UserError(f"--start {self.start}: the driving clip has {count} frames, 0 to {count - 1}")
        start = find_start(references, driving, self.start, self.anchor)
        tell(f"motion starts at driving frame {start.frame} from reference {start.anchor + 1}")
        anchor, initial = references.frame(start.anchor), driving.frame(start.frame)
        scale = movement_scale(anchor, initial) if self.adapt_scale else 1.0
        return partial(relative_motion, anchor, initial=initial, scale=scale, strength=self.strength)


RELATIVE = Transfer()


def relative_motion(
    anchor: KeypointArrays,
    driving: KeypointArrays,
    initial: KeypointArrays,
    scale: float = 1.0,
    strength: float = 1.0,
) -> KeypointArrays:
    """Transfer the motion of N frames since an initial one to an anchor's keypoints (FOMM, equation 20).

    p = p_a + s scale (p_d - p_d0), J = ((1 - s) I + s J_d J_d0^-1) J_a, where s is the strength: with 1 it is FOMM's.

    Raises:
        UserError: a jacobian of the initial frame is singular.
    """
    value = anchor.value + strength * scale * (driving.value - initial.value)
    change = driving.jacobian @ _inverse(initial.jacobian)
    jacobian = ((1 - strength) * np.eye(2, dtype=np.float32) + strength * change) @ anchor.jacobian
    return KeypointArrays(value.astype(np.float32), jacobian.astype(np.float32))


def _inverse(matrices: np.ndarray) -> np.ndarray:
    a, b, c, d = (matrices[..., i, j] for i in (0, 1) for j in (0, 1))
    determinant = a * d - b * c
    if not np.all(np.abs(determinant) > 0):
        raise UserError("the driving frame where the motion starts has a singular jacobian; choose another --start")
    adjugate = np.stack([np.stack([d, -b], -1), np.stack([-c, a], -1)], -2)
    return adjugate / determinant[..., None, None]


def find_start(
    references: KeypointArrays, driving: KeypointArrays, frame: int | None = None, anchor: int | None = None
) -> Start:
    """The driving frame and the reference whose normalised keypoints are closest, unless they are given."""
    frames = np.arange(len(driving.value)) if frame is None else np.array([frame])
    anchors = np.arange(len(references.value)) if anchor is None else np.array([anchor])
    ours = normalised_points(references.value[anchors])  # [K,n,2]
    theirs = normalised_points(driving.value[frames])  # [F,n,2]
    distance = ((theirs[:, None] - ours[None]) ** 2).sum(axis=(2, 3))  # [F,K]
    best, nearest = np.unravel_index(np.argmin(distance), distance.shape)
    return Start(int(frames[best]), int(anchors[nearest]))


def movement_scale(anchor: KeypointArrays, initial: KeypointArrays) -> float:
    """Ratio of face sizes: sqrt of the ratio of the keypoints' convex hulls' areas (1 where a hull has no area)."""
    ours, theirs = (hull_area(keypoints.value[0]) for keypoints in (anchor, initial))
    return float(np.sqrt(ours / theirs)) if ours > 0 and theirs > 0 else 1.0


def normalised_points(value: np.ndarray) -> np.ndarray:
    """Points centred and scaled to a hull of area 1, for comparing poses: [N,n,2] -> [N,n,2]."""
    centred = value - value.mean(axis=1, keepdims=True)
    areas = np.array([hull_area(points) for points in centred])
    return centred / np.sqrt(np.maximum(areas, 1e-12))[:, None, None]


def hull_area(points: np.ndarray) -> float:
    """Area of the convex hull of points [n,2]; 0 where they coincide."""
    if np.ptp(points, axis=0).max() == 0:
        return 0.0  # OpenCV's hull of a single point has no type
    return float(cv2.contourArea(cv2.convexHull(np.asarray(points, np.float32))))
