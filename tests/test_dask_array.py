"""`scale_array`: what the lazy array is before it is computed, what computing it reads, and what comes out."""

from __future__ import annotations

import itertools
import math
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import isovoxel
from isovoxel import scale_array
from isovoxel.engines.reference import reference, reference_labels
from isovoxel.errors import InputError, IsovoxelError, OptionError
from isovoxel.geometry.grid import Box, Float3, VoxelGrid
from strategies import as_dtype, examples, one_kernel_for_all_shapes, read_from

SHAPES = int(os.environ.get("SHAPES", "100"))
"""Random cases of the slow test; with 2000 it takes ten minutes."""

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


@pytest.mark.parametrize("scheduler", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_every_scheduler_gives_the_same_bits(scheduler: str) -> None:
    """On threads or in other processes, which find their device themselves, the result is one."""
    array = da.from_array(VOLUME[:, :8, :8], chunks=8)
    scaled = scale_array(array, (2.3, 1.0, 1.0), chunks=(14, 8, 8))
    alone = scaled.compute(scheduler="synchronous")
    np.testing.assert_array_equal(scaled.compute(scheduler=scheduler, num_workers=2), alone)


# ---- any shape, any chunks, any factor -----------------------------------------------------------------------------

KERNELS = ("linear", "nearest", "cubic", "lanczos3", "area", "mode")
DTYPES = ("uint8", "uint16", "int16", "int32", "float32")
FLOAT_ERROR, TIE = 2e-6, {"uint8": 2.0**-21, "uint16": 2.0**-21, "int16": 2.0**-21, "int32": 2.0**-46}
"""As in `tests/engines/test_exact.py`: how far float32 may be off, and how near to a half integers are ties."""


@dataclass(frozen=True)
class Case:
    """An array of one or more volumes, and how it is scaled."""

    seed: int
    series: tuple[int, ...]
    shape: tuple[int, int, int]
    cuts: tuple[tuple[int, ...], ...]
    """The array's chunks."""
    factor: Float3
    chunks: tuple[int, int, int]
    dtype: str
    interpolation: str
    boundary: str

    @property
    def antialias(self) -> bool:
        """Every second one of those that can be is anti-aliased."""
        return self.seed % 2 == 0 and self.interpolation in ("linear", "cubic", "lanczos3")


def cuts_of(rng: np.random.Generator, length: int) -> tuple[int, ...]:
    """Cut an axis anywhere."""
    inner = np.sort(rng.choice(np.arange(1, length), int(rng.integers(0, length)), replace=False))
    return tuple(int(n) for n in np.diff([0, *inner, length]))


def random_case(seed: int, most: int = 14) -> Case:
    """Return a case of any shape, chunks and factors."""
    rng = np.random.default_rng(seed)
    series = ((), (), (2,), (2, 3))[int(rng.integers(4))]
    nz, ny, nx = (int(n) for n in rng.integers(1, most, 3))
    fz, fy, fx = (float(f) for f in np.round(np.exp(rng.uniform(-2.3, 1.4, 3)), int(rng.integers(0, 3))) + 1e-3)
    factor = (round(fz, 2) or 1.0, round(fy, 2) or 1.0, round(fx, 2) or 1.0)
    z, y, x = (int(rng.integers(-(-n // 4), n + 2)) for n in VoxelGrid((nz, ny, nx)).scaled(factor).shape)
    interpolation = KERNELS[seed % len(KERNELS)]
    dtypes = DTYPES[:-1] if interpolation == "mode" else DTYPES
    return Case(
        seed,
        series,
        (nz, ny, nx),
        tuple(cuts_of(rng, n) for n in (*series, nz, ny, nx)),
        factor,
        (z, y, x),
        dtypes[int(rng.integers(len(dtypes)))],
        interpolation,
        ("nearest", "constant")[int(rng.integers(2))],
    )


def check_against_oracle(case: Case) -> None:
    """Scale an array, and compare each of its volumes with the float64 reference, which knows of no chunks."""
    rng = np.random.default_rng(case.seed)
    voxels = (rng.uniform(-1, 1, (*case.series, *case.shape)) * 1e3).astype(np.float32)
    if case.dtype != "float32":
        info, most = np.iinfo(case.dtype), 4 if case.interpolation == "mode" else 2**40
        voxels = rng.integers(max(info.min, -most), min(info.max, most), voxels.shape, case.dtype, endpoint=True)
    scaled = scale_array(
        da.from_array(voxels, chunks=case.cuts),
        case.factor,
        axes="tczyx"[2 - len(case.series) :] if case.series else None,
        engine="exact",
        interpolation=case.interpolation,
        antialias=case.antialias,
        boundary=case.boundary,
        chunks=case.chunks,
    )
    whole = Box.whole(VoxelGrid(case.shape).scaled(case.factor).shape)
    assert scaled.chunks == (
        *((1,) * n for n in case.series),
        *da.core.normalize_chunks(case.chunks, whole.shape),
    )
    found = scaled.compute(scheduler="synchronous")
    assert (found.shape, found.dtype) == ((*case.series, *whole.shape), voxels.dtype)
    for place in np.ndindex(*case.series):
        how = (read_from(voxels[place]), case.shape, case.factor, whole, case.interpolation, case.boundary)
        if case.interpolation in ("nearest", "mode"):
            np.testing.assert_array_equal(found[place], reference_labels(*how))
            continue
        real, largest = reference(*how, antialias=case.antialias), np.abs(voxels[place].astype(np.float64)).max()
        if case.dtype == "float32":
            np.testing.assert_allclose(found[place], real, rtol=0, atol=FLOAT_ERROR * largest)
            continue
        # Integers are the rounded reference, but where that lies half-way between two.
        off = found[place] != as_dtype(real, voxels.dtype)
        assert (np.abs(real[off] - np.floor(real[off]) - 0.5) <= TIE[case.dtype] * largest).all()
        assert (np.abs(found[place][off] - real[off]) <= 0.5 + TIE[case.dtype] * largest).all()


@settings(max_examples=examples(12))  # each builds kernels
@given(st.integers(0, 2**32))
def test_no_shape_is_refused_and_all_equal_the_oracle(seed: int) -> None:
    """Whatever the shape, the chunks on both sides, the factors, the kernel and the further axes."""
    check_against_oracle(random_case(seed))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_of_many_shapes_none_is_refused_and_all_equal_the_oracle(part: int) -> None:
    """The same ones each time."""
    for seed in range(part, SHAPES, 4):
        check_against_oracle(random_case(seed))


RAGGED: list[tuple[tuple[int, ...], object, tuple[float, ...], tuple[int, ...] | None]] = [
    ((12, 30, 40), 11, (6.0, 1.0, 5.0), (2, 16, 16)),  # chunks of no input voxel
    ((12, 30, 40), 11, (6.0, 1.0, 5.0), (24, 30, 1)),
    ((33, 20, 20), 8, (1.0, 1.0, 1.0), (32, 8, 8)),  # a last chunk of one plane
    ((33, 20, 20), (1, 20, 20), (2.0, 1.0, 1.0), (64, 16, 16)),  # single planes
    ((20, 21, 22), ((1, 1, 17, 1), (21,), (2, 20)), (0.3, 1.7, 1.0), (2, 8, 16)),  # ragged input
    ((20, 21, 22), 5, (0.1, 0.1, 0.5), (1, 1, 4)),  # a halo of several chunks
]
"""Shapes, input chunks, factors and output chunks that are hard to cut."""


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("shape", "given", "factor", "chunks"), RAGGED)
@pytest.mark.parametrize("interpolation", ["nearest", "lanczos3"])
def test_chunks_thinner_than_their_halo_are_read_from_further_chunks(
    shape: tuple[int, ...], given: Any, factor: tuple[float, ...], chunks: tuple[int, ...], interpolation: str
) -> None:
    """The result is the one of a single chunk all the same."""
    volume = np.random.default_rng(1).integers(0, 65536, shape, np.uint16)
    options = {"interpolation": interpolation, "antialias": interpolation == "lanczos3", "engine": "exact"}
    scaled = scale_array(da.from_array(volume, chunks=given), factor, chunks=chunks, **options)
    whole = scale_array(da.from_array(volume), factor, chunks=(999, 999, 999), **options)
    assert scaled.chunks == da.core.normalize_chunks(chunks, scaled.shape)
    np.testing.assert_array_equal(scaled.compute(scheduler="threads"), whole.compute(scheduler="synchronous"))


# ---- axes ----------------------------------------------------------------------------------------------------------

SERIES = np.random.default_rng(3).integers(0, 65536, (2, 3, 5, 6, 7)).astype(np.uint16)
"""t, c, z, y, x."""


@pytest.mark.parametrize("axes", ["tczyx", "ctzyx", "tzcyx", "zyxct", "TCZYX"])
def test_each_index_of_further_axes_is_scaled_by_itself(axes: str) -> None:
    """Wherever they are among z, y and x."""
    order = ["tczyx".index(axis) for axis in axes.lower()]
    array = da.from_array(SERIES.transpose(order), chunks=(2, 1, 2, 3, 2))
    scaled = scale_array(array, (2.0, 1.0, 0.5), axes=axes, engine="exact", chunks=(4, 4, 4))
    assert scaled.shape == tuple((2, 3, 10, 6, 4)[axis] for axis in order)
    found = scaled.compute(scheduler="synchronous").transpose(np.argsort(order))
    for t, c in np.ndindex(2, 3):
        alone = scale_array(SERIES[t, c], (2.0, 1.0, 0.5), engine="exact").compute(scheduler="synchronous")
        np.testing.assert_array_equal(found[t, c], alone)


def test_planes_stay_planes() -> None:
    """One, or several channels or time points of one; a single number is for the axes that there are."""
    plane = SERIES[0, 0, 0]
    as_volume = scale_array(plane[None], (1.0, 2.0, 3.0), engine="exact").compute()
    for scaled in (scale_array(plane, (1.0, 2.0, 3.0), engine="exact"), scale_array(plane, (1, 2, 3), axes="yx")):
        np.testing.assert_array_equal(scaled.compute(), as_volume[0])
    assert scale_array(plane, 2).shape == (12, 14)
    channels = scale_array(SERIES[0, :, 0], (1.0, 2.0, 3.0), axes="cyx", engine="exact")
    np.testing.assert_array_equal(channels[0].compute(), as_volume[0])
    assert channels.shape == (3, 12, 21)
    with pytest.raises(OptionError, match="has no axis z, so its factor along z must be 1, not 2; if it has planes"):
        scale_array(SERIES[0, :, 0], (2, 1, 1), axes="cyx")


def test_the_bits_are_those_of_a_job(tmp_path: Path) -> None:
    """Of engine exact, however both are cut."""
    lazy = scale_array(da.from_array(SERIES, chunks=2), (2.3, 1.0, 0.7), axes="tczyx", engine="exact", chunks=(3, 4, 5))
    path = isovoxel.scale(SERIES, tmp_path / "a.zarr", factor=(2.3, 1.0, 0.7), axes="tczyx", engine="exact").path
    np.testing.assert_array_equal(lazy.compute(), zarr.open_array(Path(path) / "0", mode="r")[:])


def test_labels_of_64_bits_are_moved() -> None:
    labels = SERIES.astype(np.uint64) + 2**60
    scaled = scale_array(da.from_array(labels, chunks=3), (3, 1, 1), axes="tczyx", labels=True)
    np.testing.assert_array_equal(scaled.compute(), labels.repeat(3, 2))


@pytest.mark.parametrize(
    ("array", "options", "why"),
    [
        (SERIES, {}, "the array is 5-D; name its axes, such as axes='tczyx'"),
        (SERIES[0, 0, 0, 0], {}, "the array is 1-D"),
        (SERIES, {"axes": "czyx"}, r"the array has 5 axes .* but --axes czyx names 4"),
        (SERIES, {"axes": "tczyq"}, "axes must name each axis"),
        (SERIES, {"axes": "tcxyz"}, r"t, c, x, y, z; give it transposed: array\.transpose\(0, 1, 4, 3, 2\)"),
        (SERIES[:0], {"axes": "tczyx"}, r"the array is empty: its shape is \(0, 3, 5, 6, 7\)"),
        (da.from_array(SERIES[0, 0])[da.from_array(SERIES[0, 0, :, 0, 0]) > 0], {}, "chunks of unknown size"),
        (SERIES[0, 0], {"chunks": (0, 4, 4)}, r"chunks must be three whole numbers above 0, z, y, x, not \(0, 4, 4\)"),
        (SERIES[0, 0], {"chunks": (4, 4)}, "chunks must be three whole numbers"),
        (SERIES[0, 0], {"chunks": (2.5, 4, 4)}, "chunks must be three whole numbers"),
    ],
)
def test_what_is_no_volume_is_refused_with_the_remedy(array: Any, options: dict[str, Any], why: str) -> None:
    """When the lazy array is made."""
    with pytest.raises(IsovoxelError, match=why):
        scale_array(array, 2, **options)


# ---- onto other voxels ---------------------------------------------------------------------------------------------


def test_onto_other_voxels_the_bits_are_those_of_a_job(tmp_path: Path) -> None:
    """For each time and channel, with a boundary outside of the array, and any chunks."""
    like = VoxelGrid((7, 5, 9), (0.7, 1.5, 1.1), (-1.0, 2.0, -0.5), "micrometer")
    options: dict[str, Any] = {"like": like, "axes": "tczyx", "unit": "micrometer", "boundary": "constant"}
    lazy = scale_array(
        da.from_array(SERIES, chunks=2), voxel_size=(1.0, 0.5, 1.25), chunks=(3, 4, 5), engine="exact", **options
    )
    made = isovoxel.scale(SERIES, tmp_path / "a.zarr", input_voxel_size=(1.0, 0.5, 1.25), engine="exact", **options)
    np.testing.assert_array_equal(lazy.compute(), zarr.open_array(Path(made.path) / "0", mode="r")[:])


def test_labels_go_up_and_come_back_with_their_coordinates() -> None:
    """By a DataArray whose coordinates say where both lie; a slice of them is a grid too."""
    places = {"z": 2.0 * np.arange(5) - 1, "y": 0.5 * np.arange(6) + 3, "x": 0.5 * np.arange(7)}
    labels = xarray.DataArray(da.from_array(SERIES[:, 0].astype(np.uint64) + 2**60), dims=("t", *"zyx"), coords=places)
    up = scale_array(labels, (4, 1, 1), labels=True)
    for like in (labels[0], labels[0, 1:4, :, 2:]):
        back = scale_array(up, like=like, labels=True)
        expected = labels.sel({dim: like[dim] for dim in "zyx"})
        np.testing.assert_array_equal(back.values, expected.values)
        for dim in "zyx":
            np.testing.assert_allclose(back[dim], like[dim], rtol=0, atol=1e-9)
    other = up.rename(z="plane", y="row", x="column")
    np.testing.assert_array_equal(scale_array(other, like=labels[0], axes="tzyx", labels=True).values, labels.values)


def test_a_plane_goes_onto_a_plane() -> None:
    """Where both have no axis z."""
    plane = SERIES[0, 0, 0]
    like = VoxelGrid((1, 3, 14), (1.0, 2.0, 0.5))
    whole = scale_array(plane[None], like=like, voxel_size=(1.0, 1.0, 1.0), interpolation="area")
    flat = scale_array(plane, like=like, voxel_size=(1.0, 1.0, 1.0), interpolation="area")
    np.testing.assert_array_equal(flat.compute(), whole.compute()[0])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "give either a factor, or like"),
        ({"factor": 2, "like": SERIES[0, 0]}, "give either a factor, or like"),
        ({"factor": 2, "voxel_size": (1, 1, 1)}, "say where an array lies, for like; with a factor leave them out"),
        ({"factor": 2, "unit": "um"}, "with a factor leave them out"),
        ({"like": VoxelGrid((4, 4, 4), unit="micrometer")}, "voxel size of the array is not known"),
        ({"like": VoxelGrid((4, 4, 4), origin=(0, 99, 0)), "voxel_size": (1, 1, 1)}, "share no voxel: along y"),
        ({"like": SERIES[0, 0], "voxel_size": (1, 1, 1), "engine": "cle"}, "engine cle cannot scale onto the voxels"),
        ({"like": SERIES[0, 0], "voxel_size": (1, 0, 1)}, "voxel size"),
        ({"like": "missing.tif"}, "missing.tif"),
    ],
    ids=str,
)
def test_what_cannot_be_put_onto_other_voxels_is_refused(options: dict[str, Any], why: str) -> None:
    """When the lazy array is made."""
    with pytest.raises(IsovoxelError, match=why):
        scale_array(SERIES[0, 0], **options)


def test_a_plane_is_not_put_onto_many() -> None:
    """Which plane of them it is, nothing says."""
    with pytest.raises(OptionError, match="the array has no axis z, but the volume that like names has 5 planes"):
        scale_array(SERIES[0, 0, 0], like=SERIES[0, 0], voxel_size=(1, 1, 1))


# ---- the graph -----------------------------------------------------------------------------------------------------


class Watched:
    """A dask array of ones that counts which of its chunks are computed."""

    def __init__(self, chunks: tuple[tuple[int, ...], ...]) -> None:
        self.seen: list[tuple[int, ...]] = []

        def make(block_info: dict[Any, Any]) -> NDArray[np.uint8]:
            self.seen.append(tuple(block_info[None]["chunk-location"]))
            return np.ones(block_info[None]["chunk-shape"], np.uint8)

        self.array = da.map_blocks(make, chunks=chunks, dtype=np.uint8, meta=np.empty((0,) * len(chunks), np.uint8))


@settings(max_examples=examples(15))
@given(st.integers(0, 2**32))
def test_a_slice_computes_the_chunks_that_it_needs_and_no_other(seed: int) -> None:
    """Those that hold a sample which a chunk of the result takes anything from; each once."""
    rng = np.random.default_rng(seed)
    lengths, factor = [int(n) for n in rng.integers(1, 9, 3)], float(rng.choice([0.3, 1.0, 1.7, 4.0]))
    cuts = ((1, 1), *(cuts_of(rng, n) for n in lengths))
    watched = Watched(cuts)
    side = int(rng.integers(2, 7))
    scaled = scale_array(watched.array, factor, axes="czyx", engine="exact", chunks=(side,) * 3)
    assert watched.seen == []
    place = tuple(int(rng.integers(0, n)) for n in scaled.shape)
    assert scaled[place].compute(scheduler="synchronous") == 1
    numbers = [[place[0]]]
    for o, n, m, sizes in zip(place[1:], lengths, scaled.shape[1:], cuts[1:], strict=True):
        outputs = np.arange(o // side * side, min(m, o // side * side + side))
        # Two samples around each position, at the rim the outer two; without a factor the one that it lies on.
        below = np.clip(np.floor((outputs + 0.5) / factor - 0.5), 0, max(0, n - 2)) if factor != 1 else outputs
        samples = range(int(below.min()), min(n, int(below.max()) + (2 if factor != 1 else 1)))
        numbers.append(sorted({int(np.searchsorted(np.cumsum(sizes), sample, "right")) for sample in samples}))
    assert sorted(watched.seen) == list(itertools.product(*numbers))


def test_a_chunk_is_a_task_and_a_few_hundred_bytes() -> None:
    """Of one that reads 27 chunks, too: nothing else is added to the array's own graph."""
    array = da.zeros((100, 100, 100), chunks=10, dtype=np.uint16)
    scaled = scale_array(array, (1.01,) * 3, engine="exact", chunks=(10, 10, 10))
    layers = scaled.dask.layers
    assert set(layers) == {scaled.name, array.name}
    assert len(layers[scaled.name]) == scaled.npartitions == 11**3
    assert len(pickle.dumps(dict(layers[scaled.name]))) < 300 * scaled.npartitions


def test_it_persists_and_maps() -> None:
    """As any dask array: what is persisted is not computed again."""
    watched = Watched(((3, 3), (4, 4), (5,)))
    scaled = scale_array(watched.array, (2, 1, 1), engine="exact", chunks=(4, 4, 4))
    with dask.config.set(scheduler="synchronous"):
        kept = scaled.persist()
        assert len(watched.seen) == 4
        doubled = kept.map_blocks(lambda block: 2 * block, dtype=np.uint8)
        assert int(doubled.sum().compute()) == 2 * 12 * 8 * 5
        assert int(scaled.rechunk(3)[::2].max().compute()) == 1
    assert len(watched.seen) == 8


def test_voxels_of_either_byte_order_become_native() -> None:
    """As a job's do."""
    scaled = scale_array(da.from_array(VOLUME.astype(">u2"), chunks=10), 1, engine="exact")
    assert scaled.dtype.isnative
    found = scaled.compute()
    assert found.dtype == scaled.dtype
    np.testing.assert_array_equal(found, VOLUME)


@pytest.mark.parametrize(("dtype", "becomes"), [("float64", "float32"), ("float16", "float32"), ("bool", "uint8")])
def test_voxels_of_other_types_become_what_a_job_makes_of_them(dtype: str, becomes: str) -> None:
    """Those that do not fit are refused when they are computed."""
    voxels = (SERIES % 2).astype(dtype)
    scaled = scale_array(da.from_array(voxels, chunks=2), (1, 2, 1), axes="tczyx", engine="exact")
    assert scaled.dtype == becomes
    np.testing.assert_array_equal(
        scaled.compute(), scale_array(voxels.astype(becomes), (1, 2, 1), axes="tczyx", engine="exact").compute()
    )


def test_a_number_that_float32_does_not_hold_is_refused() -> None:
    """When its chunk is computed."""
    scaled = scale_array(da.full((2, 3, 4), 1e300, chunks=2), 2, engine="exact")
    with pytest.raises(InputError, match="float32"):
        scaled.compute(scheduler="synchronous")


# ---- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "factor", "error"),
    [
        (VOLUME, 0.0, OptionError),
        (VOLUME, (1.0, -2.0, 1.0), OptionError),
        (VOLUME.astype("complex64"), 2.0, InputError),
        (VOLUME[:0], 2.0, InputError),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_built(array: np.ndarray, factor: object, error: type) -> None:
    """Not when it is computed, hours later on another machine."""
    with pytest.raises(error):
        scale_array(da.from_array(array), factor)


def test_what_is_free_at_the_moment_does_not_change_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal calls make arrays of one name even if memory was taken or given back between them; others another's."""
    array, names = da.from_array(VOLUME, chunks=20, name="same"), []
    for free, factor in ((2**30, 2.0), (2**34, 2.0), (2**34, 3.0)):
        monkeypatch.setattr("isovoxel.execution.resources.available_bytes", lambda free=free: free)
        names.append(scale_array(array, factor, chunks=(24, 30, 40)).name)
    assert names[2] != names[0]
    assert names[0] == names[1]


@pytest.mark.parametrize("known", [True, False])
def test_a_masked_array_is_refused(tmp_path: Path, *, known: bool) -> None:
    """Its hidden voxels are no voxels; where dask does not know that its chunks are masked, computing them says so."""
    hidden = np.ma.masked_greater(VOLUME, 60_000)
    array = da.from_array(hidden, chunks=8)
    if not known:
        array = da.from_array(VOLUME, chunks=8).map_blocks(lambda part: np.ma.masked_greater(part, 60_000))
        array._meta = np.empty((0, 0, 0), VOLUME.dtype)
    with pytest.raises(InputError, match=r"masked, which a volume cannot be; give dask\.array\.ma\.filled"):
        scale_array(array, 2.0, engine="exact").compute(scheduler="synchronous")
    with pytest.raises(IsovoxelError, match=r"masked, which a volume cannot be; give dask\.array\.ma\.filled"):
        isovoxel.scale(array, tmp_path / "out.zarr", factor=(2.0, 1.0, 1.0), engine="exact")
    assert scale_array(da.ma.filled(array, 0), 2.0, engine="exact").compute().max() <= 60_000
