"""Types that isovoxel does not scale, from every kind of input: read as the type that holds them, with a note."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import xarray
import zarr
from numpy.typing import NDArray

import isovoxel
from inputs import write_n5
from isovoxel.errors import InputError
from isovoxel.geometry.grid import Box
from isovoxel.readers import base
from isovoxel.readers.open import open_volume
from peaks import least_peak

SHAPE = (7, 40, 52)
WAVE = np.random.default_rng(3).normal(size=SHAPE)
DATA: dict[str, NDArray[Any]] = {"float64": WAVE, "float16": WAVE.astype(np.float16), "bool": WAVE > 0}
READ_AS = {"float64": "float32", "float16": "float32", "bool": "uint8"}


def npy(path: Path, data: NDArray[Any]) -> Any:
    np.save(path / "a.npy", data)
    return path / "a.npy"


def npy_big_endian(path: Path, data: NDArray[Any]) -> Any:
    return npy(path, data.astype(data.dtype.newbyteorder(">")))


def tiff(path: Path, data: NDArray[Any]) -> Any:
    tifffile.imwrite(path / "a.tif", data, photometric="minisblack")
    return path / "a.tif"


def tiff_zlib(path: Path, data: NDArray[Any]) -> Any:
    tifffile.imwrite(path / "a.tif", data, photometric="minisblack", compression="zlib", rowsperstrip=16)
    return path / "a.tif"


def slices(path: Path, data: NDArray[Any]) -> Any:
    for z, plane in enumerate(data):
        tifffile.imwrite(path / f"p{z}.tif", plane, photometric="minisblack")
    return path


def zarr_v2(path: Path, data: NDArray[Any]) -> Any:
    zarr.create_array(path / "a", data=data, chunks=(3, 16, 20), zarr_format=2)
    return path / "a"


def zarr_v3(path: Path, data: NDArray[Any]) -> Any:
    zarr.create_array(path / "a", data=data, chunks=(2, 16, 26), shards=(4, 32, 52))
    return path / "a"


def zarr_opened(path: Path, data: NDArray[Any]) -> Any:
    return zarr.open_array(zarr_v3(path, data), mode="r")


def hdf5(path: Path, data: NDArray[Any]) -> Any:
    with h5py.File(path / "a.h5", "w") as file:
        file["v"] = data
    return path / "a.h5"


def hdf5_gzip(path: Path, data: NDArray[Any]) -> Any:
    with h5py.File(path / "a.h5", "w") as file:
        file.create_dataset("v", data=data, chunks=(3, 16, 20), compression="gzip", shuffle=True)
    return path / "a.h5"


def numpy(_: Path, data: NDArray[Any]) -> Any:
    return data


def dask_uneven(_: Path, data: NDArray[Any]) -> Any:
    return dask.array.from_array(data, chunks=((3, 4), (7, 30, 3), (52,)))


def data_array(_: Path, data: NDArray[Any]) -> Any:
    return xarray.DataArray(data, dims=["z", "y", "x"])


KINDS: list[Callable[[Path, NDArray[Any]], Any]] = [
    npy, npy_big_endian, tiff, tiff_zlib, slices, zarr_v2, zarr_v3, zarr_opened, hdf5, hdf5_gzip, numpy, dask_uneven,
    data_array,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DATA)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_is_read_as_a_type_that_is_scaled(
    kind: Callable[[Path, NDArray[Any]], Any], dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, in part, and across the borders of parts: NumPy's own conversion, and a note."""
    monkeypatch.setattr(base, "PART_BYTES", 1000)
    data = DATA[dtype]
    volume = open_volume(kind(tmp_path, data))
    assert (volume.dtype, volume.shape) == (np.dtype(READ_AS[dtype]), SHAPE)
    assert [note for note in volume.notes if note.startswith(f"its {dtype} is read as {READ_AS[dtype]}")]
    expected = data.astype(READ_AS[dtype])
    for box in (Box.whole(SHAPE), Box((1, 3, 5), (6, 39, 50)), Box((2, 2, 2), (3, 3, 3))):
        np.testing.assert_array_equal(volume.read(box), expected[box.slices])
    if volume.cached is not None:
        np.testing.assert_array_equal(volume.cached(1 << 20)(Box.whole(SHAPE)), expected)


def test_nifti_and_n5_in_double_precision(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(WAVE.T, np.eye(4)), tmp_path / "a.nii")
    write_n5(tmp_path / "a.n5", WAVE, (3, 16, 20), "raw")
    for name in ("a.nii", "a.n5"):
        volume = open_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.read(Box.whole(SHAPE)), WAVE.astype("f4"))


def test_another_process_reads_the_same(tmp_path: Path) -> None:
    reader = pickle.loads(pickle.dumps(open_volume(npy(tmp_path, WAVE)).read))  # noqa: S301
    np.testing.assert_array_equal(reader(Box.whole(SHAPE)), WAVE.astype("f4"))


def test_what_lies_between_borders_is_held_once(tmp_path: Path) -> None:
    """Beside the result, a read holds what it says it does, however large the box."""
    data = np.zeros((40, 400, 500))
    volume = open_volume(npy(tmp_path, data))
    found, peak = least_peak(
        lambda: volume.read(Box.whole(volume.shape)), lambda found: found.nbytes + volume.read_overhead
    )
    assert peak <= found.nbytes + volume.read_overhead + (1 << 16)
    assert volume.read_overhead < 3 << 20


def test_no_chunk_is_decoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts end where chunks end, in a crop too."""
    monkeypatch.setattr(base, "PART_BYTES", 16 * 20 * 3 * 8)
    volume = open_volume(zarr_v2(tmp_path, WAVE))
    volume.read(Box.whole(SHAPE))
    assert volume.read.read.decoded == 3 * 3 * 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [npy, dask_uneven], ids=lambda kind: kind.__name__)
def test_numbers_beyond_float32_are_refused(kind: Callable[[Path, NDArray[Any]], Any], tmp_path: Path) -> None:
    """They would become infinite; infinity itself, and NaN, stay."""
    data = WAVE.copy()
    data[5, 2, 3], data[0, 0, 0], data[0, 0, 1] = 1e39, np.inf, np.nan
    volume = open_volume(kind(tmp_path, data))
    first = volume.read(Box((0, 0, 0), (1, 1, 2)))
    assert np.isinf(first[0, 0, 0])
    assert np.isnan(first[0, 0, 1])
    with pytest.raises(InputError, match=r"holds a float64 value beyond 3\.4e38"):
        volume.read(Box.whole(SHAPE))


def test_any_byte_but_zero_is_true(tmp_path: Path) -> None:
    """Some programs write 255."""
    data = np.full(SHAPE, 255, np.uint8).view(np.bool_)
    np.testing.assert_array_equal(open_volume(npy(tmp_path, data)).read(Box.whole(SHAPE)), 1)


@pytest.mark.parametrize("labels", [False, True])
def test_a_mask_is_scaled(labels: bool, tmp_path: Path) -> None:
    """As an image and as labels: 0 and 1 in uint8."""
    isovoxel.scale(tiff(tmp_path, DATA["bool"]), tmp_path / "out.zarr", factor=(2, 1, 1), labels=labels)
    found = zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")[...]
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 1}
    if labels:
        np.testing.assert_array_equal(found, np.repeat(DATA["bool"], 2, 0))


def test_double_precision_is_scaled_as_its_float32(tmp_path: Path) -> None:
    """The same bits as of an array that was converted before; and verify agrees."""
    for name, data in (("a", WAVE), ("b", WAVE.astype("f4"))):
        np.save(tmp_path / f"{name}.npy", data)
        isovoxel.scale(tmp_path / f"{name}.npy", tmp_path / f"{name}.zarr", factor=(2.5, 1, 1))
    a, b = (zarr.open_array(tmp_path / f"{name}.zarr" / "0", mode="r")[...] for name in "ab")
    np.testing.assert_array_equal(a, b)
    assert isovoxel.verify(tmp_path / "a.zarr", samples=50).holds


def test_a_lazy_array_in_double_precision_is_scaled() -> None:
    found = isovoxel.scale_array(dask.array.from_array(WAVE, chunks=20), (2, 1, 1))
    expected = isovoxel.scale_array(dask.array.from_array(WAVE.astype("f4"), chunks=20), (2, 1, 1))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.compute(), expected.compute())


def test_coarser_levels_are_converted_too(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    sets = []
    for level, data in enumerate((WAVE, WAVE[:, ::2, ::2])):
        group.create_array(str(level), data=data)
        step = 0.5 * 2**level
        sets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": [2.0, step, step]}]})
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": sets}]
    coarse = open_volume(tmp_path / "a.zarr").coarser[0]()
    assert coarse.dtype == np.float32
    np.testing.assert_array_equal(coarse.read(Box.whole(coarse.shape)), WAVE[:, ::2, ::2].astype("f4"))
