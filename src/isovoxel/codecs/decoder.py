"""Decode chunks on an NVIDIA GPU: their streams are decompressed, voxels put back in order and in place.

Encoded chunks are read into memory of the host that the GPU reaches, and their voxels come back as a part of an array,
in the order in which it has them. A few batches of chunks are on the device at a time, each with memory and a stream of
CUDA of its own; a thread waits for its batch without a processor.

Streams of zstd are nvCOMP's. Of damaged ones anything may come, as its documentation says and as it was seen: so these
are given to it only where a checksum has shown that they are whole. Of its decoder of LZ4 the same was seen, though the
documentation promises otherwise. That of `blosc.cl` believes nothing.

A chunk that was not decoded to as many bytes as its voxels have is left to the processor, which says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.blosc import kernels
from isovoxel.codecs.cuda import GROUP, DeviceMemory, Gpu, Lent, Stream
from isovoxel.codecs.nvcomp import SUCCESS, BatchDecompressor, StreamArrays
from isovoxel.codecs.streams import ChunkCoding, Streams, most_streams, take_apart
from isovoxel.geometry.grid import Index3, ceil_div

"""Names of the kernels in `blosc.cl`."""

LZ4_GROUP = 64
"""Work items for a stream of LZ4."""

TABLE = 4
"""Numbers of 8 bytes for each stream: where it begins and how long it is, and the same of what is made of it."""


class Batch(NamedTuple):
    """Chunks that lie beside each other, and which part of them is wanted."""

    grid: Index3
    """How many there are along each axis."""
    start: Index3
    """Voxel of the first one where that part begins."""
    fill: bytes
    """A voxel of chunks that are not stored."""


Read = Callable[[NDArray[np.uint8]], Sequence[NDArray[np.uint8] | None]]
"""Reads the encoded chunks of a batch, z slowest, into memory, and returns where each is in it: nothing of a chunk that
is not stored, and None of one that the processor shall decode."""


class GpuDecoder:
    """Decodes chunks on one GPU; any number of threads may.

    Parameters
    ----------
    pci
        The GPU's place on the PCI bus, such as "0000:1b:00.0".
    coding
        How chunks are encoded.
    batch
        How many chunks are decoded at a time, at most.
    lanes, hosts
        How many batches there are on the device, and on the host.

    Raises
    ------
    ImportError
        If CUDA's driver or compiler, or nvCOMP, is not installed.
    MemoryError
        If the device has too little memory.
    GpuCodecError
        If the GPU cannot be used.
    """

    def __init__(self, pci: str, coding: ChunkCoding, *, batch: int, lanes: int, hosts: int) -> None:
        self.coding, self.batch = coding, batch
        self.gpu = Gpu(pci)
        with self.gpu.used():
            self.decompressor = BatchDecompressor("zstd") if coding.codec == "zstd" else None
            self.kernels = self.gpu.kernels(kernels())
        self.room = batch * room_for(coding.chunk_bytes)
        self._lanes = Lent(lanes, partial(_Lane, self))
        self._hosts = Lent(hosts, partial(self.gpu.host_memory, self.room))

    def decode(self, read: Read, batch: Batch, out: NDArray[Any]) -> NDArray[np.bool_]:
        """Decode a batch of chunks, and return which of them are left to the processor, of which `out` has no voxels.

        Parameters
        ----------
        read
            Reads them.
        batch
            Which they are.
        out
            What is wanted of them: a part of an array, whose voxels lie one after the other along x.

        Raises
        ------
        MemoryError
            If the device or the host has too little memory.
        GpuCodecError
            If the GPU fails otherwise.
        """
        with self._hosts.one() as host:
            chunks = Chunks.of(host.memory, read(host.memory), self.coding)
            with self.gpu.used(), self._lanes.one() as lane:
                return lane.decode(host.memory, chunks, batch, out)

    def close(self) -> None:
        """Give all memory back; no thread decodes any more."""
        self._lanes.clear()
        self._hosts.clear()


def room_for(chunk_bytes: int) -> int:
    """Return the bytes for an encoded chunk, of which no codec makes it longer."""
    return chunk_bytes + chunk_bytes // 128 + 64


class Chunks(NamedTuple):
    """The streams of a batch of encoded chunks, as a GPU is told of them."""

    used: int
    """Bytes of the encoded chunks, all together."""
    table: NDArray[np.uint64]
    """Of each stream where it begins, its bytes, where in the chunks' voxels its block begins, and the block's bytes:
    first all that are compressed, then those that are blocks themselves."""
    compressed: int
    """How many of them are compressed."""
    owners: NDArray[np.int64]
    """Which chunk each of those belongs to."""
    told: NDArray[np.uint32]
    """Of each chunk what the kernels are told."""
    left: NDArray[np.bool_]
    """Whether the processor decodes it."""

    @classmethod
    def of(cls, memory: NDArray[np.uint8], encoded: Sequence[NDArray[np.uint8] | None], coding: ChunkCoding) -> Chunks:
        """Return the streams of chunks that lie in memory."""
        base, chunk_bytes, used = memory.ctypes.data, coding.chunk_bytes, 0
        told = np.zeros((len(encoded), 4), np.uint32)
        told[:, 1:3] = 1
        left = np.zeros(len(encoded), np.bool_)
        found: list[tuple[NDArray[np.int64], ...]] = []
        for number, content in enumerate(encoded):
            streams: Streams | None = None
            if content is not None and content.size:
                streams = take_apart(content, coding)
            if streams is None:
                left[number] = content is None or content.size > 0
                continue
            begin = content.ctypes.data - base  # type: ignore[union-attr]
            used = max(used, begin + content.size)  # type: ignore[union-attr]
            told[number] = streams.shuffled, streams.block, streams.width, 1
            owner = np.full(len(streams.begins), number, np.int64)
            target = streams.targets + number * chunk_bytes
            found.append((streams.begins + begin, streams.lengths, target, streams.sizes, owner))
        if not found:
            return cls(0, np.zeros((TABLE, 0), np.uint64), 0, np.zeros(0, np.int64), told, left)
        begins, lengths, targets, sizes, owners = (np.concatenate(part) for part in zip(*found, strict=True))
        order = np.argsort(lengths == sizes, kind="stable")
        table = np.stack([begins, lengths, targets, sizes])[:, order].astype(np.uint64)
        return cls(used, table, int((lengths != sizes).sum()), owners[order], told, left)


class _Lane:
    """Memory of a batch on the device, and the stream of CUDA on which it is decoded."""

    def __init__(self, decoder: GpuDecoder) -> None:
        gpu, coding = decoder.gpu, decoder.coding
        self._decoder, self._stream = decoder, Stream(gpu, decoder.kernels)
        voxels = decoder.batch * coding.chunk_bytes
        self._most = decoder.batch * most_streams(coding)
        self._on_host = gpu.host_memory(4 * 3 * self._most)
        self._results = self._on_host.memory.view(np.uint32)
        self._encoded = DeviceMemory(gpu, decoder.room)
        self._shuffled = DeviceMemory(gpu, voxels)
        self._voxels = DeviceMemory(gpu, voxels)
        self._table = DeviceMemory(gpu, 8 * TABLE * self._most)
        self._told = DeviceMemory(gpu, 4 * 4 * decoder.batch)
        self._device_results = DeviceMemory(gpu, self._results.nbytes)
        scratch = 1
        if decoder.decompressor is not None:
            scratch = decoder.decompressor.scratch_bytes(self._most, coding.chunk_bytes, voxels)
        self._scratch = DeviceMemory(gpu, scratch)

    def decode(self, memory: NDArray[np.uint8], chunks: Chunks, batch: Batch, out: NDArray[Any]) -> NDArray[np.bool_]:
        """Decode chunks that lie in memory of the host, and return which of them are left to the processor."""
        try:
            return self._decode(memory, chunks, batch, out)
        except BaseException:
            with contextlib.suppress(Exception):
                self._stream.wait()  # or a copy might overwrite what the processor decodes
            raise

    def _decode(self, memory: NDArray[np.uint8], chunks: Chunks, batch: Batch, out: NDArray[Any]) -> NDArray[np.bool_]:
        coding, stream = self._decoder.coding, self._stream
        stream.upload(self._encoded.ptr, memory[: chunks.used], pinned=True)
        stream.upload(self._told.ptr, chunks.told)
        if chunks.table.size:
            self._decompress(chunks)
        groups = ceil_div(coding.chunk_bytes, 8 * int(chunks.told[:, 2].min()))
        items = len(chunks.told) * groups
        numbers = coding.chunk_bytes, groups, items
        stream.launch("unshuffle", items, self._shuffled, self._voxels, self._told, *numbers)
        shapes = *batch.start, *out.shape[1:], *coding.chunk, *batch.grid[1:], coding.itemsize
        fill = int.from_bytes(batch.fill, "little")
        # The shuffled voxels are not needed any more.
        stream.launch("place", out.size, self._voxels, self._shuffled, self._told, *shapes, fill, out.size)
        self._download(out)
        results = self._results[: (3 if self._decoder.decompressor else 2) * chunks.compressed]
        stream.download(results, self._device_results.ptr, pinned=True)
        stream.wait()
        found, statuses = results[: 2 * chunks.compressed].view(np.uint64), results[2 * chunks.compressed :]
        failed = found != chunks.table[3, : chunks.compressed]
        if statuses.size:
            failed |= statuses != SUCCESS
        left = chunks.left.copy()
        left[chunks.owners[: chunks.compressed][failed]] = True
        return left

    def _decompress(self, chunks: Chunks) -> None:
        """Begin to make shuffled voxels of streams."""
        stream, count, compressed = self._stream, chunks.table.shape[1], chunks.compressed
        addresses, decompressor = np.ascontiguousarray(chunks.table), self._decoder.decompressor
        if decompressor is not None:
            addresses[0, :compressed] += np.uint64(self._encoded.ptr)
            addresses[2, :compressed] += np.uint64(self._shuffled.ptr)
        stream.upload(self._table.ptr, addresses)
        row, results, buffers = 8 * count, self._device_results.ptr, (self._encoded, self._shuffled)
        begins, lengths, targets, sizes = (self._table.ptr + row * number for number in range(TABLE))
        if compressed and decompressor is not None:
            scratch = self._scratch.ptr, self._scratch.size
            arrays = StreamArrays(begins, lengths, sizes, results, *scratch, targets, results + 8 * compressed)
            decompressor(compressed, arrays, stream.pointer)
        elif compressed:
            where = begins, lengths, targets, sizes, results
            stream.launch("decompress_lz4", compressed * LZ4_GROUP, *buffers, *where, group=LZ4_GROUP)
        if pieces := count - compressed:
            beyond = [each + 8 * compressed for each in (begins, targets, lengths)]
            stream.launch("copy_pieces", pieces * GROUP, *buffers, *beyond)

    def _download(self, out: NDArray[Any]) -> None:
        """Begin to copy what is wanted to its place: planes at once where their rows are one piece, else each."""
        source, (planes, rows, columns), (plane, row, width) = self._shuffled.ptr, out.shape, out.strides
        piece, most = rows * columns * width, 2**31 - 1
        if row == columns * width and plane <= most:
            self._stream.download_rows(out.ctypes.data, max(plane, piece), source, piece, piece, planes)
            return
        for number in range(planes):
            at = source + number * piece
            to, inside = out.ctypes.data + number * plane, columns * width
            self._stream.download_rows(to, row, at, inside, inside, rows)
