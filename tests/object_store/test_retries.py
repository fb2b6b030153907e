"""Doing the same with many items on threads, with results in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.object_store.retries import AHEAD, map_in_order, retry


@given(items=st.lists(st.integers()), threads=st.integers(1, 5))
def test_results_come_in_the_order_of_the_items(items: list[int], threads: int) -> None:
    """As a loop would give them, whatever the number of threads."""
    with map_in_order(lambda n: -n, items, threads) as results:
        assert list(results) == [-n for n in items]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_work_at_a_time_and_no_more_is_begun_than_said(threads: int) -> None:
    """As many as threads wait for each other here; items are only taken as results are."""
    together = threading.Barrier(threads)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(5 * threads):
            taken.append(item)
            yield item

    def do(item: int) -> int:
        together.wait(60)
        return item

    with map_in_order(do, items(), threads) as results:
        for count, result in enumerate(results):
            assert result == count
            assert len(taken) <= count + AHEAD * threads
    assert len(taken) == 5 * threads


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_failure_in_order_is_raised(threads: int) -> None:
    """Whichever thread fails first."""
    later = threading.Event()

    def do(item: int) -> int:
        if item == 1:
            if threads > 1:
                assert later.wait(60)
            raise ValueError(item)
        if item == 3:
            later.set()
            raise ValueError(item)
        return item

    with pytest.raises(ValueError, match="1"), map_in_order(do, range(10), threads) as results:
        list(results)


def test_an_interrupt_ends_pauses_and_what_has_not_begun() -> None:
    """A thread that pauses before a new attempt gives up at once, and no thread is left."""
    pausing, attempts = threading.Event(), []

    def fail() -> int:
        attempts.append(threading.current_thread())
        raise ConnectionResetError(104, "reset")

    def do(item: int) -> int:
        if item == 0:
            assert pausing.wait(60)
            return item
        pausing.set()
        return retry(fail)

    def interrupted() -> None:
        with map_in_order(do, range(100), 2) as results:
            assert next(results) == 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any(thread.is_alive() for thread in attempts)
    assert len(attempts) < 100
