"""Encode the chunks of shards: on threads that share the processor's cores, or in batches on a GPU.

Memory that is new to a process costs a third of what compressing into it does, and more on many cores: the system
clears every page at its first touch, and interrupts all cores to take it back. So no chunk gets memory of its own.

1. The thread that writes a shard takes chunk after chunk of it, in order. So do helpers, as long as fewer threads
   than cores encode, and no more than whoever else uses the cores can spare: with a shard for each core nobody meets
   in one, and a single shard still has all cores.
2. Voxels that are no whole, contiguous, little-endian chunk are copied to one, zeros beyond the volume's end. The codec
   compresses it into a buffer on the calling thread alone; without a codec the copy is the result. Its CRC-32C follows,
   where the output has checksums of chunks.
3. A thread leaves what it has encoded with the shard. If the chunk whose turn it is is there and nobody else
   appends, the thread appends all that are in turn; otherwise it goes on with another buffer. Buffers are
   counted: who finds none waits until one has been appended. Same voxels, same file, whoever was faster.
   Where a GPU encodes, the thread gives it batches of chunks in turn, and appends each as it comes back.
4. Where empty chunks are skipped, a chunk of which no voxel has a bit set is not encoded, and its place in the index
   says that there is none; readers take it for the fill value, 0. Minus zero has a bit set: it is stored.

The chunk whose turn it is always has a thread that holds a buffer, or nobody has taken it and no buffer is left
with its shard: so whoever waits for a buffer gets one.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from isovoxel.codecs.cuda import DeviceVoxels, GpuCodecError, Voxels, on_host
from isovoxel.codecs.gpu import EncodedChunks, GpuEncoder
from isovoxel.geometry.grid import Box, ceil_div
from isovoxel.output.shard import Bytes, ShardWriter
from isovoxel.planning.chunking import CHECKSUM_BYTES, Storage, result_margin

BLOSC_LEVELS = {"lz4": 5, "zstd": 1}
"""Compression level of each of blosc's compressors that is a codec of ours.

Bits are shuffled for every dtype: on noisy images of 8, 16 and 32 bits that made smaller files than shuffled
bytes, by up to a quarter.
"""

PLAIN_LEVELS = {"zstd": 1, "gzip": 1}
"""Compression level of each codec that is none of blosc's: higher ones take much longer, for a few percent."""


class ChunkEncoder:
    """Encodes chunks of one array; any number of threads may, each with scratch and a buffer of its own.

    Parameters
    ----------
    storage
        Chunks and codec.
    dtype
        Of the voxels.
    """

    def __init__(self, storage: Storage, dtype: np.dtype[Any]) -> None:
        self._shape = storage.chunk
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._nbytes = math.prod(self._shape) * self._dtype.itemsize
        self._codec = storage.codec
        self._plain = storage.plain
        self._level = (PLAIN_LEVELS if storage.plain else BLOSC_LEVELS).get(storage.codec)
        self._longest = self._nbytes + result_margin(storage, self._nbytes)
        self._margin = CHECKSUM_BYTES if storage.checksum else 0

    def scratch(self) -> Bytes:
        """Return new memory for the contiguous copy; none is needed where the copy is the result."""
        return np.empty(0 if self._level is None else self._nbytes, np.uint8)

    def buffer(self) -> Bytes:
        """Return new memory for the longest result."""
        return np.empty(self._longest + self._margin, np.uint8)

    def encode(self, voxels: NDArray[Any], scratch: Bytes, buffer: Bytes) -> Bytes:
        """Return a chunk as it stands in the file: the beginning of the buffer.

        Parameters
        ----------
        voxels
            Those of the chunk that lie in the volume.
        scratch, buffer
            As the methods of these names made them; what they held is lost.
        """
        length = self._compressed(voxels, scratch, buffer)
        if self._margin:
            buffer[length : length + CHECKSUM_BYTES].view("<u4")[0] = crc32c(buffer[:length])
        return buffer[: length + self._margin]

    def _compressed(self, voxels: NDArray[Any], scratch: Bytes, buffer: Bytes) -> int:
        """Compress a chunk into the beginning of a buffer, and return its length there."""
        if self._level is None:
            self._fill(buffer[: self._nbytes], voxels)
            return self._nbytes
        whole = voxels.shape == self._shape and voxels.dtype == self._dtype and voxels.flags.c_contiguous
        # imagecodecs takes arrays, though its types do not say so, and from them how long a voxel is, not from
        # `typesize`: one of bytes would be shuffled wrongly.
        chunk: Any = voxels if whole else self._fill(scratch, voxels)
        out: Any = buffer[: self._longest]  # or blosc would store noise in more bytes
        if self._plain:
            encode = imagecodecs.zstd_encode if self._codec == "zstd" else imagecodecs.gzip_encode
            return len(encode(chunk, self._level, out=out))
        # One thread, for callers have a thread on every core; with more, blosc's result depends on which is faster.
        encoded = imagecodecs.blosc_encode(
            chunk,
            self._level,
            compressor=self._codec,
            shuffle="bitshuffle",
            typesize=self._dtype.itemsize,
            numthreads=1,
            out=out,
        )
        return len(encoded)

    def _fill(self, memory: Bytes, voxels: NDArray[Any]) -> NDArray[Any]:
        chunk = memory.view(self._dtype).reshape(self._shape)
        if voxels.shape != self._shape:
            chunk.fill(0)
        z, y, x = voxels.shape
        chunk[:z, :y, :x] = voxels
        return chunk


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
        self._shards: list[_Encoding] = []
        self._writing = self._helping = 0
        self._scratch: list[Bytes] = []
        self._buffers: list[Bytes] = []
        self._buffers_made = 0

    def encode(self, shard: ShardWriter, data: Voxels, whole: Box | None = None) -> bool:
        """Write all chunks of a shard and its index; where that fails, or no chunk is stored, the shard is dropped.

        Parameters
        ----------
        shard
            What the chunks are written to.
        data
            Its voxels, from its first one on, on the host or a GPU; shorter than the shard where the volume ends.
        whole
            Where the shard lies as seen from the first of the data, if they are some of its chunks only and all others
            are empty; not where a GPU encodes.

        Returns
        -------
        bool
            Whether a chunk is stored.

        Raises
        ------
        OSError
            If the file system refuses.
        """
        try:
            encoding = _Encoding(shard, data, whole or _box(data), self.storage, self._lock)
            if self._gpu is None or not self._encode_on(self._gpu, encoding):
                encoding.data = on_host(data)
                self._encode(encoding)
            if encoding.stored:
                shard.finish()
            else:
                shard.drop()
        except BaseException:
            shard.drop()
            raise
        return encoding.stored

    def encode_together(self, shards: Sequence[ShardWriter], data: Voxels) -> list[bool] | None:
        """Write shards that lie side by side, whose chunks a GPU encodes in the same batches.

        Parameters
        ----------
        shards
            In the order of `Box.tiles`.
        data
            Voxels of all of them, on the host or a GPU.

        Returns
        -------
        list of bool
            Of each shard whether a chunk is stored, and it is finished; None where the GPU has not done it. The caller
            drops all others, and all of them after an error.

        Raises
        ------
        OSError
            If the file system refuses.
        """
        region, gpu = _SideBySide(shards, data, self.storage), self._gpu
        try:
            while gpu is not None and region.turn < region.chunks:
                gpu.encode(data, region.turn, region.write_batch)
        except (MemoryError, GpuCodecError) as error:
            self._note_failure(error)
        if region.turn < region.chunks:
            return None
        for shard, stored in zip(shards, region.stored, strict=True):
            if stored:
                shard.finish()
        return region.stored

    @property
    def takes_parts(self) -> bool:
        """Whether it encodes some chunks of a shard, as its voxels: a GPU is given whole shards."""
        return self._gpu is None

    def is_empty(self, data: Voxels) -> bool:
        """Return whether a shard of these voxels is known to be no file: it is empty, and empty chunks are skipped.

        Of voxels on a GPU it is known once they are encoded.
        """
        if isinstance(data, DeviceVoxels):
            return False
        chunks = _box(data).tiles(self.storage.chunk)
        return self.storage.skip_empty and all(_is_zero(data[box.slices]) for box in chunks)

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

    def _encode_on(self, gpu: GpuEncoder, shard: _Encoding) -> bool:
        """Append all chunks of a shard; False where the GPU has not done the rest of them."""
        try:
            while shard.find_inside():
                gpu.encode(shard.data, shard.turn, shard.write_batch)
        except (MemoryError, GpuCodecError) as error:
            shard.taken = shard.turn
            self._note_failure(error)
            return False
        return True

    def _note_failure(self, error: Exception) -> None:
        """Tell of a failure of the GPU, after which it is used no more unless memory was short."""
        if isinstance(error, GpuCodecError):
            self._gpu = None
        if self._on_processor is not None:
            self._on_processor(str(error))

    # ---- threads ---------------------------------------------------------------------------------------------

    def _encode(self, shard: _Encoding) -> None:
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

    def _work(self, shard: _Encoding, *, helping: bool) -> None:
        """Encode and append chunks of a shard until none is left; an error is left with the shard."""
        scratch = buffer = None
        try:
            with self._lock:
                scratch = self._scratch.pop() if self._scratch else None
            if scratch is None:
                scratch = self._chunks.scratch()
            with self._lock:
                task = self._next(shard, helping=helping)
            while task is not None:
                if isinstance(task, _Ready):
                    buffer = task.buffer
                    if len(task.encoded):
                        shard.writer.write_encoded(shard.place(shard.turn), task.encoded)
                    with self._lock:
                        shard.appended()
                        self._buffers.append(buffer)
                        self._freed.notify()
                        buffer = None
                        task = self._next(shard, helping=helping)
                else:
                    number, buffer = task
                    if buffer is None:
                        try:
                            buffer = self._chunks.buffer()
                        except BaseException:
                            with self._lock:
                                self._buffers_made -= 1
                                self._freed.notify()
                            raise
                    stored = shard.stores(number)
                    encoded = self._chunks.encode(shard.voxels(number), scratch, buffer) if stored else buffer[:0]
                    with self._lock:
                        shard.ready[number] = _Ready(buffer, encoded)
                        buffer = None
                        task = self._next(shard, helping=helping)
        except BaseException as error:  # noqa: BLE001 - the thread that writes the shard raises it
            with self._lock:
                shard.error = shard.error or error
                self._freed.notify_all()
        finally:
            with self._lock:
                if scratch is not None:
                    self._scratch.append(scratch)
                if buffer is not None:
                    self._buffers.append(buffer)
                    self._freed.notify()
                shard.threads -= 1
                shard.left.notify()

    def _next(self, shard: _Encoding, *, helping: bool) -> _Ready | tuple[int, Bytes | None] | None:
        """Return what a thread does next, which holds the lock: what it appends, else the chunk that it encodes.

        With the chunk comes a buffer, or None where it must be made. A thread that gets nothing leaves the shard.
        """
        waited = False
        while True:
            if (ready := shard.to_append()) is not None:
                return ready
            if not shard.untaken or (helping and self._crowded()):
                if waited and self._buffers:
                    self._freed.notify()  # another one takes what it was woken for
                return None
            if self._buffers or self._buffers_made < self._writing + 2 * self._helpers:
                buffer = self._buffers.pop() if self._buffers else None
                self._buffers_made += buffer is None
                shard.taken += 1
                if not shard.untaken:
                    self._freed.notify_all()  # who waits for a buffer for this shard leaves it
                return shard.taken - 1, buffer
            self._freed.wait()
            waited = True


class _Ready(NamedTuple):
    """A chunk that waits to be appended."""

    buffer: Bytes
    """Memory that is free again when the chunk is in the file."""
    encoded: Bytes
    """The part of it that goes to the file."""


class _Encoding:
    """One shard whose chunks are being encoded. Its attributes change under the encoder's lock only."""

    def __init__(self, writer: ShardWriter, data: Voxels, whole: Box, storage: Storage, lock: threading.Lock) -> None:
        self.writer, self.data = writer, data
        self.stored = not storage.skip_empty
        """Whether a chunk was stored, or shall be however empty it is."""
        self._skip_empty = storage.skip_empty
        self._boxes = list(whole.tiles(storage.chunk))
        self.grid = tuple(ceil_div(n, c) for n, c in zip(whole.shape, storage.chunk, strict=True))
        """How many chunks there are along each axis."""
        self.taken = 0
        """Chunks that a thread has begun with."""
        self.turn = 0
        """The chunk to be appended next."""
        self.ready: dict[int, _Ready] = {}
        self._appending = False
        """Whether a thread is appending; it is the only one that calls the writer."""
        self.threads = 0
        """Threads that use the voxels or the writer."""
        self.left = threading.Condition(lock)
        """Notified when one of them is done."""
        self.error: BaseException | None = None
        """What went wrong first, if anything; then nobody begins or appends another chunk."""

    @property
    def untaken(self) -> int:
        """Chunks that a thread may still begin with."""
        return 0 if self.error is not None else len(self._boxes) - self.taken

    def to_append(self) -> _Ready | None:
        """Return the chunk whose turn it is, if it is there, for the only thread that appends until `appended`."""
        if self._appending or self.error is not None or (ready := self.ready.pop(self.turn, None)) is None:
            return None
        self._appending = True
        self.stored |= len(ready.encoded) > 0
        return ready

    def appended(self) -> None:
        """Give the turn to the next chunk."""
        self._appending = False
        self.turn += 1

    def place(self, number: int) -> tuple[int, ...]:
        """Return the place of a chunk in the grid of the shard's chunks."""
        _, ny, nx = self.grid
        return number // (ny * nx), number // nx % ny, number % nx

    def voxels(self, number: int) -> NDArray[Any]:
        """Return the voxels of a chunk."""
        voxels = self.data[self._boxes[number].slices]
        assert not isinstance(voxels, DeviceVoxels)  # noqa: S101 - for type checkers: the processor encodes
        return voxels

    def stores(self, number: int) -> bool:
        """Return whether a chunk is stored."""
        return self._is_inside(number) and not (self._skip_empty and _is_zero(self.voxels(number)))

    def find_inside(self) -> bool:
        """Give the turn to the next chunk that the voxels have; False where there is none."""
        while self.turn < len(self._boxes) and not self._is_inside(self.turn):
            self.turn += 1
        return self.turn < len(self._boxes)

    def _is_inside(self, number: int) -> bool:
        return _box(self.data).contains(self._boxes[number])

    def write_batch(self, batch: EncodedChunks) -> None:
        """Append chunks, the first of which has its turn, without those that are not stored."""
        numbers = np.arange(self.turn, self.turn + len(batch.sizes))
        stored = np.array([self._is_inside(number) for number in numbers.tolist()])
        if self._skip_empty:
            stored &= batch.full
        self.stored |= bool(stored.any())
        body = batch.body if stored.all() else batch.body[np.repeat(stored, batch.sizes)]
        self.writer.write_batch(np.unravel_index(numbers[stored], self.grid), batch.sizes[stored], body)
        self.turn += len(numbers)


class _SideBySide:
    """Shards that lie side by side, whose chunks a GPU encodes in the same batches; parameters as `encode_together`."""

    def __init__(self, shards: Sequence[ShardWriter], data: Voxels, storage: Storage) -> None:
        self._shards, self._skip_empty = shards, storage.skip_empty
        self.stored = [not storage.skip_empty] * len(shards)
        """Of each whether a chunk was stored, or shall be however empty it is."""
        self.turn = 0
        """The chunk to be appended next, of those of all shards, z slowest."""
        self._grid = tuple(ceil_div(n, c) for n, c in zip(data.shape, storage.chunk, strict=True))
        self._across = tuple(ceil_div(n, s) for n, s in zip(data.shape, storage.shard, strict=True))
        self._each = np.array([[s // c] for s, c in zip(storage.shard, storage.chunk, strict=True)])
        self.chunks = math.prod(self._grid)

    def write_batch(self, batch: EncodedChunks) -> None:
        """Append chunks to their shards, the first of which has its turn, without those that are not stored."""
        places = np.stack(np.unravel_index(np.arange(self.turn, self.turn + len(batch.sizes)), self._grid))
        shards = np.ravel_multi_index(tuple(places // self._each), self._across)
        if self._skip_empty:
            shards[~batch.full] = -1
        ends = np.cumsum([0, *batch.sizes])
        # Those that are neighbours in a shard as well are written at once.
        for begin, end in pairwise([0, *(np.flatnonzero(np.diff(shards)) + 1), len(shards)]):
            if (number := shards[begin]) >= 0:
                inside = tuple(places[:, begin:end] % self._each)
                body = batch.body[ends[begin] : ends[end]]
                self._shards[number].write_batch(inside, batch.sizes[begin:end], body)
                self.stored[number] = True
        self.turn += len(shards)


def _box(data: Voxels) -> Box:
    """Return the box of some voxels, as seen from their first one."""
    z, y, x = data.shape
    return Box.whole((z, y, x))


def _is_zero(voxels: NDArray[Any]) -> bool:
    """Return whether no voxel has a bit set: minus zero has one.

    A few voxels of a chunk that holds something tell it as a rule. All of them took a tenth of the time of encoding,
    and the interpreter's lock once more for each chunk.
    """
    bits = voxels.view(f"u{voxels.itemsize}")
    return not (bits[:: bits.shape[0], :: bits.shape[1]].any() or bits.any())
