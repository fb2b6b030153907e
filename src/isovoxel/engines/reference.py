"""The definition of sampling, per voxel and in float64: the oracle for all engines.

Written from the formula alone, without the tables, spans and blocks that the other engines share, so that it cannot
share their mistakes. Slow: it looks at every output sample by itself.

Output sample o lies at ``position = (o + shift + 0.5) / factor - 0.5`` of its axis. Of the input samples i, all
integers, it takes the mean weighted by a kernel of their distance to the position:

- nearest: the sample in whose cell [i - 0.5, i + 0.5) the position lies;
- linear: ``1 - distance``; cubic: Keys' with a = -1/2; lanczos3: ``sinc(distance) * sinc(distance / 3)``; 0 beyond 1, 2
  and 3 samples;
- anti-aliased linear, cubic and lanczos3: the same of ``distance * factor`` where the axis shrinks;
- area: the length that the cell of i shares with the output voxel's cell, ``1 / factor`` long;
- mode: not a mean, but the label that most samples within the output voxel's cell have;
- smooth: the label whose samples have the largest sum of linear's weights, the smallest of those that have.

Samples beyond the volume are those of its rim, or 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.grid import Box, Float3, Index3

Weights = list[dict[int, float]]
"""For each output sample along an axis, the weight of each input sample inside the volume that has one."""


TIE = 2.0**-40
"""Shares of an output voxel that differ by less are equal: float64 rounds them by 2^-52."""
NO_SHIFT: Float3 = (0.0, 0.0, 0.0)


class Expected(NamedTuple):
    """What output voxels should be."""

    values: NDArray[np.float64]
    """Their values, neither rounded nor saturated."""
    magnitude: NDArray[np.float64]
    """The sum of what each is made of, without signs: rounding errors of a sum are a share of it."""
    terms: int
    """The most samples that one axis weighs, all axes added: each rounds the sum once."""


def reference(
    read: Callable[[Box], NDArray[Any]],
    shape: Index3,
    factor: Float3,
    box: Box,
    interpolation: str = "linear",
    boundary: str = "nearest",
    *,
    antialias: bool = False,
    shift: Float3 = NO_SHIFT,
) -> NDArray[np.float64]:
    """Return the output voxels of `box`, neither rounded nor saturated; see `expected`."""
    return expected(read, shape, factor, box, interpolation, boundary, antialias=antialias, shift=shift).values


def expected(
    read: Callable[[Box], NDArray[Any]],
    shape: Index3,
    factor: Float3,
    box: Box,
    interpolation: str = "linear",
    boundary: str = "nearest",
    *,
    antialias: bool = False,
    shift: Float3 = NO_SHIFT,
) -> Expected:
    """Return what the output voxels of `box` should be.

    Parameters
    ----------
    read
        Reads a box of the input.
    shape
        Shape of the whole input, z, y, x.
    factor
        Output samples per input sample, z, y, x.
    box
        Which output voxels to compute.
    interpolation
        "nearest", "linear", "cubic", "lanczos3" or "area".
    boundary
        "nearest": samples outside the volume are those of its rim. "constant": they are 0.
    antialias
        Whether linear, cubic and lanczos3 kernels widen on shrinking axes.
    shift
        Output samples from where the input begins to where the output does, z, y, x.
    """
    axes = [
        [_weights(o + s, n, f, interpolation, boundary, antialias=antialias) for o in range(start, stop)]
        for start, stop, n, f, s in zip(box.start, box.stop, shape, factor, shift, strict=True)
    ]
    # Read once what all of them need; a sample that lies wholly in the 0 around the volume needs nothing.
    used = [sorted({i for row in axis for i in row} or {0}) for axis in axes]
    window = Box((used[0][0], used[1][0], used[2][0]), (used[0][-1] + 1, used[1][-1] + 1, used[2][-1] + 1), box.volume)
    with np.errstate(invalid="ignore"):  # of NaN that signal
        data = read(window).astype(np.float64)
    matrices = [_matrix(axis, first, n) for axis, first, n in zip(axes, window.start, window.shape, strict=True)]
    finite = np.isfinite(data)
    known = np.where(finite, data, 0.0)
    values = _apply(matrices, known)
    if not finite.all():
        values = np.where(np.isfinite(spread := _spread(matrices, data)), values, spread)
    sizes = [np.abs(matrix) for matrix in matrices]
    terms = sum(int(np.count_nonzero(matrix, axis=1).max()) for matrix in matrices)
    return Expected(values, _apply(sizes, np.abs(known)), terms)


def _spread(matrices: list[NDArray[np.float64]], data: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return NaN and infinities where samples that are none have weight, and 0 elsewhere.

    They spread as far as weights that are not 0: infinities of one sign, that of the weight included, are one; of both
    signs, no number.
    """
    signs = [np.sign(matrix) for matrix in matrices]
    infinite = np.where(np.isinf(data), np.sign(data), 0.0)
    # Counts, and so exact.
    touched = _apply([np.abs(sign) for sign in signs], np.abs(infinite))
    balance = _apply(signs, infinite)
    none = (_apply([np.abs(sign) for sign in signs], np.isnan(data).astype(np.float64)) > 0) | (
        touched > np.abs(balance)
    )
    return np.where(none, np.nan, np.where(touched > 0, np.copysign(np.inf, balance), 0.0))


def reference_labels(
    read: Callable[[Box], NDArray[Any]],
    shape: Index3,
    factor: Float3,
    box: Box,
    interpolation: str,
    boundary: str = "nearest",
    *,
    shift: Float3 = NO_SHIFT,
) -> NDArray[Any]:
    """Return the labels of `box`, in their own dtype: the nearest, or the most frequent within each output voxel.

    Of labels that are as frequent, the one nearest to the voxel's centre wins if it is among them, else the smallest.
    Or the smallest of those whose weights by linear interpolation, added up, are the largest but for `TIE`. The
    parameters are those of `reference`; the interpolation is "nearest", "mode" or "smooth".
    """
    if interpolation == "smooth":
        return _smooth(read, shape, factor, box, boundary, shift)
    cells = [
        [_cell(o + s, n, f) for o in range(start, stop)]
        for start, stop, n, f, s in zip(box.start, box.stop, shape, factor, shift, strict=True)
    ]
    first = [min(min(start, middle) for start, _, middle in axis) for axis in cells]
    last = [max(max(stop, middle + 1) for _, stop, middle in axis) for axis in cells]
    low = [min(max(f, 0), n - 1) for f, n in zip(first, shape, strict=True)]
    high = [max(min(n, s), a + 1) for s, n, a in zip(last, shape, low, strict=True)]
    data = read(Box((low[0], low[1], low[2]), (high[0], high[1], high[2]), box.volume))
    result = np.empty(box.shape, data.dtype)
    for place in np.ndindex(*box.shape):
        chosen = [axis[i] for axis, i in zip(cells, place, strict=True)]
        middles = [m for _, _, m in chosen]
        if boundary == "constant" and any(not 0 <= m < n for m, n in zip(middles, shape, strict=True)):
            result[place] = 0
            continue
        middle = data[tuple(min(max(m, 0), n - 1) - a for m, n, a in zip(middles, shape, low, strict=True))]
        if interpolation == "nearest":
            result[place] = middle
            continue
        inside = data[tuple(slice(a - o, b - o) for (a, b, _), o in zip(chosen, low, strict=True))]
        labels, counts = np.unique(inside, return_counts=True)
        most = labels[counts == counts.max()]
        result[place] = middle if middle in most else most.min()
    return result


def _smooth(
    read: Callable[[Box], NDArray[Any]], shape: Index3, factor: Float3, box: Box, boundary: str, shift: Float3
) -> NDArray[Any]:
    """Return the labels of `box` by the shares that they have in each output voxel."""
    axes = [
        [_weights(o + s, n, f, "linear", boundary, antialias=False) for o in range(start, stop)]
        for start, stop, n, f, s in zip(box.start, box.stop, shape, factor, shift, strict=True)
    ]
    used = [sorted({i for row in axis for i in row} or {0}) for axis in axes]
    low = [axis[0] for axis in used]
    data = read(Box((low[0], low[1], low[2]), (used[0][-1] + 1, used[1][-1] + 1, used[2][-1] + 1), box.volume))
    result = np.empty(box.shape, data.dtype)
    for place in np.ndindex(*box.shape):
        z, y, x = (axis[i] for axis, i in zip(axes, place, strict=True))
        shares: dict[int, float] = {}
        for (a, of_z), (b, of_y), (c, of_x) in product(z.items(), y.items(), x.items()):
            label = int(data[a - low[0], b - low[1], c - low[2]])
            shares[label] = shares.get(label, 0.0) + of_z * of_y * of_x
        if (around := 1 - sum(shares.values())) > TIE:  # of the 0 around the volume
            shares[0] = shares.get(0, 0.0) + around
        most = max(shares.values())
        result[place] = min(label for label, share in shares.items() if share >= most - TIE)
    return result


@lru_cache(2**12)
def _weights(
    o: float, n: int, factor: float, interpolation: str, boundary: str, *, antialias: bool
) -> dict[int, float]:
    """Return the weights of one output sample along one axis; not to be changed, for boxes side by side share them."""
    position = (o + 0.5) / factor - 0.5
    if factor == 1 and position.is_integer():
        found = {int(position): 1.0}
    elif interpolation == "nearest":
        found = {_holding(position): 1.0}
    else:
        half = 0.5 / factor
        shrink = min(1.0, factor) if antialias else 1.0
        reach = half + 0.5 if interpolation == "area" else 3 / shrink
        found = {}
        for i in range(math.floor(position - reach), math.ceil(position + reach) + 1):
            if interpolation == "area":
                weight = max(0.0, min(i + 0.5, position + half) - max(i - 0.5, position - half))
            else:
                weight = _KERNELS[interpolation](abs(i - position) * shrink)
            # What float64 leaves of a 0 is none: a NaN must not spread by it.
            if abs(weight) > 2.0**-50 * (1 + abs(position)):
                found[i] = weight
    total = sum(found.values())
    inside: dict[int, float] = {}
    for i, weight in found.items():
        if boundary == "nearest":
            rim = min(max(i, 0), n - 1)
            inside[rim] = inside.get(rim, 0.0) + weight / total
        elif 0 <= i < n:
            inside[i] = weight / total
    return inside


def _holding(position: float) -> int:
    """Return the sample whose cell holds a position; ties go up, and so does what float64 rounds to just before one."""
    return math.floor((position + 0.5) * (1 + 2.0**-48))


def _cubic(distance: float) -> float:
    if distance < 1:
        return 1.5 * distance**3 - 2.5 * distance**2 + 1
    return -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2 if distance < 2 else 0.0


def _lanczos3(distance: float) -> float:
    return _sinc(distance) * _sinc(distance / 3) if distance < 3 else 0.0


def _sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0


_KERNELS: dict[str, Callable[[float], float]] = {
    "linear": lambda distance: max(0.0, 1 - distance),
    "cubic": _cubic,
    "lanczos3": _lanczos3,
}


def _cell(o: float, n: int, factor: float) -> tuple[int, int, int]:
    """Return the samples [start, stop) inside the volume whose centres lie in an output voxel, and the middle one."""
    middle = _holding((o + 0.5) / factor - 0.5)
    inside = [
        i
        for i in range(math.floor(o / factor) - 1, math.ceil((o + 1) / factor) + 1)
        if o / factor <= i + 0.5 < (o + 1) / factor and 0 <= i < n
    ]
    rim = min(max(middle, 0), n - 1)
    return (min([*inside, rim]), max([*inside, rim]) + 1, middle)


def _matrix(rows: Weights, first: int, width: int) -> NDArray[np.float64]:
    """Return rows of weights as a matrix over the samples from `first` on."""
    matrix = np.zeros((len(rows), width))
    for o, row in enumerate(rows):
        for i, weight in row.items():
            matrix[o, i - first] = weight
    return matrix


def _apply(matrices: list[NDArray[np.float64]], data: NDArray[np.float64]) -> NDArray[np.float64]:
    z, y, x = matrices
    planes = np.einsum("az,zyx->ayx", z, data, optimize=True)
    rows = np.einsum("by,ayx->abx", y, planes, optimize=True)
    result: NDArray[np.float64] = np.einsum("cx,abx->abc", x, rows, optimize=True)
    return result
