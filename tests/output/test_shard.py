"""Shards into files, by one thread or many."""

from __future__ import annotations

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isovoxel.output.chunk import Bytes, ChunkEncoder
from isovoxel.output.shard import ShardEncoder, default_helpers
from isovoxel.planning.chunking import CODECS, Storage

STORAGE = Storage((4, 5, 6), (16, 20, 24))
CHUNKS = 64


def voxels(seed: int = 0, shape: tuple[int, int, int] = STORAGE.shard) -> NDArray[np.uint16]:
    """Return voxels of which every chunk compresses to another length."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 65536, shape) >> rng.integers(0, 16, shape)).astype(np.uint16)


class Watched:
    """Stands in for `ChunkEncoder.encode`: takes a while at random, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails_at: int | None = None) -> None:
        self.lock = threading.Lock()
        self.now = self.most = self.calls = self.buffers = 0
        self.random = np.random.default_rng(1)
        encode, buffer = ChunkEncoder.encode, ChunkEncoder.buffer

        def watched_encode(encoder: ChunkEncoder, *arguments: Any) -> Bytes:
            with self.lock:
                self.now += 1
                self.calls += 1
                self.most = max(self.most, self.now)
                fails, nap = self.calls == fails_at, self.random.integers(0, 3) / 1000
            try:
                time.sleep(nap)
                if fails:
                    raise MemoryError("no room to encode")
                return encode(encoder, *arguments)
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
    storage, data = Storage(STORAGE.chunk, STORAGE.shard, codec), voxels(shape=shape)
    ShardEncoder(storage, data.dtype, 0).encode(tmp_path / "alone", data)
    Watched(monkeypatch)
    for helpers in (1, 3, 12):
        encoder = ShardEncoder(storage, data.dtype, helpers)
        for name in (f"first of {helpers}", f"again of {helpers}"):
            encoder.encode(tmp_path / name, data)
            assert (tmp_path / name).read_bytes() == (tmp_path / "alone").read_bytes()
        encoder.close()


def test_helpers_go_from_shard_to_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many shards at the same time share helpers, no more threads encode than allowed, and buffers are counted."""
    data = [voxels(seed) for seed in range(9)]
    alone = ShardEncoder(STORAGE, data[0].dtype, 0)
    for seed, shard in enumerate(data):
        alone.encode(tmp_path / f"alone {seed}", shard)
    for threads, helpers in ((1, 5), (3, 5), (6, 2), (4, 0)):
        watched, folder = Watched(monkeypatch), tmp_path / f"{threads} {helpers}"
        folder.mkdir()
        encoder = ShardEncoder(STORAGE, data[0].dtype, helpers)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda seed: encoder.encode(folder / str(seed), data[seed]), range(9)))  # noqa: B023
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
    encoder.encode(tmp_path / "shard", voxels())
    assert (watched.most, watched.buffers) == (1, 1)
    encoder.close()


def test_one_slow_chunk_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first chunk is being encoded others go ahead, as far as the buffers reach, and then wait."""
    encode, data, release, begun = ChunkEncoder.encode, voxels(), threading.Event(), []

    def slow(encoder: ChunkEncoder, chunk: NDArray[Any], *memory: Any) -> Bytes:
        begun.append(chunk)
        if np.shares_memory(chunk, data[:4, :5, :6]):
            assert release.wait(60)
        return encode(encoder, chunk, *memory)

    monkeypatch.setattr(ChunkEncoder, "encode", slow)
    encoder = ShardEncoder(STORAGE, data.dtype, 3)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(encoder.encode, tmp_path / "shard", data)
        while len(begun) < 1 + 2 * 3:
            time.sleep(0.001)
        time.sleep(0.05)
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
            encoder.encode(tmp_path / "shard", voxels())
        assert watched.now == 0
        assert list(tmp_path.iterdir()) == []
        encoder.encode(tmp_path / "shard", voxels())
        assert watched.buffers <= 1 + 2 * helpers
    encoder.close()
    ShardEncoder(STORAGE, np.dtype("uint16"), 0).encode(tmp_path / "alone", voxels())
    assert (tmp_path / "shard").read_bytes() == (tmp_path / "alone").read_bytes()


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
        encoder.encode(tmp_path / "shard", voxels())
    assert calls == 6
    encoder.close()
    assert calls == 6
    assert list(tmp_path.iterdir()) == []


def test_all_cores_but_one_help_by_default() -> None:
    """The thread that writes is on the other."""
    assert 0 <= default_helpers() < (os.cpu_count() or 1)
