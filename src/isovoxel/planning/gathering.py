"""Memory of making blocks of further levels while blocks of the full one are in memory.

Blocks of the full level come in their order, z slowest, and each becomes a part of a level: so many voxels per axis. A
block of the level is open from its first part to its last. How many are open at a time follows, per axis, from how many
blocks a part touches, and from whether blocks lie in several parts: those along x wait for the next part, those along y
for the next row of parts, those along z for the next layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from isovoxel.geometry.box import Index3
from isovoxel.geometry.downsampling import scratch_bytes
from isovoxel.planning.chunking import seal_overhead, write_overhead

if TYPE_CHECKING:
    from isovoxel.planning.plan import Plan


class _Parts(NamedTuple):
    """How blocks of a level are put together."""

    level: Plan
    before: Plan
    touched: Index3
    """How many blocks a part touches at most, along each axis."""
    crosses: tuple[bool, bool, bool]
    """Whether blocks, or those of a level before that they wait for, lie in several parts, along each axis."""


def open_blocks(levels: Sequence[Plan], in_flight: int) -> int:
    """Return how many blocks of a level are open at a time, at most, while those of the full level come in their order.

    Parameters
    ----------
    levels
        The plans from level 1 to this one, all of which are made along.
    in_flight
        Blocks of the full level that are made at the same time.
    """
    *_, (level, _, touched, crosses) = _parts(levels)
    z, y, _ = touched
    _, ny, nx = level.block_grid
    # A block of a later level waits for whole blocks of the one before, of which one more may lie across.
    across = 1 if len(levels) == 2 else 2
    waiting = sum(across * n for cross, n in zip(crosses, (ny * nx, z * nx, z * y), strict=True) if cross)
    return min(level.n_blocks, 2 * in_flight * math.prod(touched) + waiting)


def bytes_along(plan: Plan) -> int:
    """Return the projected bytes of what all blocks in flight become of further levels, and of encoding that."""
    levels = plan.made_along
    if not levels:
        return 0
    first, itemsize = levels[0], plan.source.itemsize
    each = first.staging[1] + scratch_bytes(plan.largest.written, itemsize) + write_overhead(first.storage, itemsize)
    half = scratch = shared = 0
    for level, before, touched, _ in _parts(levels):
        written = before.largest.written
        half = max(half, itemsize * math.prod(math.ceil(n * f) for n, f in zip(written, level.factor, strict=True)))
        scratch = max(scratch, scratch_bytes(written, itemsize))
        # Beside those that are open, each thread holds some that are whole; one at a time encodes.
        held = min(level.n_blocks, level.gathered + plan.in_flight * math.prod(touched))
        shared += held * level.staging[1] + write_overhead(level.storage, itemsize)
        each += seal_overhead(level.storage, level.largest.written)
    return plan.in_flight * (each + half + scratch) + shared


def _parts(levels: Sequence[Plan]) -> Iterator[_Parts]:
    """Yield how the blocks of each level after the first are put together."""
    unit = [float(n) for n in levels[0].block_shape]
    crosses = [False, False, False]
    for before, level in pairwise(levels):
        unit = [n * f for n, f in zip(unit, level.factor, strict=True)]
        whole = [n * f for n, f in zip(before.block_shape, level.factor, strict=True)]
        touched = []
        for axis, (b, grid) in enumerate(zip(level.block_shape, level.block_grid, strict=True)):
            several = levels[0].block_grid[axis] > 1
            crosses[axis] |= several and unit[axis] % b != 0
            touched.append(max(_count(length, b, grid) for length in (unit[axis], whole[axis])))
        yield _Parts(level, before, (touched[0], touched[1], touched[2]), (crosses[0], crosses[1], crosses[2]))


def _count(length: float, block: int, grid: int) -> int:
    """Return how many blocks a part of a length touches at most, wherever in the grid of parts it lies."""
    if block % length == 0:
        return 1
    return min(grid, math.ceil(length / block) + (length % block != 0))
