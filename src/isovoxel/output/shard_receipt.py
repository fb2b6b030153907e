"""Bring an encoded shard to its place for good, and return its receipt, by which it is found again.

A file is flushed to the disk, and renamed: it is there completely or not at all. An empty shard is no file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import imagecodecs

from isovoxel.errors import OutputError


class ShardReceipt(NamedTuple):
    """What tells a shard's file, or its object in a store, from another, or from a part of itself."""

    size: int
    """Its bytes; 0 of a shard that is empty, and so no file."""
    crc: int
    """CRC-32 of them; of an empty shard that of its key, so that a damaged ledger lets no other shard pass for it."""
    stamp: int | str
    """When a file was written, in ns, or an object's ETag: while that stands, nobody has changed it. 0 of no file."""

    @property
    def is_empty(self) -> bool:
        """Whether the shard is empty, and so no file."""
        return self.size == 0


class Unsealed(NamedTuple):
    """A shard that is encoded, in a file that has another name until it is on the disk."""

    path: Path
    """Where it shall be."""
    partial: Path
    """Where it is."""
    size: int
    """Its bytes."""
    crc: int
    """CRC-32 of them."""
    check: Callable[[], None]
    """Raises where the output is another process' by now."""

    def seal(self) -> ShardReceipt:
        """Flush the file to the disk, give it its name, and return its seal.

        Raises
        ------
        OSError
            If the file system refuses, or the output is another process' by now: then the file is gone, and what was
            there before is still there. Flushing again would not help, for what could not be written is forgotten by
            the system.
        """
        try:
            written = self._flush()
            self.check()
            self._rename()
        except FileNotFoundError as error:
            self.check()
            raise gone(self.partial.parent) from error
        except BaseException:
            self.drop()
            raise
        return ShardReceipt(self.size, self.crc, written)

    def _flush(self) -> int:
        """Bring the file to the disk, and return when it was written."""
        descriptor = os.open(self.partial, os.O_RDWR)
        try:
            os.fsync(descriptor)
            return os.fstat(descriptor).st_mtime_ns
        finally:
            os.close(descriptor)

    def _rename(self) -> None:
        try:
            self.partial.replace(self.path)
        except FileNotFoundError:
            if not self.partial.exists():
                raise
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.partial.replace(self.path)

    def drop(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self.partial.unlink()


class NoShard(NamedTuple):
    """A shard that is empty, and so no file: there must be none at its place."""

    key: str
    """Where it would lie in the output's group."""
    check: Callable[[], None]
    """Raises where the output is another process' by now."""
    remove: Callable[[], None]
    """Removes what an earlier attempt has left at its place, if anything."""

    def seal(self) -> ShardReceipt:
        """Remove what is at its place, and return a receipt of 0 bytes.

        Raises
        ------
        OSError
            If the file system or the store refuses, or the output is another process' by now.
        """
        self.check()
        self.remove()
        return empty_receipt(self.key)

    def drop(self) -> None:
        """Do nothing: no file was made."""


def empty_receipt(key: str) -> ShardReceipt:
    """Return the receipt of an empty shard, by its key in the output's group."""
    return ShardReceipt(0, imagecodecs.deflate_crc32(key.encode()), 0)


def gone(folder: Path) -> OutputError:
    """Return what is said where the folder is not there any more in which shards are written."""
    return OutputError(f"{folder} is gone, where shards are written: the output was moved or deleted")


def holds(path: Path, seal: ShardReceipt, *, read: bool = False) -> bool:
    """Tell whether a file is the one that was sealed; it is read where its time is another, and where that is asked."""
    try:
        found = path.stat()
        if not path.is_file() or found.st_size != seal.size:
            return False
        if found.st_mtime_ns == seal.stamp and not read:
            return True
        crc = 0
        with path.open("rb", buffering=0) as file:
            while piece := file.read(2**20):
                crc = imagecodecs.deflate_crc32(piece, crc)
    except OSError:
        return False
    return bool(crc == seal.crc)
