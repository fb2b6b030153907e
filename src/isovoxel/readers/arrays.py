"""Arrays of the caller as volumes, and volumes as lazy arrays of dask and xarray."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.grid import AXES, Box, triple
from isovoxel.metadata.units import Calibration, canonical_unit, convert_length
from isovoxel.readers.base import (
    CONVERTED,
    ReadBox,
    SeriesReader,
    Volume,
    check_voxels,
    convert_voxels,
    note_of,
    output_array,
)
from isovoxel.readers.files import reason_of
from isovoxel.readers.selection import EVERYTHING, GIVEN, UNNAMED, Picked, Selection, pick, plain_zyx
from isovoxel.readers.tiled import Stored, TiledReader

GRAPH_BYTES = 1 << 20
"""What dask holds for the tasks of one chunk, whatever its size."""


def _sources(ndim: int) -> dict[str, str]:
    return {"shape": "the array", "axes": UNNAMED[ndim]}


def from_numpy(array: NDArray[Any], selection: Selection = EVERYTHING) -> Volume:
    """Return a volume of a NumPy array in memory, which must not change while it is used.

    Raises
    ------
    InputError
        If it is neither 3-D nor 2-D, and its axes are not named, or masked.
    """
    name = "the NumPy array"
    if selection.axes is not None:
        return _named(name, array, selection, from_numpy)
    selection.check_kind(name)
    check_unmasked(name, array, "array.filled(value)")
    shape = plain_zyx(name, array.shape)
    sources = _sources(array.ndim)
    array = array[None] if array.ndim == 2 else array
    dtype = array.dtype.newbyteorder("=")

    def read(box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        out = output_array(box, dtype, out)
        out[...] = array[box.slices]
        return out

    return Volume(
        name,
        "NumPy array",
        shape,
        dtype,
        read,
        sources=sources,
        identity={"kind": "NumPy array", "shape": list(shape), "dtype": str(dtype), "tag": "in memory"},
        missing="a NumPy array has none",
        checksum=lambda: _checksum(array),
    )


def from_dask(array: Any, selection: Selection = EVERYTHING, name: str = "the dask array") -> Volume:
    """Return a volume of a dask array; a box is computed chunk by chunk in the thread that reads it.

    `read_overhead` counts one chunk and its copy; what computing a chunk needs by itself, dask does not tell.

    Raises
    ------
    InputError
        If it is neither 3-D nor 2-D, and its axes are not named, or its chunks' sizes are not known, or masked.
    """
    if selection.axes is not None:
        return _named(name, array, selection, from_dask)
    selection.check_kind(name)
    check_unmasked(name, array._meta, "dask.array.ma.filled(array, value)")  # noqa: SLF001 - dask has no other word for it
    if any(np.isnan(n) for n in array.shape):
        raise InputError(f"{name} has chunks of unknown size; call its compute_chunk_sizes() first")
    shape = plain_zyx(name, array.shape)
    sources = _sources(array.ndim)
    array = array[None] if array.ndim == 2 else array
    stored = np.dtype(array.dtype).newbyteorder("=")
    check_voxels(name, shape, stored)
    chunks = triple(map(max, array.chunks))
    dtype, tag = CONVERTED.get(stored, stored), str(array.name)
    notes: tuple[str, ...] = ()
    held = 2 * dtype.itemsize
    if dtype != stored:  # by dask itself, whose chunks may be of unequal size
        array = converted_chunks(name, array)
        notes, held = (note_of(stored),), held + stored.itemsize
    return Volume(
        name,
        "dask array",
        shape,
        dtype,
        ComputedReader(name, array, dtype),
        chunks=chunks,
        read_overhead=held * math.prod(chunks) + GRAPH_BYTES,
        sources=sources,
        identity={"kind": "dask array", "shape": list(shape), "dtype": str(stored), "tag": tag},
        missing="an array of dask has none",
        notes=notes,
        array=array,
    )


def check_unmasked(name: str, array: Any, instead: str) -> None:
    """Raise an `InputError` for a masked array, whose hidden voxels would be taken for voxels."""
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"{name} is masked, which a volume cannot be; give {instead}")


def unmasked(chunk: Any) -> Any:
    """Return a chunk that was computed; a masked one is an error, even where dask did not know that it would be."""
    check_unmasked("a chunk of the dask array", chunk, "dask.array.ma.filled(array, value)")
    return chunk


def converted_chunks(name: str, array: Any) -> Any:
    """Return a dask array whose chunks are of the type that `CONVERTED` has for those of one, or are these."""
    dtype = CONVERTED.get(np.dtype(array.dtype).newbyteorder("="))
    return array if dtype is None else array.map_blocks(partial(_converted, name, dtype), dtype=dtype)


def _converted(name: str, dtype: np.dtype[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Return a chunk in the type that isovoxel scales."""
    out = np.empty(values.shape, dtype)
    convert_voxels(name, values, out)
    return out


@dataclass(frozen=True)
class ComputedReader(TiledReader):
    """Reads boxes of a dask array, chunk by chunk; safe to call from many threads where its tasks are."""

    name: str
    """What the array is called, for messages."""
    array: Any
    """The array, of axes z, y and x."""
    dtype: np.dtype[Any]
    """Of its voxels, in native byte order."""

    def tiles(self, box: Box) -> list[Box]:
        """Cut a box along the chunks, which may be of unequal size."""
        return _tiles([[0, *accumulate(sizes)] for sizes in self.array.chunks], box)

    def read_tile(self, tile: Box, out: NDArray[Any], _source: Any) -> None:
        """Compute a part of a chunk."""
        # No name for the chunk, which would keep it while the next one is computed.
        out[...] = unmasked(self.array[tile.slices].compute(scheduler="synchronous"))

    def stored(self, tile: Box) -> Stored:
        """Return the part itself."""
        return Stored(f"the part from voxel {tile.start} on", tile)

    def failure(self, tile: Box, error: Exception) -> InputError:
        """Return that the array's own tasks have failed."""
        return InputError(f"{self.name} cannot be computed from voxel {tile.start} on: {reason_of(error)}")


def _named(name: str, array: Any, selection: Selection, single: Callable[[Any], Volume]) -> Volume:
    """Return the volumes of an array whose axes the user names, each as `single` makes one of a part of it."""
    picked = pick(name, [""] * array.ndim, array.shape, selection)
    first = single(_part(array, picked))
    identity = {**first.identity, **picked.chosen, **selection.identity("axes"), "shape": list(array.shape)}
    sources = {**first.sources, "axes": picked.told(GIVEN)}
    if first.array is not None:
        identity["tag"] = str(array.name)
    if not picked.series:
        return replace(first, identity=identity, sources=sources)
    return replace(
        first,
        read=SeriesReader(picked, partial(_member, array, single)),
        series=picked.axes(),
        identity=identity,
        sources=sources,
        checksum=None if first.checksum is None else lambda: _checksum(array),
        array=None,
    )


def _part(array: Any, picked: Picked) -> Any:
    return array[picked.index((slice(None),) * 3)]


def _member(array: Any, single: Callable[[Any], Volume], picked: Picked) -> ReadBox:
    return single(_part(array, picked)).read


def from_xarray(array: Any) -> Volume:
    """Return a volume of an ``xarray.DataArray``: its voxels, and what its coordinates say of their size and place.

    The coordinates of all axes must be evenly spaced numbers that grow, or one number of a single plane along z; then
    they are lengths, in the units that they name in their attributes ("units"), or without where none names any.

    Raises
    ------
    InputError
        If it is neither 3-D nor 2-D, or has dimensions z, y or x at the place of another.
    """
    name = "the DataArray" if array.name is None else f"the DataArray {array.name!r}"
    dims = [str(dim).lower() for dim in array.dims]
    axes = list(AXES[-len(dims) :]) if dims else []
    if len(dims) not in (2, 3) or any(dim in AXES and dim != axis for dim, axis in zip(dims, axes, strict=True)):
        raise InputError(
            f"{name} has the dimensions {', '.join(dims) or 'none'}; isovoxel takes z, y, x, or y, x of one plane: "
            "transpose it, and select one of several volumes with array.isel"
        )
    volume = from_dask(array.data) if hasattr(array.data, "dask") else from_numpy(np.asarray(array.data))
    sources = {**volume.sources, **({"axes": "dimensions of the DataArray"} if dims == axes else {})}
    # Of a dimension without coordinates, `coords.get` gives numbers from 0 on.
    coordinates = {dim: array.coords[dim] for dim in array.dims if dim in array.coords}
    spaced = [_spacing(coordinates.get(dim), single=len(dims) - i == len(AXES)) for i, dim in enumerate(array.dims)]
    known = [one for one in spaced if one is not None]
    units = [unit for _, _, unit in known]
    why = ""
    if len(known) < len(dims):
        why = f"its coordinates along {array.dims[spaced.index(None)]} are not evenly spaced numbers that grow"
    elif None in units and any(units):
        why = f"its coordinates along {array.dims[units.index(None)]} name no unit of length, and others do"
    if why:
        numbers = any(one.dtype.kind in "iuf" for one in coordinates.values())
        return replace(volume, name=name, sources=sources, missing=why, unplaced=why if numbers else "")
    unit = units[-1]
    lengths = [
        [length if unit is None or of is None else convert_length(length, of, unit) for length in (step, start)]
        for step, start, of in known
    ]
    steps, starts = zip(*[[0.0, 0.0]][len(lengths) - 2 :], *lengths, strict=True)
    size = triple(step or min(steps[1:]) for step in steps)  # of a single plane: as thick as its pixels are high
    found = Calibration(size, unit, "coordinates of the DataArray", origin=triple(starts))
    return replace(volume, name=name, sources=sources).measured(found)


def _spacing(coordinate: Any, *, single: bool) -> tuple[float, float, str | None] | None:
    """Return step, first value and unit of length of an axis' coordinates; None where they have no step.

    The step of one number is 0, where `single` says that one is enough.
    """
    values = np.asarray(() if coordinate is None else coordinate.values)
    if values.dtype.kind not in "iuf" or values.size < (1 if single else 2):
        return None
    values = values.astype(np.float64)
    step = float((values[-1] - values[0]) / max(1, values.size - 1))
    grows = step > 0 or values.size == 1
    if not (grows and np.isfinite(values[0]) and np.allclose(np.diff(values), step, rtol=1e-6, atol=0)):
        return None
    unit = coordinate.attrs.get("units", coordinate.attrs.get("unit"))
    return step, float(values[0]), canonical_unit(unit) if isinstance(unit, str) else None


def _checksum(array: NDArray[Any]) -> str:
    """Return a checksum of an array's voxels; of one that is mapped from a file, what tells that file from another."""
    if isinstance(array, np.memmap) and array.filename is not None and array.mode != "c":  # which is changed in memory
        file = Path(array.filename).stat()
        start = array.ctypes.data - np.frombuffer(_mapping(array), np.uint8).ctypes.data
        return f"{array.filename} {file.st_size} {file.st_mtime_ns} {start} {array.strides}"
    crc = 0
    for plane in array:
        crc = crc32c(np.ascontiguousarray(plane).view(np.uint8), crc)
    return f"crc32c {crc:08x}"


def _mapping(array: Any) -> Any:
    return array._mmap  # noqa: SLF001 - numpy has no other way to it


def _tiles(edges: list[list[int]], box: Box) -> list[Box]:
    """Cut a box along chunks of unequal size, whose edges are given per axis."""
    cuts = [
        [
            (max(a, first), min(b, last))
            for a, b in pairwise(along[max(0, bisect_right(along, first) - 1) :])
            if a < last
        ]
        for along, first, last in zip(edges, box.start, box.stop, strict=True)
    ]
    return [
        Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))
        for z, y, x in product(*cuts)
        if z[0] < z[1] and y[0] < y[1] and x[0] < x[1]
    ]


# ---- volumes as lazy arrays ----------------------------------------------------------------------------------------


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
            coordinates["t"] = ("t", axis.start + axis.step * np.arange(axis.length), _units(axis.unit))
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
