"""Where an affine transform of voxel indices puts a volume whose axes stay as they are in the file.

What is carried over is the position of voxel 0 where x, y and z point along the axes of the world, each in its
direction; turned or flipped axes are not, because the output has none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from isovoxel.geometry.grid import Float3

ORIGIN: Float3 = (0.0, 0.0, 0.0)
"""Where voxel 0 lies if nothing else is said."""

TURNED = "its affine turns or flips the axes, which is not carried over: voxels keep the order of the file"
"""What is said where that is so."""

_SLANT = 1e-4
"""What float32 and rounding leave beside the diagonal, relative to it."""


def is_upright(matrix: ArrayLike) -> bool:
    """Return whether a matrix keeps the direction of each axis.

    Parameters
    ----------
    matrix
        3 x 3, from voxel x, y, z to world x, y, z.

    Examples
    --------
    >>> is_upright([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 2]]), is_upright([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    (True, False)
    """
    values = np.asarray(matrix, np.float64)
    sizes = np.diagonal(values)
    slant = np.abs(values - np.diag(sizes))
    return bool(np.isfinite(values).all() and (sizes > 0).all() and (slant <= _SLANT * sizes.min()).all())
