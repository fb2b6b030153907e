"""The exact engine: against the float64 reference, against itself however it is cut, and its own projections."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import dask.array as da
import numpy as np
import pyopencl as cl
import pytest

from isovoxel import scale_array
from isovoxel.engines.exact import ExactEngine
from isovoxel.engines.reference import reference, reference_labels
from isovoxel.engines.registry import open_engine
from isovoxel.geometry.grid import Axis, Box, VoxelGrid
from isovoxel.geometry.resampling import Table, accumulator, outputs_of
from isovoxel.planning.optimizer import too_thin
from isovoxel.planning.plan import Plan
from repeat import carry_out
from strategies import Live, as_dtype, cut, device_limits, one_kernel_for_all_shapes, read_from

Float3 = tuple[float, float, float]
Index3 = tuple[int, int, int]

WHOLE = (9999, 9999, 9999)
"""The shape of a block that no volume here is larger than."""
DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32")
INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
KERNELS = (
    *(("linear", False), ("cubic", False), ("lanczos3", False), ("area", False)),
    *(("linear", True), ("cubic", True), ("lanczos3", True)),
)
"""Interpolations that compute, and whether they are anti-aliased."""

FLOAT_ERROR = 2e-6
"""Largest error of a float32 voxel, relative to the largest magnitude in the kernel's support.

Relative to the voxel itself nothing can be said: values of both signs cancel. Each pass rounds weights and sums by
2^-24, about once per weight where these errors add up (41 weights in three passes: 2^-24 x 126 = 7e-6), and by a few
2^-24 where they are as random as here.
"""


def tie(dtype: np.dtype[Any]) -> float:
    """How near to a half, relative to the largest magnitude in the support, the reference counts as a tie.

    Integers are computed in float32 up to 16 bits and in float64 above, and each may be wrong in its last digits
    before it is rounded: float32 by 2^-21 (1/8,192 of a grey level for 8 bits, 1/32 for 16), float64 by 2^-46 (1/16,384
    of a grey level for 32 bits).
    """
    return 2.0**-21 if accumulator(dtype) == np.float32 else 2.0**-46


@pytest.fixture(autouse=True, scope="module")
def _one_kernel() -> Iterator[None]:
    """Run cle's kernels in work groups of one voxel: PoCL compiles them anew for each shape of work group."""
    with one_kernel_for_all_shapes():
        yield


@pytest.fixture(scope="module")
def engine(_one_kernel: None) -> ExactEngine:
    """The engine of this process, on the CPU or GPU that is there."""
    found = open_engine("exact")
    assert isinstance(found, ExactEngine)
    return found


def random_volume(rng: np.random.Generator, shape: Index3, dtype: str) -> np.ndarray:
    """Random voxels over the whole range of an integer dtype; float32 of both signs and many orders of magnitude."""
    if dtype == "float32":
        return (rng.choice([-1, 1], shape) * 10 ** rng.uniform(-6, 6, shape)).astype(np.float32)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


@dataclass(frozen=True)
class Case:
    """One volume and how it is scaled."""

    seed: int
    shape: Index3
    factor: Float3
    dtype: str
    interpolation: str
    antialias: bool
    boundary: str

    def plan(self, block: Index3 = WHOLE, **changes: Any) -> Plan:
        return cut(
            self.shape,
            self.factor,
            block,
            self.dtype,
            engine="exact",
            interpolation=self.interpolation,
            antialias=self.antialias,
            boundary=self.boundary,
            **changes,
        )

    def volume(self) -> np.ndarray:
        return random_volume(np.random.default_rng(self.seed), self.shape, self.dtype)


def random_case(seed: int, interpolation: str, dtype: str, *, antialias: bool = False, most: int = 40_000) -> Case:
    """A seeded shape from 1 voxel up and factors from 0.05 to 20, so that neither input nor output is large."""
    rng = np.random.default_rng(seed)
    while True:
        shape = tuple(int(n) for n in np.exp(rng.uniform(0, np.log(61), 3)))
        special = rng.choice([0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5, 1.0, 1.0, 1.1, 1.5, 2.0, 3.0, 20.0], 3)
        anything = np.exp(rng.uniform(np.log(0.05), np.log(20), 3))
        factor = tuple(float(f) for f in np.where(rng.random(3) < 0.5, special, anything))
        if max(math.prod(shape), math.prod(VoxelGrid(shape).scaled(factor).shape)) <= most:
            boundary = str(rng.choice(["nearest", "constant"]))
            return Case(seed, shape, factor, dtype, interpolation, antialias, boundary)


def name(case: Any) -> str | None:
    if not isinstance(case, Case):
        return None
    return f"{case.interpolation}{'-antialias' if case.antialias else ''}-{case.dtype}-{case.seed}"


# ---- against the reference -----------------------------------------------------------------------------------------


def largest_in_support(plan: Plan, volume: np.ndarray) -> np.ndarray:
    """The largest magnitude among the input voxels that each output voxel is made of."""
    result = np.abs(volume.astype(np.float64))
    for axis, table in enumerate(plan.tables):
        first = table.first(np.arange(table.axis.m))
        reached = [np.take(result, first + k, axis) for k in range(table.width)]
        result = functools.reduce(np.maximum, reached)
    return result


def assert_equals_reference(case: Case, found: np.ndarray, plan: Plan, volume: np.ndarray) -> None:
    """Integers differ from the rounded reference at ties only, and by 1; float32 by rounding."""
    real = reference(
        read_from(volume),
        case.shape,
        case.factor,
        Box.whole(plan.output.shape),
        case.interpolation,
        case.boundary,
        antialias=case.antialias,
    )
    assert (found.shape, found.dtype) == (real.shape, volume.dtype)
    largest = largest_in_support(plan, volume)
    if volume.dtype.kind == "f":
        assert (np.abs(found - real) <= FLOAT_ERROR * largest).all()
        return
    expected = as_dtype(real, volume.dtype)
    off = found != expected
    from_half = np.abs(np.abs(real - np.floor(real)) - 0.5)
    assert (from_half[off] <= tie(volume.dtype) * largest[off]).all()
    assert (np.abs(found[off].astype(np.float64) - expected[off]) == 1).all()


RANDOM = [
    random_case(1000 * k + 10 * d + i, interpolation, dtype, antialias=antialias)
    for k, (interpolation, antialias) in enumerate(KERNELS)
    for d, dtype in enumerate(DTYPES)
    for i in range(2)
]
"""98 cases."""


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", RANDOM, ids=name)
def test_sums_equal_the_reference(engine: ExactEngine, case: Case) -> None:
    """Every dtype and kernel: integers are the rounded reference but for ties, float32 is it within 2e-6."""
    plan, volume = case.plan(), case.volume()
    block = plan.block(0)
    found = engine.scale(volume[block.read_box.slices], block, plan).data
    assert_equals_reference(case, found, plan, volume)


LABELS = [
    random_case(10_000 + 1000 * k + 10 * d + i, interpolation, dtype, most=3000)
    for k, interpolation in enumerate(("nearest", "mode"))
    for d, dtype in enumerate(INTEGERS)
    for i in range(4)
]
"""64 cases."""


@pytest.mark.sampled(23)
@pytest.mark.parametrize("case", LABELS, ids=name)
@pytest.mark.parametrize("few", [False, True], ids=["many", "few"])
def test_labels_equal_the_reference_to_the_bit(engine: ExactEngine, case: Case, few: bool) -> None:
    """Labels over the whole range of any integer dtype, all different or few with votes that tie, and none is new."""
    volume = case.volume()
    if few:
        volume = np.random.default_rng(case.seed).choice(volume.ravel()[:4], case.shape)
    info = np.iinfo(case.dtype)
    volume.flat[:2] = [info.max, info.min][: volume.size]
    plan = case.plan((17, 19, 23))
    found = carry_out(engine, plan, volume)
    whole = Box.whole(plan.output.shape)
    expected = reference_labels(read_from(volume), case.shape, case.factor, whole, case.interpolation, case.boundary)
    assert found.dtype == expected.dtype == volume.dtype
    np.testing.assert_array_equal(found, expected)
    outside = [] if case.boundary == "nearest" else [0]
    assert set(np.unique(found).tolist()) <= {*np.unique(volume).tolist(), *outside}


def test_halves_go_to_the_even_integer(engine: ExactEngine) -> None:
    """Means of pairs, 0.5, 1.5 and 2.5, become 0, 2 and 2."""
    volume = np.array([0, 1, 1, 2, 2, 3, 254, 255], np.uint8).reshape(1, 1, 8)
    for dtype in DTYPES[:-1]:
        plan = cut(volume.shape, (1.0, 1.0, 0.5), WHOLE, dtype, engine="exact", interpolation="area")
        found = carry_out(engine, plan, volume.astype(np.int64).astype(dtype))
        expected = as_dtype(volume.astype(dtype).reshape(4, 2).mean(1), np.dtype(dtype))
        assert found.ravel().tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_overshoots_is_saturated(engine: ExactEngine, dtype: str) -> None:
    """Cubic rings beside an edge; where that leaves the dtype's range it ends at its end, and nothing wraps."""
    info = np.finfo(np.float16) if dtype == "float32" else np.iinfo(dtype)
    volume = np.full((1, 1, 12), info.min, dtype)
    volume[..., 6:] = info.max
    plan = cut(volume.shape, (1.0, 1.0, 4.0), WHOLE, dtype, engine="exact", interpolation="cubic")
    found = carry_out(engine, plan, volume).ravel()
    beyond = found.max() > info.max
    assert beyond == (dtype == "float32")
    if not beyond:
        assert (found.min(), found.max()) == (info.min, info.max)
        assert (np.diff(found.astype(np.float64)) >= 0).all()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("interpolation", "antialias"), KERNELS)
def test_a_volume_of_one_value_stays_so(engine: ExactEngine, dtype: str, interpolation: str, antialias: bool) -> None:
    """No rim is darker and no block face shows, at both ends of the range."""
    info = np.finfo(np.float16) if dtype == "float32" else np.iinfo(dtype)
    for value in (info.min, info.max):
        volume = np.full((7, 11, 13), value, dtype)
        plan = cut(
            volume.shape,
            (2.3, 0.7, 0.25),
            (5, 4, 2),
            dtype,
            engine="exact",
            interpolation=interpolation,
            antialias=antialias,
        )
        # float32 weights need not add up to 1, by less than an integer of 16 bits shows.
        rtol = FLOAT_ERROR if dtype == "float32" else 0
        np.testing.assert_allclose(carry_out(engine, plan, volume), np.float64(value), rtol=rtol)


SPREAD: list[tuple[Float3, str, bool]] = [
    ((1.0, 1.0, 1.0), "linear", False),
    ((2.0, 1.0, 3.0), "linear", False),
    ((1.5, 0.5, 2.3), "linear", False),
    ((2.0, 0.3, 1.7), "cubic", False),
    ((0.5, 0.25, 1.3), "area", False),
    ((0.1, 1.5, 20.0), "area", False),  # footprints end on faces, where float64 leaves weights of 1e-16
    ((0.5, 0.3, 2.0), "linear", True),
    ((0.7, 1.0, 0.4), "cubic", True),
    ((2.3, 0.7, 3.0), "nearest", False),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("values", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf]], ids=str)
@pytest.mark.parametrize("block", [WHOLE, (4, 3, 5)], ids=["one block", "blocks"])
@pytest.mark.parametrize(("factor", "interpolation", "antialias"), SPREAD)
def test_what_is_no_number_spreads_as_in_the_reference(
    engine: ExactEngine, factor: Float3, interpolation: str, antialias: bool, block: Index3, values: list[float]
) -> None:
    """NaN and infinities reach exactly the voxels they have weight in, whichever pass comes first."""
    case = Case(6, (7, 9, 11), factor, "float32", interpolation, antialias, "nearest")
    volume = case.volume()
    for i, value in enumerate(values):
        volume[3, 4 + i, 5] = volume[0, 0, i] = volume[6, 8 - i, 10] = value
    plan = case.plan(block)
    with np.errstate(invalid="ignore"):
        found = carry_out(engine, plan, volume)
        real = reference(
            read_from(volume), volume.shape, factor, Box.whole(plan.output.shape), interpolation, antialias=antialias
        )
    finite = np.isfinite(real)
    np.testing.assert_array_equal(np.isfinite(found), finite)
    # With cubic's weights of both signs a separable sum of one infinity is NaN where the signs of two passes meet in
    # the third: which of the two it is may depend on the order, that it is no number may not.
    if interpolation != "cubic":
        np.testing.assert_array_equal(found[~finite], real[~finite])
    assert (np.abs(found[finite] - real[finite]) <= FLOAT_ERROR * np.abs(volume[np.isfinite(volume)]).max()).all()


# ---- the same bits, however it is done -----------------------------------------------------------------------------

THIN: tuple[Index3, ...] = ((1, 9999, 9999), (9999, 1, 9999), (9999, 9999, 1), (1, 1, 9999))


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    """Compare bits, not values: -0.0 is not 0.0."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    bits = f"u{found.dtype.itemsize}"
    np.testing.assert_array_equal(found.view(bits), expected.view(bits))


CUT = [
    Case(seed, shape, factor, dtype, interpolation, antialias, ("nearest", "constant")[seed % 2])
    for seed, (shape, factor, dtype, (interpolation, antialias)) in enumerate(
        (shape, factor, dtype, kernel)
        for kernel in (*KERNELS, ("nearest", False))
        for shape, factor, dtype in (
            ((11, 13, 17), (1.7, 2.3, 0.6), "float32"),
            ((23, 30, 41), (0.41, 1.0, 0.3), "uint16"),
            ((19, 21, 14), (1 / 3, 2.0, 1.1), "int32"),
        )
    )
] + [Case(99, (17, 22, 25), (0.3, 0.5, 1.4), "uint64", "mode", antialias=False, boundary="nearest")]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", CUT, ids=name)
def test_bits_do_not_depend_on_how_the_volume_is_cut(engine: ExactEngine, case: Case) -> None:
    """Blocks of any shape, one voxel thin too, any way to the halo and any number of threads: one block's bits."""
    volume, rng = case.volume(), np.random.default_rng(case.seed)
    whole = carry_out(engine, case.plan(), volume)
    shape = whole.shape
    overlapped = 0
    random_blocks = [tuple(int(rng.integers(1, n + 1)) for n in shape) for _ in range(5)]
    for block in (*random_blocks, *THIN):
        plan = case.plan(block)
        if plan.n_blocks > 120:
            continue
        assert_same_bits(carry_out(engine, plan, volume), whole)
        if too_thin(plan) or plan.n_blocks == 1 or overlapped == 2:
            continue
        overlapped += 1
        for window, threads in ((plan.block_grid, 1), (plan.block_grid, 5), ((1, 2, 1), 2)):
            joined = replace(plan, halo_mode="map_overlap", window=window, in_flight=threads)
            assert_same_bits(carry_out(engine, joined, volume), whole)
        lazy = scale_array(
            da.from_array(volume, chunks=9),
            case.factor,
            engine="exact",
            interpolation=case.interpolation,
            antialias=case.antialias,
            labels=case.dtype == "uint64",
            boundary=case.boundary,
            chunks=plan.block_shape,
        )
        assert_same_bits(lazy.compute(scheduler="threads", num_workers=3), whole)
    assert overlapped


def test_bits_do_not_depend_on_the_number_of_threads(engine: ExactEngine) -> None:
    """Many blocks at once come out as one after the other."""
    case = Case(5, (20, 30, 40), (1.3, 0.7, 2.0), "uint16", "cubic", antialias=False, boundary="nearest")
    plan, volume = case.plan((8, 8, 16)), case.volume()
    alone = carry_out(engine, replace(plan, in_flight=1), volume)
    for threads in (2, 3, 8):
        assert_same_bits(carry_out(engine, replace(plan, in_flight=threads), volume), alone)


WIDE: list[tuple[str, Index3, Float3, str, bool, bool]] = [
    ("uint8", (2, 7, 5001), (1.0, 0.2, 0.202), "linear", False, True),
    ("float32", (7, 2, 5001), (0.2, 1.0, 0.202), "cubic", False, True),
    ("int32", (3, 11, 3005), (2.7, 0.1, 0.101), "area", False, True),
    ("int16", (3, 4, 4999), (1.7, 1.2, 1.3), "linear", False, True),
    ("uint16", (3, 1, 7001), (1.0, 1.0, 1.3), "cubic", False, False),  # x alone
    ("uint8", (2, 60, 4001), (1.0, 0.03, 0.03), "linear", True, False),  # a tile would make too little
]
"""Rows of several tiles and of vectors that are not full; and whether x comes with another axis."""


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("dtype", "shape", "factor", "interpolation", "antialias", "joined"), WIDE)
def test_passes_at_once_have_the_bits_of_passes_one_after_the_other(
    engine: ExactEngine,
    dtype: str,
    shape: Index3,
    factor: Float3,
    interpolation: str,
    antialias: bool,
    joined: bool,
) -> None:
    """What stays in local memory is what would have been written, over the borders of tiles too."""
    case = Case(11, shape, factor, dtype, interpolation, antialias, "nearest")
    plan, volume = case.plan(), case.volume()
    block = plan.block(0)
    data = volume[block.read_box.slices]
    found = engine.scale(data, block, plan).data
    assert_equals_reference(case, found, plan, volume)
    assert any(len(axes) == 2 for axes in plan.passes) == joined
    engine.release()
    apart = replace(plan)
    vars(apart)["passes"] = tuple((axis,) for axis in chain(*plan.passes))
    assert_same_bits(engine.scale(data, block, apart).data, found)


@pytest.mark.parametrize("case", RANDOM[::2], ids=name)
def test_no_tile_reads_more_than_its_local_memory_holds(case: Case) -> None:
    """As many neighbouring outputs as said never need more samples than said."""
    for samples in (64, 100, 2048):
        for axis in (0, 1, 2):
            grid = VoxelGrid((5000, 5000, 5000)).scaled(case.factor)
            table = Table(Axis(5000, grid.shape[axis], case.factor[axis]), case.interpolation, case.antialias)
            outputs = outputs_of(samples, table)
            first = table.first(np.arange(table.axis.m))
            if table.identity or not outputs:
                continue
            last = np.minimum(np.arange(table.axis.m) + outputs, table.axis.m) - 1
            assert outputs % 8 == 0
            assert (first[last] + table.width - first).max() <= samples


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_products_are_not_rounded_before_they_are_added(engine: ExactEngine, axis: int) -> None:
    """The kernels' multiply-add is one operation on any device, as it must be for all to have the same bits."""
    factor = (1.3 if axis == 0 else 1.0, 1.3 if axis == 1 else 1.0, 1.3 if axis == 2 else 1.0)
    plan = cut((21, 22, 23), factor, WHOLE, "float32", engine="exact", interpolation="linear")
    volume = np.random.default_rng(0).random((21, 22, 23), np.float32)
    first, weights = plan.tables[axis].rows(np.arange(plan.output.shape[axis]))
    lines = tuple(-1 if i == axis else 1 for i in range(3))
    # float64 holds the products of float32 weights and voxels in full.
    (a, x), (b, y) = (
        (weights[:, k].astype(np.float32).astype(np.float64).reshape(lines), np.take(volume, first + k, axis))
        for k in (0, 1)
    )
    fused = ((a * x).astype(np.float32) + b * y).astype(np.float32)
    rounded_twice = (a * x).astype(np.float32) + (b * y).astype(np.float32)
    assert (fused != rounded_twice).any()
    assert_same_bits(engine.scale(volume, plan.block(0), plan).data, fused)


def test_it_alternates_with_cle_in_one_process(engine: ExactEngine) -> None:
    """Blocks of both engines, in turn and at once, come out as each alone."""
    other = open_engine("cle")
    case = Case(8, (12, 20, 24), (2.0, 1.3, 0.7), "uint16", "linear", antialias=False, boundary="nearest")
    volume = case.volume()
    plans = {
        engine: case.plan((8, 8, 16)),
        other: cut(case.shape, case.factor, (8, 8, 16), "uint16", interpolation="linear"),
    }
    jobs = [
        (e, plan, block)
        for pair in zip(*([(e, p, b) for b in p.blocks()] for e, p in plans.items()), strict=True)
        for e, plan, block in pair
    ]

    def scale(job: Any) -> np.ndarray:
        one, plan, block = job
        return one.scale(volume[block.read_box.slices], block, plan).data

    alone = {id(job): scale(job) for job in sorted(jobs, key=lambda job: job[0].name)}
    for job in jobs:
        assert_same_bits(scale(job), alone[id(job)])
    with ThreadPoolExecutor(4) as pool:
        for job, found in zip(jobs, pool.map(scale, jobs), strict=True):
            assert_same_bits(found, alone[id(job)])


# ---- what it takes -------------------------------------------------------------------------------------------------


@pytest.fixture
def live(engine: ExactEngine, monkeypatch: pytest.MonkeyPatch) -> Live:
    """What is allocated on the device from now on."""
    engine.release()
    counter = Live()

    monkeypatch.setattr(cl, "Buffer", counter.counting(cl.Buffer))
    monkeypatch.setattr(cl, "Image", None)  # there is none
    return counter


SIZES: list[tuple[Index3, Float3, Index3]] = [
    ((31, 37, 41), (2.0, 1.0, 1.0), WHOLE),
    ((31, 37, 41), (2.3, 1.1, 0.7), (17, 19, 23)),
    ((43, 47, 53), (0.404, 0.25, 0.5), (7, 11, 13)),
    ((13, 17, 19), (4.95, 3.0, 2.5), (61, 43, 29)),
    ((31, 37, 41), (1.0, 1.0, 1.0), (16, 16, 41)),
]


TAKES = [
    (*size, dtype, interpolation)
    for i, size in enumerate(SIZES)
    for j, interpolation in enumerate(("linear", "cubic", "lanczos3", "area", "nearest", "mode", "smooth"))
    for dtype in (("uint8", "uint16", "uint32")[(i + j) % 3],)
]
"""Each size with each interpolation, and each size and each interpolation with every dtype."""


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize(("shape", "factor", "block", "dtype", "interpolation"), TAKES)
def test_device_bytes_are_projected(
    engine: ExactEngine,
    live: Live,
    shape: Index3,
    factor: Float3,
    block: Index3,
    dtype: str,
    interpolation: str,
    kind: str,
) -> None:
    """What is really allocated is never above the projection, and above nine tenths of its voxels."""
    engine = ExactEngine(replace(engine.device, kind=kind))
    if interpolation == "smooth":  # which takes no axis that shrinks
        factor = (max(1.0, factor[0]), max(1.0, factor[1]), max(1.0, factor[2]))
    case = Case(8, shape, factor, dtype, interpolation, antialias=False, boundary="nearest")
    plan, volume = case.plan(block, device=device_limits(kind=kind)), case.volume()
    for one in plan.blocks():
        engine.scale(volume[one.read_box.slices], one, plan)
        if kind == "gpu":  # its other lane carries every block too
            with engine.lanes.one():
                engine.scale(volume[one.read_box.slices], one, plan)
    projected = plan.cost.on_device(1)
    assert live.peak <= projected
    tables = plan.cost.allocations[-1]
    assert tables.name == "tables"
    # Tables weigh nothing beside a volume of a size worth planning.
    assert live.peak >= 0.9 * (projected - tables.nbytes)
    engine.release()
    assert live.now == 0


def test_tables_are_projected_too(engine: ExactEngine, live: Live) -> None:
    """One axis with many rows and another with wide ones: each has its table."""
    case = Case(8, (400, 1, 50), (0.05, 1.0, 20.0), "uint8", "linear", antialias=True, boundary="nearest")
    plan, volume = case.plan(device=device_limits(kind="cpu")), case.volume()
    engine.scale(volume, plan.block(0), plan)
    assert 0.9 * plan.projected_device <= live.peak <= plan.projected_device


def test_buffers_are_reused_and_a_job_lets_go_of_them(engine: ExactEngine, live: Live) -> None:
    """Blocks of a plan share their buffers; after the job the device is free."""
    case = Case(9, (12, 20, 24), (2.0, 2.0, 2.0), "uint16", "linear", antialias=False, boundary="nearest")
    plan, volume = case.plan((8, 16, 16)), case.volume()
    block = plan.block(0)
    engine.scale(volume[block.read_box.slices], block, plan)
    held = live.now
    assert held > 0
    for _ in range(3):
        engine.scale(volume[block.read_box.slices], block, plan)
        assert live.now == live.peak == held
    carry_out(engine, plan, volume)
    assert live.now == 0


def test_buffers_of_another_plan_are_let_go(engine: ExactEngine, live: Live) -> None:
    """Plans one after the other take what the greater takes, not what both take."""
    limits = device_limits(kind="cpu")
    up = Case(9, (8, 20, 24), (2.0, 2.0, 2.0), "uint16", "linear", antialias=False, boundary="nearest")
    down = Case(9, (40, 40, 40), (0.5, 0.5, 0.5), "uint16", "area", antialias=False, boundary="nearest")
    plans = [case.plan(device=limits) for case in (up, down, up)]
    for plan in plans:
        engine.scale(np.ones(plan.source.grid.shape, np.uint16), plan.block(0), plan)
    assert live.peak <= max(plan.projected_device for plan in plans)
    assert live.now <= plans[0].projected_device


# ---- one at a time -------------------------------------------------------------------------------------------------
