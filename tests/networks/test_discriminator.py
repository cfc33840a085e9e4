"""Discriminator against numpy: blocks, spectral norm and its power iteration, keypoint input, what `fixed` freezes."""

import nnabla as nn
import numpy as np
import pytest
from reference import layers
from reference import networks as expected
from reference.graphs import build, double, gradients, leaves, numeric_slope, reference_parameters, run, variable

from mrfomm.config import smallest_judged
from mrfomm.networks.discriminator import discriminate
from mrfomm.training.losses import discriminator_loss

BLOCKS, POINTS = 3, 2


def judge(image, spectral_norm=False, points=None, variance=0.05, **options):
    return discriminate(image, 4, 12, BLOCKS, spectral_norm, points, variance=variance, **options)


def draw(rng):
    return double(rng.random((2, 3, 40, 36)))


@pytest.mark.parametrize("with_points", [False, True])
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_discriminator_matches_its_reference(spectral_norm, with_points):
    rng = np.random.default_rng(0)
    image = draw(rng)
    points = double(rng.uniform(-1, 1, (2, POINTS, 2))) if with_points else None
    judgement, tree = build(
        lambda: judge(variable(image), spectral_norm, variable(points) if with_points else None), rng
    )
    p = reference_parameters(tree, training=True)
    features, score = expected.discriminate(image, p, points, variance=0.05)
    actual = run(*judgement.features, judgement.score)
    assert [a.shape[1:] for a in actual] == [(4, 18, 16), (8, 7, 6), (12, 4, 3), (1, 4, 3)]
    # nnabla takes the variance of instance norm as E[x^2] - E[x]^2 in single precision.
    for one, other in zip(actual, [*features, score]):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=3e-4)
    # Each convolution has made one power iteration.
    assert set(p.updated) == {name for name in tree.all() if name.endswith("/u")}
    assert len(p.updated) == (BLOCKS + 1 if spectral_norm else 0)
    for name, vector in p.updated.items():
        np.testing.assert_allclose(tree.all()[name].d, vector, rtol=1e-4, atol=1e-5)


def test_heatmaps_are_of_fomms_variance_by_default():
    rng = np.random.default_rng(5)
    image, points = draw(rng), double(rng.uniform(-1, 1, (2, POINTS, 2)))
    judgement, tree = build(lambda: discriminate(variable(image), 4, 12, 1, False, variable(points)), rng)
    _, score = expected.discriminate(image, reference_parameters(tree), points, variance=0.01)
    np.testing.assert_allclose(run(judgement.score), score, rtol=1e-4, atol=1e-5)


def test_first_block_has_no_normalisation():
    _, tree = build(lambda: judge(variable(np.zeros((1, 3, 40, 36)))))
    assert {name.split("/in/")[0] for name in tree.all() if "/in/" in name} == {
        "discriminator/down_1",
        "discriminator/down_2",
    }


def test_power_iteration_arrives_at_the_largest_singular_value():
    rng = np.random.default_rng(1)
    image = variable(draw(rng))
    judgement, tree = build(lambda: judge(image, spectral_norm=True), rng)
    plain, other = build(lambda: judge(image, spectral_norm=False))
    weight = np.asarray(tree.all()["discriminator/down_0/conv/W"].d, np.float64)
    other.all()["discriminator/down_0/conv/W"].d = weight / np.linalg.norm(weight.reshape(len(weight), -1), 2)
    other.all()["discriminator/down_0/conv/b"].d = tree.all()["discriminator/down_0/conv/b"].d
    for _ in range(60):
        judgement.features[0].forward()
    np.testing.assert_allclose(run(judgement.features[0]), run(plain.features[0]), rtol=1e-3, atol=1e-4)


def test_every_judgement_is_one_power_iteration():
    """As in PyTorch. The backward pass of ``F.spectral_norm`` undoes the second picture's."""
    rng = np.random.default_rng(6)
    (one, other), tree = build(lambda: [judge(variable(draw(rng)), spectral_norm=True) for _ in range(2)], rng)
    vectors = {name: np.asarray(p.d, np.float64) for name, p in tree.all().items() if name.endswith("/u")}
    gradients(discriminator_loss(one.score, other.score), [], 1)
    for name, vector in vectors.items():
        for _ in range(2):
            _, vector = layers.spectral_norm(np.float64(tree.all()[name[:-1] + "W"].d), vector)
        np.testing.assert_allclose(tree.all()[name].d, vector, rtol=1e-4, atol=1e-5)


def test_power_iteration_vectors_start_at_random_and_differ():
    _, tree = build(lambda: judge(nn.Variable((1, 3, 40, 36)), spectral_norm=True))
    vectors = {name: p for name, p in tree.all().items() if name.endswith("/u")}
    assert len(vectors) == BLOCKS + 1
    assert all(p.d.any() and not p.need_grad for p in vectors.values())


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_fixed_judges_alike_but_changes_nothing(spectral_norm):
    """No gradient at the parameters, no power iteration; the gradient at the image stays."""
    rng = np.random.default_rng(2)
    image = draw(rng)
    (leaf,) = leaves(image)
    (fixed, free), tree = build(lambda: (judge(leaf, spectral_norm, fixed=True), judge(leaf, spectral_norm)), rng)
    before = {name: p.d.copy() for name, p in tree.all().items()}
    for p in tree.all().values():
        p.g = 7
    weights = rng.normal(size=fixed.score.shape)
    (at_fixed,) = gradients(fixed.score, [leaf], weights)
    for name, p in tree.all().items():
        np.testing.assert_array_equal(p.d, before[name])
        assert (p.g == 7).all()
    score = run(fixed.score)
    (at_free,) = gradients(free.score, [leaf], weights)
    if not spectral_norm:
        np.testing.assert_allclose(at_fixed, at_free, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(score, run(free.score), rtol=1e-5, atol=1e-6)
    assert np.abs(at_fixed).max() > 1e-3
    trained = [p for p in tree.all().values() if p.need_grad]
    assert all((p.g != 7).any() for p in trained)


def test_fixed_spectral_norm_divides_by_the_norm_of_the_kept_vector():
    """PyTorch's evaluation mode: sigma = u W v of the vectors of the last training step."""
    rng = np.random.default_rng(3)
    image = draw(rng)
    (fixed, free), tree = build(lambda: (judge(variable(image), True, fixed=True), judge(variable(image), True)), rng)
    for _ in range(200):
        free.score.forward()
    arrays = {name: np.asarray(p.d, np.float64) for name, p in tree.all().items()}
    for name in [name for name in arrays if name.endswith("conv/W")]:
        arrays[name] /= np.linalg.norm(arrays[name].reshape(len(arrays[name]), -1), 2)
    without = {name: array for name, array in arrays.items() if not name.endswith("/u")}
    _, score = expected.discriminate(image, expected.Parameters(without))
    np.testing.assert_allclose(run(fixed.score), score, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_gradients_at_image_points_and_weights(spectral_norm):
    """Spectral norm: as in PyTorch, the vectors of the power iteration are constants to the gradient."""
    rng = np.random.default_rng(4)
    image, points = draw(rng), double(rng.uniform(-1, 1, (2, POINTS, 2)))
    inputs = leaves(image, points)
    judgement, tree = build(lambda: judge(inputs[0], spectral_norm, inputs[1]), rng)
    p = reference_parameters(tree)
    names = [name for name, parameter in tree.all().items() if parameter.need_grad]
    weights = rng.normal(size=judgement.score.shape)
    frozen = {n: frozen_vectors(p.arrays, n) for n in p.arrays if n.endswith("conv/W") and spectral_norm}

    def value(image, points, arrays):
        arrays = {n: a for n, a in arrays.items() if not n.endswith("/u")}
        for name, (u, v) in frozen.items():
            arrays[name] = arrays[name] / (u @ arrays[name].reshape(len(u), -1) @ v)
        return np.sum(weights * expected.discriminate(image, expected.Parameters(arrays), points, 0.05)[1])

    actual = gradients(judgement.score, [*inputs, *(tree.all()[n] for n in names)], weights)
    directions = [rng.normal(size=a.shape) for a in actual]
    slopes = [
        numeric_slope(lambda x: value(x, points, p.arrays), image, directions[0]),
        numeric_slope(lambda x: value(image, x, p.arrays), points, directions[1]),
    ]
    for name, direction in zip(names, directions[2:]):
        slopes.append(numeric_slope(lambda x, n=name: value(image, points, {**p.arrays, n: x}), p[name], direction))
    for gradient, direction, slope in zip(actual, directions, slopes):
        assert np.sum(gradient * direction) == pytest.approx(slope, rel=2e-3, abs=2e-3)


def frozen_vectors(arrays, name):
    """(u, v) after one power iteration on the weight ``name``."""
    _, u = layers.spectral_norm(arrays[name], arrays[name[:-1] + "u"])
    matrix = arrays[name].reshape(len(u), -1)
    v = matrix.T @ arrays[name[:-1] + "u"]
    return u, v / np.linalg.norm(v)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5])
def test_smallest_picture(blocks):
    """The smallest side that leaves every convolution something to do."""

    def score_side(side):
        for block in range(blocks):
            side -= 3
            side = side // 2 if block < blocks - 1 else side
        return side

    side = smallest_judged(blocks)
    assert score_side(side) >= 1
    assert score_side(side - 1) < 1
    judgement, _ = build(lambda: discriminate(nn.Variable((1, 3, side, side)), 2, 4, blocks, False))
    assert judgement.score.shape == (1, 1, 1, 1)
    assert np.isfinite(run(judgement.score)).all()


def test_score_of_vox_256_is_26_pixels_a_side():
    judgement, _ = build(lambda: discriminate(nn.Variable((1, 3, 256, 256)), 64, 512, 4, True))
    assert [f.shape[1:] for f in judgement.features] == [(64, 126, 126), (128, 61, 61), (256, 29, 29), (512, 26, 26)]
    assert judgement.score.shape == (1, 1, 26, 26)
