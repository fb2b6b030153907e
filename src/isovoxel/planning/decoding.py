"""Where the chunks of the input are decoded: on the processor's cores or on the GPU, by which is faster.

A GPU decodes in batches, some of them in flight. Each takes on the device, beside what the codec works in, its encoded
chunks, these decompressed, and their voxels; and on the host one buffer that encoded chunks are read into.

The rates were measured (benchmarks/RESULTS.md, "Decoding on the GPU").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from isovoxel.errors import OptionError
from isovoxel.planning.encoding import CONTEXT, HOST_CONTEXT, START
from isovoxel.planning.model import DeviceLimits, Encoded, HostLimits

DECODERS = ("auto", "gpu", "cpu")
"""What decodes: the GPU where that is faster, the GPU, or the processor."""

CORE_RATES = {"lz4": 1.0e9, "zstd": 0.7e9}
"""Bytes of voxels that blosc decodes in a second on each of several cores."""
GPU_RATES = {"zstd": 0.08e9}
"""Bytes that a GPU decodes in a second for each multiprocessor; what was not measured, `auto` leaves to the cores."""

BATCH_BYTES = 2**25
"""Bytes of voxels of a batch, where a chunk is not longer."""
LONGEST_CHUNK = 2**29
"""Bytes of the longest chunk that is decoded on a GPU."""
LANES = 4
"""Batches on the device at a time, at most."""
HOSTS = 2
"""Buffers on the host for each batch on the device: some are filled while others are decoded."""
SHARE = 0.25
"""How much of the allowed device memory decoding may take."""

_SCRATCH = {"lz4": (0.0, 0), "zstd": (4.0, 2**16)}
"""Bytes that the codec works in, for each byte of voxels, and for each chunk."""


@dataclass(frozen=True, slots=True)
class DecodedBatches:
    """Batches in which a GPU decodes the chunks of an input.

    Parameters
    ----------
    encoded
        The chunks.
    """

    encoded: Encoded

    @property
    def chunks(self) -> int:
        """How many chunks a batch has at most."""
        return max(1, BATCH_BYTES // self.encoded.chunk_bytes)

    @property
    def host_bytes(self) -> int:
        """Bytes of a buffer on the host."""
        return self.chunks * (self.encoded.chunk_bytes + self.encoded.chunk_bytes // 128 + 64)

    @property
    def device_bytes(self) -> int:
        """Bytes of a batch on the device: three times its voxels, what tells of streams, and scratch."""
        for_voxels, for_chunks = _SCRATCH[self.encoded.codec]
        scratch = int(for_voxels * self.host_bytes) + for_chunks * self.chunks
        return 3 * self.host_bytes + self.host_bytes // 16 + 2**10 * self.chunks + scratch + 2**20

    def lanes(self, device: DeviceLimits) -> int:
        """Return how many batches have room on a device beside blocks, 0 where none has."""
        room = int(SHARE * device.allowed) - _context(device)
        return max(0, min(LANES, room // self.device_bytes))

    def lanes_within(self, device: DeviceLimits) -> int:
        """Return how many batches have room in what a device's limits hold for decoding; at least one is tried."""
        return max(1, min(LANES, (device.decoding - _context(device)) // self.device_bytes))


def with_decoder(
    given: str, encoded: Encoded | None, nbytes: tuple[int, int], limits: tuple[DeviceLimits, HostLimits]
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
            raise OptionError(f"the GPU cannot decode: {_refusal(encoded, device)}; leave out --decode gpu")
        return limits
    batches = DecodedBatches(encoded)
    lanes = batches.lanes(device)
    pinned = lanes * HOSTS * batches.host_bytes + (0 if device.encoding else HOST_CONTEXT)
    if not lanes or host.baseline + pinned > host.allowed / 2:
        if given == "gpu":
            raise OptionError(
                "the GPU cannot decode: too little memory is allowed; choose more --device-memory or --memory"
            )
        return limits
    read, written = (each / host.workers for each in nbytes)
    # Where less is read than is written, what writes is waited for, and decoding is done meanwhile.
    if given == "auto" and (read < written or not _is_faster(encoded.codec, read, device, host)):
        return limits
    taken = _context(device) + lanes * batches.device_bytes
    return replace(device, decoding=taken), replace(host, baseline=host.baseline + pinned)


def _is_faster(codec: str, nbytes: float, device: DeviceLimits, host: HostLimits) -> bool:
    """Return whether a GPU decodes so many bytes faster than the processor."""
    if codec not in GPU_RATES:
        return False
    on_gpu = (0.0 if device.encoding else START) + nbytes / (GPU_RATES[codec] * device.encoders)
    return on_gpu < nbytes / (CORE_RATES[codec] * (host.helpers + 1))


def _context(device: DeviceLimits) -> int:
    """Return what CUDA holds on a device, where it is not counted as what encodes."""
    return 0 if device.encoding else CONTEXT


def _refusal(encoded: Encoded | None, device: DeviceLimits) -> str:
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
