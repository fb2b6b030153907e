"""A job's record is bounded whatever its length, loses no voxel and no peak, and tells speeds as they were."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.reporting.report import FIRST_SLOT, MOST_SLOTS, Timeline

spans = st.tuples(st.floats(-10, 1e5), st.floats(0, 1e5), st.integers(0, 10**9)).map(
    lambda s: (min(s[0], s[1]), s[1], s[2])
)


@given(blocks=st.lists(spans, max_size=30), looks=st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 2**40))))
def test_nothing_is_lost_in_few_slots(blocks: list[tuple[float, float, int]], looks: list[tuple[float, int]]) -> None:
    """All voxels and the highest memory are there, in slots that cover the whole time."""
    timeline = Timeline()
    for start, stop, voxels in blocks:
        timeline.add_voxels(start, stop, voxels)
    for at, held in looks:
        timeline.add_memory(at, held)
    assert len(timeline.voxels) == len(timeline.memory) <= MOST_SLOTS
    assert sum(timeline.voxels) == pytest.approx(sum(voxels for _, _, voxels in blocks), rel=1e-6, abs=1e-3)
    assert max(timeline.memory, default=0) == max((held for _, held in looks), default=0)
    times = [stop for _, stop, _ in blocks] + [at for at, _ in looks]
    assert timeline.end == max(times, default=0.0)
    assert not times or len(timeline.voxels) * timeline.slot > timeline.end


def test_slots_grow_only_when_they_must() -> None:
    """A short job is told in tenths of a second, a long one in slots of half the number at least."""
    timeline = Timeline()
    timeline.add_voxels(0, 2, 100)
    assert timeline.slot == FIRST_SLOT
    timeline.add_voxels(2, 86_400, 100)
    assert MOST_SLOTS / 2 <= len(timeline.voxels) <= MOST_SLOTS


@pytest.mark.parametrize("seconds", [1.5, 40.0, 5000.0])
def test_a_steady_job_has_one_speed(seconds: float) -> None:
    """Blocks that overlap in time, as threads make them, add up to the speed that they have together."""
    timeline = Timeline()
    steps = 50
    for i in range(steps):
        start = seconds * i / steps
        for _ in range(3):
            timeline.add_voxels(start, start + seconds / steps, 1000)
    rates = timeline.rates()
    assert [at for at, _ in rates] == sorted(at for at, _ in rates)
    for _, rate in rates:
        assert rate == pytest.approx(3000 * steps / seconds, rel=1e-6)


def test_threads_may_add_at_once() -> None:
    """Events come from one thread, looks at the memory from another."""
    timeline = Timeline()

    def add() -> None:
        for i in range(2000):
            timeline.add_voxels(i, i + 1, 1)
            timeline.add_memory(i, i + 1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(timeline.voxels) == pytest.approx(8000)
    assert max(timeline.memory) == 2000
