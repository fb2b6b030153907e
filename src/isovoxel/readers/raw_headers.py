"""Open `.npy`, NRRD, MetaImage, MRC and NIfTI files, whose voxels lie behind a header or beside it; see `raw`."""

from __future__ import annotations

import re
import struct
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError, InputMissingError
from isovoxel.geometry.grid import Box
from isovoxel.metadata.raw_headers import MRC_BYTES, RawHeader, is_mrc, read_metaimage, read_mrc, read_nrrd
from isovoxel.metadata.series import stays_inside
from isovoxel.metadata.units import ORIGIN, read_affine, read_zooms
from isovoxel.readers.base import ReadBox, Volume, check_voxels, output_array
from isovoxel.readers.files import (
    FileList,
    named_failures,
    of_file,
    pair_identity,
    reason_of,
    unreadable,
)
from isovoxel.readers.raw import (
    GzipMarks,
    RawArray,
    first_bytes,
    is_gzip,
    open_raw,
)
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import EVERYTHING, GIVEN, UNNAMED, Selection, pick_only, plain_zyx

LONGEST_HEADER = 1 << 20
"""So much of a file is looked through for the end of its header."""


class _Kind(NamedTuple):
    """A kind of header."""

    sniff: Callable[[Location], bool]
    read: Callable[[bytes], RawHeader]
    longest: int
    order: str


_META_KEYS = re.compile(rb"^(?:\xef\xbb\xbf)?[ \t]*(ObjectType[ \t]*=[ \t]*Image|NDims[ \t]*=[ \t]*\d)", re.MULTILINE)
_KINDS: Mapping[str, _Kind] = {
    "NRRD": _Kind(
        lambda at: at.first.removeprefix(BOM_UTF8).startswith(b"NRRD000"),
        read_nrrd,
        LONGEST_HEADER,
        "NRRD's order, x first",
    ),
    "MetaImage": _Kind(
        lambda at: _META_KEYS.search(at.first) is not None,
        read_metaimage,
        LONGEST_HEADER,
        "MetaImage's order, x first",
    ),
    "MRC": _Kind(lambda at: is_mrc(first_bytes(at.path, MRC_BYTES)), read_mrc, MRC_BYTES, "MRC's mapc, mapr, maps"),
}


def is_raw_header(kind: str, at: Location) -> bool:
    """Return whether a file begins with a header of this kind."""
    return _KINDS[kind].sniff(at)


def open_raw_header(kind: str, at: Location, selection: Selection) -> Volume:
    """Open the volume of a file with a header of this kind, all its channels and time points.

    Raises
    ------
    InputError
        If the header makes no sense, or voxels are missing or stored as isovoxel does not read them.
    """
    path, name = at.path, at.name
    packed = is_gzip(path)
    data = first_bytes(path, _KINDS[kind].longest)
    with named_failures(name, kind):
        header = _KINDS[kind].read(data)
        return _open(header, kind, at, selection, packed=packed)


def _open(header: RawHeader, kind: str, at: Location, selection: Selection, *, packed: bool) -> Volume:
    path, name = at.path.resolve(), at.name
    voxels = path if header.file is None else _beside(path, header.file, name)
    compressed = header.compressed or packed
    array = RawArray(name, str(voxels), header.skipped, header.shape, header.dtype)
    if header.skipped < 0:
        if compressed:
            raise InputError(
                f"{name} cannot be read as {kind}: its voxels are the end of a compressed file; save it raw"
            )
        array = replace(array, start=voxels.stat().st_size - array.end - 1)
        if array.start < 0:
            raise InputError(
                f"{name} is truncated: {voxels.name} has fewer bytes than its voxels; copy or write it again"
            )
    if compressed:
        array = replace(array, marks=GzipMarks(array.end, begin=header.begin))
    volume, picked = open_raw(array, header.axes, selection)
    axes = picked.told(GIVEN if selection.axes is not None else _KINDS[kind].order)
    sources = {"shape": f"{kind} header", "axes": axes}
    volume = replace(volume, sources=sources, notes=(*header.notes, *volume.notes))
    volume = volume.measured(header.calibration)
    return _of_files(volume, kind, path, voxels, **picked.chosen, **selection.identity("axes"))


def _of_files(volume: Volume, kind: str, header: Path, voxels: Path, **chosen: Any) -> Volume:
    """Return a volume with its kind, and what tells the files of its header and its voxels from others."""
    volume = replace(volume, kind=kind + " (gzip)" * volume.sequential)
    files = FileList(tuple({str(header.resolve()), str(voxels)}))
    return volume.stored_in(files, partial(pair_identity, header, voxels), **chosen)


def _beside(path: Path, file: str, name: str) -> Path:
    """Return the path of the file that a header names, which must lie in its folder or below."""
    if not stays_inside(file.removeprefix("./")):
        raise InputError(
            f"{name} has its voxels in {file[:100]!r}, which is not in its folder; move it there, and edit it"
        )
    voxels = path.parent / file
    if not voxels.is_file():
        raise InputMissingError(f"{voxels}, which holds the voxels of {name}, is not there; it must lie beside it")
    return voxels.resolve()


# ---- .npy files ----------------------------------------------------------------------------------------------------

# NumPy does not type these functions.
_FORMAT: Any = np.lib.format


def open_npy(at: Location, selection: Selection) -> Volume:
    """Open a 3-D or 2-D array in a ``.npy`` file, in C or Fortran order and any byte order.

    Or one of more axes, where the selection names them.

    Raises
    ------
    InputError
        If the header is broken or of another kind, or voxels are missing.
    """
    path, name = at.path, at.name
    with path.open("rb") as file:
        shape, fortran, dtype = _npy_header(file, name)
        start = file.tell()
    if selection.axes is None:
        selection.check_kind(name)
        check_voxels(name, plain_zyx(name, shape), dtype)
        axes, told = "zyx"[-len(shape) :], UNNAMED[len(shape)]
    else:
        axes, told = "".join(selection.named(name, [], shape)), GIVEN
    turn = -1 if fortran else 1  # an array in Fortran order is one in C order whose axes are reversed
    array = RawArray(name, str(path.resolve()), start, shape[::turn], dtype)
    volume, picked = open_raw(array, axes[::turn], replace(selection, axes=None))
    sources = {"shape": ".npy header", "axes": picked.told(told)}
    volume = replace(volume, kind="NumPy file", sources=sources, missing="a .npy file has none")
    return of_file(volume, path, **picked.chosen, **selection.identity("axes"))


def _npy_header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the order is Fortran's, and dtype; the file is left where its voxels begin."""
    try:
        version = _FORMAT.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = _FORMAT.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = _FORMAT.read_array_header_2_0(file)
        else:
            # version 3 is for records whose fields have names in other scripts
            raise ValueError(f"its version is {version}, which has no plain numbers")  # noqa: TRY301
    except Exception as error:
        # NumPy evaluates the header as Python's literals, so that anything may be raised.
        if isinstance(error, MemoryError | OSError):
            raise unreadable(name, "NumPy's", error) from error
        raise InputError(f"{name} has a broken .npy header ({reason_of(error)}); copy or write it again") from error
    return shape, fortran, dtype


# ---- NIfTI -------------------------------------------------------------------------------------------------------

# nibabel understands the header. The file has x fastest, which is z, y, x in C order, so its planes are read as they
# lie; out of gzip through `GzipStream`. Where the header scales what is stored (`scl_slope`), the volume is what it
# means, in float32.


NIFTI_BYTES = 540
"""Length of the longer of NIfTI's two headers."""

SLAB_VOXELS = 1 << 17
"""So many voxels are scaled in one go."""

_UNITS = {1: "meter", 2: "mm", 3: "micron"}
"""Units of length, in the last three bits of xyzt_units; nibabel fails of others, and of unknown units of time."""

_SINGLE, _PAIR = (b"n+1\0", b"n+2\0"), (b"ni1\0", b"ni2\0")


@dataclass(frozen=True)
class ScaledReader:
    """Reads boxes of numbers that mean `slope` times themselves and `inter`; safe to call from many threads."""

    read: ReadBox
    """Reads the numbers."""
    stored: np.dtype[Any]
    """Their type, of at most 4 bytes, in native byte order."""
    slope: float
    """What each is multiplied with."""
    inter: float
    """What is added then."""

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array of float32, or in `out`.

        Raises
        ------
        CorruptInputError, InputUnavailableError
            As the reader of the numbers does.
        """
        out = output_array(box, np.dtype(np.float32), out)
        flat = out.reshape(-1)
        # They are read into the end of the room for the result, and each is used before its bytes are written on.
        stored = flat.view(np.uint8)[flat.nbytes - flat.size * self.stored.itemsize :].view(self.stored)
        self.read(box, stored.reshape(box.shape))
        for start in range(0, flat.size, SLAB_VOXELS):
            with np.errstate(invalid="ignore"):  # of NaN that signal
                slab = stored[start : start + SLAB_VOXELS].astype(np.float64)
            slab *= self.slope
            slab += self.inter
            flat[start : start + SLAB_VOXELS] = slab
        return out


def is_nifti(at: Location) -> bool:
    """Return whether a file begins with a NIfTI header, compressed or not."""
    return _nifti_version(first_bytes(at.path, NIFTI_BYTES)) > 0


def open_nifti(at: Location, _selection: Selection) -> Volume:
    """Open the one 3-D image of a NIfTI file, ``.nii`` or ``.nii.gz``, or of the ``.hdr`` of a pair.

    Raises
    ------
    InputError
        If the header makes no sense, the image has other axes than x, y and z, or voxels are missing.
    """
    import nibabel

    path, name = at.path, at.name
    data = first_bytes(path, NIFTI_BYTES)
    first = _nifti_version(data) == 1
    pair = data[slice(344, 348) if first else slice(4, 8)] in _PAIR
    voxels = _image_beside(path, name) if pair else path.resolve()
    kind: Any = nibabel.Nifti1Header if first else nibabel.Nifti2Header
    with named_failures(name, "NIfTI"):
        # Checked here: nibabel would log what it finds, and mend it.
        order = "<" if struct.unpack("<i", data[:4])[0] == kind.sizeof_hdr else ">"
        return _volume_of(kind(data[: kind.sizeof_hdr], order, check=False), path, voxels, name)


def _image_beside(path: Path, name: str) -> Path:
    """Return the file that holds the voxels of a pair of files."""
    stem = path.name.removesuffix(".gz").rpartition(".")[0]
    for ending in ("img", "img.gz", "IMG"):
        if (image := path.with_name(f"{stem}.{ending}")).is_file():
            return image.resolve()
    raise InputMissingError(f"{stem}.img, which holds the voxels of {name}, is not there; it must lie beside it")


def _volume_of(header: Any, path: Path, file: Path, name: str) -> Volume:
    if not 1 <= int(header["dim"][0]) <= 7:
        raise InputError(f"{name} cannot be read as NIfTI: its header tells of {int(header['dim'][0])} axes")
    sizes = tuple(int(n) for n in header.get_data_shape())
    axes = ["x", "y", "z", "t", *"uvw"][: len(sizes)][::-1]
    pick_only(name, axes, sizes[::-1])  # which refuses several volumes
    stored = np.dtype(header.get_data_dtype())
    array = RawArray(name, str(file), int(header.get_data_offset()), sizes[::-1], stored)
    if file == path.resolve() and array.start < header.sizeof_hdr:
        raise InputError(f"{name} contradicts itself: its voxels begin at byte {array.start}, inside its header")
    if is_gzip(file):
        array = replace(array, marks=GzipMarks(array.end))
    volume, _ = open_raw(array, axes, EVERYTHING)
    sources = {"shape": "NIfTI header", "axes": "NIfTI's order, x first"}
    slope, inter = header.get_slope_inter()
    if slope is not None and (slope, inter) != (1.0, 0.0):
        if stored.itemsize > 4:
            raise InputError(f"{name} holds {stored}, scaled by {slope:g} and {inter:g}, which float32 does not hold")
        sources["shape"] += f"; voxels are {slope:g} times what is stored, and {inter:g}, as it says"
        volume = replace(
            volume,
            dtype=np.dtype(np.float32),
            read=ScaledReader(volume.read, volume.dtype, float(slope), float(inter)),
            read_overhead=volume.read_overhead + 4 * 8 * SLAB_VOXELS,
        )
    calibration = read_zooms(header.get_zooms(), _UNITS.get(int(header["xyzt_units"]) & 7, "unknown"))
    placed = bool(header["qform_code"] > 0 or header["sform_code"] > 0)
    origin, turned = read_affine(header.get_best_affine()) if placed else (ORIGIN, "")
    notes = (*([turned] if turned else []), *volume.notes)
    volume = replace(volume, sources=sources, notes=notes)
    volume = volume.measured(calibration.at(origin), "NIfTI xyzt_units")
    return _of_files(volume, "NIfTI", path, file)


def _nifti_version(data: bytes) -> int:
    """Return 1 or 2 for the header that a file begins with, in either byte order, or 0 where it is none."""
    for version, length, magic in ((1, 348, data[344:348]), (2, NIFTI_BYTES, data[4:8])):
        if len(data) >= length and length in struct.unpack("<i", data[:4]) + struct.unpack(">i", data[:4]):
            return version if magic in _SINGLE + _PAIR else 0
    return 0
