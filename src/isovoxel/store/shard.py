"""How does a shard become a file? Threads encode its chunks and append them in turn; the index comes last.

A shard of Zarr 3 is its encoded chunks, then for every place in it, z slowest, where its chunk begins and how
long it is (two uint64, all bits set where there is no chunk), then a CRC-32C of that. zarr-python holds every
encoded chunk and their concatenation, more than twice the shard; appending holds a few chunks, however large it
is.

1. A thread takes the next chunk, copies it out of the block (zeros beyond the volume's end), and encodes it.
2. It waits until all chunks before it are in the file, and appends its own: same voxels, same file.
3. The index is appended, the file is flushed to the disk and renamed: it is there completely or not at all.

Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

from isovoxel.geometry.box import Box
from isovoxel.planning.storage import ENCODED_AT_ONCE, Storage

_NO_CHUNK = 2**64 - 1

BLOSC_LEVELS = {"lz4": 5, "zstd": 1}
"""Compression level of each of blosc's compressors that is a codec of ours.

Bits are shuffled for every dtype: on noisy images of 8, 16 and 32 bits that made smaller files than shuffled
bytes, by up to a quarter.
"""


class ShardEncoder:
    """Encodes shards of one array into files; `write` may be called from several threads at once.

    Parameters
    ----------
    storage
        Chunks, shards and codec.
    dtype
        Of the voxels.
    """

    def __init__(self, storage: Storage, dtype: np.dtype[Any]) -> None:
        self.storage = storage
        self.dtype = np.dtype(dtype)
        level = BLOSC_LEVELS.get(storage.codec)
        self._codec = None if level is None else Blosc(storage.codec, clevel=level, shuffle=Blosc.BITSHUFFLE)
        self._threads = min(ENCODED_AT_ONCE, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._threads, "encode")

    def write(self, path: Path, data: NDArray[Any]) -> None:
        """Write one shard; what was there is replaced.

        Parameters
        ----------
        path
            File of the shard; its folder is made.
        data
            Its voxels, from its first one on; shorter than the shard where the volume ends.

        Raises
        ------
        OSError
            If the file system refuses. What was there before is still there.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with partial.open("xb", buffering=0) as file:
                job = _Shard(self, file.fileno(), data)
                # This thread works too, so a shard is written however busy the others are.
                helpers = [self._pool.submit(job.work) for _ in range(min(self._threads, len(job.boxes)) - 1)]
                try:
                    job.work()
                    for helper in helpers:
                        if not helper.cancel():
                            helper.result()
                finally:
                    # Whatever went wrong: nobody writes to a descriptor that is closed.
                    job.stop()
                job.append_index()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise

    def encode(self, voxels: NDArray[Any]) -> memoryview:
        """Return a chunk as it stands in the file."""
        chunk = np.zeros(self.storage.chunk, self.dtype.newbyteorder("<"))
        z, y, x = voxels.shape
        chunk[:z, :y, :x] = voxels
        # numcodecs has no types; both sides are buffers of bytes.
        encoded: Any = chunk.reshape(-1).view("u1") if self._codec is None else self._codec.encode(chunk)
        return memoryview(encoded)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


class _Shard:
    """One shard on its way into a file. Any number of threads may `work` on it.

    A thread takes the lowest chunk that nobody has, so the chunk whose turn it is always has a thread that does
    not wait, and the work cannot stand still.
    """

    def __init__(self, encoder: ShardEncoder, descriptor: int, data: NDArray[Any]) -> None:
        self._encoder = encoder
        self._descriptor = descriptor
        self._data = data
        z, y, x = data.shape
        self.boxes = list(Box.whole((z, y, x)).tiles(encoder.storage.chunk))
        places = (s // c for s, c in zip(encoder.storage.shard, encoder.storage.chunk, strict=True))
        self._index = np.full((*places, 2), _NO_CHUNK, "<u8")
        self._end = 0
        self._taken = 0
        self._turn = 0
        self._stopped = False
        self._changed = threading.Condition()

    def work(self) -> None:
        """Encode and append chunks until none is left, or another thread has failed."""
        try:
            while (number := self._take()) is not None:
                encoded = self._encoder.encode(self._data[self.boxes[number].slices])
                with self._changed:
                    while not self._stopped and self._turn != number:
                        self._changed.wait()
                    if self._stopped:
                        return
                    self._append(self.boxes[number], encoded)
                    self._turn += 1
                    self._changed.notify_all()
                del encoded
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Return when no thread begins or appends another chunk."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def append_index(self) -> None:
        """Append where the chunks are, and the checksum of that."""
        entries = self._index.tobytes()
        _write_all(self._descriptor, memoryview(entries + google_crc32c.value(entries).to_bytes(4, "little")))

    def _take(self) -> int | None:
        with self._changed:
            if self._stopped or self._taken == len(self.boxes):
                return None
            self._taken += 1
            return self._taken - 1

    def _append(self, box: Box, encoded: memoryview) -> None:
        place = tuple(a // c for a, c in zip(box.start, self._encoder.storage.chunk, strict=True))
        self._index[place] = self._end, len(encoded)
        self._end += len(encoded)
        _write_all(self._descriptor, encoded)


def _write_all(descriptor: int, data: memoryview) -> None:
    """Write all of the data: one call to the system may write less than it was given."""
    while data:
        data = data[os.write(descriptor, data) :]
