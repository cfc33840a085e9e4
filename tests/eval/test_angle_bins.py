"""The bin metric against an independent slow version, with bins worked out by hand."""

from decimal import Decimal

import numpy as np
import pytest
from reference import angle_bins as expected

from eval.bins.metric import OUTSIDE, FeatureMean, IdentityFeatures, Images, make_axis, plan_bins
from eval.bins.metric import score as score_sets
from eval.lpips import Lpips, load_lpips
from mrfomm import bundled
from mrfomm.errors import UserError


class Extractor:
    """Features and distance without a network: two layers made from the pixels; black images have no features."""

    heads = (np.array([0.2, 0.5, 1.0]), np.array([1.0, 0.3, 0.7, 0.1]))

    def layers(self, image):
        """[3,H,W] and [4,1,1] of one image."""
        pixels = np.float64(image).transpose(2, 0, 1)
        return [pixels**1.5, np.concatenate([pixels.mean(axis=(1, 2)) ** 2, [pixels.std()]])[:, None, None]]

    def features(self, images):
        found = [self.layers(image) for image in images if image.any()]
        return [np.stack(layer) for layer in zip(*found)] if found else [np.zeros((0, 1))] * 2

    distance = Lpips.distance

    def __init__(self):
        self._heads = self.heads


def draw(count, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (count, 4, 5, 3), dtype=np.uint8)


def make_images(angles, pixels):
    return Images(np.array(angles, np.float64), lambda indices: pixels[indices])


def score(true, generated, axis=None, batch=3, extractor=None):
    """Score of one set; both sides are (angles, pixels)."""
    extractor = extractor or Extractor()
    return score_sets(extractor, axis or make_axis(2, 60), make_images(*true), [make_images(*generated)], batch)[0]


# bins


@pytest.mark.parametrize(
    ("angle", "number"),
    [
        (-60, 0),
        (-60.001, OUTSIDE),
        (-58.001, 0),
        (-58, 1),
        (-0.001, 29),
        (0, 30),
        (1.999, 30),
        (2, 31),
        (58, 59),
        (60, 59),
        (60.001, OUTSIDE),
        (179, OUTSIDE),
    ],
)
def test_bins_by_hand(angle, number):
    assert make_axis(2, 60).bins([angle]).tolist() == [number]


def test_centres():
    axis = make_axis(2, 60)
    assert len(axis.centres) == 60
    assert axis.centres[[0, 30, 59]].tolist() == [-59, 1, 59]


@pytest.mark.parametrize(("width", "limit"), [("0.1", "3"), ("0.3", "1.2"), ("2", "60"), ("120", "60"), ("0.7", "2.1")])
def test_decimal_edges_are_exact(width, limit):
    """Every multiple of a tenth of the width, as a label file would say it, is in the bin it belongs to."""
    step = Decimal(width) / 10
    angles = [str(i * step) for i in range(int(-Decimal(limit) / step) - 2, int(Decimal(limit) / step) + 3)]
    bins = make_axis(float(width), float(limit)).bins([float(angle) for angle in angles])
    wanted = [expected.bin_number(angle, width, limit) for angle in angles]
    assert bins.tolist() == [OUTSIDE if number is None else number for number in wanted]


@pytest.mark.parametrize(
    ("width", "limit"), [(7, 60), (0, 60), (-2, 60), (2, 0), (float("nan"), 60), (2, np.inf), (500, 1)]
)
def test_bins_that_cannot_be(width, limit):
    with pytest.raises(UserError, match="--bin-width"):
        make_axis(width, limit)


def test_plan():
    """Bin 0: true only. Bin 1: both sets. Bin 2: second set only. Bin 3: no true image."""
    tasks = plan_bins(make_axis(1, 2), [-2, -1, 0.5, -0.5, 9], [[-0.2, 1, -0.9], [0, -1, 1.5]])
    assert [task.angle for task in tasks] == [-0.5, 0.5]
    assert [task.true.tolist() for task in tasks] == [[1, 3], [2]]
    assert [{i: x.tolist() for i, x in task.generated.items()} for task in tasks] == [{0: [0, 2], 1: [1]}, {1: [0]}]
    assert [task.images for task in tasks] == [5, 2]


# scores


TRUE = ["-60", "-59.5", "-3", "-2", "-1.9", "0", "0.5", "1", "1.9", "2", "30", "58", "60", "61"]
GENERATED = ["-60.5", "-60", "-2.5", "-2", "0", "1.5", "3.9", "3.9", "4", "59", "60", "-31"]


def test_against_the_slow_version():
    """Unequal counts, one-sided bins, angles on edges and outside."""
    extractor = Extractor()
    true, generated = draw(len(TRUE)), draw(len(GENERATED), seed=1)
    ours = score(([float(a) for a in TRUE], true), ([float(a) for a in GENERATED], generated))
    slow, mean = expected.pair_score(
        [(angle, extractor.layers(image)) for angle, image in zip(TRUE, true)],
        [(angle, extractor.layers(image)) for angle, image in zip(GENERATED, generated)],
        "2",
        "60",
        Extractor.heads,
    )
    # by hand: [-60,-58), [-4,-2), [-2,0), [0,2), [2,4) and [58,60]
    assert [b.angle for b in ours.bins] == [-59, -3, -1, 1, 3, 59]
    assert [(b.true, b.generated) for b in ours.bins] == [(2, 1), (1, 1), (2, 1), (4, 2), (1, 2), (2, 2)]
    assert [(b.true, b.generated) for b in ours.bins] == [slow[number][1:] for number in sorted(slow)]
    np.testing.assert_allclose(
        [b.distance for b in ours.bins], [slow[number][0] for number in sorted(slow)], rtol=1e-10
    )
    assert ours.mean == pytest.approx(mean, rel=1e-10)
    assert ours.dropped == 0


def test_alexnet_against_the_slow_version():
    extractor = load_lpips(bundled.LPIPS_ALEXNET)
    rng = np.random.default_rng(0)
    true, generated = (rng.integers(0, 256, (5, 31, 31, 3), dtype=np.uint8) for _ in range(2))
    angles = [0, 0.5, 1, 2, 2.5], [1.5, 0, 3, 2, 3.5]
    heads = [np.load(bundled.LPIPS_ALEXNET)[f"head{i}/w"] for i in range(1, 6)]
    sides = [
        [(str(angle), [layer[i] for layer in features]) for i, angle in enumerate(side)]
        for side, features in zip(angles, map(extractor.features, (true, generated)))
    ]
    _, mean = expected.pair_score(*sides, "2", "60", heads)
    assert score((angles[0], true), (angles[1], generated), extractor=extractor).mean == pytest.approx(mean, rel=1e-5)


def test_averaging_comes_before_the_distance():
    """Two different sets with one average score 0, though no two of their images are alike."""

    class Linear(Extractor):
        def layers(self, image):
            return [np.float64(image).transpose(2, 0, 1)]

    base = draw(1)[0] // 2 + 64
    true = np.stack([base - 10, base + 10, base])
    generated = np.stack([base + 30, base - 30])
    ours = score(([0, 0, 1], true), ([0.5, 1.5], generated), extractor=Linear())
    assert ours.mean == pytest.approx(0, abs=1e-20)


def test_identical_sets_score_zero():
    pixels, angles = draw(9), np.linspace(-20, 20, 9)
    ours = score((angles, pixels), (angles, pixels))
    assert len(ours.bins) == 9
    assert ours.mean == 0


def test_batches_and_order_change_nothing():
    true, generated = draw(len(TRUE)), draw(len(GENERATED), seed=1)
    a, b = np.array([float(x) for x in TRUE]), np.array([float(x) for x in GENERATED])
    whole = score((a, true), (b, generated), batch=100)
    rng = np.random.default_rng(2)
    p, q = rng.permutation(len(a)), rng.permutation(len(b))
    for other in (score((a, true), (b, generated), batch=1), score((a[p], true[p]), (b[q], generated[q]), batch=2)):
        np.testing.assert_allclose(np.array(other.bins), np.array(whole.bins), rtol=1e-12)


def test_several_sets_score_as_they_do_alone():
    true, sets = draw(6), [draw(4, seed) for seed in (1, 2)]
    angles, others = [0, 1, 2, 3, 4, 50], [[0, 2, 6, 4], [5, 3, 3, 50]]
    together = score_sets(
        Extractor(), make_axis(2, 60), make_images(angles, true), list(map(make_images, others, sets)), 2
    )
    assert together == [score((angles, true), pair, batch=2) for pair in zip(others, sets)]


def test_no_common_bin():
    ours = score(([0, 1], draw(2)), ([10, 90], draw(2)))
    assert ours.bins == []
    assert np.isnan(ours.mean)


def test_images_that_cannot_be_described_are_left_out_and_counted():
    true, generated = draw(4), draw(4, seed=1)
    true[1], generated[2], generated[3] = 0, 0, 0  # of bin 0; of bin 2, both
    angles = [0, 1, 4, 5], [0, 1, 4, 5]
    ours = score((angles[0], true), (angles[1], generated))
    assert [(b.angle, b.true, b.generated) for b in ours.bins] == [(1, 1, 2)]
    assert ours.dropped == 3
    fewer = score(([0, 4, 5], true[[0, 2, 3]]), ([0, 1], generated[:2]))
    assert ours.bins == fewer.bins


def test_a_running_mean_holds_sums_only():
    total, layers = FeatureMean(), np.random.default_rng(0).random((7, 3, 2), np.float32)
    for part in (layers[:2], layers[2:2], layers[2:7]):
        total.add([part])
    assert total.count == 7
    (mean,) = total.mean()
    assert (mean.shape, mean.dtype) == ((1, 3, 2), np.float64)
    np.testing.assert_allclose(mean[0], np.float64(layers).mean(axis=0), rtol=1e-12)


# identity


def test_identity_features():
    """Embeddings are averaged, then compared by squared distance; images without a face are left out."""

    def embed(image):
        return None if image[0, 0, 0] == 0 else np.float64(image[0, 0])

    true = np.zeros((3, 4, 4, 3), np.uint8)
    generated = true.copy()
    true[0], true[1] = (1, 2, 3), (3, 2, 5)  # mean (2, 2, 4)
    generated[0], generated[2] = (2, 5, 8), (2, 5, 0)  # mean (2, 5, 4)
    ours = score(([0, 0, 0], true), ([1, 1, 1], generated), batch=1, extractor=IdentityFeatures(embed))
    assert [(b.distance, b.true, b.generated) for b in ours.bins] == [(9, 2, 2)]
    assert ours.dropped == 2
