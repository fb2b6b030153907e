"""Read voxels of types that isovoxel does not scale as another: float64 and float16 as float32, bool as uint8.

1. A box is cut into parts of whole chunks, each of about `PART_BYTES`, so that no chunk is decoded twice and what is
   held beside the result does not grow with the box.
2. Each part is read in its own type, and converted into its place in the result.

A number that float32 does not hold, beyond 3.4e38, is an error: it would become infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Box, Index3
from isovoxel.readers.base import CONVERTED, ReadBox, Volume, is_known_empty, output_array

PART_BYTES = 1 << 20
"""A part has so many bytes in its own type, or is one chunk where that has more."""

_NOTES = {
    "float64": "its float64 is read as float32: values are rounded to 24 bits, so labels above 16,777,216 may change",
    "float16": "its float16 is read as float32, which holds every value of it",
    "bool": "its bool is read as uint8, 0 and 1; with --labels every voxel stays one of the two",
}


def convert(name: str, values: NDArray[Any], out: NDArray[Any]) -> None:
    """Convert voxels into an array of the type that `CONVERTED` has for theirs.

    Parameters
    ----------
    name
        What the user called the input, for messages.
    values
        The voxels.
    out
        Where they go, of the same shape.

    Raises
    ------
    InputError
        If a finite value becomes infinite.
    """
    if values.dtype.kind == "b":
        # Any byte but 0 is true, and NumPy copies the byte.
        np.not_equal(values.view(np.uint8), 0, out=out.view(np.bool_))
        return
    try:
        with np.errstate(over="raise", invalid="ignore"):  # NaNs that signal are NaNs
            out[...] = values
    except FloatingPointError as error:
        raise InputError(
            f"{name} holds a {values.dtype} value beyond 3.4e38, the largest that float32 holds; divide its values "
            "before"
        ) from error


def note_of(dtype: np.dtype[Any]) -> str:
    """Return what a user should know of the conversion, as a clause."""
    return _NOTES[str(dtype.newbyteorder("="))]


@dataclass(frozen=True)
class ConvertedReader:
    """Reads boxes of one type as another; safe to call from many threads where the reader of the first is."""

    name: str
    """What the user called the input, for messages."""
    read: ReadBox
    """Reads boxes of the type that is stored."""
    stored: np.dtype[Any]
    """That type, in native byte order."""
    tile: Index3
    """Shape of the parts that are read at a time."""
    first: Index3
    """Voxels between a border of these and voxel 0."""

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        InputError
            If a value does not fit, or the voxels cannot be read.
        """
        out = output_array(box, CONVERTED[self.stored], out)
        for part in parts_of(box, self.tile, self.first):
            convert(self.name, self.read(part), out[part.relative_to(box.start).slices])
        return out

    def is_empty(self, box: Box) -> bool:
        """Return whether a box is known to hold nothing but zeros, which are zeros of either type."""
        return is_known_empty(self.read, box)


def converted(volume: Volume) -> Volume:
    """Return a volume of a type that isovoxel scales; one that has such a type is returned itself."""
    if (dtype := CONVERTED.get(volume.dtype)) is None:
        return volume
    tile = part_shape(volume.chunks, volume.shape, volume.dtype.itemsize)
    z, y, x = (start % n for start, n in zip(volume.start, tile, strict=True))
    wrapped = partial(ConvertedReader, volume.name, stored=volume.dtype, tile=tile, first=(z, y, x))
    return replace(
        volume,
        dtype=dtype,
        read=wrapped(volume.read),
        read_overhead=volume.read_overhead + math.prod(tile) * volume.dtype.itemsize,
        cached=None if volume.cached is None else partial(_cached, volume.cached, wrapped),
        coarser=tuple(partial(_opened, level) for level in volume.coarser),
        notes=(*volume.notes, note_of(volume.dtype)),
    )


def _cached(
    cached: Callable[[int], ReadBox], wrapped: Callable[[ReadBox], ConvertedReader], capacity: int
) -> ConvertedReader:
    return wrapped(cached(capacity))


def _opened(level: Callable[[], Volume]) -> Volume:
    return converted(level())


def parts_of(box: Box, shape: Index3, first: Index3 = (0, 0, 0)) -> Iterator[Box]:
    """Cut a box along a regular grid.

    Parameters
    ----------
    box
        What is cut.
    shape
        Of the grid's cells.
    first
        Voxels between a border of these and voxel 0.

    Examples
    --------
    >>> [part.start for part in parts_of(Box((1, 0, 2), (5, 3, 4)), (4, 4, 4))]
    [(1, 0, 2), (4, 0, 2)]
    """
    along = [
        [(max(a, at * n - f), min(b, (at + 1) * n - f)) for at in range((a + f) // n, ceil_div(b + f, n))]
        for a, b, n, f in zip(box.start, box.stop, shape, first, strict=True)
    ]
    for z, y, x in product(*along):
        yield Box((z[0], y[0], x[0]), (z[1], y[1], x[1]), box.volume)


def part_shape(chunks: Index3, shape: Index3, itemsize: int) -> Index3:
    """Return a shape of whole chunks that has about `PART_BYTES`, longest along x."""
    tile = list(chunks)
    for axis in (2, 1, 0):
        fit = max(1, PART_BYTES // (math.prod(tile) * itemsize))
        tile[axis] *= min(fit, ceil_div(shape[axis], tile[axis]))
    return (tile[0], tile[1], tile[2])
