"""What a run writes: files that are whole or not there, their checksums, a folder that one run has to itself."""

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mrfomm.errors import AnyPath, UserError, named

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
PARTIAL, OLD = ".partial", ".old"  # ends of the names of folders that are not whole yet, or replaced
_STAGING, _NEW_STAGING = ".mrfomm-", ".new-mrfomm-"  # how folders for unfinished output begin
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some network file systems
_log = logging.getLogger(__name__)


def named_writing(path: AnyPath) -> contextlib.AbstractContextManager[None]:
    """Turn an OSError met while ``path`` is written into a UserError."""
    return named(path, "can't write there", "make room or choose another place")


@contextlib.contextmanager
def whole_file(path: AnyPath) -> Iterator[Path]:
    """Yield a path to write to; it becomes ``path`` at the end, and only if all went well. Its folder is made if need
    be. Where several processes write the file at once, each has its own path to write to, and the last one stays. An
    OSError inside, such as a lack of room, becomes a UserError."""
    path = Path(path)
    # the name ends like the file's: writers choose their format by that
    aside = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        with named_writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            aside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()  # nothing is there any more if all went well


@contextlib.contextmanager
def whole_folder(path: AnyPath) -> Iterator[Path]:
    """Yield a new folder to fill; it takes the place of ``path`` at the end, if all went well. An OSError inside
    becomes a UserError.

    What stood there is renamed before it is deleted: under its own name the folder is whole, whenever the program is
    killed. Names of what isn't whole are hidden and end in PARTIAL or OLD. What must outlive a loss of power is
    synchronised inside.
    """
    path = Path(path)
    aside = own_name(path, PARTIAL)
    try:
        with named_writing(path):
            aside.mkdir(parents=True)
            yield aside
            _replace(aside, path)
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


@contextlib.contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Yield a folder for unfinished output on the target's disk: beside it, or inside one that is there, maybe a mount
    point. It is locked, and in the end deleted. Those that killed runs have left, without a lock, are deleted first. A
    UserError if another run writes into the same folder; an OSError if it can't be written."""
    home = target if target.is_dir() else target.parent
    home.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.stat(target)  # a name too long for the disk is told before the work
    for left in home.glob(f"{_STAGING}*"):
        with contextlib.ExitStack() as held:
            if _lock(left, os.O_RDONLY, held) is None:
                shutil.rmtree(left, ignore_errors=True)
            elif target.is_dir() and left.exists():
                raise _another_run(target)
    new = Path(tempfile.mkdtemp(prefix=_NEW_STAGING, dir=home))
    with contextlib.ExitStack() as held:
        _lock(new, os.O_RDONLY, held)
        staging = new.rename(home / new.name.replace(_NEW_STAGING, _STAGING))  # none is there without a lock
        held.callback(shutil.rmtree, staging)
        yield staging


def is_staging(name: str) -> bool:
    """Whether a folder of that name holds unfinished output."""
    return name.startswith((_STAGING, _NEW_STAGING))


@contextlib.contextmanager
def locked(folder: AnyPath, make: bool = False) -> Iterator[None]:
    """Let no other process hold a folder's lock meanwhile; ``make``: make the folder if it isn't there. The lock ends
    with the process, however that ends; the empty file ``.lock`` stays. A UserError if another process holds it, or the
    folder can't be written to."""
    with contextlib.ExitStack() as held:
        with named_writing(folder):
            if make:
                Path(folder).mkdir(parents=True, exist_ok=True)
            problem = _lock(Path(folder) / LOCK, os.O_RDWR | os.O_CREAT, held)
            if isinstance(problem, BlockingIOError):
                raise _another_run(folder)
            if problem is not None and problem.errno not in _NO_LOCKS:
                raise problem
        if problem is not None:
            _log.warning("%s: can't be locked (%s); start only one run there", folder, problem)
        yield


def _lock(path: Path, flags: int, held: contextlib.ExitStack) -> OSError | None:
    """Lock a file or folder while ``held`` is open; returns what was in the way."""
    if fcntl is None:
        return OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    try:
        descriptor = os.open(path, flags, 0o666)  # not inherited by processes started later
        held.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None


def _another_run(folder: AnyPath) -> UserError:
    return UserError(f"{folder}: another run is at work there; wait until it ends, or take another folder")


def files_below(folder: AnyPath, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files in a folder and its subfolders, in order, without hidden ones. Links are followed, though not back to a
    folder above; one that leads nowhere counts as a file. A UserError if one of the folders can't be listed, which
    rglob() would pass over."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in sorted(entries(folder)):
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry):
            yield from files_below(entry, (*above, real))
        else:
            yield entry


def entries(folder: AnyPath) -> list[Path]:
    """What is in a folder; a UserError if it can't be listed."""
    with named(folder, "cannot be listed"):
        return list(Path(folder).iterdir())


def sha256_of(path: AnyPath) -> str:
    """SHA-256 of a file in hexadecimal; an OSError is the caller's to explain."""
    return checksum_of(path, "sha256")


def checksum_of(path: AnyPath, kind: str) -> str:
    """A file's checksum of one of hashlib's kinds, in hexadecimal, read block by block; otherwise as ``sha256_of``."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
