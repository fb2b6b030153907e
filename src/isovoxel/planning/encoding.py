"""Where chunks are encoded: on the processor's cores or on the GPU, by which is faster; and what that takes.

A GPU encodes in batches, some of them in flight. Each takes on the device, beside what the codec works in, its voxels,
these with their bits shuffled, the streams, and the containers; and on the host one buffer for voxels and result, of
which there are more, for they are filled and written while others are encoded.

The rates were measured on H100s and H200s with 4, 16 and 64 cores (benchmarks/RESULTS.md, "Encoding on the GPU").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from isovoxel.errors import OptionError
from isovoxel.planning.chunking import BLOSC_MARGIN, CHECKSUM_BYTES, Storage
from isovoxel.planning.model import DeviceLimits, HostLimits

ENCODERS = ("auto", "gpu", "cpu")
"""What encodes: the GPU where that is faster, the GPU, or the processor."""

CORE_RATES = {"lz4": 0.54e9, "zstd": 0.25e9}
"""Bytes of voxels that blosc encodes in a second on one core."""
PROCESS_RATE = 6e9
"""What many cores come to in one process, whose threads take turns at the interpreter's lock."""
GPU_RATE = 0.07e9
"""Bytes that nvCOMP encodes in a second for each multiprocessor, in jobs."""

BATCH_BYTES = 2**25
"""Bytes of voxels of a batch, where a chunk is not longer."""
LANES = 4
"""Batches on the device at a time, at most; with fewer, it waits for copies."""
HOSTS = 4
"""Buffers on the host for each batch on the device."""
READERS = 8
"""Blocks in flight beside those whose chunks are in a buffer on the host: more only wait, in memory that takes long to
get."""
SHARE = 0.4
"""How much of the allowed device memory encoding may take."""

START = 0.5
"""Seconds until CUDA and its libraries are loaded."""
CONTEXT = 640 * 2**20
"""Bytes that CUDA holds on the device for a process."""
HOST_CONTEXT = 640 * 2**20
"""Bytes of the host that CUDA's and nvCOMP's libraries hold."""
_SCRATCH = {"lz4": 0, "zstd": 9 * 2**20}
"""Bytes that nvCOMP works in, for each multiprocessor."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches in which a GPU encodes the chunks of an array.

    Parameters
    ----------
    chunk_bytes
        Bytes of a chunk's voxels.
    codec
        "lz4" or "zstd".
    """

    chunk_bytes: int
    codec: str

    @property
    def chunks(self) -> int:
        """How many chunks a batch has at most."""
        return max(1, BATCH_BYTES // self.chunk_bytes)

    @property
    def host_bytes(self) -> int:
        """Bytes of a buffer on the host."""
        return self.chunks * (self.chunk_bytes + BLOSC_MARGIN + CHECKSUM_BYTES)

    def device_bytes(self, multiprocessors: int) -> int:
        """Bytes of a batch on the device: four times its voxels, an eighth for addresses and lengths, and scratch."""
        return 4 * self.host_bytes + self.host_bytes // 8 + _SCRATCH[self.codec] * multiprocessors

    def lanes(self, device: DeviceLimits) -> int:
        """Return how many batches have room on a device beside blocks, 0 where none has."""
        room = int(SHARE * device.allowed) - CONTEXT
        return max(0, min(LANES, room // self.device_bytes(device.encoders)))

    def lanes_within(self, device: DeviceLimits) -> int:
        """Return how many batches have room in what a device's limits hold for encoding; at least one is tried."""
        return max(1, min(LANES, (device.encoding - CONTEXT) // self.device_bytes(device.encoders)))


def with_encoder(
    given: str,
    codec: str | None,
    storage_of: Callable[[str], Storage],
    voxels: tuple[int, int],
    limits: tuple[DeviceLimits, HostLimits],
    threads: int | None = None,
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
    threads
        How many the user wants; None for as many as serve.

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
    if why := _refusal(gpu, device):
        if given == "gpu":
            raise OptionError(f"the GPU cannot encode: {why}; leave out --encode gpu")
        return cpu, limits
    batches = Batches(math.prod(gpu.chunk) * itemsize, gpu.codec)
    lanes = batches.lanes(device)
    pinned = HOST_CONTEXT + lanes * HOSTS * batches.host_bytes
    if not lanes or host.baseline + pinned > host.allowed / 2:
        if given == "gpu":
            raise OptionError(
                "the GPU cannot encode: too little memory is allowed; choose more --device-memory or --memory"
            )
        return cpu, limits
    share = number * itemsize / host.workers
    on_gpu = START + share / (GPU_RATE * device.encoders)
    on_cores = share / (CORE_RATES[cpu.codec] * (host.helpers + 1)) + share / PROCESS_RATE
    if given == "auto" and on_gpu > on_cores:
        return cpu, limits
    taken = CONTEXT + lanes * batches.device_bytes(device.encoders)
    # Threads wait for the GPU most of the time, so that few cores have use for more of them.
    wanted = host.threads if threads else max(host.threads, 2 * lanes)
    most = min(wanted, lanes * HOSTS + READERS)
    return gpu, (replace(device, encoding=taken), replace(host, baseline=host.baseline + pinned, threads=most))


def fills_batches(full: Storage, level: Storage) -> bool:
    """Return whether a GPU that encodes a plan's full level encodes a further one too: in batches that are worth it.

    A batch takes nearly as long for one chunk as for eight, and a shard of a level that is made of blocks in memory may
    have but one: the processor's cores, which wait for the GPU otherwise, are faster then. Levels with chunks of their
    own are smaller than a chunk of the full one.
    """
    return level.chunk == full.chunk and 2 * level.chunks_per_shard > full.chunks_per_shard


def _refusal(storage: Storage, device: DeviceLimits) -> str:
    """Return why a GPU cannot encode an output; nothing where it can."""
    if not device.encoders:
        return (
            f"{device.name} has no encoder; an NVIDIA GPU has one with isovoxel[nvidia-cu13] or isovoxel[nvidia-cu12]"
        )
    if storage.plain or storage.codec not in CORE_RATES:
        return f"the output has codec {storage.codec_name}; choose --codec blosc-lz4 or blosc-zstd"
    if not storage.sharded:
        return "OME-Zarr 0.4 has no shards, and a chunk alone is too little for a GPU"
    return ""
