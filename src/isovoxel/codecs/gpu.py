"""Encode chunks on an NVIDIA GPU: bits are shuffled, blocks compressed by nvCOMP, and put together to Blosc containers.

The GPU reads voxels where an engine has left them in the host's memory, and leaves containers in memory of the host as
they stand in a file. A few batches of chunks are on the device at a time, each with memory and a stream of CUDA of its
own, so that copies and kernels of one overlap with those of others; more are on the host, where they are written
meanwhile. A thread waits for its batch without a processor, so that all cores are there for whoever reads, sums up and
writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.blosc import ContainerLayout
from isovoxel.codecs.cuda import GROUP, Gpu, Lent, Stream
from isovoxel.codecs.nvcomp import BatchArrays, BatchChecksum, BatchCompressor, NvcompError
from isovoxel.geometry.grid import Index3, ceil_div

KERNELS = ("gather", "shuffle_bits", "lay_out", "pack", "seal")
"""Names of the kernels in `blosc.cl`."""


class EncodedChunks(NamedTuple):
    """Chunks one after the other as they stand in a file, in memory that is used again."""

    body: NDArray[np.uint8]
    """Their bytes, with a checksum behind each where there are any."""
    sizes: NDArray[np.int64]
    """Bytes of each, with its checksum."""


class GpuEncoder:
    """Encodes chunks on one GPU; any number of threads may.

    Parameters
    ----------
    pci
        The GPU's place on the PCI bus, such as "0000:1b:00.0".
    layout
        How chunks are cut into blocks.
    chunk
        Voxels of a chunk, z, y, x.
    batch
        How many chunks are encoded at a time.
    lanes, hosts
        How many batches there are on the device, and on the host.
    gap
        Bytes behind each chunk: 4 for its CRC-32C, or none.

    Raises
    ------
    ImportError
        If cupy or nvCOMP is not installed.
    MemoryError
        If the device has too little memory.
    GpuCodecError
        If the GPU cannot be used.
    """

    def __init__(
        self, pci: str, layout: ContainerLayout, chunk: Index3, *, batch: int, lanes: int, hosts: int, gap: int
    ) -> None:
        self.layout, self.chunk, self.batch, self.gap = layout, chunk, batch, gap
        self.gpu = Gpu(pci)
        with self.gpu.used():
            self.compressor = BatchCompressor(layout.codec, layout.block_bytes)
            self.checksum = BatchChecksum(batch, layout.longest) if gap else None
            self.kernels = self.gpu.kernels(KERNELS)
        self._lanes = Lent(lanes, partial(_Lane, self))
        self._hosts = Lent(hosts, partial(self.gpu.host_memory, batch * (layout.longest + gap)))

    def encode(self, voxels: NDArray[Any], first: int, take: Callable[[EncodedChunks], None]) -> None:
        """Encode a batch of chunks.

        Parameters
        ----------
        voxels
            Those of a shard, z, y, x, which lie one after the other along x.
        first
            Number of the first chunk that is encoded, z slowest; with it those that follow, `batch` in all at most.
        take
            Called with the result, which is overwritten afterwards.

        Raises
        ------
        MemoryError
            If the device or the host has too little memory.
        GpuCodecError
            If the GPU fails otherwise.
        """
        chunks = min(self.batch, math.prod(self.grid(voxels)) - first)
        with self._hosts.one() as host:
            with self.gpu.used():
                reached = self._reaches(voxels)
            if not reached:
                self._copy_chunks(voxels, first, chunks, host.memory)
            with self.gpu.used(), self._lanes.one() as lane:
                encoded = lane.encode(voxels if reached else None, first, chunks, host.memory)
            take(encoded)

    def grid(self, voxels: NDArray[Any]) -> Index3:
        """Return how many chunks some voxels have along each axis."""
        z, y, x = (ceil_div(n, c) for n, c in zip(voxels.shape, self.chunk, strict=True))
        return (z, y, x)

    def close(self) -> None:
        """Give all memory back; no thread encodes any more."""
        self._lanes.clear()
        self._hosts.clear()
        self.gpu.pool.free_all_blocks()

    def _reaches(self, voxels: NDArray[Any]) -> bool:
        """Return whether the GPU reaches voxels where they are."""
        last = voxels.ctypes.data + sum((n - 1) * s for n, s in zip(voxels.shape, voxels.strides, strict=True))
        if voxels.strides[2] != voxels.itemsize:
            return False
        ask, registered = self.gpu.cupy.cuda.runtime.pointerGetAttributes, 1
        return all(ask(address).type == registered for address in (voxels.ctypes.data, last))

    def _copy_chunks(self, voxels: NDArray[Any], first: int, chunks: int, memory: NDArray[np.uint8]) -> None:
        """Copy the voxels of chunks to one after the other, zeros beyond the shard."""
        grid, size = self.grid(voxels), self.layout.chunk_bytes
        for number in range(chunks):
            place = np.unravel_index(first + number, grid)
            part = voxels[tuple(slice(int(i) * c, (int(i) + 1) * c) for i, c in zip(place, self.chunk, strict=True))]
            chunk = memory[number * size : (number + 1) * size].view(voxels.dtype).reshape(self.chunk)
            if part.shape != self.chunk:
                chunk.fill(0)
            z, y, x = part.shape
            chunk[:z, :y, :x] = part


class _Lane:
    """Memory of a batch on the device, and the stream of CUDA on which it is encoded."""

    def __init__(self, encoder: GpuEncoder) -> None:
        cupy, layout = encoder.gpu.cupy, encoder.layout
        chunks, blocks = encoder.batch, encoder.batch * layout.blocks
        self._encoder, self._stream = encoder, Stream(encoder.gpu, encoder.kernels)
        # Sizes of the chunks, and what became of blocks and checksums, which are 0 where all is well.
        self._results = np.empty(2 * chunks + chunks + blocks, np.int32)
        with cupy.cuda.using_allocator(encoder.gpu.pool.malloc), self._stream.stream:
            self._stride = encoder.compressor.stride()
            self._voxels = cupy.empty(chunks * layout.chunk_bytes, np.uint8)
            self._shuffled = cupy.empty(chunks * layout.chunk_bytes, np.uint8)
            self._streams = cupy.empty(blocks * self._stride, np.uint8)
            self._packed = cupy.empty(chunks * (layout.longest + encoder.gap), np.uint8)
            self._lengths = cupy.empty(blocks, np.uint64)
            self._places = cupy.empty(blocks, np.uint32)
            self._device_results = cupy.zeros(len(self._results), np.int32)
            self._begins = cupy.empty(chunks, np.uint64)
            self._checksums = cupy.empty(chunks, np.uint32)
            lengths = np.array(layout.block_lengths(), np.uint64)
            starts = np.cumsum(lengths) - lengths
            begins = np.arange(chunks, dtype=np.uint64)[:, None] * np.uint64(layout.chunk_bytes) + starts
            self._block_addresses = cupy.asarray(begins.ravel() + np.uint64(self._shuffled.data.ptr))
            self._block_lengths = cupy.asarray(np.tile(lengths, chunks))
            places = np.arange(blocks, dtype=np.uint64) * np.uint64(self._stride)
            self._stream_addresses = cupy.asarray(places + np.uint64(self._streams.data.ptr))
            self._scratch = cupy.empty(max(1, encoder.compressor.scratch_bytes(blocks)), np.uint8)
        self._stream.stream.synchronize()

    def encode(self, voxels: NDArray[Any] | None, first: int, chunks: int, host: NDArray[np.uint8]) -> EncodedChunks:
        """Encode chunks into a buffer on the host, of voxels that the GPU reaches, or of those in the buffer."""
        layout, gap = self._encoder.layout, self._encoder.gap
        blocks, items = chunks * layout.blocks, layout.shuffling_items(chunks)
        cut, width = (np.uint32(layout.chunk_bytes), np.uint32(layout.block_bytes)), np.uint32(layout.itemsize)
        between, laid = (self._voxels, self._shuffled), (self._lengths, self._places, self._device_results)
        base, streams = np.uint64(self._packed.data.ptr), self._streams
        stream = self._stream
        if voxels is None:
            stream.upload(self._voxels, host[: chunks * layout.chunk_bytes])
        else:
            self._gather(voxels, first, chunks)
        stream.launch("shuffle_bits", items, *between, *cut, width, np.uint64(items))
        self._encoder.compressor(blocks, self._arrays(), stream.pointer)
        stream.launch("lay_out", chunks, *laid, *cut, np.uint32(chunks))
        rest = base, np.uint64(self._stride), *cut, width, np.uint32(layout.flags), np.uint32(gap)
        stream.launch("pack", blocks * GROUP, *between, streams, *laid, self._packed, self._begins, *rest)
        if self._encoder.checksum is not None:
            self._sum_up(self._encoder.checksum, chunks)
            sealed = self._packed, self._begins, base, self._device_results, self._checksums
            stream.launch("seal", chunks, *sealed, np.uint32(chunks))
        stream.download(self._results, self._device_results)
        stream.wait()
        if failed := int(np.count_nonzero(self._results[2 * self._encoder.batch :])):
            raise NvcompError(f"nvCOMP did not compress {failed} of {blocks} blocks")
        sizes = self._results[: 2 * chunks].view(np.int64) + gap
        body = host[: int(sizes.sum())]
        stream.download(body, self._packed)
        stream.wait()
        return EncodedChunks(body, sizes)

    def _gather(self, voxels: NDArray[Any], first: int, chunks: int) -> None:
        """Cut chunks out of voxels that lie in the host's memory.

        Where the planes that they lie in are one piece with their rows, these are copied before, which keeps no
        multiprocessor waiting for the bus; else the kernel reads them from where they are.
        """
        cz, cy, cx = self._encoder.chunk
        _, down, across = self._encoder.grid(voxels)
        start, stop = first // (down * across) * cz, -(-(first + chunks) // (down * across)) * cz
        planes = voxels[start:stop]
        plane, row, width = planes.strides
        first -= first // (down * across) * down * across
        address = planes.ctypes.data
        if plane == row * planes.shape[1] and planes.nbytes <= self._streams.nbytes:
            nbytes, rows = planes.shape[2] * width, planes.shape[0] * planes.shape[1]
            self._stream.upload_rows(self._streams, address, row, nbytes, rows)
            address, row, plane = self._streams.data.ptr, nbytes, nbytes * planes.shape[1]
        items = chunks * cz * cy * cx
        shapes = [np.uint32(n) for n in (*planes.shape, cz, cy, cx, first, width)]
        strides = np.uint64(0), np.uint64(plane), np.uint64(row)
        self._stream.launch("gather", items, np.uint64(address), self._voxels, *strides, *shapes, np.uint64(items))

    def _sum_up(self, checksum: BatchChecksum, chunks: int) -> None:
        sizes, begins, sums = self._device_results.data.ptr, self._begins.data.ptr, self._checksums.data.ptr
        checksum(begins, sizes, chunks, sums, sizes + 8 * self._encoder.batch, self._stream.pointer)

    def _arrays(self) -> BatchArrays:
        return BatchArrays(
            self._block_addresses.data.ptr,
            self._block_lengths.data.ptr,
            self._scratch.data.ptr,
            self._scratch.nbytes,
            self._stream_addresses.data.ptr,
            self._lengths.data.ptr,
            self._device_results.data.ptr + 12 * self._encoder.batch,
        )
