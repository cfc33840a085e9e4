"""A model on one set of references, from arrays to arrays; it knows no library that might run it."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from mrfomm.errors import UserError
from mrfomm.reenactment.motion import KeypointArrays

SEARCHING = "looking for the face"  # what a Watch is told

Watch = Callable[[Iterable[np.ndarray], int | None, str], Iterable[np.ndarray]]  # as of reenactor.Reenactor
_Item = TypeVar("_Item")


class Breakdown(NamedTuple):
    """What each reference contributes (paper, Table 1), all in [0,1]; of one frame, without the axis B.

    warped [B,K,3,H,W]: the decoder's output from one reference's warped feature alone.
    mask [B,K,1,H,W]: the fusion mask at image size (element-wise masks are averaged over the channels).
    """

    warped: np.ndarray
    mask: np.ndarray


class Graphs(Protocol):
    """What runs a model, by one library or another."""

    def run(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one of ``onnx.graphs.GRAPHS``: arrays by input name -> arrays by output name."""


class Animator:
    """Runs a model's Graphs on one set of references.

    Args:
        graphs: Graphs.
        references: float32 [K,3,S,S] in [0,1], K >= 1.
        batch: driving frames per call of the network; it changes speed and memory only.
        breakdown: also compute each reference's contribution.
    """

    def __init__(self, graphs: Graphs, references: np.ndarray, batch: int = 1, breakdown: bool = False) -> None:
        if len(references) < 1:
            raise ValueError("at least one reference is needed")
        self._graphs = graphs
        self._batch = batch
        self._frame = "breakdown" if breakdown else "frame"
        self._references = graphs.run("reference", {"image": np.asarray(references, np.float32)})

    @property
    def reference_keypoints(self) -> KeypointArrays:
        """KeypointArrays of the K references."""
        return KeypointArrays(self._references["reference_value"], self._references["reference_jacobian"])

    def keypoints(self, frames: np.ndarray) -> KeypointArrays:
        """Keypoints of driving frames float32 [N,3,S,S] in [0,1] -> KeypointArrays of N."""
        found = self._in_batches(len(frames), lambda part: self._graphs.run("keypoints", {"image": frames[part]}))
        return KeypointArrays(found["driving_value"], found["driving_jacobian"])

    def render(self, keypoints: KeypointArrays) -> np.ndarray:
        """Draw the poses of KeypointArrays of N -> float32 [N,3,S,S] in [0,1]."""
        return self._draw(keypoints)["prediction"]

    def render_breakdown(self, keypoints: KeypointArrays) -> tuple[np.ndarray, Breakdown]:
        """Like ``render``, with each reference's share -> (float32 [N,3,S,S], Breakdown)."""
        drawn = self._draw(keypoints)
        return drawn["prediction"], Breakdown(drawn["warped"], drawn["mask"])

    def frame_inputs(self, keypoints: KeypointArrays) -> dict[str, np.ndarray]:
        """What the graph of a frame reads: driving keypoints and the references' outputs, by name."""
        return {"driving_value": keypoints.value, "driving_jacobian": keypoints.jacobian, **self._references}

    def _draw(self, keypoints: KeypointArrays) -> dict[str, np.ndarray]:
        def run(part: slice) -> dict[str, np.ndarray]:
            return self._graphs.run(self._frame, self.frame_inputs(KeypointArrays(*(each[part] for each in keypoints))))

        return self._in_batches(len(keypoints.value), run)

    def _in_batches(self, count: int, run: Callable[[slice], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        parts = [run(slice(start, start + self._batch)) for start in range(0, count, self._batch)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def find_keypoints(graphs: Graphs, frames: Iterable[np.ndarray], batch: int) -> KeypointArrays:
    """The poses of N >= 1 frames uint8 [S,S,3], ``batch`` of them per call of the network -> KeypointArrays of N."""
    chunks = batches(frames, batch)
    found = [list(graphs.run("keypoints", {"image": images_to_array(chunk)}).values()) for chunk in chunks]
    if not found:
        raise ValueError("no driving frame")
    return KeypointArrays(*map(np.concatenate, zip(*found)))


def batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Lists of up to ``size`` consecutive items of an iterable."""
    iterator = iter(items)
    return iter(lambda: list(itertools.islice(iterator, size)), [])


def images_to_array(images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """uint8 images [N,H,W,3] (or a list of them) -> float32 [N,3,H,W] in [0,1]."""
    return np.ascontiguousarray(np.stack(list(images)).transpose(0, 3, 1, 2), dtype=np.float32) / 255


def array_to_images(array: np.ndarray) -> np.ndarray:
    """float [N,3,H,W] in [0,1] -> uint8 [N,H,W,3], rounded to the nearest grey level. As of ``check_finite``."""
    check_finite(array)
    return (np.clip(array, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)


def check_finite(pictures: np.ndarray) -> None:
    """Raise UserError if a value is not finite, as singular jacobians or weights of a diverged training make them."""
    if not np.isfinite(pictures).all():
        raise UserError("the model's picture is not finite: a singular jacobian or broken weights; try other --weights")
