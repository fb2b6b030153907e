"""`Box`: half-open integer intervals along z, y and x, in one of a series of volumes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product

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
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
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

    def __and__(self, other: Box) -> Box:
        """Return what both boxes share, in the volume of this one; empty (size 0) where they share nothing."""
        start = _index3(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = _index3(max(s, min(a, b)) for s, a, b in zip(start, self.stop, other.stop, strict=True))
        return Box(start, stop, self.volume)

    def contains(self, other: Box) -> bool:
        """Tell whether every voxel of `other` is a voxel of this box."""
        return (self & other) == other

    def relative_to(self, origin: Index3) -> Box:
        """Return the same voxels as seen from an array whose voxel 0 is `origin`."""
        return self.shifted(_index3(-o for o in origin))

    def shifted(self, by: Index3) -> Box:
        """Return the same voxels as seen from an array in which this one's voxel 0 is `by`."""
        return Box(
            _index3(a + o for a, o in zip(self.start, by, strict=True)),
            _index3(b + o for b, o in zip(self.stop, by, strict=True)),
            self.volume,
        )

    def of(self, volume: int) -> Box:
        """Return the same box in another volume of the series."""
        return replace(self, volume=volume)

    def tiles(self, shape: Index3) -> Iterator[Box]:
        """Cut the box along the grid of cells of this shape that starts at voxel 0 of the volume.

        Every voxel of the box is in one tile, and no tile crosses a cell's border; z varies slowest.
        """
        ranges = [
            range(a // n * n, b, n) if b > a else range(0) for a, b, n in zip(self.start, self.stop, shape, strict=True)
        ]
        for corner in product(*ranges):
            cell = Box(_index3(corner), _index3(c + n for c, n in zip(corner, shape, strict=True)))
            yield self & cell


def _index3(values: Iterator[int] | tuple[int, ...]) -> Index3:
    z, y, x = values
    return (z, y, x)
