"""Encode chunks on an NVIDIA GPU: bits are shuffled, blocks compressed by nvCOMP, and put together to Blosc containers.

The GPU reads voxels where an engine has left them, on the device or in the host's memory, and leaves containers in
memory of the host as they stand in a file. A few batches of chunks are on the device at a time, each with memory and a
stream of CUDA of its own, so that copies and kernels of one overlap with those of others; more are on the host, where
they are written meanwhile. A thread waits for its batch without a processor, so that all cores are there for whoever
reads, sums up and writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.blosc import ContainerLayout, kernels
from isovoxel.codecs.cuda import GROUP, DeviceMemory, DeviceVoxels, Gpu, Lent, Stream, Voxels
from isovoxel.codecs.nvcomp import BatchArrays, BatchChecksum, BatchCompressor, NvcompError
from isovoxel.geometry.grid import Index3, ceil_div


class EncodedChunks(NamedTuple):
    """Chunks one after the other as they stand in a file, in memory that is used again."""

    body: NDArray[np.uint8]
    """Their bytes, with a checksum behind each where there are any."""
    sizes: NDArray[np.int64]
    """Bytes of each, with its checksum."""
    full: NDArray[np.bool_]
    """Of each, whether a bit of its voxels is set."""


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
        If CUDA's driver or compiler, or nvCOMP, is not installed.
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
            self.kernels = self.gpu.kernels(kernels())
        self._lanes = Lent(lanes, self._new_lane)
        self._hosts = Lent(hosts, partial(self.gpu.host_memory, batch * (layout.longest + gap)))

    def encode(self, voxels: Voxels, first: int, take: Callable[[EncodedChunks], None]) -> None:
        """Encode a batch of chunks.

        Parameters
        ----------
        voxels
            Those of a shard, z, y, x, which lie one after the other along x; on the GPU, they must stay there.
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
        with ExitStack() as held:
            with self.gpu.used(), self._lanes.one() as lane:
                if isinstance(voxels, DeviceVoxels) or self._reaches(voxels):
                    sizes, full = lane.compress(voxels, first, chunks)
                    memory = held.enter_context(self._hosts.one()).memory
                else:
                    memory = held.enter_context(self._hosts.one()).memory
                    self._copy_chunks(voxels, first, chunks, memory)
                    sizes, full = lane.compress(memory, first, chunks)
                body = lane.fetch(memory, int(sizes.sum()))
            take(EncodedChunks(body, sizes, full))

    def make_ahead(self, batches: int) -> None:
        """Begin to get memory for so many batches, on the device and on the host."""
        self._lanes.make_ahead(batches)
        self._hosts.make_ahead(batches)

    def _new_lane(self) -> _Lane:
        with self.gpu.used():
            return _Lane(self)

    def grid(self, voxels: Voxels) -> Index3:
        """Return how many chunks some voxels have along each axis."""
        z, y, x = (ceil_div(n, c) for n, c in zip(voxels.shape, self.chunk, strict=True))
        return (z, y, x)

    def close(self) -> None:
        """Give all memory back; no thread encodes any more."""
        self._lanes.clear()
        self._hosts.clear()

    def _reaches(self, voxels: NDArray[Any]) -> bool:
        """Return whether the GPU reaches voxels where they are."""
        last = voxels.ctypes.data + sum((n - 1) * s for n, s in zip(voxels.shape, voxels.strides, strict=True))
        if voxels.strides[2] != voxels.itemsize:
            return False
        return all(self.gpu.reaches(address) for address in (voxels.ctypes.data, last))

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
        gpu, layout = encoder.gpu, encoder.layout
        chunks, blocks = encoder.batch, encoder.batch * layout.blocks
        self._encoder, self._stream = encoder, Stream(gpu, encoder.kernels)
        self._stride = encoder.compressor.stride()
        self._voxels = DeviceMemory(gpu, chunks * layout.chunk_bytes)
        self._shuffled = DeviceMemory(gpu, chunks * layout.chunk_bytes)
        self._streams = DeviceMemory(gpu, blocks * self._stride)
        self._packed = DeviceMemory(gpu, chunks * (layout.longest + encoder.gap))
        self._lengths = DeviceMemory(gpu, 8 * blocks)
        self._places = DeviceMemory(gpu, 4 * blocks)
        self._begins = DeviceMemory(gpu, 8 * chunks)
        self._checksums = DeviceMemory(gpu, 4 * chunks)
        self._scratch = DeviceMemory(gpu, max(1, encoder.compressor.scratch_bytes(blocks)))
        # Sizes of the chunks, what became of checksums and blocks, which is 0 where all is well, and which chunks are
        # full.
        self._on_host = gpu.host_memory(4 * (2 * chunks + chunks + blocks + chunks))
        self._results = self._on_host.memory.view(np.int32)
        self._device_results = DeviceMemory(gpu, self._results.nbytes)
        self._stream.zero(self._device_results.ptr, self._results.nbytes)
        lengths = np.array(layout.block_lengths(), np.uint64)
        starts = np.cumsum(lengths) - lengths
        begins = np.arange(chunks, dtype=np.uint64)[:, None] * np.uint64(layout.chunk_bytes) + starts
        places = np.arange(blocks, dtype=np.uint64) * np.uint64(self._stride)
        self._block_addresses = self._put(begins.ravel() + np.uint64(self._shuffled.ptr))
        self._block_lengths = self._put(np.tile(lengths, chunks))
        self._stream_addresses = self._put(places + np.uint64(self._streams.ptr))
        self._stream.wait()

    def _put(self, array: NDArray[Any]) -> DeviceMemory:
        """Return memory on the device with an array in it."""
        memory = DeviceMemory(self._encoder.gpu, array.nbytes)
        self._stream.upload(memory.ptr, array)
        return memory

    def compress(self, voxels: Voxels, first: int, chunks: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Make containers of chunks on the device, and return their lengths, and whether each has a bit set.

        Parameters
        ----------
        voxels
            Voxels that the GPU reaches, z, y, x, or the bytes of the chunks, one after the other.
        first, chunks
            Number of the first chunk of the voxels, and how many there are.
        """
        layout, gap, batch, stream = self._encoder.layout, self._encoder.gap, self._encoder.batch, self._stream
        blocks, items, groups = chunks * layout.blocks, layout.shuffling_items(chunks), ceil_div(layout.chunk_bytes, 32)
        cut, width = (layout.chunk_bytes, layout.block_bytes), layout.itemsize
        between, laid = (self._voxels, self._shuffled), (self._lengths, self._places, self._device_results)
        base, streams, full = self._packed.ptr, self._streams, self._device_results.ptr + self._results[:-batch].nbytes
        if isinstance(voxels, np.ndarray) and voxels.ndim == 1:
            stream.upload(self._voxels.ptr, voxels[: chunks * layout.chunk_bytes], pinned=True)
        else:
            self._gather(voxels, first, chunks)
        stream.zero(full, 4 * batch)
        stream.launch("mark_full", chunks * groups, self._voxels, full, cut[0], groups, chunks * groups)
        stream.launch("shuffle_bits", items, *between, *cut, width, items)
        self._encoder.compressor(blocks, self._arrays(), stream.pointer)
        stream.launch("lay_out", chunks, *laid, *cut, chunks)
        rest = base, self._stride, *cut, width, layout.flags, gap
        stream.launch("pack", blocks * GROUP, *between, streams, *laid, self._packed, self._begins, *rest)
        if self._encoder.checksum is not None:
            self._sum_up(self._encoder.checksum, chunks)
            sealed = self._packed, self._begins, base, self._device_results, self._checksums
            stream.launch("seal", chunks, *sealed, chunks)
        stream.download(self._results, self._device_results.ptr, pinned=True)
        stream.wait()
        if failed := int(np.count_nonzero(self._results[2 * batch : -batch])):
            raise NvcompError(f"nvCOMP did not compress {failed} of {blocks} blocks")
        return self._results[: 2 * chunks].view(np.int64) + gap, self._results[-batch:][:chunks] != 0

    def fetch(self, host: NDArray[np.uint8], nbytes: int) -> NDArray[np.uint8]:
        """Return the containers, of so many bytes, in memory of the host."""
        body = host[:nbytes]
        self._stream.download(body, self._packed.ptr, pinned=True)
        self._stream.wait()
        return body

    def _gather(self, voxels: Voxels, first: int, chunks: int) -> None:
        """Cut chunks out of voxels that lie on the device or in the host's memory.

        Where the planes of the host that they lie in are one piece with their rows, these are copied before, which
        keeps no multiprocessor waiting for the bus; else the kernel reads them from where they are.
        """
        cz, cy, cx = self._encoder.chunk
        _, down, across = self._encoder.grid(voxels)
        start, stop = first // (down * across) * cz, -(-(first + chunks) // (down * across)) * cz
        planes = voxels[start:stop, :, :]
        plane, row, width = planes.strides
        first -= first // (down * across) * down * across
        if isinstance(planes, DeviceVoxels):
            address = planes.address
            self._stream.follow(planes.ready)
        else:
            address = planes.ctypes.data
            if plane == row * planes.shape[1] and planes.nbytes <= self._streams.size:
                nbytes, rows = planes.shape[2] * width, planes.shape[0] * planes.shape[1]
                self._stream.upload_rows(self._streams.ptr, address, row, nbytes, rows)
                address, row, plane = self._streams.ptr, nbytes, nbytes * planes.shape[1]
        items = chunks * cz * cy * cx
        shapes = *planes.shape, cz, cy, cx, first, width
        self._stream.launch("gather", items, address, self._voxels, 0, plane, row, *shapes, items)

    def _sum_up(self, checksum: BatchChecksum, chunks: int) -> None:
        sizes, begins, sums = self._device_results.ptr, self._begins.ptr, self._checksums.ptr
        checksum(begins, sizes, chunks, sums, sizes + 8 * self._encoder.batch, self._stream.pointer)

    def _arrays(self) -> BatchArrays:
        return BatchArrays(
            self._block_addresses.ptr,
            self._block_lengths.ptr,
            self._scratch.ptr,
            self._scratch.size,
            self._stream_addresses.ptr,
            self._lengths.ptr,
            self._device_results.ptr + 12 * self._encoder.batch,
        )
