"""Any input becomes an OME-Zarr with the same voxels."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr

import isovoxel
from command_line import Isovoxel, check_refused
from isovoxel.errors import OptionError
from isovoxel.readers.base import SUPPORTED_DTYPES

SHAPE = (13, 47, 61)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_every_bit_is_kept(dtype: np.dtype, tmp_path: Path) -> None:
    """Of every type, NaN among them, and without saying that 64-bit integers are labels."""
    data = np.random.default_rng(1).integers(0, 256, (*SHAPE, dtype.itemsize), np.uint8).view(dtype)[..., 0]
    np.save(tmp_path / "a.npy", data)
    result = isovoxel.convert(tmp_path / "a.npy", tmp_path / "a.zarr", chunk=(8, 16, 16), shard=(8, 32, 32))
    assert result.plan.n_blocks >= 1
    written = zarr.open_array(result.path / "0", mode="r")[:]
    assert written.dtype == dtype
    assert written.tobytes() == data.tobytes()
    assert isovoxel.verify(result.path, samples=50).holds


def test_size_place_and_unit_are_kept(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """From the command line, of a file that knows them; and what it does not know can be given."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("a", data=np.ones(SHAPE, "uint8"))
        dataset.attrs.update({"resolution": (40, 4, 4), "offset": (80, 8, 4), "units": "nm"})
    assert isovoxel("convert", tmp_path / "a.h5", tmp_path / "a.zarr", "--quiet").code == 0
    info = isovoxel("info", tmp_path / "a.zarr", "--json").json
    assert (info["shape"], info["voxel_size"], info["origin"]) == (list(SHAPE), [40, 4, 4], [80, 8, 4])
    assert info["unit"] == "nanometer"
    words = ("--input-voxel-size", "2,1,1", "--unit", "um", "--overwrite", "--json")
    record = isovoxel("convert", tmp_path / "a.h5", tmp_path / "a.zarr", *words).json
    assert record["output"]["voxel_size"] == [2, 1, 1]
    assert record["factors"] == [1, 1, 1]


def test_a_conversion_that_is_complete_is_not_done_again(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """It is a job like any other."""
    tifffile.imwrite(tmp_path / "a.tif", np.ones(SHAPE, "uint8"), photometric="minisblack")
    assert isovoxel("convert", tmp_path / "a.tif", tmp_path / "a.zarr").code == 0
    assert "nothing was done" in isovoxel("convert", tmp_path / "a.tif", tmp_path / "a.zarr").out


def test_labels_stay_labels(tmp_path: Path) -> None:
    isovoxel.convert(np.ones(SHAPE, "uint32"), tmp_path / "a.zarr", labels=True)
    assert isovoxel.open_volume(tmp_path / "a.zarr").labels


def test_options_for_scaling_are_refused(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """None of them is taken and forgotten."""
    from isovoxel import convert

    for options in ({"zoom": 2}, {"factor": (2, 1, 1)}, {"interpolation": "cubic"}, {"engine": "cle"}):
        with pytest.raises(OptionError, match="converting keeps every voxel as it is"):
            convert(np.ones(SHAPE, "uint8"), tmp_path / "a.zarr", **options)
    assert not (tmp_path / "a.zarr").exists()
    tifffile.imwrite(tmp_path / "a.tif", np.ones(SHAPE, "uint8"), photometric="minisblack")
    check_refused(isovoxel("convert", tmp_path / "a.tif", tmp_path / "a.zarr", "--zoom", "2"), "No such option")


@pytest.mark.slow
def test_workers_convert_too(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """The bits are those of one process, and who made how many blocks is said."""
    data = np.random.default_rng(2).integers(-(2**62), 2**62, (32, 64, 64))
    np.save(tmp_path / "a.npy", data)
    words = ("--input-voxel-size", "1,1,1", "--chunk", "16,16,16", "--shard", "16,16,16", "--threads", "2")
    words += ("--device-memory", "100kB")
    record = isovoxel("convert", tmp_path / "a.npy", tmp_path / "a.zarr", *words, "--workers", "cpu:2", "--json").json
    assert sum(share["blocks"] for share in record["workers"].values()) == record["blocks"]["count"] > 1
    assert len(record["workers"]) == 2
    written = zarr.open_array(tmp_path / "a.zarr" / "0", mode="r")[:]
    assert (written.dtype, written.tobytes()) == (data.dtype, data.tobytes())
    refused = isovoxel("convert", tmp_path / "a.npy", tmp_path / "b.zarr", "--scheduler", "nowhere")
    check_refused(refused, "there is no file 'nowhere'")
    assert not list(tmp_path.glob("b*"))
