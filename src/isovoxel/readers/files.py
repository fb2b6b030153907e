"""Identify files and zarrs, and say what made one unreadable.

Three kinds of failures are kept apart, for what helps is not the same. Bytes that are damaged stay so: a
`CorruptInputError` says which voxels they are. What the system did not give, an `InputUnavailableError`, may be there
a moment later, which `isovoxel.object_store.retries.is_transient` tells. All else is an `InputError`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import os
import re
import stat
import struct
import traceback
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from gzip import BadGzipFile
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from isovoxel.errors import InputError, InputUnavailableError, IsovoxelError
from isovoxel.geometry.grid import Box, Index3, ceil_div
from isovoxel.object_store.objects import ObjectPlace, Place
from isovoxel.object_store.retries import carried
from isovoxel.readers.base import Volume

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of a TIFF, of either byte order, and of a BigTIFF."""
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
"""The first bytes of a PNG."""
GZIP_MAGIC = b"\x1f\x8b"
"""The first bytes of a gzip."""
ZIP_MAGIC = b"PK\x03\x04"
"""The first bytes of a zip that has members."""

LONGEST_REASON = 200
"""Longest part of another library's message that is repeated."""


DAMAGE = (EOFError, zlib.error, lzma.LZMAError, BadGzipFile, struct.error, json.JSONDecodeError, UnicodeDecodeError)
"""What is raised of bytes that are not whole, or not what they should be; of a healthy file, none of them is."""

_NUMBER = re.compile(r"\berrno = (\d+)")


def file_identity(path: Path, inner: str | None = None) -> dict[str, Any]:
    """Return path, size and modification time of a file, as JSON values; what is meant in it is a part of the path."""
    status, where = path.stat(), str(path.resolve())
    where = where if inner is None else f"{where}:{inner}"
    return {"path": where, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def pair_identity(header: Path, voxels: Path) -> dict[str, Any]:
    """Return the identity of a header's file, and of the file that holds its voxels where that is another."""
    identity = file_identity(header)
    return identity if voxels == header.resolve() else {**identity, "voxel file": file_identity(voxels)}


def metadata_identity(path: Place, files: Iterable[Place]) -> dict[str, Any]:
    """Return path and a hash over the metadata files of a zarr, as JSON values.

    In an object store, which keeps the time at which an object was written, the latest of them is a part of it.
    """
    digest = hashlib.sha256()
    written = []
    for file in files:
        if isinstance(file, ObjectPlace):
            content, found = file.read()
            written.append(found.written_ns)
        else:
            content = file.read_bytes()
        digest.update(f"{file.name}:{len(content)}:".encode() + content)
    identity = {"path": str(path.resolve()), "metadata": digest.hexdigest()}
    return identity | ({"mtime_ns": max(written)} if written else {})


def unreadable(name: str, what: str, error: Exception) -> InputError:
    """Return the one-sentence error for a file that could not be opened by who knows its kind.

    To copy or write it again is advised only where the file is sure to be damaged.
    """
    if isinstance(error, MemoryError):
        return InputUnavailableError(errno.ENOMEM, f"{name} cannot be read: this process has no memory left for it")
    if isinstance(error, OSError) and number_of(error) is not None:
        return unavailable(f"{name} cannot be read", error)
    if isinstance(error, (*LIMITS, ArithmeticError, IndexError, KeyError, AssertionError)):
        return InputError(f"{name} cannot be read as {what} here: {limit_of(error)}; {WAY_ON}")
    advice = "; copy or write it again" if isinstance(error, DAMAGE) else ""
    return InputError(f"{name} cannot be read as {what}: {reason_of(error)}{advice}")


@contextmanager
def named_failures(name: str, what: str) -> Iterator[None]:
    """Turn whatever a broken file makes a library raise, while a file of some kind is opened, into one sentence."""
    try:
        yield
    except IsovoxelError:
        raise
    except Exception as error:
        raise unreadable(name, what, error) from error


def number_of(error: BaseException) -> int | None:
    """Return the system's number of what went wrong, which HDF5 has in its text only; None where there is none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _NUMBER.search(str(error)) if isinstance(error, OSError) else None
    return int(found[1]) if found else None


def is_ours(error: BaseException) -> bool:
    """Return whether an error is that of what decodes, such as a library that is not there, not of what is decoded."""
    return isinstance(error, (*LIMITS, RecursionError))


LIMITS = (TypeError, AttributeError, NameError, ImportError, NotImplementedError)
"""What a library raises that does not do what it is asked, or is not installed as it should be: no file is to blame."""

WAY_ON = "the file may be whole: save it anew with a program that opens it, as OME-TIFF or OME-Zarr"


def limit_of(error: BaseException) -> str:
    """Return what a library said that failed, and which one it was."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__) if error.__traceback__ else [(None, 0)]
    library = frame.f_globals.get("__name__", "").partition(".")[0] if frame is not None else ""
    where = f" in {library}" if library not in ("", "isovoxel") else ""
    if np.lib.NumpyVersion(np.__version__) < "2.0.0" and re.search("unexpected keyword|module 'numpy", str(error)):
        return f"{library or 'its library'} wants NumPy 2, and {np.__version__} is installed ({reason_of(error)})"
    return f"{reason_of(error)} ({type(error).__name__}{where})"


def needs_extra(name: str, what: str, extra: str | None, error: ImportError) -> InputError:
    """Return the one-sentence error for a format whose library is not installed."""
    missing = error.name or reason_of(error)
    remedy = "install it" if extra is None else f"pip install 'isovoxel[{extra}]' brings it"
    return InputError(f"{name} is {what}, which takes {missing} to read; {remedy}")


def unavailable(what: str, error: OSError) -> InputUnavailableError:
    """Return the one-sentence error for what the system did not give; `what` is "x.tif cannot be read"."""
    number = number_of(error)
    why = error.strerror or (reason_of(error) if number is None else os.strerror(number))
    return InputUnavailableError(number, f"{what}: {why}")


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:LONGEST_REASON] if lines else type(error).__name__


class NoFileError(ValueError):
    """Something that is no file has the place of a part of an array, which many take for a part that is not stored."""


_NO_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
"""What the system says of that."""


def no_file(path: str, error: OSError) -> NoFileError | None:
    """Return what is wrong where a file could not be opened; None where it is not stored, or the system is to blame."""
    if error.errno == errno.ENOENT:
        # Path would keep the parts of each path that it is given.
        return NoFileError("it is a link that leads nowhere") if os.path.islink(path) else None  # noqa: PTH114
    return NoFileError(f"it is no file ({os.strerror(error.errno)})") if error.errno in _NO_FILE else None


def check_stored(path: str) -> None:
    """Check that a part of an array is a file, if it is stored.

    Raises
    ------
    NoFileError
        If something else has its place.
    OSError
        If the system does not say.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - see above
    except OSError as error:
        if (wrong := no_file(path, error)) is not None:
            raise wrong from error
        if error.errno != errno.ENOENT:
            raise
    else:
        if not stat.S_ISREG(mode):
            raise NoFileError("it is no file")


class EndOfFileError(ValueError):
    """A file that ends before what it should hold."""


def fill_buffer(file: Any, offset: int, buffer: memoryview) -> None:
    """Fill a buffer with the bytes of a file from `offset` on.

    Parameters
    ----------
    file
        A `FileIO`, or what has its `seek` and `readinto`.
    offset
        Where to begin.
    buffer
        Of bytes.

    Raises
    ------
    EndOfFileError
        If the file ends before.
    OSError
        If the system cannot read it.
    """
    # One call where seek and readinto are two: after each, a thread waits for Python's lock again.
    at_once = hasattr(os, "preadv") and isinstance(file, FileIO)
    while buffer:
        if at_once:
            count = os.preadv(file.fileno(), [buffer], offset)
        else:  # on Windows, and in gzip
            file.seek(offset)
            count = file.readinto(buffer)
        if not count:
            raise EndOfFileError(
                f"its file ends {len(buffer)} bytes too early at byte {offset}, "
                "so it has been changed since it was opened"
            )
        buffer = buffer[count:]
        offset += count


class MissingFolders:
    """Paths in a folder that is not there, of which nothing need be looked for; used by one thread.

    Most chunks of a sparse array are not stored, and with them whole folders of its files.
    """

    def __init__(self) -> None:
        self._missing = self._there = "\0"  # which no path begins with

    def hold(self, path: str) -> bool:
        """Return whether a path lies in the folder that was found missing last."""
        return path.startswith(self._missing)

    def search(self, path: str) -> None:
        """Find the uppermost folder that is missing of those that a file would lie in, which is missing itself."""
        folder = path.rpartition("/")[0]
        while folder and folder != self._there:
            try:
                os.stat(folder)  # noqa: PTH116 - see above
            except FileNotFoundError:
                self._missing = f"{folder}/"
                folder = folder.rpartition("/")[0]
            except OSError:  # which opening the file raises
                return
            else:
                self._there = folder


def check_complete(name: str, needed: int, size: int) -> None:
    """Raise an `InputError` where a file is shorter than its header says."""
    if needed > size:
        raise InputError(
            f"{name} is truncated: its voxels take {needed} bytes, but the file has {size}, "
            f"so {needed - size} bytes are missing; copy or write it again"
        )


# ---- state of an input ---------------------------------------------------------------------------------------------
#
# Whether anything of an input has changed since a job began:
#
# 1. An input's files are looked at, not read: where it has chunks, those that hold the voxels that are wanted.
# 2. Of each there is a stamp: inode, size, and the times at which the system noted its last change. Of an object, what
#    its store has: size and ETag.
# 3. Stamps are summed, so that neither their order nor their number matters, and nothing grows with the input.
#
# The time of the last change of an inode tells of a write that keeps size and modification time. It also changes with
# mode, owner and links of a file, which are no change of its voxels.


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


def of_file(volume: Volume, path: Path, inner: str | None = None, /, **chosen: Any) -> Volume:
    """Return a volume with what tells its one file from others; see `Volume.stored_in` and `file_identity`."""
    return volume.stored_in(FileList((str(path.resolve()),)), partial(file_identity, path, inner), **chosen)


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
        """Return whether voxels may be others now."""
        if (self.written, self.inodes) != (now.written, now.inodes):
            return True
        return self.noted != now.noted and self.owned == now.owned


class InputWatch:
    """Returns whether an input is still as it was when this was made.

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
        """Return whether anything has changed.

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
    with _looking_at(volume):
        now = volume.current_identity()
    if any(volume.identity.get(key) != value for key, value in now.items()):
        raise InputError(f"{volume.name} has changed since it was opened; open it again, or run the command again")


def _state_of(volume: Volume) -> FilesState:
    state = FilesState()
    if volume.files is None:
        return state
    paths = iter(volume.files(Box.whole(volume.shape)))
    with _looking_at(volume), ThreadPoolExecutor(AT_ONCE, "isovoxel-look") as pool:
        while batch := list(islice(paths, BATCH)):
            share = ceil_div(len(batch), AT_ONCE)  # neighbours, which lie in few folders
            for part in pool.map(carried(_sum), [batch[i : i + share] for i in range(0, len(batch), share)]):
                state += part
    return state


@contextmanager
def _looking_at(volume: Volume) -> Iterator[None]:
    """Turn what the system says of an input's files into one sentence."""
    try:
        yield
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise unavailable(f"{volume.name} cannot be looked at", error) from error


def _sum(paths: Iterable[str | ObjectPlace]) -> FilesState:
    state, missing = FilesState(), MissingFolders()
    for path in paths:
        if isinstance(path, ObjectPlace) or not missing.hold(path):
            state += _stamp(path, missing)
    return state


def _stamp(path: str | ObjectPlace, missing: MissingFolders) -> FilesState:
    """Return the state of one file; that of one that is not there is that of none."""
    if isinstance(path, ObjectPlace):
        found = path.find()
        return FilesState() if found is None else FilesState(_hash(path.key, found.size, found.tag))
    try:
        s = os.stat(path)  # noqa: PTH116 - called for every chunk
    except FileNotFoundError:
        missing.search(path)
        return FilesState()
    except NotADirectoryError:
        return FilesState()
    owned = _hash(path, s.st_mode, s.st_uid, s.st_gid, s.st_nlink)
    return FilesState(
        _hash(path, s.st_size, s.st_mtime_ns), _hash(path, s.st_dev, s.st_ino), _hash(path, s.st_ctime_ns), owned
    )


def _hash(*parts: object) -> int:
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
