"""Pages of a TIFF: where each directory lies, how its page is stored, and where its strips or tiles are.

tifffile reads the tags of few pages and takes the others to be stored alike. Here every directory is read once, and of
each page the tags that say how it is stored are compared with those that were met before: equal ones get one number.
The places of strips and tiles stay as bytes until they are asked for. So 100,000 pages take a second and few megabytes.

Source: TIFF 6.0 (https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf), section 2; BigTIFF
(https://www.awaresystems.be/imaging/tiff/bigtiff.html).
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.grid import Index3, ceil_div

if TYPE_CHECKING:
    import tifffile

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
            for row, at in enumerate(where):
                data = _read_at(file, at, count * dtype.itemsize)
                if len(data) < count * dtype.itemsize:
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
                    length = min(count, _LONGEST_VALUE)
                    data = _read_at(file, where, length)
                    data = data if len(data) == length else b""
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


# ---- how a page is stored ------------------------------------------------------------------------------------------

# And what of that must be the same for all planes of a volume.


JPEG = (6, 7, 33007, 34892)
"""TIFF's numbers of the compressions that keep tables beside the segments."""
LERC_COMPRESSION = 34887
JPEG_2000 = (33003, 33004, 33005, 34712)
JPEG_XL = (50002, 52546)
IMAGES = (*JPEG, *JPEG_2000, *JPEG_XL, 22610, 34934, LERC_COMPRESSION, 34933, 50001, 34927)
"""TIFF's numbers of those whose segments are images in formats of their own: JPEG XR, PNG and WebP beside these."""

DECODER_BYTES: Mapping[int, int] = {
    **dict.fromkeys(JPEG, 3),
    **dict.fromkeys(JPEG_2000, 8),
    **dict.fromkeys(JPEG_XL, 8),
    LERC_COMPRESSION: 8,
}
"""What a codec holds for every sample that it decodes, beside input and output: 5.3 bytes by OpenJPEG, and up to 3.3 by
libjxl, were measured; a progressive JPEG keeps all its coefficients, of 2 bytes; LERC may be compressed once more."""

_PHOTOMETRIC = {0: "white as 0", 1: "black as 0", 2: "RGB", 3: "colours of a palette", 4: "a mask", 6: "YCbCr"}


@dataclass(frozen=True)
class PageStorage:
    """How a page is stored."""

    order: str
    """Byte order of its file, "<" or ">"."""
    dtype: np.dtype[Any]
    """Of its voxels, with the byte order of the file."""
    bits: int
    """Bits of a sample, which may be fewer than those of the dtype."""
    planar: int
    """Number of samples per pixel that are planes of their own, one behind the other."""
    mixed: int
    """Number of samples per pixel that lie side by side."""
    shape: Index3
    """Number of voxels of a sample: depth, rows, columns."""
    segment_shape: Index3
    """Number of voxels of a strip or tile."""
    tiled: bool
    """Whether it has tiles, not strips."""
    compression: int
    """TIFF's number of the codec; 1 for none."""
    predictor: int
    """TIFF's number of the predictor; 1 for none."""
    fill_order: int
    """2 where the bits of each byte are in reverse."""
    fill: float
    """Value of the voxels of segments that are left out."""
    photometric: int
    """What the numbers mean, by TIFF's number."""
    orientation: int
    """Where the first row and column are, by TIFF's number."""
    options: Tags
    """Tags that a codec asks for."""

    @property
    def samples(self) -> int:
        """Number of samples per pixel."""
        return self.planar * self.mixed

    @property
    def n_segments(self) -> int:
        """Number of strips or tiles of all samples."""
        return self.planar * math.prod(ceil_div(n, s) for n, s in zip(self.shape, self.segment_shape, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of a page's voxels, where they lie in the file as they are."""
        return self.samples * math.prod(self.shape) * self.dtype.itemsize

    @property
    def segment_bytes(self) -> int:
        """Bytes of a segment that is not encoded, as it lies in the file."""
        depth, rows, columns = self.segment_shape
        return depth * rows * ceil_div(columns * self.mixed * self.bits, 8)

    @property
    def is_plain(self) -> bool:
        """Whether voxels lie in the file as they are and row after row, if its segments follow one another."""
        whole = (self.shape[1] % self.segment_shape[1] == 0) and self.shape[2] == self.segment_shape[2]
        flat = self.shape[0] == 1 or self.segment_shape[1:] == self.shape[1:]
        return (
            (self.compression, self.predictor, self.fill_order, self.mixed) == (1, 1, 1, 1)
            and self.bits == 8 * self.dtype.itemsize
            and (not self.tiled or (whole and flat and self.shape[0] % self.segment_shape[0] == 0))
        )

    @property
    def alike(self) -> dict[str, Any]:
        """What must be the same for all planes of a volume, by the words that messages have for it."""
        shape = self.shape if self.shape[0] > 1 else self.shape[1:]
        return {
            "shape": shape,
            "dtype": str(self.dtype.newbyteorder("=")),
            "number of samples per pixel": self.samples,
            "photometric interpretation": self.photometric,
            "orientation": self.orientation,
        }


def dtype_of(page: tifffile.TiffPage, name: str) -> np.dtype[Any]:
    """Return the data type of a page's numbers, if their kind is known."""
    if page.dtype is None:
        bits = page.bitspersample
        raise InputError(f"{name} has an unsupported {bits}-bit sample format; convert it to uint16 or float32")
    return page.dtype


def storage_of(page: tifffile.TiffPage, tags: Tags, name: str) -> PageStorage:
    """Return how a page is stored.

    Parameters
    ----------
    page
        The page, with its tags.
    tags
        Those that say how it is stored, as `Directories` has them.
    name
        What the user called the file, for messages.

    Raises
    ------
    InputError
        If it holds numbers of a kind that is not known.
    """
    dtype = dtype_of(page, name)
    planar, depth, length, width, mixed = page.shaped
    if page.samplesperpixel != planar * mixed:
        said = f"it says {page.samplesperpixel} samples per pixel"
        raise InputError(f"{name} cannot be read as TIFF: {said}, where its planes have {planar * mixed}")
    segment = (max(1, page.tiledepth), page.tilelength, page.tilewidth)
    if not page.is_tiled:
        segment = (1, min(page.rowsperstrip, length), width)
    if min(segment) < 1 <= min(depth, length, width):
        raise InputError(f"{name} cannot be read as TIFF: its strips or tiles have the shape {segment}")
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    orientation = page.tags.valueof(ORIENTATION, 1)
    return PageStorage(
        page.parent.byteorder,
        np.dtype(page.parent.byteorder + dtype.char),
        bits,
        planar,
        mixed,
        (depth, length, width),
        segment,
        page.is_tiled,
        int(page.compression),
        int(page.predictor),
        int(page.fillorder),
        float(page.nodata),
        int(page.photometric),
        orientation if isinstance(orientation, int) else 1,
        tuple(tag for tag in tags if tag[0] in (292, 293, 512, 515, 530, LERC) or tag[0] > 65000),
    )


def check_codec(storage: PageStorage, what: str) -> None:
    """Check that the segments of a page can be decoded, before a job relies on it.

    Parameters
    ----------
    storage
        How the page is stored.
    what
        The file or the page, for messages.
    """
    import tifffile

    for kind, number, codecs in (
        ("compression", storage.compression, tifffile.TIFF.DECOMPRESSORS),
        ("predictor", storage.predictor, tifffile.TIFF.UNPREDICTORS),
    ):
        if number != 1 and number not in codecs:
            raise InputError(f"{what} is stored with the TIFF {kind} {number}, which cannot be decoded here")


def check_alike(places: Mapping[PageStorage, Callable[[], str]], counts: Counter[PageStorage]) -> None:
    """Check that pages that are stored in several ways can be planes of one volume.

    Parameters
    ----------
    places
        Returns, for each way to store them, the first page that is stored so, for messages.
    counts
        How many pages are stored in each of these ways.

    Raises
    ------
    InputError
        If they cannot; a page that is not like most of them is named.
    """
    groups: Counter[tuple[Any, ...]] = Counter()
    for storage, n in counts.items():
        groups[tuple(storage.alike.items())] += n
    if len(groups) < 2:
        return
    most = dict(groups.most_common(1)[0][0])
    wanted = next(storage for storage in places if storage.alike == most)
    odd = next(storage for storage in places if storage.alike != most)
    raise InputError(
        f"{places[odd]()} is not like the others: {difference(odd, wanted)}, as {places[wanted]()} has; "
        f"save all planes alike, or those that you mean as a file of their own"
    )


def difference(odd: PageStorage, wanted: PageStorage) -> str:
    """Return what tells a page from one that it should be like: "it has the dtype uint8, not uint16"."""
    what = next(key for key, value in wanted.alike.items() if odd.alike[key] != value)
    return f"it has the {what} {_said(what, odd.alike[what])}, not {_said(what, wanted.alike[what])}"


def _said(what: str, value: Any) -> str:
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    if what == "photometric interpretation" and value in _PHOTOMETRIC:
        return f"{value} ({_PHOTOMETRIC[value]})"
    return str(value)
