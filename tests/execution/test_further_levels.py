"""Is a level that is made of blocks in memory the one that would be made of files, bit by bit?"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import isovoxel
from isovoxel.errors import DoesNotFitError, InterruptedJobError
from isovoxel.execution import blocks
from isovoxel.execution.events import BlockDone, Event, LevelBegun
from isovoxel.execution.further_levels import FurtherLevels, OpenBlocks
from isovoxel.execution.resources import host_limits
from isovoxel.geometry.grid import Box, Index3
from isovoxel.geometry.resampling import Halver
from isovoxel.options import Options
from isovoxel.planner import choose_sampling, plan_volume
from isovoxel.planning import pyramid
from isovoxel.planning.model import Block, DeviceLimits, HostLimits
from isovoxel.planning.plan import Plan
from outputs import shards_of
from small_jobs import stop_after
from strategies import device_limits, examples
from strategies import host_limits as fixed_host

SMALL: dict[str, Any] = {
    "engine": "exact",
    "chunk": (8, 8, 8),
    "shard": (8, 16, 16),
    "device_memory": "40kB",
    "levels": 2,
}
VOXELS = np.random.default_rng(5).integers(0, 2**16, (21, 48, 64)).astype(np.uint16)
FACTOR = (3.0, 1.0, 1.0)


@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    dtype=st.sampled_from(pyramid.HALVED),
    halves=st.tuples(*[st.booleans()] * 3),
    ends=st.tuples(*[st.booleans()] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_means_are_rounded_half_to_even(
    shape: tuple[int, ...], dtype: str, halves: tuple[bool, ...], ends: tuple[bool, ...], seed: int
) -> None:
    """Of whatever axes, of the full range of each dtype, and where an axis is odd."""
    info = np.iinfo(dtype)
    voxels = np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)
    made = tuple(
        max(1, n // 2 + (n % 2 and end)) if half else n for n, half, end in zip(shape, halves, ends, strict=True)
    )
    expected = np.pad(voxels, [(0, 1)] * 3, "edge").astype(np.float64)
    for axis, half in enumerate(halves):
        if half:
            even, odd = (np.arange(first, expected.shape[axis] - 1 + first, 2) for first in (0, 1))
            count = min(len(even), len(odd))
            expected = (expected.take(even[:count], axis) + expected.take(odd[:count], axis)) / 2
    factor: Any = tuple(0.5 if half else 1.0 for half in halves)
    got = Halver()(voxels, factor, made)  # type: ignore[arg-type]
    np.testing.assert_array_equal(got, np.rint(expected)[: made[0], : made[1], : made[2]])


def level(output: Path, number: int) -> NDArray[Any]:
    array: Any = zarr.open_array(output / str(number), mode="r")
    return np.asarray(array[...])


def scaled(voxels: NDArray[Any], output: Path, **options: Any) -> list[Event]:
    """Scale, and return what was told."""
    told: list[Event] = []
    isovoxel.scale(voxels, output, listeners=[told.append], factor=FACTOR, **SMALL | options)
    return told


@pytest.mark.sampled(1)
@pytest.mark.parametrize("halo", ["direct", "map_overlap"])
@pytest.mark.parametrize(
    ("engine", "shape", "memory"),
    [
        ("cle", (21, 45, 50), "60kB"),
        ("cle", (20, 48, 64), "60kB"),
        ("exact", (21, 45, 50), "40kB"),
        ("exact", (20, 48, 64), "60kB"),
        ("exact", (7, 33, 17), "20kB"),
    ],
)
def test_the_same_as_read_back(
    engine: str,
    shape: tuple[int, int, int],
    memory: str,
    halo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All levels are there when the full one is, and no byte of any file is another."""
    voxels = VOXELS[: shape[0], : shape[1], : shape[2]]
    options: dict[str, Any] = {"engine": engine, "halo": halo, "device_memory": memory}
    plan = isovoxel.plan(voxels, factor=FACTOR, **SMALL | options)
    assert plan.n_blocks > 1
    assert plan.made_along == plan.further
    told = scaled(voxels, tmp_path / "along.zarr", **options)
    assert not [event for event in told if isinstance(event, LevelBegun)]
    assert sum(isinstance(event, BlockDone) for event in told) == plan.all_blocks
    monkeypatch.setattr(pyramid, "HALVED", ())
    told = scaled(voxels, tmp_path / "after.zarr", **options)
    assert [event.level for event in told if isinstance(event, LevelBegun)] == [1, 2]
    assert shards_of(tmp_path / "along.zarr") == shards_of(tmp_path / "after.zarr")


@pytest.mark.slow
def test_of_a_series_by_workers(tmp_path: Path) -> None:
    """Each volume's level 1 is made with it, and further ones where one worker made all that they are made of."""
    source: Any = zarr.create_array(
        tmp_path / "in.zarr", shape=(2, *VOXELS.shape), chunks=(1, 8, 64, 64), dtype="u2", dimension_names=list("czyx")
    )
    source[...] = np.stack([VOXELS, VOXELS[::-1]])
    told: list[Event] = []
    isovoxel.scale(
        tmp_path / "in.zarr", tmp_path / "out.zarr", factor=FACTOR, workers="cpu:2", listeners=[told.append], **SMALL
    )
    assert [event.level for event in told if isinstance(event, LevelBegun)] in ([], [2])
    scaled(VOXELS, tmp_path / "one.zarr")
    for number in range(3):
        np.testing.assert_array_equal(level(tmp_path / "out.zarr", number)[0], level(tmp_path / "one.zarr", number))


def test_a_job_goes_on_with_what_was_made(tmp_path: Path) -> None:
    """Interrupted, it makes the rest of both levels, and nothing twice."""
    told: list[Event] = []

    def stop(event: Event) -> None:
        told.append(event)
        full = isinstance(event, BlockDone) and not event.level
        if full and sum(isinstance(e, BlockDone) and not e.level for e in told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedJobError):
        isovoxel.scale(VOXELS, tmp_path / "out.zarr", listeners=[stop], factor=FACTOR, threads=2, **SMALL)
    state = isovoxel.output_state(tmp_path / "out.zarr")
    assert state is not None
    first = {(e.level, e.index) for e in told if isinstance(e, BlockDone)}
    then = {(e.level, e.index) for e in scaled(VOXELS, tmp_path / "out.zarr", threads=2) if isinstance(e, BlockDone)}
    plan = isovoxel.plan(VOXELS, factor=FACTOR, **SMALL)
    assert not first & then
    assert len(then) == plan.all_blocks - state.done
    assert state.done >= 6
    scaled(VOXELS, tmp_path / "one.zarr")
    for number in range(3):
        np.testing.assert_array_equal(level(tmp_path / "out.zarr", number), level(tmp_path / "one.zarr", number))


@pytest.mark.slow
def test_what_was_not_made_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of blocks that are made shard by shard, for want of memory, nothing is made of a part."""
    monkeypatch.setattr(blocks.BlockMaker, "_make_further", lambda *_: ())
    told = scaled(VOXELS, tmp_path / "out.zarr")
    assert [event.level for event in told if isinstance(event, LevelBegun)] == [1, 2]
    monkeypatch.undo()
    scaled(VOXELS, tmp_path / "one.zarr")
    np.testing.assert_array_equal(level(tmp_path / "out.zarr", 1), level(tmp_path / "one.zarr", 1))


def test_a_block_that_is_given_up_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of blocks in another order more are open than the plan counts: the voxels are the same."""
    monkeypatch.setattr(pyramid, "open_blocks", lambda *_: 1)
    options = {"levels": 3, "threads": 1}
    plan = isovoxel.plan(VOXELS, factor=FACTOR, **SMALL | options)
    assert [made.gathered for made in plan.further] == [0, 1, 1]
    assert plan.further[1].n_blocks > 2
    told = scaled(VOXELS, tmp_path / "out.zarr", **options)
    assert [event.level for event in told if isinstance(event, LevelBegun)][:1] == [2]
    assert sum(isinstance(event, BlockDone) for event in told) == plan.all_blocks
    monkeypatch.undo()
    scaled(VOXELS, tmp_path / "one.zarr", **options)
    assert shards_of(tmp_path / "out.zarr") == shards_of(tmp_path / "one.zarr")


def test_what_goes_on_gathers_nothing(tmp_path: Path) -> None:
    """Blocks that are done become no parts, so blocks of which they are would stay open."""
    with pytest.raises(InterruptedJobError):
        isovoxel.scale(
            VOXELS, tmp_path / "out.zarr", listeners=[stop_after(how=KeyboardInterrupt)], factor=FACTOR, **SMALL
        )
    plan = isovoxel.plan(VOXELS, tmp_path / "out.zarr", factor=FACTOR, **SMALL)
    assert plan.further[0].along
    assert [made.gathered for made in plan.further] == [0, 0]


@given(
    shape=st.tuples(st.integers(8, 40), st.integers(8, 60), st.integers(8, 60)),
    series=st.integers(1, 2),
    shard=st.sampled_from([(8, 8, 8), (8, 16, 16), (16, 16, 16)]),
    memory=st.sampled_from(["20kB", "40kB", "80kB"]),
    seed=st.integers(0, 2**32 - 1),
    threads=st.integers(1, 4),
    zeros=st.booleans(),
)
@settings(max_examples=examples(40))
def test_each_block_is_made_once_of_blocks_in_their_order(
    shape: Index3, series: int, shard: Index3, memory: str, seed: int, threads: int, zeros: bool
) -> None:
    """As many are open as the plan counts at most, though blocks in flight end in any order: none is given up."""
    random = np.random.default_rng(seed)
    voxels = random.integers(0, 2**16, (series, *shape)).astype(np.uint16)
    options = SMALL | {"shard": shard, "device_memory": memory, "threads": threads, "levels": 3, "axes": "czyx"}
    try:
        plan = isovoxel.plan(voxels, factor=(1.0, 1.0, 1.0), input_voxel_size=(1.0, 1.0, 1.0), **options)
    except DoesNotFitError:
        reject()
    assume(plan.made_along)
    further = FurtherLevels(plan)
    output = [np.zeros((series, *made.output.shape), np.uint16) for made in plan.levels]
    output[0] = np.zeros_like(voxels) if zeros else voxels
    written: list[tuple[int, int]] = []
    told: list[tuple[int, int]] = []

    def write(made: Plan, block: Block, data: NDArray[Any] | None) -> None:
        assert (data is None) == (zeros and made.level == 1)
        written.append((made.level, block.index))
        output[made.level][block.write_box.volume][block.write_box.slices] = 0 if data is None else data

    left = list(range(plan.n_blocks))
    while left:
        index = left.pop(int(random.integers(min(len(left), plan.in_flight))))
        box = plan.block(index).write_box
        data = None if zeros else np.ascontiguousarray(voxels[box.volume][box.slices])
        told += further.make(index, data, write)
    assert told == written
    assert sorted(told) == [(made.level, index) for made in plan.made_along for index in range(made.n_blocks)]
    for before, made in pairwise([plan, *plan.made_along]):
        for volume in range(series):
            expected = Halver()(output[before.level][volume], made.factor, made.output.shape)
            np.testing.assert_array_equal(output[made.level][volume], expected)


def test_a_part_that_comes_twice_counts_once() -> None:
    """As that of a block which could not be flushed to the disk, and is made again."""
    plan = isovoxel.plan(VOXELS, factor=FACTOR, threads=1, **SMALL)
    level = plan.further[1]
    blocks = OpenBlocks(level)
    whole = level.block(0)
    z, y, x = whole.write_box.shape
    first = Box((0, 0, 0), (z, y, x // 2))
    voxels = np.ones(whole.write_box.shape, np.uint16)
    for _ in range(2):
        assert blocks.add(0, first, voxels[..., : x // 2]) == []
    ((made, data),) = blocks.add(1, Box((0, 0, x // 2), (z, y, x)), voxels[..., x // 2 :])
    assert made == whole
    assert data.all()
    assert blocks.add(1, Box((0, 0, x // 2), (z, y, x)), voxels[..., x // 2 :]) == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"shard": (16, 16, 16), "device_memory": "12kB"}, "shards are larger than what a block becomes"),
        ({"labels": True, "interpolation": "nearest"}, "a majority is no mean"),
    ],
)
def test_where_it_cannot_be_it_is_not(options: dict[str, Any], why: str) -> None:
    """Then the level is read back."""
    assert isovoxel.plan(VOXELS, factor=FACTOR, **SMALL | options).made_along == (), why
    assert isovoxel.plan(VOXELS.astype(np.float32), factor=FACTOR, **SMALL).made_along == ()


def test_default_shards_make_way() -> None:
    """Level 1 has shards that its blocks are whole ones of, as large as the default ones or smaller."""
    volume = isovoxel.open_volume(np.zeros((64, 2048, 2048), np.uint16), voxel_size=(4, 1, 1))
    memory = host_limits().baseline + (3 << 29)
    plan = isovoxel.plan(volume, zoom=1, engine="exact", device_memory="300MB", memory=memory)
    first = plan.made_along[0]
    assert isinstance(first, Plan)
    assert plan.n_blocks > 1
    assert first.block_grid == plan.block_grid
    assert plan.projected_host <= plan.host.allowed
    assert all(
        b % s == 0 or b == m for b, s, m in zip(first.block_shape, first.storage.shard, first.output.shape, strict=True)
    )


def test_blocks_make_way() -> None:
    """Where half a block would be no whole chunks of level 1, larger blocks are taken, if they fit."""
    volume = isovoxel.open_volume(np.zeros((157, 630, 630), np.uint16), voxel_size=(4, 1, 1))
    how: dict[str, Any] = {"zoom": 1, "engine": "exact", "device_memory": "1GB", "threads": 3}
    memory = host_limits().baseline + (1 << 30)
    first, alone = (isovoxel.plan(volume, memory=memory, levels=levels, **how) for levels in (None, 0))
    assert first.made_along
    assert first.block_shape != alone.block_shape
    assert first.in_flight == alone.in_flight
    assert first.projected_host <= first.host.allowed
    little = isovoxel.plan(volume, memory=alone.projected_host + (1 << 20), **how)
    assert little.made_along == ()
    assert little.block_shape == alone.block_shape


class FixedLimits:
    """A processor and a host whose limits do not depend on what this process holds."""

    def __init__(self, threads: int, mebibytes: int) -> None:
        gib = 1 << 30
        self._device = device_limits(kind="cpu", memory=64 * gib, allowed=64 * gib, largest_allocation=16 * gib)
        self._host = fixed_host(allowed=mebibytes << 20, threads=threads, helpers=threads - 1)

    def limits(self, _engine: str) -> tuple[DeviceLimits, HostLimits]:
        """Return them."""
        return replace(self._device, shares_host_memory=True), self._host

    def clesperanto(self) -> tuple[str, str]:
        """There is none."""
        return "", "it is not wanted"


@pytest.mark.parametrize(("threads", "mebibytes"), [(1, 640), (4, 1700), (8, 2100)])
def test_where_memory_is_short_blocks_leave_room_for_level_1(tmp_path: Path, threads: int, mebibytes: int) -> None:
    """The full level, which they would have filled it for, is not read back then; shards and blocks in flight stay."""
    zarr.create_array(tmp_path / "a", shape=(400, 1400, 1400), dtype="uint16", chunks=(64, 128, 128))
    volume = isovoxel.open_volume(tmp_path / "a", voxel_size=(1.0, 0.4, 0.4))
    plan, alone = (
        plan_volume(volume, options, choose_sampling(volume, options), FixedLimits(threads, mebibytes))
        for options in (Options(factor=(5, 2, 2), engine="exact", levels=levels) for levels in (None, 0))
    )
    assert plan.made_along
    assert plan.halves_blocks
    assert plan.projected_host <= plan.host.allowed == alone.host.allowed
    assert math.prod(plan.block_shape) < math.prod(alone.block_shape)
    assert (plan.storage, plan.in_flight) == (alone.storage, alone.in_flight)
