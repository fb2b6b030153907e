"""Parse a text that a user gives: a local path, or a place in an object store.

Both kinds of places read alike (`name`, ``/``, `is_file`, `read_bytes`, `iterdir`, `resolve`). What writing takes
differs too much for that: files are flushed and renamed, objects are put.
"""

from __future__ import annotations

import os
from pathlib import Path

from isovoxel.object_store.address import is_address, parse_address
from isovoxel.object_store.objects import ObjectPlace

Place = Path | ObjectPlace
"""Where something lies."""


def place_of(text: str | os.PathLike[str] | ObjectPlace) -> Place:
    """Return the place that a text names; nothing is looked for there.

    Raises
    ------
    AddressError
        If it is an address that isovoxel cannot use.

    Examples
    --------
    >>> str(place_of("s3a://bucket/a.zarr/"))
    's3://bucket/a.zarr'
    """
    if isinstance(text, ObjectPlace):
        return text
    name = os.fspath(text)
    if not isinstance(text, str) or not is_address(name):
        return Path(name)
    found = parse_address(name)
    return found if isinstance(found, Path) else ObjectPlace.at(found)


def absolute(place: Place) -> Place:
    """Return a place as processes find it whose working folders are others."""
    return place.absolute() if isinstance(place, Path) else place


def path_from(folder: Place, inner: Place) -> str:
    """Return the way from a folder to what lies in it, with ``/`` between names.

    Examples
    --------
    >>> path_from(Path("out.zarr"), Path("out.zarr/labels/cells"))
    'labels/cells'
    """
    if isinstance(folder, ObjectPlace):
        return str(inner)[len(str(folder)) :].strip("/")
    return Path(str(inner)).relative_to(folder).as_posix()


def put(place: Place, data: bytes, *, new: bool = False) -> None:
    """Write a small file or object: in place of any other, or where it must be new, raise a `FileExistsError`."""
    if isinstance(place, Path):
        with place.open("xb" if new else "wb") as file:
            file.write(data)
    else:
        place.write(data, new=new)


def shown(place: Place) -> Path | str:
    """Return a place as results name it: a local one as a path, any other as its address."""
    return place if isinstance(place, Path) else str(place)
