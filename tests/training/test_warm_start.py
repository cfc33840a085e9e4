"""What a model of another size or width takes from a checkpoint, against lists written by hand."""

import nnabla as nn
import numpy as np
import pytest
import tiny

from mrfomm.errors import UserError
from mrfomm.model import create_parameters, encode_references, keypoints_of, synthesise
from mrfomm.model.checkpoint import ParameterTree, load_checkpoint, save_checkpoint
from mrfomm.networks import fusion
from mrfomm.training.warm_start import start_from

LARGER = {  # the networks of keypoints and motion see 16 x 16 pixels as before
    "image_size": 64,
    "keypoints": {"scale": 0.25},
    "motion": {"scale": 0.25},
    "generator": {"down_blocks": 2, "max_features": 16},
}
SAME_WIDTH = {"expansion": 8, "max_features": 8}  # 8 channels everywhere in the generator


@pytest.fixture
def begin(tmp_path):
    """A function from changes of the tiny model to a checkpoint of it, and a model of others that started from it."""

    def begin(before, now, discriminator=False):
        weights = load_checkpoint(tiny.checkpoint(tmp_path / "weights", model=before))
        config = tiny.config(model=now, train={"discriminator": discriminator})
        tree = ParameterTree()
        with tree.scope():
            create_parameters(config.model, discriminator)
        for value in tree.all().values():
            value.d = -7  # nothing of a checkpoint's
        start_from(weights, tree, config, "weights")
        return weights, tree

    return begin


def parts(names):
    return {"/".join(name.split("/")[:2]) for name in names}


def taken(weights, tree):
    """Name of every array that took a value -> the one in the checkpoint that it equals, bit for bit."""
    values = {name: value.d for name, value in tree.all().items()}
    alike = {
        name: [old for old, array in weights.parameters.items() if np.array_equal(array, value)]
        for name, value in values.items()
    }
    assert all(len(alike[name]) == 1 or (value == -7).all() for name, value in values.items())
    return {name: olds[0] for name, olds in alike.items() if olds}


def test_a_larger_model_takes_what_fits(begin, capsys):
    weights, tree = begin({"fusion": {"mode": "element"}}, {**LARGER, "fusion": {"mode": "patch"}})
    found = taken(weights, tree)
    moved = {name: old for name, old in found.items() if name != old}
    assert parts(found) == {
        *("keypoints/hourglass", "keypoints/heatmap", "keypoints/jacobian"),
        *("motion/hourglass", "motion/mask", "motion/occlusion"),
        *("generator/first", "generator/down_0", "generator/up_1", "generator/final"),
    }
    assert moved == {n: n.replace("up_1", "up_0") for n in tree.all() if n.startswith("generator/up_1/")}
    fresh = tree.all().keys() - found.keys()
    assert parts(fresh) == {"generator/down_1", "generator/up_0", "generator/res_0", "fusion/conv"}
    for part in parts(found) & parts(fresh):
        raise AssertionError(f"{part} is taken in part")
    changes, *block = capsys.readouterr().err.splitlines()
    assert "model.image_size = 32, now 64; model.keypoints.scale = 0.5, now 0.25" in changes
    assert block == [
        f"weights: {len(found)} of {len(tree.all())} arrays carry over",
        "  from another block: generator/up_1 from generator/up_0 (6)",
        "  new: fusion/conv (2), generator/down_1 (6), generator/up_0 (6)",
        "  new, of another shape: generator/res_0 (12)",
        "  left out: fusion/conv (2)",
    ]


@pytest.mark.parametrize(
    ("before", "now", "moved"),
    [
        (1, 3, {"up_2": "up_0"}),
        (2, 3, {"up_1": "up_0", "up_2": "up_1"}),
        (2, 2, {"up_0": "up_0", "up_1": "up_1"}),
        (3, 1, {"up_0": "up_2"}),
        (2, 1, {"up_0": "up_1"}),
    ],
)
def test_up_blocks_are_counted_from_the_picture(begin, before, now, moved):
    """All are of one shape here, so that nothing but the rule keeps them apart."""
    models = ({"generator": {**SAME_WIDTH, "down_blocks": blocks}} for blocks in (before, now))
    found = taken(*begin(*models))
    pairs = {(name.split("/")[1], old.split("/")[1]) for name, old in found.items() if name.startswith("generator/")}
    assert {(a, b) for a, b in pairs if a.startswith("up_")} == set(moved.items())
    assert {(a, b) for a, b in pairs if a.startswith("down_")} == {(f"down_{i}",) * 2 for i in range(min(before, now))}
    assert {("first", "first"), ("res_0", "res_0"), ("final", "final")} <= pairs


@pytest.mark.parametrize(("depth", "carries"), [(1, True), (2, False)])
def test_masks_learned_on_other_features_are_of_no_use(begin, depth, carries):
    before = {"generator": {**SAME_WIDTH, "down_blocks": 1, "bottleneck_blocks": 1}, "fusion": {"mode": "patch"}}
    now = {"generator": {**SAME_WIDTH, "down_blocks": depth, "bottleneck_blocks": 2}, "fusion": {"mode": "patch"}}
    assert ("fusion/conv" in parts(taken(*begin(before, now)))) is carries


def test_a_model_that_copies_pixels_takes_everything_of_one_that_does_not(begin, capsys):
    weights, tree = begin({}, {"generator": {"copy": True}})
    assert taken(weights, tree).keys() == weights.parameters.keys()
    new = tree.all().keys() - weights.parameters.keys()
    assert parts(new) == {"generator/copy"}
    assert f"  new: generator/copy ({len(new)})\n" in capsys.readouterr().err


def test_the_same_model_computes_the_same(begin, capsys):
    model = {"fusion": {"mode": "element"}}
    weights, tree = begin(model, model)
    images = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    whole = ParameterTree()
    with whole.scope():
        create_parameters(weights.config.model)
    whole.assign(weights.parameters, "weights")
    pictures = []
    for each in (whole, tree):
        with each.scope():
            encoded = encode_references(nn.Variable.from_numpy_array(images[None, :2]), weights.config.model)
            driving = keypoints_of(nn.Variable.from_numpy_array(images[2:]), weights.config.model)
            prediction = synthesise(encoded, driving, weights.config.model).prediction
        prediction.forward()
        pictures.append(prediction.d.copy())
    np.testing.assert_array_equal(*pictures)
    assert pictures[0].std() > 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_motion_network_of_another_depth_starts_anew(begin, capsys, blocks):
    assert not any(name.startswith("motion/") for name in taken(*begin({}, {"motion": {"blocks": blocks}})))
    assert (
        f"  new: motion/hourglass ({12 * blocks}), motion/mask (2), motion/occlusion (2)\n" in capsys.readouterr().err
    )


def test_masks_of_another_mode_are_of_no_use(tmp_path, capsys, monkeypatch):
    """Be its arrays alike, and be it somebody's own, which is known no more."""
    known = dict(fusion._MODES)
    monkeypatch.setattr(fusion, "_MODES", known)
    fusion.register("my:own", known["patch"].function, learned=True)
    weights = load_checkpoint(tiny.checkpoint(tmp_path, model={"fusion": {"mode": "my:own"}}))
    del known["my:own"]
    config = tiny.config(model={"fusion": {"mode": "patch"}})
    tree = tiny.random_tree(config.model, seed=1)
    masks = tree.all()["fusion/conv/W"].d.copy()
    start_from(weights, tree, config, "weights")
    np.testing.assert_array_equal(tree.all()["fusion/conv/W"].d, masks)
    assert "  new: fusion/conv (2)\n  left out: fusion/conv (2)\n" in capsys.readouterr().err


def test_another_way_to_fuse_is_told_where_no_array_is_new(begin, capsys):
    begin({"fusion": {"mode": "mean"}}, {"fusion": {"mode": "occlusion"}})
    assert capsys.readouterr().err == "weights: trained with model.fusion.mode = mean, now occlusion\n"


def test_a_second_stage_has_a_discriminator_of_its_own(begin, capsys):
    weights, tree = begin({}, {}, discriminator=True)
    assert taken(weights, tree).keys() == weights.parameters.keys()
    assert parts(tree.all().keys() - weights.parameters.keys()) == parts(
        name for name in tree.all() if name.startswith("discriminator/")
    )
    _, line = capsys.readouterr().err.splitlines()
    assert line.startswith("  new: discriminator/down_0 (")


@pytest.mark.parametrize(
    "change", [{"num_keypoints": 4}, {"keypoints": {"expansion": 5}}, {"keypoints": {"blocks": 3}}]
)
def test_another_keypoint_detector_is_refused(begin, change):
    with pytest.raises(
        UserError, match="^weights: its keypoint detector doesn't fit .*; take model.num_keypoints and"
    ) as e:
        begin({}, change)
    assert "\n" not in str(e.value)


def test_a_shallower_keypoint_detector_is_refused_though_all_its_shapes_fit(begin):
    narrow = {"expansion": 4, "max_features": 4}
    with pytest.raises(UserError, match="^weights: its keypoint detector doesn't fit"):
        begin({"keypoints": {**narrow, "blocks": 2}}, {"keypoints": {**narrow, "blocks": 1}})


@pytest.mark.parametrize("lost", ["generator/up_0/conv/W", "motion/mask/conv/W", "fusion/conv/W"])
def test_weights_without_an_array_of_their_own_are_refused(tmp_path, lost):
    """Else it would pass for one that the larger model has and they don't."""
    config = tiny.config()
    arrays = tiny.random_tree(config.model).all()
    del arrays[lost]
    save_checkpoint(tmp_path / "weights", config, arrays)
    larger = tiny.config(model=LARGER)
    with pytest.raises(UserError, match=f"parameter {lost} is missing"):
        start_from(load_checkpoint(tmp_path / "weights"), tiny.random_tree(larger.model), larger, "weights")
