"""Directories of a TIFF: where each lies, how its page is stored, and where its strips or tiles are.

tifffile reads the tags of few pages and takes the others to be stored alike. Here every directory is read once, and of
each page the tags that say how it is stored are compared with those that were met before: equal ones get one number.
The places of strips and tiles stay as bytes until they are asked for. So 100,000 pages take a second and few megabytes.

Source: TIFF 6.0 (https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf), section 2; BigTIFF
(https://www.awaresystems.be/imaging/tiff/bigtiff.html).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError

SUBFILE, PHOTOMETRIC, ORIENTATION, LERC = 254, 262, 274, 50674

_STORED = frozenset(
    (
        *(SUBFILE, 255, 256, 257, 258, 259, PHOTOMETRIC, 266, ORIENTATION, 277, 278, 284, 292, 293, 317, 322, 323, 338),
        *(339, 512, 515, 530, 32997, 32998, 42113, LERC, *range(65001, 65010)),
    )
)
"""Tags that say how a page is stored: sizes, numbers, compression, predictor, order of bits, options of codecs."""

OFFSETS, COUNTS, TABLES = 0, 1, 2
_PLACES = {273: OFFSETS, 324: OFFSETS, 279: COUNTS, 325: COUNTS, 347: TABLES}
"""Tags that differ from page to page, and are not compared: where strips or tiles are, and tables of JPEG."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value of each of TIFF's types."""
_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
"""Those of them that count bytes."""

_LONGEST_VALUE = 1 << 16
_AT_ONCE = 512
"""Bytes that are read where a directory begins: most are shorter."""

Tags = tuple[tuple[int, int, int, bytes], ...]
"""Tags of a page: number, type, count and value of each."""


@dataclass(frozen=True)
class Directories:
    """What following a TIFF's directories from one to the next gives."""

    path: Path
    """The file."""
    order: str
    """Its byte order, "<" or ">"."""
    offsets: NDArray[np.int64]
    """Byte at which each directory begins."""
    stored: NDArray[np.int64]
    """Which of `tags` each page has."""
    tags: tuple[Tags, ...]
    """Every combination of tags that say how a page is stored."""
    places: NDArray[Any]
    """Type, count and value of the tags with the places of each page's strips or tiles, as they lie in the file."""
    broken_at: int | None
    """Where the next directory should be, but is not; None where the chain ends as it should."""

    def __len__(self) -> int:
        return len(self.offsets)

    def table(self, pages: NDArray[np.int64], of: int) -> NDArray[np.int64]:
        """Return the offsets, or the byte counts, of all strips or tiles of pages whose tags are alike.

        Raises
        ------
        InputError
            If a list of them is not in the file.
        """
        entry = self.places[pages[0], of]
        count, code = int(entry["count"]), _NUMBERS.get(int(entry["type"]))
        if not count or code is None:
            return np.empty((len(pages), 0), np.int64)
        dtype = np.dtype(self.order + code)
        values = np.ascontiguousarray(self.places["value"][pages, of])
        if count * dtype.itemsize <= values.itemsize:
            inline = values.view(np.uint8).reshape(len(pages), -1)[:, : count * dtype.itemsize]
            return np.ascontiguousarray(inline).view(dtype).astype(np.int64)
        where = values.view(f"{self.order}u{values.itemsize}").tolist()
        if count * dtype.itemsize > self.path.stat().st_size:
            raise self._no_places(int(pages[0]))
        table = np.empty((len(pages), count), np.int64)
        with self.path.open("rb") as file:
            for row, data in enumerate(_read_all(file, where, count * dtype.itemsize)):
                if data is None:
                    raise self._no_places(int(pages[row]))
                table[row] = np.frombuffer(data, dtype)
        return table

    def _no_places(self, page: int) -> InputError:
        return InputError(
            f"{self.path} is truncated: the list of strips or tiles of its page {page} is not in the file; "
            f"copy or write it again"
        )

    def jpeg_tables(self, pages: NDArray[np.int64]) -> list[bytes | None]:
        """Return the tables that the JPEG strips or tiles of each page share; equal ones are kept once."""
        found: list[bytes | None] = []
        kept: dict[bytes, bytes] = {}
        with self.path.open("rb") as file:
            for page in pages.tolist():
                _, count, value = self.places[page, TABLES].item()
                data = value[:count]
                if count > len(value):
                    where = int.from_bytes(value, "little" if self.order == "<" else "big")
                    data = next(_read_all(file, [where], min(count, _LONGEST_VALUE))) or b""
                found.append(kept.setdefault(data, data) or None)
        return found


def read_directories(path: Path) -> Directories:
    """Read all directories of a TIFF, which tifffile does not miss when a file ends early."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(16)
        order = "<" if header[:2] == b"II" else ">"
        big = header[2:4] in (b"+\0", b"\0+")
        start, number, field = (8, "Q", 8) if big else (4, "H", 4)
        reader = _Reader(file, order, field)
        begin = struct.calcsize(number)
        pointer = header[start : start + field]
        offsets: dict[int, None] = {}
        stored: list[int] = []
        kinds: dict[Tags, int] = {}
        places = bytearray()
        offset = struct.unpack(f"{order}{_OFFSET[field]}", pointer)[0] if len(pointer) == field else 0
        while offset:
            data = _read_at(file, offset, _AT_ONCE) if offset < size and offset not in offsets else b""
            if len(data) < begin:
                break
            count = struct.unpack_from(order + number, data)[0]
            length = begin + count * reader.entry + field
            if length > len(data):
                data = _read_at(file, offset, length) if offset + length <= size else b""
                if len(data) < length:
                    break
            tags, where = reader.tags(data[begin : length - field])
            offsets[offset] = None
            stored.append(kinds.setdefault(tags, len(kinds)))
            places += where
            offset = struct.unpack_from(f"{order}{_OFFSET[field]}", data, length - field)[0]
    dtype = np.dtype([("type", order + "u2"), ("count", f"{order}u{field}"), ("value", f"V{field}")])
    return Directories(
        path,
        order,
        np.array(list(offsets), np.int64),
        np.array(stored, np.int64),
        tuple(kinds),
        np.frombuffer(bytes(places), dtype).reshape(-1, 3),
        offset or None,
    )


_OFFSET = {4: "I", 8: "Q"}


class _Reader:
    """Reads the tags of directories in one file.

    Parameters
    ----------
    file
        The file.
    order
        Its byte order.
    field
        Bytes that a tag has for its value: 4, or 8 in BigTIFF.
    """

    def __init__(self, file: BinaryIO, order: str, field: int) -> None:
        self._file, self._field = file, field
        self._entries = struct.Struct(f"{order}HH{_OFFSET[field]}{field}s")
        self._value = struct.Struct(order + _OFFSET[field])
        self._place = struct.Struct(f"{order}H{_OFFSET[field]}{field}s")
        self.entry = self._entries.size

    def tags(self, data: bytes) -> tuple[Tags, bytes]:
        """Return the tags that say how a page is stored, and those with the places of its strips or tiles."""
        field = self._field
        tags: list[tuple[int, int, int, bytes]] = []
        places = [(0, 0, b"")] * 3
        for tag, kind, count, value in self._entries.iter_unpack(data):
            if tag in _PLACES:
                places[_PLACES[tag]] = (kind, count, value)
                if _PLACES[tag] != TABLES:
                    tags.append((tag, kind, count, b""))
            elif tag in _STORED:
                length = count * _SIZES.get(kind, 1)
                if length > field:
                    where = self._value.unpack(value)[0]
                    content = _read_at(self._file, where, min(length, _LONGEST_VALUE))
                    # One that is cut short stays what it is: a pointer to nowhere.
                    value = content if len(content) == min(length, _LONGEST_VALUE) else value  # noqa: PLW2901
                tags.append((tag, kind, count, value))
        return tuple(tags), b"".join(self._place.pack(*place) for place in places)


def _read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    if offset >= 1 << 63:
        return b""
    file.seek(offset)
    return file.read(length)


def _read_all(file: BinaryIO, offsets: list[int], length: int) -> Iterator[bytes | None]:
    """Read as many bytes from each offset; None where the file has fewer."""
    for offset in offsets:
        data = _read_at(file, offset, length)
        yield data if len(data) == length else None
