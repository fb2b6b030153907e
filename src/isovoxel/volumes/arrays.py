"""How does an array that the caller holds become a volume? NumPy by copying boxes, dask by computing them."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.box import Box
from isovoxel.volumes.axes import UNNAMED, plain_zyx
from isovoxel.volumes.base import Volume, check_voxels, room_for
from isovoxel.volumes.files import reason_of

GRAPH_BYTES = 1 << 20
"""What dask holds for the tasks of one chunk, whatever its size."""


def _sources(ndim: int) -> dict[str, str]:
    return {"shape": "the array", "axes": UNNAMED[ndim]}


def from_numpy(array: NDArray[Any]) -> Volume:
    """Return a volume of a NumPy array in memory, which must not change while it is used.

    Raises
    ------
    InputError
        If it is neither 3-D nor 2-D, or masked.
    """
    name = "the NumPy array"
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"{name} is masked, which a volume cannot be; give array.filled(value)")
    shape = plain_zyx(name, array.shape)
    sources = _sources(array.ndim)
    array = array[None] if array.ndim == 2 else array
    dtype = array.dtype.newbyteorder("=")

    def read(box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        out = room_for(box, dtype, out)
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


def from_dask(array: Any) -> Volume:
    """Return a volume of a dask array; a box is computed chunk by chunk in the thread that reads it.

    `read_overhead` counts one chunk and its copy; what computing a chunk needs by itself, dask does not tell.

    Raises
    ------
    InputError
        If it is neither 3-D nor 2-D, or its chunks' sizes are not known.
    """
    name = "the dask array"
    if any(np.isnan(n) for n in array.shape):
        raise InputError(f"{name} has chunks of unknown size; call its compute_chunk_sizes() first")
    shape = plain_zyx(name, array.shape)
    sources = _sources(array.ndim)
    array = array[None] if array.ndim == 2 else array
    dtype = np.dtype(array.dtype).newbyteorder("=")
    check_voxels(name, shape, dtype)
    edges = [[0, *accumulate(sizes)] for sizes in array.chunks]
    z, y, x = (max(sizes) for sizes in array.chunks)

    def read(box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        out = room_for(box, dtype, out)
        for tile in _tiles(edges, box):
            try:
                # No name for the chunk, which would keep it while the next one is computed.
                out[tile.relative_to(box.start).slices] = array[tile.slices].compute(scheduler="synchronous")
            except Exception as error:
                why = f"{name} cannot be computed from voxel {tile.start} on: {reason_of(error)}"
                raise InputError(why) from error
        return out

    return Volume(
        name,
        "dask array",
        shape,
        dtype,
        read,
        chunks=(z, y, x),
        read_overhead=2 * z * y * x * dtype.itemsize + GRAPH_BYTES,
        sources=sources,
        identity={"kind": "dask array", "shape": list(shape), "dtype": str(dtype), "tag": str(array.name)},
        missing="a dask array has none",
        array=array,
    )


def _checksum(array: NDArray[Any]) -> str:
    """Return a checksum of an array's voxels; of one that is mapped from a file, what tells that file from another."""
    if isinstance(array, np.memmap) and array.filename is not None:
        file = Path(array.filename).stat()
        start = array.ctypes.data - np.frombuffer(_mapping(array), np.uint8).ctypes.data
        return f"{array.filename} {file.st_size} {file.st_mtime_ns} {start} {array.strides}"
    crc = 0
    for plane in array:
        crc = google_crc32c.extend(crc, np.ascontiguousarray(plane).view(np.uint8))
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
