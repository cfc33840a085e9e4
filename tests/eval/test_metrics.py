"""Measures of reconstruction against numbers worked out by hand and, for SSIM, a window-by-window loop."""

import numpy as np
import pytest
from reference.ssim import ssim as slow_ssim

from eval.reconstruction import metrics


def pictures(seed=0, height=17, width=21):
    rng = np.random.default_rng(seed)
    a = rng.random((height, width, 3))
    return a, np.clip(a + rng.normal(0, 0.1, a.shape), 0, 1)


LANDMARKS = np.array([[10.0, 20.0], [30.0, 40.0]])
MOVED = np.array([[13.0, 24.0], [30.0, 40.0]])  # the first by (3, 4): a distance of 5


def test_l1_by_hand():
    a = np.array([[[0.0, 0.5, 1.0]]])
    b = np.array([[[0.1, 0.5, 0.7]]])
    assert metrics.l1(a, b) == pytest.approx(0.4 / 3, abs=1e-15)


def test_akd_is_the_mean_over_coordinates():
    assert metrics.akd(LANDMARKS, MOVED) == (3 + 4 + 0 + 0) / 4


def test_akd_euclidean_is_the_mean_over_landmarks():
    assert metrics.akd_euclidean(LANDMARKS, MOVED) == (5 + 0) / 2


def test_akd_at_256_does_not_depend_on_the_size_of_the_image():
    at_64 = [metrics.at_akd_size(points / 4, 64) for points in (LANDMARKS, MOVED)]
    assert metrics.akd(*at_64) == metrics.akd(LANDMARKS, MOVED)
    np.testing.assert_array_equal(metrics.at_akd_size(LANDMARKS, 256), LANDMARKS)


def test_aed_has_no_square_root():
    a, b = np.zeros(128), np.zeros(128)
    b[:2] = 3, 4
    assert metrics.aed(a, b) == 25
    assert metrics.aed_euclidean(a, b) == 5


def test_gradient_by_hand():
    """Differences (3, 4), (0, 0) and (0.5, 0): lengths 5, 0 and 0.5 at the three pixels with both neighbours."""
    image = np.array([[[0.0], [3], [3], [3.5]], [[4.0], [3], [3], [9]]])
    assert metrics.mean_gradient(image) == pytest.approx((5 + 0 + 0.5) / 3, abs=1e-15)


def test_blurred_lines_have_half_the_gradient():
    """A line 0 1 0 blurred by (1 2 1)/4 is 1/4 1/2 1/4: its two steps of 1 become four of 1/4."""
    truth, blurred = np.zeros((2, 5, 8, 3))
    truth[:, 3] = 1
    blurred[:, 2:5] = np.array([0.25, 0.5, 0.25])[:, None]
    assert metrics.gradient_ratio(blurred, truth) == pytest.approx(0.5, abs=1e-15)
    assert metrics.gradient_ratio(blurred.transpose(1, 0, 2), truth.transpose(1, 0, 2)) == pytest.approx(0.5, abs=1e-15)
    assert metrics.gradient_ratio(truth, truth) == 1


def test_gradient_ratio_follows_contrast_and_needs_a_gradient():
    a, _ = pictures()
    assert metrics.gradient_ratio(0.25 * a + 0.3, a) == pytest.approx(0.25, abs=1e-12)
    assert metrics.gradient_ratio(a, np.full_like(a, 0.5)) is None


def test_psnr_by_hand():
    a = np.zeros((4, 4, 3))
    assert metrics.psnr(a, a + 0.1) == pytest.approx(20, abs=1e-12)
    assert metrics.psnr(a, a) == np.inf


@pytest.mark.parametrize("seed", [0, 1])
def test_ssim_equals_the_loop_over_windows(seed):
    a, b = pictures(seed)
    assert metrics.ssim(a, b) == pytest.approx(slow_ssim(a, b), abs=1e-10)


def test_ssim_of_constant_images_by_hand():
    """Without variance only luminance is compared: (2 p q + C1) / (p^2 + q^2 + C1)."""
    a, b = np.full((11, 11, 3), 0.5), np.full((11, 11, 3), 0.25)
    assert metrics.ssim(a, b) == pytest.approx((2 * 0.5 * 0.25 + 1e-4) / (0.25 + 0.0625 + 1e-4), abs=1e-9)
    assert metrics.ssim(a, a) == pytest.approx(1, abs=1e-12)


def test_images_below_the_window_are_refused():
    with pytest.raises(ValueError, match="11 pixels"):
        metrics.ssim(np.zeros((10, 20, 3)), np.zeros((10, 20, 3)))


@pytest.mark.parametrize("measure", ["l1", "akd", "akd_euclidean", "aed", "aed_euclidean", "psnr", "ssim"])
def test_different_shapes_are_not_broadcast(measure):
    with pytest.raises(ValueError, match="shape|size"):
        getattr(metrics, measure)(np.zeros((12, 12, 3)), np.zeros((12, 12, 1)))


@pytest.mark.parametrize("measure", ["l1", "psnr"])
def test_float32_is_accumulated_in_float64(measure):
    a, b = pictures()
    a, b = np.float32(a), np.float32(b)
    assert getattr(metrics, measure)(a, b) == getattr(metrics, measure)(np.float64(a), np.float64(b))
