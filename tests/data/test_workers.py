"""The worker pool: order, errors, and what happens when a process dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from threads import load_and_count

from mrfomm.data.workers import WorkerPool
from mrfomm.errors import UserError

SHAPE = (2, 3)


def square(task):
    """Later tasks are quicker, so that unordered results would show."""
    time.sleep(0.02 if task % 4 == 0 else 0)
    return np.full(SHAPE, task * task % 256, np.uint8), os.getpid()


def fail(task):
    if task == 3:
        raise UserError("the third task is bad")
    if task == 5:
        raise KeyError("a bug")
    return square(task)


def sleep(task):
    time.sleep(600)


def imported(task):
    return square(task)[0], "nnabla" in sys.modules


class Adder:
    """A function with a copy of data in every worker."""

    def __init__(self, table):
        self.table = table

    def __call__(self, task):
        return np.full(SHAPE, self.table[task], np.uint8), None


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids, seconds=600):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(map(is_running, pids)):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def start():
    """Start pools that are closed after the test."""
    pools = []

    def start(function, num_workers=2, ahead=4):
        pools.append(WorkerPool(function, num_workers, SHAPE, ahead))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_results_are_in_order_from_all_workers(start, num_workers):
    pool = start(square, num_workers)
    results = [(array.copy(), pid) for array, pid in pool.map(range(25))]
    assert [int(array[0, 0]) for array, _ in results] == [i * i % 256 for i in range(25)]
    assert all(array.shape == SHAPE and (array == array[0, 0]).all() for array, _ in results)
    assert len({pid for _, pid in results} - {os.getpid()}) == num_workers


def test_every_worker_gets_the_functions_data(start):
    pool = start(Adder({"a": 1, "b": 2, "c": 3}))
    assert [array[0, 0] for array, _ in pool.map("abcab")] == [1, 2, 3, 1, 2]


def test_no_more_is_computed_ahead_than_asked_for(start):
    taken = []

    def tasks():
        for task in range(100):
            taken.append(task)
            yield task

    results = start(square, num_workers=2, ahead=6).map(tasks())
    for _ in range(10):
        next(results)
    assert len(taken) == 15  # 6 ahead at first, one more after every result but the last


def test_an_array_stays_until_the_next_one_is_asked_for(start):
    for task, (array, _) in enumerate(start(square).map(range(12))):
        time.sleep(0.05)  # the workers go on
        assert (array == task * task).all()


def test_a_new_map_takes_over_from_one_left_halfway(start):
    pool = start(square)
    first = pool.map(range(50))
    next(first)
    assert [array[0, 0] for array, _ in pool.map([7, 8])] == [49, 64]
    with pytest.raises(RuntimeError, match="ended when a later one was started"):
        next(first)
    assert [array[0, 0] for array, _ in pool.map([9])] == [81]


def test_errors_reach_the_parent_in_turn(start):
    pool = start(fail)
    results = pool.map([0, 1, 3, 4])
    assert [next(results)[0][0, 0] for _ in range(2)] == [0, 1]
    with pytest.raises(UserError, match="^the third task is bad$"):
        next(results)
    with pytest.raises(RuntimeError, match=r"(?s)in a data loader worker.*KeyError.*a bug"):
        list(pool.map([5]))
    assert [array[0, 0] for array, _ in pool.map([2])] == [4]


def test_a_killed_worker_is_noticed_while_it_works(start):
    pool = start(sleep)
    results = pool.map(range(4))
    pid = pool._workers[0][0].pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(UserError, match="worker 0 was killed by SIGKILL; if memory ran out"):
        next(results)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_workers_leave_requests_to_stop_to_the_parent(start, number):
    pool = start(square)
    for pid in {pid for _, pid in pool.map(range(4))}:
        os.kill(pid, number)
    assert [array[0, 0] for array, _ in pool.map([3, 4])] == [9, 16]


def test_close_ends_the_workers(start):
    pool = start(square)
    pids = [pid for _, pid in pool.map(range(4))]
    pool.close()
    pool.close()
    assert not any(map(is_running, pids))


def busy_threads(task):
    return np.full(SHAPE, load_and_count(), np.uint8), None


def test_workers_have_one_thread(start, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4")
    assert [int(array[0, 0]) for array, _ in start(busy_threads).map(range(2))] == [1, 1]
    assert os.environ["OPENBLAS_NUM_THREADS"] == "4"


def test_workers_do_not_import_nnabla(start):
    assert [note for _, note in start(imported).map(range(2))] == [False, False]


SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background of a script inherits it ignored
print("the main script runs", flush=True)
from mrfomm.data.workers import WorkerPool
import test_workers as t
pool = WorkerPool(t.square, 2, t.SHAPE, 4)
results = pool.map(range(100))
print(*sorted({next(results)[1] for _ in range(4)}), flush=True)
if sys.argv[1] == "wait":
    time.sleep(600)
"""


def run_script(tmp_path, argument):
    """Start a script without a main guard that uses a pool. Returns its process and its workers' pids."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    tests = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tests / "data", tests, tests.parent)))}
    command = [sys.executable, "-W", "error", str(script), argument]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    assert process.stdout.readline() == "the main script runs\n"
    return process, [int(pid) for pid in process.stdout.readline().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_a_killed_parent(tmp_path, number):
    process, pids = run_script(tmp_path, "wait")
    assert len(pids) == 2
    assert all(map(is_running, pids))
    process.send_signal(number)
    _, messages = process.communicate(timeout=600)
    assert process.returncode == -number
    assert wait_until_gone(pids)
    assert messages.count("Traceback") == (number == signal.SIGINT)  # the parent's, none of a worker


def test_a_program_may_end_without_closing(tmp_path):
    process, pids = run_script(tmp_path, "leave")
    output, messages = process.communicate(timeout=600)
    assert (process.returncode, output, messages) == (0, "", "")  # nor does a worker run the main script again
    assert wait_until_gone(pids)
