"""Which dataset of an Imaris file is the image, and how much of it? One channel of one time point, less its padding."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isovoxel.errors import InputError, InputMissingError
from isovoxel.metadata.imaris import image_shape, read_extent
from isovoxel.volumes.axes import plain_zyx
from isovoxel.volumes.base import Volume
from isovoxel.volumes.hdf5 import volume_of

if TYPE_CHECKING:
    import h5py

_HOME = "DataSet/ResolutionLevel 0/TimePoint 0"
_INFO = "DataSetInfo/Image"
_DATA = re.compile(r"/?DataSet/ResolutionLevel \d+/TimePoint \d+/Channel \d+(/Data)?/?")


def is_imaris(file: h5py.File, inner: str | None) -> bool:
    """Tell whether an HDF5 file is Imaris', and a path in it names an image or nothing."""
    return _HOME in file and _INFO in file and (inner is None or not inner.strip("/") or bool(_DATA.fullmatch(inner)))


def open_imaris(file: h5py.File, path: Path, inner: str | None, name: str) -> Volume:
    """Open the image of an Imaris file at its finest level, or the channel that a path names.

    Raises
    ------
    InputError
        If there are several channels or time points and no path, or sizes contradict each other.
    """
    place = (inner or "").strip("/") or _only_one(file, path, name)
    channel: Any = file.get(place.removesuffix("/Data"))
    dataset = channel.get("Data") if channel is not None else None
    if dataset is None or not hasattr(dataset, "dtype"):
        raise InputMissingError(f"{name} is not there: the Imaris file has no {place.removesuffix('/Data')}/Data")
    padded = plain_zyx(name, dataset.shape)
    shape = image_shape(channel.attrs, padded)
    if shape is None:
        raise InputError(f"{name} contradicts itself: its image is not inside its array of {padded} voxels")
    told = {"shape": f"{place.removesuffix('/Data')}, less its padding", "axes": "Imaris' order, z, y, x"}
    return volume_of(dataset, path, name, "Imaris", (0, 1, 2), shape, read_extent(file[_INFO].attrs, shape), told)


def _only_one(file: h5py.File, path: Path, name: str) -> str:
    """Return the path of the only channel of the only time point."""
    level, home = file["DataSet/ResolutionLevel 0"], file[_HOME]
    for what, group, word in (("time points", level, "TimePoint"), ("channels", home, "Channel")):
        count = sum(1 for key in group if key.startswith(f"{word} "))
        if count != 1:
            raise InputError(
                f"{name} has {count} {what}; isovoxel takes 3-D z, y, x of this kind of input: "
                f"name one channel, as in '{path.name}:/{_HOME}/Channel 0'"
            )
    return f"{_HOME}/Channel 0"
