"""Read a volume on where parts of it are damaged: these are filled, and what lies around them is read.

1. The box is read. If that names a damaged part, the part's voxels are filled.
2. What is left of the box around the part, at most six boxes, is read in the same way.

So every voxel that can be read is read, however many parts of a box are damaged. A box without damage costs nothing
more; one with damage holds, for a moment, up to its own size once more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import CorruptInputError
from isovoxel.geometry.box import Box, Index3
from isovoxel.readers.base import ReadBox, room_for


class FilledReader:
    """Reads boxes and fills what is damaged in them; safe to call from many threads.

    Parameters
    ----------
    read
        Reads boxes, and raises a `CorruptInputError` for what is damaged; all other errors are passed on.
    dtype
        Of its voxels, in native byte order.
    value
        What damaged voxels are filled with.
    tell
        Called once for every damaged part that is met, with the error; never from two threads at once.
    """

    def __init__(
        self, read: ReadBox, dtype: np.dtype[Any], value: float, tell: Callable[[CorruptInputError], None]
    ) -> None:
        self._read = read
        self._dtype = dtype
        self._value = value
        self._tell = tell
        self._told: set[tuple[int, Index3, Index3]] = set()
        self._lock = threading.Lock()

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`."""
        out = room_for(box, self._dtype, out)
        left = [box]
        while left:
            piece = left.pop()
            view = out[piece.relative_to(box.start).slices]
            try:
                if view.flags.c_contiguous:
                    self._read(piece, view)
                else:
                    view[...] = self._read(piece)
            except CorruptInputError as error:
                damaged = piece & Box(error.start, error.stop)
                if not damaged.size:
                    raise  # filling it would change nothing, and the piece would be read for ever
                out[damaged.relative_to(box.start).slices] = self._value
                left += around(damaged, piece)
                self._tell_once(error, piece.volume)
        return out

    def _tell_once(self, error: CorruptInputError, volume: int) -> None:
        part = (volume, error.start, error.stop)
        with self._lock:
            if part not in self._told:
                self._told.add(part)
                self._tell(error)


def around(hole: Box, box: Box) -> Iterator[Box]:
    """Cut what a box holds beside a hole in it into at most six boxes.

    Those before and behind it along z are whole planes, which lie in one piece.

    Examples
    --------
    >>> sum(piece.size for piece in around(Box((1, 1, 1), (2, 2, 2)), Box.whole((3, 3, 3))))
    26
    """
    start, stop = box.start, box.stop
    for axis in range(3):
        first, last = hole.start[axis], hole.stop[axis]
        if start[axis] < first:
            yield Box(start, _with(stop, axis, first), box.volume)
        if last < stop[axis]:
            yield Box(_with(start, axis, last), stop, box.volume)
        start, stop = _with(start, axis, first), _with(stop, axis, last)


def _with(index: Index3, axis: int, value: int) -> Index3:
    """Return an index with another value along one axis."""
    z, y, x = (value if i == axis else n for i, n in enumerate(index))
    return (z, y, x)
