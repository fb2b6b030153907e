"""Position of voxels in OME-Zarr metadata: attributes read, and attributes made of a new image.

Reading: every level ("dataset") has one scale and at most one translation after it, and the image as a whole
may have a scale and a translation of its own, applied after the level's: ``world = S * (s * index + t) + T``.
What does not touch the geometry (names, unknown keys, rendering) is not looked at, so files with small sins
open; what does touch it is checked to the last number, for a wrong guess would be a wrong voxel size.

In 0.6, which is still being made, axes belong to a coordinate system, and a level's transforms, which may be put
together as a sequence, lead to it. Transforms from there to other systems are not regarded; a note tells of them.

Writing: an image of OME-Zarr 0.5 or 0.4; that of 0.6 is made of one of 0.5.

Source: https://ngff.openmicroscopy.org/0.4/ and https://ngff.openmicroscopy.org/0.5/, "multiscales"; RFC-5 for 0.6.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from isovoxel.errors import InputError
from isovoxel.geometry.grid import AXES, VoxelGrid
from isovoxel.metadata.series import SeriesAxis, encodable, stays_inside

RFC5 = "0.6"
"""The version with coordinate systems; files say which state of its making they follow, such as 0.6.dev4."""
RFC5_WRITTEN = "0.6.dev4"
"""What an image says that is written."""
INTRINSIC = "physical"
"""What the coordinate system is called of an image of 0.6 that is written."""
_WITHOUT_SIZES = ("0.1", "0.2", "0.3")
"""Versions of OME-Zarr of before there were scales."""
_SHOWN = 60
"""Longest part of a file's text that a message repeats."""


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution level of an OME-Zarr image, and where its voxels lie."""

    path: str
    """Path of the zarr array, relative to the image's group; it never leaves the group."""
    axes: tuple[str, ...]
    """Names of the array's axes, in the array's order, such as ("t", "c", "z", "y", "x")."""
    scale: tuple[float, ...]
    """Size of a voxel per axis; finite, and above zero along the space axes."""
    translation: tuple[float, ...]
    """World position of voxel 0's centre per axis; finite."""
    units: tuple[str | None, ...]
    """Unit of each axis as the file spells it, or None where it gives none."""
    version: str
    """Version of OME-Zarr, "0.4", "0.5" or "0.6"."""
    note: str = ""
    """What of the metadata is not regarded, as a clause, or nothing."""
    types: tuple[object, ...] = ()
    """Type of each axis as the file has it, such as "time", or None where it gives none."""


def read_levels(attributes: Mapping[str, Any], name: str) -> list[Level]:
    """Read the levels of an image from its group's attributes; of several images, the first.

    Parameters
    ----------
    attributes
        Attributes of a zarr group: OME-Zarr 0.5 and 0.6 under the key "ome", 0.4 with "multiscales" at the top.
    name
        What the user called the input; messages begin with it.

    Returns
    -------
    list of Level
        The levels in the file's order, finest first; at least one.

    Raises
    ------
    InputError
        If the attributes describe no image, or say anything of its geometry that is wrong or ambiguous.
    """
    reader = _Reader(name)
    multiscale, version = reader.multiscale(attributes)
    note = ""
    if version == RFC5:
        multiscale, note = reader.of_rfc5(multiscale)
    axes, units, types = reader.axes(multiscale.get("axes"))
    spatial = [axis.lower() in AXES for axis in axes]
    # A missing or empty list is the identity: unlike a level's, the image's own scale is optional.
    outer = reader.transforms(
        multiscale.get("coordinateTransformations") or [],
        "the coordinateTransformations of the image",
        len(axes),
    )
    datasets = multiscale.get("datasets")
    if not isinstance(datasets, list) or not datasets:
        reader.fail(f"datasets must be a list of levels, not {_shown(datasets)}")
    levels = []
    for index, dataset in enumerate(datasets):
        where = f"level {index}"
        if not isinstance(dataset, Mapping):
            reader.fail(f"{where} must be an object, not {_shown(dataset)}")
        path = reader.path(dataset.get("path"), where)
        where = f"level {path!r}"
        scale, translation = reader.transforms(
            dataset.get("coordinateTransformations"), f"the coordinateTransformations of {where}", len(axes)
        )
        if scale is None:
            reader.fail(f"{where} has no scale, so its voxel size is not known")
        scale, translation = _combined(scale, translation, *outer)
        reader.check(scale, translation, spatial, where)
        levels.append(Level(path, axes, scale, translation, units, version, note, types))
    return levels


def is_label_image(attributes: Mapping[str, Any]) -> bool:
    """Return whether a group's attributes say that its image is one of labels: "image-label", in 0.4 and 0.5."""
    inner = attributes.get("ome")
    return "image-label" in (inner if isinstance(inner, Mapping) else attributes)


def image_attributes(
    grid: VoxelGrid,
    *,
    name: str,
    path: str = "0",
    further: Sequence[VoxelGrid] = (),
    method: str | None = None,
    labels: bool = False,
    series: Sequence[SeriesAxis] = (),
    version: str = "0.5",
) -> dict[str, Any]:
    """Return the attributes of an OME-Zarr group that holds one image.

    Parameters
    ----------
    grid
        Where the voxels lie: its voxel size becomes the scale, its origin the translation.
    name
        Name of the image, for people.
    path
        Path of the array inside the group.
    further
        Where the voxels of its further levels lie, finest first; their paths are "1", "2" and so on.
    method
        How each is made of the one before, in a word, where there are any.
    labels
        Whether it is an image of labels.
    series
        Axes along which there are several volumes; they come before z, y and x.
    version
        Of OME-Zarr, "0.5", "0.4" or "0.6".

    Returns
    -------
    dict
        Of plain JSON values, in 0.5 and 0.6 ``{"ome": {...}}``; `read_levels` gives the grid's numbers back to the
        last bit.
    """
    axes: list[dict[str, Any]] = [
        {"name": axis.name, "type": "time", "unit": axis.unit and encodable(axis.unit)}
        if axis.name == "t"
        else {"name": "c", "type": "channel"}
        for axis in series
    ]
    # A unit beyond the specification's list is legal ("SHOULD"), and dropping it would lose it.
    axes += [{"name": axis, "type": "space", "unit": encodable(grid.unit or "") or None} for axis in AXES]
    steps, starts = [float(axis.step) for axis in series], [float(axis.start) for axis in series]
    image: dict[str, Any] = {
        "name": encodable(name),
        "axes": [{key: value for key, value in axis.items() if value is not None} for axis in axes],
        "datasets": [
            {
                "path": str(level) if level else path,
                "coordinateTransformations": [
                    {"type": "scale", "scale": [*steps, *map(float, where.voxel_size)]},
                    {"type": "translation", "translation": [*starts, *map(float, where.origin)]},
                ],
            }
            for level, where in enumerate((grid, *further))
        ],
    }
    if version == "0.4":
        image["version"] = version
    if method is not None:
        image["type"] = method
    attributes: dict[str, Any] = {} if version == "0.4" else {"version": "0.5"}
    attributes["multiscales"] = [image]
    if labels:
        attributes["image-label"] = {"version": version} if version == "0.4" else {}
    if version == RFC5:
        attributes = _as_rfc5(attributes)
    return attributes if version == "0.4" else {"ome": attributes}


def _as_rfc5(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of an image of 0.5 as 0.6 has them."""
    images = []
    for image in attributes["multiscales"]:
        datasets = [
            {
                **dataset,
                "coordinateTransformations": [
                    {
                        "type": "sequence",
                        "input": {"path": dataset["path"]},
                        "output": {"name": INTRINSIC},
                        "transformations": dataset["coordinateTransformations"],
                    }
                ],
            }
            for dataset in image["datasets"]
        ]
        systems = [{"name": INTRINSIC, "axes": image["axes"]}]
        rest = {key: value for key, value in image.items() if key != "axes"}
        images.append({**rest, "coordinateSystems": systems, "datasets": datasets})
    return {**attributes, "version": RFC5_WRITTEN, "multiscales": images}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads parts of the metadata; `name` begins its messages."""

    name: str

    def fail(self, what: str) -> NoReturn:
        raise InputError(f"{self.name} is no valid OME-Zarr image: {what}")

    def multiscale(self, attributes: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """Find the first image's metadata, and its version."""
        if "ome" in attributes:
            home, version = attributes["ome"], "0.5"
            if not isinstance(home, Mapping):
                self.fail(f"its attribute 'ome' must be an object, not {_shown(home)}")
        else:
            home, version = attributes, "0.4"
        if "multiscales" not in home:
            for key, what in (
                ("plate", "a plate"),
                ("well", "a well"),
                ("bioformats2raw.layout", "a collection"),
            ):
                if key in home:
                    raise InputError(f"{self.name} is {what} of OME-Zarr images; give the path of one image in it")
            raise InputError(f"{self.name} is a zarr group without OME-Zarr metadata of an image (no 'multiscales')")
        images = home["multiscales"]
        if not isinstance(images, list) or not images or not isinstance(images[0], Mapping):
            self.fail(f"multiscales must be a list of objects, not {_shown(images)}")
        # 0.5 has the version beside the images and demands it; 0.4 has it in each image and recommends it.
        found = home.get("version") if version == "0.5" else images[0].get("version", version)
        if version == "0.5" and isinstance(found, str) and f"{found}.".startswith(f"{RFC5}."):
            return images[0], RFC5
        if found != version:
            if found in _WITHOUT_SIZES:
                raise InputError(
                    f"{self.name} is OME-Zarr {found}, which has no voxel sizes; name one of its arrays, such as "
                    f"{self.name.rstrip('/')}/0, and give --input-voxel-size Z,Y,X"
                )
            raise InputError(
                f"{self.name} says that its OME-Zarr version is {_shown(found)}; "
                f"isovoxel reads 0.4, and 0.5 and 0.6 under the attribute 'ome'"
            )
        return images[0], version

    def of_rfc5(self, image: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """Return an image of 0.6 as 0.5 has it, and what of it is not regarded."""
        systems = image.get("coordinateSystems")
        if not isinstance(systems, list) or not all(isinstance(system, Mapping) for system in systems):
            self.fail(f"coordinateSystems must be a list of objects, not {_shown(systems)}")
        datasets = image.get("datasets")
        if not isinstance(datasets, list) or not all(isinstance(dataset, Mapping) for dataset in datasets):
            self.fail(f"datasets must be a list of levels, not {_shown(datasets)}")
        levels, outputs = [], []
        for index, dataset in enumerate(datasets):
            transforms = dataset.get("coordinateTransformations")
            if not isinstance(transforms, list) or len(transforms) != 1 or not isinstance(transforms[0], Mapping):
                self.fail(f"the coordinateTransformations of level {index} must be a list of one object")
            outputs.append(_name_of(transforms[0].get("output")))
            found = transforms[0].get("transformations") if transforms[0].get("type") == "sequence" else transforms
            if isinstance(found, list) and all(isinstance(one, Mapping) for one in found):
                # In 0.5 each level has a scale, and 0.6 lets one that is 1 along each axis be left out.
                found = [one for one in found if one.get("type") != "identity"]
            levels.append({**dataset, "coordinateTransformations": found})
        home = [system for system in systems if system.get("name") in outputs]
        if len(home) != 1 or len(set(outputs)) != 1:
            self.fail("its levels do not all lead to one of its coordinateSystems")
        axes = home[0].get("axes")
        for level in levels:
            if level["coordinateTransformations"] == [] and isinstance(axes, list):
                level["coordinateTransformations"] = [{"type": "scale", "scale": [1.0] * len(axes)}]
        others = [system for system in systems if system is not home[0]]
        note = (
            f"its voxels lie in the coordinate system {_shown(outputs[0])}; others are not regarded" if others else ""
        )
        return {**image, "axes": axes, "datasets": levels, "coordinateTransformations": []}, note

    def axes(self, axes: object) -> tuple[tuple[str, ...], tuple[str | None, ...], tuple[object, ...]]:
        """Return the axes' names, units and types; names are free, and some write them in capitals."""
        if not isinstance(axes, list) or not 2 <= len(axes) <= 5:
            self.fail(f"axes must be a list of 2 to 5 axes, not {_shown(axes)}")
        names: list[str] = []
        units: list[str | None] = []
        for axis in axes:
            if not isinstance(axis, Mapping) or not isinstance(axis.get("name"), str) or not axis["name"]:
                self.fail(f"every axis must be an object with a name, not {_shown(axis)}")
            name: str = axis["name"]
            if name.lower() in [other.lower() for other in names]:
                self.fail(f"two axes are called {_shown(name)}")
            names.append(name)
            kind, unit = axis.get("type"), axis.get("unit")
            # The type may be left out; where it is there, it must agree with the name.
            space = name.lower() in AXES
            if (kind == "space") != space and not (kind is None and space):
                self.fail(f"axis {_shown(name)} has type {_shown(kind)}, but z, y and x, and only they, are space")
            if unit is not None and not isinstance(unit, str):
                self.fail(f"the unit of axis {_shown(name)} must be a text, not {_shown(unit)}")
            units.append(unit or None)
        if sum(name.lower() in AXES for name in names) < 2:
            self.fail("it has fewer than two space axes")
        return tuple(names), tuple(units), tuple(axis.get("type") for axis in axes)

    def path(self, path: object, where: str) -> str:
        """Return the path of a level's array if it stays inside the group on every system."""
        if not isinstance(path, str):
            self.fail(f"the path of {where} must be a text, not {_shown(path)}")
        stripped = path.rstrip("/")
        if not stays_inside(stripped):
            self.fail(f"the path {_shown(path)} of {where} does not lead to an array inside it")
        return stripped

    def transforms(
        self, transforms: object, where: str, ndim: int
    ) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """Return the scale and the translation of one list of transforms, None for what it does not have."""
        if not isinstance(transforms, list):
            self.fail(f"{where} must be a list, not {_shown(transforms)}")
        found: dict[str, tuple[float, ...]] = {}
        for transform in transforms:
            kind = transform.get("type") if isinstance(transform, Mapping) else None
            if kind == "identity":
                continue
            if kind not in ("scale", "translation"):
                found_kind = _shown(transform if kind is None else kind)
                self.fail(f"{where} must be scale and translation, not {found_kind}")
            if kind in found:
                self.fail(f"{where} has more than one {kind}")
            if kind == "scale" and "translation" in found:
                self.fail(f"{where} has a translation before the scale")
            values = transform.get(kind)
            if not isinstance(values, list) or len(values) != ndim:
                length = f"a list of {len(values)}" if isinstance(values, list) else _shown(values)
                self.fail(f"{where}: the {kind} must be a list of {ndim} numbers, one per axis, not {length}")
            found[kind] = tuple(self.number(value, f"{where}: the {kind}") for value in values)
        return found.get("scale"), found.get("translation")

    def number(self, value: object, where: str) -> float:
        """Return a JSON number as a finite float; true and false are none."""
        number = math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            # An integer may be too long for a float.
            with contextlib.suppress(OverflowError):
                number = float(value)
        if not math.isfinite(number):
            self.fail(f"{where} must hold finite numbers, not {_shown(value)}")
        return number

    def check(self, scale: tuple[float, ...], translation: tuple[float, ...], spatial: list[bool], where: str) -> None:
        """Refuse what two finite transforms may still combine to, and a voxel without size."""
        for size, space in zip(scale, spatial, strict=True):
            if not math.isfinite(size) or (space and size <= 0):
                self.fail(f"the voxel size of {where} must be a finite number above 0, not {size:g}")
        if not all(math.isfinite(value) for value in translation):
            self.fail(f"the translation of {where} is not finite")


def _name_of(system: object) -> str | None:
    """Return the name of a coordinate system that a transform leads to; earlier states of 0.6 have it alone."""
    name = system.get("name") if isinstance(system, Mapping) else system
    return name if isinstance(name, str) else None


def _combined(
    scale: tuple[float, ...],
    translation: tuple[float, ...] | None,
    outer_scale: tuple[float, ...] | None,
    outer_translation: tuple[float, ...] | None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Apply the image's transform after the level's; what is absent changes no bit."""
    translation = translation or (0.0,) * len(scale)
    if outer_scale is not None:
        translation = tuple(s * t for s, t in zip(outer_scale, translation, strict=True))
        scale = tuple(a * b for a, b in zip(outer_scale, scale, strict=True))
    if outer_translation is not None:
        translation = tuple(a + b for a, b in zip(outer_translation, translation, strict=True))
    return scale, translation


def _shown(value: object) -> str:
    """Describe a JSON value for a message, whatever its size."""
    match value:
        case str():
            shown = repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")
        case None:
            shown = "nothing"
        case bool():
            shown = "true" if value else "false"
        case float():
            shown = f"{value:g}"
        case int():
            # Python refuses to print integers of thousands of digits.
            shown = str(value) if value.bit_length() <= 64 else "a huge integer"
        case []:
            shown = "an empty list"
        case list():
            shown = "a list"
        case _:
            shown = "an object"
    return shown


# ---- plates, wells and collections -------------------------------------------------------------------------------

# OME-Zarr attributes of the groups around several images: a plate with its wells, a well, or bioformats2raw's layout.
#
# Source: https://ngff.openmicroscopy.org/0.5/, "plate", "well" and "bioformats2raw.layout".


Attributes = dict[str, Any]


def group_attributes(
    plate: Mapping[str, Any] | None, wells: Mapping[str, Mapping[str, Any]], images: Sequence[str], version: str
) -> dict[str, Attributes]:
    """Return the attributes of the groups around images, by their paths, the topmost first.

    Parameters
    ----------
    plate
        What a plate says of itself; None where there is none.
    wells
        What wells say of themselves, by their paths in the plate. One with an empty path has no plate.
    images
        Paths of the images that there are. In a plate these are those of a well and of a field in it.
    version
        Of OME-Zarr.

    Examples
    --------
    >>> list(group_attributes({}, {"A/1": {}}, ["A/1/0", "A/1/1"], "0.5"))
    ['', 'A', 'A/1']
    >>> group_attributes(None, {}, ["0", "1"], "0.5")["OME"]
    {'ome': {'version': '0.5', 'series': ['0', '1']}}
    """
    version = RFC5_WRITTEN if version == RFC5 else version
    found: dict[str, Attributes] = {}
    for path in images:
        parts = path.split("/")
        found |= {"/".join(parts[:depth]): {} for depth in range(1, len(parts)) if "/".join(parts[:depth]) not in found}
    if plate is not None:
        named = list(dict.fromkeys(path.rpartition("/")[0] for path in images))
        found = {"": {"plate": _plate(plate, named, version)}, **found}
        found |= {well: {"well": _well(wells.get(well, {}), well, images, version)} for well in named}
    elif "" in wells:
        found = {"": {"well": _well(wells[""], "", images, version)}, **found}
    else:
        found = {"": {"bioformats2raw.layout": 3}, "OME": {"series": list(images)}, **found}
    return {path: _of_version(said, version) for path, said in found.items()}


def _of_version(said: Attributes, version: str) -> Attributes:
    return {"ome": {"version": version} | said} if said and version != "0.4" else said


def _plate(plate: Mapping[str, Any], wells: Sequence[str], version: str) -> Attributes:
    """Return what a plate says with these wells; where each lies follows from its path."""
    parts = [well.partition("/") for well in wells]
    rows = _names(plate.get("rows"), (row for row, _, _ in parts))
    columns = _names(plate.get("columns"), (column for _, _, column in parts))
    made = {
        "rows": [{"name": name} for name in rows],
        "columns": [{"name": name} for name in columns],
        "wells": [
            {"path": well, "rowIndex": rows.index(row), "columnIndex": columns.index(column)}
            for well, (row, _, column) in zip(wells, parts, strict=True)
        ],
    }
    kept = {key: plate[key] for key in ("name", "acquisitions", "field_count") if key in plate}
    return {"version": version} | made | kept


def _names(listed: Any, used: Iterable[str]) -> list[str]:
    """Return the names of rows or columns: those that a plate lists, and all that its wells have."""
    entries = listed if isinstance(listed, list) else []
    names = [entry.get("name") for entry in entries if isinstance(entry, Mapping)]
    return list(dict.fromkeys([*(name for name in names if isinstance(name, str)), *used]))


def _well(well: Mapping[str, Any], path: str, images: Sequence[str], version: str) -> Attributes:
    """Return what a well says with those of the images that are its own."""
    listed = well.get("images")
    acquisitions = {
        entry.get("path"): {"acquisition": entry["acquisition"]}
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(entry, Mapping) and "acquisition" in entry
    }
    own = [image.rpartition("/")[2] for image in images if image.rpartition("/")[0] == path]
    return {"version": version, "images": [{"path": image} | acquisitions.get(image, {}) for image in own]}
