"""Which zarr arrays are read without zarr-python, and chunks whose bytes cannot be trusted."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from isovoxel.geometry.grid import Box
from isovoxel.readers import chunks
from isovoxel.readers.chunks import DECODERS
from isovoxel.readers.open import open_volume
from isovoxel.readers.zarr_array import ChunkReader
from isovoxel.readers.zarr_python import ZarrReader
from strategies import examples

STACK = np.arange(5 * 6 * 7, dtype="uint16").reshape(5, 6, 7)
CHUNKS = (2, 3, 4)
SHARDS = (4, 6, 8)

DIRECT: dict[str, dict[str, Any]] = {
    "default": {},
    "uncompressed": {"compressors": None},
    "big-endian": {"compressors": None, "serializer": BytesCodec(endian="big")},
    "blosc": {"compressors": BloscCodec(cname="lz4", shuffle="bitshuffle")},
    "zstd": {"compressors": ZstdCodec(checksum=True)},
    "gzip": {"compressors": GzipCodec()},
    "checksum": {"compressors": Crc32cCodec()},
    "gzip, checksum": {"compressors": [GzipCodec(), Crc32cCodec()]},
    "shards": {"shards": SHARDS},
    "shards, index first": {
        "serializer": ShardingCodec(
            chunk_shape=CHUNKS, codecs=[BytesCodec(endian="big"), BloscCodec()], index_location="start"
        ),
        "compressors": None,
        "chunks": SHARDS,
    },
    "flat names": {"chunk_key_encoding": {"name": "default", "separator": "."}},
    "names of v2": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "v2": {"zarr_format": 2},
    "v2, nested": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v2, uncompressed": {"zarr_format": 2, "compressors": None},
    "v2, zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib()},
    "v2, gzip": {"zarr_format": 2, "compressors": numcodecs.GZip()},
    "v2, blosc": {"zarr_format": 2, "compressors": numcodecs.Blosc()},
}
"""Arrays that are read directly."""

INDIRECT: dict[str, dict[str, Any]] = {
    "transposed": {"filters": TransposeCodec(order=(2, 1, 0))},
    "two compressors": {"compressors": [ZstdCodec(), GzipCodec()]},
    "checksum before compression": {"compressors": [Crc32cCodec(), GzipCodec()]},
    "shards, transposed": {"shards": SHARDS, "filters": TransposeCodec(order=(2, 1, 0))},
    "compressed shards": {
        "serializer": ShardingCodec(chunk_shape=CHUNKS, codecs=[BytesCodec()]),
        "compressors": ZstdCodec(),
        "chunks": SHARDS,
    },
    "shards in shards": {
        "serializer": ShardingCodec(chunk_shape=SHARDS, codecs=[ShardingCodec(chunk_shape=CHUNKS)]),
        "compressors": None,
        "chunks": (8, 12, 16),
    },
    "shards whose index has no checksum": {
        "serializer": ShardingCodec(chunk_shape=CHUNKS, codecs=[BytesCodec()], index_codecs=[BytesCodec()]),
        "compressors": None,
        "chunks": SHARDS,
    },
    "v2, Fortran order": {"zarr_format": 2, "order": "F"},
    "v2, filtered": {"zarr_format": 2, "filters": [numcodecs.Delta("<u2")]},
    "v2, lzma without a header": {
        "zarr_format": 2,
        "compressors": numcodecs.LZMA(format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]),
    },
}
"""Arrays that zarr-python reads."""


def make(path: Path, options: dict[str, Any], array: np.ndarray = STACK) -> Path:
    zarr.create_array(path, data=array, **{"chunks": CHUNKS} | options)
    return path


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec:UserWarning")
@pytest.mark.parametrize("kind", [*DIRECT, *INDIRECT])
def test_which_reader_serves_which_array(kind: str, tmp_path: Path) -> None:
    """Usual arrays in local folders are read directly, all others through zarr-python; all are read right."""
    path = make(tmp_path / "a", DIRECT.get(kind) or INDIRECT.get(kind, {}))
    for source in (path, zarr.open_array(path, mode="r")):
        volume = open_volume(source)
        assert isinstance(volume.read, ChunkReader if kind in DIRECT else ZarrReader)
        assert (volume.cached is not None) == (kind in DIRECT)
        # zarr-python itself cannot read part of these.
        if kind != "shards in shards":
            np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)


@pytest.mark.parametrize("kind", DIRECT)
def test_what_is_held_is_less_than_zarr_python_holds(kind: str, tmp_path: Path) -> None:
    """A direct read of chunks that matter holds fewer bytes than one through zarr-python."""
    array = zarr.create_array(tmp_path / "a", dtype="uint16", shape=(512, 512, 512), **direct_of(kind))
    layout = open_volume(array).read.layout
    assert layout.read_overhead < 5 * layout.chunk_bytes + 2**18


def direct_of(kind: str) -> dict[str, Any]:
    """Return the options of a kind, with chunks as they are in large volumes."""
    if "serializer" in DIRECT[kind] and isinstance(DIRECT[kind]["serializer"], ShardingCodec):
        serializer = ShardingCodec(chunk_shape=(64, 64, 128), codecs=[BytesCodec()], index_location="start")
        return {"serializer": serializer, "compressors": None, "chunks": (256, 256, 256)}
    return {"chunks": (64, 64, 128)} | DIRECT[kind] | ({"shards": (256, 256, 256)} if "shards" in DIRECT[kind] else {})


def test_stores_other_than_folders_are_read_by_zarr_python(tmp_path: Path) -> None:
    """Memory, and a store that a caller has changed, even where it lies in a folder."""
    assert isinstance(open_volume(zarr.create_array({}, data=STACK)).read, ZarrReader)

    class Mine(zarr.storage.LocalStore):
        pass

    make(tmp_path / "a", {})
    array = zarr.open_array(Mine(tmp_path / "a", read_only=True), mode="r")
    assert isinstance(open_volume(array).read, ZarrReader)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_axes_of_length_one(zarr_format: int, tmp_path: Path) -> None:
    """Axes of length 1 may stand anywhere; where their chunks are longer, zarr-python reads."""
    names = ("t", "z", "c", "y", "x")
    options: dict[str, Any] = {"dimension_names": names} if zarr_format == 3 else {}
    for length, reader in ((1, ChunkReader), (2, ZarrReader)):
        path = tmp_path / str(length)
        array = zarr.create_array(
            path, data=STACK[None, :, None], chunks=(1, 2, length, 3, 4), zarr_format=zarr_format, **options
        )
        array.attrs["_ARRAY_DIMENSIONS"] = names
        volume = open_volume(path)
        assert isinstance(volume.read, reader)
        np.testing.assert_array_equal(volume.read(Box((1, 1, 1), (5, 6, 7))), STACK[1:, 1:, 1:])


def test_a_version_2_array_without_a_fill_value(tmp_path: Path) -> None:
    """Where v2 metadata leave the fill value open, chunks that are not stored hold zeros."""
    path = make(tmp_path / "a", {"zarr_format": 2})
    metadata = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps(metadata | {"fill_value": None}))
    (path / "0.0.0").unlink()
    volume = open_volume(path)
    assert isinstance(volume.read, ChunkReader)
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), CHUNKS)), np.zeros(CHUNKS))


def test_an_array_that_must_be_complete_is_read_by_zarr_python(tmp_path: Path) -> None:
    """Where a caller's array refuses missing chunks, so does reading it."""
    config = {"read_missing_chunks": False}
    path = make(tmp_path / "a", {})
    try:
        array = zarr.open_array(path, mode="r", config=config)
    except (TypeError, ValueError):
        pytest.skip("this zarr-python fills missing chunks always")
    if not hasattr(array, "config"):
        pytest.skip("this zarr-python fills missing chunks always")
    assert isinstance(open_volume(array).read, ZarrReader)


def test_a_path_relative_to_the_folder_at_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array that was opened by a relative path is read from there, wherever the process is by then."""
    make(tmp_path / "a", {})
    monkeypatch.chdir(tmp_path)
    volumes = [open_volume("a"), open_volume(zarr.open_array("a", mode="r"))]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for volume in volumes:
        np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)


# ---- chunks that cannot be trusted -----------------------------------------------------------------------------------


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


SIZES = [0, VOXELS.size - 1, VOXELS.size + 1, 2**32 - 1]


@pytest.mark.parametrize(
    ("codec", "encoded", "at", "value"),
    [
        *(("blosc", numcodecs.Blosc("lz4").encode, 4, size) for size in (*SIZES[:2], 2**31 - 1)),
        *(("blosc", numcodecs.Blosc("lz4").encode, 12, size) for size in (3, 2**31 - 1)),
        *(("lz4", numcodecs.LZ4().encode, 0, size) for size in (*SIZES, 2**31 - 1)),
        *(("zstd", lambda data, size=size: zstd_frame(data, size), None, size) for size in SIZES),
    ],
)
def test_a_header_that_lies_is_an_error(
    codec: str, encoded: Callable[[bytes], bytes], at: int | None, value: int
) -> None:
    """Neither the decoded size that it tells is believed, nor blosc's encoded one."""
    data = bytearray(encoded(VOXELS.tobytes()))
    if at is not None:
        data[at : at + 4] = struct.pack("<I", value)
    with pytest.raises(ValueError, match="bytes that its header tells of" if at == 12 else "decodes to"):
        decode(codec, bytes(data), VOXELS.size)


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


def test_lzma_that_asks_for_memory_is_an_error() -> None:
    """A stream whose header asks for a window of gigabytes is refused before it gets one."""
    header = lzma.compress(VOXELS.tobytes(), lzma.FORMAT_ALONE)
    with pytest.raises(lzma.LZMAError, match=r"[Mm]emory"):
        decode("lzma", header[:1] + struct.pack("<I", 2**31) + header[5:], VOXELS.size)
