"""Training on two machines, rehearsed on one: `make hosts`. See hosts.py; as root, with `ip`."""

import os
import re
import signal
import time

import hosts as machines
import numpy as np
import pytest
import tiny

from mrfomm.commands import train
from mrfomm.config import config_to_yaml
from mrfomm.model.checkpoint import list_checkpoints, load_checkpoint
from mrfomm.training.watch import read_log

pytest.importorskip("mpi4py", reason="needs mpirun and mpi4py")
PATIENCE = 20  # seconds, where it is to be lost; the first step takes half of it on a busy machine
FOREVER = 10**6  # epochs
STEPS = 4  # of an epoch

pytestmark = pytest.mark.long


@pytest.fixture
def hosts(tmp_path):
    if reason := machines.why_not():
        pytest.skip(reason)
    with machines.two_hosts(tmp_path) as found:
        yield found


@pytest.fixture
def options(tmp_path):
    """Options of train.py for a tiny model on a few frames -> function of epochs, run folder and settings."""
    tiny.data(tmp_path / "data")
    settings = {"milestones": [], "checkpoint_every": 2}

    def make(epochs, run, **more):
        config = tiny.config(train={"epochs": epochs, **settings, **more}, data={"num_repeats": 4})
        (tmp_path / f"{run}.yaml").write_text(config_to_yaml(config), encoding="utf-8")
        words = ["--config", tmp_path / f"{run}.yaml", "--data", tmp_path / "data", "--output", tmp_path / run]
        return [*map(str, words), "--context", "cpu"]

    return make


def steps_saved(run):
    return [int(path.name[-8:]) for path in list_checkpoints(run)]


def started(hosts, options, run):
    """mpirun of a run that has gone beyond the checkpoint of step 4."""
    process = hosts.mpirun("train.py", *options)
    while not (run / "log.jsonl").exists() or len(read_log(run)) <= STEPS:
        assert process.poll() is None, hosts.printed()
        time.sleep(0.02)
    return process


def ended(process, hosts, what="", names=machines.NAMES):
    """Exit code, stdout and stderr once nothing runs on the machines any more; says how long after what that was."""
    start, code = time.monotonic(), process.wait(120)
    took = time.monotonic() - start
    while any(map(hosts.pids, names)):
        assert time.monotonic() - start < 120, list(map(hosts.pids, names))
        time.sleep(0.05)
    if what:
        print(f"{what}: mpirun ended after {took:.1f} s, all on {' and '.join(names)}", end=" ")
        print(f"after {time.monotonic() - start:.1f} s")
    return code, *hosts.printed()


def of_the_patience(stderr):
    """The lines of watchdogs."""
    return [line for line in stderr.splitlines() if "has taken more than" in line]


def check_it_goes_on(hosts, options, run):
    """The newest checkpoint is whole; from there the run becomes, bit for bit, one that nothing happened to."""
    step = load_checkpoint(list_checkpoints(run)[-1]).state["step"]
    epochs, other = step // STEPS + 1, run.with_name("undisturbed")
    more = ["--resume", run, "--context", "cpu", "--set", f"train.epochs={epochs}", "train.patience=600"]
    for words in (more, options(epochs, other.name)):
        code, _, stderr = ended(hosts.mpirun("train.py", *words), hosts)
        assert code == 0, stderr
    assert [{**row, "time": 0} for row in read_log(run)] == [{**row, "time": 0} for row in read_log(other)]
    ours, theirs = (load_checkpoint(list_checkpoints(folder)[-1]) for folder in (run, other))
    assert ours.state == theirs.state
    for name, value in theirs.parameters.items():
        np.testing.assert_array_equal(ours.parameters[name], value, err_msg=name)
    print(f"resumed from step {step} to step {ours.state['step']}: bit for bit a run that nothing happened to")


def test_two_hosts_compute_what_one_process_computes(hosts, options, tmp_path):
    assert train.main(options(1, "alone")) == 0
    process = hosts.mpirun("train.py", *options(1, "together"))
    code, stdout, stderr = ended(process, hosts, f"{STEPS} steps on two hosts")
    assert (code, stdout.split()) == (0, [str(tmp_path / "together")]), stderr
    alone, together = (load_checkpoint(list_checkpoints(tmp_path / name)[-1]) for name in ("alone", "together"))
    # A bias before a normalisation shifts the mean there and nothing else; its gradient is noise (docs/scaling.md).
    names = [name for name in alone.parameters if not name.endswith(("conv/b", "bn/mean"))]
    distance = {name: float(np.abs(alone.parameters[name] - together.parameters[name]).max()) for name in names}
    print(f"largest difference in {len(names)} arrays: {max(distance.values()):.1e}")
    assert not {name: value for name, value in distance.items() if value > 1e-6}
    rows = [read_log(tmp_path / name) for name in ("alone", "together")]
    assert len(rows[0]) == len(rows[1]) == STEPS
    for one, two in zip(*rows):
        np.testing.assert_allclose(two["pixel"], one["pixel"], rtol=1e-5)


def test_a_killed_remote_process_ends_the_job(hosts, options, tmp_path):
    process = started(hosts, options(FOREVER, "run"), tmp_path / "run")
    (victim,) = hosts.pids("beta", "train.py --config")
    os.kill(victim, signal.SIGKILL)
    code, _, stderr = ended(process, hosts, "kill -9 of beta's process")
    assert code
    assert not of_the_patience(stderr)
    check_it_goes_on(hosts, options, tmp_path / "run")


def test_a_cut_link_ends_the_job_within_its_patience(hosts, options, tmp_path):
    process = started(hosts, options(FOREVER, "run", patience=PATIENCE), tmp_path / "run")
    hosts.link("down")
    code, _, stderr = ended(process, hosts, f"link cut, patience {PATIENCE} s")
    assert code
    (line,) = of_the_patience(stderr)
    print(line)
    assert re.match(rf"error: on alpha: (saving )?step \d+ has taken more than {PATIENCE} s: ", line)
    hosts.link("up")
    check_it_goes_on(hosts, options, tmp_path / "run")


def test_a_stopped_process_ends_the_job_within_its_patience(hosts, options, tmp_path):
    """As if its machine had frozen, with the link still there."""
    process = started(hosts, options(FOREVER, "run", patience=PATIENCE), tmp_path / "run")
    for pid in hosts.pids("beta", "train.py --config"):
        os.kill(pid, signal.SIGSTOP)
    code, _, stderr = ended(process, hosts, f"beta's process stopped, patience {PATIENCE} s")
    assert code
    assert len(of_the_patience(stderr)) == 1


def test_sigterm_to_mpirun_ends_a_job_that_hangs(hosts, options, tmp_path):
    """Beta, which is out of reach, ends when its own patience does."""
    process = started(hosts, options(FOREVER, "run", patience=10**6), tmp_path / "run")
    hosts.link("down")
    time.sleep(1)
    process.terminate()
    assert ended(process, hosts, "SIGTERM to mpirun, link cut", ["alpha"])[0]
    assert hosts.pids("beta", "train.py")


@pytest.mark.parametrize(
    ("differs", "change", "path"),
    [
        ("mrfomm's version", lambda text: f"{text}# edited\n", machines.ROOT / "mrfomm" / "__init__.py"),
        ("train.learning_rate", lambda text: text.replace("0.0002", "0.0003"), "run.yaml"),
    ],
)
def test_hosts_that_differ_are_refused(differs, change, path, hosts, options, tmp_path):
    words, path = options(1, "run"), tmp_path / path
    (tmp_path / "other").write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    hosts.first = f"mount --bind {tmp_path / 'other'} {path}"
    check_refused(hosts, words, differs, tmp_path / "run")


def test_hosts_with_other_clips_are_refused(hosts, options, tmp_path):
    words = options(1, "run")
    hosts.first = f"mount --bind {tmp_path / 'data' / 'test'} {tmp_path / 'data' / 'train'}"
    check_refused(hosts, words, "training clips", tmp_path / "run")


def test_a_host_without_the_data_is_named(hosts, options, tmp_path):
    words = options(1, "run")
    hosts.first = f"mount -t tmpfs none {tmp_path / 'data'}"
    line = check_refused(hosts, words, "on beta", tmp_path / "run")
    assert "no such folder" in line


def check_refused(hosts, words, differs, run):
    """Refused in one line; nothing is written."""
    code, stdout, stderr = ended(hosts.mpirun("train.py", *words), hosts)
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    print(line)
    assert (code, stdout) == (2, "")
    assert line.startswith(f"error: {differs}: ")
    assert "beta" in line
    assert not run.exists()
    return line
