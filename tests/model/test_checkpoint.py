"""Checkpoints: round trip, damage, atomic replacement."""

import errno
import json
import re

import numpy as np
import pytest
import tiny

from mrfomm.errors import UserError
from mrfomm.model.checkpoint import (
    ParameterTree,
    check_arrays,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    read_h5,
    save_checkpoint,
    save_parameters,
)
from mrfomm.training.run_folder import load_resumable, remove_old_checkpoints


@pytest.fixture
def run(tmp_path):
    """A run folder with checkpoints of steps 1 and 2."""
    for step in (1, 2):
        values = {"a/W": np.full((2, 3), step, np.float32)}
        save_checkpoint(tmp_path / f"checkpoint-{step:08d}", tiny.config(), values, {"step": step})
    return tmp_path


def test_round_trip(tmp_path):
    tree = tiny.random_tree(tiny.config().model)
    save_checkpoint(tmp_path / "c", tiny.config(), tree.all(), {"step": 3})
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.config == tiny.config()
    assert loaded.state == {"step": 3}
    assert loaded.parameters.keys() == tree.all().keys()
    for name, variable in tree.all().items():
        np.testing.assert_array_equal(loaded.parameters[name], variable.d)


@pytest.mark.parametrize("name", ["parameters.h5", "config.yaml", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damage_is_named_and_stepped_over(run, capsys, name, damage):
    path = run / "checkpoint-00000002" / name
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        middle = len(data) // 2
        path.write_bytes(
            data[:middle] if damage == "truncate" else data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        )
    # The bit in the middle of state.json is in another file's checksum, which that file then seems to fail.
    named = "config.yaml|parameters.h5|state.json" if (name, damage) == ("state.json", "flip") else name
    with pytest.raises(UserError, match=named):
        load_checkpoint(path.parent)
    assert load_resumable(run).state == {"step": 1}
    if (name, damage) != ("state.json", "delete"):  # a folder without it is no checkpoint
        assert re.search(named, capsys.readouterr().err)


def test_no_whole_checkpoint(run):
    for folder in list_checkpoints(run):
        (folder / "parameters.h5").write_bytes(b"")
    with pytest.raises(UserError, match="no whole checkpoint"):
        load_resumable(run)


def test_newest_and_best_are_found(run):
    assert find_checkpoint(run).name == "checkpoint-00000002"
    save_checkpoint(run / "best", tiny.config(), {"a/W": np.zeros(1, np.float32)})
    assert find_checkpoint(run).name == "best"
    assert find_checkpoint(run / "checkpoint-00000001").name == "checkpoint-00000001"


def test_old_ones_go(run):
    remove_old_checkpoints(run, 1)
    assert [folder.name for folder in list_checkpoints(run)] == ["checkpoint-00000002"]


class FullDisk:
    def get_states(self):
        raise OSError(errno.ENOSPC, "disk full")


def test_failed_writing_keeps_the_old_one(run):
    folder = run / "checkpoint-00000002"
    with pytest.raises(UserError, match="disk full"):
        save_checkpoint(folder, tiny.config(), {"a/W": np.zeros(1)}, {"step": 9}, {"generator": FullDisk()})
    assert load_checkpoint(folder).state == {"step": 2}
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_state_paths_can_not_escape(run):
    path = run / "checkpoint-00000002" / "state.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../outside"] = {"size": 1, "sha256": ""}
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="missing"):
        load_checkpoint(path.parent)


def test_missing_paths(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_checkpoint(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="mrfomm.convert"):
        load_checkpoint(tmp_path / "file")


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({}, "missing"),
        ({"a": np.zeros(2), "b": np.zeros(1)}, "has no place"),
        ({"a": np.zeros(3)}, r"shape \(3,\)"),
        ({"a": np.array([1, np.nan])}, "aren't finite"),
    ],
)
def test_arrays_must_fit(arrays, problem):
    with pytest.raises(UserError, match=problem):
        check_arrays(arrays, {"a": (2,)}, "here")


def test_trees_are_separate():
    first, second = (tiny.random_tree(tiny.config().model, seed) for seed in (0, 1))
    name = next(iter(first.all()))
    assert not np.array_equal(first.all()[name].d, second.all()[name].d)
    assert ParameterTree().all() == {}
    assert all(not key.startswith("generator") for key in first.trainable("motion/"))


def test_save_parameters(tmp_path):
    save_parameters(tmp_path / "deep" / "w.h5", {"x/W": np.arange(3, dtype=np.float32)})
    np.testing.assert_array_equal(read_h5(tmp_path / "deep" / "w.h5")["x/W"], [0, 1, 2])
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="can't write"):
        save_parameters(tmp_path / "file" / "w.h5", {"x": np.zeros(1)})
