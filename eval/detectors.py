"""Back ends that find landmarks in a face or describe whose it is. Numbers from different ones can't be compared.

| back end | what it gives | needs |
|---|---|---|
| landmarks `mediapipe` | 478 points of Face Mesh, every image on its own | the extra `mediapipe` |
| landmarks `dlib` | 68 points (iBUG 300-W) after its HOG detector | the extra `dlib` |
| landmarks `face_alignment` (the paper's AKD) | 68 points of 2DFAN-4 | the extra `face_alignment` |
| identity `dlib` | 128 numbers of a face aligned by its 68 landmarks | the extra `dlib` |
| identity `openface` (the paper's AED) | 128 numbers of the whole picture | nn4.small2's `.t7`, given by the user |

A landmark back end is a function: uint8 [H,W,3] RGB -> float64 [n,2], (x, y) in pixels of that image with (0, 0) the
centre of the first, or None without a face. An identity back end is one: uint8 [H,W,3] RGB -> float64 [128], or None
without a face. They take the first face of several.

An image with a shorter side of less than 256 pixels is enlarged to that for the search, bicubically: faces of 64 pixels
are below what these detectors were made for (dlib's finds none), and their landmarks are less exact.
"""

import os

import cv2
import numpy as np

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.reenactment.identity import Find, dlib_identity, dlib_shape, enlarged, import_extra

_OPENFACE_SIDE = 96


def landmark_backend(name: str) -> Find:
    """Load one of LANDMARK_BACKENDS; UserError if its extra is missing or its weights can't be had."""
    return _LANDMARKS[name]()


def identity_backend(name: str, weights: AnyPath | None = None) -> Find:
    """Load one of IDENTITY_BACKENDS; ``weights``, OpenFace's ``nn4.small2.v1.t7``, are for ``openface`` only.

    UserError: its extra is missing, or its weights are missing, unreadable or not wanted.
    """
    if name == "openface":
        return _openface(weights)
    if weights is not None:
        raise UserError(f"{weights}: weights are for the identity back end openface; {name} has its own")
    return dlib_identity()


def _mediapipe_landmarks() -> Find:
    os.environ.setdefault("GLOG_minloglevel", "2")
    library = import_extra("mediapipe", "mediapipe").solutions.face_mesh
    mesh = library.FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=True)

    def find(image: np.ndarray) -> np.ndarray | None:
        faces = mesh.process(enlarged(image)).multi_face_landmarks
        if not faces:
            return None
        points = np.array([(point.x, point.y) for point in faces[0].landmark])  # shares of width and height
        return points * (image.shape[1], image.shape[0]) - 0.5

    return find


def _dlib_landmarks() -> Find:
    find_shape = dlib_shape()

    def find(image: np.ndarray) -> np.ndarray | None:
        large = enlarged(image)
        shape = find_shape(large)
        return None if shape is None else _shrunk([(point.x, point.y) for point in shape.parts()], image, large)

    return find


def _face_alignment_landmarks() -> Find:
    """2DFAN-4 (Bulat and Tzimiropoulos, ICCV 2017) without flipping, as the paper's AKD has it.

    **Untested**: written from the library's documentation, without torch and the weights.
    """
    library = import_extra("face_alignment", "face_alignment")
    device = "cuda" if import_extra("torch", "face_alignment").cuda.is_available() else "cpu"
    try:
        aligner = library.FaceAlignment(library.LandmarksType.TWO_D, flip_input=False, device=device)
    except OSError as error:
        raise UserError(f"face_alignment: its weights can't be fetched ({error}); run it once online") from error

    def find(image: np.ndarray) -> np.ndarray | None:
        large = enlarged(image)
        faces = aligner.get_landmarks_from_image(large)
        return _shrunk(faces[0], image, large) if faces else None

    return find


def _openface(weights: AnyPath | None) -> Find:
    """OpenFace's nn4.small2 on the whole picture: 96x96 without anti-aliasing, BGR in [0,1], no alignment.

    As it looks for no face, every picture has an embedding. **Not run with the real weights**, which we did not have.
    """
    if weights is None:
        raise UserError("identity back end openface: give its weights, nn4.small2.v1.t7 of the OpenFace project")
    check_is_file(weights)
    try:
        network = cv2.dnn.readNetFromTorch(str(weights))
    except cv2.error as error:
        raise UserError(f"{weights}: no Torch 7 network that OpenCV can read ({error})") from error
    side = (_OPENFACE_SIDE, _OPENFACE_SIDE)

    def find(image: np.ndarray) -> np.ndarray | None:
        small = cv2.resize(image, side, interpolation=cv2.INTER_LINEAR)
        network.setInput(cv2.dnn.blobFromImage(small, 1 / 255, side, swapRB=True))  # [1,3,96,96], BGR
        return network.forward().ravel().astype(np.float64)

    return find


_LANDMARKS = {"mediapipe": _mediapipe_landmarks, "dlib": _dlib_landmarks, "face_alignment": _face_alignment_landmarks}
LANDMARK_BACKENDS = tuple(_LANDMARKS)
IDENTITY_BACKENDS = ("dlib", "openface")


def _shrunk(points: object, image: np.ndarray, large: np.ndarray) -> np.ndarray:
    """Points [n,2] in pixels of the enlarged image -> float64 [n,2] in those of the image."""
    return (np.asarray(points, np.float64) + 0.5) * (len(image) / len(large)) - 0.5
