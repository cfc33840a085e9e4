"""The fusion unit against numpy, and what the paper's construction promises for any number of references."""

import nnabla as nn
import numpy as np
import pytest
from reference import networks as expected
from reference.graphs import build, double, gradients, leaves, numeric_gradients, reference_parameters, run, variable
from tolerance import order_of_sums

from mrfomm.networks.fusion import fuse, mode_of

MODES = ("patch", "element", "mean", "occlusion")
B, C, H, W = 2, 3, 5, 4


def draw(rng, count):
    """Warped features [B,K,C,h,w] and occlusion maps [B,K,1,h,w]."""
    return double(rng.normal(size=(B, count, C, H, W))), double(rng.uniform(0.05, 1, (B, count, 1, H, W)))


class Unit:
    """A fusion unit with random weights whose input can be changed."""

    def __init__(self, mode, rng, kernel=3):
        self.mode, self.kernel = mode, kernel
        _, self.tree = build(lambda: fuse(nn.Variable((B, 3, C, H, W)), nn.Variable((B, 3, 1, H, W)), mode, kernel))
        for parameter in self.tree.all().values():
            parameter.d = np.float32(rng.normal(0, 0.5, parameter.shape))

    def __call__(self, warped, occlusion):
        with self.tree.scope():
            return run(*fuse(variable(warped), variable(occlusion), self.mode, self.kernel))


def test_every_learned_mode_is_known():
    assert {name for name in MODES if mode_of(name).learned} == {"patch", "element"}


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize(("mode", "kernel"), [*((mode, 3) for mode in MODES), ("patch", 1), ("element", 5)])
def test_fusion_matches_its_reference(mode, kernel, count):
    """Also: weights made for three references serve any number of them."""
    rng = np.random.default_rng(0)
    unit = Unit(mode, rng, kernel)
    warped, occlusion = draw(rng, count)
    feature, mask = unit(warped, occlusion)
    wanted = expected.fuse(warped, occlusion, mode, reference_parameters(unit.tree))
    np.testing.assert_allclose(feature, wanted[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mask, wanted[1], rtol=1e-4, atol=1e-5)
    assert mask.shape == (B, count, C if mode == "element" else 1, H, W)


@pytest.mark.parametrize("mode", MODES)
def test_masks_sum_to_one(mode):
    rng = np.random.default_rng(1)
    _, mask = Unit(mode, rng)(*draw(rng, 4))
    np.testing.assert_allclose(mask.sum(1), 1, rtol=1e-5)
    assert mask.min() >= 0


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_the_references_does_not_matter(mode):
    rng = np.random.default_rng(2)
    unit, order = Unit(mode, rng), [2, 0, 3, 1]
    warped, occlusion = draw(rng, 4)
    feature, mask = unit(warped, occlusion)
    permuted_feature, permuted_mask = unit(warped[:, order], occlusion[:, order])
    np.testing.assert_allclose(permuted_feature, feature, rtol=1e-5, atol=order_of_sums(1e-6))
    np.testing.assert_allclose(permuted_mask, mask[:, order], rtol=1e-5, atol=order_of_sums(1e-6))


@pytest.mark.parametrize("mode", MODES)
def test_copies_of_one_reference_are_that_reference(mode):
    rng = np.random.default_rng(3)
    unit = Unit(mode, rng)
    warped, occlusion = draw(rng, 1)
    single, _ = unit(warped, occlusion)
    np.testing.assert_allclose(single, warped[:, 0], rtol=1e-5, atol=1e-6)
    several, mask = unit(warped.repeat(3, 1), occlusion.repeat(3, 1))
    np.testing.assert_allclose(several, single, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mask, 1 / 3, rtol=1e-5)


@pytest.mark.parametrize("mode", ["patch", "element"])
def test_learned_fusion_starts_as_the_mean(mode):
    warped, occlusion = draw(np.random.default_rng(4), 3)
    fused, _ = build(lambda: fuse(variable(warped), variable(occlusion), mode))
    feature, mask = run(*fused)
    np.testing.assert_allclose(feature, warped.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mask, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize(("mode", "channels"), [("patch", 1), ("element", C), ("mean", 0), ("occlusion", 0)])
def test_parameters_of_a_mode(mode, channels):
    tree = Unit(mode, np.random.default_rng(5)).tree
    shapes = {name: p.shape for name, p in tree.all().items()}
    assert shapes == ({"fusion/conv/W": (channels, C, 3, 3), "fusion/conv/b": (channels,)} if channels else {})
    assert all(p.need_grad for p in tree.all().values())


def test_a_reference_without_evidence_is_left_out_by_occlusion():
    warped, occlusion = draw(np.random.default_rng(6), 2)
    occlusion[:, 1] = 0
    feature, mask = Unit("occlusion", np.random.default_rng(6))(warped, occlusion)
    np.testing.assert_allclose(feature, warped[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mask[:, 0], 1, rtol=1e-5)


def test_occlusion_of_every_reference_is_no_division_by_zero():
    warped, occlusion = draw(np.random.default_rng(7), 2)
    feature, mask = Unit("occlusion", np.random.default_rng(7))(warped, np.zeros_like(occlusion))
    assert np.isfinite(feature).all()
    assert np.isfinite(mask).all()


def test_element_wise_weights_differ_between_channels_and_patch_wise_do_not():
    rng = np.random.default_rng(8)
    warped, occlusion = draw(rng, 3)
    _, mask = Unit("element", rng)(warped, occlusion)
    assert np.ptp(mask, axis=2).min() > 1e-4
    _, mask = Unit("patch", rng)(warped, occlusion)
    assert mask.shape[2] == 1


@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode):
    """At the features, the occlusion maps and the weights; the feature and the mask each carry them."""
    rng = np.random.default_rng(9)
    arrays = [double(rng.normal(size=(1, 3, 2, 3, 4))), double(rng.uniform(0.1, 1, (1, 3, 1, 3, 4)))]
    inputs = leaves(*arrays)
    fused, tree = build(lambda: fuse(*inputs, mode), rng)
    names = list(tree.all())
    p = reference_parameters(tree)

    for part, output in enumerate(fused):
        if not output.need_grad:  # the mask of `mean` is a constant
            continue
        weights = rng.normal(size=output.shape)

        def reference(warped, occlusion, *values, part=part):
            parameters = expected.Parameters(dict(zip(names, values)))
            return expected.fuse(warped, occlusion, mode, parameters)[part]

        actual = gradients(output, [*inputs, *tree.all().values()], weights)
        numeric = numeric_gradients(reference, [*arrays, *(p[name] for name in names)], weights)
        for one, other in zip(actual, numeric):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_unknown_mode():
    with pytest.raises(ValueError, match="median"):
        fuse(nn.Variable((B, 2, C, H, W)), nn.Variable((B, 2, 1, H, W)), "median")
