"""Back ends that find landmarks in a face or describe whose it is. Numbers from different ones can't be compared.

| back end | what it gives | needs |
|---|---|---|
| landmarks `mediapipe` | 478 points of Face Mesh | `pip install -e .[mediapipe]` |
| landmarks `dlib` | 68 points (iBUG 300-W) | `pip install -e .[dlib]` |
| landmarks `face_alignment` (the paper's AKD) | 68 points of 2DFAN-4 | `pip install -e .[face_alignment]` |
| identity `dlib` | 128 numbers of an aligned face | `pip install -e .[dlib]` |
| identity `openface` (the paper's AED) | 128 numbers of the whole picture | nn4.small2's `.t7`, given by the user |

A landmark back end has ``landmarks(image)``: uint8 [H,W,3] RGB -> float64 [n,2], (x, y) in pixels of that image with
(0, 0) the centre of the first, or None without a face. An identity back end has ``embed(image)``: uint8 [H,W,3] RGB ->
float64 [128], or None without a face. Both have a ``name`` and take the first face of several.

An image with a shorter side of less than 256 pixels is enlarged to that for the search, bicubically: faces of 64 pixels
are below what these detectors were made for (dlib's finds none), and their landmarks are less exact.
"""

import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Optional, Protocol

import cv2
import numpy as np

from mrfomm.errors import AnyPath, UserError, check_is_file

if TYPE_CHECKING:
    import dlib

_SMALLEST = 256  # pixels: shorter side of the image in which a face is looked for
_OPENFACE_SIDE = 96


class LandmarkBackend(Protocol):
    """Finds the landmarks of a face; see the head of this module."""

    name: str

    def landmarks(self, image: np.ndarray) -> np.ndarray | None: ...


class IdentityBackend(Protocol):
    """Describes whose a face is; see the head of this module."""

    name: str

    def embed(self, image: np.ndarray) -> np.ndarray | None: ...


def landmark_backend(name: str) -> LandmarkBackend:
    """Load a landmark back end.

    Args:
        name: one of LANDMARK_BACKENDS.

    Raises:
        UserError: its extra is missing, or its weights can't be had.
    """
    return _LANDMARKS[name]()


def identity_backend(name: str, weights: AnyPath | None = None) -> IdentityBackend:
    """Load an identity back end.

    Args:
        name: one of IDENTITY_BACKENDS.
        weights: path of OpenFace's ``nn4.small2.v1.t7``, for ``openface`` only.

    Raises:
        UserError: its extra is missing, or its weights are missing, unreadable or not wanted.
    """
    if name == "openface":
        return OpenFace(weights)
    if weights is not None:
        raise UserError(f"{weights}: weights are for the identity back end openface; {name} has its own")
    return DlibIdentity()


class MediapipeLandmarks:
    """Face Mesh with refined eyes and lips, every image on its own (no tracking)."""

    name = "mediapipe"

    def __init__(self) -> None:
        os.environ.setdefault("GLOG_minloglevel", "2")
        mediapipe = _import("mediapipe", "mediapipe")
        self._mesh = mediapipe.solutions.face_mesh.FaceMesh(
            static_image_mode=True, max_num_faces=1, refine_landmarks=True
        )

    def landmarks(self, image: np.ndarray) -> np.ndarray | None:
        """uint8 [H,W,3] -> float64 [478,2] pixels, or None."""
        faces = self._mesh.process(_enlarged(image)).multi_face_landmarks
        if not faces:
            return None
        height, width = image.shape[:2]
        points = np.array([(point.x, point.y) for point in faces[0].landmark])  # shares of width and height
        return points * (width, height) - 0.5


class DlibLandmarks:
    """dlib's HOG detector and its 68 landmarks, trained on iBUG 300-W."""

    name = "dlib"

    def __init__(self) -> None:
        self._face = _DlibFace()

    def landmarks(self, image: np.ndarray) -> np.ndarray | None:
        """uint8 [H,W,3] -> float64 [68,2] pixels, or None."""
        large = _enlarged(image)
        shape = self._face(large)
        if shape is None:
            return None
        points = np.array([(point.x, point.y) for point in shape.parts()], np.float64)
        return (points + 0.5) * (len(image) / len(large)) - 0.5


class FaceAlignmentLandmarks:
    """2DFAN-4 (Bulat and Tzimiropoulos, ICCV 2017) without flipping, as the paper's AKD has it.

    **Untested**: written from the library's documentation, without torch and the weights.
    """

    name = "face_alignment"

    def __init__(self) -> None:
        library = _import("face_alignment", "face_alignment")
        device = "cuda" if _import("torch", "face_alignment").cuda.is_available() else "cpu"
        try:
            self._aligner = library.FaceAlignment(library.LandmarksType.TWO_D, flip_input=False, device=device)
        except OSError as error:
            raise UserError(f"face_alignment: its weights can't be fetched ({error}); run it once online") from error

    def landmarks(self, image: np.ndarray) -> np.ndarray | None:
        """uint8 [H,W,3] -> float64 [68,2] pixels, or None."""
        large = _enlarged(image)
        faces = self._aligner.get_landmarks_from_image(large)
        if not faces:
            return None
        return (np.asarray(faces[0], np.float64) + 0.5) * (len(image) / len(large)) - 0.5


class DlibIdentity:
    """dlib's ResNet embedding of a face aligned by 68 landmarks."""

    name = "dlib"

    def __init__(self) -> None:
        self._face = _DlibFace()
        path = _model_file("dlib_face_recognition_resnet_model_v1.dat")
        self._network = _import("dlib", "dlib").face_recognition_model_v1(path)

    def embed(self, image: np.ndarray) -> np.ndarray | None:
        """uint8 [H,W,3] -> float64 [128], or None."""
        large = _enlarged(image)
        shape = self._face(large)
        return None if shape is None else np.array(self._network.compute_face_descriptor(large, shape))


class OpenFace:
    """OpenFace's nn4.small2 on the whole picture: 96x96 without anti-aliasing, BGR in [0,1], no alignment.

    As it looks for no face, every picture has an embedding. **Not run with the real weights**, which we did not have.
    """

    name = "openface"

    def __init__(self, weights: AnyPath | None) -> None:
        if weights is None:
            raise UserError("identity back end openface: give its weights, nn4.small2.v1.t7 of the OpenFace project")
        check_is_file(weights)
        try:
            self._network = cv2.dnn.readNetFromTorch(str(weights))
        except cv2.error as error:
            raise UserError(f"{weights}: no Torch 7 network that OpenCV can read ({error})") from error

    def embed(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H,W,3] -> float64 [128]."""
        side = (_OPENFACE_SIDE, _OPENFACE_SIDE)
        small = cv2.resize(image, side, interpolation=cv2.INTER_LINEAR)
        self._network.setInput(cv2.dnn.blobFromImage(small, 1 / 255, side, swapRB=True))  # [1,3,96,96], BGR
        return self._network.forward().ravel().astype(np.float64)


_LANDMARKS = {kind.name: kind for kind in (MediapipeLandmarks, DlibLandmarks, FaceAlignmentLandmarks)}
LANDMARK_BACKENDS = tuple(_LANDMARKS)
IDENTITY_BACKENDS = (DlibIdentity.name, OpenFace.name)


class _DlibFace:
    """The first face's 68 landmarks in pixels of an image, as dlib's own type."""

    def __init__(self) -> None:
        dlib = _import("dlib", "dlib")
        self._detector = dlib.get_frontal_face_detector()
        self._predictor = dlib.shape_predictor(_model_file("shape_predictor_68_face_landmarks.dat"))

    def __call__(self, image: np.ndarray) -> Optional["dlib.full_object_detection"]:
        """uint8 [H,W,3] -> dlib.full_object_detection, or None."""
        boxes = self._detector(image, 0) or self._detector(image, 1)  # the second at twice the size
        return self._predictor(image, boxes[0]) if boxes else None


def _enlarged(image: np.ndarray) -> np.ndarray:
    """The image, contiguous, with a shorter side of at least _SMALLEST pixels."""
    scale = _SMALLEST / min(image.shape[:2])
    if scale <= 1:
        return np.ascontiguousarray(image)
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def _model_file(name: str) -> str:
    """Path of a file in face_recognition_models, which is not imported: its only code needs pkg_resources."""
    package = importlib.util.find_spec("face_recognition_models")
    if package is None or package.origin is None:
        raise UserError("face_recognition_models is not installed: pip install -e .[dlib]")
    return str(Path(package.origin).parent / "models" / name)


def _import(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{module} can't be imported ({error}): pip install -e .[{extra}]") from error
