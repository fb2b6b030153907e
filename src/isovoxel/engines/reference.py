"""What should the result be? The definition of sampling, per voxel and in float64: the oracle for all engines.

Written from the formula alone, without the tables, spans and blocks that the other engines share, so that it cannot
share their mistakes. Slow, and it needs eight times the output box in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.box import Box, Index3
from isovoxel.geometry.grid import Float3


def reference(
    read: Callable[[Box], NDArray[Any]],
    shape: Index3,
    factor: Float3,
    box: Box,
    interpolation: str = "linear",
    boundary: str = "nearest",
) -> NDArray[np.float64]:
    """Return the output voxels of `box`, neither rounded nor saturated.

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
        "linear": of the two samples around the position, per axis. "nearest": the sample whose cell holds it.
    boundary
        "nearest": samples outside the volume are those of its rim. "constant": they are 0.
    """
    corners: list[list[tuple[NDArray[np.int64], NDArray[np.float64]]]] = []
    for start, stop, f in zip(box.start, box.stop, factor, strict=True):
        position = (np.arange(start, stop, dtype=np.float64) + 0.5) / f - 0.5
        if interpolation == "nearest":
            # Ties go up, and so does what only float64's rounding puts just before one.
            cell = np.floor((position + 0.5) * (1 + 2.0**-48))
            corners.append([(cell.astype(np.int64), np.ones_like(position))])
        else:
            below = np.floor(position)
            weight = position - below
            lower = below.astype(np.int64)
            corners.append([(lower, 1 - weight), (lower + 1, weight)])

    # Read once what all corners need.
    lows = [min(int(index.min()) for index, _ in axis) for axis in corners]
    highs = [max(int(index.max()) for index, _ in axis) for axis in corners]
    first = [min(max(low, 0), n - 1) for low, n in zip(lows, shape, strict=True)]
    last = [min(max(high, 0), n - 1) + 1 for high, n in zip(highs, shape, strict=True)]
    data = read(Box((first[0], first[1], first[2]), (last[0], last[1], last[2]))).astype(np.float64)

    result = np.zeros(box.shape, dtype=np.float64)
    for corner in product(*corners):
        indices, weights = [], []
        for (index, weight), f, n in zip(corner, first, shape, strict=True):
            outside = (index < 0) | (index >= n)
            indices.append(np.clip(index, 0, n - 1) - f)
            weights.append(np.where(outside, 0.0, weight) if boundary == "constant" else weight)
        values = data[np.ix_(*indices)]
        share = weights[0][:, None, None] * weights[1][None, :, None] * weights[2][None, None, :]
        # A sample of no weight does not count, even where it is NaN or infinite.
        result += np.where(share == 0, 0.0, values) * share
    return result


def as_dtype(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return real values in a dtype: integers are rounded half to even and saturated."""
    if dtype.kind == "f":
        return values.astype(dtype)
    info = np.iinfo(dtype)
    return np.clip(np.rint(values), info.min, info.max).astype(dtype)
