"""How is a TIFF opened as a volume, whoever wrote it: ImageJ, OME, tifffile, or nobody in particular?

tifffile finds the pages that belong together and their axes; every page is checked to lie inside the
file, and voxels are then read without tifffile's file handle: raw planes by `RawReader`, encoded strips
and tiles by `SegmentReader`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tifffile

from isovoxel.errors import InputError, IsovoxelError, OptionError
from isovoxel.geometry.box import Index3
from isovoxel.metadata import imagej, ome_xml
from isovoxel.metadata.calibration import Calibration
from isovoxel.metadata.imagej import Rational, parse_description, read_imagej
from isovoxel.metadata.ome_xml import read_ome_xml, read_pixels
from isovoxel.metadata.series import Channel, SeriesAxis, chosen_channels
from isovoxel.metadata.tiff_tags import read_tiff_tags
from isovoxel.volumes.axes import Picked, pick
from isovoxel.volumes.base import Volume, check_voxels
from isovoxel.volumes.files import check_complete, file_identity, unreadable
from isovoxel.volumes.raw import RawReader
from isovoxel.volumes.segments import SegmentReader
from isovoxel.volumes.selection import GIVEN, Selection
from isovoxel.volumes.tiff_layout import Chain, follow_directories, reader_of

# What tifffile logs of broken files is found again here and raised; without this it would land on stderr too.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_KINDS = {"imagej": "ImageJ TIFF", "ome": "OME-TIFF"}
_AXES_SOURCES = {"imagej": "ImageJ description", "ome": "OME-XML", "shaped": "tifffile's description"}
_UNIT_SOURCES = {"imagej": "ImageJ unit", "ome": "OME-XML"}
_PLAIN_KINDS = ("uniform", "generic")
_UNNAMED = {"Q": "", "I": ""}


class _Found(NamedTuple):
    """One of a file's series, and what of it is a volume."""

    series: int
    picked: Picked
    shape: Index3


def open_tiff(path: Path, name: str, selection: Selection) -> Volume:
    """Open the one 3-D image of a TIFF or BigTIFF file; where it has none, the one plane.

    Raises
    ------
    InputError
        If the file is truncated, is no TIFF that can be decoded, or holds no image that is a volume, or several.
    OptionError
        If it has no such channel or time point.
    """
    chain = follow_directories(path)
    if not chain.pages:
        raise InputError(f"{name} is truncated or no TIFF: its first directory is not in the file")
    try:
        with tifffile.TiffFile(path) as tif:
            # Before tifffile parses it: a document type definition is refused here.
            pixels = read_pixels(tif.ome_metadata or "", name) if tif.is_ome else []
            every = tif.series
            if every and every[0].kind in _PLAIN_KINDS:
                _check_plain(tif, chain, path, name)
            index, picked, shape = _only_volume(every, chain, path, name, selection)
            series = every[index]
            if series.keyframe.dtype is not None:
                check_voxels(name, shape, series.keyframe.dtype)
            reader, read = reader_of(series, name, path, picked)
            if series.kind == "ome":
                calibration = read_ome_xml(pixels, index, len(every), shape)
            else:
                calibration = calibration_of(series.keyframe, series.kind, flat=shape[0] == 1)
            axes, channels = _series_of(tif, series, picked, pixels[index] if len(pixels) == len(every) else {}, index)
            kind = _KINDS.get(series.kind, "TIFF") + (" (BigTIFF)" if tif.is_bigtiff else "")
    except IsovoxelError:
        raise
    except Exception as error:
        raise unreadable(name, "TIFF", error) from error
    named = _AXES_SOURCES.get(series.kind, "unnamed pages, taken as z") if selection.axes is None else GIVEN
    sources = {"shape": "TIFF pages", "axes": picked.told(named)}
    if len(every) > 1:
        sources["shape"] += f" (image {index} of {len(every)}, the only {3 if picked.zyx[0] is not None else 2}-D one)"
    if calibration.voxel_size is not None:
        sources["voxel size"] = calibration.source
    if calibration.unit is not None:
        sources["unit"] = _UNIT_SOURCES.get(series.kind, calibration.source)
    return Volume(
        name,
        kind,
        shape,
        reader.dtype.newbyteorder("="),
        read,
        chunks=decoded_at_once(reader, shape),
        read_overhead=reader.overhead,
        voxel_size=calibration.voxel_size,
        unit=calibration.unit,
        sources=sources,
        identity={
            **file_identity(path),
            "files": [file_identity(Path(file)) for file in reader.files[1:]],
            **picked.chosen,
            **selection.identity("axes"),
        },
        missing=calibration.missing,
        series=axes,
        channels=channels,
    )


def _series_of(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, picked: Picked, pixels: Mapping[str, str], index: int
) -> tuple[tuple[SeriesAxis, ...], tuple[Channel, ...]]:
    """Return along which axes there are several volumes, and what the file says of its channels."""
    step: tuple[float, str | None] = (1.0, None)
    channels: Sequence[Channel] = ()
    if series.kind == "ome" and pixels:
        step, channels = ome_xml.read_step(pixels), ome_xml.read_channels(tif.ome_metadata or "", str(tif))[index]
    elif series.kind == "imagej":
        step = imagej.read_step(series.keyframe.imagej_description or "")
        channels = imagej.read_channels((tif.imagej_metadata or {}).get("LUTs"))
    count = dict(zip(series.axes, series.shape, strict=True)).get("C", 1)
    axes = picked.axes(step)
    return axes, chosen_channels(channels, count, picked.chosen.get("channel"))


def decoded_at_once(reader: RawReader | SegmentReader, shape: Index3) -> Index3:
    """Return what is decoded in one go: single voxels, or a strip or tile, which may reach beyond the image."""
    if isinstance(reader, RawReader):
        return (1, 1, 1)
    z, y, x = reader.segment_shape
    return (min(z, shape[0]), min(y, shape[1]), min(x, shape[2]))


def _only_volume(
    every: list[tifffile.TiffPageSeries], chain: Chain, path: Path, name: str, selection: Selection
) -> _Found:
    """Find which one series of pages is a 3-D volume; where none is, which one is a plane."""
    every_found: list[_Found] = []
    refusals: list[IsovoxelError] = []
    for index, series in enumerate(every):
        try:
            picked = pick(name, [_UNNAMED.get(a, a.lower()) for a in series.axes], series.shape, selection)
        except (InputError, OptionError) as error:
            refusals.append(error)
        else:
            every_found.append(_Found(index, picked, picked.shape(series.shape)))
    found = [one for one in every_found if one.picked.zyx[0] is not None]
    if not found and not refusals:
        _check_chain(chain, path, name)  # before the one page that is left of a volume is taken for all
        found = every_found
    if len(found) == 1:
        return found[0]
    if found:
        shapes = ", ".join(f"{index}: {' x '.join(map(str, shape))}" for index, _, shape in found)
        raise InputError(f"{name} holds {len(found)} volumes ({shapes}); save the one you mean as a file of its own")
    _check_chain(chain, path, name)  # before what is left of a volume is called something else
    if refusals:
        raise refusals[0]
    raise InputError(f"{name} is a TIFF without an image")


def _check_plain(tif: tifffile.TiffFile, chain: Chain, path: Path, name: str) -> None:
    """Check a file whose pages tifffile took one by one, as no metadata told of them, or none that fitted."""
    size = path.stat().st_size
    if tif.is_imagej:
        page = tif.pages.first
        images = parse_description(page.imagej_description or "").get("images", "")
        if images.isdecimal() and page.dataoffsets:
            check_complete(name, page.dataoffsets[0] + int(images) * page.nbytes, size)
    _check_chain(chain, path, name)
    if tif.is_imagej or tif.is_ome or tif.is_shaped:
        raise InputError(
            f"{name} is incomplete or one file of several: the image that its description tells of "
            f"is not what its {len(tif.pages)} pages hold"
        )


def _check_chain(chain: Chain, path: Path, name: str) -> None:
    """Check that no directory is missing."""
    if chain.broken_at is not None:
        raise InputError(
            f"{name} is truncated: after {chain.pages} pages the next should be at byte {chain.broken_at}, "
            f"but is not in the {path.stat().st_size} bytes of the file; copy or write it again"
        )


def calibration_of(page: tifffile.TiffPage, kind: str, *, flat: bool = False) -> Calibration:
    """Return the voxel size that the tags of a page state; `kind` is tifffile's, and not OME's."""
    x, y = (_rational(page.tags.valueof(tag)) for tag in ("XResolution", "YResolution"))
    unit = page.tags.valueof("ResolutionUnit")
    unit = int(unit) if isinstance(unit, int) else None
    if kind == "imagej":
        return read_imagej(page.imagej_description or "", x, y, unit, flat=flat)
    if "<OME" in page.description[:1000]:  # whole, it would have made this an OME-TIFF
        return Calibration(missing="its OME-XML is cut short")
    description = json.loads(page.shaped_description or "{}") if kind == "shaped" else {}
    return read_tiff_tags(description if isinstance(description, dict) else {}, x, y, unit, flat=flat)


def _rational(value: Any) -> Rational | None:
    """Return a resolution tag's value, or None where it is absent or no rational number."""
    match value:
        case (int(), int()):
            return (int(value[0]), int(value[1]))
        case _:
            return None
