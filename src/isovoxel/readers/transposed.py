"""Read voxels that are stored in another order of axes, such as x, y, z, as z, y, x.

A box is read in parts of whole chunks, each of about a megabyte, as they are stored; each is turned into its place in
the result. So no chunk is decoded twice, and what is held beside the result does not grow with the box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import CorruptInputError
from isovoxel.geometry.box import Box, Index3
from isovoxel.geometry.grid import AXES
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.readers.base import Files, ReadBox, output_array
from isovoxel.readers.converted import parts_of


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
        for part in parts_of(stored, self.part):
            try:
                turned[part.relative_to(stored.start).slices] = self.read(part)
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


def cached_transposed(
    cached: Callable[[int], ReadBox], order: Index3, part: Index3, dtype: np.dtype[Any], capacity: int
) -> TransposedReader:
    """Return a `TransposedReader` over one that keeps at most so many bytes of decoded chunks."""
    return TransposedReader(cached(capacity), order, part, dtype)
