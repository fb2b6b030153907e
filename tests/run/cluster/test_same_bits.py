"""However many workers, and however halos come: the same bits as in one process, each block once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import pytest

import isovoxel
from isovoxel.run.events import BlockDone, Event, JobFinished, JobStarted, WorkerJoined
from isovoxel.run.output import OutputState, output_state
from run.cluster.clusters import OPTIONS, VOXELS, files, stack


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
    assert files(out) == files(tmp_path / "whole.zarr")
    assert sum(share.blocks for share in result.workers.values()) == result.plan.n_blocks >= 32
    assert sum(share.stored_bytes for share in result.workers.values()) == sum(map(len, files(out).values()))
    assert all(share.scale_seconds > 0 and share.read_bytes > 0 for share in result.workers.values())


def test_four_workers_make_the_bits_of_one_process(tmp_path: Path, out: Path) -> None:
    """Started for the job, and gone with it."""
    import psutil

    source, options = stack(tmp_path), OPTIONS | {"engine": "exact"}
    before, events = set(psutil.Process().children(recursive=True)), list[Event]()
    isovoxel.scale(source, out, workers="cpu:4", listeners=[events.append], **options)
    check(events, out, 4)
    assert {p for p in psutil.Process().children(recursive=True) if "forkserver" not in p.name()} <= before
    isovoxel.scale(source, tmp_path / "whole.zarr", **options)
    assert files(out) == files(tmp_path / "whole.zarr")


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
    assert files(out) == files(tmp_path / "whole.zarr")


def _zarr(folder: Path) -> Path:
    import zarr

    path = folder / "in.zarr"
    zarr.create_array(path, shape=VOXELS.shape, dtype=VOXELS.dtype, chunks=(16, 16, 16))[...] = VOXELS
    return path
