"""The one exception for bad input, and what every command begins with: its parser, and the wrapper it runs in."""

import argparse
import contextlib
import errno
import io
import os
import re
import shlex
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO, Union

AnyPath = Union[str, "os.PathLike[str]"]  # of a file or folder

_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.ENAMETOOLONG: "give a shorter one",
    errno.ELOOP: "mend its links",
    errno.EEXIST: "choose another place",
    errno.EROFS: "choose another place",
    errno.ENOSPC: "make room or choose another place",
    errno.EDQUOT: "make room or choose another place",
    errno.EIO: "check its disk",
    errno.ENOMEM: "give smaller input, a smaller model or batch",
}


_IS_CHECKOUT = Path(__file__).parent.with_name("setup.py").is_file()
_IS_CONSTRAINED = sys.version_info < (3, 11) and sys.platform == "linux"  # constraints.txt holds versions for these
_CONSTRAINED = {r"pip install -e \.": "pip install -c constraints.txt -e ."} if _IS_CONSTRAINED else {}
# how a checkout calls something -> how it is called where a wheel is installed
_INSTALLED = {
    r"(?<![\w./-])(?:python )?(animate|reconstruct|train)\.py\b": r"mrfomm-\1",
    r"(?<![\w./-])(?:python -m )?eval[. ](bins|pairs|pose|reconstruction|report)\b": r"mrfomm-eval \1",
    r"python -m eval\b": "mrfomm-eval",
    r"python -m mrfomm(?:\.(?:data\.)?| )(?=\w)": "mrfomm ",
    r"pip install (?:-c constraints\.txt )?-e \.|make venv, then \. \.venv/bin/activate": "pip install mrfomm",
}


def as_called_here(text: str) -> str:
    """A text whose commands are spelled as a checkout has them (``python train.py``, ``pip install -e .[app]``), with
    a wheel's spelling (``mrfomm-train``, ``pip install mrfomm[app]``) where this is one, else with constraints.txt."""
    for pattern, here in (_CONSTRAINED if _IS_CHECKOUT else _INSTALLED).items():
        text = re.sub(pattern, here, text)
    return text


class UserError(Exception):
    """Bad input that the person at the keyboard can mend: one line that names the file or key and the remedy, which
    commands print before they exit with 2. Commands in it are spelled as in a checkout: see ``as_called_here``."""

    def __str__(self) -> str:
        return as_called_here(super().__str__())


def check_is_file(path: AnyPath) -> None:
    """Raise a UserError for a path that is missing or no regular file that may be read. A pipe might never begin, a
    device never end."""
    with named(path, "can't be opened"):
        try:
            mode = os.stat(path).st_mode
            if stat.S_ISREG(mode):
                open(path, "rb").close()  # libraries that open it have errors of their own kinds
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{path}: no such file; check the path") from error
        except ValueError as error:  # a name with a zero byte
            raise UserError(f"{path}: can't be opened ({error}); check the path") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UserError(f"{path}: is {kind}; give a file")


@contextlib.contextmanager
def named(path: AnyPath, problem: str, otherwise: str = "check the path") -> Iterator[None]:
    """Turn an OSError met inside into ``PATH: PROBLEM (reason); remedy``, a UserError; ``otherwise`` is the remedy
    where the error itself suggests none."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {problem} ({error.strerror or error}); {remedy(error, otherwise)}") from error


def remedy(error: OSError, otherwise: str = "check the path") -> str:
    """What the person at the keyboard can do about an OSError."""
    return _REMEDIES.get(error.errno or 0, otherwise)


def command_parser(doc: str | None, usage: str = "[OPTION ...]", **options: Any) -> argparse.ArgumentParser:
    """An ArgumentParser under the name that the command was started by, described by the first paragraph of its
    docstring (None under ``python -OO``); ``usage`` follows the name, ``options`` are ArgumentParser's."""
    options = {"description": (doc or "").partition("\n\n")[0], **options}
    for name in options.keys() & {"description", "epilog"}:
        options[name] = as_called_here(options[name])
    return argparse.ArgumentParser(prog=started_as(), usage=f"%(prog)s {usage}", **options)


def started_as() -> str:
    """The command as it was typed, without its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # of python -m
    if not sys.argv[0].endswith(".py"):
        return os.path.basename(sys.argv[0])
    return (
        re.sub(r"\.(__main__|commands|media)\b", "", f"python -m {spec.name}")
        if spec
        else f"python {shlex.quote(sys.argv[0])}"
    )


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run ``main()``; turn a UserError, a file that the system refuses, or a lack of memory into one line and code 2.

    Ctrl-C exits with 130, without a traceback. Nothing fails because its words can't be written: what stdout lost is
    told at the end, by exit code 141 if its reader has gone, else by a line and 2. Names of files that are no text can
    be printed.
    """
    _open_closed_descriptors()
    sys.stderr = _unfailing(sys.stderr)
    sys.stdout = _unfailing(sys.stdout, errors="surrogateescape")
    try:
        sys.exit(_reporting(main) or _code_of_lost_output())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (UserError, MemoryError, RuntimeError) as error:
        message = str(error)
        if not isinstance(error, UserError):
            if not _is_lack_of_memory(error):
                raise
            message = f"not enough memory ({error}); give smaller input, a smaller model or batch"
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


class _Unfailing(io.FileIO):
    """A file whose writes succeed: what can't be written is lost, and ``problem`` is the last reason."""

    problem: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written: int | None = super().write(data)
        except OSError as error:
            self.problem = error
            return len(data)
        if written is None:  # it doesn't wait for its reader
            self.problem = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return len(data)
        return written


def _unfailing(stream: TextIO | None, errors: str | None = None) -> TextIO:
    """A standard stream as one whose writes succeed. What isn't a file, as in a test, stays as it is."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    buffer: Any = getattr(stream, "buffer", None)
    file = getattr(buffer, "raw", buffer)
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(file, io.FileIO):
        return stream
    raw = _Unfailing(file.fileno(), "w", closefd=False)
    target: Any = raw if file is buffer else io.BufferedWriter(raw)
    errors = errors or stream.errors
    return io.TextIOWrapper(target, stream.encoding, errors, None, stream.line_buffering, stream.write_through)


def _open_closed_descriptors() -> None:
    """Let a closed stream (``2>&-``) lead nowhere: else the next file opened would get what FFmpeg says to it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number is this one


def _code_of_lost_output() -> int:
    sys.stdout.flush()
    buffer: Any = getattr(sys.stdout, "buffer", None)
    problem = getattr(getattr(buffer, "raw", buffer), "problem", None)
    if problem is None:
        return 0
    if isinstance(problem, BrokenPipeError):
        return 141
    what = "what was printed is lost, files that were written are whole; make room, or print to another place"
    print(f"error: standard output: can't be written ({problem.strerror}); {what}", file=sys.stderr)
    return 2


def as_reported(error: BaseException) -> BaseException:
    """An error as it is reported: as a UserError if the system refused a file, or as it is. The error of a function of
    ours inside an nnabla graph comes out as a SystemError; it is unwrapped."""
    if isinstance(error, SystemError) and error.__cause__:
        error = error.__cause__
    if not isinstance(error, OSError) or (error.filename is None and error.errno not in _REMEDIES):
        return error
    place = error.filename if error.filename2 is None else error.filename2  # the latter of a rename, the one asked for
    return UserError(("" if place is None else f"{place}: ") + f"{error.strerror}; {remedy(error)}")


def _reporting(main: Callable[[], int]) -> int:
    try:
        return main()
    except (SystemError, OSError) as error:
        raise as_reported(error) from None


def _is_lack_of_memory(error: BaseException) -> bool:
    """nnabla and oneDNN tell it by a RuntimeError's text."""
    return isinstance(error, MemoryError) or "memory error in alloc" in str(error) or "out of memory" in str(error)
