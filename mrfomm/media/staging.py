"""Where output stands until it is whole: a locked folder beside its place, from which it is renamed."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
from av.codec.codec import UnknownCodecError

from mrfomm.errors import UserError
from mrfomm.media.container import reason

FRAME_NAME = re.compile(r"\d{6,}\.png")
_STAGING, _NEW_STAGING = ".mrfomm-", ".new-mrfomm-"  # how folders for unfinished output begin


def is_staging(name: str) -> bool:
    """Whether a folder of that name holds unfinished output."""
    return name.startswith((_STAGING, _NEW_STAGING))


@contextlib.contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A folder on the target's disk, for atomic renaming; inside a target folder, maybe a mount point.

    It is locked while it is in use. Those that killed runs have left, without a lock, are removed.

    Raises:
        UserError: the place can't be written, or another run writes into the same folder.
    """
    home = target if target.is_dir() else target.parent
    with named_errors(target):
        home.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.stat(target)  # a name too long for the disk is told before the work
        for left in home.glob(f"{_STAGING}*"):
            with _lock(left) as is_mine:
                if is_mine:
                    shutil.rmtree(left, ignore_errors=True)
                elif target.is_dir() and left.exists():
                    raise UserError(f"{target}: another run is at work there; wait for its end or take another folder")
        new = Path(tempfile.mkdtemp(prefix=_NEW_STAGING, dir=home))
    with _lock(new):
        staging = new.rename(home / new.name.replace(_NEW_STAGING, _STAGING))
        try:
            yield staging
        finally:
            shutil.rmtree(staging)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Lock a folder until this process ends at the latest; yield whether that could be done."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)  # not inherited by processes started later
    except OSError:  # another run has just removed it
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_mine = True
    except OSError:  # another's, or a file system without locks
        is_mine = False
    try:
        yield is_mine
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def named_errors(target: Path) -> Iterator[None]:
    """Name the output in what the disk or an encoder raises."""
    try:
        yield
    except (OSError, av.FFmpegError, UnknownCodecError) as error:
        raise UserError(f"{target}: cannot be written ({reason(error)}); make room or use another place") from error


def publish(finished: Path, target: Path) -> None:
    """Put what is finished into its place; of a folder the frames that are no longer in it go."""
    if not target.is_dir():
        os.replace(finished, target)
        return
    fresh = {entry.name for entry in finished.iterdir()}
    for name in sorted(fresh):
        os.replace(finished / name, target / name)
    for entry in target.iterdir():
        if FRAME_NAME.fullmatch(entry.name) and entry.name not in fresh:
            entry.unlink()
