"""Open `.npy`, NRRD, MetaImage and MRC files, whose voxels lie behind a header or beside it; see `raw`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from isovoxel.errors import InputError, InputMissingError, IsovoxelError
from isovoxel.metadata.affine import ORIGIN
from isovoxel.metadata.raw_headers import MRC_BYTES, RawHeader, is_mrc, read_metaimage, read_mrc, read_nrrd
from isovoxel.metadata.series import stays_inside
from isovoxel.readers.base import Volume, check_voxels
from isovoxel.readers.files import FileList, check_complete, file_identity, pair_identity, reason_of, unreadable
from isovoxel.readers.raw import GzipMarks, RawArray, RawReader, contiguous_offsets, first_bytes, is_gzip, open_raw
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import GIVEN, UNNAMED, Selection, plain_zyx

LONGEST_HEADER = 1 << 20
"""So much of a file is looked through for the end of its header."""


class _Kind(NamedTuple):
    """A kind of header."""

    sniff: Callable[[Location], bool]
    read: Callable[[bytes], RawHeader]
    longest: int
    order: str
    missing: str


_META_KEYS = re.compile(rb"^[ \t]*(ObjectType[ \t]*=[ \t]*Image|NDims[ \t]*=[ \t]*\d)", re.MULTILINE)
_KINDS: Mapping[str, _Kind] = {
    "NRRD": _Kind(lambda at: at.first.startswith(b"NRRD000"), read_nrrd, LONGEST_HEADER, "NRRD's order, x first", ""),
    "MetaImage": _Kind(
        lambda at: _META_KEYS.search(at.first) is not None,
        read_metaimage,
        LONGEST_HEADER,
        "MetaImage's order, x first",
        "",
    ),
    "MRC": _Kind(lambda at: is_mrc(first_bytes(at.path, MRC_BYTES)), read_mrc, MRC_BYTES, "MRC's mapc, mapr, maps", ""),
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
    try:
        header = _KINDS[kind].read(data)
        return _open(header, kind, at, selection, packed=packed)
    except IsovoxelError:
        raise
    except Exception as error:
        raise unreadable(name, kind, error) from error


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
    now = partial(pair_identity, path, voxels)
    found = header.calibration
    return replace(
        volume,
        kind=kind + " (gzip)" * compressed,
        voxel_size=found.voxel_size,
        origin=header.origin if found.placed else ORIGIN,
        unit=found.unit,
        sources={
            "shape": f"{kind} header",
            "axes": picked.told(GIVEN if selection.axes is not None else _KINDS[kind].order),
            **found.sources(),
        },
        identity={**now(), **picked.chosen, **selection.identity("axes")},
        current_identity=now,
        files=FileList(tuple({str(path), str(voxels)})),
        missing=found.missing,
        counted=found.counted,
        notes=(*header.notes, *volume.notes),
    )


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
    if selection.axes is not None:
        return _open_named(path, name, selection, (shape, fortran, dtype, start))
    selection.check_kind(name)
    zyx = plain_zyx(name, shape)
    check_voxels(name, zyx, dtype)
    check_complete(name, start + math.prod(zyx) * dtype.itemsize, path.stat().st_size)
    order = (zyx[2], zyx[1], zyx[0]) if fortran else zyx
    reader = RawReader(
        name,
        (str(path.resolve()),),
        np.zeros(order[0], np.int64),
        contiguous_offsets(start, order, dtype),
        order,
        dtype,
        reverse=fortran,
    )
    return Volume(
        name,
        "NumPy file",
        zyx,
        dtype.newbyteorder("="),
        reader,
        read_overhead=reader.overhead,
        sources={"shape": ".npy header", "axes": UNNAMED[len(shape)]},
        identity=file_identity(path),
        current_identity=partial(file_identity, path),
        files=FileList((str(path.resolve()),)),
        missing="a .npy file has none",
    )


def _open_named(
    path: Path, name: str, selection: Selection, header: tuple[tuple[int, ...], bool, np.dtype[Any], int]
) -> Volume:
    """Open an array whose axes the user names; in Fortran order it is one in C order whose axes are reversed."""
    shape, fortran, dtype, start = header
    selection.named(name, [], shape)
    turn = -1 if fortran else 1
    stored = replace(selection, axes=(selection.axes or "")[::turn])
    volume, picked = open_raw(RawArray(name, str(path.resolve()), start, shape[::turn], dtype), [], stored)
    return replace(
        volume,
        kind="NumPy file",
        sources={"shape": ".npy header", "axes": picked.told(GIVEN)},
        identity={**file_identity(path), **picked.chosen, **selection.identity("axes")},
        current_identity=partial(file_identity, path),
        files=FileList((str(path.resolve()),)),
        missing="a .npy file has none",
    )


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
