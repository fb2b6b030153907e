"""Projected bytes of one block, on the device and on the host, every copy counted.

The sums are plain so that they can be checked against what is really allocated. Voxels travel in the source's dtype.
On the host, for each block in flight::

    host    = itemsize * read      the source's voxels, in memory that the device reaches
                                   (with map_overlap twice more: dask's block, and the block joined with its halo)
            + itemsize * written   the result's voxels, likewise
            + half                 those of levels 1 and 2 that are made of them on the device, behind them
            + decode + encode      what reading and writing hold beside their voxels

On the device, `lanes` is how many blocks' voxels lie there at a time: 2 on a GPU, where one is copied while the
kernels of another run, 1 on a CPU, whose kernels work in place: there these bytes are the host's. A GPU's driver also
keeps room on the device for pinned memory of the host (measured, NVIDIA): itemsize * (read + written) + half for each
block in flight, beside what stands here. The `cle` engine::

    device  = lanes * itemsize * read       input
            + lanes * (itemsize * written + half)   output
            + 4 * padded                    input buffer, float32
            + 4 * padded                    input image, for the texture unit (linear only)
            + 4 * written                   output buffer, float32
            + 64                            the 4 x 4 float32 matrix

where `read`, `padded` and `written` are numbers of voxels: of the read box, of the read box with the rim that is
repeated around the volume, and of the write box. The `exact` engine::

    device  = lanes * itemsize * read       input
            + lanes * (itemsize * written + half)   output
            + sum * between                 what each pass but the last leaves, sums of 4 or 8 bytes
            + lanes * tables                first sample and weights of each row, of all axes that change
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from isovoxel.geometry.grid import AXES, Index3
from isovoxel.geometry.resampling import scratch_bytes
from isovoxel.planning.chunking import seal_overhead, write_overhead
from isovoxel.planning.model import LANES, DeviceLimits

if TYPE_CHECKING:
    from isovoxel.planning.plan import Plan

FLOAT = 4
"""Bytes of a voxel on the device: cle computes in float32."""
INDEX = 4
"""Bytes of a sample's index in a table."""
MATRIX = 16 * FLOAT
"""Bytes of the affine matrix on the device."""


class Allocation(NamedTuple):
    """One allocation on the device."""

    name: str
    """What it holds."""
    nbytes: int
    """How large it is."""


@dataclass(frozen=True, slots=True)
class BlockCost:
    """Projected bytes of one block. All are exact integers."""

    allocations: tuple[Allocation, ...]
    """What is allocated on the device, all of it at the same time."""
    image: Index3 | None
    """Shape of the 3-D image among them, z, y, x, or None where there is none."""
    voxels: int
    """Voxels of the largest buffer, where the engine counts them in 32 bits, else 0."""
    host: int
    """Projected bytes on the host of one block in flight."""
    in_place: int
    """Of the bytes on the device, those that are the host's and count there."""
    pinned: int
    """Further bytes on the device of one block in flight, which the driver keeps for pinned host memory."""
    spilled: int = 0
    """Bytes on the host for the output of a block that has no room on the device until it is encoded there."""

    @property
    def device(self) -> int:
        """Projected bytes on the device."""
        return sum(a.nbytes for a in self.allocations)

    def on_device(self, in_flight: int) -> int:
        """Return the projected bytes on the device with so many blocks in flight."""
        return self.device + in_flight * self.pinned

    @property
    def largest(self) -> Allocation:
        """The largest allocation on the device."""
        return max(self.allocations, key=lambda a: a.nbytes)

    def excess(self, limits: DeviceLimits, in_flight: int = 1) -> str:
        """Say which limit of the device this cost exceeds, with both numbers; empty where it fits.

        Parameters
        ----------
        limits
            Of the device.
        in_flight
            How many blocks' voxels are pinned on the host.
        """
        if self.image is not None and any(n > most for n, most in zip(self.image, limits.image_shape, strict=True)):
            return f"a 3-D image of {self.image} voxels, but {limits.name} takes at most {limits.image_shape}"
        if self.voxels > limits.buffer_voxels:
            return f"{self.voxels:,} voxels in one buffer, but OpenCL kernels count at most {limits.buffer_voxels:,}"
        if self.largest.nbytes > limits.largest_allocation:
            return (
                f"{human_bytes(self.largest.nbytes)} for its {self.largest.name}, but {limits.name} "
                f"allocates at most {human_bytes(limits.largest_allocation)} at once"
            )
        if (taken := limits.taken + self.on_device(in_flight)) > limits.allowed:
            return f"{human_bytes(taken)} on {limits.name}, of which {human_bytes(limits.allowed)} are allowed"
        return ""


def cle_allocations(padded: Index3, written: Index3, interpolation: str) -> tuple[Allocation, ...]:
    """Return what one ``cle.scale`` or ``cle.affine_transform`` call holds on the device at its peak.

    Parameters
    ----------
    padded, written
        Shapes of the input and the output array, z, y, x.
    interpolation
        "linear" goes through the texture unit and needs an image of the input beside its buffer; "nearest" does not.
    """
    source = FLOAT * math.prod(padded)
    image = [Allocation("input image", source)] if interpolation == "linear" else []
    return (
        Allocation("input buffer", source),
        *image,
        Allocation("output buffer", FLOAT * math.prod(written)),
        Allocation("matrix", MATRIX),
    )


def thick(shape: Index3) -> Index3:
    """Return a shape of at least two voxels a side, as pyclesperanto gets arrays."""
    z, y, x = (max(2, n) for n in shape)
    return (z, y, x)


def cle_cost(
    *,
    read: Index3,
    padded: Index3,
    written: Index3,
    half: int,
    itemsize: int,
    interpolation: str,
    device: DeviceLimits,
    decode: int,
    encode: int,
    overlap: bool,
) -> BlockCost:
    """Return the projected bytes of one block under the `cle` engine, as the module says.

    Parameters
    ----------
    read, padded, written
        Shapes of the read box, of the padded read box and of the write box, z, y, x.
    half
        Bytes of what is made of it on the device on further levels.
    itemsize
        Bytes of a voxel in input and output.
    interpolation
        "linear" or "nearest".
    device
        Says how many blocks' voxels lie on the device at a time.
    decode, encode
        Bytes that reading and writing hold beside their arrays.
    overlap
        Whether the block reaches the engine as a dask block joined with its halo, beside which dask keeps the
        blocks it was joined from.
    """
    return _cost(
        itemsize * math.prod(read),
        itemsize * math.prod(written) + half,
        cle_allocations(thick(padded), thick(written), interpolation),
        device=device,
        beside=decode + encode,
        overlap=overlap,
        image=padded if interpolation == "linear" else None,
        voxels=max(math.prod(padded), math.prod(written)),
    )


def exact_cost(
    *,
    read: Index3,
    written: Index3,
    half: int,
    passes: tuple[tuple[int, ...], ...],
    widths: Index3,
    itemsize: int,
    sum_bytes: int,
    moves: bool,
    device: DeviceLimits,
    decode: int,
    encode: int,
    overlap: bool,
    kept: int = 0,
) -> BlockCost:
    """Return the projected bytes of one block under the `exact` engine, as the module says.

    Parameters
    ----------
    read, written
        Shapes of the read box and of the write box, z, y, x.
    half
        As in `cle_cost`.
    passes
        Axes of each pass, in their order; axes that stay as they are have none.
    widths
        Weights per row of each axis' table.
    itemsize, sum_bytes
        Bytes of a voxel, and of a weight or sum.
    moves
        Whether voxels are moved, not summed (nearest, mode, smooth): then there is one pass for all axes.
    device, decode, encode, overlap
        As in `cle_cost`.
    kept
        Bytes of a block, and of its block of level 1, that stay on the device until they are encoded there.
    """
    sums, shape = [], list(read)
    for axes in passes[:-1] if not moves else ():
        for axis in axes:
            shape[axis] = written[axis]
        sums.append(Allocation(f"sums after {AXES[axes[-1]]}", sum_bytes * math.prod(shape)))
    if moves:
        # Nearest and mode have up to three indices a row, smooth an index and weights.
        tables = [max(3 * INDEX, INDEX + sum_bytes * width) * n for n, width in zip(written, widths, strict=True)]
    else:
        tables = [written[axis] * (INDEX + sum_bytes * widths[axis]) for axes in passes for axis in axes]
    voxels = itemsize * math.prod(written)
    cost = _cost(
        itemsize * math.prod(read),
        voxels + half,
        (*sums, Allocation("tables", LANES[device.kind] * sum(tables))),
        device=device,
        beside=decode + encode,
        overlap=overlap,
    )
    return replace(cost, host=cost.host - kept, spilled=voxels + half) if kept else cost


def _cost(
    read: int,
    written: int,
    allocations: Sequence[Allocation],
    *,
    device: DeviceLimits,
    beside: int,
    overlap: bool,
    image: Index3 | None = None,
    voxels: int = 0,
) -> BlockCost:
    """Return what a block costs whose voxels take so many bytes, beside what its engine allocates."""
    copies = LANES[device.kind] * [Allocation("input", read), Allocation("output", written)]
    return BlockCost(
        allocations=(*copies, *allocations),
        in_place=read + written if device.kind == "cpu" else 0,
        pinned=read + written if device.kind == "gpu" else 0,
        image=image,
        voxels=voxels,
        host=read * (3 if overlap else 1) + written + beside,
    )


# ---- further levels -------------------------------------------------------------------------------------------------

# Memory of making blocks of further levels while blocks of the full one are in memory.
#
# Blocks of the full level come in their order, z slowest, and each becomes a part of a level: so many voxels per axis.
# A block of the level is open from its first part to its last. How many are open at a time follows, per axis, from how
# many blocks a part touches, and from whether blocks lie in several parts: those along x wait for the next part, those
# along y for the next row of parts, those along z for the next layer.


WRITERS = 4
"""Threads that may write blocks of one level at the same time."""


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
        # Beside those that are open, each thread holds some that are whole.
        held = min(level.n_blocks, level.gathered + plan.in_flight * math.prod(touched))
        shared += held * level.staging[1] + min(plan.in_flight, WRITERS) * write_overhead(level.storage, itemsize)
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


# ---- text ----------------------------------------------------------------------------------------------------------


def human_bytes(nbytes: float) -> str:
    """Return a size for people, in binary units.

    Examples
    --------
    >>> human_bytes(8 * 2**30), human_bytes(1536)
    ('8.0 GiB', '1.5 KiB')
    """
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} EiB"
