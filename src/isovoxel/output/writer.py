"""Writes blocks into OME-Zarr shard by shard: a shard is one file, written once, by one task.

A block is a union of whole shards, so no file is ever read back to change a part of it, and tasks never meet
in one. A shard of nothing but zeros is no file where empty chunks are skipped, and the ledger and then the output's
attributes say which these are: any other file that is missing means work not done.

`isovoxel.output.ome_zarr` makes the group and the arrays; `isovoxel.output.encoder` encodes the shards;
`isovoxel.output.shard_store` knows where they lie. In an object store they are objects, and the group's metadata,
written last, are what makes it an output.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.cuda import Voxels
from isovoxel.codecs.gpu import GpuEncoder
from isovoxel.geometry.grid import Box, VoxelGrid
from isovoxel.metadata.series import place_of_volume
from isovoxel.object_store.objects import ObjectPlace, Place, place_of
from isovoxel.output.attempt import Attempt
from isovoxel.output.encoder import ShardEncoder, default_helpers
from isovoxel.output.shard import PendingShard, ShardReceipt, ShardWriter
from isovoxel.output.shard_store import ShardPlace, store_of
from isovoxel.planning.chunking import Storage
from isovoxel.planning.plan import Plan


class OmeZarrWriter:
    """Writes one level of a volume, block by block, into a group that `isovoxel.output.ome_zarr.create_output` made.

    `write` may be called from several threads at once for boxes that share no voxel.

    Parameters
    ----------
    path
        The group.
    grid, dtype, storage
        Of the level, as it was made.
    level
        Which one.
    series
        Lengths of the axes along which there are several volumes.
    helpers
        Threads that may encode beside those that call `write`, see `isovoxel.output.encoder.ShardEncoder`; by default
        all cores but one.
    attempt
        The hold of the output's lock that this is done for: its holder has called
        `isovoxel.output.ome_zarr.begin_attempt`, and nothing is written once another process has taken the output over.
        None where nobody else can be writing.
    gpu, on_processor
        As in `ShardEncoder`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | ObjectPlace,
        *,
        grid: VoxelGrid,
        dtype: np.dtype[Any],
        storage: Storage,
        level: int = 0,
        series: Sequence[int] = (),
        helpers: int | None = None,
        attempt: Attempt | None = None,
        gpu: GpuEncoder | None = None,
        on_processor: Callable[[str], None] | None = None,
    ) -> None:
        helpers = default_helpers() if helpers is None else helpers
        self._encoder = ShardEncoder(storage, dtype, helpers, gpu, on_processor)
        self.spare = self._encoder.spare
        """Says how many cores nobody else needs; threads that help to encode take no more."""
        self._store = store_of(place_of(path), level, storage.zarr_format, attempt)
        self._shape = grid.shape
        self._series = tuple(series)

    @classmethod
    def of_plan(
        cls,
        path: Place,
        plan: Plan,
        helpers: int | None = None,
        attempt: Attempt | None = None,
        gpu: GpuEncoder | None = None,
        on_processor: Callable[[str], None] | None = None,
    ) -> Self:
        """Return a writer of what a plan makes, a level of an output."""
        return cls(
            path,
            grid=plan.output,
            dtype=np.dtype(plan.source.dtype),
            storage=plan.storage,
            level=plan.level,
            series=[length for _, length in plan.source.series],
            helpers=helpers,
            attempt=attempt,
            gpu=gpu,
            on_processor=on_processor,
        )

    def write(self, box: Box, data: NDArray[Any]) -> list[ShardReceipt]:
        """Write a box of whole shards, and return their receipts, in the order of `Box.tiles`; see `encode`."""
        shards = box.tiles(self._encoder.storage.shard)
        return [self.encode(shard, data[shard.slices_from(box.start)]).seal() for shard in shards]

    @property
    def takes_parts(self) -> bool:
        """Whether `encode` takes a part of a shard."""
        return self._encoder.takes_parts

    def encode(self, box: Box, data: Voxels, part: Box | None = None) -> PendingShard:
        """Encode one shard; it is at its place when it is sealed.

        Parameters
        ----------
        box
            Voxels of the output: those of a shard, clipped where the volume ends.
        data
            Their values, of the output's dtype and the shape of the box or its part, on the host or a GPU.
        part
            Whole chunks of the shard, where the others are known to be empty.

        Raises
        ------
        ValueError
            If the box is no shard, the part is none of whole chunks of it, or the data have another shape or dtype.
        OSError
            If the file system refuses, such as a disk that is full. Nothing is left of the shard then.
        """
        part = box if part is None else part
        self._check(box, part, data)
        if self._encoder.is_empty(data):
            return self.leave_out(box)
        shard = self._store.begin(self._place(box), self._encoder.storage)
        if not self._encoder.encode(shard, data, None if part == box else box.relative_to(part.start).of(0)):
            return self.leave_out(box)
        return shard

    def encode_together(self, box: Box, data: Voxels) -> list[PendingShard] | None:
        """Encode the shards of a box in batches of a GPU; None where it does not, and each is to be encoded alone.

        Parameters
        ----------
        box
            Voxels of whole shards of the output, clipped where the volume ends.
        data
            Their values, on the host or a GPU.

        Raises
        ------
        OSError
            If the file system refuses. Nothing is left of the shards then.
        """
        boxes = list(box.tiles(self._encoder.storage.shard))
        if self._encoder.takes_parts or len(boxes) == 1:
            return None
        shards: list[ShardWriter] = []
        stored: list[bool] | None = None
        try:
            for shard in boxes:
                self._check(shard, shard, data[shard.slices_from(box.start)])
                shards.append(self._store.begin(self._place(shard), self._encoder.storage))
            stored = self._encoder.encode_together(shards, data)
        finally:
            for writer, kept in zip(shards, stored or repeat(False), strict=False):
                if not kept:
                    writer.drop()
        if stored is None:
            return None
        return [
            writer if kept else self.leave_out(shard) for shard, writer, kept in zip(boxes, shards, stored, strict=True)
        ]

    def leave_out(self, box: Box) -> PendingShard:
        """Make no file of a shard that is empty; see `encode`."""
        return self._store.leave_out(self._place(box))

    def holds(self, box: Box, receipts: Sequence[ShardReceipt], *, read: bool = False) -> bool:
        """Tell whether all shards of a box are there with these receipts; with `read`, whatever their time says."""
        shards = list(box.tiles(self._encoder.storage.shard))
        return len(shards) == len(receipts) and all(
            self._store.holds(self._place(shard), receipt, read=read)
            for shard, receipt in zip(shards, receipts, strict=True)
        )

    def close(self) -> None:
        """End the writer's threads and let go of their memory; what is incomplete stays marked so."""
        self._encoder.close()
        self._store.close()

    def _check(self, box: Box, part: Box, data: Voxels) -> None:
        shard, chunk, dtype = self._encoder.storage.shard, self._encoder.storage.chunk, self._encoder.dtype
        ends = zip(box.start, box.stop, shard, self._shape, strict=True)
        if any(a % s or not a < b == min(a + s, n) for a, b, s, n in ends):
            raise ValueError(
                f"the box {box.start} to {box.stop} is no shard of {shard} voxels in a volume of {self._shape}"
            )
        ends = zip(part.start, part.stop, box.stop, chunk, strict=True)
        if not box.contains(part) or any(a % c or (b % c and b != end) for a, b, end, c in ends):
            raise ValueError(f"{part.start} to {part.stop} are no whole chunks of the shard {box.start} to {box.stop}")
        if data.shape != part.shape or data.dtype != dtype:
            raise ValueError(
                f"the box {part.start} to {part.stop} takes {dtype} of shape {part.shape}, "
                f"not {data.dtype} of shape {data.shape}"
            )

    def _place(self, shard: Box) -> ShardPlace:
        """Return the place of a shard in the grid of shards."""
        inside = (a // n for a, n in zip(shard.start, self._encoder.storage.shard, strict=True))
        return (*place_of_volume(self._series, shard.volume), *inside)
