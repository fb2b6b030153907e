"""Decode chunks, and cache decoded ones that several boxes need.

1. A thread that needs a chunk claims it. The first to do so decodes it into the buffer that it is given; the
   others do other chunks first and then wait for it.
2. A buffer is made when it is first needed, up to the given number. Later ones are those of the chunks that
   were not used for longest: memory that is touched for the first time is slow.
3. A chunk in use keeps its buffer until the last thread releases it. Where all buffers are in use, the thread
   gets none, and decodes for itself.
"""

from __future__ import annotations

import bz2
import copy
import errno
import lzma
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputUnavailableError

CHUNK_COST = 1 << 11
"""What keeping a chunk takes beside its voxels."""

Place = tuple[int, ...]
"""Where a chunk lies in its array: z, y, x, and what of several volumes lies before."""


@dataclass(eq=False)
class CachedChunk:
    """A chunk in the cache, being decoded or ready."""

    buffer: NDArray[Any]
    """Its voxels, once it is ready and `stored`."""
    users: int = 1
    """Number of threads that have claimed it and not yet released it."""
    stored: bool = False
    """Whether there is such a chunk; if not, the buffer holds nothing of it."""
    failure: Exception | None = None
    """Why it could not be decoded; None where it could."""
    ready: threading.Event = field(default_factory=threading.Event)
    """Set once the thread that decodes it is done, or has failed."""


class ChunkCache:
    """The decoded chunks that were used last; safe to use from many threads.

    Parameters
    ----------
    slots
        Most buffers to make; 0 for a cache that holds nothing.
    make
        Makes a buffer for one chunk.
    """

    def __init__(self, slots: int, make: Callable[[], NDArray[Any]]) -> None:
        self._unmade = slots
        self._make = make
        self._free: list[NDArray[Any]] = []
        self._lock = threading.Lock()
        self._chunks: OrderedDict[Place, CachedChunk] = OrderedDict()

    def claim(self, place: Place) -> tuple[CachedChunk | None, bool]:
        """Claim a chunk, which must be released.

        Returns
        -------
        tuple of (CachedChunk or None, bool)
            The chunk, and whether the caller must `fill` it. None where no
            buffer is left for it.
        """
        with self._lock:
            chunk = self._chunks.get(place)
            if chunk is not None:
                chunk.users += 1
                self._chunks.move_to_end(place)
                return chunk, False
            buffer = self._room()
            if buffer is None:
                return None, True
            chunk = self._chunks[place] = CachedChunk(buffer)
            return chunk, True

    def settle(self, place: Place, chunk: CachedChunk, *, stored: bool, failure: Exception | None = None) -> None:
        """Note how decoding a claimed chunk ended; one that failed or is not stored is not kept for later."""
        chunk.stored, chunk.failure = stored, failure
        if not stored:
            with self._lock:
                del self._chunks[place]
        chunk.ready.set()

    def release(self, chunk: CachedChunk) -> None:
        """Give a claimed chunk back."""
        with self._lock:
            chunk.users -= 1
            if not chunk.users and not chunk.stored:
                self._free.append(chunk.buffer)

    @contextmanager
    def decoded(
        self, place: Place, decode: Callable[[NDArray[Any]], bool], spare: NDArray[Any]
    ) -> Iterator[NDArray[Any] | None]:
        """Give a chunk's buffer while it is used: decoded by this thread, or by another that is waited for.

        Parameters
        ----------
        place
            Which chunk.
        decode
            Decodes it into a buffer, and tells whether it is stored; it must not use this cache.
        spare
            A buffer of the caller's, for a chunk that no buffer is left for.

        Yields
        ------
        numpy.ndarray or None
            The buffer, or None where the chunk is not stored.

        Raises
        ------
        Exception
            What `decode` raised, in this thread or the other.
        """
        chunk, ours = self.claim(place)
        if chunk is None:
            yield spare if decode(spare) else None
            return
        try:
            if ours:
                self.fill(place, chunk, decode)
            chunk.ready.wait()
            if chunk.failure is not None:
                raise copy.copy(chunk.failure)
            yield chunk.buffer if chunk.stored else None
        finally:
            self.release(chunk)

    def fill(self, place: Place, chunk: CachedChunk, decode: Callable[[NDArray[Any]], bool]) -> None:
        """Decode a chunk that `claim` left to the caller, and wake the threads that wait for it, however that ends."""
        stored = False
        failed: Exception | None = None
        try:
            stored = decode(chunk.buffer)
        except BaseException as error:
            # One that was never raised: the frames of this one would keep all arrays of this read alive.
            failed = copy.copy(error) if isinstance(error, Exception) else None
            why = f"reading chunk {place} ended by {type(error).__name__}"
            failed = failed or InputUnavailableError(errno.EINTR, why)
            raise
        finally:
            self.settle(place, chunk, stored=stored, failure=failed)

    def _room(self) -> NDArray[Any] | None:
        """Return a buffer that no thread uses; the lock is held."""
        if self._free:
            return self._free.pop()
        if self._unmade > 0:
            buffer = self._make()
            self._unmade -= 1
            return buffer
        unused = next((place for place, chunk in self._chunks.items() if not chunk.users), None)
        return None if unused is None else self._chunks.pop(unused).buffer


# ---- codecs --------------------------------------------------------------------------------------------------------

# Decode one chunk into a buffer of its size, whatever its bytes claim.
#
# Encoded bytes are not trusted: they may be cut short, damaged, or made to claim any size.
#
# 1. What the header says of its sizes must agree with the buffer and with the bytes that are there: blosc reads
#    and writes as far as its header says, and zstd leaves the rest of the buffer as it was.
# 2. The decoder writes into the buffer; LZMA and bzip2, and zlib for several members, which cannot, may make no
#    more bytes than it holds.
# 3. Fewer bytes than the buffer holds are an error too.


Decode = Callable[[NDArray[np.uint8], NDArray[np.uint8]], None]
"""Decodes the first bytes into the second, filling them; raises any exception where it cannot."""

_codecs: Any = imagecodecs
"""Of whose functions the types know no arrays."""

_BLOSC_HEADER = struct.Struct("<4xI4xI")

LZMA_MEMORY = 1 << 27
"""Most bytes that LZMA's decoder may ask for, whatever its header says: twice what the highest preset takes."""


def decode_nothing(encoded: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Copy bytes that are not encoded."""
    _check_size(encoded.size, out.size)
    out[...] = encoded


def blosc_size(encoded: NDArray[np.uint8]) -> int:
    """Return to how many bytes a blosc buffer says that it decodes."""
    if encoded.size < _BLOSC_HEADER.size:
        raise ValueError(f"its {encoded.size} bytes are no blosc buffer")
    return int(_BLOSC_HEADER.unpack_from(encoded.data)[0])


def decode_blosc(encoded: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Decode one blosc buffer, of any of its compressors.

    Source of the header: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
    """
    _check_size(blosc_size(encoded), out.size)
    _, encoded_size = _BLOSC_HEADER.unpack_from(encoded.data)
    if not _BLOSC_HEADER.size <= encoded_size <= encoded.size:
        raise ValueError(f"it has {encoded.size} of the {encoded_size} bytes that its header tells of")
    _codecs.blosc_decode(encoded[:encoded_size], numthreads=1, out=out)  # ours are threads enough


def decode_zstd(encoded: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Decode zstd frames, whether they say their decoded size or not; one that says a wrong one is damaged."""
    try:
        _check_size(len(_codecs.zstd_decode(encoded, out=out)), out.size)
    except imagecodecs.ZstdError as error:
        raise ValueError(f"it is no zstd frame that decodes to {out.size} bytes ({error})") from error


def decode_lz4(encoded: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Decode an LZ4 block behind its decoded size, as numcodecs writes it."""
    if encoded.size < 4:
        raise ValueError(f"its {encoded.size} bytes are no LZ4 block")
    _check_size(int.from_bytes(encoded[:4].tobytes(), "little"), out.size)
    _check_size(len(_codecs.lz4_decode(encoded[4:], out=out)), out.size)


def decode_gzip(encoded: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Decode gzip members."""
    if not _inflate(imagecodecs.gzip_decode, encoded, out, lambda: _gzip_end(out)):
        _decode_streams(encoded, out, lambda: zlib.decompressobj(16 + zlib.MAX_WBITS))


def decode_zlib(encoded: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Decode a zlib stream."""
    if not _inflate(imagecodecs.deflate_decode, encoded, out, lambda: _zlib_end(out)):
        _decode_streams(encoded, out, lambda: zlib.decompressobj(zlib.MAX_WBITS))


def _inflate(
    decode: Callable[..., Any], encoded: NDArray[np.uint8], out: NDArray[np.uint8], end: Callable[[], bytes]
) -> bool:
    """Decode by libdeflate, in 0.6 of the time, where one member fills the buffer; return whether it does.

    It says nothing of bytes that follow, but a member ends with the checksum of what it decodes to: where those bytes
    are found at the end, and not before, it ends there. All else, damage too, is for zlib, which says what it is.
    """
    try:
        decoded = decode(encoded, out=out)
    except (imagecodecs.DeflateError, ValueError):  # the second of a gzip header
        return False
    ends = end()
    return len(decoded) == out.size and encoded.tobytes().find(ends) == encoded.size - len(ends)


def _gzip_end(out: NDArray[np.uint8]) -> bytes:
    """Return how a gzip member of these bytes ends: https://datatracker.ietf.org/doc/html/rfc1952#page-8."""
    return struct.pack("<II", _codecs.deflate_crc32(out), out.size & 0xFFFFFFFF)


def _zlib_end(out: NDArray[np.uint8]) -> bytes:
    """Return how a zlib stream of these bytes ends: https://datatracker.ietf.org/doc/html/rfc1950#page-5."""
    return struct.pack(">I", _codecs.deflate_adler32(out))


def decode_lzma(encoded: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Decode LZMA streams, of any format that says what it is."""
    _decode_streams(encoded, out, lambda: lzma.LZMADecompressor(memlimit=LZMA_MEMORY))


def decode_bz2(encoded: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Decode bzip2 streams."""
    try:
        _decode_streams(encoded, out, bz2.BZ2Decompressor)
    except OSError as error:
        raise ValueError("it is no bzip2 stream") from error  # for no disk has failed


DECODERS: Mapping[str, Decode] = {
    "none": decode_nothing,
    "blosc": decode_blosc,
    "zstd": decode_zstd,
    "gzip": decode_gzip,
    "zlib": decode_zlib,
    "lz4": decode_lz4,
    "lzma": decode_lzma,
    "bz2": decode_bz2,
}
"""Decoders by the name that zarr v3 and v2 give their codec; "none" where there is none."""

DECODED_COPIES: Mapping[str, int] = {"gzip": 2, "zlib": 2, "lzma": 2, "bz2": 2}
"""How many copies of the decoded bytes a decoder holds beside `out`: these collect their output in pieces."""

DECODER_BYTES: Mapping[str, int] = {"lzma": 10 << 20, "bz2": 4 << 20}
"""What a decoder holds whatever the chunk's size: LZMA's window, as large as its default preset makes it (of a larger
one a chunk uses no more than its own size), and bzip2's largest block."""


def _decode_streams(encoded: NDArray[np.uint8], out: NDArray[np.uint8], begin: Callable[[], Any]) -> None:
    """Decode streams that follow one another, each by a decompressor as zlib, lzma and bz2 have them."""
    data: Any = encoded
    done = 0
    while len(data):
        stream = begin()
        # One byte more than is wanted: a stream of more is found out before it has taken memory.
        part = stream.decompress(data, out.size - done + 1)
        if done + len(part) > out.size:
            raise ValueError(f"it decodes to more than {out.size} bytes")
        if not stream.eof:
            raise ValueError("its compressed stream is cut short")
        out[done : done + len(part)] = np.frombuffer(part, np.uint8)
        done += len(part)
        data = stream.unused_data
    _check_size(done, out.size)


def _check_size(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"it decodes to {found} bytes instead of {wanted}")
