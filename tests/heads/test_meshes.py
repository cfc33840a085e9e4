"""The meshes of a person at rest."""

import numpy as np
import pytest

pytest.importorskip("numba")

from mrfomm.heads.geometry import load_template, sample_shape
from mrfomm.heads.painted import look as looks_of
from mrfomm.heads.painted import meshes
from mrfomm.heads.painted.textures import MATERIALS


@pytest.fixture(scope="module")
def template():
    return load_template()


def look_with(template, **parts):
    """A look with parts of parts replaced: ``hair={"style": "afro"}``."""
    rng = np.random.default_rng(3)
    look = looks_of.sample_look(sample_shape(template, rng), rng)._replace(earrings=False)
    look = look._replace(glasses=look.glasses._replace(worn=False), beard=look.beard._replace(kind="none"))
    look = look._replace(hair=look.hair._replace(style="bald"), clothing=look.clothing._replace(garment="crew"))
    return look._replace(**{name: getattr(look, name)._replace(**changes) for name, changes in parts.items()})


def materials_of(body):
    return {MATERIALS[number] for number in np.unique(body.material)}


HEAD = {"skin", "eye", "mouth", "lashes"}


@pytest.mark.parametrize("style", looks_of.HAIR_STYLES)
def test_every_hair_style_is_a_sound_mesh(template, style):
    look = look_with(template, hair={"style": style, "length": 0.1})
    body = meshes.build_mesh(template, template.vertices, look)
    count = len(body.vertices)
    for field in (body.source, body.moved, body.follow, body.openness):
        assert field.shape == (count,)
    assert 0 <= body.triangles.min() <= body.triangles.max() < count
    assert body.uv.shape == (len(body.triangles), 3, 2)
    assert np.isfinite(body.vertices).all()
    extra = {"bald": set(), "beanie": {"fabric"}}.get(style, {"hair"})
    extra |= {"strands"} if style in ("bob", "long", "bun", "ponytail") else set()
    assert materials_of(body) == HEAD | extra


def test_what_is_worn_adds_its_material(template):
    for parts, material in (
        ({"beard": {"kind": "full", "length": 0.1}}, "beard"),
        ({"glasses": {"worn": True}}, "frame"),
        ({"clothing": {"garment": "shirt"}}, "fabric"),
    ):
        body = meshes.build_mesh(template, template.vertices, look_with(template, **parts))
        assert materials_of(body) == HEAD | {material}


def test_hair_follows_the_head_and_the_expression_of_its_skin(template):
    body = meshes.build_mesh(template, template.vertices, look_with(template, hair={"style": "full", "length": 0.2}))
    hair = np.unique(body.triangles[body.material == MATERIALS.index("hair")])
    np.testing.assert_array_equal(body.follow[hair], template.follow[body.source[hair]])
    away = np.linalg.norm(body.vertices[hair] - template.vertices[body.source[hair]], axis=1)
    assert 0.1 < away.max() < 0.6


def test_long_hair_is_longer_than_a_bob(template):
    lowest = []
    for style, fall in (("bob", -0.9), ("long", -2.2)):
        look = look_with(template, hair={"style": style, "fall": fall, "length": 0.1})
        body = meshes.build_mesh(template, template.vertices, look)
        strands = np.unique(body.triangles[body.material == MATERIALS.index("strands")])
        lowest.append(body.vertices[strands, 1].min())
    np.testing.assert_allclose(lowest, [-0.9, -2.2])


def test_measures_of_the_base_mesh(template):
    frame = meshes.measure(template, template.vertices)
    assert frame.eyes[0, 0] < 0 < frame.eyes[1, 0]  # image left first
    np.testing.assert_allclose(frame.eyes.mean(0), 0, atol=0.01)
    assert 0.6 < frame.width < 0.9
    assert frame.top == template.vertices[template.follow == 1, 1].max()
