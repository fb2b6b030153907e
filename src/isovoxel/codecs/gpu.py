"""Encode chunks on an NVIDIA GPU: bits are shuffled, blocks compressed by nvCOMP, and put together to Blosc containers.

The GPU reads voxels where an engine has left them in the host's memory, and leaves containers in memory of the host as
they stand in a file. A few batches of chunks are on the device at a time, each with memory and a stream of CUDA of its
own, so that copies and kernels of one overlap with those of others; more are on the host, where they are written
meanwhile. A thread waits for its batch without a processor, so that all cores are there for whoever reads, sums up and
writes.

CUDA's own memory of the host takes a second for each gigabyte; ordinary memory that is registered afterwards takes a
third of that, in each thread at the same time (measured, H200).
"""

from __future__ import annotations

import contextlib
import math
import mmap
import queue
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.blosc import ContainerLayout, kernels
from isovoxel.codecs.nvcomp import BatchArrays, BatchChecksum, BatchCompressor, NvcompError
from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Index3

GROUP = 256
"""Work items of a group."""

KERNELS = ("gather", "shuffle_bits", "lay_out", "pack", "seal")
"""Names of the kernels in `blosc.cl`."""

T = TypeVar("T")


def can_encode() -> bool:
    """Return whether what encodes on NVIDIA's GPUs is installed, without loading it."""
    with contextlib.suppress(ImportError):  # of a package above
        return find_spec("cupy") is not None and find_spec("nvidia.libnvcomp") is not None
    return False


class EncodedChunks(NamedTuple):
    """Chunks one after the other as they stand in a file, in memory that is used again."""

    body: NDArray[np.uint8]
    """Their bytes, with a checksum behind each where there are any."""
    sizes: NDArray[np.int64]
    """Bytes of each, with its checksum."""


class GpuEncodingError(Exception):
    """The GPU did not encode."""


class Registration:
    """Memory of the host that the GPU reaches, until this is collected; until then the memory stays.

    Parameters
    ----------
    cupy
        The module.
    memory
        The memory.
    """

    def __init__(self, cupy: Any, memory: NDArray[Any]) -> None:
        self._runtime, self.memory = cupy.cuda.runtime, memory
        portable, mapped = 1, 2
        self._runtime.hostRegister(memory.ctypes.data, memory.nbytes, portable | mapped)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # of memory that could not be registered, and where CUDA has ended before
            self._runtime.hostUnregister(self.memory.ctypes.data)


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
    GpuEncodingError
        If the GPU cannot be used.
    """

    def __init__(
        self, pci: str, layout: ContainerLayout, chunk: Index3, *, batch: int, lanes: int, hosts: int, gap: int
    ) -> None:
        import cupy

        self.layout, self.chunk, self.batch, self.gap = layout, chunk, batch, gap
        self.cupy = cupy
        with self._failures():
            self._device = cupy.cuda.Device(cupy.cuda.runtime.deviceGetByPCIBusId(pci))
            with self._device:
                self.pool = cupy.cuda.MemoryPool()
                self.compressor = BatchCompressor(layout.codec, layout.block_bytes)
                self.checksum = BatchChecksum(batch, layout.longest) if gap else None
                module = cupy.RawModule(code=kernels())
                self.kernels = {name: module.get_function(name) for name in KERNELS}
        self._lanes: queue.SimpleQueue[_Lane | None] = queue.SimpleQueue()
        self._hosts: queue.SimpleQueue[Registration | None] = queue.SimpleQueue()
        for made, number in ((self._lanes, lanes), (self._hosts, hosts)):
            for _ in range(number):
                made.put(None)  # made when it is needed first, by the thread that needs it

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
        GpuEncodingError
            If the GPU fails otherwise.
        """
        chunks = min(self.batch, math.prod(self.grid(voxels)) - first)
        with _lent(self._hosts, self._new_host) as host:
            with self._failures(), self._device:
                reached = self._reaches(voxels)
            if not reached:
                self._copy_chunks(voxels, first, chunks, host.memory)
            with self._failures(), self._device, _lent(self._lanes, partial(_Lane, self)) as lane:
                encoded = lane.encode(voxels if reached else None, first, chunks, host.memory)
            take(encoded)

    def grid(self, voxels: NDArray[Any]) -> Index3:
        """Return how many chunks some voxels have along each axis."""
        z, y, x = (ceil_div(n, c) for n, c in zip(voxels.shape, self.chunk, strict=True))
        return (z, y, x)

    def register(self, memory: NDArray[Any]) -> Registration | None:
        """Let the GPU reach memory of the host; None where it does not, and voxels are copied from there."""
        with contextlib.suppress(MemoryError, GpuEncodingError), self._failures(), self._device:
            return Registration(self.cupy, memory)
        return None

    def close(self) -> None:
        """Give all memory back; no thread encodes any more."""
        for lent in (self._lanes, self._hosts):
            number = lent.qsize()
            for _ in range(number):
                lent.get()
            for _ in range(number):
                lent.put(None)
        self.pool.free_all_blocks()

    def _reaches(self, voxels: NDArray[Any]) -> bool:
        """Return whether the GPU reaches voxels where they are."""
        last = voxels.ctypes.data + sum((n - 1) * s for n, s in zip(voxels.shape, voxels.strides, strict=True))
        if voxels.strides[2] != voxels.itemsize:
            return False
        ask, registered = self.cupy.cuda.runtime.pointerGetAttributes, 1
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

    def _new_host(self) -> Registration:
        memory = np.frombuffer(mmap.mmap(-1, self.batch * (self.layout.longest + self.gap)), np.uint8)
        with self._failures(), self._device:
            return Registration(self.cupy, memory)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise failures of CUDA and nvCOMP as what `encode` says."""
        runtime = self.cupy.cuda.runtime
        try:
            yield
        except self.cupy.cuda.memory.OutOfMemoryError as error:
            raise MemoryError("the device has too little memory to encode on it") from error
        except runtime.CUDARuntimeError as error:
            if error.status == runtime.cudaErrorMemoryAllocation:
                raise MemoryError("there is too little memory to encode on the device") from error
            raise GpuEncodingError(str(error)) from error
        except (NvcompError, self.cupy.cuda.driver.CUDADriverError, self.cupy.cuda.compiler.CompileException) as error:
            raise GpuEncodingError(str(error).splitlines()[0]) from error


@contextlib.contextmanager
def _lent(free: queue.SimpleQueue[T | None], make: Callable[[], T]) -> Iterator[T]:
    """Lend one of a number of things, which are made at first."""
    lent = free.get()
    try:
        if lent is None:
            lent = make()
        yield lent
    finally:
        free.put(lent)


class _Lane:
    """Memory of a batch on the device, and the stream of CUDA on which it is encoded."""

    def __init__(self, encoder: GpuEncoder) -> None:
        cupy, layout = encoder.cupy, encoder.layout
        chunks, blocks = encoder.batch, encoder.batch * layout.blocks
        self._encoder, self._stream = encoder, cupy.cuda.Stream(non_blocking=True)
        # Who waits for an event of another kind keeps a core busy.
        self._done = cupy.cuda.Event(block=True, disable_timing=True)
        # Sizes of the chunks, and what became of blocks and checksums, which are 0 where all is well.
        self._results = np.empty(2 * chunks + chunks + blocks, np.int32)
        with cupy.cuda.using_allocator(encoder.pool.malloc), self._stream:
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
        self._stream.synchronize()

    def encode(self, voxels: NDArray[Any] | None, first: int, chunks: int, host: NDArray[np.uint8]) -> EncodedChunks:
        """Encode chunks into a buffer on the host, of voxels that the GPU reaches, or of those in the buffer."""
        layout, gap = self._encoder.layout, self._encoder.gap
        blocks, items = chunks * layout.blocks, layout.shuffling_items(chunks)
        cut, width = (np.uint32(layout.chunk_bytes), np.uint32(layout.block_bytes)), np.uint32(layout.itemsize)
        between, laid = (self._voxels, self._shuffled), (self._lengths, self._places, self._device_results)
        base, streams = np.uint64(self._packed.data.ptr), self._streams
        with self._stream:
            if voxels is None:
                self._upload(self._voxels, host[: chunks * layout.chunk_bytes])
            else:
                self._gather(voxels, first, chunks)
            self._launch("shuffle_bits", items, *between, *cut, width, np.uint64(items))
            self._encoder.compressor(blocks, self._arrays(), self._stream.ptr)
            self._launch("lay_out", chunks, *laid, *cut, np.uint32(chunks))
            rest = base, np.uint64(self._stride), *cut, width, np.uint32(layout.flags), np.uint32(gap)
            self._launch("pack", blocks * GROUP, *between, streams, *laid, self._packed, self._begins, *rest)
            if self._encoder.checksum is not None:
                self._sum_up(self._encoder.checksum, chunks)
                sealed = self._packed, self._begins, base, self._device_results, self._checksums
                self._launch("seal", chunks, *sealed, np.uint32(chunks))
            self._download(self._results, self._device_results)
            self._wait()
            if failed := int(np.count_nonzero(self._results[2 * self._encoder.batch :])):
                raise NvcompError(f"nvCOMP did not compress {failed} of {blocks} blocks")
            sizes = self._results[: 2 * chunks].view(np.int64) + gap
            body = host[: int(sizes.sum())]
            self._download(body, self._packed)
            self._wait()
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
            nbytes = planes.shape[2] * width
            to, rows = self._streams.data.ptr, planes.shape[0] * planes.shape[1]
            runtime = self._encoder.cupy.cuda.runtime
            kind = runtime.memcpyHostToDevice
            runtime.memcpy2DAsync(to, nbytes, address, row, nbytes, rows, kind, self._stream.ptr)
            address, row, plane = to, nbytes, nbytes * planes.shape[1]
        items = chunks * cz * cy * cx
        shapes = [np.uint32(n) for n in (*planes.shape, cz, cy, cx, first, width)]
        strides = np.uint64(0), np.uint64(plane), np.uint64(row)
        self._launch("gather", items, np.uint64(address), self._voxels, *strides, *shapes, np.uint64(items))

    def _sum_up(self, checksum: BatchChecksum, chunks: int) -> None:
        sizes, begins, sums = self._device_results.data.ptr, self._begins.data.ptr, self._checksums.data.ptr
        checksum(begins, sizes, chunks, sums, sizes + 8 * self._encoder.batch, self._stream.ptr)

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

    def _launch(self, kernel: str, items: int, *arguments: Any) -> None:
        self._encoder.kernels[kernel]((ceil_div(items, GROUP),), (GROUP,), arguments)

    def _upload(self, to: Any, voxels: NDArray[Any]) -> None:
        kind = self._encoder.cupy.cuda.runtime.memcpyHostToDevice
        self._copy(to.data.ptr, voxels.ctypes.data, voxels.nbytes, kind)

    def _download(self, to: NDArray[Any], array: Any) -> None:
        kind = self._encoder.cupy.cuda.runtime.memcpyDeviceToHost
        self._copy(to.ctypes.data, array.data.ptr, to.nbytes, kind)

    def _copy(self, to: int, source: int, nbytes: int, kind: int) -> None:
        self._encoder.cupy.cuda.runtime.memcpyAsync(to, source, nbytes, kind, self._stream.ptr)

    def _wait(self) -> None:
        self._done.record(self._stream)
        self._done.synchronize()
