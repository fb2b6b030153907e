"""Find the files that an input lies in, and keep them apart from what a command writes, before anything is touched.

Nobody but who made an array knows all that it is computed from. So an array is searched for what is known to lie
somewhere: memory maps, zarr and HDF5 arrays, paths. Graphs of dask and arrays of xarray are looked through as far as
`MOST_LOOKED_AT` objects.

All that a command reads (its input, labels, job file, ...) is compared with all that it writes: folders that it makes
or replaces (an output, its labels, their ledgers), and files (a report, a picture, a saved job). Two paths are the same
where they lead to the same file or folder, however they are spelt; one lies in another where that holds for a folder on
the way to it.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from isovoxel.errors import AddressError, OptionError, OutputError
from isovoxel.object_store.files import N5_ATTRIBUTES, TOP
from isovoxel.object_store.objects import ObjectPlace, Place, is_address, place_of
from isovoxel.output.destination import output_place
from isovoxel.output.ledger import ledger_for
from isovoxel.output.provenance import LABELS, Membership, membership_of
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
            yield Path(local)
            if os.path.isdir(local):  # noqa: PTH112 - text of a user's
                yield from _links_in(Path(local))
        elif file and os.path.lexists(file):
            yield Path(file)
        elif glob.has_magic(local):
            yield from map(Path, glob.iglob(local, recursive=True))  # noqa: PTH207 - a pattern from a user
    except (OSError, ValueError):  # which is said where it is opened
        return


def _links_in(path: Path) -> Iterator[Path]:
    """Yield links in a folder: slices, or levels and what lies directly in them."""
    folders = [path]
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


@dataclass
class Named:
    """A file or folder that a command reads or writes, and what it is to the command; it need not be there."""

    what: str
    """"input", "labels", "output", "report", ..."""
    place: Place
    """Where it is, by whatever path."""

    def __post_init__(self) -> None:
        # unlike Path.resolve, this survives links that go round in circles
        try:
            self._path = None if isinstance(self.place, ObjectPlace) else Path(os.path.realpath(self.place))
        except FileNotFoundError:
            raise OptionError(
                f"the {self.what} {self.place} cannot be found: the working folder was deleted; change to another one"
            ) from None
        self._parents = () if self._path is None else tuple(self._path.parents)
        self._identity = _identity(self._path)
        self._above = dict.fromkeys(filter(None, map(_identity, self._parents)))

    def lies(self, other: Named) -> str:
        """Return whether this is the other ("there"), or lies in it ("inside"); nothing where neither."""
        if isinstance(self.place, ObjectPlace) and isinstance(other.place, ObjectPlace):
            if self.place == other.place:
                return "there"
            return "inside" if self.place.is_relative_to(other.place) else ""
        if self._path is None or other._path is None:
            return ""
        if self._path == other._path or (self._identity is not None and self._identity == other._identity):
            return "there"
        return "inside" if other._path in self._parents or other._identity in self._above else ""


def read_as(what: str, source: Any, volume: Volume | None = None) -> list[Named]:
    """Return where an input lies, as far as that can be told: files, folders and places in object stores.

    Parameters
    ----------
    what
        What it is to the command.
    source
        What the user gave for it.
    volume
        The input, where it is open.
    """
    found: list[Place] = []
    if isinstance(source, str | os.PathLike):
        found += named_places(os.fsdecode(source))
    elif source is not None and not isinstance(source, Volume):
        found += _held(source)
    if volume is not None or isinstance(source, Volume):
        identity = (source if volume is None else volume).identity
        further = identity.get("files", ())  # of slices it is their number, and their path a pattern or a folder
        for each in (identity, *(further if isinstance(further, list) else ())):
            if isinstance(path := each.get("path"), str):
                found += named_places(path)
    return [Named(what, place) for place in dict.fromkeys(found)]


def folders_of(output: str | os.PathLike[str], labels: str | None = None) -> list[Named]:
    """Return the folders that a job makes or replaces: an output and its ledger, and those of its labels.

    Parameters
    ----------
    output
        The output.
    labels
        What its labels are called, if there are any.

    Raises
    ------
    OutputError, AddressError
        If there can be no such output.
    """
    place = output_place(output)
    store = membership_of(place)
    found = [Named("output", place), Named(_LEDGER, ledger_for(place, store))]
    if labels is not None:
        groups = (place, *(store.groups if store is not None else ()))
        of_labels = Membership(place / LABELS / labels, groups, (), store.zarr_format if store is not None else 3)
        found.append(Named(_LEDGER, of_labels.ledger))  # the labels themselves lie in the output
    return found


def check_apart(read: Sequence[Named], folders: Sequence[Named] = (), files: Sequence[Named] = ()) -> None:
    """Raise where a command would write over what it reads, or one thing that it writes over another.

    Parameters
    ----------
    read
        What it reads.
    folders, files
        What it writes.

    Raises
    ------
    OutputError
        If something that is written is something that is read, or one lies in the other.
    OptionError
        If a file that is written lies in an output, or two are the same.
    """
    for folder, source in product(folders, read):
        _check_folder(folder, source)
    for file, source in product(files, read):
        _check_file(file, source)
    for file, folder in product(files, folders):
        if file.lies(folder):
            raise OptionError(
                f"the {file.what} {file.place} must not lie inside of the output {folder.place}; give another place"
            )
    for one, other in combinations(files, 2):
        if one.lies(other) == "there":
            raise OptionError(
                f"{one.place} would be the {one.what} and the {other.what}; give one of them another name"
            )


def _check_file(file: Named, source: Named) -> None:
    """Refuse a file to be written that is an input, or would lie in a zarr that is one."""
    where = file.lies(source)
    if where == "there":
        raise OutputError(
            f"the {file.what} {file.place} is the {source.what} itself; give the {file.what} another name"
        )
    home = source.place
    if (
        where and isinstance(home, Path) and any((home / name).is_file() for name in (*TOP, N5_ATTRIBUTES))
    ):  # a zarr, in which nothing else should lie
        raise OutputError(
            f"the {file.what} {file.place} lies inside the {source.what} {source.place}; give another place"
        )


_LEDGER = "ledger"


def _check_folder(folder: Named, source: Named) -> None:
    """Refuse an output, or its ledger, that is an input, holds one, or lies in one."""
    if folder.what == _LEDGER:
        if source.lies(folder):
            raise OutputError(
                f"the {source.what} {source.place} lies in {folder.place}, where isovoxel keeps what is done of the "
                "output; move it, or give another output"
            )
        return
    where = folder.lies(source)
    if where == "there":
        raise OutputError(f"{folder.place} is the {source.what} itself; give another output")
    if source.lies(folder):
        raise OutputError(
            f"the {source.what} {source.place} lies inside the output {folder.place}; give another output"
        )
    if where:
        raise OutputError(
            f"the output {folder.place} lies inside the {source.what} {source.place}; give another output"
        )


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Return what tells a file or folder from all others of this machine, or None where there is none."""
    if path is None:
        return None
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None
