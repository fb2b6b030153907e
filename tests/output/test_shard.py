"""Shards of chunks that are encoded already, and checksums by which any reader finds a byte that has changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import tensorstore
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec

import isovoxel
from isovoxel.errors import CorruptInputError
from isovoxel.geometry.grid import Box, Index3, VoxelGrid
from isovoxel.output.shard import FileShardWriter, ShardReceipt, holds
from isovoxel.planning.chunking import CODECS, Storage, default_storage
from stored_as import codec_fields
from strategies import new_output

STORAGE = Storage((2, 3, 4), (4, 6, 8), "none")


def test_chunks_come_one_by_one_or_in_batches_in_any_order(tmp_path: Path) -> None:
    """Readers find each where it belongs, and zeros where none is."""
    voxels = np.random.default_rng(0).integers(1, 65536, STORAGE.shard).astype("<u2")
    voxels[2:, :3] = 0
    array = zarr.create_array(
        tmp_path / "a",
        shape=voxels.shape,
        dtype=voxels.dtype,
        chunks=STORAGE.chunk,
        shards=STORAGE.shard,
        compressors=None,
        serializer=BytesCodec(),
    )
    encoded = {
        place: voxels[tuple(slice(i * n, (i + 1) * n) for i, n in zip(place, STORAGE.chunk, strict=True))].tobytes()
        for place in np.ndindex(2, 2, 2)
    }
    shard = FileShardWriter(tmp_path / "a" / "c" / "0" / "0" / "0", tmp_path / "file", STORAGE, lambda: None)
    for place in [(1, 1, 1), (0, 0, 1)]:
        shard.write_encoded(place, np.frombuffer(encoded[place], np.uint8))
    batch = [(0, 1, 1), (0, 0, 0), (0, 1, 0), (1, 1, 0)]
    sizes = np.array([len(encoded[place]) for place in batch])
    body = np.frombuffer(b"".join(encoded[place] for place in batch), np.uint8)
    shard.write_batch(tuple(np.array(batch).T), sizes, body)
    shard.finish()
    receipt = shard.seal()
    assert holds(tmp_path / "a" / "c" / "0" / "0" / "0", receipt, read=True)
    np.testing.assert_array_equal(array[...], voxels)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "a")}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), voxels)


@pytest.mark.parametrize("finished", [False, True])
def test_nothing_is_left_of_a_shard_that_is_given_up(tmp_path: Path, finished: bool) -> None:
    """Whether all of it was written or not; what was at its place before stays."""
    (tmp_path / "shard").write_bytes(b"before")
    shard = FileShardWriter(tmp_path / "shard", tmp_path / "file", STORAGE, lambda: None)
    shard.write_encoded((0, 0, 0), np.zeros(48, np.uint8))
    if finished:
        shard.finish()
    shard.drop()
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]
    assert not holds(tmp_path / "shard", ShardReceipt(shard.size, shard.crc, 0), read=True)


# ---- checksums of chunks ---------------------------------------------------------------------------------------------


SHAPE = (17, 13, 23)
CHUNK, SHARD = (8, 6, 10), (16, 12, 20)


def by_isovoxel(path: Path, box: Box) -> NDArray[Any]:
    return isovoxel.open_volume(path / "0").read(box)


def by_zarr(path: Path, box: Box) -> NDArray[Any]:
    return np.asarray(zarr.open_array(path / "0", mode="r")[box.slices])


def by_tensorstore(path: Path, box: Box) -> NDArray[Any]:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "0")}}
    found: NDArray[Any] = tensorstore.open(spec, read=True).result()[box.slices].read().result()
    return found


READERS = {"isovoxel": by_isovoxel, "zarr": by_zarr, "tensorstore": by_tensorstore}


def written(path: Path, storage: Storage) -> NDArray[Any]:
    """Write an output of noise, and return its voxels."""
    data = np.random.default_rng(1).integers(0, 4000, SHAPE, np.uint16)
    writer = new_output(path, grid=VoxelGrid(SHAPE), dtype=data.dtype, storage=storage)
    writer.write(Box.whole(SHAPE), data)
    writer.close()
    return data


def stored_chunks(path: Path) -> Iterator[tuple[Index3, Path, int, int]]:
    """Yield each chunk of an output: its place, its shard's file, where it begins there and its length."""
    per_shard = [s // c for s, c in zip(SHARD, CHUNK, strict=True)]
    for file in sorted((path / "0" / "c").rglob("*")):
        if file.is_file():
            place = [int(n) for n in file.relative_to(path / "0" / "c").parts]
            entries = file.read_bytes()[-16 * int(np.prod(per_shard)) - 4 : -4]
            index = np.frombuffer(entries, "<u8").reshape(*per_shard, 2)
            for within in np.ndindex(*per_shard):
                offset, length = map(int, index[within])
                if length < 2**63:
                    z, y, x = (p * n + i for p, n, i in zip(place, per_shard, within, strict=True))
                    yield (z, y, x), file, offset, length


def voxels_of(chunk: Index3) -> Box:
    z, y, x = (c * n for c, n in zip(chunk, CHUNK, strict=True))
    return Box((z, y, x), (z + CHUNK[0], y + CHUNK[1], x + CHUNK[2])) & Box.whole(SHAPE)


@pytest.mark.parametrize("codec", CODECS)
def test_a_changed_byte_of_any_chunk_is_found_by_every_reader(tmp_path: Path, codec: str) -> None:
    """One byte anywhere in a chunk, its checksum included: that chunk cannot be read, and all others can."""
    data = written(tmp_path / "out", Storage(CHUNK, SHARD, checksum=True, **codec_fields(codec)))
    chunks = list(stored_chunks(tmp_path / "out"))
    assert len(chunks) == 3 * 3 * 3
    rng = np.random.default_rng(2)
    for chunk, file, offset, length in chunks[::4]:
        at = offset + int(rng.integers(length))
        whole = file.read_bytes()
        file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :])
        for name, read in READERS.items():
            with pytest.raises(CorruptInputError if name == "isovoxel" else ValueError) as caught:
                read(tmp_path / "out", voxels_of(chunk))
            if isinstance(caught.value, CorruptInputError):
                assert f"chunk {chunk}" in str(caught.value)
        file.write_bytes(whole)
    for read in READERS.values():
        np.testing.assert_array_equal(read(tmp_path / "out", Box.whole(SHAPE)), data)


@pytest.mark.parametrize("codec", CODECS)
def test_new_outputs_have_checksums_and_the_metadata_say_so(tmp_path: Path, codec: str) -> None:
    """The codec stands last inside the shards, and a chunk is longer by it than without."""
    storage = default_storage(SHAPE, 2, codec=codec, chunk=CHUNK, shard=SHARD)
    assert storage == Storage(CHUNK, SHARD, checksum=True, **codec_fields(codec))
    written(tmp_path / "out", storage)
    written(tmp_path / "without", Storage(CHUNK, SHARD, **codec_fields(codec)))
    codecs = [
        [
            codec["name"]
            for codec in json.loads((path / "0" / "zarr.json").read_bytes())["codecs"][0]["configuration"]["codecs"]
        ]
        for path in (tmp_path / "out", tmp_path / "without")
    ]
    assert codecs[0] == [*codecs[1], "crc32c"]
    longer = zip(stored_chunks(tmp_path / "out"), stored_chunks(tmp_path / "without"), strict=True)
    for (*_, file, offset, length), (*_, other, start, plain) in longer:
        content = file.read_bytes()[offset : offset + length]
        assert content[:-4] == other.read_bytes()[start : start + plain]
        assert int.from_bytes(content[-4:], "little") == google_crc32c.value(content[:-4])


def test_no_version_without_shards_has_checksums() -> None:
    """OME-Zarr 0.4 has no codec for them, so its outputs are as they were."""
    assert not default_storage(SHAPE, 2, ome_zarr="0.4").checksum
    with pytest.raises(ValueError, match=r"0\.4 has no checksums"):
        Storage(CHUNK, CHUNK, ome_zarr="0.4", checksum=True)
