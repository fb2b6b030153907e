"""Parts of a plan: what it knows of its input, and blocks, each computed from its index."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isovoxel.geometry.box import Box, Index3
from isovoxel.geometry.grid import VoxelGrid


@dataclass(frozen=True, slots=True)
class Source:
    """What a plan knows of its input."""

    name: str
    """What the user called it."""
    grid: VoxelGrid
    """Where its voxels lie."""
    dtype: str
    """NumPy name of its dtype, which is the output's dtype as well."""
    chunks: Index3
    """What its storage decodes in one go."""
    read_overhead: int
    """Bytes that reading a box holds beside the voxels it returns."""
    identity: Mapping[str, Any]
    """What tells this input from another or a later one."""
    caches: bool = False
    """Whether its reader can keep decoded chunks, so that blocks which share some decode them once."""
    notes: tuple[str, ...] = ()
    """What else a user should know before reading it, each a clause."""
    beside: tuple[Index3, Index3] = ((0, 0, 0), (0, 0, 0))
    """Voxels of its chunks that lie before it, and after it, where it is a part of a larger volume: they are decoded as
    well."""
    series: tuple[tuple[str, int], ...] = ()
    """Names and lengths of the axes beside z, y and x, "t" before "c", where it is a series of volumes."""

    @property
    def decoded_shape(self) -> Index3:
        """Voxels of all its chunks, per axis."""
        z, y, x = (a + n + b for a, n, b in zip(self.beside[0], self.grid.shape, self.beside[1], strict=True))
        return (z, y, x)

    @property
    def n_volumes(self) -> int:
        """Number of volumes, which all lie alike."""
        return math.prod(length for _, length in self.series)

    @property
    def itemsize(self) -> int:
        """Bytes of a voxel."""
        return np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Block:
    """One compute task: it reads one box of the input and writes one box of the output."""

    index: int
    """Its place in the plan's order: volume by volume, z slowest."""
    write_box: Box
    """Output voxels it writes."""
    read_box: Box
    """Input voxels it reads, halo included, inside the volume."""
    pad_before: Index3
    """How many times the rim of the read box is repeated before it, per axis: where the volume ends, and where what
    comes next has no weight."""
    pad_after: Index3
    """The same after it."""
    level: int = 0
    """Which level of the output it writes."""

    def __str__(self) -> str:
        return f"block {self.index} of level {self.level}" if self.level else f"block {self.index}"

    @property
    def padded_shape(self) -> Index3:
        """Shape of what the device gets: the read box with its pads."""
        n, a, b = self.read_box.shape, self.pad_before, self.pad_after
        return (n[0] + a[0] + b[0], n[1] + a[1] + b[1], n[2] + a[2] + b[2])
