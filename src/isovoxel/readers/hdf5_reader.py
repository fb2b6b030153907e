"""Read boxes from the chunks of an HDF5 dataset, decoded outside of HDF5, which lets one thread in at a time.

Chunk by chunk in the thread that reads:

1. HDF5 is asked where a chunk lies in the file; that is all that needs its lock.
2. The bytes are read and decoded here, so that threads do it side by side, and into a buffer of the chunk's size,
   whatever the bytes claim: HDF5's own gzip filter makes room for as much as comes.

Filters that are not known here (szip, blosc and other plug-ins) are HDF5's: then threads decode one at a time. Its
chunk cache is off, for a read wants each chunk once, and every open file would have one.

HDF5 has integers of which only some bits count, bit fields, floats of any form and enumerations. A dataset's bytes are
voxels only where its type is one of NumPy's, bit for bit. BigDataViewer stores uint16 as int16, and says so nowhere.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.grid import Box, Index3
from isovoxel.metadata.hdf5 import text_of
from isovoxel.readers.base import CONVERTED, SUPPORTED_DTYPES
from isovoxel.readers.chunks import CHUNK_COST, ChunkCache, decode_nothing, decode_zlib
from isovoxel.readers.files import number_of, reason_of, unavailable, unreadable
from isovoxel.readers.raw import open_file, read_into
from isovoxel.readers.selection import Picked
from isovoxel.readers.tiled import TiledReader, chunk_place, chunk_start

if TYPE_CHECKING:
    import h5py

GZIP, SHUFFLE, CHECKSUM, LZF = 1, 2, 3, 32000
"""HDF5's numbers of the filters that are undone here."""

DECODED_COPIES = 5
"""How many times a decoded chunk is held at most: as zlib collects it, twice; unshuffled; in native byte order; cut."""

FIXED_BYTES = 1 << 20
"""What HDF5 holds for an open file and a selection."""

ROWS_BYTES = 1 << 22
"""Of a dataset that is not chunked and that HDF5 reads, so much is read in one go."""

CHECKSUM_BYTES = 4
"""Bytes of HDF5's Fletcher checksum, which follows the encoded chunk."""


DAMAGED = ("truncated", "signature", "superblock", "object header", "checksum", "b-tree", "heap", "address overflow")
"""What HDF5 says of a file that is not whole, in small letters."""

OPEN_FOR_WRITING = "is open for writing; close it where it is written, or open it there with mode 'r'"
"""Whether in this process, or in another: what is not yet in the file is not read from it."""


class OpenForWritingError(OSError):
    """A file that this process has open for writing."""


def open_for_reading(path: str) -> h5py.File:
    """Open an HDF5 file, without a lock, which not every file system has.

    Where this process has it open already, with locks, HDF5 wants the same of everybody.

    Raises
    ------
    OpenForWritingError
        If this process has it open for writing.
    OSError
        If HDF5 cannot open it.
    """
    import h5py

    file = None
    for locking in (False, None, True):
        try:
            file = h5py.File(path, "r", rdcc_nbytes=0, locking=locking)
            break
        except OSError as error:
            if "flag values don't match" not in str(error) or locking is True:
                raise
    assert file is not None  # noqa: S101 - for type checkers
    if file.id.get_intent() & h5py.h5f.ACC_RDWR:
        file.close()
        raise OpenForWritingError(OPEN_FOR_WRITING)
    return file


def _why_not(name: str, error: OSError) -> InputError:
    """Return the one-sentence error for a file that HDF5 does not open."""
    said = str(error)
    if isinstance(error, OpenForWritingError):
        return InputError(f"{name} {OPEN_FOR_WRITING}")
    if "h5clear" in said:
        return InputError(
            f"{name} {OPEN_FOR_WRITING}; where its writer has died, h5clear -s {name} takes the mark from it"
        )
    if number_of(error) is None and any(word in said.lower() for word in DAMAGED):
        return InputError(f"{name} cannot be read as HDF5: {reason_of(error)}; copy or write it again")
    return unreadable(name, "HDF5", error)


def open_unlocked(path: Path, name: str) -> h5py.File:
    """Open an HDF5 file that no process has locked for writing, as HDF5 does where it can; see `open_for_reading`.

    Raises
    ------
    InputError
        If HDF5 cannot open it, or it is open for writing.
    """
    locked = False
    with contextlib.suppress(ImportError, OSError):  # Windows, and file systems without locks
        import fcntl

        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                locked = True
    try:
        if locked:
            raise OpenForWritingError(OPEN_FOR_WRITING)
        return open_for_reading(str(path.resolve()))
    except OSError as error:
        raise _why_not(name, error) from error


_LIBRARY = ("not registered", "plugin", "plug-in", "allocat")
"""What HDF5 says where a filter is not installed any more, or memory has run out."""


@dataclass(frozen=True)
class Hdf5Reader(TiledReader):
    """Reads boxes of an HDF5 dataset; safe to call from many threads."""

    name: str
    """What the user called the input, for messages."""
    path: str
    """The file, absolute."""
    dataset: str
    """Path of the dataset in the file."""
    picked: Picked
    """Which of its axes are z, y and x; all others have length 1."""
    shape: Index3
    """Number of voxels, z, y, x; the array may be larger."""
    dtype: np.dtype[Any]
    """Data type in the file, with its byte order."""
    chunk: Index3
    """Voxels that are decoded in one go; where nothing is encoded, as many as are read in one go."""
    filters: tuple[int, ...] | None
    """Its filters in the order of encoding, where they are undone here; None where HDF5 undoes them."""
    fill: float
    """Value of the voxels of chunks that are not stored."""
    whole: Index3
    """Number of the array's voxels, z, y, x."""
    cache: ChunkCache | None = None
    """Keeps decoded chunks; None where none are kept."""

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return math.prod(self.chunk) * self.dtype.itemsize

    @property
    def encoded_limit(self) -> int:
        """Most bytes that a chunk may be encoded in."""
        return self.chunk_bytes + self.chunk_bytes // 8 + (1 << 16)

    @property
    def overhead(self) -> int:
        """Largest number of bytes held beside the returned array."""
        return self.encoded_limit + DECODED_COPIES * self.chunk_bytes + FIXED_BYTES

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[h5py.Dataset, NDArray[np.uint8]]]:
        """Open the dataset, and make a buffer for one decoded chunk."""
        try:
            with open_for_reading(self.path) as file:
                yield file[self.dataset], np.empty(0 if self.filters is None else self.chunk_bytes, np.uint8)
        except (OSError, KeyError) as error:
            # KeyError: the file is another by now.
            if isinstance(error, InputError):
                raise
            raise self._unreadable(error) from error

    def read_tile(self, tile: Box, out: NDArray[Any], source: tuple[h5py.Dataset, NDArray[np.uint8]]) -> None:
        """Read a part of a chunk, decoded here or by HDF5."""
        if self.filters is None:
            # Integers of one size, for the type that is meant need not be the one that is stored.
            out[...] = source[0][self.picked.index(tile.slices)].astype(out.dtype, copy=False)
        else:
            self._read_chunk(*source, tile, out)

    def cached(self, capacity: int) -> Hdf5Reader:
        """Return a reader of the same dataset that keeps at most so many bytes of decoded chunks."""
        slots = capacity // (self.chunk_bytes + CHUNK_COST)
        return replace(self, cache=ChunkCache(slots, lambda: np.empty(self.chunk_bytes, np.uint8)))

    def _read_chunk(self, dataset: h5py.Dataset, scratch: NDArray[np.uint8], tile: Box, out: NDArray[Any]) -> None:
        place = chunk_place(tile, self.chunk)
        start = chunk_start(place, self.chunk)
        there = tile.slices_from(start)

        def decode(buffer: NDArray[np.uint8]) -> bool:
            with self.failures_of(tile):  # to other threads too that wait for the chunk
                return self._decode_chunk(dataset, start, buffer)

        if self.cache is None:
            out[...] = scratch.view(self.dtype).reshape(self.chunk)[there] if decode(scratch) else self.fill
            return
        with self.cache.decoded(place, decode, scratch) as kept:
            out[...] = self.fill if kept is None else kept.view(self.dtype).reshape(self.chunk)[there]

    def _decode_chunk(self, dataset: h5py.Dataset, start: Index3, out: NDArray[np.uint8]) -> bool:
        """Decode a chunk into its bytes, or return False where it is not stored."""
        where = dataset.id.get_chunk_info_by_coord(self.picked.index(start))
        if where.byte_offset is None:
            return False
        if self.filters and where.size == out.size and not where.filter_mask:
            inside = Box.whole(self.chunk).shifted(start) & Box.whole(self.whole)
            if inside.shape != self.chunk:
                # Written as it is, perhaps, for HDF5 can be told to encode whole chunks only, and its mask does not
                # say so: HDF5 decodes it, as far as the array reaches.
                voxels = out.view(self.dtype).reshape(self.chunk)
                voxels[inside.slices_from(start)] = dataset[self.picked.index(inside.slices)]
                return True
        self._decode(where, out)
        return True

    def _decode(self, where: Any, out: NDArray[np.uint8]) -> None:
        """Read the bytes of a chunk, and undo its filters but those that its mask leaves out."""
        filters = [code for bit, code in enumerate(self.filters or ()) if not where.filter_mask >> bit & 1]
        if where.size > self.encoded_limit:
            raise ValueError(f"its {where.size} encoded bytes are more than any chunk of {out.size} bytes takes")
        encoded = np.empty(where.size, np.uint8)
        with open_file(self.name, self.path) as file:
            read_into(file, where.byte_offset, encoded, self.name)
        if CHECKSUM in filters:
            encoded = _checked(encoded)
        if GZIP in filters:
            decode_zlib(encoded, out)
        elif LZF in filters:
            _decode_lzf(encoded, out)
        else:
            decode_nothing(encoded, out)
        if SHUFFLE in filters and self.dtype.itemsize > 1:
            from numcodecs import Shuffle

            Shuffle(self.dtype.itemsize).decode(out.copy(), out)  # 25 times faster than NumPy's transpose

    def is_damage(self, error: Exception) -> bool:
        """Return whether HDF5 does not say that it lacks something."""
        return not any(word in str(error).lower() for word in _LIBRARY)

    def _unreadable(self, error: Exception) -> InputError:
        what = f"{self.name} can no longer be read"
        if isinstance(error, OpenForWritingError):
            return InputError(f"{self.name} {OPEN_FOR_WRITING}")
        if isinstance(error, OSError) and number_of(error) is not None:
            return unavailable(what, error)
        return InputError(f"{what}: {reason_of(error)}")


def known_filters(codes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the filters of a dataset if they are undone here, else None.

    Examples
    --------
    >>> known_filters((SHUFFLE, GZIP))
    (2, 1)
    >>> known_filters((4,)) is None
    True
    """
    rest = list(codes)
    for group in ((SHUFFLE,), (GZIP, LZF), (CHECKSUM,)):
        if rest and rest[0] in group:
            rest.pop(0)
    return None if rest else codes


def _checked(encoded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the bytes before their checksum, which must be right."""
    from numcodecs.fletcher32 import Fletcher32

    if encoded.size < CHECKSUM_BYTES:
        raise ValueError(f"its {encoded.size} bytes are no chunk with a checksum")
    content, stored = encoded[:-CHECKSUM_BYTES], encoded[-CHECKSUM_BYTES:].tobytes()
    made = bytes(Fletcher32().encode(content))[-CHECKSUM_BYTES:]
    # HDF5 before 1.6.3 swapped the bytes of each half, and HDF5 takes either.
    if stored not in (made, made[1::-1] + made[:1:-1]):
        raise ValueError("it does not have the checksum that was stored with it")
    return content


def _decode_lzf(encoded: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    import imagecodecs

    made = imagecodecs.lzf_decode(encoded.tobytes(), out=out.size)
    if len(made) != out.size:
        raise ValueError(f"it decodes to {len(made)} bytes instead of {out.size}")
    out[...] = np.frombuffer(made, np.uint8)


# ---- data types ----------------------------------------------------------------------------------------------------


_CELLS = re.compile(r"/t\d{5,}/(s\d{2,})/\d+/cells")
"""Path of a BigDataViewer image; the setup's attributes lie in a group of its own, whose name is in brackets."""


def stored_dtype(dataset: h5py.Dataset, name: str) -> np.dtype[Any]:
    """Return the data type that the voxels of a dataset mean, in the byte order of the file.

    Raises
    ------
    InputError
        If there is no way to read its type, or BigDataViewer says of it what cannot be.
    """
    import h5py

    stored = np.dtype(dataset.dtype)
    bare = np.dtype(stored.str) if stored.kind in "iuf" else stored  # of an enumeration, the numbers
    if (
        bare.newbyteorder("=") in (*SUPPORTED_DTYPES, *CONVERTED)
        and h5py.h5t.find(_type_of(dataset), h5py.h5t.py_create(bare)) is None
    ):
        kind = dataset.id.get_type()
        what = "a bit field" if kind.get_class() == h5py.h5t.BITFIELD else "numbers of a kind"
        raise InputError(f"{name} holds {what} that HDF5 does not convert; write it as {bare.newbyteorder('=')}")
    cells = _CELLS.fullmatch(dataset.name)
    return bare if cells is None else _declared(dataset, cells[1], bare, name)


def has_plain_type(dataset: h5py.Dataset) -> bool:
    """Return whether a dataset's bytes, decoded, are its voxels: all bits of whole numbers, or IEEE's floats."""
    import h5py

    own = np.dtype(np.dtype(dataset.dtype).str)
    # h5py stores bool as an enumeration of bytes.
    return bool(_type_of(dataset) == h5py.h5t.py_create(np.dtype(np.int8) if own.kind == "b" else own))


def as_declared(value: Any, stored: np.dtype[Any], declared: np.dtype[Any]) -> Any:
    """Return a number of the type that is stored as the one that its bits mean."""
    native = np.asarray(value).astype(stored.newbyteorder("="))
    return native.view(declared.newbyteorder("="))[()]


def _type_of(dataset: h5py.Dataset) -> Any:
    import h5py

    kind = dataset.id.get_type()
    return kind.get_super() if kind.get_class() == h5py.h5t.ENUM else kind


def _declared(dataset: h5py.Dataset, setup: str, stored: np.dtype[Any], name: str) -> np.dtype[Any]:
    """Return what BigDataViewer says of its voxels, which without a word are uint16."""
    group = dataset.file.get(setup)
    says = text_of(group.attrs.get("dataType")) if group is not None else ""
    declared = _named(says) if says else np.dtype(np.uint16) if stored.kind + str(stored.itemsize) == "i2" else stored
    same = declared is not None and declared.itemsize == stored.itemsize
    if declared is None or not same or (declared.kind == "f") != (stored.kind == "f"):
        raise InputError(
            f"{name} contradicts itself: BigDataViewer's dataType of /{setup} is {says[:40]!r}, but the dataset holds "
            f"{stored.newbyteorder('=')}"
        )
    return declared.newbyteorder(">" if stored.str.startswith(">") else "<")


def _named(text: str) -> np.dtype[Any] | None:
    """Return the data type of a name such as "uint16", or None where it is no number's."""
    try:
        found = np.dtype(text.lower())
    except TypeError:
        return None
    return found if found.kind in "iuf" else None
