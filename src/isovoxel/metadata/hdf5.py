"""Voxel size in the attributes of an HDF5 dataset.

HDF5 itself knows none. Fiji, ilastik and Labkit write `element_size_um`, in micrometres; tools of electron microscopy
write `resolution` or `voxel_size`, often with an `offset`, in `units` if they say so. All are z, y, x, as voxels are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from isovoxel.geometry.grid import Float3
from isovoxel.metadata.calibration import Calibration, Length, calibrate

ORIGIN: Float3 = (0.0, 0.0, 0.0)
"""Where voxel 0 lies if nothing else is said."""

_IN_MICROMETERS = "element_size_um"
_IN_UNITS = ("voxel_size", "resolution")
_WHAT = "the dataset"
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
            missing=f"{_WHAT} is a downsampled level, and does not say its own in {_IN_MICROMETERS}"
        ), ORIGIN
    if _IN_MICROMETERS in attributes:
        return _calibrated(_IN_MICROMETERS, attributes[_IN_MICROMETERS], ["micrometer"] * 3), ORIGIN
    for key in _IN_UNITS:
        if key in attributes:
            found = _calibrated(key, attributes[key], _units(attributes))
            offset = three(attributes.get("offset"))
            return found, ORIGIN if offset is None or not found.placed else offset
    return Calibration(missing=f"{_WHAT} has no attribute that tells it ({_NAMES})"), ORIGIN


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
        return Calibration(missing=f"the attribute {key} of {_WHAT} is not three numbers")
    z, y, x = (Length(size, unit) for size, unit in zip(sizes, units, strict=True))
    return calibrate(_WHAT, f"attribute {key}", (z, y, x))


def _units(attributes: Mapping[str, Any]) -> list[str | None]:
    """Return the unit of every axis, of which there may be one for all."""
    value = attributes.get("units", attributes.get("unit"))
    if isinstance(value, np.ndarray | list | tuple) and np.shape(value) == (3,):
        return [text_of(unit) or None for unit in value]
    return [text_of(value) or None] * 3
