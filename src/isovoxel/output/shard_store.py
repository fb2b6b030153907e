"""Where do an output's shards lie? As files in a folder, or as objects in a store."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isovoxel.output.attempt import Attempt, end_attempts, unsealed_folder
from isovoxel.output.shard import PARTIAL, ShardEncoder
from isovoxel.output.shard_receipt import NoShard, ShardReceipt, Unsealed, empty_receipt, gone, holds

Flags = NDArray[np.bool_]
"""Something that holds for a shard or not, for each in the grid of shards."""
ShardPlace = tuple[int, ...]
"""Where a shard lies in the grid of shards: z, y, x, and before them what tells its volume from others."""


def level_path(level: int) -> str:
    """Return the path of a level's array inside the group."""
    return str(level)


class PendingShard(Protocol):
    """A shard that is encoded, and not yet at its place."""

    def seal(self) -> ShardReceipt:
        """Wait until it is there for good."""
        ...

    def drop(self) -> None:
        """Give it up."""
        ...


class ShardStore(Protocol):
    """The shards of one level of an output; any number of threads may use it."""

    def write(self, encoder: ShardEncoder, shard: ShardPlace, data: NDArray[Any]) -> PendingShard:
        """Encode a shard, by its place in the grid of shards."""
        ...

    def leave_out(self, shard: ShardPlace) -> NoShard:
        """Make no file of a shard that is empty."""
        ...

    def holds(self, shard: ShardPlace, seal: ShardReceipt, *, read: bool = False) -> bool:
        """Tell whether a shard is there as it was sealed; with `read`, it is read even where its stamp says so."""
        ...

    def missing(self, counts: Sequence[int], empty: Flags | None = None) -> tuple[int, str]:
        """Return how many shards of a grid of so many are not there, and the key of the first of them.

        Those that are `empty`, where that is given, are not to be there.
        """
        ...

    def sweep(self) -> None:
        """Remove what processes that were killed have left half written; no other process may be writing."""
        ...

    def free_bytes(self) -> int:
        """Return how much room the disk has on which shards are written."""
        ...

    def close(self) -> None:
        """Let go of what writing holds."""
        ...


class FileShardStore:
    """Shards that are files: flushed to the disk, and then renamed to their place.

    Parameters
    ----------
    output
        Folder of the group.
    level
        Which level.
    zarr_format
        Format of zarr, 2 or 3.
    attempt
        The hold of the output's lock that this is done for; None where nobody else can be writing.
    """

    def __init__(self, output: Path, level: int = 0, zarr_format: int = 3, attempt: Attempt | None = None) -> None:
        self._output, self._level, self._format = output, level, zarr_format
        self._attempt = attempt

    def write(self, encoder: ShardEncoder, shard: ShardPlace, data: NDArray[Any]) -> PendingShard:
        """Encode a shard into a file of the attempt's; one that is empty into none.

        Raises
        ------
        OutputError
            If the output is another process' by now, or was deleted.
        """
        if encoder.is_empty(data):
            return self.leave_out(shard)
        folder = unsealed_folder(self._output / level_path(self._level), self._attempt)
        unsealed = folder / f"{uuid.uuid4().hex}{PARTIAL}"
        try:
            size, crc = encoder.encode(unsealed, data)
        except FileNotFoundError as error:
            self._check()
            raise gone(folder) from error
        return Unsealed(self._file(shard), unsealed, size, crc, self._check)

    def leave_out(self, shard: ShardPlace) -> NoShard:
        """Make no file of a shard that is empty."""
        return NoShard(self._key(shard), self._check, partial(self._file(shard).unlink, missing_ok=True))

    def holds(self, shard: ShardPlace, seal: ShardReceipt, *, read: bool = False) -> bool:
        """Tell whether a shard is a file as it was sealed; one that is empty is none."""
        if seal.is_empty:
            return seal == empty_receipt(self._key(shard)) and not os.path.lexists(self._file(shard))
        return holds(self._file(shard), seal, read=read)

    def missing(self, counts: Sequence[int], empty: Flags | None = None) -> tuple[int, str]:
        """Return how many files are not there, and the key of the first: folders are listed, no file is looked at."""
        missing, first = 0, ""
        for row in product(*map(range, counts[:-1])):
            try:
                with os.scandir(self._file(row)) as listed:
                    found = {entry.name for entry in listed if _is_file(entry)}
            except (FileNotFoundError, NotADirectoryError):
                found = set()
            no_files = set() if empty is None else set(np.flatnonzero(empty[row]).tolist())
            gone = [x for x in range(counts[-1]) if x not in no_files and str(x) not in found]
            if gone and not missing:
                first = shard_key(self._level, (*row, gone[0]), self._format)
            missing += len(gone)
        return missing, first

    def sweep(self) -> None:
        """Remove files that were not sealed."""
        end_attempts(self._output)
        sweep_files(self._output)

    def free_bytes(self) -> int:
        """Return how much room the output's disk has."""
        return shutil.disk_usage(self._output).free

    def close(self) -> None:
        """Do nothing: no file is open."""

    def _check(self) -> None:
        if self._attempt is not None:
            self._attempt.check()

    def _file(self, shard: ShardPlace) -> Path:
        return self._output.joinpath(*self._key(shard).split("/"))

    def _key(self, shard: ShardPlace) -> str:
        return shard_key(self._level, shard, self._format)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Tell whether a file is there; of links that lead round in circles the system does not say."""
    try:
        return entry.is_file()
    except OSError:
        return False


def shard_key(level: int, shard: ShardPlace, zarr_format: int = 3) -> str:
    """Return where a shard lies in its group: zarr's default chunk keys, such as "c/z/y/x", and "z/y/x" of format 2.

    Examples
    --------
    >>> shard_key(2, (0, 1, 12))
    '2/c/0/1/12'
    """
    return "/".join((level_path(level), *("c" * (zarr_format == 3)), *map(str, shard)))


def sweep_files(output: Path) -> None:
    """Remove the files of an output that were not sealed."""
    for root, _, files in os.walk(output):
        for name in files:
            if name.endswith(PARTIAL):
                Path(root, name).unlink(missing_ok=True)
