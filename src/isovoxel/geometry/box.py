"""`Box`: half-open integer intervals along z, y and x, in one of a series of volumes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

Index3 = tuple[int, int, int]
"""Three integers, always z, y, x."""


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box of voxels, `start` included and `stop` excluded, always z, y, x.

    Examples
    --------
    >>> Box((0, 0, 0), (2, 3, 4)).size
    24
    >>> Box((0, 0, 0), (2, 3, 4)) & Box((1, 1, 1), (9, 9, 9))
    Box(start=(1, 1, 1), stop=(2, 3, 4))
    """

    start: Index3
    """First voxel inside, per axis."""
    stop: Index3
    """First voxel outside, per axis; never before `start`."""
    volume: int = field(default=0, repr=False)
    """Which volume of a series it lies in: those of the time points and channels of one image, counted from 0."""

    def __post_init__(self) -> None:
        (az, ay, ax), (bz, by, bx) = self.start, self.stop
        if bz < az or by < ay or bx < ax:
            raise ValueError(f"a box must not stop before it starts: {self.start} to {self.stop}")

    @classmethod
    def whole(cls, shape: Index3) -> Box:
        """Return the box of all voxels of an array of this shape."""
        return cls((0, 0, 0), shape)

    @property
    def shape(self) -> Index3:
        """Number of voxels per axis."""
        a, b = self.start, self.stop
        return (b[0] - a[0], b[1] - a[1], b[2] - a[2])

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index into an array."""
        a, b = self.start, self.stop
        return (slice(a[0], b[0]), slice(a[1], b[1]), slice(a[2], b[2]))

    def slices_from(self, origin: Index3) -> tuple[slice, slice, slice]:
        """Return the box as an index into an array whose voxel 0 is `origin`."""
        a, b, (z, y, x) = self.start, self.stop, origin
        return (slice(a[0] - z, b[0] - z), slice(a[1] - y, b[1] - y), slice(a[2] - x, b[2] - x))

    def __and__(self, other: Box) -> Box:
        """Return what both boxes share, in the volume of this one; empty (size 0) where they share nothing."""
        a, b, c, d = self.start, self.stop, other.start, other.stop
        start = (max(a[0], c[0]), max(a[1], c[1]), max(a[2], c[2]))
        stop = (min(b[0], d[0]), min(b[1], d[1]), min(b[2], d[2]))
        return Box(start, (max(start[0], stop[0]), max(start[1], stop[1]), max(start[2], stop[2])), self.volume)

    def contains(self, other: Box) -> bool:
        """Return whether every voxel of `other` is a voxel of this box."""
        return (self & other) == other

    def relative_to(self, origin: Index3) -> Box:
        """Return the same voxels as seen from an array whose voxel 0 is `origin`."""
        z, y, x = origin
        return self.shifted((-z, -y, -x))

    def shifted(self, by: Index3) -> Box:
        """Return the same voxels as seen from an array in which this one's voxel 0 is `by`."""
        a, b, (z, y, x) = self.start, self.stop, by
        return Box((a[0] + z, a[1] + y, a[2] + x), (b[0] + z, b[1] + y, b[2] + x), self.volume)

    def of(self, volume: int) -> Box:
        """Return the same box in another volume of the series."""
        return Box(self.start, self.stop, volume)

    def tiles(self, shape: Index3, first: Index3 = (0, 0, 0)) -> Iterator[Box]:
        """Cut the box along a regular grid of cells.

        Every voxel of the box is in one tile, and no tile crosses a cell's border; z varies slowest.

        Parameters
        ----------
        shape
            Of the cells.
        first
            Voxels between a border of these and voxel 0 of the volume.

        Examples
        --------
        >>> [part.start for part in Box((1, 0, 2), (5, 3, 4)).tiles((4, 4, 4))]
        [(1, 0, 2), (4, 0, 2)]
        """
        if not self.size:
            return
        layers, *others = map(_cut, self.start, self.stop, shape, first)
        rows, columns = map(list, others)  # but not the layers, of which there may be any number
        for az, bz in layers:
            for ay, by in rows:
                for ax, bx in columns:
                    yield Box((az, ay, ax), (bz, by, bx), self.volume)


def _cut(start: int, stop: int, length: int, first: int) -> Iterator[tuple[int, int]]:
    """Cut an interval along cells of a length, of which a border lies `first` before 0."""
    for border in range((start + first) // length * length - first, stop, length):
        yield max(start, border), min(stop, border + length)
