"""How do blocks become OME-Zarr? Shard by shard: a shard is one file, written once, by one task.

A block is a union of whole shards, so no file is ever read back to change a part of it, and tasks never meet
in one. Every shard is written, one of nothing but zeros too: a missing file means work not done, nothing else.

zarr-python makes the group and the array; `isovoxel.store.shard` encodes the shards.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from isovoxel.errors import OutputExistsError
from isovoxel.geometry.box import Box
from isovoxel.geometry.grid import AXES, VoxelGrid
from isovoxel.metadata.ome import image_attributes
from isovoxel.planning.storage import Storage
from isovoxel.store.chunk import BLOSC_LEVELS
from isovoxel.store.files import sync_folder, write_whole
from isovoxel.store.provenance import PROVENANCE
from isovoxel.store.shard import PARTIAL, Seal, ShardEncoder, Unsealed, default_helpers, holds

LEVEL = "0"
"""Path of the array inside the group."""


class OmeZarrWriter:
    """Writes one volume into an OME-Zarr 0.5 group, block by block; `create` makes one.

    `write` may be called from several threads at once for boxes that share no voxel.
    """

    def __init__(self, path: Path, encoder: ShardEncoder, grid: VoxelGrid) -> None:
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
        by_way_of: Path | None = None,
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
        by_way_of
            A path on the same file system where it is made, before it is moved to its place: then it is there whole
            or not at all.
        helpers
            Threads that may encode beside those that call `write`, see `isovoxel.store.shard.ShardEncoder`;
            by default all cores but one.

        Raises
        ------
        OutputExistsError
            If something is there.
        OSError
            If the file system refuses.
        """
        target = Path(path)
        if os.path.lexists(target):
            raise OutputExistsError(f"{target} exists; give --overwrite or another output")
        made = by_way_of or target
        if by_way_of is not None:
            shutil.rmtree(by_way_of, ignore_errors=True)
        name = target.name.removesuffix(".zarr").removesuffix(".ome") or target.name
        group = zarr.create_group(
            LocalStore(made),
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
        if by_way_of is not None:
            by_way_of.rename(target)
            sync_folder(target.parent)
        return cls.open(target, grid=grid, dtype=dtype, storage=storage, helpers=helpers)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        grid: VoxelGrid,
        dtype: np.dtype[Any],
        storage: Storage,
        helpers: int | None = None,
    ) -> OmeZarrWriter:
        """Return a writer into what `create` made, as it was made; the parameters are the same."""
        encoder = ShardEncoder(storage, dtype, default_helpers() if helpers is None else helpers)
        return cls(Path(path), encoder, grid)

    def write(self, box: Box, data: NDArray[Any]) -> list[Seal]:
        """Write a box of whole shards, and return their seals, in the order of `Box.tiles`; see `encode`."""
        shards = box.tiles(self._encoder.storage.shard)
        return [self.encode(shard, data[shard.relative_to(box.start).slices]).seal() for shard in shards]

    def encode(self, box: Box, data: NDArray[Any]) -> Unsealed:
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
        return self._encoder.write(self._file(box), data)

    def holds(self, box: Box, seals: Sequence[Seal]) -> bool:
        """Tell whether all shards of a box are files with these seals."""
        shards = list(box.tiles(self._encoder.storage.shard))
        return len(shards) == len(seals) and all(
            holds(self._file(shard), seal) for shard, seal in zip(shards, seals, strict=True)
        )

    def sweep(self) -> None:
        """Remove what processes that were killed have left half written; no other process may be writing."""
        _sweep(self._path)

    def spare(self, cores: int) -> None:
        """Say how many cores nobody else needs; threads that help to encode take no more."""
        self._encoder.spare(cores)

    def free_bytes(self) -> int:
        """Return how much room the disk has."""
        return shutil.disk_usage(self._path).free

    def close(self) -> None:
        """End the writer's threads and let go of their memory; what is incomplete stays marked so."""
        self._encoder.close()

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

    def _file(self, shard: Box) -> Path:
        """Return the file of a shard: zarr's default chunk keys, "c/z/y/x"."""
        index = [str(a // n) for a, n in zip(shard.start, self._encoder.storage.shard, strict=True)]
        return self._path.joinpath(LEVEL, "c", *index)


def mark_complete(path: str | os.PathLike[str], filled: Sequence[str] = ()) -> None:
    """Remove what is half written, and note in an output's attributes that it is complete.

    Parameters
    ----------
    path
        The output, all shards of which are written.
    filled
        Damaged parts of the input that were filled.

    Raises
    ------
    OSError
        If the file system refuses; then the output is as it was.
    """
    _sweep(Path(path))
    for root, _, _ in os.walk(path):
        sync_folder(Path(root))  # the shards' bytes are on the disk, now their names are
    file = Path(path) / "zarr.json"
    metadata = json.loads(file.read_bytes())
    metadata["attributes"][PROVENANCE] |= {"complete": True} | ({"filled": list(filled)} if filled else {})
    write_whole(file, json.dumps(metadata, indent=2).encode())


def missing_shards(path: str | os.PathLike[str]) -> int:
    """Return how many of an output's shards are not there; all are written, those of nothing but zeros too."""
    array = zarr.open_array(LocalStore(Path(path), read_only=True), path=LEVEL, mode="r")
    shards = array.shards or array.chunks
    places = product(*(range(-(-n // s)) for n, s in zip(array.shape, shards, strict=True)))
    return sum(not Path(path).joinpath(LEVEL, "c", *map(str, place)).is_file() for place in places)


def _sweep(path: Path) -> None:
    for root, _, files in os.walk(path):
        for name in files:
            if name.endswith(PARTIAL):
                Path(root, name).unlink(missing_ok=True)


def _codec(name: str, dtype: np.dtype[Any]) -> BloscCodec | None:
    """Return how zarr describes one of `CODECS`, as `ShardEncoder` encodes it."""
    if name not in BLOSC_LEVELS:
        return None
    # zarr below 3.2 takes names or members of an enumeration, later ones names only, and neither types the other's.
    cname: Any = name
    return BloscCodec(cname=cname, clevel=BLOSC_LEVELS[name], shuffle="bitshuffle", typesize=dtype.itemsize)
