"""Maximum projections of a volume along its three axes, in memory that does not grow with it.

1. The volume is read tile by tile, and every tile raises three images. An axis longer than the images may be is binned,
   each bin showing its largest voxel.
2. What is larger than `ALL_BYTES` and kept plane by plane is read in part: some planes of each bin, the first among
   them. Of anything else whatever is left out would be decoded all the same, or leave holes, so it is read whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Box, Index3
from isovoxel.readers.base import Volume

TILE_BYTES = 32 * 2**20
"""Most bytes that are read at once, unless reading anything of the volume holds more than that anyway."""
LARGEST = 1200
"""Most pixels along a side of a projection."""
ALL_BYTES = 16 * 2**30
"""Bytes of voxels up to which a volume is read whole, whatever its storage."""

LEAST_TILE = 2**20
"""Bytes that are read at once where memory is short; less would decode chunks too often."""

Tell = Callable[[int, int], None]
"""Told how many voxels are read, and of how many."""


@dataclass(frozen=True)
class Projections:
    """The largest voxels of a volume, seen along each axis."""

    along: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
    """Seen along z as (y, x), along y as (z, x), along x as (z, y); of the volume's dtype."""
    bins: Index3
    """Voxels per pixel, z, y, x; the last pixel of an axis may hold fewer."""
    planes: int
    """How many of the volume's planes were read; fewer than it has where that is much faster."""


def maximum_projections(
    volume: Volume, tell: Tell = lambda _done, _total: None, room: int | None = None
) -> Projections:
    """Return the maximum of a volume along z, y and x, reading it box by box.

    Parameters
    ----------
    volume
        What to look at. Not-a-number is passed over; where there is nothing else it stays.
    tell
        Called after each box.
    room
        Bytes that this may hold, images included, as `held_while_reading` counts them; None for as many as it takes.

    Returns
    -------
    Projections
        Three images of at most `LARGEST` pixels a side.

    Raises
    ------
    InputError
        If the volume cannot be read.
    """
    upper = np.fmax if volume.dtype.kind == "f" else np.maximum
    lowest = math.nan if volume.dtype.kind == "f" else np.iinfo(volume.dtype).min
    bins = [ceil_div(n, LARGEST) for n in volume.shape]
    sides = [ceil_div(n, k) for n, k in zip(volume.shape, bins, strict=True)]
    images = [np.full(sides[:axis] + sides[axis + 1 :], lowest, volume.dtype) for axis in range(3)]
    planes = _planes(volume, bins[0])
    done, total = 0, planes * volume.shape[1] * volume.shape[2]
    for tile in _tiles(volume, planes, bins[0], _tile_bytes(volume, room)):
        voxels = volume.read(tile)
        for axis, image in enumerate(images):
            face = upper.reduce(voxels, axis=axis)
            where = []
            for row, other in enumerate(a for a in range(3) if a != axis):
                start, stop, k = tile.start[other], tile.stop[other], bins[other]
                pixels = range(start // k, ceil_div(stop, k))
                if k > 1:
                    face = upper.reduceat(face, [max(0, p * k - start) for p in pixels], axis=row)
                where.append(slice(pixels.start, pixels.stop))
            part = image[tuple(where)]
            upper(part, face, out=part)
        done += tile.size
        tell(done, total)
    return Projections((images[0], images[1], images[2]), (bins[0], bins[1], bins[2]), planes)


def held_while_reading(volume: Volume, room: int | None = None) -> int:
    """Return how many bytes `maximum_projections` holds at its peak.

    Parameters
    ----------
    volume
        What to look at.
    room
        Bytes that it may hold, or None for as many as it takes; the least that it takes may be more.
    """
    return _held_beside_tile(volume) + 2 * _tile_bytes(volume, room)


def _held_beside_tile(volume: Volume) -> int:
    """Return the bytes of the images, and of what reading holds beside its voxels."""
    sides = [min(n, LARGEST) for n in volume.shape]
    pixels = sum(math.prod(sides) // n for n in sides)
    return pixels * volume.dtype.itemsize + volume.read_overhead


def _tile_bytes(volume: Volume, room: int | None) -> int:
    """Return the bytes of a tile; its maximum along a short axis takes as many once more."""
    largest = max(TILE_BYTES, volume.read_overhead, volume.dtype.itemsize)
    if room is None:
        return largest
    return max(LEAST_TILE, min(largest, (room - _held_beside_tile(volume)) // 2))


def bytes_to_read(volume: Volume) -> int:
    """Return how many bytes of voxels `maximum_projections` reads of a volume, all in all."""
    return volume.nbytes // volume.shape[0] * _planes(volume, ceil_div(volume.shape[0], LARGEST))


def _planes(volume: Volume, thick: int) -> int:
    """Return how many planes are read."""
    return sum(len(planes) for planes in _bins_of_planes(volume, thick))


def _bins_of_planes(volume: Volume, thick: int) -> Iterator[range]:
    """Yield the planes that are read of each bin of so many."""
    step = 1
    if volume.chunks[0] == 1:
        step = min(thick, max(1, ceil_div(volume.nbytes, ALL_BYTES)))
    depth = volume.shape[0]
    return (range(z, min(z + thick, depth), step) for z in range(0, depth, thick))


def _tiles(volume: Volume, planes: int, thick: int, tile_bytes: int) -> Iterator[Box]:
    """Cut what is read into boxes."""
    depth, rows, columns = volume.shape
    if planes == depth:
        yield from Box.whole(volume.shape).tiles(_tile_shape(volume, depth, tile_bytes))
        return
    shape = _tile_shape(volume, 1, tile_bytes)
    for bin_ in _bins_of_planes(volume, thick):
        for z in bin_:
            yield from Box((z, 0, 0), (z + 1, rows, columns)).tiles(shape)


def _tile_shape(volume: Volume, planes: int, tile_bytes: int) -> Index3:
    """Return whole chunks, of at most so many planes, or where one alone is too large for the memory a part of one."""
    allowed = tile_bytes // volume.dtype.itemsize
    most = (planes, *volume.shape[1:])
    tile = [min(c, n) for c, n in zip(volume.chunks, most, strict=True)]
    for axis in range(3):
        others = math.prod(tile) // tile[axis]
        tile[axis] = max(1, min(tile[axis], allowed // others))
    for axis in (2, 1, 0):
        tile[axis] = min(most[axis], tile[axis] * max(1, allowed // math.prod(tile)))
    return (tile[0], tile[1], tile[2])
