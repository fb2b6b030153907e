"""Create an output's group and arrays by zarr-python, whole or not at all, before its first voxel.

On a disk they are made elsewhere and moved to their place. Groups above the output that are not there, since it is a
member of a zarr, are made and moved with it. In an object store, which moves nothing, these groups come first, the
outermost before all, so that none is without one above it, and the output's own metadata last.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore, MemoryStore

from isovoxel.errors import OutputExistsError
from isovoxel.geometry.grid import AXES, VoxelGrid
from isovoxel.metadata.series import SeriesAxis
from isovoxel.object_store.addresses import Place, write_small
from isovoxel.object_store.files import sync_folder
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output.chunk import BLOSC_LEVELS
from isovoxel.output.membership import membership_of
from isovoxel.output.object_output import place_metadata
from isovoxel.output.shard_store import level_path
from isovoxel.planning.chunking import Storage


@dataclass(frozen=True)
class Skeleton:
    """The group of an output with the array of each level, in whichever store of zarr's it is made."""

    levels: Sequence[tuple[VoxelGrid, Storage]]
    """Shape and storage of each level, the full one first."""
    dtype: np.dtype[Any]
    """Of the voxels."""
    attributes: dict[str, Any]
    """The group's."""
    series: Sequence[SeriesAxis]
    """Axes along which there are several volumes."""

    def make(self, store: Store) -> None:
        """Make the group and the arrays."""
        group = self.make_group(store, self.attributes)
        ones, names = (1,) * len(self.series), (*(axis.name for axis in self.series), *AXES)
        for level, (grid, storage) in enumerate(self.levels):
            of_version: dict[str, Any] = {"shards": (*ones, *storage.shard), "dimension_names": names}
            if storage.zarr_format == 2:  # which has no names for axes: where xarray looks for them, we do as well
                of_version = {
                    "chunk_key_encoding": {"name": "v2", "separator": "/"},
                    "attributes": {"_ARRAY_DIMENSIONS": names},
                }
            group.create_array(
                level_path(level),
                shape=(*(axis.length for axis in self.series), *grid.shape),
                dtype=self.dtype,
                chunks=(*ones, *storage.chunk),
                filters=None,
                compressors=_codecs(storage, self.dtype),
                fill_value=0,
                **of_version,
            )

    def make_group(self, store: Store, attributes: dict[str, Any] | None = None) -> zarr.Group:
        """Make a group of the same format."""
        storage = self.levels[0][1]
        return zarr.create_group(store, zarr_format=3 if storage.zarr_format == 3 else 2, attributes=attributes)


def create_files(target: Path, by_way_of: Place | None, skeleton: Skeleton) -> None:
    """Make an output in a folder.

    Parameters
    ----------
    target
        The output.
    by_way_of
        Where it is made, before it is moved; None to make it where it belongs.
    skeleton
        What is made.

    Raises
    ------
    OutputExistsError
        If something is there.
    OSError
        If the file system refuses.
    """
    if os.path.lexists(target):
        raise OutputExistsError(f"{target} exists; give --overwrite or another output")
    while not _made(target, by_way_of, skeleton):
        pass


def _made(target: Path, by_way_of: Place | None, skeleton: Skeleton) -> bool:
    """Make an output, or return False where another process has just made a group above it."""
    store = membership_of(target)
    output, missing = (target, ()) if store is None else (Path(str(store.output)), store.missing)
    folders = [Path(str(folder)) for folder in missing]
    top = [*folders, output][0]
    made = by_way_of if isinstance(by_way_of, Path) else top
    if made != top:
        shutil.rmtree(made, ignore_errors=True)
    for folder in folders:
        skeleton.make_group(LocalStore(made / folder.relative_to(top)))
    skeleton.make(LocalStore(made / output.relative_to(top)))
    if made != top:
        try:
            made.rename(top)
        except OSError:
            if top == output or not top.exists():
                raise
            return False
        sync_folder(top.parent)
    return True


def create_objects(target: ObjectPlace, by_way_of: Place | None, skeleton: Skeleton) -> None:
    """Make an output in a store.

    Parameters
    ----------
    target
        The output.
    by_way_of
        Where it is noted that it is being made.
    skeleton
        What is made.

    Raises
    ------
    OutputExistsError
        If something is there.
    OSError
        If the store refuses.
    """
    store = membership_of(target)
    for folder in store.missing if store is not None else ():
        group: dict[str, Any] = {}
        skeleton.make_group(MemoryStore(group))
        for key, value in _bytes(group).items():
            with contextlib.suppress(FileExistsError):  # another process has just made it
                write_small(folder / key, value, new=True)
    made: dict[str, Any] = {}
    skeleton.make(MemoryStore(made))
    place_metadata(target, _bytes(made), by_way_of if isinstance(by_way_of, ObjectPlace) else None)


def _bytes(made: dict[str, Any]) -> dict[str, bytes]:
    return {key: value.to_bytes() for key, value in made.items()}


def _codecs(storage: Storage, dtype: np.dtype[Any]) -> list[Any] | dict[str, Any] | None:
    """Return how zarr describes what `ShardEncoder` makes of a chunk."""
    checksum = [Crc32cCodec()] if storage.checksum else []
    # zarr below 3.2 takes names or members of an enumeration, later ones names only, and neither types the other's.
    cname: Any = storage.codec
    if cname not in BLOSC_LEVELS:
        return checksum or None
    if storage.zarr_format == 2:  # bits are shuffled by its number 2
        return {"id": "blosc", "cname": cname, "clevel": BLOSC_LEVELS[cname], "shuffle": 2, "blocksize": 0}
    blosc = BloscCodec(cname=cname, clevel=BLOSC_LEVELS[cname], shuffle="bitshuffle", typesize=dtype.itemsize)
    return [blosc, *checksum]
