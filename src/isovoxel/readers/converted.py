"""Read voxels of another type, or in another order of axes, as isovoxel scales them.

1. A box is cut into parts of whole chunks, each of about `PART_BYTES`, so that no chunk is decoded twice and what is
   held beside the result does not grow with the box.
2. Each part is read as it is stored, and converted or turned into its place in the result.

float64 and float16 become float32, and bool uint8. A number that float32 does not hold, beyond 3.4e38, is an error: it
would become infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import CorruptInputError, InputError
from isovoxel.geometry.grid import AXES, Box, Index3, ceil_div
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.readers.base import CONVERTED, Files, ReadBox, Volume, cached_through, is_known_empty, output_array

PART_BYTES = 1 << 20
"""A part has so many bytes in its own type, or is one chunk where that has more."""

_NOTES = {
    "float64": "its float64 is read as float32: values are rounded to 24 bits, so labels above 16,777,216 may change",
    "float16": "its float16 is read as float32, which holds every value of it",
    "bool": "its bool is read as uint8, 0 and 1; with --labels every voxel stays one of the two",
}


def convert_voxels(name: str, values: NDArray[Any], out: NDArray[Any]) -> None:
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
        for part in box.tiles(self.tile, self.first):
            convert_voxels(self.name, self.read(part), out[part.slices_from(box.start)])
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
    reader = partial(ConvertedReader, volume.name, stored=volume.dtype, tile=tile, first=(z, y, x))
    return replace(
        volume,
        dtype=dtype,
        read=reader(volume.read),
        read_overhead=volume.read_overhead + math.prod(tile) * volume.dtype.itemsize,
        cached=cached_through(volume.cached, reader),
        by_gpu=volume.by_gpu and volume.by_gpu.through(reader),
        coarser=tuple(partial(_opened, level) for level in volume.coarser),
        notes=(*volume.notes, note_of(volume.dtype)),
    )


def _opened(level: Callable[[], Volume]) -> Volume:
    return converted(level())


def part_shape(chunks: Index3, shape: Index3, itemsize: int) -> Index3:
    """Return a shape of whole chunks that has about `PART_BYTES`, longest along x."""
    tile = list(chunks)
    for axis in (2, 1, 0):
        fit = max(1, PART_BYTES // (math.prod(tile) * itemsize))
        tile[axis] *= min(fit, ceil_div(shape[axis], tile[axis]))
    return (tile[0], tile[1], tile[2])


# ---- another order of axes -----------------------------------------------------------------------------------------


def stored_order(axes: Sequence[str]) -> Index3 | None:
    """Return which of an array's space axes are z, y and x; None where they are in this order, or not all named.

    Parameters
    ----------
    axes
        Name of every axis, in lower case; z may be missing, and counts as the first then.

    Examples
    --------
    >>> stored_order("tcxyz")
    (2, 1, 0)
    >>> stored_order("tczyx") is None
    True
    """
    found = [axis for axis in axes if axis in AXES]
    found = found if "z" in found else ["z", *found]
    if sorted(found, reverse=True) != list(AXES) or found == list(AXES):
        return None
    return (found.index("z"), found.index("y"), found.index("x"))


def to_zyx(order: Index3, stored: Index3) -> Index3:
    """Return for z, y and x what is given for the axes as they are stored."""
    z, y, x = (stored[axis] for axis in order)
    return (z, y, x)


def to_stored(order: Index3, zyx: Index3) -> Index3:
    """Return for the axes as they are stored what is given for z, y and x."""
    a, b, c = (zyx[order.index(axis)] for axis in range(3))
    return (a, b, c)


def _stored_box(order: Index3, box: Box) -> Box:
    return Box(to_stored(order, box.start), to_stored(order, box.stop), box.volume)


@dataclass(frozen=True)
class TransposedReader:
    """Reads boxes as z, y, x; safe to call from many threads where the reader of what is stored is."""

    read: ReadBox
    """Reads boxes as they are stored."""
    order: Index3
    """Which axis, as they are stored, are z, y and x."""
    part: Index3
    """Shape of what is read at a time, as stored: whole chunks."""
    dtype: np.dtype[Any]
    """Of the voxels, in native byte order."""

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        CorruptInputError
            If voxels of it are damaged: they are told as z, y, x.
        """
        out = output_array(box, self.dtype, out)
        stored = _stored_box(self.order, box)
        turned = out.transpose(to_stored(self.order, (0, 1, 2)))
        for part in stored.tiles(self.part):
            try:
                turned[part.slices_from(stored.start)] = self.read(part)
            except CorruptInputError as error:
                start, stop = to_zyx(self.order, error.start), to_zyx(self.order, error.stop)
                raise CorruptInputError(error.name, error.chunk, start, stop, error.reason) from error
        return out


@dataclass(frozen=True)
class TransposedFiles:
    """The files of a volume, by boxes of z, y, x."""

    files: Files
    """Those by boxes as they are stored."""
    order: Index3
    """As `TransposedReader` has it."""

    def __call__(self, box: Box) -> Iterable[str | ObjectPlace]:
        """Return the files that hold what a box needs."""
        return self.files(_stored_box(self.order, box))
