"""A job goes on in another process where one is not enough, and nothing is done twice or left running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import isovoxel
from isovoxel.engines.cle import CleEngine
from isovoxel.errors import DeviceLostError, JobError
from isovoxel.execution.events import BlockDone, Event, JobFinished, JobStarted, Restarted
from isovoxel.execution.output import OutputState, output_state
from outputs import shards_of
from polling import wait_until

VOXELS = np.random.default_rng(0).integers(0, 65536, (32, 32, 32)).astype(np.uint16)
OPTIONS: dict[str, Any] = {  # 64 blocks, each of which takes some milliseconds
    "factor": (4.0, 4.0, 4.0),
    "chunk": (32, 32, 32),
    "shard": (32, 32, 32),
    "threads": 2,
    "input_voxel_size": (1.0, 0.5, 0.5),
    "device_memory": "300kB",
    "engine": "cle",
}


def workers(pid: int | None = None) -> list[psutil.Process]:
    """Return the workers of a process, by default of this one."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            found += [child] if "isovoxel.execution.subprocess" in child.cmdline() else []
    return found


def check(events: list[Event], out: Path, restarts: int, options: dict[str, Any] = OPTIONS) -> None:
    """Check that every block was made once, between start and finish, and that the files are right."""
    isovoxel.scale(VOXELS, out.with_name("whole.zarr"), **options)
    assert shards_of(out) == shards_of(out.with_name("whole.zarr"))
    assert output_state(out) == OutputState(complete=True)
    assert isinstance(events[0], JobStarted)
    assert isinstance(events[-1], JobFinished)
    assert sum(isinstance(event, JobStarted) for event in events) == 1
    assert sum(isinstance(event, Restarted) for event in events) == restarts
    blocks = [event.index for event in events if isinstance(event, BlockDone)]
    assert sorted(blocks) == list(range(events[0].plan.n_blocks))
    assert not workers()


def test_a_worker_that_dies_is_replaced(out: Path) -> None:
    """Killed in the middle of blocks, twice: what was done stays done, and the summary says that it was replaced."""
    events: list[Event] = []
    killed: set[int] = set()

    def kill(event: Event) -> None:
        events.append(event)
        if isinstance(event, BlockDone) and len(killed) < 2:
            for worker in workers():
                if worker.pid not in killed:
                    worker.kill()
                    killed.add(worker.pid)

    options = OPTIONS | {"engine": "exact"}
    result = isovoxel.scale(VOXELS, out, isolate=True, listeners=[kill], **options)
    assert result.tally.restarts == 2
    check(events, out, 2, options)
    reasons = [event.reason for event in events if isinstance(event, Restarted)]
    assert reasons == ["the process that scales was ended by SIGKILL"] * 2


@pytest.mark.slow
def test_a_device_that_was_lost_before_takes_the_job_to_another_process(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a user of cle did in this process, such as a buffer of 2^31 voxels, is no end of isovoxel's jobs."""
    events: list[Event] = []

    def lose(*_: object) -> int:
        raise DeviceLostError("the card no longer answers this process")

    monkeypatch.setattr(CleEngine, "prepare", lose)
    isovoxel.scale(VOXELS, out, listeners=[events.append], **OPTIONS)
    monkeypatch.undo()
    check(events, out, 1)


def test_workers_that_do_nothing_end_the_job(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three in a row are enough; the message says what became of the last, and how to go on."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(
        JobError, match=r"scales ended with exit code 1, 3 times without having done a block; 0 of \d+ blocks are done"
    ):
        isovoxel.scale(VOXELS, out, isolate=True, **OPTIONS)
    monkeypatch.undo()
    assert isovoxel.scale(VOXELS, out, **OPTIONS).tally.done_before == 0


def test_what_cannot_be_sent_is_told(out: Path) -> None:
    """A volume whose reader is a function of the caller's stays in the caller's process."""
    volume = isovoxel.open_volume(VOXELS, voxel_size=(1.0, 0.5, 0.5))
    options = {name: value for name, value in OPTIONS.items() if name != "input_voxel_size"}
    with pytest.raises(JobError, match=r"the input cannot be sent to another process: .*; 0 of"):
        isovoxel.scale(volume, out, isolate=True, **options)


PARENT = """
import sys, isovoxel
from isovoxel.execution.events import BlockDone
def tell(event):
    if isinstance(event, BlockDone):
        print("done", flush=True)
isovoxel.scale(sys.argv[1], sys.argv[2], isolate=True, listeners=[tell], engine="cle", factor=(8, 8, 8),
               input_voxel_size=(1, 1, 1), shard=(128, 128, 128), device_memory="40MB")
"""


@pytest.mark.slow
def test_a_worker_ends_with_the_process_that_watches_it(out: Path) -> None:
    """Even where that is killed and can tell nobody."""
    np.save(out.with_name("in.npy"), np.zeros((64, 64, 64), np.uint8))
    command = [sys.executable, "-c", PARENT, str(out.with_name("in.npy")), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "done\n"
        (worker,) = workers(parent.pid)
        parent.kill()
    worker.wait(timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_worker_and_job(out: Path, number: signal.Signals, code: int) -> None:
    """Ctrl-C reaches both processes of a terminal: blocks in flight are finished, and it says how to go on."""
    np.save(out.with_name("in.npy"), np.zeros((64, 64, 64), np.uint8))
    command = [sys.executable, "-m", "isovoxel", "scale", str(out.with_name("in.npy")), str(out), "--isolate"]
    command += ["--engine", "cle", "--factor", "8,8,8", "--shard", "128,128,128", "--device-memory", "40MB"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as job:
        wait_until(lambda: (state := output_state(out)) and state.done)
        found = workers(job.pid)
        os.killpg(job.pid, number) if number == signal.SIGINT else job.send_signal(number)
        _, said = job.communicate(timeout=300)
    assert job.returncode == code
    assert "Traceback" not in said
    assert "blocks are done and kept" in said
    assert "to resume: isovoxel scale" in said
    assert len(found) == 1
    found[0].wait(timeout=120)
    state = output_state(out)
    assert state is not None
    assert 0 < state.done < state.blocks
