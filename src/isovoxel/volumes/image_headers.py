"""How many pixels will an encoded image become? Asked before it is decoded, for decoders believe its header.

Strips and tiles of a TIFF may be whole images in formats of their own, which say their size. One that says more than
its tile has would take that much memory only to be refused.

Sources: PNG (https://www.w3.org/TR/png/#11IHDR), JPEG (ITU-T T.81, B.2.2), JPEG 2000 (ITU-T T.800, A.5.1),
WebP (https://datatracker.ietf.org/doc/html/rfc9649), LERC (https://github.com/Esri/lerc, Lerc2's header).
"""

from __future__ import annotations

import struct

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_2000 = b"\xff\x4f\xff\x51"
_JP2 = b"\0\0\0\x0cjP  "
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG's markers that begin a frame; those between are tables and extensions."""


def pixels_of(data: bytes) -> int:
    r"""Return how many pixels an encoded image says it has; 0 where it is in no format that is known here.

    Examples
    --------
    >>> pixels_of(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 20, 30))
    600
    """
    try:
        if data.startswith(_PNG):
            width, height = struct.unpack_from(">II", data, 16)
        elif data.startswith(b"\xff\xd8"):
            width, height = _jpeg(data)
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            width, height = _webp(data)
        elif data.startswith(b"Lerc2 "):
            # From version 3 on a checksum stands before the size.
            height, width = struct.unpack_from("<ii", data, 10 if struct.unpack_from("<i", data, 6)[0] < 3 else 14)
        elif data.startswith((_JPEG_2000, _JP2)):
            at = data.find(_JPEG_2000)
            if at < 0:
                return 0
            right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
            width, height = right - left, bottom - top
        else:
            return 0
    except struct.error:
        return 0  # it ends in its header, and the decoder will say so
    return max(0, int(width)) * max(0, int(height))


def _jpeg(data: bytes) -> tuple[int, int]:
    """Find the frame, and return its width and height."""
    at = 2
    while at + 4 <= len(data):
        marker, length = struct.unpack_from(">xBH", data, at)
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + length
    return 0, 0


def _webp(data: bytes) -> tuple[int, int]:
    """Return width and height of one of the three kinds of WebP."""
    kind = data[12:16]
    if kind == b"VP8X":
        # each less 1, in 24 bits
        low, high, below, above = struct.unpack_from("<HBHB", data, 24)
        return (high << 16 | low) + 1, (above << 16 | below) + 1
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF
