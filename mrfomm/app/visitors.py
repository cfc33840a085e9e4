"""Who still waits for a result, and what visitors leave behind: no job or file outlives them for long."""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from mrfomm.errors import AnyPath, UserError

BLOCK = 4096  # bytes that even an empty file counts for
PATIENCE = 20.0  # seconds that a job goes on without anybody listening: a page asks first, then listens


class StoppedError(UserError):
    """The job's visitor has stopped or replaced it, or left: nobody waits for its result or for an error."""


class Sessions:
    """Which visitors listen for results, and the job of each."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._listening: Counter[str] = Counter()
        self._current: dict[str, object] = {}

    @contextlib.contextmanager
    def listening(self, session: str) -> Iterator[None]:
        """While a connection for the session's results is open."""
        self._listening[session] += 1
        try:
            yield
        finally:
            self._listening[session] -= 1
            self._listening += Counter()  # forgets those of whom none is left

    def stop(self, session: str) -> None:
        """End the session's job at its next frame."""
        self._current.pop(session, None)

    @contextlib.contextmanager
    def job(self, session: str) -> Iterator[Callable[[], None]]:
        """Yield a function that raises StoppedError once the job was stopped or replaced, or nobody listens."""
        token = self._current[session] = object()
        heard = time.monotonic()

        def check() -> None:
            nonlocal heard
            if self._listening[session]:
                heard = time.monotonic()
            if self._current.get(session) is not token or time.monotonic() - heard > self._patience:
                raise StoppedError("stopped")

        try:
            yield check
        finally:
            if self._current.get(session) is token:
                self.stop(session)


def files_below(folder: AnyPath) -> Iterator[tuple[Path, os.stat_result]]:
    """Path and status of everything in a folder; what is removed meanwhile is left out."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            with contextlib.suppress(FileNotFoundError):
                yield path, path.lstat()


def stored_bytes(folder: AnyPath) -> int:
    """Bytes that the files in a folder take; folders and empty files count for a block."""
    return sum(max(status.st_size, BLOCK) for _, status in files_below(folder))


def remove_old(folder: AnyPath, seconds: float, kept: Container[Path]) -> None:
    """Remove what was last changed that long ago or longer, but not the paths ``kept``; then folders left empty."""
    latest = time.time() - seconds
    old = [path for path, status in files_below(folder) if status.st_mtime <= latest and path not in kept]
    for path in sorted(old, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):  # a folder that still holds something, or gone already
            path.rmdir() if path.is_dir() else path.unlink()


@contextlib.contextmanager
def cleaning(folder: AnyPath, seconds: float) -> Iterator[None]:
    """Inside the block, a thread removes what is older than that, but not what is there already."""
    kept = {path for path, _ in files_below(folder)}
    ended = threading.Event()

    def clean() -> None:
        while not ended.wait(seconds / 10):
            remove_old(folder, seconds, kept)

    thread = threading.Thread(target=clean, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
