"""Estimated angles: the geometry against projections of a turned head, and the command on rendered faces."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from eval import pose
from eval.detectors import landmark_backend
from eval.labels import check_labelled, read_labels
from mrfomm import bundled
from mrfomm.errors import UserError
from mrfomm.media.images import read_image

ROOT = Path(__file__).parent.parent.parent
ANGLES = [(0, 0, 0), (30, 0, 0), (-60, 0, 0), (0, 25, 0), (0, -25, 0), (0, 0, 40), (20, -15, 10), (-45, 20, -30)]


def rotation(yaw, pitch, roll):
    """R_y R_x R_z in the label files' axes (x right, y up, z to the viewer), built axis by axis."""
    y, p, r = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), np.sin(r), 0], [-np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def picture_of(head, angles, size=(240, 320), distance=900.0):
    """Pixels of HEAD's points, turned and seen by a pinhole camera."""
    flip = np.diag([1.0, -1.0, -1.0])  # between the two systems of axes
    points = head @ (flip @ rotation(*angles) @ flip).T + (12.0, -20.0, distance)
    focal = pose.FOCAL_LENGTH * min(size)
    return points[:, :2] / points[:, 2:] * focal + ((size[1] - 1) / 2, (size[0] - 1) / 2)


def test_the_test_s_own_signs():
    """Yaw > 0 turns the face to image right, pitch > 0 up, roll > 0 moves the top of the head to image right."""
    ahead, top = np.array([0, 0, 1]), np.array([0, 1, 0])
    assert (rotation(30, 0, 0) @ ahead)[0] > 0
    assert (rotation(0, 30, 0) @ ahead)[1] > 0
    assert (rotation(0, 0, 30) @ top)[0] > 0


@pytest.mark.parametrize("angles", ANGLES)
def test_angles_of_a_turned_head_come_back(angles):
    head = np.array(list(pose.HEAD.values()), np.float64)
    found = pose.angles_of(pose.fit_rotation(picture_of(head, angles), 240, 320))
    np.testing.assert_allclose(found, angles, atol=0.01)


def test_angles_survive_noise():
    """A pixel of noise at 90 pixels between the eyes costs a few degrees at most."""
    head = np.array(list(pose.HEAD.values()), np.float64)
    rng = np.random.default_rng(0)
    for angles in ANGLES:
        points = picture_of(head, angles)
        found = pose.angles_of(pose.fit_rotation(points + rng.normal(0, 1, points.shape), 240, 320))
        np.testing.assert_allclose(found, angles, atol=6)


@pytest.mark.parametrize("name", pose.POINTS)
def test_bundled_references_face_ahead_and_30_degrees_to_either_side(name):
    """The pictures were rendered at yaw 0, -30 and 30 degrees, pitch and roll 0."""
    backend = landmark_backend(name)
    for path, yaw in zip(bundled.SAMPLE_REFERENCES, (0, -30, 30)):
        found = pose.estimate(read_image(path), backend, pose.POINTS[name])
        np.testing.assert_allclose(found, (yaw, 0, 0), atol=9)


def test_errors_by_hand():
    angles = np.array([[10.0, 1.0, 179.0], [np.nan] * 3, [-4.0, 3.0, 0.0]])
    labels = np.array([[8.0, 0.0, -179.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    absolute, bias = pose.errors(angles, labels)
    np.testing.assert_allclose(absolute, (3, 2, 1))  # 179 and -179 are 2 degrees apart
    np.testing.assert_allclose(bias, (-1, 2, -1))


def test_interpolation_is_linear_and_repeats_the_ends():
    nothing = [np.nan] * 3
    filled = pose.interpolated(np.array([nothing, [0.0, 3, 6], nothing, nothing, [3.0, 0, 9], nothing]))
    np.testing.assert_allclose(filled, [[0, 3, 6], [0, 3, 6], [1, 2, 7], [2, 1, 8], [3, 0, 9], [3, 0, 9]])


@pytest.fixture
def clip(tmp_path):
    """A folder of frames: the three references with a picture without a face after the first, and true labels."""
    (tmp_path / "clip").mkdir()
    front, left, right = bundled.SAMPLE_REFERENCES
    for i, path in ((0, front), (2, left), (3, right)):
        shutil.copy(path, tmp_path / "clip" / f"{i}.png")
    imageio.imwrite(tmp_path / "clip" / "1.png", np.full((256, 256, 3), 90, np.uint8))
    (tmp_path / "true.csv").write_text("frame,yaw,pitch,roll\n0,0,0,0\n1,0,0,0\n2,-30,0,0\n3,30,0,0\n")
    return tmp_path / "clip"


def test_frame_without_a_face_is_left_empty_and_label_readers_refuse_it(clip, tmp_path, capsys):
    output = tmp_path / "new" / "out.csv"
    assert pose.main([str(clip), "-o", str(output)]) == 0
    with open(output, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["frame", "yaw", "pitch", "roll", "clip"]
    assert rows[2] == ["1", "", "", "", ""]
    yaws = [float(row[1]) for row in (rows[1], *rows[3:])]
    np.testing.assert_allclose(yaws, (0, -30, 30), atol=9)
    errors = capsys.readouterr().err
    assert "3 of 4 frames, landmarks mediapipe" in errors
    assert "1 frame without a face (the first: 1) left empty" in errors
    assert "how far to trust it" in errors
    with pytest.raises(UserError, match="line 3, yaw"):
        read_labels(output)


def test_filled_file_is_a_label_file(clip, tmp_path, capsys):
    pose.main([str(clip), "-o", str(tmp_path / "out.csv"), "--interpolate"])
    angles = read_labels(tmp_path / "out.csv")
    np.testing.assert_allclose(angles[1], (angles[0] + angles[2]) / 2, atol=0.011)
    assert "filled from their neighbours" in capsys.readouterr().err


def test_estimates_name_their_clip(clip, tmp_path):
    output = tmp_path / "out.csv"
    pose.main([str(clip), "-o", str(output), "--interpolate"])
    check_labelled(clip, output)
    pose.main([str(clip), "-o", str(tmp_path / "again.csv"), "--labels", str(output)])
    shutil.copy(clip / "2.png", clip / "1.png")
    with pytest.raises(UserError, match="out.csv: of a different clip than .*clip"):
        pose.main([str(clip), "-o", str(tmp_path / "again.csv"), "--labels", str(output)])


def test_labels_give_the_error(clip, tmp_path, capsys):
    pose.main([str(clip), "-o", str(tmp_path / "out.csv"), "--labels", str(tmp_path / "true.csv")])
    assert "mean absolute error in degrees over 3 frames: yaw " in capsys.readouterr().out


def test_bad_input_is_named_and_the_old_file_stays(clip, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("old")
    (tmp_path / "short.csv").write_text("frame,yaw,pitch,roll\n0,0,0,0\n")
    (tmp_path / "empty").mkdir()
    shutil.copy(clip / "1.png", tmp_path / "empty" / "0.png")
    for arguments, named in [
        ([str(tmp_path / "none.mp4")], "none.mp4: no such file"),
        ([str(tmp_path / "empty")], "no face in any of its 1 frame"),
        ([str(clip), "--labels", str(tmp_path / "short.csv")], "short.csv: 1 row.*4 frames"),
        ([str(clip), "--labels", str(tmp_path / "none.csv")], "none.csv"),
    ]:
        with pytest.raises(UserError, match=named):
            pose.main([*arguments, "-o", str(output)])
        assert output.read_text() == "old"


def test_process_exits_with_2(tmp_path):
    command = [sys.executable, "-m", "eval.pose", str(tmp_path / "none.mp4"), "-o", str(tmp_path / "out.csv")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
