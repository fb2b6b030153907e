r"""Voxel size of an ImageJ TIFF.

ImageJ keeps it in two places. The image description, lines of ``key=value``, has `spacing` for z and the
`unit` of all axes (`yunit` and `zunit` where they differ); the TIFF's resolution tags have pixels per
unit for x and y. A character outside ASCII is written as ``\uXXXX``. With a unit in the description, the
resolution tags' own unit has no meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from isovoxel.metadata.calibration import Calibration, Length, calibrate
from isovoxel.metadata.series import Channel, time_step
from isovoxel.metadata.units import unescaped

Rational = tuple[int, int]
"""Numerator and denominator, as TIFF stores a resolution."""

NO_UNIT = 1
"""The TIFF's ResolutionUnit where pixels are counted per nothing in particular."""

_WHAT = "the ImageJ description"
_SOURCE = "ImageJ spacing and resolution tags"
_NO_SPACING = "no spacing (ImageJ leaves out a spacing of exactly 1)"
_UNCALIBRATED = ("pixel", "pixels", "pix", "px")


def parse_description(description: str) -> dict[str, str]:
    r"""Return the ``key=value`` lines of an ImageJ description; the first of equal keys counts, as in ImageJ.

    Examples
    --------
    >>> parse_description("ImageJ=1.53f\nimages=21\nunit=\\u00B5m\n")["unit"]
    'µm'
    """
    values: dict[str, str] = {}
    for line in description.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            values.setdefault(key.strip(), unescaped(value).strip())
    return values


def read_imagej(
    description: str,
    x_resolution: Rational | None,
    y_resolution: Rational | None,
    resolution_unit: int | None,
    *,
    flat: bool = False,
) -> Calibration:
    """Return the voxel size that an ImageJ TIFF states.

    Parameters
    ----------
    description
        The image description, which begins with ``ImageJ=``.
    x_resolution, y_resolution
        The TIFF's XResolution and YResolution, pixels per unit, or None where the tag is absent.
    resolution_unit
        The TIFF's ResolutionUnit, or None where the tag is absent.
    flat
        As in `calibrate`.

    Returns
    -------
    Calibration
        In the description's `unit`; `voxel_size` is None where an axis is not stated or makes no sense.
    """
    values = parse_description(description)
    unit = values.get("unit") or None
    if unit is not None and unit.lower() in _UNCALIBRATED:
        return Calibration(missing=f"{_WHAT} counts in pixels, so the stack is not calibrated")
    y, x = length_per_pixel(y_resolution), length_per_pixel(x_resolution)
    # Where nothing was calibrated, programs write 1 pixel per unit, or 72 per inch.
    if unit is None and (resolution_unit != NO_UNIT or (y == 1 and x == 1)):
        return Calibration(missing=f"{_WHAT} has no unit, so its resolution tags mean nothing")
    return calibrate(
        _WHAT,
        _SOURCE,
        (
            _spacing(values, values.get("zunit") or unit),
            Length(y, values.get("yunit") or unit, "no usable resolution tag"),
            Length(x, unit, "no usable resolution tag"),
        ),
        flat=flat,
    )


def read_step(description: str) -> tuple[float, str | None]:
    """Return the time between two time points and its unit; 1 without a unit where the description does not say."""
    values = parse_description(description)
    try:
        return time_step(float(values["finterval"]), values.get("tunit", "sec"))
    except (KeyError, ValueError):
        return 1.0, None


def read_channels(tables: object) -> tuple[Channel, ...]:
    """Return the colours of an ImageJ TIFF's channels, each the brightest of its lookup table.

    Parameters
    ----------
    tables
        The tables as tifffile has them, each three rows of 256 bytes: red, green and blue.
    """
    if not isinstance(tables, Sequence):
        return ()
    ends = [[int(row[-1]) for row in table] for table in tables if np.shape(table) == (3, 256)]
    return tuple(Channel(color=f"{red:02X}{green:02X}{blue:02X}") for red, green, blue in ends)


def length_per_pixel(resolution: Rational | None) -> float | None:
    """Return the length of a pixel where a TIFF states pixels per length; None where that is not usable."""
    if resolution is None:
        return None
    pixels, lengths = resolution
    return lengths / pixels if pixels and lengths else None


def _spacing(values: Mapping[str, str], unit: str | None) -> Length:
    text = values.get("spacing")
    if text is None:
        return Length(None, unit, _NO_SPACING)
    try:
        return Length(float(text), unit)
    except ValueError:
        return Length(None, unit, f"the spacing {text!r}, which is no number,")
