"""Where an affine transform of voxel indices puts a volume whose axes stay as they are in the file.

What is carried over is the position of voxel 0 where x, y and z point along the axes of the world, each in its
direction; turned or flipped axes are not, because the output has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isovoxel.geometry.grid import Float3
from isovoxel.metadata.units import Calibration, Length, calibrate

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


# ---- NIfTI headers -------------------------------------------------------------------------------------------------

# Its fields count x, y, z, and its lengths are float32.


def read_zooms(zooms: Sequence[float], unit: str) -> Calibration:
    """Return the voxel size of a header.

    Parameters
    ----------
    zooms
        Its `pixdim`, x, y, z first, as float32.
    unit
        The unit that its `xyzt_units` mean, or "unknown".

    Examples
    --------
    >>> read_zooms(np.float32([0.2, 0.2, 1]), "mm").voxel_size
    (1.0, 0.2, 0.2)
    """
    text = None if unit == "unknown" else unit
    # The shortest number that is this float32 is the one that was meant.
    z, y, x = (Length(float(str(np.float32(zoom))), text) for zoom in zooms[2::-1])
    return calibrate("the NIfTI header", "NIfTI pixdim", (z, y, x))


def read_affine(affine: NDArray[np.float64]) -> tuple[Float3, str]:
    """Return the position of voxel 0, z, y, x, and what of the affine is not carried over, or nothing.

    Parameters
    ----------
    affine
        4 x 4, from voxel x, y, z to world x, y, z.
    """
    if not np.isfinite(affine).all() or not is_upright(affine[:3, :3]):
        return ORIGIN, TURNED
    x, y, z = (float(str(np.float32(value))) for value in affine[:3, 3])
    return (z, y, x), ""
