"""Groups of zarr that are no image, of which it is said what in them could be opened.

Plates of OME-Zarr images have wells, wells have images; bioformats2raw makes collections, a folder for each image of
a file. None of them is a volume, so each is answered with the paths of the images in it.

Source: https://ngff.openmicroscopy.org/0.5/, "plate", "well" and "bioformats2raw.layout".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any, NoReturn

from isovoxel.errors import InputError
from isovoxel.metadata.texts import stays_inside
from isovoxel.object_store.place import Place
from isovoxel.object_store.zarr_nodes import kind_of_node, read_group
from isovoxel.readers.files import unreadable

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
    if not isinstance(node, dict) or node.get("node_type") != "group":
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
    if "plate" in home:
        wells = _paths(home["plate"], "wells")
        images = (image for well in wells for image in _images_of_well(path, well))
        _refuse(
            path, f"{name} is a plate of {len(wells)} well{'s' * (len(wells) != 1)}", islice(images, MOST_NAMED + 1)
        )
    if "well" in home:
        _refuse(path, f"{name} is a well of a plate", _paths(home["well"], "images"))
    if "bioformats2raw.layout" in home:
        _refuse(path, f"{name} is a collection of images", _series(path))
    if "ome" in attributes:
        return  # of a kind that its reader knows or refuses
    members = sorted(_arrays(path, DEEPEST))
    if not members:
        raise InputError(f"{name} is a zarr group without OME-Zarr metadata and without arrays")
    more = f" and {len(members) - MOST_NAMED} more" if len(members) > MOST_NAMED else ""
    raise InputError(
        f"{name} is a zarr group without OME-Zarr metadata; name one of its arrays: {_listed(path, members)}{more}"
    )


def _refuse(path: Place, what: str, images: Iterable[str]) -> NoReturn:
    """Say what a group is, and name the first images in it."""
    found = list(images)
    if not found:
        raise InputError(f"{what}, in which no image is found; give the path of one image in it")
    more = ", and so on" if len(found) > MOST_NAMED else ""
    raise InputError(f"{what}; give the path of one image in it: {_listed(path, found)}{more}")


def _listed(path: Place, members: Sequence[str]) -> str:
    return ", ".join(str(path / member) for member in members[:MOST_NAMED])


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
    return [str(n) for n in takewhile(lambda n: kind_of_node(path / str(n)) == "group", range(MOST_NAMED + 1))]


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
