"""What train.py tells: presets, the block at the start, the first picture, the command that goes on."""

import os
import re
import shlex
import signal

import pytest
import tiny

from mrfomm import bundled
from mrfomm.commands import reconstruct, train
from mrfomm.config import config_to_yaml, load_config
from mrfomm.errors import UserError
from mrfomm.media.writing import open_sink
from mrfomm.model.checkpoint import load_checkpoint
from mrfomm.training import trainer as training
from mrfomm.training.run_folder import resuming_command
from mrfomm.training.watch import read_log


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with tiny.yaml and data: stacked frames, a video, a folder; and a clip to test with."""
    (tmp_path / "tiny.yaml").write_text(config_to_yaml(tiny.config(data={"num_repeats": 3})), encoding="utf-8")
    for path in (tmp_path / "data" / "train" / "a#0.png", tmp_path / "data" / "test" / "c#0.png"):
        tiny.clip(path)
    for name in ("a#1.mp4", "b#0"):
        with open_sink(tmp_path / "data" / "train" / name, 25) as sink:
            for frame in tiny.frames(6, size=48):
                sink.write(frame)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*options):
    return train.main(["--config", "tiny.yaml", "--data", "data", "--output", "run", "--context", "cpu", *options])


def test_the_block_at_the_start(place, capsys):
    assert run("--set", "train.epochs=2") == 0
    lines = dict(re.findall(r"^(\w+) {2,}(.*)$", capsys.readouterr().err, re.MULTILINE))
    weights = load_checkpoint("run").parameters
    trained = sum(weights[name].size for name in weights if not name.endswith(("/mean", "/var", "/u")))
    assert lines["data"] == "3 clips of 2 people, 32 to 48 pixels; 1 held out"
    assert lines["model"] == f"32 pixels, K = 2, fusion patch; {trained / 1e6:.2f} million parameters"
    assert lines["steps"] == "6 of 2 samples, in 2 epochs"
    assert lines["folder"] == "run"
    assert lines["device"].startswith("CPU, ")
    assert train.main(["--resume", "run", "--context", "cpu", "--set", "train.epochs=3"]) == 0
    told = capsys.readouterr().err
    assert "9 of 2 samples, in 3 epochs; 6 are done" in told
    assert re.search(r"epoch 3/3: +67%.* 6/9 ", told)  # of the whole run, and so is the time left


def test_one_of_each_is_told_in_the_singular(place, monkeypatch, capsys):
    for name in ("a#0.png", "a#1.mp4"):
        (place / "data" / "train" / name).unlink()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run("--set", "train.epochs=1", "data.num_repeats=6") == 0
    told = capsys.readouterr().err
    assert "1 clip of 1 person, " in told
    assert "CPU, 1 thread\n" in told
    assert "in 1 epoch\n" in told


def test_pictures_larger_than_the_clips_are_told_once(place, capsys):
    larger = "model.image_size = 64 is larger than the clips, of which some have 32 pixels"
    assert run("--set", "model.image_size=64", "train.epochs=1") == 0
    assert capsys.readouterr().err.count(larger) == 1
    assert train.main(["--resume", "run", "--context", "cpu", "--set", "train.epochs=1"]) == 0


def test_clips_that_lose_their_edges_are_told(place, capsys):
    """Their middle square is taken, in training as in reconstruct.py."""
    assert run("--set", "train.epochs=1") == 0
    assert "middle square" not in capsys.readouterr().err
    with open_sink(place / "data" / "test" / "d#0.mp4", 25) as sink:
        for frame in tiny.frames(6, size=48):
            sink.write(frame[:, 8:40])
    tiny.checkpoint(place / "weights")
    assert reconstruct.main(["--weights", "weights", "--data", "data", "--context", "cpu"]) == 0
    line = "data/{}/d#0.mp4: 32x48 pixels; of clips that aren't square, the middle square is taken"
    assert capsys.readouterr().err.count(line.format("test")) == 1
    (place / "data" / "test" / "d#0.mp4").rename(place / "data" / "train" / "d#0.mp4")
    assert train.main(["--config", "tiny.yaml", "--data", "data", "--output", "cut", "--context", "cpu"]) == 0
    assert capsys.readouterr().err.count(line.format("train")) == 1


def test_the_first_step_has_a_picture_and_the_log_a_total(place):
    assert run("--set", "train.epochs=1", "loss.equivariance_value=7") == 0
    assert [path.name for path in (place / "run" / "pictures").iterdir()] == ["00000001.png"]
    for row in read_log("run"):
        parts = [row[name] for name in ("pixel", "equivariance_value", "equivariance_jacobian")]
        assert row["loss"] == pytest.approx(sum(parts))


def test_ctrl_c_tells_the_command_that_goes_on(place, monkeypatch, capfd):
    original = training.Trainer.step

    def step(self, batch):
        if self.progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(training.Trainer, "step", step)
    assert run() == 130
    told = capfd.readouterr().err.splitlines()
    assert told.count("stopping after this step, which is saved; Ctrl-C again stops at once") == 1
    words = shlex.split(told[told.index("stopped; step 2 is saved, go on with --resume run") + 1])
    assert words[-2:] == ["--resume", "run"]
    assert train.main([*words[-2:], "--context", "cpu"]) == 0
    assert load_checkpoint("run").state["step"] == 6


def test_the_command_names_what_must_be_named(monkeypatch):
    plugged = tiny.config(model={"fusion": {"mode": "my:own"}})
    monkeypatch.setattr("sys.argv", ["train.py"])
    words = shlex.split(resuming_command(plugged, "a run", 4))
    assert words[:3] == ["mpirun", "-n", "4"]
    assert words[words.index("--resume") :] == ["--resume", "a run", "--set", "model.fusion.mode=my:own"]


def test_presets_have_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {path.stem for path in bundled.CONFIGS.glob("*.yaml")}
    assert train.main(["--config", "list"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in told} == names
    assert all(re.fullmatch(r"\S+ +[A-Z].{10,}\.", line) for line in told)
    for name in names:
        assert load_config(train.config_path(name)) == load_config(bundled.CONFIGS / f"{name}.yaml")
    (tmp_path / "vox-256").write_text("model: {num_keypoints: 3}")
    assert load_config(train.config_path("vox-256")).model.num_keypoints == 3  # a file comes first
    for name, problem in (("vox-512", "no preset; --config list"), ("vox-512.yaml", "vox-512.yaml: no such file")):
        with pytest.raises(UserError, match=problem):
            train.main(["--config", name, "--context", "cpu"])


def test_missing_vgg19_names_key_command_and_the_other_way(place):
    with pytest.raises(UserError) as caught:
        train.main(["--config", "vox-256", "--data", "data", "--context", "cpu", "--set", "data.workers=0"])
    for part in (
        "loss.perceptual_weights: ",
        "/weights/vgg19.h5",
        "python -m mrfomm.convert vgg19-dcbb9e9d.pth -o ",
        "--set loss.perceptual_network=alexnet",
    ):
        assert part in str(caught.value)
