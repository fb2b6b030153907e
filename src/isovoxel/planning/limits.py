"""Limits of a device and of a host, as numbers that somebody else measured."""

from __future__ import annotations

from dataclasses import dataclass

from isovoxel.geometry.box import Index3

BUFFER_VOXELS = 2**31 - 1
"""Most voxels in one buffer: cle's kernels count them in 32 bits, and beyond it the process' context dies."""

LANES = {"gpu": 2, "cpu": 1}
"""How many blocks' voxels lie on a device at a time: a GPU copies those of one while the kernels of another run."""


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What one OpenCL device has, and how much of it isovoxel may take. Sizes in bytes."""

    name: str
    """The device's name as OpenCL reports it."""
    kind: str
    """"gpu" or "cpu"."""
    memory: int
    """All of the device's memory."""
    allowed: int
    """How much of it isovoxel may hold at a time."""
    largest_allocation: int
    """Largest single buffer or image."""
    image_shape: Index3
    """Largest 3-D image, z, y, x voxels."""
    shares_host_memory: bool
    """Whether what is allocated on the device lies in the host's memory (a CPU, an integrated GPU)."""
    buffer_voxels: int = BUFFER_VOXELS
    """Most voxels in one buffer."""


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What the host lets isovoxel use. Sizes in bytes."""

    allowed: int
    """How much memory this process may hold, all in all."""
    baseline: int
    """How much is kept for what is no block's: interpreter, libraries, driver, kernels, and what a caller holds."""
    threads: int
    """How many blocks may be in flight: each is read, scaled and written by one thread."""
    helpers: int = 0
    """How many threads may help them to encode while cores are idle."""
    workers: int = 1
    """How many such processes share the blocks."""
