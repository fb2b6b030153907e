"""Open a TIFF as a volume, written by ImageJ, as OME-TIFF, by tifffile, a microscope, or any other program.

1. Every directory is read: how its page is stored, and where its voxels lie.
2. Where the file tells what its pages are, tifffile understands it; of a plain file, alike pages make an image.
3. A page that belongs to no image, and is no smaller picture of one, is an error: a volume without it would be short.
4. Voxels are read without tifffile's file handle, each page as its own tags say; see `tiff_layout`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tifffile

from isovoxel.errors import InputError, IsovoxelError, OptionError
from isovoxel.geometry.grid import Index3, triple
from isovoxel.metadata.series import Channel, SeriesAxis
from isovoxel.metadata.tiff import (
    OmeXml,
    Rational,
    Resolution,
    parse_description,
    read_imagej,
    read_imagej_channels,
    read_imagej_step,
    read_lsm,
    read_micromanager,
    read_ome,
    read_ome_xml,
    read_ome_xml_step,
    read_scanimage,
    read_stk,
    read_tiff_tags,
    scanimage_doubt,
)
from isovoxel.metadata.units import Calibration
from isovoxel.readers.base import ReadBox, Volume, check_voxels
from isovoxel.readers.files import FileList, check_complete, file_identity, named_failures
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import EVERYTHING, GIVEN, Collection, ImageEntry, Picked, Selection, find_image, pick
from isovoxel.readers.tiff_layout import Stack, planes_of, reader_of
from isovoxel.readers.tiff_pages import Directories
from isovoxel.readers.tiff_reader import PlaneReader
from isovoxel.readers.tiff_stacks import (
    Image,
    check_chain,
    check_covered,
    check_odd,
    described_images,
    find_tiff,
    is_plain,
    plain_images,
)

# What tifffile logs of broken files is found again here and raised; without this it would land on stderr too.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_MICROMANAGER = ("ndtiff", "mmstack")
_KINDS = {"imagej": "ImageJ TIFF", "ome": "OME-TIFF", "ndtiff": "NDTiff"}
_AXES_SOURCES = {
    "imagej": "ImageJ description",
    "ome": "OME-XML",
    "shaped": "tifffile's description",
    **dict.fromkeys(_MICROMANAGER, "Micro-Manager's index"),
}
_UNIT_SOURCES = {"imagej": "ImageJ unit", "ome": "OME-XML"}
_UNNAMED = {"Q": "", "I": ""}


class _Found(NamedTuple):
    """One of a file's images, and what of it is a volume."""

    image: int
    picked: Picked
    shape: Index3


def open_tiff(at: Location, selection: Selection) -> Volume:
    """Open the one 3-D image of a TIFF or BigTIFF file; where it has none, the one plane.

    Raises
    ------
    InputError
        If the file is truncated, is no TIFF that can be decoded, or holds no image that is a volume, or several; or if
        a page cannot be read as a part of it, or would be left out.
    OptionError
        If it has no such channel or time point.
    """
    name = at.name
    with named_failures(name, "TIFF"):
        source = find_tiff(at)
        own = source.directories
        with source.open() as tif:
            # Before tifffile parses it: a document type definition is refused here.
            said = read_ome(tif.ome_metadata or "", name).checked() if tif.is_ome else OmeXml(name)
            images, found = _chosen(tif, own, name, selection)
            index, picked, shape = found
            stack = images[index].stack
            if stack.page.dtype is not None:
                check_voxels(name, shape, stack.page.dtype)
            reader, read = reader_of(stack, name, picked)
            if tif.is_scanimage and selection.axes is None:
                _check_scanimage(tif, stack, shape[0], name)
            calibration = _calibration(tif, stack, said.pixels, found, len(images))
            axes, channels = _series_of(tif, stack, picked, said, index if len(said.pixels) == len(images) else None)
            kind = _KINDS.get(stack.kind, "TIFF") + (" (BigTIFF)" if tif.is_bigtiff else "")
    opened = at.path.resolve()
    around = () if source.companion is None else (source.companion, source.path)
    every = dict.fromkeys(Path(file).resolve() for file in (*around, *reader.files))
    others = tuple(str(file) for file in every if file != opened)
    now = partial(_identity_of, at.path, others)
    named = _AXES_SOURCES.get(stack.kind, "unnamed pages, taken as z") if selection.axes is None else GIVEN
    sources = {"shape": "TIFF pages", "axes": picked.told(named)}
    chosen: dict[str, Any] = {**picked.chosen, **selection.identity("axes")}
    if selection.image is not None and len(images) > 1:
        sources["shape"] += f" (image {index} of {len(images)})"
        chosen["image"] = str(index)
    elif sum(not image.stack.page.is_reduced for image in images) > 1:
        sources["shape"] += f" (image {index} of {len(images)}, the only {3 if picked.zyx[0] is not None else 2}-D one)"
    volume = replace(volume_of_planes(name, kind, shape, reader, read), sources=sources, series=axes, channels=channels)
    volume = volume.measured(calibration, unit=_UNIT_SOURCES.get(stack.kind))
    return volume.stored_in(FileList((str(opened), *others)), now, **chosen)


def open_ndtiff(at: Location, selection: Selection) -> Volume:
    """Open the volume in a folder of NDTiffs by the first of them, which leads to the others; see `open_tiff`."""
    first = min(at.path.glob("*NDTiffStack.tif"), default=None)
    if first is None:
        raise InputError(f"{at.name} has the index of an NDTiff, but no file NDTiffStack.tif; put it there")
    return open_tiff(Location(first, at.name, "file"), selection)


def images_of_tiff(at: Location) -> Collection:
    """Return the images of a file that could be meant, by their numbers: its volumes, or else its planes.

    Raises
    ------
    InputError
        As `open_tiff`.
    """
    with named_failures(at.name, "TIFF"):
        source = find_tiff(at)
        with source.open() as tif:
            if tif.is_ome:
                read_ome(tif.ome_metadata or "", at.name).checked()  # before tifffile parses it, as above
            images = _images(tif, source.directories, at.name)
    found, _ = _possible(images, at.name, EVERYTHING)
    planes = {one.image for one in found if one.picked.zyx[0] is None}
    left_out = planes if len(planes) < len(found) else ()
    # What cannot be a volume is listed too: opening it says why.
    return Collection(tuple(ImageEntry(str(number)) for number in _full(images) if number not in left_out))


def _identity_of(path: Path, others: Sequence[str]) -> dict[str, Any]:
    """Return what tells a file, and the others that pages of it lie in, from later ones."""
    return {**file_identity(path), "files": [file_identity(Path(file)) for file in others]}


def _chosen(tif: tifffile.TiffFile, own: Directories, name: str, selection: Selection) -> tuple[list[Image], _Found]:
    """Return the images of a file, and which one is the volume."""
    images: list[Image] = []
    try:
        images = _images(tif, own, name)
        return images, _only_volume(images, own, name, selection)
    except InputError:
        # What does not fit may do so for a page that is unlike the others, which says more.
        if len(images) < 2 and own.broken_at is None and len(own.tags) > 1:
            pages = plain_images(tif, own, name)
            check_odd(max(pages, key=lambda image: len(image.stack.index)), pages, name)
        raise


def _images(tif: tifffile.TiffFile, own: Directories, name: str) -> list[Image]:
    """Return the images of a file, of which no page is left out."""
    if is_plain(tif):
        check_chain(own, name)
        return plain_images(tif, own, name)
    images = described_images(tif, own, name)
    if images:
        check_covered(images, own, name)
        return images
    _check_plain(tif, own, name)
    return plain_images(tif, own, name)


def _calibration(
    tif: tifffile.TiffFile, stack: Stack, pixels: Sequence[Mapping[str, str]], found: _Found, count: int
) -> Calibration:
    flat = found.shape[0] == 1
    if stack.kind == "ome":
        return read_ome_xml(pixels, found.image, count, found.shape)
    if stack.kind == "lsm":
        return read_lsm(tif.lsm_metadata or {}, flat=flat)
    if stack.kind == "stk":
        return read_stk(tif.stk_metadata or {}, flat=flat)
    if stack.kind in _MICROMANAGER:
        return _micromanager(tif, stack, found.picked, flat=flat)
    if tif.is_scanimage:
        return read_scanimage(_scanimage_values(tif), found.shape, flat=flat)
    return calibration_of(stack.page, stack.kind, flat=flat)


def _micromanager(tif: tifffile.TiffFile, stack: Stack, picked: Picked, *, flat: bool) -> Calibration:
    """Return the voxel size that Micro-Manager states, and where its pages lie if it does not say how far apart."""
    summary = _mapping((tif.micromanager_metadata or {}).get("Summary"))
    pages = planes_of(stack.shape, picked.at((0,) * len(picked.series))).tolist()
    first, *others = (_said_of_page(stack, page) for page in dict.fromkeys((pages[0], *pages[1:2], pages[-1])))
    places = [said.get("ZPositionUm") for said in (first, *others)]
    positions = (places[0], places[1], places[-1], len(pages)) if len(pages) > 1 else ()
    return read_micromanager(summary, first, positions, flat=flat)


def _said_of_page(stack: Stack, page: int) -> Mapping[str, Any]:
    """Return what Micro-Manager says of a page, which may lie in a file that is not open; nothing where it does not."""
    if page >= len(stack.index) or stack.index[page] < 0:
        return {}
    with tifffile.TiffFile(stack.files[stack.file_of_page[page]].path) as tif:
        return _mapping(tif.pages.get(int(stack.index[page])).aspage().tags.valueof("MicroManagerMetadata"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _scanimage_values(tif: tifffile.TiffFile) -> Mapping[str, Any]:
    """Return what ScanImage says, which stands at the beginning of a BigTIFF, and in the first page's tag Software."""
    values = None
    with suppress(ValueError, TypeError, IndexError, KeyError, RecursionError):  # of settings that are none of MATLAB's
        values = (tif.scanimage_metadata or {}).get("FrameData")
        if not isinstance(values, Mapping):
            values = tifffile.matlabstr2py(str(tif.pages.first.software or ""))
    return values if isinstance(values, Mapping) else {}


def _check_scanimage(tif: tifffile.TiffFile, stack: Stack, planes: int, name: str) -> None:
    """Check that pages are the slices of one volume, as ScanImage says."""
    doubt = scanimage_doubt(_scanimage_values(tif), planes, stack.axes)
    if doubt:
        raise InputError(
            f"{name} is ScanImage's, and {doubt}; write it as OME-TIFF or OME-Zarr, or if its pages are slices all the "
            "same, give --axes zyx"
        )


def _series_of(
    tif: tifffile.TiffFile, stack: Stack, picked: Picked, said: OmeXml, index: int | None
) -> tuple[tuple[SeriesAxis, ...], tuple[Channel, ...]]:
    """Return along which axes there are several volumes, and what the file says of its channels.

    The index is that of the image in the OME-XML; None where that is not known.
    """
    step: tuple[float, str | None] = (1.0, None)
    channels: Sequence[Channel] = ()
    if stack.kind == "ome" and index is not None:
        step, channels = read_ome_xml_step(said.pixels[index]), said.channels[index]
    elif stack.kind == "imagej":
        step = read_imagej_step(stack.page.imagej_description or "")
        channels = read_imagej_channels((tif.imagej_metadata or {}).get("LUTs"))
    return picked.axes(step), picked.channels(channels, stack.axes.lower(), stack.shape)


def volume_of_planes(name: str, kind: str, shape: Index3, planes: PlaneReader, read: ReadBox) -> Volume:
    """Return a volume of planes, which are decoded by strips or tiles that may reach beyond the image."""
    chunks = triple(map(min, planes.segment_shape, shape))
    return Volume(name, kind, shape, planes.dtype.newbyteorder("="), read, chunks, planes.overhead)


def _only_volume(images: Sequence[Image], own: Directories, name: str, selection: Selection) -> _Found:
    """Find which one image is a volume; where none is, which one is a plane."""
    if selection.image is not None:
        chosen = find_image([ImageEntry(str(number)) for number in _full(images)], selection.image, name)
        return _found_in(images, int(chosen.path), name, selection)
    every_found, refusals = _possible(images, name, selection)
    found = [one for one in every_found if one.picked.zyx[0] is not None]
    if not found and not refusals:
        check_chain(own, name)  # before the one page that is left of a volume is taken for all
        found = every_found
    if len(found) == 1:
        if images[found[0].image].stack.kind == "plain":
            check_odd(images[found[0].image], images, name)
        return found[0]
    if found:
        shapes = ", ".join(f"{index}: {' x '.join(map(str, shape))}" for index, _, shape in found)
        raise InputError(f"{name} holds {len(found)} volumes ({shapes}); give --image and its number, or all")
    check_chain(own, name)  # before what is left of a volume is called something else
    if refusals:
        raise max(refusals, key=lambda refusal: refusal[0])[1]
    raise InputError(f"{name} is a TIFF without an image")


def _possible(
    images: Sequence[Image], name: str, selection: Selection
) -> tuple[list[_Found], list[tuple[int, IsovoxelError]]]:
    """Return which images could be meant, and of the others the size and why they are not.

    Smaller pictures of others count only where there is nothing else.
    """
    found: list[_Found] = []
    refusals: list[tuple[int, IsovoxelError]] = []
    for index in _full(images):
        try:
            found.append(_found_in(images, index, name, selection))
        except (InputError, OptionError) as error:
            refusals.append((math.prod(images[index].stack.shape), error))
    return found, refusals


def _full(images: Sequence[Image]) -> Sequence[int]:
    """Return the numbers of the images that are no smaller pictures of others; where all are, those of all."""
    return [index for index, image in enumerate(images) if not image.stack.page.is_reduced] or range(len(images))


def _found_in(images: Sequence[Image], index: int, name: str, selection: Selection) -> _Found:
    """Return what of an image is a volume."""
    stack = images[index].stack
    picked = pick(name, [_UNNAMED.get(a, a.lower()) for a in stack.axes], stack.shape, selection)
    return _Found(index, picked, picked.shape(stack.shape))


def _check_plain(tif: tifffile.TiffFile, own: Directories, name: str) -> None:
    """Check a file whose pages are taken one by one, as no metadata told of them, or none that fitted."""
    if tif.is_imagej:
        page = tif.pages.first
        images = parse_description(page.imagej_description or "").get("images", "")
        if images.isdecimal() and page.dataoffsets:
            check_complete(name, page.dataoffsets[0] + int(images) * page.nbytes, own.path.stat().st_size)
    check_chain(own, name)
    if tif.is_imagej or tif.is_ome or tif.is_shaped:
        raise InputError(
            f"{name} is incomplete or one file of several: the image that its description tells of "
            f"is not what its {len(own)} pages hold"
        )


def calibration_of(page: tifffile.TiffPage, kind: str, *, flat: bool = False) -> Calibration:
    """Return the voxel size that the tags of a page state; `kind` is tifffile's, and not OME's."""
    x, y = (_rational(page.tags.valueof(tag)) for tag in ("XResolution", "YResolution"))
    unit = page.tags.valueof("ResolutionUnit")
    tags = Resolution(x, y, int(unit) if isinstance(unit, int) else None)
    if kind == "imagej":
        return read_imagej(page.imagej_description or "", tags, flat=flat)
    if "<OME" in page.description[:1000]:  # whole, it would have made this an OME-TIFF
        return Calibration(missing="its OME-XML is cut short")
    description: object = {}
    with suppress(ValueError):  # before 2015 tifffile wrote no JSON, but "shape=(5, 512, 512)"
        description = json.loads(page.shaped_description or "{}") if kind == "shaped" else {}
    return read_tiff_tags(description if isinstance(description, dict) else {}, tags, flat=flat)


def _rational(value: Any) -> Rational | None:
    """Return a resolution tag's value, or None where it is absent or no rational number."""
    match value:
        case (int(), int()):
            return (int(value[0]), int(value[1]))
        case _:
            return None
