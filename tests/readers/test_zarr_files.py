"""Reading chunks from files that are damaged, cut short, replaced, or that lie."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from isovoxel.errors import CorruptInputError, InputUnavailableError
from isovoxel.geometry.grid import Box
from isovoxel.readers.open import open_volume
from isovoxel.readers.zarr_array import ChunkReader
from isovoxel.readers.zarr_files import IndexCache
from isovoxel.readers.zarr_layout import INDEX_CACHE_BYTES, INDEX_COST

STACK = np.random.default_rng(3).integers(0, 9, (8, 8, 8)).astype("uint16")
WHOLE = Box.whole(STACK.shape)
WHERE = r"chunk \(1, 0, 1\) of .*a is corrupt: "


def make(path: Path, **options: Any) -> ChunkReader:
    """Write chunks of 4 x 4 x 4 voxels, and return their reader."""
    zarr.create_array(path, data=STACK, overwrite=True, **{"chunks": (4, 4, 4)} | options)
    read = open_volume(path).read
    assert isinstance(read, ChunkReader)
    return read


def sharded(path: Path, location: str = "end", **options: Any) -> ChunkReader:
    """Write two shards of eight chunks each, behind one another along z."""
    serializer = ShardingCodec(
        chunk_shape=(4, 4, 4), codecs=[BytesCodec(), BloscCodec()], index_location=location, **options
    )
    zarr.create_array(
        path, data=np.concatenate([STACK, STACK]), chunks=(8, 8, 8), serializer=serializer, compressors=None
    )
    return open_volume(path).read


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("compressors", "damage", "message"),
    [
        (None, lambda data: data[:-1], "decodes to 127 bytes instead of 128"),
        (None, lambda data: data + b"x", "decodes to 129 bytes instead of 128"),
        (None, lambda data: data * 1000, "more than any chunk of 128 bytes takes"),
        (BloscCodec(), lambda _: b"", "are no blosc buffer"),
        (BloscCodec(), lambda data: data[:-1], "bytes that its header tells of"),
        (BloscCodec(), lambda data: data[:4] + struct.pack("<I", 2**30) + data[8:], "decodes to 1073741824 bytes"),
        (ZstdCodec(), lambda _: b"garbage", "no zstd frame"),
        (ZstdCodec(), lambda data: data[:-1], ""),
        (GzipCodec(), lambda _: b"garbage", ""),
        (GzipCodec(), lambda data: data[:-1], "cut short"),
        (Crc32cCodec(), lambda data: b"x" + data[1:], "does not have the checksum"),
        (Crc32cCodec(), lambda data: data[:-1], "does not have the checksum"),
        (Crc32cCodec(), lambda _: b"", "decodes to 0 bytes"),
    ],
)
def test_a_damaged_chunk_is_named_by_its_place(
    compressors: Any, damage: Callable[[bytes], bytes], message: str, *, cached: bool, tmp_path: Path
) -> None:
    """A chunk that cannot be decoded is an error that says where it lies; the others are still read."""
    read = make(tmp_path / "a", compressors=compressors)
    if cached:
        read = read.cached(10**6)
    file = tmp_path / "a/c/1/0/1"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    for _ in range(2):
        with pytest.raises(CorruptInputError, match=WHERE + ".*" + message):
            read(WHOLE)
    np.testing.assert_array_equal(read(Box((0, 0, 0), (8, 8, 4))), STACK[:, :, :4])
    file.write_bytes(whole)
    np.testing.assert_array_equal(read(WHOLE), STACK)


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda entries: entries[5].__setitem__(0, 2**40), "ends at byte"),
        (lambda entries: entries[5].__setitem__(1, 2**63), "ends at byte"),
        (lambda entries: entries[5].__setitem__(1, 0), "no blosc buffer"),
        (lambda entries: entries[5].__setitem__(1, 2**64 - 1), "ends at byte"),
        (lambda entries: entries[5].__setitem__(0, entries[5][0] + 1), ""),
    ],
)
def test_an_index_that_lies(location: str, damage: Callable[[np.ndarray], None], message: str, tmp_path: Path) -> None:
    """An entry of a shard's index that leads nowhere is an error, though the index' checksum is right."""
    read = sharded(tmp_path / "a", location)
    file = tmp_path / "a/c/0/0/0"
    data = bytearray(file.read_bytes())
    at = slice(0, 132) if location == "start" else slice(len(data) - 132, len(data))
    entries = np.frombuffer(data[at][:-4], "<u8").reshape(8, 2).copy()
    damage(entries)
    data[at] = entries.tobytes() + struct.pack("<I", google_crc32c.value(entries.tobytes()))
    file.write_bytes(data)
    with pytest.raises(CorruptInputError, match=WHERE + ".*" + message):
        read(WHOLE)
    np.testing.assert_array_equal(read(Box((0, 0, 0), (4, 8, 8))), STACK[:4])


@pytest.mark.parametrize("location", ["start", "end"])
def test_a_damaged_index_is_found_out(location: str, tmp_path: Path) -> None:
    """A shard whose index is damaged or missing is an error at its first chunk; other shards are still read."""
    read = sharded(tmp_path / "a", location)
    file = tmp_path / "a/c/1/0/0"
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[7 if location == "start" else -7] ^= 1
    for data, message in ((damaged, "does not have the checksum"), (whole[:100], "fewer than the 132 of its index")):
        file.write_bytes(data)
        with pytest.raises(CorruptInputError, match=rf"shard \(1, 0, 0\) of .* is corrupt: .*{message}") as error:
            read(Box((0, 0, 0), (16, 8, 8)))
        assert (error.value.start, error.value.stop) == ((8, 0, 0), (16, 8, 8))
    np.testing.assert_array_equal(read(WHOLE), STACK)


def test_a_shard_that_was_replaced_is_read_with_its_own_index(tmp_path: Path) -> None:
    """An index that is kept is not used for another file at the same place."""
    read = sharded(tmp_path / "a")
    box = Box((0, 0, 0), (16, 8, 8))
    np.testing.assert_array_equal(read(box)[8:], STACK)
    zarr.create_array(
        tmp_path / "b", data=STACK[::-1] * 500, chunks=(4, 4, 4), shards=(8, 8, 8), compressors=BloscCodec()
    )
    (tmp_path / "b/c/0/0/0").replace(tmp_path / "a/c/1/0/0")
    np.testing.assert_array_equal(read(box), np.concatenate([STACK, STACK[::-1] * 500]))
    (tmp_path / "a/c/1/0/0").unlink()
    np.testing.assert_array_equal(read(box)[8:], 0)


@pytest.mark.parametrize("place", ["a/c/0/0/0", "a/c/1/1"])
def test_what_is_no_file_is_a_damaged_chunk(tmp_path: Path, place: str) -> None:
    """Where a chunk's file is a folder, or its folder a file, something is wrong, and not a chunk left out."""
    make(tmp_path / "a", fill_value=5)
    if (tmp_path / place).is_file():
        (tmp_path / place).unlink()
        (tmp_path / place).mkdir()
    else:
        shutil.rmtree(tmp_path / place)
        (tmp_path / place).touch()
    with pytest.raises(CorruptInputError, match=r"it is no file \((Is|Not) a directory\)"):
        open_volume(zarr.open_array(tmp_path / "a", mode="r")).read(WHOLE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_chunk_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    """A chunk that is there but cannot be opened is never taken for one that is not stored."""
    read = make(tmp_path / "a")
    (tmp_path / "a/c/1/0/1").chmod(0)
    with pytest.raises(InputUnavailableError, match=r"in chunk \(1, 0, 1\): Permission denied"):
        read(WHOLE)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of open files")
def test_no_file_stays_open(tmp_path: Path) -> None:
    """However many files were read, and whether that failed or not, none of them stays open."""
    read = make(tmp_path / "a", chunks=(1, 2, 2))
    before = len(list(Path("/proc/self/fd").iterdir()))
    np.testing.assert_array_equal(read(WHOLE), STACK)
    (tmp_path / "a/c/4/2/3").write_bytes(b"")
    with pytest.raises(CorruptInputError):
        read(WHOLE)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_indices_that_are_kept_are_bounded() -> None:
    """Indices are let go of in the order of their last use, once they take too many bytes."""
    cache = IndexCache()
    index = np.zeros((1000, 2), np.uint64)
    most = INDEX_CACHE_BYTES // (index.nbytes + INDEX_COST)
    stamp = (1, 2, 3)
    for z in range(most):
        cache.put((z, 0, 0), stamp, index.copy())
        cache.put((z, 0, 0), stamp, index.copy())
    assert cache.get((0, 0, 0), stamp) is not None
    assert cache.get((0, 0, 0), (1, 2, 4)) is None
    cache.put((most, 0, 0), stamp, index.copy())
    assert [z for z in range(most + 1) if cache.get((z, 0, 0), stamp) is None] == [1]
    cache.put((0, 1, 0), stamp, np.zeros((INDEX_CACHE_BYTES // 16, 2), np.uint64))
    assert cache.get((0, 1, 0), stamp) is None
    cache.put((0, 0, 0), stamp, index)
    assert cache.get((0, 0, 0), stamp) is index
