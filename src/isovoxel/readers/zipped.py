"""Open a zarr in a zip file, ``.ozx`` or ``.zarr.zip``: its top is the zarr, or holds one folder that is.

Chunks are read from where they lie in the zip, by any number of threads; where the zip compresses them, or a codec is
not one of the usual, by zarr-python, one thread at a time. What a zip lists of its members is held in memory, so a zip
of very many members is refused; few of them are wanted anyway: RFC-9 recommends shards.

Source: https://ngff.openmicroscopy.org/rfc/9/
"""

from __future__ import annotations

import stat
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from isovoxel.errors import InputError
from isovoxel.object_store.zarr_nodes import TOP, kind_of_node
from isovoxel.readers.base import Volume
from isovoxel.readers.files import FileList, file_identity, unreadable
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import Collection, Selection

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
    place, count = _opened(at)
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

    return images_of_group(Location(_opened(at)[0], at.name, "folder"))


def _opened(at: Location) -> tuple[Any, int]:
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
    current = partial(_identity, path, inner)
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


def _identity(path: Path, inner: str | None) -> dict[str, Any]:
    identity = file_identity(path)
    return identity if inner is None else identity | {"path": f"{identity['path']}:{inner}"}


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
