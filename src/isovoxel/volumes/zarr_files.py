"""How does a chunk of a local zarr get from its file into memory?

A file is a chunk, or a shard of many: then its index says where each of them begins and how long it is. It is
opened when the first of its chunks is wanted, and closed when the reading has passed it; the last indices are
kept. Sizes are checked before they are believed.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from io import FileIO
from types import TracebackType
from typing import Any, Self

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.box import Index3
from isovoxel.volumes.zarr_codecs import DECODERS
from isovoxel.volumes.zarr_layout import CHECKSUM_BYTES, INDEX_CACHE_BYTES, INDEX_COST, ChunkLayout

Stamp = tuple[int, int, int]
"""What changes when a file is replaced: inode, size, modification time."""

_NO_CHUNK = 2**64 - 1


class ShardIndexError(ValueError):
    """The index of a shard is damaged, and with it all chunks of the shard are lost."""


class IndexCache:
    """The indices of the shards that were read last; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Index3, tuple[Stamp, NDArray[np.uint64]]] = OrderedDict()
        self._bytes = 0

    def get(self, place: Index3, stamp: Stamp) -> NDArray[np.uint64] | None:
        """Return the index of the shard at a place, unless its file is another by now."""
        with self._lock:
            found = self._kept.get(place)
            if found is None or found[0] != stamp:
                return None
            self._kept.move_to_end(place)
            return found[1]

    def put(self, place: Index3, stamp: Stamp, index: NDArray[np.uint64]) -> None:
        """Keep an index, and let go of those that were not used for longest."""
        with self._lock:
            if place in self._kept:
                self._bytes -= self._kept.pop(place)[1].nbytes + INDEX_COST
            self._kept[place] = (stamp, index)
            self._bytes += index.nbytes + INDEX_COST
            while self._bytes > INDEX_CACHE_BYTES:
                _, (_, old) = self._kept.popitem(last=False)
                self._bytes -= old.nbytes + INDEX_COST


class ChunkFile:
    """One file of chunks; used by one thread, in a ``with`` statement.

    Parameters
    ----------
    layout
        Of the array.
    indices
        Where the indices of its shards are kept.
    place
        Of the file in the grid of files.
    """

    def __init__(self, layout: ChunkLayout, indices: IndexCache, place: Index3) -> None:
        self._layout = layout
        self._indices = indices
        self._place = place
        self._opened = False
        self._file: FileIO | None = None
        self._size = 0
        self._index: NDArray[np.uint64] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, chunk: Index3, encoded: NDArray[np.uint8], out: NDArray[Any]) -> bool:
        """Decode a chunk.

        Parameters
        ----------
        chunk
            Its place in the array's grid of chunks.
        encoded
            Room for `ChunkLayout.encoded_limit` bytes.
        out
            Where its voxels go, in native byte order: C-contiguous, of the chunk's shape.

        Returns
        -------
        bool
            Whether there is such a chunk; if not, `out` is as it was.

        Raises
        ------
        OSError
            Where the system cannot read it.
        ShardIndexError
            Where the whole shard is damaged.
        Exception
            Of any other kind, where the chunk is damaged.
        """
        if not self._opened:
            self._open()
            self._opened = True
        span = self._span(chunk)
        if self._file is None or span is None:
            return False
        layout = self._layout
        voxels = out.reshape(-1).view(np.uint8)
        offset, count = span
        if layout.codec == "none" and not layout.checksum and count == voxels.size:
            _read(self._file, offset, voxels)
        else:
            if count > encoded.size:
                raise ValueError(f"its {count} encoded bytes are more than any chunk of {voxels.size} bytes takes")
            data = encoded[:count]
            _read(self._file, offset, data)
            DECODERS[layout.codec](_checked(data) if layout.checksum else data, voxels)
        if not layout.dtype.isnative:
            out.byteswap(inplace=True)
        return True

    def _open(self) -> None:
        """Open the file, and find its index; without a file, its chunks are not stored."""
        layout = self._layout
        try:
            self._file = file = FileIO(layout.path(self._place), opener=_open_at_once)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no file")
        self._size = status.st_size
        if layout.index is not None:
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            self._index = self._indices.get(self._place, stamp)
            if self._index is None:
                self._index = self._read_index(file)
                self._indices.put(self._place, stamp, self._index)

    def _read_index(self, file: FileIO) -> NDArray[np.uint64]:
        size = self._layout.index_bytes
        if size > self._size:
            raise ShardIndexError(f"its {self._size} bytes are fewer than the {size} of its index")
        data = np.empty(size, np.uint8)
        try:
            _read(file, 0 if self._layout.index == "start" else self._size - size, data)
            return _checked(data, "its index").view("<u8").reshape(-1, 2)
        except ValueError as error:
            raise ShardIndexError(*error.args) from error

    def _span(self, chunk: Index3) -> tuple[int, int] | None:
        """Return where a chunk begins and its number of bytes, or None where it is not stored."""
        if self._index is None:
            return (0, self._size)
        rows, columns = self._layout.per_shard[1:]
        z, y, x = (c % n for c, n in zip(chunk, self._layout.per_shard, strict=True))
        offset, count = self._index[(z * rows + y) * columns + x].tolist()
        if offset == count == _NO_CHUNK:
            return None
        if offset + count > self._size:
            raise ValueError(f"it ends at byte {offset + count} of a shard of {self._size} bytes")
        return (offset, count)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe too, for which one would otherwise wait until somebody writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read(file: FileIO, offset: int, out: NDArray[np.uint8]) -> None:
    """Fill `out` with the bytes from `offset` on."""
    buffer = out.data
    while buffer:
        count = _read_at(file, offset, buffer)
        if not count:
            raise ValueError(f"its file ends {len(buffer)} bytes too early; it has been changed since it was opened")
        buffer = buffer[count:]
        offset += count


def _read_at(file: FileIO, offset: int, buffer: memoryview) -> int:
    """Read some bytes from `offset` on, and return how many."""
    # One call where seek and readinto are two: after each, a thread waits for Python's lock again.
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [buffer], offset)
    file.seek(offset)  # on Windows
    return file.readinto(buffer)


def _checked(data: NDArray[np.uint8], what: str = "it") -> NDArray[np.uint8]:
    """Return the bytes before their checksum, which must be right."""
    content, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if google_crc32c.value(content) != int.from_bytes(checksum.tobytes(), "little"):
        raise ValueError(f"{what} does not have the checksum that was stored with it")
    return content
