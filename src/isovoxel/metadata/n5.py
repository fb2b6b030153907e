"""What voxel size do the attributes of an N5 dataset, or of the group around it, state?

N5 itself knows none; its writers each have their own way, and most count x first, as N5 does:

- `pixelResolution` with a unit, and `downsamplingFactors` of the level (Saalfeld's tools, BigDataViewer);
- `resolution`, `units` and `offset` (n5-ij, Saalfeld's tools);
- `pixelWidth`, `pixelHeight`, `pixelDepth`, `pixelUnit` (n5-ij's ImageJ style);
- `transform` with `scale`, `translate`, `units` and the names of its axes (COSEM), most often z first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from isovoxel.geometry.grid import AXES, Float3
from isovoxel.metadata.calibration import Calibration, Length, calibrate
from isovoxel.metadata.hdf5 import ORIGIN, three

_WHAT = "the N5 dataset"
_WIDTHS = ("pixelDepth", "pixelHeight", "pixelWidth")


def read_attributes(attributes: Mapping[str, Any]) -> tuple[Calibration, Float3]:
    """Return the voxel size that an N5 dataset's attributes state, and the position of voxel 0 in the same unit.

    Parameters
    ----------
    attributes
        The attributes of the dataset, and where it lacks them those of the group that it is a level of.

    Examples
    --------
    >>> read_attributes({"resolution": [4, 4, 40], "units": ["nm", "nm", "nm"]})[0].voxel_size
    (40.0, 4.0, 4.0)
    """
    for key, read in _READERS.items():
        if key in attributes:
            return read(attributes)
    return Calibration(missing=f"{_WHAT} has no attribute that tells it ({', '.join(_READERS)})"), ORIGIN


def _pixel_resolution(attributes: Mapping[str, Any]) -> tuple[Calibration, Float3]:
    """Read the resolution of the finest level, and how much coarser this one is."""
    value = attributes["pixelResolution"]
    unit = value.get("unit") if isinstance(value, Mapping) else attributes.get("unit")
    sizes = three(value.get("dimensions") if isinstance(value, Mapping) else value)
    factors = three(attributes.get("downsamplingFactors", (1, 1, 1)))
    if sizes is None or factors is None:
        return _no_numbers("pixelResolution"), ORIGIN
    x, y, z = (size * factor for size, factor in zip(sizes, factors, strict=True))
    found = _calibrated("pixelResolution", (z, y, x), [unit] * 3)
    if found.voxel_size is None:
        return found, ORIGIN
    # A level is made of means, so its first voxel's centre lies further in.
    oz, oy, ox = (size * (1 - 1 / factor) / 2 for size, factor in zip(found.voxel_size, factors[::-1], strict=True))
    return found, (oz, oy, ox)


def _resolution(attributes: Mapping[str, Any]) -> tuple[Calibration, Float3]:
    sizes, offset = three(attributes["resolution"]), three(attributes.get("offset"))
    if sizes is None:
        return _no_numbers("resolution"), ORIGIN
    found = _calibrated("resolution", sizes[::-1], _each(attributes.get("units", attributes.get("unit")))[::-1])
    return found, ORIGIN if offset is None or found.voxel_size is None else offset[::-1]


def _pixel_width(attributes: Mapping[str, Any]) -> tuple[Calibration, Float3]:
    sizes = three([attributes.get(width) for width in _WIDTHS])
    if sizes is None:
        return _no_numbers(", ".join(_WIDTHS)), ORIGIN
    return _calibrated("pixelWidth", sizes, [attributes.get("pixelUnit")] * 3), ORIGIN


def _transform(attributes: Mapping[str, Any]) -> tuple[Calibration, Float3]:
    """Read COSEM's transform, which names its axes."""
    value = attributes["transform"] if isinstance(attributes["transform"], Mapping) else {}
    axes = value.get("axes")
    sizes, offset = three(value.get("scale")), three(value.get("translate", ORIGIN))
    if not isinstance(axes, Sequence) or sorted(map(str, axes)) != sorted(AXES) or sizes is None or offset is None:
        return _no_numbers("transform"), ORIGIN
    units = _each(value.get("units"))
    z, y, x = (list(axes).index(axis) for axis in AXES)
    found = _calibrated("transform", (sizes[z], sizes[y], sizes[x]), [units[z], units[y], units[x]])
    return found, ORIGIN if found.voxel_size is None else (offset[z], offset[y], offset[x])


def _calibrated(key: str, sizes: Float3, units: Sequence[Any]) -> Calibration:
    z, y, x = (
        Length(size, unit if isinstance(unit, str) and unit else None) for size, unit in zip(sizes, units, strict=True)
    )
    return calibrate(_WHAT, f"N5 attribute {key}", (z, y, x))


def _each(units: Any) -> list[Any]:
    """Return the unit of every axis, of which there may be one for all."""
    return list(units) if isinstance(units, list | tuple) and len(units) == 3 else [units] * 3


def _no_numbers(key: str) -> Calibration:
    return Calibration(missing=f"{_WHAT} has no three numbers and axes in its attribute {key}")


_READERS: Mapping[str, Callable[[Mapping[str, Any]], tuple[Calibration, Float3]]] = {
    "transform": _transform,
    "pixelResolution": _pixel_resolution,
    "resolution": _resolution,
    "pixelWidth": _pixel_width,
}
"""What reads the voxel size where this attribute is there; the first of them counts."""
