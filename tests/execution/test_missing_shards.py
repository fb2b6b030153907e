"""Shards that something removes while a job runs are missed before it is complete, and the same command makes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import isovoxel
from isovoxel.errors import JobError
from isovoxel.execution.events import BlockDone, Event, LevelBegun
from isovoxel.execution.job import Job
from isovoxel.execution.output import output_state
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.object_store import clients
from isovoxel.object_store.objects import ObjectPlace, Place, place_of
from isovoxel.output.shard_store import FileShardStore, shard_key
from isovoxel.planning.pyramid import reading, with_levels
from store_server import contents, serving
from strategies import cut, device_limits, host_limits

SMALL: dict[str, Any] = {"chunk": (8, 8, 8), "threads": 1, "factor": (2, 1, 1), "levels": 2, "device_memory": "40kB"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "made along": ("uint16", {"engine": "exact", "shard": (8, 8, 8)}),
    "cle": ("float32", {"engine": "cle", "shard": (8, 8, 8), "device_memory": "80kB"}),
    "0.4": ("float32", {"engine": "exact", "ome_zarr": "0.4"}),
    "labels": ("uint32", {"labels": True, "shard": (8, 8, 8)}),
}


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """A store, and the address of an output in it."""
    with serving():
        yield "s3://bucket"
        clients._clients.clear()


def files(place: Place) -> dict[str, bytes]:
    """Return the shards of an output."""
    if isinstance(place, ObjectPlace):
        found = contents(place)
    else:
        found = {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}
    return {
        key: data for key, data in found.items() if not key.endswith(("zarr.json", ".zattrs", ".zarray", ".zgroup"))
    }


def removing(key: str, output: Place, when: Callable[[Event], bool]) -> Callable[[Event], None]:
    """Return a listener that removes a shard once, when an event comes."""
    removed: list[str] = []

    def listen(event: Event) -> None:
        file = output / key
        if when(event) and not removed and file.is_file():
            file.unlink()
            removed.append(key)

    return listen


def at_level(number: int) -> Callable[[Event], bool]:
    """Tell when a level begins; the first one does with its first block."""
    return lambda event: isinstance(event, LevelBegun | BlockDone) and event.level == number


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("kind", "lost", "when", "place"),
    [
        ("made along", 0, 0, "disk"),
        ("made along", 2, 2, "store"),
        ("cle", 0, 1, "disk"),
        ("0.4", 0, 2, "disk"),
        ("0.4", 1, 2, "store"),
        ("labels", 0, 1, "store"),
        ("labels", 2, 2, "disk"),
    ],
)
def test_a_shard_that_vanishes_is_missed(
    kind: str, lost: int, when: int, place: str, store: str, tmp_path: Path
) -> None:
    """The job fails, whenever that happens and whichever level it is of; the same command makes the right voxels."""
    dtype, options = KINDS[kind]
    voxels = (np.random.default_rng(1).integers(1, 200, (12, 20, 18)) * 4).astype(dtype)
    options = SMALL | options | {"input_voxel_size": (2.0, 1.0, 1.0)}
    home = f"{store}/{kind}/{lost}{when}" if place == "store" else str(tmp_path)
    out, whole = f"{home}/out.zarr", f"{home}/whole.zarr"
    isovoxel.scale(voxels, whole, **options)
    key = shard_key(lost, (0, 0, 0), 2 if kind == "0.4" else 3)
    with pytest.raises(JobError, match="1 shard that was written is not there any more") as failed:
        isovoxel.scale(voxels, out, listeners=[removing(key, place_of(out), at_level(when))], **options)
    assert key in str(failed.value)
    assert "to resume, run the same command" in str(failed.value)
    state = output_state(out)
    assert state is not None
    assert not state.complete
    isovoxel.scale(voxels, out, **options)
    assert files(place_of(out)) == files(place_of(whole))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_made_of_what_was_lost_is_made_again(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Though nobody saw it vanish: the levels that were made of zeros since are complete, and wrong."""
    dtype, options = KINDS[kind]
    voxels = (np.random.default_rng(2).integers(1, 200, (12, 20, 18)) * 4).astype(dtype)
    options = SMALL | options | {"input_voxel_size": (2.0, 1.0, 1.0)}
    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    isovoxel.scale(voxels, whole, **options)
    key = shard_key(0, (0, 0, 0), 2 if kind == "0.4" else 3)
    check = Job._check_shards
    monkeypatch.setattr(Job, "_check_shards", lambda *parts: check(*parts) if len(parts) > 3 else None)
    with pytest.raises(JobError, match="not there any more"):
        isovoxel.scale(voxels, out, listeners=[removing(key, out, at_level(1))], **options)
    coarse = [np.asarray(zarr.open_array(path / "2", mode="r")[...]) for path in (out, whole)]
    assert (coarse[0] != coarse[1]).any() is np.bool_(kind != "made along")
    isovoxel.scale(voxels, out, **options)
    assert files(out) == files(whole)


@given(
    counts=st.lists(st.integers(1, 4), min_size=3, max_size=5),
    zarr_format=st.sampled_from([2, 3]),
    seed=st.integers(0, 99),
)
def test_files_are_counted_that_are_there(
    counts: list[int], zarr_format: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever else lies beside them."""
    output = tmp_path_factory.mktemp("out")
    there = np.random.default_rng(seed).random(counts) < 0.7
    for place in np.argwhere(there):
        file = output / shard_key(1, tuple(place), zarr_format)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        file.with_name(f"{file.name}.0.partial").touch()
    missing, first = FileShardStore(output, 1, zarr_format).missing(counts)
    assert missing == math.prod(counts) - there.sum()
    assert first == (shard_key(1, tuple(np.argwhere(~there)[0]), zarr_format) if missing else "")


@given(data=st.data())
def test_blocks_that_read_others_are_found(data: st.DataObject) -> None:
    """Those whose box meets one of theirs, and no more than one beside."""
    shape = data.draw(st.tuples(*[st.integers(8, 40)] * 3))
    full = cut(shape, (1.0, 1.0, 1.0), (8, 8, 8), "float32")
    plan = with_levels(
        full,
        count=1,
        interpolation="area",
        device=device_limits(),
        host=host_limits(),
        chunk=(4, 4, 4),
        shard=(4, 8, 4),
        read_overhead=lambda *_: 0,
    )
    (after,) = plan.further
    lost = bytearray(data.draw(st.lists(st.sampled_from([0, 0, 1]), min_size=plan.n_blocks, max_size=plan.n_blocks)))
    boxes = [plan.block(index).write_box for index, is_lost in enumerate(lost) if is_lost]

    def meets(block: Any) -> bool:
        return (
            any(
                all(
                    max(a, c) < min(b, d) for a, b, c, d in zip(box.start, box.stop, read.start, read.stop, strict=True)
                )
                for box in boxes
            )
            if (read := block.read_box)
            else False
        )

    assert list(reading(plan, after, lost)) == [meets(after.block(index)) for index in range(after.n_blocks)]
    assert VoxelGrid(shape).shape == full.output.shape
