"""What isovoxel writes is valid for whoever validates, and is for every reader where the input was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models
import pytest
import tifffile
import yaozarrs
import zarr

import isovoxel
from independent_readers import READERS, levels_of
from isovoxel.geometry.grid import VoxelGrid

VOXELS = np.random.default_rng(0).integers(0, 60_000, (13, 44, 50)).astype(np.uint16)
SIZE = (1.0, 0.3, 0.2)


@dataclass(frozen=True)
class Output:
    """A written OME-Zarr, and where its input lay."""

    path: Path
    source: VoxelGrid
    levels: int


def written(folder: Path, voxels: np.ndarray = VOXELS, levels: int = 2, **options: Any) -> Output:
    """Scale voxels; blocks and shards are small, so that there are several."""
    source = isovoxel.open_volume(voxels, voxel_size=SIZE, unit="um", crop=options.pop("crop", None))
    isovoxel.scale(source, folder / "out.zarr", levels=levels, **cut(options) | options)
    return Output(folder / "out.zarr", source.grid, levels + 1)


def cut(options: dict[str, Any]) -> dict[str, Any]:
    """Return how small the pieces are; OME-Zarr 0.4 has no shards."""
    shard = {} if options.get("ome_zarr") == "0.4" else {"shard": (16, 32, 32)}
    return {"chunk": (8, 16, 16), "device_memory": "2MB", **shard}


def series(folder: Path, **options: Any) -> Output:
    """Scale two time points of three channels."""
    metadata = {"axes": "TCZYX", **dict(zip(("PhysicalSizeZ", "PhysicalSizeY", "PhysicalSizeX"), SIZE, strict=True))}
    metadata |= {"TimeIncrement": 2.5, "Channel": {"Name": ["one", "two", "three"]}}
    voxels = np.stack([[VOXELS // n for n in (1, 2, 3)], [VOXELS // n for n in (4, 5, 6)]])
    tifffile.imwrite(folder / "in.ome.tif", voxels, ome=True, metadata=metadata)
    isovoxel.scale(folder / "in.ome.tif", folder / "out.zarr", levels=2, **cut(options) | options)
    return Output(folder / "out.zarr", isovoxel.open_volume(folder / "in.ome.tif").grid, 3)


def beside(folder: Path, **options: Any) -> Output:
    """Scale an image with its labels, of which these are told."""
    source = isovoxel.open_volume(VOXELS, voxel_size=SIZE, unit="um")
    np.save(folder / "cells.npy", VOXELS >> 12)
    labels = folder / "cells.npy"
    isovoxel.scale(source, folder / "out.zarr", levels=2, with_labels=labels, **cut(options) | options)
    return Output(folder / "out.zarr" / "labels" / "cells", source.grid, 3)


# One entry for every kind of output.
OUTPUTS: dict[str, Callable[[Path], Output]] = {
    "an image": lambda folder: written(folder, factor=(2.3, 1.0, 0.7)),
    "an image of one level": lambda folder: written(folder, levels=0, factor=(4, 1.5, 1)),
    "an image of floats": lambda folder: written(folder, VOXELS.astype(np.float32), factor=(0.7, 0.5, 0.31)),
    "an image cut out": lambda folder: written(folder, crop="3:,10:40,-31:", factor=(3, 1, 1)),
    "labels": lambda folder: written(folder, VOXELS >> 12, factor=(2.5, 1, 0.6), labels=True),
    "labels of 64 bits": lambda folder: written(folder, VOXELS.astype("uint64") << 47, factor=(1, 2, 2), labels=True),
    "an image of 0.4": lambda folder: written(folder, factor=(2.3, 1.0, 0.7), ome_zarr="0.4"),
    "labels of 0.4": lambda folder: written(folder, VOXELS >> 12, factor=(2.5, 1, 0.6), labels=True, ome_zarr="0.4"),
    "time points and channels": lambda folder: series(folder, factor=(2.3, 1.0, 0.7)),
    "time points and channels of 0.4": lambda folder: series(folder, factor=(3, 1, 1), ome_zarr="0.4"),
    "labels beside an image": lambda folder: beside(folder, factor=(2.3, 1.0, 0.7)),
    "labels beside an image of 0.4": lambda folder: beside(folder, factor=(3, 1, 1), ome_zarr="0.4"),
    "a plane": lambda folder: written(folder, VOXELS[0], voxel_size=0.2),
}


@pytest.fixture(scope="module", params=OUTPUTS)
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Output:
    """Return an output of each kind."""
    return OUTPUTS[request.param](tmp_path_factory.mktemp("written"))


@pytest.mark.sampled(2)
def test_validators_accept_it(output: Output) -> None:
    """Its metadata and its arrays, by yaozarrs and by ome-zarr-models."""
    yaozarrs.validate_zarr_store(str(output.path))
    image = ome_zarr_models.open_ome_zarr(zarr.open_group(output.path, mode="r"))
    assert type(image).__name__ in ("Image", "ImageLabel")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_sees_the_input_again(reader: str, output: Output) -> None:
    """All levels, with zarr's voxels; outer faces are the input's to within half a voxel of each level."""
    levels = levels_of(output.path)
    found = READERS[reader](output.path)
    assert len(found) == len(levels) == output.levels
    for level, seen in zip(levels, found, strict=True):
        stored = zarr.open_array(output.path / level.path, mode="r")[...]
        assert seen.voxels.dtype == stored.dtype
        np.testing.assert_array_equal(seen.voxels, stored)
        assert seen.unit in (output.source.unit, None)
        size = np.array(seen.voxel_size)
        extent = np.array(output.source.voxel_size) * output.source.shape
        assert (np.abs(size * stored.shape[-3:] - extent) <= size / 2 + 1e-9).all()
        if seen.origin is not None:
            first = np.array(output.source.origin) - np.array(output.source.voxel_size) / 2
            np.testing.assert_allclose(seen.origin - size / 2, first, atol=1e-9)
