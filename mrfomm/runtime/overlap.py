"""Reading ahead and writing behind: decoding and encoding go on in threads while the network computes.

Both hold a few frames at most, so memory does not grow with the length of a clip. Errors surface where the work is
used: from the iteration, or from the next ``write``.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

DEPTH = 8  # frames, or batches of them, waiting at most
_END: Any = object()
_Item = TypeVar("_Item")


def read_ahead(items: Iterable[_Item], depth: int = DEPTH) -> Generator[_Item, None, None]:
    """Iterate over ``items`` with a thread that is up to ``depth`` items ahead.

    The thread ends with the iterable, with its error (raised here in its turn), or when this generator is closed.
    """
    iterator: Iterator[Any] = iter(items)
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, iterator, _END) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(pool.submit(next, iterator, _END))
                yield item
        finally:
            for future in waiting:
                future.cancel()
            _close(iterator, pool)


def _close(iterator: Iterator[Any], pool: ThreadPoolExecutor) -> None:
    """Close a generator in the thread that ran it."""
    if hasattr(iterator, "close"):
        try:
            closed = pool.submit(iterator.close)
        except RuntimeError:  # the interpreter ends: threads take on nothing any more
            return
        closed.result()


@contextlib.contextmanager
def write_behind(write: Callable[..., object], depth: int = DEPTH) -> Iterator[Callable[..., None]]:
    """A stand-in for the function ``write``: calls return at once, a thread does them in order.

    All are done when the block ends well; if it ends in an error, what waits is dropped. An error of ``write`` is
    raised by the next call, or at the end of the block.
    """
    failures: list[BaseException] = []
    places = threading.Semaphore(depth)

    def work(*arguments: Any) -> None:
        try:
            if not failures:
                write(*arguments)
        except BaseException as error:
            failures.append(error)
        finally:
            places.release()

    def put(*arguments: Any) -> None:
        if failures:
            raise failures[0]
        places.acquire()
        pool.submit(work, *arguments)

    with ThreadPoolExecutor(1) as pool:
        try:
            yield put
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if failures:
        raise failures[0]
