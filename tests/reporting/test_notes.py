"""What happens is said once, in lines for people; who does not read it ends no job."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest

from isovoxel.execution.events import (
    BlockDone,
    Connected,
    DecodedByProcessor,
    EncodedByProcessor,
    Event,
    Filled,
    JobFinished,
    JobStarted,
    Restarted,
    Retried,
    Slowed,
    Waiting,
    WorkerJoined,
    WorkerLeft,
)
from isovoxel.execution.result import Tally
from isovoxel.planning.plan import Plan
from isovoxel.reporting.progress import Notes, ProgressView
from isovoxel.reporting.records import share_record
from isovoxel.reporting.text import happened_lines, share_lines


def started(**changes: Any) -> JobStarted:
    """Return the start of a job on a CPU, which skips voxels."""
    device = SimpleNamespace(kind="cpu", name="PoCL")
    plan = SimpleNamespace(
        all_blocks=48,
        all_voxels=400,
        output=SimpleNamespace(shape=(4, 10, 10)),
        levels=(),
        storage=SimpleNamespace(ome_zarr="0.5"),
        device=device,
        aliases=("y", "x"),
        coarse=False,
        source=SimpleNamespace(notes=("a slice is missing",)),
    )
    return JobStarted(cast(Plan, plan), **changes)


def block(index: int, pieces: int) -> BlockDone:
    """Return the end of a block."""
    return BlockDone(index, 100, 0.0, 0.0, 0.0, 0.0, 0.0, pieces)


EVENTS: list[Event] = [
    started(done=13, voxels_done=100),
    block(13, 1),
    block(14, 4),
    block(15, 4),
    block(16, 2),
    Retried(17, "reading", "OSError: broken cable", 0.2),
    Filled("chunk (1, 2, 3): torn"),
    Slowed(4),
    DecodedByProcessor("no room"),
    DecodedByProcessor("no room"),
    EncodedByProcessor("no room"),
    EncodedByProcessor("no room"),
    Restarted("the card no longer answers this process"),
    JobFinished(1.0),
]


def test_each_event_is_said_in_a_line() -> None:
    """What many blocks share is said once, and what is as planned not at all."""
    notes = Notes()
    assert [line for event in EVENTS for line in notes.of(event)] == [
        "note: the CPU scales, not a GPU (PoCL)",
        "note: resuming: 13 of 48 blocks already done",
        "note: a slice is missing",
        "hint: shrinking along y and x skips voxels, which aliases; --antialias averages them",
        "note: the device has too little memory for a block; 4 pieces of one fit",
        "note: reading block 17 failed (OSError: broken cable); it is tried again in 0.2 s",
        "note: filled with 0, because it is damaged: chunk (1, 2, 3): torn",
        "note: the host has too little memory; from now on 4 blocks are in flight",
        "note: the processor decompresses in the GPU's place: no room",
        "note: the processor compresses in the GPU's place: no room",
        "note: the card no longer answers this process; the job goes on in a fresh process",
    ]


def test_the_summary_adds_up() -> None:
    """All that did not go as planned, and went well, in two lines."""
    tally = Tally()
    for event in EVENTS:
        tally(event)
    went_on = (
        "13 blocks done before, 3 blocks in up to 4 pieces, for the device's memory, "
        "4 blocks in flight in the end, for the host's memory, "
        "the processor compressed in the GPU's place (no room), "
        "1 attempt that failed, and then did not, 1 fresh process"
    )
    assert happened_lines(tally) == [("went on", went_on), ("filled", "chunk (1, 2, 3): torn: they are 0")]
    assert happened_lines(Tally()) == []
    many = Tally(filled=[str(i) for i in range(20)])
    assert happened_lines(many) == [("filled", "0; 1; 2; 3; 4; 5; 6; 7; and 12 more: they are 0")]


@pytest.mark.parametrize("notes", [True, False])
def test_notes_are_said_only_if_wanted(capsys: pytest.CaptureFixture[str], *, notes: bool) -> None:
    """A machine gets no bar, and notes unless it is quiet."""
    with ProgressView(bar=False, notes=notes) as view:
        for event in EVENTS:
            view(event)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == (11 if notes else 0)


def test_a_terminal_that_is_closed_ends_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Closed())
    with ProgressView() as view:
        for event in EVENTS:
            view(event)


def test_speed_counts_what_this_run_makes() -> None:
    """Blocks that were done before took no time."""
    now = [100.0]
    view = ProgressView(bar=True, notes=False, clock=lambda: now[0])
    view(started(done=13, voxels_done=200))
    now[0] += 1e-5
    view(block(13, 1))
    assert str(view) == "14/48 blocks, 10.0 Mvoxel/s, 0:00 left"


WORKERS: list[Event] = [
    Connected("http://head:8787/status", ("devices differ (1 x A100, 1 x H100); the least binds",)),
    WorkerJoined("a", "node-1", "H100", "0000:3B:00.0"),
    WorkerJoined("b", "node-2", "A100", "0000:5E:00.0"),
    BlockDone(0, 100, 0.0, 0.0, 0.5, 0.0, 0.0, read_bytes=7, stored_bytes=5, worker="a"),
    WorkerLeft("b", "the scheduler has lost it"),
    WorkerJoined("b", "node-2", "A100", "0000:5E:00.0"),
    WorkerLeft("b", "the card is lost, and again in a fresh process", ("xid 79",)),
    Waiting(300.0),
    Waiting(20.0, "the results of worker a"),
]


def test_what_becomes_of_workers_is_said() -> None:
    """Those that are there from the beginning stand in the summary; who goes, and who comes back, is said at once."""
    notes = Notes()
    assert [line for event in WORKERS for line in notes.of(event)] == [
        "dashboard: http://head:8787/status",
        "note: devices differ (1 x A100, 1 x H100); the least binds",
        "note: worker b does no more blocks: the scheduler has lost it",
        "note: worker b on node-2 is there again, with A100",
        "note: worker b does no more blocks: the card is lost, and again in a fresh process",
        "  b: xid 79",
        "note: no worker is there; the job waits for one, for up to 300 s",
        "note: the job waits for the results of worker a, for up to 20 s",
    ]


def test_the_summary_tells_each_workers_share() -> None:
    """Device, blocks, how busy, what it read and wrote, and why it left."""
    tally = Tally()
    for event in WORKERS:
        tally(event)
    result = SimpleNamespace(seconds=2.0, tally=tally, workers=tally.workers)
    assert share_lines(cast(Any, result)) == [
        ("worker a", "H100 0000:3B:00.0 on node-1  1 block   100%  0.0 Mvoxel/s  busy 25%  read 7 B, wrote 5 B"),
        (
            "worker b",
            (
                "A100 0000:5E:00.0 on node-2  0 blocks  0%    0.0 Mvoxel/s  busy 0%   read 0 B, wrote 0 B  "
                "left: the card is lost, and again in a fresh process"
            ),
        ),
    ]
    assert share_record(tally.workers["a"], 2.0)["busy_share"] == 0.25
