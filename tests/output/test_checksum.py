"""Checksums of chunks: whoever reads an output finds the byte that has changed."""

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

import isovoxel
from isovoxel.errors import CorruptInputError
from isovoxel.geometry.grid import Box, Index3, VoxelGrid
from isovoxel.planning.chunking import CODECS, Storage, default_storage
from stored_as import codec_fields
from strategies import new_output

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
