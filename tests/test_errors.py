"""What the boundary makes of errors."""

import errno
import os

import pytest

from mrfomm.errors import UserError, named


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
