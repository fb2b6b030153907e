"""The zoom at which `cle.scale` in one piece stops, and the limit that stops it.

Scaling in one piece needs the input as a buffer and (linear) an image, and the output as a buffer, all at once. Each
limit of the device is crossed at some zoom; the smallest of those is where the program crashes. Whatever grows
with the zoom grows monotonically, so each crossing is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from isovoxel.errors import OptionError
from isovoxel.geometry.grid import Index3, VoxelGrid, factor_for_zoom
from isovoxel.planning.memory import cle_allocations, human_bytes
from isovoxel.planning.model import ENGINES, DeviceLimits

STEPS = 60
"""Bisections: enough for neighbouring float64 zooms to meet."""
FURTHEST = 2.0**40
"""No zoom beyond this is asked for: any axis of one micrometre voxels would be longer than can be counted."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where one limit is crossed."""

    limit: str
    """What is limited: "largest allocation", "device memory", "image size", "voxels in a buffer"."""
    allowed: str
    """The limit, for people."""
    zoom: float
    """Smallest zoom at which it is exceeded; 0 where the input alone exceeds it, infinite where nothing can."""
    shape: Index3
    """Shape of the output at that zoom, z, y, x; that of zoom 1 where `zoom` is 0 or infinite."""
    needed: str
    """What scaling would need there, for people."""


@dataclass(frozen=True, slots=True)
class WholeLimits:
    """Everything that stops scaling in one piece, the first limit first."""

    grid: VoxelGrid
    """The input."""
    interpolation: str
    """"linear" or "nearest"."""
    device: DeviceLimits
    """The device."""
    crossings: tuple[Crossing, ...]
    """One for each limit, by ascending zoom."""

    @property
    def first(self) -> Crossing:
        """The limit that stops it first."""
        return self.crossings[0]

    def fits(self, zoom: float) -> bool:
        """Return whether `cle.scale` in one piece has room for this zoom."""
        return zoom < self.first.zoom


def whole_limits(grid: VoxelGrid, device: DeviceLimits, interpolation: str = "linear") -> WholeLimits:
    """Return at which zoom ``cle.scale`` of the whole volume exceeds each of the device's limits.

    Parameters
    ----------
    grid
        The input's grid; its voxel size turns zoom into factors.
    device
        The device, with all of its memory: no other program shares it.
    interpolation
        "linear" or "nearest".

    Raises
    ------
    OptionError
        If the interpolation is neither.
    """
    if interpolation not in (known := ENGINES["cle"]):
        raise OptionError(
            f"interpolation must be one of {', '.join(known)}, which cle.scale has, not {interpolation!r}"
        )
    at_one = _shape(grid, 1.0)

    def excess(shape: Index3) -> dict[str, tuple[bool, str, str]]:
        allocations = cle_allocations(grid.shape, shape, interpolation)
        largest = max(allocations, key=lambda a: a.nbytes)
        total = sum(a.nbytes for a in allocations)
        voxels = max(math.prod(grid.shape), math.prod(shape))
        image = interpolation == "linear" and any(
            n > most for n, most in zip(grid.shape, device.image_shape, strict=True)
        )
        return {
            "largest allocation": (
                largest.nbytes > device.largest_allocation,
                _exact(device.largest_allocation),
                f"{_exact(largest.nbytes)} for the {largest.name}",
            ),
            "device memory": (
                total > device.memory,
                _exact(device.memory),
                f"{_exact(total)} in all",
            ),
            "voxels in a buffer": (
                voxels > device.buffer_voxels,
                f"{device.buffer_voxels:,}",
                f"{voxels:,} voxels",
            ),
            "image size": (image, str(device.image_shape), f"an image of {grid.shape}"),
        }

    crossings = []
    for limit in excess(at_one):
        zoom = _crossing(grid, lambda shape: excess(shape)[limit][0])  # noqa: B023 - called before the next limit
        shape = _shape(grid, zoom) if 0 < zoom < math.inf else at_one
        _, allowed, needed = excess(shape)[limit]
        crossings.append(Crossing(limit, allowed, zoom, shape, needed))
    # Where several stop it at once, the one that OpenCL checks first: an image's size, then an allocation's.
    rank = ("image size", "largest allocation", "voxels in a buffer", "device memory")
    crossings.sort(key=lambda c: (c.zoom, rank.index(c.limit)))
    return WholeLimits(grid, interpolation, device, tuple(crossings))


def _exact(nbytes: int) -> str:
    """Return a size to the byte: just beyond a limit, rounded numbers look equal."""
    return f"{nbytes:,} bytes ({human_bytes(nbytes)})"


def _crossing(grid: VoxelGrid, exceeds: Callable[[Index3], bool]) -> float:
    """Return the smallest zoom at which `exceeds` holds, 0 where it always does, infinite where it never does."""
    low, high = 0.0, 1.0
    if exceeds((1, 1, 1)):
        return 0.0
    while not exceeds(_shape(grid, high)):
        low, high = high, 2 * high
        if high > FURTHEST:
            return math.inf
    for _ in range(STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if exceeds(_shape(grid, middle)):
            high = middle
        else:
            low = middle
    return high


def _shape(grid: VoxelGrid, zoom: float) -> Index3:
    """Return the output's shape at a zoom; an axis too long to count stays at the longest that can be counted."""
    try:
        return grid.scaled(factor_for_zoom(grid, zoom)).shape
    except OptionError:
        return (2**53, 2**53, 2**53)
