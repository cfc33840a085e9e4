"""Whole files, and a lock that dies with its process."""

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mrfomm import store as files
from mrfomm.errors import UserError
from mrfomm.store import locked, sha256_of, whole_file

ROOT = Path(__file__).parent.parent


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as aside:
        aside.write_text("new")
        assert not path.exists()
        assert aside.suffix == ".txt"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    problem = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=r"a\.txt: can't write there \(No space left on device\); make room"):
        write_and_fail(path, problem)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def write_and_fail(path, problem):
    with whole_file(path) as aside:
        aside.write_text("half")
        raise problem


def test_several_processes_write_a_file_and_the_last_one_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    with whole_file(path) as ours:
        ours.write_text("ours")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with whole_file(path) as theirs:
            theirs.write_text("theirs")
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


def test_processes_that_write_one_file_don_t_disturb_each_other(tmp_path):
    """Four at once, with text of their own: each comes to its end, and the file is always one of the four."""
    code = (
        "import sys; from mrfomm.store import whole_file\n"
        "for i in range(300):\n"
        "    with whole_file(sys.argv[1]) as aside: aside.write_text(sys.argv[2] * 1000)"
    )
    path = tmp_path / "a.txt"
    commands = [[sys.executable, "-c", code, str(path), letter] for letter in "abcd"]
    processes = [subprocess.Popen(command, cwd=ROOT) for command in commands]
    while any(process.poll() is None for process in processes):
        if path.exists():
            assert path.read_text() in [letter * 1000 for letter in "abcd"]
    assert [process.returncode for process in processes] == [0] * 4
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_made(tmp_path):
    path = tmp_path / "new" / "deep" / "a.txt"
    with whole_file(path) as aside:
        aside.write_text("new")
    assert path.read_text() == "new"


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("kept")
    with (
        pytest.raises(UserError, match=r"file/a\.txt: can't write there \(File exists\)"),
        whole_file(tmp_path / "file" / "a.txt"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("size", [0, 1000, (2 << 20) + 7])
def test_sha256_is_what_sha256sum_prints(tmp_path, size):
    path = tmp_path / "a"
    path.write_bytes(np.random.default_rng(0).bytes(size))
    printed = subprocess.run(["sha256sum", path], check=True, capture_output=True, text=True).stdout
    assert sha256_of(path) == printed.split()[0]


def take(folder):
    with locked(folder):
        return True


def test_one_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another run is at work there"):
        take(tmp_path)
    assert take(tmp_path)


def test_the_lock_dies_with_its_process_and_not_with_its_children(tmp_path):
    """Killed (-9) while a process that it started lives on."""
    code = (
        "import subprocess, sys, time; from mrfomm.store import locked\n"
        "with locked(sys.argv[1]):\n"
        "    child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        try:
            with pytest.raises(UserError, match="another run is at work there"):
                take(tmp_path)
            process.kill()
            process.wait()
            assert take(tmp_path)
            os.kill(child, 0)  # still there
        finally:
            os.kill(child, 9)
            process.kill()


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, caplog):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING):
        assert take(tmp_path)
    assert "start only one run there" in caplog.text


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(UserError, match="can't write there"):
        take(tmp_path / "none")
    with locked(tmp_path / "new" / "deep", make=True):
        assert (tmp_path / "new" / "deep").is_dir()
