"""The training loop, end to end on a tiny model."""

import json
import os
import signal

import imageio.v2 as imageio
import nnabla as nn
import numpy as np
import pytest
import tiny
from reference.geometry import downsample
from reference.layers import grid_sample
from tolerance import order_of_sums

from mrfomm.commands import train
from mrfomm.config import TrainConfig, config_to_yaml
from mrfomm.data.loader import Batch
from mrfomm.errors import UserError
from mrfomm.model import judge
from mrfomm.model.checkpoint import ParameterTree, list_checkpoints, load_checkpoint
from mrfomm.reenactment.animator import images_to_array
from mrfomm.training import step as steps
from mrfomm.training import trainer as training
from mrfomm.training.equivariance import draw_deformation
from mrfomm.training.run_folder import load_resumable
from mrfomm.training.trainer import learning_rate

TWO_STAGES = pytest.mark.parametrize("discriminator", [False, True], ids=["stage1", "stage2"])


@pytest.fixture
def data(tmp_path):
    """Training data in FOMM's format: two stacked training clips and a test clip."""
    return tiny.data(tmp_path / "data")


def run(tmp_path, source, name, *options, **changes):
    """Run train.py with the tiny configuration; returns the run folder."""
    path = tmp_path / "tiny.yaml"
    path.write_text(config_to_yaml(tiny.config(**changes)), encoding="utf-8")
    folder = tmp_path / name
    where = ["--config", str(path), "--data", str(source), "--output", str(folder), "--context", "cpu"]
    assert train.main([*where, *options]) == 0
    return folder


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_learning_rate_is_the_papers():
    rates = [learning_rate(TrainConfig(), epoch) for epoch in (0, 59, 60, 89, 90, 99)]
    np.testing.assert_allclose(rates, [2e-4, 2e-4, 2e-5, 2e-5, 2e-6, 2e-6])


def test_warp_loss_of_a_step_pairs_each_reference_with_its_own_driving_frame():
    config = tiny.config(data={"num_references": 2}, loss={"warp": 3.0})
    with ParameterTree().scope():
        step = steps.GeneratorStep(config, 2, None)
    images = images_to_array(tiny.frames(6))
    step.references.d, step.driving.d = images[:4].reshape(step.references.shape), images[4:]
    deformation = step.synthesis.motion.deformation
    step.theta.d, step.control.d = 0, 0
    nn.forward_all([step.losses["warp"], deformation])
    wanted = 0
    small = downsample(images, config.model.motion.scale)
    for b in range(2):
        for k in range(2):
            warped = grid_sample(small[[2 * b + k]], deformation.d[[2 * b + k]])
            wanted += sum(np.abs(downsample(warped - small[[4 + b]], s)).mean() for s in (1, 0.5, 0.25)) / 4
    assert float(step.losses["warp"].d) == pytest.approx(3 * wanted, rel=1e-4)


@pytest.mark.parametrize("others", [0.0, 10.0], ids=["alone", "with other losses"])
@pytest.mark.parametrize("keypoint_input", [False, True], ids=["picture", "picture and keypoints"])
def test_adversarial_losses_of_a_step_compare_prediction_and_driving_frame(keypoint_input, others):
    """The step's losses against the discriminator's judgement of both, taken afterwards in graphs of their own."""
    loss = {"pixel": others, "equivariance_value": others, "equivariance_jacobian": others}
    discriminator = {"keypoint_input": keypoint_input, "spectral_norm": not keypoint_input}
    config = tiny.config(train={"discriminator": True}, model={"discriminator": discriminator}, loss=loss)
    rng = np.random.default_rng(5)
    batch = Batch(*(rng.random((2, *shape, 32, 32), np.float32) for shape in ((config.data.num_references, 3), (3,))))
    with ParameterTree().scope():
        step = steps.GeneratorStep(config, 2, None)
        for _ in range(2):  # the second time in buffers that the first one has used
            step.run(batch, draw_deformation(rng, 2, 0.05, 0.005, config.loss.tps_points))
        points = nn.Variable.from_numpy_array(step.driving_points.d)
        fake, real = (
            judge(nn.Variable.from_numpy_array(images), points, config.model, fixed=True)
            for images in (step.prediction.d, batch.driving)
        )
    nn.forward_all([fake.score, *fake.features, *real.features])
    pairs = zip(fake.features, real.features)
    wanted = {
        "adversarial": config.loss.adversarial * ((1 - fake.score.d) ** 2).mean(),
        "feature_matching": config.loss.feature_matching * sum(np.abs(a.d - b.d).mean() for a, b in pairs),
    }
    for name, value in wanted.items():
        assert float(step.losses[name].d) == pytest.approx(value, rel=1e-4), name


def test_it_learns(tmp_path, data):
    """On six frames of a moving blob the pixel loss falls to less than half."""
    quick = {"epochs": 4, "milestones": [], "learning_rate": 5e-3}
    folder = run(tmp_path, data, "run", train=quick, data={"num_repeats": 20})
    losses = [row["pixel"] for row in log(folder) if "pixel" in row]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])


@pytest.mark.cpu
@TWO_STAGES
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, data, discriminator):
    """Bit for bit: parameters, solver states, losses."""
    changes = {"train": {"discriminator": discriminator, "checkpoint_every": 3, "keep_checkpoints": 9}}
    whole = run(tmp_path, data, "whole", **changes)
    broken = run(tmp_path, data, "broken", **changes)
    for folder in list_checkpoints(broken)[2:]:  # as if killed soon after step 6
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    assert train.main(["--resume", str(broken), "--context", "cpu"]) == 0
    ours, theirs = load_resumable(broken), load_resumable(whole)
    assert ours.state == theirs.state
    assert ours.state["step"] == 16
    for name, value in theirs.parameters.items():
        np.testing.assert_array_equal(ours.parameters[name], value, err_msg=name)
    rows = {row["step"]: row for row in log(whole)}
    for row in log(broken)[-10:]:
        row.pop("time")
        assert row == {key: value for key, value in rows[row["step"]].items() if key != "time"}


def test_stage_2_starts_from_stage_1(tmp_path, data):
    first = run(tmp_path, data, "first", model={"fusion": {"mode": "mean"}}, train={"epochs": 1})
    second = run(tmp_path, data, "second", "--init", str(first), train={"discriminator": True, "epochs": 1})
    row = log(second)[0]
    assert {"discriminator", "adversarial", "feature_matching"} <= row.keys()
    before, after = load_checkpoint(first).parameters, load_checkpoint(second).parameters
    assert after.keys() - before.keys() == {n for n in after if n.startswith(("fusion/", "discriminator/"))}
    assert_begins_with(second, before)


def assert_begins_with(folder, parameters):
    """The run's first checkpoint holds all of these parameters."""
    begun = load_checkpoint(folder / "checkpoint-00000000").parameters
    for name, value in parameters.items():
        np.testing.assert_array_equal(begun[name], value, err_msg=name)


def test_a_larger_model_starts_from_a_smaller_one(tmp_path, data):
    first = run(tmp_path, data, "first", train={"epochs": 1})
    model = {"image_size": 64, "generator": {"down_blocks": 2, "max_features": 16}}
    second = run(tmp_path, data, "second", "--init", str(first), model=model, train={"epochs": 1})
    networks = ("keypoints/", "motion/", "generator/first/", "generator/down_0/", "generator/final/")
    assert_begins_with(second, {n: v for n, v in load_checkpoint(first).parameters.items() if n.startswith(networks)})
    assert np.isfinite([row["pixel"] for row in log(second)]).all()


def test_stage_2_goes_on_with_the_learned_fusion(tmp_path, data):
    first = run(tmp_path, data, "first", train={"epochs": 1})
    second = run(tmp_path, data, "second", "--init", str(first), train={"discriminator": True, "epochs": 1})
    before = load_checkpoint(first).parameters
    assert any(name.startswith("fusion/") and np.abs(value).max() > 0 for name, value in before.items())
    assert_begins_with(second, before)


def test_the_learning_rate_falls_for_both_sides(tmp_path, data, monkeypatch):
    rates = []
    original = training.Trainer.step

    def step(self, batch):
        losses = original(self, batch)
        rates.append((self.progress.epoch, *(s.learning_rate() for s in self._solvers.values())))
        return losses

    monkeypatch.setattr(training.Trainer, "step", step)
    changes = {"discriminator": True, "epochs": 3, "milestones": [1], "learning_rate": 1e-3}
    run(tmp_path, data, "run", train=changes, data={"num_repeats": 1})
    np.testing.assert_allclose(rates, [(0, 1e-3, 1e-3), (1, 1e-4, 1e-4), (2, 1e-4, 1e-4)], rtol=1e-6)


def test_other_held_out_clips_make_the_best_model_anew(tmp_path, data, capsys):
    """Errors over other clips can't be compared: the earlier one, here unbeatable, doesn't stand in the way."""
    folder = run(tmp_path, data, "run", train={"epochs": 1, "validate_every": 4, "checkpoint_every": 4})
    for path in [*list_checkpoints(folder), folder / "best"]:
        record = json.loads((path / "state.json").read_text(encoding="utf-8"))
        record["state"]["best"] = 1e-9
        (path / "state.json").write_text(json.dumps(record), encoding="utf-8")
    resume = ["--resume", str(folder), "--context", "cpu", "--set"]
    assert train.main([*resume, "train.epochs=2"]) == 0
    assert load_checkpoint(folder / "best").state["best"] == 1e-9
    assert "held-out" not in capsys.readouterr().err
    tiny.clip(data / "test" / "c#0.png", seed=9)
    assert train.main([*resume, "train.epochs=3"]) == 0
    assert load_checkpoint(folder / "best").state["best"] > 1e-9
    assert "held-out clips have changed" in capsys.readouterr().err


def test_init_drops_a_discriminator_of_another_kind(tmp_path, data):
    """As of FOMM's vox-cpk, which has spectral norm, under vox-adv, which hasn't."""
    stage2 = {"discriminator": True, "epochs": 1}
    first = run(tmp_path, data, "first", model={"discriminator": {"spectral_norm": True}}, train=stage2)
    changes = {"model": {"discriminator": {"spectral_norm": False}}, "train": stage2}
    second = run(tmp_path, data, "second", "--init", str(first), **changes)
    before, after = load_checkpoint(first).parameters, load_checkpoint(second).parameters
    assert before.keys() - after.keys() == {name for name in before if name.endswith("/u")} != set()
    assert_begins_with(second, {n: v for n, v in before.items() if not n.startswith("discriminator/")})


def test_stage_2_runs_the_generator_once(tmp_path, data):
    """The running statistics of the first step move as in stage 1: the discriminator's step doesn't run it again."""
    statistics = []
    for discriminator in (False, True):
        changes = {"train": {"discriminator": discriminator, "epochs": 1}, "data": {"num_repeats": 1}}
        folder = run(
            tmp_path, data, f"run{discriminator}", loss={"adversarial": 0.0, "feature_matching": 0.0}, **changes
        )
        assert load_checkpoint(folder).state["step"] == 1
        statistics.append(load_checkpoint(folder).parameters["generator/first/bn/mean"])
    assert np.abs(statistics[0]).max() > 0
    np.testing.assert_allclose(*statistics, rtol=0, atol=order_of_sums())


def test_shown_values_survive_the_clearing_of_buffers():
    """What a step shows and hands to the discriminator equals a forward pass that clears nothing."""
    config = tiny.config(loss={"equivariance_value": 0.0, "equivariance_jacobian": 0.0})
    tree = tiny.random_tree(config.model)
    frames = images_to_array(tiny.frames(6))
    batch = Batch(frames[:4].reshape(2, 2, 3, 32, 32), frames[4:])
    with tree.scope():
        step = steps.GeneratorStep(config, 2, None)
    step.run(batch, draw_deformation(np.random.default_rng(0), 2, 0.05, 0.005, 5))
    shown = [variable.d.copy() for variable in step._shown]
    nn.forward_all(list(step._shown))
    for ours, again in zip(shown, step._shown):
        np.testing.assert_array_equal(ours, again.d)
    assert len({array.tobytes() for array in shown}) == len(shown)


def test_checkpoints_pictures_and_validation(tmp_path, data):
    changes = {"checkpoint_every": 4, "picture_every": 8, "validate_every": 8, "keep_checkpoints": 2}
    folder = run(tmp_path, data, "run", train=changes)
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-00000012", "checkpoint-00000016"]
    picture = imageio.imread(folder / "pictures" / "00000008.png")
    # two samples, each with 2 references, driving, prediction, 2 masks and 2 occlusion maps
    assert picture.shape == (2 * 32 + 2, 8 * 32 + 7 * 2, 3)
    errors = [row["validation_l1"] for row in log(folder) if "validation_l1" in row]
    assert len(errors) == 2
    assert load_checkpoint(folder / "best").state["best"] == min(errors)


def test_stop_request_saves(tmp_path, data, monkeypatch):
    original = training.Trainer.step

    def step(self, batch):
        if self.progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(training.Trainer, "step", step)
    path = tmp_path / "tiny.yaml"
    path.write_text(config_to_yaml(tiny.config()), encoding="utf-8")
    where = ["--config", str(path), "--data", str(data), "--output", str(tmp_path / "run"), "--context", "cpu"]
    assert train.main(where) == 130
    assert load_resumable(tmp_path / "run").state["step"] == 5


def test_non_finite_loss_stops_and_keeps_the_batch(tmp_path, data):
    with pytest.raises(UserError, match="not finite"):
        run(tmp_path, data, "run", train={"learning_rate": 1e30})
    (batch,) = (tmp_path / "run").glob("non-finite-*.npz")
    assert np.load(batch)["references"].shape == (2, 2, 3, 32, 32)


def test_bad_starts(tmp_path, data):
    with pytest.raises(UserError, match="already holds a run"):
        run(tmp_path, data, "data")
    with pytest.raises(UserError, match="no such checkpoint"):
        run(tmp_path, data, "r", "--init", str(tmp_path / "none"))
    for option in ("--config", "--init", "--output"):
        with pytest.raises(UserError, match="leave out --config, --init and --output"):
            train.main(["--resume", str(tmp_path), option, str(tmp_path / "r"), "--context", "cpu"])
    with pytest.raises(UserError, match="data.num_repeats"):
        run(tmp_path, data, "r", train={"batch_size": 100})
    with pytest.raises(UserError, match="loss.perceptual_weights"):
        run(tmp_path, data, "r", loss={"perceptual_network": "vgg19"})
    assert not (tmp_path / "r").exists()
