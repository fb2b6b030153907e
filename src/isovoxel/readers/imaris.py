"""Open the image of an Imaris file: all its channels and time points, less the padding of its arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isovoxel.errors import InputError, InputMissingError
from isovoxel.metadata.hdf5 import image_shape, read_channel, read_extent
from isovoxel.metadata.series import chosen_channels
from isovoxel.readers.base import ReadBox, SeriesReader, Volume
from isovoxel.readers.files import file_identity
from isovoxel.readers.hdf5 import volume_of_dataset
from isovoxel.readers.selection import Picked, Selection, pick, plain_zyx

if TYPE_CHECKING:
    import h5py

_HOME = "DataSet/ResolutionLevel 0/TimePoint 0"
_INFO = "DataSetInfo/Image"
_DATA = re.compile(r"/?DataSet/ResolutionLevel \d+/TimePoint \d+/Channel \d+(/Data)?/?")


def is_imaris(file: h5py.File, inner: str | None) -> bool:
    """Return whether an HDF5 file is Imaris', and a path in it names an image or nothing."""
    return _HOME in file and _INFO in file and (inner is None or not inner.strip("/") or bool(_DATA.fullmatch(inner)))


def open_imaris(file: h5py.File, path: Path, inner: str | None, name: str, selection: Selection) -> Volume:
    """Open the image of an Imaris file at its finest level, or the channel that a path names.

    Raises
    ------
    InputError
        If sizes contradict each other, or channels each other.
    OptionError
        If there is no such channel or time point.
    """
    place = (inner or "").strip("/").removesuffix("/Data")
    if place:
        selection.check_kind(name)
        return _channel(file, path, place, name)
    points = _count(file["DataSet/ResolutionLevel 0"], "TimePoint", name)
    channels = _count(file[_HOME], "Channel", name)
    first = _channel(file, path, _place((0, 0)), name)
    picked = pick(name, "tczyx", (points, channels, *first.shape), selection)
    if points == channels == 1:
        return first
    for t in range(points):
        for c in range(channels):
            one = _channel(file, path, _place((t, c)), name)
            if (one.shape, one.dtype) != (first.shape, first.dtype):
                raise InputError(f"{name} contradicts itself: its channels and time points are not of one size")
    start = (picked.others[0], picked.others[1])
    chosen = _channel(file, path, _place(start), name)
    identity = {**file_identity(path), **picked.chosen}
    told = tuple(read_channel(file[f"DataSetInfo/Channel {c}"].attrs) for c in range(channels) if _has(file, c))
    named = chosen_channels(told, channels, picked.chosen.get("channel"))
    sources = {**chosen.sources, "axes": picked.told(chosen.sources["axes"])}
    now = partial(file_identity, path)
    chosen = replace(chosen, identity=identity, current_identity=now, channels=named, sources=sources)
    if not picked.series:
        return chosen
    return replace(
        chosen,
        read=SeriesReader(picked.lengths, partial(_member, path, name, picked)),
        cached=None,  # readers of many files' worth of chunks would each keep some
        series=picked.axes(),
    )


def _place(which: tuple[int, int]) -> str:
    """Return the path of a channel, by time point and channel."""
    return f"DataSet/ResolutionLevel 0/TimePoint {which[0]}/Channel {which[1]}"


def _count(group: Any, word: str, name: str) -> int:
    """Return how many time points or channels a group has, which must be numbered from 0 on."""
    numbers = {key for key in group if key.startswith(f"{word} ")}
    if not numbers or numbers != {f"{word} {i}" for i in range(len(numbers))}:
        raise InputError(f"{name} contradicts itself: its {word} groups are not numbered from 0 on")
    return len(numbers)


def _has(file: h5py.File, channel: int) -> bool:
    return f"DataSetInfo/Channel {channel}" in file


def _member(path: Path, name: str, picked: Picked, where: Sequence[int]) -> ReadBox:
    """Return what reads one volume of the series."""
    from isovoxel.readers.hdf5_reader import open_for_reading

    others = picked.at(where).others
    with open_for_reading(str(path.resolve())) as file:
        return _channel(file, path, _place((others[0], others[1])), name).read


def _channel(file: h5py.File, path: Path, place: str, name: str) -> Volume:
    """Return one channel of one time point as a volume."""
    channel: Any = file.get(place)
    dataset = channel.get("Data") if channel is not None else None
    if dataset is None or not hasattr(dataset, "dtype"):
        raise InputMissingError(f"{name} is not there: the Imaris file has no {place}/Data")
    padded = plain_zyx(name, dataset.shape)
    shape = image_shape(channel.attrs, padded)
    if shape is None:
        raise InputError(f"{name} contradicts itself: its image is not inside its array of {padded} voxels")
    told = {"shape": f"{place}, less its padding", "axes": "Imaris' order, z, y, x"}
    return volume_of_dataset(
        dataset, path, name, "Imaris", (0, 1, 2), shape, read_extent(file[_INFO].attrs, shape), told
    )
