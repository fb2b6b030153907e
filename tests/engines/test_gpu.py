"""The engines on a real GPU: the texture precision of cle, the exactness of exact, and the memory of both."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hog import hog
from isovoxel.engines.base import Engine
from isovoxel.engines.buffers import device_bytes
from isovoxel.engines.cle import CleEngine
from isovoxel.engines.cuda import CudaEngine
from isovoxel.engines.devices import Device, find_device, list_devices
from isovoxel.engines.exact import ExactEngine
from isovoxel.engines.opencl import TURN
from isovoxel.engines.pipeline import StagedEngine
from isovoxel.engines.reference import reference, reference_labels
from isovoxel.errors import DeviceLostError
from isovoxel.geometry.grid import Box, round_up
from isovoxel.geometry.resampling import Halver
from isovoxel.planning.chunking import Storage
from isovoxel.planning.model import MOVES
from isovoxel.planning.optimizer import make_plan
from isovoxel.planning.plan import Plan
from isovoxel.planning.pyramid import HALVED
from peaks import device_rise
from strategies import as_dtype, host_limits, source

pytestmark = pytest.mark.gpu

TEXTURE_STEP = 65535 / 256
"""A texture unit's weights have 8 fractional bits: one step of one axis, in grey levels of 16 bits."""


@pytest.fixture(scope="module")
def gpu() -> Device:
    """The GPU that auto takes."""
    if not any(d.kind == "gpu" for d in list_devices()):
        pytest.skip("no GPU is here")
    return find_device()


@pytest.fixture(scope="module")
def exact(gpu: Device) -> ExactEngine:
    return ExactEngine(gpu)


@pytest.fixture(scope="module")
def engine(gpu: Device) -> CleEngine:
    return CleEngine(gpu)


def plan_of(array: np.ndarray, factor: tuple, gpu: Device, block: int | None = None, **options: object) -> Plan:
    """Plan an array in cubic blocks, or in one."""
    side = block or 4096
    plan = make_plan(
        source(array.shape, array.dtype.name),
        factor,
        storage=Storage((side,) * 3, (side,) * 3),
        device=gpu.limits(),
        host=host_limits(allowed=2**46),
        halo_mode="direct",
        fixed_storage=True,
        **options,
    )
    return replace(plan, block_shape=(side,) * 3)


def scaled(array: np.ndarray, plan: Plan, engine: Engine) -> np.ndarray:
    result = np.empty(plan.output.shape, array.dtype)
    for block in plan.blocks():
        result[block.write_box.slices] = engine.scale(array[block.read_box.slices], block, plan).data
    return result


CASES = [
    (tuple(rng.integers(8, 90, 3)), tuple(float(f) for f in factors))
    for seed in range(40)
    for rng in [np.random.default_rng(seed)]
    for factors in [
        rng.choice([1.0, 2.0, 3.0, 4.0, 0.5, 0.2, *rng.uniform(0.2, 4, 6)], 3),
    ]
]


def test_auto_takes_the_gpu_and_knows_its_free_memory(gpu: Device) -> None:
    """The device that auto chooses is a GPU whose driver tells what is free."""
    assert gpu.kind == "gpu"
    assert gpu.free is not None
    assert 0 < gpu.free <= gpu.memory * 1.1


def test_blocks_agree_with_cle_in_one_piece_within_the_texture_precision(gpu: Device, engine: CleEngine) -> None:
    """40 random shapes and factors: blocks differ from whole cle.scale by weight steps, at faces as inside."""
    import pyclesperanto_prototype as cle

    largest = []
    for seed, (shape, factor) in enumerate(CASES):
        rng = np.random.default_rng(1000 + seed)
        array = rng.integers(0, 65536, shape).astype(np.float32)
        plan = plan_of(array, factor, gpu, int(rng.integers(9, 50)), boundary="constant")
        fz, fy, fx = factor
        target = cle.create(plan.output.shape)
        cle.scale(array, target, factor_x=fx, factor_y=fy, factor_z=fz, centered=False, linear_interpolation=True)
        difference = np.abs(scaled(array, plan, engine) - np.asarray(target))
        largest.append(difference.max())
        assert difference.max() <= 3 * TEXTURE_STEP, (shape, factor)
    print(f"blocks against cle.scale in one piece: largest {max(largest):.1f}, mean of {np.mean(largest):.1f}")


def test_linear_is_within_the_texture_precision_of_the_reference(gpu: Device, engine: CleEngine) -> None:
    """Three axes of 8-bit weights are at most three half steps, each on a neighbour's difference of full scale."""
    largest, mean = 0.0, []
    for seed, (shape, factor) in enumerate(CASES):
        array = np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)
        plan = plan_of(array, factor, gpu, 31)
        expected = reference(lambda b, a=array: a[b.slices], shape, factor, Box.whole(plan.output.shape))
        error = np.abs(scaled(array, plan, engine).astype(float) - expected)
        largest = max(largest, error.max())
        mean.append(error.mean())
    print(f"against float64: largest {largest:.1f}, mean {np.mean(mean):.1f} grey levels")
    assert largest <= 3 * TEXTURE_STEP


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float32"])
def test_nearest_is_exact(dtype: str, gpu: Device, engine: CleEngine) -> None:
    """Every voxel of nearest is the reference's, for values over the whole range of the dtype."""
    for seed, (shape, factor) in enumerate(CASES[:12]):
        rng = np.random.default_rng(seed)
        kind = np.dtype(dtype)
        if kind.kind == "f":
            array = rng.standard_normal(shape, np.float32)
        else:
            info = np.iinfo(kind)
            array = rng.integers(info.min, info.max, shape, dtype=kind, endpoint=True)
        plan = plan_of(array, factor, gpu, 37, interpolation="nearest")
        expected = reference(lambda b, a=array: a[b.slices], shape, factor, Box.whole(plan.output.shape), "nearest")
        assert np.array_equal(scaled(array, plan, engine), expected.astype(kind)), (shape, factor)


KERNELS = [
    ("linear", False),
    ("linear", True),
    ("cubic", False),
    ("cubic", True),
    ("lanczos3", True),
    ("area", False),
]


def random_array(shape: tuple, dtype: str, seed: int) -> np.ndarray:
    """Values over the whole range of a dtype; floats around 0."""
    rng, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind == "f":
        return rng.standard_normal(shape, np.float32)
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max, shape, dtype=kind, endpoint=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "float32"])
@pytest.mark.parametrize(("interpolation", "antialias"), KERNELS)
def test_exact_has_the_same_bits_in_one_block_in_many_and_on_the_cpu(
    interpolation: str, antialias: bool, dtype: str, gpu: Device, exact: ExactEngine
) -> None:
    """One block, many blocks, and PoCL where it is there too, agree in every bit; and with the reference."""
    cpu = next((d for d in list_devices() if d.kind == "cpu"), None)
    for seed, (shape, factor) in enumerate(CASES[:4]):
        array = random_array(shape, dtype, seed)
        options = {"engine": "exact", "interpolation": interpolation, "antialias": antialias}
        one = plan_of(array, factor, gpu, **options)
        result = scaled(array, one, exact)
        assert np.array_equal(result, scaled(array, plan_of(array, factor, gpu, 29, **options), exact)), factor
        if cpu is not None:
            assert np.array_equal(result, scaled(array, one, ExactEngine(cpu))), factor
        expected = reference(
            lambda b, a=array: a[b.slices],
            shape,
            factor,
            Box.whole(one.output.shape),
            interpolation,
            antialias=antialias,
        )
        if dtype == "float32":
            assert np.abs(result - expected).max() <= 2e-6 * np.abs(array).max()
        else:
            different = result != as_dtype(expected, array.dtype)
            to_tie = np.abs(np.abs(expected - np.floor(expected)) - 0.5)
            # Sums of up to 16 bits are float32, of 32 bits float64: so near to a tie they may fall to either side.
            bits, digits = 8 * array.dtype.itemsize, 22 if array.dtype.itemsize < 4 else 50
            assert to_tie[different].max(initial=0) <= 2.0 ** (bits - digits)


@pytest.mark.parametrize("interpolation", ["nearest", "mode"])
def test_exact_moves_labels_of_64_bits(interpolation: str, gpu: Device, exact: ExactEngine) -> None:
    """Labels over the whole range of uint64 come through, the same in one block and in many."""
    for seed, (shape, factor) in enumerate(CASES[:4]):
        labels = random_array((5,), "uint64", seed)[np.random.default_rng(seed).integers(0, 5, shape)]
        options = {"engine": "exact", "interpolation": interpolation}
        result = scaled(labels, plan_of(labels, factor, gpu, **options), exact)
        assert np.array_equal(result, scaled(labels, plan_of(labels, factor, gpu, 23, **options), exact))
        # The reference looks at every voxel by itself: a corner of the volume is enough.
        box = Box((0, 0, 0), tuple(min(12, n) for n in result.shape))
        expected = reference_labels(lambda b, a=labels: a[b.slices], shape, factor, box, interpolation)
        assert np.array_equal(result[box.slices], expected)


def _scale_on_both_lanes(engine: StagedEngine, array: Any, plan: Plan) -> None:
    """Scale the first block of a plan twice; the lane that has memory for it is taken first."""
    block = plan.block(0)
    engine.scale(array[block.read_box.slices], block, plan)
    with engine.lanes.one():
        engine.scale(array[block.read_box.slices], block, plan)


@pytest.mark.parametrize("factor", [(0.5, 0.5, 0.5), (2.0, 1.5, 1.5)])
@pytest.mark.parametrize(("name", "interpolation"), [("cle", "linear"), ("cle", "nearest"), ("exact", "linear")])
def test_projected_bytes_are_those_the_driver_reports(
    name: str, interpolation: str, factor: tuple, gpu: Device, engine: CleEngine, exact: ExactEngine
) -> None:
    """The device's used memory rises by the projection and by what the driver rounds up."""
    array = np.zeros((300, 700, 701), np.uint16)
    used = {"cle": engine, "exact": exact}[name]
    plan = plan_of(array, factor, gpu, engine=name, interpolation=interpolation)
    small = plan_of(array[:3, :3, :3], factor, gpu, engine=name, interpolation=interpolation)
    used.release()
    _scale_on_both_lanes(used, array, small)
    risen = device_rise(lambda: _scale_on_both_lanes(used, array, plan))
    projected = plan.projected_device - plan.device.context  # which this process holds already
    print(f"{name} {interpolation} {factor}: projected {projected:,}, driver reports {risen:,} bytes")
    # The driver rounds images up to tiles of 16 voxels a side, and everything to pages of 2 MiB.
    image = plan.cost.image
    tiles = 4 * (math.prod(round_up(n, 16) for n in image) - math.prod(image)) if image else 0
    pages = (len(plan.cost.allocations) + 2 * plan.in_flight + 1) * 2**21  # two pinned buffers a block
    assert 0.9 * projected <= risen <= projected + tiles + pages


def test_blocks_of_a_gpu_do_not_depend_on_the_thread(gpu: Device, engine: CleEngine) -> None:
    """Eight threads that scale at once get the bits that one gets."""
    array = np.random.default_rng(0).integers(0, 65536, (60, 200, 200)).astype(np.uint16)
    plan = plan_of(array, (2.5, 1.0, 1.3), gpu, 40)
    expected = scaled(array, plan, engine)
    result = np.empty_like(expected)

    def work(first: int) -> None:
        for index in range(first, plan.n_blocks, 8):
            block = plan.block(index)
            result[block.write_box.slices] = engine.scale(array[block.read_box.slices], block, plan).data

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(result, expected)


def test_exact_counts_beyond_32_bits(gpu: Device, exact: ExactEngine) -> None:
    """A block of more than 2^31 output voxels, wider than PoCL's images, is right to its last voxel."""
    array = np.random.default_rng(0).integers(0, 256, (13, 1300, 1301)).astype(np.uint8)
    plan = plan_of(array, (100.0, 1.0, 1.0), gpu, engine="exact")
    result = scaled(array, plan, exact)
    assert result.size > 2**31
    z, y, x = result.shape
    for start in ((0, 0, 0), (z // 2, 17, 5), (z - 40, y - 20, x - 20)):
        box = Box(start, (start[0] + 40, start[1] + 20, start[2] + 20))
        expected = reference(lambda b: array[b.slices], array.shape, plan.factor, box)
        assert np.abs(result[box.slices] - expected).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("name", ["cle", "exact"])
def test_a_block_goes_in_pieces_while_another_program_holds_the_memory(
    name: str, gpu: Device, engine: CleEngine, exact: ExactEngine
) -> None:
    """A plan counts on the whole GPU; when all but 2 GB are taken, a block of it comes out as in small blocks."""
    array = np.tile(np.random.default_rng(0).integers(0, 65536, (12, 1900, 1900), np.uint16), (8, 1, 1))
    used, other = (exact, engine) if name == "exact" else (engine, exact)
    other.release()
    expected = scaled(array, plan_of(array, (4.0, 1.0, 1.0), gpu, 512, engine=name), used)
    used.release()
    plan = replace(plan_of(array, (4.0, 1.0, 1.0), gpu, engine=name), in_flight=1)
    block = plan.block(0)
    assert plan.n_blocks == 1
    used.prepare(plan)  # its pinned memory takes room on the device too
    with hog(gpu, leave=2 * 10**9) as left, used.staged(block, plan) as stage:
        stage.input[...] = array
        seconds = []
        for _ in range(2):  # the second time what fits is known
            began = time.perf_counter()
            try:
                result = stage.scale()
            except DeviceLostError as error:
                pytest.fail(f"{name}: with {left:,} bytes left the context did not survive: {error}")
            seconds.append(time.perf_counter() - began)
        worst = max(
            int((np.maximum(a, b) - np.minimum(a, b)).max()) for a, b in zip(result.data, expected, strict=True)
        )
    print(
        f"{name}: {left:,} bytes left of {gpu.memory:,} for {device_bytes(block, plan):,}; {result.pieces} pieces, "
        f"{seconds[0]:.2f} s and then {seconds[1]:.2f} s, largest difference {worst}; the context survived"
    )
    assert left < 2.1e9 < device_bytes(block, plan)
    assert result.pieces > 1
    assert worst <= (3 * TEXTURE_STEP if name == "cle" else 0)
    assert used.answers()
    used.release()


@pytest.fixture(scope="module")
def cuda(gpu: Device) -> ExactEngine:
    """The exact engine on the GPU, by CUDA."""
    try:
        return CudaEngine(gpu)
    except ImportError as missing:
        pytest.skip(str(missing))


ALL = ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float32"]
KINDS = [
    *((dtype, name) for dtype in ALL for name in ("linear", "cubic", "lanczos3", "nearest")),
    *((dtype, name) for dtype in ("uint8", "int16", "uint32", "int32") for name in ("mode", "smooth")),
    ("uint64", "nearest"),
    ("int64", "mode"),
]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("dtype", "interpolation"), KINDS)
def test_cuda_has_the_bits_of_opencl(
    dtype: str, interpolation: str, antialias: bool, gpu: Device, exact: ExactEngine, cuda: ExactEngine
) -> None:
    """Of whatever shape and factor, of values of the whole range and of few labels, whole and in pieces."""
    if antialias and interpolation in MOVES:
        pytest.skip("nothing is weighed")
    kind = np.dtype(dtype)
    for seed, (shape, drawn) in enumerate(CASES[:10]):
        factor = tuple(max(1.0, f) for f in drawn) if interpolation == "smooth" else drawn
        rng = np.random.default_rng(seed)
        if kind.kind == "f":
            array = (rng.uniform(-3, 3, shape) * 10.0 ** rng.integers(-3, 39, shape)).astype(np.float32)
            array[rng.random(shape) < 1e-3] = rng.choice([np.nan, np.inf, -np.inf])
        elif interpolation in ("mode", "smooth"):
            array = rng.integers(0, 4, shape).astype(kind)
        else:
            info = np.iinfo(kind)
            array = rng.integers(info.min, info.max, shape, dtype=kind, endpoint=True)
        options = {"interpolation": interpolation, "engine": "exact"} | ({"antialias": True} if antialias else {})
        plan = plan_of(array, factor, gpu, 37, **options)
        expected = scaled(array, plan, exact)
        np.testing.assert_array_equal(scaled(array, plan, cuda), expected, err_msg=f"{shape} {factor}")
        cuda.fit.too_large(plan, 0)
        np.testing.assert_array_equal(scaled(array, plan, cuda), expected, err_msg=f"{shape} {factor} in pieces")
        cuda.fit.forget()


@pytest.mark.parametrize("dtype", HALVED)
def test_cuda_halves_as_the_processor_does(dtype: str, cuda: ExactEngine) -> None:
    """Of whatever axes, odd ones too."""
    rng, info = np.random.default_rng(7), np.iinfo(dtype)
    for _ in range(40):
        shape = tuple(int(n) for n in rng.integers(1, 40, 3))
        factor = tuple(float(f) for f in rng.choice([0.5, 1.0], 3))
        made = tuple(max(1, n // 2) if f == 0.5 else n for n, f in zip(shape, factor, strict=True))
        voxels = rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
        both = np.concatenate([voxels.ravel(), np.zeros(math.prod(made), dtype)])
        lane = cuda.new_lane()
        buffer = lane.upload("both", both)
        with TURN:
            cuda.begin_after(lane.uploaded())
            cuda.halve(buffer, dtype, factor, (shape, made))
            computed = cuda.computed()
        lane.download(buffer, both, None, computed)
        np.testing.assert_array_equal(both[: voxels.size].reshape(shape), voxels)
        np.testing.assert_array_equal(both[voxels.size :].reshape(made), Halver()(voxels, factor, made))
