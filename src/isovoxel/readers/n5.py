"""Open an N5 dataset, a folder of blocks with x first, as a volume; and a Neuroglancer precomputed one.

tensorstore reads the blocks, which are checked against the block size before they are decoded; it is told the four
things that N5 specifies, for of the other attributes every writer has a form of its own, which are read here. A group
is opened at its finest level, ``s0``, or at the only dataset that it holds.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError, InputMissingError
from isovoxel.geometry.grid import Box, Float3, Index3, triple
from isovoxel.metadata.hdf5 import FINEST, Surroundings, level_of, read_n5
from isovoxel.metadata.series import stays_inside
from isovoxel.metadata.units import Length, calibrate
from isovoxel.object_store.files import N5_ATTRIBUTES, parse_json
from isovoxel.readers.base import Volume, check_voxels, series_reader
from isovoxel.readers.files import (
    FolderFiles,
    check_stored,
    metadata_identity,
    named_failures,
    places,
    reason_of,
    unreadable,
)
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import PLAIN, Picked, Selection, listed, pick, pick_only
from isovoxel.readers.tiled import TiledReader

if TYPE_CHECKING:
    import tensorstore


DEEPEST = 5
"""How many levels below a group its datasets are looked for."""

MOST_LOOKED_AT = 1000
"""In so many folders; and so many names of a scale's chunks are looked at."""

BLOCK_COPIES = 4
"""How many times a block is held beside the returned array: encoded, decoded, in native byte order, and cut."""

FIXED_BYTES = 1 << 23
"""What tensorstore holds whatever the block's size."""

_SETUP = re.compile(r"setup\d+/timepoint\d+/s\d+")
_SPECIFIED = ("dimensions", "blockSize", "dataType", "compression")
_DAMAGE = ("FAILED_PRECONDITION", "DATA_LOSS", "OUT_OF_RANGE", "INVALID_ARGUMENT")


class BlockFiles(ABC):
    """The files of a dataset."""

    metadata: tuple[str, ...]
    """Files that describe it."""

    def __call__(self, box: Box) -> Iterator[str]:
        """Yield them all, of blocks those that hold voxels of a box."""
        yield from self.metadata
        yield from self.blocks(box)

    @abstractmethod
    def blocks(self, box: Box) -> Iterator[str]:
        """Yield those of the blocks that hold voxels of a box."""


@dataclass(frozen=True)
class N5Reader(TiledReader):
    """Reads boxes of what tensorstore has opened, such as an N5 dataset; safe to call from many threads."""

    name: str
    """What the user called the input, for messages."""
    store: tensorstore.TensorStore
    """The dataset, with its axes reversed, so that x is the last."""
    picked: Picked
    """Which of these axes are z, y and x; all others have length 1."""
    shape: Index3
    """Number of voxels, z, y, x."""
    dtype: np.dtype[Any]
    """Of the voxels, in native byte order."""
    chunk: Index3
    """Shape of a block, z, y, x."""
    files: BlockFiles
    """Its files."""
    tile_name: ClassVar[str] = "block"

    def read_tile(self, tile: Box, out: NDArray[Any], _source: Any) -> None:
        """Read a part of a block; tensorstore tells by the first word of an error whose fault it was."""
        for file in self.files.blocks(tile):
            check_stored(file)
        try:
            out[...] = self.store[self.picked.index(tile.slices)].read().result()
        except MemoryError:
            raise
        except Exception as error:
            reason = reason_of(error)
            if reason.startswith(_DAMAGE):
                raise ValueError(reason) from error
            raise OSError(errno.EIO, reason) from error


@dataclass(frozen=True)
class N5Files(BlockFiles):
    """The files of an N5 dataset."""

    folder: str
    """Absolute."""
    picked: Picked
    """Which of its axes are z, y and x, where x is the last."""
    block: Index3
    """Shape of a block, z, y, x."""
    metadata: tuple[str, ...]
    """Files of its attributes, and of its group's."""

    def blocks(self, box: Box) -> Iterator[str]:
        """Yield those of the blocks that hold voxels of a box."""
        for place in places(box, self.block):
            yield "/".join((self.folder, *map(str, reversed(self.picked.index(place)))))


def is_n5(at: Location) -> bool:
    """Return whether a folder is an N5 dataset, or a group that says so or has a finest level."""
    return (at.path / N5_ATTRIBUTES).is_file() or (at.path / FINEST / N5_ATTRIBUTES).is_file()


def open_n5(at: Location, _selection: Selection) -> Volume:
    """Open an N5 dataset, the finest level of a group of levels, or the only dataset of a group.

    Raises
    ------
    InputError
        If metadata or axes are none that can be read, or several datasets could be meant.
    """
    path, name = at.path, at.name
    home = _only_dataset(path, name)
    attributes = _attributes(home, name)
    if "compression" not in attributes and "compressionType" in attributes:  # of N5's first version
        attributes = {**attributes, "compression": {"type": attributes["compressionType"]}}
    groups = [_attributes(home.parent, name), _attributes(home.parent.parent, name)]
    missing = [key for key in _SPECIFIED if key not in attributes]
    if missing:
        raise InputError(f"{name} cannot be read as N5: its {N5_ATTRIBUTES} has no {' and no '.join(missing)}")
    store = _open(home, attributes, name)
    axes = attributes.get("axes", groups[0].get("axes"))
    named = isinstance(axes, list) and len(axes) == store.rank and all(isinstance(axis, str) for axis in axes)
    names = [axis.lower() for axis in reversed(axes)] if named and isinstance(axes, list) else [""] * store.rank
    picked = pick_only(name, names, store.shape)
    shape = picked.shape(store.shape)
    dtype = np.dtype(store.dtype.numpy_dtype)
    check_voxels(name, shape, dtype)
    _check_declared(home, groups[1], dtype, name)
    whole = [int(n) for n in reversed(attributes["blockSize"])]
    if any(whole[axis] != 1 for axis in picked.others):
        raise InputError(f"{name} has blocks of several images; copy it into a dataset of its own")
    block = triple(map(min, picked.shape(whole), shape))
    metadata = [file for file in (home / N5_ATTRIBUTES, home.parent / N5_ATTRIBUTES) if file.is_file()]
    files = N5Files(str(home.resolve()), picked, block, tuple(str(file.resolve()) for file in metadata))
    reader = N5Reader(name, store, picked, shape, dtype, block, files)
    level = level_of(home.name)
    finest = _attributes(home.parent / FINEST, name) if level else {}
    sources = {
        "shape": f"N5 attributes of {home.relative_to(path) if home != path else home.name}",
        "axes": "N5 axes" if named else "N5's order, x first",
    }
    volume = Volume(
        name,
        "N5",
        shape,
        dtype,
        reader,
        chunks=block,
        read_overhead=math.prod(whole) * dtype.itemsize * BLOCK_COPIES + FIXED_BYTES,
        sources=sources,
    )
    found = read_n5(attributes, Surroundings(groups, level, finest))
    return volume.measured(found).stored_in(files, partial(metadata_identity, home, metadata))


def _open(home: Path, attributes: Mapping[str, Any], name: str) -> tensorstore.TensorStore:
    import tensorstore

    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": f"{home.resolve()}/"},
        "metadata": {key: attributes[key] for key in _SPECIFIED},
    }
    try:
        return tensorstore.open(spec, read=True, open=True, assume_metadata=True).result().T
    except Exception as error:
        raise unreadable(name, "N5", error) from error


def _check_declared(home: Path, setup: Mapping[str, Any], dtype: np.dtype[Any], name: str) -> None:
    """Check that BigDataViewer means the voxels that are stored, for it takes their bits as what it says they are."""
    declared = setup.get("dataType")
    if _SETUP.fullmatch("/".join(home.parts[-3:])) and declared not in (None, dtype.name):
        raise InputError(
            f"{name} contradicts itself: BigDataViewer's dataType of {home.parts[-3]} is {str(declared)[:40]!r}, but "
            f"the dataset holds {dtype.name}"
        )


def _attributes(path: Path, name: str) -> Mapping[str, Any]:
    """Read the attributes of a dataset or a group, which may have none."""
    try:
        found = parse_json((path / N5_ATTRIBUTES).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise unreadable(name, "N5 metadata", error) from error
    if not isinstance(found, dict):
        raise InputError(f"{name} cannot be read as N5: its {N5_ATTRIBUTES} is no JSON object")
    return found


def _only_dataset(path: Path, name: str) -> Path:
    """Return the dataset that a folder is, or the only one in it."""
    found = sorted(_datasets(path, DEEPEST, name, [0]))
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"{name} is an N5 group without a dataset")
    raise InputError(f"{name} is an N5 group of several datasets; name one of them: {listed(found)}")


def _datasets(path: Path, depth: int, name: str, looked: list[int]) -> Iterator[Path]:
    """Find the datasets in a group and its subgroups, of levels only the finest; blocks are not looked at."""
    looked[0] += 1
    if looked[0] > MOST_LOOKED_AT:
        return
    if "dimensions" in _attributes(path, name):
        yield path
    elif (path / FINEST / N5_ATTRIBUTES).is_file():
        yield path / FINEST
    elif depth:
        for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
            yield from _datasets(folder, depth - 1, name, looked)


# ---- Neuroglancer's precomputed volumes --------------------------------------------------------------------------

# Open a Neuroglancer precomputed volume, a folder of chunks with x first, at one of its scales.
#
# tensorstore reads the chunks, sharded or not. It takes a chunk that is not there for zeros, so chunks under other
# names (CloudVolume compresses them as files that end in .gz) are looked for before, and refused.
#
# Source: https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed, "volume".


INFO = "info"
"""The file that describes a volume."""

_PACKED = (".gz", ".br", ".zstd")


class PrecomputedReader(N5Reader):
    """Reads boxes of a scale; safe to call from many threads."""

    tile_name: ClassVar[str] = "chunk"


@dataclass(frozen=True)
class PrecomputedFiles(BlockFiles):
    """The files of a scale that is not sharded."""

    folder: str
    """Of its chunks, absolute."""
    offset: Index3
    """Number of its first voxel, x, y, z."""
    shape: Index3
    """Number of voxels, z, y, x."""
    chunk: Index3
    """Shape of a chunk, z, y, x."""
    metadata: tuple[str, ...]
    """The file that describes the volume."""

    def blocks(self, box: Box) -> Iterator[str]:
        """Yield those of the chunks that hold voxels of a box."""
        for place in places(box, self.chunk):
            ranges = [
                f"{at * n + first}-{min((at + 1) * n, length) + first}"
                for at, n, length, first in zip(place, self.chunk, self.shape, self.offset[::-1], strict=True)
            ]
            yield f"{self.folder}/{'_'.join(reversed(ranges))}"


@dataclass(frozen=True)
class ShardedFiles(BlockFiles):
    """The files of a scale that is sharded, of which any may hold a chunk."""

    folder: str
    """Of its shards, absolute."""
    metadata: tuple[str, ...]
    """The file that describes the volume."""

    def __call__(self, box: Box) -> Iterator[str]:
        """Yield all of them."""
        yield from self.metadata
        yield from FolderFiles(self.folder)(box)

    def blocks(self, _box: Box) -> Iterator[str]:
        """Yield none: which shard holds a chunk only tensorstore knows."""
        yield from ()


def is_precomputed(at: Location) -> bool:
    """Return whether a folder says that it is a precomputed volume."""
    try:
        info = parse_json((at.path / INFO).read_bytes())
    except (OSError, ValueError):
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
    opened = partial(_open_scale, at, info, selection)
    with named_failures(at.name, "Neuroglancer precomputed"):
        volume = opened(chosen)
    return replace(volume, coarser=tuple(partial(opened, level) for level in range(chosen + 1, len(scales))))


def _open_scale(at: Location, info: Mapping[str, Any], selection: Selection, level: int) -> Volume:
    name, path = at.name, at.path.resolve()
    scale = _checked_scale(info["scales"][level], name)
    folder = path / scale["key"]
    _check_chunks(folder, name)
    store = _store(path, level)
    channels, *shape = store.shape
    picked = pick(name, "czyx", (channels, *shape), selection)
    zyx = triple(shape)
    dtype = np.dtype(store.dtype.numpy_dtype)
    check_voxels(name, zyx, dtype)
    whole = [int(n) for n in reversed(scale["chunk_sizes"][0])]
    chunk = triple(map(min, whole, zyx))
    offset = triple(map(int, scale.get("voxel_offset", (0, 0, 0))))
    described = (str(path / INFO),)
    files: BlockFiles = ShardedFiles(str(folder), described)
    if scale.get("sharding") is None:
        files = PrecomputedFiles(str(folder), offset, zyx, chunk, described)
    reader = partial(PrecomputedReader, name, picked=PLAIN, shape=zyx, dtype=dtype, chunk=chunk, files=files)
    lengths = triple(Length(float(size), "nanometer") for size in scale["resolution"][::-1])
    found = calibrate("the info file", "precomputed resolution", lengths)
    volume = Volume(
        name,
        f"Neuroglancer precomputed{', sharded' * isinstance(files, ShardedFiles)}",
        zyx,
        dtype,
        series_reader(picked, partial(_member, reader, store)),
        chunks=chunk,
        read_overhead=math.prod(whole) * channels * dtype.itemsize * BLOCK_COPIES + FIXED_BYTES,
        sources={"shape": f"info of scale {scale['key']}", "axes": picked.told("precomputed's order, x first")},
        labels=info.get("type") == "segmentation",
        series=picked.axes(),
    )
    now = partial(metadata_identity, path, [path / INFO])
    volume = volume.measured(found.at(_origin(info["scales"][0], scale)))
    return volume.stored_in(files, now, **selection.identity("level"), **picked.chosen)


def _member(reader: partial[PrecomputedReader], store: tensorstore.TensorStore, picked: Picked) -> PrecomputedReader:
    return reader(store=store[picked.others[0]])


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
    zyx = zip(offset[::-1], scale["resolution"][::-1], first["resolution"][::-1], strict=True)
    return triple(float(at * size + (size - finest) / 2) for at, size, finest in zyx)
