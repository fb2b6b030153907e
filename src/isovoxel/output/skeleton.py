"""Create an output's group and arrays, whole or not at all, before its first voxel.

Their metadata are those that zarr-python writes, which takes longer to load than a small stack takes to scale.

On a disk they are made elsewhere and moved to their place. Groups above the output that are not there, since it is a
member of a zarr, are made and moved with it. In an object store, which moves nothing, these groups come first, the
outermost before all, so that none is without one above it, and the output's own metadata last.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isovoxel.errors import OutputExistsError
from isovoxel.geometry.grid import AXES, VoxelGrid
from isovoxel.metadata.series import SeriesAxis
from isovoxel.object_store.addresses import Place, write_small
from isovoxel.object_store.files import sync_folder
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.zarr_nodes import TOP, is_zarr
from isovoxel.output.encoder import BLOSC_LEVELS
from isovoxel.output.ledger_folder import NEW, REPLACED
from isovoxel.output.membership import membership_of
from isovoxel.output.replacing import is_noted
from isovoxel.output.shard_store import level_path
from isovoxel.planning.chunking import Storage


@dataclass(frozen=True)
class Skeleton:
    """The group of an output with the array of each level."""

    levels: Sequence[tuple[VoxelGrid, Storage]]
    """Shape and storage of each level, the full one first."""
    dtype: np.dtype[Any]
    """Of the voxels."""
    attributes: dict[str, Any]
    """The group's."""
    series: Sequence[SeriesAxis]
    """Axes along which there are several volumes."""

    def documents(self) -> dict[str, bytes]:
        """Return the metadata of the group and of its arrays, by their keys below the group."""
        made = self.group(self.attributes)
        for level, (grid, storage) in enumerate(self.levels):
            described = self._array_2(grid, storage) if self._format == 2 else self._array_3(grid, storage)
            made |= {f"{level_path(level)}/{key}": value for key, value in described.items()}
        return made

    def group(self, attributes: dict[str, Any] | None = None) -> dict[str, bytes]:
        """Return the metadata of a group of the same format."""
        if self._format == 2:
            return {".zgroup": _json({"zarr_format": 2}), ".zattrs": _json(attributes or {})}
        return {"zarr.json": _json({"attributes": attributes or {}, "zarr_format": 3, "node_type": "group"})}

    @property
    def _format(self) -> int:
        return self.levels[0][1].zarr_format

    @property
    def _lengths(self) -> list[int]:
        return [axis.length for axis in self.series]

    @property
    def _names(self) -> list[str]:
        return [*(axis.name for axis in self.series), *AXES]

    def _array_3(self, grid: VoxelGrid, storage: Storage) -> dict[str, bytes]:
        ones = [1] * len(self.series)
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        checksum = {"name": "crc32c"}
        inner = [little if self.dtype.itemsize > 1 else {"name": "bytes"}]
        if storage.codec in BLOSC_LEVELS:
            blosc = {
                "typesize": self.dtype.itemsize,
                "cname": storage.codec,
                "clevel": BLOSC_LEVELS[storage.codec],
                "shuffle": "bitshuffle",
                "blocksize": 0,
            }
            inner.append({"name": "blosc", "configuration": blosc})
        sharding = {
            "chunk_shape": [*ones, *storage.chunk],
            "codecs": [*inner, *([checksum] if storage.checksum else [])],
            "index_codecs": [little, checksum],
            "index_location": "end",
        }
        grid_of_shards = {"name": "regular", "configuration": {"chunk_shape": [*ones, *storage.shard]}}
        array = {
            "shape": [*self._lengths, *grid.shape],
            "data_type": self.dtype.name,
            "chunk_grid": grid_of_shards,
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": self.dtype.type(0).item(),
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "dimension_names": self._names,
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
        return {"zarr.json": _json(array)}

    def _array_2(self, grid: VoxelGrid, storage: Storage) -> dict[str, bytes]:
        blosc = None
        if storage.codec in BLOSC_LEVELS:  # bits are shuffled by its number 2
            level = BLOSC_LEVELS[storage.codec]
            blosc = {"id": "blosc", "cname": storage.codec, "clevel": level, "shuffle": 2, "blocksize": 0}
        array = {
            "shape": [*self._lengths, *grid.shape],
            "chunks": [*([1] * len(self.series)), *storage.chunk],
            "dtype": self.dtype.newbyteorder("<").str,
            "fill_value": self.dtype.type(0).item(),
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
            "compressor": blosc,
            "zarr_format": 2,
        }
        # This format has no names for axes: where xarray looks for them, we do as well.
        return {".zarray": _json(array), ".zattrs": _json({"_ARRAY_DIMENSIONS": self._names})}


def _json(document: dict[str, Any]) -> bytes:
    """Return metadata as zarr-python writes them."""
    return json.dumps(document, indent=2).encode()


def _write(folder: Path, documents: dict[str, bytes]) -> None:
    for key, text in documents.items():
        file = folder / key
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as opened:
            opened.write(text)


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
        _write(made / folder.relative_to(top), skeleton.group())
    _write(made / output.relative_to(top), skeleton.documents())
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
        for key, value in skeleton.group().items():
            with contextlib.suppress(FileExistsError):  # another process has just made it
                write_small(folder / key, value, new=True)
    _place_metadata(target, skeleton.documents(), by_way_of if isinstance(by_way_of, ObjectPlace) else None)


def _place_metadata(target: ObjectPlace, metadata: Mapping[str, bytes], note: ObjectPlace | None) -> None:
    """Make an output without voxels of its metadata, those at its top last.

    Parameters
    ----------
    target
        The output.
    metadata
        What its objects hold, by their path.
    note
        Where it is noted that it is being made; a remainder of which none tells is not touched.

    Raises
    ------
    OutputExistsError
        If something is there.
    OSError
        If the store refuses.
    """
    if target.is_dir():
        if note is None or is_zarr(target) or not is_noted(note):
            raise OutputExistsError(f"{target} exists; give --overwrite or another output")
        target.delete_tree()
    if note is not None:
        note.write(b"")
    for path in sorted(metadata, key=lambda path: (-path.count("/"), path in TOP)):
        (target / path).write(metadata[path])
    if note is not None:
        for name in (NEW, REPLACED):
            note.with_name(name).unlink()
