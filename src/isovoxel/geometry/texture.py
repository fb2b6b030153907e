"""Input samples that engine cle reads along one axis, and what lies around the volume.

cle reads through a texture unit, or truncates a float32 position, and 0 lies around what it is given. So a span holds
what a position may be rounded to, and where the rim shall repeat it is padded with the rim.

On an axis of factor 1 positions are samples, up to rounding: the neighbour's weight is 0, or one step of the texture
unit. There a block reads no halo, and its own rim stands for the neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isovoxel.geometry.axis import TIE, Axis, Indices, Spans

COORDINATE_MARGIN = 2**-8
"""How far, in samples, a device may round a position: a span includes the samples it may round to.

Without it a block's outermost sample could blend in, or be, what lies outside the block, and show as a seam.
"""


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
            return self._aligned(starts, stops)
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

    def _aligned(self, starts: Indices, stops: Indices) -> Spans:
        """Return spans of just the samples that outputs fall on, padded wherever something lies beyond the block."""
        if self.boundary == "constant":
            return Spans(starts, stops, np.minimum(starts, 1), np.minimum(self.axis.n - stops, 1))
        return Spans(starts, stops, np.ones_like(starts), np.ones_like(stops))

    def _cell(self, output: Indices, further: float) -> Indices:
        """Return the input samples whose cells hold positions so much further than those of the output samples."""
        index: Indices = np.floor((self.axis.source(output) + 0.5) * (1 + TIE) + further).astype(np.int64)
        return index
