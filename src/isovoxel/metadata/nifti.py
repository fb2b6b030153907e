"""Voxel size and position in a NIfTI header, whose fields count x, y, z and whose lengths are float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.grid import Float3
from isovoxel.metadata.affine import ORIGIN, TURNED, is_upright
from isovoxel.metadata.units import Calibration, Length, calibrate


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
