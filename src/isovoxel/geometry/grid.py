"""Boxes and grids of voxels, and what one axis of a scaling reads of its input.

1. A `VoxelGrid` says where the voxels of a volume lie in the world: shape, voxel size, origin and unit. Scaling is
   edge-aligned: the outer faces of the volume stay where they are (up to the rounding of the shape), so the centre of
   voxel 0 moves by half the change of voxel size.
2. A `Box` is a half-open interval of integers along z, y and x, in one of a series of volumes.
3. An `Axis` samples at ``source = (output + shift + 0.5) / factor - 0.5`` in float64 from global output indices; the
   shift is 0 unless the output has the voxels of another volume. A kernel reads, for every output sample, the input
   samples within its support; an interval of output samples therefore reads one interval of input samples, clipped to
   the volume. What that adds to the interval it maps back to is its halo.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from isovoxel.arguments import checked_value
from isovoxel.errors import OptionError, shown_value

T = TypeVar("T")

Index3 = tuple[int, int, int]
"""Three integers, always z, y, x."""


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box of voxels, `start` included and `stop` excluded, always z, y, x.

    Examples
    --------
    >>> Box((0, 0, 0), (2, 3, 4)).size
    24
    >>> Box((0, 0, 0), (2, 3, 4)) & Box((1, 1, 1), (9, 9, 9))
    Box(start=(1, 1, 1), stop=(2, 3, 4))
    """

    start: Index3
    """First voxel inside, per axis."""
    stop: Index3
    """First voxel outside, per axis; never before `start`."""
    volume: int = field(default=0, repr=False)
    """Which volume of a series it lies in: those of the time points and channels of one image, counted from 0."""

    def __post_init__(self) -> None:
        (az, ay, ax), (bz, by, bx) = self.start, self.stop
        if bz < az or by < ay or bx < ax:
            raise ValueError(f"a box must not stop before it starts: {self.start} to {self.stop}")

    @classmethod
    def whole(cls, shape: Index3) -> Box:
        """Return the box of all voxels of an array of this shape."""
        return cls((0, 0, 0), shape)

    @property
    def shape(self) -> Index3:
        """Number of voxels per axis."""
        a, b = self.start, self.stop
        return (b[0] - a[0], b[1] - a[1], b[2] - a[2])

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index into an array."""
        a, b = self.start, self.stop
        return (slice(a[0], b[0]), slice(a[1], b[1]), slice(a[2], b[2]))

    def slices_from(self, origin: Index3) -> tuple[slice, slice, slice]:
        """Return the box as an index into an array whose voxel 0 is `origin`."""
        a, b, (z, y, x) = self.start, self.stop, origin
        return (slice(a[0] - z, b[0] - z), slice(a[1] - y, b[1] - y), slice(a[2] - x, b[2] - x))

    def __and__(self, other: Box) -> Box:
        """Return what both boxes share, in the volume of this one; empty (size 0) where they share nothing."""
        a, b, c, d = self.start, self.stop, other.start, other.stop
        start = (max(a[0], c[0]), max(a[1], c[1]), max(a[2], c[2]))
        stop = (min(b[0], d[0]), min(b[1], d[1]), min(b[2], d[2]))
        return Box(start, (max(start[0], stop[0]), max(start[1], stop[1]), max(start[2], stop[2])), self.volume)

    def contains(self, other: Box) -> bool:
        """Return whether every voxel of `other` is a voxel of this box."""
        return (self & other) == other

    def relative_to(self, origin: Index3) -> Box:
        """Return the same voxels as seen from an array whose voxel 0 is `origin`."""
        z, y, x = origin
        return self.shifted((-z, -y, -x))

    def shifted(self, by: Index3) -> Box:
        """Return the same voxels as seen from an array in which this one's voxel 0 is `by`."""
        a, b, (z, y, x) = self.start, self.stop, by
        return Box((a[0] + z, a[1] + y, a[2] + x), (b[0] + z, b[1] + y, b[2] + x), self.volume)

    def of(self, volume: int) -> Box:
        """Return the same box in another volume of the series."""
        return Box(self.start, self.stop, volume)

    def tiles(self, shape: Index3, first: Index3 = (0, 0, 0)) -> Iterator[Box]:
        """Cut the box along a regular grid of cells.

        Every voxel of the box is in one tile, and no tile crosses a cell's border; z varies slowest.

        Parameters
        ----------
        shape
            Of the cells.
        first
            Voxels between a border of these and voxel 0 of the volume.

        Examples
        --------
        >>> [part.start for part in Box((1, 0, 2), (5, 3, 4)).tiles((4, 4, 4))]
        [(1, 0, 2), (4, 0, 2)]
        """
        if not self.size:
            return
        layers, *others = map(_cut, self.start, self.stop, shape, first)
        rows, columns = map(list, others)  # but not the layers, of which there may be any number
        for az, bz in layers:
            for ay, by in rows:
                for ax, bx in columns:
                    yield Box((az, ay, ax), (bz, by, bx), self.volume)

    def batches(self, chunk: Index3, most: int) -> Iterator[Box]:
        """Cut the box along a grid of chunks, into parts that lie in so many of them at most, along x first.

        Examples
        --------
        >>> [part.stop for part in Box((0, 0, 0), (4, 4, 12)).batches((4, 4, 4), 2)]
        [(4, 4, 8), (4, 4, 12)]
        """
        if not self.size:
            return
        cells, first = list(chunk), [0, 0, 0]
        for axis in (2, 1, 0):
            begin = self.start[axis] // chunk[axis]
            step = min(most, ceil_div(self.stop[axis], chunk[axis]) - begin)
            most //= step
            cells[axis] *= step
            first[axis] = -begin * chunk[axis] % cells[axis]
        yield from self.tiles(triple(cells), triple(first))


def _cut(start: int, stop: int, length: int, first: int) -> Iterator[tuple[int, int]]:
    """Cut an interval along cells of a length, of which a border lies `first` before 0."""
    for border in range((start + first) // length * length - first, stop, length):
        yield max(start, border), min(stop, border + length)


TIE = 2.0**-48
"""How near to a voxel's face, as a share of its position, a sample counts as on it: what float64 may round away.

A factor of 1.1 puts samples on faces, but in float64 some of them just before: without it, those would be taken from
the voxel before the face and others from the one after.
"""

Indices = NDArray[np.int64]
"""Sample indices along one axis."""


class Spans(NamedTuple):
    """What each of many output intervals reads along one axis."""

    first: Indices
    """First input sample read, inside the volume."""
    last: Indices
    """The one after the last, inside the volume; a span is never empty, for beyond the rim the rim is read."""
    before: Indices
    """How many times the rim is repeated before the volume's start."""
    after: Indices
    """How many times the rim is repeated after the volume's end."""

    def longest(self) -> tuple[int, int]:
        """Return the most input samples that an interval reads, and the same with its pads."""
        read = self.last - self.first
        return int(read.max()), int((read + self.before + self.after).max())


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a scaling: `n` input samples become `m` output samples, `factor` for each."""

    n: int
    """Number of input samples."""
    m: int
    """Number of output samples."""
    factor: float
    """Output samples per input sample."""
    shift: float = 0.0
    """Output samples from where the input begins to where the output does; below 0 where that begins earlier."""

    def position(self, output: Indices) -> NDArray[np.float64]:
        """Return the positions, in input samples, of output samples."""
        position: NDArray[np.float64] = (output + (self.shift + 0.5)) / self.factor - 0.5
        return position

    def source(self, output: Indices) -> NDArray[np.float64]:
        """Return the positions, in input samples, that output samples take their value from.

        One that lies far beyond the volume is drawn back to the first position at which no kernel sees the volume: that
        of an axis that shrinks to less than half a sample, and is kept as one, or of a grid that reaches further.
        """
        return np.minimum(self.position(output), self.n)

    def nearest(self, output: Indices) -> Indices:
        """Return the index of the input sample nearest to each output sample; ties go up, as cle truncates."""
        index: Indices = np.floor((self.source(output) + 0.5) * (1 + TIE)).astype(np.int64)
        return index

    def intervals(self, length: int) -> tuple[Indices, Indices]:
        """Cut the output into intervals of this length, the last one shorter: their starts and stops."""
        starts = np.arange(0, self.m, length, dtype=np.int64)
        return starts, np.minimum(starts + length, self.m)

    def cuts(self, stops: Indices) -> Indices:
        """Return where output cuts map back to: whole input samples, ascending, the last one `n`.

        Parameters
        ----------
        stops
            Ends of consecutive output intervals, ascending; the last is `m`.
        """
        back: Indices = np.clip(np.round((stops + self.shift) / self.factor), 0, self.n).astype(np.int64)
        back[-1] = self.n
        return back


class Sampler(Protocol):
    """What an engine reads along one axis."""

    @property
    def axis(self) -> Axis:
        """The axis."""
        ...

    def spans(self, starts: Indices, stops: Indices) -> Spans:
        """Return what each of many output intervals [start, stop), none of them empty, reads."""
        ...

    def __hash__(self) -> int:
        """Return the same for what reads the same."""
        ...


def halo(sampler: Sampler, length: int) -> tuple[int, int]:
    """Return the most input samples read (before, after) what the cuts of intervals of this length map back to."""
    starts, stops = sampler.axis.intervals(length)
    span = sampler.spans(starts, stops)
    cuts = sampler.axis.cuts(stops)
    return (
        int(np.maximum(0, np.concatenate([[0], cuts[:-1]]) - span.first).max()),
        int(np.maximum(0, span.last - cuts).max()),
    )


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Return three values, z, y, x, as a tuple of just three."""
    z, y, x = values
    return (z, y, x)


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up, for positive integers of any size."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """Return the smallest multiple of b that is at least a, for positive integers of any size."""
    return ceil_div(a, b) * b


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
        for each in fields(self):
            object.__setattr__(self, each.name, checked_value(each.name, str(each.type), getattr(self, each.name)))
        if any(n < 1 for n in self.shape):
            raise OptionError(f"a volume needs at least one voxel per axis, but its shape is {shown_value(self.shape)}")
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
            If a factor is not finite and positive, or an axis or a voxel would be longer than float64 can count.
        """
        check_positive("factor", factor)
        shape = []
        for axis, n, f in zip(AXES, self.shape, factor, strict=True):
            if f * MAX_SAMPLES < 1:  # beyond which float64 holds no position
                raise OptionError(
                    f"factor {f:g} makes one voxel of more than can be counted (2^53) along {axis}; "
                    "choose a larger factor"
                )
            samples = float(np.around(n * f))
            if samples > MAX_SAMPLES:
                raise OptionError(
                    f"factor {f:g} makes {samples:.3g} voxels of the {n} along {axis}, "
                    f"more than can be counted (2^53); choose a smaller factor"
                )
            shape.append(max(1, int(samples)))
        size = triple(float(v / f) for v, f in zip(self.voxel_size, factor, strict=True))
        origin = triple(
            float(o + (new - old) / 2) for o, new, old in zip(self.origin, size, self.voxel_size, strict=True)
        )
        return VoxelGrid(triple(shape), size, origin, self.unit)

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
        return Placement(triple(float(factor) for factor, _ in axes), triple(float(shift) for _, shift in axes))


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
    return _of_planes(grid, triple(float(v * zoom) for v in grid.voxel_size))


def factor_for_voxel_size(grid: VoxelGrid, target: float) -> Float3:
    """Return the factors that make every voxel a cube with sides of `target`, in the grid's unit.

    A single plane stays one, as thick as it is.
    """
    check_positive("voxel size", (target,))
    return _of_planes(grid, triple(float(v / target) for v in grid.voxel_size))


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
