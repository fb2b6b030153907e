"""How is an OME-Zarr image, a zarr group of resolution levels, opened at its finest level, and at the others?

Its attributes are read as JSON and understood by `isovoxel.metadata.ome`; its voxels are those of a zarr
array. A group that is no image is answered with what in it could be opened instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from isovoxel.errors import InputError
from isovoxel.metadata.calibration import Calibration, Length, calibrate
from isovoxel.metadata.ome import Level, is_label_image, read_levels
from isovoxel.places.place import Place
from isovoxel.volumes.base import Volume
from isovoxel.volumes.files import metadata_identity, unreadable
from isovoxel.volumes.zarr_array import ARRAY_FILES, axis_names, open_path, zarr_voxels

GROUP_FILES = ("zarr.json", ".zgroup", ".zattrs")
"""The metadata files of a zarr group."""

MOST_NAMED = 8
"""How many members of a group a message lists."""

DEEPEST = 3
"""How many levels below a group its arrays are looked for."""


def open_ome_zarr(path: Place, name: str) -> Volume:
    """Open the finest level of an OME-Zarr 0.4 or 0.5 image, which knows how the others are opened.

    Raises
    ------
    InputError
        If the group is no OME-Zarr image, its metadata contradict its array, or the array is not z, y, x.
    """
    attributes = _attributes(path, name)
    if "multiscales" not in attributes and "ome" not in attributes:
        _refuse_plain_group(path, name)
    levels = read_levels(attributes, name)
    coarser = tuple(partial(_open_level, path, name, attributes, level) for level in levels[1:])
    return replace(_open_level(path, name, attributes, levels[0]), coarser=coarser)


def _open_level(path: Place, name: str, attributes: Mapping[str, Any], level: Level) -> Volume:
    """Open one level of an image."""
    home = path / level.path
    if kind_of_folder(home) != "array":
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
    voxels = zarr_voxels(array, name, axes)
    z, y, x = voxels.zyx
    calibration = _calibration(level, voxels.zyx)
    sources = {"shape": f"zarr metadata of array {level.path!r}", "axes": "OME-Zarr axes"}
    if calibration.voxel_size is not None:
        sources["voxel size"] = calibration.source
    if calibration.unit is not None:
        sources["unit"] = "OME-Zarr axes"
    made = attributes.get("isovoxel")
    incomplete = isinstance(made, Mapping) and made.get("complete") is False
    files = [path / file for file in GROUP_FILES if (path / file).is_file()]
    files += [home / file for file in (*ARRAY_FILES, ".zattrs") if (home / file).is_file()]
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
        (level.translation[z], level.translation[y], level.translation[x]),
        calibration.unit,
        sources,
        metadata_identity(path, files),
        calibration.missing,
        labels,
        cached=voxels.cached,
    )


def kind_of_folder(path: Place) -> str | None:
    """Return whether a folder is a zarr "array" or "group"; None where it is neither."""
    if (path / "zarr.json").is_file():
        try:
            node = json.loads((path / "zarr.json").read_bytes())
        except ValueError:
            # Opening it will say what is wrong with it.
            return "group"
        return "array" if isinstance(node, dict) and node.get("node_type") == "array" else "group"
    if (path / ".zarray").is_file():
        return "array"
    if (path / ".zgroup").is_file():
        return "group"
    return None


def _calibration(level: Level, zyx: tuple[int, int, int]) -> Calibration:
    z, y, x = (Length(level.scale[i], level.unit) for i in zyx)
    return calibrate("its OME-Zarr metadata", "OME-Zarr scale", (z, y, x))


def _attributes(path: Place, name: str) -> Mapping[str, Any]:
    """Read the attributes of a zarr group."""
    try:
        if (path / "zarr.json").is_file():
            node = json.loads((path / "zarr.json").read_bytes())
        elif (path / ".zattrs").is_file():
            node = {"node_type": "group", "attributes": json.loads((path / ".zattrs").read_bytes())}
        else:
            node = {"node_type": "group"}
    except (ValueError, RecursionError) as error:
        raise unreadable(name, "zarr metadata", error) from error
    if not isinstance(node, dict) or node.get("node_type") != "group":
        raise InputError(f"{name} cannot be read as zarr: its zarr.json is neither an array's nor a group's")
    attributes = node.get("attributes", {})
    if not isinstance(attributes, dict):
        raise InputError(f"{name} cannot be read as zarr: the attributes of the group are no JSON object")
    return attributes


def _refuse_plain_group(path: Place, name: str) -> None:
    """Say that a group is no image, and name the arrays in it."""
    members = sorted(_arrays(path, DEEPEST))
    if not members:
        raise InputError(f"{name} is a zarr group without OME-Zarr metadata and without arrays")
    listed = ", ".join(str(path / member) for member in members[:MOST_NAMED])
    more = f" and {len(members) - MOST_NAMED} more" if len(members) > MOST_NAMED else ""
    raise InputError(f"{name} is a zarr group without OME-Zarr metadata; name one of its arrays: {listed}{more}")


def _arrays(path: Place, depth: int) -> Iterator[str]:
    """Find the arrays in a group and its subgroups, as paths relative to it."""
    for folder in path.iterdir():
        kind = kind_of_folder(folder) if folder.is_dir() else None
        if kind == "array":
            yield folder.name
        elif kind == "group" and depth > 1:
            yield from (f"{folder.name}/{member}" for member in _arrays(folder, depth - 1))
