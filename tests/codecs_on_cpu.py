"""What a GPU encodes and decodes, made on a machine without one: by its kernels on OpenCL's CPU, and a CPU's codecs."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pyopencl as cl
from crc32c import crc32c
from numpy.typing import NDArray

from isovoxel.codecs import blosc
from isovoxel.codecs.blosc import ContainerLayout
from isovoxel.codecs.cuda import DeviceVoxels, Voxels
from isovoxel.codecs.decoder import Batch, Chunks, Read, room_for
from isovoxel.codecs.gpu import EncodedChunks
from isovoxel.codecs.streams import ChunkCoding, most_streams
from isovoxel.engines.opencl import quiet_compiler
from isovoxel.geometry.grid import Index3

GAP = 4
GROUP = 64
LZ4_ITEMS = 4


@functools.cache
def kernels() -> tuple[Any, dict[str, Any]]:
    """Return a context of a CPU, and the kernels built for it."""
    context = cl.create_some_context(interactive=False)
    with quiet_compiler():
        built = cl.Program(context, blosc.kernels()).build().all_kernels()
    return context, {kernel.function_name: kernel for kernel in built}


def containers(chunks: NDArray[Any], codec: str) -> list[bytes]:
    """Return the containers of chunks, one a row, as the kernels make them on an OpenCL device."""
    number, voxels = len(chunks), chunks.view(np.uint8).reshape(len(chunks), -1)
    layout = ContainerLayout(voxels.shape[1], chunks.dtype.itemsize, codec)
    context, kernel = kernels()
    queue, flags = cl.CommandQueue(context), cl.mem_flags.READ_WRITE
    cut, width = (np.uint32(layout.chunk_bytes), np.uint32(layout.block_bytes)), np.uint32(layout.itemsize)
    device = {"voxels": cl.Buffer(context, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=voxels)}
    device["shuffled"] = cl.Buffer(context, flags, voxels.nbytes)
    items = layout.shuffling_items(number)
    between = device["voxels"], device["shuffled"]
    kernel["shuffle_bits"](queue, (items,), None, *between, *cut, width, np.uint64(items))
    shuffled = np.empty_like(voxels)
    cl.enqueue_copy(queue, shuffled, device["shuffled"])
    stride = 2 * layout.block_bytes + 64
    streams = np.zeros((number * layout.blocks, stride), np.uint8)
    lengths = np.zeros(number * layout.blocks, np.uint64)
    for chunk in range(number):
        at = 0
        for block, nbytes in enumerate(layout.block_lengths()):
            raw = shuffled[chunk, at : at + nbytes].tobytes()
            encoded = imagecodecs.zstd_encode(raw, 1) if codec == "zstd" else imagecodecs.lz4_encode(raw)
            streams[chunk * layout.blocks + block, : len(encoded)] = np.frombuffer(encoded, np.uint8)
            lengths[chunk * layout.blocks + block] = len(encoded)
            at += nbytes
    for name, array in {"streams": streams, "lengths": lengths}.items():
        device[name] = cl.Buffer(context, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=array)
    device["places"] = cl.Buffer(context, flags, 4 * len(lengths))
    device["sizes"] = cl.Buffer(context, flags, 8 * number)
    packed = np.full(number * (layout.longest + GAP), 0xAA, np.uint8)
    device["packed"] = cl.Buffer(context, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=packed)
    laid = [device[name] for name in ("lengths", "places", "sizes")]
    kernel["lay_out"](queue, (number,), None, *laid, *cut, np.uint32(number))
    device["begins"] = cl.Buffer(context, flags, 8 * number)
    base = np.uint64(1 << 40)  # as an address is
    rest = device["begins"], base, np.uint64(stride), *cut, width, np.uint32(layout.flags), np.uint32(GAP)
    arrays = [*between, device["streams"], *laid, device["packed"], *rest]
    kernel["pack"](queue, (GROUP * len(lengths),), (GROUP,), *arrays)
    sizes = np.empty(number, np.uint64)
    cl.enqueue_copy(queue, packed, device["packed"])
    cl.enqueue_copy(queue, sizes, device["sizes"])
    ends = np.cumsum(sizes + np.uint64(GAP)).astype(int)
    starts = ends - GAP - sizes.astype(int)
    begins = np.empty(number, np.uint64)
    cl.enqueue_copy(queue, begins, device["begins"])
    np.testing.assert_array_equal(begins - base, starts.astype(np.uint64))
    made = [packed[start : end - GAP].tobytes() for start, end in zip(starts, ends, strict=True)]
    sums = np.array([crc32c(one) for one in made], np.uint32)
    device["sums"] = cl.Buffer(context, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=sums)
    sealed = device["packed"], device["begins"], base, device["sizes"], device["sums"], np.uint32(number)
    kernel["seal"](queue, (number,), None, *sealed)
    cl.enqueue_copy(queue, packed, device["packed"])
    for start, end, one, total in zip(starts, ends, made, sums, strict=True):
        assert packed[start:end].tobytes() == one + int(total).to_bytes(GAP, "little")
    return made


def gathered(array: NDArray[Any], part: tuple[slice, ...], chunk: Index3, first: int, chunks: int) -> NDArray[Any]:
    """Return chunks of a part of an array, one a row, as the kernel cuts them out."""
    context, kernel = kernels()
    queue, flags = cl.CommandQueue(context), cl.mem_flags.READ_WRITE
    view = array[part]
    begin = view.ctypes.data - array.ctypes.data
    source = cl.Buffer(context, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=array)
    cut = np.empty((chunks, math.prod(chunk)), array.dtype)
    device, items = cl.Buffer(context, flags, cut.nbytes), cut.size
    shapes = [np.uint32(n) for n in (*view.shape, *chunk, first, view.itemsize)]
    strides = np.uint64(begin), np.uint64(view.strides[0]), np.uint64(view.strides[1])
    kernel["gather"](queue, (items,), None, source, device, *strides, *shapes, np.uint64(items))
    cl.enqueue_copy(queue, cut, device)
    return cut


def full_chunks(chunks: NDArray[Any]) -> NDArray[np.bool_]:
    """Return of each chunk, one a row, whether the kernel marks it."""
    voxels = chunks.view(np.uint8).reshape(len(chunks), -1)
    context, kernel = kernels()
    queue, flags = cl.CommandQueue(context), cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
    full, groups = np.zeros(len(chunks), np.uint32), -(-voxels.shape[1] // 32)
    buffers = [cl.Buffer(context, flags, hostbuf=array) for array in (voxels, full)]
    items = len(chunks) * groups
    numbers = np.uint32(voxels.shape[1]), np.uint32(groups), np.uint64(items)
    kernel["mark_full"](queue, (items,), None, *buffers, *numbers)
    cl.enqueue_copy(queue, full, buffers[1])
    return full != 0


def on_device(voxels: NDArray[Any]) -> DeviceVoxels:
    """Return voxels as if they were on a GPU: they are known by their address, and can be downloaded."""
    z, y, x = voxels.shape

    def download(part: DeviceVoxels) -> NDArray[Any]:
        length = sum((n - 1) * stride for n, stride in zip(part.shape, part.strides, strict=True)) + part.dtype.itemsize
        memory = (ctypes.c_char * length).from_address(part.address)
        return np.ndarray(part.shape, part.dtype, memory, strides=part.strides).copy()

    event: Any = voxels  # which stay as long as that is held
    strides = (voxels.strides[0], voxels.strides[1], voxels.strides[2])
    return DeviceVoxels(voxels.ctypes.data, (z, y, x), strides, voxels.dtype, event, download)


class EncoderOnCpu:
    """Stands for a `GpuEncoder`."""

    def __init__(self, layout: ContainerLayout, chunk: Index3, *, batch: int = 3, gap: int = GAP) -> None:
        self.layout, self.chunk, self.batch, self.gap = layout, chunk, batch, gap
        self.gpu = self  # which registers memory
        self.batches = 0
        self.failure: Exception | None = None
        """What the next batch raises."""

    def encode(self, voxels: Voxels, first: int, take: Callable[[EncodedChunks], None]) -> None:
        if self.failure is not None:
            raise self.failure
        self.batches += 1
        if isinstance(voxels, DeviceVoxels):
            voxels = voxels.download(voxels)
        grid = [-(-n // c) for n, c in zip(voxels.shape, self.chunk, strict=True)]
        chunks = min(self.batch, math.prod(grid) - first)
        cut = gathered(voxels.copy(), (slice(None),) * 3, self.chunk, first, chunks)
        made = containers(cut, self.layout.codec)
        sealed = [one + crc32c(one).to_bytes(GAP, "little")[: self.gap] for one in made]
        body = np.frombuffer(b"".join(sealed), np.uint8)
        sizes = np.array([len(one) for one in sealed], np.int64)
        take(EncodedChunks(body, sizes, full_chunks(cut)))

    @staticmethod
    def register(_: NDArray[Any]) -> None:
        """Nothing is registered: all memory is reached."""

    def close(self) -> None:
        """Nothing is kept."""


class DecoderOnCpu:
    """Stands for a `GpuDecoder`: a CPU's codecs decompress the streams, and the kernels run on OpenCL's CPU."""

    def __init__(self, coding: ChunkCoding, *, batch: int = 3) -> None:
        self.coding, self.batch = coding, batch
        self.gpu = self
        self.room = batch * room_for(coding.chunk_bytes)
        self.decoded = 0
        """How many chunks it has decoded."""
        self.failure: Exception | None = None
        """What the next batch raises."""

    def decode(self, read: Read, batch: Batch, out: NDArray[Any]) -> NDArray[np.bool_]:
        """Decode a batch of chunks, and return which of them are left to the processor."""
        if self.failure is not None:
            raise self.failure
        memory = np.full(self.room, 0xAA, np.uint8)
        chunks = Chunks.of(memory, read(memory), self.coding)
        chunk_bytes, number = self.coding.chunk_bytes, len(chunks.told)
        assert number <= self.batch
        assert len(chunks.table.T) <= self.batch * most_streams(self.coding)
        shuffled, left = np.full(self.batch * chunk_bytes, 0xBB, np.uint8), chunks.left.copy()
        for stream in range(chunks.compressed):
            begin, length, target, size = chunks.table[:, stream].tolist()
            assert begin + length <= chunks.used <= memory.size
            assert target + size <= number * chunk_bytes
            if self.coding.codec == "lz4":
                continue  # which is a kernel's
            made = decompressed(memory[begin : begin + length].tobytes(), size)
            if made is None:
                left[chunks.owners[stream]] = True
            else:
                shuffled[target : target + size] = np.frombuffer(made, np.uint8)
        out[...], found = placed(memory, chunks, shuffled, self.coding, batch, out)
        left[chunks.owners[: chunks.compressed][found != chunks.table[3, : chunks.compressed]]] = True
        self.decoded += number - int(left.sum())
        return left

    @staticmethod
    def register(_: NDArray[Any]) -> None:
        """Nothing is registered: all memory is reached."""

    def close(self) -> None:
        """Nothing is kept."""


def decompressed(stream: bytes, size: int) -> bytes | None:
    """Return what a stream of zstd decompresses to, None where that is not of the given size."""
    try:
        made = bytes(imagecodecs.zstd_decode(stream, out=size + 1))
    except imagecodecs.ZstdError:
        return None
    return made if len(made) == size else None


def placed(
    memory: NDArray[np.uint8],
    chunks: Chunks,
    shuffled: NDArray[np.uint8],
    coding: ChunkCoding,
    batch: Batch,
    out: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[np.uint64]]:
    """Return the part of an array that is wanted of chunks, as the kernels put it together, and what streams made."""
    context, kernel = kernels()
    queue, flags = cl.CommandQueue(context), cl.mem_flags.READ_WRITE
    arrays = {"memory": memory, "shuffled": shuffled, "told": chunks.told, "voxels": np.full_like(shuffled, 0xCC)}
    device = {
        name: cl.Buffer(context, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=array) for name, array in arrays.items()
    }
    if pieces := chunks.table.shape[1] - chunks.compressed:
        begins, lengths, targets, _ = np.ascontiguousarray(chunks.table[:, chunks.compressed :])
        where = [
            cl.Buffer(context, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=part) for part in (begins, targets, lengths)
        ]
        kernel["copy_pieces"](queue, (pieces * GROUP,), (GROUP,), device["memory"], device["shuffled"], *where)
    found = chunks.table[3, : chunks.compressed].copy()
    if coding.codec == "lz4" and chunks.compressed:
        begins, lengths, targets, sizes = np.ascontiguousarray(chunks.table[:, : chunks.compressed])
        where = [
            cl.Buffer(context, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=part)
            for part in (begins, lengths, targets, sizes, found)
        ]
        streams = device["memory"], device["shuffled"]
        kernel["decompress_lz4"](queue, (chunks.compressed * LZ4_ITEMS,), (LZ4_ITEMS,), *streams, *where)
        cl.enqueue_copy(queue, found, where[-1])
    groups = -(-coding.chunk_bytes // (8 * int(chunks.told[:, 2].min())))
    items = len(chunks.told) * groups
    numbers = np.uint32(coding.chunk_bytes), np.uint32(groups), np.uint64(items)
    between = device["shuffled"], device["voxels"]
    kernel["unshuffle"](queue, (items,), None, *between, device["told"], *numbers)
    shapes = [np.uint32(n) for n in (*batch.start, *out.shape[1:], *coding.chunk, *batch.grid[1:], coding.itemsize)]
    fill = np.uint64(int.from_bytes(batch.fill, "little"))
    kernel["place"](queue, (out.size,), None, *between[::-1], device["told"], *shapes, fill, np.uint64(out.size))
    made = np.empty(out.shape, out.dtype)
    cl.enqueue_copy(queue, made, device["shuffled"])
    return made, found


def reading(encoded: list[bytes | None]) -> Read:
    """Return what reads chunks; one that is None is not stored."""

    def read(memory: NDArray[np.uint8]) -> list[NDArray[np.uint8] | None]:
        used, read = 0, list[NDArray[np.uint8] | None]()
        for one in encoded:
            content = np.frombuffer(one or b"", np.uint8)
            memory[used : used + content.size] = content
            read.append(memory[used : used + content.size])
            used += content.size
        return read

    return read


def image(dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return smooth values with noise, a part of nothing but noise, and a part of one value."""
    rng = np.random.default_rng(0)
    values = np.asarray(100 + 20 * np.sin(np.arange(np.prod(shape)).reshape(shape) / 500) + rng.integers(0, 8, shape))
    array = values.astype(dtype)
    array[: shape[0] // 4] = 3
    third = array[shape[0] // 2 :]
    third.view(np.uint8)[...] = rng.integers(0, 256, third.view(np.uint8).shape)
    return array
