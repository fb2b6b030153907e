"""Chunks into bytes, and shards into files, by one thread or many."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from numpy.typing import NDArray

from isovoxel.output.encoder import BLOSC_LEVELS, ChunkEncoder, ShardEncoder, default_helpers
from isovoxel.output.shard import Bytes, FileShardWriter
from isovoxel.planning.chunking import CODECS, Storage
from polling import wait_until
from stored_as import codec_fields, decode_chunk

STORAGE = Storage((4, 5, 6), (16, 20, 24))
CHUNKS = 64


def voxels(seed: int = 0, shape: tuple[int, int, int] = STORAGE.shard) -> NDArray[np.uint16]:
    """Return voxels of which every chunk compresses to another length."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 65536, shape) >> rng.integers(0, 16, shape)).astype(np.uint16)


def encode(encoder: ShardEncoder, path: Path, data: NDArray[Any]) -> None:
    """Encode a shard into a file."""
    encoder.encode(FileShardWriter(path, path, encoder.storage, lambda: None), data)


class Watched:
    """Stands in for `ChunkEncoder.encode`: lets other threads go first, at random, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails_at: int | None = None) -> None:
        self.lock = threading.Lock()
        self.now = self.most = self.calls = self.buffers = 0
        self.random = np.random.default_rng(1)
        encode_chunk, buffer = ChunkEncoder.encode, ChunkEncoder.buffer

        def watched_encode(encoder: ChunkEncoder, *arguments: Any) -> Bytes:
            with self.lock:
                self.now += 1
                self.calls += 1
                self.most = max(self.most, self.now)
                fails, turns = self.calls == fails_at, self.random.choice([0, 5, 10])
            try:
                for _ in range(turns):
                    time.sleep(0)  # which waits for no time, but gives the interpreter to another thread
                if fails:
                    raise MemoryError("no room to encode")
                return encode_chunk(encoder, *arguments)
            finally:
                with self.lock:
                    self.now -= 1

        def watched_buffer(encoder: ChunkEncoder) -> Bytes:
            self.buffers += 1
            return buffer(encoder)

        monkeypatch.setattr(ChunkEncoder, "encode", watched_encode)
        monkeypatch.setattr(ChunkEncoder, "buffer", watched_buffer)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [STORAGE.shard, (15, 7, 24)])
def test_a_file_is_the_same_whoever_was_faster(
    tmp_path: Path, codec: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread alone and many that finish in any order write the same bytes."""
    storage, data = Storage(STORAGE.chunk, STORAGE.shard, **codec_fields(codec)), voxels(shape=shape)
    encode(ShardEncoder(storage, data.dtype, 0), tmp_path / "alone", data)
    Watched(monkeypatch)
    for helpers in (1, 3, 12):
        encoder = ShardEncoder(storage, data.dtype, helpers)
        for name in (f"first of {helpers}", f"again of {helpers}"):
            encode(encoder, tmp_path / name, data)
            assert (tmp_path / name).read_bytes() == (tmp_path / "alone").read_bytes()
        encoder.close()


def test_helpers_go_from_shard_to_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many shards at the same time share helpers, no more threads encode than allowed, and buffers are counted."""
    data = [voxels(seed) for seed in range(9)]
    alone = ShardEncoder(STORAGE, data[0].dtype, 0)
    for seed, shard in enumerate(data):
        encode(alone, tmp_path / f"alone {seed}", shard)
    for threads, helpers in ((1, 5), (3, 5), (6, 2), (4, 0)):
        watched, folder = Watched(monkeypatch), tmp_path / f"{threads} {helpers}"
        folder.mkdir()
        encoder = ShardEncoder(STORAGE, data[0].dtype, helpers)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda seed: encode(encoder, folder / str(seed), data[seed]), range(9)))  # noqa: B023
        encoder.close()
        monkeypatch.undo()
        assert all((folder / str(n)).read_bytes() == (tmp_path / f"alone {n}").read_bytes() for n in range(9))
        assert watched.most <= max(threads, helpers + 1) + helpers * (threads > 1)
        assert watched.buffers <= threads + 2 * helpers
        assert watched.calls == 9 * CHUNKS


def test_threads_that_write_need_no_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a shard for each core, helpers leave: each thread encodes its own shard with one buffer."""
    watched = Watched(monkeypatch)
    encoder = ShardEncoder(STORAGE, np.dtype("uint16"), 3)
    encoder._writing = 3  # as if three others were at it
    encode(encoder, tmp_path / "shard", voxels())
    assert (watched.most, watched.buffers) == (1, 1)
    encoder.close()


class Waiting(threading.Condition):
    """Knows how many threads wait for it."""

    now = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.now += 1
        try:
            return super().wait(timeout)
        finally:
            self.now -= 1


def test_one_slow_chunk_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first chunk is being encoded others go ahead, as far as the buffers reach, and then wait."""
    encode_chunk, data, release, begun = ChunkEncoder.encode, voxels(), threading.Event(), []

    def slow(encoder: ChunkEncoder, chunk: NDArray[Any], *memory: Any) -> Bytes:
        begun.append(chunk)
        if np.shares_memory(chunk, data[:4, :5, :6]):
            assert release.wait(60)
        return encode_chunk(encoder, chunk, *memory)

    monkeypatch.setattr(ChunkEncoder, "encode", slow)
    encoder = ShardEncoder(STORAGE, data.dtype, 3)
    encoder._freed = waiting = Waiting(encoder._lock)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(encode, encoder, tmp_path / "shard", data)
        wait_until(lambda: waiting.now == 3)  # all threads but the slow one
        assert len(begun) == 1 + 2 * 3
        release.set()
        writing.result()
    assert len(begun) == CHUNKS
    encoder.close()


@pytest.mark.parametrize("fails_at", [1, 2, 9, CHUNKS])
@pytest.mark.parametrize("helpers", [0, 4])
def test_an_error_of_any_thread_ends_the_shard(
    tmp_path: Path, fails_at: int, helpers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets it, no file is left, nobody goes on with the voxels, and the encoder still works."""
    with monkeypatch.context() as patch:
        watched = Watched(patch, fails_at=fails_at)
        encoder = ShardEncoder(STORAGE, np.dtype("uint16"), helpers)
        with pytest.raises(MemoryError, match="no room to encode"):
            encode(encoder, tmp_path / "shard", voxels())
        assert watched.now == 0
        assert list(tmp_path.iterdir()) == []
        encode(encoder, tmp_path / "shard", voxels())
        assert watched.buffers <= 1 + 2 * helpers
    encoder.close()
    encode(ShardEncoder(STORAGE, np.dtype("uint16"), 0), tmp_path / "alone", voxels())
    assert (tmp_path / "shard").read_bytes() == (tmp_path / "alone").read_bytes()


@pytest.mark.parametrize("memory", ["scratch", "buffer"])
def test_memory_that_is_short_once_is_got_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str) -> None:
    """A job goes on with fewer blocks then; a buffer that is counted and not there would be waited for."""
    encoder, calls = ShardEncoder(STORAGE, np.dtype(np.uint16), helpers=0), []
    now = getattr(ChunkEncoder, memory)

    def get(self: ChunkEncoder) -> Bytes:
        calls.append(memory)
        if len(calls) == 1:
            raise MemoryError
        found: Bytes = now(self)
        return found

    monkeypatch.setattr(ChunkEncoder, memory, get)
    with pytest.raises(MemoryError):
        encode(encoder, tmp_path / "first", voxels())
    assert encoder._buffers_made == len(encoder._buffers)
    encode(encoder, tmp_path / "second", voxels())
    encoder.close()


def test_no_thread_writes_to_a_file_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a full disk in the middle of a shard, its descriptor is used no more."""
    write, calls = os.write, 0

    def full(descriptor: int, content: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content)

    Watched(monkeypatch)
    monkeypatch.setattr(os, "write", full)
    encoder = ShardEncoder(STORAGE, np.dtype("uint16"), 4)
    with pytest.raises(OSError, match="No space left"):
        encode(encoder, tmp_path / "shard", voxels())
    assert calls == 6
    encoder.close()
    assert calls == 6
    assert list(tmp_path.iterdir()) == []


def test_all_cores_but_one_help_by_default() -> None:
    """The thread that writes is on the other."""
    assert 0 <= default_helpers() < (os.cpu_count() or 1)


ONE_CHUNK = (5, 7, 11)


def decoded(encoded: NDArray[np.uint8], codec: str, dtype: str) -> NDArray[Any]:
    """Return the chunk that numcodecs finds in the bytes."""
    return np.frombuffer(decode_chunk(encoded.tobytes(), codec), np.dtype(dtype).newbyteorder("<")).reshape(ONE_CHUNK)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "int32", "float32", ">f4"])
def test_a_chunk_has_zeros_where_the_volume_ends(codec: str, dtype: str) -> None:
    """Whatever the memory held before, and whether the voxels lie contiguous or not."""
    encoder = ChunkEncoder(Storage(ONE_CHUNK, ONE_CHUNK, **codec_fields(codec)), np.dtype(dtype))
    scratch, buffer = encoder.scratch(), encoder.buffer()
    whole = np.arange(385).reshape(ONE_CHUNK).astype(dtype)
    for voxels in (whole, np.asfortranarray(whole), whole[:3, :, :10], whole[::2, 1:]):
        expected = np.zeros(ONE_CHUNK, dtype)
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
        encoder = ChunkEncoder(Storage(chunk, chunk, checksum=checksum, **codec_fields(codec)), np.dtype(dtype))
        found.append(encoder.encode(voxels.reshape(chunk), encoder.scratch(), encoder.buffer()).tobytes())
    assert found[1] == found[0] + google_crc32c.value(found[0]).to_bytes(4, "little")
    assert decode_chunk(found[0], codec) == voxels.tobytes()
