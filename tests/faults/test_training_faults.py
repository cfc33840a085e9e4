"""Training that is killed, stopped, crowded out or fed with clips that break: what a user does next must work."""

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import tiny

from mrfomm.commands import train
from mrfomm.config import config_to_yaml
from mrfomm.errors import UserError
from mrfomm.model.checkpoint import list_checkpoints, load_checkpoint, read_h5, verify_checkpoint
from mrfomm.runtime.stopping import stop_requests
from mrfomm.store import locked
from mrfomm.training import trainer as training
from mrfomm.training.run_folder import load_resumable
from mrfomm.training.watch import read_log

FAULTS = Path(__file__).parent
ROOT = FAULTS.parent.parent
MPIRUN = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
needs_mpi = pytest.mark.skipif(
    MPIRUN is None or importlib.util.find_spec("mpi4py") is None, reason="needs mpirun and mpi4py"
)
PATIENCE = 900  # seconds for anything that should end by itself, on a busy machine


@pytest.fixture
def data(tmp_path):
    """Training data: 24 stacked clips of 6 frames, and a test clip."""
    for i in range(25):
        tiny.clip(tmp_path / "data" / ("test" if i == 24 else "train") / f"{i:02d}#0.png", seed=i)
    return tmp_path / "data"


def arguments(tmp_path, source, name, **changes):
    """Command line of a new run of the tiny model."""
    path = tmp_path / f"{name}.yaml"
    path.write_text(config_to_yaml(tiny.config(**changes)), encoding="utf-8")
    return ["--config", str(path), "--data", str(source), "--output", str(tmp_path / name), "--context", "cpu"]


def start(script, *options, **how):
    """Start a script in a process of its own; what it prints is in .stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *map(str, options)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, **how)


def ends(process, code):
    """Wait for a process; its stderr."""
    stderr = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == code, stderr
    return stderr


def wait_for(condition, process=None):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def error_lines(stderr):
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def steps(run):
    return [int(path.name[-8:]) for path in list_checkpoints(run)]


def check_everything_visible(run):
    """All that stands in a run folder under a final name is whole."""
    for path in run.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(run).parts)
        if not hidden and path.suffix == ".png":
            assert imageio.imread(path).size
        elif not hidden and path.name == "state.json":
            verify_checkpoint(path.parent)
    for folder in list_checkpoints(run):
        verify_checkpoint(folder)
    assert all({"step", "time"} <= row.keys() for row in read_log(run))


def content(run):
    """All that a run leaves, but for times."""
    pictures = {path.name: imageio.imread(path).tobytes() for path in (run / "pictures").glob("*.png")}
    arrays = {}
    for folder in (*list_checkpoints(run), run / "best"):
        for path in sorted(folder.glob("*.h5")):
            arrays[folder.name, path.name] = {name: value.tobytes() for name, value in read_h5(path).items()}
    rows = [{key: value for key, value in row.items() if key != "time"} for row in read_log(run)]
    return pictures, arrays, rows, load_checkpoint(run / "best").state, load_resumable(run).state


def kill_while_it_starts(process, rng):
    seconds = float(rng.uniform(0, 5))
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    process.communicate()
    return f"{seconds:.1f} s after its start"


def kill_while_it_trains(process, run, rng):
    """Kill a process somewhere in the six steps after the one it resumed from."""
    rows = len(read_log(run)) if list_checkpoints(run) else 0
    wait_for(lambda: (run / "log.jsonl").exists() and len(read_log(run)) != rows, process)  # it has resumed
    more, seconds = int(rng.integers(6)), float(rng.uniform(0, 0.3))
    aim = len(read_log(run)) + more
    wait_for(lambda: len(read_log(run)) >= aim, process)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return f"{seconds:.1f} s after step {aim}"


@pytest.mark.parametrize(
    ("kills", "epochs"),
    [pytest.param(2, 2, marks=pytest.mark.long), pytest.param(30, 12, marks=pytest.mark.long)],
    ids=["2 kills", "30 kills"],
)
def test_a_run_killed_again_and_again_is_the_run_never_killed(tmp_path, data, kills, epochs):
    """kill -9 at random moments: bit for bit the same parameters, solver states, losses, pictures and best model.

    Every second kill comes right before a random change to the run folder, mostly of a checkpoint; of the others, two
    thirds come in the middle of training and one third while the program starts. Every part runs in a process of its
    own, as for users.
    """
    rng = np.random.default_rng(0)
    often = {"checkpoint_every": 2, "picture_every": 5, "validate_every": 4, "keep_checkpoints": 2}
    changes = {"train": {**often, "epochs": epochs, "discriminator": kills > 2}, "data": {"num_repeats": 1}}
    new = arguments(tmp_path, data, "killed", **changes)
    run, resume = tmp_path / "killed", ["--resume", str(tmp_path / "killed"), "--context", "cpu"]
    reached, moments = 0, []
    begun = time.monotonic()
    while len(moments) < kills:
        options = resume if list_checkpoints(run) else new
        if len(moments) % 2 == 0:
            change = int(rng.integers(1, 120))
            ends(start(FAULTS / "train_and_die.py", change, *options), -signal.SIGKILL)
            moments.append(f"change {change}")
        elif len(moments) % 6 == 3:
            moments.append(kill_while_it_starts(start(ROOT / "train.py", *options), rng))
        else:
            moments.append(kill_while_it_trains(start(ROOT / "train.py", *options), run, rng))
        if list_checkpoints(run):
            check_everything_visible(run)
            now = load_resumable(run).state["step"]
            assert now >= reached
            reached = now
        else:
            assert reached == 0
    print(f"{kills} kills in {time.monotonic() - begun:.0f} s at {', '.join(moments)}; step {reached} reached")
    assert ends(start(ROOT / "train.py", *(resume if list_checkpoints(run) else new)), 0)
    assert not [path for path in run.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    ends(start(ROOT / "train.py", *arguments(tmp_path, data, "whole", **changes)), 0)
    parts = ("pictures", "arrays", "log", "best", "newest")
    pairs = zip(parts, content(run), content(tmp_path / "whole"))
    assert [part for part, ours, theirs in pairs if ours != theirs] == []  # a comparison of arrays would take an hour


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path, data):
    changes = {"train": {"epochs": 1}, "data": {"num_repeats": 1}}
    new = arguments(tmp_path, data, "run", **changes)
    ends(start(FAULTS / "train_and_die.py", 4, *new), -signal.SIGKILL)
    assert list((tmp_path / "run").glob(".checkpoint-00000000.*.partial"))
    with pytest.raises(UserError, match="no whole checkpoint to resume from"):
        train.main(["--resume", str(tmp_path / "run"), "--context", "cpu"])
    assert train.main(new) == 0
    assert steps(tmp_path / "run") == [0, 12]
    assert not list((tmp_path / "run").glob(".*partial"))


def test_damaged_newest_checkpoints_do_not_push_out_whole_ones(tmp_path, data):
    """Checkpoints after the one resumed are out of the way: else the next save would delete all but them."""
    changes = {"train": {"epochs": 1, "checkpoint_every": 4, "keep_checkpoints": 1}, "data": {"num_repeats": 1}}
    new = arguments(tmp_path, data, "run", **changes)
    assert train.main(new) == 0
    run = tmp_path / "run"
    shutil.copytree(run / "checkpoint-00000012", run / "checkpoint-00000099")
    (run / "checkpoint-00000099" / "parameters.h5").write_bytes(b"damaged")
    assert train.main(["--resume", str(run), "--context", "cpu"]) == 0
    assert steps(run) == [12]
    assert load_resumable(run).state["step"] == 12
    assert (run / "damaged-checkpoint-00000099").is_dir()


@pytest.mark.long
def test_a_stop_signal_to_all_processes_saves(tmp_path, data):
    """SIGTERM as `timeout` and job schedulers send it, to the loader's workers too, in the middle of a step."""
    changes = {"train": {"epochs": 500, "checkpoint_every": 2}, "data": {"num_repeats": 1, "workers": 2}}
    new = arguments(tmp_path, data, "run", **changes)
    process = start(ROOT / "train.py", *new, start_new_session=True)
    wait_for(lambda: (tmp_path / "run" / "checkpoint-00000002").is_dir(), process)
    os.killpg(process.pid, signal.SIGTERM)
    assert not error_lines(ends(process, 130))
    assert load_resumable(tmp_path / "run").state["step"] == read_log(tmp_path / "run")[-1]["step"]


ENDS = {  # how the words get lost, and the signal that comes to all processes of the terminal
    "tee": ("2>&1 | tee {log} > /dev/null", signal.SIGINT),
    "terminal closed": ("2>&1 | tee {log} > /dev/null", signal.SIGHUP),
    "nobody reads": ("2>&1 | head -c 10 > {log}", signal.SIGTERM),
}


@pytest.mark.parametrize("how", ENDS)
def test_what_was_learnt_is_saved_when_words_are_lost(tmp_path, data, how):
    """Ctrl-C ends tee as well, a closed terminal all of its processes; the next line finds nobody."""
    where, number = ENDS[how]
    changes = {"train": {"epochs": 500, "checkpoint_every": 10**6}, "data": {"num_repeats": 1}}
    new = [str(option) for option in arguments(tmp_path, data, "run", **changes)]
    command = shlex.join([sys.executable, str(ROOT / "train.py"), *new])
    script = f"{command} {where.format(log=tmp_path / 'log')}; echo ${{PIPESTATUS[0]}} > {tmp_path / 'code'}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    words = ["bash", "-c", f"trap : INT HUP TERM; {script}"]  # bash itself lives on to tell the exit code
    process = subprocess.Popen(words, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "run"
    wait_for(lambda: (run / "log.jsonl").exists() and len(read_log(run)) > 3, process)
    os.killpg(process.pid, number)
    stderr = process.communicate(timeout=PATIENCE)[1]
    assert "Traceback" not in stderr
    assert (tmp_path / "code").read_text() == "130\n"
    assert load_resumable(run).state["step"] == read_log(run)[-1]["step"] > 3


def test_ctrl_c_is_noted_where_nobody_reads():
    """``train.py 2>&1 | tee log``: where tee ends first, the answer to Ctrl-C finds nobody."""
    code = """if True:
        import os, signal
        from mrfomm.runtime.stopping import stop_requests
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 2)
        with stop_requests(speaks=True) as requests:
            signal.raise_signal(signal.SIGINT)
        print(*map(int, requests))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{int(signal.SIGINT)}\n")


def test_a_run_that_is_to_outlive_its_terminal_does(monkeypatch):
    """nohup ignores SIGHUP, and so does the run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as requests:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not requests
            os.kill(os.getpid(), signal.SIGTERM)
            assert requests
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stopped_run_says_how_to_go_on(tmp_path, data, monkeypatch, capsys):
    original = training.Trainer.step

    def step(self, batch):
        if self.progress.step == 4:
            os.kill(os.getpid(), signal.SIGHUP)
        return original(self, batch)

    monkeypatch.setattr(training.Trainer, "step", step)
    new = arguments(tmp_path, data, "run", train={"epochs": 1}, data={"num_repeats": 1})
    assert train.main(new) == 130
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stopped")]
    assert line == f"stopped; step 5 is saved, go on with --resume {tmp_path / 'run'}"
    assert train.main([*line.split()[-2:], "--context", "cpu"]) == 0
    assert steps(tmp_path / "run")[-1] == 12


def test_steps_made_are_saved_when_the_data_fails(tmp_path, data, monkeypatch):
    """Here the data's disk goes away, when the next batch may be there already.

    A loader's worker that the system kills is the same.
    """
    original, clips = training.Trainer.step, sorted((data / "train").iterdir())

    def step(self, batch):
        if self.progress.step == 4:
            for path in clips:
                path.unlink()
        return original(self, batch)

    monkeypatch.setattr(training.Trainer, "step", step)
    with pytest.raises(UserError, match="can't be read; the last one"):
        train.main(arguments(tmp_path, data, "run", train={"epochs": 1}, data={"num_repeats": 1}))
    assert load_resumable(tmp_path / "run").state["step"] == read_log(tmp_path / "run")[-1]["step"] in (5, 6)


@pytest.mark.parametrize("option", ["--resume", "--output"])
def test_a_second_run_in_the_same_folder_refuses(tmp_path, data, option):
    changes = {"train": {"epochs": 1}, "data": {"num_repeats": 1}}
    new = arguments(tmp_path, data, "run", **changes)
    if option == "--resume":
        assert train.main(new) == 0
    else:
        (tmp_path / "run").mkdir()
    second = ["--resume", str(tmp_path / "run"), "--context", "cpu"] if option == "--resume" else new
    before = sorted((tmp_path / "run").rglob("*"))
    with locked(tmp_path / "run"), pytest.raises(UserError, match="run: another run is at work there"):
        train.main(second)
    assert [path for path in sorted((tmp_path / "run").rglob("*")) if path.name != ".lock"] == [
        path for path in before if path.name != ".lock"
    ]
    assert train.main(second) == 0


@pytest.mark.long
def test_two_runs_started_in_one_folder(tmp_path, data):
    """The second one ends with one line, whichever way it was started; the first doesn't notice."""
    changes = {"train": {"epochs": 500, "checkpoint_every": 2}, "data": {"num_repeats": 1}}
    new = arguments(tmp_path, data, "run", **changes)
    first = start(ROOT / "train.py", *new)
    wait_for(lambda: (tmp_path / "run" / "checkpoint-00000002").is_dir(), first)
    for second in (new, ["--resume", tmp_path / "run"]):
        stderr = ends(start(ROOT / "train.py", *second), 2)
        assert (
            stderr
            == f"error: {tmp_path / 'run'}: another run is at work there; wait until it ends, or take another folder\n"
        )
    reached = load_resumable(tmp_path / "run").state["step"]
    first.kill()
    first.communicate()
    resumed = start(ROOT / "train.py", "--resume", tmp_path / "run")  # a killed run's lock is free
    wait_for(lambda: load_resumable(tmp_path / "run").state["step"] > reached + 2, resumed)
    resumed.terminate()
    ends(resumed, 130)


def test_clips_that_break_during_training_are_skipped_and_counted(tmp_path, data, monkeypatch, caplog):
    """One is deleted, one cut short, two replaced by shorter ones, after a worker has seen them all whole."""
    original, clips = training.Trainer.step, sorted((data / "train").iterdir())

    def step(self, batch):
        if self.progress.step == 24:
            clips[3].unlink()
            clips[5].write_bytes(clips[5].read_bytes()[:500])
            imageio.imwrite(clips[7], tiny.frames(1)[0])
            imageio.imwrite(clips[9], np.zeros((1, 1, 3), np.uint8))
        return original(self, batch)

    monkeypatch.setattr(training.Trainer, "step", step)
    changes = {"data": {"num_repeats": 2, "workers": 1, "max_broken": 0.2}, "train": {"epochs": 2}}
    assert train.main(arguments(tmp_path, data, "run", **changes)) == 0
    counts = [row["broken_clips"] for row in read_log(tmp_path / "run")]
    assert len(counts) == 48
    assert counts[:24] == [0] * 24
    assert counts == sorted(counts)
    assert counts[-1] == 4
    assert len([record for record in caplog.records if "skipping a broken clip" in record.message]) == 4


@pytest.mark.long
def test_a_full_disk_ends_a_run_in_one_line(tmp_path, data):
    """In a process of its own, as the HDF5 library used to crash while the program ended."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1300k", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"can't mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        changes = {"train": {"epochs": 500, "checkpoint_every": 2, "keep_checkpoints": 9}, "data": {"num_repeats": 1}}
        new = arguments(tmp_path, data, "run", **changes)
        new[new.index("--output") + 1] = str(disk / "run")
        stderr = ends(start(ROOT / "train.py", *new), 2)
        (line,) = error_lines(stderr)
        assert "can't write there (No space left on device); make room or choose another place" in line
        assert "Traceback" not in stderr
        assert "HDF5" not in stderr
        check_everything_visible(disk / "run")
        reached = load_resumable(disk / "run").state["step"]
        assert reached >= 2
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        resume = ["--resume", str(disk / "run"), "--context", "cpu", "--set", "train.epochs=1"]
        assert train.main(resume) == 0
        assert load_resumable(disk / "run").state["step"] == 12
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# Several processes


def mpirun(processes, *script):
    """Start a script under mpirun."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [MPIRUN, "--oversubscribe", "-n", processes, sys.executable, *script]
    pipe = subprocess.PIPE
    return subprocess.Popen([str(part) for part in command], cwd=ROOT, env=environment, stderr=pipe, text=True)


def descendants(pid):
    """Process ids below a process, by their command lines."""
    found, pending = {}, [pid]
    while pending:
        parent = pending.pop()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                child, fields = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
                if int(fields[1]) == parent:
                    found[child] = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    pending.append(child)
    return found


def is_running(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@needs_mpi
@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1, "mpirun"])
def test_one_killed_process_of_several_ends_all(tmp_path, data, victim):
    """With a message, the loaders' workers too; then the run resumes."""
    changes = {"train": {"epochs": 500, "checkpoint_every": 2}, "data": {"num_repeats": 1, "workers": 1}}
    new = arguments(tmp_path, data, "run", **changes)
    process = mpirun(2, ROOT / "train.py", *new)
    wait_for(lambda: (tmp_path / "run" / "checkpoint-00000002").is_dir(), process)
    family = descendants(process.pid)
    ranks = sorted(pid for pid, command in family.items() if "train.py" in command)
    assert len(ranks) == 2
    assert len(family) >= 4  # with the loaders' workers
    os.kill(process.pid if victim == "mpirun" else ranks[victim], signal.SIGKILL)
    begun = time.monotonic()
    stderr = process.communicate(timeout=PATIENCE)[1]
    wait_for(lambda: not any(map(is_running, family)))
    print(f"{victim} killed: all ended after {time.monotonic() - begun:.1f} s, exit code {process.returncode}")
    if victim != "mpirun":
        assert process.returncode == 128 + signal.SIGKILL
        assert "signal 9" in stderr
    check_everything_visible(tmp_path / "run")
    reached = load_resumable(tmp_path / "run").state["step"]
    resume = ["--resume", str(tmp_path / "run"), "--context", "cpu", "--set", f"train.epochs={reached // 12 + 1}"]
    assert train.main(resume) == 0
    assert load_resumable(tmp_path / "run").state["step"] == 12 * (reached // 12 + 1)


@pytest.mark.long
@needs_mpi
def test_several_processes_in_a_folder_at_work_refuse_once(tmp_path, data):
    new = arguments(tmp_path, data, "run", train={"epochs": 1}, data={"num_repeats": 1})
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        stderr = ends(mpirun(2, ROOT / "train.py", *new), 2)
    assert len(error_lines(stderr)) == 1
    assert "another run is at work there" in stderr


@needs_mpi
def test_broken_clips_of_all_processes_are_counted(tmp_path, data):
    """Each process reads half of the clips; six are broken and every clip is visited once."""
    for path in sorted((data / "train").iterdir())[::4]:
        path.write_bytes(b"broken")
    changes = {"train": {"epochs": 1}, "data": {"num_repeats": 1, "max_broken": 0.5}}
    stderr = ends(mpirun(2, ROOT / "train.py", *arguments(tmp_path, data, "run", **changes)), 0)
    assert read_log(tmp_path / "run")[-1]["broken_clips"] == 6
    assert json.dumps(stderr).count("skipping a broken clip") >= 6


@needs_mpi
def test_a_wrong_command_line_is_reported_once():
    stderr = ends(mpirun(2, ROOT / "train.py", "--nonsense"), 2)
    assert stderr.count("unrecognized arguments: --nonsense") == 1
