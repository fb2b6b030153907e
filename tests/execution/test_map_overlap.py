"""The lazy array that map_overlap builds: what it is before it is computed, and after."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isovoxel import scale_array
from isovoxel.engines.reference import as_dtype, reference
from isovoxel.errors import InputError, OptionError
from isovoxel.execution.map_overlap import OverlapWindow
from isovoxel.geometry.box import Box
from isovoxel.planning.optimizer import plan_chunks, too_thin
from strategies import cut, device_limits, host_limits, one_kernel_for_all_shapes, plans, read_from, source

VOLUME = np.random.default_rng(0).integers(0, 65536, (12, 30, 40)).astype(np.uint16)


@pytest.fixture(autouse=True, scope="module")
def _one_kernel() -> Iterator[None]:
    with one_kernel_for_all_shapes():
        yield


def expected(volume: np.ndarray, factor: tuple[float, float, float], interpolation: str = "nearest") -> np.ndarray:
    """The reference's result, in the volume's dtype."""
    shape = tuple(max(1, int(np.around(n * f))) for n, f in zip(volume.shape, factor, strict=True))
    return as_dtype(reference(read_from(volume), volume.shape, factor, Box.whole(shape), interpolation), volume.dtype)


def test_nothing_is_computed_before_somebody_asks() -> None:
    """Building the array reads nothing; computing it reads every chunk, and a part of it only what it needs."""
    reads = []

    def read(block_info: dict) -> np.ndarray:
        where = block_info[None]["array-location"]
        reads.append(where)
        return VOLUME[tuple(slice(*w) for w in where)]

    lazy = da.map_blocks(read, chunks=((6, 6), (10, 10, 10), (20, 20)), dtype=VOLUME.dtype, meta=VOLUME[:0, :0, :0])
    scaled = scale_array(lazy, (2.0, 2.0, 2.0), interpolation="nearest", chunks=(12, 20, 40))
    assert reads == []
    corner = scaled[:4, :4, :4].compute(scheduler="synchronous")
    assert 0 < len(reads) < 12
    reads.clear()
    np.testing.assert_array_equal(scaled.compute(scheduler="synchronous"), expected(VOLUME, (2.0, 2.0, 2.0)))
    assert len(reads) == 12
    np.testing.assert_array_equal(corner, expected(VOLUME, (2.0, 2.0, 2.0))[:4, :4, :4])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_shape_dtype_chunks_and_meta_are_known_beforehand(dtype: str) -> None:
    """The lazy array says what it will be: the output's shape, the input's dtype, the chunks asked for."""
    scaled = scale_array(da.from_array(VOLUME.astype(dtype), chunks=11), (2.3, 0.7, 1.0), chunks=(10, 8, 16))
    assert scaled.shape == (28, 21, 40)
    assert scaled.dtype == np.dtype(dtype)
    assert scaled.chunks == ((10, 10, 8), (8, 8, 5), (16, 16, 8))
    assert isinstance(scaled._meta, np.ndarray)
    assert scaled._meta.dtype == np.dtype(dtype)
    computed = scaled.compute(scheduler="synchronous")
    assert (computed.shape, computed.dtype) == (scaled.shape, scaled.dtype)


def test_without_chunks_dasks_own_size_is_taken() -> None:
    """The result's chunks follow `array.chunk-size`."""
    with dask.config.set({"array.chunk-size": "64KiB"}):
        scaled = scale_array(da.from_array(VOLUME), 2.0, interpolation="nearest")
    assert 1 < scaled.npartitions < 100
    assert math.prod(scaled.chunksize) * 2 <= 2**16
    np.testing.assert_array_equal(scaled.compute(scheduler="synchronous"), expected(VOLUME, (2.0, 2.0, 2.0)))


def test_it_composes_with_other_dask_code() -> None:
    """Arithmetic, slices, reductions and a second scaling work on it as on any dask array."""
    scaled = scale_array(
        da.from_array(VOLUME, chunks=10) // 2, (2.0, 1.0, 1.0), interpolation="nearest", chunks=(8, 16, 16)
    )
    half = expected(VOLUME // 2, (2.0, 1.0, 1.0))
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal((scaled + 1).compute(), half + 1)
        np.testing.assert_array_equal(scaled[5:13, ::3, -7:].compute(), half[5:13, ::3, -7:])
        assert scaled.max().compute() == half.max()
        back = scale_array(scaled, (0.5, 1.0, 1.0), interpolation="nearest", chunks=(12, 16, 40))
        np.testing.assert_array_equal(back.compute(), half[1::2])


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_every_scheduler_gives_the_same_bits(scheduler: str) -> None:
    """Computed here, on threads or in other processes, which find their device themselves, the result is one."""
    array = da.from_array(VOLUME[:, :8, :8], chunks=8)
    scaled = scale_array(array, (2.3, 1.0, 1.0), chunks=(14, 8, 8))
    alone = scaled.compute(scheduler="synchronous")
    np.testing.assert_array_equal(scaled.compute(scheduler=scheduler, num_workers=2), alone)


RAGGED: list[tuple[tuple[int, ...], object, tuple[float, ...], tuple[int, ...] | None]] = [
    ((12, 30, 40), 11, (6.0, 1.0, 5.0), (2, 16, 16)),  # chunks of no input voxel
    ((12, 30, 40), 11, (6.0, 1.0, 5.0), (24, 30, 1)),
    ((33, 20, 20), 8, (1.0, 1.0, 1.0), (32, 8, 8)),  # a last chunk of one plane
    ((33, 20, 20), (1, 20, 20), (2.0, 1.0, 1.0), (64, 16, 16)),  # single planes
    ((20, 21, 22), ((1, 1, 17, 1), (21,), (2, 20)), (0.3, 1.7, 1.0), (2, 8, 16)),  # ragged input
    ((20, 21, 22), 5, (0.1, 0.1, 0.5), (1, 1, 4)),  # a halo of several chunks
]
"""Shapes, input chunks, factors and output chunks whose halo map_overlap cannot exchange."""


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("shape", "given", "factor", "chunks"), RAGGED)
@pytest.mark.parametrize("interpolation", ["nearest", "lanczos3"])
def test_chunks_thinner_than_their_halo_are_read_from_further_chunks(
    shape: tuple[int, ...], given: Any, factor: tuple[float, ...], chunks: tuple[int, ...], interpolation: str
) -> None:
    """Dask takes a halo from the next chunk only; the result is the one of a single chunk all the same."""
    volume = np.random.default_rng(1).integers(0, 65536, shape, np.uint16)
    options = {"interpolation": interpolation, "antialias": interpolation == "lanczos3", "engine": "exact"}
    scaled = scale_array(da.from_array(volume, chunks=given), factor, chunks=chunks, **options)
    whole = scale_array(da.from_array(volume), factor, chunks=(999, 999, 999), **options)
    assert scaled.chunks == da.core.normalize_chunks(chunks, scaled.shape)
    np.testing.assert_array_equal(scaled.compute(scheduler="threads"), whole.compute(scheduler="synchronous"))


def test_no_shape_is_refused() -> None:
    """Of 2,000 arrays of any shape, chunks and factors, with chunks of their own or dask's, each is planned."""
    rng, thin = np.random.default_rng(14), 0
    for i in range(2000):
        shape = tuple(int(n) for n in rng.integers(1, 300, 3))
        factor = tuple(float(f) for f in np.round(np.exp(rng.uniform(-2.5, 2.0, 3)), 2))
        chunks = tuple(int(n) for n in rng.integers(8, 65, 3)) if i % 2 else (64, 64, 64)
        kernel = ("linear", "cubic", "area", "nearest")[i % 4]
        plan = plan_chunks(
            source(shape),
            factor,
            chunks=chunks,
            fixed=True,
            device=device_limits(),
            host=host_limits(),
            engine="exact",
            interpolation=kernel,
            antialias=i % 8 < 2,
        )
        assert plan.output == plan.source.grid.scaled(factor)
        thin += bool(too_thin(plan))
        if i % 40 == 0:
            array = da.zeros(shape, dtype=np.uint16, chunks=tuple(int(n) for n in rng.integers(1, 200, 3)))
            scaled = scale_array(array, factor, chunks=chunks, interpolation=kernel, engine="exact")
            assert scaled.shape == plan.output.shape
            assert scaled.npartitions == plan.n_blocks
    assert 100 < thin < 1900  # both ways to the halo were taken


@pytest.mark.parametrize(
    ("array", "factor", "error"),
    [
        (VOLUME, 0.0, OptionError),
        (VOLUME, (1.0, -2.0, 1.0), OptionError),
        (VOLUME[0], 2.0, InputError),
        (VOLUME.astype("float64"), 2.0, InputError),
        (VOLUME[:0], 2.0, InputError),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_built(array: np.ndarray, factor: object, error: type) -> None:
    """Not when it is computed, hours later on another machine."""
    with pytest.raises(error):
        scale_array(da.from_array(array), factor)


@settings(max_examples=100)
@given(plans(40), st.data())
def test_a_window_reads_what_its_blocks_read_and_no_more(plan: object, data: st.DataObject) -> None:
    """Cut anywhere, a window's input holds the read boxes of its blocks, each within one neighbour's reach."""
    places = Box.whole(plan.block_grid)
    size = tuple(data.draw(st.integers(1, n)) for n in places.stop)
    tiles = list(places.tiles(size))
    window = OverlapWindow(plan, data.draw(st.sampled_from(tiles)))
    assert tuple(map(sum, window.input_chunks)) == window.read_box.shape
    for place in (window.places.start, tuple(n - 1 for n in window.places.stop)):
        block = plan.block_at(place)
        assert window.read_box.contains(block.read_box)
    starts = [
        plan.block_at(place).write_box for place in (window.places.start, tuple(n - 1 for n in window.places.stop))
    ]
    written = tuple(b - a for a, b in zip(starts[0].start, starts[1].stop, strict=True))
    assert tuple(map(sum, window.output_chunks)) == written


def test_plans_that_are_equal_make_arrays_of_the_same_name() -> None:
    """Dask sees that the same scaling of the same array is the same, and that another one is not."""
    array = da.from_array(VOLUME, chunks=20, name="same")
    first, again, other = (scale_array(array, f, chunks=(24, 30, 40)).name for f in (2.0, 2.0, 3.0))
    assert first == again
    assert first != other


def test_cuts_of_plans_used_here_are_thick_enough() -> None:
    """What `cut` makes for map_overlap in other tests is what `scale_array` would accept."""
    assert not too_thin(cut(VOLUME.shape, (2.0, 2.0, 2.0), (12, 20, 40), halo_mode="map_overlap"))


def test_what_is_free_at_the_moment_does_not_change_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal calls make arrays of one name even if memory was taken or given back between them."""
    names = []
    for free in (2**30, 2**34):
        monkeypatch.setattr("isovoxel.execution.host.available_bytes", lambda free=free: free)
        names.append(scale_array(da.ones((8, 8, 8), chunks=8, dtype="uint8"), 2.0, chunks=(8, 8, 8)).name)
    assert names[0] == names[1]
