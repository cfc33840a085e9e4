"""Animation: references set once, then one call per batch of driving frames.

With several references, relative motion needs one pose to start from: the *anchor*, the reference closest in pose to
the starting driving frame. The driving motion is transferred to the anchor's keypoints, and every reference is warped
to the result.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import cv2
import nnabla as nn
import numpy as np

from mrfomm.checkpoint import ParameterTree
from mrfomm.config import ModelConfig
from mrfomm.errors import UserError
from mrfomm.model import (
    References,
    contributions,
    encode_references,
    kept,
    keypoints_of,
    repeat_references,
    synthesise,
)
from mrfomm.networks.keypoints import Keypoints

_Item = TypeVar("_Item")


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


class Breakdown(NamedTuple):
    """What each reference contributes (paper, Table 1), all in [0,1].

    warped [B,K,3,H,W]: the decoder's output from one reference's warped feature alone.
    mask [B,K,1,H,W]: the fusion mask at image size (element-wise masks are averaged over the channels).
    """

    warped: np.ndarray
    mask: np.ndarray


def images_to_array(images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """uint8 images [N,H,W,3] (or a list of them) -> float32 [N,3,H,W] in [0,1]."""
    return np.ascontiguousarray(np.stack(list(images)).transpose(0, 3, 1, 2), dtype=np.float32) / 255


def array_to_images(array: np.ndarray) -> np.ndarray:
    """float [N,3,H,W] in [0,1] -> uint8 [N,H,W,3], rounded to the nearest grey level.

    Raises:
        UserError: a value is not finite, as singular jacobians or weights of a diverged training make them.
    """
    check_finite(array)
    return (np.clip(array, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)


def check_finite(pictures: np.ndarray) -> None:
    """Raise UserError if a value of the model's pictures is not finite."""
    if not np.isfinite(pictures).all():
        raise UserError("the model's picture is not finite: a singular jacobian or broken weights; try other --weights")


class AnyAnimator(Protocol):
    """What ``Animator`` and ``onnx_backend.OnnxAnimator`` have in common."""

    @property
    def reference_keypoints(self) -> KeypointArrays:
        """See ``Animator``, as for the methods."""

    def keypoints(self, frames: np.ndarray) -> KeypointArrays: ...

    def render(self, keypoints: KeypointArrays) -> np.ndarray: ...

    def render_breakdown(self, keypoints: KeypointArrays) -> tuple[np.ndarray, Breakdown]: ...


MakeAnimator = Callable[[np.ndarray, int], AnyAnimator]  # (references, batch); see Animator


class Animator:
    """Runs a model on one set of references.

    Args:
        config: ModelConfig.
        tree: ParameterTree with the model's parameters; missing ones are created.
        references: float32 [K,3,H,W] in [0,1], H = W = config.image_size, K >= 1.
        batch: driving frames per call of the network; it changes the speed only.
        breakdown: also compute each reference's contribution.
    """

    def __init__(
        self, config: ModelConfig, tree: ParameterTree, references: np.ndarray, batch: int = 1, breakdown: bool = False
    ) -> None:
        if len(references) < 1:
            raise ValueError("at least one reference is needed")
        self._batch = batch
        self._config = config
        with tree.scope():
            self._references = _encode_once(np.asarray(references, np.float32), config)
            self._build_detector()
            self._build_frame(breakdown)

    @property
    def reference_keypoints(self) -> KeypointArrays:
        """KeypointArrays of the K references."""
        return _to_arrays(self._references.keypoints)

    def keypoints(self, frames: np.ndarray) -> KeypointArrays:
        """Keypoints of driving frames float32 [N,3,H,W] in [0,1] -> KeypointArrays of N."""
        parts = []
        for start in range(0, len(frames), self._batch):
            chunk = frames[start : start + self._batch]
            self._image.d = _fill(chunk, self._batch)
            nn.forward_all(list(self._detected), clear_no_need_grad=True)
            parts.append([variable.d[: len(chunk)].copy() for variable in self._detected])
        return KeypointArrays(*(np.concatenate(part) for part in zip(*parts)))

    def render(self, keypoints: KeypointArrays) -> np.ndarray:
        """Synthesise the pose of KeypointArrays of N -> float32 [N,3,H,W] in [0,1]."""
        return self._run(keypoints, [self._prediction])[0]

    def render_breakdown(self, keypoints: KeypointArrays) -> tuple[np.ndarray, Breakdown]:
        """Like ``render``, with each reference's share -> (float32 [N,3,H,W], Breakdown)."""
        prediction, warped, mask = self._run(keypoints, [self._prediction, *self._breakdown])
        return prediction, Breakdown(warped, mask)

    def _build_detector(self) -> None:
        size = self._config.image_size
        self._image = nn.Variable((self._batch, 3, size, size))
        self._detected = Keypoints(*map(kept, keypoints_of(self._image, self._config)))

    def _build_frame(self, breakdown: bool) -> None:
        count = self._config.num_keypoints
        self._driving = Keypoints(nn.Variable((self._batch, count, 2)), nn.Variable((self._batch, count, 2, 2)))
        references = repeat_references(self._references, self._batch)
        synthesis = synthesise(references, self._driving, self._config)
        self._prediction = kept(synthesis.prediction)
        self._breakdown = tuple(map(kept, contributions(synthesis, self._config))) if breakdown else ()

    def _run(self, keypoints: KeypointArrays, outputs: Sequence[nn.Variable]) -> list[np.ndarray]:
        parts = []
        for start in range(0, len(keypoints.value), self._batch):
            chunk = keypoints.frames(start, start + self._batch)
            for variable, array in zip(self._driving, chunk):
                variable.d = _fill(array, self._batch)
            nn.forward_all(outputs, clear_no_need_grad=True)
            parts.append([variable.d[: len(chunk.value)].copy() for variable in outputs])
        return [np.concatenate(part) for part in zip(*parts)]


def relative_motion(
    anchor: KeypointArrays, driving: KeypointArrays, initial: KeypointArrays, scale: float = 1.0
) -> KeypointArrays:
    """Transfer the motion since the initial driving frame to the anchor's keypoints (FOMM, equation 20).

    p = p_a + scale (p_d - p_d0), J = J_d J_d0^-1 J_a.

    Args:
        anchor, initial: KeypointArrays of one frame.
        driving: KeypointArrays of N frames.
        scale: of the movement, see ``movement_scale``.

    Returns:
        KeypointArrays of N.

    Raises:
        UserError: a jacobian of the initial frame is singular.
    """
    value = anchor.value + scale * (driving.value - initial.value)
    jacobian = driving.jacobian @ _inverse(initial.jacobian) @ anchor.jacobian
    return KeypointArrays(value.astype(np.float32), jacobian.astype(np.float32))


def movement_scale(anchor: KeypointArrays, initial: KeypointArrays) -> float:
    """Ratio of face sizes: sqrt of the ratio of the keypoints' convex hulls' areas (1 where a hull has no area)."""
    ours, theirs = (hull_area(keypoints.value[0]) for keypoints in (anchor, initial))
    return float(np.sqrt(ours / theirs)) if ours > 0 and theirs > 0 else 1.0


def hull_area(points: np.ndarray) -> float:
    """Area of the convex hull of points [n,2]; 0 where they coincide."""
    if np.ptp(points, axis=0).max() == 0:
        return 0.0  # OpenCV's hull of a single point has no type
    return float(cv2.contourArea(cv2.convexHull(np.asarray(points, np.float32))))


def normalised_points(value: np.ndarray) -> np.ndarray:
    """Points centred and scaled to a hull of area 1, for comparing poses: [N,n,2] -> [N,n,2]."""
    centred = value - value.mean(axis=1, keepdims=True)
    areas = np.array([hull_area(points) for points in centred])
    return centred / np.sqrt(np.maximum(areas, 1e-12))[:, None, None]


def find_start(references: KeypointArrays, driving: KeypointArrays, frame: int | None = None) -> Start:
    """The driving frame and reference whose normalised keypoints are closest.

    Args:
        references: KeypointArrays of K. driving: KeypointArrays of N.
        frame: a fixed driving frame, or None to search over all.

    Returns:
        Start.
    """
    frames = range(len(driving.value)) if frame is None else [frame]
    ours = normalised_points(references.value)  # [K,n,2]
    theirs = normalised_points(driving.value[list(frames)])  # [F,n,2]
    distance = ((theirs[:, None] - ours[None]) ** 2).sum(axis=(2, 3))  # [F,K]
    best, anchor = np.unravel_index(np.argmin(distance), distance.shape)
    return Start(int(frames[int(best)]), int(anchor))


def batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Lists of up to ``size`` consecutive items of an iterable."""
    iterator = iter(items)
    return iter(lambda: list(itertools.islice(iterator, size)), [])


def _encode_once(references: np.ndarray, config: ModelConfig) -> References:
    """Run the reference graph and keep its outputs as leaves: [K,3,H,W] -> References."""
    outputs = encode_references(nn.Variable.from_numpy_array(references[None]), config)
    flat = [kept(variable) for variable in (outputs.image, *outputs.keypoints, outputs.features)]
    nn.forward_all(flat, clear_no_need_grad=True)
    image, value, jacobian, features = (nn.Variable.from_numpy_array(variable.d.copy()) for variable in flat)
    return References(image, Keypoints(value, jacobian), features)


def _to_arrays(keypoints: Keypoints) -> KeypointArrays:
    return KeypointArrays(*(variable.d.copy() for variable in keypoints))


def _fill(array: np.ndarray, count: int) -> np.ndarray:
    """Repeat the last entry until there are ``count``: the graph's batch is fixed."""
    missing = count - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def _inverse(matrices: np.ndarray) -> np.ndarray:
    a, b, c, d = (matrices[..., i, j] for i in (0, 1) for j in (0, 1))
    determinant = a * d - b * c
    if not np.all(np.abs(determinant) > 0):
        raise UserError("the driving frame where the motion starts has a singular jacobian; choose another --start")
    adjugate = np.stack([np.stack([d, -b], -1), np.stack([-c, a], -1)], -2)
    return adjugate / determinant[..., None, None]
