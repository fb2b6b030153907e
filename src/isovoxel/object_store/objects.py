"""`ObjectPlace`: an object, or all objects whose keys begin alike, in a store reached by address.

An `ObjectPlace` has those of `pathlib.Path`'s methods that reading metadata takes, so that code which reads a zarr need
not know where it lies; and what an output takes beside them. An object is there whole or not at all, and never changed
in part. A "folder" is nothing but a beginning that keys share. Everything is asked by the retry policy
(`isovoxel.object_store.retries`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import AddressError
from isovoxel.object_store.clients import (
    READ_ONLY,
    ChangedError,
    Found,
    Version,
    client,
    found_of,
    is_read_only,
    sought,
    told,
    version_of,
)
from isovoxel.object_store.retries import carried, interruptible, is_transient, retry

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, PutMode, PutResult


T = TypeVar("T")

PART_BYTES = 8 << 20
"""Bytes of one part of a large object on its way to the store."""
PARTS_AT_ONCE = 2
"""Parts of one object that are on their way at the same time, each held in memory."""
PIECE_BYTES = 1 << 20
"""Bytes that are received before they are passed on."""
LARGEST_METADATA = 64 << 20
"""Most bytes that are taken for metadata; what is longer is none."""
CHANGES = 8
"""How often another process may change an object while it is put, which none should."""
LISTED = 1000
"""Objects that are listed, or deleted, by one request: as many as S3 allows."""


@dataclass(frozen=True)
class ObjectPlace:
    """A place in an object store. It holds no client and no credentials, so it can be sent to other processes."""

    root: str
    """The store, as `isovoxel.object_store.objects.Address` has it."""
    key: str
    """Path in it."""

    def __str__(self) -> str:
        key = quote(self.key) if self.read_only else self.key
        return f"{self.root}/{key}" if key else self.root

    def __truediv__(self, name: str) -> ObjectPlace:
        return ObjectPlace(self.root, f"{self.key}/{name}" if self.key else name)

    @property
    def name(self) -> str:
        """The last part of the path; empty for a bucket."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> ObjectPlace:
        """The place that this one lies in; a bucket's is the bucket."""
        return ObjectPlace(self.root, self.key.rpartition("/")[0])

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written there."""
        return is_read_only(self.root)

    @property
    def sought(self) -> str:
        """Where credentials are looked for, as a clause without any of their values."""
        return sought(self.root)

    def with_name(self, name: str) -> ObjectPlace:
        """Return the place beside this one that has another name."""
        return self.parent / name

    def resolve(self) -> ObjectPlace:
        """Return this place: addresses are absolute."""
        return self

    def is_relative_to(self, other: ObjectPlace) -> bool:
        """Return whether this is the other place, or lies in it."""
        return self.root == other.root and f"{self.key}/".startswith(other.key and f"{other.key}/")

    # ---- reading ---------------------------------------------------------------------------------------------

    def is_file(self) -> bool:
        """Return whether there is an object; one that may not be seen counts as none, as stores answer either way."""
        client(self.root)  # without credentials, the store has not been asked
        try:
            return bool(self.key) and self.find() is not None
        except PermissionError:
            return False

    def is_dir(self) -> bool:
        """Return whether objects lie in here."""
        return next(self.walk(), None) is not None

    def find(self) -> Found | None:
        """Return what the store knows of the object, or None where there is none.

        Raises
        ------
        OSError
            If the store cannot be asked, or does not say.
        """
        import obstore

        def head() -> Found | None:
            try:
                return found_of(obstore.head(client(self.root), self.key))
            except FileNotFoundError:
                return None

        return self._ask(partial(interruptible, head))

    def read_bytes(self) -> bytes:
        """Return what a small object holds.

        Raises
        ------
        OSError
            If it cannot be read, or is no small one.
        """
        return self.read()[0]

    def read(self) -> tuple[bytes, Found]:
        """Return what a small object holds, and what the store knows of that object."""
        return retry(self._read)  # of another one, where it was replaced between two attempts

    def _read(self) -> tuple[bytes, Found]:
        body = self.get()
        if body.found.size > LARGEST_METADATA:
            raise OSError(errno.EFBIG, f"its {body.found.size} bytes are too many for metadata")
        data = np.empty(body.found.size, np.uint8)
        body.read_into(data)
        return data.tobytes(), body.found

    def read_text(self) -> str:
        """Return what a small object holds, as text."""
        return self.read_bytes().decode()

    def checksum(self) -> int:
        """Return the CRC-32 of the object, of which little is held at a time.

        Raises
        ------
        OSError
            If it cannot be read.
        """
        return retry(self._checksum, _may_pass)

    def _checksum(self) -> int:
        crc = 0
        body = self.get()
        with self.told():
            for piece in body.pieces():
                crc = zlib.crc32(bytes(piece), crc)
        return crc

    def read_part(self, offset: int, out: NDArray[Any], of: Found | None = None) -> None:
        """Fill a one-dimensional array of bytes with those from `offset` on.

        Parameters
        ----------
        offset
            First byte.
        out
            Where they go.
        of
            Which object it must be; by default, whichever has the name.

        Raises
        ------
        ChangedError
            If it is another by now.
        ValueError
            If it ends too early.
        OSError
            If it cannot be read.
        """
        body = self.get((offset, offset + out.size), of)
        body.read_into(out)
        if of is not None and body.found.tag != of.tag:
            raise ChangedError(errno.ESTALE, "it has been changed meanwhile")

    def get(self, part: tuple[int, int] | None = None, of: Found | None = None) -> Body:
        """Ask for an object or a part of it, and return what the store knows of it, with the bytes still to come.

        Parameters
        ----------
        part
            First byte and first one beyond.
        of
            Which object it must be.
        """
        return Body(self, part, of)

    def iterdir(self) -> Iterator[ObjectPlace]:
        """Yield what lies in here, folders and objects, as a folder would."""
        import obstore

        ask = partial(obstore.list_with_delimiter, client(self.root), self._inside)
        listed = self._ask(lambda: interruptible(ask))
        for key in [*listed["common_prefixes"], *(found["path"] for found in listed["objects"])]:
            yield ObjectPlace(self.root, key)

    def walk(self) -> Iterator[tuple[str, Found]]:
        """Yield all objects in here, however deep: their path from here, and what the store knows of them."""
        import obstore

        listing: Any = None
        last: str | None = None

        def batch() -> Any:
            nonlocal listing
            if listing is None:
                listing = obstore.list(client(self.root), self._inside, offset=last, chunk_size=LISTED)
            try:
                return next(listing, None)
            except Exception:
                listing = None  # after a page that failed there comes no other one
                raise

        skipped = len(self._inside or "")
        while (found := self._ask(partial(interruptible, batch))) is not None:
            for meta in found:
                last = meta["path"]
                yield last[skipped:], found_of(meta)

    @property
    def _inside(self) -> str | None:
        """What the keys of all objects in here begin with; None where that is nothing."""
        return f"{self.key}/" if self.key else None

    # ---- writing ---------------------------------------------------------------------------------------------

    def write(self, data: bytes, *, new: bool = False, of: Version | None = None) -> Version:
        """Write a small object, and return its version.

        Parameters
        ----------
        data
            What it shall hold.
        new
            Whether there must be none yet.
        of
            Version of the object that must be there, to be replaced.

        Raises
        ------
        FileExistsError
            If it must be new, and is not.
        ChangedError
            If it must be a certain one, and is not.
        OSError
            If it cannot be written; what was there before still is.
        """
        import obstore

        mode: PutMode = "create" if new else "overwrite"
        if of is not None:
            mode = {"e_tag": of.etag} if of.generation is None else {"e_tag": of.etag, "version": of.generation}

        def put() -> PutResult:
            return obstore.put(client(self.root), self.key, data, mode=mode, use_multipart=False)

        return version_of(self._ask(put, new=new))

    def upload(self, file: Path, check: Callable[[], None] = lambda: None) -> str:
        """Make an object of a file, however large, and return its tag.

        `PARTS_AT_ONCE` parts of it are held, and one that is being read. It appears whole or not at all.

        Parameters
        ----------
        file
            What it shall hold.
        check
            Raises where nothing may be put there any more. A small object is put on the condition that none is there,
            and then that it is the one that was there before `check` said nothing; a large one is given up where
            `check` raises after its last part was read.
        """
        import obstore

        check()
        if file.stat().st_size <= PART_BYTES:
            return self._put_if_unchanged(file.read_bytes(), check)

        asked = carried(check)

        def pieces() -> Iterator[bytes]:
            with file.open("rb", buffering=0) as whole:
                while piece := whole.read(PIECE_BYTES):
                    yield piece
            with ThreadPoolExecutor(1) as other:  # for here, within a request of obstore's, none can be made
                other.submit(asked).result()

        def put() -> PutResult:
            how: Any = {"chunk_size": PART_BYTES, "max_concurrency": PARTS_AT_ONCE}
            return obstore.put(client(self.root), self.key, pieces(), **how)

        return version_of(self._ask(put)).etag or ""

    def _put_if_unchanged(self, data: bytes, check: Callable[[], None]) -> str:
        """Put a small object; where another process has changed it meanwhile, call `check` again and retry."""
        found: Found | None = None
        for _ in range(CHANGES):
            try:
                return self.write(data, new=found is None, of=found and found.version).etag or ""
            except (FileExistsError, ChangedError):
                found = self.find()
                check()
        raise ChangedError(errno.EAGAIN, f"it was changed {CHANGES} times while it was put")

    def unlink(self) -> None:
        """Delete the object, if there is one."""
        with contextlib.suppress(FileNotFoundError):  # S3 does not say so, others do
            self._ask(partial(self._delete, self.key))

    def delete_tree(self) -> None:
        """Delete all objects in here."""
        found = (self / path for path, _ in self.walk())
        while batch := list(itertools.islice(found, LISTED)):
            keys = [place.key for place in batch]
            try:
                self._ask(partial(self._delete, keys))
            except FileNotFoundError:  # another process has deleted it, or the answer to an earlier attempt was lost
                for place in batch:
                    place.unlink()

    def _delete(self, keys: str | list[str]) -> None:
        import obstore

        obstore.delete(client(self.root), keys)

    def _ask(self, do: Callable[[], T], *, new: bool = False) -> T:
        """Ask the store, by the retry policy."""

        def once() -> T:
            with self.told(new=new):
                return do()

        return retry(once, _may_pass)

    def told(self, *, new: bool = False) -> AbstractContextManager[None]:
        """Raise in our words what fails inside; see `isovoxel.object_store.clients`."""
        if not self.key and self.read_only:
            raise AddressError(f"{self} names a server and nothing on it; give the address of a zarr")
        client(self.root)  # which may be what fails
        return told(self.root, new=new)


class Body:
    """An object, or a part of one, that is on its way: what is not asked for is not received.

    Parameters
    ----------
    place
        Where it comes from.
    part
        First byte and first one beyond; None for all of it.
    of
        Which object it must be; None for whichever has the name.
    """

    def __init__(self, place: ObjectPlace, part: tuple[int, int] | None = None, of: Found | None = None) -> None:
        self._place, self._part = place, part
        self._got: GetResult | None = None
        self.found = retry(lambda: self._ask(of), _may_pass)
        """What the store knows of the whole object."""

    def _ask(self, of: Found | None) -> Found:
        import obstore

        options: GetOptions = {} if self._part is None else {"range": self._part}
        if of is not None and of.etag:
            options["if_match"] = of.etag
        place = self._place
        with place.told():
            self._got = interruptible(lambda: obstore.get(client(place.root), place.key, options=options))
        return found_of(self._got.meta)

    def pieces(self) -> Iterator[Any]:
        """Yield the bytes as they come, a piece at a time; raises as obstore does."""
        if self._got is None:  # an attempt at receiving them has failed
            self._ask(self.found)
        got, self._got = self._got, None
        assert got is not None  # noqa: S101 - for type checkers
        yield from got.stream(min_chunk_size=PIECE_BYTES)

    def read_into(self, out: NDArray[np.uint8]) -> None:
        """Fill an array; what a server sends beyond it is left.

        Raises
        ------
        OSError
            If the bytes do not come, or not all of them.
        """
        retry(lambda: self._receive(out), _may_pass)

    def _receive(self, out: NDArray[np.uint8]) -> None:
        filled = 0
        with self._place.told():
            for piece in self.pieces():
                data = memoryview(piece)[: out.size - filled]
                out.data[filled : filled + len(data)] = data
                filled += len(data)
        if filled < out.size:
            raise OSError(errno.ETIMEDOUT, f"{self._place.root} sends {out.size - filled} bytes too few of an object")


def _may_pass(error: Exception) -> bool:
    """Return whether asking the same once more may help: not where another object is there than the one meant."""
    return is_transient(error) and not isinstance(error, ChangedError)


# ---- addresses ---------------------------------------------------------------------------------------------------

# Addresses of object stores and local paths, parsed from what a user gives, and shown without secrets.
#
# An address names a scheme, a bucket or host, and a path: "s3://bucket/volumes/a.zarr". Whatever stands in it ends up
# in plans, logs and the attributes of outputs. So credentials have no place there: an address that carries a password
# or a signature is refused, without repeating it.


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
