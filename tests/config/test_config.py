"""Configuration: strict loading, parents, overrides, and that what is written reads back."""

from pathlib import Path

import pytest
import tiny
import yaml

from mrfomm.config import Config, check_trainable, config_from_dict, config_to_yaml, load_config
from mrfomm.errors import UserError

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.yaml"))


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_written_configuration_reads_back(tmp_path):
    config = tiny.config(train={"seed": 7, "learning_rate": 0.25})
    assert load_config(write(tmp_path / "c.yaml", config_to_yaml(config))) == config


def test_parent_and_overrides(tmp_path):
    write(tmp_path / "base.yaml", "train: {epochs: 3, seed: 1}\nmodel: {num_keypoints: 7}")
    child = write(tmp_path / "child.yaml", "parent: base.yaml\ntrain: {seed: 2}")
    config = load_config(child, ["train.batch_size=8", "model.fusion.mode=element", "train.learning_rate=1e-3"])
    assert (config.train.epochs, config.train.seed, config.train.batch_size) == (3, 2, 8)
    assert (config.model.num_keypoints, config.model.fusion.mode, config.train.learning_rate) == (7, "element", 1e-3)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("train: {epoch: 3}", "unknown key train.epoch"),
        ("model: {motion: {widht: 3}}", "unknown key model.motion.widht"),
        ("train: {epochs: three}", "train.epochs must be a whole number"),
        ("train: {epochs: true}", "train.epochs must be a whole number"),
        ("train: {epochs: 0}", "train.epochs must be at least 1"),
        ("train: {learning_rate: .nan}", "train.learning_rate must be a finite number"),
        ("data: {id_sampling: 1}", "data.id_sampling must be true or false"),
        ("data: {num_references: 0}", "data.num_references must be at least 1"),
        ("loss: {scales: 1}", "loss.scales must be a list"),
        ("model: {fusion: {mode: best}}", "model.fusion.mode must be one of"),
        ("model: {fusion: {kernel: 4}}", "model.fusion.kernel must be a positive odd number"),
        ("model: {image_size: 100}", "model.keypoints.blocks"),
        ("model: 3", "model must be a section"),
        ("- 1", "not a mapping"),
        ("a: [", "not valid YAML"),
        ("parent: none.yaml", "none.yaml: no such file"),
        ("parent: c.yaml", "leads back to itself"),
    ],
)
def test_errors_name_the_key(tmp_path, text, named):
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path / "c.yaml", text))
    assert named in str(error.value)


@pytest.mark.parametrize("override", ["train.batch_size", "=3", "train.batch_size=[", "train.seed.x=1"])
def test_bad_overrides(tmp_path, override):
    path = write(tmp_path / "c.yaml", "train: {seed: 1}")
    with pytest.raises(UserError, match="--set"):
        load_config(path, [override])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations(path):
    check_trainable(load_config(path), path)
    assert path.read_text(encoding="utf-8").startswith("#"), "the head comment gives command, hardware and score"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss": {"perceptual_network": "vgg19", "perceptual": 1.0, "scales": [1, 0.25]}}, "loss.scales"),
        ({"loss": {"perceptual_network": "vgg19", "perceptual": 0.0, "scales": [1, 0.25]}}, None),
        ({"train": {"discriminator": True}, "model": {"discriminator": {"blocks": 4}}}, "model.discriminator.blocks"),
        ({"train": {"discriminator": True}, "model": {"discriminator": {"blocks": 3}}}, None),
        ({"train": {"discriminator": False}, "model": {"discriminator": {"blocks": 4}}}, None),
    ],
)
def test_what_stands_in_the_way_of_training_is_named(changes, named):
    """At 32 pixels: VGG19 needs 16, four blocks of the discriminator 53, three 25; what isn't used hinders nobody."""
    if named:
        with pytest.raises(UserError, match=named):
            check_trainable(tiny.config(**changes), "tiny")
    else:
        check_trainable(tiny.config(**changes), "tiny")


def test_paper_protocol():
    """FACTS: K = 3, batch 32, 100 epochs then 50 with discriminator, lr 2e-4, x 0.1 at epochs 60 and 90."""
    folder = CONFIGS[0].parent
    first, second = load_config(folder / "vox-256.yaml"), load_config(folder / "vox-adv-256.yaml")
    assert first.data.num_references == 3
    assert (first.train.batch_size, first.train.epochs, first.train.milestones) == (32, 100, (60, 90))
    assert (first.train.learning_rate, first.train.discriminator) == (2e-4, False)
    assert (second.train.epochs, second.train.discriminator) == (50, True)
    assert load_config(folder / "vox-256-fomm.yaml").data.num_references == 1


def test_defaults_are_vox_256():
    shipped = load_config(CONFIGS[0].parent / "vox-256.yaml")
    assert shipped.model == Config().model


def test_yaml_is_plain():
    values = yaml.safe_load(config_to_yaml(tiny.config()))
    assert config_from_dict(values, "again") == tiny.config()
