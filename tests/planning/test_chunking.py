"""Chunks, shards and what writing them costs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.errors import OptionError
from isovoxel.geometry.grid import Index3
from isovoxel.planning.chunking import CODECS, Storage, default_storage, helper_overhead, smaller, write_overhead
from stored_as import codec_fields

lengths = st.integers(1, 300) | st.integers(1, 10**6)
shapes = st.tuples(lengths, lengths, lengths)


@given(shapes, st.sampled_from([1, 2, 4]))
def test_default_shards_are_files_of_a_sensible_size(shape: Index3, itemsize: int) -> None:
    """A shard is whole chunks of at most 128, at most 512^3 voxels, and 16 MiB where the volume has them."""
    storage = default_storage(shape, itemsize)
    assert storage.chunk == tuple(min(n, 128) for n in shape)
    assert math.prod(storage.shard) <= 512**3
    assert storage.chunks_per_shard <= 4096
    covers = all(s >= n for s, n in zip(storage.shard, shape, strict=True))
    # A very thin volume stops growing at the number of chunks that zarr still handles well.
    crowded = 2 * storage.chunks_per_shard > 4096
    assert covers or crowded or math.prod(storage.shard) * itemsize >= 2**22
    assert all(s < n + c for s, n, c in zip(storage.shard, shape, storage.chunk, strict=True))


@pytest.mark.parametrize(
    ("shape", "itemsize", "chunk", "shard"),
    [
        ((1, 1, 1), 1, (1, 1, 1), (1, 1, 1)),
        ((172, 160, 159), 1, (128, 128, 128), (256, 128, 128)),
        ((500, 500, 500), 2, (128, 128, 128), (128, 128, 128)),
        ((1000, 1000, 1000), 2, (128, 128, 128), (256, 256, 256)),
        ((2048, 2048, 2048), 2, (128, 128, 128), (256, 256, 256)),
        ((2048, 4096, 4096), 2, (128, 128, 128), (512, 512, 512)),
        ((20, 10**5, 10**5), 1, (20, 128, 128), (20, 512, 512)),
    ],
)
def test_defaults(shape: Index3, itemsize: int, chunk: Index3, shard: Index3) -> None:
    """Large shards for large outputs, small ones to share the work, few files for a small result."""
    assert default_storage(shape, itemsize) == Storage(chunk, shard, checksum=True)


def test_small_chunks_do_not_make_crowded_shards() -> None:
    """With chunks of 8 a shard stays at 16 of them per axis."""
    assert default_storage((1000, 1000, 1000), 1, chunk=(8, 8, 8)).shard == (128, 128, 128)


@pytest.mark.parametrize(
    ("chunk", "shard", "expected"),
    [
        ((64, 64, 64), None, Storage((50, 64, 64), (50, 512, 256), checksum=True)),
        ((64, 64, 64), (64, 128, 2048), Storage((50, 64, 64), (50, 128, 1024), checksum=True)),
        (None, (300, 300, 300), Storage((50, 100, 100), (50, 300, 300), checksum=True)),
        (None, (16, 16, 16), Storage((16, 16, 16), (16, 16, 16), checksum=True)),
        (None, (1009, 1009, 1009), Storage((50, 128, 128), (50, 1024, 1024), checksum=True)),
    ],
)
def test_what_the_user_gives_is_kept_and_clipped(chunk: Index3 | None, shard: Index3 | None, expected: Storage) -> None:
    """Chunks and shards of the user's are only cut to what the volume needs, and complete each other."""
    assert default_storage((50, 1000, 1000), 1, chunk=chunk, shard=shard) == expected


@pytest.mark.parametrize(
    ("chunk", "shard", "codec", "message"),
    [
        ((0, 1, 1), None, "zstd", "at least one voxel, but it is \\(0, 1, 1\\)"),
        (None, (1, -4, 1), "blosc-lz4", "every side of a shard needs at least one voxel"),
        ((64, 64, 64), (64, 100, 64), "blosc-lz4", "along y the shard has 100 voxels and the chunk 64"),
        (None, (128, 257, 128), "blosc-lz4", "257 voxels along y cannot be cut into chunks of 32 to 128"),
        (None, None, "gif", "there is no codec 'gif'; choose one of blosc-lz4, blosc-zstd, zstd, gzip, none"),
        (
            (1000, 1000, 1000),
            None,
            "zstd",
            "4000000000 bytes, more than the 2147483631 that zstd can compress",
        ),
    ],
)
def test_storage_that_makes_no_sense_is_refused(
    chunk: Index3 | None, shard: Index3 | None, codec: str, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        default_storage((1000, 1000, 1000), 4, codec=codec, chunk=chunk, shard=shard)


@given(shapes, st.sampled_from([1, 4]))
def test_ome_zarr_04_has_a_file_for_each_chunk(shape: Index3, itemsize: int) -> None:
    """The chunks are those of 0.5, none is made smaller for lack of room, and they have no helpers and no index."""
    storage = default_storage(shape, itemsize, ome_zarr="0.4")
    assert storage.shard == storage.chunk == default_storage(shape, itemsize).chunk
    assert (storage.zarr_format, storage.sharded, smaller(storage)) == (2, False, None)
    assert helper_overhead(storage, itemsize, 7) == 0


@pytest.mark.parametrize("shard", [(64, 64, 64), (128, 128, 128)])
def test_shards_of_ome_zarr_04_are_refused(shard: Index3) -> None:
    """Of one chunk too, for whoever asks for them means another version; and versions that nobody writes."""
    with pytest.raises(OptionError, match=r"OME-Zarr 0\.4 has no shards, .* leave out --shard"):
        default_storage((500, 500, 500), 2, chunk=(64, 64, 64), shard=shard, ome_zarr="0.4")
    with pytest.raises(OptionError, match="has no shards"):
        Storage((64, 64, 64), (128, 64, 64), ome_zarr="0.4")
    with pytest.raises(OptionError, match=r"'0\.3' is not written; choose one of 0\.4, 0\.5"):
        default_storage((5, 5, 5), 1, ome_zarr="0.3")


@given(shapes, st.sampled_from([1, 4]))
def test_shards_get_smaller_until_one_chunk_is_left(shape: Index3, itemsize: int) -> None:
    """Each step is a valid storage of fewer voxels that costs less to write, and the last is one chunk."""
    storage = default_storage(shape, itemsize)
    while (step := smaller(storage)) is not None:
        assert math.prod(step.shard) < math.prod(storage.shard)
        assert write_overhead(step, itemsize) < write_overhead(storage, itemsize)
        storage = step
    assert storage.shard == storage.chunk


def test_the_longest_side_is_halved_in_whole_chunks() -> None:
    """Three chunks become two, and the first of equal sides goes first."""
    step = smaller(Storage((10, 20, 20), (20, 60, 60)))
    assert step == Storage((10, 20, 20), (20, 40, 60))


@pytest.mark.parametrize("codec", CODECS)
def test_helpers_hold_what_a_writing_thread_holds_and_one_more_result(codec: str) -> None:
    """Each of them costs the same, more than a chunk beyond what encoding takes; a single chunk has no helpers."""
    storage, chunk = Storage((40, 50, 60), (80, 50, 60), **codec_fields(codec)), 2 * 40 * 50 * 60
    assert helper_overhead(storage, 2, 0) == 0
    one = helper_overhead(storage, 2, 1)
    assert helper_overhead(storage, 2, 7) == 7 * one
    index_and_rest = 512 * storage.chunks_per_shard + 2**21
    assert one - (write_overhead(storage, 2) - index_and_rest) >= chunk
    assert helper_overhead(Storage((40, 50, 60), (40, 50, 60), **codec_fields(codec)), 2, 7) == 0
