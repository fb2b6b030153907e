"""Decoding chunks whose bytes cannot be trusted."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numcodecs
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isovoxel.readers import chunks
from isovoxel.readers.chunks import DECODERS
from strategies import examples

VOXELS = (np.arange(3000, dtype="uint16") // 7).view("u1")
GUARD = 4096


def zstd_frame(data: bytes, says: int | None) -> bytes:
    """Return a zstd frame of two uncompressed blocks that says this of its size, or nothing."""
    head = b"\x28\xb5\x2f\xfd" + (b"\x00\x50" if says is None else b"\x80\x50" + struct.pack("<I", says))
    half = len(data) // 2
    first = struct.pack("<I", half << 3)[:3] + data[:half]
    return head + first + struct.pack("<I", 1 | (len(data) - half) << 3)[:3] + data[half:]


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "none": ("none", bytes),
    **{
        f"blosc {name} {shuffle}": ("blosc", numcodecs.Blosc(name, 5, shuffle).encode)
        for name in ("lz4", "lz4hc", "blosclz", "zlib", "zstd")
        for shuffle in (0, 1, 2)
    },
    "zstd": ("zstd", numcodecs.Zstd(1).encode),
    "zstd with checksum": ("zstd", numcodecs.Zstd(1, checksum=True).encode),
    "zstd of known size": ("zstd", lambda data: zstd_frame(data, len(data))),
    "zstd of unknown size": ("zstd", lambda data: zstd_frame(data, None)),
    "gzip": ("gzip", gzip.compress),
    "gzip of two members": ("gzip", lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:])),
    "zlib": ("zlib", zlib.compress),
    "lz4": ("lz4", numcodecs.LZ4().encode),
    "lzma": ("lzma", numcodecs.LZMA().encode),
    "lzma of the old format": ("lzma", lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
    "bz2": ("bz2", numcodecs.BZ2().encode),
    "bz2 of two streams": ("bz2", lambda data: bz2.compress(data[:100]) + bz2.compress(data[100:])),
}
ERRORS = (ValueError, RuntimeError, EOFError, zlib.error, lzma.LZMAError)


def decode(codec: str, encoded: bytes, size: int) -> np.ndarray:
    """Decode into a buffer between two guards, which must stay as they are."""
    guarded = np.full(size + 2 * GUARD, 0xAB, np.uint8)
    out = guarded[GUARD : GUARD + size]
    try:
        DECODERS[codec](np.frombuffer(encoded, np.uint8), out)
    finally:
        assert (guarded[:GUARD] == 0xAB).all()
        assert (guarded[GUARD + size :] == 0xAB).all()
    return out


@pytest.mark.parametrize("kind", ENCODERS)
def test_bytes_come_back(kind: str) -> None:
    """What was encoded is decoded into the buffer."""
    if kind == "zstd of unknown size" and numcodecs.__version__ < "0.16":
        pytest.skip("this numcodecs decodes none")
    codec, encode = ENCODERS[kind]
    np.testing.assert_array_equal(decode(codec, encode(VOXELS.tobytes()), VOXELS.size), VOXELS)


@pytest.mark.parametrize("kind", ["gzip", "zlib"])
def test_one_member_is_decoded_by_libdeflate(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever follows it is for zlib: an empty member is nothing, other bytes are an error."""
    codec, encode = ENCODERS[kind]
    encoded = encode(VOXELS.tobytes())
    np.testing.assert_array_equal(decode(codec, encoded + encode(b""), VOXELS.size), VOXELS)
    for more in (b"x", bytes(20), encode(b"x"), encoded):
        with pytest.raises(ERRORS):
            decode(codec, encoded + more, VOXELS.size)
    monkeypatch.setattr(chunks, "_decode_streams", None)
    np.testing.assert_array_equal(decode(codec, encoded, VOXELS.size), VOXELS)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("size", [1, VOXELS.size - 1, VOXELS.size + 1, 2 * VOXELS.size])
def test_another_size_is_an_error(kind: str, size: int) -> None:
    """A chunk that decodes to more or fewer bytes than the buffer holds is an error, never a part of a chunk."""
    codec, encode = ENCODERS[kind]
    encoded = encode(VOXELS.tobytes())
    with pytest.raises(ERRORS):
        decode(codec, encoded, size)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_chunk_cut_short_is_an_error(kind: str) -> None:
    """However many of its last bytes are missing, a chunk is an error."""
    codec, encode = ENCODERS[kind]
    encoded = encode(VOXELS.tobytes())
    for size in {*range(0, len(encoded), 1 + len(encoded) // 50), len(encoded) - 1}:
        with pytest.raises(ERRORS):
            decode(codec, encoded[:size], VOXELS.size)


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind != "none"])
@settings(max_examples=examples(20))
@given(data=st.data())
def test_damage_never_leaves_the_buffer(kind: str, data: st.DataObject) -> None:
    """Whatever bytes are changed, nothing beyond the buffer is written."""
    codec, encode = ENCODERS[kind]
    encoded = bytearray(encode(VOXELS.tobytes()))
    places = st.integers(0, 40) | st.integers(0, len(encoded) - 1)
    changes = data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4))
    for place, value in changes:
        encoded[place] = value
    try:
        decode(codec, bytes(encoded), VOXELS.size)
    except ERRORS:
        assume(True)


@pytest.mark.parametrize(("at", "value"), [(4, 2**31 - 1), (4, VOXELS.size - 1), (4, 0), (12, 2**31 - 1), (12, 3)])
def test_a_blosc_header_that_lies_is_an_error(at: int, value: int) -> None:
    """Neither the decoded nor the encoded size that blosc's header tells is believed."""
    encoded = bytearray(numcodecs.Blosc("lz4").encode(VOXELS))
    encoded[at : at + 4] = struct.pack("<I", value)
    with pytest.raises(ValueError, match=r"decodes to|bytes that its header tells of"):
        decode("blosc", bytes(encoded), VOXELS.size)


@pytest.mark.parametrize("says", [0, VOXELS.size - 1, VOXELS.size + 1, 2**32 - 1])
def test_a_zstd_header_that_lies_is_an_error(says: int) -> None:
    """The size that a zstd frame tells must be the buffer's, whatever follows."""
    with pytest.raises(ValueError, match="decodes to"):
        decode("zstd", zstd_frame(VOXELS.tobytes(), says), VOXELS.size)


@pytest.mark.parametrize(
    ("codec", "compress"),
    [
        ("gzip", gzip.compress),
        ("zlib", zlib.compress),
        ("lzma", numcodecs.LZMA(preset=0).encode),
        ("bz2", bz2.compress),
    ],
)
def test_a_bomb_takes_no_memory(codec: str, compress: Callable[[bytes], bytes]) -> None:
    """A small chunk that would decode to 20 MB is an error before it has decoded to more than a few chunks."""
    bomb = compress(bytes(20_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 100000 bytes"):
            decode(codec, bomb, 100_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 700_000


@pytest.mark.parametrize("says", [0, VOXELS.size - 1, VOXELS.size + 1, 2**31 - 1, 2**32 - 1])
def test_an_lz4_header_that_lies_is_an_error(says: int) -> None:
    """The size before an LZ4 block must be the buffer's."""
    encoded = numcodecs.LZ4().encode(VOXELS.tobytes())
    with pytest.raises(ValueError, match="decodes to"):
        decode("lz4", struct.pack("<I", says) + encoded[4:], VOXELS.size)


def test_lzma_that_asks_for_memory_is_an_error() -> None:
    """A stream whose header asks for a window of gigabytes is refused before it gets one."""
    header = lzma.compress(VOXELS.tobytes(), lzma.FORMAT_ALONE)
    with pytest.raises(lzma.LZMAError, match=r"[Mm]emory"):
        decode("lzma", header[:1] + struct.pack("<I", 2**31) + header[5:], VOXELS.size)
