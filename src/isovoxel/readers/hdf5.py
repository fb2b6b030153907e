"""Open a dataset of an HDF5 file as a volume: ``file.h5:/path/to/dataset``, or the only 3-D one; or an Imaris file.

Voxels that lie in the file as they are, are read there without HDF5; others by `Hdf5Reader`. A dataset whose voxels
lie in other files is refused, for those are not what the user named.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isovoxel.errors import InputError, InputMissingError
from isovoxel.geometry.grid import Index3, triple
from isovoxel.metadata.hdf5 import (
    FINEST,
    Surroundings,
    image_shape,
    level_of,
    read_channel,
    read_extent,
    read_hdf5,
    read_n5,
    text_of,
)
from isovoxel.metadata.series import chosen_channels
from isovoxel.metadata.units import Calibration
from isovoxel.readers.base import ReadBox, SeriesReader, Volume, check_voxels
from isovoxel.readers.files import check_complete, named_failures, of_file
from isovoxel.readers.raw import RawArray, RawReader
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import GIVEN, PLAIN, Picked, Selection, listed, pick, pick_only, plain_zyx

if TYPE_CHECKING:
    import h5py

    from isovoxel.readers.hdf5_reader import Hdf5Reader


MAGIC = b"\x89HDF\r\n\x1a\n"
"""What HDF5 begins with, at byte 0, or behind a user block of 512 bytes or a power of two more."""

USER_BLOCKS = (0, 512, 1024, 2048, 4096, 8192)
"""Where the magic is looked for."""

MOST_VISITED = 10_000
"""So many objects of a file are looked through for the one that can be scaled; a file of more must be told which."""

BY_HDF5 = "HDF5 itself decodes this dataset, and lets one thread do so at a time; others wait"
"""What is said of a dataset whose filters are not undone here."""

_TAGS = "axistags"


def is_hdf5(at: Location) -> bool:
    """Return whether a file is HDF5."""
    with at.path.open("rb") as file:
        for offset in USER_BLOCKS:
            file.seek(offset)
            if file.read(len(MAGIC)) == MAGIC:
                return True
    return False


def open_hdf5(at: Location, selection: Selection) -> Volume:
    """Open a dataset of an HDF5 file, or an image of an Imaris file.

    Parameters
    ----------
    at
        The file, and in it the path of the dataset, or of a group that holds it, where it is not the only one.
    selection
        Which channel and which time point are meant, of an Imaris file.

    Raises
    ------
    InputError
        If the file is damaged, or there is no such dataset, or several.
    """
    from isovoxel.readers.hdf5_reader import open_unlocked

    path, inner, name = at.path, at.inner, at.name
    with open_unlocked(path, name) as file, named_failures(name, "HDF5"):
        if is_imaris(file, inner):
            return open_imaris(file, path, inner, name, selection)
        selection.check_kind(name, "axes")
        volume = _open_dataset(_find(file, inner or "/", name), path, name, selection)
        return replace(volume, identity={**volume.identity, **selection.identity("axes")})


def _open_dataset(dataset: h5py.Dataset, path: Path, name: str, selection: Selection) -> Volume:
    if dataset.shape is None:
        raise InputError(f"{name} is a dataset without any value; isovoxel takes z, y, x")
    axes, axes_source = _axes(dataset)
    picked = pick_only(name, axes, dataset.shape, selection)
    shape = picked.shape(dataset.shape)
    told = {"shape": f"dataset {dataset.name}", "axes": axes_source if selection.axes is None else GIVEN}
    return volume_of_dataset(dataset, path, name, "HDF5 dataset", picked, shape, _measured(dataset), told)


def _measured(dataset: h5py.Dataset) -> Calibration:
    """Return what the attributes of a dataset, and of what it lies in, say of its voxel size."""
    own, group = dict(dataset.attrs), dict(dataset.parent.attrs)
    level = level_of(dataset.name.rpartition("/")[2])
    if "n5" in dataset.file.attrs:  # written as N5, in whose attributes x comes first
        beside = dataset.parent.get(FINEST) if level else None
        above = [group, dict(dataset.parent.parent.attrs)]
        finest = {} if beside is None else dict(beside.attrs)
        plain, *groups, finest = (_from_json(attributes) for attributes in (own, *above, finest))
        return read_n5(plain, Surroundings(groups, level, finest))
    factors = own.get("downsamplingFactors")
    return read_hdf5(own, group, coarser=bool(level) or (factors is not None and bool(np.any(factors != 1))))


def _from_json(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as N5 has them: of HDF5's, text may be JSON, and arrays are lists."""
    found = {}
    for key, value in attributes.items():
        text = text_of(value)
        found[key] = value.tolist() if isinstance(value, np.ndarray) and not text else text or value
        if text.startswith(("{", "[")):
            with contextlib.suppress(ValueError, RecursionError):
                found[key] = json.loads(text)
    return found


def volume_of_dataset(
    dataset: h5py.Dataset,
    path: Path,
    name: str,
    kind: str,
    picked: Picked,
    shape: Index3,
    calibration: Calibration,
    told: Mapping[str, str],
) -> Volume:
    """Return a dataset as a volume.

    Parameters
    ----------
    dataset
        The dataset, open.
    path
        The file.
    name
        What the user called it.
    kind
        What it is, for people.
    picked
        Which of its axes are z, y and x.
    shape
        Number of voxels, z, y, x; from the first one on, if the dataset has more.
    calibration
        Voxel size and unit, and the position of voxel 0.
    told
        Where shape and axes were read from.

    Raises
    ------
    InputError
        If voxels are missing, lie in other files, or cannot be decoded.
    """
    reader = _reader_of(dataset, path, name, picked, shape)
    by_chunks = None if isinstance(reader, RawReader) else reader
    by_hdf5 = by_chunks is not None and by_chunks.filters is None
    volume = Volume(
        name,
        kind,
        shape,
        reader.dtype.newbyteorder("="),
        reader,
        chunks=(1, 1, 1) if by_chunks is None else triple(map(min, by_chunks.chunk, shape)),
        read_overhead=reader.overhead,
        sources=told,
        notes=(BY_HDF5,) if by_hdf5 else (),
        cached=None if by_chunks is None or by_hdf5 else by_chunks.cached,
    )
    return of_file(volume.measured(calibration), path, dataset.name)


def _reader_of(dataset: h5py.Dataset, path: Path, name: str, picked: Picked, shape: Index3) -> RawReader | Hdf5Reader:
    """Return what reads boxes of a dataset, as `volume_of_dataset` describes them."""
    from isovoxel.readers.hdf5_reader import (
        ROWS_BYTES,
        SHUFFLE,
        Hdf5Reader,
        as_declared,
        has_plain_type,
        known_filters,
        stored_dtype,
    )

    if dataset.is_virtual or dataset.external or not os.path.samefile(dataset.file.filename, path):  # noqa: PTH121
        raise InputError(f"{name} has its voxels in other files; copy it into a file of its own, with h5repack say")
    check_voxels(name, shape, np.dtype(dataset.dtype))
    stored, plain = stored_dtype(dataset, name), has_plain_type(dataset)
    whole = bool(dataset.shape == shape) and not dataset.file.userblock_size and plain
    offset = dataset.id.get_offset()
    if whole and offset is not None and dataset.chunks is None:
        array = RawArray(name, str(path.resolve()), offset, shape, stored)
        check_complete(name, array.end, path.stat().st_size)
        return array.reader(picked)
    properties = dataset.id.get_create_plist()
    pipeline = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    codes = tuple(int(code) for code, *_ in pipeline)
    _check_filters(codes, name)
    sizes = {int(values[0]) for code, _, values, _ in pipeline if code == SHUFFLE and values}
    ours = plain and not dataset.file.userblock_size and sizes <= {stored.itemsize}
    filters = known_filters(codes) if ours else None
    if dataset.chunks is None:
        filters = None
        rows = max(1, ROWS_BYTES // (shape[2] * stored.itemsize))
        chunk: Index3 = (max(1, rows // shape[1]), min(shape[1], rows), shape[2])
    else:
        if any(dataset.chunks[axis] != 1 for axis in picked.others):
            raise InputError(f"{name} has chunks of several images; copy it into a dataset of its own")
        chunk = picked.shape(dataset.chunks)
    return Hdf5Reader(
        name,
        str(path.resolve()),
        dataset.name,
        picked,
        shape,
        stored,
        chunk,
        filters,
        as_declared(dataset.fillvalue, np.dtype(dataset.dtype), stored),
        picked.shape(dataset.shape),
    )


def _check_filters(codes: tuple[int, ...], name: str) -> None:
    """Check that what is encoded can be decoded before a job relies on it."""
    import h5py

    for code in codes:
        if not h5py.h5z.filter_avail(code):
            raise InputError(
                f"{name} is encoded with HDF5's filter {code}, which is not installed here; "
                f"install the plug-in (such as hdf5plugin) and set HDF5_PLUGIN_PATH, or write it with gzip"
            )


def _axes(dataset: h5py.Dataset) -> tuple[list[str], str]:
    """Return the name of every axis, empty where it has none, and where they are from."""
    tags = text_of(dataset.attrs.get(_TAGS))
    if tags:
        try:
            found = [str(axis["key"]).lower() for axis in json.loads(tags)["axes"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            found = []
        if len(found) == dataset.ndim:
            return found, _TAGS
    labels = [str(dimension.label).lower() for dimension in dataset.dims]
    if any(labels):
        return labels, "HDF5 dimension labels"
    return labels, "unnamed axes, taken as z, y, x"


# ---- which one is meant ----------------------------------------------------------------------------------------


def _find(file: h5py.File, inner: str, name: str) -> h5py.Dataset:
    """Return the dataset at a path, or the only 3-D one below it."""
    found = _at(file, inner, name)
    if hasattr(found, "dtype"):
        return found
    datasets = _datasets(found)
    images = [path for path, shape in datasets.items() if sum(n > 1 for n in shape) >= 3]
    if len(images) == 1:
        return file[images[0]]
    if not datasets:
        raise InputError(f"{name} is an HDF5 file without a dataset")
    named = listed(f"{path} ({' x '.join(map(str, datasets[path]))})" for path in (images or datasets))
    what = f"{len(images)} datasets that could be meant" if images else "no 3-D dataset"
    raise InputError(
        f"{name} has {what}: {named}" + (f"; name one, as in {Path(file.filename).name}:{images[0]}" if images else "")
    )


def _at(file: h5py.File, inner: str, name: str) -> Any:
    """Return the group or dataset at a path, unless a link on the way leads to another file."""
    import h5py

    place: Any = file
    for part in filter(None, inner.split("/")):
        link = place.get(part, getlink=True) if isinstance(place, h5py.Group) and part in place else None
        if isinstance(link, h5py.ExternalLink):
            raise InputError(f"{name} leads to another file, {link.filename[:100]!r}; give its path")
        if link is None:
            there = ", ".join(_datasets(file)) or "no dataset"
            raise InputMissingError(f"{name} is not there: the file has {there[:500]}")
        place = place[part]
    return place


def _datasets(group: Any) -> Mapping[str, tuple[int, ...]]:
    """Return the datasets below a group that hold voxels, with their shapes; no link is followed."""
    found: dict[str, tuple[int, ...]] = {}
    visited = 0

    def visit(_: str, item: Any) -> bool | None:
        nonlocal visited
        visited += 1
        shape = getattr(item, "shape", None)
        if shape:
            found[item.name] = shape
        return True if visited >= MOST_VISITED else None

    group.visititems(visit)
    return found


# ---- Imaris ------------------------------------------------------------------------------------------------------

# Open the image of an Imaris file: all its channels and time points, less the padding of its arrays.


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
    chosen = _channel(file, path, _place((picked.others[0], picked.others[1])), name)
    places = [f"DataSetInfo/Channel {channel}" for channel in range(channels)]
    told = tuple(read_channel(file[place].attrs) for place in places if place in file)
    named = chosen_channels(told, channels, picked.chosen.get("channel"))
    sources = {**chosen.sources, "axes": picked.told(chosen.sources["axes"])}
    chosen = of_file(replace(chosen, channels=named, sources=sources), path, **picked.chosen)
    if not picked.series:
        return chosen
    return replace(
        chosen,
        read=SeriesReader(picked, partial(_member, path, name)),
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


def _member(path: Path, name: str, picked: Picked) -> ReadBox:
    """Return what reads one volume of the series."""
    from isovoxel.readers.hdf5_reader import open_for_reading

    with open_for_reading(str(path.resolve())) as file:
        return _channel(file, path, _place((picked.others[0], picked.others[1])), name).read


def _channel(file: h5py.File, path: Path, place: str, name: str) -> Volume:
    """Return one channel of one time point as a volume."""
    channel: Any = file.get(place)
    dataset = channel.get("Data") if channel is not None else None
    if dataset is None or not hasattr(dataset, "dtype"):
        raise InputMissingError(f"{name} is not there: the Imaris file has no {place}/Data")
    padded = plain_zyx(name, dataset.shape)
    info = file[_INFO].attrs
    shape = image_shape(channel.attrs, padded, info if place.startswith("DataSet/ResolutionLevel 0/") else {})
    if shape is None:
        raise InputError(f"{name} contradicts itself: its image is not inside its array of {padded} voxels")
    told = {"shape": f"{place}, less its padding", "axes": "Imaris' order, z, y, x"}
    measured = read_extent(info, shape)
    return volume_of_dataset(dataset, path, name, "Imaris", PLAIN, shape, measured, told)
