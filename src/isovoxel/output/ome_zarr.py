"""OME-Zarr of an output: made whole or not at all before its first voxel, and marked complete after its last.

The metadata are those that zarr-python writes, which takes longer to load than a small stack takes to scale.

On a disk the group and its arrays are made elsewhere and moved to their place. Groups above the output that are not
there, since it is a member of a zarr, are made and moved with it. In an object store, which moves nothing, these groups
come first, the outermost before all, so that none is without one above it, and the output's own metadata last.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isovoxel.errors import OutputExistsError
from isovoxel.geometry.grid import AXES, VoxelGrid, ceil_div
from isovoxel.metadata.ome import image_attributes, read_levels
from isovoxel.metadata.series import SeriesAxis
from isovoxel.object_store.files import (
    TOP,
    change_attributes,
    document_text,
    is_zarr,
    read_array,
    read_attributes,
    sound_node,
    sync_folder,
    write_whole,
)
from isovoxel.object_store.objects import ObjectPlace, Place, place_of, write_small
from isovoxel.output.attempt import Attempt, make_folders
from isovoxel.output.encoder import BLOSC_LEVELS, PLAIN_LEVELS
from isovoxel.output.files import NEW, REPLACED
from isovoxel.output.ledger import empty_of_level
from isovoxel.output.provenance import PROVENANCE, membership_of
from isovoxel.output.replacing import is_noted
from isovoxel.output.shard_store import store_of, swept_folders
from isovoxel.planning.chunking import Storage

Documents = dict[str, bytes]
"""Metadata of groups and arrays, by their keys."""

_ATTEMPT = "attempt"
"""What is said in an output in a store of who makes it, while it is made."""


def create_output(
    path: str | os.PathLike[str] | ObjectPlace,
    *,
    levels: Sequence[tuple[VoxelGrid, Storage]],
    dtype: np.dtype[Any],
    provenance: Mapping[str, Any],
    method: str | None = None,
    labels: bool = False,
    series: Sequence[SeriesAxis] = (),
    by_way_of: Place | None = None,
    attempt: Attempt | None = None,
) -> None:
    """Make the group and its arrays, without any voxel yet.

    Parameters
    ----------
    path
        Where the group shall be; `isovoxel.output.destination.check_destination` has been asked.
    levels
        Of each level, the full one first: its shape and where its voxels lie, and chunks, shards, codec and version of
        OME-Zarr.
    dtype
        Of the voxels.
    provenance
        What made the output, as JSON values; kept in the group's attribute "isovoxel".
    method
        How further levels are made, in a word.
    labels
        Whether the voxels are labels.
    series
        Axes along which there are several volumes.
    by_way_of
        A path on the same file system where it is made, before it is moved to its place: then it is there whole
        or not at all. In an object store, where the ledger notes that it is being made.
    attempt
        The hold of the output's lock that this is done for; it may write into the output, as after `begin_attempt`.

    Raises
    ------
    OutputExistsError
        If something is there.
    OSError
        If the file system or the store refuses.
    """
    target = place_of(path)
    (grid, storage), *further = levels
    named = {_ATTEMPT: attempt.word} if attempt is not None and isinstance(target, ObjectPlace) else {}
    attributes = {
        **image_attributes(
            grid,
            name=target.name.removesuffix(".zarr").removesuffix(".ome") or target.name,
            path="0",
            further=[level for level, _ in further],
            method=method,
            labels=labels,
            series=series,
            version=storage.ome_zarr,
        ),
        PROVENANCE: {**provenance, "complete": False} | named,
    }
    documents = group_documents(storage.zarr_format, attributes)
    for level, (grid, storage) in enumerate(levels):
        described = array_documents(grid, storage, dtype, series)
        documents |= {f"{level}/{key}": text for key, text in described.items()}
    _create(target, by_way_of, documents, storage.zarr_format)
    if attempt is not None and isinstance(target, Path):
        make_folders(target, attempt)
    elif attempt is not None:
        store_of(target).sweep()


def create_several(path: Place, provenance: Mapping[str, Any], zarr_format: int, by_way_of: Place) -> None:
    """Make the topmost group of an output of several images, of which `write_groups` writes all else.

    Parameters
    ----------
    path, provenance, by_way_of
        As in `create_output`.
    zarr_format
        Of the group.

    Raises
    ------
    OSError
        As `create_output` does.
    """
    attributes = {PROVENANCE: {**provenance, "complete": False}}
    _create(path, by_way_of, group_documents(zarr_format, attributes), zarr_format)


def write_groups(
    path: Place, groups: Mapping[str, Mapping[str, Any]], said: Mapping[str, Any], check: Callable[[], None]
) -> None:
    """Write the groups around several images, of which some may be there; each is written only where it differs.

    Parameters
    ----------
    path
        The topmost group, which is there.
    groups
        Attributes by the paths of the groups, each after those above it; an empty path is the topmost.
    said
        What the provenance of the topmost says now.
    check
        Raises where another process has taken the output over; asked before each step.

    Raises
    ------
    OSError
        If the file system or the store refuses.
    """

    def changed(attributes: dict[str, Any]) -> dict[str, Any]:
        return {**attributes, **groups[""], PROVENANCE: {**attributes[PROVENANCE], **said}}

    zarr_format = sound_node(path)[1]
    for inner in filter(None, groups):
        for key, text in group_documents(zarr_format, groups[inner]).items():
            file = path / inner / key
            if file.is_file() and file.read_bytes() == text:
                continue
            check()
            if isinstance(file, Path):
                file.parent.mkdir(exist_ok=True)
                write_whole(file, text, check)
            else:
                file.write(text)
    change_attributes(path, changed, check)


def _create(target: Place, by_way_of: Place | None, documents: Documents, zarr_format: int) -> None:
    """Make a group, and those above it that are not there."""
    above = group_documents(zarr_format)
    if isinstance(target, ObjectPlace):
        _create_objects(target, by_way_of, documents, above)
        return
    if os.path.lexists(target):
        raise OutputExistsError(f"{target} exists; give --overwrite or another output")
    while not _create_files(target, by_way_of, documents, above):
        pass


def group_documents(zarr_format: int, attributes: Mapping[str, Any] | None = None) -> Documents:
    """Return the metadata of a group."""
    if zarr_format == 2:
        return {".zgroup": document_text({"zarr_format": 2}), ".zattrs": document_text(attributes or {})}
    return {"zarr.json": document_text({"attributes": attributes or {}, "zarr_format": 3, "node_type": "group"})}


def array_documents(grid: VoxelGrid, storage: Storage, dtype: np.dtype[Any], series: Sequence[SeriesAxis]) -> Documents:
    """Return the metadata of the array of a level."""
    if storage.zarr_format == 2:
        return _array_2(grid, storage, dtype, series)
    ones = [1] * len(series)
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    checksum = {"name": "crc32c"}
    inner = [little if dtype.itemsize > 1 else {"name": "bytes"}]
    if storage.plain:
        own = {"level": PLAIN_LEVELS[storage.codec]} | ({"checksum": False} if storage.codec == "zstd" else {})
        inner.append({"name": storage.codec, "configuration": own})
    elif storage.codec in BLOSC_LEVELS:
        blosc = {
            "typesize": dtype.itemsize,
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
        "shape": [*(axis.length for axis in series), *grid.shape],
        "data_type": dtype.name,
        "chunk_grid": grid_of_shards,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": dtype.type(0).item(),
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": [*(axis.name for axis in series), *AXES],
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    return {"zarr.json": document_text(array)}


def _array_2(grid: VoxelGrid, storage: Storage, dtype: np.dtype[Any], series: Sequence[SeriesAxis]) -> Documents:
    """Return the metadata of an array of zarr 2, which has no names for axes: they go where xarray looks for them."""
    compressor: dict[str, Any] | None = None
    if storage.plain:
        compressor = {"id": storage.codec, "level": PLAIN_LEVELS[storage.codec]}
    elif storage.codec in BLOSC_LEVELS:  # bits are shuffled by its number 2
        level = BLOSC_LEVELS[storage.codec]
        compressor = {"id": "blosc", "cname": storage.codec, "clevel": level, "shuffle": 2, "blocksize": 0}
    array = {
        "shape": [*(axis.length for axis in series), *grid.shape],
        "chunks": [*([1] * len(series)), *storage.chunk],
        "dtype": dtype.newbyteorder("<").str,
        "fill_value": dtype.type(0).item(),
        "order": "C",
        "filters": None,
        "dimension_separator": "/",
        "compressor": compressor,
        "zarr_format": 2,
    }
    return {
        ".zarray": document_text(array),
        ".zattrs": document_text({"_ARRAY_DIMENSIONS": [*(axis.name for axis in series), *AXES]}),
    }


def _create_files(target: Path, by_way_of: Place | None, documents: Documents, above: Documents) -> bool:
    """Make an output, or return False where another process has just made a group above it."""
    store = membership_of(target)
    output, missing = (target, ()) if store is None else (Path(str(store.output)), store.missing)
    folders = [Path(str(folder)) for folder in missing]
    top = [*folders, output][0]
    made = by_way_of if isinstance(by_way_of, Path) else top
    if made != top:
        shutil.rmtree(made, ignore_errors=True)
    for folder, written in [*((folder, above) for folder in folders), (output, documents)]:
        for key, text in written.items():
            file = made / folder.relative_to(top) / key
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("xb") as opened:
                opened.write(text)
    if made != top:
        try:
            made.rename(top)
        except OSError:
            if top == output or not top.exists():
                raise
            return False
        sync_folder(top.parent)
    return True


def _create_objects(target: ObjectPlace, by_way_of: Place | None, documents: Documents, above: Documents) -> None:
    """Make an output in a store; a remainder of one, of which no note tells, is not touched."""
    store = membership_of(target)
    for folder in store.missing if store is not None else ():
        for key, text in above.items():
            with contextlib.suppress(FileExistsError):  # another process has just made it
                write_small(folder / key, text, new=True)
    note = by_way_of if isinstance(by_way_of, ObjectPlace) else None
    if target.is_dir():
        if note is None or is_zarr(target) or not is_noted(note):
            raise OutputExistsError(f"{target} exists; give --overwrite or another output")
        target.delete_tree()
    if note is not None:
        note.write(b"")
    for key in sorted(documents, key=lambda key: (-key.count("/"), key in TOP)):
        (target / key).write(documents[key])
    if note is not None:
        for name in (NEW, REPLACED):
            note.with_name(name).unlink()


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
        return attributes | {PROVENANCE: attributes[PROVENANCE] | {_ATTEMPT: attempt.word}}

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
        What else is said of what made it: what `EmptyShards.to_json` returns, and whether receipts are kept.

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

    place = place_of(path)
    check: Callable[[], None] = (lambda: None) if attempt is None else attempt.check
    check()
    if isinstance(place, Path):
        for folder in swept_folders(place):
            sync_folder(folder)  # the shards' bytes are on the disk, now their names are
    if (store := membership_of(place)) is not None:
        store.announce(completed(read_attributes(place)), check)  # first, for a job that dies here goes on
    change_attributes(place, completed, check)


def missing_shards(path: str | os.PathLike[str] | ObjectPlace, levels: int | None = None) -> int:
    """Return how many shards of an output's levels are not there, but for those that its attributes say are empty.

    Parameters
    ----------
    path
        The output.
    levels
        How many of its levels are looked at, the full one first; by default all that its metadata list.
    """
    place = place_of(path)
    attributes = read_attributes(place)
    made = attributes.get(PROVENANCE)
    count = len(read_levels(attributes, str(place))) if levels is None else levels
    return sum(_missing(place, level, made if isinstance(made, dict) else {}) for level in range(count))


def _missing(output: Place, level: int, made: Mapping[str, Any]) -> int:
    """Return how many shards of a level are not there that should be, as its metadata cut it."""
    home = output / str(level)
    array, zarr_format = read_array(home)
    shard: list[int] = array["chunk_grid"]["configuration"]["chunk_shape"] if zarr_format == 3 else array["chunks"]
    counts = [ceil_div(n, s) for n, s in zip(array["shape"], shard, strict=True)]
    return store_of(output, level, zarr_format).missing(counts, empty_of_level(made, level, counts))[0]
