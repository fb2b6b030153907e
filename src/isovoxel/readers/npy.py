"""Open a ``.npy`` file as a volume: its header is parsed here, its voxels are read as they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from isovoxel.errors import InputError
from isovoxel.readers.base import ReadBox, SeriesReader, Volume, check_voxels
from isovoxel.readers.files import FileList, check_complete, file_identity, reason_of, unreadable
from isovoxel.readers.raw import RawReader, contiguous_offsets
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import GIVEN, UNNAMED, Picked, Selection, pick, plain_zyx

# NumPy does not type these functions.
_FORMAT: Any = np.lib.format


def open_npy(at: Location, selection: Selection) -> Volume:
    """Open a 3-D or 2-D array in a ``.npy`` file, in C or Fortran order and any byte order.

    Or one of more axes in C order, where the selection names them.

    Raises
    ------
    InputError
        If the header is broken or of another kind, or voxels are missing.
    """
    path, name = at.path, at.name
    with path.open("rb") as file:
        shape, fortran, dtype = _header(file, name)
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
    """Open an array whose axes the user names: planes of y and x, whichever axes come before."""
    shape, fortran, dtype, start = header
    picked = pick(name, [""] * len(shape), shape, selection)
    zyx = picked.shape(shape)
    check_voxels(name, zyx, dtype)
    if fortran or picked.zyx[1:] != (len(shape) - 2, len(shape) - 1):
        order = "Fortran" if fortran else "C"
        raise InputError(
            f"{name} is in {order} order with the axes {selection.axes}, so that its planes are not whole; save it in "
            "C order with y and x as its last axes"
        )
    check_complete(name, start + math.prod(shape) * dtype.itemsize, path.stat().st_size)
    planes = _Planes(name, str(path.resolve()), start, shape, dtype, picked)
    read: ReadBox = planes(()) if not picked.series else SeriesReader(picked.lengths, planes)
    return Volume(
        name,
        "NumPy file",
        zyx,
        dtype.newbyteorder("="),
        read,
        read_overhead=planes(tuple(0 for _ in picked.series)).overhead,
        sources={"shape": ".npy header", "axes": picked.told(GIVEN)},
        identity={**file_identity(path), **picked.chosen, **selection.identity("axes")},
        current_identity=partial(file_identity, path),
        missing="a .npy file has none",
        series=picked.axes(),
    )


@dataclass(frozen=True)
class _Planes:
    """Returns the reader of one volume of an array of more axes, by its place."""

    name: str
    path: str
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    picked: Picked

    def __call__(self, place: tuple[int, ...]) -> RawReader:
        strides = [self.dtype.itemsize * math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        first = self.start + sum(strides[axis] * at for axis, at in self.picked.at(place).others.items())
        zyx = self.picked.shape(self.shape)
        step = 0 if self.picked.zyx[0] is None else strides[self.picked.zyx[0]]
        offsets = first + step * np.arange(zyx[0], dtype=np.int64)
        return RawReader(self.name, (self.path,), np.zeros(zyx[0], np.int64), offsets, zyx, self.dtype)


def _header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
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
