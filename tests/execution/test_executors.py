"""Executors: the same laws hold for threads, for a process apart, and for workers."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import isovoxel
from execution.test_counts import VOXELS as COUNTED
from execution.test_counts import check_counts, fail, interrupt
from isovoxel.engines.base import Scaled
from isovoxel.engines.staged_block import StagedBlock
from isovoxel.errors import DeviceLostError, InterruptedJobError, JobError
from isovoxel.execution.events import (
    BlockDone,
    Event,
    JobFinished,
    JobStarted,
    JobStopped,
    LevelBegun,
    Restarted,
    WorkerLeft,
)
from isovoxel.execution.output import OutputState, output_state
from isovoxel.output.ledger import Ledger, ledger_of
from outputs import shards_of

VOXELS = np.random.default_rng(0).integers(0, 65536, (32, 32, 32)).astype(np.uint16)
OPTIONS: dict[str, Any] = {  # 18 blocks, 18 of the next level that are made with them, and 12
    "factor": (3.0, 3.0, 3.0),
    "chunk": (16, 16, 16),
    "shard": (16, 16, 16),
    "levels": 2,
    "threads": 2,
    "input_voxel_size": (1.0, 0.5, 0.5),
    "device_memory": "160kB",
    "engine": "exact",
}
KINDS = ["threads", "apart", "workers"]


@pytest.fixture(params=KINDS)
def executor(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Keywords that say what makes the blocks."""
    return chosen(request.param, request)


def chosen(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the keywords of one kind of executor."""
    if kind == "workers":
        return {"client": request.getfixturevalue("client")}
    return {"isolate": True} if kind == "apart" else {}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of all levels, as threads make them where nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    np.save(folder / "in.npy", VOXELS)
    isovoxel.scale(folder / "in.npy", folder / "whole.zarr", **OPTIONS)
    return shards_of(folder / "whole.zarr")


def blocks_of(events: list[Event]) -> list[tuple[int, int]]:
    """Return level and number of each block that was told of."""
    return [(event.level, event.index) for event in events if isinstance(event, BlockDone)]


def check_complete(out: Path, whole: dict[str, bytes]) -> None:
    """Check that an output is complete, bit by bit, and that nothing else is left."""
    assert output_state(out) == OutputState(complete=True)
    assert not ledger_of(out).exists()
    assert shards_of(out) == whole


def test_every_block_is_noted_and_told_once_in_order(
    source: Path, out: Path, executor: dict[str, Any], whole: dict[str, bytes]
) -> None:
    """Between start and finish, one event at a time; a level begins when those before are done."""
    events, busy, noted = list[Event](), threading.Lock(), list[bool]()

    def listen(event: Event) -> None:
        assert busy.acquire(blocking=False)
        events.append(event)
        if isinstance(event, BlockDone):
            ledger = Ledger.read(ledger_of(out))
            assert ledger is not None
            noted.append(bool(ledger.plan.split(ledger.noted())[event.level][event.index]))
        busy.release()

    result = isovoxel.scale(source, out, listeners=[listen], **executor, **OPTIONS)
    check_complete(out, whole)
    assert all(noted)
    told = blocks_of(events)
    assert sorted(told) == [(plan.level, i) for plan in result.plan.levels for i in range(plan.n_blocks)]
    events = [event for event in events if isinstance(event, JobStarted | BlockDone | LevelBegun | JobFinished)]
    assert isinstance(events[0], JobStarted)
    assert isinstance(events[-1], JobFinished)
    assert sum(isinstance(event, JobStarted) for event in events) == 1
    for at, event in enumerate(events):
        if isinstance(event, LevelBegun):
            before = [plan.n_blocks for plan in result.plan.levels[: event.level]]
            done = [level for level, _ in blocks_of(events[:at])]
            assert [done.count(level) for level in range(event.level)] == before
    assert result.tally.voxels == result.plan.all_voxels


@pytest.mark.sampled(4)
@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("how", [interrupt, fail], ids=["Ctrl-C", "failure"])
def test_what_ends_in_the_middle_resumes(
    source: Path,
    out: Path,
    executor: dict[str, Any],
    whole: dict[str, bytes],
    level: int,
    how: Callable[[], None],
) -> None:
    """On any level, it says what is kept; what is done is not done again; the bits are the same."""
    before: list[Event] = []

    def stop(event: Event) -> None:
        before.append(event)
        first = [made for made, _ in blocks_of(before)].count(level) == 1
        if first and isinstance(event, BlockDone) and event.level == level:
            how()  # once: a second signal would end the job without waiting for anything

    with pytest.raises((InterruptedJobError, JobError), match=r"\d+ of \d+ blocks are done and kept") as ended:
        isovoxel.scale(source, out, listeners=[stop], **executor, **OPTIONS)
    assert isinstance(ended.value, InterruptedJobError) == (how is interrupt)
    assert how is interrupt or str(ended.value).startswith("the job failed with RuntimeError: stopped from within; ")
    assert isinstance(before[-1], JobStopped)
    state = output_state(out)
    assert state is not None
    assert (state.done, state.complete, state.holder) == (before[-1].done, False, "")
    after: list[Event] = []
    result = isovoxel.scale(source, out, listeners=[after.append], **executor, **OPTIONS)
    check_complete(out, whole)
    (began,) = (event for event in after if isinstance(event, JobStarted))
    assert began.done == result.tally.done_before == state.done
    made = blocks_of(after)
    assert len(set(made)) == len(made) == result.plan.all_blocks - state.done
    assert not set(made) & set(blocks_of(before))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("k", [2, 9, 17])
def test_counts_agree(tmp_path: Path, executor: dict[str, Any], k: int, capsys: Any) -> None:
    """Blocks of the next level that were made along with others count too, for whoever made those."""
    np.save(tmp_path / "in.npy", COUNTED)
    check_counts(tmp_path / "in.npy", k, interrupt, capsys, **executor)


@pytest.mark.sampled(1)
def test_damage_ends_the_job_in_one_sentence(tmp_path: Path, out: Path, executor: dict[str, Any]) -> None:
    """It names block, chunk and remedy; with that the job resumes, and fills the part."""
    import zarr

    array = zarr.create_array(tmp_path / "in.zarr", shape=VOXELS.shape, dtype="uint16", chunks=(8, 8, 32))
    array[...] = VOXELS
    (tmp_path / "in.zarr" / "c" / "3" / "3" / "0").write_bytes(b"torn")
    sentence = (
        r"^reading block \d+ \(z, y, x from .* to .*\) failed: chunk \(3, 3, 0\) of .*in.zarr is corrupt: .*, "
        r"or have it filled with --on-corrupt fill; \d+ of \d+ blocks are done and kept; to resume, run"
    )
    with pytest.raises(JobError, match=sentence):
        isovoxel.scale(tmp_path / "in.zarr", out, **executor, **OPTIONS)
    result = isovoxel.scale(tmp_path / "in.zarr", out, on_corrupt="fill", **executor, **OPTIONS)
    assert len(result.tally.filled) == 1
    state = output_state(out)
    assert state is not None
    assert state.complete


@pytest.mark.sampled(1)
def test_a_shard_that_cannot_be_written_ends_the_job_in_one_sentence(
    source: Path, out: Path, executor: dict[str, Any], whole: dict[str, bytes]
) -> None:
    """It names block, place and reason; the rest of what was in flight is kept, and the job resumes."""
    place = out / "0" / "c" / "1" / "1" / "1"

    def obstruct(event: Event) -> None:
        if isinstance(event, JobStarted):
            (place / "in the way").mkdir(parents=True)

    with pytest.raises(JobError, match=r"^writing block \d+ .* failed because .*: Is a directory; \d+ of \d+ blocks"):
        isovoxel.scale(source, out, listeners=[obstruct], **executor, **OPTIONS)
    (place / "in the way").rmdir()
    place.rmdir()
    isovoxel.scale(source, out, **executor, **OPTIONS)
    check_complete(out, whole)


def kill_process_apart() -> bool:
    """Kill the process that makes blocks for this one; False where there is none just now."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "isovoxel.execution.subprocess" in child.cmdline():
                child.kill()
                return True
    return False


@contextlib.contextmanager
def lost_device() -> Iterator[None]:
    """Let the device of this process be lost after some blocks."""
    scale, left = StagedBlock.scale, [3]

    def lose(self: StagedBlock, cancelled: Any = None) -> Scaled:
        left[0] -= 1
        if left[0] < 0:
            raise DeviceLostError("the card no longer answers this process")
        return scale(self, cancelled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StagedBlock, "scale", lose)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS[:2], pytest.param("workers", marks=pytest.mark.slow)])
def test_what_is_lost_is_replaced(
    source: Path, out: Path, kind: str, whole: dict[str, bytes], request: pytest.FixtureRequest
) -> None:
    """A device, a process apart, a worker: another goes on, nothing is done twice, and it is said."""
    executor = {"client": request.getfixturevalue("own")} if kind == "workers" else chosen(kind, request)
    pids = executor["client"].run(os.getpid) if kind == "workers" else {}
    events: list[Event] = []

    def kill(event: Event) -> None:
        lost = any(isinstance(event, Restarted | WorkerLeft) for event in events)
        events.append(event)
        if isinstance(event, BlockDone) and not lost:
            if pids:
                os.kill(pids.popitem()[1], signal.SIGKILL)
                pids.clear()
            elif kind == "apart":
                kill_process_apart()

    with lost_device() if kind == "threads" else contextlib.nullcontext():
        result = isovoxel.scale(source, out, listeners=[kill], **executor, **OPTIONS)
    check_complete(out, whole)
    assert sorted(blocks_of(events)) == [(plan.level, i) for plan in result.plan.levels for i in range(plan.n_blocks)]
    reasons = {event.reason for event in events if isinstance(event, Restarted | WorkerLeft)}
    assert reasons == {
        {
            "threads": "the card no longer answers this process",
            "apart": "the process that scales was ended by SIGKILL",
            "workers": "the scheduler has lost it",
        }[kind]
    }
