"""Which input samples does an interval of output samples need, along one axis?

Sampling is ``source = (output + 0.5) / factor - 0.5`` in float64 from global output indices. A kernel
reads, for every output sample, the input samples within its support; an interval of output samples therefore reads
one interval of input samples, clipped to the volume. What that adds to the interval it maps back to is its halo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

COORDINATE_MARGIN = 2**-8
"""How far, in samples, a texture unit may round a position: a linear span includes the samples it may round to.

Without it a block's outermost sample could blend in what lies outside the block, and show as a seam.
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
    """How many samples its kernel reaches beyond the volume's start."""
    after: Indices
    """How many samples its kernel reaches beyond the volume's end."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a scaling: `n` input samples become `m` output samples, `factor` for each."""

    n: int
    """Number of input samples."""
    m: int
    """Number of output samples."""
    factor: float
    """Output samples per input sample."""

    def source(self, output: Indices) -> NDArray[np.float64]:
        """Return the positions, in input samples, that output samples take their value from.

        Only an axis that shrinks to less than half a sample, and is kept as one, has a position more than half a
        sample beyond the volume. It is drawn back to the first position at which no kernel sees the volume.
        """
        position: NDArray[np.float64] = (output.astype(np.float64) + 0.5) / self.factor - 0.5
        return np.minimum(position, self.n)

    def nearest(self, output: Indices) -> Indices:
        """Return the index of the input sample nearest to each output sample; ties go up, as cle truncates."""
        index: Indices = np.floor(self.source(output) + 0.5).astype(np.int64)
        return index

    def spans(self, starts: Indices, stops: Indices, interpolation: str) -> Spans:
        """Return what each of many output intervals [start, stop) reads.

        Parameters
        ----------
        starts, stops
            Ends of output intervals, none of them empty.
        interpolation
            "nearest" or "linear".
        """
        if interpolation == "nearest":
            lowest, highest = self.nearest(starts), self.nearest(stops - 1) + 1
        else:  # linear takes the sample below and the sample above
            lowest = np.floor(self.source(starts) - COORDINATE_MARGIN).astype(np.int64)
            highest = np.floor(self.source(stops - 1) + COORDINATE_MARGIN).astype(np.int64) + 2
        first = np.clip(lowest, 0, self.n - 1)
        return Spans(
            first=first,
            last=np.maximum(first + 1, np.minimum(highest, self.n)),
            before=np.maximum(0, -lowest),
            after=np.maximum(0, highest - self.n),
        )

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
        back: Indices = np.clip(np.round(stops / self.factor), 0, self.n).astype(np.int64)
        back[-1] = self.n
        return back


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up, for positive integers of any size."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """Return the smallest multiple of b that is at least a, for positive integers of any size."""
    return ceil_div(a, b) * b
