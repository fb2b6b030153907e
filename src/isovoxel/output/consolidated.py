"""Consolidated metadata: what a zarr says of all its members, which readers trust in place of looking.

zarr v3 has them in the `zarr.json` of a group, v2 in a file `.zmetadata` beside it: the metadata of each member by its
path. They are a copy, which knows nothing of a new member, and keeps what it says of an old one. So the parts of it
that are about one member are replaced, and no others; a group that has no such copy gets none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from isovoxel.object_store.files import parse_json
from isovoxel.object_store.place import Place, path_from
from isovoxel.object_store.zarr_nodes import ATTRIBUTES, NODE, V2_ARRAY, V2_GROUP, change_json

COPY = {2: ".zmetadata", 3: NODE}
"""The file that has it, by the format of zarr."""

Entries = dict[str, Any]
"""Metadata by their paths, as a copy has them."""


def replace_member(
    groups: Sequence[Place],
    output: Place,
    zarr_format: int,
    attributes: dict[str, Any] | None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Replace what groups say of a member in one piece, where they do.

    Parameters
    ----------
    groups
        Those above the member, nearest first.
    output
        The member.
    zarr_format
        Format of all of them, 2 or 3.
    attributes
        The member's, as they will be; None to take out what is said of it.
    check
        As `isovoxel.object_store.zarr_nodes.change_json` has it.

    Raises
    ------
    OSError
        If a file cannot be changed; then it is as it was.
    """
    for group in groups:
        file = group / COPY[zarr_format]
        if not file.is_file() or _entries(_json(file), zarr_format) is None:
            continue
        path = path_from(group, output)
        nodes: Entries = {}
        if attributes is not None:
            names = path.split("/")
            nodes = _nodes(group, ["/".join(names[:depth]) for depth in range(1, len(names))], zarr_format)
            nodes |= _member(group, path, zarr_format, attributes)
        change_json(file, partial(_with_entries, path, nodes, zarr_format), check)


def _json(file: Place) -> Any:
    """Return what a file holds; None where that is no JSON."""
    try:
        return parse_json(file.read_bytes())
    except ValueError:
        return None


def _with_entries(path: str, nodes: Entries, zarr_format: int, found: dict[str, Any]) -> dict[str, Any]:
    """Return a file with other entries of one member."""
    entries = _entries(found, zarr_format)
    if entries is None:
        return found
    kept = {key: value for key, value in entries.items() if key != path and not key.startswith(f"{path}/")}
    entries = dict(sorted((kept | nodes).items()))
    if zarr_format == 2:
        return found | {"metadata": entries}
    return found | {"consolidated_metadata": found["consolidated_metadata"] | {"metadata": entries}}


def _entries(found: Any, zarr_format: int) -> Entries | None:
    """Return all entries of a file, or None where it has none that we know."""
    home = found.get("consolidated_metadata") if zarr_format == 3 and isinstance(found, dict) else found
    entries = home.get("metadata") if isinstance(home, dict) else None
    return entries if isinstance(entries, dict) else None


def _member(group: Place, path: str, zarr_format: int, attributes: dict[str, Any]) -> Entries:
    """Return the entries of an output: of its group, with these attributes, and of its levels."""
    home = attributes.get("ome", attributes)
    levels = [f"{path}/{level['path']}" for level in home["multiscales"][0]["datasets"]]
    nodes = _nodes(group, [path, *levels], zarr_format)
    if zarr_format == 3:
        nodes[path] |= {"attributes": attributes}
    else:
        nodes[f"{path}/{ATTRIBUTES}"] = attributes
    return nodes


def _nodes(group: Place, paths: Sequence[str], zarr_format: int) -> Entries:
    """Return the entries of some members as their files have them."""
    if zarr_format == 3:
        found = {path: parse_json((group / path / NODE).read_bytes()) for path in paths}
        return {
            path: {key: node[key] for key in node if key != "consolidated_metadata"} for path, node in found.items()
        }
    files = (f"{path}/{name}" for path in paths for name in (V2_GROUP, V2_ARRAY, ATTRIBUTES))
    return {file: parse_json((group / file).read_bytes()) for file in files if (group / file).is_file()}
