"""Find the face, cut a square around the whole head, framed about as VoxCeleb's crops are, and put one back.

The detector is the Haar cascade (Viola and Jones, CVPR 2001) that OpenCV carries: no download, about 25 ms a
frame on one core. It finds upright faces, frontal or turned to the side.
"""

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

import cv2
import numpy as np

from mrfomm.errors import AnyPath, UserError

MARGIN = 0.4  # of the face's size, on each side: hair, chin and small movements fit in
LIFT = 0.08  # of the face's size: the detector's box leaves out the hair but not the chin
MIN_IOU = 0.25  # of two places of one face: below it, the face has left (FOMM's video-preprocessing)
_SAMPLES = 16  # a clip's median is over this many of its frames, or up to twice as many
_DETECTION_SIDE = 256  # pixels: larger frames are shrunk to this shorter side before the search
_SMALLEST_FACE = 0.1  # of the frame's shorter side
_NEIGHBOURS = 5  # overlapping detections that make a face
_FEATHER = 0.125  # of the square's side: how wide the edge of a face is that is put back
_GOOD_PART = 0.25  # of the frames searched: what is so often otherwise is said
_log = logging.getLogger(__name__)


class Region(NamedTuple):
    """A rectangle, in pixels or in shares of the frame."""

    left: float
    top: float
    right: float
    bottom: float

    def union(self, other: "Region") -> "Region":
        """The smallest Region around both."""
        left, top = min(self.left, other.left), min(self.top, other.top)
        return Region(left, top, max(self.right, other.right), max(self.bottom, other.bottom))

    def scaled(self, across: float, down: float) -> "Region":
        """The Region with x multiplied by ``across`` and y by ``down``."""
        return Region(self.left * across, self.top * down, self.right * across, self.bottom * down)

    def square(self) -> "Box":
        """The smallest square Box around it, with the same centre."""
        size = max(self.right - self.left, self.bottom - self.top)
        left, top = (self.left + self.right - size) / 2, (self.top + self.bottom - size) / 2
        return Box(round(left), round(top), round(size))

    def iou(self, other: "Region") -> float:
        """Area of the intersection over area of the union, in 0..1."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        shared = Region(left, top, min(self.right, other.right), min(self.bottom, other.bottom))._area()
        return shared / (self._area() + other._area() - shared)

    def _area(self) -> float:
        return max(self.right - self.left, 0) * max(self.bottom - self.top, 0)


Place = tuple[int, Region]  # of a face: number of the frame, and where in it


class Box(NamedTuple):
    """A square in pixels; (x, y) is its upper left corner."""

    x: int
    y: int
    size: int

    def region(self) -> Region:
        """The same as a Region."""
        return Region(self.x, self.y, self.x + self.size, self.y + self.size)

    def holds(self, other: "Box") -> bool:
        """Whether the whole other box lies in this one."""
        return self.region().union(other.region()) == self.region()


class FaceFinder:
    """Finds faces in a frame. It holds the loaded cascades: make one and keep it."""

    def __init__(self) -> None:
        self._frontal, self._profile = (
            cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_{kind}.xml")  # type: ignore[attr-defined]
            for kind in ("frontalface_alt2", "profileface")
        )

    def __call__(self, frame: np.ndarray) -> Box | None:
        """Box of the largest face, None without one."""
        return next(iter(self.faces(frame)), None)

    def faces(self, frame: np.ndarray) -> list[Box]:
        """Boxes of the faces in uint8 [H,W,3] RGB, by size, each face once. Profiles count where no face is frontal."""
        scale = min(1.0, _DETECTION_SIDE / min(frame.shape[:2]))
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        faces: list[Box] = []
        for face in sorted(_detect(self._frontal, grey) or self._profiles(grey), key=lambda face: -face.size):
            middle = Box(face.x + face.size // 2, face.y + face.size // 2, 0)
            if not any(other.holds(middle) for other in faces):
                faces.append(face)
        return [Box(*(round(value / scale) for value in face)) for face in faces]

    def _profiles(self, grey: np.ndarray) -> list[Box]:
        """The cascade knows one side of the face only: search the mirrored frame for the other."""
        mirrored = _detect(self._profile, np.ascontiguousarray(grey[:, ::-1]))
        turned_back = [face._replace(x=grey.shape[1] - face.x - face.size) for face in mirrored]
        return _detect(self._profile, grey) + turned_back


def _detect(cascade: cv2.CascadeClassifier, grey: np.ndarray) -> list[Box]:
    smallest = max(1, int(_SMALLEST_FACE * min(grey.shape)))
    found = cascade.detectMultiScale(grey, 1.1, _NEIGHBOURS, minSize=(smallest, smallest))
    return [Box(int(x), int(y), int(width)) for x, y, width, _ in found]


def square_box(face: Box, frame_shape: tuple[int, ...], margin: float = MARGIN, lift: float = LIFT) -> Box:
    """The square around a head: ``margin`` of the face's size on each side, raised by ``lift`` of it for the hair. It
    is moved into a frame of ``frame_shape`` (H, W, ...), and shrunk only if it is larger than the frame."""
    height, width = frame_shape[:2]
    size = min(round(face.size * (1 + 2 * margin)), height, width)
    around = (size - face.size) / 2
    left = round(face.x - around)
    top = round(face.y - around - min(lift * face.size, around))  # never so high that the chin is cut
    return Box(min(max(left, 0), width - size), min(max(top, 0), height - size), size)


def crop(frame: np.ndarray, box: Box) -> np.ndarray:
    """Cut the box out of [H,W,...]: a view [size,size,...]."""
    return frame[box.y : box.y + box.size, box.x : box.x + box.size]


def resized(image: np.ndarray, height: int) -> np.ndarray:
    """uint8 [h,w,3] at another height, in its proportions. Growing is bicubic, shrinking averages areas."""
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    how = cv2.INTER_CUBIC if height > image.shape[0] else cv2.INTER_AREA
    return image if height == image.shape[0] else cv2.resize(image, (width, height), interpolation=how)


class Framed(NamedTuple):
    """A picture uint8 [H,W,3], and the square of it that is meant; None: all of it."""

    image: np.ndarray
    box: Box | None = None

    def cut(self) -> np.ndarray:
        """What is meant, a view."""
        return self.image if self.box is None else crop(self.image, self.box)


class Paste:
    """Puts square pictures into the box of a Framed picture, or into the middle square, which ``images.fit`` takes; its
    other pixels stay as they are."""

    def __init__(self, picture: Framed) -> None:
        height, width = picture.image.shape[:2]
        side = min(height, width)
        self._image, self._box = picture.image, picture.box or Box((width - side) // 2, (height - side) // 2, side)
        down, across = _edge(self._box.y, self._box.size, height), _edge(self._box.x, self._box.size, width)
        self._weight = (down[:, None] * across)[..., None]  # [size,size,1]

    def __call__(self, face: np.ndarray) -> np.ndarray:
        """uint8 [S,S,3] -> the picture with it, uint8 [H,W,3]."""
        image = self._image.copy()
        place = crop(image, self._box)
        mixed = place + self._weight * (resized(face, self._box.size).astype(np.float32) - place)
        place[:] = (mixed + 0.5).astype(np.uint8)
        return image


def _edge(start: int, size: int, length: int) -> np.ndarray:
    """How much of what is put at start counts, float32 [size]: rising from 0 to 1 inside the box, smoothly, but not
    where the box ends with the picture."""
    at = np.arange(size, dtype=np.float32) + 0.5
    before, after = at if start else np.inf, size - at if start + size < length else np.inf
    share = np.clip(np.minimum(before, after) / (_FEATHER * size), 0, 1) * np.ones(size, np.float32)
    return share * share * (3 - 2 * share)


def link(places: Iterable[Place], likeness: Callable[[list[Place], Place], float]) -> list[list[Place]]:
    """Follow faces over time: the tracks of ``places``, which come by ascending frame numbers. A place goes on with the
    track that it is most like, or else (a ``likeness`` of 0) opens a new one: a single false detection ends no track.
    """
    tracks: list[list[Place]] = []
    for place in places:
        likest = max(tracks, key=lambda track: likeness(track, place), default=None)
        if likest and likeness(likest, place):
            likest.append(place)
        else:
            tracks.append([place])
    return tracks


def overlap(region: Region, other: Region) -> float:
    """The IoU of two places if one face can have both, else 0."""
    iou = region.iou(other)
    return iou if iou >= MIN_IOU else 0.0


def find_image_box(image: np.ndarray, source: AnyPath, tell: Callable[[str], object] = _log.warning) -> Box:
    """The square around the head in one image, uint8 [H,W,3]. Otherwise as :func:`find_clip_box`."""
    return find_clip_box([image], source, tell=tell)


def find_clip_box(
    frames: Iterable[np.ndarray],
    source: AnyPath,
    find_faces: Callable[[np.ndarray], Iterable[Box]] | None = None,
    tell: Callable[[str], object] = _log.warning,
) -> Box:
    """One square for all frames of a clip, from the median of one face's places: of the face seen most and largest.

    A fixed square keeps the head's own movement, which is what drives the animation.

    Args:
        frames: uint8 [H,W,3] of one size, taken one by one; the search runs in an even choice of them.
        source: names the clip in what is said.
        find_faces: the detector; :meth:`FaceFinder.faces` by default.
        tell: takes a line of text: where the square is, what isn't in it, and whether there are other faces.

    Raises:
        UserError: no face in any of the frames searched, or frames that differ in size.
    """
    found, shape = _search(frames, find_faces or FaceFinder().faces, source)
    tracks = link(((number, face.region()) for number, faces in enumerate(found) for face in faces), _nearest)
    if not tracks:
        raise UserError(f"{source}: no face found; leave out --crop, or crop it by hand")
    track = max(tracks, key=lambda track: sum(region.square().size for _, region in track))
    median = np.median([region.square() for _, region in track], axis=0)
    box = square_box(Box(*(round(float(value)) for value in median)), shape)
    tell(crop_text(source, box))
    often = _GOOD_PART * len(found)
    others = sum(len(other) > often for other in tracks if other is not track)
    if others:
        rest = "the one seen most and largest is taken; crop by hand for another"
        tell(f"{source}: faces in {others + 1} places; {rest}")
    missing = sum(not any(box.holds(face) for face in faces) for faces in found)
    if missing > often:
        rest = "cut the clip to the part in which it stays in place, or leave out --crop"
        tell(f"{source}: no face inside the box in {missing} of {len(found)} frames searched; {rest}")
    return box


def crop_text(path: AnyPath, box: Box) -> str:
    """What to tell of a box in which a face was found."""
    return f"{path}: cropped to {box.size}x{box.size} pixels at ({box.x}, {box.y})"


def _nearest(track: list[Place], place: Place) -> float:
    """Likeness to the nearest place, whenever that was, as heads sway. A face is only once in a frame."""
    number, region = place
    return 0.0 if track[-1][0] == number else max(overlap(known, region) for _, known in track)


def _search(
    frames: Iterable[np.ndarray], find_faces: Callable[[np.ndarray], Iterable[Box]], source: AnyPath
) -> tuple[list[list[Box]], tuple[int, ...]]:
    """The faces in every ``stride``-th frame, and a frame's shape. The stride doubles as the clip turns out longer."""
    results: list[list[Box]] = []
    shape: tuple[int, ...] = ()
    stride = 1
    for index, frame in enumerate(frames):
        shape = shape or frame.shape
        if frame.shape != shape:
            raise UserError(f"{source}: frames differ in size; leave out --crop, or make them one size")
        if index % stride == 0:
            results.append(list(find_faces(frame)))
            if len(results) == 2 * _SAMPLES:
                results, stride = results[::2], 2 * stride
    return results, shape
