"""Addresses of object stores and local paths, parsed from what a user gives, and shown without secrets.

An address names a scheme, a bucket or host, and a path: "s3://bucket/volumes/a.zarr". Whatever stands in it ends up in
plans, logs and the attributes of outputs. So credentials have no place there: an address that carries a password or a
signature is refused, without repeating it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from isovoxel.errors import AddressError
from isovoxel.object_store.clients import READ_ONLY
from isovoxel.object_store.objects import ObjectPlace

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

SCHEMES = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "azure": "az",
    "http": "http",
    "https": "https",
}
"""Schemes of object stores, and the one name that each goes by here."""


class Address(NamedTuple):
    """Where something lies in an object store."""

    root: str
    """The store: "s3://bucket", "https://host:8080"."""
    key: str
    """Path in it, without a slash at either end; empty for the store itself."""


def is_address(text: str) -> bool:
    """Return whether a text names a scheme, whether or not it is one of ours.

    Examples
    --------
    >>> [is_address(text) for text in ("s3://bucket/a", "file:///a", "a.tif", "C:/a.tif", "memory://1")]
    [True, True, False, False, True]
    """
    return _SCHEME.match(text) is not None


def has_place(text: str) -> bool:
    """Return whether a text is a path, or an address that can be asked: not what a library calls an array in memory."""
    return not is_address(text) or text.partition(":")[0].lower() in ("file", *SCHEMES)


def parse_address(text: str) -> Address | Path:
    """Return where an address leads; one of a file leads to a local path.

    Raises
    ------
    AddressError
        If its scheme is none of ours, it has no bucket or host, it carries credentials, or its path is unclear.

    Examples
    --------
    >>> parse_address("s3://bucket/volumes/a.zarr/")
    Address(root='s3://bucket', key='volumes/a.zarr')
    >>> parse_address("https://Example.org/my%20volume.zarr")
    Address(root='https://example.org', key='my volume.zarr')
    """
    parts = _split(text)
    scheme = parts.scheme
    # A bucket has no port: what stands behind a colon there is a password, cut off by a slash in it.
    password = ":" in parts.netloc and scheme not in READ_ONLY
    if "@" in parts.netloc or password or parts.query or parts.fragment:
        raise AddressError(
            f"the {scheme}:// address has a user, a query or a fragment in it, where credentials would be written "
            "down; give it without them, and credentials by the environment or a profile"
        )
    shown = f"{scheme}://{parts.netloc}{parts.path}"
    if scheme == "file":
        from urllib.request import url2pathname  # which loads HTTP and TLS

        return Path(url2pathname(parts.path))
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in (*dict.fromkeys(SCHEMES.values()), "file"))
        raise AddressError(f"{shown} has a scheme that isovoxel does not know; give a path, or one of {known}")
    root = f"{SCHEMES[scheme]}://{parts.netloc.lower() if scheme in READ_ONLY else parts.netloc}"
    path = unquote(parts.path) if scheme in READ_ONLY else parts.path
    key = path.strip("/")
    if not parts.netloc:
        raise AddressError(f"{shown} names no bucket and no host; give one, as in s3://bucket/volume.zarr")
    if key and any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in key.split("/")):
        raise AddressError(f"{shown} has a path with an empty part, a dot for a part, or a backslash; give it without")
    return Address(root, key)


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError as error:  # such as half a pair of brackets
        raise AddressError(f"this is no address: {error}") from None


# ---- places --------------------------------------------------------------------------------------------------------

# A place is a local path, or lies in an object store. Both kinds read alike (`name`, ``/``, `is_file`, `read_bytes`,
# `iterdir`, `resolve`). What writing takes differs too much for that: files are flushed and renamed, objects are put.


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
    return found if isinstance(found, Path) else ObjectPlace(*found)


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


def write_small(place: Place, data: bytes, *, new: bool = False) -> None:
    """Write a small file or object: in place of any other, or where it must be new, raise a `FileExistsError`."""
    if isinstance(place, Path):
        with place.open("xb" if new else "wb") as file:
            file.write(data)
    else:
        place.write(data, new=new)


def shown(place: Place) -> Path | str:
    """Return a place as results name it: a local one as a path, any other as its address."""
    return place if isinstance(place, Path) else str(place)
