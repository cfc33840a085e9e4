"""What the boundary makes of errors."""

import errno
import os

import pytest

from mrfomm import errors
from mrfomm.errors import UserError, as_called_here, named


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.EACCES, "a.png: can't be read (Permission denied); check its permissions"),
        (errno.EISDIR, "a.png: can't be read (Is a directory); give a file"),
    ],
)
def test_an_os_error_is_named(number, line):
    with pytest.raises(UserError) as caught, named("a.png", "can't be read", "give a file"):
        raise OSError(number, os.strerror(number), "/some/other/name")
    assert str(caught.value) == line


def test_other_errors_pass():
    with pytest.raises(ValueError, match="other"), named("a.png", "can't be read"):
        raise ValueError("other")


CALLED = {  # in a checkout -> where a wheel is installed
    "`python train.py --resume RUN`": "`mrfomm-train --resume RUN`",
    "mpirun -n 4 python train.py": "mpirun -n 4 mrfomm-train",
    "run the same reconstruct.py again": "run the same mrfomm-reconstruct again",
    "`python -m eval COMMAND`": "`mrfomm-eval COMMAND`",
    "python -m eval.bins, or eval.report": "mrfomm-eval bins, or mrfomm-eval report",
    "python -m mrfomm.data.prepare RAW": "mrfomm prepare RAW",
    "python -m mrfomm heads": "mrfomm heads",
    "pip install -c constraints.txt -e .[cuda,mpi]": "pip install mrfomm[cuda,mpi]",
    "(No module); pip install -e .[app], on": "(No module); pip install mrfomm[app], on",
    "no tqdm; make venv, then . .venv/bin/activate": "no tqdm; pip install mrfomm",
    "/a/train.py: can't be read": "/a/train.py: can't be read",  # a file, not a command
    "runs/eval.bins/x: is a folder": "runs/eval.bins/x: is a folder",
}


@pytest.mark.parametrize("text", CALLED)
def test_commands_are_spelled_as_they_are_called(text, monkeypatch):
    here = text.replace("pip install -e", "pip install -c constraints.txt -e")
    assert as_called_here(text) == str(UserError(text)) == as_called_here(here) == here
    monkeypatch.setattr(errors, "_IS_CHECKOUT", False)
    assert as_called_here(text) == str(UserError(text)) == CALLED[text]
    assert as_called_here(CALLED[text]) == CALLED[text]  # an error may pass from one process to another
