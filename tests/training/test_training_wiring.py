"""What the training step makes of the losses: which nets each one teaches, and what is compared with what."""

import nnabla as nn
import numpy as np
import pytest
import tiny
from reference import geometry as expected
from reference.graphs import run, variables
from reference.layers import grid_sample

from mrfomm.data.loader import Batch
from mrfomm.model import encode_references, judge, keypoints_of, synthesise
from mrfomm.networks.keypoints import Keypoints
from mrfomm.reenactment.motion import KeypointArrays, relative_motion
from mrfomm.training import validation
from mrfomm.training.equivariance import deform_grid, draw_deformation, mirrored
from mrfomm.training.step import DiscriminatorStep, GeneratorStep, figures_of, load_perceptual

TEACHES = {  # a part of the network that the loss must reach
    "perceptual": ("generator/", "motion/", "keypoints/"),
    "pixel": ("generator/", "motion/", "keypoints/"),
    "equivariance_value": ("keypoints/",),
    "equivariance_jacobian": ("keypoints/",),
    "separation": ("keypoints/",),
    "warp": ("motion/", "keypoints/"),
    "adversarial": ("generator/", "motion/", "keypoints/"),
    "feature_matching": ("generator/", "motion/", "keypoints/"),
}
OFF = dict.fromkeys(TEACHES, 0.0)


def stepped(**changes):
    """A GeneratorStep that has run on a random batch: (step, config, batch, deformation, tree)."""
    config = tiny.config(**changes)
    rng = np.random.default_rng(3)
    images = rng.random((2, config.data.num_references + 1, 3, 32, 32), np.float32)
    movers = rng.random((2, 2, 3, 32, 32), np.float32) if config.data.twins else None
    batch = Batch(images[:, 1:].copy(), images[:, 0].copy(), movers)
    deformation = draw_deformation(rng, 2, 0.05, 0.005, config.loss.tps_points)
    tree = tiny.random_tree(config.model)
    with tree.scope():
        step = GeneratorStep(config, 2, load_perceptual(config.loss))
    for variable in tree.trainable("").values():
        variable.g = 0
    step.run(batch, deformation)
    return step, config, batch, deformation, tree


@pytest.mark.parametrize("name", TEACHES)
def test_each_loss_teaches_what_it_should(name):
    """A picture in the wrong place, such as prediction and truth changed about, leaves a net without a gradient."""
    loss = {**OFF, name: 1.0, "perceptual_network": "alexnet", "scales": [1], "separation_distance": 10.0}
    adversarial = name in ("adversarial", "feature_matching")
    step, _, _, _, tree = stepped(loss=loss, train={"discriminator": adversarial})
    for part in TEACHES[name]:
        assert any(np.abs(variable.g).max() > 0 for variable in tree.trainable(part).values()), part
    assert float(step.total.d) == pytest.approx(float(step.losses[name].d))


def test_equivariance_compares_keypoints_of_the_frame_and_of_the_deformed_frame():
    changes = {**OFF, "pixel": 1.0, "equivariance_value": 2.0, "equivariance_jacobian": 3.0}
    step, config, batch, deformation, tree = stepped(loss=changes)
    deformed = grid_sample(batch.driving, run(mirrored(deform_grid(*variables(*deformation), 32, 32))))
    with tree.scope():
        sides = [
            keypoints_of(nn.Variable.from_numpy_array(images.astype(np.float32)), config.model, training=True)
            for images in (batch.driving, deformed)
        ]
    nn.forward_all([part for side in sides for part in side])
    (points, jacobian), moved = [tuple(part.d.astype(np.float64) for part in side) for side in sides]
    value, slope = expected.equivariance_losses((points, jacobian), moved, *deformation)
    assert float(step.losses["equivariance_value"].d) == pytest.approx(2 * value, rel=1e-3)
    # an inverse in single precision
    assert float(step.losses["equivariance_jacobian"].d) == pytest.approx(3 * slope, rel=1e-2)


def test_the_figures_of_a_step_are_its_losses_and_squared_gradient_norms():
    step, _, _, _, tree = stepped()
    sides = [tree.trainable(side) for side in ("keypoints/", "generator/")]
    found = run(figures_of(step.losses.values(), sides))
    wanted = [float(loss.d) for loss in step.losses.values()]
    wanted += [sum((v.g.astype(np.float64) ** 2).sum() for v in side.values()) for side in sides]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_discriminator_learns_to_tell_the_frame_from_the_prediction():
    """Least squares: its judgement of the frame towards 1, of the prediction towards 0, and only it learns."""
    discriminator = {"spectral_norm": False}
    step, config, batch, _, tree = stepped(
        model={"discriminator": discriminator}, train={"discriminator": True}, loss={"adversarial": 2.0}
    )
    with tree.scope():
        judged = DiscriminatorStep(config, step)
        for variable in tree.trainable("").values():
            variable.g = 0
        judged.run()
        points = nn.Variable.from_numpy_array(step.driving_points.d)
        real, fake = (
            judge(nn.Variable.from_numpy_array(images), points, config.model, fixed=True).score
            for images in (batch.driving, step.prediction.d)
        )
    nn.forward_all([real, fake])
    assert float(judged.loss.d) == pytest.approx(2 * (((1 - real.d) ** 2).mean() + (fake.d**2).mean()), rel=1e-4)
    taught = {name.partition("/")[0] for name, variable in tree.trainable("").items() if np.abs(variable.g).max() > 0}
    assert taught == {"discriminator"}


def test_validation_compares_the_model_with_the_driving_frames():
    config = tiny.config()
    tree = tiny.random_tree(config.model)
    references, driving = tiny.frames(2, seed=1), tiny.frames(5, seed=2)
    animator = validation.Animator(validation.NnablaGraphs(config.model, tree), validation.images_to_array(references))
    pictures = animator.render(animator.keypoints(validation.images_to_array(driving)))
    wanted = np.abs(pictures - driving.transpose(0, 3, 1, 2) / 255).mean()
    found = validation.reconstruction_error(config, tree, [(references, driving), (references, driving)])
    assert found == pytest.approx(wanted, rel=1e-5)


def test_held_out_clips_are_told_apart():
    references, driving = tiny.frames(2, seed=1), tiny.frames(5, seed=2)
    same = validation.digest_of([(references.copy(), driving.copy())])
    assert same == validation.digest_of([(references, driving)])
    others = [[], [(references, driving[:4])], [(driving, references)], [(references, driving ^ 1)]]
    assert len({same, *map(validation.digest_of, others)}) == 5


@pytest.mark.parametrize("count", [1, 3])
def test_a_twin_moves_the_first_references_keypoints(count):
    step, config, batch, _, tree = stepped(data={"twins": 0.5, "num_references": count})
    with tree.scope():
        encoded = encode_references(nn.Variable.from_numpy_array(batch.references), config.model, training=True)
        movers = nn.Variable.from_numpy_array(batch.movers.reshape(-1, *batch.movers.shape[2:]))
        found = (*encoded.keypoints, *keypoints_of(movers, config.model, training=True))
        nn.forward_all(found)
        references, moving = (
            KeypointArrays(*(part.d for part in found[:2])),
            KeypointArrays(*(part.d for part in found[2:])),
        )
        poses = [
            relative_motion(references.frame(count * i), moving.frame(2 * i + 1), moving.frame(2 * i)) for i in range(2)
        ]
        pose = Keypoints(*(nn.Variable.from_numpy_array(np.concatenate(part)) for part in zip(*poses)))
        expected = run(synthesise(encoded, pose, config.model, training=True).prediction)
    np.testing.assert_allclose(step.prediction.d, expected, atol=1e-3)  # the inverse is in single precision
    assert np.abs(expected - run_without_twins(config, batch, tree)).max() > 1e-2


def run_without_twins(config, batch, tree):
    """The prediction where the driving frame's own keypoints are taken."""
    with tree.scope():
        references, driving = (nn.Variable.from_numpy_array(part) for part in batch[:2])
        encoded = encode_references(references, config.model, training=True)
        return run(
            synthesise(encoded, keypoints_of(driving, config.model, True), config.model, training=True).prediction
        )
