"""Sharing decoded chunks between threads."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.readers.chunks import CHUNK_COST, CachedChunk, ChunkCache

BYTES = 1000


def make() -> np.ndarray:
    return np.zeros(BYTES, np.uint8)


def add(cache: ChunkCache, number: int, *, stored: bool = True) -> CachedChunk | None:
    """Claim, settle and release a chunk as its only user; None where it was there, or there was no room."""
    chunk, ours = cache.claim((0, 0, number))
    if chunk is None:
        return None
    if ours:
        cache.settle((0, 0, number), chunk, stored=stored)
    cache.release(chunk)
    return chunk if ours else None


def test_chunks_in_use_keep_their_buffers() -> None:
    """While all buffers are in use there is none for another chunk; after a release there is."""
    cache = ChunkCache(1, make)
    chunk, ours = cache.claim((0, 0, 1))
    assert ours
    assert cache.claim((0, 0, 2)) == (None, True)
    cache.settle((0, 0, 1), chunk, stored=True)
    assert cache.claim((0, 0, 1)) == (chunk, False)
    cache.release(chunk)
    assert cache.claim((0, 0, 2)) == (None, True)
    cache.release(chunk)
    assert cache.claim((0, 0, 2))[0].buffer is chunk.buffer


def test_a_chunk_that_is_not_stored_is_not_kept() -> None:
    """A chunk that failed, or that there is none of, is decoded anew by the next thread; its buffer is used again."""
    cache = ChunkCache(1, make)
    chunk, _ = cache.claim((0, 0, 1))
    other, ours = cache.claim((0, 0, 1))
    assert other is chunk
    assert not ours
    cache.settle((0, 0, 1), chunk, stored=False, failure="broken")
    cache.release(chunk)
    assert cache.claim((0, 0, 2)) == (None, True)
    assert other.failure == "broken"
    cache.release(other)
    again, ours = cache.claim((0, 0, 1))
    assert ours
    assert again.buffer is chunk.buffer
    assert not again.failure


def test_without_slots_nothing_is_kept() -> None:
    """A cache of no slots, or fewer, never has room."""
    for slots in (0, -1):
        assert ChunkCache(slots, make).claim((0, 0, 0)) == (None, True)


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=60))
def test_it_holds_what_a_list_of_the_last_ones_holds(slots: int, steps: list[tuple[int, bool]]) -> None:
    """Used by one thread, the cache holds the stored chunks that were used last, and makes no more buffers."""
    made: list[np.ndarray] = []
    cache = ChunkCache(slots, lambda: made.append(make()) or made[-1])
    # The oracle is told what the cache evicts for: every chunk not held, stored or not, takes a buffer.
    held: list[int] = []
    free = slots
    for number, stored in steps:
        decoded = add(cache, number, stored=stored) is not None
        assert decoded == (number not in held)
        if not decoded:
            held.remove(number)
            held.append(number)
            continue
        if not free:
            held.pop(0)
            free += 1
        if stored:
            held.append(number)
            free -= 1
    assert len(made) <= slots


def test_what_a_chunk_costs_beside_its_voxels() -> None:
    """Keeping many small chunks takes no more than their voxels and `CHUNK_COST` each."""
    number = 2000
    tracemalloc.start()
    try:
        cache = ChunkCache(number, make)
        for i in range(number):
            add(cache, i)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= number * (BYTES + CHUNK_COST)
