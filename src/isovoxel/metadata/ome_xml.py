"""What does the OME-XML of an OME-TIFF say of the shape and the voxel size of each of its images?

Only the attributes of every image's Pixels are read. A document with a DTD is refused before anything in it
is expanded: OME-XML has none, and entities are a way to fill the memory or to read other files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.parsers import expat

from isovoxel.errors import InputError
from isovoxel.geometry.box import Index3
from isovoxel.metadata.calibration import Calibration, Length, calibrate

_WHAT = "the OME-XML"
_SOURCE = "OME-XML PhysicalSizeZ, PhysicalSizeY and PhysicalSizeX"

SCHEMA_UNIT = "µm"
"""The unit of a physical size that names none, by the OME schema."""


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
        If it is not well-formed XML, or has a document type definition.
    """
    found: list[dict[str, str]] = []

    def element(tag: str, attributes: dict[str, str]) -> None:
        if tag.rpartition(":")[2] == "Pixels":
            found.append(attributes)

    def doctype(*_: object) -> None:
        raise InputError(f"the OME-XML of {name} has a document type definition, which OME-XML must not have")

    parser = expat.ParserCreate("utf-8")  # whatever its own declaration says: it is text by now
    parser.StartElementHandler = element
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(xml.rstrip("\0").encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        raise InputError(f"the OME-XML of {name} is not well-formed: {error}") from error
    return found


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
        return _calibration(pixels[index])
    sizes = [str(n) for n in shape]
    alike = [p for p in pixels if [p.get(f"Size{axis}") for axis in "ZYX"] == sizes]
    stated = {_calibration(p) for p in alike}
    if len(stated) == 1:
        return stated.pop()
    return Calibration(
        missing=f"{_WHAT} describes {len(pixels)} images where the file holds {count}, "
        f"and {len(alike)} of them could be this one"
    )


def _calibration(pixels: Mapping[str, str]) -> Calibration:
    z, y, x = (_length(pixels, f"PhysicalSize{axis}") for axis in "ZYX")
    return calibrate(_WHAT, _SOURCE, (z, y, x))


def _length(pixels: Mapping[str, str], key: str) -> Length:
    text = pixels.get(key)
    if text is None:
        return Length(None, None, f"no {key[:-1]}")
    try:
        return Length(float(text), pixels.get(f"{key}Unit", SCHEMA_UNIT))
    except ValueError:
        return Length(None, None, f"the {key[:-1]} {text!r}, which is no number,")
