"""What a run writes: files that are whole or not there, their checksums, a folder that one run has to itself."""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
from pathlib import Path
from typing import Iterator

from mrfomm.errors import AnyPath, UserError

LOCK = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some network file systems


@contextlib.contextmanager
def whole_file(path: AnyPath, shared: bool = False) -> Iterator[Path]:
    """Context manager that yields a path to write to; it becomes ``path`` at the end, and only if all went well.

    The folder is made if need be.

    Args:
        path: the file.
        shared: several processes may write it at once. Each then writes its own, and the last one stays; what a killed
            process leaves is not overwritten by the next.

    Raises:
        UserError: what was written inside, or the file itself, didn't find room or permission.
    """
    path = Path(path)
    owner = f"{os.getpid()}-" if shared else ""
    aside = path.with_name(f".partial-{owner}{path.name}")  # ends like the file: writers choose their format by that
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(path)
    except OSError as error:
        raise cant_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()  # nothing is there any more if all went well


def cant_write(path: AnyPath, error: OSError) -> UserError:
    """The UserError for an OSError met while writing ``path``."""
    return UserError(f"{path}: can't write there ({error.strerror or error}); make room or choose another place")


def sha256_of(path: AnyPath) -> str:
    """SHA-256 of a file in hexadecimal, read block by block; an OSError is the caller's to explain."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(folder: AnyPath) -> Iterator[None]:
    """Context manager during which no other process can hold the lock of an existing folder.

    The lock belongs to the open file and so ends with the process, however that ends; the empty file ``.lock`` stays.

    Raises:
        UserError: another process holds it, or the folder can't be written to.
    """
    path = Path(folder) / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # not inherited by processes started later
    except OSError as error:
        raise cant_write(path, error) from error
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: AnyPath) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{folder}: another run is at work there; wait for its end or take another folder") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise cant_write(folder, error) from error
        logging.getLogger(__name__).warning("%s: can't be locked (%s); start only one run there", folder, error)
