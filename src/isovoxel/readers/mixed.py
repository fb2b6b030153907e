"""Planes that are stored in several ways as one volume: each is read by the reader that knows its way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.box import Box, Index3
from isovoxel.readers.base import room_for
from isovoxel.readers.tiled import damage_moved


class PlaneReader(Protocol):
    """Reads boxes of planes that lie in files; safe to call from many threads."""

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the files."""

    @property
    def shape(self) -> Index3:
        """Number of planes, rows and columns."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels."""

    @property
    def overhead(self) -> int:
        """Largest number of bytes held beside the returned array."""

    @property
    def segment_shape(self) -> Index3:
        """Number of voxels that are decoded in one go."""

    def taking(self, planes: NDArray[np.int64]) -> PlaneReader:
        """Return a reader of some of the planes, in their order."""

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`."""


@dataclass(frozen=True)
class MixedReader:
    """Reads boxes of planes of which each is stored in one of several ways; safe to call from many threads."""

    readers: tuple[PlaneReader, ...]
    """One for each way, of planes of equal size and dtype."""
    which: NDArray[np.int64]
    """Which of them reads each plane."""
    place: NDArray[np.int64]
    """Which of its planes that is."""
    files: tuple[str, ...]
    """Paths of the files."""

    @property
    def shape(self) -> Index3:
        """Number of planes, rows and columns."""
        return (len(self.which), *self.readers[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels, in native byte order."""
        return self.readers[0].dtype.newbyteorder("=")

    @property
    def overhead(self) -> int:
        """Largest number of bytes held beside the returned array."""
        return max(reader.overhead for reader in self.readers)

    @property
    def segment_shape(self) -> Index3:
        """Number of voxels that are decoded in one go, at most, along each axis."""
        z, y, x = (max(lengths) for lengths in zip(*(reader.segment_shape for reader in self.readers), strict=True))
        return (z, y, x)

    def taking(self, planes: NDArray[np.int64]) -> MixedReader:
        """Return a reader of some of the planes, in their order."""
        return replace(self, which=self.which[planes], place=self.place[planes])

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        CorruptInputError, InputUnavailableError
            As the reader of the plane does that cannot be read.
        """
        out = room_for(box, self.dtype, out)
        z = box.start[0]
        while z < box.stop[0] and out.size:
            n = self._run(z, box.stop[0])
            first = int(self.place[z])
            inside = Box((first, *box.start[1:]), (first + n, *box.stop[1:]))
            # What lies beyond these planes may be others' neighbours.
            with damage_moved((z - first, 0, 0), Box((first, 0, 0), (first + n, *self.shape[1:]))):
                self.readers[self.which[z]](inside, out[z - box.start[0] : z - box.start[0] + n])
            z += n
        return out

    def _run(self, start: int, stop: int) -> int:
        """Count the planes from `start` on that follow one another in the same reader."""
        n = 1
        while (
            start + n < stop
            and self.which[start + n] == self.which[start]
            and self.place[start + n] == self.place[start] + n
        ):
            n += 1
        return n
