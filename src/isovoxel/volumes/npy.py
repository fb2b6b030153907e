"""How is a ``.npy`` file read box by box? Its header is parsed here, its voxels are read as they lie."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from isovoxel.errors import InputError
from isovoxel.volumes.axes import UNNAMED, plain_zyx
from isovoxel.volumes.base import Volume, check_voxels
from isovoxel.volumes.files import check_complete, file_identity, reason_of
from isovoxel.volumes.raw import RawReader, contiguous_offsets

# NumPy does not type these functions.
_FORMAT: Any = np.lib.format


def open_npy(path: Path, name: str) -> Volume:
    """Open a 3-D or 2-D array in a ``.npy`` file, in C or Fortran order and any byte order.

    Raises
    ------
    InputError
        If the header is broken or of another kind, or voxels are missing.
    """
    with path.open("rb") as file:
        shape, fortran, dtype = _header(file, name)
        start = file.tell()
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
        missing="a .npy file has none",
    )


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
        raise InputError(f"{name} has a broken .npy header ({reason_of(error)}); copy or write it again") from error
    return shape, fortran, dtype
