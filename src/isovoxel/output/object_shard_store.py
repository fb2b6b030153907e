"""How does a shard become an object? It is encoded into a file of this machine, and that is uploaded.

1. The file lies in a folder for temporary files (``TMPDIR``), for a shard is encoded piece by piece, and its size,
   which a store wants to know first, is known last. There are no more of them than blocks in flight or waiting make.
2. `Upload.seal` looks at the output's lock, and sends it, large ones in parts. The object appears when all of it is
   there, and its ETag is noted.
3. Uploads wait for the network in the threads in which local shards wait for the disk. What bounds their rate is
   `UPLOADS` at a time with two parts each, which hold up to 24 MiB each whatever the shard's size.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import OutputError
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output.attempt import Attempt
from isovoxel.output.shard import ShardEncoder
from isovoxel.output.shard_receipt import NoShard, ShardReceipt, empty_receipt
from isovoxel.output.shard_store import Flags, PendingShard, ShardPlace, shard_key

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: what a killed process left is removed by the system, some day
    fcntl = None

UPLOADS = 4
"""Objects that are on their way at the same time."""
SPOOL = "isovoxel-spool"
"""How the names of folders begin in which files wait for their upload."""
YOUNG_SECONDS = 60
"""How long a folder is left alone that nobody has locked."""
ROWS = 64
"""How many rows of shards are remembered of which the store was asked what is there."""


def spool_folder() -> Path:
    """Return the folder in which files wait for their upload, each process' in a folder of its own.

    Raises
    ------
    OutputError
        If no folder for temporary files can be written.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise OutputError(
            "what is written waits for its upload in a folder for temporary files, and none can be written; "
            "set TMPDIR to one with room"
        ) from error


class Upload:
    """A shard that is encoded, and not yet in the store.

    Parameters
    ----------
    place
        Where it shall be.
    file
        Where it is.
    size, crc
        Its bytes, and their CRC-32C.
    turns
        Lets only so many upload at a time.
    check
        Raises where the output is another process' by now.
    """

    def __init__(
        self,
        place: ObjectPlace,
        file: Path,
        size: int,
        crc: int,
        turns: threading.Semaphore,
        check: Callable[[], None],
    ) -> None:
        self._place, self._file, self._size, self._crc = place, file, size, crc
        self._turns, self._check = turns, check

    def seal(self) -> ShardReceipt:
        """Upload the shard, and return its seal; the file goes, however that ends.

        Raises
        ------
        OSError
            If the store refuses, or does not answer, or the output is another process' by now. What was there before
            is still there.
        """
        try:
            with self._turns:
                tag = self._place.upload(self._file, self._check)
        finally:
            self.drop()
        return ShardReceipt(self._size, self._crc, tag)

    def drop(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self._file.unlink()


class ObjectShardStore:
    """Shards that are objects.

    Parameters
    ----------
    output
        Place of the group.
    level
        Which level.
    zarr_format
        Format of zarr, 2 or 3.
    attempt
        As `isovoxel.output.shard_store.FileShardStore` has it.
    """

    def __init__(
        self, output: ObjectPlace, level: int = 0, zarr_format: int = 3, attempt: Attempt | None = None
    ) -> None:
        self._output, self._level, self._format = output, level, zarr_format
        self._check = (lambda: None) if attempt is None else attempt.check
        self._turns = threading.BoundedSemaphore(UPLOADS)
        self._lock = threading.Lock()
        self._spool: Path | None = None
        self._spool_lock: int | None = None
        self._row = lru_cache(ROWS)(self._listed)

    def write(self, encoder: ShardEncoder, shard: ShardPlace, data: NDArray[Any]) -> PendingShard:
        """Encode a shard into a file; one that is empty into none.

        Raises
        ------
        OutputError
            If the disk with that file is full.
        """
        if encoder.is_empty(data):
            return self.leave_out(shard)
        spool = self._spooling()
        file = spool / uuid.uuid4().hex
        try:
            size, crc = encoder.encode(file, data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutputError(
                    f"the disk of {spool.parent}, where shards wait for their upload, is full; "
                    "make room there, or name another folder in TMPDIR"
                ) from error
            raise
        place = self._output / shard_key(self._level, shard, self._format)
        return Upload(place, file, size, crc, self._turns, self._check)

    def leave_out(self, shard: ShardPlace) -> NoShard:
        """Make no object of a shard that is empty."""
        key = shard_key(self._level, shard, self._format)
        return NoShard(key, self._check, partial(_remove, self._output / key))

    def holds(self, shard: ShardPlace, seal: ShardReceipt, *, read: bool = False) -> bool:
        """Tell whether a shard is the object that was sealed; it is read where its ETag is another, or that is asked.

        One that is empty is none.

        The store is asked row by row, and an answer is kept: ask before anything is written.

        Raises
        ------
        OSError
            If the store cannot be asked: that says nothing of the shard.
        """
        *row, x = shard
        key = shard_key(self._level, shard, self._format)
        found = self._row(tuple(row)).get(str(x))
        if seal.is_empty:
            return found is None and seal == empty_receipt(key)
        if found is None or found[0] != seal.size:
            return False
        return (found[1] == seal.stamp and not read) or (self._output / key).checksum() == seal.crc

    def missing(self, counts: Sequence[int], empty: Flags | None = None) -> tuple[int, str]:
        """Return how many objects are not there, and the key of the first: the level is listed once.

        Raises
        ------
        OSError
            If the store cannot be asked.
        """
        home = self._output / shard_key(self._level, (), self._format)
        there = np.zeros(counts, np.bool_) if empty is None else empty.copy()
        for path, _ in home.walk():
            names = path.split("/")
            if len(names) == len(counts) and all(name.isdecimal() and len(name) < 16 for name in names):
                place = tuple(map(int, names))
                if "/".join(map(str, place)) == path and all(i < n for i, n in zip(place, counts, strict=True)):
                    there[place] = True
        if there.all():
            return 0, ""
        first = np.unravel_index(int(np.argmin(there)), there.shape)
        return there.size - int(there.sum()), shard_key(self._level, tuple(map(int, first)), self._format)

    def sweep(self) -> None:
        """Remove the files that processes of this machine have left which were killed: nobody locks their folder."""
        for folder in spool_folder().glob(f"{SPOOL}-*"):
            with contextlib.suppress(OSError):
                young = time.time() - folder.stat().st_mtime < YOUNG_SECONDS  # it may be about to be locked
                if fcntl is not None and not young and (lock := _locked(folder)) is not None:
                    shutil.rmtree(folder)
                    os.close(lock)

    def free_bytes(self) -> int:
        """Return how much room is left for files that wait for their upload; a store says nothing of its own."""
        return shutil.disk_usage(spool_folder()).free

    def close(self) -> None:
        """Remove the folder for files that wait."""
        with self._lock:
            if self._spool is not None:
                shutil.rmtree(self._spool, ignore_errors=True)
                if self._spool_lock is not None:
                    os.close(self._spool_lock)
                self._spool = self._spool_lock = None

    def _spooling(self) -> Path:
        with self._lock:
            if self._spool is None:
                self._spool = Path(tempfile.mkdtemp("", f"{SPOOL}-", spool_folder()))
                self._spool_lock = _locked(self._spool)
            return self._spool

    def _listed(self, row: ShardPlace) -> dict[str, tuple[int, str]]:
        """Return size and tag of the shards in a row along x."""
        home = self._output / shard_key(self._level, row, self._format)
        return {path: (found.size, found.tag) for path, found in home.walk()}


def _remove(place: ObjectPlace) -> None:
    """Delete an object, if there is one: asking costs less than deleting, which a bucket with versions notes."""
    if place.is_file():
        place.unlink()


def _locked(folder: Path) -> int | None:
    """Lock a folder, as long as the returned descriptor is open; None where another process has, or none can."""
    if fcntl is None:
        return None
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
