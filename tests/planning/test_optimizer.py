"""Choosing blocks: the largest that fit, those that re-read least, and refusals with numbers."""

import itertools
import math
import re
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.errors import DoesNotFitError, OptionError
from isovoxel.geometry.grid import VoxelGrid, factor_for_zoom
from isovoxel.planning import optimizer
from isovoxel.planning.chunking import Storage, default_storage
from isovoxel.planning.optimizer import make_plan, plan_chunks
from isovoxel.planning.plan import Plan
from strategies import GIB, device_limits, dtypes, factors, host_limits, shapes, source

MIB = 2**20


def planned(shape: tuple[int, int, int], factor: tuple[float, float, float], **changes: object) -> Plan:
    """A plan of a uint16 volume with the default storage."""
    limits = {"device": device_limits(), "host": host_limits()} | {
        k: changes.pop(k) for k in ("device", "host") if k in changes
    }
    src = source(shape, **{k: changes.pop(k) for k in ("dtype", "chunks") if k in changes})
    storage = changes.pop("storage", None) or default_storage(src.grid.scaled(factor).shape, src.itemsize)
    return make_plan(src, factor, storage=storage, **limits, **changes)


@given(shapes(3000), factors, dtypes, st.integers(20, 4000), st.integers(20, 4000), st.integers(1, 16))
def test_budgets_hold_or_the_job_is_refused(
    shape: tuple[int, int, int],
    factor: tuple[float, float, float],
    dtype: str,
    device_mib: int,
    host_mib: int,
    threads: int,
) -> None:
    """Law 4, on paper: what is planned is within both budgets, for any volume, factor and budget."""
    device = device_limits(allowed=device_mib * MIB)
    host = host_limits(allowed=host_mib * MIB, baseline=10 * MIB, threads=threads)
    try:
        plan = planned(shape, factor, dtype=dtype, device=device, host=host)
    except DoesNotFitError as error:
        named = "choose" in str(error)
        assert named
        return
    assert plan.projected_device <= device.allowed
    assert plan.projected_host <= host.allowed
    assert not plan.cost.excess(device)
    assert 1 <= plan.in_flight <= threads


def test_short_memory_goes_to_fewer_blocks_where_helpers_encode() -> None:
    """In 2 GiB sixteen blocks in flight decode most chunks several times; with fewer, shared ones are kept."""
    how = {"shape": (400, 1400, 1400), "factor": (5.0, 2.0, 2.0), "chunks": (64, 256, 256)}
    device = device_limits(allowed=60 * GIB, memory=80 * GIB, largest_allocation=20 * GIB)

    def plan(gib: int, helpers: int, shard: tuple[int, int, int] | None = None) -> Plan:
        host = host_limits(allowed=gib * GIB, threads=16, helpers=helpers)
        cached = replace(source(how["shape"], chunks=how["chunks"], read_overhead=20 * MIB), caches=True)
        storage = default_storage(cached.grid.scaled(how["factor"]).shape, 2, shard=shard)
        limits = {"device": device, "host": host, "fixed_storage": shard is not None}
        return make_plan(cached, how["factor"], storage=storage, engine="exact", **limits)

    assert plan(100, 15).in_flight == plan(100, 0).in_flight == plan(2, 0).in_flight == 16
    short = plan(2, 15)
    assert short.in_flight < 16
    assert short.cache > 0
    assert short.projected_host <= 2 * GIB
    # All cores have something to encode: as many threads as a shard has chunks work for a block.
    assert short.in_flight * short.storage.chunks_per_shard >= 16
    assert plan(2, 15, (128, 128, 128)).in_flight == 16
    assert plan(2, 15, (128, 128, 256)).in_flight >= 8


def test_a_gpu_that_encodes_keeps_large_shards_and_needs_no_room_on_the_host_for_them() -> None:
    """Blocks stay on the device until they are encoded; one that has no room there comes to the host alone."""
    device = device_limits(allowed=60 * GIB, memory=80 * GIB, largest_allocation=20 * GIB)
    host = host_limits(allowed=2 * GIB, baseline=3 * GIB // 2, threads=16, helpers=15)
    how = {"shape": (400, 1400, 1400), "factor": (5.0, 2.0, 2.0), "chunks": (64, 128, 128), "host": host}
    on_gpu = planned(**how, engine="exact", device=replace(device, encoding=GIB))
    on_cores = planned(**how, engine="exact", device=device)
    assert on_gpu.keeps_blocks
    assert not on_cores.keeps_blocks
    assert on_gpu.storage.shard == (256, 256, 256)
    assert math.prod(on_gpu.storage.shard) > math.prod(on_cores.storage.shard)
    voxels = 2 * math.prod(on_gpu.largest.written)
    assert on_gpu.staging_on_host == (on_gpu.staging[0], 0)
    assert on_gpu.cost.spilled == voxels
    assert on_gpu.cost.host == replace(on_gpu, device=device).cost.host - voxels
    assert on_gpu.projected_host <= 2 * GIB


def test_a_volume_eight_times_larger_needs_no_more() -> None:
    """Law 4: doubling every side leaves the projected bytes within the same budget, in both ways to the halo."""
    host = host_limits(allowed=2 * GIB)
    for mode in ("direct", "map_overlap"):
        for side in (500, 1000, 2000):
            plan = planned((side // 4, side, side), (4.0, 1.0, 1.0), host=host, halo_mode=mode)
            assert plan.projected_host <= 2 * GIB
            assert plan.halo_mode == mode


def test_a_larger_device_gets_larger_blocks() -> None:
    small, large = (
        planned((500, 2000, 2000), (5.0, 1.0, 1.0), device=device_limits(allowed=n * MIB)) for n in (300, 3000)
    )
    assert large.n_blocks < small.n_blocks


def test_blocks_follow_the_sources_chunks() -> None:
    """Where the source's chunks are whole planes, they are not cut, for each cut decodes them once more."""
    host = host_limits(allowed=16 * GIB)
    plan = planned(
        (2000, 1024, 1024),
        (1.0, 1.0, 1.0),
        chunks=(1, 1024, 1024),
        host=host,
        device=device_limits(allowed=16 * GIB, largest_allocation=4 * GIB),
    )
    assert plan.block_grid[1:] == (1, 1)
    assert plan.block_grid[0] > 1


def test_there_are_enough_blocks_to_overlap_their_stages() -> None:
    """A volume that fits in one block is still cut where its shards allow it, so that threads do not idle."""
    storage = Storage((64,) * 3, (128,) * 3)
    exact, cle = (
        planned((512, 512, 512), (1.0, 1.0, 1.0), storage=storage, fixed_storage=True, engine=engine)
        for engine in ("exact", "cle")
    )
    assert exact.n_blocks >= 4 * exact.in_flight
    # Of cle's blocks each costs all threads some Python.
    assert exact.n_blocks > cle.n_blocks >= 2 * cle.in_flight


def test_auto_takes_map_overlap_where_one_graph_holds_the_job() -> None:
    """Auto is map_overlap for a small job, direct reads for one whose input does not fit the memory."""
    small = planned((86, 396, 393), (2.0, 0.4, 0.4))
    assert (small.halo_mode, small.window) == ("map_overlap", small.block_grid)
    large = planned((2000, 5000, 5000), (5.0, 1.0, 1.0))
    assert large.halo_mode == "direct"


def test_map_overlap_goes_window_by_window_where_memory_is_short() -> None:
    """Asked for map_overlap, a job that does not fit in one graph is cut into windows that do."""
    plan = planned((500, 2000, 2000), (5.0, 1.0, 1.0), halo_mode="map_overlap", host=host_limits(allowed=3 * GIB))
    assert plan.window != plan.block_grid
    assert plan.projected_host <= 3 * GIB
    wider = replace(plan, window=plan.block_grid)
    assert wider.projected_host > 3 * GIB


def test_map_overlap_is_refused_where_blocks_are_thinner_than_their_halo() -> None:
    """Dask would silently merge blocks; the user is told instead."""
    with pytest.raises(DoesNotFitError, match=r"map_overlap cannot take a halo of . along z .* use --halo direct"):
        planned(
            (30, 30, 30),
            (20.0, 1.0, 1.0),
            storage=Storage((4, 8, 8), (4, 8, 8)),
            fixed_storage=True,
            halo_mode="map_overlap",
            device=device_limits(allowed=9_000),
        )


@pytest.mark.parametrize("engine", ["cle", "exact"])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("held", [512 * MIB, 5 * GIB + 1])
def test_a_refusal_for_memory_names_the_least_that_does(engine: str, fixed: bool, held: int) -> None:
    """With what it says the job is planned, with a MiB less it is not; of what is kept no word is said to be in use."""

    def attempt(memory: int) -> Plan:
        host = host_limits(allowed=memory, baseline=held)
        return planned((90, 300, 310), (4.0, 1.3, 1.0), host=host, engine=engine, fixed_storage=fixed)

    with pytest.raises(DoesNotFitError, match=r"iB of it for Python, libraries") as error:
        attempt(held)
    least = int(re.findall(r"--memory (\d+)MiB or more", str(error.value))[0]) * MIB
    assert attempt(least).projected_host <= least
    with pytest.raises(DoesNotFitError):
        attempt(least - MIB)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"device": device_limits(allowed=MIB)}, "MiB on test device, of which 1.0 MiB are allowed"),
        (
            {"device": device_limits(largest_allocation=MIB)},
            "output buffer, but test device allocates at most 1.0 MiB",
        ),
        ({"device": device_limits(image_shape=(20, 20, 20))}, "a 3-D image of .* test device takes at most"),
        (
            {"host": host_limits(allowed=GIB // 2 + MIB)},
            "512.0 MiB of it for Python, .*; 513.0 MiB are allowed",
        ),
    ],
)
def test_a_volume_for_which_no_block_fits_is_refused_with_the_numbers(limits: dict, says: str) -> None:
    """The refusal names what one shard takes, what is allowed, and what to change."""
    with pytest.raises(DoesNotFitError, match=rf"no block fits: one shard of .* voxels takes .*{says}.*; choose "):
        planned((500, 500, 500), (2.0, 2.0, 2.0), **limits)


def test_few_blocks_are_checked_where_nearly_none_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too large at a glance is left out before: there are more than 100,000 kinds of blocks."""
    fits, checked = optimizer._fits, itertools.count()
    monkeypatch.setattr(optimizer, "_fits", lambda *how: next(checked) >= 0 and fits(*how))
    host = host_limits(allowed=GIB // 2 + 100 * MIB, baseline=GIB // 2, threads=16)
    plan = planned((20_000, 10_000, 10_000), (4.0, 1.0, 1.0), engine="exact", host=host)
    assert plan.projected_host <= host.allowed
    assert next(checked) < 2000


def test_small_budgets_get_smaller_shards_unless_the_user_chose_them() -> None:
    """Default shards shrink to what fits; a chosen one is refused."""
    tight = device_limits(allowed=30 * MIB)
    plan = planned((500, 500, 500), (2.0, 2.0, 2.0), device=tight)
    assert plan.storage.shard < (256, 256, 256)
    with pytest.raises(DoesNotFitError, match="smaller --shard"):
        planned(
            (500, 500, 500),
            (2.0, 2.0, 2.0),
            device=tight,
            storage=Storage((128,) * 3, (256,) * 3),
            fixed_storage=True,
        )


def test_a_petabyte_is_planned_at_once() -> None:
    """A plan is lazy: 10^15 bytes take as few steps as megabytes do, far fewer than there are blocks."""
    grid = VoxelGrid((20_000, 160_000, 160_000), (1.0, 0.2, 0.2))
    factor = factor_for_zoom(grid, 5.0)
    steps = itertools.count()
    sys.setprofile(lambda *_: next(steps))  # type: ignore[arg-type, return-value]
    try:
        plan = make_plan(
            source(grid.shape, grid=grid, chunks=(64, 128, 128)),
            factor,
            storage=default_storage(grid.scaled(factor).shape, 2),
            device=device_limits(),
            host=host_limits(),
        )
        plan.block(plan.n_blocks - 1)
    finally:
        sys.setprofile(None)
    assert next(steps) < 200_000
    assert plan.n_blocks > 10**6
    assert len(plan.to_json()) < 4000


def test_absurdly_many_shards_are_refused_at_once() -> None:
    """A zoom of a trillion does not make the planner count shards for hours."""
    with pytest.raises(OptionError, match="shards along z, more than 1,000,000"):
        planned((100, 10, 10), (1e11, 1.0, 1.0), storage=Storage((128,) * 3, (256,) * 3))


def test_chunks_of_a_graph_are_halved_until_they_fit() -> None:
    """A default chunk shrinks to the device; a chosen one is refused."""
    limits = {"device": device_limits(allowed=MIB), "host": host_limits()}
    plan = plan_chunks(source((200, 200, 200)), (1.0, 1.0, 1.0), chunks=(200, 200, 200), fixed=False, **limits)
    assert plan.projected_device <= MIB
    with pytest.raises(DoesNotFitError, match="choose smaller chunks"):
        plan_chunks(source((200, 200, 200)), (1.0, 1.0, 1.0), chunks=(200, 200, 200), fixed=True, **limits)
