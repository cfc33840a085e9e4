"""Reading ahead and writing behind: decoding and encoding go on in threads while the network computes.

Both hold a few frames at most, so memory does not grow with the length of a clip. Errors surface where the work is
used: from the iteration, or from the next ``write``.
"""

import contextlib
import queue
import threading

DEPTH = 8  # frames, or batches of them, waiting at most


class _End:
    """What follows the last item: the error that ended the work, or None."""

    def __init__(self, error=None):
        self.error = error


def read_ahead(items, depth=DEPTH):
    """Iterate over ``items`` with a thread that is up to ``depth`` items ahead.

    The thread ends with the iterable, with its error (raised here in its turn), or when this generator is closed.
    """
    waiting = queue.Queue(depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, waiting, stopped), daemon=True)
    thread.start()
    try:
        while True:
            item = waiting.get()
            if isinstance(item, _End):
                if item.error:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        with contextlib.suppress(queue.Empty):  # make room, or the thread would wait for ever
            while True:
                waiting.get_nowait()
        thread.join()


def _fill(items, waiting, stopped):
    end = _End()
    iterator = iter(items)
    try:
        for item in iterator:
            waiting.put(item)
            if stopped.is_set():
                return
    except BaseException as error:
        end = _End(error)
    finally:
        if hasattr(iterator, "close"):
            iterator.close()  # here: a generator is closed by the thread that ran it
    waiting.put(end)


@contextlib.contextmanager
def write_behind(write, depth=DEPTH):
    """A stand-in for the function ``write``: calls return at once, a thread does them in order.

    All are done when the block ends well; if it ends in an error, what waits is dropped. An error of ``write`` is
    raised by the next call, or at the end of the block.
    """
    waiting = queue.Queue(depth)
    failures = []
    thread = threading.Thread(target=_drain, args=(write, waiting, failures), daemon=True)
    thread.start()

    def put(*arguments):
        if failures:
            raise failures[0]
        waiting.put(arguments)

    dropped = True
    try:
        yield put
        dropped = False
    finally:
        if dropped:
            failures.append(None)  # the thread only empties the queue from now on
        waiting.put(_End())
        thread.join()
    if failures:
        raise failures[0]


def _drain(write, waiting, failures):
    while True:
        arguments = waiting.get()
        if isinstance(arguments, _End):
            return
        if not failures:
            try:
                write(*arguments)
            except BaseException as error:
                failures.append(error)
