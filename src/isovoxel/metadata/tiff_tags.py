"""Voxel size of a TIFF that is neither ImageJ's nor OME's.

Its resolution tags have pixels per inch or centimetre for x and y, and nothing for z. Only the JSON
description that tifffile writes may add a `spacing` for z, and a `unit` for it and for resolution tags
that count per no unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
