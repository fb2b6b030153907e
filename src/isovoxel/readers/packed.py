"""Open what lies in a packed file: a zarr in a zip, a TIFF in gzip.

A zarr in a zip file, ``.ozx`` or ``.zarr.zip``: its top is the zarr, or holds one folder that is.

Chunks are read from where they lie in the zip, by any number of threads; where the zip compresses them, or a codec is
not one of the usual, by zarr-python, one thread at a time. What a zip lists of its members is held in memory, so a zip
of very many members is refused; few of them are wanted anyway: RFC-9 recommends shards.

Source: https://ngff.openmicroscopy.org/rfc/9/
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
import threading
import uuid
import weakref
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.grid import Box
from isovoxel.object_store.files import TOP, fcntl, kind_of_node
from isovoxel.planning.memory import human_bytes
from isovoxel.readers.base import ReadBox, Volume
from isovoxel.readers.files import DAMAGE, FileList, file_identity, reason_of, unavailable, unreadable
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import Collection, Selection

# ---- zarr in zip -------------------------------------------------------------------------------------------------

MOST_MEMBERS = 1 << 16
"""Of a zip of more members, the list takes more than 100 MB."""

ONE_BY_ONE = "one thread at a time reads the zip; unpack it to read with all of them"
"""What is said of a zip whose chunks zarr-python reads."""

MEMBER_BYTES = 2000
"""What the lists of members hold of each: zarr-python has one of its own."""

_END, _LOCATOR, _END64 = b"PK\5\6", b"PK\6\7", b"PK\6\6"


class _Listing:
    """The members of a zip; safe to use from many threads."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._zip = zipfile.ZipFile(path)
        self.files = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        self.folders: dict[str, set[str]] = {"": set()}
        for name in self.files:
            parts = name.split("/")
            for depth, part in enumerate(parts):
                self.folders.setdefault("/".join(parts[:depth]), set()).add(part)

    def read(self, name: str) -> bytes:
        """Return what a small member holds."""
        with self._lock:
            return self._zip.read(name)


_listing = lru_cache(8)(lambda path, _stamp: _Listing(path))


@dataclass(frozen=True)
class ZipPlace:
    """A file or folder in a zip, which is read as a local path is."""

    path: str
    """Absolute path of the zip."""
    stamp: int
    """When it was written, in nanoseconds."""
    inner: str = ""
    """Path in it, without a slash at either end."""

    def __str__(self) -> str:
        return f"{self.path}:/{self.inner}"

    def __truediv__(self, name: str) -> ZipPlace:
        return replace(self, inner=f"{self.inner}/{name}".strip("/"))

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.inner.rpartition("/")[2]

    @property
    def listing(self) -> _Listing:
        """The members of the zip."""
        return _listing(self.path, self.stamp)

    def is_file(self) -> bool:
        """Return whether it is a file."""
        return self.inner in self.listing.files

    def is_dir(self) -> bool:
        """Return whether it is a folder."""
        return self.inner in self.listing.folders

    def read_bytes(self) -> bytes:
        """Return what the file holds.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        if not self.is_file():
            raise FileNotFoundError(2, "No such file in the zip", str(self))
        return self.listing.read(self.inner)

    def iterdir(self) -> Iterator[ZipPlace]:
        """Yield what the folder holds."""
        yield from (self / name for name in sorted(self.listing.folders.get(self.inner, ())))

    def resolve(self) -> ZipPlace:
        """Return itself."""
        return self

    def member(self) -> zipfile.ZipInfo | None:
        """Return what the zip says of the file, or None where there is none."""
        return self.listing.files.get(self.inner)

    def is_stored(self) -> bool:
        """Return whether all files in the folder lie in the zip as they are."""
        inside = f"{self.inner}/" if self.inner else ""
        members = (info for name, info in self.listing.files.items() if name.startswith(inside))
        return all(info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1 for info in members)

    def in_store(self) -> dict[str, Any]:
        """Return where zarr-python finds it: a store of the zip, and the path in it."""
        from zarr.storage import ZipStore

        return {"store": ZipStore(self.path, mode="r"), "path": self.inner}


def is_zip(at: Location) -> bool:
    """Return whether a zip holds a zarr, at its top or in its only folder."""
    try:
        if _count(at.path) > MOST_MEMBERS:
            return at.path.suffix == ".ozx" or at.path.name.endswith(".zarr.zip")  # opening it says why not
        return _zarr_in(zip_place(at.path)) is not None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return at.path.suffix == ".ozx"


def open_zip(at: Location, selection: Selection) -> Volume:
    """Open the OME-Zarr image or the zarr array in a zip; several are told apart by ``file.zip:/path/to/image``.

    Raises
    ------
    InputError
        If the zip is damaged, encrypted or has too many members, or holds no image.
    """
    from isovoxel.readers.ome_zarr import open_ome_zarr
    from isovoxel.readers.zarr_array import open_zarr_array

    name = at.name
    place, count = _opened_zip(at)
    inside, inner = Location(place, name, "folder"), at.inner
    if kind_of_node(place) == "array":
        selection.check_kind(name, "channel", "time", "axes")
        volume = open_zarr_array(inside, selection)
    else:
        selection.check_kind(name, "image", "level", "channel", "time")
        volume = open_ome_zarr(inside, selection)
        if selection.image is not None:
            inner = "/" + volume.identity["path"].rpartition(":/")[2]
    return _of_zip(volume, at.path.resolve(), inner, count)


def images_of_zip(at: Location) -> Collection:
    """Return the images of a plate or a collection in a zip; the errors are those of `open_zip`."""
    from isovoxel.readers.ome_zarr import images_of_group

    return images_of_group(Location(_opened_zip(at)[0], at.name, "folder"))


def _opened_zip(at: Location) -> tuple[Any, int]:
    """Return where the zarr in a zip is, and how many members the zip has."""
    name = at.name
    try:
        count = _count(at.path)
        if count > MOST_MEMBERS:
            raise InputError(
                f"{name} is a zip of {count:,} members, more than the {MOST_MEMBERS:,} that isovoxel reads in a zip; "
                "unpack it, as unzip does, and give the folder"
            )
        top = zip_place(at.path)
        if any(info.flag_bits & 1 for info in top.listing.files.values()):
            raise InputError(f"{name} is an encrypted zip; unpack it, as unzip does, and give the folder")
        place: Any = top / at.inner if at.inner is not None else _zarr_in(top)
        kind = None if place is None else kind_of_node(place)
    except (zipfile.BadZipFile, ValueError) as error:
        raise InputError(f"{name} is a damaged zip ({error}); copy or write it again") from error
    except OSError as error:
        raise unreadable(name, "a zip", error) from error
    if kind is None:
        raise InputError(f"{name} holds no zarr" + (f" at {at.inner}" if at.inner else ""))
    return place, count


def _of_zip(volume: Volume, path: Path, inner: str | None, count: int) -> Volume:
    """Return a volume of a zip with what tells the zip from others."""
    current = partial(file_identity, path, inner)
    return replace(
        volume,
        kind=f"{volume.kind} (zip)",
        identity={**volume.identity, **current()},
        current_identity=current,
        files=FileList((str(path),)),
        read_overhead=volume.read_overhead + count * MEMBER_BYTES,
        coarser=tuple(partial(_level_of_zip, level, path, inner, count) for level in volume.coarser),
        notes=volume.notes if volume.cached is not None else (*volume.notes, ONE_BY_ONE),
    )


def _level_of_zip(level: Callable[[], Volume], path: Path, inner: str | None, count: int) -> Volume:
    return _of_zip(level(), path, inner, count)


def zip_place(path: Path, inner: str = "") -> ZipPlace:
    """Return the place of a file or folder in a zip."""
    return ZipPlace(str(path.resolve()), path.stat().st_mtime_ns, inner)


def _zarr_in(top: ZipPlace) -> ZipPlace | None:
    """Return what in a zip is the zarr; None where nothing is."""
    inside = [folder for folder in top.iterdir() if folder.is_dir()]
    candidates = [top, *inside[:1]] if len(inside) == 1 else [top]
    return next((place for place in candidates if any((place / name).is_file() for name in TOP)), None)


def _count(path: Path) -> int:
    """Return how many members a zip says it has, without listing them.

    Raises
    ------
    zipfile.BadZipFile
        If its end is missing.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        first = max(0, size - (1 << 16) - 22 - 20)
        file.seek(first)
        tail = file.read()
        end = tail.rfind(_END)
        if not stat.S_ISREG(path.stat().st_mode) or end < 0 or len(tail) < end + 22:
            raise zipfile.BadZipFile("its end is missing")
        count = int(struct.unpack_from("<H", tail, end + 10)[0])
        if end >= 20 and tail[end - 20 : end - 16] == _LOCATOR:
            file.seek(struct.unpack_from("<Q", tail, end - 12)[0])
            record = file.read(40)
            if record[:4] != _END64 or len(record) < 40:
                raise zipfile.BadZipFile("its end is damaged")
            count = int(struct.unpack_from("<Q", record, 32)[0])
    return count


# ---- TIFF in gzip ------------------------------------------------------------------------------------------------

# Read a TIFF in gzip from a temporary file: its directories point anywhere, and gzip is read from its front only.
#
# 1. The file lies in a folder for temporary files, under a name made of path, size and time of what was unpacked. So
#    all volumes and processes of a machine that read one input share one file; a worker on another machine unpacks its
#    own.
# 2. Everyone who uses the file holds a shared lock on it. Who needs it first unpacks it, under an exclusive one; others
#    wait meanwhile.
# 3. Who lets it go, and can lock it alone, removes it. No lock is left of a process that was killed: its file is
#    removed when the same user unpacks the next one.
#
# Room on the disk is looked at while the file grows, because what a gzip says of its size may be wrong, and is counted
# modulo 4 GiB. Without locks (Windows) each volume has a file of its own.


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
        read=partial(_read_unpacked, volume.read, file),
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


def _read_unpacked(read: ReadBox, _file: Unpacked, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Read a box of an unpacked file, which is kept as long as this can be called."""
    return read(box, out)


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
