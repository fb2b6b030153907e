"""What fails for a moment is tried again, and what memory does not hold is done with less of it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from isovoxel.engines.base import Cancelled
from isovoxel.errors import CorruptInputError, DeviceFullError, DeviceLostError, JobError
from isovoxel.execution.events import BlockDone, Event, Filled, Retried, Slowed
from isovoxel.execution.executor import BlockFailed, Room
from isovoxel.execution.result import Tally
from isovoxel.execution.threads import ThreadRun
from isovoxel.geometry.grid import Box
from isovoxel.object_store import retries
from isovoxel.planning.model import Block
from repeat import EXPECTED, MODES, VOLUME, Repeat, planned, thread_run
from strategies import MemoryWriter, read_from


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSES", (0.001, 0.002, 0.004))


class Failing:
    """Calls something, and fails the first so many times, in whatever thread."""

    def __init__(self, times: int, error: Callable[[], Exception]) -> None:
        self.left, self.error, self.lock = times, error, threading.Lock()

    def __call__(self, *_: object) -> None:
        with self.lock:
            self.left -= 1
            if self.left >= 0:
                raise self.error()


def broken_cable() -> Exception:
    return OSError(errno.EIO, "Input/output error")


def full_device() -> Exception:
    return DeviceFullError("no room")


def run(mode: str, fail: Failing, stage: str, **changes: Any) -> tuple[ThreadRun, list[Event], MemoryWriter]:
    """Run a job in which one stage fails."""
    plan, events = planned(mode, **changes), []
    writer = MemoryWriter(plan)
    write = writer.write

    def failing_write(box: Box, data: np.ndarray) -> Any:
        fail()
        return write(box, data)

    def failing_read(box: Box, out: np.ndarray | None = None) -> np.ndarray:
        fail()
        return read_from(VOLUME)(box, out)

    if stage == "writing":
        writer.write = failing_write  # type: ignore[method-assign]
    read = failing_read if stage == "reading" else read_from(VOLUME)
    engine = Repeat(fail) if stage == "scaling" else Repeat()
    job = thread_run(plan, read, engine, writer, [events.append])
    job.run()
    np.testing.assert_array_equal(writer.data, EXPECTED)
    assert (writer.times == 1).all()
    assert job.progress.done == bytes([1]) * plan.n_blocks
    assert sum(isinstance(event, BlockDone) for event in events) == plan.n_blocks
    return job, events, writer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("stage", "error"), [("reading", broken_cable), ("writing", broken_cable), ("scaling", full_device)]
)
def test_what_fails_for_a_moment_is_tried_again(mode: str, stage: str, error: Callable[[], Exception]) -> None:
    """Each attempt is told, with its block, reason and pause; the result is what it would have been."""
    _, events, _ = run(mode, Failing(3, error), stage)
    told = [event for event in events if isinstance(event, Retried)]
    assert len(told) == 3
    assert {event.doing for event in told} == {stage}
    assert all(event.pause in retries.PAUSES and event.reason for event in told)


@pytest.mark.parametrize("mode", MODES)
def test_what_fails_for_good_ends_the_job(mode: str) -> None:
    with pytest.raises(JobError, match=r"reading block \d+ .* failed with OSError: .*Input/output error$"):
        run(mode, Failing(10_000, broken_cable), "reading")


def test_what_cannot_work_is_not_tried_again() -> None:
    plan, events = planned("direct"), []
    job = thread_run(plan, Failing(1, lambda: FileNotFoundError(errno.ENOENT, "gone")), None, None, [events.append])
    with pytest.raises(BlockFailed) as failed:
        job._maker.read(plan.block(0), plan.block(0).read_box)
    assert isinstance(failed.value.error, FileNotFoundError)
    assert events == []


def test_pauses_grow_and_end_when_the_job_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits a minute after Ctrl-C."""
    monkeypatch.undo()
    assert list(retries.PAUSES) == sorted(retries.PAUSES)
    assert 60 < sum(retries.PAUSES) < 120
    monkeypatch.setattr(retries, "PAUSES", (1e6,))  # longer than any test may take
    plan = planned("direct")
    maker = thread_run(plan, Failing(1, broken_cable), None, None)._maker
    threading.Timer(0.05, maker.cancelled.set).start()
    with pytest.raises(Cancelled):
        maker.read(plan.block(0), plan.block(0).read_box)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", ["reading", "writing", "scaling"])
@pytest.mark.parametrize("times", [1, 3])
def test_too_little_memory_takes_fewer_blocks(mode: str, stage: str, times: int) -> None:
    """Half as many blocks are in flight from then on, as often as need be, and no block is lost."""
    job, events, _ = run(mode, Failing(times, MemoryError), stage, in_flight=8)
    told = [event.in_flight for event in events if isinstance(event, Slowed)]
    assert told
    assert told == [4, 2, 1][: len(told)]
    assert job.in_flight == told[-1]


def test_a_block_that_memory_does_not_hold_is_done_shard_by_shard() -> None:
    """With one block in flight there is only its size left to halve."""
    plan = planned("direct", in_flight=1, block_shape=(8, 24, 32))
    writer = MemoryWriter(plan)

    def read(box: Box, out: np.ndarray | None = None) -> np.ndarray:
        if box.size > 2 * 6 * 8:
            raise MemoryError
        return read_from(VOLUME)(box, out)

    tally, seals = Tally(), {}
    thread_run(plan, read, Repeat(), writer, [tally], record=lambda block, found, _: seals.update({block: found})).run()
    np.testing.assert_array_equal(writer.data, EXPECTED)
    assert plan.n_blocks == 8
    assert {block: len(found) for block, found in seals.items()} == dict.fromkeys(range(8), 8)
    assert tally.voxels == EXPECTED.size


@pytest.mark.parametrize("mode", MODES)
def test_a_shard_that_memory_does_not_hold_ends_the_job(mode: str) -> None:
    """Then there is nothing left to halve, and the message says so."""
    with pytest.raises(JobError, match=r"block \d+ .* failed with MemoryError$"):
        run(mode, Failing(10_000, MemoryError), "reading")


@pytest.mark.parametrize("mode", MODES)
def test_a_lost_device_is_passed_on(mode: str) -> None:
    """Another process can go on, so it is no failure of the job; nothing that the engine held stays."""
    plan, engine = planned(mode), Repeat(Failing(1, lambda: DeviceLostError("gone")))
    writer = MemoryWriter(plan)
    job = thread_run(plan, read_from(VOLUME), engine, writer)
    with pytest.raises(DeviceLostError, match="gone"):
        job.run()
    assert engine.released >= 1
    assert writer.closed
    assert sum(job.progress.done) < plan.n_blocks


class Damaged:
    """Reads a volume of which one part is damaged."""

    part = Box((2, 3, 4), (5, 9, 10))

    def __call__(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        if all(
            max(a, c) < min(b, d)
            for a, b, c, d in zip(box.start, box.stop, self.part.start, self.part.stop, strict=True)
        ):
            raise CorruptInputError("x.tif", "strip 4", self.part.start, self.part.stop, "torn")
        return read_from(VOLUME)(box, out)


@pytest.mark.parametrize("mode", MODES)
def test_damaged_input_ends_the_job_or_is_filled(mode: str) -> None:
    """By default it is told where it is and how to go on; filled, the rest is as it would have been."""
    plan, tally, events = planned(mode), Tally(), []
    why = r"failed: strip 4 of x.tif is corrupt: torn; .*, or have it filled with --on-corrupt fill$"
    with pytest.raises(JobError, match=why):
        thread_run(plan, Damaged(), Repeat(), MemoryWriter(plan)).run()
    writer = MemoryWriter(plan)
    thread_run(plan, Damaged(), Repeat(), writer, [tally, events.append], fill=0).run()
    expected = EXPECTED.copy()
    expected[Box((4, 6, 8), (10, 18, 20)).slices] = 0
    np.testing.assert_array_equal(writer.data, expected)
    assert tally.filled == ["strip 4: torn"]
    assert sum(isinstance(event, Filled) for event in events) == 1


def test_blocks_that_are_done_are_neither_read_nor_scaled_nor_written() -> None:
    """A job that goes on touches what is left only."""
    plan = planned("direct")
    done, scaled = bytearray(plan.n_blocks), []
    done[3] = done[40] = 1
    writer = MemoryWriter(plan)

    def scale(block: Block) -> None:
        scaled.append(block.index)

    events: list[Any] = []
    thread_run(plan, read_from(VOLUME), Repeat(scale), writer, [events.append], done=done).run()
    assert sorted(scaled) == [i for i in range(plan.n_blocks) if i not in (3, 40)]
    assert sorted(event.index for event in events) == sorted(scaled)
    assert not writer.times[plan.block(3).write_box.slices].any()


@pytest.mark.parametrize(
    ("number", "files", "why"),
    [
        (errno.ENOSPC, 9, "because the disk is full: about 3 B are still to be written, 1 B are free; make room"),
        (errno.ENOSPC, 0, "because the disk has no inodes left for another file; remove files, or take larger shards"),
        (
            errno.EDQUOT,
            9,
            "quota is used up: about 3 B are still to be written, 1 B are free; make room, or ask for more",
        ),
        (errno.EROFS, 9, "because {file} cannot be written: Read-only file system"),
    ],
)
def test_what_a_disk_lacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, files: int, why: str
) -> None:
    """Bytes, room for another file, or what this user may have of them."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=10, f_favail=files))
    error = OSError(number, os.strerror(number), str(tmp_path / "shard"))
    failure = BlockFailed("writing", planned("direct").block(0), error)
    assert failure.reason(lambda: Room(3, 1)).endswith(why.format(file=tmp_path / "shard"))


def test_a_disk_that_takes_no_more_need_not_be_full() -> None:
    """Room for metadata, or a quota of a project, may bind: it is not called full in one breath with what is free."""
    failure = BlockFailed("writing", planned("direct").block(0), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert failure.reason(lambda: Room(1, 3)).endswith(
        "because the disk takes no more, although it has room: about 1 B are still to be written, 3 B are free; "
        "look for another limit, such as a quota"
    )
