"""A volume as a lazy array: dask reads of it what is computed, and xarray knows where its voxels lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.box import Box
from isovoxel.geometry.grid import AXES
from isovoxel.readers.base import ReadBox, Volume


@dataclass(frozen=True)
class BoxArray:
    """What dask takes for an array: a part of it is read box by box, one of each volume of a series."""

    read: ReadBox
    """Reads a box."""
    shape: tuple[int, ...]
    """Entries along the axes of the series, then voxels z, y, x."""
    dtype: np.dtype[Any]
    """Of its voxels."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, index: tuple[int | slice | list[int], ...]) -> NDArray[Any]:
        """Read a part, given along each axis by a number or a slice, or along one axis by a list of numbers."""
        full = (*index, *[slice(None)] * (self.ndim - len(index)))
        wanted = [np.atleast_1d(np.arange(n)[at]) for n, at in zip(self.shape, full, strict=True)]
        found = np.empty([len(entries) for entries in wanted], self.dtype)
        if found.size:
            self._read_into(found, wanted)
        part: NDArray[Any] = found[tuple(0 if isinstance(at, int | np.integer) else slice(None) for at in full)]
        return part

    def _read_into(self, found: NDArray[Any], wanted: Sequence[NDArray[np.intp]]) -> None:
        """Read the box around the voxels of each volume that is meant, and take the voxels of it."""
        *places, z, y, x = wanted
        box = Box((int(z.min()), int(y.min()), int(x.min())), (int(z.max()) + 1, int(y.max()) + 1, int(x.max()) + 1))
        whole = all(np.array_equal(e, np.arange(a, b)) for e, a, b in zip((z, y, x), box.start, box.stop, strict=True))
        inside = np.ix_(z - box.start[0], y - box.start[1], x - box.start[2])
        lengths = self.shape[:-3]
        for at in np.ndindex(found.shape[:-3]):
            place = [int(entries[i]) for entries, i in zip(places, at, strict=True)]
            part = box.of(int(np.ravel_multi_index(place, lengths)) if lengths else 0)
            if whole:
                self.read(part, found[at])
            else:
                found[at] = self.read(part)[inside]


def as_dask(volume: Volume) -> Any:
    """Return a volume as a dask array, whose chunks are whole chunks of its storage.

    Parameters
    ----------
    volume
        What is read; of a series all volumes, along the axes t and c before z, y and x.

    Returns
    -------
    dask.array.Array
        In chunks of about dask's ``array.chunk-size``. Of a slice no more is read than its chunks of the storage.
    """
    import dask.array as da

    series = tuple(axis.length for axis in volume.series)
    shape = (*series, *volume.shape)
    stored = tuple(min(n, chunk) for n, chunk in zip(volume.shape, volume.chunks, strict=True))
    previous = (*((1,) * n for n in series), *(_cut(n, chunk) for n, chunk in zip(volume.shape, stored, strict=True)))
    chunks = da.core.normalize_chunks("auto", shape=shape, dtype=volume.dtype, previous_chunks=previous)
    meta = np.empty((0,) * len(shape), volume.dtype)
    # A name of its own: the output may have been replaced by the next time that it is opened.
    name = f"isovoxel-{uuid4().hex}"
    return da.from_array(BoxArray(volume.read, shape, volume.dtype), chunks=chunks, name=name, meta=meta)


def as_xarray(volume: Volume, name: str) -> Any:
    """Return a volume as an ``xarray.DataArray`` whose coordinates are the positions of the voxels' centres.

    Parameters
    ----------
    volume
        What is read. Without a voxel size, z, y and x have no coordinates.
    name
        What the array is called.

    Returns
    -------
    xarray.DataArray
        Lazy. Lengths and times have their unit in the attribute "units"; channels are named where all have names.

    Raises
    ------
    ImportError
        If xarray is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise ImportError("isovoxel does not bring xarray; install it: pip install xarray") from error

    coordinates: dict[str, Any] = {}
    for axis in volume.series:
        labels = [channel.label for channel in volume.channels]
        if axis.name == "t":
            coordinates["t"] = ("t", axis.step * np.arange(axis.length), _units(axis.unit))
        elif len(labels) == axis.length and all(labels):
            coordinates[axis.name] = labels
    if volume.voxel_size is not None:
        for dim, n, size, origin in zip(AXES, volume.shape, volume.voxel_size, volume.origin, strict=True):
            coordinates[dim] = (dim, origin + size * np.arange(n), _units(volume.unit))
    dims = (*(axis.name for axis in volume.series), *AXES)
    return xarray.DataArray(as_dask(volume), coords=coordinates, dims=dims, name=name)


def _units(unit: str | None) -> dict[str, str]:
    return {} if unit is None else {"units": unit}


def _cut(n: int, chunk: int) -> tuple[int, ...]:
    return tuple(min(chunk, n - i * chunk) for i in range(math.ceil(n / chunk)))
