"""However many workers, and however halos come: the same bits as in one process, each block once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

import isovoxel
from execution.distributed.clusters import OPTIONS, VOXELS, stack
from isovoxel.execution.events import BlockDone, Event, JobFinished, JobStarted, LevelBegun, WorkerJoined
from isovoxel.execution.output import OutputState, output_state
from ome_zarrs import halved, pyramid
from outputs import shards_of


def check(events: list[Event], out: Path, workers: int) -> None:
    """Check that every block was made once, between start and finish, by all workers together."""
    assert output_state(out) == OutputState(complete=True)
    assert not list(out.parent.glob("*.isovoxel"))
    start = next(event for event in events if isinstance(event, JobStarted))
    assert isinstance(events[-1], JobFinished)
    blocks = [event for event in events if isinstance(event, BlockDone)]
    assert sorted(block.index for block in blocks) == list(range(start.plan.n_blocks))
    names = {event.name for event in events if isinstance(event, WorkerJoined)}
    assert len(names) == workers
    assert {block.worker for block in blocks} <= names


@pytest.mark.sampled(1)
@pytest.mark.parametrize("halo", ["direct", "map_overlap"])
@pytest.mark.parametrize("engine", ["exact", "cle"])
def test_two_workers_make_the_bits_of_one_process(
    tmp_path: Path, out: Path, client: Any, engine: str, halo: str
) -> None:
    """Both engines, and both ways to a block's halo."""
    source, options = stack(tmp_path), OPTIONS | {"engine": engine, "halo": halo}
    events: list[Event] = []
    result = isovoxel.scale(source, out, client=client, listeners=[events.append], **options)
    check(events, out, 2)
    isovoxel.scale(source, tmp_path / "whole.zarr", **options)
    assert shards_of(out) == shards_of(tmp_path / "whole.zarr")
    assert sum(share.blocks for share in result.workers.values()) == result.plan.n_blocks >= 32
    assert sum(share.stored_bytes for share in result.workers.values()) == sum(map(len, shards_of(out / "0").values()))
    assert all(share.scale_seconds > 0 and share.read_bytes > 0 for share in result.workers.values())


@pytest.mark.slow
def test_four_workers_make_the_bits_of_one_process(tmp_path: Path, out: Path) -> None:
    """Started for the job, and gone with it."""
    import psutil

    source, options = stack(tmp_path), OPTIONS | {"engine": "exact"}
    before, events = set(psutil.Process().children(recursive=True)), list[Event]()
    isovoxel.scale(source, out, workers="cpu:4", listeners=[events.append], **options)
    check(events, out, 4)
    assert {p for p in psutil.Process().children(recursive=True) if "forkserver" not in p.name()} <= before
    isovoxel.scale(source, tmp_path / "whole.zarr", **options)
    assert shards_of(out) == shards_of(tmp_path / "whole.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("halo", ["direct", "auto"])
def test_a_dask_array_is_computed_by_the_workers(tmp_path: Path, out: Path, client: Any, halo: str) -> None:
    """Its graph travels; its voxels do not come through this process."""
    array = da.from_zarr(str(_zarr(tmp_path))) + 1
    options = OPTIONS | {"engine": "exact", "halo": halo}
    events: list[Event] = []
    result = isovoxel.scale(array, out, client=client, listeners=[events.append], **options)
    assert result.plan.halo_mode == ("direct" if halo == "direct" else "map_overlap")
    check(events, out, 2)
    isovoxel.scale(VOXELS + 1, tmp_path / "whole.zarr", **options)
    assert shards_of(out) == shards_of(tmp_path / "whole.zarr")


def test_a_lazy_array_is_computed_by_the_workers(client: Any) -> None:
    """Its tasks travel, each finds the device of its worker, and what persists stays there."""
    series = np.stack([VOXELS, VOXELS[::-1]])
    lazy = isovoxel.scale_array(
        da.from_array(series, chunks=(1, 5, 8, 9)), (2.3, 1, 1), axes="czyx", engine="exact", chunks=(9, 8, 10)
    )
    alone = lazy.compute(scheduler="synchronous")
    kept = client.persist(lazy)
    np.testing.assert_array_equal(client.compute(kept).result(), alone)
    doubled = kept.map_blocks(lambda block: block // 2, dtype=kept.dtype)[1, ::3]
    np.testing.assert_array_equal(client.compute(doubled).result(), alone[1, ::3] // 2)


@pytest.mark.slow
def test_a_worker_that_is_lost_on_one_level_is_not_missed_on_the_next(tmp_path: Path, out: Path, own: Any) -> None:
    """The last block of the full level is its end; whom its nanny starts in its place takes part in the others."""
    source, options = stack(tmp_path), OPTIONS | {"engine": "exact", "levels": 2}
    pids, events = own.run(os.getpid), list[Event]()

    def kill(event: Event) -> None:
        events.append(event)
        if isinstance(event, LevelBegun) and pids:
            os.kill(pids.popitem()[1], signal.SIGKILL)
            pids.clear()

    # Whoever waited for a connection to the one that is dead would wait longer than any of our limits.
    with dask.config.set({"distributed.comm.timeouts.connect": "600s"}):
        result = isovoxel.scale(source, out, client=own, listeners=[kill], **options)
    blocks = [(event.level, event.index) for event in events if isinstance(event, BlockDone)]
    assert sorted(blocks) == [(p.level, i) for p in result.plan.levels for i in range(p.n_blocks)]
    assert isovoxel.verify(out, samples=16).holds


@pytest.mark.slow
def test_workers_open_the_part_that_is_meant(tmp_path: Path, out: Path, client: Any) -> None:
    """A crop of a level of an image, as this process does."""
    source = pyramid(tmp_path / "in.zarr", halved(VOXELS, 2))
    options = OPTIONS | {"engine": "exact", "level": 1, "crop": "2:,:-3,5:12"}
    result = isovoxel.scale(source, out, client=client, **options)
    assert result.plan.source.grid.shape == (14, 13, 7)
    isovoxel.scale(source, tmp_path / "whole.zarr", **options)
    assert shards_of(out) == shards_of(tmp_path / "whole.zarr")
    assert isovoxel.verify(out, samples=50).holds


def _zarr(folder: Path) -> Path:
    import zarr

    path = folder / "in.zarr"
    zarr.create_array(path, shape=VOXELS.shape, dtype=VOXELS.dtype, chunks=(16, 16, 16))[...] = VOXELS
    return path
