"""Blocks on threads: what is told, what is bounded, and what is left when something fails or somebody stops it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import dask.array as da
import numpy as np
import pytest

import isovoxel
from isovoxel.errors import JobError
from isovoxel.execution import threads
from isovoxel.execution.events import BlockDone, Retried
from isovoxel.execution.flushing import FLUSHING
from isovoxel.geometry.grid import Box
from isovoxel.object_store import retries
from isovoxel.output.shard import ShardReceipt
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan
from polling import PATIENCE, wait_until
from repeat import EXPECTED, MODES, VOLUME, Repeat, planned, thread_run
from strategies import MemoryWriter, Sealed, read_from


class Counter:
    """Counts blocks that are being worked on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = self.begun = 0

    def enter(self) -> None:
        with self.lock:
            self.now += 1
            self.begun += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        with self.lock:
            self.now -= 1

    def await_others(self, many: int, total: int) -> None:
        """Wait until so many are being worked on, or all of a total have been begun."""
        wait_until(lambda: self.now >= many or self.begun == total)


@pytest.mark.parametrize("mode", MODES)
def test_events_tell_of_every_block_once(mode: str) -> None:
    """With its voxels and seconds; last comes how long all took."""
    plan, events = planned(mode), []
    writer = MemoryWriter(plan)
    engine = Repeat()
    job = thread_run(plan, read_from(VOLUME), engine, writer, [events.append])
    elapsed = job.run()
    assert engine.released == 1
    assert elapsed.seconds > 0
    done = events
    assert all(isinstance(event, BlockDone) for event in done)
    assert sorted(event.index for event in done) == list(range(plan.n_blocks))
    assert sum(event.voxels for event in done) == EXPECTED.size
    assert all(event.scale_seconds > 0 and event.write_seconds >= 0 for event in done)
    assert all(event.read_seconds > 0 and event.wait_seconds == 0 for event in done)
    assert job.progress.done == bytes([1]) * plan.n_blocks
    np.testing.assert_array_equal(writer.data, EXPECTED)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("window", [(1, 1, 1), (1, 2, 4), (3, 3, 3), (2, 1, 3), (4, 4, 4)])
@pytest.mark.parametrize("lazy", [False, True])
def test_windows_cover_all_blocks(window: tuple[int, int, int], *, lazy: bool) -> None:
    """In windows of any size, of a source or of the caller's dask array, every voxel is written once."""
    plan = planned("map_overlap", window=window)
    writer = MemoryWriter(plan)
    array = da.from_array(VOLUME, chunks=7) if lazy else None
    thread_run(plan, read_from(VOLUME), Repeat(), writer, array=array).run()
    assert (writer.times == 1).all()
    np.testing.assert_array_equal(writer.data, EXPECTED)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("in_flight", [1, 3])
def test_no_more_blocks_are_in_flight_than_planned(mode: str, in_flight: int) -> None:
    """The memory that a plan projects is what its blocks in flight hold, so there must not be one more."""
    plan, counter = planned(mode, in_flight=in_flight), Counter()
    writer = MemoryWriter(plan)

    class Slow(MemoryWriter):
        def write(self, box: Box, data: np.ndarray) -> list[ShardReceipt]:
            counter.await_others(in_flight, plan.n_blocks)
            seals = writer.write(box, data)
            counter.leave()
            return seals

    thread_run(plan, read_from(VOLUME), Repeat(lambda _: counter.enter()), Slow(plan)).run()
    assert counter.begun == plan.n_blocks
    assert counter.most == in_flight
    assert counter.now == 0


def test_submission_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks there are, a bounded number have been taken from the plan and are not on the disk."""
    plan, taken, ahead = planned("direct", in_flight=3), [], []
    writer = MemoryWriter(plan)
    block = Plan.block

    def counted(self: Plan, index: int) -> Block:
        taken.append(index)
        ahead.append(len(taken) - sum(job.progress.done))
        return block(self, index)

    monkeypatch.setattr(Plan, "block", counted)
    job = thread_run(plan, read_from(VOLUME), Repeat(), writer)
    job.run()
    assert len(taken) == plan.n_blocks
    assert 1 < max(ahead) <= (2 + FLUSHING) * plan.in_flight


class Broken:
    """Reads, scales and writes, and fails in one stage of one block."""

    def __init__(self, plan: Plan, stage: str, index: int, error: Exception) -> None:
        self.plan, self.stage, self.error = plan, stage, error
        self.victim = plan.block(index)
        self.writer = MemoryWriter(plan)
        self.counter = Counter()
        self.failed, self.noticed = threading.Event(), threading.Event()

    def fail(self) -> NoReturn:
        """Fail; who begins afterwards waits until the job has noticed."""
        self.failed.set()
        raise self.error

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        """Read, or fail where the block's own input begins."""
        if self.stage == "reading" and box.contains(Box(self.middle, tuple(n + 1 for n in self.middle))):
            self.fail()
        return read_from(VOLUME)(box, out)

    @property
    def middle(self) -> tuple[int, int, int]:
        """An input voxel that only this block reads."""
        a, b = self.victim.read_box.start, self.victim.read_box.stop
        return ((a[0] + b[0]) // 2, (a[1] + b[1]) // 2, (a[2] + b[2]) // 2)

    def before(self, block: Block) -> None:
        self.counter.enter()
        assert not self.failed.is_set() or self.noticed.wait(PATIENCE)
        if self.stage == "scaling" and block == self.victim:
            self.fail()

    def write(self, box: Box, data: np.ndarray) -> list[ShardReceipt]:
        if self.stage == "writing" and box == self.victim.write_box:
            self.fail()
        return self.writer.write(box, data)

    def encode(self, box: Box, data: np.ndarray, _: Box) -> Sealed:
        """Write at once, or fail."""
        return Sealed(*self.write(box, data))

    def spare(self, cores: int) -> None:
        """Do without: nobody helps."""

    def close(self) -> None:
        """Note that it was let go."""
        self.writer.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", ["reading", "scaling", "writing"])
def test_a_failure_names_the_block_and_the_reason(mode: str, stage: str) -> None:
    """The message has the stage, the block, where it lies and why; blocks that were not begun never are."""
    plan, before = planned(mode), set(threading.enumerate())
    broken = Broken(plan, stage, 5, OSError("the cable is out"))
    job = thread_run(plan, broken.read, Repeat(broken.before), broken)
    broken.noticed = job._maker.cancelled
    with pytest.raises(JobError) as caught:
        job.run()
    message, box = str(caught.value), broken.victim.read_box if stage == "reading" else broken.victim.write_box
    start = re.escape(f"{stage} block 5 (z, y, x from {box.start} to {box.stop}) failed with OSError: the cable is out")
    assert re.fullmatch(start, message), message
    assert caught.value.exit_code == 1
    assert broken.writer.times.sum() == sum(job.progress.done) * 4 * 12 * 16
    assert broken.writer.closed
    assert set(threading.enumerate()) <= before  # who could begin another
    # Direct reads take blocks in order; dask takes them in its own, and may begin with block 5 or come to it late.
    assert broken.counter.begun < (5 + 3 * plan.in_flight if mode == "direct" else plan.n_blocks + 1)


@pytest.mark.parametrize("mode", MODES)
def test_after_a_failure_no_further_block_is_begun(mode: str) -> None:
    """Whichever block fails first, only those in flight beside it come to an end."""
    plan, counter, turn = planned(mode), Counter(), itertools.count()

    def fail(_: Block) -> None:
        counter.enter()
        assert not next(turn) or job._maker.cancelled.wait(PATIENCE)
        raise ValueError("no")

    job = thread_run(plan, read_from(VOLUME), Repeat(fail), MemoryWriter(plan))
    with pytest.raises(JobError, match=r"scaling block \d+ .* failed with ValueError: no$"):
        job.run()
    assert counter.begun <= 2 * plan.in_flight


def test_a_thread_whose_start_was_interrupted_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pool does not know it; its block, which it has begun, comes to its end and counts."""
    plan, arrived, go = planned("direct"), threading.Event(), threading.Event()
    start = threading.Thread.start

    class Holding(MemoryWriter):
        def encode(self, *words: Any) -> Any:
            arrived.set()
            assert go.wait(PATIENCE)
            return super().encode(*words)

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("isovoxel_"):
            assert arrived.wait(PATIENCE)
            raise KeyboardInterrupt

    class Pool(threads.ThreadPoolExecutor):
        def shutdown(self, *words: Any, **options: Any) -> None:
            super().shutdown(*words, **options)
            go.set()

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    monkeypatch.setattr(threads, "ThreadPoolExecutor", Pool)
    writer = Holding(plan)
    job = thread_run(plan, read_from(VOLUME), Repeat(), writer)
    with pytest.raises(KeyboardInterrupt):
        job.run()
    assert sum(job.progress.done) == 1
    assert writer.times.sum() == 4 * 12 * 16


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_waits_for_the_blocks_in_flight_and_starts_no_other(mode: str) -> None:
    """A signal in the middle of a job ends it with what is written, and no block is left half-way."""
    plan, counter, turn = planned(mode), Counter(), itertools.count(1)
    writer = MemoryWriter(plan)

    def interrupt(_: Block) -> None:
        counter.enter()
        if (now := next(turn)) >= 7:
            if now == 7:
                os.kill(os.getpid(), signal.SIGINT)
            assert job._maker.cancelled.wait(PATIENCE)
        counter.leave()

    job = thread_run(plan, read_from(VOLUME), Repeat(interrupt), writer)
    with pytest.raises(KeyboardInterrupt):
        job.run()
    assert counter.now == 0
    assert counter.begun < plan.n_blocks
    assert writer.times.sum() == sum(job.progress.done) * 4 * 12 * 16


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_ctrl_c_ends_the_command_long_before_its_last_block(mode: str, tmp_path: Path) -> None:
    """Exit code 130, one sentence, no traceback, and an output that says it is incomplete."""
    np.save(tmp_path / "stack.npy", np.ones((200, 256, 256), np.uint8))
    out = tmp_path / "out.zarr"
    options = ["--factor", "6,4,4", "--shard", "128,128,128", "--halo", mode, "--memory", "2GiB", "--quiet"]
    command = [sys.executable, "-m", "isovoxel", "scale", str(tmp_path / "stack.npy"), str(out), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: process.poll() is not None or any(path.is_file() for path in (out / "0/c").rglob("*")))
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert printed == ""
    assert "Traceback" not in said
    assert re.search(r"error: interrupted; \d+ of \d+ blocks are done and kept; to resume, run the same command", said)
    assert f"to resume: isovoxel scale {tmp_path / 'stack.npy'} {out} --factor 6,4,4" in said
    attributes = json.loads((out / "zarr.json").read_text())["attributes"]
    assert attributes["isovoxel"]["complete"] is False
    state = isovoxel.output_state(out)
    assert state is not None
    assert state.done < state.blocks


ENDLESS = """
import os, queue, threading, types
from isovoxel import terminal
from isovoxel.engines.staged_block import StagedBlock
from isovoxel.execution import threads
class Told(terminal.Stopped):
    def __init__(self, number):
        os.write(1, b"stopped\\n")
        super().__init__(number)
terminal.Stopped = Told
def slowly(*words):
    os.write(1, b"scaling\\n")
    threading.Event().wait()
StagedBlock.scale = slowly
class Ended(queue.SimpleQueue):
    def get(self):
        os.write(1, b"waiting\\n")
        return super().get()
threads.queue = types.SimpleNamespace(SimpleQueue=Ended)
from isovoxel.cli import main
main()
"""
"""The command line, which tells what it does, with an engine that never comes to the end of a block."""


def test_a_second_signal_ends_the_command_at_once(tmp_path: Path) -> None:
    """The first waits for the blocks in flight, here for ever; the second does not, and what was done is kept."""
    np.save(tmp_path / "stack.npy", np.zeros((16, 16, 16), np.uint8))
    out = tmp_path / "out.zarr"
    words = ["scale", str(tmp_path / "stack.npy"), str(out), "--factor", "4,4,4", "--engine", "cle", "--quiet"]
    command = [sys.executable, "-c", ENDLESS, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert {process.stdout.readline(), process.stdout.readline()} == {"scaling\n", "waiting\n"}
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopped\n"
        with pytest.raises(subprocess.TimeoutExpired):  # it waits for the block in flight
            process.wait(timeout=0.5)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 143
    assert said == "interrupted\n"
    state = isovoxel.output_state(out)
    assert state is not None
    assert not state.complete


class Slow(Sealed):
    """A shard that takes long to reach the disk, or does not for a while."""

    def __init__(self, found: ShardReceipt, meanwhile: Callable[[], None]) -> None:
        super().__init__(found)
        self.meanwhile = meanwhile

    def seal(self) -> ShardReceipt:
        """Let something happen before it is there."""
        self.meanwhile()
        return self.found


@pytest.mark.parametrize("mode", MODES)
def test_blocks_that_wait_for_the_disk_leave_their_seat(mode: str) -> None:
    """More of them wait than are in flight, a bounded number, and each is told of when it is on the disk."""
    plan, scaling, flushing, told = planned(mode), Counter(), Counter(), []
    writer = MemoryWriter(plan)
    # dask has as many tasks at a time as blocks are in flight
    most = FLUSHING * plan.in_flight if mode == "direct" else plan.in_flight

    def flush() -> None:
        flushing.enter()
        flushing.await_others(most, plan.n_blocks)
        flushing.leave()

    def encode(box: Box, data: np.ndarray, _: Box) -> Sealed:
        scaling.leave()
        return Slow(*writer.write(box, data), flush)

    writer.encode = encode  # type: ignore[method-assign]
    thread_run(plan, read_from(VOLUME), Repeat(lambda _: scaling.enter()), writer, [told.append]).run()
    assert scaling.most <= plan.in_flight
    assert flushing.begun == plan.n_blocks
    assert flushing.most == most
    assert all(event.flush_seconds > 0 for event in told if isinstance(event, BlockDone))
    np.testing.assert_array_equal(writer.data, EXPECTED)


@pytest.mark.parametrize("mode", MODES)
def test_a_block_that_does_not_reach_the_disk_is_made_again(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing once more would say that all is well, so it is read, scaled and encoded anew."""
    monkeypatch.setattr(retries, "PAUSES", (0.001, 0.002, 0.004))
    plan, events, left = planned(mode), [], [2]
    writer = MemoryWriter(plan)

    def fail() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    writer.encode = lambda box, data, _: Slow(*writer.write(box, data), fail)  # type: ignore[method-assign]
    job = thread_run(plan, read_from(VOLUME), Repeat(), writer, [events.append])
    job.run()
    assert writer.times.sum() == EXPECTED.size + 2 * 4 * 12 * 16
    assert [event.doing for event in events if isinstance(event, Retried)] == ["writing"] * 2
    assert sum(isinstance(event, BlockDone) for event in events) == plan.n_blocks
    np.testing.assert_array_equal(writer.data, EXPECTED)
