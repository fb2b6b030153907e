"""Which zarr arrays are read without zarr-python."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from isovoxel.geometry.grid import Box
from isovoxel.readers.open import open_volume
from isovoxel.readers.zarr_array import ChunkReader
from isovoxel.readers.zarr_python import ZarrReader

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


def test_an_array_in_memory_is_read_by_zarr_python() -> None:
    """Only folders are read directly, not other stores."""
    assert isinstance(open_volume(zarr.create_array({}, data=STACK)).read, ZarrReader)


def test_a_wrapped_store_is_read_by_zarr_python(tmp_path: Path) -> None:
    """A store that a caller has changed is asked, even where it lies in a folder."""

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
