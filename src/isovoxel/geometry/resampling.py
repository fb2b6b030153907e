"""Resampling along one axis: what an engine reads for output samples, by a table or through a texture unit.

Engine exact takes a `Table`, the input samples of each output sample and their weights.

Scaling is separable: along each axis, output sample o is a weighted sum of K neighbouring input samples::

    output[o] = sum of weights[o, k] * input[first[o] + k]   for k = 0 .. K - 1

Nearest, linear, cubic, lanczos3, area and anti-aliased kernels differ in their rows only; K is the same for all rows.

1. A kernel centred at ``source(o) = (o + shift + 0.5) / factor - 0.5`` gives each sample within its radius a weight;
   weights are divided by their sum. Anti-aliasing widens the kernel by 1 / factor on axes that shrink.
2. What a row reaches beyond the volume is folded in: onto the rim's sample (boundary "nearest"), or dropped, as if
   0 lay there ("constant"). A row therefore never leaves the volume, and nothing has to be padded.
3. An axis of factor 1 whose samples fall on the input's is a table of width 1: kernels leave its samples as they are.

A row depends on the volume and its own index alone, so blocks that take their rows of it agree in every bit.

The cubic kernel is that of Keys (1981), Cubic Convolution Interpolation for Digital Image Processing, with a = -1/2
(Catmull-Rom). That of lanczos3 is sinc(d) sinc(d / 3) for distances d below 3 (Duchon, 1979, Lanczos Filtering in One
and Two Dimensions). Area is the mean over the output voxel's footprint, [o / factor, (o + 1) / factor).

Engine cle reads through a `Texture` unit, or truncates a float32 position, and 0 lies around what it is given. So a
span holds what a position may be rounded to, and where the rim shall repeat it is padded with the rim. On an axis of
factor 1 positions are samples, up to rounding: the neighbour's weight is 0, or one step of the texture unit. There a
block reads no halo, and its own rim stands for the neighbour.

A `Halver` makes a block one of the next level in memory, to the bit as engine exact does: sums of eight integers of 8
or 16 bits have no rounding. Neighbours along x lie in one integer of twice the width, which adds them without a copy.
Memory is kept: for new one threads take turns at the system (measured: on 16 that took as long again as all the rest).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import OptionError
from isovoxel.geometry.grid import TIE, Axis, Float3, Index3, Indices, Spans

Floats = NDArray[np.float64]

WIDEST = 2**20
"""Most samples that one row may weigh: a factor below a millionth is a mistake, and would fill the memory."""

SPAN = 2048
"""Sums between two passes that a work group keeps: 16 KiB of float64, of the 32 that every device has at least."""

LEAST = 64
"""Outputs that a work group makes of them at least, or its passes come one after the other."""

NOISE = 2.0**-50
"""Weights of this size, as a share of the position, are what float64 left of a 0: a NaN must not spread by them."""

COORDINATE_MARGIN = 2**-8
"""How far, in samples, a device may round a position: a span includes the samples it may round to.

Without it a block's outermost sample could blend in, or be, what lies outside the block, and show as a seam.
"""


class Rows(NamedTuple):
    """Rows of a table."""

    first: Indices
    """First input sample of each row."""
    weights: Floats
    """Weights of the samples from there on, one row each; all rows have the same width."""


@dataclass(frozen=True)
class Table:
    """The resampling table of one axis. Rows are computed when asked for: a table has no size."""

    axis: Axis
    """The axis."""
    interpolation: str
    """"nearest", "linear", "cubic", "lanczos3", "area"; "mode", whose rows are those of nearest; or "smooth", with
    those of linear."""
    antialias: bool = False
    """Whether the kernel widens where the axis shrinks."""
    boundary: str = "nearest"
    """"nearest" repeats the rim, "constant" has 0 around the volume."""

    identity: bool = field(init=False, repr=False, compare=False)
    """Whether each output sample is an input sample, in their order, so that the axis' pass can be left out."""
    stretch: float = field(init=False, repr=False, compare=False)
    """By how much the kernel is widened."""
    radius: float = field(init=False, repr=False, compare=False)
    """Support of the kernel in input samples: half its width."""
    width: int = field(init=False, repr=False, compare=False)
    """Weights per row (K); never more than the axis has samples."""
    _unfolded_width: int = field(init=False, repr=False, compare=False)
    """Weights per row before rows are brought inside the volume."""

    def __post_init__(self) -> None:
        axis, factor = self.axis, self.axis.factor
        identity = factor == 1 and axis.shift.is_integer() and 0 <= axis.shift <= axis.n - axis.m
        stretch = max(1.0, 1 / factor) if self.antialias else 1.0
        if self.interpolation == "area":
            radius = 0.5 / factor + 0.5
        elif self.interpolation == "mode":
            radius = max(0.5, 0.5 / factor)
        else:
            radius = _RADIUS[self.interpolation] * stretch
        # An open interval of length L holds at most ceil(L) integers: 2 for linear, 4 for cubic, 6 for lanczos3.
        unfolded = max(1, math.ceil(2 * radius))
        halved = factor <= 1 and math.frexp(factor)[0] == 0.5
        if self.interpolation == "area" and halved and (axis.shift / factor).is_integer():
            unfolded = int(1 / factor)  # whole samples, of which float64 tells no part of a neighbour
        if unfolded > WIDEST:
            raise OptionError(
                f"a factor of {factor:g} would average {1 / factor:,.0f} voxels into one, "
                f"more than {WIDEST:,}; choose a larger factor"
            )
        width = 1 if identity or self.interpolation in ("nearest", "mode") else min(axis.n, unfolded)
        made = {"identity": identity, "stretch": stretch, "radius": radius, "width": width, "_unfolded_width": unfolded}
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def rows(self, outputs: Indices) -> Rows:
        """Return the rows of these output samples."""
        if self.identity:
            return Rows(outputs + int(self.axis.shift), np.ones((len(outputs), 1)))
        if self.interpolation in ("nearest", "mode"):
            index = self.axis.nearest(outputs)
            outside = (index < 0) | (index >= self.axis.n)
            weights = np.where(outside & (self.boundary == "constant"), 0.0, 1.0)
            return Rows(np.clip(index, 0, self.axis.n - 1), weights[:, None])
        lowest, weights = self._unfolded(outputs)
        return self._folded(lowest, weights)

    def spans(self, starts: Indices, stops: Indices) -> Spans:
        """Return what each of many output intervals [start, stop) reads; no table reaches beyond the volume."""
        if self.interpolation == "mode":
            first, last = self.footprints(starts)[0], self.footprints(stops - 1)[1]
        else:
            first, last = self.first(starts), self.first(stops - 1) + self.width
        zero = np.zeros_like(first)
        return Spans(first, last, zero, zero)

    def first(self, outputs: Indices) -> Indices:
        """Return the first input sample of each row; it never decreases from row to row."""
        if self.width == 1 and (self.identity or self.interpolation in ("nearest", "mode")):
            return self.rows(outputs).first
        lowest: Indices = np.floor(self.axis.position(outputs) - self.radius).astype(np.int64) + 1
        return np.clip(lowest, 0, self.axis.n - self.width)

    def footprints(self, outputs: Indices) -> tuple[Indices, Indices]:
        """Return the input samples [start, stop) whose centres lie in each output voxel: never none.

        An axis that grows has voxels without a centre; their footprint is the nearest sample.
        """
        nearest = np.clip(self.axis.nearest(outputs), 0, self.axis.n - 1)
        begin = outputs + self.axis.shift
        start = np.ceil(begin / self.axis.factor - 0.5).astype(np.int64)
        stop = np.ceil((begin + 1) / self.axis.factor - 0.5).astype(np.int64)
        start = np.clip(np.minimum(start, nearest), 0, self.axis.n - 1)
        return start, np.clip(np.maximum(stop, nearest + 1), 1, self.axis.n)

    def _unfolded(self, outputs: Indices) -> tuple[Indices, Floats]:
        """Return rows that may reach beyond the volume, each divided by its sum."""
        position = self.axis.position(outputs)
        lowest: Indices = np.floor(position - self.radius).astype(np.int64) + 1  # the first strictly inside the support
        samples = lowest[:, None] + np.arange(self._unfolded_width)
        if self.interpolation == "area":
            # Overlap of sample i, [i, i + 1), with the footprint around the position.
            centre = position[:, None] + 0.5
            half = 0.5 / self.axis.factor
            weights = np.minimum(samples + 1, centre + half) - np.maximum(samples, centre - half)
            weights = np.maximum(0.0, weights)
        else:
            distance = (samples - position[:, None]) / self.stretch
            weights = _WEIGHT[self.interpolation](np.abs(distance))
        noise = NOISE * (1 + np.abs(position))[:, None]
        weights = np.where(np.abs(weights) > noise, weights, 0.0)
        return lowest, weights / weights.sum(axis=1, keepdims=True)

    def _folded(self, lowest: Indices, weights: Floats) -> Rows:
        """Bring rows inside the volume."""
        n, width = self.axis.n, self.width
        samples = lowest[:, None] + np.arange(weights.shape[1])
        if self.boundary == "constant":
            weights = np.where((samples < 0) | (samples >= n), 0.0, weights)
        first = np.clip(lowest, 0, n - width)
        place = np.clip(samples, 0, n - 1) - first[:, None]
        # Rows that lie more than their width outside the volume all have the rim as their only sample.
        place = np.clip(place, 0, width - 1)
        folded = np.zeros((len(lowest), width))
        np.add.at(folded, (np.arange(len(lowest))[:, None], place), weights)
        return Rows(first, folded)


@dataclass(frozen=True, slots=True)
class Texture:
    """What cle reads along one axis."""

    axis: Axis
    """The axis."""
    interpolation: str
    """"nearest" or "linear"."""
    boundary: str
    """"nearest" repeats the rim, "constant" leaves 0 around the volume."""
    finite: bool = True
    """Whether no sample is NaN or infinite, which even a weight of 0 lets through."""

    def spans(self, starts: Indices, stops: Indices) -> Spans:
        """Return what each of many output intervals [start, stop), none of them empty, reads."""
        n = self.axis.n
        if self.interpolation == "nearest":
            lowest = self._cell(starts, -COORDINATE_MARGIN)
            highest = self._cell(stops - 1, COORDINATE_MARGIN) + 1
        elif self.finite and self.axis.factor == 1:
            # Just the samples that outputs fall on, padded wherever something lies beyond the block.
            if self.boundary == "constant":
                return Spans(starts, stops, np.minimum(starts, 1), np.minimum(n - stops, 1))
            return Spans(starts, stops, np.ones_like(starts), np.ones_like(stops))
        else:  # linear takes the sample below and the sample above
            lowest = np.floor(self.axis.source(starts) - COORDINATE_MARGIN).astype(np.int64)
            highest = np.floor(self.axis.source(stops - 1) + COORDINATE_MARGIN).astype(np.int64) + 2
        first = np.clip(lowest, 0, n - 1)
        last = np.maximum(first + 1, np.minimum(highest, n))
        if self.boundary == "constant":
            # An axis in one piece is read whole, as cle.scale is given it: then it rounds as cle.scale does.
            whole = (starts == 0) & (stops == self.axis.m)
            none = np.zeros_like(first)
            return Spans(np.where(whole, 0, first), np.where(whole, n, last), none, none)
        return Spans(first, last, np.maximum(0, -lowest), np.maximum(0, highest - n))

    def _cell(self, output: Indices, further: float) -> Indices:
        """Return the input samples whose cells hold positions so much further than those of the output samples."""
        index: Indices = np.floor((self.axis.source(output) + 0.5) * (1 + TIE) + further).astype(np.int64)
        return index


def passes_at_once(tables: Sequence[Table]) -> tuple[tuple[int, ...], ...]:
    """Return the passes in the order that costs least for the whole volume, each with the axes that it scales at once.

    Only axes that change have one. A pass costs its width for every voxel it makes, and one for every voxel it reads;
    shrinking axes tend to come first and growing ones last. x comes with the axis before it where `SPAN` sums are
    enough for some work: then those are never written. They are rounded no less, so this changes no bit. Both are the
    volume's, not a block's: so all blocks round alike, and the buffers that it saves are planned.
    """

    def cost(order: tuple[int, ...]) -> int:
        shape = [table.axis.n for table in tables]
        total = 0
        for axis in order:
            total += math.prod(shape)
            shape[axis] = tables[axis].axis.m
            total += tables[axis].width * math.prod(shape)
        return total

    passes: list[tuple[int, ...]] = []
    for axis in min(permutations([i for i, table in enumerate(tables) if not table.identity]), key=cost):
        if axis == 2 and passes and outputs_of(SPAN, tables[2]) >= LEAST:
            passes[-1] += (2,)
        else:
            passes.append((axis,))
    return tuple(passes)


def outputs_of(samples: int, table: Table) -> int:
    """Return how many neighbouring output samples never read more than this many input samples; 8, 16, 24 ...

    Of T outputs the first samples lie at most (T - 1) / factor + 1 apart.
    """
    return max(0, int((samples - table.width - 1) * table.axis.factor)) // 8 * 8


def accumulator(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of weights and sums for voxels of these types: float64 where float32 has too few digits."""
    for dtype in dtypes:
        if dtype == np.float64 or (dtype.itemsize >= 4 and dtype.kind in "iu"):
            return np.dtype(np.float64)
    return np.dtype(np.float32)


def _linear(distance: Floats) -> Floats:
    return np.maximum(0.0, 1 - distance)


def _cubic(distance: Floats) -> Floats:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _lanczos3(distance: Floats) -> Floats:
    beside = np.clip(distance, 2.0**-30, 3.0)  # nearer than that it is 1
    return np.where(distance < 3, 3 * _sin_pi(beside) * _sin_pi(beside / 3) / (math.pi * beside) ** 2, 0.0)


def _sin_pi(x: Floats) -> Floats:
    """Return sin(pi x), by sums and products alone.

    The last bits of a library's sine depend on the processor; those of a table must not.
    """
    whole = np.round(x)
    angle = math.pi * (x - whole)
    series = np.zeros_like(angle)
    for coefficient in _SINE:
        series = series * angle**2 + coefficient
    sine: Floats = series * angle * (1 - 2 * (whole % 2))
    return sine


_SINE = [(-1) ** k / math.factorial(2 * k + 1) for k in reversed(range(12))]
"""The Taylor series of sin(x) / x, of which up to pi / 2 no more shows in float64, the highest power first."""
_RADIUS = {"nearest": 0.5, "linear": 1.0, "smooth": 1.0, "cubic": 2.0, "lanczos3": 3.0}
_WEIGHT: dict[str, Callable[[Floats], Floats]] = {
    "linear": _linear,
    "smooth": _linear,
    "cubic": _cubic,
    "lanczos3": _lanczos3,
}


Voxels = NDArray[Any]

SLAB = 2**21
"""Voxels that are added at a time. Fewer take Python's lock more often, for which the threads of many blocks wait: of
2^19, 16 threads together do a third as many a second (measured); more take more memory."""
ROOM = 2
"""How many times the bytes of a slab each of the two memories for sums has: sums are twice as wide as voxels."""


def slab_planes(shape: Index3) -> int:
    """Return how many planes of a block of this shape are added at a time: an even number."""
    return min(max(2, SLAB // (shape[1] * shape[2]) // 2 * 2), shape[0] + shape[0] % 2)


def scratch_bytes(shape: Index3, itemsize: int) -> int:
    """Return the bytes that a thread keeps for blocks of this shape, beside its results."""
    return 2 * ROOM * (slab_planes(shape) + 1) * (shape[1] + 1) * (shape[2] + 1) * itemsize


class Halver:
    """Halves blocks, in memory that is kept from one to the next; for one thread at a time."""

    def __init__(self) -> None:
        self._result = np.empty(0, np.uint8)
        self._sums = (np.empty(0, np.uint8), np.empty(0, np.uint8))

    def __call__(self, voxels: Voxels, factor: Float3, shape: Index3) -> Voxels:
        """Return the means of neighbours along the axes that are halved, rounded half to even; until the next call.

        Parameters
        ----------
        voxels
            Of a whole block, C-contiguous, z, y, x; integers of 8 or 16 bits.
        factor
            0.5 for each axis that is halved, else 1.
        shape
            Of the result. Where an axis is odd it may leave the last voxel out, or have one that is all it.

        Examples
        --------
        >>> Halver()(np.array([[[1, 2, 9]]], np.uint8), (1.0, 1.0, 0.5), (1, 1, 2))
        array([[[2, 9]]], dtype=uint8)
        """
        halves = [f == 0.5 for f in factor]
        nz, ny, nx = (n * (2 if half else 1) for n, half in zip(shape, halves, strict=True))
        planes = slab_planes((nz, ny, nx))
        written, summed = math.prod(shape) * voxels.itemsize, ROOM * planes * ny * nx * voxels.itemsize
        if self._result.size < written:
            self._result = np.empty(written, np.uint8)
        if self._sums[0].size < summed:
            self._sums = (np.empty(summed, np.uint8), np.empty(summed, np.uint8))
        result = _view(self._result, voxels.dtype, shape)
        for z in range(0, nz, planes):
            slab = _whole(voxels[z : z + planes], (min(planes, nz - z), ny, nx))
            total = self._added(slab, halves)
            first = z // 2 if halves[0] else z
            result[first : first + len(total)] = total
        return result

    def _added(self, slab: Voxels, halves: list[bool]) -> Voxels:
        """Return the means of a slab, in twice the width, in one of the memories."""
        one, other = self._sums
        bits = 8 * slab.dtype.itemsize
        wide = np.dtype(f"{slab.dtype.kind}{bits // 4}")
        if halves[2]:
            both = slab.view(wide)
            # The one moved up and down again, which keeps its sign; the other moved down.
            total, right = _view(one, wide, both.shape), _view(other, wide, both.shape)
            np.left_shift(both, wide.type(bits), out=total)
            np.right_shift(total, wide.type(bits), out=total)
            np.right_shift(both, wide.type(bits), out=right)
            np.add(total, right, out=total)
        else:
            total = _view(one, wide, slab.shape)
            total[...] = slab
        for axis in (0, 1):
            if halves[axis]:
                even, odd = (total[first::2] if axis == 0 else total[:, first::2] for first in (0, 1))
                one, other = other, one
                total = _view(one, wide, even.shape)
                np.add(even, odd, out=total)
        return _rounded(total, _view(other, wide, total.shape), sum(halves))


def _rounded(total: Voxels, spare: Voxels, halvings: int) -> Voxels:
    """Divide sums by 2 so many times, rounded half to even, and return them."""
    if halvings:
        np.right_shift(total, halvings, out=spare)
        np.bitwise_and(spare, 1, out=spare)
        np.add(spare, (1 << (halvings - 1)) - 1, out=spare)
        np.add(total, spare, out=total)
        np.right_shift(total, halvings, out=total)
    return total


def _view(memory: NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Voxels:
    """Return the first bytes of a memory as an array."""
    count = int(np.prod(shape))
    array: Voxels = memory[: count * dtype.itemsize].view(dtype).reshape(shape)
    return array


def _whole(slab: Voxels, shape: Index3) -> Voxels:
    """Return a slab of a shape, in one piece; what has no neighbour gets itself for one, which leaves the mean."""
    slab = slab[: shape[0], : shape[1], : shape[2]]
    missing = [(0, n - there) for n, there in zip(shape, slab.shape, strict=True)]
    return np.ascontiguousarray(np.pad(slab, missing, "edge") if any(after for _, after in missing) else slab)
