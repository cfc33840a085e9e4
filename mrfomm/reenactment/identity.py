"""Whose face it is, by dlib where it is installed: what scores take, and a word on references of two people."""

import functools
import importlib
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from mrfomm.errors import UserError
from mrfomm.media.images import fit

Find = Callable[[np.ndarray], np.ndarray | None]  # a back end of eval.detectors
FARTHEST = 0.6  # of one person's embeddings from each other: http://dlib.net/face_recognition.py.html
_SMALLEST = 256  # pixels: shorter side of the image in which a face is looked for


def two_people(names: Sequence[str], pictures: Sequence[np.ndarray], describe: Find) -> str | None:
    """A line of text on the two pictures, uint8 [H,W,3], whose faces are farthest apart, if that is too far for one
    person, else None. Pictures without a face don't count. Central squares are looked at, as the model takes them."""
    squares = (fit(picture, min(_SMALLEST, *picture.shape[:2])) for picture in pictures)
    found = [(number, face) for number, face in enumerate(map(describe, squares), 1) if face is not None]
    pairs = ((float(np.linalg.norm(a - b)), i, j) for (i, a), (j, b) in itertools.combinations(found, 2))
    distance, one, other = max(pairs, default=(0.0, 0, 0))
    if distance <= FARTHEST:
        return None
    pair = f"references {one} and {other} ({names[one - 1]}, {names[other - 1]})"
    why = f"their faces are {distance:.2f} apart by dlib, one person's mostly less than {FARTHEST}"
    return f"{pair} seem to show different people: {why}; results mix them, so give pictures of one person"


@functools.cache
def installed() -> Find | None:
    """dlib's identity back end, None where it or its models are missing or damaged. Loading takes 0.6 s of CPU time, so
    the page's jobs share it."""
    try:
        return dlib_identity()
    except (UserError, RuntimeError):
        return None


def dlib_identity() -> Find:
    """Load the back end: float64 [128] of the first face, None without one. UserError: its extra is missing."""
    find_shape = dlib_shape()
    path = _model_file("dlib_face_recognition_resnet_model_v1.dat")
    network = import_extra("dlib", "dlib").face_recognition_model_v1(path)

    def find(image: np.ndarray) -> np.ndarray | None:
        large = enlarged(image)
        shape = find_shape(large)
        return None if shape is None else np.array(network.compute_face_descriptor(large, shape))

    return find


def dlib_shape() -> Callable[[np.ndarray], Any]:
    """Finds the first face's 68 landmarks in pixels of an image, as a dlib.full_object_detection, or None."""
    library = import_extra("dlib", "dlib")
    detector = library.get_frontal_face_detector()
    predictor = library.shape_predictor(_model_file("shape_predictor_68_face_landmarks.dat"))

    def find(image: np.ndarray) -> Any:
        boxes = detector(image, 0) or detector(image, 1)  # the second at twice the size
        return predictor(image, boxes[0]) if boxes else None

    return find


def enlarged(image: np.ndarray) -> np.ndarray:
    """The image, contiguous, with a shorter side of at least _SMALLEST pixels."""
    scale = _SMALLEST / min(image.shape[:2])
    if scale <= 1:
        return np.ascontiguousarray(image)
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def import_extra(module: str, extra: str) -> ModuleType:
    """Import what an extra brings; a UserError names the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        install = f"pip install -e .[{extra}]"
        raise UserError(f"{module} can't be imported ({error}): {install}") from error


def _model_file(name: str) -> str:
    """Path of a file in face_recognition_models, which is not imported: its only code needs pkg_resources."""
    package = importlib.util.find_spec("face_recognition_models")
    if package is None or package.origin is None:
        raise UserError("face_recognition_models is not installed: pip install -e .[dlib]")
    return str(Path(package.origin).parent / "models" / name)
