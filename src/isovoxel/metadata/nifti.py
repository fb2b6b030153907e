"""Voxel size and position in a NIfTI header, whose fields count x, y, z and whose lengths are float32.

Its affine says where x, y and z point. What is carried over is the position of voxel 0 where they point along the axes
of the world, each in its direction; turned or flipped axes are not, for the output has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.grid import Float3
from isovoxel.metadata.hdf5 import ORIGIN
from isovoxel.metadata.units import Calibration, Length, calibrate

TURNED = "its affine turns or flips the axes, which is not carried over: voxels keep the order of the file"
"""What is said where that is so."""

_SLANT = 1e-4
"""What float32 and rounding leave beside the diagonal, relative to it."""


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
    matrix = affine[:3, :3]
    sizes = np.diagonal(matrix)
    slant = np.abs(matrix - np.diag(sizes))
    if not np.isfinite(affine).all() or not (sizes > 0).all() or not (slant <= _SLANT * sizes.min()).all():
        return ORIGIN, TURNED
    x, y, z = (float(str(np.float32(value))) for value in affine[:3, 3])
    return (z, y, x), ""
