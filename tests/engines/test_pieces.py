"""Blocks for which the device has no room: they go in pieces, with the same result, wherever memory runs out."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyopencl import _cl

from isovoxel.engines import buffers
from isovoxel.engines.base import Cancelled, Scaled
from isovoxel.engines.buffers import Fit, Lane, halves
from isovoxel.engines.cle import CleEngine
from isovoxel.engines.devices import find_device
from isovoxel.engines.exact import ExactEngine
from isovoxel.engines.opencl import is_lost, is_out_of_memory
from isovoxel.engines.pipeline import StagedEngine
from isovoxel.engines.staged_block import StagedBlock
from isovoxel.errors import DeviceFullError, DeviceLostError
from isovoxel.geometry.grid import Box
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan
from strategies import cle_precision, cut, device_limits, one_kernel_for_all_shapes, padded_lengths, plans

SHAPE, FACTOR = (20, 18, 22), (2.0, 1.5, 0.7)
WHOLE = (999, 999, 999)

WAYS = [
    ("cle", "linear", "uint16"),
    ("cle", "nearest", "uint32"),
    ("exact", "linear", "uint16"),
    ("exact", "mode", "uint8"),
]
"""Engines, interpolations and dtypes that allocate in different ways."""


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let blocks of a test's size be halved."""
    monkeypatch.setattr(buffers, "SMALLEST", 2**10)
    with one_kernel_for_all_shapes():
        yield


@functools.lru_cache
def engine_of(name: str, kind: str) -> StagedEngine:
    """An engine on this machine's CPU that works in place, or that takes it for a GPU."""
    device = replace(find_device(), kind=kind)
    return CleEngine(device) if name == "cle" else ExactEngine(device)


def fresh(name: str, kind: str) -> StagedEngine:
    """An engine that keeps nothing."""
    engine = engine_of(name, kind)
    engine.release()
    return engine


def planned(way: tuple[str, str, str], kind: str = "cpu", block: Any = WHOLE, in_flight: int = 1) -> Plan:
    """A plan for one of the `WAYS`."""
    name, interpolation, dtype = way
    limits = device_limits(kind=kind)
    plan = cut(SHAPE, FACTOR, block, dtype, engine=name, interpolation=interpolation, device=limits)
    return replace(plan, in_flight=in_flight)


def voxels(plan: Plan, seed: int = 0) -> np.ndarray:
    """Random voxels of a plan's input: few labels, so that they are frequent, or all values."""
    rng, kind = np.random.default_rng(seed), np.dtype(plan.source.dtype)
    if plan.interpolation == "mode":
        return rng.integers(0, 4, plan.source.grid.shape).astype(kind)
    if kind.kind == "f":
        return rng.standard_normal(plan.source.grid.shape, np.float32)
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max, plan.source.grid.shape, kind, endpoint=True)


def scaled(way: tuple[str, str, str], kind: str) -> tuple[StagedEngine, Plan, Block, np.ndarray, np.ndarray]:
    """An engine, the only block of a plan, what it reads, and what it becomes where nothing fails."""
    engine, plan = fresh(way[0], kind), planned(way, kind)
    block = plan.block(0)
    volume = voxels(plan)[block.read_box.slices]
    return engine, plan, block, volume, engine.scale(volume, block, plan).data


def driver_error(name: str = "MEM_OBJECT_ALLOCATION_FAILURE") -> Exception:
    """What pyopencl raises for an error of a driver; "MemoryError" is Python's own."""
    if name == "MemoryError":
        return MemoryError("no room")
    code = getattr(cl.status_code, name)
    kind = cl.MemoryError if code == cl.status_code.MEM_OBJECT_ALLOCATION_FAILURE else cl.RuntimeError
    return (cl.LogicError if code <= cl.status_code.INVALID_VALUE else kind)(_cl._ErrorRecord("", code, "test"))


ERRORS = [
    "MEM_OBJECT_ALLOCATION_FAILURE",
    "OUT_OF_RESOURCES",
    "OUT_OF_HOST_MEMORY",
    "INVALID_BUFFER_SIZE",
    "INVALID_IMAGE_SIZE",
    "EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST",
    "MemoryError",
]


class Driver:
    """Counts allocations on the device and fails those it is told to; memory of the host is left alone."""

    def __init__(self) -> None:
        self.refuses: Callable[[int, int], bool] = lambda _, __: False
        self.error = "MEM_OBJECT_ALLOCATION_FAILURE"
        self.sizes: list[int] = []
        self.now = 0
        self.lock = threading.RLock()  # the collector may remove while it is held

    def of(self, kind: type) -> type:
        """Return a kind of OpenCL memory for which this driver answers."""
        driver = self

        class Asked(kind):
            def __init__(self, context: Any, flags: Any, *arguments: Any, **options: Any) -> None:
                super().__init__(context, flags, *arguments, **options)
                if flags & cl.mem_flags.ALLOC_HOST_PTR:
                    return
                with driver.lock:
                    driver.sizes.append(self.size)
                    if driver.refuses(len(driver.sizes) - 1, self.size):
                        raise driver_error(driver.error)
                    driver.now += self.size
                    weakref.finalize(self, driver.remove, self.size)

        return Asked

    def remove(self, nbytes: int) -> None:
        with self.lock:
            self.now -= nbytes

    def reset(self, refuses: Callable[[int, int], bool] = lambda _, __: False, error: str = ERRORS[0]) -> None:
        """Count anew, and fail what is asked for."""
        self.sizes, self.refuses, self.error = [], refuses, error


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The driver of this process, from now on."""
    found = Driver()
    monkeypatch.setattr(cl, "Buffer", found.of(cl.Buffer))
    monkeypatch.setattr(cl, "Image", found.of(cl.Image))
    return found


def assert_agrees(found: np.ndarray, expected: np.ndarray, plan: Plan, volume: np.ndarray) -> None:
    """Compare pieces with a whole block: the same bits, or within cle's precision, which each of both may use up."""
    if plan.engine == "exact" or plan.interpolation == "nearest":
        np.testing.assert_array_equal(found, expected)
    else:
        difference = np.abs(found.astype(np.float64) - expected).max()
        assert difference <= 2 * cle_precision(padded_lengths(plan), volume)


# ---- what a piece is -----------------------------------------------------------------------------------------------


def cut_down(block: Block, plan: Plan, depth: int) -> list[Block]:
    """Halve a block so often, or as often as it can be."""
    parts = halves(block, plan) if depth else ()
    return [piece for part in parts for piece in cut_down(part, plan, depth - 1)] if parts else [block]


@given(plans(40), st.sampled_from(["cle", "linear", "area", "lanczos3", "mode"]), st.integers(1, 5), st.data())
def test_pieces_tile_a_block_and_read_inside_it(plan: Plan, kernel: str, depth: int, data: st.DataObject) -> None:
    """Each output voxel is in one piece, and what a piece reads the block has read."""
    if kernel != "cle":
        plan = replace(plan, engine="exact", interpolation=kernel, antialias=kernel == "lanczos3")
    block = plan.block(data.draw(st.integers(0, plan.n_blocks - 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "SMALLEST", 0)
        parts = cut_down(block, plan, depth)
    times = np.zeros(block.write_box.shape, int)
    for part in parts:
        assert block.read_box.contains(part.read_box)
        assert part.write_box.size > 0
        times[part.write_box.slices_from(block.write_box.start)] += 1
    assert (times == 1).all()
    assert len(parts) == min(2**depth, block.write_box.size) or block.write_box.size < 2 ** (depth + 1)


def test_halves_are_cut_along_the_longest_axis_and_not_without_end() -> None:
    """A block is halved where it is longest; what takes little, and a single voxel, is not."""
    plan = cut((4, 9, 6), (1.0, 1.0, 1.0), WHOLE, engine="exact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "SMALLEST", 0)
        first, second = halves(plan.block(0), plan)
        assert first.write_box == Box((0, 0, 0), (4, 5, 6))
        assert second.write_box == Box((0, 5, 0), (4, 9, 6))
        assert not halves(plan.block_of(0, Box((1, 1, 1), (2, 2, 2))), plan)
        patch.setattr(buffers, "SMALLEST", 2 * 2 * 4 * 9 * 6)
        assert not halves(plan.block(0), plan)


EXACT = [
    *(
        (kernel, antialias, dtype)
        for kernel, antialias in (("linear", False), ("cubic", True))
        for dtype in ("uint8", "int32", "float32")
    ),
    ("area", False, "uint16"),
    ("linear", True, "int16"),
    ("nearest", False, "uint64"),
    ("mode", False, "int64"),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize(("interpolation", "antialias", "dtype"), EXACT)
@pytest.mark.parametrize("boundary", ["nearest", "constant"])
def test_exact_has_the_same_bits_in_pieces(
    interpolation: str, antialias: bool, dtype: str, boundary: str, kind: str
) -> None:
    """However often a block is halved."""
    engine = fresh("exact", kind)
    for factor in (FACTOR, (0.3, 1.0, 2.6), (1.0, 0.5, 1.0)):
        options = {"engine": "exact", "interpolation": interpolation, "antialias": antialias, "boundary": boundary}
        plan = cut(SHAPE, factor, (24, 99, 99), dtype, device=device_limits(kind=kind), **options)
        volume, block = voxels(plan), plan.block(plan.n_blocks - 1)
        data = volume[block.read_box.slices]
        whole = engine.scale(data, block, plan)
        assert whole.pieces == 1
        for depth in (1, 2, 4):
            engine.fit.too_large(plan, depth - 1)
            found = engine.scale(data, block, plan)
            assert found.pieces == len(cut_down(block, plan, depth)) > depth
            np.testing.assert_array_equal(found.data, whole.data)
        engine.release()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("boundary", ["nearest", "constant"])
def test_cle_agrees_within_its_precision_in_pieces(interpolation: str, boundary: str, kind: str) -> None:
    """An axis that a block has in one piece and is then cut, pads, and axes that stay as they are included."""
    engine = fresh("cle", kind)
    for seed, factor in enumerate([FACTOR, (0.3, 1.0, 2.6), (1.0, 0.5, 1.0), (3.1, 1.1, 1.0)]):
        for dtype in ("uint16", "float32"):
            options = {"interpolation": interpolation, "boundary": boundary, "device": device_limits(kind=kind)}
            plan = cut(SHAPE, factor, (24, 99, 99), dtype, **options)
            volume, block = voxels(plan, seed), plan.block(0)
            data = volume[block.read_box.slices]
            whole = engine.scale(data, block, plan)
            for depth in (1, 2, 4):
                engine.fit.too_large(plan, depth - 1)
                found = engine.scale(data, block, plan)
                assert found.pieces > depth
                # With 0 around the volume float32 decides about ties in a block at its start, as in cle.scale.
                if interpolation == "linear" or boundary == "nearest":
                    assert_agrees(found.data, whole.data, plan, volume)
            engine.release()


# ---- memory that runs out ------------------------------------------------------------------------------------------


@contextmanager
def told(engine: StagedEngine, driver: Driver) -> Iterator[list[int]]:
    """Keep how much is alive on the device whenever a piece gets it for itself."""
    original, alive = engine.answers, []

    def answers() -> bool:
        alive.append(driver.now)
        return original()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "answers", answers)
        yield alive


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_any_allocation_may_fail_once(way: tuple[str, str, str], kind: str, driver: Driver) -> None:
    """The block is tried again, when nothing of the first try is left on the device, and is not halved."""
    engine, plan, block, volume, expected = scaled(way, kind)
    engine.release()
    driver.reset()
    engine.scale(volume, block, plan)
    count = len(driver.sizes)
    assert count >= 2  # and the successor's image, which is its own
    for n, error in itertools.product(range(count), ERRORS):
        engine.release()
        assert driver.now == 0
        driver.reset(lambda i, _, n=n: i == n, error)
        with told(engine, driver) as alive:
            found = engine.scale(volume, block, plan)
        assert alive == [0]
        assert found.pieces == 1
        np.testing.assert_array_equal(found.data, expected)
        assert len(driver.sizes) == n + 2 + count  # with that of the probe
    engine.release()


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_no_error_keeps_memory_on_the_device(kind: str, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that somebody on its way remembers, in a circle that waits for the collector."""
    engine, plan = fresh("exact", kind), planned(WAYS[2], kind)
    block = plan.block(0)
    enqueue, errors = engine.enqueue, []

    def remembers(*arguments: Any) -> None:
        own = cl.Buffer(engine._queue.context, cl.mem_flags.READ_WRITE, 2**20)
        try:
            enqueue(*arguments)
            if not errors:
                errors.append(own.size)
                raise driver_error()
        except cl.Error as error:
            remembered = error
            raise remembered from None

    monkeypatch.setattr(engine, "enqueue", remembers)
    gc.disable()
    try:
        with told(engine, driver) as alive:
            assert engine.scale(voxels(plan)[block.read_box.slices], block, plan).pieces == 1
    finally:
        gc.enable()
    assert alive == [0]
    engine.release()


@contextmanager
def attempts() -> Iterator[list[Block]]:
    """Keep every try to scale a piece."""
    tried: list[Block] = []
    original = StagedBlock._attempt

    def attempt(self: StagedBlock, piece: Block, *rest: Any) -> str:
        tried.append(piece)
        return original(self, piece, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StagedBlock, "_attempt", attempt)
        yield tried


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_memory_may_run_out_at_any_allocation(way: tuple[str, str, str], kind: str, driver: Driver) -> None:
    """From then on nothing large is given: the block goes in pieces, and the next one in as many right away."""
    engine, plan, block, volume, expected = scaled(way, kind)
    engine.release()
    driver.reset()
    engine.scale(volume, block, plan)
    count, largest = len(driver.sizes), max(driver.sizes)
    most = 1
    for n, share in itertools.product(range(count), (1, 2, 5)):
        engine.release()
        too_large = max(1000, largest / share)
        driver.reset(lambda i, size, n=n, least=too_large: i >= n and size >= least, ERRORS[(n + share) % len(ERRORS)])
        for _ in range(3):  # all that was kept before memory ran out has been let go
            found = engine.scale(volume, block, plan)
            assert_agrees(found.data, expected, plan, volume)
        with attempts() as tried:
            again = engine.scale(volume, block, plan)
        assert again.pieces == found.pieces == len(tried)
        np.testing.assert_array_equal(again.data, found.data)
        most = max(most, again.pieces)
    assert most >= 4 or largest < 1000  # in place, mode needs tables only
    engine.release()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "kind"),
    # In place, mode needs tables only: without room for those there is none for anything.
    [(way, kind) for way in WAYS for kind in ("cpu", "gpu") if (way[1], kind) != ("mode", "cpu")],
)
@pytest.mark.parametrize("share", [0.9, 0.45, 0.2])
def test_blocks_in_flight_share_what_is_there(
    way: tuple[str, str, str], kind: str, share: float, driver: Driver
) -> None:
    """A device that has less than the plan counts on, or that loses it for a while, serves 16 threads at once."""
    engine, plan = fresh(way[0], kind), planned(way, kind, (20, 14, 8), in_flight=16)
    volume = voxels(plan)
    expected = [engine.scale(volume[b.read_box.slices], b, plan).data for b in plan.blocks()]
    engine.release()
    need = sum(a.nbytes for a in plan.cost.allocations) - plan.cost.in_place
    # In the beginning somebody else takes all of it now and then.
    driver.reset(lambda i, size: driver.now + size > share * need or (i < 60 and i % 11 == 0))

    def scale(block: Block) -> Scaled:
        for _ in range(20):
            with contextlib.suppress(DeviceFullError):  # not even for the smallest piece: jobs try again
                return engine.scale(volume[block.read_box.slices], block, plan)
        return engine.scale(volume[block.read_box.slices], block, plan)

    with ThreadPoolExecutor(16) as pool:
        jobs = [(i, pool.submit(scale, block)) for _ in range(3) for i, block in enumerate(plan.blocks())]
        found = [(i, job.result(timeout=300)) for i, job in jobs]
    for i, scaled in found:
        assert_agrees(scaled.data, expected[i], plan, volume)
    assert all(scaled.pieces > 1 for _, scaled in found[-3:]) or share > 0.5
    engine.release()
    assert driver.now == 0


@pytest.mark.sampled(7)
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("error", ["OUT_OF_RESOURCES", "MEM_OBJECT_ALLOCATION_FAILURE"])
def test_any_command_may_run_out_of_memory(
    way: tuple[str, str, str], kind: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers that give memory on first use fail a command, not an allocation."""
    engine, plan, block, volume, expected = scaled(way, kind)
    calls, fails = itertools.count(), [-1]

    def failing(original: Any) -> Any:
        @functools.wraps(original)
        def command(*arguments: Any, **options: Any) -> Any:
            if next(calls) == fails[0]:
                raise driver_error(error)
            return original(*arguments, **options)

        return command

    for module, names in (
        (cl, ("enqueue_copy", "enqueue_marker", "enqueue_barrier", "enqueue_map_buffer")),
        (_cl, ("enqueue_nd_range_kernel",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, failing(getattr(module, name)))
    with engine.staged(block, plan) as stage:
        stage.input[...] = volume
        calls = itertools.count()
        stage.scale()
        count = next(calls)
        assert count >= 5
        for n in range(count):
            engine.fit.forget()
            fails[0], calls = n, itertools.count()
            found = stage.scale()
            assert found.pieces == 1
            np.testing.assert_array_equal(found.data, expected)
            assert next(calls) > count  # it did fail
    engine.release()


class Failing:
    """An event that fails when somebody waits for it."""

    def __init__(self, event: cl.Event, error: str) -> None:
        self.event, self.error = event, error

    def wait(self) -> None:
        self.event.wait()
        raise driver_error(self.error)


@pytest.mark.parametrize("name", ["cle", "exact"])
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_only_the_event_may_tell(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that were accepted and failed as they ran: once, and whenever they make many voxels."""
    engine, plan, block, volume, expected = scaled((name, "linear", "uint16"), kind)
    enqueue_after, wait_for = engine.enqueue_after, Lane.wait_for
    written: list[int] = []
    error = "EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST"

    def fails() -> bool:
        return len(written) == 1 or (many and written[-1] > block.write_box.size / 3)

    def enqueued(*arguments: Any) -> Any:
        event = enqueue_after(*arguments)
        written.append(arguments[4].write_box.size)
        return Failing(event, error) if kind == "cpu" and arguments[4] is block and fails() else event

    def waited(lane: Lane, event: Any) -> None:
        wait_for(lane, event)
        if fails():
            raise driver_error(error)

    monkeypatch.setattr(engine, "enqueue_after", enqueued)
    monkeypatch.setattr(Lane, "wait_for", waited)
    for many in (False, True):
        written.clear()
        engine.fit.forget()
        found = engine.scale(volume, block, plan)
        assert found.pieces == (4 if many else 1)
        assert_agrees(found.data, expected, plan, volume)
    engine.release()


def test_what_fits_is_remembered_until_it_is_forgotten(driver: Driver) -> None:
    """Blocks of the plan begin with the pieces that fitted; another plan, and whoever releases, begins anew."""
    way = WAYS[2]
    engine, plan = fresh("exact", "cpu"), planned(way, block=(20, 99, 99))
    volume = voxels(plan)
    blocks = list(plan.blocks())
    driver.reset(lambda _, size: driver.now + size > 12_000)

    assert len(blocks) == 2
    with attempts() as tried:
        first = engine.scale(volume[blocks[0].read_box.slices], blocks[0], plan).pieces
        assert len(tried) > first > 1
        tried.clear()
        assert engine.scale(volume[blocks[1].read_box.slices], blocks[1], plan).pieces == len(tried) > 1
        engine.release()
        driver.reset()
        assert engine.scale(volume[blocks[1].read_box.slices], blocks[1], plan).pieces == 1
        engine.fit.too_large(plan, 0)
        other = planned(way)
        assert engine.scale(volume, other.block(0), other).pieces == 1
    engine.release()


def test_what_fits_only_alone_again_and_again_is_halved() -> None:
    """Once is chance; a device that never has room for two blocks at a time gets smaller ones."""
    fit, plan = Fit(), planned(WAYS[2])
    for _ in range(buffers.OFTEN):
        assert fit.depth(plan) == 0
        fit.fits_alone(plan, 0)
    assert fit.depth(plan) == 1
    fit.fits_alone(plan, 0)  # who began before that was known
    fit.too_large(plan, 0)
    assert fit.depth(plan) == 1


SMALL_DEVICE = """
import numpy as np
from isovoxel.engines.devices import list_devices
from isovoxel.engines.exact import ExactEngine
from strategies import cut, device_limits
device = next(d for d in list_devices() if d.kind == "cpu")
assert device.largest_allocation < 2**29, device
volume = np.random.default_rng(0).integers(0, 256, (75, 500, 1000), np.uint8)
options = {"engine": "exact", "device": device_limits(kind="cpu")}
whole, cuts = (cut(volume.shape, (2.0, 2.0, 1.0), (n, n, n), "uint8", **options) for n in (1000, 400))
assert whole.n_blocks == 1
assert any(a.nbytes > device.largest_allocation for a in whole.cost.allocations), whole.cost
engine = ExactEngine(device)
found = engine.scale(volume, whole.block(0), whole)
assert found.pieces > 1
for block in cuts.blocks():
    expected = engine.scale(volume[block.read_box.slices], block, cuts)
    assert expected.pieces == 1
    assert (found.data[block.write_box.slices] == expected.data).all()
"""


@pytest.mark.slow
def test_a_device_that_gives_less_than_a_plan_counts_on_goes_on() -> None:
    """With nothing made up: PoCL limited to 1 GiB, of which it gives a quarter at once."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DEVICE],
        env=os.environ | {"POCL_MEMORY_LIMIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# ---- what cannot be helped -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_device_without_any_room_is_told_of(way: tuple[str, str, str], kind: str, driver: Driver) -> None:
    """Halving ends, in one sentence with what it took, and the engine goes on when there is room again."""
    engine, plan, block, volume, _ = scaled(way, kind)  # which builds the kernels, if nothing has in this process
    engine.release()
    driver.reset(lambda _, size: size > 64)
    with pytest.raises(
        DeviceFullError, match=r"has no room for .* which a piece of \(\d+, \d+, \d+\) voxels takes: .*ALLOC"
    ):
        engine.scale(volume, block, plan)
    driver.reset()
    assert engine.scale(volume, block, plan).pieces == 1  # there may be as much room as there was
    engine.release()


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("name", ["cle", "exact"])
@pytest.mark.parametrize("first", ["OUT_OF_RESOURCES", "INVALID_COMMAND_QUEUE", "INVALID_MEM_OBJECT"])
def test_a_device_that_is_lost_is_told_of_by_all_threads(
    name: str, kind: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one error nothing works: every block in flight says so, and nobody waits for ever."""
    engine, plan = fresh(name, kind), planned((name, "linear", "uint16"), kind, (20, 14, 8), in_flight=8)
    volume = voxels(plan)
    engine.prepare(plan)
    dead = threading.Event()
    launch, fill = _cl.enqueue_nd_range_kernel, cl.enqueue_fill_buffer

    def dies(*_: Any) -> Any:
        if dead.is_set():
            raise driver_error("INVALID_COMMAND_QUEUE")
        dead.set()
        raise driver_error(first)

    def fails(*arguments: Any) -> Any:
        if dead.is_set():
            raise driver_error("INVALID_COMMAND_QUEUE")
        return fill(*arguments)

    monkeypatch.setattr(_cl, "enqueue_nd_range_kernel", dies)
    monkeypatch.setattr(cl, "enqueue_fill_buffer", fails)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(engine.scale, volume[b.read_box.slices], b, plan) for b in plan.blocks()]
        errors = [job.exception(timeout=300) for job in jobs]
    assert len(errors) >= 4
    assert {type(error) for error in errors} == {DeviceLostError}
    assert all("no longer answers this process: " in str(error) for error in errors)
    monkeypatch.setattr(_cl, "enqueue_nd_range_kernel", launch)
    dead.clear()
    engine.release()


def test_a_device_that_is_lost_is_told_of_when_blocks_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as one without memory: another process would have it."""
    engine, plan = fresh("exact", "cpu"), planned(WAYS[2])

    def fails(*_: Any) -> None:
        raise driver_error("INVALID_CONTEXT")

    monkeypatch.setattr(cl, "Buffer", fails)
    with pytest.raises(DeviceLostError, match=r"no longer answers this process: .*INVALID_CONTEXT"):
        engine.prepare(plan)


def test_an_event_of_a_dead_queue_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events may stay as they were; the queue tells."""
    engine = fresh("exact", "cpu")

    class DeadQueue:
        flushes = 0

        def flush(self) -> None:
            self.flushes += 1
            if self.flushes > 2:
                raise driver_error("INVALID_COMMAND_QUEUE")

    class Stuck:
        command_execution_status = 2

    lane = engine.new_lane()
    monkeypatch.setattr(lane, "queue", DeadQueue())
    monkeypatch.setattr(buffers, "POLL_SECONDS", (0.0, 0.0))
    with pytest.raises(cl.LogicError, match="INVALID_COMMAND_QUEUE"):
        lane.wait_for(Stuck())


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that gets a wrong argument is not tried with less memory."""
    engine, plan = fresh("exact", "cpu"), planned(WAYS[2])
    volume = voxels(plan)
    with monkeypatch.context() as patch, attempts() as tried:
        patch.setattr(engine, "enqueue", lambda *_: (_ for _ in ()).throw(driver_error("INVALID_ARG_SIZE")))
        with pytest.raises(cl.LogicError, match="INVALID_ARG_SIZE"):
            engine.scale(volume, plan.block(0), plan)
        assert len(tried) == 1
    assert engine.scale(volume, plan.block(0), plan).pieces == 1
    engine.release()


def test_a_job_may_be_cancelled_between_pieces() -> None:
    engine, plan = fresh("exact", "gpu"), planned(WAYS[2], "gpu")
    engine.fit.too_large(plan, 2)
    cancelled = threading.Event()
    with attempts() as tried, pytest.MonkeyPatch.context() as patch:
        download = Lane.download

        def last(*arguments: Any) -> None:
            download(*arguments)
            cancelled.set()

        patch.setattr(Lane, "download", last)
        with pytest.raises(Cancelled):
            engine.scale(voxels(plan), plan.block(0), plan, cancelled)
    assert len(tried) == 2
    engine.release()


@pytest.mark.parametrize(
    ("name", "memory", "lost"),
    [
        *((name, True, False) for name in ERRORS),
        *((name, False, True) for name in ("INVALID_COMMAND_QUEUE", "INVALID_CONTEXT", "DEVICE_NOT_AVAILABLE")),
        ("INVALID_ARG_SIZE", False, False),
        ("INVALID_MEM_OBJECT", False, False),  # the device is asked
    ],
)
def test_errors_are_told_apart(name: str, memory: bool, lost: bool) -> None:
    """By their code, whichever class pyopencl gives them."""
    error = driver_error(name)
    assert (is_out_of_memory(error), is_lost(error)) == (memory, lost)
    assert not is_out_of_memory(ValueError("no room"))
