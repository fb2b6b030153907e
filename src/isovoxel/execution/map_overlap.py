"""Halo exchange of a job in dask graphs: through `map_overlap`, each block with its halo.

The input is cut where the output's blocks map back, and every block is scaled by itself. dask takes halos of equal
depth around blocks of unequal size, and the output's chunks are the plan's blocks::

    output blocks    |  0  |  1  |  2  |        regular, whole shards
    input cut        | 0 |  1 | 2  |            where the output's cuts map back, rounded to whole voxels
    with halo        [ 0 :]                     `depth` voxels of the neighbours on either side
                       [: 1  :]
                            [: 2  ]

A block knows its place; which voxels it holds, needs and makes, it looks up in the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.grid import Box, Index3, triple
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan

ScaleBlock = Callable[[NDArray[Any], Block], NDArray[Any]]
"""Makes a block's output from the voxels of its read box."""


@dataclass(frozen=True)
class OverlapWindow:
    """A box of blocks whose halo exchange happens in one dask graph."""

    plan: Plan
    """The whole plan."""
    places: Box
    """Which blocks of a volume, by their place in the grid of blocks."""

    @cached_property
    def cuts(self) -> list[NDArray[np.int64]]:
        """Input indices between which the blocks' own input lies, per axis; the outer ones include the halo."""
        result = []
        for axis, length, depth, first, last in zip(
            self.plan.axes,
            self.plan.block_shape,
            self.plan.halo,
            self.places.start,
            self.places.stop,
            strict=True,
        ):
            cuts = np.concatenate([[0], axis.cuts(axis.intervals(length)[1])])[first : last + 1]
            cuts[0] = max(0, cuts[0] - depth[0])
            cuts[-1] = min(axis.n, cuts[-1] + depth[1])
            result.append(cuts)
        return result

    @property
    def read_box(self) -> Box:
        """All input voxels that the window's blocks read, and no others."""
        cuts = self.cuts
        start, stop = (cast(Index3, tuple(int(c[end]) for c in cuts)) for end in (0, -1))
        return Box(start, stop, self.places.volume)

    @property
    def input_chunks(self) -> tuple[tuple[int, ...], ...]:
        """The dask chunks of the window's input."""
        return tuple(tuple(int(n) for n in np.diff(c)) for c in self.cuts)

    def source(self, read: Callable[[Index3, Box], NDArray[Any]]) -> Any:
        """Return the window's input as a lazy dask array, of which `read` makes each block by its place and box."""
        import dask.array as da  # which brings pandas, xarray and SciPy along, where they are installed

        def read_block(block_id: tuple[int, ...]) -> NDArray[Any]:
            place, start = self.place(block_id), self.first_voxel(block_id)
            stop = tuple(int(cuts[i + 1]) for cuts, i in zip(self.cuts, block_id, strict=True))
            return read(place, Box(start, cast(Index3, stop), self.places.volume))

        dtype = self.plan.source.dtype
        return da.map_blocks(
            read_block,
            chunks=self.input_chunks,
            dtype=dtype,
            meta=np.empty((0, 0, 0), dtype),
            name=f"read-{uuid4()}",
        )

    def written(self, array: Any, write: ScaleBlock) -> Any:
        """Return a lazy dask array of one True per block, each the sign that `write` took care of that block.

        Parameters
        ----------
        array
            The voxels of `read_box` as a dask array in `input_chunks`.
        write
            Scales a block, writes it, and returns one True of shape (1, 1, 1).
        """
        import dask.array as da

        return da.map_overlap(
            OverlappedBlock(self, write),
            array,
            depth=dict(enumerate(self.plan.halo)),
            boundary="none",
            trim=False,
            allow_rechunk=False,
            chunks=tuple((1,) * n for n in self.places.shape),
            dtype=bool,
            meta=np.empty((0, 0, 0), bool),
            name=f"write-{uuid4()}",
        )

    def place(self, block_id: tuple[int, ...]) -> Index3:
        """Return a block's place in the plan from its place in the window."""
        return triple(a + i for a, i in zip(self.places.start, block_id, strict=True))

    def first_voxel(self, block_id: tuple[int, ...], before: Index3 = (0, 0, 0)) -> Index3:
        """Return the first input voxel of a block of the window, or so many voxels before it."""
        return triple(
            max(int(cuts[0]), int(cuts[i]) - n) for cuts, i, n in zip(self.cuts, block_id, before, strict=True)
        )


@dataclass(frozen=True)
class OverlappedBlock:
    """What dask calls for each block: takes the read box out of the block and its halo, and scales it."""

    window: OverlapWindow
    """Where the block lies."""
    scale: ScaleBlock
    """What makes its output."""

    def __call__(self, voxels: NDArray[Any], block_id: tuple[int, ...]) -> NDArray[Any]:
        """Return the output of the block at this place of the window."""
        block = self.window.plan.block_at(self.window.place(block_id), self.window.places.volume)
        z, y, x = (before for before, _ in self.window.plan.halo)
        start = self.window.first_voxel(block_id, (z, y, x))
        return self.scale(voxels[block.read_box.slices_from(start)], block)
