"""Animation: invariances of the model in use, relative motion, the choice of the start."""

import itertools

import numpy as np
import pytest
import tiny
from tolerance import order_of_sums

from mrfomm.errors import UserError
from mrfomm.model import load_model, model_digest
from mrfomm.reenactment.animator import Animator, array_to_images, images_to_array
from mrfomm.reenactment.motion import KeypointArrays, Transfer, find_start, hull_area, movement_scale, relative_motion
from mrfomm.reenactment.nnabla_backend import NnablaGraphs

MODES = ("patch", "element", "mean", "occlusion")
each_kind = pytest.mark.parametrize(("mode", "copy"), list(itertools.product(MODES, (False, True))))


def model_of(mode, seed=0, copy=False):
    config = tiny.config(model={"fusion": {"mode": mode}, "generator": {"copy": copy}}).model
    return config, tiny.random_tree(config, seed)


def absolute(model, references, driving, batch=1):
    animator = Animator(NnablaGraphs(*model), references, batch)
    return animator.render(animator.keypoints(driving))


@pytest.fixture(scope="module")
def pictures():
    array = images_to_array(tiny.frames(8))
    return array[:3], array[3:]


@each_kind
def test_order_of_references_does_not_matter(mode, copy, pictures):
    references, driving = pictures
    model = model_of(mode, copy=copy)
    ours = absolute(model, references, driving)
    assert ours.std() > 1e-3
    np.testing.assert_allclose(absolute(model, references[[2, 0, 1]], driving), ours, atol=order_of_sums(1e-5))


@each_kind
def test_copies_of_one_reference_equal_one(mode, copy, pictures):
    references, driving = pictures
    model = model_of(mode, copy=copy)
    single = absolute(model, references[:1], driving)
    copies = absolute(model, references[[0, 0, 0, 0]], driving)
    np.testing.assert_allclose(copies, single, atol=order_of_sums(1e-5))


def test_one_reference_is_fomm_in_every_mode(pictures):
    """With K = 1 every fusion is the identity, so all modes agree on the same weights."""
    references, driving = pictures
    results = [absolute(model_of(mode), references[:1], driving) for mode in MODES]
    shared = {name: v.d for name, v in model_of("mean")[1].all().items()}
    for mode in MODES:
        config, tree = model_of(mode)
        for name, value in shared.items():
            tree.all()[name].d = value
        results.append(absolute((config, tree), references[:1], driving))
    for result in results[len(MODES) + 1 :]:
        np.testing.assert_allclose(result, results[len(MODES)], atol=order_of_sums(1e-6))


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_batch_size_does_not_change_results(batch, pictures):
    references, driving = pictures
    model = model_of("element")
    np.testing.assert_allclose(
        absolute(model, references, driving, batch), absolute(model, references, driving), atol=order_of_sums(1e-6)
    )


def test_references_are_cached(pictures):
    """A second call after other driving frames gives what a fresh Animator gives."""
    references, driving = pictures
    model = model_of("patch")
    animator = Animator(NnablaGraphs(*model), references)
    animator.render(animator.keypoints(driving[:2]))
    again = animator.render(animator.keypoints(driving[2:]))
    fresh = absolute(model, references, driving[2:])
    np.testing.assert_allclose(again, fresh, rtol=0, atol=order_of_sums())


@pytest.mark.parametrize("copy", [False, True])
def test_breakdown(copy, pictures):
    references, driving = pictures
    model = model_of("element", copy=copy)
    animator = Animator(NnablaGraphs(*model), references, batch=2, breakdown=True)
    keypoints = animator.keypoints(driving[:3])
    prediction, breakdown = animator.render_breakdown(keypoints)
    np.testing.assert_allclose(prediction, animator.render(keypoints), rtol=0, atol=order_of_sums())
    np.testing.assert_allclose(breakdown.mask.sum(axis=1), 1, atol=1e-5)
    for k in range(3):
        alone = absolute(model, references[k : k + 1], driving[:3])
        np.testing.assert_allclose(breakdown.warped[:, k], alone, atol=order_of_sums(1e-5))


def random_keypoints(rng, count, points=10):
    jacobian = np.eye(2) + rng.normal(0, 0.2, (count, points, 2, 2))
    return KeypointArrays(rng.uniform(-1, 1, (count, points, 2)).astype(np.float32), jacobian.astype(np.float32))


def test_relative_motion_by_hand():
    rng = np.random.default_rng(0)
    anchor, initial, driving = random_keypoints(rng, 1), random_keypoints(rng, 1), random_keypoints(rng, 4)
    ours = relative_motion(anchor, driving, initial, 0.5)
    for i in range(4):
        for p in range(10):
            value = anchor.value[0, p] + 0.5 * (driving.value[i, p] - initial.value[0, p])
            jacobian = driving.jacobian[i, p] @ np.linalg.inv(initial.jacobian[0, p]) @ anchor.jacobian[0, p]
            np.testing.assert_allclose(ours.value[i, p], value, atol=1e-6)
            np.testing.assert_allclose(ours.jacobian[i, p], jacobian, atol=1e-4)


def test_no_motion_gives_the_anchor():
    rng = np.random.default_rng(1)
    anchor, initial = random_keypoints(rng, 1), random_keypoints(rng, 1)
    ours = relative_motion(anchor, initial, initial)
    np.testing.assert_allclose(ours.value, anchor.value, atol=1e-6)
    np.testing.assert_allclose(ours.jacobian, anchor.jacobian, atol=1e-5)


def test_strength_goes_from_the_anchor_to_the_whole_motion():
    rng = np.random.default_rng(2)
    anchor, initial, driving = random_keypoints(rng, 1), random_keypoints(rng, 1), random_keypoints(rng, 4)
    whole = relative_motion(anchor, driving, initial, 0.5)
    for ours, theirs in zip(relative_motion(anchor, driving, initial, 0.5, strength=1), whole):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(relative_motion(anchor, driving, initial, 0.5, strength=0), anchor):
        np.testing.assert_array_equal(ours, np.repeat(theirs, 4, axis=0))
    for strength in (0.3, 1.7):
        for ours, to, from_ in zip(relative_motion(anchor, driving, initial, 0.5, strength), whole, anchor):
            np.testing.assert_allclose(ours, from_ + strength * (to - from_), rtol=1e-4, atol=1e-4)
    for bad in (-0.1, 2.1, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            Transfer(strength=bad)
    with pytest.raises(ValueError, match="strength"):
        Transfer("absolute", strength=0.5)


def test_scale_is_the_ratio_of_hulls():
    square = np.float32([[[-1, -1], [1, -1], [1, 1], [-1, 1], [0.2, 0.1]]])
    unit = np.tile(np.eye(2, dtype=np.float32), (1, 5, 1, 1))
    big, small = KeypointArrays(square, unit), KeypointArrays(square * 0.25, unit)
    assert hull_area(square[0]) == pytest.approx(4)
    assert movement_scale(big, small) == pytest.approx(4)
    assert movement_scale(big, KeypointArrays(square * 0, unit)) == 1


def test_start_is_found_whatever_position_and_size():
    rng = np.random.default_rng(2)
    references, driving = random_keypoints(rng, 3), random_keypoints(rng, 20)
    driving.value[13] = references.value[1] * 0.3 + 0.2
    assert find_start(references, driving) == (13, 1)
    assert find_start(references, driving, 13) == (13, 1)
    assert find_start(references, driving, 5).frame == 5


def test_images_round_trip():
    images = tiny.frames(3)
    np.testing.assert_array_equal(array_to_images(images_to_array(images)), images)


def test_fusion_can_be_replaced_but_not_invented(tmp_path):
    checkpoint = tiny.checkpoint(tmp_path / "c", model={"fusion": {"mode": "patch"}})
    assert load_model(checkpoint).config.fusion.mode == "patch"
    mean = load_model(checkpoint, "mean")
    assert mean.config.fusion.mode == "mean"
    assert not any(name.startswith("fusion/") for name in mean.tree.all())
    with pytest.raises(UserError, match="--fusion element"):
        load_model(checkpoint, "element")


def test_digest_follows_configuration_and_every_parameter(tmp_path):
    weights = tiny.checkpoint(tmp_path / "weights")
    model = load_model(weights)
    digest = model_digest(model)
    assert model_digest(load_model(weights)) == digest
    assert model_digest(load_model(weights, "mean")) != digest
    for parameter in model.tree.all().values():
        before = parameter.d.copy()
        parameter.d = before + np.float32(1e-3)
        assert model_digest(model) != digest
        parameter.d = before
