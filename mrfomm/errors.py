"""The one exception for bad input, and the wrapper every command runs in."""

import io
import os
import stat
import sys
from typing import Callable, NoReturn, Union

AnyPath = Union[str, "os.PathLike[str]"]  # of a file or folder


class UserError(Exception):
    """Bad input: a file, key or argument that the person at the keyboard can mend.

    The message is one line that names the file or key and the remedy. Commands print it and exit with 2.
    """


def check_is_file(path: AnyPath) -> None:
    """Refuse a path that is no regular file, before it is opened: a pipe might never begin, a device never end.

    Raises:
        UserError: missing, a folder, a pipe, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:  # a circle of links, too long a name, a name with a zero byte
        raise UserError(f"{path}: can't be opened ({error}); check the path") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder; give a file")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is a pipe, a socket or a device; give a file")


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run ``main()``; turn a :class:`UserError`, or a lack of memory, into one line on stderr and exit code 2.

    Ctrl-C exits with 130 and a closed pipe with 141, as shells expect, without a traceback. Names of files that are no
    text can be printed.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        sys.exit(_without_wrapping(main))
    except UserError as error:
        _give_up(str(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        _give_up(f"not enough memory ({error}); give smaller input, a smaller model or batch")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def unwrapped(error: BaseException) -> BaseException:
    """The error of a function of ours inside an nnabla graph, which comes out as a SystemError; others as they are."""
    return error.__cause__ if isinstance(error, SystemError) and error.__cause__ else error


def _without_wrapping(main: Callable[[], int]) -> int:
    try:
        return main()
    except SystemError as error:
        raise unwrapped(error) from None


def _is_lack_of_memory(error: BaseException) -> bool:
    """nnabla and oneDNN tell it by a RuntimeError's text."""
    return isinstance(error, MemoryError) or "memory error in alloc" in str(error) or "out of memory" in str(error)


def _give_up(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
