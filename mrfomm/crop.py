"""Find the face and cut a square around the whole head, framed about as VoxCeleb's crops are.

The detector is the Haar cascade (Viola and Jones, CVPR 2001) that OpenCV carries: no download, about 25 ms a
frame on one core. It finds upright faces, frontal or turned to the side.
"""

from typing import Callable, Iterable, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np

from mrfomm.errors import AnyPath, UserError

MARGIN = 0.4  # of the face's size, on each side: hair, chin and small movements fit in

LIFT = 0.08  # of the face's size: the detector's box leaves out the hair but not the chin
_SAMPLES = 16  # a clip's median is over this many of its frames, or up to twice as many
_DETECTION_SIDE = 256  # pixels: larger frames are shrunk to this shorter side before the search
_SMALLEST_FACE = 0.1  # of the frame's shorter side
_NEIGHBOURS = 5  # overlapping detections that make a face


class Box(NamedTuple):
    """A square in pixels; (x, y) is its upper left corner."""

    x: int
    y: int
    size: int


class FaceFinder:
    """Finds the largest face of a frame. It holds the loaded cascades: make one and keep it."""

    def __init__(self) -> None:
        self._frontal = _load_cascade("haarcascade_frontalface_alt2.xml")
        self._profile = _load_cascade("haarcascade_profileface.xml")

    def __call__(self, frame: np.ndarray) -> Optional[Box]:
        """Box of the face in uint8 [H,W,3] RGB, None without one. Profiles count where no face is frontal."""
        scale = min(1.0, _DETECTION_SIDE / min(frame.shape[:2]))
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        faces = _detect(self._frontal, grey) or self._profiles(grey)
        if not faces:
            return None
        return Box(*(round(value / scale) for value in max(faces, key=lambda face: face.size)))

    def _profiles(self, grey: np.ndarray) -> List[Box]:
        """The cascade knows one side of the face only: search the mirrored frame for the other."""
        width = grey.shape[1]
        mirrored = _detect(self._profile, np.ascontiguousarray(grey[:, ::-1]))
        mirrored = [Box(width - face.x - face.size, face.y, face.size) for face in mirrored]
        return _detect(self._profile, grey) + mirrored


def _load_cascade(name: str) -> cv2.CascadeClassifier:
    return cv2.CascadeClassifier(cv2.data.haarcascades + name)  # type: ignore[attr-defined]


def _detect(cascade: cv2.CascadeClassifier, grey: np.ndarray) -> List[Box]:
    smallest = max(1, int(_SMALLEST_FACE * min(grey.shape)))
    found = cascade.detectMultiScale(grey, 1.1, _NEIGHBOURS, minSize=(smallest, smallest))
    return [Box(int(x), int(y), int(width)) for x, y, width, _ in found]


def square_box(face: Box, frame_shape: Tuple[int, ...], margin: float = MARGIN, lift: float = LIFT) -> Box:
    """The square around a head: ``margin`` of the face's size on each side, raised by ``lift`` of it for the hair.

    It lies wholly inside a frame of ``frame_shape`` (H, W, ...): moved if it would reach over an edge, and
    shrunk only if it is larger than the frame.
    """
    height, width = frame_shape[:2]
    size = min(round(face.size * (1 + 2 * margin)), height, width)
    around = (size - face.size) / 2
    left = round(face.x - around)
    top = round(face.y - around - min(lift * face.size, around))  # never so high that the chin is cut
    return Box(min(max(left, 0), width - size), min(max(top, 0), height - size), size)


def crop(frame: np.ndarray, box: Box) -> np.ndarray:
    """Cut the box out of [H,W,...]: a view [size,size,...]."""
    return frame[box.y : box.y + box.size, box.x : box.x + box.size]


def find_image_box(image: np.ndarray, source: AnyPath) -> Box:
    """The square around the head in one image, uint8 [H,W,3]. Errors as :func:`find_clip_box`."""
    return find_clip_box([image], source)


def find_clip_box(
    frames: Iterable[np.ndarray], source: AnyPath, find_face: Optional[Callable[[np.ndarray], Optional[Box]]] = None
) -> Box:
    """One square for all frames of a clip, from the median of the faces found in it.

    A fixed square keeps the head's own movement, which is what drives the animation.

    Args:
        frames: uint8 [H,W,3] of one size, taken one by one; the search runs in an even choice of them.
        source: names the clip in errors.
        find_face: the detector; a new :class:`FaceFinder` by default.

    Raises:
        UserError: no face in any of the frames searched, or frames that differ in size.
    """
    faces, shape = _search(frames, find_face or FaceFinder(), source)
    if not faces or shape is None:
        raise UserError(f"{source}: no face found; leave out --crop, or crop it by hand")
    median = Box(*(round(float(value)) for value in np.median(faces, axis=0)))
    return square_box(median, shape)


def _search(
    frames: Iterable[np.ndarray], find_face: Callable[[np.ndarray], Optional[Box]], source: AnyPath
) -> Tuple[List[Box], Optional[Tuple[int, ...]]]:
    """Faces found in every ``stride``-th frame. The stride doubles as the clip turns out longer."""
    results, stride, shape = [], 1, None
    for index, frame in enumerate(frames):
        shape = shape or frame.shape
        if frame.shape != shape:
            raise UserError(f"{source}: frames differ in size; leave out --crop, or make them one size")
        if index % stride:
            continue
        results.append(find_face(frame))
        if len(results) == 2 * _SAMPLES:
            results, stride = results[::2], 2 * stride
    return [face for face in results if face is not None], shape


if __name__ == "__main__":
    raise SystemExit("mrfomm.crop is no command: see --crop of animate.py, and python -m mrfomm.data.prepare")
