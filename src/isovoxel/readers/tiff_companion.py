"""Find the file with the OME-XML of TIFFs that hold planes only: such a TIFF names it, or the user does.

Source: https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/specification.html#binaryonly
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tifffile

from isovoxel.errors import InputError
from isovoxel.metadata.ome_xml import read_companion, read_files, read_pixels
from isovoxel.metadata.series import stays_inside
from isovoxel.readers.files import TIFF_MAGIC
from isovoxel.readers.registry import Location
from isovoxel.readers.tiff_pages import Directories, read_directories
from isovoxel.readers.tiff_stacks import AS_ONE

ENDING = ".companion.ome"
MOST_BYTES = 1 << 28
"""A larger companion is refused, because its XML is held in memory."""


@dataclass(frozen=True)
class TiffInput:
    """A TIFF, and where its OME-XML stands."""

    path: Path
    """The TIFF, or the first of several."""
    directories: Directories
    """Those of this TIFF."""
    companion: Path | None = None
    """The file with the OME-XML; None where the TIFF has it, or there is none."""
    xml: str | None = None
    """What stands in the companion."""

    def open(self) -> tifffile.TiffFile:
        """Open the TIFF by tifffile."""
        return tifffile.TiffFile(self.path, omexml=self.xml)


def is_companion(at: Location) -> bool:
    """Return whether a file is OME-XML beside TIFFs."""
    return b"<OME" in at.first or (at.path.name.endswith(ENDING) and at.first.lstrip().startswith(b"<"))


def find_tiff(at: Location) -> TiffInput:
    """Return the TIFF of an input, which is one or the companion of some.

    Raises
    ------
    InputError
        If the TIFF is truncated, or of the two one is not there.
    """
    name = at.name
    if at.first[:4] not in TIFF_MAGIC:
        xml = _text(at.path, name)
        read_pixels(xml, name)  # which checks the files' names
        first = next((file for file, _ in read_files(xml, name)[1] if file), None)
        if first is None:
            raise InputError(f"{name} is OME-XML that names no TIFF with its planes")
        if not at.path.with_name(first).is_file():
            raise InputError(
                f"the OME-XML of {name} says that planes lie in the file {first!r}, which is not in its folder; put it "
                "there"
            )
        return _checked(TiffInput(path := at.path.with_name(first), _directories(path, name), at.path, xml), name)
    directories = _directories(at.path, name)
    with tifffile.TiffFile(at.path) as tif:
        said = tif.ome_metadata or ""
    named = read_companion(said, name) if "BinaryOnly" in said else None
    if named is None:
        return TiffInput(at.path, directories)
    companion = at.path.with_name(named) if stays_inside(named) else None
    if companion is None or not companion.is_file():
        raise InputError(
            f"{name} is one file of several, and what its pages are stands in another, {named[:100]!r}, which is not "
            f"in its folder; put it there, or {AS_ONE}"
        )
    return _checked(TiffInput(at.path, directories, companion, _text(companion, name)), name)


def _checked(found: TiffInput, name: str) -> TiffInput:
    """Check that tifffile takes the XML for that of the TIFF, and the XML does not lead to another companion."""
    refers = read_companion(found.xml or "", name) is not None  # first, because it says what is wrong with the XML
    with found.open() as tif:
        if refers or not tif.is_ome:
            raise InputError(f"{found.companion} is not the OME-XML of {found.path}; {AS_ONE}")
    return found


def _directories(path: Path, name: str) -> Directories:
    directories = read_directories(path)
    if not len(directories):
        raise InputError(f"{name} is truncated or no TIFF: the file does not hold all of its first directory")
    return directories


def _text(companion: Path, name: str) -> str:
    if companion.stat().st_size > MOST_BYTES:
        raise InputError(f"the OME-XML of {name} is larger than {MOST_BYTES >> 20} MiB")
    return companion.read_text("utf-8-sig", "replace").strip()
