"""Voxel sizes of TIFFs that microscopes write in ways of their own: Zeiss LSM, and MetaMorph STK.

Both are given as tifffile reads them: the record CZ_LSMINFO, whose lengths are metres, and the UIC tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from math import isfinite
from typing import Any

import numpy as np

from isovoxel.metadata.calibration import Calibration, Length, calibrate


def read_lsm(info: Mapping[str, Any], *, flat: bool = False) -> Calibration:
    """Return the voxel size that an LSM states, in micrometres.

    Parameters
    ----------
    info
        Its CZ_LSMINFO.
    flat
        As in `calibrate`.
    """
    sizes = [_number(info.get(f"VoxelSize{axis}")) for axis in "ZYX"]
    # By the digits that it prints, so that 2e-7 becomes 0.2.
    z, y, x = (None if size is None or not isfinite(size) else float(Decimal(repr(size)).scaleb(6)) for size in sizes)
    lengths = (Length(z, "micrometer"), Length(y, "micrometer"), Length(x, "micrometer"))
    return calibrate("CZ_LSMINFO", "CZ_LSMINFO VoxelSizeZ, VoxelSizeY and VoxelSizeX", lengths, flat=flat)


def read_stk(metadata: Mapping[str, Any], *, flat: bool = False) -> Calibration:
    """Return the voxel size that a MetaMorph STK states.

    Parameters
    ----------
    metadata
        Its UIC tags: distances between planes of every plane, calibrations of x and y, and their unit.
    flat
        As in `calibrate`.
    """
    unit = metadata.get("CalibrationUnits")
    unit = unit if isinstance(unit, str) and unit else None
    distances = np.asarray(metadata.get("ZDistance", ()), float).reshape(-1)
    # The first plane's is how far it is from nothing; some programs leave it 0.
    steps = sorted({abs(distance) for distance in distances[1:].tolist()})
    z = Length(steps[0], unit) if len(steps) == 1 else Length(None, unit, "no distance between planes")
    if len(steps) > 1:
        z = Length(None, unit, f"distances between planes from {steps[0]:g} to {steps[-1]:g}, not one,")
    calibrated = bool(metadata.get("SpatialCalibration", True))
    y, x = (_number(metadata.get(f"{axis}Calibration")) if calibrated else None for axis in "YX")
    lengths = (z, Length(y, unit, "no calibration"), Length(x, unit, "no calibration"))
    return calibrate("MetaMorph's UIC tags", "MetaMorph's UIC tags", lengths, flat=flat)


def _number(value: Any) -> float | None:
    """Return a number that a tag has, also as a fraction; None where it is none."""
    match value:
        case (int() as above, int() as below) if below:
            return above / below
        case bool():
            return None
        case int() | float():
            return float(value)
        case _:
            return None
