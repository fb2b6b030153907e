"""Compress, decompress and sum up many blocks of device memory at a time with nvCOMP, by its C interface.

nvCOMP's own Python package makes an object for each block; of blocks of 64 KiB a job has a million.

Source: https://docs.nvidia.com/cuda/nvcomp/c_api.html
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

NAMES = {"lz4": "LZ4", "zstd": "Zstd"}
"""What nvCOMP calls the codecs."""

ALIGNMENT = 16
"""Bytes of which the places of streams are multiples."""

SUCCESS = 0


class NvcompError(Exception):
    """NvCOMP did not do what it was asked."""


class _Options(ctypes.Structure):
    """Options of a codec, all of which are at their defaults; passed by value."""

    _fields_ = (("reserved", ctypes.c_char * 64),)


@cache
def nvcomp_library() -> Any:
    """Return nvCOMP's library.

    Raises
    ------
    ImportError
        If it is not installed, or not for this system.
    """
    from nvidia import libnvcomp

    found = libnvcomp.load_library()
    if found is None:
        raise ImportError("libnvcomp cannot be loaded")
    # What it is called for here only gives work to the GPU: see `isovoxel.codecs.cuda_driver`.
    return ctypes.PyDLL(found._name, handle=found._handle)  # noqa: SLF001 - the same library once more


class BatchArrays(NamedTuple):
    """Device addresses of what a batch of blocks is compressed from and to."""

    blocks: int
    """Of the address of each block."""
    block_lengths: int
    """Of its bytes."""
    scratch: int
    """Of memory that nvCOMP works in."""
    scratch_bytes: int
    streams: int
    """Of the address of each stream."""
    stream_lengths: int
    """Of its bytes, once it is compressed."""
    statuses: int
    """Of what became of it."""


class BatchCompressor:
    """Compresses blocks of device memory.

    Parameters
    ----------
    codec
        "lz4" or "zstd".
    block_bytes
        Bytes of the longest block.
    """

    def __init__(self, codec: str, block_bytes: int) -> None:
        name = f"nvcompBatched{NAMES[codec]}Compress"
        self._block_bytes = block_bytes
        size, address = ctypes.c_size_t, ctypes.c_void_p
        self._longest = getattr(nvcomp_library(), f"{name}GetMaxOutputChunkSize")
        self._longest.argtypes = size, _Options, ctypes.POINTER(size)
        self._scratch = getattr(nvcomp_library(), f"{name}GetTempSize")
        self._scratch.argtypes = size, size, _Options, ctypes.POINTER(size), size, address
        self._compress = getattr(nvcomp_library(), f"{name}Async")
        self._compress.argtypes = (
            *(address, address, size, size),
            *(address, size),
            *(address, address, _Options, address, address),
        )

    def stride(self) -> int:
        """Return how many bytes a stream has room for."""
        longest = ctypes.c_size_t()
        _check(self._longest(self._block_bytes, _Options(), longest))
        return -(-longest.value // ALIGNMENT) * ALIGNMENT

    def scratch_bytes(self, blocks: int) -> int:
        """Return how much device memory it takes to compress so many blocks at a time, beside their own."""
        scratch = ctypes.c_size_t()
        _check(self._scratch(blocks, self._block_bytes, _Options(), scratch, blocks * self._block_bytes, None))
        return scratch.value

    def __call__(self, blocks: int, arrays: BatchArrays, stream: ctypes.c_void_p) -> None:
        """Begin to compress the first `blocks` blocks of device memory on a stream of CUDA."""
        status = self._compress(
            arrays.blocks,
            arrays.block_lengths,
            self._block_bytes,
            blocks,
            arrays.scratch,
            arrays.scratch_bytes,
            arrays.streams,
            arrays.stream_lengths,
            _Options(),
            arrays.statuses,
            stream,
        )
        _check(status)


CUDA_BACKEND = 2
"""Decompress by kernels: the hardware of later GPUs says of damaged streams that all is well."""


class _DecompressionOptions(ctypes.Structure):
    """Options of a codec, passed by value."""

    _fields_ = (("backend", ctypes.c_int), ("reserved", ctypes.c_char * 60))


class StreamArrays(NamedTuple):
    """Device addresses of what a batch of streams is decompressed from and to."""

    streams: int
    """Of the address of each stream."""
    stream_lengths: int
    """Of its bytes."""
    block_lengths: int
    """Of the bytes of the block that it was made of: no more are written."""
    found_lengths: int
    """Of the bytes that were written."""
    scratch: int
    """Of memory that nvCOMP works in."""
    scratch_bytes: int
    blocks: int
    """Of the address of each block."""
    statuses: int
    """Of what became of it."""


class BatchDecompressor:
    """Decompresses streams in device memory.

    Parameters
    ----------
    codec
        "lz4" or "zstd". Streams must be whole: of damaged ones anything may come, to what lies around them too.
    """

    def __init__(self, codec: str) -> None:
        name = f"nvcompBatched{NAMES[codec]}Decompress"
        size, address = ctypes.c_size_t, ctypes.c_void_p
        self._options = _DecompressionOptions(CUDA_BACKEND)
        self._scratch = getattr(nvcomp_library(), f"{name}GetTempSize")
        self._scratch.argtypes = size, size, _DecompressionOptions, ctypes.POINTER(size), size, address
        self._decompress = getattr(nvcomp_library(), f"{name}Async")
        self._decompress.argtypes = (
            *(address, address, address, address),
            *(size, address, size),
            *(address, _DecompressionOptions, address, address),
        )

    def scratch_bytes(self, streams: int, longest: int, total: int) -> int:
        """Return how much device memory it takes to decompress so many streams at a time, beside their own.

        Parameters
        ----------
        streams
            How many there are at most.
        longest, total
            Bytes of the longest block, and of all.
        """
        scratch = ctypes.c_size_t()
        _check(self._scratch(streams, longest, self._options, scratch, total, None))
        return scratch.value

    def __call__(self, streams: int, arrays: StreamArrays, stream: ctypes.c_void_p) -> None:
        """Begin to decompress streams on a stream of CUDA."""
        status = self._decompress(
            arrays.streams,
            arrays.stream_lengths,
            arrays.block_lengths,
            arrays.found_lengths,
            streams,
            arrays.scratch,
            arrays.scratch_bytes,
            arrays.blocks,
            self._options,
            arrays.statuses,
            stream,
        )
        _check(status)


class _ChecksumKind(ctypes.Structure):
    """A cyclic redundancy check: nvCOMP's `nvcompCRC32Spec_t`."""

    _fields_ = (
        ("polynomial", ctypes.c_uint32),
        ("start", ctypes.c_uint32),
        ("reflects_input", ctypes.c_bool),
        ("reflects_output", ctypes.c_bool),
        ("inverts", ctypes.c_uint32),
        ("reserved", ctypes.c_char * 16),
    )


class _ChecksumKernel(ctypes.Structure):
    """How it is computed: nvCOMP's `nvcompCRC32KernelConf_t`."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("bytes_per_read", ctypes.c_int32),
        ("blocks_per_message", ctypes.c_int32),
        ("reserved", ctypes.c_char * 20),
    )


class _ChecksumOptions(ctypes.Structure):
    _fields_ = (("kind", _ChecksumKind), ("kernel", _ChecksumKernel), ("reserved", ctypes.c_char * 64))


class BatchChecksum:
    """Computes the CRC-32C of pieces of device memory.

    Parameters
    ----------
    pieces
        How many there are at most at a time.
    longest
        Bytes of the longest.
    """

    def __init__(self, pieces: int, longest: int) -> None:
        size, address = ctypes.c_size_t, ctypes.c_void_p
        advise = nvcomp_library().nvcompBatchedCRC32GetHeuristicConf
        advise.argtypes = address, size, ctypes.POINTER(_ChecksumKernel), size, address
        kernel = _ChecksumKernel()
        _check(advise(None, pieces, kernel, longest, None))
        kind = _ChecksumKind(0x1EDC6F41, 0xFFFFFFFF, True, True, 0xFFFFFFFF)
        self._options = _ChecksumOptions(kind, kernel)
        self._sum = nvcomp_library().nvcompBatchedCRC32Async
        self._sum.argtypes = address, address, size, address, _ChecksumOptions, ctypes.c_int, address, address

    def __call__(
        self, begins: int, lengths: int, pieces: int, sums: int, statuses: int, stream: ctypes.c_void_p
    ) -> None:
        """Begin to sum up pieces on a stream of CUDA; all but `pieces` are addresses on the device."""
        complete = 0
        _check(self._sum(begins, lengths, pieces, sums, self._options, complete, statuses, stream))


def _check(status: int) -> None:
    if status != SUCCESS:
        raise NvcompError(f"nvCOMP answers with its status {status}")
