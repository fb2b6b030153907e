"""Where the shards of an output lie: as files in a folder, or as objects in a store.

Files are written beside each other where nobody else can be writing, else in the folder of the attempt; see
`isovoxel.output.attempt`.

A shard that becomes an object is encoded into a file of this machine, and that is uploaded:

1. The file lies in a folder for temporary files (``TMPDIR``), for a shard is encoded piece by piece, and its size,
   which a store wants to know first, is known last. There are no more of them than blocks in flight or waiting make.
2. Sealing looks at the output's lock, and sends it, large ones in parts. The object appears when all of it is there,
   and its ETag is noted.
3. Uploads wait for the network in the threads in which local shards wait for the disk. What bounds their rate is
   `UPLOADS` at a time with two parts each, which hold up to 24 MiB each whatever the shard's size.
"""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import OutputError
from isovoxel.object_store.files import fcntl
from isovoxel.object_store.objects import ObjectPlace, Place
from isovoxel.output.attempt import Attempt, end_attempts, unsealed_folder
from isovoxel.output.shard import (
    PARTIAL,
    EmptyShard,
    FileShardWriter,
    ObjectShardWriter,
    ShardReceipt,
    ShardWriter,
    empty_receipt,
    gone,
    holds,
)
from isovoxel.planning.chunking import Storage

Flags = NDArray[np.bool_]
"""Something that holds for a shard or not, for each in the grid of shards."""
ShardPlace = tuple[int, ...]
"""Where a shard lies in the grid of shards: z, y, x, and before them what tells its volume from others."""

UPLOADS = 4
"""Objects that are on their way at the same time."""
SPOOL = "isovoxel-spool"
"""How the names of folders begin in which files wait for their upload."""
YOUNG_SECONDS = 60
"""How long a folder is left alone that nobody has locked."""
ROWS = 64
"""How many rows of shards are remembered of which the store was asked what is there."""


def shard_key(level: int, shard: ShardPlace, zarr_format: int = 3) -> str:
    """Return where a shard lies in its group: zarr's default chunk keys, such as "c/z/y/x", and "z/y/x" of format 2.

    Examples
    --------
    >>> shard_key(2, (0, 1, 12))
    '2/c/0/1/12'
    """
    return "/".join((str(level), *("c" * (zarr_format == 3)), *map(str, shard)))


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


def store_of(output: Place, level: int = 0, zarr_format: int = 3, attempt: Attempt | None = None) -> ShardStore:
    """Return where the shards of a level of an output lie; see `ShardStore`."""
    if isinstance(output, ObjectPlace):
        return ObjectShardStore(output, level, zarr_format, attempt)
    return FileShardStore(output, level, zarr_format, attempt)


class ShardStore(abc.ABC):
    """The shards of one level of an output; any number of threads may use it.

    Parameters
    ----------
    output
        Folder or place of the group.
    level
        Which level.
    zarr_format
        Format of zarr, 2 or 3.
    attempt
        The hold of the output's lock that this is done for; None where nobody else can be writing.
    """

    def __init__(self, output: Any, level: int = 0, zarr_format: int = 3, attempt: Attempt | None = None) -> None:
        self._output, self._level, self._attempt = output, level, attempt
        self._check: Callable[[], None] = (lambda: None) if attempt is None else attempt.check
        self._key = partial(shard_key, level, zarr_format=zarr_format)

    @abc.abstractmethod
    def begin(self, shard: ShardPlace, storage: Storage) -> ShardWriter:
        """Return what a shard is written to, by its place in the grid of shards.

        Raises
        ------
        OSError
            If the file system refuses; an `OutputError` if the output is another process' by now, or was deleted.
        """

    @abc.abstractmethod
    def leave_out(self, shard: ShardPlace) -> EmptyShard:
        """Make no file of a shard that is empty."""

    @abc.abstractmethod
    def holds(self, shard: ShardPlace, receipt: ShardReceipt, *, read: bool = False) -> bool:
        """Tell whether a shard is there as its receipt says; one that is empty is none.

        It is read where its stamp is another, or where that is asked with `read`. A store is asked row by row, and an
        answer is kept: ask before anything is written.

        Raises
        ------
        OSError
            If the store cannot be asked: that says nothing of the shard.
        """

    @abc.abstractmethod
    def missing(self, counts: Sequence[int], empty: Flags | None = None) -> tuple[int, str]:
        """Return how many shards of a grid of so many are not there, and the key of the first of them.

        Those that are `empty`, where that is given, are not to be there. Folders are listed, no file is looked at; a
        store lists the level once.

        Raises
        ------
        OSError
            If the store cannot be asked.
        """

    @abc.abstractmethod
    def sweep(self) -> None:
        """Remove what processes that were killed have left half written; no other process may be writing."""

    @abc.abstractmethod
    def free_bytes(self) -> int:
        """Return how much room the disk has on which shards are written; a store says nothing of its own."""

    def close(self) -> None:  # noqa: B027 - files need nothing
        """Let go of what writing holds."""


class FileShardStore(ShardStore):
    """Shards that are files: flushed to the disk, and then renamed to their place; see `ShardStore`."""

    _output: Path

    def begin(self, shard: ShardPlace, storage: Storage) -> FileShardWriter:
        """Return what becomes a file, in the attempt's folder."""
        folder = unsealed_folder(self._output / str(self._level), self._attempt)
        file = folder / f"{uuid.uuid4().hex}{PARTIAL}"
        try:
            return FileShardWriter(self._output / self._key(shard), file, storage, self._check)
        except FileNotFoundError as error:
            self._check()
            raise gone(folder) from error

    def leave_out(self, shard: ShardPlace) -> EmptyShard:
        """Make no file of a shard that is empty."""
        key = self._key(shard)
        return EmptyShard(key, self._check, partial((self._output / key).unlink, missing_ok=True), waits=False)

    def holds(self, shard: ShardPlace, receipt: ShardReceipt, *, read: bool = False) -> bool:
        """Tell whether a shard is the file of its receipt."""
        key = self._key(shard)
        if receipt.is_empty:
            return receipt == empty_receipt(key) and not os.path.lexists(self._output / key)
        return holds(self._output / key, receipt, read=read)

    def missing(self, counts: Sequence[int], empty: Flags | None = None) -> tuple[int, str]:
        """Return how many files are not there, and the key of the first."""
        missing, first = 0, ""
        for row in product(*map(range, counts[:-1])):
            try:
                with os.scandir(self._output / self._key(row)) as listed:
                    found = {entry.name for entry in listed if _is_file(entry)}
            except (FileNotFoundError, NotADirectoryError):
                found = set()
            no_files = set() if empty is None else set(np.flatnonzero(empty[row]).tolist())
            gone = [x for x in range(counts[-1]) if x not in no_files and str(x) not in found]
            if gone and not missing:
                first = self._key((*row, gone[0]))
            missing += len(gone)
        return missing, first

    def sweep(self) -> None:
        """Remove files that were not sealed."""
        for _ in swept_folders(self._output):
            pass

    def free_bytes(self) -> int:
        """Return how much room the output's disk has."""
        return shutil.disk_usage(self._output).free


def swept_folders(output: Path) -> Iterator[Path]:
    """Remove files of an output that were not sealed, and yield its folders, each once nothing is left in it of those.

    No other process may be writing.
    """
    end_attempts(output)
    for root, _, files in os.walk(output):
        for name in files:
            if name.endswith(PARTIAL):
                Path(root, name).unlink(missing_ok=True)
        yield Path(root)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Tell whether a file is there; of links that lead round in circles the system does not say."""
    try:
        return entry.is_file()
    except OSError:
        return False


class ObjectShardStore(ShardStore):
    """Shards that are objects; see `ShardStore`."""

    _output: ObjectPlace

    def __init__(
        self, output: ObjectPlace, level: int = 0, zarr_format: int = 3, attempt: Attempt | None = None
    ) -> None:
        super().__init__(output, level, zarr_format, attempt)
        self._turns = threading.BoundedSemaphore(UPLOADS)
        self._lock = threading.Lock()
        self._spool: Path | None = None
        self._spool_lock: int | None = None
        self._row = lru_cache(ROWS)(self._listed)

    def begin(self, shard: ShardPlace, storage: Storage) -> ObjectShardWriter:
        """Return what becomes an object, in the folder for files that wait."""
        with self._lock:
            if self._spool is None:
                self._spool = Path(tempfile.mkdtemp("", f"{SPOOL}-", spool_folder()))
                self._spool_lock = _locked(self._spool)
        file = self._spool / uuid.uuid4().hex
        return ObjectShardWriter(self._output / self._key(shard), file, storage, self._check, self._turns)

    def leave_out(self, shard: ShardPlace) -> EmptyShard:
        """Make no object of a shard that is empty."""
        return EmptyShard(self._key(shard), self._check, partial(_remove, self._output / self._key(shard)), waits=True)

    def holds(self, shard: ShardPlace, receipt: ShardReceipt, *, read: bool = False) -> bool:
        """Tell whether a shard is the object of its receipt."""
        *row, x = shard
        key = self._key(shard)
        found = self._row(tuple(row)).get(str(x))
        if receipt.is_empty:
            return found is None and receipt == empty_receipt(key)
        if found is None or found[0] != receipt.size:
            return False
        return (found[1] == receipt.stamp and not read) or (self._output / key).checksum() == receipt.crc

    def missing(self, counts: Sequence[int], empty: Flags | None = None) -> tuple[int, str]:
        """Return how many objects are not there, and the key of the first."""
        there = np.zeros(counts, np.bool_) if empty is None else empty.copy()
        for path, _ in (self._output / self._key(())).walk():
            names = path.split("/")
            if len(names) == len(counts) and all(name.isdecimal() and len(name) < 16 for name in names):
                place = tuple(map(int, names))
                if "/".join(map(str, place)) == path and all(i < n for i, n in zip(place, counts, strict=True)):
                    there[place] = True
        if there.all():
            return 0, ""
        first = np.unravel_index(int(np.argmin(there)), there.shape)
        return there.size - int(there.sum()), self._key(tuple(map(int, first)))

    def sweep(self) -> None:
        """Remove the files that processes of this machine have left which were killed: nobody locks their folder."""
        for folder in spool_folder().glob(f"{SPOOL}-*"):
            with contextlib.suppress(OSError):
                young = time.time() - folder.stat().st_mtime < YOUNG_SECONDS  # it may be about to be locked
                if fcntl is not None and not young and (lock := _locked(folder)) is not None:
                    shutil.rmtree(folder)
                    os.close(lock)

    def free_bytes(self) -> int:
        """Return how much room is left for files that wait for their upload."""
        return shutil.disk_usage(spool_folder()).free

    def close(self) -> None:
        """Remove the folder for files that wait."""
        with self._lock:
            if self._spool is not None:
                shutil.rmtree(self._spool, ignore_errors=True)
                if self._spool_lock is not None:
                    os.close(self._spool_lock)
                self._spool = self._spool_lock = None

    def _listed(self, row: ShardPlace) -> dict[str, tuple[int, str]]:
        """Return size and tag of the shards in a row along x."""
        return {path: (found.size, found.tag) for path, found in (self._output / self._key(row)).walk()}


def _remove(place: ObjectPlace) -> None:
    """Delete an object, if there is one: asking costs less than deleting, which a bucket with versions notes."""
    if place.is_file():
        place.unlink()


def _locked(folder: Path) -> int | None:
    """Lock a folder, as long as the returned descriptor is open; None where another process has, or none can."""
    if fcntl is None:  # what a killed process left is removed by the system, some day
        return None
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
