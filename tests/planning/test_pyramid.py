"""Levels lie where they should, whatever shape, factor and voxel size, and each can be made of the one before."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.errors import DoesNotFitError, OptionError
from isovoxel.geometry.grid import Box, VoxelGrid, ceil_div
from isovoxel.planning.chunking import Storage, default_storage
from isovoxel.planning.optimizer import make_plan
from isovoxel.planning.plan import Plan
from isovoxel.planning.pyramid import LARGEST_SIDE, level_grids, with_levels
from isovoxel.planning.resume import continued, plan_from_json
from strategies import device_limits, factors, host_limits, source, triples

sizes = triples(st.floats(0.01, 100, allow_nan=False))
origins = triples(st.floats(-1e3, 1e3, allow_nan=False))


def planned(
    shape: tuple[int, int, int], by: tuple[float, float, float], count: int | None, most: int = 2**30, **options: object
) -> Plan:
    """A plan with its levels, on a device that has so many bytes."""
    device, host = device_limits(allowed=most), host_limits()
    output = VoxelGrid(shape).scaled(by).shape
    full = make_plan(
        source(shape, "uint16"),
        by,
        storage=default_storage(output, 2, chunk=options.get("chunk"), shard=options.get("shard")),
        device=device,
        host=host,
        engine="exact",
        halo_mode="direct",
        fixed_storage="shard" in options,
    )
    wanted = {"chunk": None, "shard": None} | options
    overhead = 1000
    return with_levels(
        full, count=count, interpolation="area", device=device, host=host, read_overhead=lambda *_: overhead, **wanted
    )


@given(triples(st.integers(1, 3000)), factors, sizes, origins)
def test_every_level_covers_what_the_input_covers(
    shape: tuple[int, int, int],
    by: tuple[float, float, float],
    size: tuple[float, float, float],
    origin: tuple[float, float, float],
) -> None:
    """Its first face is the input's, and its last to within half a voxel of its own (a voxel at least is left)."""
    grid = VoxelGrid(shape, size, origin)
    before = grid.scaled(by)
    for level, factor in level_grids(grid, by, None):
        for axis in range(3):
            n, m, f = before.shape[axis], level.shape[axis], factor[axis]
            assert f in ((0.5, 1.0) if n > 1 else (1.0,))
            assert m in ((n // 2, ceil_div(n, 2)) if f == 0.5 else (n,))
            assert m >= 1
            assert level.voxel_size[axis] == before.voxel_size[axis] / f
            first = level.origin[axis] - level.voxel_size[axis] / 2
            least = 1e-9 * (abs(first) + shape[axis] * size[axis])
            assert first == pytest.approx(origin[axis] - size[axis] / 2, abs=least)
            apart = abs(m * level.voxel_size[axis] - shape[axis] * size[axis])
            assert m == 1 or apart <= level.voxel_size[axis] / 2 + least
            # The rule for a mean of neighbours: scale * (f - 1) / 2, of the level before.
            moved = before.voxel_size[axis] * (1 / f - 1) / 2
            assert level.origin[axis] == pytest.approx(before.origin[axis] + moved, abs=least)
        before = level


@given(triples(st.integers(1, 3000)), sizes)
def test_levels_become_cubic_and_stay_so(shape: tuple[int, int, int], size: tuple[float, float, float]) -> None:
    """Of the axes that are still to be halved, none gets further from the others than it was, or than a factor of 2."""
    grid = before = VoxelGrid(shape, size)

    def spread(level: VoxelGrid) -> float:
        free = [v for v, n in zip(level.voxel_size, level.shape, strict=True) if n > 1]
        return max(free) / min(free) if free else 1.0

    for level, _ in level_grids(grid, (1.0, 1.0, 1.0), None):
        if min(level.shape) > 1:
            assert spread(level) <= max(spread(before), 2 * (1 + 1e-12))
        before = level


@given(triples(st.integers(1, 10**6)), factors)
def test_auto_ends_where_a_viewer_shows_all(shape: tuple[int, int, int], by: tuple[float, float, float]) -> None:
    """The last level has no side above the limit, the one before has, and a small output has no further one."""
    grid = VoxelGrid(shape)
    levels = [grid.scaled(by), *(level for level, _ in level_grids(grid, by, None))]
    assert max(levels[-1].shape) <= LARGEST_SIDE
    assert all(max(level.shape) > LARGEST_SIDE for level in levels[:-1])


def test_a_number_is_taken_at_its_word() -> None:
    """None, some, down to one voxel, and no further."""
    grid = VoxelGrid((1, 7, 30))
    assert level_grids(grid, (1.0, 1.0, 1.0), 0) == []
    found = [level.shape for level, _ in level_grids(grid, (1.0, 1.0, 1.0), 5)]
    assert found == [(1, 4, 15), (1, 2, 8), (1, 1, 4), (1, 1, 2), (1, 1, 1)]
    with pytest.raises(OptionError, match="levels is 6, but level 5 is a single voxel; choose at most 5, or auto"):
        level_grids(grid, (1.0, 1.0, 1.0), 6)


@given(st.data(), triples(st.integers(1, 50)), factors, st.integers(1, 3))
def test_blocks_of_a_level_tile_it_and_read_no_halo(
    data: st.DataObject, shape: tuple[int, int, int], by: tuple[float, float, float], count: int
) -> None:
    """Laws 1 and 2: read boxes hold what is averaged; and, but for an axis that stays, nothing else."""
    count = min(count, len(level_grids(VoxelGrid(shape), by, None)) or 0) or _most(VoxelGrid(shape), by, count)
    chunk = data.draw(triples(st.integers(1, 8)))
    plan = planned(shape, by, count, chunk=chunk)
    for level in plan.further:
        covered = 0
        for block in level.blocks():
            covered += block.write_box.size
            assert block.level == level.level
            wanted = Box(
                tuple(int(a / f) for a, f in zip(block.write_box.start, level.factor, strict=True)),
                tuple(
                    min(n, int(b / f))
                    for n, b, f in zip(level.source.grid.shape, block.write_box.stop, level.factor, strict=True)
                ),
            )
            # At the rim, where one sample is left for a voxel, the table begins with the one before it.
            assert block.read_box.contains(wanted)
            assert block.read_box.size <= math.prod(n + 1 for n in wanted.shape)
            assert all(a - b in (0, 1) for a, b in zip(wanted.start, block.read_box.start, strict=True))
        assert covered == math.prod(level.output.shape)


def _most(grid: VoxelGrid, by: tuple[float, float, float], count: int) -> int:
    """Return how many levels there can be, up to so many."""
    for n in range(count, 0, -1):
        try:
            level_grids(grid, by, n)
        except OptionError:
            continue
        return n
    return 0


def test_a_plan_with_levels_survives_json_and_its_fingerprint_knows_them() -> None:
    """Law 5: another number of levels is another result."""
    plan = planned((100, 90, 80), (2.0, 1.0, 1.3), 3)
    assert plan_from_json(plan.to_json()) == plan
    assert [level.level for level in plan.levels] == [0, 1, 2, 3]
    assert plan.all_blocks == sum(level.n_blocks for level in plan.levels)
    assert plan.all_voxels == sum(math.prod(level.output.shape) for level in plan.levels)
    assert plan.disk_bytes == sum(replace(level, further=()).disk_bytes for level in plan.levels)
    assert 2 * plan.all_voxels < plan.disk_bytes < 2.1 * plan.all_voxels
    assert plan.split(bytearray(range(plan.all_blocks)))[-1] == bytes([plan.all_blocks - 1])
    others = [planned((100, 90, 80), (2.0, 1.0, 1.3), n).fingerprint for n in (0, 1, 2)]
    assert len({plan.fingerprint, *others}) == 4


def test_a_job_goes_on_with_the_blocks_of_all_its_levels() -> None:
    """Those that it was begun with, whatever would be chosen today."""
    begun = planned((100, 90, 80), (2.0, 1.0, 1.3), 2, 2**22, chunk=(16, 16, 16))
    today = planned((100, 90, 80), (2.0, 1.0, 1.3), 2, chunk=(16, 16, 16))
    assert [level.block_shape for level in begun.levels] != [level.block_shape for level in today.levels]
    plan = continued(begun, today)
    for was, now in zip(begun.levels, plan.levels, strict=True):
        assert (now.block_shape, now.storage, now.level) == (was.block_shape, was.storage, was.level)
    assert plan.fingerprint == begun.fingerprint


def test_a_level_has_smaller_shards_where_its_blocks_read_too_much() -> None:
    """They read eight times what they write; where a chunk does not fit either, the level is named."""
    plan = planned((64, 64, 64), (1.0, 1.0, 1.0), 1, 450_000, chunk=(16, 16, 16), shard=(32, 32, 32))
    assert plan.storage.shard == (32, 32, 32)
    assert plan.further[0].storage == Storage((16, 16, 16), (16, 16, 16), checksum=True)
    with pytest.raises(DoesNotFitError, match=r"^of level 1, no block fits: .*; or leave it out with --levels 0$"):
        planned((64, 64, 64), (1.0, 1.0, 1.0), 1, 100_000, chunk=(16, 16, 16), shard=(16, 16, 16))
