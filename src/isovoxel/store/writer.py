"""How do blocks become OME-Zarr? Shard by shard: a shard is one file, written once, by one task.

A block is a union of whole shards, so no file is ever read back to change a part of it, and tasks never meet
in one. Every shard is written, one of nothing but zeros too: a missing file means work not done, nothing else.

zarr-python makes the group and the array; `isovoxel.store.shard` encodes the shards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from isovoxel.errors import InputError, OutputExistsError
from isovoxel.geometry.box import Box
from isovoxel.geometry.grid import AXES, VoxelGrid
from isovoxel.metadata.ome import image_attributes
from isovoxel.planning.storage import Storage
from isovoxel.store.chunk import BLOSC_LEVELS
from isovoxel.store.destination import remove
from isovoxel.store.shard import ShardEncoder, default_helpers

LEVEL = "0"
"""Path of the array inside the group."""

PROVENANCE = "isovoxel"
"""The group's attribute that says what made it, and whether it is complete."""


class OmeZarrWriter:
    """Writes one volume into an OME-Zarr 0.5 group, block by block; `create` makes one.

    `write` may be called from several threads at once for boxes that share no voxel.
    """

    def __init__(self, group: zarr.Group, path: Path, encoder: ShardEncoder, grid: VoxelGrid) -> None:
        self._group = group
        self._path = path
        self._encoder = encoder
        self._shape = grid.shape

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        grid: VoxelGrid,
        dtype: np.dtype[Any],
        storage: Storage,
        provenance: Mapping[str, Any],
        labels: bool = False,
        overwrite: bool = False,
        helpers: int | None = None,
    ) -> OmeZarrWriter:
        """Make the group and its array, without any voxel yet.

        Parameters
        ----------
        path
            Where the group shall be; `isovoxel.store.destination.check_destination` has been asked.
        grid
            Shape of the output, and where its voxels lie.
        dtype
            Of the voxels.
        storage
            Chunks, shards and codec.
        provenance
            What made the output, as JSON values; kept in the group's attribute "isovoxel".
        labels
            Whether the voxels are labels.
        overwrite
            Whether an old zarr there is removed first.
        helpers
            Threads that may encode beside those that call `write`, see `isovoxel.store.shard.ShardEncoder`;
            by default all cores but one.

        Raises
        ------
        OutputExistsError
            If something is there and shall not be overwritten.
        OutputError
            If what shall be overwritten is no zarr.
        OSError
            If the file system refuses.
        """
        target = Path(path)
        if overwrite and os.path.lexists(target):
            remove(target)
        try:
            # Also claims the place: of two jobs that start together, one fails here.
            target.mkdir()
        except FileExistsError:
            raise OutputExistsError(f"{target} exists; give --overwrite or another output") from None
        name = target.name.removesuffix(".zarr").removesuffix(".ome") or target.name
        group = zarr.create_group(
            LocalStore(target),
            zarr_format=3,
            attributes={
                **image_attributes(grid, name=name, path=LEVEL, labels=labels),
                PROVENANCE: {**provenance, "complete": False},
            },
        )
        group.create_array(
            LEVEL,
            shape=grid.shape,
            dtype=dtype,
            chunks=storage.chunk,
            shards=storage.shard,
            filters=None,
            compressors=_codec(storage.codec, dtype),
            fill_value=0,
            dimension_names=AXES,
        )
        encoder = ShardEncoder(storage, dtype, default_helpers() if helpers is None else helpers)
        return cls(group, target, encoder, grid)

    def write(self, box: Box, data: NDArray[Any]) -> None:
        """Write one block, a shard at a time.

        Parameters
        ----------
        box
            Voxels of the output: a union of whole shards, clipped where the volume ends.
        data
            Their values, of the box's shape and the output's dtype.

        Raises
        ------
        ValueError
            If the box is no union of whole shards, or the data are not the box's.
        OSError
            If the file system refuses, such as a disk that is full. No shard is left half written.
        """
        self._check(box, data)
        for shard in box.tiles(self._encoder.storage.shard):
            self._encoder.write(self._file(shard), data[shard.relative_to(box.start).slices])

    def finish(self) -> None:
        """Note in the attributes that the output is complete, and end the writer's threads."""
        provenance: Any = self._group.attrs[PROVENANCE]
        self._group.attrs[PROVENANCE] = {**provenance, "complete": True}
        self.close()

    def spare(self, cores: int) -> None:
        """Say how many cores nobody else needs; threads that help to encode take no more."""
        self._encoder.spare(cores)

    def close(self) -> None:
        """End the writer's threads and let go of their memory; what is incomplete stays marked so."""
        self._encoder.close()

    def _check(self, box: Box, data: NDArray[Any]) -> None:
        shard, dtype = self._encoder.storage.shard, self._encoder.dtype
        ends = zip(box.start, box.stop, shard, self._shape, strict=True)
        if box.size == 0 or any(a % s or not (b == n or (b < n and b % s == 0)) for a, b, s, n in ends):
            raise ValueError(
                f"the box {box.start} to {box.stop} is no union of whole shards of {shard} voxels "
                f"in a volume of {self._shape}"
            )
        if data.shape != box.shape or data.dtype != dtype:
            raise ValueError(
                f"the box {box.start} to {box.stop} takes {dtype} of shape {box.shape}, "
                f"not {data.dtype} of shape {data.shape}"
            )

    def _file(self, shard: Box) -> Path:
        """Return the file of a shard: zarr's default chunk keys, "c/z/y/x"."""
        index = [str(a // n) for a, n in zip(shard.start, self._encoder.storage.shard, strict=True)]
        return self._path.joinpath(LEVEL, "c", *index)


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what an output's attributes say of what made it, and whether it is complete.

    Raises
    ------
    InputError
        If it is no output of isovoxel.
    """
    try:
        metadata = json.loads((Path(path) / "zarr.json").read_bytes())
        provenance = metadata["attributes"][PROVENANCE]
    except (OSError, ValueError, KeyError, TypeError):
        provenance = None
    if not isinstance(provenance, dict):
        raise InputError(f"{path} was not written by isovoxel: its attributes do not say what made it")
    return provenance


def missing_shards(path: str | os.PathLike[str]) -> int:
    """Return how many of an output's shards are not there; all are written, those of nothing but zeros too."""
    array = zarr.open_array(LocalStore(Path(path), read_only=True), path=LEVEL, mode="r")
    shards = array.shards or array.chunks
    places = product(*(range(-(-n // s)) for n, s in zip(array.shape, shards, strict=True)))
    return sum(not Path(path).joinpath(LEVEL, "c", *map(str, place)).is_file() for place in places)


def _codec(name: str, dtype: np.dtype[Any]) -> BloscCodec | None:
    """Return how zarr describes one of `CODECS`, as `ShardEncoder` encodes it."""
    if name not in BLOSC_LEVELS:
        return None
    # zarr below 3.2 takes names or members of an enumeration, later ones names only, and neither types the other's.
    cname: Any = name
    return BloscCodec(cname=cname, clevel=BLOSC_LEVELS[name], shuffle="bitshuffle", typesize=dtype.itemsize)
