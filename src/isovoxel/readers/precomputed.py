"""Open a Neuroglancer precomputed volume, a folder of chunks with x first, at one of its scales.

tensorstore reads the chunks, sharded or not. It takes a chunk that is not there for zeros, so chunks under other names
(CloudVolume compresses them as files that end in .gz) are looked for before, and refused.

Source: https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed, "volume".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isovoxel.errors import InputError, InputMissingError
from isovoxel.geometry.grid import Box, Float3, Index3
from isovoxel.metadata.series import stays_inside
from isovoxel.metadata.units import Length, calibrate
from isovoxel.readers.base import SeriesReader, Volume, check_voxels
from isovoxel.readers.files import FolderFiles, metadata_identity, places, unreadable
from isovoxel.readers.n5 import BLOCK_COPIES, FIXED_BYTES, N5Reader
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import Selection, pick

if TYPE_CHECKING:
    import tensorstore

INFO = "info"
"""The file that describes a volume."""

MOST_LOOKED_AT = 1000
"""So many names of a scale's chunks are looked at."""

_PACKED = (".gz", ".br", ".zstd")


@dataclass(frozen=True)
class PrecomputedFiles:
    """The files of a scale that is not sharded."""

    folder: str
    """Of its chunks, absolute."""
    offset: Index3
    """Number of its first voxel, x, y, z."""
    shape: Index3
    """Number of voxels, z, y, x."""
    chunk: Index3
    """Shape of a chunk, z, y, x."""
    info: str
    """The file that describes the volume."""

    def __call__(self, box: Box) -> Iterator[str]:
        """Yield them all, of chunks those that hold voxels of a box."""
        yield self.info
        yield from self.blocks(box)

    def blocks(self, box: Box) -> Iterator[str]:
        """Yield those of the chunks that hold voxels of a box."""
        for place in places(box, self.chunk):
            ranges = [
                f"{at * n + first}-{min((at + 1) * n, length) + first}"
                for at, n, length, first in zip(place, self.chunk, self.shape, self.offset[::-1], strict=True)
            ]
            yield f"{self.folder}/{'_'.join(reversed(ranges))}"


@dataclass(frozen=True)
class ShardedFiles:
    """The files of a scale that is sharded, of which any may hold a chunk."""

    folder: str
    """Of its shards, absolute."""
    info: str
    """The file that describes the volume."""

    def __call__(self, box: Box) -> Iterator[str]:
        """Yield all of them."""
        yield self.info
        yield from FolderFiles(self.folder)(box)

    def blocks(self, _box: Box) -> Iterator[str]:
        """Yield none: which shard holds a chunk only tensorstore knows."""
        yield from ()


def is_precomputed(at: Location) -> bool:
    """Return whether a folder says that it is a precomputed volume."""
    try:
        info = json.loads((at.path / INFO).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(info, dict) and isinstance(info.get("scales"), list)


def open_precomputed(at: Location, selection: Selection) -> Volume:
    """Open one scale of a volume, which knows how the coarser ones are opened.

    Raises
    ------
    InputError
        If its description makes no sense, or its chunks are stored as tensorstore does not find them.
    OptionError
        If it has no such scale or channel.
    """
    info = json.loads((at.path / INFO).read_bytes())
    scales = info["scales"]
    chosen = selection.among("level", len(scales), at.name)
    opened = partial(_open, at, info, selection)
    try:
        volume = opened(chosen)
    except InputError:
        raise
    except Exception as error:
        raise unreadable(at.name, "Neuroglancer precomputed", error) from error
    return replace(volume, coarser=tuple(partial(opened, level) for level in range(chosen + 1, len(scales))))


def _open(at: Location, info: Mapping[str, Any], selection: Selection, level: int) -> Volume:
    name, path = at.name, at.path.resolve()
    scale = _checked_scale(info["scales"][level], name)
    folder = path / scale["key"]
    _check_chunks(folder, name)
    store = _store(path, level)
    channels, *shape = store.shape
    picked = pick(name, "czyx", (channels, *shape), selection)
    zyx: Index3 = (shape[0], shape[1], shape[2])
    dtype = np.dtype(store.dtype.numpy_dtype)
    check_voxels(name, zyx, dtype)
    whole = [int(n) for n in reversed(scale["chunk_sizes"][0])]
    chunk = (min(whole[0], zyx[0]), min(whole[1], zyx[1]), min(whole[2], zyx[2]))
    offset = [int(n) for n in scale.get("voxel_offset", (0, 0, 0))]
    described = str(path / INFO)
    files: PrecomputedFiles | ShardedFiles = ShardedFiles(str(folder), described)
    if scale.get("sharding") is None:
        files = PrecomputedFiles(str(folder), (offset[0], offset[1], offset[2]), zyx, chunk, described)
    reader = partial(N5Reader, name, zyx=(0, 1, 2), shape=zyx, dtype=dtype, block=chunk, files=files, what="chunk")
    one = reader(store=store[picked.others[0]])
    z, y, x = (Length(float(size), "nanometer") for size in scale["resolution"][::-1])
    found = calibrate("the info file", "precomputed resolution", (z, y, x))
    now = partial(metadata_identity, path, [path / INFO])
    return Volume(
        name,
        f"Neuroglancer precomputed{', sharded' * isinstance(files, ShardedFiles)}",
        zyx,
        dtype,
        SeriesReader(picked.lengths, partial(_member, reader, store)) if picked.series else one,
        chunks=chunk,
        read_overhead=math.prod(whole) * channels * dtype.itemsize * BLOCK_COPIES + FIXED_BYTES,
        voxel_size=found.voxel_size,
        origin=_origin(info["scales"][0], scale),
        unit=found.unit,
        sources={
            "shape": f"info of scale {scale['key']}",
            "axes": picked.told("precomputed's order, x first"),
            **found.sources(),
        },
        identity={**now(), **selection.identity("level"), **picked.chosen},
        current_identity=now,
        files=files,
        missing=found.missing,
        labels=info.get("type") == "segmentation",
        series=picked.axes(),
    )


def _member(reader: partial[N5Reader], store: tensorstore.TensorStore, place: tuple[int, ...]) -> N5Reader:
    return reader(store=store[place[0]])


def _checked_scale(scale: Any, name: str) -> Mapping[str, Any]:
    """Return what is said of a scale, whose chunks must lie in the volume's folder."""
    key = scale.get("key") if isinstance(scale, dict) else None
    if not isinstance(key, str) or not stays_inside(key):
        raise InputError(f"{name} has a scale whose key {str(key)[:60]!r} is no folder in it")
    return scale  # type: ignore[no-any-return]


def _check_chunks(folder: Path, name: str) -> None:
    """Check that a scale's chunks are where tensorstore looks for them, which takes those that are not for zeros."""
    if not folder.is_dir():
        raise InputMissingError(f"{folder}, which holds the chunks of {name}, is not there")
    with os.scandir(folder) as entries:
        packed = next((entry.name for entry in islice(entries, MOST_LOOKED_AT) if entry.name.endswith(_PACKED)), None)
    if packed is not None:
        raise InputError(
            f"{name} has chunks that are compressed as files of their own, such as {packed}; unpack them first, as "
            "gunzip does, or write it uncompressed (in CloudVolume, compress=False)"
        )


def _store(path: Path, level: int) -> tensorstore.TensorStore:
    """Open a scale, its axes channel, z, y, x, each from 0 on."""
    import tensorstore

    kvstore = {"driver": "file", "path": f"{path}/"}
    spec = {"driver": "neuroglancer_precomputed", "kvstore": kvstore, "scale_index": level}
    store = tensorstore.open(spec, read=True, open=True).result()
    return store[tensorstore.d[:].translate_to[0]].T


def _origin(first: Mapping[str, Any], scale: Mapping[str, Any]) -> Float3:
    """Return the position of voxel 0's centre; that of the finest scale's voxel of number 0 is 0."""
    offset = scale.get("voxel_offset", (0, 0, 0))
    x, y, z = (
        float(at * size + (size - finest) / 2)
        for at, size, finest in zip(offset, scale["resolution"], first["resolution"], strict=True)
    )
    return (z, y, x)
