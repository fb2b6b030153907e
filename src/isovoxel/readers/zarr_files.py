"""Read chunks of a zarr from their files into memory.

A file is a chunk, or a shard of many: then its index says where each of them begins and how long it is. It is
opened when the first of its chunks is wanted, and closed when the reading has passed it; the last indices are
kept. Sizes are checked before they are believed.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
import zlib
from collections import OrderedDict
from dataclasses import replace
from io import FileIO
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from isovoxel.geometry.grid import Index3
from isovoxel.object_store.clients import BucketMissingError, ChangedError, Found
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.planning.chunking import CHECKSUM_BYTES
from isovoxel.readers.chunks import DECODERS, Place
from isovoxel.readers.files import NoFileError, fill_buffer, no_file
from isovoxel.readers.zarr_layout import INDEX_CACHE_BYTES, INDEX_COST, ChunkLayout

if TYPE_CHECKING:
    from zipfile import ZipInfo

    from isovoxel.readers.packed import ZipPlace

_NO_CHUNK = 2**64 - 1
_MEMBER_HEADER = 30
"""Bytes of a header in a zip, of which the last four are the lengths of what follows it."""


class ShardIndexError(ValueError):
    """The index of a shard is damaged, and with it all chunks of the shard are lost."""


class IndexCache:
    """The indices of the shards that were read last; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Place, tuple[Stamp, NDArray[np.uint64]]] = OrderedDict()
        self._bytes = 0

    def get(self, place: Place, stamp: Stamp) -> NDArray[np.uint64] | None:
        """Return the index of the shard at a place, unless its file is another by now."""
        with self._lock:
            found = self._kept.get(place)
            if found is None or found[0] != stamp:
                return None
            self._kept.move_to_end(place)
            return found[1]

    def stamp(self, place: Place) -> Stamp | None:
        """Return which file the kept index of a place belongs to, if there is one."""
        with self._lock:
            found = self._kept.get(place)
            return None if found is None else found[0]

    def drop(self, place: Place) -> None:
        """Keep the index of a place no longer."""
        with self._lock:
            self._drop(place)

    def put(self, place: Place, stamp: Stamp, index: NDArray[np.uint64]) -> None:
        """Keep an index, and drop those that were not used for longest."""
        with self._lock:
            self._drop(place)
            self._kept[place] = (stamp, index)
            self._bytes += index.nbytes + INDEX_COST
            while self._bytes > INDEX_CACHE_BYTES:
                _, (_, old) = self._kept.popitem(last=False)
                self._bytes -= old.nbytes + INDEX_COST

    def _drop(self, place: Place) -> None:
        if place in self._kept:
            self._bytes -= self._kept.pop(place)[1].nbytes + INDEX_COST


class ChunkFile:
    """One file of chunks; used by one thread.

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
        self.place = place
        self._layout, self._indices, self._key = layout, indices, layout.key(place)
        self._index: NDArray[np.uint64] | None = None
        # None without a file: then its chunks are not stored.
        self._file = file = open_source(layout.path(place), indices.stamp(self._key), whole=layout.index is None)
        if file is None or layout.index is None:
            return
        self._index = indices.get(self._key, file.stamp)
        if self._index is None:
            try:
                self._index = self._read_index(file)
            except BaseException:
                file.close()
                raise
            indices.put(self._key, file.stamp, self._index)

    @property
    def is_there(self) -> bool:
        """Whether there is such a file."""
        return self._file is not None

    def close(self) -> None:
        """Close it."""
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
        file = self._file
        span = None if file is None else self._span(chunk, file.size)
        if file is None or span is None:
            return False
        layout = self._layout
        voxels = out.reshape(-1).view(np.uint8)
        offset, count = span
        if layout.codec == "none" and not layout.checksum and count == voxels.size:
            self._bytes(file, offset, voxels)
        else:
            DECODERS[layout.codec](self._content(file, span, encoded), voxels)
        if not layout.dtype.isnative:
            out.byteswap(inplace=True)
        return True

    def read_encoded(self, chunk: Index3, room: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """Return the bytes of an encoded chunk, whose checksum is right, in room for them; None where there is none.

        Raises
        ------
        Exception
            As `read` does, but for what is in the chunk; where there is too little room as well.
        """
        file = self._file
        span = None if file is None else self._span(chunk, file.size)
        return None if file is None or span is None else self._content(file, span, room)

    def _content(self, file: ByteSource, span: tuple[int, int], room: NDArray[np.uint8]) -> NDArray[np.uint8]:
        offset, count = span
        if count > room.size:
            most = self._layout.chunk_bytes
            raise ValueError(f"its {count} encoded bytes are more than any chunk of {most} bytes takes")
        data = room[:count]
        self._bytes(file, offset, data)
        return _checked(data) if self._layout.checksum else data

    def stores(self, chunk: Index3) -> bool:
        """Return whether there is such a chunk; raises as `read` does, but for what is in the chunk."""
        return self._file is not None and self._span(chunk, self._file.size) is not None

    def _read_index(self, file: ByteSource) -> NDArray[np.uint64]:
        size = self._layout.index_bytes
        if size > file.size:
            raise ShardIndexError(f"its {file.size} bytes are fewer than the {size} of its index")
        data = np.empty(size, np.uint8)
        try:
            file.read(0 if self._layout.index == "start" else file.size - size, data)
            return _checked(data, "its index").view("<u8").reshape(-1, 2)
        except ValueError as error:
            raise ShardIndexError(*error.args) from error

    def _bytes(self, file: ByteSource, offset: int, out: NDArray[np.uint8]) -> None:
        try:
            file.read(offset, out)
        except ChangedError:
            self._indices.drop(self._key)
            raise

    def _span(self, chunk: Index3, size: int) -> tuple[int, int] | None:
        """Return where a chunk begins and its number of bytes, or None where it is not stored."""
        if self._index is None:
            return (0, size)
        rows, columns = self._layout.per_shard[1:]
        z, y, x = (c % n for c, n in zip(chunk, self._layout.per_shard, strict=True))
        offset, count = self._index[(z * rows + y) * columns + x].tolist()
        if offset == count == _NO_CHUNK:
            return None
        if offset + count > size:
            raise ValueError(f"it ends at byte {offset + count} of a shard of {size} bytes")
        return (offset, count)


def _checked(data: NDArray[np.uint8], what: str = "it") -> NDArray[np.uint8]:
    """Return the bytes before their checksum, which must be right."""
    content, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if crc32c(content) != int.from_bytes(checksum.tobytes(), "little"):
        raise ValueError(f"{what} does not have the checksum that was stored with it")
    return content


# ---- where bytes come from -----------------------------------------------------------------------------------------

# Sources of the bytes of a chunk: files of this system, and objects in a store.
#
# The index of a shard is kept with its object's ETag. Later reads ask for that very object, so that an index is never
# used for another. A read that meets another raises a transient `OSError`: the next attempt reads the new index.


Stamp = tuple[Any, ...]
"""What changes when a file is replaced. Of a file: inode, size, modification time. Of an object: what `Found` has."""


class ByteSource(Protocol):
    """An open file of chunks; used by one thread."""

    size: int
    """Its bytes."""
    stamp: Stamp
    """Which file it is."""

    def read(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes from `offset` on."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


def open_source(where: str | ObjectPlace | ZipPlace, known: Stamp | None, *, whole: bool) -> ByteSource | None:
    """Open a file of chunks.

    Parameters
    ----------
    where
        Path of the file, or place of the object or of the member of a zip.
    known
        Stamp of what was there before, where an index of it is kept.
    whole
        Whether all of it will be read, in one go.

    Returns
    -------
    ByteSource or None
        None where there is no such file.

    Raises
    ------
    OSError
        If it cannot be opened.
    NoFileError
        If it is no file, but a folder, say, or a link that leads nowhere.
    """
    if isinstance(where, ObjectPlace):
        return _open_object(where, known, whole=whole)
    if not isinstance(where, str):
        source = MemberSource(where)
        if source.is_there:
            return source
        source.close()
        return None
    try:
        return FileSource(where)
    except OSError as error:
        if (wrong := no_file(where, error)) is not None:
            raise wrong from error
        if error.errno == errno.ENOENT:
            return None
        raise


class FileSource:
    """A local file."""

    def __init__(self, path: str) -> None:
        self._file = FileIO(path, opener=_open_at_once)
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            self._file.close()
            raise NoFileError("it is no file")
        self.size = status.st_size
        self.stamp: Stamp = (status.st_ino, status.st_size, status.st_mtime_ns)

    def read(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes from `offset` on."""
        fill_buffer(self._file, offset, out.data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class MemberSource(FileSource):
    """A member of a zip that is stored as it is; `is_there` says whether the zip has it."""

    def __init__(self, place: ZipPlace) -> None:
        super().__init__(place.path)
        try:
            # Of the zip that is there now: another may have taken the place of the one that was opened.
            member = replace(place, stamp=self.stamp[-1]).member()
            self.is_there = member is not None
            if member is not None:
                self._start, self.size, self._crc = self._bytes_of(member), member.file_size, member.CRC
        except BaseException:
            self.close()
            raise

    def _bytes_of(self, member: ZipInfo) -> int:
        """Return where its bytes begin: behind a header, its name, and what else is said of it."""
        header = np.empty(_MEMBER_HEADER, np.uint8)
        super().read(member.header_offset, header)
        if member.compress_type or header[:4].tobytes() != b"PK\3\4":
            raise ValueError("the zip does not store it as it is any more; it has been changed since it was opened")
        name, more = struct.unpack("<HH", header[-4:].tobytes())
        return int(member.header_offset + _MEMBER_HEADER + name + more)

    def read(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes from `offset` on; those of the whole member must have the zip's checksum."""
        super().read(self._start + offset, out)
        if out.size == self.size and zlib.crc32(out) != self._crc:
            raise ValueError("it does not have the checksum that the zip has of it")


class WholeObject:
    """An object whose bytes are on their way: its size is known, and none of them is held yet."""

    def __init__(self, place: ObjectPlace) -> None:
        self._body = place.get()
        self.size = self._body.found.size
        self.stamp: Stamp = self._body.found

    def read(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with all bytes of the object."""
        if offset or out.size != self.size:
            raise ValueError(f"{out.size} of its {self.size} bytes were asked for")
        self._body.read_into(out)

    def close(self) -> None:
        """Receive no more."""
        del self._body


class ObjectParts:
    """An object of which parts are asked for, each by a request of its own."""

    def __init__(self, place: ObjectPlace, found: Found) -> None:
        self._place = place
        self._found = found
        self.size = found.size
        self.stamp: Stamp = found

    def read(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes from `offset` on."""
        self._place.read_part(offset, out, self._found)

    def close(self) -> None:
        """Do nothing: between two requests, nothing is open."""


def _open_object(place: ObjectPlace, known: Stamp | None, *, whole: bool) -> ByteSource | None:
    if known is not None:
        return ObjectParts(place, Found(*known))
    try:
        if whole:
            return WholeObject(place)
        found = place.find()
    except BucketMissingError:
        raise
    except FileNotFoundError:
        return None
    return None if found is None else ObjectParts(place, found)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting, a pipe, too, which otherwise waits for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
