"""Data types of HDF5 datasets: which are voxels as they lie in the file, and which HDF5 must convert.

HDF5 has integers of which only some bits count, bit fields, floats of any form and enumerations. A dataset's bytes are
voxels only where its type is one of NumPy's, bit for bit. BigDataViewer stores uint16 as int16, and says so nowhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from isovoxel.errors import InputError
from isovoxel.metadata.hdf5 import text_of
from isovoxel.readers.base import SUPPORTED_DTYPES

if TYPE_CHECKING:
    import h5py

_CELLS = re.compile(r"/t\d{5,}/(s\d{2,})/\d+/cells")
"""Path of a BigDataViewer image; the setup's attributes lie in a group of its own, whose name is in brackets."""


def stored_dtype(dataset: h5py.Dataset, name: str) -> np.dtype[Any]:
    """Return the data type that the voxels of a dataset mean, in the byte order of the file.

    Raises
    ------
    InputError
        If there is no way to read its type, or BigDataViewer says of it what cannot be.
    """
    import h5py

    stored = np.dtype(dataset.dtype)
    bare = np.dtype(stored.str) if stored.kind in "iuf" else stored  # of an enumeration, the numbers
    if (
        bare.newbyteorder("=") in SUPPORTED_DTYPES
        and h5py.h5t.find(_type_of(dataset), h5py.h5t.py_create(bare)) is None
    ):
        kind = dataset.id.get_type()
        what = "a bit field" if kind.get_class() == h5py.h5t.BITFIELD else "numbers of a kind"
        raise InputError(f"{name} holds {what} that HDF5 does not convert; write it as {bare.newbyteorder('=')}")
    cells = _CELLS.fullmatch(dataset.name)
    return bare if cells is None else _declared(dataset, cells[1], bare, name)


def is_plain(dataset: h5py.Dataset) -> bool:
    """Tell whether a dataset's bytes, decoded, are its voxels: all bits of whole numbers, or IEEE's floats."""
    import h5py

    return bool(_type_of(dataset) == h5py.h5t.py_create(np.dtype(np.dtype(dataset.dtype).str)))


def as_declared(value: Any, stored: np.dtype[Any], declared: np.dtype[Any]) -> Any:
    """Return a number of the type that is stored as the one that its bits mean."""
    native = np.asarray(value).astype(stored.newbyteorder("="))
    return native.view(declared.newbyteorder("="))[()]


def _type_of(dataset: h5py.Dataset) -> Any:
    import h5py

    kind = dataset.id.get_type()
    return kind.get_super() if kind.get_class() == h5py.h5t.ENUM else kind


def _declared(dataset: h5py.Dataset, setup: str, stored: np.dtype[Any], name: str) -> np.dtype[Any]:
    """Return what BigDataViewer says of its voxels, which without a word are uint16."""
    group = dataset.file.get(setup)
    says = text_of(group.attrs.get("dataType")) if group is not None else ""
    declared = _named(says) if says else np.dtype(np.uint16) if stored.kind + str(stored.itemsize) == "i2" else stored
    same = declared is not None and declared.itemsize == stored.itemsize
    if declared is None or not same or (declared.kind == "f") != (stored.kind == "f"):
        raise InputError(
            f"{name} contradicts itself: BigDataViewer's dataType of /{setup} is {says[:40]!r}, but the dataset holds "
            f"{stored.newbyteorder('=')}"
        )
    return declared.newbyteorder(">" if stored.str.startswith(">") else "<")


def _named(text: str) -> np.dtype[Any] | None:
    """Return the data type of a name such as "uint16", or None where it is no number's."""
    try:
        found = np.dtype(text.lower())
    except TypeError:
        return None
    return found if found.kind in "iuf" else None
