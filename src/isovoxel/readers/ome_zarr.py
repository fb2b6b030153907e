"""Open an OME-Zarr image, a zarr group of resolution levels, at one of its levels, and at the coarser ones.

Its attributes are read as JSON and understood by `isovoxel.metadata.ome`; its voxels are those of a zarr
array. A group that is no image is answered with what in it could be opened instead, by
`isovoxel.readers.zarr_groups`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from isovoxel.errors import InputError
from isovoxel.geometry.box import Box
from isovoxel.geometry.grid import Float3
from isovoxel.metadata.calibration import Calibration, Length, calibrate
from isovoxel.metadata.ome import Level, is_label_image, read_channels, read_levels, time_step_of
from isovoxel.metadata.series import Channel, chosen_channels
from isovoxel.metadata.units import canonical_unit, convert_length
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.place import Place
from isovoxel.object_store.zarr_nodes import ARRAY_FILES, GROUP_FILES, files_of_node, kind_of_node
from isovoxel.readers.axes import ZYX, Picked
from isovoxel.readers.base import Files, Volume
from isovoxel.readers.files import metadata_identity
from isovoxel.readers.selection import Selection
from isovoxel.readers.zarr_array import axis_names, open_path, zarr_voxels
from isovoxel.readers.zarr_groups import attributes_of, refuse_group


def open_ome_zarr(path: Place, name: str, selection: Selection) -> Volume:
    """Open one level of an OME-Zarr 0.4 or 0.5 image, which knows how the coarser ones are opened.

    Raises
    ------
    InputError
        If the group is no OME-Zarr image, its metadata contradict its array, or the array is not z, y, x.
    OptionError
        If it has no such level.
    """
    attributes = attributes_of(path, name)
    refuse_group(path, attributes, name)
    levels = read_levels(attributes, name)
    chosen = selection.among("level", len(levels), name)
    opened = partial(_open_level, path, name, attributes, selection=selection, first=levels[0])
    return replace(opened(levels[chosen]), coarser=tuple(partial(opened, level) for level in levels[chosen + 1 :]))


def _open_level(
    path: Place, name: str, attributes: Mapping[str, Any], level: Level, selection: Selection, first: Level
) -> Volume:
    """Open one level of an image, of which this is the first one."""
    home = path / level.path
    if kind_of_node(home) != "array":
        raise InputError(
            f"{name} is incomplete: its OME-Zarr metadata name the array {level.path!r}, which is not there"
        )
    array = open_path(home, name)
    if array.ndim != len(level.axes):
        raise InputError(
            f"{name} contradicts itself: its OME-Zarr metadata have {len(level.axes)} axes, "
            f"its array {level.path!r} has {array.ndim}"
        )
    axes = [axis.lower() for axis in level.axes]
    if any(own and own != axis for own, axis in zip(axis_names(array), axes, strict=True)):
        raise InputError(
            f"{name} contradicts itself: its OME-Zarr metadata have the axes {', '.join(axes)}, "
            f"its array {level.path!r} has {', '.join(axis_names(array))}"
        )
    voxels = zarr_voxels(array, name, axes, selection)
    calibration = _calibration(level, voxels.picked.zyx)
    if (finest := _calibration(first, voxels.picked.zyx)).counted:
        calibration = replace(finest, counted=first is level)  # of which all others are multiples
    sources = {"shape": f"zarr metadata of array {level.path!r}", "axes": voxels.picked.told("OME-Zarr axes")}
    if calibration.voxel_size is not None:
        sources["voxel size"] = calibration.source
    if calibration.unit is not None:
        sources["unit"] = "OME-Zarr axes"
    made = attributes.get("isovoxel")
    incomplete = isinstance(made, Mapping) and made.get("complete") is False
    files = files_of_node(path, GROUP_FILES) + files_of_node(home, ARRAY_FILES)
    labels = is_label_image(attributes)
    kind = f"OME-Zarr {level.version}{' label image' if labels else ''}{' (incomplete)' if incomplete else ''}"
    return Volume(
        name,
        kind,
        voxels.shape,
        voxels.dtype,
        voxels.read,
        voxels.chunks,
        voxels.read_overhead,
        calibration.voxel_size,
        _origin(level, voxels.picked.zyx, calibration.unit),
        calibration.unit,
        sources,
        {**metadata_identity(path, files), **selection.identity("level"), **voxels.picked.chosen},
        calibration.missing,
        labels,
        voxels.notes,
        cached=voxels.cached,
        files=None if voxels.files is None else partial(_files, voxels.files, _absolute(path)),
        series=voxels.picked.axes(time_step_of(level)),
        channels=_channels(attributes, axes, array.shape, voxels.picked),
        counted=calibration.counted,
    )


def _absolute(group: Place) -> tuple[str | ObjectPlace, ...]:
    """Return the files of a group's metadata, of which not all may be there."""
    files = [group.resolve() / file for file in GROUP_FILES]
    return tuple(file if isinstance(file, ObjectPlace) else str(file) for file in files)


def _files(voxels: Files, metadata: tuple[str | ObjectPlace, ...], box: Box) -> Iterator[str | ObjectPlace]:
    """Yield the files of an image: those of its group, and those of its array."""
    yield from metadata
    yield from voxels(box)


def _channels(
    attributes: Mapping[str, Any], axes: Sequence[str], shape: Sequence[int], picked: Picked
) -> tuple[Channel, ...]:
    """Return what the image says of its channels; of the one that was chosen where one was."""
    count = shape[axes.index("c")] if "c" in axes else 1
    return chosen_channels(read_channels(attributes), count, picked.chosen.get("channel"))


def _calibration(level: Level, zyx: ZYX) -> Calibration:
    z, y, x = (Length(None) if axis is None else Length(level.scale[axis], level.units[axis]) for axis in zyx)
    return calibrate("its OME-Zarr metadata", "OME-Zarr scale", (z, y, x), flat=zyx[0] is None)


def _origin(level: Level, zyx: ZYX, unit: str | None) -> Float3:
    """Return the position of voxel 0 in a unit, or as the image counts, where that is none."""
    lengths = []
    for axis in zyx:
        length = 0.0 if axis is None else level.translation[axis]
        own = None if axis is None else canonical_unit(level.units[axis] or "")
        lengths.append(length if unit is None or own is None else convert_length(length, own, unit))
    return (lengths[0], lengths[1], lengths[2])
