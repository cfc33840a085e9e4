"""Saving a checkpoint: killed at every change it makes to the disk, and on disks that are full."""

import contextlib
import os
import resource
import signal
import subprocess
import traceback

import nnabla as nn
import nnabla.solvers as S
import numpy as np
import pytest
import tiny
from train_and_die import die_at

from mrfomm.errors import UserError
from mrfomm.model.checkpoint import (
    list_checkpoints,
    read_h5,
    save_checkpoint,
    save_parameters,
    verify_checkpoint,
    write_h5,
    write_states,
)
from mrfomm.training.run_folder import load_resumable, remove_old_checkpoints, tidy
from mrfomm.training.watch import RunLog

PAGE = 4096


@pytest.fixture(scope="module")
def solver():
    """Adam on a few parameters, 200 kB of states."""
    rng = np.random.default_rng(0)
    solver = S.Adam(1e-3)
    shapes = {"a/W": (64, 64, 3, 2), "a/b": (64,)}
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    solver.set_parameters({name: nn.Variable.from_numpy_array(value) for name, value in values.items()})
    return solver


def save(run, name, step, solver):
    """A checkpoint with the step in its numbers."""
    values = {name: variable.d + step for name, variable in solver.get_parameters().items()}
    save_checkpoint(run / name, tiny.config(), values, {"step": step}, {"generator": solver})


def save_like_a_run(run, step, solver):
    """What a run does after a validation that beat the best."""
    save(run, "best", step, solver)
    save(run, f"checkpoint-{step:08d}", step, solver)
    remove_old_checkpoints(run, 2)


def visible(run):
    return [path for path in sorted(run.iterdir()) if not path.name.startswith(".")]


def killed_child(function):
    """Run a function in a forked child; returns whether it was killed."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            function()
            os._exit(0)
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_a_kill_at_any_change_leaves_whole_checkpoints(tmp_path, solver):
    """At each of the changes that saving makes: all that stands under a final name is whole, nothing old is lost."""
    kills = 0
    for number in range(1, 1000):
        run = tmp_path / str(number)
        for step in (1, 2):
            save_like_a_run(run, step, solver)

        def save_and_die(number=number, run=run):
            die_at(number, run)
            save_like_a_run(run, 3, solver)

        if not killed_child(save_and_die):
            break
        kills += 1
        for folder in visible(run):
            verify_checkpoint(folder)
        assert len(list_checkpoints(run)) >= 2
        assert load_resumable(run).state["step"] in (2, 3)
        tidy(run)
        assert {path.name for path in run.iterdir()} == {"best", *(path.name for path in list_checkpoints(run))}
        assert verify_checkpoint(run / "best")["state"]["step"] in (2, 3)
        save_like_a_run(run, 4, solver)  # and the run goes on
        assert [path.name[-1] for path in visible(run)] in (["t", "2", "4"], ["t", "3", "4"])
    assert kills > 20
    assert load_resumable(run).state["step"] == 3


def test_states_are_written_as_nnabla_writes_them(tmp_path, solver):
    for name, parameter in solver.get_parameters().items():
        parameter.g = np.random.default_rng(len(name)).normal(size=parameter.shape)
    solver.update()
    write_states(tmp_path / "ours.h5", solver)
    solver.save_states(str(tmp_path / "theirs.h5"))
    ours, theirs = (read_h5(tmp_path / f"{name}.h5") for name in ("ours", "theirs"))
    assert {name: array.tobytes() for name, array in ours.items()} == {n: a.tobytes() for n, a in theirs.items()}
    assert ours["a/W/t"] == 1
    restored = S.Adam(1e-3)
    restored.set_parameters(solver.get_parameters())
    restored.load_states(str(tmp_path / "ours.h5"))
    np.testing.assert_array_equal(restored.get_states()["a/W"].pstate["var"].d, theirs["a/W/var"])


@contextlib.contextmanager
def files_of_at_most(size):
    """Context manager in which no file can grow beyond a size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 100, 1000, 50_000, 150_000])
def test_files_that_may_not_grow(tmp_path, solver, size):
    """For users without a small disk: the system refuses to write beyond a size."""
    save_like_a_run(tmp_path, 1, solver)
    with files_of_at_most(size), pytest.raises(UserError, match=r"00000002: can't write there \(File too large\)"):
        save(tmp_path, "checkpoint-00000002", 2, solver)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "checkpoint"))] == [
        "checkpoint-00000001"
    ]
    assert load_resumable(tmp_path).state["step"] == 1


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a disk of some bytes; only root can."""
    mounted = []

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True)
        if done.returncode:
            pytest.skip(f"can't mount a small disk: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def leave(disk, room):
    """Fill a disk up to ``room`` bytes."""
    filler = disk / ".filler"
    filler.unlink(missing_ok=True)
    filler.write_bytes(bytes(max(0, os.statvfs(disk).f_bavail * PAGE - room)))


def test_full_disk_at_any_byte(disk, solver):
    """Whatever the room: a whole checkpoint or one clear line, and the earlier ones stay."""
    folder = disk(1 << 20)
    save_like_a_run(folder, 1, solver)
    used = sum(path.stat().st_size for path in (folder / "checkpoint-00000001").iterdir())
    refusals = []
    for room in range(0, used + 16 * PAGE, 4 * PAGE):
        leave(folder, room)
        try:
            save(folder, "checkpoint-00000002", 2, solver)
        except UserError as error:
            refusals.append(str(error))
            assert [path.name for path in visible(folder)] == ["best", "checkpoint-00000001"]
            assert not list(folder.glob(".*.partial"))
            verify_checkpoint(folder / "checkpoint-00000001")
        else:
            break
    assert len(refusals) > 10
    problem = "can't write there (No space left on device); make room or choose another place"
    assert set(refusals) == {f"{folder / 'checkpoint-00000002'}: {problem}"}
    assert read_h5(folder / "checkpoint-00000002" / "solver_generator.h5").keys()
    assert load_resumable(folder).state["step"] == 2


def test_full_disk_and_one_file(disk):
    folder = disk(PAGE * 16)
    write_h5(folder / "w.h5", {"x": np.zeros(10)})
    leave(folder, 0)
    with pytest.raises(UserError, match="w.h5"):
        save_parameters(folder / "w.h5", {"x": np.zeros(10_000)})
    assert read_h5(folder / "w.h5")["x"].shape == (10,)


def test_full_disk_and_the_log(disk):
    """Log, picture and curves: an error that names the file; what stood there stays."""
    folder = disk(PAGE * 64)
    log = RunLog(folder)
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    log.write(1, 0, {"pixel": 0.5})
    log.picture(1, image)
    before = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
    leave(folder, 0)
    with pytest.raises(UserError, match=r"00000002.png: can't write there .*make room"):
        log.picture(2, image)
    with pytest.raises(UserError, match=r"log.jsonl: can't write there .*make room"):
        log.write(2, 0, {"pixel" * PAGE: 0.5})
    with pytest.raises(UserError, match=r"log.jsonl: can't write there .*make room"):
        log.rewind(1)
    assert {path.name: path.read_bytes() for path in folder.rglob("*.png")} == before


def test_processes_that_save_into_one_folder(tmp_path):
    """None is hindered by the others, and the checkpoint that stays is one of theirs, whole."""
    parameters = {"a/W": np.zeros(1000, np.float32)}

    def save_often(number):
        for step in range(40):
            save_checkpoint(tmp_path / "weights", tiny.config(), parameters, {"writer": number, "step": step})

    children = []
    for number in range(3):
        children.append(os.fork())
        if not children[-1]:
            code = 1
            try:
                save_often(number)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert verify_checkpoint(tmp_path / "weights")["state"]["step"] == 39
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_checkpoint_goes_where_a_link_leads(tmp_path):
    (tmp_path / "link").symlink_to("weights")
    for step in range(2):
        save_checkpoint(tmp_path / "link", tiny.config(), {"a": np.zeros(1, np.float32)}, {"step": step})
    assert (tmp_path / "link").is_symlink()
    assert verify_checkpoint(tmp_path / "weights")["state"]["step"] == 1


def test_a_file_is_not_replaced_by_a_checkpoint(tmp_path):
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(UserError, match="letter: is not a folder"):
        save_checkpoint(tmp_path / "letter", tiny.config(), {})
    assert (tmp_path / "letter").read_text() == "dear"
