"""How does a block become one of the next level while it is in memory? By means of neighbours, to the bit of `exact`'s.

Sums of eight integers of 8 or 16 bits have no rounding, so however they are added, the mean, rounded half to even, is
that of any other way. Neighbours along x lie in one integer of twice the width, which adds them without a copy: so this
takes a third of the time that encoding does, where reading the level back would take that of decoding, and the disk's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import Float3

Voxels = NDArray[Any]


def halved(voxels: Voxels, factor: Float3, shape: Index3) -> Voxels:
    """Return the means of neighbours along the axes that are halved, rounded half to even.

    Parameters
    ----------
    voxels
        Of a whole block, C-contiguous, z, y, x; integers of 8 or 16 bits.
    factor
        0.5 for each axis that is halved, else 1.
    shape
        Of the result. Where an axis is odd it may leave the last voxel out, or have one that is all it.

    Examples
    --------
    >>> halved(np.array([[[1, 2, 9]]], np.uint8), (1.0, 1.0, 0.5), (1, 1, 2))
    array([[[2, 9]]], dtype=uint8)
    """
    halves = [f == 0.5 for f in factor]
    # What has no neighbour gets itself for one, which leaves the mean as it is.
    before = [n * (2 if half else 1) for n, half in zip(shape, halves, strict=True)]
    voxels = voxels[: before[0], : before[1], : before[2]]
    missing = [(0, b - n) for b, n in zip(before, voxels.shape, strict=True)]
    result = np.empty(shape, voxels.dtype)
    step = 2 if halves[0] else 1
    for z, plane in enumerate(result):
        rows = [_padded(row, missing[1:]) for row in voxels[z * step : (z + 1) * step]]
        total = _across(rows[0], halves[2])
        if halves[0]:
            total += _across(rows[-1], halves[2])
        if halves[1]:
            total = total[0::2] + total[1::2]
        plane[...] = _rounded(total, sum(halves))
    return result


def _padded(plane: Voxels, missing: list[tuple[int, int]]) -> Voxels:
    """Return a plane in one piece, its rim repeated where an axis is odd."""
    return np.ascontiguousarray(np.pad(plane, missing, "edge") if any(after for _, after in missing) else plane)


def _across(plane: Voxels, half: bool) -> Voxels:
    """Return the sums of neighbours along x, or the voxels themselves, in twice the width."""
    bits = 8 * plane.dtype.itemsize
    wide = np.dtype(f"{plane.dtype.kind}{bits // 4}")
    if not half:
        return plane.astype(wide)
    both = plane.view(wide)
    # The one moved up and down again, which keeps its sign; the other moved down.
    total: Voxels = ((both << wide.type(bits)) >> wide.type(bits)) + (both >> wide.type(bits))
    return total


def _rounded(total: Voxels, halvings: int) -> Voxels:
    """Return sums divided by 2 so many times, rounded half to even, where they are."""
    if halvings:
        even = (total >> halvings) & 1
        total += (1 << (halvings - 1)) - 1
        total += even
        total >>= halvings
    return total
