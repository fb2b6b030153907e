"""Shards on their way to their place: chunks are appended to a file, its index last, and the file is brought there.

A shard of Zarr 3 is its encoded chunks, then for every place in it, z slowest, where its chunk begins and how
long it is (two uint64, all bits set where there is no chunk), then a CRC-32C of that. zarr-python holds every
encoded chunk and their concatenation, more than twice the shard; appending holds a few chunks, however large it
is. A chunk of Zarr 2, which has no shards, is a file without an index.

1. `ShardWriter.write_encoded` appends a chunk that is encoded already, on whatever: threads of the processor, or a GPU.
   `finish` appends the index.
2. `seal` brings the shard to its place for good, and returns its receipt, by which it is found again: a file is flushed
   to the disk and renamed, an object uploaded; it is there completely or not at all. That takes time and no processor,
   so whoever writes many seals them elsewhere.
3. A shard of nothing but empty chunks that are skipped is no file, and `EmptyShard.seal` gives a receipt of 0 bytes.

Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from isovoxel.errors import OutputError
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.planning.chunking import CHECKSUM_BYTES, Storage

Bytes = NDArray[np.uint8]

PARTIAL = ".partial"
"""How the name of a shard's file ends while it is being written."""

_NO_CHUNK = 2**64 - 1


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


class PendingShard(abc.ABC):
    """A shard that is not yet at its place."""

    waits: bool = True
    """Whether bringing it there waits for a disk or a store."""

    @abc.abstractmethod
    def seal(self) -> ShardReceipt:
        """Bring it there for good, and return its receipt."""

    @abc.abstractmethod
    def drop(self) -> None:
        """Give it up; nothing is left of it."""


class ShardWriter(PendingShard):
    """A shard that is written into a file of this machine, by one thread at a time.

    Parameters
    ----------
    place
        Where the shard shall be: a path on the same disk, or the place of an object.
    file
        Where it is until it is sealed; nothing is there yet.
    storage
        Its chunks.
    check
        Raises where the output is another process' by now.

    Raises
    ------
    OSError
        If the file system refuses.
    """

    def __init__(self, place: Any, file: Path, storage: Storage, check: Callable[[], None]) -> None:
        self.file, self._place, self._check = file, place, check
        self.size = self.crc = 0
        """Bytes that are in the file, and CRC-32 of them."""
        places = (s // c for s, c in zip(storage.shard, storage.chunk, strict=True))
        self._index = np.full((*places, 2), _NO_CHUNK, "<u8") if storage.sharded else None
        self._open = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)

    def write_encoded(self, chunk: tuple[int, ...], encoded: Bytes) -> None:
        """Append a chunk.

        Parameters
        ----------
        chunk
            Its place in the grid of the shard's chunks.
        encoded
            Its bytes, with their checksum where chunks have one.

        Raises
        ------
        OSError
            If the file system refuses.
        """
        if self._index is not None:
            self._index[chunk] = self.size, len(encoded)
        self._append(encoded)

    def write_batch(self, chunks: tuple[NDArray[np.intp], ...], sizes: NDArray[np.int64], encoded: Bytes) -> None:
        """Append chunks that lie one after the other in memory, by their places along each axis and their bytes."""
        if self._index is not None:
            self._index[chunks] = np.stack([self.size + np.cumsum(sizes) - sizes, sizes], -1)
        self._append(encoded)

    def finish(self) -> None:
        """Append where the chunks are and the checksum of that."""
        if self._index is not None:
            entries = self._index.reshape(-1).view(np.uint8)
            checksum = np.frombuffer(crc32c(entries).to_bytes(CHECKSUM_BYTES, "little"), np.uint8)
            self._append(np.concatenate([entries, checksum]))
            self._index = None  # many shards may wait for the disk

    def drop(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self.file.unlink()

    def _close(self) -> None:
        if self._open >= 0:
            descriptor, self._open = self._open, -1
            os.close(descriptor)

    def _append(self, content: Bytes) -> None:
        self.size += len(content)
        # imagecodecs takes arrays, though its types do not say so, and other threads go on.
        self.crc = imagecodecs.deflate_crc32(content, self.crc)  # type: ignore[arg-type]
        left = content.data
        while left:  # one call to the system may write less than it was given
            left = left[os.write(self._open, left) :]


class FileShardWriter(ShardWriter):
    """A shard that becomes a file; see `ShardWriter`."""

    _place: Path

    def seal(self) -> ShardReceipt:
        """Flush the file to the disk, give it its name, and return its receipt.

        Raises
        ------
        OSError
            If the file system refuses, or the output is another process' by now: then the file is gone, and what was
            there before is still there. Flushing again would not help, for what could not be written is forgotten by
            the system.
        """
        try:
            os.fsync(self._open)
            written = os.fstat(self._open).st_mtime_ns
            self._close()
            self._check()
            try:
                self.file.replace(self._place)
            except FileNotFoundError:
                if not self.file.exists():
                    raise
                self._place.parent.mkdir(parents=True, exist_ok=True)
                self.file.replace(self._place)
        except FileNotFoundError as error:
            self._check()
            raise gone(self.file.parent) from error
        except BaseException:
            self.drop()
            raise
        return ShardReceipt(self.size, self.crc, written)


class ObjectShardWriter(ShardWriter):
    """A shard that becomes an object.

    Parameters
    ----------
    place, file, storage, check
        As in `ShardWriter`; the file waits on a disk of this machine.
    turns
        Lets only so many upload at a time.
    """

    _place: ObjectPlace

    def __init__(
        self, place: ObjectPlace, file: Path, storage: Storage, check: Callable[[], None], turns: threading.Semaphore
    ) -> None:
        with _said_if_full(file):
            super().__init__(place, file, storage, check)
        self._turns = turns

    def seal(self) -> ShardReceipt:
        """Upload the shard, and return its receipt; the file goes, however that ends.

        Raises
        ------
        OSError
            If the store refuses, or does not answer, or the output is another process' by now. What was there before
            is still there.
        """
        try:
            self._close()
            with self._turns:
                tag = self._place.upload(self.file, self._check)
        finally:
            self.drop()
        return ShardReceipt(self.size, self.crc, tag)

    def _append(self, content: Bytes) -> None:
        with _said_if_full(self.file):
            super()._append(content)


@contextlib.contextmanager
def _said_if_full(file: Path) -> Iterator[None]:
    """Say what to do where the disk is full on which a file waits for its upload."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutputError(
            f"the disk of {file.parent.parent}, where shards wait for their upload, is full; "
            "make room there, or name another folder in TMPDIR"
        ) from error


@dataclass(frozen=True)
class EmptyShard(PendingShard):
    """A shard that is empty, and so no file: there must be none at its place."""

    key: str
    """Where it would lie in the output's group."""
    check: Callable[[], None]
    """Raises where the output is another process' by now."""
    remove: Callable[[], None]
    """Removes what an earlier attempt has left at its place, if anything."""
    waits: bool
    """Whether a store is asked to."""

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


def holds(path: Path, receipt: ShardReceipt, *, read: bool = False) -> bool:
    """Tell whether a file is the one of a receipt; it is read where its time is another, and where that is asked."""
    try:
        found = path.stat()
        if not path.is_file() or found.st_size != receipt.size:
            return False
        if found.st_mtime_ns == receipt.stamp and not read:
            return True
        crc = 0
        with path.open("rb", buffering=0) as file:
            while piece := file.read(2**20):
                crc = imagecodecs.deflate_crc32(piece, crc)
    except OSError:
        return False
    return bool(crc == receipt.crc)
