"""How do blocks become OME-Zarr? Shard by shard: a shard is one file, written once, by one task.

A block is a union of whole shards, so no file is ever read back to change a part of it, and tasks never meet
in one. A shard of nothing but zeros is no file where empty chunks are skipped, and the ledger and then the output's
attributes say which these are: any other file that is missing means work not done.

`isovoxel.output.skeleton` makes the group and the arrays; `isovoxel.output.encoder` encodes the shards;
`isovoxel.output.shard_store` knows where they lie. In an object store they are objects, and the group's metadata,
written last, are what makes it an output.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.gpu import GpuEncoder
from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Box
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.metadata.ome import image_attributes, read_levels
from isovoxel.metadata.series import SeriesAxis, place_of_volume
from isovoxel.object_store.addresses import Place, place_of
from isovoxel.object_store.files import sync_folder
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.zarr_nodes import change_attributes, read_array, read_attributes
from isovoxel.output.attempt import Attempt, end_attempts, make_folders
from isovoxel.output.empty_shards import empty_of_level, shard_counts
from isovoxel.output.encoder import ShardEncoder, default_helpers
from isovoxel.output.membership import membership_of
from isovoxel.output.provenance import PROVENANCE
from isovoxel.output.shard import PendingShard, ShardReceipt
from isovoxel.output.shard_store import Flags, ShardPlace, ShardStore, level_path, store_of, sweep_files
from isovoxel.output.skeleton import Skeleton, create_files, create_objects
from isovoxel.planning.chunking import Storage
from isovoxel.planning.plan import Plan

_ATTEMPT = "attempt"
"""What is said in an output in a store of who makes it, while it is made."""


class OmeZarrWriter:
    """Writes one level of a volume into an OME-Zarr group, block by block; `create` makes one.

    `write` may be called from several threads at once for boxes that share no voxel.
    """

    def __init__(self, store: ShardStore, encoder: ShardEncoder, grid: VoxelGrid, series: Sequence[int] = ()) -> None:
        self._store = store
        self._encoder = encoder
        self._shape = grid.shape
        self._series = tuple(series)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | ObjectPlace,
        *,
        grid: VoxelGrid,
        dtype: np.dtype[Any],
        storage: Storage,
        provenance: Mapping[str, Any],
        further: Sequence[tuple[VoxelGrid, Storage]] = (),
        method: str | None = None,
        labels: bool = False,
        series: Sequence[SeriesAxis] = (),
        by_way_of: Place | None = None,
        helpers: int | None = None,
        attempt: Attempt | None = None,
    ) -> OmeZarrWriter:
        """Make the group and its arrays, without any voxel yet.

        Parameters
        ----------
        path
            Where the group shall be; `isovoxel.output.destination.check_destination` has been asked.
        grid
            Shape of the output, and where its voxels lie.
        dtype
            Of the voxels.
        storage
            Chunks, shards, codec and version of OME-Zarr.
        provenance
            What made the output, as JSON values; kept in the group's attribute "isovoxel".
        further
            Grid and storage of each further level.
        method
            How these are made, in a word.
        labels
            Whether the voxels are labels.
        series
            Axes along which there are several volumes.
        by_way_of
            A path on the same file system where it is made, before it is moved to its place: then it is there whole
            or not at all. In an object store, where the ledger notes that it is being made.
        helpers
            Threads that may encode beside those that call `write`, see `isovoxel.output.encoder.ShardEncoder`;
            by default all cores but one.
        attempt
            The hold of the output's lock that this is done for, which `begin_attempt` lets write.

        Raises
        ------
        OutputExistsError
            If something is there.
        OSError
            If the file system refuses.
        """
        target = place_of(path)
        name = target.name.removesuffix(".zarr").removesuffix(".ome") or target.name
        attributes = {
            **image_attributes(
                grid,
                name=name,
                path=level_path(0),
                further=[level for level, _ in further],
                method=method,
                labels=labels,
                series=series,
                version=storage.ome_zarr,
            ),
            PROVENANCE: {**provenance, "complete": False} | _named(target, attempt),
        }
        skeleton = Skeleton([(grid, storage), *further], dtype, attributes, series)
        if isinstance(target, ObjectPlace):
            create_objects(target, by_way_of, skeleton)
        else:
            create_files(target, by_way_of, skeleton)
        lengths = [axis.length for axis in series]
        return cls.open(target, grid=grid, dtype=dtype, storage=storage, series=lengths, helpers=helpers)

    @classmethod
    def open(
        cls,
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
    ) -> OmeZarrWriter:
        """Return a writer into a level of what `create` made, as it was made; the parameters are the same.

        Of a series, lengths are enough. Where there is an `attempt`, its holder has called `begin_attempt`, and
        nothing is written once another process has taken the output over.
        """
        helpers = default_helpers() if helpers is None else helpers
        encoder = ShardEncoder(storage, dtype, helpers, gpu, on_processor)
        return cls(store_of(place_of(path), level, storage.zarr_format, attempt), encoder, grid, series)

    @classmethod
    def of_plan(
        cls,
        path: Place,
        plan: Plan,
        helpers: int | None = None,
        attempt: Attempt | None = None,
        gpu: GpuEncoder | None = None,
        on_processor: Callable[[str], None] | None = None,
    ) -> OmeZarrWriter:
        """Return a writer of what a plan makes, a level of what `create` made; `gpu` as in `ShardEncoder`."""
        return cls.open(
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
        """Write a box of whole shards, and return their seals, in the order of `Box.tiles`; see `encode`."""
        shards = box.tiles(self._encoder.storage.shard)
        return [self.encode(shard, data[shard.relative_to(box.start).slices]).seal() for shard in shards]

    def encode(self, box: Box, data: NDArray[Any]) -> PendingShard:
        """Encode one shard; it is at its place when it is sealed.

        Parameters
        ----------
        box
            Voxels of the output: those of a shard, clipped where the volume ends.
        data
            Their values, of the box's shape and the output's dtype.

        Raises
        ------
        ValueError
            If the box is no shard, or the data are not the box's.
        OSError
            If the file system refuses, such as a disk that is full. Nothing is left of the shard then.
        """
        self._check(box, data)
        if self._encoder.is_empty(data):
            return self.leave_out(box)
        shard = self._store.begin(self._place(box), self._encoder.storage)
        self._encoder.encode(shard, data)
        return shard

    def leave_out(self, box: Box) -> PendingShard:
        """Make no file of a shard that is empty; see `encode`."""
        return self._store.leave_out(self._place(box))

    def holds(self, box: Box, seals: Sequence[ShardReceipt], *, read: bool = False) -> bool:
        """Tell whether all shards of a box are there with these seals; with `read`, whatever their time says."""
        shards = list(box.tiles(self._encoder.storage.shard))
        return len(shards) == len(seals) and all(
            self._store.holds(self._place(shard), seal, read=read) for shard, seal in zip(shards, seals, strict=True)
        )

    def sweep(self) -> None:
        """Remove what processes that were killed have left half written; no other process may be writing."""
        self._store.sweep()

    def spare(self, cores: int) -> None:
        """Say how many cores nobody else needs; threads that help to encode take no more."""
        self._encoder.spare(cores)

    def free_bytes(self) -> int:
        """Return how much room the disk has."""
        return self._store.free_bytes()

    def close(self) -> None:
        """End the writer's threads and let go of their memory; what is incomplete stays marked so."""
        self._encoder.close()
        self._store.close()

    def _check(self, box: Box, data: NDArray[Any]) -> None:
        shard, dtype = self._encoder.storage.shard, self._encoder.dtype
        ends = zip(box.start, box.stop, shard, self._shape, strict=True)
        if any(a % s or not a < b == min(a + s, n) for a, b, s, n in ends):
            raise ValueError(
                f"the box {box.start} to {box.stop} is no shard of {shard} voxels in a volume of {self._shape}"
            )
        if data.shape != box.shape or data.dtype != dtype:
            raise ValueError(
                f"the box {box.start} to {box.stop} takes {dtype} of shape {box.shape}, "
                f"not {data.dtype} of shape {data.shape}"
            )

    def _place(self, shard: Box) -> ShardPlace:
        """Return the place of a shard in the grid of shards."""
        inside = (a // n for a, n in zip(shard.start, self._encoder.storage.shard, strict=True))
        return (*place_of_volume(self._series, shard.volume), *inside)


def next_writer(
    path: Place, plan: Plan, attempt: Attempt | None = None, gpu: GpuEncoder | None = None
) -> OmeZarrWriter | None:
    """Return a writer of the next level, where its blocks are made of a plan's while these are in memory."""
    return None if plan.next_along is None else OmeZarrWriter.of_plan(path, plan.next_along, 0, attempt, gpu)


def _named(output: Place, attempt: Attempt | None) -> dict[str, str]:
    """Return what an output says of who makes it."""
    return {_ATTEMPT: attempt.word} if attempt is not None and isinstance(output, ObjectPlace) else {}


def begin_attempt(output: Place, attempt: Attempt) -> None:
    """Let an attempt write into an output that is there, and none of those before it; only the lock's holder may.

    The output's attributes change with the attempt. So in a store an earlier one, which marks an output complete on the
    condition that they are as it has read them, does not.

    Raises
    ------
    OSError
        If the file system or the store refuses.
    """

    def claimed(attributes: dict[str, Any]) -> dict[str, Any]:
        return attributes | {PROVENANCE: attributes[PROVENANCE] | _named(output, attempt)}

    store_of(output).sweep()
    if isinstance(output, ObjectPlace):
        change_attributes(output, claimed, attempt.check)
    else:
        make_folders(output, attempt)


def mark_complete(
    path: str | os.PathLike[str] | ObjectPlace,
    filled: Sequence[str] = (),
    omero: Mapping[str, Any] | None = None,
    attempt: Attempt | None = None,
    *,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Remove what is half written, and note in an output's attributes that it is complete.

    Parameters
    ----------
    path
        The output, all shards of which are written.
    filled
        Damaged parts of the input that were filled.
    omero
        How the image is shown, where it is to be.
    attempt
        The hold of the output's lock that this is done for; None where nobody else can be writing.
    more
        What else is said of what made it: `RECEIPTS` and `EMPTY_SHARDS` of `isovoxel.output.provenance`.

    Raises
    ------
    OSError
        If the file system or the store refuses, or another process has taken the output over; then it is as it was.
    """

    def completed(attributes: dict[str, Any]) -> dict[str, Any]:
        made = attributes[PROVENANCE] | {"complete": True} | ({"filled": list(filled)} if filled else {})
        made.pop(_ATTEMPT, None)
        made |= more or {}
        found = attributes | {PROVENANCE: made}
        if omero is None:
            return found
        if "ome" in found:
            return found | {"ome": found["ome"] | {"omero": dict(omero)}}
        return found | {"omero": dict(omero)}

    def check() -> None:
        if attempt is not None:
            attempt.check()

    place = place_of(path)
    check()
    if isinstance(place, Path):
        end_attempts(place)
        sweep_files(place)
        for root, _, _ in os.walk(place):
            sync_folder(Path(root))  # the shards' bytes are on the disk, now their names are
    if (store := membership_of(place)) is not None:
        store.announce(completed(read_attributes(place)), check)  # first, for a job that dies here goes on
    change_attributes(place, completed, check)


def missing_shards(path: str | os.PathLike[str] | ObjectPlace) -> int:
    """Return how many shards of an output's levels are not there, but for those that its attributes say are empty."""
    place = place_of(path)
    attributes = read_attributes(place)
    made = attributes.get(PROVENANCE)
    levels = range(len(read_levels(attributes, str(place))))
    return sum(_missing(place, level, made if isinstance(made, dict) else {}) for level in levels)


def _missing(output: Place, level: int, made: Mapping[str, Any]) -> int:
    """Return how many shards of a level are not there that should be, as its metadata cut it."""
    home = output / level_path(level)
    array, zarr_format = read_array(home)
    shard: list[int] = array["chunk_grid"]["configuration"]["chunk_shape"] if zarr_format == 3 else array["chunks"]
    counts = [ceil_div(n, s) for n, s in zip(array["shape"], shard, strict=True)]
    return store_of(output, level, zarr_format).missing(counts, empty_of_level(made, level, counts))[0]


def missing_of_plan(output: Place, plan: Plan, empty: Flags | None = None) -> tuple[int, str]:
    """Return how many shards of what a plan makes are not there, and the key of the first in the output's group.

    Parameters
    ----------
    output, plan
        The output, and what makes the level.
    empty
        Which shards are no files.

    Raises
    ------
    OSError
        If the store cannot be asked.
    """
    return store_of(output, plan.level, plan.storage.zarr_format).missing(shard_counts(plan), empty)
