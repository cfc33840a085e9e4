"""Whole frames: the same again, alive, and as labelled. mediapipe's landmarks are an independent witness."""

import numpy as np
import pytest

pytest.importorskip("numba")


from mrfomm.heads import geometry, motion, person, scene
from mrfomm.heads.painted.canvas import make_canvas

SIZE = 64
# The landmarks that mediapipe's own face geometry is fitted to: mouth and jaw move by themselves.
RIGID = [4, 6, 10, 33, 54, 67, 117, 119, 121, 127, 129, 132, 133, 136, 143, 147, 198, 205, 263, 284, 297, 346, 348, 350, 356, 358, 361, 362, 365, 372, 376, 420, 425]  # noqa: E501  # fmt: skip


@pytest.fixture(scope="module")
def template():
    return geometry.load_template()


def make(template, canvas, seed, size):
    rng = np.random.default_rng(seed)
    someone = person.make_person(template, canvas, person.draw_identity(template, rng))
    return someone, scene.make_stage(someone.bounds, scene.sample_scene(rng), size), rng


@pytest.fixture(scope="module")
def canvas(template):
    return make_canvas(template, person.texture_size(SIZE))


@pytest.fixture(scope="module")
def someone(template, canvas):
    return make(template, canvas, 6, SIZE)


def weights(template, **units):
    return np.array([units.get(name, 0.0) for name in template.units])


def test_same_seed_same_bytes_and_other_seed_other_person(template, canvas, someone):
    (first, first_stage, _), (same, same_stage, _) = someone, make(template, canvas, 6, SIZE)
    other, other_stage, _ = make(template, canvas, 7, SIZE)
    pose, face = (20, 5, -8), weights(template, jawOpen=0.4)
    frame = person.render_frame(first, first_stage, pose, face)
    assert frame.shape == (SIZE, SIZE, 3)
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, person.render_frame(same, same_stage, pose, face))
    assert np.abs(frame.astype(int) - person.render_frame(other, other_stage, pose, face)).mean() > 5


def test_head_fills_the_frame_as_asked(template, someone):
    first, stage, _ = someone
    vertices = person.pose_mesh(first, (0, 0, 0), weights(template))
    rows = scene.project(vertices[first.mesh.follow == 1], stage.camera)[:, 1]
    assert 0.55 * SIZE < rows.max() - rows.min() < 0.85 * SIZE
    assert rows.min() > 0


def test_expressions_change_the_picture_where_they_should(template, someone):
    first, stage, _ = someone
    rest = person.render_frame(first, stage, (0, 0, 0), weights(template)).astype(int)
    lips = scene.project(np.array([[0, -0.6, 0.2]]), stage.camera)[0]
    eyes = scene.project(np.zeros((1, 3)), stage.camera)[0]
    for units, place in (({"jawOpen": 0.7}, lips), ({"eyeBlinkLeft": 1, "eyeBlinkRight": 1}, eyes)):
        moved = person.render_frame(first, stage, (0, 0, 0), weights(template, **units)).astype(int)
        change = np.abs(moved - rest).max(-1) > 20
        assert change.any()
        assert abs(np.nonzero(change)[0].mean() - place[1]) < SIZE / 6


def test_the_rotation_of_the_skull_is_the_label(template, someone):
    first, _, _ = someone
    pose = (35.0, -12.0, 20.0)
    head = first.mesh.follow == 1
    before, after = (
        person.pose_mesh(first, angles, weights(template))[head] - first.pivot for angles in ((0, 0, 0), pose)
    )
    np.testing.assert_allclose(after, before @ geometry.rotation(*pose).T, atol=1e-6)


def fitted_angles(reference, landmarks):
    """Angles of the rotation that takes reference landmarks [N,3] closest to others (Kabsch)."""
    before, after = (points[RIGID] - points[RIGID].mean(0) for points in (reference, landmarks))
    left, _, right = np.linalg.svd(after.T @ before)
    return geometry.angles(left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # protobuf's, under mediapipe
def test_faces_are_found_and_their_pose_agrees_with_the_labels(template):
    solutions = pytest.importorskip("mediapipe").solutions
    detector = solutions.face_detection.FaceDetection(model_selection=0, min_detection_confidence=0.5)
    mesh = solutions.face_mesh.FaceMesh(static_image_mode=True, refine_landmarks=True)

    def landmarks(frame):
        faces = mesh.process(frame).multi_face_landmarks
        return faces and np.array([[point.x, -point.y, -point.z] for point in faces[0].landmark])

    canvas = make_canvas(template, 512)
    found, frames, errors = 0, 0, []
    for seed in range(10):
        first, stage, rng = make(template, canvas, 1000 + seed, 256)
        reference = landmarks(person.render_frame(first, stage, (0, 0, 0), weights(template)))
        poses = motion.random_motion(60, rng)[::10]
        faces = motion.random_performance(list(template.units), 60, rng)[::10]
        for pose, face in zip(poses, faces):
            frame = person.render_frame(first, stage, pose, face)
            frames += 1
            found += bool(detector.process(frame).detections)
            seen = landmarks(frame)
            if seen is not None and reference is not None:
                errors.append(np.abs(np.subtract(fitted_angles(reference, seen), pose)))
    assert found >= 0.98 * frames
    assert len(errors) > 0.8 * frames
    yaw, pitch, roll = np.mean(errors, 0)
    assert yaw <= 4
    assert pitch <= 4
    assert roll <= 2
