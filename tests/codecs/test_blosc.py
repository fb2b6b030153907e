"""Containers: made by the kernels that a GPU runs, from streams of a CPU's codecs, blosc itself decodes them."""

from __future__ import annotations

from typing import Any

import imagecodecs
import numcodecs.blosc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from codecs_on_cpu import containers, full_chunks, gathered
from isovoxel.codecs import blosc
from strategies import examples

DTYPES = ["uint8", "uint16", "int16", "uint32", "float32", "uint64", "float64"]


def check(chunks: NDArray[Any], codec: str) -> list[bytes]:
    """Check that blosc decodes the containers of chunks to the chunks, and that they are what it would write."""
    made = containers(chunks, codec)
    for container, chunk in zip(made, chunks, strict=True):
        assert imagecodecs.blosc_decode(container) == chunk.tobytes()
        assert numcodecs.blosc.decompress(container) == chunk.tobytes()
        assert len(container) <= chunk.nbytes + blosc.HEADER_BYTES
        header = imagecodecs.blosc_encode(
            chunk,
            level=5,
            compressor=codec,
            shuffle="bitshuffle",
            typesize=chunk.dtype.itemsize,
        )[:8]
        if not (container[2] | header[2]) & blosc.STORED:
            assert container[:2] + container[3:8] == header[:2] + header[3:8]
            assert container[2] == header[2] | blosc.NOT_SPLIT  # which blosc says of codecs that split blocks
    return made


def image(dtype: str, count: int, seed: int = 0) -> NDArray[Any]:
    """Return values as an image has them: smooth, with noise in the lowest bits."""
    rng = np.random.default_rng(seed)
    values = 100 + 50 * np.sin(np.arange(count) / 300) + rng.integers(0, 8, count)
    return values.astype(dtype)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blosc_decodes_what_the_kernels_put_together(dtype: str, codec: str) -> None:
    """Several chunks, of several blocks of which the last is ragged, of each size of voxels."""
    chunks = image(dtype, 3 * 5 * 10_007).reshape(3, -1)
    made = check(chunks, codec)
    assert sum(map(len, made)) < chunks.nbytes


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_noise_is_stored(codec: str) -> None:
    """Streams that would be longer than their blocks are these, and a container of nothing else is the chunk."""
    noise = np.random.default_rng(0).integers(0, 65536, (1, 100_000)).astype(np.uint16)
    (made,) = check(noise, codec)
    assert len(made) == noise.nbytes + blosc.HEADER_BYTES
    assert made[2] & blosc.STORED
    half = noise.copy()
    half[:, 40_000:] = 7
    (made,) = check(half, codec)
    assert len(made) < half.nbytes
    assert not made[2] & blosc.STORED


@given(nbytes=st.integers(1, 200), at=st.lists(st.integers(0, 599), max_size=3))
def test_chunks_with_a_bit_set_are_marked(nbytes: int, at: list[int]) -> None:
    """Wherever it is, in chunks of any length, which lie side by side."""
    chunks = np.zeros((3, nbytes), np.uint8)
    for number in at:
        chunks.reshape(-1)[number % chunks.size] = 1 << number % 8
    np.testing.assert_array_equal(full_chunks(chunks), chunks.any(axis=1))


@settings(max_examples=examples(40))
@given(
    count=st.integers(1, 80_000),
    chunks=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    codec=st.sampled_from(["lz4", "zstd"]),
    seed=st.integers(0, 5),
)
def test_chunks_of_any_length(count: int, chunks: int, dtype: str, codec: str, seed: int) -> None:
    """Of one voxel too, and of numbers of voxels that are no multiple of 8."""
    check(image(dtype, count * chunks, seed).reshape(chunks, count), codec)


@settings(max_examples=examples(60))
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    chunk=st.tuples(*[st.integers(1, 5)] * 3),
    before=st.tuples(*[st.integers(0, 3)] * 3),
    after=st.tuples(*[st.integers(0, 3)] * 3),
    dtype=st.sampled_from(["uint8", "int16", "float32", "uint64"]),
    data=st.data(),
)
def test_chunks_are_cut_out_of_any_part_of_an_array(
    shape: tuple[int, ...],
    chunk: tuple[int, int, int],
    before: tuple[int, ...],
    after: tuple[int, ...],
    dtype: str,
    data: st.DataObject,
) -> None:
    """Wherever the part lies; what is beyond it is 0, even where the array goes on."""
    whole = tuple(a + n + b for a, n, b in zip(before, shape, after, strict=True))
    array = np.random.default_rng(0).integers(1, 200, whole).astype(dtype)
    part = tuple(slice(a, a + n) for a, n in zip(before, shape, strict=True))
    grid = [-(-n // c) for n, c in zip(shape, chunk, strict=True)]
    padded = np.zeros([g * c for g, c in zip(grid, chunk, strict=True)], dtype)
    padded[tuple(slice(n) for n in shape)] = array[part]
    z, y, x = grid
    expected = padded.reshape(z, chunk[0], y, chunk[1], x, chunk[2]).transpose(0, 2, 4, 1, 3, 5)
    expected = expected.reshape(z * y * x, -1)
    first = data.draw(st.integers(0, len(expected) - 1))
    number = data.draw(st.integers(1, len(expected) - first))
    made = gathered(array, part, chunk, first, number)
    np.testing.assert_array_equal(made, expected[first : first + number])
