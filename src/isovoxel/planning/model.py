"""Parts of a plan: names of engines and kernels, limits, what it knows of its input, and blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from isovoxel.errors import OptionError
from isovoxel.geometry.grid import AXES, Box, Float3, Index3, VoxelGrid, triple

ENGINES = {"cle": ("linear", "nearest"), "exact": ("linear", "nearest", "cubic", "lanczos3", "area", "mode", "smooth")}
"""Engines, and the interpolations that each has."""
MOVES = ("nearest", "mode", "smooth")
"""Interpolations that move voxels and make no new values: those for labels."""
FILTERS = ("linear", "cubic", "lanczos3")
"""Interpolations that anti-aliasing widens."""
BOUNDARIES = ("nearest", "constant")
HALO_MODES = ("auto", "map_overlap", "direct")

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
    encoders: int = 0
    """Its multiprocessors, where chunks can be encoded on it, else 0."""
    encoding: int = 0
    """How much of what is allowed is held to encode chunks; 0 where the processor does."""
    decoding: int = 0
    """How much of it is held to decode those of the input, likewise."""
    context: int = 0
    """How much of it the driver of OpenCL holds for a process by itself."""

    @property
    def taken(self) -> int:
        """How much of what is allowed no block has."""
        return self.context + self.encoding + self.decoding


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


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a plan knows of an input's chunks that a GPU could decode."""

    codec: str
    """"lz4" or "zstd"."""
    chunk_bytes: int
    """Bytes of a chunk's voxels as they are stored."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a plan knows of its input."""

    name: str
    """What the user called it."""
    grid: VoxelGrid
    """Where its voxels lie."""
    dtype: str
    """NumPy name of its dtype, which is the output's dtype as well."""
    chunks: Index3
    """What its storage decodes in one go."""
    read_overhead: int
    """Bytes that reading a box holds beside the voxels it returns."""
    identity: Mapping[str, Any]
    """What tells this input from another or a later one."""
    caches: bool = False
    """Whether its reader can keep decoded chunks, so that blocks which share some decode them once."""
    notes: tuple[str, ...] = ()
    """What else a user should know before reading it, each a clause."""
    beside: tuple[Index3, Index3] = ((0, 0, 0), (0, 0, 0))
    """Voxels of its chunks that lie before it, and after it, where it is a part of a larger volume: they are decoded as
    well."""
    series: tuple[tuple[str, int], ...] = ()
    """Names and lengths of the axes beside z, y and x, "t" before "c", where it is a series of volumes."""
    encoded: Encoded | None = None
    """Its chunks, where a GPU could decode them."""

    @property
    def decoded_shape(self) -> Index3:
        """Voxels of all its chunks, per axis."""
        return triple(a + n + b for a, n, b in zip(self.beside[0], self.grid.shape, self.beside[1], strict=True))

    @property
    def n_volumes(self) -> int:
        """Number of volumes, which all lie alike."""
        return math.prod(length for _, length in self.series)

    @property
    def itemsize(self) -> int:
        """Bytes of a voxel."""
        return np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Block:
    """One compute task: it reads one box of the input and writes one box of the output."""

    index: int
    """Its place in the plan's order: volume by volume, z slowest."""
    write_box: Box
    """Output voxels it writes."""
    read_box: Box
    """Input voxels it reads, halo included, inside the volume."""
    pad_before: Index3
    """How many times the rim of the read box is repeated before it, per axis: where the volume ends, and where what
    comes next has no weight."""
    pad_after: Index3
    """The same after it."""
    level: int = 0
    """Which level of the output it writes."""

    def __str__(self) -> str:
        return f"block {self.index} of level {self.level}" if self.level else f"block {self.index}"

    @property
    def padded_shape(self) -> Index3:
        """Shape of what the device gets: the read box with its pads."""
        n, a, b = self.read_box.shape, self.pad_before, self.pad_after
        return (n[0] + a[0] + b[0], n[1] + a[1] + b[1], n[2] + a[2] + b[2])


CHOICES = ("engine", "interpolation", "antialias", "boundary", "factor")
"""What `check_options` checks of a plan, or of what is known of one, beside how halos are exchanged."""


def check_options(
    *,
    interpolation: str,
    engine: str = "cle",
    antialias: bool = False,
    boundary: str = "nearest",
    halo: str = "auto",
    factor: Float3 = (1.0, 1.0, 1.0),
) -> None:
    """Raise an `OptionError` for a choice that does not exist, or that the engine does not have, for these factors."""
    everything = tuple(dict.fromkeys(name for names in ENGINES.values() for name in names))
    for name, value, choices in (
        ("engine", engine, tuple(ENGINES)),
        ("interpolation", interpolation, everything),
        ("boundary", boundary, BOUNDARIES),
        ("halo", halo, HALO_MODES),
    ):
        if value not in choices:
            raise OptionError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    if interpolation not in ENGINES[engine]:
        raise OptionError(
            f"interpolation with engine {engine} must be one of {', '.join(ENGINES[engine])}, not {interpolation!r}; "
            "engine exact has it"
        )
    if interpolation == "smooth" and min(factor) < 1:
        axis, f = next((axis, f) for axis, f in zip(AXES, factor, strict=True) if f < 1)
        raise OptionError(
            f"smooth is for labels that grow, but along {axis} the factor is {f:g}; mode is for those that shrink"
        )
    if antialias and engine != "exact":
        raise OptionError(f"engine {engine} has no anti-aliasing; use engine exact")
    if antialias and interpolation not in FILTERS:
        raise OptionError(
            f"anti-aliasing widens {', '.join(FILTERS[:-1])} and {FILTERS[-1]} interpolation, not {interpolation}"
        )


class Largest(NamedTuple):
    """Shapes, z, y, x, that hold those of each block."""

    read: Index3
    """Of read boxes."""
    padded: Index3
    """Of read boxes with what is repeated around the volume."""
    written: Index3
    """Of write boxes."""
