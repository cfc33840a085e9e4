"""Processes that don't have the same are refused; with real ones in test_several_processes.py and test_hosts.py."""

import pytest
import tiny

from mrfomm.commands import train
from mrfomm.config import leaves
from mrfomm.data.clips import find_clips
from mrfomm.errors import UserError
from mrfomm.model.checkpoint import load_checkpoint
from mrfomm.runtime.processes import Communicator
from mrfomm.training.agreement import agree, versions
from mrfomm.training.validation import held_out


class Among(Communicator):
    """Process 0 of several; ``others`` are the hosts and facts of the rest."""

    def __init__(self, *others):
        self.others = others

    def gather(self, value):
        return [value, *self.others]


def test_the_same_is_accepted():
    facts = {"a": 1, "b": (1, 2.5)}
    agree(Communicator(), facts)
    agree(Among(("beta", dict(facts)), ("gamma", dict(facts))), facts)


def test_what_differs_is_named_with_its_host(monkeypatch):
    monkeypatch.setattr("os.uname", lambda: type("Names", (), {"nodename": "alpha"}))
    with pytest.raises(UserError, match=r"^b: 2 on alpha \(rank 0\), but 3 on gamma \(rank 2\);"):
        agree(Among(("beta", {"a": 1, "b": 2}), ("gamma", {"a": 1, "b": 3})), {"a": 1, "b": 2})


def test_versions_are_of_the_program_and_nnabla():
    assert versions() == versions()
    assert set(versions()) == {"mrfomm's version", "nnabla's version"}


def test_settings_are_all_keys_and_the_weights(tmp_path):
    config = tiny.config()
    facts = train.settings(config, None)
    assert {key for key, _, _ in leaves(config)} == facts.keys() - {"weights to begin with"}
    first = train.settings(config, load_checkpoint(tiny.checkpoint(tmp_path / "a")))
    tiny.checkpoint(tmp_path / "a", model={"num_keypoints": 4})  # another model at the same place
    second = train.settings(config, load_checkpoint(tmp_path / "a"))
    assert len({facts["weights to begin with"] for facts in (facts, first, second)}) == 3


def test_material_is_clips_held_out_clips_and_perceptual_weights(tmp_path):
    """Each differs by itself if a file of it does."""
    weights = tmp_path / "vgg19.h5"
    loss = {"perceptual_network": "vgg19", "perceptual_weights": str(weights)}
    config = tiny.config(loss=loss)
    found = [_material(tmp_path, config, weights)]
    for changed in ("train/a.png", "test/c.png", "vgg19.h5"):
        found.append(_material(tmp_path, config, weights, changed))
        assert sum(found[0][name] != value for name, value in found[-1].items()) == 1
    assert len({str(facts) for facts in found}) == 4


def _material(folder, config, weights, changed=""):
    weights.write_text("other" if changed == "vgg19.h5" else "some")
    for name in ("train/a.png", "train/b.png", "test/c.png"):
        tiny.clip(folder / name, seed=name == changed)
    loader = train.make_loader(config, find_clips(folder / "train"), Communicator())
    return train.material(config, loader, held_out(folder / "test", config))
