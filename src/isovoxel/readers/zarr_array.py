"""Read a zarr array box by box: one at a path, of a caller, or of an OME-Zarr group.

Most arrays in local folders and in object stores are read by `ChunkReader`, which is several times faster, and all
others through zarr-python; see `isovoxel.readers.zarr_python`.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from isovoxel.errors import InputError
from isovoxel.geometry.grid import AXES, Index3
from isovoxel.object_store.objects import ObjectPlace, Place
from isovoxel.object_store.zarr_nodes import ARRAY_FILES, NODE, V2_ARRAY, files_of_node
from isovoxel.planning.chunking import Storage
from isovoxel.readers.base import (
    ByGpu,
    Files,
    ReadBox,
    SeriesReader,
    Volume,
    check_voxels,
    stored_order,
    transposed,
    with_zyx_named,
)
from isovoxel.readers.files import metadata_identity, unreadable
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import GIVEN, UNNAMED, Picked, Selection, pick
from isovoxel.readers.zarr_chunks import BatchReader, ChunkReader
from isovoxel.readers.zarr_layout import ChunkLayout, ZarrFiles, array_files, chunk_layout, written_layout

if TYPE_CHECKING:
    import zarr

    from isovoxel.codecs.decoder import GpuDecoder


def open_path(path: Place, name: str) -> zarr.Array[Any]:
    """Open the zarr array in a folder.

    Raises
    ------
    InputError
        If it is none that zarr can read.
    """
    import zarr

    for file, zarr_format in ((NODE, 3), (V2_ARRAY, 2)):
        if (path / file).is_file():
            try:
                with warnings.catch_warnings():
                    # Or another fill value would be taken than is written.
                    warnings.filterwarnings("error", "NumPy will stop allowing conversion of out-of-bound")
                    # Absolute: from another working directory, every chunk would be absent, and read as zeros.
                    where: dict[str, Any] = {"store": str(path.resolve())}
                    if isinstance(path, ObjectPlace):
                        from isovoxel.readers.zarr_python import RootStore

                        where = {"store": RootStore(path.root), "path": path.key}
                    elif (in_zip := getattr(path, "in_store", None)) is not None:  # of `isovoxel.readers.packed`
                        where = in_zip()
                    return zarr.open_array(**where, mode="r", zarr_format=3 if zarr_format == 3 else 2)
            except (DeprecationWarning, OverflowError) as error:  # NumPy 1 and 2
                raise InputError(
                    f"{name} cannot be read as a zarr array: its data type does not hold its fill value"
                ) from error
            except Exception as error:
                raise unreadable(name, "a zarr array", error) from error
    raise InputError(f"{name} holds no zarr array: there is neither {NODE} nor {V2_ARRAY} in {path}")


def zarr_voxels(array: zarr.Array[Any], name: str, axes: list[str], selection: Selection) -> tuple[Volume, Picked]:
    """Return a zarr array as a volume, and what of it was picked; who knows its metadata adds the rest.

    Parameters
    ----------
    array
        Any zarr array, v2 or v3.
    name
        What the user called the input, for messages.
    axes
        Name of every axis of the array, in lower case, or empty.
    selection
        Which channel and which time point are meant.

    Raises
    ------
    InputError
        If the array has other axes than z, y and x, is empty, or has a dtype that isovoxel does not scale.
    OptionError
        If it has no such channel or time point.
    """
    named = selection.named(name, axes, array.shape)
    if (order := stored_order(named)) is not None:
        return _transposed(array, name, named, selection, order)
    picked = pick(name, axes, array.shape, selection)
    shape = picked.shape(array.shape)
    dtype = np.dtype(array.dtype).newbyteorder("=")
    check_voxels(name, shape, dtype)
    # Of a sharded array these are the inner chunks, unless further codecs lie around the shard.
    whole = array.chunks
    if min(*whole, *(array.shards or whole)) < 1:
        raise InputError(f"{name} cannot be read as a zarr array: its metadata have chunks of shape {whole}")
    z, y, x = (min(chunk, n) for chunk, n in zip(picked.shape(whole), shape, strict=True))
    layout = chunk_layout(array, picked)
    files = array_files(array, layout, picked)
    if layout is not None:
        return _volume_of(name, picked, shape, dtype, layout, files), picked
    from isovoxel.readers.zarr_python import slow_voxels

    read, overhead = slow_voxels(array, name, picked, (z, y, x))
    beside = math.prod(whole[axis] for axis in picked.others)
    notes = (f"each of its chunks holds {beside} volumes, which are all decoded for one",) if beside > 1 else ()
    series = picked.axes()
    return Volume(name, "", shape, dtype, read, (z, y, x), overhead, notes=notes, files=files, series=series), picked


def _volume_of(
    name: str, picked: Picked, shape: Index3, dtype: np.dtype[Any], layout: ChunkLayout, files: Files | None
) -> Volume:
    """Return a volume whose chunks are decoded here."""
    reader = ChunkReader(name, layout)
    z, y, x = (min(c, n) for c, n in zip(layout.chunk, shape, strict=True))
    return Volume(
        name,
        "",
        shape,
        dtype,
        _series_reader(picked, reader) if picked.series else reader,
        (z, y, x),
        layout.read_overhead,
        cached=partial(_series_reader, picked, reader) if picked.series else reader.cached,
        by_gpu=None if layout.coding is None else ByGpu(layout.coding, partial(_decoded_by, picked, reader)),
        files=files,
        series=picked.axes(),
    )


def _transposed(
    array: zarr.Array[Any], name: str, axes: Sequence[str], selection: Selection, order: Index3
) -> tuple[Volume, Picked]:
    """Return an array as a volume whose space axes are in another order than z, y, x."""
    renamed, selection = with_zyx_named(axes), replace(selection, axes=None)
    try:
        pick(name, renamed, array.shape, selection)
    except InputError:
        pick(name, axes, array.shape, selection)  # which says the same of the names that the axes have
        raise
    stored, picked = zarr_voxels(array, name, renamed, selection)
    zyx = (axes.index("z") if "z" in axes else None, axes.index("y"), axes.index("x"))
    return transposed(stored, order, [axis for axis in axes if axis in AXES]), replace(picked, zyx=zyx)


def _series_reader(picked: Picked, reader: ChunkReader, capacity: int = 0) -> SeriesReader:
    """Return what reads all volumes of an array, which keep decoded chunks together."""
    return SeriesReader(picked.lengths, partial(_member, reader.cached(capacity), picked))


def _decoded_by(picked: Picked, reader: ChunkReader, decoder: GpuDecoder, tell: Callable[[str], None]) -> ReadBox:
    batches = BatchReader(reader.name, reader.layout, decoder, tell)
    return SeriesReader(picked.lengths, partial(_member, batches, picked)) if picked.series else batches


def _member(reader: ChunkReader, picked: Picked, place: Sequence[int]) -> ChunkReader:
    return reader.at(picked.at(place).others)


def axis_names(array: zarr.Array[Any]) -> list[str]:
    """Return the names that a zarr array gives its axes, in lower case; empty where it gives none."""
    names = getattr(array.metadata, "dimension_names", None)
    if names is None:
        names = array.attrs.get("_ARRAY_DIMENSIONS")
    if not isinstance(names, list | tuple) or len(names) != array.ndim:
        return [""] * array.ndim
    return [name.lower() if isinstance(name, str) else "" for name in names]


def from_array(array: zarr.Array[Any], selection: Selection) -> Volume:
    """Return a volume of a zarr array that the caller opened, on whatever store.

    Raises
    ------
    InputError
        If it has other axes than z, y and x, is empty, or has a dtype that isovoxel does not scale.
    """
    name = f"the zarr array {array.store_path}"
    metadata = json.dumps(array.metadata.to_dict(), sort_keys=True, default=str)
    identity = {"path": str(array.store_path), "metadata": hashlib.sha256(metadata.encode()).hexdigest()}
    return _volume(array, name, identity, selection)


def open_zarr_array(at: Location, selection: Selection) -> Volume:
    """Open a folder, on a disk or in an object store, that is a zarr array, v2 or v3.

    Raises
    ------
    InputError
        If zarr cannot read it, or it has other axes than z, y and x, is empty, or has an unsupported dtype.
    """
    array = open_path(at.place, at.name)
    now = partial(metadata_identity, at.place, files_of_node(at.place, ARRAY_FILES))
    return replace(_volume(array, at.name, now(), selection), current_identity=now)


def open_written(
    place: Place, shape: Index3, dtype: np.dtype[Any], storage: Storage, series: Sequence[tuple[str, int]] = ()
) -> Volume:
    """Open an array that isovoxel has written, of which it knows all that its metadata say; nothing is read.

    Parameters
    ----------
    place
        Where the array lies.
    shape, dtype, storage
        Of one volume, and how it is stored.
    series
        Name and length of each axis along which there are several volumes.
    """
    n = len(series)
    picked = Picked(
        zyx=(n, n + 1, n + 2),
        others=dict.fromkeys(range(n), 0),
        chosen={},
        series=tuple((axis, name, length) for axis, (name, length) in enumerate(series)),
    )
    layout = written_layout(place, shape, dtype, storage, (n, n + 1, n + 2))
    volume = _volume_of(str(place), picked, shape, np.dtype(dtype), layout, ZarrFiles(layout, picked))
    return replace(volume, kind=f"zarr v{storage.zarr_format} array")


def _volume(array: zarr.Array[Any], name: str, identity: Mapping[str, Any], selection: Selection) -> Volume:
    axes = axis_names(array)
    volume, picked = zarr_voxels(array, name, axes, selection)
    named = "zarr dimension names" if any(axes) else UNNAMED[3 - (picked.zyx[0] is None)]
    named = named if selection.axes is None else GIVEN
    return replace(
        volume,
        kind=f"zarr v{array.metadata.zarr_format} array",
        sources={"shape": "zarr metadata", "axes": picked.told(named)},
        identity={**identity, **picked.chosen, **selection.identity("axes")},
        missing="a zarr array by itself has none; for a level of an OME-Zarr image, name the image's group",
    )
