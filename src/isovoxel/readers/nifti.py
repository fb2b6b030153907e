"""Open a NIfTI file as a volume, compressed or not.

nibabel understands the header. The file has x fastest, which is z, y, x in C order, so its planes are read as they lie;
out of gzip through `GzipStream`. Where the header scales what is stored (`scl_slope`), the volume is what it means, in
float32.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError, InputMissingError, IsovoxelError
from isovoxel.geometry.grid import Box, Index3
from isovoxel.metadata.affine import ORIGIN, read_affine, read_zooms
from isovoxel.readers.base import Volume, check_voxels, output_array
from isovoxel.readers.files import FileList, check_complete, pair_identity, unreadable
from isovoxel.readers.raw import (
    GZIP_BYTES,
    LARGEST_RATIO,
    GzipMarks,
    RawReader,
    contiguous_offsets,
    first_bytes,
    gzip_note,
    is_gzip,
)
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import Selection, zyx_positions

HEADER_BYTES = 540
"""Length of the longer of the two headers."""

SLAB_VOXELS = 1 << 17
"""So many voxels are scaled in one go."""

_SINGLE, _PAIR = (b"n+1\0", b"n+2\0"), (b"ni1\0", b"ni2\0")


@dataclass(frozen=True)
class ScaledReader:
    """Reads boxes of numbers that mean `slope` times themselves and `inter`; safe to call from many threads."""

    read: RawReader
    """Reads the numbers, of at most 4 bytes each."""
    slope: float
    """What each is multiplied with."""
    inter: float
    """What is added then."""

    @property
    def overhead(self) -> int:
        """Largest number of bytes held beside the returned array."""
        return self.read.overhead + 4 * 8 * SLAB_VOXELS

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array of float32, or in `out`.

        Raises
        ------
        CorruptInputError, InputUnavailableError
            As the reader of the numbers does.
        """
        out = output_array(box, np.dtype(np.float32), out)
        flat = out.reshape(-1)
        dtype = self.read.dtype.newbyteorder("=")
        # They are read into the end of the room for the result, and each is used before its bytes are written on.
        stored = flat.view(np.uint8)[flat.nbytes - flat.size * dtype.itemsize :].view(dtype)
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
    return _version(first_bytes(at.path, HEADER_BYTES)) > 0


def open_nifti(at: Location, _selection: Selection) -> Volume:
    """Open the one 3-D image of a NIfTI file, ``.nii`` or ``.nii.gz``, or of the ``.hdr`` of a pair.

    Raises
    ------
    InputError
        If the header makes no sense, the image has other axes than x, y and z, or voxels are missing.
    """
    import nibabel

    path, name = at.path, at.name
    data = first_bytes(path, HEADER_BYTES)
    first = _version(data) == 1
    pair = data[slice(344, 348) if first else slice(4, 8)] in _PAIR
    voxels = _image_beside(path, name) if pair else path.resolve()
    kind: Any = nibabel.Nifti1Header if first else nibabel.Nifti2Header
    try:
        # Checked here: nibabel would log what it finds, and mend it.
        order = "<" if struct.unpack("<i", data[:4])[0] == kind.sizeof_hdr else ">"
        return _open(kind(data[: kind.sizeof_hdr], order, check=False), path, voxels, name)
    except IsovoxelError:
        raise
    except Exception as error:
        raise unreadable(name, "NIfTI", error) from error


def _image_beside(path: Path, name: str) -> Path:
    """Return the file that holds the voxels of a pair of files."""
    stem = path.name.removesuffix(".gz").rpartition(".")[0]
    for ending in ("img", "img.gz", "IMG"):
        if (image := path.with_name(f"{stem}.{ending}")).is_file():
            return image.resolve()
    raise InputMissingError(f"{stem}.img, which holds the voxels of {name}, is not there; it must lie beside it")


def _open(header: Any, path: Path, file: Path, name: str) -> Volume:
    if not 1 <= int(header["dim"][0]) <= 7:
        raise InputError(f"{name} cannot be read as NIfTI: its header tells of {int(header['dim'][0])} axes")
    sizes = tuple(int(n) for n in header.get_data_shape())
    z, y, x = zyx_positions(name, ["x", "y", "z", "t", *"uvw"][: len(sizes)][::-1], sizes[::-1])
    shape = (sizes[::-1][z], sizes[::-1][y], sizes[::-1][x])
    stored = np.dtype(header.get_data_dtype())
    check_voxels(name, shape, stored)
    compressed = is_gzip(file)
    least = 0 if file != path.resolve() else header.sizeof_hdr
    reader = _raw_reader(header, file, name, shape, stored, least, compressed=compressed)
    slope, inter = header.get_slope_inter()
    scaled = slope is not None and (slope, inter) != (1.0, 0.0)
    if scaled and stored.itemsize > 4:
        raise InputError(f"{name} holds {stored}, scaled by {slope:g} and {inter:g}, which float32 does not hold")
    voxels = ScaledReader(reader, float(slope), float(inter)) if scaled else reader
    calibration = read_zooms(header.get_zooms(), header.get_xyzt_units()[0])
    placed = bool(header["qform_code"] > 0 or header["sform_code"] > 0)
    origin, turned = read_affine(header.get_best_affine()) if placed else (ORIGIN, "")
    sources = {"shape": "NIfTI header", "axes": "NIfTI's order, x first"}
    if scaled:
        sources["shape"] += f"; voxels are {slope:g} times what is stored, and {inter:g}, as it says"
    sources |= calibration.sources("NIfTI xyzt_units")
    notes = [turned] if turned else []
    if compressed:
        notes.append(gzip_note(GzipMarks(_end(header, shape, stored))))
    now = partial(pair_identity, path, file)
    return Volume(
        name,
        "NIfTI" + " (gzip)" * compressed,
        shape,
        np.dtype(np.float32) if scaled else stored.newbyteorder("="),
        voxels,
        chunks=(1, shape[1], shape[2]) if compressed else (1, 1, 1),
        read_overhead=voxels.overhead + (GZIP_BYTES if compressed else 0),
        voxel_size=calibration.voxel_size,
        origin=origin if calibration.placed else ORIGIN,
        unit=calibration.unit,
        sources=sources,
        identity=now(),
        current_identity=now,
        files=FileList(tuple({str(path.resolve()), str(file)})),
        missing=calibration.missing,
        counted=calibration.counted,
        notes=tuple(notes),
        sequential=compressed,
    )


def _raw_reader(
    header: Any, path: Path, name: str, shape: Index3, stored: np.dtype[Any], least: int, *, compressed: bool
) -> RawReader:
    start, end, size = int(header.get_data_offset()), _end(header, shape, stored), path.stat().st_size
    if start < least:
        raise InputError(f"{name} contradicts itself: its voxels begin at byte {start}, inside its header")
    check_complete(name, end, size * LARGEST_RATIO if compressed else size)
    offsets = contiguous_offsets(start, shape, stored)
    reader = RawReader(name, (str(path),), np.zeros(shape[0], np.int64), offsets, shape, stored)
    return replace(reader, opener=GzipMarks(end).open) if compressed else reader


def _end(header: Any, shape: Index3, stored: np.dtype[Any]) -> int:
    """Return how many bytes the file must have, decompressed."""
    return int(header.get_data_offset()) + math.prod(shape) * stored.itemsize


def _version(data: bytes) -> int:
    """Return 1 or 2 for the header that a file begins with, in either byte order, or 0 where it is none."""
    for version, length, magic in ((1, 348, data[344:348]), (2, HEADER_BYTES, data[4:8])):
        if len(data) >= length and length in struct.unpack("<i", data[:4]) + struct.unpack(">i", data[:4]):
            return version if magic in _SINGLE + _PAIR else 0
    return 0
