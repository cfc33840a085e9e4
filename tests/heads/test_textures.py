"""Painted textures and backdrops."""

import numpy as np
import pytest

pytest.importorskip("numba")

from mrfomm.heads import geometry, scene
from mrfomm.heads.painted import textures
from mrfomm.heads.painted.canvas import make_canvas
from mrfomm.heads.painted.look import Eyes, sample_look
from mrfomm.heads.painted.textures import MATERIALS

SIZE = 128


@pytest.fixture(scope="module")
def template():
    return geometry.load_template()


@pytest.fixture(scope="module")
def canvas(template):
    return make_canvas(template, SIZE)


@pytest.fixture(scope="module")
def look(template):
    rng = np.random.default_rng(8)
    return sample_look(geometry.sample_shape(template, rng), rng)


def test_canvas_has_the_place_of_every_vertex(template, canvas):
    """Reading the canvas at a vertex' uv gives its position, except where the texture is coarser than the mesh."""
    skin = template.of("skin")
    corners, uv = template.triangles[skin].reshape(-1), template.uv[skin].reshape(-1, 2)
    texel = np.clip((uv * SIZE).astype(int), 0, SIZE - 1)
    away = np.linalg.norm(canvas.points[texel[:, 1], texel[:, 0]] - template.vertices[corners], axis=1)
    assert np.median(away) < 0.03
    assert np.quantile(away, 0.95) < 0.2


def test_masks_are_where_they_belong(canvas):
    lips = canvas.points[canvas.masks["lips"] > 0.5]
    assert np.abs(lips[:, 1] + 0.6).max() < 0.35
    assert np.abs(canvas.points[canvas.masks["ears"] > 0.5][:, 0]).min() > 0.5


def test_materials_are_complete_and_the_same_again(canvas, look):
    first, same = (textures.paint_materials(canvas, look) for _ in range(2))
    assert first.texture.shape == (len(MATERIALS), SIZE, SIZE, 4)
    assert first.texture.dtype == np.uint8
    for ours, theirs in zip(first, same):
        assert len(ours) == len(MATERIALS)
        np.testing.assert_array_equal(ours, theirs)


def test_skin_has_its_tone(canvas, look):
    bald = look._replace(
        hair=look.hair._replace(style="bald"),
        beard=look.beard._replace(kind="none"),
        skin=look.skin._replace(tone=(0.5, 0.4, 0.3), freckles=0.0, redness=0.0, wrinkles=0.0, moles=0.0, shadow=0.0),
    )
    skin = textures.paint_skin(canvas, bald, np.random.default_rng(0))
    x, y, z = np.moveaxis(canvas.points, -1, 0)
    chin = (np.abs(x) < 0.2) & (np.abs(y + 0.95) < 0.1) & (z > -0.3) & (canvas.masks["inside-mouth"] < 0.5)
    np.testing.assert_allclose(skin[chin][:, :3].mean(0) / 255, (0.5, 0.4, 0.3), rtol=0.1)


def test_eyes_have_a_dark_pupil_in_a_coloured_iris():
    eye = textures.paint_eye(Eyes((0.2, 0.4, 0.7), (0.92, 0.9, 0.9), 0.4), SIZE, np.random.default_rng(0))
    middle = SIZE // 2
    assert eye[middle, middle, :3].max() < 20
    iris = eye[middle, middle + int(0.35 * middle), :3].astype(int)
    assert iris[2] > iris[0] + 40
    assert eye[middle, middle + int(0.6 * middle), :3].min() > 150


@pytest.mark.parametrize("kind", scene.BACKDROPS)
def test_backdrops(kind):
    backdrop = scene.Backdrop(kind, ((0.8, 0.2, 0.2), (0.2, 0.8, 0.2), (0.2, 0.2, 0.8)), 4)
    image = scene.paint_backdrop(backdrop, 64)
    assert image.shape == (64, 64, 3)
    assert 0 <= image.min() <= image.max() <= 1
    np.testing.assert_array_equal(image, scene.paint_backdrop(backdrop, 64))
    other = scene.paint_backdrop(backdrop._replace(seed=5), 64)
    assert np.abs(image - other).max() > 0.01
