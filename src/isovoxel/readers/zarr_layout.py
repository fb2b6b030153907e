"""Find where the chunks of a zarr array lie that is read without zarr-python.

Those in a local folder, a zip that compresses nothing, or an object store, whose chunks are a regular grid in C order,
encoded by no codec or one of the usual, each in a file of its own or in a shard. `chunk_layout` reads that from the
metadata once; whatever is not known for certain to be so stays with zarr-python.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from isovoxel.codecs.streams import ChunkCoding
from isovoxel.geometry.grid import Box, Index3, ceil_div
from isovoxel.object_store.files import ARRAY_FILES
from isovoxel.object_store.objects import PIECE_BYTES, ObjectPlace, Place
from isovoxel.planning.chunking import CHECKSUM_BYTES, Storage
from isovoxel.readers.base import Files
from isovoxel.readers.chunks import DECODED_COPIES, DECODER_BYTES
from isovoxel.readers.files import FolderFiles, places
from isovoxel.readers.selection import PLAIN, Picked
from isovoxel.readers.zarr_node import INDEX_CODECS, ArrayNode

if TYPE_CHECKING:
    from isovoxel.readers.packed import ZipPlace

CODECS_V3 = ("blosc", "zstd", "gzip")
"""Codecs of zarr v3 that are decoded here."""

COMPRESSORS_V2 = ("blosc", "zstd", "gzip", "zlib", "lz4", "lzma", "bz2")
"""Likewise of zarr v2."""

INDEX_CACHE_BYTES = 1 << 20
"""Most bytes of shards' indices that are kept."""

INDEX_COST = 1 << 10
"""What keeping an index takes beside its entries."""

FIXED_BYTES = 5 << 15
"""What a read holds whatever the chunk's size."""

AT_ONCE = 6
"""How many chunks one read of a box asks an object store for at a time."""

RECEIVED = 4
"""Pieces of an object that are held on their way from a store."""

PIECE_COST = 1 << 9
"""What a read holds for every chunk along an axis."""


@dataclass(frozen=True)
class ChunkLayout:
    """Where the chunks of a zarr array lie, and how they are encoded."""

    folder: str | ObjectPlace | ZipPlace
    """Absolute path of the array, or its place in an object store or a zip."""
    prefix: str
    """What the name of every chunk's file begins with."""
    separator: str
    """What stands between the numbers in a file's name."""
    picked: Picked
    """Which of the array's axes are z, y and x, and where along the others, of which a chunk has one entry each."""
    shape: Index3
    """Number of voxels, z, y, x."""
    dtype: np.dtype[Any]
    """Of the encoded voxels, with their byte order."""
    chunk: Index3
    """Voxels that are decoded in one go."""
    file: Index3
    """Voxels of one file: a chunk, or a shard of them."""
    index: str | None
    """Whether a shard's index is at its "start" or "end"; None where there are no shards."""
    codec: str
    """One of `DECODERS`."""
    streams: str
    """Codec of the streams in blosc's containers; nothing where there are none."""
    checksum: bool
    """Whether a CRC-32C follows every encoded chunk."""
    fill: float
    """Value of the voxels of chunks that are not stored."""

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk; one at the volume's end is as large as the others."""
        return math.prod(self.chunk) * self.dtype.itemsize

    @cached_property
    def encoded_limit(self) -> int:
        """Most bytes that a chunk may be encoded in; no codec makes that much of anything."""
        return self.chunk_bytes + self.chunk_bytes // 8 + (1 << 16)

    @cached_property
    def per_shard(self) -> Index3:
        """Number of chunks in a file, per axis."""
        (z, y, x), (deep, high, wide) = self.file, self.chunk
        return (z // deep, y // high, x // wide)

    @cached_property
    def index_bytes(self) -> int:
        """Bytes of a shard's index with its checksum; 0 where there are no shards."""
        return 0 if self.index is None else 16 * math.prod(self.per_shard) + CHECKSUM_BYTES

    @property
    def coding(self) -> ChunkCoding | None:
        """How a GPU decodes the chunks, None where it does not.

        What decodes zstd there must not be given damaged streams; see `isovoxel.codecs.decoder`. So the checksum of a
        chunk has to show that it is whole.
        """
        known = self.streams == "lz4" or (self.streams == "zstd" and self.checksum)
        if not known or self.dtype.newbyteorder("<") != self.dtype or not isinstance(self.folder, str):
            return None
        return ChunkCoding(self.streams, self.chunk, self.dtype.itemsize)

    @property
    def read_overhead(self) -> int:
        """Largest number of bytes that one `read` holds beside the array it returns."""
        decoded = (1 + DECODED_COPIES.get(self.codec, 0)) * self.chunk_bytes + DECODER_BYTES.get(self.codec, 0)
        files = math.prod(ceil_div(n, f) for n, f in zip(self.shape, self.file, strict=True))
        kept = min(INDEX_CACHE_BYTES, files * (self.index_bytes + INDEX_COST)) if self.index else 0
        at_once, received = (AT_ONCE, RECEIVED * PIECE_BYTES) if isinstance(self.folder, ObjectPlace) else (1, 0)
        # Along z, only the chunks of one file are held.
        pieces = self.per_shard[0] + sum(ceil_div(n, c) for n, c in zip(self.shape[1:], self.chunk[1:], strict=True))
        each = self.encoded_limit + decoded + self.index_bytes + received
        return at_once * each + kept + FIXED_BYTES + PIECE_COST * pieces

    @cached_property
    def _name(self) -> str:
        """The name of a file, with {0}, {1} and {2} for its place along z, y and x."""
        return f"{self.prefix}{self.separator.join(map(str, self.picked.index(('{0}', '{1}', '{2}'))))}"

    def key(self, place: Index3) -> tuple[int, ...]:
        """Return what tells a chunk or a file from others, of other volumes too."""
        return (*self.picked.others.values(), *place)

    def path(self, place: Index3) -> str | ObjectPlace | ZipPlace:
        """Return where a file is, by its place in the grid of files."""
        name = self._name.format(*place)
        return f"{self.folder}/{name}" if isinstance(self.folder, str) else self.folder / name


@dataclass(frozen=True)
class ZarrFiles:
    """The files of a zarr array."""

    layout: ChunkLayout
    """Where the chunks of its first volume lie."""

    def __call__(self, box: Box) -> Iterator[str | ObjectPlace]:
        """Yield them all, of chunks and shards those that hold voxels of a box; not all may be there."""
        folder = self.layout.folder
        if not isinstance(folder, str | ObjectPlace):
            yield folder.path  # the zip
            return
        for name in ARRAY_FILES:
            yield folder / name if isinstance(folder, ObjectPlace) else f"{folder}/{name}"
        picked = self.layout.picked
        for volume in product(*(range(length) for _, length in picked.lengths)):
            layout = replace(self.layout, picked=picked.at(volume))
            yield from map(layout.path, places(box, layout.file))


def array_files(array: ArrayNode, layout: ChunkLayout | None) -> Files | None:
    """Return what names the files of an array, or None where they are not known."""
    if layout is not None:
        return ZarrFiles(layout)
    return FolderFiles(array.folder) if isinstance(array.folder, str) else None


def chunk_layout(array: ArrayNode, picked: Picked) -> ChunkLayout | None:
    """Return the layout of an array that can be read without zarr-python, else None.

    Parameters
    ----------
    array
        What its metadata say, v2 or v3.
    picked
        Which of its axes are z, y and x, in this order, and where along the others.
    """
    if array.folder is None or not array.fills:
        return None
    stored = _stored_v2(array.metadata) if array.zarr_format == 2 else _stored_v3(array.metadata, array.dtype)
    if stored is None:
        return None
    chunk, file = array.chunks, array.shards or array.chunks
    if any(file[axis] != 1 for axis in picked.others) or any(c < 1 or f % c for c, f in zip(chunk, file, strict=True)):
        return None
    return ChunkLayout(
        **vars(stored),
        folder=array.folder,
        picked=picked,
        shape=picked.shape(array.shape),
        chunk=picked.shape(chunk),
        file=picked.shape(file),
        # v2 may leave it open; zarr-python then takes 0 as well.
        fill=stored.dtype.newbyteorder("=").type(0 if array.fill is None else array.fill),
    )


def written_layout(
    output: Place | None,
    shape: Index3,
    dtype: np.dtype[Any],
    storage: Storage,
    picked: Picked = PLAIN,
) -> ChunkLayout:
    """Return the layout of an array as isovoxel writes it, as `chunk_layout` finds it then.

    Parameters
    ----------
    output
        Where the array lies or will lie: in an object store, or on a local disk, which is what None stands for.
    shape, dtype
        Of the array, z, y, x.
    storage
        Chunks, shards and codec.
    picked
        Which of its axes are z, y and x; before them come those along which there are several volumes.
    """
    return ChunkLayout(
        folder=output if isinstance(output, ObjectPlace) else "" if output is None else str(output.resolve()),
        prefix="c/" if storage.zarr_format == 3 else "",
        separator="/",
        picked=picked,
        shape=shape,
        dtype=np.dtype(dtype).newbyteorder("<"),
        chunk=storage.chunk,
        file=storage.shard,
        index="end" if storage.sharded else None,
        codec=storage.codec if storage.plain or storage.codec == "none" else "blosc",
        streams="" if storage.plain or storage.codec == "none" else storage.codec,
        checksum=storage.checksum,
        fill=0,
    )


@dataclass(frozen=True)
class _Stored:
    """What the metadata of either format say beside the shapes."""

    prefix: str
    separator: str
    dtype: np.dtype[Any]
    codec: str
    streams: str
    checksum: bool = False
    index: str | None = None


def _stored_v2(metadata: Mapping[str, Any]) -> _Stored | None:
    compressor = metadata["compressor"]
    codec = "none" if compressor is None else compressor["id"]
    if metadata["order"] != "C" or metadata["filters"] or codec not in ("none", *COMPRESSORS_V2):
        return None
    if codec == "lzma" and compressor.get("format") == lzma.FORMAT_RAW:
        return None  # which needs to be told its filters
    streams = str(compressor.get("cname", "")) if codec == "blosc" else ""
    return _Stored("", metadata["dimension_separator"], np.dtype(metadata["dtype"]), codec, streams)


def _stored_v3(metadata: Mapping[str, Any], dtype: np.dtype[Any]) -> _Stored | None:
    grid, keys = metadata["chunk_grid"], metadata["chunk_key_encoding"]
    if grid["name"] != "regular" or keys["name"] not in ("default", "v2") or metadata.get("storage_transformers"):
        return None
    separator = keys["configuration"]["separator"]
    prefix = f"c{separator}" if keys["name"] == "default" else ""
    codecs, index = metadata["codecs"], None
    if [codec["name"] for codec in codecs] == ["sharding_indexed"]:
        shard = codecs[0]["configuration"]
        codecs, index = shard["codecs"], shard["index_location"]
        if list(shard["index_codecs"]) != INDEX_CODECS:
            return None
    names = [codec["name"] for codec in codecs]
    if names[:1] != ["bytes"]:
        return None
    endian = codecs[0].get("configuration", {}).get("endian")
    if endian is None and dtype.itemsize > 1:
        return None
    match names[1:]:
        case [] | ["crc32c"]:
            codec = "none"
        case [codec] | [codec, "crc32c"] if codec in CODECS_V3:
            pass
        case _:
            return None
    dtype = dtype.newbyteorder(">" if endian == "big" else "<")
    streams = str(codecs[1].get("configuration", {}).get("cname", "")) if codec == "blosc" else ""
    return _Stored(prefix, separator, dtype, codec, streams, names[-1] == "crc32c", index)
