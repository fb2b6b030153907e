"""`VoxelGrid`: where the voxels of a volume lie in the world, and those of its scaled image, or of another volume.

A `VoxelGrid` is shape, voxel size, origin and unit. Scaling is edge-aligned: the outer faces of the volume stay
where they are (up to the rounding of the shape), so the centre of voxel 0 moves by half the change of voxel size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from isovoxel.errors import OptionError
from isovoxel.geometry.box import Index3

Float3 = tuple[float, float, float]
"""Three floats, always z, y, x."""

AXES = ("z", "y", "x")

MAX_SAMPLES = 2**53
"""Longest axis: beyond it float64 cannot tell neighbouring samples apart."""

CLOSE = 2.0**-32
"""How near to a whole number of samples, in input samples, a position counts as one: origins in float64 are rounded."""


class Placement(NamedTuple):
    """How the samples of an output lie on those of an input: ``(output + shift + 0.5) / factor - 0.5``, per axis."""

    factor: Float3
    """Output samples per input sample, z, y, x."""
    shift: Float3
    """Output samples from where the input begins to where the output does, z, y, x."""


@dataclass(frozen=True, slots=True)
class VoxelGrid:
    """A regular grid of voxels in the world.

    Examples
    --------
    >>> grid = VoxelGrid((86, 396, 393), (1.0, 0.202, 0.202), unit="micrometer")
    >>> grid.scaled(factor_for_zoom(grid, 2.0)).shape
    (172, 160, 159)
    """

    shape: Index3
    """Number of voxels, z, y, x."""
    voxel_size: Float3 = (1.0, 1.0, 1.0)
    """Physical size of a voxel per axis, in `unit`."""
    origin: Float3 = (0.0, 0.0, 0.0)
    """World position of the centre of voxel 0, in `unit`."""
    unit: str | None = None
    """Name of the unit as OME-Zarr spells it ("micrometer"), or None where lengths have none."""

    def __post_init__(self) -> None:
        if any(n < 1 for n in self.shape):
            raise OptionError(f"a volume needs at least one voxel per axis, but its shape is {self.shape}")
        check_positive("voxel size", self.voxel_size)
        if not all(math.isfinite(v) for v in self.origin):
            raise OptionError(f"the origin {numbers_text(self.origin)} of a volume must be finite")

    def scaled(self, factor: Float3) -> VoxelGrid:
        """Return the grid with `factor` output voxels per input voxel.

        Parameters
        ----------
        factor
            Output samples per input sample, z, y, x.

        Returns
        -------
        VoxelGrid
            Shape ``np.around(n * factor)`` (half to even, at least 1), as ``cle.scale`` with ``auto_size=True``;
            voxel size ``voxel_size / factor``; origin moved by ``(new voxel size - old voxel size) / 2``.

        Raises
        ------
        OptionError
            If a factor is not finite and positive, or an axis would be longer than float64 can count.
        """
        check_positive("factor", factor)
        shape = []
        for axis, n, f in zip(AXES, self.shape, factor, strict=True):
            samples = float(np.around(n * f))
            if samples > MAX_SAMPLES:
                raise OptionError(
                    f"factor {f:g} makes {samples:.3g} voxels of the {n} along {axis}, "
                    f"more than can be counted (2^53); choose a smaller factor"
                )
            shape.append(max(1, int(samples)))
        size = _float3(v / f for v, f in zip(self.voxel_size, factor, strict=True))
        origin = _float3(o + (new - old) / 2 for o, new, old in zip(self.origin, size, self.voxel_size, strict=True))
        return VoxelGrid((shape[0], shape[1], shape[2]), size, origin, self.unit)

    def placed_on(self, source: VoxelGrid) -> Placement:
        """Return how the voxels of this grid lie on those of another one, whose lengths have the same unit.

        Output sample o lies at ``o * size + origin`` in the world, which is ``o / factor + (origin - source.origin) /
        source.size`` in samples of the source. What is nearer than `CLOSE` to a whole factor, its inverse, or a whole
        number of samples is that: so grids that a scaling made have its positions again, to the bit.

        Raises
        ------
        OptionError
            If float64 does not hold the positions.

        Examples
        --------
        >>> stack = VoxelGrid((86, 396, 393), (1.0, 0.202, 0.202))
        >>> stack.placed_on(stack.scaled((5.0, 1.0, 1.0)))
        Placement(factor=(0.2, 1.0, 1.0), shift=(0.0, 0.0, 0.0))
        """
        axes = [
            _placed(m, ours, theirs, start, begin)
            for m, ours, theirs, start, begin in zip(
                self.shape, self.voxel_size, source.voxel_size, self.origin, source.origin, strict=True
            )
        ]
        return Placement(_float3(factor for factor, _ in axes), _float3(shift for _, shift in axes))


def _placed(m: int, size: float, source_size: float, origin: float, source_origin: float) -> tuple[float, float]:
    """Return factor and shift of an axis of m samples of this size on samples of the source's size."""
    factor, apart = source_size / size, (origin - source_origin) / source_size
    check_positive("factor", (factor,))
    if not max(abs(apart) * factor, abs(apart), m / factor, factor) < MAX_SAMPLES:
        raise OptionError(
            f"voxels of {number_text(size)} at {number_text(origin)} and of {number_text(source_size)} at "
            f"{number_text(source_origin)} lie too far apart, or differ too much"
        )
    whole = float(round(factor)) if factor >= 1 else 1 / round(1 / factor)
    if m * abs(1 / whole - 1 / factor) < CLOSE / 2:
        factor = whole
    ahead = apart + 0.5 - 0.5 / factor  # between the faces where input and output begin, in input samples
    # What the rounding of the origins hides is no more than close.
    close = CLOSE / 2 + 2.0**-50 * (abs(origin) + abs(source_origin)) / source_size
    if abs(ahead - round(ahead)) < close:
        return factor, round(ahead) * factor
    shift = ahead * factor
    return factor, float(round(shift)) if abs(shift - round(shift)) < close * factor else shift


def factor_for_zoom(grid: VoxelGrid, zoom: float) -> Float3:
    """Return ``voxel_size * zoom``, the factors of clEsperanto's scaling tutorial: 1 / zoom per output voxel.

    A single plane stays one, for there is nothing between planes to compute: its factor along z is 1.
    """
    check_positive("zoom", (zoom,))
    return _of_planes(grid, _float3(v * zoom for v in grid.voxel_size))


def factor_for_voxel_size(grid: VoxelGrid, target: float) -> Float3:
    """Return the factors that make every voxel a cube with sides of `target`, in the grid's unit.

    A single plane stays one, as thick as it is.
    """
    check_positive("voxel size", (target,))
    return _of_planes(grid, _float3(v / target for v in grid.voxel_size))


def finest(grid: VoxelGrid) -> float:
    """Return the smallest of the three voxel sizes; of a single plane, of the two in the plane."""
    return min(grid.voxel_size[grid.shape[0] == 1 :])


def _of_planes(grid: VoxelGrid, factor: Float3) -> Float3:
    return (1.0, *factor[1:]) if grid.shape[0] == 1 else factor


def number_text(value: float) -> str:
    """Return a length or a factor for people: six digits at most; what computes takes the number itself.

    Examples
    --------
    >>> number_text(1.7999999999999998), number_text(0.1 + 0.2), number_text(12.0)
    ('1.8', '0.3', '12')
    """
    return f"{value:.6g}"


def numbers_text(values: Iterable[float]) -> str:
    """Return lengths or factors, z, y, x, for people: "(1, 0.202, 0.202)"."""
    return f"({', '.join(map(number_text, values))})"


def check_positive(name: str, values: Sequence[float]) -> None:
    """Raise an `OptionError` that names the value unless all are finite and above zero."""
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise OptionError(f"{name} must be a finite number above 0, not {value:g}")


def _float3(values: Iterable[float]) -> Float3:
    z, y, x = (float(value) for value in values)
    return (z, y, x)
