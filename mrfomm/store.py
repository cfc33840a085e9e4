"""What a run writes: files that are whole or not there, their checksums, a folder that one run has to itself."""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from mrfomm.errors import AnyPath, UserError, remedy

LOCK = ".lock"
PARTIAL, OLD = ".partial", ".old"  # ends of the names of folders that are not whole yet, or replaced
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some network file systems


@contextlib.contextmanager
def whole_file(path: AnyPath) -> Iterator[Path]:
    """Context manager that yields a path to write to; it becomes ``path`` at the end, and only if all went well.

    The folder is made if need be. Where several processes write the file at once, each has its own path to write to,
    and the last one stays.

    Raises:
        UserError: what was written inside, or the file itself, didn't find room or permission.
    """
    path = Path(path)
    # the name ends like the file's: writers choose their format by that
    aside = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(path)
    except OSError as error:
        raise cant_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()  # nothing is there any more if all went well


@contextlib.contextmanager
def whole_folder(path: AnyPath) -> Iterator[Path]:
    """Context manager that yields a new folder to fill; it takes the place of ``path`` at the end, if all went well.

    Its files are synchronised first, and what stood there is renamed before it is deleted: under its own name the
    folder is whole, whenever the program is killed. Names of what isn't whole are hidden and end in PARTIAL or OLD.

    Raises:
        UserError: what was written inside, or the folder itself, didn't find room or permission.
    """
    path = Path(path)
    aside = own_name(path, PARTIAL)
    try:
        aside.mkdir(parents=True)
        yield aside
        for entry in (*aside.rglob("*"), aside):
            synchronise(entry)
        _replace(aside, path)
    except OSError as error:
        raise cant_write(path, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def own_name(folder: Path, end: str) -> Path:
    """A hidden name beside a folder that nobody else uses."""
    return folder.with_name(f".{folder.name}.{secrets.randbits(48)}{end}")


def synchronise(path: AnyPath) -> None:
    """Have a file, or the names in a folder, on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(aside: Path, folder: Path) -> None:
    """Rename ``aside`` to ``folder``; an older folder of that name, maybe another process', is moved out of the way."""
    old = own_name(folder, OLD)
    while True:
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        try:
            aside.rename(folder)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # then another process has put one there meanwhile
                raise
    synchronise(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def cant_write(path: AnyPath, error: OSError) -> UserError:
    """The UserError for an OSError met while writing ``path``."""
    advice = remedy(error, "make room or choose another place")
    return UserError(f"{path}: can't write there ({error.strerror or error}); {advice}")


def files_below(folder: AnyPath, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files in a folder and its subfolders, in order, without hidden ones. Links are followed, though not back to a
    folder above; one that leads nowhere counts as a file.

    Raises:
        UserError: one of the folders can't be listed; rglob() would pass over it.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(Path(folder).iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); {remedy(error)}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry):
            yield from files_below(entry, (*above, real))
        else:
            yield entry


def sha256_of(path: AnyPath) -> str:
    """SHA-256 of a file in hexadecimal, read block by block; an OSError is the caller's to explain."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(folder: AnyPath, make: bool = False) -> Iterator[None]:
    """Context manager during which no other process can hold a folder's lock.

    The lock belongs to the open file and so ends with the process, however that ends; the empty file ``.lock`` stays.

    Args:
        folder: a folder that is there.
        make: make it if it isn't.

    Raises:
        UserError: another process holds it, or the folder can't be written to.
    """
    path = Path(folder) / LOCK
    try:
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # not inherited by processes started later
    except OSError as error:
        raise cant_write(folder, error) from error
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
