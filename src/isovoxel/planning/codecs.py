"""Where chunks are encoded and decoded: on the processor's cores or on the GPU, by which is faster; what that takes.

A GPU works in batches, some of them in flight.

- Encoding takes on the device, for each batch, beside what the codec works in, its voxels, these with their bits
  shuffled, the streams, and the containers; and on the host buffers for voxels and result, of which there are more, for
  they are filled and written while others are encoded.
- Decoding takes its encoded chunks, these decompressed, and their voxels; and on the host one buffer that encoded
  chunks are read into.

The rates were measured on H100s and H200s with 4, 16 and 64 cores (benchmarks/RESULTS.md, "Encoding on the GPU" and
"Decoding on the GPU").
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from isovoxel.errors import OptionError
from isovoxel.planning.chunking import BLOSC_MARGIN, CHECKSUM_BYTES, Storage, batch_chunks
from isovoxel.planning.model import DeviceLimits, Encoded, HostLimits

ENCODERS = ("auto", "gpu", "cpu")
"""What encodes: the GPU where that is faster, the GPU, or the processor."""
DECODERS = ("auto", "gpu", "cpu")
"""What decodes, likewise."""

ENCODED_BY_CORE = {"lz4": 0.54e9, "zstd": 0.25e9}
"""Bytes of voxels that blosc encodes in a second on one core."""
ENCODED_BY_PROCESS = 6e9
"""What many cores come to in one process, whose threads take turns at the interpreter's lock."""
ENCODED_BY_GPU = 0.07e9
"""Bytes that nvCOMP encodes in a second for each multiprocessor, in jobs."""
DECODED_BY_CORE = {"lz4": 1.0e9, "zstd": 0.7e9}
"""Bytes of voxels that blosc decodes in a second on each of several cores."""
DECODED_BY_GPU = {"zstd": 0.08e9}
"""Bytes that a GPU decodes in a second for each multiprocessor; what was not measured, `auto` leaves to the cores."""

LONGEST_CHUNK = 2**29
"""Bytes of the longest chunk that is decoded on a GPU."""
LANES = 6
"""Batches on the device at a time, at most; with fewer, blocks wait for it, and more gain nothing."""
IN_FLIGHT = 2
"""Blocks in flight for each batch on the device: more of them wait for the interpreter's lock, and have others wait."""

ENCODING_SHARE = 0.75
"""How much of the allowed host memory the process and what encodes may take, beside blocks."""

START = 0.5
"""Seconds until CUDA and its libraries are loaded."""
CONTEXT = 640 * 2**20
"""Bytes that CUDA holds on the device for a process."""
HOST_CONTEXT = {"exact": 0, "cle": 256 * 2**20}
"""Bytes of the host that CUDA's and nvCOMP's libraries hold beside what OpenCL's hold in a process.

Engine exact needs no context of OpenCL then: a process without blocks holds 0.35 GiB (measured, H100).
"""


@dataclass(frozen=True, slots=True)
class Batches(abc.ABC):
    """Batches in which a GPU encodes or decodes the chunks of an array."""

    chunk_bytes: int
    """Bytes of a chunk's voxels."""
    codec: str
    """"lz4" or "zstd"."""
    hosts: ClassVar[int]
    """Buffers on the host for each batch on the device: some are filled while others are at work."""
    share: ClassVar[float]
    """How much of the allowed device memory they may take."""

    @property
    def chunks(self) -> int:
        """How many chunks a batch has at most."""
        return batch_chunks(self.chunk_bytes)

    @property
    @abc.abstractmethod
    def host_bytes(self) -> int:
        """Bytes of a buffer on the host."""

    @abc.abstractmethod
    def device_bytes(self, device: DeviceLimits) -> int:
        """Return the bytes of a batch on a device."""

    @abc.abstractmethod
    def held(self, device: DeviceLimits) -> int:
        """Return the bytes that a device's limits hold for all batches and CUDA, where they hold any."""

    @abc.abstractmethod
    def context(self, device: DeviceLimits) -> int:
        """Return the bytes that CUDA holds on a device and that are counted here."""

    def lanes(self, device: DeviceLimits) -> int:
        """Return how many batches have room on a device beside blocks, 0 where none has."""
        room = int(self.share * device.allowed) - self.context(device)
        return max(0, min(LANES, room // self.device_bytes(device)))

    def lanes_within(self, device: DeviceLimits) -> int:
        """Return how many batches have room in what a device's limits hold for them; at least one is tried."""
        return max(1, min(LANES, (self.held(device) - self.context(device)) // self.device_bytes(device)))


class EncodedBatches(Batches):
    """Batches in which a GPU encodes."""

    __slots__ = ()
    hosts = 3
    share = 0.4

    @property
    def host_bytes(self) -> int:
        """Bytes of a buffer for voxels and result."""
        return self.chunks * (self.chunk_bytes + BLOSC_MARGIN + CHECKSUM_BYTES)

    def device_bytes(self, device: DeviceLimits) -> int:
        """Return four times a batch's voxels, an eighth for addresses and lengths, and what nvCOMP works in."""
        scratch = {"lz4": 0, "zstd": 9 * 2**20}[self.codec] * device.encoders
        return 4 * self.host_bytes + self.host_bytes // 8 + scratch

    def held(self, device: DeviceLimits) -> int:
        """Return the bytes that are held for encoding."""
        return device.encoding

    def context(self, device: DeviceLimits) -> int:  # noqa: ARG002 - as the others
        """Return what CUDA holds."""
        return CONTEXT


class DecodedBatches(Batches):
    """Batches in which a GPU decodes."""

    __slots__ = ()
    hosts = 2
    share = 0.25

    @property
    def host_bytes(self) -> int:
        """Bytes of a buffer for encoded chunks."""
        return self.chunks * (self.chunk_bytes + self.chunk_bytes // 128 + 64)

    def device_bytes(self, device: DeviceLimits) -> int:  # noqa: ARG002 - as the others
        """Return three times a batch's voxels, what tells of streams, and what the codec works in."""
        for_voxels, for_chunks = {"lz4": (0.0, 0), "zstd": (4.0, 2**16)}[self.codec]
        scratch = int(for_voxels * self.host_bytes) + for_chunks * self.chunks
        return 3 * self.host_bytes + self.host_bytes // 16 + 2**10 * self.chunks + scratch + 2**20

    def held(self, device: DeviceLimits) -> int:
        """Return the bytes that are held for decoding."""
        return device.decoding

    def context(self, device: DeviceLimits) -> int:
        """Return what CUDA holds, where it is not counted as what encodes."""
        return 0 if device.encoding else CONTEXT


def with_encoder(
    given: str,
    codec: str | None,
    storage_of: Callable[[str], Storage],
    voxels: tuple[int, int],
    limits: tuple[DeviceLimits, HostLimits],
    engine: str,
) -> tuple[Storage, tuple[DeviceLimits, HostLimits]]:
    """Return the output's storage, and the limits with what its encoder takes, and as many threads as it has use for.

    Parameters
    ----------
    given
        One of `ENCODERS`.
    codec
        Name of a codec; None for blosc's zstd where a GPU encodes, whose files are smaller than those of a core's lz4,
        and for its lz4 elsewhere.
    storage_of
        Returns the storage with a codec.
    voxels
        How many the output has, and bytes of one.
    limits
        Of each process that scales.
    engine
        Which scales.

    Raises
    ------
    OptionError
        If the GPU is asked for, and cannot encode this output.
    """
    device, host = limits
    number, itemsize = voxels
    cpu, gpu = storage_of(codec or "blosc-lz4"), storage_of(codec or "blosc-zstd")
    if given == "cpu":
        return cpu, limits
    if why := _no_encoder(gpu, device):
        if given == "gpu":
            raise OptionError(f"the GPU cannot encode: {why}; leave out --encode gpu")
        return cpu, limits
    batches = EncodedBatches(math.prod(gpu.chunk) * itemsize, gpu.codec)
    each = batches.hosts * batches.host_bytes
    room = int(ENCODING_SHARE * host.allowed) - host.baseline - HOST_CONTEXT[engine]
    lanes = min(batches.lanes(device), max(0, room) // each)
    pinned = HOST_CONTEXT[engine] + lanes * each
    if not lanes:
        if given == "gpu":
            raise OptionError(
                "the GPU cannot encode: too little memory is allowed; choose more --device-memory or --memory"
            )
        return cpu, limits
    share = number * itemsize / host.workers
    on_gpu = START + share / (ENCODED_BY_GPU * device.encoders)
    on_cores = share / (ENCODED_BY_CORE[cpu.codec] * (host.helpers + 1)) + share / ENCODED_BY_PROCESS
    if given == "auto" and on_gpu > on_cores:
        return cpu, limits
    taken = CONTEXT + lanes * batches.device_bytes(device)
    # Threads wait for the GPU most of the time, so that few cores have use for more of them.
    threads = IN_FLIGHT * lanes
    device = replace(device, encoding=taken, context=_context_of_opencl(device, engine))
    return gpu, (device, replace(host, baseline=host.baseline + pinned, threads=threads))


def _no_encoder(storage: Storage, device: DeviceLimits) -> str:
    """Return why a GPU cannot encode an output; nothing where it can."""
    if not device.encoders:
        return (
            f"{device.name} has no encoder; an NVIDIA GPU has one with isovoxel[nvidia-cu13] or isovoxel[nvidia-cu12]"
        )
    if storage.plain or storage.codec not in ENCODED_BY_CORE:
        return f"the output has codec {storage.codec_name}; choose --codec blosc-lz4 or blosc-zstd"
    if not storage.sharded:
        return "OME-Zarr 0.4 has no shards, and a chunk alone is too little for a GPU"
    return ""


def with_decoder(
    given: str,
    encoded: Encoded | None,
    nbytes: tuple[int, int],
    limits: tuple[DeviceLimits, HostLimits],
    engine: str,
) -> tuple[DeviceLimits, HostLimits]:
    """Return the limits with what decoding the input on the GPU takes, where the GPU does.

    Parameters
    ----------
    given
        One of `DECODERS`.
    encoded
        Chunks of the input, where a GPU could decode them.
    nbytes
        Of the voxels of input and output.
    limits
        Of each process that scales, with what its encoder takes.
    engine
        Which scales.

    Raises
    ------
    OptionError
        If the GPU is asked for, and cannot decode this input.
    """
    device, host = limits
    if given == "cpu":
        return limits
    if encoded is None or not device.encoders or encoded.chunk_bytes > LONGEST_CHUNK:
        if given == "gpu":
            raise OptionError(f"the GPU cannot decode: {_no_decoder(encoded, device)}; leave out --decode gpu")
        return limits
    batches = DecodedBatches(encoded.chunk_bytes, encoded.codec)
    lanes = batches.lanes(device)
    pinned = lanes * batches.hosts * batches.host_bytes + (0 if device.encoding else HOST_CONTEXT[engine])
    if not lanes or host.baseline + pinned > host.allowed / 2:
        if given == "gpu":
            raise OptionError(
                "the GPU cannot decode: too little memory is allowed; choose more --device-memory or --memory"
            )
        return limits
    read, written = (each / host.workers for each in nbytes)
    # Where less is read than is written, what writes is waited for, and decoding is done meanwhile.
    start = 0.0 if device.encoding else START
    if given == "auto" and (read < written or not is_faster(encoded.codec, read, host, device.encoders, start)):
        return limits
    taken = batches.context(device) + lanes * batches.device_bytes(device)
    device = replace(device, decoding=taken, context=_context_of_opencl(device, engine))
    return device, replace(host, baseline=host.baseline + pinned)


def _context_of_opencl(device: DeviceLimits, engine: str) -> int:
    """Return what OpenCL holds beside a codec: engine exact uses CUDA then as well."""
    return 0 if engine == "exact" else device.context


def is_faster(codec: str, nbytes: float, host: HostLimits, encoders: float = math.inf, start: float = START) -> bool:
    """Return whether a GPU decodes so many bytes faster than the processor.

    Parameters
    ----------
    codec
        "lz4" or "zstd".
    nbytes
        Of voxels.
    host
        Says how many cores there are.
    encoders
        The GPU's multiprocessors; by default so many that no GPU is faster.
    start
        Seconds until it begins.
    """
    if codec not in DECODED_BY_GPU:
        return False
    on_gpu = start + nbytes / (DECODED_BY_GPU[codec] * encoders)
    return on_gpu < nbytes / (DECODED_BY_CORE[codec] * (host.helpers + 1))


def _no_decoder(encoded: Encoded | None, device: DeviceLimits) -> str:
    """Return why a GPU cannot decode an input."""
    if not device.encoders:
        return (
            f"{device.name} has no decoder; an NVIDIA GPU has one with isovoxel[nvidia-cu13] or isovoxel[nvidia-cu12]"
        )
    if encoded is not None:
        return f"a chunk has {encoded.chunk_bytes:,} bytes, more than {LONGEST_CHUNK:,}"
    return (
        "it decodes local zarr arrays alone, in little-endian byte order, with blosc's lz4, or blosc's zstd and a "
        "checksum (crc32c) of each chunk, without which damage is not found there"
    )
