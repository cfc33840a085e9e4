"""Reading ahead and writing behind: order, errors, bounded look-ahead, and threads that end."""

import threading
import time

import pytest

from mrfomm.runtime.overlap import read_ahead, write_behind


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_items_come_in_order():
    assert list(read_ahead(range(100), depth=3)) == list(range(100))


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield from range(3)
        raise KeyError("broken")

    seen = []
    with pytest.raises(KeyError, match="broken"):
        seen.extend(read_ahead(items()))
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("endless", [True, False])
def test_closing_early_stops_and_closes_the_source(endless):
    closed = threading.Event()

    def items():
        try:
            i = 0
            while endless or i < 2:
                yield i
                i += 1
        finally:
            closed.set()

    reader = read_ahead(items(), depth=2)
    assert next(reader) == 0
    reader.close()
    assert closed.is_set()


def test_it_reads_ahead_but_not_further_than_the_depth():
    read = []

    def items():
        for i in range(50):
            read.append(i)
            yield i

    reader = read_ahead(items(), depth=4)
    next(reader)
    deadline = time.monotonic() + 600
    while len(read) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert 5 <= len(read) <= 6  # one taken, four waiting, one in the thread's hand
    reader.close()


def test_everything_is_written_in_order_when_the_block_ends():
    written = []
    with write_behind(lambda item: (time.sleep(0.001), written.append(item)), depth=2) as write:
        for i in range(20):
            write(i)
    assert written == list(range(20))


def test_a_failed_write_is_raised_and_nothing_more_is_written():
    written = []

    def fail_at_three(item):
        if item == 3:
            raise OSError("disk full")
        written.append(item)

    with pytest.raises(OSError, match="disk full"), write_behind(fail_at_three, depth=1) as write:
        list(map(write, range(100)))
    assert written == [0, 1, 2]


def test_a_failed_last_write_is_raised_at_the_end():
    def fail(_):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), write_behind(fail) as write:
        write(0)


def test_an_error_in_the_block_drops_what_waits():
    started, go_on, written = threading.Event(), threading.Event(), []

    def slow(item):
        started.set()
        go_on.wait(5)
        written.append(item)

    def write_and_fail():
        with write_behind(slow) as write:
            write(0)
            write(1)
            started.wait(5)
            threading.Timer(0.05, go_on.set).start()
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert written == [0]
