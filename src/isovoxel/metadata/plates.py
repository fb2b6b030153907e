"""OME-Zarr attributes of the groups around several images: a plate with its wells, a well, or bioformats2raw's layout.

Source: https://ngff.openmicroscopy.org/0.5/, "plate", "well" and "bioformats2raw.layout".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from isovoxel.metadata.ome import RFC5, RFC5_WRITTEN

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
