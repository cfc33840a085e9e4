"""Where hair, brows, beard and clothes are."""

import numpy as np
import pytest

from mrfomm.heads.geometry import load_template, sample_shape
from mrfomm.heads.painted import regions
from mrfomm.heads.painted.look import BEARDS, GARMENTS, sample_look

# places on the base mesh, decimetres from between the eyes
TOP, FOREHEAD, CHIN, NAPE = (0, 1.15, -0.9), (0, 0.4, 0.05), (0, -1.0, 0.05), (0, -0.2, -1.6)
NOSE, LIPS, BROW, CHEST = (0, -0.35, 0.35), (0, -0.6, 0.15), (0.3, 0.22, 0.1), (0, -2.3, 0.1)


def at(function, place, *arguments):
    return float(function(np.array(place, float), *arguments))


@pytest.fixture(scope="module")
def looks():
    template = load_template()
    rngs = [np.random.default_rng(seed) for seed in range(40)]
    return [sample_look(sample_shape(template, rng), rng) for rng in rngs]


def test_ramp_and_bump():
    assert regions.ramp(np.array([-1.0, 0, 0.5, 1, 2]), 0, 1).tolist() == [0, 0, 0.5, 1, 1]
    assert regions.ramp(0.25, 1, 0) == pytest.approx(1 - regions.ramp(0.25, 0, 1))
    assert regions.bump(1.0, 1.0, 0.1) == 1


def test_hair_is_on_top_and_not_in_the_face(looks):
    for look in looks:
        assert at(regions.scalp, TOP, look.hair) > 0.99
        assert at(regions.scalp, NAPE, look.hair) > 0.5
        for place in (NOSE, LIPS, CHIN):
            assert at(regions.scalp, place, look.hair) == 0


def test_a_lower_hairline_covers_the_forehead(looks):
    bare = looks[0].hair._replace(hairline=0.7, recession=0.0, slant=0.0)
    assert at(regions.scalp, FOREHEAD, bare) == 0
    assert at(regions.scalp, FOREHEAD, bare._replace(hairline=0.3)) > 0.9


def test_brows_are_above_the_eyes_only(looks):
    brow = looks[0].brows._replace(height=0.0, tilt=0.0, arch=0.02, thickness=0.05)
    assert at(regions.brows, BROW, brow) > 0.5
    for place in (NOSE, FOREHEAD, (0, 0.22, 0.1), (0.3, 0, 0.1)):
        assert at(regions.brows, place, brow) < 0.05


@pytest.mark.parametrize(("kind", "chin"), list(zip(BEARDS, (0, 1, 0, 1, 1))))
def test_beards_leave_the_lips_free(kind, chin):
    assert at(regions.beard, CHIN, kind) == pytest.approx(chin, abs=0.2)
    for place in (NOSE, FOREHEAD, LIPS):
        assert at(regions.beard, place, kind) < 0.2


@pytest.mark.parametrize("garment", GARMENTS)
def test_clothes_end_below_the_chin(looks, garment):
    clothing = looks[0].clothing._replace(garment=garment, neckline=-1.6)
    assert at(regions.cloth, CHEST, clothing) == 1 or garment == "vneck"
    assert at(regions.cloth, (1.2, -2.0, -0.6), clothing) == 1
    assert at(regions.cloth, CHIN, clothing) == 0
    assert at(regions.cloth, (0, -1.4, -0.4), clothing) == (garment == "turtleneck")
