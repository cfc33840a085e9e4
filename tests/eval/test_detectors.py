"""Back ends on the bundled rendered faces; OpenFace's preparation of a picture through a hand-made Torch 7 network."""

import importlib.util
import re
import struct
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval import detectors
from mrfomm import bundled
from mrfomm.errors import UserError
from mrfomm.media.images import read_image
from mrfomm.media.reading import open_frames

ROOT = Path(__file__).parent.parent.parent

# points that both schemes have: outer eye corners, nose tip, mouth corners, chin
COMMON = {"mediapipe": (33, 263, 4, 61, 291, 152), "dlib": (36, 45, 30, 48, 54, 8)}


@pytest.fixture(scope="module")
def faces():
    """The frontal face of one head, uint8 [256,256,3], and the same turned to either side."""
    return [read_image(path) for path in bundled.SAMPLE_REFERENCES]


@pytest.fixture(scope="module")
def landmarks():
    """Landmark back ends by name."""
    return {name: detectors.landmark_backend(name) for name in COMMON}


@pytest.fixture(scope="module")
def identity():
    return detectors.identity_backend("dlib")


@pytest.mark.parametrize(("name", "count"), [("mediapipe", 478), ("dlib", 68)])
def test_landmarks_lie_on_the_face(landmarks, faces, name, count):
    points = landmarks[name](faces[0])
    assert points.shape == (count, 2)
    assert points.dtype == np.float64
    left_eye, right_eye, nose, left_mouth, right_mouth, chin = points[list(COMMON[name])]
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1] < chin[1]
    assert np.ptp(points, axis=0).min() > 60


def test_back_ends_agree_on_common_points(landmarks, faces):
    """Two detectors of different origin, in one system of coordinates: within 6 of 256 pixels."""
    for face in faces:
        ours, theirs = (landmarks[name](face)[list(points)] for name, points in COMMON.items())
        assert np.abs(ours - theirs).mean() < 6


@pytest.mark.parametrize("name", COMMON)
def test_landmarks_move_with_the_picture(landmarks, faces, name):
    moved = np.roll(faces[0], (5, -8), axis=(0, 1))
    shift = landmarks[name](moved) - landmarks[name](faces[0])
    np.testing.assert_allclose(shift.mean(axis=0), (-8, 5), atol=1.0)


@pytest.mark.parametrize("name", COMMON)
def test_small_pictures_are_enlarged_and_points_given_in_their_own_pixels(landmarks, faces, name):
    """Pixel centres: a point p of a picture four times as large lies at (p + 0.5) / 4 - 0.5."""
    small = cv2.resize(faces[0], (64, 64), interpolation=cv2.INTER_AREA)
    expected = (landmarks[name](faces[0]) + 0.5) / 4 - 0.5
    found = landmarks[name](small)
    assert np.abs(found - expected).mean() < 0.6
    np.testing.assert_allclose(found.mean(axis=0), expected.mean(axis=0), atol=0.4)


@pytest.mark.parametrize("name", COMMON)
def test_pictures_need_not_be_square(landmarks, faces, name):
    wide = np.pad(faces[0], [(0, 0), (0, 100), (0, 0)], mode="edge")
    difference = landmarks[name](wide) - landmarks[name](faces[0])
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("name", COMMON)
def test_no_face_is_none(landmarks, name):
    assert landmarks[name](np.full((256, 256, 3), 128, np.uint8)) is None


@pytest.mark.parametrize("name", COMMON)
def test_a_picture_has_the_same_landmarks_whatever_came_before(landmarks, faces, name):
    before = landmarks[name](faces[0])
    landmarks[name](faces[1])
    np.testing.assert_array_equal(landmarks[name](faces[0]), before)


def test_embeddings_tell_heads_apart(identity, faces):
    """The same head turned is closer than another head; dlib's threshold for one person is a distance of 0.6."""
    front, *turned = (identity(face) for face in faces)
    assert front.shape == (128,)
    assert front.dtype == np.float64
    other = identity(next(iter(open_frames(bundled.SAMPLE_DRIVING))))
    distances = [np.linalg.norm(front - side) for side in turned]
    assert max(distances) < np.linalg.norm(front - other)


def test_no_face_has_no_embedding(identity):
    assert identity(np.zeros((256, 256, 3), np.uint8)) is None


# OpenFace


class Torch7:
    """Writes a Torch 7 binary file of nested tables, numbers, strings, booleans and objects (name, table)."""

    def __init__(self):
        self._indices = 0

    def bytes(self, value):
        if isinstance(value, bool):
            return struct.pack("<ii", 5, value)
        if isinstance(value, (int, float)):
            return struct.pack("<id", 1, value)
        if isinstance(value, str):
            return struct.pack("<i", 2) + self._string(value)
        if isinstance(value, dict):
            items = b"".join(self.bytes(key) + self.bytes(item) for key, item in value.items())
            return struct.pack("<iii", 3, self._index(), len(value)) + items
        name, table = value
        head = struct.pack("<ii", 4, self._index())
        return head + self._string("V 1") + self._string(name) + self.bytes(table)

    def _index(self):
        self._indices += 1
        return self._indices

    @staticmethod
    def _string(text):
        return struct.pack("<i", len(text)) + text.encode()


@pytest.fixture
def averaging(tmp_path):
    """A network file that averages the three channels of a 96x96 picture."""
    pooling = {"kW": 96, "kH": 96, "dW": 1, "dH": 1, "padW": 0, "padH": 0, "ceil_mode": False}
    network = ("nn.Sequential", {"modules": {1: ("nn.SpatialAveragePooling", pooling)}})
    (tmp_path / "average.t7").write_bytes(Torch7().bytes(network))
    return tmp_path / "average.t7"


def test_openface_sees_bgr_between_0_and_1_without_antialiasing(averaging):
    """Bilinear sampling from 256 to 96 pixels passes over columns 2 and 5 of every eight: they may hold anything."""
    image = np.empty((256, 256, 3), np.uint8)
    image[:] = 10, 100, 200
    image[:, 2::8] = image[:, 5::8] = 255
    embedding = detectors.identity_backend("openface", averaging)(image)
    np.testing.assert_allclose(embedding, np.array([200, 100, 10]) / 255, atol=1e-4)


@pytest.mark.parametrize(
    ("weights", "named"), [(None, "nn4.small2"), ("none.t7", "none.t7: no such file"), (__file__, "no Torch 7 network")]
)
def test_openface_needs_readable_weights(weights, named):
    with pytest.raises(UserError, match=named):
        detectors.identity_backend("openface", weights)


def test_dlib_wants_no_weights():
    with pytest.raises(UserError, match="x.t7: weights are for"):
        detectors.identity_backend("dlib", "x.t7")


# Extras


@pytest.mark.parametrize(
    ("load", "missing", "extra"),
    [
        (lambda: detectors.landmark_backend("mediapipe"), "mediapipe", "mediapipe"),
        (lambda: detectors.landmark_backend("dlib"), "dlib", "dlib"),
        (lambda: detectors.landmark_backend("face_alignment"), "face_alignment", "face_alignment"),
        (lambda: detectors.identity_backend("dlib"), "dlib", "dlib"),
    ],
)
def test_missing_extra_is_named_and_is_in_setup(monkeypatch, load, missing, extra):
    monkeypatch.setitem(sys.modules, missing, None)  # makes its import fail
    with pytest.raises(UserError, match=re.escape(f"{missing} can't be imported") + ".*" + re.escape(f".[{extra}]")):
        load()
    assert f'"{extra}": ' in (ROOT / "setup.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("spec", [None, ModuleSpec("face_recognition_models", None)], ids=["absent", "bare folder"])
def test_missing_models_of_dlib_are_named(monkeypatch, spec):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: spec if "models" in name else find(name, *rest)
    )
    line = "face_recognition_models is not installed: pip install -c constraints.txt -e .[dlib]"
    with pytest.raises(UserError, match=re.escape(line)):
        detectors.landmark_backend("dlib")


def test_importing_loads_no_back_end():
    code = "import eval.detectors, sys; sys.exit(bool({'mediapipe', 'dlib', 'face_alignment'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
