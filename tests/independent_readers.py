"""Which voxels do others see in an OME-Zarr, and where do they lie? Each reader behind one function, level by level."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from numpy.typing import NDArray

import isovoxel
from isovoxel.geometry.grid import AXES, Box, Float3
from isovoxel.metadata.ome import Level, is_label_image, read_levels
from isovoxel.readers.base import Volume

WHY = {
    "ome_zarr": "ome-zarr-py is not installed; its s3fs and CI's moto want other botocores",
    "npy2bdv": "npy2bdv is in the extra test-all only",
    "SimpleITK": "SimpleITK is in the extra test-all only",
    **{
        name: f"{name} is in the extra test-all only"
        for name in ("ndstorage", "pylibCZIrw", "czifile", "mrc", "bioio_czi", "bioio_nd2", "bioio_dv", "nd2reader")
    },
    "imaris_ims_file_reader": "imaris-ims-file-reader is in the extra test-all only",
    "napari_ome_zarr": "napari-ome-zarr is not installed; it brings napari, which is too large for CI",
}
"""Why a reader may not be there."""


@dataclass(frozen=True)
class Seen:
    """A level as a reader sees it."""

    voxels: NDArray[Any]
    """Of all axes that the array has, in its order."""
    voxel_size: Float3
    """z, y, x."""
    origin: Float3 | None
    """Position of the centre of voxel 0, z, y, x; None where the reader does not tell."""
    unit: str | None
    """Of the three sizes; None where the reader does not tell."""


def library(name: str) -> Any:
    """Import a reader, some of which warn of their own code, or skip the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=WHY.get(name.partition(".")[0]))


def levels_of(path: Path) -> list[Level]:
    """Return what the metadata say of each level."""
    return read_levels(dict(zarr.open_group(path, mode="r").attrs), path.name)


def by_isovoxel(path: Path) -> list[Seen]:
    """Read every level with `isovoxel.open_volume`, each channel of each time point by itself."""
    return [_of_volumes(path, index, level) for index, level in enumerate(levels_of(path))]


def _of_volumes(path: Path, index: int, level: Level) -> Seen:
    shape = zarr.open_array(path / level.path, mode="r").shape
    apart = {{"t": "time", "c": "channel"}[a]: n for a, n in zip(level.axes, shape, strict=True) if a not in AXES}
    volumes: list[Volume] = [
        isovoxel.open_volume(path, level=index, **dict(zip(apart, chosen, strict=True)))
        for chosen in itertools.product(*map(range, apart.values()))
    ]
    grid = volumes[0].grid
    voxels = np.stack([volume.read(Box.whole(volume.shape)) for volume in volumes])
    return Seen(voxels.reshape(shape), grid.voxel_size, grid.origin, grid.unit)


def by_xarray(path: Path) -> list[Seen]:
    """Open every level as the README has it: one at a time, its coordinates from isovoxel."""
    found = []
    for index, level in enumerate(levels_of(path)):
        others = set(zarr.open_group(path, mode="r")) - {level.path}
        # Of zarr v2 the fill value would be taken for voxels that are missing.
        with xarray.open_zarr(path, consolidated=False, drop_variables=others, mask_and_scale=False) as opened:
            image = opened[level.path]
            assert image.dims == level.axes
            grid = isovoxel.open_volume(path, level=index, **dict.fromkeys(_words(level), 0)).grid
            places = {
                a: o + s * np.arange(image.sizes[a]) for a, o, s in zip(AXES, grid.origin, grid.voxel_size, strict=True)
            }
            image = image.assign_coords(places)
            z, y, x = (float(image[axis][0]) for axis in AXES)
            found.append(Seen(image.values, grid.voxel_size, (z, y, x), grid.unit))
    return found


def by_ngff_zarr(path: Path) -> list[Seen]:
    """Read every level with ngff-zarr, which also checks the metadata against the specification's JSON schemas."""
    images = library("ngff_zarr").from_ngff_zarr(str(path), validate=True).images
    return [
        Seen(np.asarray(image.data), _zyx(image.scale), _zyx(image.translation), _only(image.axes_units))
        for image in images
    ]


def by_ome_zarr_py(path: Path) -> list[Seen]:
    """Read every level with ome-zarr-py."""
    reader = library("ome_zarr.reader")
    node = next(iter(reader.Reader(library("ome_zarr.io").parse_url(str(path)))()))
    units = {axis["name"]: axis.get("unit") for axis in node.metadata["axes"]}
    found = []
    for data, (scale, translation) in zip(node.data, node.metadata["coordinateTransformations"], strict=True):
        sizes, origin = _last(scale["scale"]), _last(translation["translation"])
        found.append(Seen(np.asarray(data), sizes, origin, _only(units)))
    return found


def by_napari(path: Path) -> list[Seen]:
    """Read every level with napari-ome-zarr, which places the finest; napari draws the others over all of it."""
    plugin = library("napari_ome_zarr")
    kind = "labels" if is_label_image(dict(zarr.open_group(path, mode="r").attrs)) else "image"
    # Of labels beside an image, and of that image, both are layers.
    layers = [layer for layer in plugin.napari_get_reader(str(path))(str(path)) if layer[2] == kind]
    ((data, properties, _),) = layers
    finest, size = np.array(data[0].shape[-3:]), np.array(properties["scale"][-3:])
    # Versions from 0.9 on leave it out.
    origin = properties.get("translate")
    found = []
    for level in data:
        # Outer face on outer face, as napari's canvas has it.
        larger = size * finest / level.shape[-3:]
        place = None if origin is None else _last(origin[-3:] + (larger - size) / 2)
        found.append(Seen(np.asarray(level), _last(larger), place, None))
    return found


def _words(level: Level) -> list[str]:
    return [{"t": "time", "c": "channel"}[axis] for axis in level.axes if axis not in AXES]


def _zyx(values: Mapping[str, float]) -> Float3:
    return (values["z"], values["y"], values["x"])


def _last(values: Any) -> Float3:
    z, y, x = (float(value) for value in values[-3:])
    return (z, y, x)


def _only(units: Mapping[str, str | None]) -> str | None:
    (unit,) = {units[axis] for axis in AXES}
    return unit


READERS: dict[str, Callable[[Path], list[Seen]]] = {
    "isovoxel": by_isovoxel,
    "xarray": by_xarray,
    "ngff-zarr": by_ngff_zarr,
    "ome-zarr-py": by_ome_zarr_py,
    "napari-ome-zarr": by_napari,
}
