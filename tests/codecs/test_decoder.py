"""Containers of blosc itself, and other encoded chunks: taken apart and put together as on a GPU, they are the voxels.

What is damaged, or of a form that no GPU decodes, is left to the processor, and never taken for voxels.
"""

from __future__ import annotations

from typing import Any

import imagecodecs
import numcodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from codecs_on_cpu import DecoderOnCpu, containers, reading
from isovoxel.codecs import blosc, streams
from isovoxel.codecs.decoder import Batch
from isovoxel.codecs.streams import ChunkCoding, take_apart
from isovoxel.geometry.grid import Index3
from strategies import examples

SIZES = ["uint8", "int16", "float32", "uint64"]
"""One dtype of each size, which is all that a codec knows of it."""
DTYPES = ["uint8", "uint16", "int16", "uint32", "float32", "uint64", "float64"]
SHUFFLES = [numcodecs.Blosc.NOSHUFFLE, numcodecs.Blosc.SHUFFLE, numcodecs.Blosc.BITSHUFFLE]


def image(dtype: str, count: int, seed: int = 0) -> NDArray[Any]:
    """Return smooth values with noise, and a part of nothing but noise, which does not compress."""
    rng = np.random.default_rng(seed)
    values = (100 + 50 * np.sin(np.arange(count) / 300) + rng.integers(0, 8, count)).astype(dtype)
    noise = values[count // 2 : count // 2 + count // 4]
    noise.view(np.uint8)[...] = rng.integers(0, 256, noise.nbytes)
    return values


def decoded(
    encoded: list[bytes | None], coding: ChunkCoding, dtype: Any, batch: Batch, shape: Index3
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return what a GPU would make of chunks, and which of them it leaves; a chunk that is None is not stored."""
    out = np.zeros(shape, dtype)
    return out, DecoderOnCpu(coding, batch=len(encoded)).decode(reading(encoded), batch, out)


def check(chunk: NDArray[Any], encoded: bytes, codec: str, *, left: bool = False) -> None:
    """Check that an encoded chunk is its voxels, or left to the processor."""
    coding = ChunkCoding(codec, (1, 1, chunk.size), chunk.itemsize)
    batch = Batch((1, 1, 1), (0, 0, 0), bytes(chunk.itemsize))
    made, found = decoded([encoded], coding, chunk.dtype, batch, (1, 1, chunk.size))
    assert found.tolist() == [left]
    if not left:
        assert made.tobytes() == chunk.tobytes()


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("dtype", SIZES)
def test_what_blosc_encodes(dtype: str, shuffle: int, codec: str) -> None:
    """With a ragged last block, blocks that do not compress, and blocks that are split and not split, of both."""
    for level, block in ((1, 0), (5, 0), (9, 0), (5, 2**13), (1, 2**16)):
        for count in (30_011, 65_536):
            chunk = image(dtype, count)
            encoded = numcodecs.Blosc(codec, level, shuffle, block).encode(chunk)
            check(chunk, encoded, codec)


def test_blosc_does_split_some_blocks() -> None:
    """Or the test above would not test those."""
    chunk = image("uint16", 65_536)
    split = {codec: numcodecs.Blosc(codec, 5, 1).encode(chunk)[2] & blosc.NOT_SPLIT for codec in ("lz4", "zstd")}
    assert not split["lz4"]
    assert split["zstd"]


@settings(max_examples=examples(60))
@given(
    count=st.integers(1, 70_000),
    dtype=st.sampled_from(DTYPES),
    shuffle=st.sampled_from(SHUFFLES),
    level=st.integers(0, 9),
    block=st.sampled_from([0, 0, 2**11, 2**12, 40_000, 2**16]),
    codec=st.sampled_from(["lz4", "zstd"]),
    seed=st.integers(0, 5),
)
def test_containers_of_any_length(
    count: int, dtype: str, shuffle: int, level: int, block: int, codec: str, seed: int
) -> None:
    """Of one voxel too: they are the voxels, or left to the processor where blocks are very small or odd."""
    chunk = image(dtype, count, seed)
    encoded = numcodecs.Blosc(codec, level, shuffle, block).encode(chunk)
    coding = ChunkCoding(codec, (1, 1, count), chunk.itemsize)
    left = take_apart(np.frombuffer(encoded, np.uint8), coding) is None
    check(chunk, encoded, codec, left=left)
    made = int.from_bytes(encoded[8:12], "little")
    assert not left or made % (8 * chunk.itemsize) or made < 8 * streams.MEAN_BYTES[codec]


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_what_our_kernels_encode(codec: str) -> None:
    """And of imagecodecs, by which the processor encodes."""
    for dtype in DTYPES:
        chunks = image(dtype, 3 * 30_011).reshape(3, -1)
        for chunk, encoded in zip(chunks, containers(chunks, codec), strict=True):
            check(chunk, encoded, codec)
            check(chunk, imagecodecs.blosc_encode(chunk, 5, compressor=codec, shuffle="bitshuffle"), codec)


@pytest.mark.parametrize(
    "encoded",
    [
        numcodecs.Blosc("zlib").encode(np.arange(9000)),
        numcodecs.Blosc("blosclz").encode(np.arange(9000)),
        numcodecs.Blosc("zstd").encode(np.arange(9000)),
        numcodecs.Blosc("lz4").encode(np.arange(9001)),
        b"\x02",
        b"\x02" * 16,
    ],
)
def test_other_containers_are_left_to_the_processor(encoded: bytes) -> None:
    """Of another compressor than the metadata say, of another size, or none at all."""
    check(np.arange(9000), encoded, "lz4", left=True)


def test_a_container_of_very_many_blocks_is_left_to_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no room for what tells of its streams."""
    blocks, coding = 2**12, ChunkCoding("lz4", (1, 1, 2**16), 1)
    place = blosc.HEADER_BYTES + 4 * blocks
    numbers = np.array([2**16, 2**16 // blocks, place + 5] + [place] * blocks + [1], "<u4")
    flags = blosc.NOT_SPLIT | blosc.FORMATS["lz4"] << 5
    encoded = np.frombuffer(bytes([2, 1, flags, 1]) + numbers.tobytes() + b"x", np.uint8)
    assert take_apart(encoded, coding) is None
    monkeypatch.setattr(streams, "most_streams", lambda _: blocks)
    assert take_apart(encoded, coding) is not None


@settings(max_examples=examples(60))
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    chunk=st.tuples(*[st.integers(1, 5)] * 3),
    dtype=st.sampled_from(SIZES),
    data=st.data(),
)
def test_any_part_of_any_batch(shape: Index3, chunk: Index3, dtype: str, data: st.DataObject) -> None:
    """Voxels lie where they belong, and those of chunks that are not stored are the fill value."""
    rng = np.random.default_rng(0)
    grid = tuple(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    padded = rng.integers(1, 200, [g * c for g, c in zip(grid, chunk, strict=True)]).astype(dtype)
    start = tuple(data.draw(st.integers(0, min(n, c) - 1)) for n, c in zip(shape, chunk, strict=True))
    fill, encoded = np.array(7, dtype), list[bytes | None]()
    for place in np.ndindex(*grid):
        part = padded[tuple(slice(at * c, (at + 1) * c) for at, c in zip(place, chunk, strict=True))]
        if rng.random() < 0.3:
            part[...] = fill
            encoded.append(None)
        else:
            encoded.append(numcodecs.Blosc("lz4", 5, 2).encode(np.ascontiguousarray(part)))
    coding = ChunkCoding("lz4", chunk, fill.itemsize)
    wanted = padded[tuple(slice(a, n) for a, n in zip(start, shape, strict=True))]
    batch = Batch((grid[0], grid[1], grid[2]), (start[0], start[1], start[2]), fill.tobytes())
    made, left = decoded(encoded, coding, dtype, batch, (wanted.shape[0], wanted.shape[1], wanted.shape[2]))
    assert not left.any()
    np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_damage_is_left_to_the_processor_or_does_no_harm(codec: str) -> None:
    """Each damaged container is left, or what blosc decodes it to; nothing is read or written beyond."""
    rng, chunk = np.random.default_rng(0), image("uint16", 20_003)
    coding = ChunkCoding(codec, (1, 1, chunk.size), 2)
    batch = Batch((1, 1, 1), (0, 0, 0), b"\0\0")
    healthy = [numcodecs.Blosc(codec, 5, shuffle, 2**13).encode(chunk) for shuffle in SHUFFLES]
    found = {True: 0, False: 0}
    for turn in range(examples(500)):
        encoded = bytearray(healthy[turn % 3])
        head = turn % 2  # where most that can be claimed is
        for _ in range(int(rng.integers(1, 4))):
            encoded[int(rng.integers(48 if head else len(encoded)))] = int(rng.integers(256))
        if turn % 7 == 0:
            del encoded[int(rng.integers(len(encoded))) :]
        made, left = decoded([bytes(encoded)], coding, "uint16", batch, (1, 1, chunk.size))
        found[bool(left[0])] += 1
        if not left[0]:
            assert made.tobytes() == numcodecs.blosc.decompress(bytes(encoded))
    assert min(found.values()) > 20
