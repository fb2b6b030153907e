"""Voxel size in the attributes of an HDF5 dataset, and of an Imaris image.

HDF5 itself knows none. Fiji, ilastik and Labkit write `element_size_um`, in micrometres; tools of electron microscopy
write `resolution` or `voxel_size`, often with an `offset`, in `units` if they say so. All are z, y, x, as voxels are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from isovoxel.geometry.grid import Float3, Index3
from isovoxel.metadata.series import Channel, checked_color
from isovoxel.metadata.units import ORIGIN, Calibration, Length, calibrate

_IN_MICROMETERS = "element_size_um"
_IN_UNITS = ("voxel_size", "resolution")
_DATASET = "the dataset"
_NAMES = ", ".join((_IN_MICROMETERS, *_IN_UNITS))


def read_hdf5(
    own: Mapping[str, Any], group: Mapping[str, Any] | None = None, *, coarser: bool = False
) -> tuple[Calibration, Float3]:
    """Return the voxel size that a dataset's attributes state, and the position of voxel 0 in the same unit.

    Parameters
    ----------
    own
        Those of the dataset, numbers as NumPy or Python has them, text as `str` or `bytes`.
    group
        Those of its group, which count where the dataset has none.
    coarser
        Whether it is a downsampled level: then only what `element_size_um` says of it is sure to be its own.

    Examples
    --------
    >>> read_hdf5({"element_size_um": [2, 0.5, 0.5]})[0].voxel_size
    (2.0, 0.5, 0.5)
    """
    attributes = {**(group or {}), **own}
    if coarser and _IN_MICROMETERS not in own:
        return Calibration(
            missing=f"{_DATASET} is a downsampled level, and does not say its own in {_IN_MICROMETERS}"
        ), ORIGIN
    if _IN_MICROMETERS in attributes:
        return _calibrated(_IN_MICROMETERS, attributes[_IN_MICROMETERS], ["micrometer"] * 3), ORIGIN
    for key in _IN_UNITS:
        if key in attributes:
            found = _calibrated(key, attributes[key], _units(attributes))
            offset = three(attributes.get("offset"))
            return found, ORIGIN if offset is None or not found.placed else offset
    return Calibration(missing=f"{_DATASET} has no attribute that tells it ({_NAMES})"), ORIGIN


def three(value: Any) -> Float3 | None:
    """Return three finite numbers from whatever an attribute holds, or None."""
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    if numbers.shape != (3,) or not np.isfinite(numbers).all():
        return None
    z, y, x = numbers.tolist()
    return (z, y, x)


def text_of(value: Any) -> str:
    """Return an attribute's text, which may be bytes, or an array of single letters; what is none is empty."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "S":
        value = b"".join(value.reshape(-1).tolist())
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip("\0 ")
    return value.strip() if isinstance(value, str) else ""


def _calibrated(key: str, value: Any, units: list[str | None]) -> Calibration:
    sizes = three(value)
    if sizes is None:
        return Calibration(missing=f"the attribute {key} of {_DATASET} is not three numbers")
    z, y, x = (Length(size, unit) for size, unit in zip(sizes, units, strict=True))
    return calibrate(_DATASET, f"attribute {key}", (z, y, x))


def _units(attributes: Mapping[str, Any]) -> list[str | None]:
    """Return the unit of every axis, of which there may be one for all."""
    value = attributes.get("units", attributes.get("unit"))
    if isinstance(value, np.ndarray | list | tuple) and np.shape(value) == (3,):
        return [text_of(unit) or None for unit in value]
    return [text_of(value) or None] * 3


# ---- Imaris --------------------------------------------------------------------------------------------------------

# An image's extents along x, y and z stand in attributes made of single letters.
#
# Source: the Imaris 5.5 file format's description (Bitplane): `ExtMin0` to `ExtMax2` are the outer faces of the first
# and the last voxel, x first, in `Unit`; `ImageSizeX` to `ImageSizeZ` of a channel say how much of its padded array is
# image.


_IMARIS = "Imaris' DataSetInfo"


def read_extent(attributes: Mapping[str, Any], shape: Index3) -> tuple[Calibration, Float3]:
    """Return the voxel size of a level of an Imaris image, and the position of voxel 0's centre in the same unit.

    Parameters
    ----------
    attributes
        Those of ``/DataSetInfo/Image``.
    shape
        Number of the level's voxels, z, y, x, without padding.
    """
    unit = text_of(attributes.get("Unit")) or None
    ends = [(_number(attributes.get(f"ExtMin{i}")), _number(attributes.get(f"ExtMax{i}"))) for i in (2, 1, 0)]
    z, y, x = (
        Length(None if low is None or high is None else (high - low) / n, unit, "no extent")
        for (low, high), n in zip(ends, shape, strict=True)
    )
    found = calibrate(_IMARIS, "Imaris extents", (z, y, x))
    if not found.placed:
        return found, ORIGIN
    sizes = found.voxel_size or (1.0, 1.0, 1.0)
    oz, oy, ox = ((low or 0.0) + size / 2 for (low, _), size in zip(ends, sizes, strict=True))
    return found, (oz, oy, ox)


def image_shape(attributes: Mapping[str, Any], padded: Index3) -> Index3 | None:
    """Return how much of a channel's array is image, z, y, x; None where that contradicts the array.

    Parameters
    ----------
    attributes
        Those of the channel's group.
    padded
        Shape of its array.
    """
    sizes = [_number(attributes.get(f"ImageSize{axis}")) for axis in "ZYX"]
    z, y, x = (n if size is None else int(size) for size, n in zip(sizes, padded, strict=True))
    return (z, y, x) if all(1 <= size <= n for size, n in zip((z, y, x), padded, strict=True)) else None


def read_channel(attributes: Mapping[str, Any]) -> Channel:
    """Return name and colour of a channel, whose three parts are from 0 to 1.

    Parameters
    ----------
    attributes
        Those of ``/DataSetInfo/Channel N``.
    """
    parts = [_number(part) for part in text_of(attributes.get("Color")).split()]
    color = "".join(f"{round(255 * part):02X}" for part in parts if part is not None and 0 <= part <= 1)
    return Channel(text_of(attributes.get("Name")) or None, checked_color(color))


def _number(value: Any) -> float | None:
    """Return the number in an attribute's text, or None where there is none."""
    try:
        number = float(text_of(value))
    except ValueError:
        return None
    return number if abs(number) < 1e300 else None
