"""Shards of chunks that are encoded already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from zarr.codecs import BytesCodec

from isovoxel.output.shard import FileShardWriter, ShardReceipt, holds
from isovoxel.planning.chunking import Storage

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
