"""State of an input: tell whether anything of it has changed since a job began.

1. An input's files are looked at, not read: where it has chunks, those that hold the voxels that are wanted.
2. Of each there is a stamp: inode, size, and the times at which the system noted its last change. Of an object, what
   its store has: size and ETag.
3. Stamps are summed, so that neither their order nor their number matters, and nothing grows with the input.

The time of the last change of an inode tells of a write that keeps size and modification time. It also changes with
mode, owner and links of a file, which are no change of its voxels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path

from isovoxel.errors import InputError
from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Box, Index3
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.retries import carried
from isovoxel.readers.base import Volume
from isovoxel.readers.files import unavailable

CHUNKS = "chunks"
"""What a volume's identity calls the state of its chunks, where it has files of them."""

AT_ONCE = 16
"""How many files are looked at at a time."""

BATCH = 1 << 12
"""So many paths are held at a time."""


@dataclass(frozen=True)
class FileList:
    """The files of a volume that lie in a few files, whichever box of it is wanted."""

    paths: tuple[str, ...]
    """Absolute."""

    def __call__(self, _box: Box) -> Iterable[str]:
        """Return all of them."""
        return self.paths


@dataclass(frozen=True)
class FolderFiles:
    """The files of a volume that lie somewhere in a folder, whichever box of it is wanted."""

    folder: str
    """Absolute."""

    def __call__(self, _box: Box) -> Iterator[str]:
        """Yield all of them."""
        for folder, _, names in os.walk(self.folder):
            yield from (str(Path(folder, name)) for name in names)


def places(box: Box, chunk: Index3) -> Iterator[Index3]:
    """Yield the place of each chunk of this shape that holds voxels of a box."""
    zs, ys, xs = (range(a // n, ceil_div(b, n)) for a, b, n in zip(box.start, box.stop, chunk, strict=True))
    yield from ((z, y, x) for z in zs for y in ys for x in xs)  # none of which is held, as itertools.product would


@dataclass(frozen=True)
class FilesState:
    """Sums of the stamps of files."""

    written: int = 0
    """Of their paths, sizes and modification times, or ETags."""
    inodes: int = 0
    """Of their inodes."""
    noted: int = 0
    """Of the times at which the system noted a change."""
    owned: int = 0
    """Of mode, owner and links."""

    def __add__(self, other: FilesState) -> FilesState:
        return FilesState(*(getattr(self, f.name) + getattr(other, f.name) & (1 << 64) - 1 for f in fields(self)))

    def is_changed(self, now: FilesState) -> bool:
        """Tell whether voxels may be others now."""
        if (self.written, self.inodes) != (now.written, now.inodes):
            return True
        return self.noted != now.noted and self.owned == now.owned


class InputWatch:
    """Tells whether an input is still as it was when this was made.

    Parameters
    ----------
    volume
        The input, just opened.

    Attributes
    ----------
    volume : Volume
        The same, with an identity that tells it from every other.

    Raises
    ------
    InputError
        If one of its files cannot be looked at, or is another than when the volume was opened.
    """

    def __init__(self, volume: Volume) -> None:
        self._given = volume
        self._state = _state_of(volume)
        _check_unchanged(volume)
        self.volume = volume.identified()
        if volume.files is not None and "size" not in volume.identity:
            identity = {**self.volume.identity, CHUNKS: f"{self._state.written:016x}"}
            self.volume = replace(self.volume, identity=identity)

    def is_changed(self) -> bool:
        """Tell whether anything has changed.

        Raises
        ------
        InputError
            If one of its files cannot be looked at.
        """
        tag = self.volume.identity.get("tag")
        return self._state.is_changed(_state_of(self._given)) or tag != self._given.identified().identity.get("tag")


def _check_unchanged(volume: Volume) -> None:
    """Check that an input's files are those that it was opened from: where voxels lie in them was read then."""
    if volume.current_identity is None:
        return
    try:
        now = volume.current_identity()
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise unavailable(f"{volume.name} cannot be looked at", error) from error
    if any(volume.identity.get(key) != value for key, value in now.items()):
        raise InputError(f"{volume.name} has changed since it was opened; open it again, or run the command again")


def _state_of(volume: Volume) -> FilesState:
    state = FilesState()
    if volume.files is None:
        return state
    paths = iter(volume.files(Box.whole(volume.shape)))
    try:
        with ThreadPoolExecutor(AT_ONCE, "isovoxel-look") as pool:
            while batch := list(islice(paths, BATCH)):
                for part in pool.map(carried(_sum), [batch[i::AT_ONCE] for i in range(min(AT_ONCE, len(batch)))]):
                    state += part
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise unavailable(f"{volume.name} cannot be looked at", error) from error
    return state


def _sum(paths: Iterable[str | ObjectPlace]) -> FilesState:
    state = FilesState()
    for path in paths:
        state += _stamp(path)
    return state


def _stamp(path: str | ObjectPlace) -> FilesState:
    """Return the state of one file; that of one that is not there is that of none."""
    if isinstance(path, ObjectPlace):
        found = path.find()
        return FilesState() if found is None else FilesState(_hash(path.key, found.size, found.tag))
    try:
        s = os.stat(path)  # noqa: PTH116 - called for every chunk
    except (FileNotFoundError, NotADirectoryError):
        return FilesState()
    owned = _hash(path, s.st_mode, s.st_uid, s.st_gid, s.st_nlink)
    return FilesState(
        _hash(path, s.st_size, s.st_mtime_ns), _hash(path, s.st_dev, s.st_ino), _hash(path, s.st_ctime_ns), owned
    )


def _hash(*parts: object) -> int:
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
