"""Halve a block to one of the next level while it is in memory, to the bit as engine `exact` does.

Sums of eight integers of 8 or 16 bits have no rounding, so however they are added, the mean, rounded half to even, is
that of any other way. Neighbours along x lie in one integer of twice the width, which adds them without a copy.

Slab by slab, in memory that a thread keeps: for new memory threads take turns at the system (measured: on 16 threads
that took as long again as all the rest).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.grid import Float3, Index3

Voxels = NDArray[Any]

SLAB = 2**21
"""Voxels that are added at a time. Fewer take Python's lock more often, for which the threads of many blocks wait: of
2^19, 16 threads together do a third as many a second (measured); more take more memory."""
ROOM = 2
"""How many times the bytes of a slab each of the two memories for sums has: sums are twice as wide as voxels."""


def slab_planes(shape: Index3) -> int:
    """Return how many planes of a block of this shape are added at a time: an even number."""
    return min(max(2, SLAB // (shape[1] * shape[2]) // 2 * 2), shape[0] + shape[0] % 2)


def scratch_bytes(shape: Index3, itemsize: int) -> int:
    """Return the bytes that a thread keeps for blocks of this shape, beside its results."""
    return 2 * ROOM * (slab_planes(shape) + 1) * (shape[1] + 1) * (shape[2] + 1) * itemsize


class Halver:
    """Halves blocks, in memory that is kept from one to the next; for one thread at a time."""

    def __init__(self) -> None:
        self._result = np.empty(0, np.uint8)
        self._sums = (np.empty(0, np.uint8), np.empty(0, np.uint8))

    def __call__(self, voxels: Voxels, factor: Float3, shape: Index3) -> Voxels:
        """Return the means of neighbours along the axes that are halved, rounded half to even; until the next call.

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
        >>> Halver()(np.array([[[1, 2, 9]]], np.uint8), (1.0, 1.0, 0.5), (1, 1, 2))
        array([[[2, 9]]], dtype=uint8)
        """
        halves = [f == 0.5 for f in factor]
        nz, ny, nx = (n * (2 if half else 1) for n, half in zip(shape, halves, strict=True))
        planes = slab_planes((nz, ny, nx))
        self._make_room(voxels.dtype.itemsize, shape, planes * ny * nx)
        result = _view(self._result, voxels.dtype, shape)
        for z in range(0, nz, planes):
            slab = _whole(voxels[z : z + planes], (min(planes, nz - z), ny, nx))
            total = self._added(slab, halves)
            first = z // 2 if halves[0] else z
            result[first : first + len(total)] = total
        return result

    def _make_room(self, itemsize: int, shape: Index3, slab: int) -> None:
        written = shape[0] * shape[1] * shape[2] * itemsize
        if self._result.size < written:
            self._result = np.empty(written, np.uint8)
        if self._sums[0].size < ROOM * slab * itemsize:
            self._sums = (np.empty(ROOM * slab * itemsize, np.uint8), np.empty(ROOM * slab * itemsize, np.uint8))

    def _added(self, slab: Voxels, halves: list[bool]) -> Voxels:
        """Return the means of a slab, in twice the width, in one of the memories."""
        one, other = self._sums
        bits = 8 * slab.dtype.itemsize
        wide = np.dtype(f"{slab.dtype.kind}{bits // 4}")
        if halves[2]:
            both = slab.view(wide)
            # The one moved up and down again, which keeps its sign; the other moved down.
            total, right = _view(one, wide, both.shape), _view(other, wide, both.shape)
            np.left_shift(both, wide.type(bits), out=total)
            np.right_shift(total, wide.type(bits), out=total)
            np.right_shift(both, wide.type(bits), out=right)
            np.add(total, right, out=total)
        else:
            total = _view(one, wide, slab.shape)
            total[...] = slab
        for axis in (0, 1):
            if halves[axis]:
                even, odd = (total[first::2] if axis == 0 else total[:, first::2] for first in (0, 1))
                one, other = other, one
                total = _view(one, wide, even.shape)
                np.add(even, odd, out=total)
        return _rounded(total, _view(other, wide, total.shape), sum(halves))


def _rounded(total: Voxels, spare: Voxels, halvings: int) -> Voxels:
    """Divide sums by 2 so many times, rounded half to even, and return them."""
    if halvings:
        np.right_shift(total, halvings, out=spare)
        np.bitwise_and(spare, 1, out=spare)
        np.add(spare, (1 << (halvings - 1)) - 1, out=spare)
        np.add(total, spare, out=total)
        np.right_shift(total, halvings, out=total)
    return total


def _view(memory: NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Voxels:
    """Return the first bytes of a memory as an array."""
    count = int(np.prod(shape))
    array: Voxels = memory[: count * dtype.itemsize].view(dtype).reshape(shape)
    return array


def _whole(slab: Voxels, shape: Index3) -> Voxels:
    """Return a slab of a shape, in one piece; what has no neighbour gets itself for one, which leaves the mean."""
    slab = slab[: shape[0], : shape[1], : shape[2]]
    missing = [(0, n - there) for n, there in zip(shape, slab.shape, strict=True)]
    return np.ascontiguousarray(np.pad(slab, missing, "edge") if any(after for _, after in missing) else slab)
