"""Augmentation: every adjustment against a slow loop over pixels; the flips' and factors' statistics."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mrfomm.data.augment import (
    AugmentOptions,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    augment,
    flip,
    jitter,
)

NOTHING = AugmentOptions(False, False, 0, 0, 0, 0)


@pytest.fixture
def frames():
    """Two 4x19 frames: noise, with some greys, pure colours, black and white."""
    noise = np.random.default_rng(0).random((2, 4, 19, 3), dtype=np.float32)
    noise[1, 0] = noise[1, 0, :, :1]
    noise[1, 1, :5] = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1]]
    return noise


def per_pixel(frames, change):
    """Apply change(r, g, b, mean grey of the frame) to every pixel, in double precision, and clip."""
    changed = np.empty(frames.shape)
    for n, frame in enumerate(frames):
        mean = np.mean([grey(*map(float, pixel)) for row in frame for pixel in row])
        for y, x in np.ndindex(frame.shape[:2]):
            changed[n, y, x] = change(*map(float, frame[y, x]), mean)
    return np.clip(changed, 0, 1)


def grey(r, g, b):
    return 0.299 * r + 0.587 * g + 0.114 * b


def blend(pixel, other, factor):
    return [factor * value + (1 - factor) * other for value in pixel]


def turned(r, g, b, shift):
    hue, saturation, value = colorsys.rgb_to_hsv(r, g, b)
    return colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)


@pytest.mark.parametrize("amount", [0.0, 0.37, 0.9, 1.0, 1.1, 1.8])
def test_adjustments_match_a_loop_over_pixels(frames, amount):
    pairs = [
        (adjust_brightness, lambda r, g, b, mean: blend((r, g, b), 0, amount)),
        (adjust_contrast, lambda r, g, b, mean: blend((r, g, b), mean, amount)),
        (adjust_saturation, lambda r, g, b, mean: blend((r, g, b), grey(r, g, b), amount)),
    ]
    for adjust, slow in pairs:
        adjusted = adjust(frames, amount)
        assert adjusted.dtype == np.float32
        np.testing.assert_allclose(adjusted, per_pixel(frames, slow), atol=1e-6)


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.03, 0.1, 0.5])
def test_hue_matches_colorsys(frames, shift):
    expected = per_pixel(frames, lambda r, g, b, mean: turned(r, g, b, shift))
    adjusted = adjust_hue(frames, shift)
    assert adjusted.dtype == np.float32
    np.testing.assert_allclose(adjusted, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("adjust", "enhancer"),
    [
        (adjust_brightness, ImageEnhance.Brightness),
        (adjust_contrast, ImageEnhance.Contrast),
        (adjust_saturation, ImageEnhance.Color),
    ],
)
def test_adjustments_match_those_fomm_uses_up_to_rounding(adjust, enhancer):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for factor in (0.9, 1.1):
        expected = np.asarray(enhancer(Image.fromarray(image)).enhance(factor))
        ours = adjust(np.float32(image[None]) / 255, factor)[0] * 255
        assert np.abs(ours - expected).max() < 1.2


def test_flips_have_the_probabilities_of_fomm():
    frames = np.arange(2 * 1 * 2 * 3, dtype=np.float32).reshape(2, 1, 2, 3)  # [N,H,W,3]
    known = {frames.tobytes(): "none", frames[::-1].tobytes(): "time", frames[:, :, ::-1].tobytes(): "mirror"}
    generator, draws = np.random.default_rng(0), 4000

    def shares(options):
        outcomes = [known[flip(frames, options, generator).tobytes()] for _ in range(draws)]
        return [outcomes.count(name) / draws for name in ("time", "mirror", "none")]

    np.testing.assert_allclose(shares(AugmentOptions()), [0.5, 0.25, 0.25], atol=0.035)
    np.testing.assert_allclose(shares(AugmentOptions(time_flip=False)), [0, 0.5, 0.5], atol=0.035)
    np.testing.assert_allclose(shares(AugmentOptions(horizontal_flip=False)), [0.5, 0, 0.5], atol=0.035)
    assert shares(NOTHING) == [0, 0, 1]


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_factors_are_uniform_in_their_range(name):
    """The factor is read back from what happens to one pixel."""
    black_and_red = np.float32([[[[0, 0, 0], [0.5, 0, 0]]]])  # [1,1,2,3]
    mean = 0.299 * 0.25
    read_back = {
        "brightness": lambda out: out[0, 0, 1, 0] / 0.5,
        "contrast": lambda out: (out[0, 0, 1, 0] - mean) / (0.5 - mean),
        "saturation": lambda out: (out[0, 0, 1, 0] - 0.299 * 0.5) / (0.5 - 0.299 * 0.5),
        "hue": lambda out: 1 + (out[0, 0, 1, 1] - out[0, 0, 1, 2]) / 0.5 / 6,  # near red
    }[name]
    only_this = AugmentOptions(**{**vars(NOTHING), f"jitter_{name}": 0.1})
    generator = np.random.default_rng(0)
    factors = np.sort([read_back(jitter(black_and_red, only_this, generator)) for _ in range(2000)])
    np.testing.assert_allclose(factors, np.linspace(0.9, 1.1, 2000), atol=0.01)


class Recorder:
    """Passes draws on from a generator and keeps them."""

    def __init__(self, seed):
        self._generator = np.random.default_rng(seed)
        self.amounts, self.order = [], None

    def uniform(self, low, high):
        self.amounts.append(self._generator.uniform(low, high))
        return self.amounts[-1]

    def permutation(self, count):
        self.order = tuple(self._generator.permutation(count))
        return self.order


def test_jitter_is_the_same_for_all_frames_in_every_order(frames):
    adjustments = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    orders = set()
    for seed in range(150):
        recorder = Recorder(seed)
        jittered = jitter(frames, AugmentOptions(), recorder)
        for frame, out in zip(frames, jittered):
            expected = frame[None]
            for i in recorder.order:
                expected = adjustments[i](expected, recorder.amounts[i])
            np.testing.assert_allclose(out, expected[0], atol=1e-6)
        orders.add(recorder.order)
    assert len(orders) == 24


def test_jitter_clips_after_every_adjustment():
    """Worked by hand: grey 0.8 and 0.2; brightness and contrast x 1.5, in both orders."""

    class Scripted:
        def __init__(self, order):
            self.order = order

        def uniform(self, low, high):
            return high

        def permutation(self, count):
            return self.order

    greys = np.float32([[[[0.8] * 3, [0.2] * 3]]])
    options = AugmentOptions(jitter_brightness=0.5, jitter_contrast=0.5, jitter_saturation=0, jitter_hue=0)
    for order, expected in (((0, 1, 2, 3), [1.0, 0.125]), ((1, 0, 2, 3), [1.0, 0.075])):
        jittered = jitter(greys, options, Scripted(order))
        np.testing.assert_allclose(jittered[0, 0, :, 0], expected, atol=1e-6)


def test_augment_repeats_for_a_seed_and_leaves_its_input(frames):
    before = frames.copy()
    first, again = (augment(frames, AugmentOptions(), np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(frames, before)
    assert not np.array_equal(first, augment(frames, AugmentOptions(), np.random.default_rng(6)))
    np.testing.assert_array_equal(augment(frames, NOTHING, np.random.default_rng(5)), frames)
