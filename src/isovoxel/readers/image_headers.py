"""Size of an encoded image by its header, read before it is decoded, because decoders believe it.

Strips and tiles of a TIFF may be whole images in formats of their own, which say their size. One that says more than
its tile has would take that much memory only to be refused. What is not certain counts as what takes most.

Sources: PNG (https://www.w3.org/TR/png/#11IHDR), JPEG (ITU-T T.81, B.1.1 and B.2.2), JPEG 2000 (ITU-T T.800, A.5.1 and
I.5.3), JPEG XL (ISO/IEC 18181-1, annexes A and D), JPEG XR (ITU-T T.832, A.7 and 8.3), WebP
(https://datatracker.ietf.org/doc/html/rfc9649), LERC (https://github.com/Esri/lerc, Lerc2's header).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from isovoxel.geometry.grid import ceil_div


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
