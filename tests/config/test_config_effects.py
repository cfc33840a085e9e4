"""No configuration key is ignored: each one, changed alone, changes what a short run leaves behind."""

import dataclasses
import json

import numpy as np
import pytest
import tiny

from mrfomm.commands import train
from mrfomm.config import Config, config_to_yaml
from mrfomm.data import loader
from mrfomm.errors import UserError
from mrfomm.heads.dataset import write_labels
from mrfomm.model.checkpoint import list_checkpoints
from mrfomm.runtime.processes import Communicator
from mrfomm.training import watch
from mrfomm.training.run_folder import load_resumable

# A run in which every part takes part: two steps, stage 2, perceptual loss, all pictures and validations.
EVERYTHING = {
    "model": {"fusion": {"mode": "patch"}, "discriminator": {"keypoint_input": True}},
    "data": {"num_references": 2, "num_repeats": 2, "workers": 0},
    "loss": {
        "perceptual_network": "alexnet",
        "pixel": 5.0,
        "scales": [1],
        "separation": 1.0,
        "separation_distance": 2.0,
        "warp": 1.0,
    },
    "train": {
        "discriminator": True,
        "epochs": 2,
        "batch_size": 4,
        "milestones": [1],
        "log_every": 1,
        "picture_every": 1,
        "checkpoint_every": 1,
        "validate_every": 1,
        "keep_checkpoints": 9,
    },
}

CHANGES = {
    "model.image_size": 64,
    "model.num_keypoints": 4,
    "model.keypoints.expansion": 5,
    "model.keypoints.max_features": 7,
    "model.keypoints.blocks": 1,
    "model.keypoints.scale": 1.0,
    "model.keypoints.temperature": 0.2,
    "model.motion.expansion": 5,
    "model.motion.max_features": 7,
    "model.motion.blocks": 1,
    "model.motion.scale": 0.25,
    "model.motion.variance": 0.02,
    "model.generator.expansion": 3,
    "model.generator.max_features": 7,
    "model.generator.down_blocks": 2,
    "model.generator.bottleneck_blocks": 2,
    "model.generator.copy": True,
    "model.fusion.mode": "element",
    "model.fusion.kernel": 1,
    "model.discriminator.expansion": 5,
    "model.discriminator.max_features": 7,
    "model.discriminator.blocks": 1,
    "model.discriminator.spectral_norm": False,
    "model.discriminator.keypoint_input": False,
    "data.num_references": 3,
    "data.id_sampling": False,
    "data.num_repeats": 4,
    "data.wide_pairs": 1.0,
    "data.references": "spread",
    "data.twins": 1.0,
    "data.augmentation.time_flip": False,
    "data.augmentation.horizontal_flip": False,
    "data.augmentation.jitter_brightness": 0.3,
    "data.augmentation.jitter_contrast": 0.3,
    "data.augmentation.jitter_saturation": 0.3,
    "data.augmentation.jitter_hue": 0.3,
    "loss.perceptual_network": "none",
    "loss.perceptual": 1.0,
    "loss.pixel": 1.0,
    "loss.scales": [1, 1],
    "loss.equivariance_value": 1.0,
    "loss.equivariance_jacobian": 1.0,
    "loss.separation": 2.0,
    "loss.separation_distance": 3.0,
    "loss.warp": 2.0,
    "loss.tps_sigma_affine": 0.1,
    "loss.tps_sigma": 0.1,
    "loss.tps_points": 3,
    "loss.adversarial": 2.0,
    "loss.feature_matching": 1.0,
    "train.seed": 1,
    "train.epochs": 1,
    "train.batch_size": 2,
    "train.learning_rate": 1e-3,
    "train.milestones": [],
    "train.discriminator": False,
    "train.log_every": 2,
    "train.picture_every": 9,
    "train.checkpoint_every": 9,
    "train.validate_every": 2,
    "train.validation_clips": 1,
    "train.keep_checkpoints": 1,
    "train.tensorboard": True,
}
TESTED_BELOW = {
    "data.root",
    "data.about",
    "data.workers",
    "data.max_broken",
    "loss.perceptual_weights",
    "train.patience",
}


def keys(node, prefix=""):
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            yield from keys(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name


@pytest.fixture(scope="module", autouse=True)
def _without_curves():
    """Drawing takes most of so short a run; test_watch tests it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "draw_curves", lambda rows, path: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, seed in (("train/a#0", 0), ("train/a#1", 1), ("train/b#0", 2), ("test/c#0", 3), ("test/d#0", 4)):
        for path, shift in ((folder / f"{name}.png", 0), (folder / "twins" / f"{name}.png", 5)):
            tiny.clip(path, seed + shift)
        write_labels(folder / "labels" / f"{name}.csv", 40 * np.random.default_rng(seed).normal(size=(6, 3)))
    return folder


def run(folder, data, *overrides):
    folder.mkdir(parents=True)
    (folder / "c.yaml").write_text(config_to_yaml(tiny.config(**EVERYTHING)), encoding="utf-8")
    where = ["--config", str(folder / "c.yaml"), "--data", str(data), "--output", str(folder / "run")]
    options = ["--set", *overrides] if overrides else []
    assert train.main([*where, "--context", "cpu", *options]) == 0
    return fingerprint(folder / "run")


def fingerprint(folder):
    """All that a run leaves, without times and without the configuration itself."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    names = sorted(str(path.relative_to(folder)).split("events")[0] for path in folder.rglob("*"))
    checkpoint = load_resumable(folder)
    parameters = {name: value.tobytes() for name, value in checkpoint.parameters.items()}
    return [{**row, "time": 0} for row in rows], names, [path.name for path in list_checkpoints(folder)], parameters


@pytest.fixture(scope="module")
def baseline(data, tmp_path_factory):
    return run(tmp_path_factory.mktemp("baseline") / "x", data)


def test_every_key_is_listed():
    assert set(keys(Config())) == set(CHANGES) | TESTED_BELOW


def test_the_baseline_repeats_itself(data, baseline, tmp_path):
    """Without this, any noise would pass for an effect."""
    assert run(tmp_path / "x", data) == baseline


@pytest.mark.parametrize("key", CHANGES)
def test_key_has_an_effect(key, data, baseline, tmp_path):
    assert run(tmp_path / "x", data, f"{key}={json.dumps(CHANGES[key])}") != baseline


def test_root(data, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        run(tmp_path / "x", tmp_path / "nowhere")


def test_about(data, tmp_path):
    run(tmp_path / "x", data, "data.about=talking blobs", "train.epochs=1", "train.milestones=[]")
    assert load_resumable(tmp_path / "x" / "run").state["trained_on"] == "talking blobs, 32x32 pixels"


def test_workers(data, tmp_path, monkeypatch):
    """Workers change no number, so the effect is that they are started."""
    started = []
    original = loader.WorkerPool.__init__

    def start(self, maker, count, *rest):
        started.append(count)
        original(self, maker, count, *rest)

    monkeypatch.setattr(loader.WorkerPool, "__init__", start)
    run(tmp_path / "x", data, "data.workers=1")
    assert started == [1]


def test_max_broken(data, tmp_path):
    broken = tmp_path / "data"
    for path in data.rglob("*.png"):
        (broken / path.relative_to(data)).parent.mkdir(parents=True, exist_ok=True)
        (broken / path.relative_to(data)).write_bytes(path.read_bytes())
    (broken / "train" / "b#0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="broken"):
        run(tmp_path / "x", broken, "data.max_broken=0.1")
    run(tmp_path / "y", broken, "data.max_broken=0.5")


def test_perceptual_weights(data, tmp_path):
    with pytest.raises(UserError, match="none.h5"):
        run(tmp_path / "x", data, "loss.perceptual_network=vgg19", "loss.perceptual_weights=none.h5")


def test_patience(data, tmp_path, monkeypatch):
    """A single process waits for nobody; what several do with it is in test_several_processes.py."""
    patience, told = [], []
    monkeypatch.setattr(Communicator, "watch", lambda self, seconds: patience.append(seconds))
    monkeypatch.setattr(Communicator, "doing", lambda self, what: told.append(what))
    run(tmp_path / "x", data, "train.patience=7", "train.epochs=1")
    assert patience == [7]
    saving, validating = "saving step 1", "the validation after step 1"
    assert told == ["saving step 0", "step 1", validating, saving, saving, "step 2", saving]
