"""Position of an Imaris image: its extents along x, y and z, in attributes made of single letters.

Source: the Imaris 5.5 file format's description (Bitplane): `ExtMin0` to `ExtMax2` are the outer faces of the first and
the last voxel, x first, in `Unit`; `ImageSizeX` to `ImageSizeZ` of a channel say how much of its padded array is image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import Float3
from isovoxel.metadata.calibration import Calibration, Length, calibrate
from isovoxel.metadata.hdf5 import ORIGIN, text_of
from isovoxel.metadata.series import Channel, checked_color

_WHAT = "Imaris' DataSetInfo"


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
    found = calibrate(_WHAT, "Imaris extents", (z, y, x))
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
