"""Several processes under mpirun: that they compute what one computes, and that they end together."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from five_steps import five_steps
from nnabla.ext_utils import get_extension_context

from mrfomm.commands import train
from mrfomm.config import config_to_yaml
from mrfomm.model.checkpoint import list_checkpoints, load_checkpoint
from mrfomm.networks import ops
from mrfomm.runtime.context import use_context
from mrfomm.runtime.processes import Communicator

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
MPIRUN = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))

pytestmark = pytest.mark.skipif(
    MPIRUN is None or importlib.util.find_spec("mpi4py") is None, reason="needs mpirun and mpi4py"
)


def start(processes, *script):
    """Start a Python script in several processes, with the checkout importable."""
    return subprocess.Popen(
        [str(part) for part in (MPIRUN, "--oversubscribe", "-n", processes, sys.executable, *script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, timeout=600):
    """What a process has printed, and its exit code; fails if it hangs."""
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def mpirun(processes, *script):
    """Run a Python script in several processes to its end."""
    return ended(start(processes, *script))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What five_steps.py gives: by number of processes, and for one without mpirun ("plain")."""
    folder = tmp_path_factory.mktemp("five_steps")
    with use_context("cpu"):
        found = {"plain": five_steps(Communicator(), folder)}
    for count in (1, 2):
        path = folder / f"{count}.npz"
        done = mpirun(count, TESTS / "five_steps.py", path)
        assert done.returncode == 0, done.stderr
        with np.load(path) as file:
            found[count] = dict(file)
    return {key: {name: array.astype(np.float64) for name, array in found[key].items()} for key in found}


def of_kind(result, kind):
    return {name[len(kind) + 1 :]: value for name, value in result.items() if name.startswith(f"{kind}/")}


def distances(ours, theirs):
    """Norm of the difference of each array, by the norm of the second."""
    return {name: np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name]) for name in theirs}


def split_zero_gradients(gradients):
    """Names of the gradients, and of those whose true value is 0: all they hold is rounding noise.

    The output doesn't depend on the bias before a normalisation, or before a softmax over space or references.
    """
    weights = {name: np.linalg.norm(gradients[f"{name[:-1]}W"]) for name in gradients if name.endswith("conv/b")}
    zero = [name for name, norm in weights.items() if np.linalg.norm(gradients[name]) < 1e-5 * norm]
    return [name for name in gradients if name not in zero], zero


@pytest.mark.parametrize("reference", [1, "plain"])
def test_first_gradients_of_two_processes_are_those_of_one(results, reference):
    one, two = (of_kind(results[name], "gradient") for name in (reference, 2))
    # Without the CPU operators a plain process uses nnabla's batch norm, which sums squares in float32.
    alike = reference == 1 or ops.fastest(get_extension_context("cpu")) is not ops.NNABLA
    names, zero = split_zero_gradients(one)
    assert len(names) == 57
    distance = distances(two, one)
    assert not {name: distance[name] for name in names if distance[name] > (1e-5 if alike else 1e-2)}
    assert {"keypoints/heatmap/conv/b", "fusion/conv/b", "generator/first/conv/b"} <= set(zero)
    assert len(zero) == 15
    for name in zero:  # noise differs; it is held against the gradient of the same convolution's weights
        weight = np.linalg.norm(one[f"{name[:-1]}W"])
        assert np.linalg.norm(one[name] - two[name]) < 1e-5 * weight, name


def test_running_statistics_of_two_processes_are_those_of_one(results):
    one, two = (of_kind(results[count], "state") for count in (1, 2))
    assert any(name.endswith("/bn/var") for name in one)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-6, atol=1e-6 * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("reference", [1, "plain"])
def test_losses_of_five_steps_are_those_of_one_process(results, reference):
    one, two = (of_kind(results[name], "loss") for name in (reference, 2))
    assert {"pixel", "equivariance_value", "adversarial", "discriminator"} <= set(one)
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-3, err_msg=name)
        assert len(set(values)) == 5


def training_options(tmp_path, epochs):
    """Options of train.py for a tiny model on a few frames, all but the folder behind ``--output``."""
    tiny.data(tmp_path / "data")
    config = tiny.config(train={"epochs": epochs, "milestones": []}, data={"num_repeats": 4})
    (tmp_path / "tiny.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    return ["--config", tmp_path / "tiny.yaml", "--data", tmp_path / "data", "--context", "cpu", "--output"]


def test_training_on_two_processes_is_training_on_one(tmp_path):
    """train.py from the clips on: the same losses, and only rank 0 writes and prints."""
    options = training_options(tmp_path, epochs=1)
    assert train.main([str(option) for option in (*options, tmp_path / "alone")]) == 0
    done = mpirun(2, ROOT / "train.py", *options, tmp_path / "together")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "together")]
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("alone", "together")
    ]
    assert len(logs[0]) == len(logs[1]) == 4
    for ours, theirs in zip(*logs):
        for key in ("step", "pixel", "equivariance_value", "equivariance_jacobian", "learning_rate"):
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-3, err_msg=key)


def test_sigusr1_to_mpirun_saves_and_ends(tmp_path):
    """Open MPI passes it on and waits: the newest checkpoint is of the last step that was logged."""
    process = start(2, ROOT / "train.py", *training_options(tmp_path, epochs=10**6), tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 600
    while process.poll() is None and not (log.exists() and log.read_text(encoding="utf-8")):
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    done = ended(process)
    assert done.returncode == 130, done.stderr
    last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])["step"]
    newest = list_checkpoints(tmp_path / "run")[-1]
    assert load_checkpoint(newest).state["step"] >= last >= 1


@pytest.mark.parametrize(("rank", "how"), [(0, "user error"), (1, "user error"), (1, "wrapped")])
def test_a_user_error_in_one_process_ends_all(rank, how):
    done = mpirun(2, TESTS / "one_fails.py", how, rank)
    assert done.returncode == 2
    where = f"on {os.uname().nodename}: " if rank else ""  # rank 0 has no part in it
    assert done.stderr.splitlines().count(f"error: {where}the message") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == "hello from 0\n"


def test_a_bug_in_one_process_ends_all():
    done = mpirun(2, TESTS / "one_fails.py", "bug", 1)
    assert done.returncode == 1
    assert done.stderr.count("ZeroDivisionError: the\nmessage") == 1
    assert "rank 1:" in done.stderr


def test_a_killed_process_ends_all():
    assert mpirun(2, TESTS / "one_fails.py", "killed", 1).returncode == 128 + 9


def test_who_waits_too_long_for_another_ends_all():
    done = mpirun(2, TESTS / "one_fails.py", "stopped", 1)
    assert done.returncode == 128 + 9
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: on {os.uname().nodename}: waiting for the other has taken more than 2 s: ")


def test_processes_of_other_settings_are_refused(tmp_path):
    one = [sys.executable, ROOT / "train.py", *training_options(tmp_path, epochs=1), tmp_path / "run"]
    done = mpirun(1, *one[1:], ":", "-n", 1, *one, "--set", "train.seed=5")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    host = os.uname().nodename
    assert line.startswith(f"error: train.seed: 0 on {host} (rank 0), but 5 on {host} (rank 1); ")
    assert not (tmp_path / "run").exists()


def test_an_error_of_all_processes_is_reported_once(tmp_path):
    done = mpirun(2, ROOT / "train.py", "--output", tmp_path / "run", "--context", "cpu", "--set", "train.batch_size=3")
    assert done.returncode == 2
    assert done.stderr.count("error: train.batch_size = 3 doesn't divide among 2 processes") == 1
    assert not (tmp_path / "run").exists()
