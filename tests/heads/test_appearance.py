"""What people and scenes look like, as numbers."""

import numpy as np
import pytest

from mrfomm.heads import scene
from mrfomm.heads.geometry import load_template, sample_shape
from mrfomm.heads.painted import look as looks_of

NUMBER = 300


@pytest.fixture(scope="module")
def looks():
    template = load_template()
    rngs = [np.random.default_rng(seed) for seed in range(NUMBER)]
    return [looks_of.sample_look(sample_shape(template, rng), rng) for rng in rngs]


def flat(value):
    """All numbers in nested NamedTuples."""
    if isinstance(value, (tuple, list)):
        return [number for part in value for number in flat(part)]
    return [value] if isinstance(value, (int, float)) else []


def test_every_kind_occurs(looks):
    assert {look.hair.style for look in looks} == set(looks_of.HAIR_STYLES)
    assert {look.beard.kind for look in looks} == set(looks_of.BEARDS)
    assert {look.clothing.garment for look in looks} == set(looks_of.GARMENTS)
    assert {look.glasses.worn for look in looks} == {True, False}
    assert {look.hair.flow for look in looks} == {0, 1, 2}


def test_colours_are_colours_and_vary(looks):
    for pick in (
        lambda look: look.skin.tone,
        lambda look: look.hair.color,
        lambda look: look.eyes.iris,
        lambda look: look.clothing.color,
    ):
        colors = np.array([pick(look) for look in looks])
        assert colors.shape == (NUMBER, 3)
        assert colors.min() >= 0
        assert colors.max() <= 1
        assert np.ptp(colors, axis=0).min() > 0.3


def test_no_two_people_look_alike(looks):
    numbers = np.array([flat(look) for look in looks], float)
    assert len(np.unique(numbers.round(3), axis=0)) == NUMBER


def test_same_seed_same_look():
    template = load_template()
    first, same = (looks_of.sample_look(sample_shape(template, rng), rng) for rng in map(np.random.default_rng, (4, 4)))
    assert first == same


def test_lamps_are_where_they_are_said_to_be():
    light = scene.make_light([(0, 0), (90, 0), (0, 90)], np.ones((3, 3)), [0] * 3, [0] * 3)
    np.testing.assert_allclose(light.direction, [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_random_scenes_vary_and_are_lit():
    scenes = [scene.sample_scene(np.random.default_rng(seed)) for seed in range(100)]
    assert {one.backdrop.kind for one in scenes} == set(scene.BACKDROPS)
    for one in scenes:
        np.testing.assert_allclose(np.linalg.norm(one.light.direction, axis=1), 1)
        assert one.light.direction[0, 2] > 0  # the key lamp is in front
        assert one.light.color[0].mean() > 0.25
        assert (one.light.above >= one.light.below).all()
        assert 0.6 < one.framing.fill < 0.9


def test_the_papers_illuminations_differ_in_direction_and_colour():
    soft, side = scene.paper_lights().values()
    assert soft.direction[0] @ side.direction[0] < 0.5
    warmth = [light.color[0, 0] / light.color[0, 2] for light in (soft, side)]
    assert warmth[1] > 1.5 * warmth[0]


def test_hsv():
    assert scene.from_hsv(1 / 3, 1, 0.5) == (0, 0.5, 0)
