"""Take blosc's containers apart into the streams that a GPU decompresses.

Nothing that a chunk says of itself is believed: sizes, places and lengths are checked against the chunk's voxels and
the bytes that are there. Whatever is damaged, or of another form than is usual, is left to the processor's decoders,
which know all forms, and say what is wrong.

Source: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst, and `blosc_d` in c-blosc's `blosc.c`
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.blosc import BITS_SHUFFLED, FORMATS, HEADER_BYTES, NOT_SPLIT, STORED
from isovoxel.geometry.grid import Index3

BYTES_SHUFFLED = 0x01
"""Flag of a container: bytes are transposed."""

CONTAINER, STREAM_VERSION = 2, 1
"""Version of containers, and of the streams of both formats."""

MOST_SPLIT, LEAST_SPLIT = 16, 128
"""Most streams of a block that is split, one for each byte of its voxels, and the least bytes of each."""

WIDTHS = (1, 2, 4, 8)
"""Bytes of a voxel that are shuffled here."""

MEAN_BYTES = {"lz4": 2**11, "zstd": 2**13}
"""Least bytes that the streams of a chunk decompress to on average, by codec; there is no room for more of them."""

ZSTD_MAGIC = 0xFD2FB528


class ChunkCoding(NamedTuple):
    """How the chunks of an array are encoded that a GPU decodes."""

    codec: str
    """"lz4" or "zstd", of the streams in blosc's containers."""
    chunk: Index3
    """Voxels of a chunk, z, y, x."""
    itemsize: int
    """Bytes of a voxel."""

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk's voxels."""
        return math.prod(self.chunk) * self.itemsize


class Streams(NamedTuple):
    """What an encoded chunk consists of."""

    begins: NDArray[np.int64]
    """Where each stream begins in the encoded chunk."""
    lengths: NDArray[np.int64]
    """Its bytes."""
    targets: NDArray[np.int64]
    """Where what it decompresses to begins in the shuffled chunk; together they fill it."""
    sizes: NDArray[np.int64]
    """The bytes of that; of a stream as long as these, they are the stream itself."""
    shuffled: int
    """What was shuffled in each block: nothing (0), bytes (1), or bits (2)."""
    block: int
    """Bytes of a block, the last of which may be shorter."""
    width: int
    """Bytes of a voxel, as far as shuffling goes."""


def most_streams(coding: ChunkCoding) -> int:
    """Return how many streams a chunk may have here."""
    return 8 + coding.chunk_bytes // MEAN_BYTES[coding.codec]


def take_apart(encoded: NDArray[np.uint8], coding: ChunkCoding) -> Streams | None:
    """Return the streams of a container, or None where the processor decodes it."""
    try:
        streams = _container(encoded, coding)
        if coding.codec == "zstd":
            packed = streams.lengths != streams.sizes
            _expect_frames(encoded, streams.begins[packed], streams.lengths[packed], streams.sizes[packed])
    except _OtherFormError:
        return None
    return streams


class _OtherFormError(Exception):
    """An encoded chunk is damaged, or of a form that no GPU decodes."""


def _expect(holds: object) -> None:
    if not holds:
        raise _OtherFormError


def _container(encoded: NDArray[np.uint8], coding: ChunkCoding) -> Streams:
    _expect(encoded.size >= HEADER_BYTES)
    version, stream_version, flags, width = encoded[:4].tolist()
    nbytes, block, length = encoded[4:HEADER_BYTES].view("<u4").tolist()
    _expect(version == CONTAINER and nbytes == coding.chunk_bytes and HEADER_BYTES <= length <= encoded.size)
    _expect(0 < block <= nbytes and width)
    if flags & STORED:
        _expect(length == nbytes + HEADER_BYTES)
        return Streams(*_one(HEADER_BYTES, nbytes, 0, nbytes), 0, nbytes, 1)
    _expect(stream_version == STREAM_VERSION and flags >> 5 == FORMATS[coding.codec])
    _expect(not (flags & BYTES_SHUFFLED and flags & BITS_SHUFFLED))
    shuffled = 2 if flags & BITS_SHUFFLED else int(flags & BYTES_SHUFFLED and width > 1)
    found = _streams(encoded[:length], block, 1 if flags & NOT_SPLIT else width, coding)
    if not shuffled:
        return Streams(*found, 0, nbytes, 1)
    _expect(width in WIDTHS and nbytes % width == 0 and (nbytes == block or block % (8 * width) == 0))
    return Streams(*found, shuffled, block, width)


_Found = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""The first four of `Streams`."""


def _one(*numbers: int) -> _Found:
    """Return a single stream."""
    begins, lengths, targets, sizes = (np.array([number], np.int64) for number in numbers)
    return begins, lengths, targets, sizes


def _streams(encoded: NDArray[np.uint8], block: int, width: int, coding: ChunkCoding) -> _Found:
    """Return the streams of a container, whose blocks are split into one for each of so many bytes."""
    nbytes = coding.chunk_bytes
    blocks = -(-nbytes // block)
    split = width if width <= MOST_SPLIT and block // width >= LEAST_SPLIT else 1
    _expect(blocks * split <= most_streams(coding) and HEADER_BYTES + 4 * blocks <= encoded.size and block % split == 0)
    places = encoded[HEADER_BYTES : HEADER_BYTES + 4 * blocks].view("<i4").astype(np.int64)
    whole, words = nbytes // block, _words(encoded, "<u4")
    parts = []
    for first, last, number, size in (
        (0, whole, split, block // split),
        (whole, blocks, 1, nbytes - whole * block),  # the last one, where it is shorter, is not split
    ):
        at, targets = places[first:last], np.arange(first, last, dtype=np.int64) * block
        for _ in range(number if last > first else 0):
            _expect(at.min() >= HEADER_BYTES and at.max() <= encoded.size - 4)
            begins, lengths = at + 4, words[at].astype(np.int64)
            _expect(lengths.min() > 0 and (begins + lengths).max() <= encoded.size)
            parts.append((begins, lengths, targets, np.full(len(begins), size, np.int64)))
            at, targets = begins + lengths, targets + size
    begins, lengths, targets, sizes = (np.concatenate(part) for part in zip(*parts, strict=True))
    return begins, lengths, targets, sizes


def _words(encoded: NDArray[np.uint8], kind: str) -> NDArray[Any]:
    """Return the number that begins at each byte.

    Where numbers are taken from it, few are at a time: NumPy lets go of the interpreter's lock for more than 500, and a
    thread waits for milliseconds until it has it again.
    """
    return np.ndarray((encoded.size - np.dtype(kind).itemsize + 1,), kind, encoded, strides=(1,))


def _expect_frames(
    encoded: NDArray[np.uint8], begins: NDArray[np.int64], lengths: NDArray[np.int64], sizes: NDArray[np.int64]
) -> None:
    """Expect that streams begin as frames of zstd do, and tell the sizes that they must decompress to.

    Frames with a checksum or a dictionary are for the processor, which knows what to do with these.

    Source: https://datatracker.ietf.org/doc/html/rfc8878#section-3.1.1.1
    """
    if not len(begins):
        return
    _expect(lengths.min() >= 6 and (_words(encoded, "<u4")[begins] == ZSTD_MAGIC).all())
    descriptor = encoded[begins + 4].astype(np.int64)
    _expect(not (descriptor & 0b1111).any())  # dictionary, checksum, and bits that are reserved or unused
    single, width = descriptor >> 5 & 1, np.array([1, 2, 4, 8])[descriptor >> 6]
    at = begins + 6 - single
    _expect((descriptor >> 6 | single).all() and (at + width <= begins + lengths).all())
    inside = np.minimum(at, encoded.size - 8)
    numbers = _words(encoded, "<u8")[inside] >> (8 * (at - inside)).astype(np.uint64)
    told = numbers & np.array([0xFF, 0xFFFF, 0xFFFFFFFF, 2**64 - 1], np.uint64)[descriptor >> 6]
    _expect((told + np.where(width == 2, 256, 0).astype(np.uint64) == sizes.astype(np.uint64)).all())
