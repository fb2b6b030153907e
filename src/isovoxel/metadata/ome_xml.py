"""Shape, voxel size and channels of each image of an OME-TIFF, from its OME-XML.

Only the attributes of every image's Pixels and Channels are read. What could harm a program that reads the rest is
refused: a document type definition, before anything in it is expanded, for entities can fill the memory or read other
files; files outside the folder; and more planes than there can be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from xml.parsers import expat

from isovoxel.errors import InputError
from isovoxel.geometry.grid import Index3
from isovoxel.metadata.series import Channel, stays_inside, time_step
from isovoxel.metadata.units import Calibration, Length, calibrate

_WHAT = "the OME-XML"
_SOURCE = "OME-XML PhysicalSizeZ, PhysicalSizeY and PhysicalSizeX"

SCHEMA_UNIT = "µm"
"""The unit of a physical size that names none, by the OME schema."""

MOST_PLANES = 10_000_000
"""More planes than these no file has; tifffile makes a list of as many as the document tells of."""


def read_pixels(xml: str, name: str) -> list[dict[str, str]]:
    """Return the attributes of every image's Pixels element, in the document's order.

    Parameters
    ----------
    xml
        The OME-XML document.
    name
        What the user called the file, for messages.

    Raises
    ------
    InputError
        If it is not well-formed XML, has a document type definition, names files outside its folder, or tells of more
        planes than `MOST_PLANES`.
    """
    found: list[dict[str, str]] = []

    def element(tag: str, attributes: dict[str, str]) -> None:
        match tag.rpartition(":")[2]:
            case "Pixels":
                found.append(attributes)
                planes = _product(attributes.get(f"Size{axis}", "1") for axis in "ZCT")
            case "TiffData":
                planes = max(_product([attributes.get(key, "1")]) for key in ("PlaneCount", "NumPlanes", "IFD"))
            case "UUID":
                planes = 1
                file = attributes.get("FileName", "")
                if file and not stays_inside(file):
                    raise InputError(
                        f"the OME-XML of {name} names the file {file[:100]!r}, which is not in the folder of {name}; "
                        f"move it there, and write its name without a folder"
                    )
            case _:
                return
        if planes > MOST_PLANES:
            raise InputError(f"the OME-XML of {name} tells of {planes:.6g} planes, more than any file has")

    _parse(xml, name, element)
    return found


def read_companion(xml: str, name: str) -> str | None:
    """Return which file has the OME-XML of which this document is only a reference; None where it is no reference.

    Parameters
    ----------
    xml, name
        As in `read_pixels`.
    """
    found: list[str] = []

    def element(tag: str, attributes: dict[str, str]) -> None:
        if tag.rpartition(":")[2] == "BinaryOnly":
            found.append(attributes.get("MetadataFile", ""))

    _parse(xml, name, element)
    return found[0] if found else None


def read_files(xml: str, name: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the UUID of the file itself, and of each file that its planes lie in the name and the UUID.

    Each of these is empty where the document does not tell.

    Parameters
    ----------
    xml, name
        As in `read_pixels`.
    """
    own: list[str] = []
    found: list[tuple[str, list[str]]] = []
    inside = False

    def element(tag: str, attributes: dict[str, str]) -> None:
        nonlocal inside
        kind = tag.rpartition(":")[2]
        own.append(attributes.get("UUID", "") if kind == "OME" else "")
        if inside := kind == "UUID":
            found.append((attributes.get("FileName", ""), []))

    def text(part: str) -> None:
        if inside:
            found[-1][1].append(part)

    _parse(xml, name, element, text)
    return own[0], list(dict.fromkeys((file, "".join(uuid).strip()) for file, uuid in found))


def read_ome_xml_channels(xml: str, name: str) -> list[tuple[Channel, ...]]:
    """Return what the document says of the channels of every image, in its order; `read_pixels` has taken it.

    Parameters
    ----------
    xml, name
        As in `read_pixels`.
    """
    found: list[list[Channel]] = []

    def element(tag: str, attributes: dict[str, str]) -> None:
        match tag.rpartition(":")[2]:
            case "Pixels":
                found.append([])
            case "Channel" if found:
                found[-1].append(Channel(attributes.get("Name") or None, _color(attributes.get("Color"))))

    _parse(xml, name, element)
    return [tuple(channels) for channels in found]


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


def _parse(
    xml: str, name: str, element: Callable[[str, dict[str, str]], None], text: Callable[[str], None] | None = None
) -> None:
    parse_xml(xml, "OME-XML", name, element, text)


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
        with contextlib.suppress(ValueError):
            product *= max(1.0, float(number))
    return product


def read_ome_xml(pixels: Sequence[Mapping[str, str]], index: int, count: int, shape: Index3) -> Calibration:
    """Return the voxel size that OME-XML states for one of the images in a file.

    Parameters
    ----------
    pixels
        The attributes of every Pixels element, as `read_pixels` returns them.
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
    z, y, x = (_length(pixels, f"PhysicalSize{axis}") for axis in "ZYX")
    return calibrate(_WHAT, _SOURCE, (z, y, x), flat=shape[0] == 1)


def _length(pixels: Mapping[str, str], key: str) -> Length:
    text = pixels.get(key)
    if text is None:
        return Length(None, None, f"no {key[:-1]}")
    try:
        return Length(float(text), pixels.get(f"{key}Unit", SCHEMA_UNIT))
    except ValueError:
        return Length(None, None, f"the {key[:-1]} {text!r}, which is no number,")
