r"""Voxel size, time step and channels of a TIFF, by what ImageJ, OME-XML, other programs and its tags say.

ImageJ keeps the voxel size in two places. The image description, lines of ``key=value``, has `spacing` for z and the
`unit` of all axes (`yunit` and `zunit` where they differ); the TIFF's resolution tags have pixels per
unit for x and y. A character outside ASCII is written as ``\uXXXX``. With a unit in the description, the
resolution tags' own unit has no meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from math import isclose, isfinite
from typing import Any, NamedTuple
from xml.parsers import expat

import numpy as np

from isovoxel.errors import InputError
from isovoxel.geometry.grid import Index3, triple
from isovoxel.metadata.series import Channel, stays_inside, time_step
from isovoxel.metadata.units import Calibration, Length, calibrate, canonical_unit, unescaped

Rational = tuple[int, int]
"""Numerator and denominator, as TIFF stores a resolution."""

NO_UNIT = 1
"""The TIFF's ResolutionUnit where pixels are counted per nothing in particular."""


class Resolution(NamedTuple):
    """What a TIFF's tags say of its resolution."""

    x: Rational | None
    """XResolution, pixels per unit, or None where the tag is absent."""
    y: Rational | None
    """YResolution, likewise."""
    unit: int | None
    """ResolutionUnit, or None where the tag is absent."""

    @property
    def lengths(self) -> tuple[float | None, float | None]:
        """Length of a pixel along y and x, each None where that is not usable."""
        y, x = (None if not pixels or not all(pixels) else pixels[1] / pixels[0] for pixels in (self.y, self.x))
        return y, x


_IMAGEJ = "the ImageJ description"
_IMAGEJ_SOURCE = "ImageJ spacing and resolution tags"
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


def read_imagej(description: str, tags: Resolution, *, flat: bool = False) -> Calibration:
    """Return the voxel size that an ImageJ TIFF states.

    Parameters
    ----------
    description
        The image description, which begins with ``ImageJ=``.
    tags
        Its resolution.
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
        return Calibration(missing=f"{_IMAGEJ} counts in pixels, so the stack is not calibrated")
    y, x = tags.lengths
    # Where nothing was calibrated, programs write 1 pixel per unit, or 72 per inch.
    if unit is None and (tags.unit != NO_UNIT or (y == 1 and x == 1)):
        return Calibration(missing=f"{_IMAGEJ} has no unit, so its resolution tags mean nothing")
    return calibrate(
        _IMAGEJ,
        _IMAGEJ_SOURCE,
        (
            _imagej_spacing(values, values.get("zunit") or unit),
            Length(y, values.get("yunit") or unit, "no usable resolution tag"),
            Length(x, unit, "no usable resolution tag"),
        ),
        flat=flat,
    )


def read_imagej_step(description: str) -> tuple[float, str | None]:
    """Return the time between two time points and its unit; 1 without a unit where the description does not say."""
    values = parse_description(description)
    try:
        return time_step(float(values["finterval"]), values.get("tunit", "sec"))
    except (KeyError, ValueError):
        return 1.0, None


def read_imagej_channels(tables: object) -> tuple[Channel, ...]:
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


def _imagej_spacing(values: Mapping[str, str], unit: str | None) -> Length:
    text = values.get("spacing")
    if text is None:
        return Length(None, unit, _NO_SPACING)
    try:
        return Length(float(text), unit)
    except ValueError:
        return Length(None, unit, f"the spacing {text!r}, which is no number,")


# ---- tags of others ------------------------------------------------------------------------------------------------

# Voxel size of a TIFF that is neither ImageJ's nor OME's.
#
# Its resolution tags have pixels per inch or centimetre for x and y, and nothing for z. Only the JSON
# description that tifffile writes may add a `spacing` for z, and a `unit` for it and for resolution tags
# that count per no unit.


_INCH = 2
_UNITS = {NO_UNIT: None, _INCH: "inch", 3: "cm"}


def read_tiff_tags(description: Mapping[str, Any], tags: Resolution, *, flat: bool = False) -> Calibration:
    """Return the voxel size that resolution tags and tifffile's JSON description state together.

    Parameters
    ----------
    description
        The JSON object that tifffile wrote as image description; empty where there is none.
    tags
        Its resolution; without a ResolutionUnit the unit is inch, as TIFF specifies.
    flat
        As in `calibrate`.
    """
    y, x = tags.lengths
    unit = description.get("unit")
    unit = unit if isinstance(unit, str) and unit else None
    tag_unit = _UNITS.get(_INCH if tags.unit is None else tags.unit)
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
    scaled = (None if size is None or not isfinite(size) else float(Decimal(repr(size)).scaleb(6)) for size in sizes)
    lengths = triple(Length(size, "micrometer") for size in scaled)
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


def read_scanimage(values: Mapping[str, Any], shape: tuple[int, int, int], *, flat: bool = False) -> Calibration:
    """Return the voxel size that ScanImage states: its field of view and the step between slices, in micrometres.

    Parameters
    ----------
    values
        What its header says, by names such as "SI.hStackManager.actualStackZStepSize".
    shape
        Number of voxels, z, y, x.
    flat
        As in `calibrate`.
    """
    step = _stated(values, "actualStackZStepSize", "stackZStepSize")
    sizes: list[float | None] = [None, None]
    with suppress(TypeError, ValueError):
        corners = np.asarray(values.get("SI.hRoiManager.imagingFovUm"), float).reshape(-1, 2)
        sizes = [float(extent) / n for extent, n in zip(np.ptp(corners, axis=0), shape[:0:-1], strict=True)]
    z = Length(None if step is None else abs(step), "micrometer", "no step between slices")
    x, y = (Length(size, "micrometer", "no field of view (imagingFovUm)") for size in sizes)
    return calibrate("ScanImage's header", "ScanImage's field of view and step between slices", (z, y, x), flat=flat)


def read_micromanager(
    summary: Mapping[str, Any], page: Mapping[str, Any], positions: Sequence[Any], *, flat: bool = False
) -> Calibration:
    """Return the voxel size that Micro-Manager states in an NDTiff or a stack of its own, in micrometres.

    Parameters
    ----------
    summary
        What it says of the acquisition.
    page
        What it says of the first page.
    positions
        What it says of where the first plane lies along z, the second and the last, and how many planes there are.
    flat
        As in `calibrate`.
    """
    sizes = [_number(said.get(key)) for said in (page, summary) for key in ("PixelSizeUm", "PixelSize_um")]
    pixel = next((size for size in sizes if size), None)
    y = x = Length(pixel, "micrometer", "no pixel size (PixelSizeUm)")
    return calibrate(
        "Micro-Manager's metadata",
        "Micro-Manager's PixelSizeUm and z-step_um",
        (_micromanager_step(summary, positions), y, x),
        flat=flat,
    )


def _micromanager_step(summary: Mapping[str, Any], positions: Sequence[Any]) -> Length:
    """Return the distance between planes: by what was set, or else by where they lie."""
    if step := _number(summary.get("z-step_um")):
        return Length(abs(step), "micrometer")
    first, second, last, count = (_number(position) for position in positions or [None] * 4)
    if first is None or second is None or last is None or count is None:
        return Length(None, None, "no distance between planes (z-step_um)")
    step = abs(second - first)
    if not isclose(step * (count - 1), abs(last - first), rel_tol=0.01):
        return Length(None, None, "planes at uneven distances (ZPositionUm)")
    return Length(step, "micrometer")


def scanimage_doubt(values: Mapping[str, Any], planes: int, axes: str) -> str:
    """Return why pages cannot be the slices of one volume by what ScanImage says, as a clause, or nothing.

    Parameters
    ----------
    values
        As in `read_scanimage`.
    planes
        Number of pages that are taken as slices.
    axes
        Which axes are told apart, such as "zcyx".
    """
    saved = values.get("SI.hChannels.channelSave")
    channels = len(saved) if isinstance(saved, list | tuple) else 1
    slices = _stated(values, "actualNumSlices", "numSlices")
    if channels > 1 and "c" not in axes.lower():
        return f"it has {channels} channels, whose pages alternate"
    if slices is not None and 1 <= slices < planes:
        return f"it has {slices:g} slices, but {planes} pages of each channel: volumes or frames follow one another"
    return ""


def _stated(values: Mapping[str, Any], *names: str) -> float | None:
    """Return the first number among settings of ScanImage's stack manager."""
    found = (_number(values.get(f"SI.hStackManager.{name}")) for name in names)
    return next((value for value in found if value is not None), None)


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


# ---- OME-XML -----------------------------------------------------------------------------------------------------

# Shape, voxel size and channels of each image of an OME-TIFF, from its OME-XML.
#
# Only the attributes of every image's Pixels and Channels are read. What could harm a program that reads the rest is
# refused: a document type definition, before anything in it is expanded, for entities can fill the memory or read other
# files; files outside the folder; and more planes than there can be.


_WHAT = "the OME-XML"
_SOURCE = "OME-XML PhysicalSizeZ, PhysicalSizeY and PhysicalSizeX"

SCHEMA_UNIT = "µm"
"""The unit of a physical size that names none, by the OME schema."""

MOST_PLANES = 10_000_000
"""More planes than these no file has; tifffile makes a list of as many as the document tells of."""


@dataclass
class OmeXml:
    """What an OME-XML document says, in its order."""

    name: str
    """What the user called the file, for messages."""
    pixels: list[dict[str, str]] = field(default_factory=list)
    """The attributes of every image's Pixels."""
    channels: list[list[Channel]] = field(default_factory=list)
    """The channels of every image."""
    planes: float = 0.0
    """The most planes that it tells of anywhere."""
    first: int = 0
    """The page of a file at which planes begin, where that is below 0."""
    companion: str | None = None
    """Which file has the OME-XML of which this is only a reference; None where it is no reference."""
    uuid: str = ""
    """That of the file itself; empty where it does not tell."""
    parts: list[tuple[str, list[str]]] = field(default_factory=list)
    """Each file that planes lie in: its name, and the parts of its UUID."""

    @property
    def files(self) -> list[tuple[str, str]]:
        """Name and UUID of each file that planes lie in; each of them is empty where the document does not tell."""
        return list(dict.fromkeys((file, "".join(uuid).strip()) for file, uuid in self.parts))

    def checked(self) -> OmeXml:
        """Return itself, if it names no files outside its folder, no page below 0, and at most `MOST_PLANES` planes.

        Raises
        ------
        InputError
            If it does.
        """
        if outside := next((file for file, _ in self.parts if file and not stays_inside(file)), None):
            raise InputError(
                f"the OME-XML of {self.name} names the file {outside[:100]!r}, which is not in the folder of "
                f"{self.name}; move it there, and write its name without a folder"
            )
        if self.planes > MOST_PLANES:
            raise InputError(f"the OME-XML of {self.name} tells of {self.planes:.6g} planes, more than any file has")
        if self.first < 0:  # which tifffile counts from the last one
            raise InputError(
                f"the OME-XML of {self.name} tells of planes that begin at page {self.first} of a file, before the "
                "first, which is 0; write it again"
            )
        return self


def read_ome(xml: str, name: str) -> OmeXml:
    """Return what an OME-XML document says.

    Parameters
    ----------
    xml
        The document.
    name
        What the user called the file, for messages.

    Raises
    ------
    InputError
        If it is not well-formed XML, or has a document type definition.
    """
    found = OmeXml(name)
    inside, first = False, True

    def element(tag: str, attributes: dict[str, str]) -> None:
        nonlocal inside, first
        kind, root = tag.rpartition(":")[2], first
        inside, first = kind == "UUID", False
        match kind:
            case "OME" if root:  # an annotation may hold the OME-XML of another file
                found.uuid = attributes.get("UUID", "")
            case "BinaryOnly" if found.companion is None:
                found.companion = attributes.get("MetadataFile", "")
            case "Pixels":
                found.pixels.append(attributes)
                found.channels.append([])
                found.planes = max(found.planes, _product(attributes.get(f"Size{axis}", "1") for axis in "ZCT"))
            case "Channel" if found.channels:
                found.channels[-1].append(Channel(attributes.get("Name") or None, _color(attributes.get("Color"))))
            case "TiffData":
                counts = (_product([attributes.get(key, "1")]) for key in ("PlaneCount", "NumPlanes", "IFD"))
                found.planes = max(found.planes, *counts)
                with suppress(ValueError):
                    found.first = min(found.first, int(attributes.get("IFD", "0")))
            case "UUID":
                found.parts.append((attributes.get("FileName", ""), []))

    def text(part: str) -> None:
        if inside:
            found.parts[-1][1].append(part)

    parse_xml(xml, "OME-XML", name, element, text)
    return found


def _color(text: str | None) -> str | None:
    """Return a colour from OME's signed integer of 32 bits, whose bytes are red, green, blue and alpha."""
    try:
        return None if text is None else f"{int(text) & 0xFFFFFFFF:08X}"[:6]
    except ValueError:
        return None


def read_ome_xml_step(pixels: Mapping[str, str]) -> tuple[float, str | None]:
    """Return the time between two time points and its unit; 1 without a unit where the document does not say."""
    try:
        step = float(pixels.get("TimeIncrement", ""))
    except ValueError:
        return 1.0, None
    return time_step(step, pixels.get("TimeIncrementUnit", "s"))


def parse_xml(
    xml: str,
    kind: str,
    name: str,
    element: Callable[[str, dict[str, str]], object],
    text: Callable[[str], object] | None = None,
    end: Callable[[str], object] | None = None,
) -> None:
    """Call functions for what an XML document holds, in its order.

    Parameters
    ----------
    xml
        The document.
    kind, name
        What it is, and what the user called the file, for messages.
    element
        Called with the tag and the attributes of every element.
    text
        Called with what stands in elements, part by part.
    end
        Called with the tag of every element that ends.

    Raises
    ------
    InputError
        If it is not well-formed, or has a document type definition.
    """

    def doctype(*_: object) -> None:
        raise InputError(f"the {kind} of {name} has a document type definition, which {kind} must not have")

    parser = expat.ParserCreate("utf-8")  # whatever its own declaration says: it is text by now
    parser.StartElementHandler = element
    parser.CharacterDataHandler = text
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(xml.rstrip("\0").encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        raise InputError(f"the {kind} of {name} is not well-formed: {error}") from error


def _product(numbers: Iterable[str]) -> float:
    """Multiply the numbers; anything else counts as 1, and is left to the caller."""
    product = 1.0
    for number in numbers:
        with suppress(ValueError):
            product *= max(1.0, float(number))
    return product


def read_ome_xml(pixels: Sequence[Mapping[str, str]], index: int, count: int, shape: Index3) -> Calibration:
    """Return the voxel size that OME-XML states for one of the images in a file.

    Parameters
    ----------
    pixels
        The attributes of every Pixels element, as `OmeXml` has them.
    index, count
        Which image of how many the file really holds is asked about; XML may describe more than that.
    shape
        Number of voxels of that image, z, y, x.
    """
    if len(pixels) == count:
        return _calibration(pixels[index], shape)
    sizes = [str(n) for n in shape]
    alike = [p for p in pixels if [p.get(f"Size{axis}") for axis in "ZYX"] == sizes]
    stated = {_calibration(p, shape) for p in alike}
    if len(stated) == 1:
        return stated.pop()
    return Calibration(
        missing=f"{_WHAT} describes {len(pixels)} images where the file holds {count}, "
        f"and {len(alike)} of them could be this one"
    )


def _calibration(pixels: Mapping[str, str], shape: Index3) -> Calibration:
    lengths = triple(_length(pixels, f"PhysicalSize{axis}") for axis in "ZYX")
    return calibrate(_WHAT, _SOURCE, lengths, flat=shape[0] == 1)


def _length(pixels: Mapping[str, str], key: str) -> Length:
    text = pixels.get(key)
    if text is None:
        return Length(None, None, f"no {key[:-1]}")
    try:
        return Length(float(text), pixels.get(f"{key}Unit", SCHEMA_UNIT))
    except ValueError:
        return Length(None, None, f"the {key[:-1]} {text!r}, which is no number,")
