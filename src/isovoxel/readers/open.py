"""Open a volume: a path, an address, or an array that the caller holds; see `registry` for the formats of files."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np

from isovoxel.arguments import checked_value
from isovoxel.errors import InputError, InputMissingError, OptionError
from isovoxel.geometry.grid import Float3, check_positive, number_text, numbers_text, triple
from isovoxel.metadata.units import METERS, checked_unit, convert_length
from isovoxel.object_store.files import ATTRIBUTES, N5_ATTRIBUTES, TOP
from isovoxel.object_store.objects import ObjectPlace, is_address, place_of
from isovoxel.readers.base import Volume, converted, cropped, moved
from isovoxel.readers.files import GZIP_MAGIC, ZIP_MAGIC, named_failures
from isovoxel.readers.registry import (
    Location,
    find_format,
    images_by,
    known_formats,
    no_inner,
    open_with,
)
from isovoxel.readers.selection import EVERYTHING, GIVEN, Collection, Selection, means_several

_PACKERS = {
    GZIP_MAGIC: ("gzip", "gunzip"),
    ZIP_MAGIC: ("zip", "unzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"7z\xbc\xaf\x27\x1c": ("7-Zip", "7z x"),
}
"""How files begin that hold others, by whose program, and what unpacks them."""
_OTHERS = {
    "JPEG": (0, b"\xff\xd8\xff"),
    "DICOM": (128, b"DICM"),
    "Analyze 7.5": (0, b"\x5c\x01\0\0"),
}
"""Kinds of images that are not read, with what stands where in their files."""


def open_volume(
    source: Any, *, voxel_size: Float3 | None = None, unit: str | None = None, selection: Selection = EVERYTHING
) -> Volume:
    """Open a 3-D volume for reading box by box.

    Parameters
    ----------
    source
        Path of a TIFF (ImageJ, OME-TIFF, BigTIFF, also in gzip), a ``companion.ome``, a folder or a pattern (``*.tif``)
        of TIFF or PNG slices, a zarr array, an OME-Zarr image, a zipped zarr (``.ozx``), an N5 dataset, a Neuroglancer
        precomputed volume, an HDF5 (``file.h5:/path/to/dataset``), Imaris, BigDataViewer (``.xml``), NIfTI, NRRD,
        MetaImage, MRC, CZI, LIF, ND2, DV or ``.npy`` file; or the address of a zarr array or an OME-Zarr image in an
        object store, such as "s3://bucket/a.zarr"; or a NumPy array, a dask array, a zarr array or an open `Volume`.
        Always z, y, x.
    voxel_size
        Physical voxel size, z, y, x; overrides what the input says.
    unit
        Unit of lengths, by any usual name; overrides the input's, and without `voxel_size` only relabels it.
    selection
        Which part of the input is meant.

    Returns
    -------
    Volume
        Lazy: only metadata have been read.

    Raises
    ------
    InputMissingError
        If there is nothing at the path.
    InputError
        If what is there cannot be read as a 3-D volume.
    OptionError
        If the voxel size or the unit makes no sense, or the input has no such part.
    """
    if means_several(selection.image):
        raise OptionError(f"image {selection.image} means several images, of which this takes one; name one of them")
    if voxel_size is not None:
        voxel_size = _checked_size(voxel_size)
    if unit is not None:
        unit = checked_unit(unit)
    volume = _with_overrides(converted(_open(source, selection)), voxel_size, unit)
    return volume if selection.crop is None else cropped(volume, selection.crop)


def images_of(source: Any) -> Collection:
    """Return the images of an input that may hold several.

    Parameters
    ----------
    source
        A path or an address, as in `open_volume`.

    Raises
    ------
    InputError
        If there is nothing, or it cannot be read; or if its kind holds one image.
    """
    if not isinstance(source, str | os.PathLike | ObjectPlace):
        raise InputError(f"an input of type {type(source).__name__} is one image; leave out image")
    name = str(source) if isinstance(source, ObjectPlace) else os.fsdecode(source)
    place = source if isinstance(source, ObjectPlace) else place_of(source) if isinstance(source, str) else Path(name)
    if isinstance(place, ObjectPlace):
        at = Location(place, name, "address")
    else:
        at = _located(name, str(place) if is_address(name) else name)
    with named_failures(name, "a volume"):
        if (own := find_format(at)) is not None:
            return images_by(own, at)
        if at.kind != "address":
            from isovoxel.readers.plugins import recognised

            if (other := recognised(at, [])) is not None:
                return images_by(other.format, at)
    raise InputError(f"{name} holds no images that isovoxel knows")


def open_like(source: Any) -> Volume:
    """Open a volume whose voxels another one shall get; "IMAGE/N" is a level of an OME-Zarr image."""
    is_path = isinstance(source, str | os.PathLike | ObjectPlace)
    try:
        volume = open_volume(source)
    except InputError as error:  # an array whose axes its image alone names
        if is_path and (level := _level_of_image(source)) is not None:
            return level
        if " --" in str(error):  # which is of the input's
            raise InputError(
                f"{error}; --like has no such option: convert it with that, and give --like what it writes"
            ) from error
        raise
    if volume.voxel_size is None and is_path and "zarr" in volume.kind:
        return replace(_level_of_image(source) or volume, name=volume.name)
    return volume


def _level_of_image(source: str | os.PathLike[str] | ObjectPlace) -> Volume | None:
    """Open an array as the level of an OME-Zarr image that it is, or return None."""
    from isovoxel.readers.ome_zarr import image_of_level

    if (found := image_of_level(place_of(source))) is None:
        return None
    image, level = found
    return replace(open_volume(image, selection=Selection(level=level)), name=str(place_of(source)))


def open_part(source: Any, identity: Mapping[str, Any]) -> Volume:
    """Open the part of a source that an input with this identity was; an open `Volume` is that part already."""
    return open_volume(source, selection=EVERYTHING if isinstance(source, Volume) else Selection.of_identity(identity))


def _open(source: Any, selection: Selection) -> Volume:
    if isinstance(source, ObjectPlace):
        return _open_address(source, selection)
    if isinstance(source, str | os.PathLike):
        return _open_path(source, selection)
    zarr = sys.modules.get("zarr")  # a caller that holds an array of its has imported it
    if zarr is not None and isinstance(source, zarr.Array):
        from isovoxel.readers.zarr_array import from_array

        selection.check_kind("a zarr array", "channel", "time", "axes")
        return from_array(source, selection)
    if isinstance(source, Volume):
        selection.check_kind(source.name)
        return source
    return _open_array(source, selection)


def _open_array(source: Any, selection: Selection) -> Volume:
    if isinstance(source, np.ndarray):
        from isovoxel.readers.arrays import from_numpy

        return from_numpy(source, selection)
    dask_array = sys.modules.get("dask.array")
    if dask_array is not None and isinstance(source, dask_array.Array):
        from isovoxel.readers.arrays import from_dask

        return from_dask(source, selection)
    xarray = sys.modules.get("xarray")
    if xarray is not None and isinstance(source, xarray.DataArray):
        from isovoxel.readers.arrays import from_xarray

        selection.check_kind("the DataArray")
        return from_xarray(source)
    h5py = sys.modules.get("h5py")
    if h5py is not None and isinstance(source, h5py.Dataset | h5py.Group):
        raise InputError(
            f"what h5py has open cannot be read by other threads and processes; close it, and give its path, "
            f"{source.file.filename}:{source.name}"
        )
    raise InputError(
        f"an input of type {type(source).__name__} is no volume; give a path as text, a NumPy, dask, zarr or xarray "
        "array (numpy.asarray makes one of lists), or an open Volume"
    )


def _open_path(text: str | os.PathLike[str] | os.PathLike[bytes], selection: Selection) -> Volume:
    name = os.fsdecode(text)
    if not name:
        raise InputMissingError("the path of the input is empty; give the path of a TIFF, a zarr or a .npy file")
    place = place_of(name) if isinstance(text, str) else Path(name)
    if isinstance(place, ObjectPlace):
        return _open_address(place, selection)
    local = str(place) if is_address(name) else name  # which a Path would make shorter
    try:
        at = _located(name, local)
    except InputMissingError:
        if "\0" in name or not has_magic(name):
            raise
        from isovoxel.readers.slices import open_pattern

        selection.check_kind(name)
        with named_failures(local, "slices"):
            return open_pattern(local)
    with named_failures(name, "a volume"):
        before = at.path.stat()
        volume = _open_local(at, selection)
    stamp = {"size": before.st_size, "mtime_ns": before.st_mtime_ns}
    if at.kind == "file" and any(volume.identity.get(key, value) != value for key, value in stamp.items()):
        raise InputError(f"{name} was written while it was opened; open it again once it is whole")
    return volume


def _open_address(place: ObjectPlace, selection: Selection) -> Volume:
    name = str(place)
    with named_failures(name, "a volume"):
        at = Location(place, name, "address")
        if (found := find_format(at)) is not None:
            return open_with(found, at, selection)
        there = place.is_file()
    if there:
        known = known_formats("address")
        raise InputError(f"{name} is a file, and by address isovoxel reads {known} only; download it and give its path")
    raise InputMissingError(f"{name} is no zarr, is not there, or may not be read with {place.sought}; check both")


def _located(name: str, local: str) -> Location:
    """Return a file or folder, and the path of what is meant in it (``file.h5:/path/to/dataset``)."""
    file, colon, inner = local.rpartition(":/")  # the last one: Windows has one behind its drives
    for path, place in ((local, None), (file, f"/{inner}") if colon else (local, None)):
        try:
            mode = Path(path).stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ValueError:
            break  # the name has a character that no path can have
        except OSError as error:
            raise InputError(f"{name} cannot be opened: {error.strerror}") from error
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise InputError(f"{name} is neither a file nor a folder; isovoxel reads {known_formats()}")
        return Location(Path(path), name, "folder" if stat.S_ISDIR(mode) else "file", place)
    raise InputMissingError(f"{name} is not there; check the path")


def _open_local(at: Location, selection: Selection) -> Volume:
    """Open a file or a folder by the format that recognises it."""
    if at.kind == "file" and not at.first:
        raise InputError(f"{at.name} is empty (0 bytes)")
    if (own := find_format(at)) is not None:
        return open_with(own, at, selection)
    from isovoxel.readers.plugins import open_foreign, recognised

    faults: list[str] = []
    if (other := recognised(at, faults)) is None:
        selection.check_kind(at.name)
        raise _unknown(at, faults)
    volume = open_foreign(other, at, selection)
    return replace(volume, notes=(*volume.notes, *faults))


def _unknown(at: Location, faults: Sequence[str]) -> InputError:
    """Return the error for an input of no format that is known, with what is known of it."""
    known = f"isovoxel reads {known_formats()}"
    beside = "".join(f"; {fault}" for fault in faults)
    if at.kind == "folder":
        others = any(path.suffix.lower() in (".jpg", ".jpeg", ".bmp") for path in at.path.iterdir())
        way_on = "save its JPEG or BMP slices as TIFF or PNG" if others else f"{known}{beside}"
        return InputError(f"{at.name} is a folder but no zarr, and holds no TIFF or PNG slices; {way_on}")
    if at.inner is not None:
        return no_inner(at)
    if at.path.name in (*TOP, ATTRIBUTES, N5_ATTRIBUTES):
        what = "an N5" if at.path.name == N5_ATTRIBUTES else "a zarr"
        return InputError(f"{at.name} is a part of {what}; give the folder that it lies in")
    stem = at.path.name.removesuffix(".gz")
    if stem.endswith(".img") and (header := at.path.with_name(at.path.name.replace(".img", ".hdr"))).is_file():
        return InputError(f"{at.name} holds voxels only; give {header.name}, which lies beside it")
    if named := _named_kind(at):
        return InputError(f"{at.name} is {named}{beside}")
    return InputError(f"{at.name} is of no kind that isovoxel knows; {known}{beside}")


def _named_kind(at: Location) -> str:
    """Return what a file is by its first bytes, and what helps, as a clause, or nothing."""
    first = at.first
    for begins, (packer, unpack) in _PACKERS.items():
        if first.startswith(begins):
            return f"of no kind that isovoxel knows, packed by {packer}; unpack it first, as {unpack} does"
    for kind, (start, sign) in _OTHERS.items():
        if first[start:].startswith(sign):
            return (
                f"of a kind that isovoxel does not read, {kind}; save it as TIFF, NIfTI or OME-Zarr, or pass it from "
                "Python as an array"
            )
    return ""


def _checked_size(voxel_size: Sequence[float]) -> Float3:
    checked = triple(map(float, checked_value("voxel size", "Float3", voxel_size)))
    check_positive("voxel size", checked)
    return checked


def _with_overrides(volume: Volume, voxel_size: Float3 | None, unit: str | None) -> Volume:
    changes: dict[str, Any] = {}
    sources = dict(volume.sources)
    if voxel_size is None and unit is not None and volume.counted:
        voxel_size = (1.0, 1.0, 1.0)  # which without a unit was none
    if voxel_size is not None:
        changes |= {"voxel_size": voxel_size, "missing": "", "counted": False}
        lost = (f"{volume.unplaced}, so voxel 0 is taken to lie at 0",) if volume.unplaced else ()
        changes["notes"] = (*volume.notes, *_doubts(voxel_size), *lost)
        changes["origin"] = _origin(volume, voxel_size, unit)
        sources["voxel size"] = GIVEN
    if unit is not None:
        changes["unit"] = unit
        sources["unit"] = GIVEN
    return replace(volume, **changes, sources=sources) if changes else volume


def _doubts(voxel_size: Float3) -> tuple[str, ...]:
    """Return a note where a voxel size that was given looks as if its order were x, y, z."""
    z, y, x = voxel_size
    if x < 2 * max(z, y):
        return ()
    turned = ",".join(map(number_text, (x, y, z)))
    taken = f"the voxel size {numbers_text(voxel_size)} is z, y, x, so voxels are longest along x"
    return (f"{taken}; if it was meant as x, y, z, give {turned}",)


def _origin(volume: Volume, voxel_size: Float3, unit: str | None) -> Float3:
    """Return where a volume is with another voxel size: the whole input stays where it is.

    With a new unit too; without a new voxel size, all numbers would get the new unit.
    """
    origin = volume.origin
    if any(volume.start) and volume.voxel_size is not None:
        origin = moved(origin, volume.start, volume.voxel_size, -1)
    if unit is not None and volume.unit in METERS:
        origin = triple(convert_length(length, volume.unit, unit) for length in origin)
    return moved(origin, volume.start, voxel_size) if any(volume.start) else origin
