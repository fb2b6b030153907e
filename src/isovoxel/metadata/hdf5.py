"""Voxel size in the attributes of an HDF5 dataset, of an Imaris image, and of an N5 dataset.

HDF5 itself knows none. Fiji, ilastik and Labkit write `element_size_um`, in micrometres; tools of electron microscopy
write `resolution` or `voxel_size`, often with an `offset`, in `units` if they say so. All are z, y, x, as voxels are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from isovoxel.geometry.grid import AXES, Float3, Index3, triple
from isovoxel.metadata.series import Channel, checked_color
from isovoxel.metadata.units import ORIGIN, Calibration, Length, calibrate

_IN_MICROMETERS = "element_size_um"
_IN_UNITS = ("voxel_size", "resolution")
_DATASET = "the dataset"
_NAMES = ", ".join((_IN_MICROMETERS, *_IN_UNITS))


def read_hdf5(own: Mapping[str, Any], group: Mapping[str, Any] | None = None, *, coarser: bool = False) -> Calibration:
    """Return the voxel size that a dataset's attributes state, and the position of voxel 0.

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
    >>> read_hdf5({"element_size_um": [2, 0.5, 0.5]}).voxel_size
    (2.0, 0.5, 0.5)
    """
    attributes = {**(group or {}), **own}
    if coarser and _IN_MICROMETERS not in own:
        return Calibration(missing=f"{_DATASET} is a downsampled level, and does not say its own in {_IN_MICROMETERS}")
    if _IN_MICROMETERS in attributes:
        return _calibrated(_IN_MICROMETERS, attributes[_IN_MICROMETERS], ["micrometer"] * 3)
    for key in _IN_UNITS:
        if key in attributes:
            return _calibrated(key, attributes[key], _units(attributes)).at(three(attributes.get("offset")))
    return Calibration(missing=f"{_DATASET} has no attribute that tells it ({_NAMES})")


def three(value: Any) -> Float3 | None:
    """Return three finite numbers from whatever an attribute holds, or None."""
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    if numbers.shape != (3,) or not np.isfinite(numbers).all():
        return None
    return triple(numbers.tolist())


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
    return calibrate(_DATASET, f"attribute {key}", triple(map(Length, sizes, units)))


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


def read_extent(attributes: Mapping[str, Any], shape: Index3) -> Calibration:
    """Return the voxel size of a level of an Imaris image, and the position of voxel 0.

    Parameters
    ----------
    attributes
        Those of ``/DataSetInfo/Image``.
    shape
        Number of the level's voxels, z, y, x, without padding.
    """
    unit = text_of(attributes.get("Unit")) or None
    ends = [(_number(attributes.get(f"ExtMin{i}")), _number(attributes.get(f"ExtMax{i}"))) for i in (2, 1, 0)]
    lengths = triple(
        Length(None if low is None or high is None else (high - low) / n, unit, "no extent")
        for (low, high), n in zip(ends, shape, strict=True)
    )
    found = calibrate(_IMARIS, "Imaris extents", lengths)
    sizes = found.voxel_size or (1.0, 1.0, 1.0)
    return found.at(triple((low or 0.0) + size / 2 for (low, _), size in zip(ends, sizes, strict=True)))


def image_shape(attributes: Mapping[str, Any], padded: Index3, image: Mapping[str, Any]) -> Index3 | None:
    """Return how much of a channel's array is image, z, y, x; None where that contradicts the array.

    Parameters
    ----------
    attributes
        Those of the channel's group.
    padded
        Shape of its array.
    image
        Attributes of ``/DataSetInfo/Image``, which say it of the finest level, too; empty for another one.
    """
    said = ([_number(attributes.get(f"ImageSize{axis}")), _number(image.get(axis))] for axis in "ZYX")
    sizes = [next((size for size in both if size is not None), None) for both in said]
    shape = triple(n if size is None else int(size) for size, n in zip(sizes, padded, strict=True))
    return shape if all(1 <= size <= n for size, n in zip(shape, padded, strict=True)) else None


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


# ---- N5 ----------------------------------------------------------------------------------------------------------

# Voxel size in the attributes of an N5 dataset, or of the group around it.
#
# N5 itself knows none; its writers each have their own way, and most count x first, as N5 does:
#
# - `pixelResolution` of the finest level with a unit, and `downsamplingFactors` of each (N5 Viewer, n5-spark);
# - `resolution`, `units` and `offset` (n5-ij, Paintera, BigDataViewer), of a group of levels or of a dataset;
# - `pixelWidth`, `pixelHeight`, `pixelDepth`, `pixelUnit` (n5-ij's ImageJ style);
# - `transform` with `scale`, `translate`, `units` and the names of its axes (COSEM), most often z first, of the level,
#   or of each in its group's `multiscales`.
#
# Factors are the level's `downsamplingFactors`, or in a list of its group, there or as `scales`.


FINEST = "s0"
"""Name of the finest level in a group of levels."""
_LEVEL = re.compile(r"s(\d+)")
_N5 = "the N5 dataset"
_N5_ROUNDING = 1e-6
"""By how much two sizes may differ, relatively, that are written as one."""
_WIDTHS = ("pixelDepth", "pixelHeight", "pixelWidth")


def level_of(name: str) -> int | None:
    """Return which level of a group has a name, 0 the finest; None where no level is called so."""
    level = _LEVEL.fullmatch(name)
    return int(level[1]) if level else None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What lies around a dataset and may tell of it."""

    groups: Sequence[Mapping[str, Any]] = ()
    """Attributes of the groups that it lies in, the nearest first."""
    level: int | None = None
    """Which level of a group it is, by its name ("s1"), 0 the finest; None where it has another name."""
    finest: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the finest level of the group, where it is another one."""

    @property
    def group(self) -> Mapping[str, Any]:
        """Attributes of the nearest group."""
        return self.groups[0] if self.groups else {}


ALONE = Surroundings()
"""Nothing lies around."""


class _Said(NamedTuple):
    """What attributes say of a voxel size, x first."""

    sizes: Float3 | None
    units: Sequence[Any]
    offset: Float3 | None = None


class _Found(NamedTuple):
    """A voxel size in some attributes."""

    calibration: Calibration
    key: str


def read_n5(attributes: Mapping[str, Any], around: Surroundings = ALONE) -> Calibration:
    """Return the voxel size that an N5 dataset's attributes state, and the position of voxel 0.

    What a group says, or the finest level, is the finest level's; a dataset is coarser by its downsampling factors,
    and as a level is made of means, its first voxel's centre lies further in. What a level says itself is its own
    with `transform`; else what is said of the finest level tells whether its factors are in it already.

    Parameters
    ----------
    attributes
        Those of the dataset.
    around
        What lies around it.

    Examples
    --------
    >>> read_n5({"resolution": [4, 4, 40], "units": ["nm", "nm", "nm"]}).voxel_size
    (40.0, 4.0, 4.0)
    >>> s1 = Surroundings([{"resolution": [4, 4, 40], "units": ["nm", "nm", "nm"]}], level=1)
    >>> read_n5({"downsamplingFactors": [2, 2, 1]}, s1).voxel_size
    (40.0, 8.0, 8.0)
    """
    own = _found(attributes, around.group)
    if own is None or own.key != "transform":
        own = _found(_entry(around), {}) or own
    finest = _found(around.finest, around.group) or _found(around.group, {})
    found = own or finest
    if found is None:
        return _missing(f"has no attribute that tells it ({', '.join(_READERS)})")
    factors = (1.0, 1.0, 1.0) if found is own and own.key == "transform" else _factors(attributes, around)
    if found.calibration.voxel_size is None or factors == (1.0, 1.0, 1.0):
        return found.calibration
    if factors is None:
        return _missing("does not say how much coarser it is than the finest level")
    if own is None or _is_finest(own, finest):
        return _coarser(found, factors)
    if finest is not None and _equal(_coarser(finest, factors), own.calibration):
        return own.calibration
    return _missing(f"is downsampled, and does not say whether its {own.key} is its own or that of the finest level")


def _is_finest(own: _Found, finest: _Found | None) -> bool:
    """Return whether what a level says of a size is known to be that of the finest level."""
    if finest is None or finest.key != own.key:
        return own.key == "pixelResolution"  # as it is specified
    return _equal(finest.calibration, own.calibration)


def _missing(why: str) -> Calibration:
    return Calibration(missing=f"{_N5} {why}")


def _found(attributes: Mapping[str, Any], group: Mapping[str, Any]) -> _Found | None:
    """Read the first of the attributes that tell of a size; its group may have the unit."""
    for key, read in _READERS.items():
        if key in attributes:
            units = {name: group[name] for name in ("units", "unit") if name in group}
            said = read({**units, **attributes})
            if said.sizes is None:
                return _Found(_missing(f"has no three numbers and axes in its attribute {_NAMED.get(key, key)}"), key)
            units_zyx = (unit if isinstance(unit, str) and unit else None for unit in reversed(said.units))
            found = calibrate(_N5, f"N5 attribute {key}", triple(map(Length, said.sizes[::-1], units_zyx)))
            return _Found(found.at(said.offset and said.offset[::-1]), key)
    return None


def _entry(around: Surroundings) -> Mapping[str, Any]:
    """Return what COSEM's group says of the level."""
    images = around.group.get("multiscales")
    image = images[0] if isinstance(images, list) and images else None
    listed = image.get("datasets") if isinstance(image, Mapping) else None
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, Mapping) and around.level is not None and entry.get("path") == f"s{around.level}":
            return {"transform": entry["transform"]} if "transform" in entry else {}
    return {}


def _factors(attributes: Mapping[str, Any], around: Surroundings) -> Float3 | None:
    """Return how much coarser a dataset is than the finest level, x first; None where it does not say."""
    if "downsamplingFactors" in attributes:
        return three(attributes["downsamplingFactors"])
    if not around.level:
        return (1.0, 1.0, 1.0)
    for group in around.groups:
        for key in ("downsamplingFactors", "scales"):
            listed = group.get(key)
            if isinstance(listed, list) and len(listed) > around.level:
                return three(listed[around.level])
    # Levels without factors each say their own size, where it is not that of the finest.
    own, finest = _found(attributes, around.group), _found(around.finest, around.group)
    apart = own is not None and finest is not None and own.calibration != finest.calibration
    return (1.0, 1.0, 1.0) if apart else None


def _coarser(found: _Found, factors: Float3) -> Calibration:
    """Return size and origin of a level that is coarser by these factors, x first, than what was found."""
    finest = found.calibration
    if finest.voxel_size is None:
        return finest
    axes = list(zip(finest.origin, finest.voxel_size, factors[::-1], strict=True))
    origin = triple(start + size * (factor - 1) / 2 for start, size, factor in axes)
    return replace(finest, voxel_size=triple(size * factor for _, size, factor in axes), origin=origin)


def _equal(one: Calibration, other: Calibration) -> bool:
    if one.voxel_size is None or other.voxel_size is None or one.unit != other.unit:
        return False
    return all(math.isclose(a, b, rel_tol=_N5_ROUNDING) for a, b in zip(one.voxel_size, other.voxel_size, strict=True))


def _pixel_resolution(attributes: Mapping[str, Any]) -> _Said:
    value = attributes["pixelResolution"]
    if isinstance(value, Mapping):
        return _Said(three(value.get("dimensions")), [value.get("unit")] * 3)
    return _Said(three(value), [attributes.get("unit")] * 3)


def _resolution(attributes: Mapping[str, Any]) -> _Said:
    units = _each(attributes.get("units", attributes.get("unit")))
    return _Said(three(attributes["resolution"]), units, three(attributes.get("offset")))


def _pixel_width(attributes: Mapping[str, Any]) -> _Said:
    return _Said(three([attributes.get(width) for width in _WIDTHS[::-1]]), [attributes.get("pixelUnit")] * 3)


def _transform(attributes: Mapping[str, Any]) -> _Said:
    """Read COSEM's transform, which names its axes."""
    value = attributes["transform"] if isinstance(attributes["transform"], Mapping) else {}
    axes = value.get("axes")
    sizes, offset = three(value.get("scale")), three(value.get("translate", ORIGIN))
    if not isinstance(axes, Sequence) or sorted(map(str, axes)) != sorted(AXES) or sizes is None or offset is None:
        return _Said(None, ())
    units = _each(value.get("units"))
    xyz = [list(axes).index(axis) for axis in reversed(AXES)]
    return _Said(triple(sizes[i] for i in xyz), [units[i] for i in xyz], triple(offset[i] for i in xyz))


def _each(units: Any) -> list[Any]:
    """Return the unit of every axis, of which there may be one for all."""
    return list(units) if isinstance(units, list | tuple) and len(units) == 3 else [units] * 3


_NAMED = {"pixelWidth": ", ".join(_WIDTHS)}
"""What messages call an attribute where several belong together."""

_READERS: Mapping[str, Callable[[Mapping[str, Any]], _Said]] = {
    "transform": _transform,
    "pixelResolution": _pixel_resolution,
    "resolution": _resolution,
    "pixelWidth": _pixel_width,
}
"""What reads the voxel size where this attribute is there; the first of them counts."""
