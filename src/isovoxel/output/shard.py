"""How does a shard become a file? Threads encode its chunks, one of them appends them in order; the index comes last.

A shard of Zarr 3 is its encoded chunks, then for every place in it, z slowest, where its chunk begins and how
long it is (two uint64, all bits set where there is no chunk), then a CRC-32C of that. zarr-python holds every
encoded chunk and their concatenation, more than twice the shard; appending holds a few chunks, however large it
is.

1. The thread that writes a shard takes chunk after chunk of it, in order. So do helpers, as long as fewer threads
   than cores encode, and no more than whoever else uses the cores can spare: with a shard for each core nobody meets
   in one, and a single shard still has all cores.
2. A thread leaves what it has encoded with the shard. If the chunk whose turn it is is there and nobody else
   appends, the thread appends all that are in turn; otherwise it goes on with another buffer. Buffers are
   counted: who finds none waits until one has been appended. Same voxels, same file, whoever was faster.
   Where a GPU encodes, the thread gives it batches of chunks in turn, and appends each as it comes back.
3. When all threads have left it, the index is appended; a chunk of Zarr 2, which has no shards, is a file without one.
   `Unsealed.seal`, of `isovoxel.output.shard_receipt`, flushes the file to the disk and renames it. That takes time and
   no processor, so whoever writes many seals them elsewhere.
4. Where empty chunks are skipped, a chunk of which no voxel has a bit set is not encoded, and its place in the index
   says that there is none; readers take it for the fill value, 0. A shard of nothing but such chunks is no file, and
   `NoShard.seal` gives a receipt of 0 bytes. Minus zero has a bit set: it is stored.

The chunk whose turn it is always has a thread that holds a buffer, or nobody has taken it and no buffer is left
with its shard: so whoever waits for a buffer gets one.

Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from isovoxel.codecs.gpu import EncodedChunks, GpuEncoder, GpuEncodingError
from isovoxel.geometry.box import Box, Index3
from isovoxel.output.chunk import Bytes, ChunkEncoder
from isovoxel.planning.chunking import CHECKSUM_BYTES, Storage

PARTIAL = ".partial"
"""How the name of a shard's file ends while it is being written."""

_NO_CHUNK = 2**64 - 1


def default_helpers() -> int:
    """Return how many threads may help the one that writes: all cores of this process but one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores - 1


class ShardEncoder:
    """Encodes shards of one array into files; `encode` may be called from several threads at once.

    Parameters
    ----------
    storage
        Chunks, shards and codec.
    dtype
        Of the voxels.
    helpers
        Threads that may encode beside those that call `encode`. They do while no more than this number and one
        are at it, both kinds together.
    gpu
        What encodes batches of chunks; None for the processor's threads.
    on_processor
        Called with why, where the processor encodes although there is a GPU.
    """

    def __init__(
        self,
        storage: Storage,
        dtype: np.dtype[Any],
        helpers: int,
        gpu: GpuEncoder | None = None,
        on_processor: Callable[[str], None] | None = None,
    ) -> None:
        self._gpu, self._on_processor = gpu, on_processor
        self.storage = storage
        self.dtype = np.dtype(dtype)
        self._chunks = ChunkEncoder(storage, dtype)
        self._helpers = self._spare = helpers
        self._pool = ThreadPoolExecutor(max(1, helpers), "encode")
        # One lock for all shards: it is held for microseconds, a few hundred times a second and core.
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._shards: list[_Shard] = []
        self._writing = self._helping = 0
        self._scratch: list[Bytes] = []
        self._buffers: list[Bytes] = []
        self._buffers_made = 0

    def encode(self, path: Path, data: NDArray[Any]) -> tuple[int, int]:
        """Make a file of one shard, and return its bytes and their CRC-32; where that fails, there is no file.

        Parameters
        ----------
        path
            The file, which is not there yet.
        data
            Its voxels, from its first one on; shorter than the shard where the volume ends.

        Raises
        ------
        OSError
            If the file system refuses.
        """
        try:
            with path.open("xb", buffering=0) as file:
                shard = _Shard(self.storage, file.fileno(), data, self._lock)
                if self._gpu is None or not self._encode_on(self._gpu, shard):
                    self._encode(shard)
                if self.storage.sharded:
                    shard.append_index()
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return shard.size, shard.crc

    def is_empty(self, data: NDArray[Any]) -> bool:
        """Return whether a shard of these voxels is no file: empty chunks are skipped, and it has no others."""
        boxes = Box.whole(_shape_of(data)).tiles(self.storage.chunk)
        return self.storage.skip_empty and all(_is_zero(data[box.slices]) for box in boxes)

    def spare(self, cores: int) -> None:
        """Say how many cores nobody else needs; helpers take no more."""
        with self._lock:
            self._spare = min(self._helpers, cores)
            self._call_helpers()

    def close(self) -> None:
        """End the threads and let go of their memory, once no thread writes any more."""
        self._pool.shutdown()
        self._scratch.clear()
        self._buffers.clear()

    # ---- the GPU ---------------------------------------------------------------------------------------------

    def _encode_on(self, gpu: GpuEncoder, shard: _Shard) -> bool:
        """Append all chunks of a shard; False where the GPU has not done the rest of them."""
        try:
            while shard.find_stored():
                gpu.encode(shard.data, shard.turn, shard.append_batch)
        except (MemoryError, GpuEncodingError) as error:
            shard.taken = shard.turn
            if isinstance(error, GpuEncodingError):
                self._gpu = None  # it would fail again
            if self._on_processor is not None:
                self._on_processor(str(error))
            return False
        return True

    # ---- threads ---------------------------------------------------------------------------------------------

    def _encode(self, shard: _Shard) -> None:
        """Append all chunks of a shard, and return when no other thread uses its voxels or its file."""
        with self._lock:
            self._writing += 1
            self._shards.append(shard)
            shard.threads += 1
            self._call_helpers()
        try:
            self._work(shard, helping=False)
        finally:
            with self._lock:
                self._writing -= 1
                self._shards.remove(shard)
                while shard.threads:
                    shard.left.wait()
                self._buffers += [ready.buffer for ready in shard.ready.values()]
                self._freed.notify_all()
                self._call_helpers()
        if shard.error is not None:
            raise shard.error

    def _call_helpers(self) -> None:
        """Let as many threads help as cores are free and chunks are there."""
        untaken = sum(shard.untaken for shard in self._shards)
        while self._helping < min(self._spare, self._helpers + 1 - self._writing, untaken):
            self._helping += 1
            self._pool.submit(self._help)

    def _help(self) -> None:
        """Work where the fewest threads do, until nothing is left or the writing threads need all cores."""
        while True:
            with self._lock:
                shards = [shard for shard in self._shards if shard.untaken]
                if not shards or self._crowded():
                    self._helping -= 1
                    return
                shard = min(shards, key=lambda s: s.threads)
                shard.threads += 1
            self._work(shard, helping=True)

    def _crowded(self) -> bool:
        return self._helping > self._spare or self._writing + self._helping > self._helpers + 1

    def _work(self, shard: _Shard, *, helping: bool) -> None:
        """Encode chunks of a shard until none is left; an error is left with the shard."""
        scratch = buffer = None
        try:
            with self._lock:
                scratch = self._scratch.pop() if self._scratch else None
            if scratch is None:
                scratch = self._chunks.scratch()
            while (taken := self._take(shard, helping=helping)) is not None:
                number, buffer = taken
                if buffer is None:
                    buffer = self._chunks.buffer()
                stored = shard.stores(number)
                encoded = self._chunks.encode(shard.voxels(number), scratch, buffer) if stored else buffer[:0]
                with self._lock:
                    shard.ready[number] = _Ready(buffer, encoded)
                    buffer = None
                    appends = not shard.appending and shard.turn in shard.ready
                    shard.appending |= appends
                if appends:
                    self._append(shard)
        except BaseException as error:  # noqa: BLE001 - the thread that writes the shard raises it
            with self._lock:
                shard.error = shard.error or error
        finally:
            with self._lock:
                if scratch is not None:
                    self._scratch.append(scratch)
                if buffer is not None:
                    self._buffers.append(buffer)
                shard.threads -= 1
                shard.left.notify()
                self._freed.notify_all()

    def _take(self, shard: _Shard, *, helping: bool) -> tuple[int, Bytes | None] | None:
        """Return the next chunk and a buffer for it (None where it must be made), or None to leave the shard."""
        with self._lock:
            while shard.untaken and not (helping and self._crowded()):
                if self._buffers or self._buffers_made < self._writing + 2 * self._helpers:
                    buffer = self._buffers.pop() if self._buffers else None
                    self._buffers_made += buffer is None
                    shard.taken += 1
                    return shard.taken - 1, buffer
                self._freed.wait()
        return None

    def _append(self, shard: _Shard) -> None:
        """Append what is in turn, until the next chunk is still being encoded."""
        while True:
            with self._lock:
                ready = shard.ready.get(shard.turn)
                if ready is None or shard.error is not None:
                    shard.appending = False
                    return
            shard.append(ready.encoded)
            with self._lock:
                self._buffers.append(shard.ready.pop(shard.turn).buffer)
                shard.turn += 1
                self._freed.notify_all()


class _Ready(NamedTuple):
    """A chunk that waits to be appended."""

    buffer: Bytes
    """Memory that is free again when the chunk is in the file."""
    encoded: Bytes
    """The part of it that goes to the file."""


class _Shard:
    """One shard on its way into a file. Its attributes change under the encoder's lock only."""

    def __init__(self, storage: Storage, descriptor: int, data: NDArray[Any], lock: threading.Lock) -> None:
        self._descriptor = descriptor
        self._skip_empty = storage.skip_empty
        self.data = data
        self._chunk = storage.chunk
        self._boxes = list(Box.whole(_shape_of(data)).tiles(storage.chunk))
        places = (s // c for s, c in zip(storage.shard, storage.chunk, strict=True))
        self._index = np.full((*places, 2), _NO_CHUNK, "<u8")
        self.size = self.crc = 0
        """Bytes that are in the file, and CRC-32 of them."""
        self.taken = 0
        """Chunks that a thread has begun with."""
        self.turn = 0
        """The chunk to be appended next."""
        self.ready: dict[int, _Ready] = {}
        self.appending = False
        """Whether a thread is appending; it is the only one that calls `append`."""
        self.threads = 0
        """Threads that use the voxels or the file."""
        self.left = threading.Condition(lock)
        """Notified when one of them is done."""
        self.error: BaseException | None = None
        """What went wrong first, if anything; then nobody begins or appends another chunk."""

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return len(self._boxes)

    @property
    def untaken(self) -> int:
        """Chunks that a thread may still begin with."""
        return 0 if self.error is not None else len(self._boxes) - self.taken

    def voxels(self, number: int) -> NDArray[Any]:
        """Return the voxels of a chunk."""
        return self.data[self._boxes[number].slices]

    def stores(self, number: int) -> bool:
        """Return whether a chunk is stored."""
        return not (self._skip_empty and _is_zero(self.voxels(number)))

    def find_stored(self) -> bool:
        """Give the turn to the next chunk that is stored; False where there is none."""
        while self.turn < self.chunks and not self.stores(self.turn):
            self.turn += 1
        return self.turn < self.chunks

    def append(self, encoded: Bytes) -> None:
        """Append the chunk whose turn it is; nothing, where it is not stored."""
        if not len(encoded):
            return
        place = tuple(a // c for a, c in zip(self._boxes[self.turn].start, self._chunk, strict=True))
        self._index[place] = self.size, len(encoded)
        self.size += len(encoded)
        # imagecodecs takes arrays, though its types do not say so, and other threads go on.
        self.crc = imagecodecs.deflate_crc32(encoded, self.crc)  # type: ignore[arg-type]
        _write_all(self._descriptor, encoded.data)

    def append_batch(self, batch: EncodedChunks) -> None:
        """Append chunks, the first of which has its turn, without those that are not stored."""
        stored = [self.stores(number) for number in range(self.turn, self.turn + len(batch.sizes))]
        body = batch.body if all(stored) else batch.body[np.repeat(stored, batch.sizes)]
        for size, is_stored in zip(batch.sizes.tolist(), stored, strict=True):
            if is_stored:
                place = tuple(a // c for a, c in zip(self._boxes[self.turn].start, self._chunk, strict=True))
                self._index[place] = self.size, size
                self.size += size
            self.turn += 1
        # imagecodecs takes arrays, though its types do not say so, and other threads go on.
        self.crc = imagecodecs.deflate_crc32(body, self.crc)  # type: ignore[arg-type]
        _write_all(self._descriptor, body.data)

    def append_index(self) -> None:
        """Append where the chunks are, and the checksum of that."""
        entries = self._index.reshape(-1).view(np.uint8)
        index = entries.tobytes() + crc32c(entries).to_bytes(CHECKSUM_BYTES, "little")
        self.size += len(index)
        self.crc = imagecodecs.deflate_crc32(index, self.crc)
        _write_all(self._descriptor, memoryview(index))


def _shape_of(data: NDArray[Any]) -> Index3:
    z, y, x = data.shape
    return (z, y, x)


def _is_zero(voxels: NDArray[Any]) -> bool:
    """Return whether no voxel has a bit set: minus zero has one. 20 GB/s, where encoding does one."""
    return not voxels.view(f"u{voxels.itemsize}").any()


def _write_all(descriptor: int, data: memoryview) -> None:
    """Write all of the data: one call to the system may write less than it was given."""
    while data:
        data = data[os.write(descriptor, data) :]
