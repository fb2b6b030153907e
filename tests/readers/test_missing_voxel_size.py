"""A voxel size of 1 x 1 x 1 without a unit is none, in whichever kind of input; scaling it takes a factor or a size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr

import isovoxel
from inputs import write_n5
from isovoxel.errors import InputError
from isovoxel.geometry.grid import Box
from isovoxel.metadata.units import Length, calibrate
from isovoxel.readers.open import open_volume

VOXELS = np.random.default_rng(4).integers(0, 999, (6, 12, 16)).astype("uint16")

Make = Callable[[Path, Any, str | None], Path]
"""Writes `VOXELS` with a voxel size z, y, x, and a unit or none."""


def ome_zarr(path: Path, size: Any, unit: str | None, **more: Any) -> Path:
    """Write OME-Zarr 0.4 of two levels."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", data=VOXELS)
    group.create_array("1", data=VOXELS[:, ::2, ::2])
    scales = ([*size], [size[0], 2 * size[1], 2 * size[2]])
    levels = [
        {"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": s}, *more.get("then", [])]}
        for i, s in enumerate(scales)
    ]
    axes = [{"name": a, "type": "space"} | ({"unit": unit} if unit else {}) for a in "zyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    return path


def hdf5(path: Path, size: Any, unit: str | None) -> Path:
    with h5py.File(path, "w") as file:
        file["data"] = VOXELS
        file["data"].attrs["resolution"] = size
        if unit:
            file["data"].attrs["unit"] = unit
    return path


def n5(path: Path, size: Any, unit: str | None) -> Path:
    write_n5(path, VOXELS, (8, 8, 8), "raw")
    file = path / "attributes.json"
    more = {"resolution": [*size][::-1]} | ({"unit": unit} if unit else {})
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return path


def nifti(path: Path, size: Any, unit: str | None) -> Path:
    image = nibabel.Nifti1Image(VOXELS.T, np.diag([*size[::-1], 1.0]))
    image.header.set_xyzt_units("micron" if unit else "unknown")
    nibabel.save(image, path)
    return path


def imaris(path: Path, size: Any, unit: str | None) -> Path:
    def letters(text: str) -> np.ndarray:
        return np.array([c.encode() for c in text], "S1")

    with h5py.File(path, "w") as file:
        info = file.create_group("DataSetInfo/Image")
        info.attrs.update({"Unit": letters(unit)} if unit else {})
        for i, (n, length) in enumerate(zip(VOXELS.shape[::-1], size[::-1], strict=True)):
            info.attrs.update({f"ExtMin{i}": letters("0"), f"ExtMax{i}": letters(str(n * length))})
        file.create_dataset("DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data", data=VOXELS)
    return path


def imagej(path: Path, size: Any, unit: str | None) -> Path:
    metadata = {"spacing": size[0], "axes": "ZYX"} | ({"unit": unit} if unit else {})
    tifffile.imwrite(path, VOXELS, imagej=True, resolution=(1 / size[2], 1 / size[1]), metadata=metadata)
    return path


KINDS: dict[str, tuple[Make, str]] = {
    "OME-Zarr": (ome_zarr, "a.zarr"),
    "HDF5": (hdf5, "a.h5"),
    "N5": (n5, "a.n5"),
    "NIfTI": (nifti, "a.nii"),
    "Imaris": (imaris, "a.ims"),
    "ImageJ": (imagej, "a.tif"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_of_one_without_a_unit_is_none(kind: str, tmp_path: Path) -> None:
    """It is opened, and planned by a factor or with a size, and refused else."""
    make, name = KINDS[kind]
    path = make(tmp_path / name, (1.0, 1.0, 1.0), None)
    volume = open_volume(path)
    assert (volume.voxel_size, volume.unit) == (None, None)
    with pytest.raises(InputError, match=r"is not known: .*; give --input-voxel-size Z,Y,X, or --factor"):
        isovoxel.plan(path, engine="exact")
    with pytest.raises(InputError, match=r"is not known.*or --factor"):
        isovoxel.plan(path, engine="exact", zoom=2)
    with pytest.raises(InputError, match=r"is not known.*; give --input-voxel-size Z,Y,X$"):
        isovoxel.limits(path)  # which takes no factor
    assert isovoxel.plan(path, engine="exact", factor=(2, 1, 1)).output.shape == (12, 12, 16)
    given = isovoxel.plan(path, engine="exact", input_voxel_size=(2, 1, 1))
    assert (given.output.shape, given.output.voxel_size) == ((12, 12, 16), (1, 1, 1))
    assert isovoxel.plan(path, engine="exact", input_voxel_size=(1, 1, 1)).output.shape == VOXELS.shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "unit"), [((1.0, 1.0, 1.0), "um"), ((2.0, 1.0, 1.0), None)])
def test_a_size_with_a_unit_or_of_other_numbers_counts(kind: str, size: Any, unit: str | None, tmp_path: Path) -> None:
    """1 x 1 x 1 micrometer is a size, and so is 2 x 1 x 1 of something, where a kind knows sizes without a unit."""
    make, name = KINDS[kind]
    volume = open_volume(make(tmp_path / name, size, unit))
    if kind != "ImageJ" or unit is not None:
        assert volume.voxel_size == pytest.approx(size)


def test_one_rule_is_for_all() -> None:
    """Whoever reads metadata lets `calibrate` make a size of it."""
    one = Length(1.0)
    assert calibrate("it", "there", (one, one, one)).voxel_size is None
    assert calibrate("it", "there", (one, one, one)).counted
    assert calibrate("it", "there", (Length(None), one, one), flat=True).voxel_size is None
    assert calibrate("it", "there", (Length(1.5), one, one)).voxel_size == (1.5, 1, 1)
    assert calibrate("it", "there", (Length(1.0, "mm"),) * 3).voxel_size == (1, 1, 1)


def test_a_unit_given_by_the_user_makes_it_a_size(tmp_path: Path) -> None:
    """Who says micrometer says that it is calibrated."""
    volume = open_volume(ome_zarr(tmp_path / "a.zarr", (1.0, 1.0, 1.0), None), unit="um")
    assert (volume.voxel_size, volume.unit) == ((1, 1, 1), "micrometer")
    assert isovoxel.plan(tmp_path / "a.zarr", engine="exact", unit="um").factor == (1, 1, 1)


def test_levels_of_an_uncalibrated_image_are_not_calibrated(tmp_path: Path) -> None:
    """They are multiples of what is no size; one that is calibrated has its levels'."""
    path = ome_zarr(tmp_path / "a.zarr", (1.0, 1.0, 1.0), None)
    level = isovoxel.open_volume(path, level=1)
    assert level.voxel_size is None
    assert "calibrated" in level.missing
    assert isovoxel.open_volume(ome_zarr(tmp_path / "b.zarr", (2.0, 1.0, 1.0), None), level=1).voxel_size == (2, 2, 2)


def test_an_uncalibrated_image_keeps_its_place(tmp_path: Path) -> None:
    """Where it is scaled by a factor: positions are counted in its voxels, also of a part of it."""
    then = [{"type": "translation", "translation": [10, 20, 30]}]
    path = ome_zarr(tmp_path / "a.zarr", (1.0, 1.0, 1.0), None, then=then)
    assert isovoxel.plan(path, engine="exact", factor=(1, 1, 1)).output.origin == (10, 20, 30)
    part = isovoxel.plan(path, engine="exact", factor=(1, 1, 1), crop="1:,2:,3:")
    assert part.output.origin == (11, 22, 33)


@pytest.mark.slow
def test_an_uncalibrated_image_is_converted_shown_and_verified(tmp_path: Path) -> None:
    """None of that takes a voxel size, and neither does its own output."""
    path = ome_zarr(tmp_path / "a.zarr", (1.0, 1.0, 1.0), None)
    result = isovoxel.convert(path, tmp_path / "b.zarr")
    assert isovoxel.verify(result.path, samples=50).holds
    np.testing.assert_array_equal(open_volume(result.path).read(Box.whole(VOXELS.shape)), VOXELS)
    assert isovoxel.convert(path, tmp_path / "b.zarr").seconds == 0  # it is there
    again = isovoxel.convert(result.path, tmp_path / "c.zarr")
    assert isovoxel.verify(again.path, samples=50).holds
