"""Support of output samples along one axis: which input samples an interval of them needs.

Sampling is ``source = (output + shift + 0.5) / factor - 0.5`` in float64 from global output indices; the shift is 0
unless the output has the voxels of another volume. A kernel
reads, for every output sample, the input samples within its support; an interval of output samples therefore reads
one interval of input samples, clipped to the volume. What that adds to the interval it maps back to is its halo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

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


def halo(sampler: Sampler, length: int) -> tuple[int, int]:
    """Return the most input samples read (before, after) what the cuts of intervals of this length map back to."""
    starts, stops = sampler.axis.intervals(length)
    span = sampler.spans(starts, stops)
    cuts = sampler.axis.cuts(stops)
    return (
        int(np.maximum(0, np.concatenate([[0], cuts[:-1]]) - span.first).max()),
        int(np.maximum(0, span.last - cuts).max()),
    )


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up, for positive integers of any size."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """Return the smallest multiple of b that is at least a, for positive integers of any size."""
    return ceil_div(a, b) * b
