"""The default engine: against whole-volume `cle.scale`, the float64 reference, and its own projections."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
import pyopencl as cl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyopencl import _cl

from isovoxel import scale_array
from isovoxel.engines.cle import CleEngine
from isovoxel.engines.clesperanto import clesperanto
from isovoxel.engines.devices import find_device
from isovoxel.engines.opencl import quiet_compiler, rows_of
from isovoxel.engines.reference import reference
from isovoxel.engines.registry import open_engine
from isovoxel.errors import DeviceError
from isovoxel.geometry.grid import Box, VoxelGrid
from isovoxel.planning.optimizer import too_thin
from isovoxel.planning.plan import Plan
from repeat import carry_out
from strategies import (
    Live,
    as_dtype,
    cle_precision,
    cut,
    device_limits,
    one_kernel_for_all_shapes,
    padded_lengths,
    plans,
    read_from,
)

Float3 = tuple[float, float, float]
Index3 = tuple[int, int, int]

LEVEL = 0.5
"""Largest difference allowed between a chunked and a whole `cle.scale` of 16-bit data."""


@pytest.fixture(autouse=True, scope="module")
def _one_kernel() -> Iterator[None]:
    with one_kernel_for_all_shapes():
        yield


@pytest.fixture(scope="module")
def engine() -> CleEngine:
    """The engine of this process, on the CPU or GPU that is there."""
    found = open_engine()
    assert isinstance(found, CleEngine)
    for interpolation in ("linear", "nearest"):  # tests call cle beside it, whose compiler then has nothing to say
        found.prepare(cut((4, 4, 4), (2.0, 2.0, 2.0), (8, 8, 8), interpolation=interpolation))
    return found


def whole_scale(volume: np.ndarray, factor: Float3, *, linear: bool) -> np.ndarray:
    """Scale as a user of cle does: in one piece, with the generation that the engine has."""
    fz, fy, fx = factor
    if clesperanto().package == "pyclesperanto":
        import pyclesperanto

        given = pyclesperanto.push(volume, mtype="image" if linear else "buffer")
        made = pyclesperanto.create(VoxelGrid(volume.shape).scaled(factor).shape, dtype=np.float32)
        how = {"centered": False, "interpolate": linear, "resize": False}
        pyclesperanto.scale(given, made, factor_x=fx, factor_y=fy, factor_z=fz, **how)
        return np.asarray(pyclesperanto.pull(made))
    import pyclesperanto_prototype as cle

    with quiet_compiler():  # the first to build a kernel is warned of what the compiler says
        scaled = cle.scale(volume, factor_x=fx, factor_y=fy, factor_z=fz, auto_size=True, linear_interpolation=linear)
    return np.asarray(scaled)


def random_volume(seed: int, shape: Index3, dtype: str) -> np.ndarray:
    """Random voxels over the whole range of an integer dtype; float32 with 16-bit values."""
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        return rng.integers(0, 2**16, shape).astype(np.float32)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


# ---- chunked against whole -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One comparison of a chunked with a whole scaling."""

    shape: Index3
    factor: Float3
    block: Index3


WHOLE, FRACTIONAL, DOWN = (2.0, 3.0, 4.0, 5.0), (1.5, 2.3, 1.1, 4.95049504950495), (0.5, 0.25, 0.404, 0.7, 1 / 3)
KINDS: dict[str, tuple[tuple[float, ...], ...]] = {
    "whole": (WHOLE,),
    "fractional": (FRACTIONAL,),
    "down": (DOWN,),
    "mixed": (WHOLE, FRACTIONAL, DOWN, (1.0,)),
    "along z": (WHOLE + FRACTIONAL, (1.0,), (1.0,)),
    "factor 1": ((1.0,),),
}


def random_cases(each: int = 8) -> list[Any]:
    """Seeded shapes, factors and blocks: so many of each kind, all of which map_overlap can serve."""
    cases = []
    for seed, (kind, choices) in enumerate(KINDS.items()):
        rng = np.random.default_rng(seed)
        found = 0
        while found < each:
            pick = [choices[a] if len(choices) == 3 else choices[rng.integers(len(choices))] for a in range(3)]
            factor = tuple(float(rng.choice(p)) for p in pick)
            shape = tuple(int(n) for n in rng.integers(6, (30, 60, 70)))
            block = tuple(int(n) for n in rng.integers(6, (30, 50, 60)))
            plan = cut(shape, factor, block, "float32", boundary="constant")
            if 2 <= plan.n_blocks <= 100 and not too_thin(plan):
                found += 1
                case = Case(shape, factor, block)
                cases.append(pytest.param(case, id=f"{kind}-{found}"))
    return cases


def near_faces(plan: Plan) -> np.ndarray:
    """Tell of each output voxel whether it is within 1 voxel of a face between two blocks."""
    near = np.zeros(plan.output.shape, bool)
    for axis, (m, b) in enumerate(zip(plan.output.shape, plan.block_shape, strict=True)):
        along = np.zeros(m, bool)
        for face in range(b, m, b):
            along[face - 1 : face + 1] = True
        near |= along.reshape([m if a == axis else 1 for a in range(3)])
    return near


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", random_cases())
def test_chunks_equal_the_whole_and_all_ways_to_the_halo_give_the_same_bits(engine: CleEngine, case: Case) -> None:
    """Linear and constant, cut anyhow, is `cle.scale` of the whole within half a grey level, at faces as inside."""
    volume = random_volume(7, case.shape, "float32")
    plan = cut(case.shape, case.factor, case.block, "float32", boundary="constant")
    direct = carry_out(engine, plan, volume)
    overlapped = carry_out(engine, replace(plan, halo_mode="map_overlap", window=plan.block_grid), volume)
    np.testing.assert_array_equal(overlapped, direct)
    windows = replace(plan, halo_mode="map_overlap", window=(1, 2, 1))
    np.testing.assert_array_equal(carry_out(engine, windows, volume), direct)
    lazy = scale_array(
        da.from_array(volume, chunks=17), case.factor, engine="cle", boundary="constant", chunks=case.block
    )
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), direct)

    whole = whole_scale(volume, case.factor, linear=True)
    difference = np.abs(direct - whole)
    assert difference.max() < LEVEL
    # What float32 coordinates leave is noise, of which faces and insides draw different samples; a seam would be
    # hundreds of grey levels. Hence twice, and 0.02 for where there is hardly any noise.
    near = near_faces(plan)
    assert near.any()
    if not near.all():
        assert difference[near].max() <= 2 * difference[~near].max() + 0.02


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize(
    "factor",
    [
        (2.0, 3.0, 1.0),
        (1.7, 0.6, 2.3),
        (0.75, 0.9, 5.0),
        (2.3, 1.15, 1.1),
        # Shrinking so far that some planes are no sample's neighbours: cle.scale rounds as it does with all of them.
        (1 / 3, 0.25, 5.0),
        (4.467, 1.116, 0.2097),
        (0.298, 2.4, 0.39),
    ],
)
def test_a_single_constant_block_is_cle_scale_voxel_for_voxel(
    engine: CleEngine, factor: Float3, interpolation: str
) -> None:
    """With 0 around the volume and nothing cut, the very same call is made."""
    volume = random_volume(1, (11, 23, 29), "float32")
    plan = cut(volume.shape, factor, (999, 999, 999), "float32", boundary="constant", interpolation=interpolation)
    found = carry_out(engine, plan, volume)
    np.testing.assert_array_equal(found, whole_scale(volume, factor, linear=interpolation == "linear"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("shape", "factor", "block"),
    [
        ((20, 31, 41), (2.3, 1.1, 1.15), (9, 10, 11)),
        ((20, 31, 41), (1.7, 0.55, 3.3), (16, 7, 27)),
        ((21, 33, 47), (1 / 3, 2.7, 1.3), (5, 16, 16)),
        ((9, 9, 200), (1.0, 3.0, 1.1), (9, 12, 16)),
    ],
)
def test_nearest_chunks_equal_the_whole_but_for_ties(
    engine: CleEngine, shape: Index3, factor: Float3, block: Index3
) -> None:
    """On a voxel's face float32 decides in `cle.scale` and float64 here; everywhere else they are equal."""
    volume = random_volume(2, shape, "float32")
    plan = cut(shape, factor, block, "float32", interpolation="nearest", boundary="constant")
    tie = np.zeros(plan.output.shape, bool)
    for axis, along in enumerate(plan.axes):
        position = (np.arange(along.m) + 0.5) / along.factor
        on_face = np.abs(position - np.rint(position)) < 1e-4
        tie |= on_face.reshape([along.m if a == axis else 1 for a in range(3)])
    assert tie.mean() < 0.25
    found, whole = carry_out(engine, plan, volume), whole_scale(volume, factor, linear=False)
    np.testing.assert_array_equal(found[~tie], whole[~tie])


def test_work_groups_of_one_voxel_change_no_bit(engine: CleEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes these tests fast leaves the results alone."""
    if clesperanto().package != "pyclesperanto-prototype":
        pytest.skip("it is the prototype's kernels that run in such groups")
    from pyclesperanto_prototype._tier0._program import OCLProgram

    volume = random_volume(3, (12, 20, 30), "float32")
    for interpolation in ("linear", "nearest"):
        plan = cut(volume.shape, (1.7, 2.0, 0.6), (16, 32, 9), "float32", interpolation=interpolation)
        block = plan.block(plan.n_blocks // 2)
        data = volume[block.read_box.slices]
        found = engine.scale(data, block, plan).data
        with monkeypatch.context() as patch:
            patch.setattr(OCLProgram, "run_kernel", OCLProgram.run_kernel.__wrapped__)
            np.testing.assert_array_equal(engine.scale(data, block, plan).data, found)


# ---- against the reference -----------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=150)
@given(plans(40), st.integers(0, 2**32 - 1), st.data())
def test_blocks_equal_the_reference(engine: CleEngine, plan: Plan, seed: int, data: st.DataObject) -> None:
    """Every dtype, interpolation, boundary, shape, factor and cut: linear within precision, nearest to the bit."""
    shape, dtype = plan.source.grid.shape, plan.source.dtype
    volume = random_volume(seed, shape, dtype)
    last = plan.n_blocks - 1
    for index in {0, last, data.draw(st.integers(0, last))}:
        block = plan.block(index)
        found = engine.scale(volume[block.read_box.slices], block, plan).data
        assert (found.shape, found.dtype) == (block.write_box.shape, volume.dtype)
        real = reference(read_from(volume), shape, plan.factor, block.write_box, plan.interpolation, plan.boundary)
        if plan.interpolation == "linear":
            assert np.abs(found - real).max() <= cle_precision(padded_lengths(plan), volume)
        # With "constant" a block at the volume's start is as cle.scale has it: there float32 decides about ties.
        elif plan.boundary == "nearest" or all(block.write_box.start):
            np.testing.assert_array_equal(found, as_dtype(real, volume.dtype))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("factor", [1.1, 1.15, 2.3, 0.55, 1 / 1.1, 41 / 8, 61 / 4])
@pytest.mark.parametrize("block", [9, 16, 27, 10_000])
def test_nearest_equals_the_reference_on_ties(engine: CleEngine, factor: float, block: int) -> None:
    """Factors that put samples on voxels' faces, where neither float32 nor float64 may decide by chance."""
    volume = random_volume(4, (1, 2, 120), "uint16")
    volume[volume == 0] = 1
    plan = cut(volume.shape, (1.0, 1.0, factor), (1, 2, block), interpolation="nearest")
    real = reference(read_from(volume), volume.shape, plan.factor, Box.whole(plan.output.shape), "nearest")
    np.testing.assert_array_equal(carry_out(engine, plan, volume), real)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", ["uint32", "int32"])
@pytest.mark.parametrize("factor", [(2.0, 3.0, 1.0), (0.5, 0.404, 1.1), (2.3, 0.7, 4.0)])
@pytest.mark.parametrize("block", [(999, 999, 999), (6, 7, 8)])
@pytest.mark.parametrize("boundary", ["nearest", "constant"])
def test_labels_of_32_bits_survive(engine: CleEngine, dtype: str, factor: Float3, block: Index3, boundary: str) -> None:
    """Labels that float32 cannot hold, negative ones too, come through nearest as they are, scaled up or down."""
    volume = random_volume(5, (9, 13, 17), dtype)
    volume.flat[:4] = [np.iinfo(dtype).max, np.iinfo(dtype).min, 2**24 + 1, 2**31 - 1]
    plan = cut(volume.shape, factor, block, dtype, interpolation="nearest", boundary=boundary)
    found = carry_out(engine, plan, volume)
    real = reference(read_from(volume), volume.shape, factor, Box.whole(plan.output.shape), "nearest", boundary)
    np.testing.assert_array_equal(found, as_dtype(real, volume.dtype))
    assert np.isin(found, volume).all()


# ---- integers, the rim, and what is no number ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("uint8", [-0.6, 0.5, 1.5, 2.5, 254.5, 255.4, 300], [0, 0, 2, 2, 254, 255, 255]),
        ("int8", [-200, -128.5, -1.5, -0.5, 127.5], [-128, -128, -2, 0, 127]),
        ("uint16", [65534.5, 65535.5, 1e9], [65534, 65535, 65535]),
        ("int16", [-1e9, 32766.5], [-(2**15), 32766]),
        ("uint32", [-1, 2.0**32, 1e12, 2.0**32 - 256], [0, 2**32 - 1, 2**32 - 1, 2**32 - 256]),
        ("int32", [-(2.0**31), -1e12, 2.0**31, 1e12], [-(2**31), -(2**31), 2**31 - 1, 2**31 - 1]),
    ],
)
def test_integers_are_rounded_half_to_even_and_saturated(
    engine: CleEngine, dtype: str, values: list[float], expected: list[int]
) -> None:
    """Nothing is truncated and nothing wraps around."""
    real = np.array(values, np.float32)
    plan = cut((1, 1, len(values)), (1.0, 1.0, 1.0), (1, 1, 99), dtype)
    kernels = engine._conversion(np.dtype(dtype), "all")
    source = cl.Buffer(engine._queue.context, cl.mem_flags.COPY_HOST_PTR, hostbuf=real)
    target = cl.Buffer(engine._queue.context, cl.mem_flags.READ_WRITE, real.nbytes)
    shape = plan.output.shape
    kernels["narrow"](
        engine._queue, *rows_of(shape, engine._queue), source, target, *[cl.cltypes.make_int3(*reversed(shape))] * 2
    )
    found = np.empty(len(values), dtype)
    cl.enqueue_copy(engine._queue, found, target)
    np.testing.assert_array_equal(found, np.array(expected, dtype))


def test_halves_between_voxels_go_to_the_even_integer(engine: CleEngine) -> None:
    """Averages of pairs, 0.5, 1.5 and 2.5, become 0, 2 and 2 (where cle's integer destination gives 0, 1 and 2)."""
    volume = np.array([0, 1, 1, 2, 2, 3, 254, 255], np.uint8).reshape(1, 1, 8)
    plan = cut(volume.shape, (1.0, 1.0, 0.5), (9, 9, 9), "uint8")
    assert engine.scale(volume, plan.block(0), plan).data.ravel().tolist() == [0, 2, 2, 254]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float32"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_the_default_boundary_has_no_dark_rim(engine: CleEngine, dtype: str, interpolation: str) -> None:
    """A volume of one value stays a volume of that value, at its rim and at block faces, at both ends of the range."""
    info = np.finfo(np.float16) if dtype == "float32" else np.iinfo(dtype)
    for value in (info.min, info.max):
        volume = np.full((7, 11, 13), value, dtype)
        for factor in ((2.0, 3.0, 1.0), (2.3, 0.7, 0.25)):
            plan = cut(volume.shape, factor, (5, 8, 16), dtype, interpolation=interpolation)
            found = carry_out(engine, plan, volume)
            # float32 weights need not add up to 1; integers of 32 bits are as coarse as float32.
            coarse = dtype in ("uint32", "int32", "float32") and interpolation == "linear"
            np.testing.assert_allclose(found, np.float64(value), rtol=2**-22 if coarse else 0)


def test_the_constant_boundary_has_the_rim_of_cle_scale(engine: CleEngine) -> None:
    """Blending with 0 outside darkens the outermost planes, as `cle.scale` does, and no plane between blocks."""
    volume = np.full((8, 12, 16), 1000, np.float32)
    plan = cut(volume.shape, (2.0, 2.0, 2.0), (8, 8, 8), "float32", boundary="constant")
    found = carry_out(engine, plan, volume)
    np.testing.assert_allclose(found, whole_scale(volume, plan.factor, linear=True), atol=0.01)
    np.testing.assert_allclose(found[0, 12, 16], 750, atol=0.01)
    np.testing.assert_allclose(found[1:-1, 1:-1, 1:-1], 1000, atol=0.01)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("factor", [(1.0, 1.0, 1.0), (2.0, 1.0, 3.0), (1.5, 0.5, 2.3)])
@pytest.mark.parametrize("block", [(99, 99, 99), (4, 3, 5)])
def test_what_is_no_number_spreads_over_the_support_only(
    engine: CleEngine, value: float, factor: Float3, block: Index3
) -> None:
    """Linear: where NaN or infinity has weight the result is none, at most one voxel further (0 x NaN), and beyond
    that nothing changes."""  # noqa: D209, D205 - one sentence
    volume = random_volume(6, (7, 9, 11), "float32")
    plan = cut(volume.shape, factor, block, "float32")
    clean = carry_out(engine, plan, volume)
    volume[3, 4, 5] = value
    found = carry_out(engine, plan, volume)
    real = reference(read_from(volume), volume.shape, factor, Box.whole(plan.output.shape))
    assert not np.isfinite(found[~np.isfinite(real)]).any()
    touched = np.ones(plan.output.shape, bool)
    for axis, (along, at) in enumerate(zip(plan.axes, (3, 4, 5), strict=True)):
        # The sampler takes the voxels below and above a position, one of which may have no weight.
        near = np.abs(along.source(np.arange(along.m)) - at) <= 1 + 2**-10
        touched &= near.reshape([along.m if a == axis else 1 for a in range(3)])
    np.testing.assert_array_equal(found[~touched], clean[~touched])


@pytest.mark.parametrize("block", [(99, 99, 99), (4, 3, 5)])
def test_nearest_leaves_what_is_no_number_where_it_is(engine: CleEngine, block: Index3) -> None:
    """NaN and infinities are copied like any other value."""
    volume = random_volume(6, (7, 9, 11), "float32")
    volume[3, 4, 5], volume[0, 0, 0], volume[6, 8, 10] = np.nan, np.inf, -np.inf
    plan = cut(volume.shape, (2.3, 0.7, 3.0), block, "float32", interpolation="nearest")
    real = reference(read_from(volume), volume.shape, plan.factor, Box.whole(plan.output.shape), "nearest")
    np.testing.assert_array_equal(carry_out(engine, plan, volume), real)


# ---- what it takes -------------------------------------------------------------------------------------------------


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Live:
    """What is allocated on the device from now on."""
    counter = Live()

    monkeypatch.setattr(cl, "Buffer", counter.counting(cl.Buffer))
    monkeypatch.setattr(cl, "Image", counter.counting(cl.Image))
    return counter


def counted(plan: Plan) -> int:
    """Projected bytes of what pyopencl makes, which can be counted: the successor makes image and matrix itself."""
    own = ("input image", "matrix") if clesperanto().package == "pyclesperanto" else ()
    return plan.cost.on_device(1) - sum(made.nbytes for made in plan.cost.allocations if made.name in own)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("boundary", ["nearest", "constant"])
@pytest.mark.parametrize(
    ("shape", "factor", "block"),
    [
        ((31, 37, 41), (2.0, 1.0, 1.0), (31, 37, 41)),
        ((31, 37, 41), (2.3, 1.1, 0.7), (17, 19, 23)),
        ((43, 47, 53), (0.404, 0.25, 0.5), (7, 11, 13)),
        ((13, 17, 19), (4.95, 3.0, 2.5), (61, 43, 29)),
    ],
)
def test_device_bytes_are_projected_to_the_byte(
    engine: CleEngine,
    live: Live,
    shape: Index3,
    factor: Float3,
    block: Index3,
    boundary: str,
    interpolation: str,
    kind: str,
) -> None:
    """What is really allocated at the peak is what is projected, in the host's memory or beside it."""
    engine = CleEngine(replace(engine.device, kind=kind))
    before = live.now
    volume = random_volume(8, shape, "uint16")
    limits = device_limits(kind=kind)
    plan = cut(shape, factor, block, interpolation=interpolation, boundary=boundary, device=limits)
    for one in plan.blocks():
        engine.scale(volume[one.read_box.slices], one, plan)
        if kind == "gpu":  # its other lane carries every block too
            with engine.lanes.one():
                engine.scale(volume[one.read_box.slices], one, plan)
    assert live.peak - before == counted(plan)
    engine.release()
    assert live.now == before


def test_labels_in_two_halves_take_no_more_than_projected(engine: CleEngine, live: Live) -> None:
    """The halves of 32-bit labels are on the device one after the other."""
    engine.release()
    volume = random_volume(9, (17, 19, 23), "uint32")
    limits = device_limits(kind="cpu")
    plan = cut(volume.shape, (2.0, 2.0, 2.0), (999, 999, 999), "uint32", interpolation="nearest", device=limits)
    engine.scale(volume, plan.block(0), plan)
    assert live.peak == counted(plan)
    engine.release()


def test_staging_is_reused(engine: CleEngine, live: Live) -> None:
    """Blocks are staged in the memory of the first one; another plan gets its own in its place."""
    engine.release()
    volume = random_volume(10, (12, 20, 24), "uint16")
    plan = cut(volume.shape, (2.0, 2.0, 2.0), (8, 16, 16), boundary="constant")
    larger = cut(volume.shape, (2.0, 2.0, 2.0), (99, 99, 99), boundary="constant")
    for one in (plan, larger):
        engine.prepare(one)
        held = live.now
        assert held == sum(one.staging)
        for _ in range(2):
            for block in one.blocks():
                engine.scale(volume[block.read_box.slices], block, one)
        engine._buffers.clear()
        assert live.now == held
    engine.release()
    assert live.now == 0


# ---- one at a time -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_threads_take_turns(engine: CleEngine) -> None:
    """Many threads at once get what one after the other would."""
    volume = random_volume(11, (20, 30, 40), "uint16")
    jobs = [
        (plan, block)
        for interpolation in ("linear", "nearest")
        for factor in ((2.0, 2.0, 2.0), (2.3, 0.7, 1.1))
        for plan in [cut(volume.shape, factor, (16, 16, 16), interpolation=interpolation)]
        for block in plan.blocks()
    ]

    def scale(job: tuple[Plan, Any]) -> np.ndarray:
        plan, block = job
        return engine.scale(volume[block.read_box.slices], block, plan).data

    alone = [scale(job) for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        for found, expected in zip(pool.map(scale, jobs), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_device_that_cannot_compute_is_found_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that fails on the first tiny scaling is one clear error."""

    def fail(*_: Any, **__: Any) -> None:
        raise cl.RuntimeError("clEnqueueNDRangeKernel failed: OUT_OF_RESOURCES")

    engine = CleEngine(find_device())
    monkeypatch.setattr(engine.library, "scale", fail)
    with pytest.raises(DeviceError, match=r"does not run OpenCL kernels: .*OUT_OF_RESOURCES"):
        engine.prepare(cut((4, 4, 4), (2.0, 2.0, 2.0), (8, 8, 8)))


@pytest.mark.parametrize("code", ["OUT_OF_RESOURCES", "OUT_OF_HOST_MEMORY", "IMAGE_FORMAT_NOT_SUPPORTED"])
def test_an_image_that_cannot_be_made_is_an_error(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself, cle would go on with nearest where linear is asked for, and only warn."""
    if clesperanto().package != "pyclesperanto-prototype":
        pytest.skip("its image is not made by pyopencl; see test_clesperanto for one that is too long")

    def fail(*_: Any, **__: Any) -> None:
        raise cl.RuntimeError(_cl._ErrorRecord("", getattr(cl.status_code, code), "create_image"))

    engine = CleEngine(find_device())
    with monkeypatch.context() as patch:
        patch.setattr(cl, "Image", fail)
        with pytest.raises(DeviceError, match=rf"does not run OpenCL kernels: .*{code}"):
            engine.prepare(cut((4, 4, 4), (2.0, 2.0, 2.0), (8, 8, 8)))
    engine.prepare(cut((4, 4, 4), (2.0, 2.0, 2.0), (8, 8, 8)))
    engine.release()


TWO_DEVICES = """
import numpy as np
from isovoxel.engines.devices import list_devices
from isovoxel.engines.registry import open_engine
from strategies import cut
devices = [str(device.index) for device in list_devices()]
assert len(devices) == 2, devices
plan = cut((6, 7, 8), (2.0, 1.3, 1.0), (64, 64, 64))
volume = np.arange(6 * 7 * 8, dtype=np.uint16).reshape(6, 7, 8)
contexts = set()
for device in [*devices, *devices]:
    result = open_engine("cle", device).scale(volume, plan.block(0), plan).data
    assert result.any()
    contexts.add(open_engine("cle", device)._queue.context.int_ptr)
assert len(contexts) == 2, contexts  # some drivers refuse a kernel of one context a buffer of another
"""


@pytest.mark.slow
def test_devices_of_one_process_take_turns() -> None:
    """One device is cle's current one, and each has a context of its own: blocks go from one device to the other."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        env=os.environ | {"POCL_DEVICES": "pthread pthread", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
