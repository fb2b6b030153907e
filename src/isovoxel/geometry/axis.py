"""Which input samples does an interval of output samples need, along one axis?

Sampling is ``source = (output + 0.5) / factor - 0.5`` in float64 from global output indices. A kernel of `support`
s reads, for every output sample, the input samples within its reach; an interval of output samples therefore reads
one interval of input samples, clipped to the volume. What it adds to the interval it maps back to is its halo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SUPPORT = {"nearest": 0.5, "linear": 1.0}
"""Radius of each interpolation's kernel, in input samples."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a scaling: `n` input samples become `m` output samples, `factor` for each."""

    n: int
    """Number of input samples."""
    m: int
    """Number of output samples."""
    factor: float
    """Output samples per input sample."""

    def source(self, output: NDArray[np.int64] | int) -> NDArray[np.float64]:
        """Return the position, in input samples, that output sample(s) `output` take their value from."""
        return (np.asarray(output, dtype=np.float64) + 0.5) / self.factor - 0.5

    def nearest(self, output: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Return the unclipped index of the input sample nearest to each output sample; ties go up."""
        return np.floor((np.asarray(output, dtype=np.float64) + 0.5) / self.factor).astype(np.int64)

    def reach(self, start: int, stop: int, interpolation: str) -> tuple[int, int]:
        """Return the unclipped input interval [first, last + 1) whose samples outputs [start, stop) use."""
        if interpolation == "nearest":
            ends = self.nearest(np.array([start, stop - 1]))
            return int(ends[0]), int(ends[1]) + 1
        # linear: floor(source) and the sample after it
        ends = np.floor(self.source(np.array([start, stop - 1]))).astype(np.int64)
        return int(ends[0]), int(ends[1]) + 2

    def read(self, start: int, stop: int, interpolation: str) -> tuple[int, int]:
        """Return `reach` clipped to the volume; never empty, for a sample beyond the rim reads the rim."""
        first, last = self.reach(start, stop, interpolation)
        first = min(max(first, 0), self.n - 1)
        return first, max(first + 1, min(last, self.n))

    def cuts(self, stops: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where output cuts map back to: whole input samples, ascending, the last one `n`.

        Parameters
        ----------
        stops
            Ends of consecutive output intervals, ascending; the last is `m`.
        """
        back = np.clip(np.round(stops / self.factor), 0, self.n).astype(np.int64)
        back[-1] = self.n
        return back


def reach_beyond(n: int, first: int, last: int) -> tuple[int, int]:
    """Return how many samples [first, last) lie before and after [0, n)."""
    return max(0, -first), max(0, last - n)


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up, for positive integers of any size."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """Return the smallest multiple of b that is at least a."""
    return math.prod((ceil_div(a, b), b))
