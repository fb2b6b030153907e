"""How many bytes does one block take, on the device and on the host, every copy counted?

The sums are plain so that they can be checked against what is really allocated::

    device  = 4 * padded   input buffer, float32
            + 4 * padded   input image, for the texture unit (linear only)
            + 4 * written  output buffer, float32
            + 64           the 4 x 4 float32 matrix

    host    = 4 * padded   staging of the input, float32       (for each block in flight)
            + 4 * written  staging of the output, float32
            + itemsize * read      the source's voxels (twice with map_overlap: joining a halo copies)
            + itemsize * written   the result's voxels
            + max(decode, encode)  what reading or writing holds for a moment beside its voxels

where `read`, `padded` and `written` are numbers of voxels: of the read box, of the read box with the rim that is
repeated around the volume, and of the write box. That is the `cle` engine; `exact` keeps the source's dtype::

    device  = itemsize * read      input
            + sum * between        what each pass but the last leaves, sums of 4 or 8 bytes
            + itemsize * written   output
            + tables               first sample and weights of each row, of the axis that has most of them

    host    = itemsize * read      the source's voxels (three times with map_overlap: joined, then cut to the read box)
            + itemsize * written   the result's voxels
            + max(decode, encode)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import AXES
from isovoxel.planning.limits import DeviceLimits

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

    @property
    def device(self) -> int:
        """Projected bytes on the device."""
        return sum(a.nbytes for a in self.allocations)

    @property
    def largest(self) -> Allocation:
        """The largest allocation on the device."""
        return max(self.allocations, key=lambda a: a.nbytes)

    def excess(self, limits: DeviceLimits) -> str:
        """Say which limit of the device this cost exceeds, with both numbers; empty where it fits."""
        if self.image is not None and any(n > most for n, most in zip(self.image, limits.image_shape, strict=True)):
            return f"a 3-D image of {self.image} voxels, but {limits.name} takes at most {limits.image_shape}"
        if self.voxels > limits.buffer_voxels:
            return f"{self.voxels:,} voxels in one buffer, but OpenCL kernels count at most {limits.buffer_voxels:,}"
        if self.largest.nbytes > limits.largest_allocation:
            return (
                f"{human_bytes(self.largest.nbytes)} for its {self.largest.name}, but {limits.name} "
                f"allocates at most {human_bytes(limits.largest_allocation)} at once"
            )
        if self.device > limits.allowed:
            return f"{human_bytes(self.device)} on {limits.name}, of which {human_bytes(limits.allowed)} are allowed"
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


def cle_cost(
    *,
    read: Index3,
    padded: Index3,
    written: Index3,
    itemsize: int,
    interpolation: str,
    decode: int,
    encode: int,
    overlap: bool,
) -> BlockCost:
    """Return the projected bytes of one block under the `cle` engine, as the module says.

    Parameters
    ----------
    read, padded, written
        Shapes of the read box, of the padded read box and of the write box, z, y, x.
    itemsize
        Bytes of a voxel in input and output.
    interpolation
        "linear" or "nearest".
    decode, encode
        Bytes that reading and writing hold for a moment beside their arrays.
    overlap
        Whether the block reaches the engine as a dask block joined with its halo, beside which dask keeps the
        blocks it was joined from.
    """
    return BlockCost(
        allocations=cle_allocations(padded, written, interpolation),
        image=padded if interpolation == "linear" else None,
        voxels=max(math.prod(padded), math.prod(written)),
        host=FLOAT * (math.prod(padded) + math.prod(written))
        + itemsize * math.prod(read) * (2 if overlap else 1)
        + itemsize * math.prod(written)
        + max(decode, encode),
    )


def exact_cost(
    *,
    read: Index3,
    written: Index3,
    order: tuple[int, ...],
    widths: Index3,
    itemsize: int,
    sum_bytes: int,
    moves: bool,
    decode: int,
    encode: int,
    overlap: bool,
) -> BlockCost:
    """Return the projected bytes of one block under the `exact` engine, as the module says.

    Parameters
    ----------
    read, written
        Shapes of the read box and of the write box, z, y, x.
    order
        Axes in the order of their passes; axes that stay as they are have none.
    widths
        Weights per row of each axis' table.
    itemsize, sum_bytes
        Bytes of a voxel, and of a weight or sum.
    moves
        Whether voxels are moved, not summed (nearest, mode): then there is one pass for all axes.
    decode, encode, overlap
        As in `cle_cost`.
    """
    allocations = [Allocation("input", itemsize * math.prod(read))]
    shape = list(read)
    for axis in order[:-1] if not moves else ():
        shape[axis] = written[axis]
        allocations.append(Allocation(f"sums after {AXES[axis]}", sum_bytes * math.prod(shape)))
    allocations.append(Allocation("output", itemsize * math.prod(written)))
    if moves:
        tables = sum(3 * INDEX * n for n in written)
    else:
        tables = max((written[axis] * (INDEX + sum_bytes * widths[axis]) for axis in order), default=0)
    allocations.append(Allocation("tables", tables))
    return BlockCost(
        allocations=tuple(allocations),
        image=None,
        voxels=0,
        host=itemsize * math.prod(read) * (3 if overlap else 1) + itemsize * math.prod(written) + max(decode, encode),
    )


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
