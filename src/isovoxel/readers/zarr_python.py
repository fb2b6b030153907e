"""Read zarr arrays through zarr-python: those that `zarr_array` does not read.

Object stores are reached by a store of isovoxel's own, which raises what its other readers of objects raise.
"""

from __future__ import annotations

import asyncio
import copy
import lzma
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from gzip import BadGzipFile
from typing import Any
from zipfile import BadZipFile

import numpy as np
import zarr
from numcodecs.abc import Codec
from numcodecs.compat import ensure_contiguous_ndarray
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import ByteRequest
from zarr.codecs import BytesCodec, ShardingCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.storage import ObjectStore

from isovoxel.geometry.grid import Box, Index3, ceil_div
from isovoxel.object_store.clients import client, told
from isovoxel.object_store.retries import Attempts, is_transient
from isovoxel.readers.base import ReadBox, series_reader
from isovoxel.readers.chunks import DECODED_COPIES, DECODER_BYTES, DECODERS, blosc_size
from isovoxel.readers.files import check_stored
from isovoxel.readers.selection import Picked
from isovoxel.readers.tiled import TiledReader
from isovoxel.readers.zarr_node import ArrayNode

CHUNK_COPIES = 4
"""How many times one chunk is held, at most, beside the returned array; and once more for each codec."""

INDEX_COPIES = 4
"""Likewise for a shard's index, 16 bytes a chunk."""

BLOSC = "blosc"

FIXED_BYTES = 1 << 18
"""What zarr holds whatever the chunk's size: its event loop's tasks, and the headers of encoded chunks."""

DECODING_ERRORS = (
    ValueError,
    RuntimeError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    BadGzipFile,
    BadZipFile,
    struct.error,
)
"""What zarr-python's codecs raise of bytes that they cannot decode."""


@dataclass(frozen=True)
class ZarrReader(TiledReader):
    """Reads boxes of any zarr array through zarr-python; safe to call from many threads.

    Chunk by chunk: zarr-python would decode all chunks of a box at once, and hold them all.
    """

    name: str
    """What the user called the input, for messages."""
    array: zarr.Array[Any]
    """The array."""
    picked: Picked
    """Which of its axes are z, y and x, and where along the others."""
    chunk: Index3
    """Shape of a chunk, z, y, x."""
    folder: str | None = None
    """Where the array is, in a local folder."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels."""
        return np.dtype(self.array.dtype)

    @property
    def shape(self) -> Index3:
        """Number of voxels, z, y, x."""
        return self.picked.shape(self.array.shape)

    def read_tile(self, tile: Box, out: NDArray[Any], _source: Any) -> None:
        """Read a part of a chunk."""
        index = self.picked.index(tile.slices)
        if self.folder is not None:
            check_stored(f"{self.folder}/{self._key(index)}")
        # No name for the part, which would keep it while the next one is read.
        out[...] = self.array[index]

    def _key(self, index: Sequence[int | slice]) -> str:
        """Return the key of the chunk, or the shard, that a part of the array lies in."""
        starts = (part.start if isinstance(part, slice) else part for part in index)
        grid = self.array.shards or self.array.chunks
        return self.array.metadata.encode_chunk_key(tuple(at // n for at, n in zip(starts, grid, strict=True)))

    def is_damage(self, error: Exception) -> bool:
        """Return whether an error is what decoders raise: anything else is the store's, or the network's."""
        return isinstance(error, DECODING_ERRORS) and not is_transient(error)


def slow_voxels(node: ArrayNode, name: str, picked: Picked, chunk: Index3) -> tuple[ReadBox, int]:
    """Return what reads boxes of an array through zarr-python, and the bytes that it holds beside what it returns.

    What zarr-python holds for one chunk was measured: the encoded bytes, the decoded chunk, the part of it that was
    asked for, and with shards that part once more, and the shard's index.
    """
    array = node.opened()
    names = [codec_name(codec) for codec in array.compressors]
    copies = CHUNK_COPIES + len(array.filters) + sum(1 + DECODED_COPIES.get(codec, 0) for codec in names)
    overhead = copies * math.prod(array.chunks) * np.dtype(array.dtype).itemsize + FIXED_BYTES
    overhead += sum(DECODER_BYTES.get(codec, 0) for codec in names)
    if array.shards is not None:
        inner = map(ceil_div, array.shards, array.chunks)
        overhead += INDEX_COPIES * 16 * math.prod(inner)
    local = node.folder if isinstance(node.folder, str) else None
    reads = partial(ZarrReader, name, with_bounded_decoders(array), chunk=chunk, folder=local)
    return series_reader(picked, reads), overhead


# ---- codecs --------------------------------------------------------------------------------------------------------

# zarr-python's codecs believe what a chunk says of itself: one cut short makes blosc read whatever lies behind it in
# memory, and a small one may decode to any size. So the codec that compresses the chunks is replaced by one of
# `chunks`, which knows how many bytes must come out. Codecs that do not stand next to the voxels' bytes, and those of
# other names, stay, but blosc's, of which only what the header says of its sizes is known then.


@dataclass(frozen=True)
class BoundedCodec(BytesBytesCodec):
    """A compressor of zarr v3 that decodes to as many bytes as the chunk has, or fails."""

    codec: str
    """One of `DECODERS`."""
    sized: bool = True
    """Whether it stands next to the voxels' bytes, whose number is known."""
    is_fixed_size = False

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        size = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize if self.sized else None
        voxels = await asyncio.to_thread(_decoded, self.codec, chunk_bytes.as_numpy_array(), size)
        return chunk_spec.prototype.buffer.from_array_like(voxels)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Refuse: nothing is encoded here."""
        raise NotImplementedError


class BoundedCompressor(Codec):  # type: ignore[misc]
    """A compressor of zarr v2 that decodes to as many bytes as a chunk has, where that is known, or fails."""

    def __init__(self, codec_id: str, size: int | None) -> None:
        self.codec_id = codec_id
        self._size = size

    def encode(self, buf: Any) -> Any:
        """Refuse: nothing is encoded here."""
        raise NotImplementedError

    def decode(self, buf: Any, out: Any = None) -> NDArray[np.uint8]:  # noqa: ARG002 - as all codecs have it
        """Return the bytes of a chunk; `out` is not used by zarr."""
        return _decoded(self.codec_id, buf, self._size)


def with_bounded_decoders(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the same array, read-only, with decoders that stop at the size of a chunk, where it has such a codec."""
    inner = array.async_array
    if type(inner.codec_pipeline) is not BatchedCodecPipeline:
        return array  # of the user's own choice, which may not know our codecs
    metadata = copy.copy(array.metadata)
    if metadata.zarr_format == 2:
        compressor = getattr(metadata, "compressor", None)
        codec = "" if compressor is None else codec_name(compressor)
        filters = metadata.filters
        if filters:
            bounded = tuple(BoundedCompressor(BLOSC, None) if codec_name(one) == BLOSC else one for one in filters)
            object.__setattr__(metadata, "filters", bounded)
        size = None if filters else math.prod(array.chunks) * np.dtype(array.dtype).itemsize
        if codec == BLOSC or (size is not None and codec in DECODERS and getattr(compressor, "format", 1) != 3):
            object.__setattr__(metadata, "compressor", BoundedCompressor(codec, size))
    else:
        object.__setattr__(metadata, "codecs", _bounded_codecs(metadata.codecs))
    # zarr-python from 3.2 on warns of the name that it had before.
    config = getattr(inner, "config" if hasattr(inner, "config") else "_config")
    return zarr.Array(type(inner)(metadata, array.store_path, config))


def codec_name(codec: Any) -> str:
    """Return the name that metadata of v2 or v3 give a codec."""
    return str(getattr(codec, "codec_id", "") or codec.to_dict()["name"])


def _bounded_codecs(codecs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace the compressor that stands behind the voxels' bytes, inside shards too."""
    found: list[Any] = []
    for codec in codecs:
        name = codec_name(codec)
        if isinstance(codec, ShardingCodec):
            found.append(replace(codec, codecs=_bounded_codecs(codec.codecs)))
        elif found and isinstance(found[-1], BytesCodec) and name in DECODERS:
            found.append(BoundedCodec(name))
        elif name.removeprefix("numcodecs.") == BLOSC:
            found.append(BoundedCodec(BLOSC, sized=False))
        else:
            found.append(codec)
    return tuple(found)


def _decoded(codec: str, encoded: Any, size: int | None) -> NDArray[np.uint8]:
    data = ensure_contiguous_ndarray(encoded).view(np.uint8).reshape(-1)
    voxels = np.empty(blosc_size(data) if size is None else size, np.uint8)
    DECODERS[codec](data, voxels)
    return voxels


# ---- object stores -------------------------------------------------------------------------------------------------

# zarr-python's store for obstore, with our words for what fails.


class RootStore(ObjectStore[Any]):
    """A whole object store, to be read only; another process gets its name and no credentials.

    Parameters
    ----------
    root
        The store, as `isovoxel.object_store.objects.Address` has it.
    """

    def __init__(self, root: str) -> None:
        super().__init__(client(root), read_only=True)
        self.root = root

    def __reduce__(self) -> tuple[type[RootStore], tuple[str]]:
        return (RootStore, (self.root,))

    def __str__(self) -> str:
        return self.root

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return what an object holds, or a part of it; None where there is none.

        Raises
        ------
        OSError
            If it cannot be read.
        """
        attempts = Attempts()
        while True:
            try:
                with told(self.root):
                    found = await super().get(key, prototype, byte_range)
            except OSError as error:
                await asyncio.to_thread(attempts.pause, error)
            else:
                attempts.succeed()
                return found
