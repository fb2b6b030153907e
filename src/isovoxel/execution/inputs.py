"""Find the files that an input lies in: of a path, a pattern, an address, or of an array that a caller holds.

Nobody but who made an array knows all that it is computed from. So an array is searched for what is known to lie
somewhere: memory maps, zarr and HDF5 arrays, paths. Graphs of dask and arrays of xarray are looked through as far as
`MOST_LOOKED_AT` objects.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from isovoxel.errors import AddressError
from isovoxel.object_store.address import is_address
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.place import Place, place_of
from isovoxel.readers.base import Volume

MOST_LOOKED_AT = 20_000
"""How many objects of a graph are looked at."""

_LIBRARIES = ("xarray", "dask", "zarr", "tifffile", "h5netcdf", "netCDF4", "isovoxel")
"""Whose objects are looked into."""
_HOSTED = (
    (re.compile(r"https?://([^./]+)\.s3[.-][^/]*amazonaws\.com"), "s3://{}"),
    (re.compile(r"https?://s3[.-][^/]*amazonaws\.com/([^/]+)"), "s3://{}"),
    (re.compile(r"https?://storage\.googleapis\.com/([^/]+)"), "gs://{}"),
)
"""How servers show the buckets of object stores."""


def places_of(source: Any, volume: Volume | None = None) -> list[Place]:
    """Return where an input lies, as far as that can be told: files, folders and places in object stores.

    Parameters
    ----------
    source
        What the user gave for it.
    volume
        The input, where it is open.
    """
    found: list[Place] = []
    if isinstance(source, str | os.PathLike):
        found += named_places(os.fsdecode(source))
    elif not isinstance(source, Volume):
        found += _held(source)
    if volume is not None or isinstance(source, Volume):
        identity = (source if volume is None else volume).identity
        further = identity.get("files", ())  # of slices it is their number, and their path a pattern or a folder
        for each in (identity, *(further if isinstance(further, list) else ())):
            if isinstance(path := each.get("path"), str):
                found += named_places(path)
    return list(dict.fromkeys(found))


def named_places(text: str) -> Iterator[Place]:
    """Yield where an input lies that a user names: what is there, what links in it lead to, and all that it matches."""
    try:
        place = place_of(text)
    except AddressError:  # of an array in memory, or of no store that is known
        return
    if isinstance(place, ObjectPlace):
        yield _stored(place)
        return
    local = str(place) if is_address(text) else text
    file = local.rpartition(":/")[0]
    try:
        if os.path.lexists(local):
            yield from _with_linked(Path(local))
        elif file and os.path.lexists(file):
            yield Path(file)
        elif glob.has_magic(local):
            yield from map(Path, glob.iglob(local, recursive=True))  # noqa: PTH207 - a pattern from a user
    except (OSError, ValueError):  # which is said where it is opened
        return


def _with_linked(path: Path) -> Iterator[Path]:
    """Yield a path, and what links in a folder lead to: slices, or levels and what lies directly in them."""
    yield path
    folders = [path] if path.is_dir() else []
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    yield Path(entry.path)
                elif folder == path and entry.is_dir():
                    folders.append(Path(entry.path))


def _stored(place: ObjectPlace) -> ObjectPlace:
    """Return the place in a store that an address of a server shows, where that is known."""
    if not place.read_only:
        return place
    address = f"{place.root}/{place.key}"
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "").rstrip("/")
    if endpoint and address.lower().startswith(f"{endpoint.lower()}/"):
        bucket, _, key = address[len(endpoint) + 1 :].partition("/")
        return ObjectPlace(f"s3://{bucket}", key)
    for pattern, root in _HOSTED:
        if found := pattern.match(address):
            return ObjectPlace(root.format(found[1]), address[found.end() :].strip("/"))
    return place


def _held(source: Any) -> Iterator[Place]:
    """Yield where an array lies that a caller holds, and all that it is computed from, as far as that is seen."""
    queue, seen = deque([source]), {id(source): source}  # held, for what has gone leaves its number to others
    while queue and len(seen) < MOST_LOOKED_AT:
        thing = queue.popleft()
        yield from _leaf(thing)
        for part in _parts(thing):
            if id(part) not in seen and part is not None and not isinstance(part, int | float | bytes):
                seen[id(part)] = part
                queue.append(part)


def _leaf(thing: Any) -> Iterator[Place]:
    """Yield where something lies by itself."""
    if isinstance(thing, str | os.PathLike):
        text = os.fsdecode(thing)
        if (os.sep in text or is_address(text)) and len(text) < 4096 and "\0" not in text and "\n" not in text:
            yield from named_places(text)
    elif isinstance(thing, np.memmap) and thing.filename is not None:
        yield Path(thing.filename)
    elif _is(thing, "h5py", "Dataset"):
        yield Path(thing.file.filename)
    elif _is(thing, "zarr", "Array") or _is(thing, "zarr", "Group"):
        yield from _of_zarr(thing.store_path.store, thing.store_path.path)
    elif _is(thing, "tensorstore", "TensorStore"):
        path = thing.spec().to_json().get("kvstore", {}).get("path")
        if isinstance(path, str):
            yield from named_places(path)


def _is(thing: Any, library: str, kind: str) -> bool:
    """Tell whether something is of a library's kind; whoever holds one has loaded it."""
    loaded = sys.modules.get(library)
    return loaded is not None and isinstance(thing, getattr(loaded, kind))


def _of_zarr(store: Any, path: str) -> Iterator[Place]:
    """Yield where a store of zarr's lies, or what is at a path in it."""
    root = getattr(store, "root", None)
    if isinstance(root, Path):
        yield root / path
    elif isinstance(found := getattr(store, "path", None), str | Path):  # a zip, or fsspec's
        protocol = getattr(getattr(store, "fs", None), "protocol", ())
        protocol = protocol if isinstance(protocol, str) else next(iter(protocol), "file")
        text = str(found) if protocol in ("file", "local") else f"{protocol}://{found}"
        yield from named_places(f"{text.rstrip('/')}/{path}" if os.path.isdir(text) or is_address(text) else text)  # noqa: PTH112
    inner: Any = getattr(store, "store", None)  # obstore's, or what another store wraps
    if hasattr(inner, "prefix"):
        bucket = dict(getattr(inner, "config", {})).get("bucket")
        scheme = {"S3Store": "s3", "GCSStore": "gs"}.get(type(inner).__name__)
        if bucket and scheme:
            prefix = str(inner.prefix or "").strip("/")
            yield ObjectPlace(f"{scheme}://{bucket}", "/".join(filter(None, (prefix, path))))
        elif type(inner).__name__ == "LocalStore" and inner.prefix is not None:
            yield Path(str(inner.prefix)) / path
    store = getattr(store, "_store", None)
    if store is not None:
        yield from _of_zarr(store, path)


def _parts(thing: Any) -> Iterable[Any]:
    """Return what something consists of, where that may lead to where it lies."""
    if isinstance(thing, np.ndarray):
        return (thing.base,)
    if isinstance(thing, Mapping):
        return list(thing.values()) if type(thing).__module__.partition(".")[0] != "dask" else _fields(thing)
    if isinstance(thing, list | tuple | set | frozenset):
        return thing
    if isinstance(thing, partial):
        return (*thing.args, *thing.keywords.values())
    if _is(thing, "zarr", "Array") or not type(thing).__module__.startswith(_LIBRARIES):
        return ()
    return _fields(thing)


def _fields(thing: Any) -> list[Any]:
    """Return the values of an object's fields, without asking it for any that it would compute."""
    slots = (name for kind in type(thing).__mro__ for name in _slots(kind))
    found = list(getattr(thing, "__dict__", {}).values())
    for name in slots:
        try:
            found.append(object.__getattribute__(thing, name))
        except AttributeError:
            continue
    return found


def _slots(kind: type) -> Iterable[str]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else slots
