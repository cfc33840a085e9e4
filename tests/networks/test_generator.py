"""Generator: encode, warp and decode against numpy; and the whole model composed of the networks' references."""

import numpy as np
import pytest
from reference import networks as expected
from reference.geometry import coordinate_grid, downsample
from reference.graphs import (
    build,
    double,
    gradients,
    leaves,
    numeric_gradients,
    numeric_slope,
    reference_parameters,
    run,
    variable,
    variables,
)
from reference.layers import grid_sample, resize_bilinear
from tolerance import order_of_sums

from mrfomm.config import FusionConfig, GeneratorConfig, KeypointsConfig, ModelConfig, MotionConfig
from mrfomm.model import create_parameters, encode_references, keypoints_of, repeat_references, synthesise
from mrfomm.networks.copying import fold_pixels, unfold_pixels, warp_picture
from mrfomm.networks.generator import decode, encode, warp_features
from mrfomm.networks.keypoints import Keypoints
from mrfomm.networks.motion import Motion

EXPANSION, MAX_FEATURES, DOWN, BOTTLENECK = 4, 6, 2, 2


def check(function, reference, x, training, rng, tolerance=1e-5):
    output, tree = build(lambda: function(variable(x)), rng)
    p = reference_parameters(tree, training)
    wanted = reference(x, p)
    np.testing.assert_allclose(run(output), wanted, rtol=10 * tolerance, atol=tolerance)
    for name, value in p.updated.items():
        np.testing.assert_allclose(tree.all()[name].d, value, rtol=1e-4, atol=1e-5)
    assert bool(p.updated) == training
    return wanted


@pytest.mark.parametrize("training", [False, True])
def test_encode(training):
    rng = np.random.default_rng(0)
    image = double(rng.random((2, 3, 16, 24)))
    features = check(
        lambda x: encode(x, EXPANSION, MAX_FEATURES, DOWN, training), expected.encode, image, training, rng
    )
    assert features.shape == (2, MAX_FEATURES, 4, 6)


@pytest.mark.parametrize("training", [False, True])
def test_decode(training):
    rng = np.random.default_rng(1)
    features = double(rng.normal(size=(2, MAX_FEATURES, 4, 6)))

    def network(x):
        return decode(x, EXPANSION, MAX_FEATURES, DOWN, BOTTLENECK, training)

    image = check(network, expected.decode, features, training, rng)
    assert image.shape == (2, 3, 16, 24)
    assert image.min() > 0
    assert image.max() < 1
    assert image.std() > 0.05


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_decode_with_copies(training, count):
    rng = np.random.default_rng(10)
    features, copies = double(rng.normal(size=(2, MAX_FEATURES, 4, 6))), double(rng.random((2, count, 5, 16, 24)))

    def network(x):
        return decode(x, EXPANSION, MAX_FEATURES, DOWN, BOTTLENECK, training, variable(copies))

    image = check(network, lambda x, p: expected.decode(x, p, copies), features, training, rng)
    assert image.min() > 0
    assert image.max() < 1


def test_before_training_half_is_painted_and_the_masks_fuse_the_other_half():
    rng = np.random.default_rng(11)
    features, copies = double(rng.normal(size=(1, 6, 2, 2))), double(rng.random((1, 3, 5, 4, 4)))
    copies[:, :, 4] /= copies[:, :, 4].sum(1, keepdims=True)

    def network():
        return [decode(variable(features), 2, 6, 1, 1, copies=x) for x in (None, variable(copies))]

    painted, mixed = run(*build(network)[0])
    np.testing.assert_allclose(mixed, (painted + (copies[:, :, :3] * copies[:, :, 4:]).sum(1)) / 2, atol=1e-6)


def test_a_pixel_is_copied_where_its_score_is_high_and_from_no_other_reference():
    """Scores of occlusion alone: 60 where the map is 1, so that all the weight is there; 60 is cut to 20."""
    rng = np.random.default_rng(12)
    copies = double(rng.random((1, 3, 5, 4, 4)))
    copies[0, :, 3] = np.arange(16).reshape(4, 4) % 3 == np.arange(3)[:, None, None]
    copies[0, :, 4] = 1 / 3
    _, tree = build(lambda: decode(variable(np.zeros((1, 6, 2, 2))), 2, 6, 1, 1, copies=variable(copies)))
    values = {name: variable.d for name, variable in tree.all().items()}
    for name in ("features", "copies"):
        values[f"generator/copy/{name}/conv/W"][...] = values[f"generator/copy/{name}/conv/b"][...] = 0
    values["generator/copy/copies/conv/W"][0, 3, 1, 1] = 1
    values["generator/copy/conv/W"][0, 0, 1, 1] = 60
    with tree.scope():
        mixed = run(decode(variable(np.zeros((1, 6, 2, 2))), 2, 6, 1, 1, copies=variable(copies)))
    np.testing.assert_allclose(mixed[0], (copies[0, :, :3] * copies[0, :, 3:4]).sum(0), atol=1e-6)


def test_pixels_are_folded_and_unfolded():
    image = np.arange(2 * 3 * 4 * 8.0).reshape(2, 3, 4, 8)
    folded = fold_pixels(variable(image), 2)
    there, back = run(folded, unfold_pixels(folded, 2))
    assert there.shape == (2, 12, 2, 4)
    np.testing.assert_array_equal(there[0, :4, 0, 0], image[0, 0, :2, :2].ravel())
    np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize("size", [(6, 8), (3, 4), (2, 2)])
def test_warp_picture_samples_the_deformation_corner_to_corner(size):
    rng = np.random.default_rng(13)
    picture, occlusion = double(rng.random((2, 3, 6, 8))), double(rng.random((2, 1, *size)))
    deformation = double(coordinate_grid(*size) + rng.normal(0, 0.3, (2, *size, 2)))
    warped = run(warp_picture(variable(picture), Motion(*variables(deformation, occlusion, np.zeros((2, 4, *size))))))
    np.testing.assert_allclose(warped, expected.warp_picture(picture, deformation, occlusion), rtol=1e-4, atol=1e-5)


def test_warp_picture_without_motion_is_the_picture():
    """A coarse deformation too: FOMM's resizing would move the border inwards."""
    picture = np.random.default_rng(14).random((1, 3, 16, 16))
    motion = Motion(*variables([coordinate_grid(4, 4)], np.ones((1, 1, 4, 4)), np.zeros((1, 4, 4, 4))))
    np.testing.assert_allclose(run(warp_picture(variable(picture), motion))[:, :3], picture, atol=1e-5)


def test_encoder_widths_double_up_to_the_maximum():
    features, tree = build(lambda: encode(variable(np.zeros((1, 3, 32, 32))), 2, 12, 4))
    widths = [tree.all()[f"generator/down_{i}/conv/W"].shape[:2] for i in range(4)]
    assert widths == [(4, 2), (8, 4), (12, 8), (12, 12)]
    assert tree.all()["generator/first/conv/W"].shape == (2, 3, 7, 7)
    assert features.shape == (1, 12, 2, 2)


def test_decode_has_the_layers_of_its_arguments():
    _, tree = build(lambda: decode(variable(np.zeros((1, 8, 2, 2))), 2, 8, 3, 4))
    scopes = {name.split("/")[1] for name in tree.all()}
    assert scopes == {"res_0", "res_1", "res_2", "res_3", "up_0", "up_1", "up_2", "final"}
    widths = [tree.all()[f"generator/up_{i}/conv/W"].shape[:2] for i in range(3)]
    assert widths == [(8, 8), (4, 8), (2, 4)]


@pytest.mark.parametrize("size", [(6, 8), (12, 16), (9, 5), (3, 4)])
def test_warp_features_resizes_the_motion_to_the_features(size):
    rng = np.random.default_rng(2)
    features = double(rng.normal(size=(2, 3, 6, 8)))
    deformation = double(coordinate_grid(*size) + rng.normal(0, 0.3, (2, *size, 2)))
    occlusion = double(rng.random((2, 1, *size)))
    motion = Motion(*variables(deformation, occlusion, np.zeros((2, 4, *size))))
    warped, resized = run(*warp_features(variable(features), motion))
    wanted = expected.warp_features(features, deformation, occlusion)
    np.testing.assert_allclose(warped, wanted[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(resized, wanted[1], rtol=1e-5, atol=1e-6)
    assert resized.shape == (2, 1, 6, 8)


def test_warp_features_without_motion_and_occlusion():
    features = np.random.default_rng(3).normal(size=(1, 3, 6, 8))
    motion = Motion(*variables([coordinate_grid(6, 8)], np.ones((1, 1, 6, 8)), np.zeros((1, 4, 6, 8))))
    np.testing.assert_allclose(run(warp_features(variable(features), motion)[0]), features, atol=1e-5)


def test_warp_features_gradients():
    rng = np.random.default_rng(4)
    features = double(rng.normal(size=(1, 2, 4, 5)))
    deformation = double(coordinate_grid(6, 7) * 0.8 + rng.normal(0, 0.1, (1, 6, 7, 2)))
    occlusion = double(rng.random((1, 1, 6, 7)))
    weights = rng.normal(size=features.shape)
    inputs = leaves(features, deformation, occlusion)
    warped, _ = warp_features(inputs[0], Motion(*inputs[1:], variable(np.zeros((1, 4, 6, 7)))))
    actual = gradients(warped, inputs, weights)
    numeric = numeric_gradients(
        lambda *arrays: expected.warp_features(*arrays)[0], [features, deformation, occlusion], weights, step=1e-6
    )
    for one, other in zip(actual, numeric):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.cpu
@pytest.mark.parametrize("part", ["encode", "decode", "decode with copies"])
def test_gradients(part):
    """Along random directions, with running statistics."""
    rng = np.random.default_rng(5)
    x = double(rng.normal(size=(1, 3, 8, 8) if part == "encode" else (1, MAX_FEATURES, 4, 4)))
    copies = [double(rng.random((1, 2, 5, 16, 16)))] if part == "decode with copies" else []
    leaf, *copied = leaves(x, *copies)

    def network():
        if part == "encode":
            return encode(leaf, EXPANSION, MAX_FEATURES, DOWN)
        return decode(leaf, EXPANSION, MAX_FEATURES, DOWN, BOTTLENECK, False, *copied)

    output, tree = build(network, rng)
    p = reference_parameters(tree)

    def reference(x, p):
        return expected.encode(x, p) if part == "encode" else expected.decode(x, p, *copies)

    weights, direction = rng.normal(size=output.shape), rng.normal(size=x.shape)
    (actual,) = gradients(output, [leaf], weights)
    slope = numeric_slope(lambda x: np.sum(weights * reference(x, p)), x, direction)
    assert np.sum(actual * direction) == pytest.approx(slope, rel=1e-3, abs=1e-4)


# --- the model -------------------------------------------------------------------------------------------------------

SIZE = 32


def tiny(mode, copy=False):
    return ModelConfig(
        image_size=SIZE,
        num_keypoints=3,
        keypoints=KeypointsConfig(expansion=4, max_features=12, blocks=2, scale=0.5, temperature=0.5),
        motion=MotionConfig(expansion=4, max_features=12, blocks=2, scale=0.5, variance=0.05),
        generator=GeneratorConfig(EXPANSION, MAX_FEATURES, DOWN, BOTTLENECK, copy),
        fusion=FusionConfig(mode=mode),
    )


def reference_model(references, driving, p, config):
    """The whole forward pass: references [B,K,3,H,W], driving keypoints -> (prediction, fused, mask, warped)."""
    warped, occlusion, copies = [], [], []
    for k in range(references.shape[1]):
        image = references[:, k]
        keypoints = expected.detect_keypoints(image, p, config.keypoints.scale, config.keypoints.temperature)
        small = downsample(image, config.motion.scale)
        deformation, shown, _ = expected.estimate_motion(small, keypoints, driving, p, config.motion.variance)
        copies.append(expected.warp_picture(image, deformation, shown))
        feature, shown = expected.warp_features(expected.encode(image, p), deformation, shown)
        warped.append(feature)
        occlusion.append(shown)
    warped, occlusion = np.stack(warped, 1), np.stack(occlusion, 1)
    fused, mask = expected.fuse(warped, occlusion, config.fusion.mode, p)
    if not config.generator.copy:
        return expected.decode(fused, p), fused, mask, warped
    shown = np.stack([resize_bilinear(mask[:, k].mean(1, keepdims=True), SIZE, SIZE) for k in range(mask.shape[1])], 1)
    return expected.decode(fused, p, np.concatenate([np.stack(copies, 1), shown], 2)), fused, mask, warped


@pytest.mark.parametrize("mode", ["patch", "element", "mean", "occlusion"])
@pytest.mark.parametrize("copy", [False, True])
def test_model_matches_the_composition_of_the_references(mode, copy):
    """Reference by reference in numpy, all at once in the model: no mixing of frames, references or keypoints."""
    rng, config = np.random.default_rng(6), tiny(mode, copy)
    references, driving = double(rng.random((2, 3, 3, SIZE, SIZE))), double(rng.random((2, 3, SIZE, SIZE)))

    def network():
        encoded = encode_references(variable(references), config)
        return synthesise(encoded, keypoints_of(variable(driving), config), config)

    synthesis, tree = build(network, rng)
    p = reference_parameters(tree)
    keypoints = expected.detect_keypoints(driving, p, config.keypoints.scale, config.keypoints.temperature)
    wanted = reference_model(references, keypoints, p, config)
    actual = run(synthesis.prediction, synthesis.fused, synthesis.mask, synthesis.warped)
    for one, other in zip(actual, wanted):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-4)
    assert wanted[0].std() > 0.05


@pytest.mark.parametrize("copy", [False, True])
def test_references_encoded_once_serve_every_frame(copy):
    """One set of references for two frames gives what encoding it for each frame gives."""
    rng, config = np.random.default_rng(7), tiny("patch", copy)
    references, driving = double(rng.random((1, 2, 3, SIZE, SIZE))), double(rng.random((2, 3, SIZE, SIZE)))

    def network():
        keypoints = keypoints_of(variable(driving), config)
        once = repeat_references(encode_references(variable(references), config), 2)
        each = encode_references(variable(references.repeat(2, 0)), config)
        return [synthesise(encoded, keypoints, config).prediction for encoded in (once, each)]

    (once, each), _ = build(network, rng)
    np.testing.assert_allclose(*run(once, each), atol=order_of_sums(1e-6))


def test_an_unmoved_reference_is_warped_by_the_identity():
    """Driving frame = reference: the features are only multiplied by the occlusion map."""
    rng, config = np.random.default_rng(8), tiny("mean")
    image = double(rng.random((1, 3, SIZE, SIZE)))

    def network():
        encoded = encode_references(variable(image[:, None]), config)
        synthesis = synthesise(encoded, keypoints_of(variable(image), config), config)
        return encoded.features, synthesis.warped, synthesis.occlusion

    (features, warped, occlusion), _ = build(network, rng)
    features, warped, occlusion = run(features, warped, occlusion)
    # FOMM shrinks the deformation with half-pixel centres, so that even no motion moves the border inwards.
    grid = expected.resize_bilinear(coordinate_grid(16, 16).transpose(2, 0, 1)[None], 8, 8).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(warped[:, 0], grid_sample(features, grid) * occlusion[:, 0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("copy", [False, True])
def test_parameters_can_be_created_without_computing(copy):
    config = tiny("element", copy)
    _, created = build(lambda: create_parameters(config))

    def network():
        encoded = encode_references(variable(np.zeros((1, 1, 3, SIZE, SIZE))), config)
        driving = Keypoints(*variables(np.zeros((1, 3, 2)), np.zeros((1, 3, 2, 2))))
        return synthesise(encoded, driving, config)

    _, used = build(network)
    assert {n: p.shape for n, p in created.all().items()} == {n: p.shape for n, p in used.all().items()}
