"""How does a chunk become bytes? It is made contiguous and compressed, both into memory that is used again.

Memory that is new to a process costs a third of what compressing into it does, and more on many cores: the system
clears every page at its first touch, and interrupts all cores to take it back. So no chunk gets memory of its own.

1. Voxels that are no whole, contiguous, little-endian chunk are copied to one, zeros beyond the volume's end.
2. Blosc compresses it into a buffer on the calling thread alone; without a codec the copy is the result.
3. Its CRC-32C follows, where the output has checksums of chunks.
"""

from __future__ import annotations

import math
from typing import Any

import imagecodecs
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from isovoxel.planning.chunking import BLOSC_MARGIN, CHECKSUM_BYTES, Storage

Bytes = NDArray[np.uint8]

BLOSC_LEVELS = {"lz4": 5, "zstd": 1}
"""Compression level of each of blosc's compressors that is a codec of ours.

Bits are shuffled for every dtype: on noisy images of 8, 16 and 32 bits that made smaller files than shuffled
bytes, by up to a quarter.
"""


class ChunkEncoder:
    """Encodes chunks of one array; any number of threads may, each with scratch and a buffer of its own.

    Parameters
    ----------
    storage
        Chunks and codec.
    dtype
        Of the voxels.
    """

    def __init__(self, storage: Storage, dtype: np.dtype[Any]) -> None:
        self._shape = storage.chunk
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._nbytes = math.prod(self._shape) * self._dtype.itemsize
        self._codec = storage.codec
        self._level = BLOSC_LEVELS.get(storage.codec)
        self._margin = CHECKSUM_BYTES if storage.checksum else 0

    def scratch(self) -> Bytes:
        """Return new memory for the contiguous copy; none is needed where the copy is the result."""
        return np.empty(0 if self._level is None else self._nbytes, np.uint8)

    def buffer(self) -> Bytes:
        """Return new memory for the longest result."""
        return np.empty(self._nbytes + (0 if self._level is None else BLOSC_MARGIN) + self._margin, np.uint8)

    def encode(self, voxels: NDArray[Any], scratch: Bytes, buffer: Bytes) -> Bytes:
        """Return a chunk as it stands in the file: the beginning of the buffer.

        Parameters
        ----------
        voxels
            Those of the chunk that lie in the volume.
        scratch, buffer
            As the methods of these names made them; what they held is lost.
        """
        length = self._compressed(voxels, scratch, buffer)
        if self._margin:
            buffer[length : length + CHECKSUM_BYTES].view("<u4")[0] = crc32c(buffer[:length])
        return buffer[: length + self._margin]

    def _compressed(self, voxels: NDArray[Any], scratch: Bytes, buffer: Bytes) -> int:
        """Compress a chunk into the beginning of a buffer, and return its length there."""
        if self._level is None:
            self._fill(buffer[: self._nbytes], voxels)
            return self._nbytes
        whole = voxels.shape == self._shape and voxels.dtype == self._dtype and voxels.flags.c_contiguous
        # imagecodecs takes arrays, though its types do not say so, and from them how long a voxel is, not from
        # `typesize`: one of bytes would be shuffled wrongly.
        chunk: Any = voxels if whole else self._fill(scratch, voxels)
        out: Any = buffer[: self._nbytes + BLOSC_MARGIN]  # or blosc would store noise in more bytes
        # One thread, for callers have a thread on every core; with more, blosc's result depends on which is faster.
        encoded = imagecodecs.blosc_encode(
            chunk,
            self._level,
            compressor=self._codec,
            shuffle="bitshuffle",
            typesize=self._dtype.itemsize,
            numthreads=1,
            out=out,
        )
        return len(encoded)

    def _fill(self, memory: Bytes, voxels: NDArray[Any]) -> NDArray[Any]:
        chunk = memory.view(self._dtype).reshape(self._shape)
        if voxels.shape != self._shape:
            chunk.fill(0)
        z, y, x = voxels.shape
        chunk[:z, :y, :x] = voxels
        return chunk
