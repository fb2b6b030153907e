"""Open an OME-Zarr image, a zarr group of resolution levels, at one of its levels, and at the coarser ones.

Its attributes are read as JSON and understood by `isovoxel.metadata.ome`; its voxels are those of a zarr array. Plates
of images have wells, wells have images; bioformats2raw makes collections, a folder for each image of a file. Of none of
them a volume is opened but where one of their images is selected; else the answer names some.

Source: https://ngff.openmicroscopy.org/0.5/, "plate", "well" and "bioformats2raw.layout".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count, islice, takewhile
from typing import Any

from isovoxel.errors import InputError, InputUnavailableError
from isovoxel.geometry.grid import Box, Float3, number_text, triple
from isovoxel.metadata.ome import Level, is_label_image, read_levels
from isovoxel.metadata.series import SeriesAxis, read_channels, stays_inside
from isovoxel.metadata.units import Calibration, Length, calibrate, canonical_unit, convert_length
from isovoxel.object_store.files import ARRAY_FILES, GROUP_FILES, files_of_node, kind_of_node, read_group
from isovoxel.object_store.objects import ObjectPlace, Place
from isovoxel.readers.base import Files, Volume
from isovoxel.readers.files import metadata_identity, unreadable
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import ZYX, Collection, ImageEntry, Picked, Selection, find_image, listed
from isovoxel.readers.zarr_array import open_path, zarr_voxels


def open_ome_zarr(at: Location, selection: Selection) -> Volume:
    """Open one level of an OME-Zarr 0.4, 0.5 or 0.6 image, which knows how the coarser ones are opened.

    Raises
    ------
    InputError
        If the group is no OME-Zarr image, its metadata contradict its array, or the array is not z, y, x.
    OptionError
        If it has no such level.
    """
    if selection.image is not None:
        at, selection = _image_in(at, selection.image), replace(selection, image=None)
    path, name = at.place, at.name
    attributes = attributes_of(path, name)
    refuse_group(path, attributes, name)
    levels = read_levels(attributes, name)
    chosen = selection.among("level", len(levels), name)
    opened = partial(_open_level, path, name, attributes, selection=selection, first=levels[0])
    return replace(opened(levels[chosen]), coarser=tuple(partial(opened, level) for level in levels[chosen + 1 :]))


def image_of_level(array: Place) -> tuple[Place, int] | None:
    """Return the OME-Zarr image of which an array is a level, and which level, or None where it is none."""
    for group in (array.parent, array.parent.parent):  # some writers give each level a group of its own
        if kind_of_node(group) != "group":
            continue
        with suppress(InputError):
            levels = read_levels(attributes_of(group, str(group)), str(group))
            return next(((group, n) for n, level in enumerate(levels) if group / level.path == array), None)
    return None


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
    if len(array.shape) != len(level.axes):
        raise InputError(
            f"{name} contradicts itself: its OME-Zarr metadata have {len(level.axes)} axes, "
            f"its array {level.path!r} has {len(array.shape)}"
        )
    axes = [axis.lower() for axis in level.axes]
    if any(own and own != axis for own, axis in zip(array.axis_names, axes, strict=True)):
        raise InputError(
            f"{name} contradicts itself: its OME-Zarr metadata have the axes {', '.join(axes)}, "
            f"its array {level.path!r} has {', '.join(array.axis_names)}"
        )
    volume, picked = zarr_voxels(array, name, axes, selection)
    calibration = _calibration(level, picked.zyx)
    if (finest := _calibration(first, picked.zyx)).counted:
        calibration = replace(finest, counted=first is level)  # of which all others are multiples
    sources = {"shape": f"zarr metadata of array {level.path!r}", "axes": picked.told("OME-Zarr axes")}
    made = attributes.get("isovoxel")
    incomplete = isinstance(made, Mapping) and made.get("complete") is False
    files = files_of_node(path, GROUP_FILES) + files_of_node(home, ARRAY_FILES)
    labels = is_label_image(attributes)
    kind = f"OME-Zarr {level.version}{' label image' if labels else ''}{' (incomplete)' if incomplete else ''}"
    volume = replace(
        volume,
        kind=kind,
        sources=sources,
        labels=labels,
        incomplete=incomplete,
        notes=(*volume.notes, *([level.note] if level.note else []), *_lost_time(level, picked)),
        series=_placed(level, picked),
        channels=picked.channels(read_channels(attributes), axes, array.shape),
    )
    calibration = replace(calibration, origin=_origin(level, picked.zyx, calibration.unit))
    volume = volume.measured(calibration, "OME-Zarr axes")
    return volume.stored_in(
        None if volume.files is None else partial(_files, volume.files, _absolute(path)),
        partial(metadata_identity, path, files),
        **selection.identity("level"),
        **picked.chosen,
    )


def _absolute(group: Place) -> tuple[str | ObjectPlace, ...]:
    """Return the files of a group's metadata, of which not all may be there."""
    files = [group.resolve() / file for file in GROUP_FILES]
    return tuple(file if isinstance(file, ObjectPlace) else str(file) for file in files)


def _files(voxels: Files, metadata: tuple[str | ObjectPlace, ...], box: Box) -> Iterator[str | ObjectPlace]:
    """Yield the files of an image: those of its group, and those of its array."""
    yield from metadata
    yield from voxels(box)


def _calibration(level: Level, zyx: ZYX) -> Calibration:
    lengths = triple(Length(None) if axis is None else Length(level.scale[axis], level.units[axis]) for axis in zyx)
    return calibrate("its OME-Zarr metadata", "OME-Zarr scale", lengths, flat=zyx[0] is None)


def _placed(level: Level, picked: Picked) -> tuple[SeriesAxis, ...]:
    """Return the axes along which volumes are counted, where the level says that they lie; a step must be above 0."""
    return tuple(
        replace(
            axis,
            step=level.scale[i],
            unit=level.units[i] if axis.name == "t" else None,
            start=level.translation[i],
        )
        if level.scale[i] > 0
        else axis
        for axis, (i, _, _) in zip(picked.axes(), picked.series, strict=True)
    )


def _lost_time(level: Level, picked: Picked) -> Iterator[str]:
    """Yield what to say where a single time point has a time."""
    several = [axis for axis, _, _ in picked.series]
    for axis, index in picked.others.items():
        if level.axes[axis].lower() in ("t", "time") and axis not in several and level.translation[axis]:
            at = f"{number_text(level.translation[axis] + level.scale[axis] * index)} {level.units[axis] or ''}"
            yield f"its time, {at.rstrip()}, is not kept: a single time point has no time axis"


def _origin(level: Level, zyx: ZYX, unit: str | None) -> Float3:
    """Return the position of voxel 0 in a unit, or as the image counts, where that is none."""
    lengths = []
    for axis in zyx:
        length = 0.0 if axis is None else level.translation[axis]
        own = None if axis is None else canonical_unit(level.units[axis] or "")
        lengths.append(length if unit is None or own is None else convert_length(length, own, unit))
    return triple(lengths)


# ---- groups that are no image --------------------------------------------------------------------------------------


def images_of_group(at: Location) -> Collection:
    """Return the images of a plate, a well, a collection, or of any group in which images lie.

    Raises
    ------
    InputError
        If the group is one image itself, or its metadata cannot be read.
    """
    path, name = at.place, at.name
    home = _home(attributes_of(path, name))
    if "multiscales" in home:
        raise InputError(f"{name} is one image itself; leave out --image")
    if "plate" in home:
        wells = {well: _well_of(path, well) for well in _paths(home["plate"], "wells")}
        images = [image for well, metadata in wells.items() for image in _fields(well, metadata)]
        return Collection(_entries(images), home["plate"], wells)
    if (members := _members(path, home)) is not None:
        return Collection(_entries(members[1]), wells={"": home["well"]} if "well" in home else {})
    folders = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and kind_of_node(folder) == "group")
    return Collection(_entries(one for one in folders if "multiscales" in _home(_sound_attributes(path / one))))


def _entries(paths: Iterable[str]) -> tuple[ImageEntry, ...]:
    return tuple(ImageEntry(path) for path in dict.fromkeys(paths))


def _well_of(plate: Place, well: str) -> Mapping[str, Any]:
    """Return what a well says; nothing where it is not there, or says nothing that is sound."""
    found = _home(_sound_attributes(plate / well)).get("well")
    return found if isinstance(found, Mapping) else {}


def _sound_attributes(group: Place) -> Mapping[str, Any]:
    """Return the attributes of a group; none where they cannot be read."""
    try:
        return attributes_of(group, str(group)) if kind_of_node(group) == "group" else {}
    except InputError as error:
        if isinstance(error, InputUnavailableError):
            raise
        return {}


def _fields(well: str, metadata: Mapping[str, Any]) -> list[str]:
    """Return the paths of a well's images; its own where it has none, so that opening that says what is wrong."""
    return [f"{well}/{image}" for image in _paths(metadata, "images")] or [well]


def _image_in(at: Location, wanted: str) -> Location:
    """Return where an image of a group is; by its path it is found without looking at the others."""
    if not (stays_inside(wanted) and kind_of_node(at.place / wanted) == "group"):
        wanted = find_image(images_of_group(at).images, wanted, at.name).path
    place = at.place / wanted
    name = f"{at.name.rstrip('/')}/{wanted}"
    if kind_of_node(place) is None:
        raise InputError(f"{name} is not there, although {at.name} lists it")
    return replace(at, place=place, name=name)


MOST_NAMED = 8
"""How many members of a group a message lists."""

DEEPEST = 3
"""How many levels below a group its arrays are looked for."""


def attributes_of(path: Place, name: str) -> Mapping[str, Any]:
    """Return the attributes of a zarr group.

    Raises
    ------
    InputError
        If they are no JSON, or those of something else.
    """
    try:
        node = read_group(path)
    except ValueError as error:
        raise unreadable(name, "zarr metadata", error) from error
    if node.get("node_type") != "group":
        raise InputError(f"{name} cannot be read as zarr: its zarr.json is neither an array's nor a group's")
    attributes = node.get("attributes", {})
    if not isinstance(attributes, dict):
        raise InputError(f"{name} cannot be read as zarr: the attributes of the group are no JSON object")
    return attributes


def refuse_group(path: Place, attributes: Mapping[str, Any], name: str) -> None:
    """Name what in a group could be opened, where the group itself is no image; of an image, say nothing.

    Parameters
    ----------
    path
        The group.
    attributes
        Its attributes, as `attributes_of` returns them.
    name
        What the user called it.

    Raises
    ------
    InputError
        If it is a plate, a well or a collection of images, or a group without OME-Zarr metadata.
    """
    home = _home(attributes)
    if "multiscales" in home:
        return
    if (found := _members(path, home)) is not None:
        what, images = found
        named = [str(path / image) for image in islice(images, MOST_NAMED + 1)]
        if not named:
            raise InputError(f"{name} is {what}, in which no image is found; give the path of one image in it")
        more = ", and so on" if len(named) > MOST_NAMED else ""
        some = ", ".join(named[:MOST_NAMED])
        raise InputError(f"{name} is {what}; give the path of one image in it: {some}{more}")
    if "ome" in attributes:
        return  # of a kind that its reader knows or refuses
    members = sorted(_arrays(path, DEEPEST))
    if not members:
        raise InputError(f"{name} is a zarr group without OME-Zarr metadata and without arrays")
    arrays = listed(path / member for member in members)
    raise InputError(f"{name} is a zarr group without OME-Zarr metadata; name one of its arrays: {arrays}")


def _members(path: Place, home: Mapping[str, Any]) -> tuple[str, Iterable[str]] | None:
    """Return what a group of images is, and their paths in it; None of any other group."""
    if "plate" in home:
        wells = _paths(home["plate"], "wells")
        images = (image for well in wells for image in _images_of_well(path, well))
        return f"a plate of {len(wells)} well{'s' * (len(wells) != 1)}", images
    if "well" in home:
        return "a well of a plate", _paths(home["well"], "images")
    return ("a collection of images", _series(path)) if "bioformats2raw.layout" in home else None


def _images_of_well(path: Place, well: str) -> list[str]:
    """Return the paths of a well's images, relative to the plate; none where the well is not there."""
    if kind_of_node(path / well) != "group":
        return []
    home = _home(attributes_of(path / well, str(path / well)))
    return [f"{well}/{image}" for image in _paths(home.get("well"), "images")]


def _series(path: Place) -> list[str]:
    """Return the paths of the images in a collection: what its group "OME" lists, else 0, 1, 2 and so on."""
    if kind_of_node(path / "OME") == "group":
        series = _home(attributes_of(path / "OME", str(path / "OME"))).get("series")
        if isinstance(series, list):
            return [image for image in series if isinstance(image, str) and stays_inside(image)]
    return [str(n) for n in takewhile(lambda n: kind_of_node(path / str(n)) == "group", count())]


def _home(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return where a group's attributes keep OME-Zarr's: 0.5 has a place of their own for them."""
    home = attributes.get("ome", attributes)
    return home if isinstance(home, Mapping) else {}


def _paths(node: object, key: str) -> list[str]:
    """Return the paths that a list in the metadata gives; those that lead out of the group are none."""
    members = node.get(key) if isinstance(node, Mapping) else None
    paths = [m.get("path") for m in members if isinstance(m, Mapping)] if isinstance(members, list) else []
    return [path for path in paths if isinstance(path, str) and stays_inside(path)]


def _arrays(path: Place, depth: int) -> Iterator[str]:
    """Find the arrays in a group and its subgroups, as paths relative to it."""
    for folder in path.iterdir():
        kind = kind_of_node(folder) if folder.is_dir() else None
        if kind == "array":
            yield folder.name
        elif kind == "group" and depth > 1:
            yield from (f"{folder.name}/{member}" for member in _arrays(folder, depth - 1))
