"""The head's mesh: rotation, projection, identities, against numbers computed by hand."""

import numpy as np
import pytest

from mrfomm.heads import geometry
from mrfomm.heads.geometry import HEADS, angles, rotation, turn_head
from mrfomm.heads.scene import Camera, project

NOSE = np.array([[0.0, 0.0, 1.0]])
CROWN = np.array([[0.0, 1.0, 0.0]])


@pytest.fixture(scope="module")
def template():
    return geometry.load_template()


@pytest.fixture(scope="module")
def camera():
    return Camera(np.array([0.0, 0.0, 10.0]), 100.0, np.array([32.0, 32.0]))


def test_projection_by_hand(camera):
    # 0.5 dm to the right, 1 dm up, 8 dm before the camera: 100 / 8 pixels per decimetre
    np.testing.assert_allclose(project(np.array([[0.5, 1.0, 2.0]]), camera), [[32 + 6.25, 32 - 12.5, 8.0]])


@pytest.mark.parametrize(
    ("pose", "point", "column", "row"),
    [
        ((30, 0, 0), NOSE, 32 + 100 * 0.5 / (10 - np.sqrt(0.75)), 32),  # yaw > 0: to image right
        ((0, 30, 0), NOSE, 32, 32 - 100 * 0.5 / (10 - np.sqrt(0.75))),  # pitch > 0: up
        ((0, 0, 30), CROWN, 32 + 5, 32 - 10 * np.sqrt(0.75)),  # roll > 0: the crown to image right
        ((0, 0, 30), NOSE, 32, 32),
    ],
)
def test_signs_in_the_image(camera, pose, point, column, row):
    turned = turn_head(point, np.ones(1), rotation(*pose), np.zeros(3))
    np.testing.assert_allclose(project(turned, camera)[0, :2], [column, row], atol=1e-9)


def test_nose_of_the_template_moves_as_the_labels_say(template, camera):
    tip = np.argmax(template.vertices[:, 2] * (template.follow == 1))
    pivot = template.vertices[template.pivot].mean(0)

    def seen(*pose):
        return project(turn_head(template.vertices[[tip]], template.follow[[tip]], rotation(*pose), pivot), camera)[0]

    ahead = seen(0, 0, 0)
    assert seen(20, 0, 0)[0] > ahead[0] + 3
    assert seen(0, 20, 0)[1] < ahead[1] - 3  # image rows point down


def test_rotation_gives_its_angles_back():
    for pose in np.random.default_rng(0).uniform((-60, -30, -30), (60, 30, 30), (200, 3)):
        np.testing.assert_allclose(angles(rotation(*pose)), pose, atol=1e-10)


def test_rotation_is_the_product_of_turns_about_the_axes():
    product = rotation(25, 0, 0) @ rotation(0, -10, 0) @ rotation(0, 0, 15)
    np.testing.assert_allclose(rotation(25, -10, 15), product, atol=1e-12)
    np.testing.assert_allclose(product @ product.T, np.eye(3), atol=1e-12)


def test_labels_are_exact_for_the_whole_face(template):
    """The best rotation (Kabsch) from the face at rest to the posed face has the angles of the label."""
    face = (template.follow == 1) & (template.vertices[:, 2] > -0.4)
    pivot = template.vertices[template.pivot].mean(0)
    pose = (47.0, -22.0, 13.0)
    posed = turn_head(template.vertices, template.follow, rotation(*pose), pivot)
    before, after = (points[face] - points[face].mean(0) for points in (template.vertices.astype(float), posed))
    left, _, right = np.linalg.svd(after.T @ before)
    np.testing.assert_allclose(angles(left @ right), pose, atol=1e-4)


def test_shoulders_stay_and_the_neck_turns_in_part():
    points = np.tile([[0.0, 0.0, 1.0]], (3, 1))
    turned = turn_head(points, np.array([0.0, 0.5, 1.0]), rotation(40, 0, 0), np.zeros(3))
    np.testing.assert_allclose(np.rad2deg(np.arctan2(turned[:, 0], turned[:, 2])), [0, 20, 40], atol=1e-9)


def test_no_rotation_moves_nothing(template):
    turned = turn_head(template.vertices, template.follow, rotation(0, 0, 0), np.ones(3))
    np.testing.assert_allclose(turned, template.vertices, atol=1e-6)


def test_asset_is_whole(template):
    assert template.triangles.max() < len(template.vertices)
    assert template.uv.min() >= 0
    assert template.uv.max() <= 1
    assert len(template.units) == 52
    with np.load(HEADS) as file:
        for kind, morphs in (("identity", template.identity), ("units", template.units)):
            moved, deltas = (np.concatenate(field) for field in zip(*morphs.values()))
            assert file[f"{kind}_offsets"][-1] == len(file[f"{kind}_indices"]) == len(moved) == len(deltas)
            assert moved.max() < len(template.vertices)


def test_dense_targets_are_what_they_add_to_a_mesh(template):
    moved = template.vertices.copy()
    rows, deltas = template.units["jawOpen"]
    moved[rows] += 0.5 * deltas
    dense = geometry.dense(template.units, len(moved))[list(template.units).index("jawOpen")]
    np.testing.assert_allclose(moved - template.vertices, 0.5 * dense, atol=1e-6)
    assert (moved - template.vertices)[:, 1].min() < -0.1  # the chin goes down


def test_every_sampled_identity_can_be_built_and_differs(template):
    first, same, other = (
        geometry.shape_vertices(template, geometry.sample_shape(template, np.random.default_rng(seed)))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0.05
    eyes = np.unique(template.triangles[template.of("eye")])
    np.testing.assert_allclose(first[eyes].mean(0), 0, atol=1e-5)
