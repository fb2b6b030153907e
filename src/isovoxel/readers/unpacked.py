"""Read a TIFF in gzip from a temporary file: its directories point anywhere, and gzip is read from its front only.

1. The file lies in a folder for temporary files, under a name made of path, size and time of what was unpacked. So all
   volumes and processes of a machine that read one input share one file; a worker on another machine unpacks its own.
2. Everyone who uses the file holds a shared lock on it. Who needs it first unpacks it, under an exclusive one; others
   wait meanwhile.
3. Who lets it go, and can lock it alone, removes it. No lock is left of a process that was killed: its file is removed
   when the same user unpacks the next one.

Room on the disk is looked at while the file grows, because what a gzip says of its size may be wrong, and is counted
modulo 4 GiB. Without locks (Windows) each volume has a file of its own.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import shutil
import stat
import struct
import tempfile
import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.grid import Box
from isovoxel.planning.memory import human_bytes
from isovoxel.readers.base import ReadBox, Volume
from isovoxel.readers.files import DAMAGE, TIFF_MAGIC, FileList, file_identity, reason_of, unavailable
from isovoxel.readers.raw import first_bytes
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import Collection, Selection

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PREFIX = "isovoxel-unpacked-"
"""How the names of folders begin in which unpacked files lie."""
PIECE_BYTES = 1 << 20
"""So much is unpacked in one go."""
LEAST_FREE = 1 << 26
"""So much of the disk is left to others."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk without room."""

_LOCK, _PART, _WHOLE = "lock", "part", "whole"
"""What lies in the folder of an unpacked file: the lock, and a folder with the file while it grows, and afterwards."""


def is_packed_tiff(at: Location) -> bool:
    """Return whether a gzip holds a TIFF."""
    return first_bytes(at.path, 4) in TIFF_MAGIC


def open_packed_tiff(at: Location, selection: Selection) -> Volume:
    """Open the volume of a TIFF in gzip.

    Raises
    ------
    InputError
        If it is damaged or the disk has no room for what it holds; or as `isovoxel.readers.tiff.open_tiff`.
    """
    from isovoxel.readers.tiff import open_tiff

    file = Unpacked(at.path.resolve(), at.name)
    volume = open_tiff(Location(file.path, at.name, "file"), selection)
    note = (
        f"it was unpacked into {human_bytes(file.path.stat().st_size)} of temporary files, below {file.folder.parent}"
    )
    return replace(
        volume,
        kind=f"{volume.kind} in gzip",
        read=UnpackedReader(volume.read, file),
        identity={**volume.identity, **file.identity},
        current_identity=partial(file_identity, file.packed),
        files=FileList((str(file.packed),)),
        notes=(*volume.notes, note),
    )


def images_of_packed_tiff(at: Location) -> Collection:
    """Return the images of a TIFF in gzip; the errors are those of `open_packed_tiff`."""
    from isovoxel.readers.tiff import images_of_tiff

    file = Unpacked(at.path.resolve(), at.name)
    return UnpackedImages(images_of_tiff(Location(file.path, at.name, "file")).images, file=file)


class Unpacked:
    """A file out of a gzip, which is there at least as long as this object.

    Parameters
    ----------
    packed
        The gzip, absolute.
    name
        What the user called it, for messages.

    Attributes
    ----------
    packed : Path
        The same.
    identity : dict
        What tells the gzip from a later one.
    folder, path : Path
        Where the file lies, and the file.

    Raises
    ------
    InputError
        If the gzip is damaged, or there is no room for the file.
    """

    def __init__(self, packed: Path, name: str) -> None:
        self.packed, self._name = packed, name
        self.identity = file_identity(packed)
        parent = temporary_folder(name)
        _sweep(parent)
        itself = json.dumps([self.identity, os.getuid()]) if fcntl is not None else uuid.uuid4().hex
        self.folder = parent / f"{PREFIX}{hashlib.sha256(itself.encode()).hexdigest()[:16]}"
        self.path = self.folder / _WHOLE / (packed.name.removesuffix(".gz") or packed.name)
        lock = _held(self.folder, self._unpack, name)
        weakref.finalize(self, _let_go, self.folder, lock, os.getpid())

    def __reduce__(self) -> tuple[type[Unpacked], tuple[Path, str]]:
        # Another process holds a lock of its own.
        return (Unpacked, (self.packed, self._name))

    def _unpack(self) -> None:
        part = self.folder / _PART
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir()
        self._check_room(max(self.identity["size"], _stated_size(self.packed)))
        written = 0
        try:
            with gzip.open(self.packed) as source, (part / self.path.name).open("xb") as target:
                while piece := source.read(PIECE_BYTES):
                    written += len(piece)
                    self._check_room(len(piece), written)
                    target.write(piece)
        except DAMAGE as error:
            raise InputError(
                f"{self._name} is damaged or cut short: {reason_of(error)}; copy or write it again"
            ) from error
        except OSError as error:
            if error.errno in FULL:
                raise self._no_room(written, 0) from error
            raise unavailable(f"{self._name} cannot be unpacked", error) from error
        if file_identity(self.packed) != self.identity:
            raise InputError(f"{self._name} was written while it was opened; open it again once it is whole")
        part.rename(self.folder / _WHOLE)

    def _check_room(self, needed: int, written: int = 0) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed + LEAST_FREE > free:
            raise self._no_room(written or needed, free)

    def _no_room(self, size: int, free: int) -> InputError:
        return InputError(
            f"{self._name} is unpacked into a temporary file of at least {human_bytes(size)}, but the disk of "
            f"{self.folder.parent} has {human_bytes(free)} free; make room, or name a folder with more in TMPDIR"
        )


@dataclass(frozen=True)
class UnpackedReader:
    """Reads boxes of an unpacked file, and keeps the file."""

    read: ReadBox
    """Reads them."""
    file: Unpacked
    """Where from."""

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`."""
        return self.read(box, out)


@dataclass(frozen=True)
class UnpackedImages(Collection):
    """The images of an unpacked file, which keep the file: a job opens one after the other."""

    file: Unpacked | None = None
    """The file."""


def temporary_folder(name: str) -> Path:
    """Return the folder in which files are unpacked: ``TMPDIR``, or else one on a disk, where ``/tmp`` may be memory.

    Raises
    ------
    InputError
        If no such folder can be written.
    """
    disk = Path("/var/tmp")  # noqa: S108 - its folders are locked, and checked to be the user's
    if not os.environ.get("TMPDIR") and os.access(disk, os.W_OK | os.X_OK):
        return disk
    try:
        return Path(tempfile.gettempdir()).absolute()
    except FileNotFoundError as error:
        raise InputError(
            f"{name} is unpacked into a temporary file, and no folder for one can be written; set TMPDIR to one"
        ) from error


def _stated_size(packed: Path) -> int:
    """Return what the end of a gzip says of its size, modulo 4 GiB."""
    with packed.open("rb") as file:
        file.seek(-min(4, packed.stat().st_size), os.SEEK_END)
        return int(struct.unpack("<I", file.read().rjust(4, b"\0"))[0])


def _held(folder: Path, unpack: Callable[[], None], name: str) -> int | None:
    """Lock the folder of an unpacked file together with others, the file unpacked if need be; return the lock."""
    lock: int | None = None
    while True:
        try:
            if fcntl is None:
                folder.mkdir()
                unpack()
                return None
            lock = _opened(folder, name)
            if lock is not None and _shares(lock, folder, unpack):
                return lock
        except BaseException:
            _let_go(folder, lock)
            raise
        if lock is not None:
            os.close(lock)


def _opened(folder: Path, name: str) -> int | None:
    """Return the open lock of a folder, which is made if need be; None where another process removes it just now."""
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
    except OSError as error:
        raise unavailable(f"{name} cannot be unpacked below {folder.parent}", error) from error
    try:
        if not _is_own(folder):
            raise InputError(f"{name} is unpacked into {folder}, which others may write; remove that")
        return os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None


def _shares(lock: int, folder: Path, unpack: Callable[[], None]) -> bool:
    """Lock a folder together with others once its file is whole; False where it was removed meanwhile."""
    for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_SH):
        fcntl.flock(lock, kind)
        if not _is_lock(lock, folder):
            return False
        whole = (folder / _WHOLE).is_dir()
        if whole and kind == fcntl.LOCK_SH:
            return True
        if not whole and kind == fcntl.LOCK_EX:
            unpack()
    return False


def _is_own(folder: Path) -> bool:
    """Return whether a folder is this user's, and nobody else may write in it."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _is_lock(lock: int, folder: Path) -> bool:
    """Return whether an open lock is still that of a folder, which another process may have removed."""
    try:
        return os.path.samestat(os.fstat(lock), (folder / _LOCK).stat())
    except FileNotFoundError:
        return False


def _let_go(folder: Path, lock: int | None, process: int | None = None) -> None:
    """Give the lock back, and remove the folder if nobody else has one; a fork of the process has none of its own."""
    if process not in (None, os.getpid()):
        return
    if lock is None:
        if fcntl is None:
            shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError):  # others use it
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_lock(lock, folder):
            # Under another name, so that nobody finds a part of it.
            shutil.rmtree(folder.rename(f"{folder}-{uuid.uuid4().hex}"), ignore_errors=True)
    os.close(lock)


def _sweep(parent: Path) -> None:
    """Remove the files of this user's processes that were killed."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if _is_own(folder):
                _let_go(folder, os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600))
