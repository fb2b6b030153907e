"""Lazy dask arrays of plans: through `map_overlap`, each block with its halo.

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

import dask.array as da
import numpy as np
from dask.base import normalize_token, tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from isovoxel.engines.registry import open_engine
from isovoxel.geometry.box import Box, Index3
from isovoxel.planning.model import Block
from isovoxel.planning.optimizer import too_thin
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

    @property
    def output_chunks(self) -> tuple[tuple[int, ...], ...]:
        """The dask chunks of the window's output: its blocks."""
        return tuple(
            tuple(min(length, axis.m - i * length) for i in range(first, last))
            for axis, length, first, last in zip(
                self.plan.axes, self.plan.block_shape, self.places.start, self.places.stop, strict=True
            )
        )

    def source(self, read: Callable[[Index3, Box], NDArray[Any]]) -> Any:
        """Return the window's input as a lazy dask array, of which `read` makes each block by its place and box."""

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

    def scaled(self, array: Any, scale: ScaleBlock) -> Any:
        """Return the window's output as a lazy dask array.

        Parameters
        ----------
        array
            The voxels of `read_box` as a dask array in `input_chunks`.
        scale
            What makes each block's output.
        """
        prefix = {"token": "isovoxel"}  # of the name of the dask array; a hash of all that matters follows it
        return self._overlapped(array, scale, self.output_chunks, array.dtype, **prefix)

    def written(self, array: Any, write: ScaleBlock) -> Any:
        """Return a lazy dask array of one True per block, each the sign that `write` took care of that block.

        Parameters
        ----------
        array
            The voxels of `read_box` as a dask array in `input_chunks`.
        write
            Scales a block, writes it, and returns one True of shape (1, 1, 1).
        """
        ones = tuple((1,) * len(chunks) for chunks in self.output_chunks)
        return self._overlapped(array, write, ones, np.dtype(bool), name=f"write-{uuid4()}")

    def _overlapped(self, array: Any, function: ScaleBlock, chunks: Any, dtype: Any, **name: str) -> Any:
        return da.map_overlap(
            OverlappedBlock(self, function),
            array,
            depth=dict(enumerate(self.plan.halo)),
            boundary="none",
            trim=False,
            allow_rechunk=False,
            chunks=chunks,
            dtype=dtype,
            meta=np.empty((0, 0, 0), dtype),
            **name,
        )

    def place(self, block_id: tuple[int, ...]) -> Index3:
        """Return a block's place in the plan from its place in the window."""
        z, y, x = (a + i for a, i in zip(self.places.start, block_id, strict=True))
        return (z, y, x)

    def first_voxel(self, block_id: tuple[int, ...], before: Index3 = (0, 0, 0)) -> Index3:
        """Return the first input voxel of a block of the window, or so many voxels before it."""
        z, y, x = (max(int(cuts[0]), int(cuts[i]) - n) for cuts, i, n in zip(self.cuts, block_id, before, strict=True))
        return (z, y, x)


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
        return self.scale(voxels[block.read_box.relative_to(start).slices], block)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Return what tells one result from another."""
        return (self.window.plan.fingerprint, self.window.places, normalize_token(self.scale))


@dataclass(frozen=True)
class EngineBlock:
    """Scales a block on the device of whichever process it runs in."""

    plan: Plan
    """How."""
    device: str
    """On which device, as ``--device`` takes it."""

    def __call__(self, voxels: NDArray[Any], block: Block) -> NDArray[Any]:
        """Return the block's output."""
        return open_engine(self.plan.engine, self.device).scale(voxels, block, self.plan).data

    def __dask_tokenize__(self) -> tuple[str, str]:
        """Return what tells one result from another, which the memory free at this moment does not."""
        return (self.plan.fingerprint, self.device)


def scale_lazily(array: Any, plan: Plan, device: str) -> Any:
    """Return the scaled dask array that a plan makes of a dask array, in one graph.

    By `map_overlap`, which takes a halo from the next block only; where blocks are thinner than it, block by block from
    all chunks that each reads.
    """
    window, scale = OverlapWindow(plan, Box.whole(plan.block_grid)), EngineBlock(plan, device)
    if too_thin(plan):
        return _block_by_block(array, window, scale)
    return window.scaled(array.rechunk(window.input_chunks), scale)


def _block_by_block(array: Any, window: OverlapWindow, scale: ScaleBlock) -> Any:
    """Return the scaled dask array, each chunk of it made by one task from the array's chunks that it reads."""
    plan, name = window.plan, f"isovoxel-{tokenize(array, OverlappedBlock(window, scale))}"
    starts = [np.concatenate([[0], np.cumsum(chunks)]) for chunks in array.chunks]
    tasks: dict[Any, Any] = {}
    for place in np.ndindex(*plan.block_grid):
        block = plan.block_at(cast(Index3, place))
        runs = [
            range(int(np.searchsorted(edges, a, side="right")) - 1, int(np.searchsorted(edges, b, side="left")))
            for edges, a, b in zip(starts, block.read_box.start, block.read_box.stop, strict=True)
        ]
        first = tuple(int(edges[run.start]) for edges, run in zip(starts, runs, strict=True))
        chunks = [[[(array.name, z, y, x) for x in runs[2]] for y in runs[1]] for z in runs[0]]
        inside = block.read_box.relative_to(cast(Index3, first)).slices
        tasks[(name, *place)] = (_scale_joined, chunks, inside, scale, block)
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[array])
    return da.Array(graph, name, window.output_chunks, meta=np.empty((0, 0, 0), plan.source.dtype))


def _scale_joined(
    chunks: list[list[list[NDArray[Any]]]], inside: tuple[slice, ...], scale: ScaleBlock, block: Block
) -> NDArray[Any]:
    """Return a block's output, of the chunks around its input."""
    return scale(np.ascontiguousarray(np.block(chunks)[inside]), block)
