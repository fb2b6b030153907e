"""Runs of blocks: each block is given exactly once unless it is given back, in an order that keeps chunks warm."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from isovoxel.execution.distributed.runs import Runs

WORKERS = ("a", "b", "c", "d")
worker = st.sampled_from(WORKERS)


class Giving(RuleBasedStateMachine):
    """Workers take, finish, give back, leave and come, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.done = bytearray(b"\0\1\0\0\0\1\1\0\0\0\0\0\0\1\0\0\0")
        self.runs = Runs(self.done, WORKERS[:2])
        self.left = {i for i, done in enumerate(self.done) if not done}
        self.out: dict[int, str] = {}
        self.shunned: dict[int, str] = {}

    @rule(name=worker)
    def take(self, name: str) -> None:
        """A worker gets a block that nobody has, unless there is none but those that it shall not have."""
        block = self.runs.take(name)
        if block is None:
            assert all(self.shunned.get(b) == name for b in self.left)
            return
        assert block in self.left
        assert self.shunned.pop(block, None) != name
        self.left.remove(block)
        self.out[block] = name

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """A block that is done is never given again."""
        if self.out:
            block = data.draw(st.sampled_from(sorted(self.out)))
            del self.out[block]
            self.done[block] = 1

    @rule(data=st.data(), shun=st.booleans())
    def give_back(self, data: st.DataObject, *, shun: bool) -> None:
        """A block that is given back is given again, to another worker where that is asked for."""
        if self.out:
            block = data.draw(st.sampled_from(sorted(self.out)))
            name = self.out.pop(block)
            self.runs.give_back(block, name if shun else "")
            self.left.add(block)
            if shun:
                self.shunned[block] = name

    @rule(name=worker)
    def leave(self, name: str) -> None:
        """The run of a worker that leaves is there for the others."""
        self.runs.leave(name)

    @invariant()
    def says_whether_something_is_left(self) -> None:
        """Neither a block too many nor one too few."""
        assert bool(self.runs) == bool(self.left)


TestGiving = Giving.TestCase


@given(st.integers(1, 200), st.integers(1, 7))
def test_workers_of_one_speed_keep_to_their_runs(n: int, count: int) -> None:
    """Each goes from block to neighbour; only where its run ends does it jump."""
    names = [str(i) for i in range(count)]
    runs, taken = Runs(bytearray(n), names), {name: list[int]() for name in names}
    while runs:
        for name in names:
            if (block := runs.take(name)) is not None:
                taken[name].append(block)
    assert sorted(b for blocks in taken.values() for b in blocks) == list(range(n))
    assert max(map(len, taken.values())) - min(map(len, taken.values())) <= 1
    for blocks in taken.values():
        assert sum(b != a + 1 for a, b in pairwise(blocks)) <= 1


@pytest.mark.parametrize("speed", [2, 10, 100])
def test_a_slow_worker_gets_fewer(speed: int) -> None:
    """One that takes a block while another takes many ends with as little as it can do in that time."""
    done = bytearray(1000)
    runs, count = Runs(done, ["fast", "slow"]), 0
    while runs:
        for _ in range(speed):
            if (block := runs.take("fast")) is not None:
                done[block] = 1
        if (block := runs.take("slow")) is not None:
            done[block] = 1
            count += 1
    assert count <= 1000 / (speed + 1) + 1


def test_a_worker_that_is_alone_gets_what_it_shall_not_have() -> None:
    """Where there is no other one, the same one may try again."""
    runs = Runs(bytearray(1), ["a"])
    assert runs.take("a") == 0
    runs.give_back(0, "a")
    assert runs.take("a") is None
    assert runs.take("a", shunned=True) == 0


def test_nothing_is_kept_for_a_block() -> None:
    """Of 10^8 blocks there is a byte for each, and a pair of numbers for each run."""
    runs = Runs(bytearray(10**8), [str(i) for i in range(500)])
    assert [runs.take(str(i)) for i in range(3)] == [0, 200_000, 400_000]
    assert runs.take("new") == 700_000
