"""Every count of a job is of all its levels, and all of them agree: progress, error, info, note, result, report."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isovoxel
from isovoxel.errors import InterruptedJobError, JobError
from isovoxel.execution.events import BlockDone, Event, JobFinished, JobStarted
from isovoxel.execution.output import output_state
from isovoxel.reporting.progress import ProgressView
from isovoxel.reporting.records import job_record
from isovoxel.reporting.report import Recorder
from isovoxel.reporting.text import job_lines

VOXELS = np.random.default_rng(0).integers(0, 65536, (16, 16, 16)).astype("uint16")
OPTIONS: dict[str, Any] = {
    "factor": (2.0, 2.0, 2.0),
    "chunk": (8, 8, 8),
    "shard": (8, 8, 8),
    "levels": 2,
    "threads": 2,
    "engine": "exact",
    "input_voxel_size": (1.0, 1.0, 1.0),
    "device_memory": "20kB",  # 8 blocks, 8 of the next level that are made along with them, and one
}


def ends_after(blocks: int, how: Callable[[], None]) -> Callable[[Event], None]:
    """Return a listener that ends a job once so many blocks are done."""
    left = [blocks]

    def listen(event: Event) -> None:
        if isinstance(event, BlockDone):
            left[0] -= 1
            if left[0] == 0:
                how()

    return listen


def interrupt() -> None:
    """Do as Ctrl-C does."""
    signal.raise_signal(signal.SIGINT)


def fail() -> None:
    raise RuntimeError("stopped from within")


def check_counts(source: Path, k: int, how: Callable[[], None], capsys: Any, **place: Any) -> None:
    """End a job after its k-th block, let it go on, and compare all that is said of it."""
    out = source.with_name(f"{k}.zarr")
    with Recorder() as recorder, ProgressView() as progress:
        listeners = [ends_after(k, how), progress, recorder]
        with pytest.raises((InterruptedJobError, JobError)) as ended:
            isovoxel.scale(source, out, listeners=listeners, **OPTIONS, **place)
    said = capsys.readouterr().err
    done, total = map(int, re.findall(r"(\d+) of (\d+) blocks are done and kept", str(ended.value))[0])
    assert re.findall(r"stopped: (\d+)/(\d+) blocks", said) == [(str(done), str(total))]
    assert recorder.blocks_done == done >= k
    state = output_state(out)
    assert state is not None
    assert (state.done, state.blocks) == (done, total)

    events: list[Event] = []
    with Recorder() as recorder, ProgressView() as progress:
        result = isovoxel.scale(source, out, listeners=[progress, recorder, events.append], **OPTIONS, **place)
    said = capsys.readouterr().err
    assert f"note: resuming: {done} of {total} blocks already done" in said
    assert f"done: {total}/{total} blocks" in said
    assert recorder.blocks_done == total == result.plan.all_blocks
    (begun,) = (event for event in events if isinstance(event, JobStarted))
    (finished,) = (event for event in events if isinstance(event, JobFinished))
    made = [event for event in events if isinstance(event, BlockDone)]
    assert (begun.done, len(made)) == (done, total - done)
    assert begun.voxels_done + sum(event.voxels for event in made) == result.plan.all_voxels
    record = json.loads(json.dumps(job_record(result)))
    assert record["happened"]["done_before"] == done
    assert record["seconds"] == result.seconds == finished.seconds
    assert ("complete" in dict(job_lines(result))) is False
    if result.workers:
        assert sum(share["blocks"] for share in record["workers"].values()) == total - done
        assert sum(share["voxels"] for share in record["workers"].values()) == result.tally.voxels


@pytest.mark.sampled(1)
@pytest.mark.parametrize("k", range(1, 18))
def test_counts_agree_after_any_block(source: Path, k: int, capsys: Any) -> None:
    """Of the full level, of the next one that is made along with it, of the last, and after all."""
    check_counts(source, k, interrupt, capsys)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("k", [1, 6, 17])
def test_counts_agree_after_a_failure(source: Path, k: int, capsys: Any) -> None:
    check_counts(source, k, fail, capsys)


def test_an_output_that_is_deleted_meanwhile_is_called_that(source: Path) -> None:
    """Nothing of it is kept, and nobody is sent to resume it."""
    out = source.with_name("gone.zarr")

    def delete() -> None:
        shutil.rmtree(out, ignore_errors=True)

    with pytest.raises(JobError, match=r"gone.zarr was deleted while the job ran, so nothing is kept") as ended:
        isovoxel.scale(source, out, listeners=[ends_after(3, delete)], **OPTIONS)
    assert "are done and kept" not in str(ended.value)


@pytest.mark.parametrize("how", [interrupt, fail])
def test_a_ledger_that_is_deleted_meanwhile_is_called_that(source: Path, how: Callable[[], None]) -> None:
    """What is done is not known any more, and what the error advises works."""
    out = source.with_name(f"{how.__name__}.zarr")

    def delete() -> None:
        shutil.rmtree(f"{out}.isovoxel")
        how()

    with pytest.raises((InterruptedJobError, JobError), match=r"zarr.isovoxel was deleted while the job ran") as ended:
        isovoxel.scale(source, out, listeners=[ends_after(3, delete)], **OPTIONS)
    assert str(ended.value).endswith(
        "so what is done is not known; to begin anew, run the same command with --overwrite"
    )
    assert not getattr(ended.value, "goes_on", False)
    isovoxel.scale(source, out, overwrite=True, **OPTIONS)
    state = output_state(out)
    assert state is not None
    assert state.complete
