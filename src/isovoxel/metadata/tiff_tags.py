"""Voxel size of a TIFF that is neither ImageJ's nor OME's.

Its resolution tags have pixels per inch or centimetre for x and y, and nothing for z. Only the JSON
description that tifffile writes may add a `spacing` for z, and a `unit` for it and for resolution tags
that count per no unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from math import isfinite
from typing import Any

import numpy as np

from isovoxel.metadata.calibration import Calibration, Length, calibrate
from isovoxel.metadata.imagej import NO_UNIT, Rational, length_per_pixel
from isovoxel.metadata.units import canonical_unit

_INCH = 2
_UNITS = {NO_UNIT: None, _INCH: "inch", 3: "cm"}


def read_tiff_tags(
    description: Mapping[str, Any],
    x_resolution: Rational | None,
    y_resolution: Rational | None,
    resolution_unit: int | None,
    *,
    flat: bool = False,
) -> Calibration:
    """Return the voxel size that resolution tags and tifffile's JSON description state together.

    Parameters
    ----------
    description
        The JSON object that tifffile wrote as image description; empty where there is none.
    x_resolution, y_resolution
        The TIFF's XResolution and YResolution, pixels per unit, or None where the tag is absent.
    resolution_unit
        The TIFF's ResolutionUnit, or None where the tag is absent: then it is inch, as TIFF specifies.
    flat
        As in `calibrate`.
    """
    y, x = length_per_pixel(y_resolution), length_per_pixel(x_resolution)
    unit = description.get("unit")
    unit = unit if isinstance(unit, str) and unit else None
    tag_unit = _UNITS.get(_INCH if resolution_unit is None else resolution_unit)
    # tifffile says inch where its caller gave a resolution without a unit, whatever the caller meant.
    if unit is not None and tag_unit == "inch" and canonical_unit(unit) != "inch":
        return Calibration(missing=f"its description counts in {unit!r}, but its resolution tags per inch")
    if tag_unit is None and y == 1 and x == 1 and unit is None:
        y = x = None  # what writers put where nothing was calibrated
    plane_unit = tag_unit or unit
    return calibrate(
        "the TIFF",
        "tifffile's spacing, and resolution tags",
        (
            _spacing(description, unit),
            Length(y, plane_unit, "no resolution tag that tells a size"),
            Length(x, plane_unit, "no resolution tag that tells a size"),
        ),
        flat=flat,
    )


def _spacing(description: Mapping[str, Any], unit: str | None) -> Length:
    spacing = description.get("spacing")
    if spacing is None:
        return Length(None, unit, "no spacing")
    if isinstance(spacing, bool) or not isinstance(spacing, int | float) or abs(spacing) > 1e300:
        return Length(None, unit, f"the spacing {str(spacing)[:40]!r}, which is no number,")
    return Length(float(spacing), unit)


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
