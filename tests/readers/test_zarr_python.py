"""What zarr-python reads is decoded with the same care: chunks cut short, and chunks that decode to far more."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
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
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from isovoxel.errors import CorruptInputError
from isovoxel.geometry.grid import Box
from isovoxel.readers.open import open_volume
from isovoxel.readers.zarr_python import ZarrReader

VOXELS = np.random.default_rng(1).integers(0, 60_000, (8, 16, 16)).astype("uint16")
WHOLE = Box.whole(VOXELS.shape)
CHUNK = (4, 8, 8)
V3 = {"blosc": BloscCodec(), "zstd": ZstdCodec(), "gzip": GzipCodec()}
V2 = {
    codec.codec_id: codec
    for codec in (
        numcodecs.Blosc(),
        numcodecs.Zstd(),
        numcodecs.GZip(),
        numcodecs.Zlib(),
        numcodecs.LZ4(),
        numcodecs.LZMA(preset=0),
        numcodecs.BZ2(),
    )
}
KINDS: dict[str, dict[str, Any]] = {
    **{f"v3, {name}": {"compressors": codec} for name, codec in V3.items()},
    **{f"v3, {name}, checksum": {"compressors": [codec, Crc32cCodec()]} for name, codec in V3.items()},
    **{
        f"v3, {name}, big": {"compressors": codec, "serializer": BytesCodec(endian="big")} for name, codec in V3.items()
    },
    **{
        f"v3, {name}, transposed": {"compressors": codec, "filters": TransposeCodec(order=(1, 2, 0))}
        for name, codec in V3.items()
    },
    **{
        f"v3, {name}, shards": {
            "chunks": (8, 16, 16),
            "compressors": None,
            "serializer": ShardingCodec(chunk_shape=CHUNK, codecs=[BytesCodec(), codec]),
        }
        for name, codec in V3.items()
    },
    **{f"v2, {name}": {"zarr_format": 2, "compressors": codec} for name, codec in V2.items()},
    **{f"v2, {name}, Fortran": {"zarr_format": 2, "compressors": codec, "order": "F"} for name, codec in V2.items()},
    "v2, filtered": {"zarr_format": 2, "compressors": numcodecs.Zlib(), "filters": numcodecs.Delta("<u2")},
    "v2, blosc, filtered": {"zarr_format": 2, "compressors": numcodecs.Blosc(), "filters": numcodecs.Delta("<u2")},
    "v2, zlib of blosc, filtered": {
        "zarr_format": 2,
        "compressors": numcodecs.Zlib(),
        "filters": [numcodecs.Delta("<u2"), numcodecs.Blosc()],
    },
    "v2, blosc alone, filtered": {"zarr_format": 2, "compressors": None, "filters": [numcodecs.Blosc()]},
    "v3, blosc of gzip, filtered": {"compressors": [GzipCodec(), BloscCodec()]},
}


def make(kind: str) -> tuple[zarr.Array, dict[str, Any]]:
    """Write an array into memory, and return it with its store."""
    store = zarr.storage.MemoryStore()
    array = zarr.create_array(store, data=VOXELS, **{"chunks": CHUNK} | KINDS[kind])
    return array, store._store_dict


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_whole_is_read(kind: str) -> None:
    """Every layout is read as zarr-python reads it, and by a reader that came from another process as well."""
    array, _ = make(kind)
    volume = open_volume(array)
    assert isinstance(volume.read, ZarrReader)
    np.testing.assert_array_equal(volume.read(WHOLE), VOXELS)
    np.testing.assert_array_equal(array[...], VOXELS)


def test_a_reader_can_be_sent_to_another_process(tmp_path: Path) -> None:
    """The codecs of a pickled reader are those of the first."""
    options = KINDS["v3, blosc, transposed"]
    zarr.create_array(tmp_path / "a", data=VOXELS, **{"chunks": CHUNK} | options)
    read = open_volume(tmp_path / "a").read
    assert isinstance(read, ZarrReader)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(read))(WHOLE), VOXELS)  # noqa: S301 - it was made here


def last(store: dict[str, Any]) -> str:
    return max(key for key in store if not key.endswith(("zarr.json", ".zarray", ".zattrs")))


@pytest.mark.sampled(41)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "shards" not in kind])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_chunk_cut_short_is_corrupt(kind: str, keep: float) -> None:
    """Whatever lies behind a chunk in memory is never read in its place."""
    array, store = make(kind)
    key = last(store)
    data = store[key].to_bytes()
    store[key] = zarr.core.buffer.cpu.Buffer.from_bytes(data[: int(len(data) * keep)])
    read = open_volume(array).read
    with pytest.raises(CorruptInputError, match=r"chunk \(1, 1, 1\)") as error:
        read(WHOLE)
    assert (error.value.start, error.value.stop) == ((4, 8, 8), (8, 16, 16))
    np.testing.assert_array_equal(read(Box((0, 0, 0), (4, 16, 16))), VOXELS[:4])


BOMBS: dict[str, Callable[[], bytes]] = {
    "blosc": lambda: struct.pack("<BBBBIII", 2, 1, 0x33, 2, 2**31 - 1, 2**31 - 1, 16 + 40) + bytes(40),
    "zstd": lambda: b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**36) + bytes(40),
    "gzip": lambda: gzip.compress(bytes(20_000_000)),
    "zlib": lambda: zlib.compress(bytes(20_000_000)),
    "lz4": lambda: struct.pack("<I", 2**31 - 1) + bytes(40),
    "lzma": lambda: lzma.compress(bytes(20_000_000), preset=0),
    "bz2": lambda: bz2.compress(bytes(20_000_000)),
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.endswith(("shards", "checksum", "filtered"))])
def test_a_bomb_takes_no_memory(kind: str) -> None:
    """A chunk of 512 bytes that would decode to megabytes is refused before it has."""
    array, store = make(kind)
    bomb = BOMBS[kind.split(", ")[1]]()
    store[last(store)] = zarr.core.buffer.cpu.Buffer.from_bytes(bomb)
    read = open_volume(array).read
    read(Box((0, 0, 0), (1, 1, 1)))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptInputError, match=r"chunk \(1, 1, 1\).*decodes to"):
            read(Box((4, 8, 8), (8, 16, 16)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000  # bzip2 works in blocks of 900 kB
