"""Results as arrays: `open` and `to_xarray` return what was written, where it lies, and read no more than is asked."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import isovoxel
from isovoxel.errors import InputMissingError, OptionError
from isovoxel.execution.result import ScaleResult
from isovoxel.geometry.grid import Box
from isovoxel.readers.arrays import BoxArray, as_dask

VOXELS = np.random.default_rng(0).integers(0, 60_000, (6, 20, 24)).astype(np.uint16)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ScaleResult:
    """A stack of two levels below the finest, in several chunks and shards."""
    source = isovoxel.open_volume(VOXELS, voxel_size=(2.0, 0.5, 0.25), unit="um")
    output = tmp_path_factory.mktemp("result") / "nuclei.ome.zarr"
    how: dict[str, Any] = {"chunk": (8, 8, 8), "shard": (16, 16, 8), "levels": 2, "engine": "exact"}
    return isovoxel.scale(source, output, factor=(3, 1, 1.5), **how)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> ScaleResult:
    """A series of three time points and two channels that have names."""
    tifffile = pytest.importorskip("tifffile")
    folder = tmp_path_factory.mktemp("series")
    voxels = np.random.default_rng(1).integers(0, 255, (3, 2, 4, 9, 10)).astype(np.uint8)
    metadata = {
        "axes": "TCZYX",
        "PhysicalSizeZ": 2.0,
        "PhysicalSizeY": 1.0,
        "PhysicalSizeX": 1.0,
        "TimeIncrement": 5.0,
        "TimeIncrementUnit": "s",
        "Channel": {"Name": ["DAPI", "GFP"]},
    }
    tifffile.imwrite(folder / "in.ome.tif", voxels, metadata=metadata)
    return isovoxel.scale(folder / "in.ome.tif", folder / "out.zarr", factor=(2, 1, 1), engine="exact", levels=1)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_open_returns_the_voxels_of_a_level(result: ScaleResult, level: int) -> None:
    """As zarr-python reads them; lazily, in whole chunks of the storage."""
    stored = zarr.open_array(Path(result.path) / str(level), mode="r")
    with dask.config.set({"array.chunk-size": "4kB"}):
        array = result.open(level=level)
    assert isinstance(array, da.Array)
    assert (array.shape, array.dtype) == (stored.shape, stored.dtype)
    assert level > 1 or array.npartitions > 1
    for sizes, chunk in zip(array.chunks, stored.chunks, strict=True):
        assert all(size % chunk == 0 for size in sizes[:-1])
    np.testing.assert_array_equal(array.compute(), stored[:])


def test_open_reads_no_more_than_is_computed(result: ScaleResult, tmp_path: Path) -> None:
    """A damaged shard ends nothing that does not lie in it, and is named where it does."""
    output = tmp_path / "out.zarr"
    shutil.copytree(result.path, output)
    moved = ScaleResult(output, result.plan, 0.0, {}, 0, result.tally)
    (output / "0" / "c" / "0" / "0" / "0").write_bytes(b"no shard")
    array = moved.open()
    expected = result.open()[:, -1, 16:].compute()
    np.testing.assert_array_equal(array[:, -1, 16:].compute(), expected)
    with pytest.raises(isovoxel.errors.InputError, match=r"out\.zarr"):
        array.compute()


def test_coordinates_are_positions_in_the_unit(result: ScaleResult) -> None:
    """Of every level, in one world; opened again, the DataArray is a volume that lies there."""
    for level, plan in enumerate(result.plan.levels):
        image = result.to_xarray(level=level)
        grid = plan.output
        assert (image.dims, image.name, image.shape) == (("z", "y", "x"), "nuclei", grid.shape)
        assert isinstance(image.data, da.Array)
        for dim, n, size, origin in zip("zyx", grid.shape, grid.voxel_size, grid.origin, strict=True):
            np.testing.assert_allclose(image[dim], origin + size * np.arange(n), rtol=0, atol=1e-9)
            assert image[dim].attrs == {"units": "micrometer"}
        again = isovoxel.open_volume(image)
        assert again.unit == "micrometer"
        np.testing.assert_allclose(again.voxel_size, grid.voxel_size)
        np.testing.assert_allclose(again.origin, grid.origin, atol=1e-9)
    np.testing.assert_array_equal(result.to_xarray().values, result.open().compute())


def test_a_series_has_times_and_names(series: ScaleResult) -> None:
    """All its volumes, each at its place."""
    image = series.to_xarray()
    stored = zarr.open_array(Path(series.path) / "0", mode="r")
    assert (image.dims, image.shape) == (("t", "c", "z", "y", "x"), (3, 2, 8, 9, 10))
    np.testing.assert_array_equal(image.values, stored[:])
    assert list(image["c"].values) == ["DAPI", "GFP"]
    assert list(image["t"].values) == [0.0, 5.0, 10.0]
    assert image["t"].attrs == {"units": "second"}
    np.testing.assert_array_equal(image.sel(t=5, c="GFP").isel(z=3).values, stored[1, 1, 3])
    np.testing.assert_array_equal(series.open(level=1).compute(), zarr.open_array(Path(series.path) / "1")[:])


def test_positions_of_unknown_length_count_the_inputs_voxels(tmp_path: Path) -> None:
    """And have no unit."""
    made = isovoxel.scale(VOXELS, tmp_path / "out.zarr", factor=(2, 1, 1), engine="exact", levels=0)
    image = made.to_xarray()
    np.testing.assert_allclose(image["z"], -0.25 + 0.5 * np.arange(12))
    np.testing.assert_allclose(image["x"], np.arange(24))
    assert all("units" not in image[dim].attrs for dim in "zyx")


def test_labels_open_likewise(tmp_path: Path) -> None:
    """The result of the labels that were scaled with an image."""
    labels = np.arange(VOXELS.size, dtype=np.uint32).reshape(VOXELS.shape) // 100
    made = isovoxel.scale(VOXELS, tmp_path / "out.zarr", factor=(2, 1, 1), with_labels=labels, levels=0)
    assert made.labels is not None
    np.testing.assert_array_equal(made.labels.open().compute(), np.repeat(labels, 2, axis=0))
    assert made.labels.to_xarray().name == "labels"


def test_what_is_not_there_is_an_error(result: ScaleResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A level that the output has not, an output that has gone, and a library that is not installed."""
    with pytest.raises(OptionError, match="level"):
        result.open(level=3)
    with pytest.raises(OptionError, match="level"):
        result.to_xarray(level=-1)
    with pytest.raises(InputMissingError):
        ScaleResult(tmp_path / "none.zarr", result.plan, 0.0, {}, 0, result.tally).open()
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match="pip install xarray"):
        result.to_xarray()


def test_another_process_can_compute_it(result: ScaleResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The array travels, though the output was named by a path of this process' working folder."""
    monkeypatch.chdir(Path(result.path).parent)
    there = ScaleResult(Path(Path(result.path).name), result.plan, 0.0, {}, 0, result.tally)
    sent = pickle.dumps(there.open())
    monkeypatch.chdir(tmp_path)
    arrived = pickle.loads(sent)  # noqa: S301 - our own
    np.testing.assert_array_equal(arrived.compute(), result.open().compute())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_index_gives_what_numpy_gives(data: st.DataObject) -> None:
    """Numbers and slices of any step, also backwards and empty, along the axes of a series too."""
    shape = (3, 2, 5, 6, 7)
    numbers = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)

    def read(box: Box, out: Any = None) -> Any:
        out = np.empty(box.shape, numbers.dtype) if out is None else out
        out[...] = numbers.reshape(-1, *shape[2:])[box.volume][box.of(0).slices]
        return out

    stored = BoxArray(read, shape, numbers.dtype)
    index = tuple(data.draw(st.integers(-n, n - 1) | st.slices(n)) for n in shape[: data.draw(st.integers(1, 5))])
    np.testing.assert_array_equal(stored[index], numbers[index])
    np.testing.assert_array_equal(stored[:, :, [4, 0, 1]], numbers[:, :, [4, 0, 1]])


def test_a_volume_of_one_plane_is_lazy_too(tmp_path: Path) -> None:
    """Its chunks may be larger than it is."""
    np.save(tmp_path / "plane.npy", VOXELS[:1])
    np.testing.assert_array_equal(as_dask(isovoxel.open_volume(tmp_path / "plane.npy")).compute(), VOXELS[:1])
