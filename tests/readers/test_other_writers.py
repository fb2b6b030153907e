"""OME-Zarr as other programs write it: the same voxels as the array that they were given, where they put them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import isovoxel
from independent_readers import library
from isovoxel.geometry.grid import Box

STACK = np.random.default_rng(0).integers(0, 60_000, (5, 30, 36)).astype(np.uint16)
HYPERSTACK = np.random.default_rng(1).integers(0, 60_000, (2, 3, 5, 30, 36)).astype(np.uint16)
SIZE = {"z": 2.0, "y": 0.5, "x": 0.25}
ORIGIN = {"z": 1.0, "y": 0.0, "x": -3.0}
VERSIONS = ("0.4", "0.5")


def by_ngff_zarr(path: Path, data: np.ndarray, version: str) -> None:
    """Write an image in chunks, and in shards where the version has them."""
    ngff_zarr = library("ngff_zarr")
    axes = "tczyx"[-data.ndim :]
    units = dict.fromkeys(SIZE, "micrometer")
    others = dict.fromkeys(axes[:-3], 1.0)
    image = ngff_zarr.to_ngff_image(
        data,
        dims=axes,
        scale=others | SIZE,
        translation=dict.fromkeys(others, 0.0) | ORIGIN,
        axes_units=units,
    )
    chunks = dict.fromkeys(axes[:-3], 1) | {"z": 2, "y": 16, "x": 8}
    multiscales = ngff_zarr.to_multiscales(image, scale_factors=[], chunks=chunks)
    sharded: dict[str, Any] = {"chunks_per_shard": dict.fromkeys(axes, 1) | {"y": 2}} if version != "0.4" else {}
    ngff_zarr.to_ngff_zarr(str(path), multiscales, version=version, **sharded)


def by_ome_zarr_py(path: Path, data: np.ndarray, version: str) -> None:
    """Write an image of several levels, which lie where ome-zarr-py puts them."""
    writer = library("ome_zarr.writer")
    versions = library("ome_zarr.format")
    axes = "tczyx"[-data.ndim :]
    writer.write_image(
        data,
        str(path),
        fmt=versions.format_from_version(version),
        axes=axes,
        scale=dict.fromkeys(axes[:-3], 1.0) | SIZE,
        axes_units=dict.fromkeys(SIZE, "micrometer"),
        scale_factors=[2],
    )


WRITERS: dict[str, Callable[[Path, np.ndarray, str], None]] = {
    "ngff-zarr": by_ngff_zarr,
    "ome-zarr-py": by_ome_zarr_py,
}


@pytest.mark.parametrize(("writer", "version"), [*product(WRITERS, VERSIONS), ("ngff-zarr", "0.6")])
def test_an_image_is_the_array_that_it_was_written_from(writer: str, version: str, tmp_path: Path) -> None:
    """Voxel by voxel, and scaled it is what the array is."""
    WRITERS[writer](tmp_path / "a.zarr", STACK, version)
    volume = isovoxel.open_volume(tmp_path / "a.zarr")
    assert (volume.kind, volume.voxel_size, volume.unit) == (f"OME-Zarr {version}", tuple(SIZE.values()), "micrometer")
    assert volume.origin == (tuple(ORIGIN.values()) if writer == "ngff-zarr" else (0, 0, 0))
    np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)
    made = isovoxel.scale(volume, tmp_path / "made.zarr", engine="exact", levels=0)
    other = isovoxel.scale(STACK, tmp_path / "other.zarr", engine="exact", input_voxel_size=tuple(SIZE.values()))
    np.testing.assert_array_equal(*(zarr.open_array(each.path / "0", mode="r")[...] for each in (made, other)))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("writer", WRITERS)
def test_every_channel_of_every_time_point_is_its_part_of_the_array(writer: str, version: str, tmp_path: Path) -> None:
    """Of five axes."""
    WRITERS[writer](tmp_path / "a.zarr", HYPERSTACK, version)
    for time, channel in np.ndindex(HYPERSTACK.shape[:2]):
        volume = isovoxel.open_volume(tmp_path / "a.zarr", time=time, channel=channel)
        assert volume.voxel_size == tuple(SIZE.values())
        np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), HYPERSTACK[time, channel])


@pytest.mark.parametrize("version", VERSIONS)
def test_labels_beside_an_image_are_labels(version: str, tmp_path: Path) -> None:
    """As ome-zarr-py writes them; by the path of the group that holds them."""
    by_ome_zarr_py(tmp_path / "a.zarr", STACK, version)
    cells = STACK >> 12
    library("ome_zarr.writer").write_labels(
        cells,
        zarr.open_group(tmp_path / "a.zarr", mode="r+"),
        name="cells",
        fmt=library("ome_zarr.format").format_from_version(version),
        axes="zyx",
        scale=SIZE,
        scale_factors=[2],
        scaler=None,  # its default is deprecated
    )
    volume = isovoxel.open_volume(tmp_path / "a.zarr/labels/cells")
    assert (volume.labels, volume.voxel_size) == (True, tuple(SIZE.values()))
    np.testing.assert_array_equal(volume.read(Box.whole(cells.shape)), cells)
