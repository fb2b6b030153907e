"""Chunks into bytes."""

from __future__ import annotations

import math
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from isovoxel.output.chunk import BLOSC_LEVELS, ChunkEncoder
from isovoxel.planning.chunking import CODECS, Storage

CHUNK = (5, 7, 11)


def decoded(encoded: NDArray[np.uint8], codec: str, dtype: str) -> NDArray[Any]:
    """Return the chunk that numcodecs finds in the bytes."""
    content = encoded.tobytes() if codec == "none" else numcodecs.Blosc().decode(encoded.tobytes())
    return np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).reshape(CHUNK)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "int32", "float32", ">f4"])
def test_a_chunk_has_zeros_where_the_volume_ends(codec: str, dtype: str) -> None:
    """Whatever the memory held before, and whether the voxels lie contiguous or not."""
    encoder = ChunkEncoder(Storage(CHUNK, CHUNK, codec), np.dtype(dtype))
    scratch, buffer = encoder.scratch(), encoder.buffer()
    whole = np.arange(385).reshape(CHUNK).astype(dtype)
    for voxels in (whole, np.asfortranarray(whole), whole[:3, :, :10], whole[::2, 1:]):
        expected = np.zeros(CHUNK, dtype)
        z, y, x = voxels.shape
        expected[:z, :y, :x] = voxels
        scratch.fill(255)
        buffer.fill(255)
        encoded = encoder.encode(voxels, scratch, buffer)
        assert np.shares_memory(encoded, buffer)
        np.testing.assert_array_equal(decoded(encoded, codec, dtype), expected)


@pytest.mark.parametrize("codec", BLOSC_LEVELS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_blosc_knows_how_long_a_voxel_is(codec: str, dtype: str) -> None:
    """The result's header says it (its fourth byte), and that bits are shuffled (a flag of the third)."""
    encoder = ChunkEncoder(Storage((16, 16, 16), (16, 16, 16), codec), np.dtype(dtype))
    voxels = np.arange(4096).reshape(16, 16, 16).astype(dtype)
    for given in (voxels, voxels.transpose()):
        header = encoder.encode(given, encoder.scratch(), encoder.buffer())[:4]
        assert header[3] == voxels.itemsize
        assert header[2] & 4


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("chunk", [(1, 1, 1), (1, 3, 5), (4, 4, 4), (64, 64, 64)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_buffer_has_room_for_noise(codec: str, dtype: str, chunk: tuple[int, int, int]) -> None:
    """What does not compress gets longer by the margin at most, comes back, and has its checksum behind it."""
    voxels = np.frombuffer(np.random.default_rng(0).bytes(math.prod(chunk) * np.dtype(dtype).itemsize), dtype)
    found = []
    for checksum in (False, True):
        encoder = ChunkEncoder(Storage(chunk, chunk, codec, checksum=checksum), np.dtype(dtype))
        found.append(encoder.encode(voxels.reshape(chunk), encoder.scratch(), encoder.buffer()).tobytes())
    assert found[1] == found[0] + google_crc32c.value(found[0]).to_bytes(4, "little")
    content = found[0] if codec == "none" else numcodecs.Blosc().decode(found[0])
    assert content == voxels.tobytes()
