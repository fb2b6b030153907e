"""Read boxes from TIFF pages: encoded strips and tiles, and planes that are stored in several ways.

tifffile decodes segments one by one. One encoded segment and its decoded copies are all that is held beside the
returned array.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.grid import Box, Index3, ceil_div, triple
from isovoxel.readers.raw import RawReader, in_file, open_file, read_bytes
from isovoxel.readers.tiff_pages import DECODER_BYTES, IMAGES, LERC_COMPRESSION, PageStorage
from isovoxel.readers.tiled import MixedReader, Stored, TiledReader, chunk_of, chunk_place

PlaneReader: TypeAlias = "RawReader | SegmentReader | MixedReader"
"""Reads boxes of planes that lie in files."""


def mixed(
    name: str,
    readers: Sequence[PlaneReader],
    which: NDArray[np.int64],
    place: NDArray[np.int64],
    files: tuple[str, ...],
) -> MixedReader:
    """Return what reads boxes of planes of which each is stored in one of several ways; see `MixedReader`."""
    segment = triple(map(max, *(reader.segment_shape for reader in readers), (1, 1, 1)))
    overhead = max(reader.overhead for reader in readers)
    return MixedReader(
        name, tuple(readers), which, place, readers[0].shape[1:], readers[0].dtype, files, segment, overhead
    )


MOST_SURPLUS = 2
"""Some writers encode a few rows or columns more than a segment has; none encodes so many times its bytes,"""
SURPLUS_BYTES = 1 << 16
"""or so many bytes more, as segments of a row or two may have."""

FIXED_BYTES = 1 << 18
"""What a codec holds whatever the segment's size."""


def unwrapped(data: bytes, limit: int) -> bytes:
    """Return LERC that may have been compressed once more, by zlib or Zstandard.

    Decoders look at the data for that, not at tags.

    Raises
    ------
    zlib.error, RuntimeError, ValueError
        If it cannot be decompressed, or becomes more bytes than `limit`.
    """
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return bytes(imagecodecs.zstd_decode(data, out=limit))
    if data[:1] != b"\x78":
        return data
    decompressor = zlib.decompressobj()
    found = decompressor.decompress(data, limit)
    if decompressor.unconsumed_tail:
        raise ValueError(f"it decodes to more than {limit} bytes")
    return found


@dataclass(frozen=True)
class SegmentReader(TiledReader):
    """Reads boxes of encoded or tiled TIFF pages; safe to call from many threads."""

    name: str
    """What the user called the input, for messages."""
    files: tuple[str, ...]
    """Paths of the files."""
    file_of_page: NDArray[np.int64]
    """Which file every page lies in; here each sample of a page counts as a page."""
    offsets: NDArray[np.int64]
    """Byte at which every segment begins, by page and segment; 0 where it is left out as empty."""
    counts: NDArray[np.int64]
    """Bytes of every encoded segment, likewise."""
    storage: PageStorage
    """How all of them are stored."""
    decode: Callable[..., Any]
    """tifffile's decoder of the pages."""
    jpeg_tables: tuple[bytes | None, ...]
    """Tables that every page's JPEG segments share; empty for other codecs."""
    jpeg_header: bytes | None
    """Header that JPEG segments of some formats share."""
    numbers: NDArray[np.int64]
    """Number of every page in its file, for messages."""
    sample: NDArray[np.int64]
    """Which of the samples that lie side by side every page is."""

    @property
    def segment_shape(self) -> Index3:
        """Shape of a strip or tile."""
        return self.storage.segment_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels, in native byte order."""
        return self.storage.dtype.newbyteorder("=")

    @property
    def decoded_bytes(self) -> int:
        """Bytes of a decoded segment."""
        return math.prod(self.segment_shape) * self.storage.mixed * self.dtype.itemsize

    @property
    def overhead(self) -> int:
        """Largest number of bytes held beside the returned array."""
        # Decompressed; unpacked, where bytes hold several samples; in native byte order.
        copies = 2 + ceil_div(8 * self.dtype.itemsize, max(1, self.storage.bits))
        decoder = DECODER_BYTES.get(self.storage.compression, 0) * self.decoded_bytes // self.dtype.itemsize
        return int(self.counts.max()) + copies * self.decoded_bytes + MOST_SURPLUS * decoder + FIXED_BYTES

    @property
    def shape(self) -> Index3:
        """Number of voxels of all pages, one behind the other."""
        depth, rows, columns = self.storage.shape
        return (depth * len(self.offsets), rows, columns)

    def taking(self, planes: NDArray[np.int64]) -> PlaneReader:
        """Return a reader of some of the planes, in their order."""
        if self.storage.shape[0] > 1:
            return mixed(self.name, (self,), np.zeros(len(planes), np.int64), planes, self.files)
        return replace(
            self,
            file_of_page=self.file_of_page[planes],
            offsets=self.offsets[planes],
            counts=self.counts[planes],
            jpeg_tables=tuple(self.jpeg_tables[page] for page in planes) if self.jpeg_tables else (),
            numbers=self.numbers[planes],
            sample=self.sample[planes],
        )

    def tiles(self, box: Box) -> Iterator[Box]:
        """Cut a box along the pages, and each page along its strips or tiles."""
        depth = self.storage.shape[0]
        for page in range(box.start[0] // depth, ceil_div(box.stop[0], depth)):
            corner = (page * depth, 0, 0)
            # As the page sees them, whose own first plane is 0.
            inside = box.relative_to(corner) & Box.whole(self.storage.shape)
            yield from (tile.shifted(corner) for tile in inside.tiles(self.segment_shape))

    def read_tile(self, tile: Box, out: NDArray[Any], _source: Any) -> None:
        """Decode the segment that a part lies in, and copy the part."""
        page, segment, _ = self._place(tile)
        offset, count = int(self.offsets[page, segment]), int(self.counts[page, segment])
        if not offset or not count:
            out[...] = self.storage.fill
            return
        options = {"jpegtables": self.jpeg_tables[page], "jpegheader": self.jpeg_header} if self.jpeg_tables else {}
        with open_file(self.name, self.files[self.file_of_page[page]]) as file:
            encoded = read_bytes(file, offset, count, self.name)
        if self.storage.compression == LERC_COMPRESSION:
            encoded = unwrapped(encoded, MOST_SURPLUS * self.decoded_bytes + SURPLUS_BYTES)
        if self.storage.compression in IMAGES and not (self.jpeg_tables and self.jpeg_header):
            self._check_image(encoded)
        decoded, (_, *start, _), shape = self.decode(encoded, segment, **options)
        there = tile.relative_to((page * self.storage.shape[0] + start[0], start[1], start[2]))
        if decoded is None or not Box.whole((shape[0], shape[1], shape[2])).contains(there):
            raise ValueError("it is too short")
        out[...] = decoded[..., self.sample[page]][there.slices]

    def _place(self, tile: Box) -> tuple[int, int, Box]:
        """Return the page that a part lies in, the segment's number there, and the part as the page sees it."""
        depth = self.storage.shape[0]
        page = tile.start[0] // depth
        _, rows, columns = (ceil_div(n, s) for n, s in zip(self.storage.shape, self.segment_shape, strict=True))
        inside = tile.relative_to((page * depth, 0, 0))
        z, y, x = chunk_place(inside, self.segment_shape)
        return page, (z * rows + y) * columns + x, inside

    def stored(self, tile: Box) -> Stored:
        """Return the strip or the tile that a part lies in."""
        page, segment, inside = self._place(tile)
        box = chunk_of("", inside, self.segment_shape, self.storage.shape).box
        kind = "tile" if self.storage.tiled else "strip"
        where = in_file(self.files, int(self.file_of_page[page]))
        what = f"{kind} {segment} of page {self.numbers[page]}{where}"
        return Stored(what, box.shifted((page * self.storage.shape[0], 0, 0)))

    def _check_image(self, encoded: bytes) -> None:
        """Check that an image becomes as large as its segment, before it is decoded."""
        header = header_of(encoded)
        if header is None:
            raise ValueError("it does not begin as an image in its format does")
        if header.nbytes > MOST_SURPLUS * self.decoded_bytes + SURPLUS_BYTES:
            raise ValueError(
                f"it says that it has {header.pixels} pixels, and decodes to {header.nbytes} bytes, "
                f"where {math.prod(self.segment_shape)} pixels of {self.decoded_bytes} bytes belong"
            )


# ---- sizes of encoded images -------------------------------------------------------------------------------------

# Size of an encoded image by its header, read before it is decoded, because decoders believe it.
#
# Strips and tiles of a TIFF may be whole images in formats of their own, which say their size. One that says more than
# its tile has would take that much memory only to be refused. What is not certain counts as what takes most.
#
# Sources: PNG (https://www.w3.org/TR/png/#11IHDR), JPEG (ITU-T T.81, B.1.1 and B.2.2), JPEG 2000 (ITU-T T.800, A.5.1
# and I.5.3), JPEG XL (ISO/IEC 18181-1, annexes A and D), JPEG XR (ITU-T T.832, A.7 and 8.3), WebP
# (https://datatracker.ietf.org/doc/html/rfc9649), LERC (https://github.com/Esri/lerc, Lerc2's header).


class ImageHeader(NamedTuple):
    """What an encoded image says of itself."""

    pixels: int
    """Number of its pixels."""
    samples: int
    """Most samples per pixel that it may have."""
    itemsize: int
    """Most bytes that a sample may have when it is decoded."""
    extra: int = 0
    """Bytes that a decoder takes beside these, by what the header says."""

    @property
    def nbytes(self) -> int:
        """Most bytes that decoding it may take."""
        return self.pixels * self.samples * self.itemsize + self.extra


def header_of(data: bytes) -> ImageHeader | None:
    r"""Return what an encoded image says of its size; None where it is in no format that is known here, or cut short.

    Examples
    --------
    >>> header_of(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBB", 13, b"IHDR", 20, 30, 8, 0))
    ImageHeader(pixels=600, samples=1, itemsize=1, extra=0)
    """
    for begin, read in _FORMATS.items():
        if data.startswith(begin):
            try:
                return read(data)
            except (struct.error, ValueError, IndexError):
                return None  # it ends in its header, or says what it cannot say
    return None


def _png(data: bytes) -> ImageHeader:
    width, height, bits, kind = struct.unpack_from(">IIBB", data, 16)
    samples = {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}.get(kind, 4)
    transparent = b"tRNS" in data[: data.find(b"IDAT") + 1 or len(data)]
    return ImageHeader(width * height, samples + transparent, 2 if bits > 8 else 1)


# ---- JPEG --------------------------------------------------------------------------------------------------------

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG's markers that begin a frame; those between are tables and extensions."""
_ALONE = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
"""Markers without a length, and the zero that makes a byte of data of a marker's first one."""


def _jpeg(data: bytes) -> ImageHeader:
    """Find the frame, as decoders do: what lies between segments is skipped, and a marker may have filling before."""
    at = 2
    while True:
        at = data.index(b"\xff", at)
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in _FRAMES:
            bits, height, width, samples = struct.unpack_from(">BHHB", data, at + 2)
            return ImageHeader(width * height, samples, 2 if bits > 8 else 1)
        if marker not in _ALONE:
            at += struct.unpack_from(">H", data, at)[0]


# ---- JPEG 2000 ---------------------------------------------------------------------------------------------------

_CODESTREAM = b"\xff\x4f\xff\x51"
_TILE_BYTES = 6000
"""What OpenJPEG keeps of each tile that the image is cut into."""


def _jp2(data: bytes) -> ImageHeader:
    """Find the codestream among the boxes; a palette among them makes more samples of one."""
    samples = 0
    for kind, content in _boxes(data):
        if kind == b"jp2c":
            header = _j2k(content)
            return header._replace(samples=max(samples, header.samples))
        if kind == b"jp2h":
            for inner, palette in _boxes(content):
                if inner == b"pclr":
                    samples = max(samples, palette[2])
    raise ValueError


def _j2k(data: bytes) -> ImageHeader:
    if not data.startswith(_CODESTREAM):
        raise ValueError
    right, bottom, left, top, width, height, tiles_left, tiles_top, n = struct.unpack_from(">8IH", data, 8)
    bits = max(1 + (bits & 0x7F) for bits in data[42 : 42 + 3 * n : 3])
    tiles = ceil_div(max(0, right - tiles_left), width or 1) * ceil_div(max(0, bottom - tiles_top), height or 1)
    pixels = max(0, right - left) * max(0, bottom - top)
    return ImageHeader(pixels, n, 1 if bits <= 8 else 2 if bits <= 16 else 4, (tiles - 1) * _TILE_BYTES)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Return type and content of each of the boxes that follow one another."""
    at = 0
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        begin = at + 8
        if length == 1:
            length = struct.unpack_from(">Q", data, begin)[0]
            begin += 8
        stop = at + length if length else len(data)
        if stop < begin:
            raise ValueError
        yield kind, data[begin:stop]
        at = stop


# ---- JPEG XL -----------------------------------------------------------------------------------------------------


class _Bits:
    """Reads numbers bit by bit, the lowest first, as JPEG XL has them."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(data[:64], "little")
        self._left = 8 * len(data[:64])

    def take(self, count: int) -> int:
        """Return the next so many bits as a number."""
        if count > self._left:
            raise ValueError
        value = self._bits & ((1 << count) - 1)
        self._bits >>= count
        self._left -= count
        return value

    def choose(self, *choices: tuple[int, int]) -> int:
        """Return a number of one of four lengths, each with what is added."""
        add, count = choices[self.take(2)]
        return add + self.take(count)


_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_SIZES = ((1, 9), (1, 13), (1, 18), (1, 30))


def _jxl_boxes(data: bytes) -> ImageHeader:
    """Find the codestream among the boxes; its first part has the header."""
    for kind, content in _boxes(data):
        if kind == b"jxlc":
            return _jxl(content)
        if kind == b"jxlp":
            return _jxl(content[4:])
    raise ValueError


def _jxl(data: bytes) -> ImageHeader:
    if not data.startswith(b"\xff\x0a"):
        raise ValueError
    bits = _Bits(data[2:])
    width, height = _jxl_size(bits)
    if bits.take(1):  # everything is as usual: 8 bits of red, green and blue
        return ImageHeader(width * height, 3, 1)
    if bits.take(1):
        bits.take(3)  # orientation
        if bits.take(1):
            _jxl_size(bits)  # that at which it should be shown
        if bits.take(2):  # a preview, or an animation, of which all frames are decoded
            raise ValueError
    if bits.take(1):
        depth = bits.choose((32, 0), (16, 0), (24, 0), (1, 6))
        bits.take(4)
    else:
        depth = bits.choose((8, 0), (10, 0), (12, 0), (1, 6))
    bits.take(1)
    more = bits.choose((0, 0), (1, 0), (2, 4), (1, 12))
    # Behind other channels it takes long to find out.
    colors = 1 if not more and _jxl_is_grey(bits) else 3
    return ImageHeader(width * height, colors + more, 1 if depth <= 8 else 2 if depth <= 16 else 4)


def _jxl_is_grey(bits: _Bits) -> bool:
    bits.take(1)
    if bits.take(1):  # as usual, which is red, green and blue
        return False
    bits.take(1)
    return bits.choose((0, 0), (1, 0), (2, 4), (18, 6)) == 1


def _jxl_size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)
    height = 8 * (1 + bits.take(5)) if small else bits.choose(*_SIZES)
    ratio = bits.take(3)
    if ratio:
        over, under = _RATIOS[ratio - 1]
        return height * over // under, height
    return (8 * (1 + bits.take(5)) if small else bits.choose(*_SIZES)), height


# ---- JPEG XR -----------------------------------------------------------------------------------------------------

_XR_SAMPLES = {0: 1, 1: 3, 2: 3, 3: 3, 4: 4, 5: 4, 7: 3, 8: 3}
"""Samples of each of JPEG XR's colour formats; more, where it has any number of them."""
_XR_ITEMSIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 2}
"""Bytes of each of its depths; 4 of all others."""


def _jxr(data: bytes) -> ImageHeader:
    """Find the codestream by the container's directory, which is a TIFF's."""
    where = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, where)[0]
    entries = (struct.unpack_from("<HHII", data, where + 2 + 12 * entry) for entry in range(count))
    at = next((value for tag, _, _, value in entries if tag == 0xBCC0), None)
    if at is None or data[at : at + 8] != b"WMPHOTO\0":
        raise ValueError
    flags, color = data[at + 10], data[at + 11]
    width, height = struct.unpack_from(">HH" if flags & 0x80 else ">II", data, at + 12)
    samples = _XR_SAMPLES.get(color >> 4, 16) + (flags & 1)
    return ImageHeader((width + 1) * (height + 1), samples, _XR_ITEMSIZES.get(color & 15, 4))


# ---- the others --------------------------------------------------------------------------------------------------


def _webp(data: bytes) -> ImageHeader:
    """Read width and height of one of the three kinds of WebP."""
    if data[8:12] != b"WEBP":
        raise ValueError
    kind = data[12:16]
    if kind == b"VP8X":
        # each less 1, in 24 bits
        low, high, below, above = struct.unpack_from("<HBHB", data, 24)
        width, height = (high << 16 | low) + 1, (above << 16 | below) + 1
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (n & 0x3FFF for n in struct.unpack_from("<HH", data, 26))
    return ImageHeader(width * height, 4, 1)


def _lerc(data: bytes) -> ImageHeader:
    """Add up the blobs that follow one another, each a band."""
    at = pixels = size = 0
    while data.startswith(b"Lerc2 ", at):
        version = struct.unpack_from("<i", data, at + 6)[0]
        begin = at + (10 if version < 3 else 14)  # from version 3 on a checksum stands before the size
        height, width = struct.unpack_from("<ii", data, begin)
        depth = max(1, struct.unpack_from("<i", data, begin + 8)[0]) if version >= 4 else 1
        length, kind = struct.unpack_from("<ii", data, begin + (20 if version >= 4 else 16))
        pixels = max(pixels, max(0, height) * max(0, width))
        size += depth * (1, 1, 2, 2, 4, 4, 4, 8)[kind]
        if length <= 0:
            raise ValueError
        at += length
    return ImageHeader(pixels, 1, size)


_FORMATS: dict[bytes, Callable[[bytes], ImageHeader]] = {
    b"\x89PNG\r\n\x1a\n": _png,
    b"\xff\xd8": _jpeg,
    b"RIFF": _webp,
    b"Lerc2 ": _lerc,
    _CODESTREAM: _j2k,
    b"\0\0\0\x0cjP  \r\n\x87\n": _jp2,
    b"\xff\x0a": _jxl,
    b"\0\0\0\x0cJXL \r\n\x87\n": _jxl_boxes,
    b"II\xbc": _jxr,
}
"""Which bytes begin an image in each format, and what reads its header."""
