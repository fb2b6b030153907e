"""Host buffers of a level that the next one uses."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from isovoxel.codecs.cuda import LARGE_PAGE, new_memory
from isovoxel.engines.buffers import HostBufferPool
from polling import wait_until


class _Plan:
    """What of a plan the pool looks at."""

    def __init__(self, staging: tuple[int, int], projected_host: int, in_flight: int = 2) -> None:
        self.staging = self.staging_on_host = staging
        self.projected_host, self.in_flight = projected_host, in_flight


class _Buffer:
    def __init__(self, nbytes: int, _register: Any = None, _memory: Any = None) -> None:
        self.nbytes = nbytes

    def free(self) -> None:
        """Give back what it does not have."""


@pytest.fixture
def pool() -> Any:
    """A pool whose buffers take no memory."""
    return HostBufferPool(lambda _: None, _Buffer, lambda plan: plan.staging)  # type: ignore[arg-type]


@pytest.mark.parametrize("nbytes", [1, 4096, LARGE_PAGE - 1, LARGE_PAGE, 3 * LARGE_PAGE + 5])
def test_memory_that_a_gpu_shall_reach_lies_in_whole_large_pages(nbytes: int) -> None:
    """It begins with one, has so many bytes, which are zeros, and can be written."""
    memory = new_memory(nbytes)
    assert (memory.shape, memory.dtype) == ((nbytes,), np.uint8)
    assert memory.ctypes.data % LARGE_PAGE == 0
    assert not memory.any()
    memory[:] = 7
    assert memory.min() == 7


def test_memory_that_is_not_there_is_a_lack_of_memory() -> None:
    """What the pool waits for is told from other failures."""
    with pytest.raises(MemoryError, match="no 1152921504606846976 bytes"):
        new_memory(2**60)


def test_where_blocks_must_come_to_the_host_after_all_there_are_as_many_pairs_as_are_projected(pool: Any) -> None:
    """Four blocks in flight are projected to take 40 bytes each, and take 100: one pair goes round."""
    plan = _Plan((40, 60), 1000, in_flight=4)
    plan.staging_on_host = (40, 0)
    pair = pool.take(plan)
    with ThreadPoolExecutor(1) as other:
        second = other.submit(pool.take, plan)
        pool.give(pair)
        assert second.result() is pair


def test_memory_that_comes_back_meanwhile_is_asked_for_again(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread finds none while the only pair is in use, and nobody has one any more when it says so."""
    plan, make = _Plan((60, 40), 1000), pool._make
    first, begun, given = pool.take(plan), threading.Event(), threading.Event()

    def late(*arguments: Any) -> Any:
        if not given.is_set():
            begun.set()
            given.wait()
            raise MemoryError
        return make(*arguments)

    monkeypatch.setattr(pool, "_make", late)
    with ThreadPoolExecutor(1) as other:
        second = other.submit(pool.take, plan)
        begun.wait()
        pool._most = 1  # as another thread has found, so that the pair is not kept
        pool.give(first)
        given.set()
        assert second.result() is not first


def test_larger_buffers_are_kept_within_the_projection_of_the_levels_before(pool: Any) -> None:
    """Two pairs of 100 in place of 20 are 160 more: that the first level was projected to take."""
    pair = pool.take(_Plan((60, 40), 1000))
    pool.give(pair)
    assert pool.take(_Plan((10, 10), 840)) == pair


def test_a_thread_waits_for_a_pair_where_the_host_has_no_memory_for_another(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three pairs, for a fourth of which memory is missing, the driver gets one; the others go round."""
    plan = _Plan((60, 40), 1000)
    pairs = [pool.take(plan) for _ in range(3)]

    def fails(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(pool, "_make", fails)
    with ThreadPoolExecutor(1) as other:
        fourth = other.submit(pool.take, plan)
        while pool._most is None:
            pass
        assert pool._most == 2
        pool.give(pairs[0])
        pool.give(pairs[1])
        assert fourth.result() in pairs[1:2]
        pool.give(pairs[1])
        pool.give(pairs[2])
    pool.forget()
    with pytest.raises(MemoryError):
        pool.take(plan)


def test_a_thread_that_waits_learns_that_the_one_before_it_got_no_pair(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two threads that take turns with one pair, the first fails to make it: the second tries, and fails as well."""
    plan, going = _Plan((60, 40), 1000), threading.Event()

    def fails(*_: Any) -> Any:
        going.wait()
        raise RuntimeError

    pool.give(pool.take(plan))
    pool.keep(0)
    monkeypatch.setattr(pool, "_make", fails)
    pool._most = 1
    with ThreadPoolExecutor(2) as others:
        both = [others.submit(pool.take, plan) for _ in range(2)]
        wait_until(lambda: pool._changed._waiters)
        going.set()
        try:
            wait_until(lambda: all(each.done() for each in both))
        finally:
            pool.forget()
        assert all(isinstance(each.exception(), RuntimeError) for each in both)


def test_a_thread_that_waited_gets_a_pair_of_its_own_plan(pool: Any) -> None:
    """Two jobs share the pool; one has changed the sizes meanwhile, and what it gives back is too small."""
    pair = pool.take(_Plan((60, 40), 1000))
    pool._most = 1
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(pool.take, _Plan((60, 40), 1000))
        wait_until(lambda: pool._changed._waiters)
        pool.give(pool.take(_Plan((10, 10), 1000)))
        pool.give(pair)
        assert [buffer.nbytes for buffer in waiting.result()] == [60, 40]


def test_larger_buffers_are_not_kept_beyond_the_projection(pool: Any) -> None:
    """However much is allowed: a byte more than the largest projection, and the level gets buffers of its own size."""
    pair = pool.take(_Plan((60, 40), 1000))
    pool.give(pair)
    smaller = pool.take(_Plan((10, 10), 841))
    assert [buffer.nbytes for buffer in smaller] == [10, 10]


def test_the_next_job_is_not_held_to_the_last_one(pool: Any) -> None:
    """Once all is given back, nothing of the projection is left."""
    pool.give(pool.take(_Plan((60, 40), 1000)))
    pool.forget()
    pool.give(pool.take(_Plan((60, 40), 500)))
    assert [buffer.nbytes for buffer in pool.take(_Plan((10, 10), 400))] == [10, 10]
