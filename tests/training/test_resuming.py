"""Going on with a run under other settings, with other data, from an earlier checkpoint, or after it diverged."""

import json
import math
import re
import shutil

import imageio.v2 as imageio
import numpy as np
import pytest
import tiny

from mrfomm.commands import train
from mrfomm.config import config_to_yaml, load_config
from mrfomm.data.clips import find_clips
from mrfomm.data.loader import SampleMaker, check_lengths, frames_up_to
from mrfomm.data.sampling import epoch_order
from mrfomm.errors import UserError
from mrfomm.model.checkpoint import list_checkpoints, load_checkpoint
from mrfomm.runtime.processes import Communicator
from mrfomm.training import step as steps
from mrfomm.training import trainer as training
from mrfomm.training.watch import read_log

OFTEN = {"epochs": 1, "milestones": [], "checkpoint_every": 4, "keep_checkpoints": 9}
STEPS, REPEATS = 12, 12  # two clips, two samples a batch


def write_clip(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(path, np.concatenate(list(frames), axis=1))


@pytest.fixture
def data(tmp_path):
    return tiny.data(tmp_path / "data")


def start(tmp_path, source, name="run", options=(), **changes):
    """A new run of the tiny model; returns its folder."""
    values = tiny.merged({"train": OFTEN, "data": {"num_repeats": REPEATS}}, changes)
    (tmp_path / "tiny.yaml").write_text(config_to_yaml(tiny.config(**values)), encoding="utf-8")
    where = ["--config", tmp_path / "tiny.yaml", "--data", source, "--output", tmp_path / name, "--context", "cpu"]
    assert train.main([str(word) for word in (*where, *options)]) == 0
    return tmp_path / name


def resume(path, *overrides, options=()):
    changes = ["--set", *overrides] if overrides else []
    return train.main(["--resume", str(path), "--context", "cpu", *options, *changes])


def stopped_at(folder, step):
    """Take the later checkpoints away, as if the run had been killed after this one."""
    for later in list_checkpoints(folder):
        if int(later.name[-8:]) > step:
            shutil.rmtree(later)
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


# The position in the data


@pytest.mark.parametrize(("size", "steps"), [(4, 4), (8, 2), (1, 16)])
def test_another_batch_size_goes_on_after_the_samples_done(tmp_path, data, monkeypatch, size, steps):
    run = stopped_at(start(tmp_path, data), 4)
    made, original = [], SampleMaker.__call__
    monkeypatch.setattr(SampleMaker, "__call__", lambda self, task: made.append(task) or original(self, task))
    assert resume(run, f"train.batch_size={size}") == 0
    assert names(run)[-1] == f"checkpoint-{4 + steps:08d}"
    order = epoch_order(0, 0, 2, REPEATS, 2).ravel()
    assert made == [(0, index) for index in order[8:]]  # those that the first 4 batches of 2 have left


def test_a_batch_size_that_does_not_fit_is_refused_and_the_one_named_goes(tmp_path, data):
    run = stopped_at(start(tmp_path, data), 4)
    before = contents(run)
    with pytest.raises(UserError, match="train.batch_size was 2, is 3: the 8 samples .* size that divides 8"):
        resume(run, "train.batch_size=3")
    assert contents(run) == before
    assert resume(run, "train.batch_size=8") == 0


def test_an_epoch_in_which_no_step_is_left_is_refused(tmp_path, data, capsys):
    """Of 12 repeats 4 batches are done: with 3 there are but 3 in an epoch."""
    run = stopped_at(start(tmp_path, data), 4)
    with pytest.raises(UserError, match="4 batches of the last epoch are done, and now it has 3: no step is left"):
        resume(run, "data.num_repeats=3")
    assert resume(run, "data.num_repeats=3", "train.epochs=2") == 0
    assert names(run)[-1] == "checkpoint-00000007"
    assert "data.num_repeats was 12, is 3: epoch 1 goes on after 8 samples of another order" in capsys.readouterr().err
    assert resume(run) == 0
    assert "all 2 epochs are done; --set train.epochs=NUMBER for more" in capsys.readouterr().err
    assert resume(run, "train.epochs=3") == 0
    assert names(run)[-1] == "checkpoint-00000010"


@pytest.mark.parametrize("change", ["added", "removed", "replaced", "other folder"])
def test_other_training_clips_are_told(tmp_path, data, capsys, change):
    run, options = stopped_at(start(tmp_path, data), 4), []
    assert resume(run) == 0
    assert "training clips" not in capsys.readouterr().err
    stopped_at(run, 4)
    if change == "other folder":
        shutil.copytree(data, tmp_path / "other")
        (tmp_path / "other" / "train" / "a#0.png").rename(tmp_path / "other" / "train" / "z#0.png")
        options = ["--data", str(tmp_path / "other")]
    elif change == "removed":
        (data / "train" / "b#0.png").unlink()
    else:
        write_clip(data / "train" / ("new#0.png" if change == "added" else "b#0.png"), tiny.frames(7, seed=5))
    assert resume(run, options=options) == 0
    assert "the training clips have changed: epoch 1 goes on after 8 samples" in capsys.readouterr().err


def test_a_run_goes_on_with_its_data_from_any_folder(tmp_path, data, monkeypatch, capsys):
    shutil.copytree(data, tmp_path / "elsewhere" / "data")
    (tmp_path / "elsewhere" / "data" / "train" / "a#0.png").unlink()
    monkeypatch.chdir(tmp_path)
    run = start(tmp_path, "data")
    assert load_config(run / "config.yaml").data.root == str(data)
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    assert resume("../run", "train.epochs=2") == 0
    assert "others than before" not in capsys.readouterr().err
    assert load_config(run / "config.yaml").data.root == str(data)


def test_paths_of_a_configuration_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("data: {root: bundled}\nloss: {perceptual_weights: vgg19.h5}")
    config = train.configuration(train.parse_arguments(["--config", "c.yaml"]), None)
    assert (config.data.root, config.loss.perceptual_weights) == ("bundled", str(tmp_path / "vgg19.h5"))


# What lies in the run's folder


def scalars(folder):
    """(tag, step) of all that a folder's event files hold."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401 - the format read below is this one's

    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:  # length, its checksum, data, its checksum
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            found += [(value.tag, event.step) for value in event.summary.value]
            content = content[16 + size :]
    return found


def test_the_folder_is_that_of_the_run_as_it_is(tmp_path, data, capsys):
    """Back from step 12 to 4 and on with other settings: configuration, rows, pictures, event files."""
    run = start(tmp_path, data, train={"tensorboard": True, "picture_every": 3})
    changes = ("train.epochs=1", "train.learning_rate=1e-5", "train.picture_every=4")
    assert resume(run / "checkpoint-00000004", *changes) == 0
    assert load_config(run / "config.yaml").train.learning_rate == 1e-5
    assert load_config(run / "config.yaml") == load_checkpoint(run / "checkpoint-00000012").config
    rows = read_log(run)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["learning_rate"] for row in rows] == [pytest.approx(2e-4)] * 4 + [pytest.approx(1e-5)] * 8
    pictures = [1, 3, 8, 12]
    assert sorted(path.name for path in (run / "pictures").iterdir()) == [f"{step:08d}.png" for step in pictures]
    events = scalars(run / "tensorboard")
    assert sorted(step for tag, step in events if tag == "pixel") == list(range(1, 13))
    assert sorted(step for tag, step in events if tag == "batch") == pictures
    assert names(run) == [f"checkpoint-{step:08d}" for step in (0, 4, 8, 12)]
    kept = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines() if "later step" in line]
    assert kept == [f"is of a later step; kept as later-checkpoint-{step:08d}" for step in (8, 12)]
    assert load_checkpoint(run / "later-checkpoint-00000012").state["step"] == 12


def test_the_best_model_can_be_gone_on_from(tmp_path, data, monkeypatch):
    errors = iter([0.3, 0.1, *[0.2] * STEPS])
    monkeypatch.setattr(training, "reconstruction_error", lambda *_: next(errors))
    run = start(tmp_path, data, train={"validate_every": 4, "checkpoint_every": 12, "keep_checkpoints": 1})
    assert load_checkpoint(run / "best").state["step"] == 8
    assert resume(run / "best", "train.learning_rate=1e-5") == 0
    assert [row["learning_rate"] < 1e-4 for row in read_log(run) if "pixel" in row] == [False] * 8 + [True] * 4
    assert names(run) == ["checkpoint-00000012"]
    shutil.rmtree(run / "checkpoint-00000012")
    with pytest.raises(UserError, match=f"no whole checkpoint to resume from .0 damaged.; go on from {run / 'best'}"):
        resume(run)
    assert resume(run / "best") == 0


def test_a_better_model_of_later_steps_stays_best(tmp_path, data, capsys):
    """Else the next validation, of a run that has been taken back, would replace it by a worse one."""
    run = start(tmp_path, data, train={"validate_every": 4})
    record = json.loads((run / "best" / "state.json").read_text(encoding="utf-8"))
    record["state"].update(step=8, best=1e-9)
    (run / "best" / "state.json").write_text(json.dumps(record), encoding="utf-8")
    assert resume(run / "checkpoint-00000004") == 0
    assert f"{run / 'best'}: is of step 8; it stays until a validation finds a better one" in capsys.readouterr().err
    assert load_checkpoint(run / "best").state["best"] == 1e-9


def test_a_folder_that_is_no_run_is_not_made_one(tmp_path, data):
    weights = tiny.checkpoint(tmp_path / "weights" / "best")
    with pytest.raises(UserError, match="no whole checkpoint"):
        resume(weights)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["best"]


# Runs that diverge


def remedy(error):
    """The folder that a message names behind --resume."""
    return re.search(r"by --resume (\S+) with a lower train.learning_rate", str(error.value)).group(1)


def strict(folder):
    """The rows of a log, read as JSON without NaN and Infinity."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in lines]


ABSURD = {"learning_rate": 1e10, "checkpoint_every": 1}


def assert_goes_on(run, error):
    """The remedy of the message, word for word: a finished run of finite losses."""
    assert resume(remedy(error), "train.learning_rate=1e-5") == 0
    assert strict(run)[-1]["step"] == STEPS
    assert all(math.isfinite(row["pixel"]) for row in strict(run) if "pixel" in row)


def test_a_validation_that_is_not_finite_ends_the_run(tmp_path, data, monkeypatch):
    errors = iter([0.1, math.nan, *[0.2] * STEPS])
    monkeypatch.setattr(training, "reconstruction_error", lambda *_: next(errors))
    with pytest.raises(UserError, match="step 8: not finite: validation_l1") as error:
        start(tmp_path, data, train={"validate_every": 4})
    run = tmp_path / "run"
    assert names(run) == ["checkpoint-00000000", "checkpoint-00000004"]
    assert remedy(error) == str(run / "checkpoint-00000004")
    assert "further back from checkpoint-00000000, best" in str(error.value)
    assert_goes_on(run, error)


@pytest.mark.parametrize("how", ["validated", "not validated", "last step"])
def test_weights_that_overflow_are_never_the_newest_checkpoint(tmp_path, data, how):
    changes = {"train": {**ABSURD, "validate_every": 1}}
    if how != "validated":
        shutil.rmtree(data / "test")
    if how == "last step":
        changes = {"train": {**ABSURD, "epochs": 1, "batch_size": 24, "checkpoint_every": 100}}
    with pytest.raises(UserError, match="step 1: not finite") as error:
        start(tmp_path, data, **changes)
    run = tmp_path / "run"
    assert names(run) == ["checkpoint-00000000"]
    if how != "last step":
        assert_goes_on(run, error)
        assert names(run)[-1] == f"checkpoint-{STEPS:08d}"


def test_a_checkpoint_whose_next_step_is_not_finite_does_not_count(tmp_path, data, monkeypatch):
    """As pictures can be finite where losses or gradients aren't. A lower rate wouldn't help from there."""
    original = steps.GeneratorStep.run
    poisoned = {8}

    def run_step(self, batch, deformation):
        original(self, batch, deformation)
        if len(made) in poisoned:
            self.losses["pixel"].d = math.nan

    made = []
    step = training.Trainer.step
    monkeypatch.setattr(training.Trainer, "step", lambda self, batch: made.append(step(self, batch)) or made[-1])
    monkeypatch.setattr(steps.GeneratorStep, "run", run_step)
    with pytest.raises(UserError, match="step 8: not finite: pixel; the batch is in") as error:
        start(tmp_path, data)
    run = tmp_path / "run"
    assert names(run) == ["checkpoint-00000000", "checkpoint-00000004"]
    assert load_checkpoint(run / "diverged-checkpoint-00000008").state["step"] == 8
    assert remedy(error) == str(run / "checkpoint-00000004")
    poisoned.clear()
    assert_goes_on(run, error)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path, data, monkeypatch, value):
    """The losses are finite; what the solver has made of the parameters is not saved."""
    name = "keypoints/jacobian/conv/b"
    spoil = lambda self, parameters: parameters[name].grad.fill(value)  # noqa: E731
    monkeypatch.setattr(Communicator, "average_gradients", spoil)
    with pytest.raises(UserError, match=f"step 0: not finite: {name}; the batch is in"):
        start(tmp_path, data)
    assert not list_checkpoints(tmp_path / "run")


def test_a_gradient_whose_square_is_no_number_does_not_end_the_run(tmp_path, data, monkeypatch):
    spoil = lambda self, parameters: next(iter(parameters.values())).grad.fill(1e30)  # noqa: E731
    monkeypatch.setattr(Communicator, "average_gradients", spoil)
    run = start(tmp_path, data)
    assert {row["gradient_norm"] for row in read_log(run) if "gradient_norm" in row} == {None}


def test_nothing_to_go_back_to_is_said(tmp_path, data, monkeypatch):
    monkeypatch.setattr(steps.GeneratorStep, "run", lambda self, *_: self.losses["pixel"].data.fill(math.nan))
    with pytest.raises(UserError, match="start over with a lower train.learning_rate$"):
        start(tmp_path, data)


# What is said at the start


def test_without_held_out_clips_there_is_no_best_model(tmp_path, data, capsys):
    shutil.rmtree(data / "test")
    run = start(tmp_path, data, train={"validate_every": 4})
    line = f"{data / 'test'}: not there, so nothing is validated and there will be no best/"
    assert line in capsys.readouterr().err.splitlines()
    assert not (run / "best").exists()


def test_weights_of_another_model_are_told_where_no_shape_tells(tmp_path, data, capsys):
    first = start(tmp_path, data, "first")
    start(tmp_path, data, "same", ["--init", str(first)])
    assert "trained with" not in capsys.readouterr().err
    model = {"keypoints": {"temperature": 0.2, "scale": 1}, "motion": {"variance": 0.02}}
    start(tmp_path, data, "second", ["--init", str(first)], model=model)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "trained with" in line]
    assert line == (
        f"{first}: trained with model.keypoints.scale = 0.5, now 1.0; model.keypoints.temperature = 0.1, now 0.2; "
        "model.motion.variance = 0.01, now 0.02"
    )


def test_a_changed_value_that_no_shape_shows_is_told_when_a_run_goes_on(tmp_path, data, capsys):
    run = start(tmp_path, data)
    assert resume(run, "train.epochs=2") == 0
    assert "trained with" not in capsys.readouterr().err
    assert resume(run, "train.epochs=3", "model.motion.variance=0.02") == 0
    assert ": trained with model.motion.variance = 0.01, now 0.02\n" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["model.generator.copy=true", "model.num_keypoints=4"])
def test_another_model_is_refused_where_a_run_goes_on(tmp_path, data, change):
    newest = list_checkpoints(start(tmp_path, data))[-1]
    with pytest.raises(UserError, match=rf"{newest}: {change.split('=')[0]} can't change .*--init {newest}$"):
        resume(newest.parent, change)


@pytest.mark.parametrize("first", [False, True])
def test_another_stage_is_refused_where_a_run_goes_on_and_begins_with_init(tmp_path, data, first):
    run = start(tmp_path, data, train={"discriminator": first})
    newest = list_checkpoints(run)[-1]
    with pytest.raises(UserError, match=rf"{newest}: .*train\.discriminator.*--init {newest}$"):
        resume(run, f"train.discriminator={not first}")
    start(tmp_path, data, "second", ["--init", newest], train={"discriminator": not first})


def clips_of(folder, *lengths):
    """Clips of so many frames: stacked pictures, videos and folders in turn."""
    for i, length in enumerate(lengths):
        frames = tiny.frames(length, seed=i)
        if i % 3 == 0:
            write_clip(folder / f"{i}.png", frames)
        elif i % 3 == 1:
            folder.mkdir(exist_ok=True)
            imageio.mimwrite(folder / f"{i}.mp4", list(frames), fps=25, macro_block_size=1)
        else:
            for number, frame in enumerate(frames):
                write_clip(folder / str(i) / f"{number}.png", [frame])
    return find_clips(folder)


def test_short_clips_are_counted(tmp_path, capsys):
    clips = clips_of(tmp_path / "clips", 4, 4, 4, 3, 1, 2, 9)
    assert [frames_up_to(clip, 4) for clip in clips] == [4, 4, 4, 3, 1, 2, 4]
    check_lengths(clips, 3)
    assert capsys.readouterr().err.startswith("3 of 7 training clips have fewer than 4 frames: ")
    check_lengths(clips, 1)
    assert capsys.readouterr().err.startswith("1 of 7 training clips have fewer than 2 frames: ")
    check_lengths(clips[:3], 3)
    assert not capsys.readouterr().err


def test_broken_clips_are_not_short_ones(tmp_path, capsys):
    clips = clips_of(tmp_path / "clips", 4, 4)
    (tmp_path / "clips" / "1.mp4").write_bytes(b"broken")
    check_lengths(clips, 3)
    assert not capsys.readouterr().err


def test_single_pictures_are_refused_and_a_folder_of_them_goes(tmp_path, data):
    shutil.rmtree(data / "train")
    clips_of(data / "train", 1, 1, 1)
    with pytest.raises(UserError, match="train: all clips are single pictures, .* a folder of their own"):
        start(tmp_path, data)
    assert not (tmp_path / "run").exists()
    (data / "train" / "shot").mkdir()
    (data / "train" / "0.png").rename(data / "train" / "shot" / "0.png")
    (data / "train" / "2" / "0.png").rename(data / "train" / "shot" / "1.png")
    shutil.rmtree(data / "train" / "2")
    start(tmp_path, data)


@pytest.mark.parametrize("lacking", ["solver", "position"])
def test_a_checkpoint_that_can_not_be_resumed_starts_a_run(tmp_path, data, lacking):
    run = start(tmp_path, data)
    weights = tiny.checkpoint(tmp_path / "weights")
    shutil.rmtree(run / "checkpoint-00000012")
    shutil.copytree(weights, run / "checkpoint-00000012")
    if lacking == "solver":
        record = json.loads((run / "checkpoint-00000012" / "state.json").read_text(encoding="utf-8"))
        record["state"] = load_checkpoint(run / "checkpoint-00000008").state
        (run / "checkpoint-00000012" / "state.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match="start from it with --init"):
        resume(run, options=["--data", str(data)])
    begun = start(tmp_path, data, "second", ["--init", str(run / "checkpoint-00000012")])
    parameters = load_checkpoint(begun / "checkpoint-00000000").parameters
    for name, value in load_checkpoint(weights).parameters.items():
        np.testing.assert_array_equal(parameters[name], value, err_msg=name)
