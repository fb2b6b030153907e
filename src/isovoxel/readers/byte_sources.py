"""Sources of the bytes of a chunk: files of this system, and objects in a store.

The index of a shard is kept with its object's ETag. Later reads ask for that very object, so that an index is never
used for another; whoever meets another raises an `OSError` that may pass, for the next attempt reads the new index.
"""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isovoxel.object_store.failures import BucketMissingError
from isovoxel.object_store.objects import Found, ObjectPlace
from isovoxel.readers.files import NoFileError, no_file

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
        """Let go of it."""
        ...


def open_source(where: str | ObjectPlace, known: Stamp | None, *, whole: bool) -> ByteSource | None:
    """Open a file of chunks.

    Parameters
    ----------
    where
        Path of the file, or place of the object.
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
        buffer = out.data
        while buffer:
            count = _read_at(self._file, offset, buffer)
            if not count:
                raise ValueError(
                    f"its file ends {len(buffer)} bytes too early; it has been changed since it was opened"
                )
            buffer = buffer[count:]
            offset += count

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
    """Open a file; a pipe too, for which one would otherwise wait until somebody writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_at(file: FileIO, offset: int, buffer: memoryview) -> int:
    """Read some bytes from `offset` on, and return how many."""
    # One call where seek and readinto are two: after each, a thread waits for Python's lock again.
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [buffer], offset)
    file.seek(offset)  # on Windows
    return file.readinto(buffer)
