"""Provenance of an output, and of which zarr it is a member: both stand in attributes of groups, read without zarr.

An attribute of the output's group says what made it. Where it lies in a zarr that holds others:

1. The nearest folder above the output that is there decides. If it is a zarr group, the output becomes a member of it,
   and groups between them that are not there are made with it; in the same format of zarr, or readers would not find
   them. If it is a plain folder, the output is a zarr of its own.
2. Nothing is written into an array, nor into an image, whose members are its levels: but `IMAGE/labels/NAME` is where
   OME-Zarr has the labels of an image, and for those alone.
3. When the output is complete, the group `labels` lists it, and groups above that have the metadata of all their
   members in one piece ("consolidated") get the output's; until then they know nothing of it. Nothing else is changed.

Readers trust consolidated metadata in place of looking. zarr v3 has them in the `zarr.json` of a group, v2 in a file
`.zmetadata` beside it: the metadata of each member by its path. They are a copy, which knows nothing of a new member,
and keeps what it says of an old one. So the parts of it that are about one member are replaced, and no others; a group
that has no such copy gets none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from isovoxel.errors import InputError, InputUnavailableError, OutputError
from isovoxel.metadata.series import stays_inside
from isovoxel.object_store.files import (
    ATTRIBUTES,
    NODE,
    V2_ARRAY,
    V2_GROUP,
    change_json,
    parse_json,
    read_attributes,
    sound_node,
)
from isovoxel.object_store.objects import ObjectPlace, Place, path_from, place_of
from isovoxel.planning.chunking import OME_ZARR

PROVENANCE = "isovoxel"
"""The group's attribute that says what made it, and whether it is complete."""
RECEIPTS = "receipts"
"""Says there that the receipts of all shards are kept, in the ledger's folder, when the output is complete."""

COLLECTION = "collection"
"""Says there, of the topmost group of several images, which: their paths, what they are made of, by which options."""


def read_provenance(path: str | os.PathLike[str] | ObjectPlace) -> dict[str, Any]:
    """Return what an output's attributes say of what made it, and whether it is complete.

    Raises
    ------
    InputError
        If it is no output of isovoxel.
    InputUnavailableError
        If a store does not say.
    """
    place = place_of(path)
    if (made := made_by(place)) is None:
        raise InputError(f"{place} was not written by isovoxel: its attributes do not say what made it")
    return made


def made_by(path: Place) -> dict[str, Any] | None:
    """Return what an output's attributes say of what made it, or None where it is none of isovoxel's.

    Raises
    ------
    InputUnavailableError
        If a store does not say.
    """
    try:
        provenance = read_attributes(path)[PROVENANCE]
    except OSError as error:
        # A store that is out of reach may hold it none the less; what it hides, it would not let us write either.
        if isinstance(path, ObjectPlace) and not isinstance(error, FileNotFoundError | PermissionError):
            raise InputUnavailableError(error.errno, f"{path} cannot be read: {error.strerror}") from error
        return None
    except (ValueError, KeyError):
        return None
    return provenance | {"complete": provenance.get("complete") is True} if isinstance(provenance, dict) else None


def images_of_output(path: Place) -> list[str] | None:
    """Return the paths of the images of an output of several; None of any other.

    Raises
    ------
    InputUnavailableError
        If a store does not say.
    """
    said = (made_by(path) or {}).get(COLLECTION)
    images = said.get("images") if isinstance(said, dict) else None
    if not isinstance(images, list):
        return None
    return [image for image in images if isinstance(image, str) and stays_inside(image)]


def is_complete(path: Place) -> bool:
    """Return whether an output is isovoxel's and complete."""
    return (made_by(path) or {}).get("complete") is True


def is_unfinished(path: Place) -> bool:
    """Return whether an output is isovoxel's and not complete."""
    return (made_by(path) or {}).get("complete") is False


def has_receipts(path: Place) -> bool:
    """Return whether an output is complete and the receipts of its shards were kept."""
    made = made_by(path) or {}
    return made.get("complete") is True and made.get(RECEIPTS) is True


LABELS = "labels"
"""The group of an image that holds its labels, and the attribute in which that lists them."""


@dataclass(frozen=True)
class Membership:
    """An output that is a member of a zarr group, or becomes one."""

    output: Place
    """The output, by a path that goes through no link but its own."""
    groups: tuple[Place, ...]
    """The groups above it that are there, nearest first; the last one is the store's root."""
    missing: tuple[Place, ...]
    """The groups between that are to be made, outermost first."""
    zarr_format: int
    """Format of the store, 2 or 3."""

    @cached_property
    def ledger(self) -> Place:
        """Where the job's ledger lies: beside the store, for in it whatever is no zarr makes readers warn."""
        root = self.groups[-1]
        digest = hashlib.sha256(path_from(root, self.output).encode(errors="surrogateescape")).hexdigest()[:8]
        name = f"{root.name}.{self.output.name}-{digest}.isovoxel"
        # A disk that is the store has no beside.
        return root / name if isinstance(root, Path) and root.is_mount() else root.with_name(name)

    @cached_property
    def image(self) -> Place | None:
        """The image that the output lies in, the outermost of several, or None."""
        return next((group for group in reversed(self.groups) if _is_image(group)), None)

    def check(self, ome_zarr: str, *, labels: bool) -> None:
        """Raise unless the output may become a member.

        Parameters
        ----------
        ome_zarr
            Version of OME-Zarr that shall be written.
        labels
            Whether it is an image of labels.

        Raises
        ------
        OutputError
            If the store is of the other format, or an image that takes no such member.
        """
        if OME_ZARR[ome_zarr] != self.zarr_format:
            other = next(version for version, found in OME_ZARR.items() if found == self.zarr_format)
            raise OutputError(
                f"{self.groups[-1]} is zarr v{self.zarr_format}, and OME-Zarr {ome_zarr} is zarr "
                f"v{OME_ZARR[ome_zarr]}: give --ome-zarr {other} or another output"
            )
        if self.image is None:
            return
        home = self.image / LABELS
        if path_from(self.image, self.output) != f"{LABELS}/{self.output.name}":
            raise OutputError(
                f"{self.image} is an image, whose members are its levels; give {home / 'NAME'} for labels, or another "
                "output"
            )
        if not labels:
            raise OutputError(
                f"{self.output} is a place for labels of the image {self.image}, and what would be written is no label "
                "image; give --labels if it is one, or another output"
            )
        if home in self.groups:
            try:
                attributes = read_attributes(home)
            except ValueError:
                attributes = {LABELS: None, "ome": None}
            self._listed(attributes)

    def announce(self, metadata: dict[str, Any], check: Callable[[], None] = lambda: None) -> None:
        """Let the groups above know of the output, which is complete; once, however often it is said.

        Parameters
        ----------
        metadata
            The output's attributes, as they will be.
        check
            As `isovoxel.object_store.files.change_json` has it.

        Raises
        ------
        OSError
            If a group's metadata cannot be changed; then they are as they were.
        """
        if self.image is not None:
            home, version = self.image / LABELS, dict(metadata.get("ome") or {}).get("version")
            change_json(
                home / (NODE if self.zarr_format == 3 else ATTRIBUTES), partial(self._with_label, version), check
            )
        replace_member(self.groups, self.output, self.zarr_format, metadata, check)

    def forget(self, check: Callable[[], None] = lambda: None) -> None:
        """Let groups above forget what they know of an old output that is about to go; a list of labels keeps it."""
        replace_member(self.groups, self.output, self.zarr_format, None, check)

    def _with_label(self, version: str | None, node: dict[str, Any]) -> dict[str, Any]:
        """Return the metadata of the group of labels with the output in its list."""
        attributes = dict(node.get("attributes") or {}) if self.zarr_format == 3 else dict(node)
        listed = self._listed(attributes)
        if self.output.name in listed:
            return node
        listed = [*listed, self.output.name]
        if self.zarr_format == 2:
            return attributes | {LABELS: listed}
        ome = {"version": version or "0.5"} | dict(attributes.get("ome") or {}) | {LABELS: listed}
        return node | {"attributes": attributes | {"ome": ome}}

    def _listed(self, attributes: dict[str, Any]) -> list[str]:
        """Return which labels the attributes of a group list.

        Raises
        ------
        OutputError
            If that is no list.
        """
        home = attributes.get("ome", {}) if self.zarr_format == 3 else attributes
        listed = home.get(LABELS, []) if isinstance(home, dict) else None
        if not isinstance(listed, list):
            raise OutputError(
                f"{self.output.parent} does not list its labels as OME-Zarr does, so {self.output.name} cannot be "
                "added; give another output"
            )
        return listed


def membership_of(output: Place) -> Membership | None:
    """Return of which zarr group an output is, or would be, a member; None where of none.

    Raises
    ------
    OutputError
        If it lies in an array, or in a plain folder of an image; or nobody can tell.
    """
    if isinstance(output, ObjectPlace) and output.read_only:
        return None
    try:
        return _found(output)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}") from error


def _found(output: Place) -> Membership | None:
    # Not Path.resolve, which fails where links go round in circles.
    real = Path(os.path.realpath(output.parent)) / output.name if isinstance(output, Path) else output
    groups: list[Place] = []
    missing: list[Place] = []
    plain, ended, zarr_format = None, False, 0
    # The topmost folder of a disk is no member of anything.
    for folder in list(real.parents)[:-1] if isinstance(real, Path) else _parents(real):
        kind, found = sound_node(folder)
        if kind == "array":
            raise OutputError(f"{output} lies inside the zarr array {folder}; give another output")
        if plain is not None and kind == "group" and _is_image(folder):
            raise OutputError(
                f"{plain} is no zarr group, so readers of the image {folder} would not find the output in it; "
                "give another output"
            )
        ended |= bool(groups) and (kind is None or found != zarr_format)
        if ended or plain is not None:
            continue  # to look for arrays, and images
        if kind == "group":
            groups.append(folder)
            zarr_format = found
        elif _is_there(folder):
            plain = folder
        else:
            missing.append(folder)
    return Membership(real, tuple(groups), tuple(reversed(missing)), zarr_format) if groups else None


def _parents(place: ObjectPlace) -> Iterator[ObjectPlace]:
    """Yield the places above one in a store, nearest first."""
    while place.key:
        place = place.parent
        yield place


def _is_there(folder: Place) -> bool:
    """Tell whether there is a folder; one that may not be looked into counts."""
    try:
        return os.path.lexists(folder) if isinstance(folder, Path) else folder.is_dir()
    except PermissionError:
        return True


def _is_image(group: Place) -> bool:
    """Tell whether a group is an image of OME-Zarr."""
    try:
        attributes = read_attributes(group)
    except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError):
        return False
    home = attributes.get("ome", attributes)
    return isinstance(home, dict) and "multiscales" in home


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
        As `isovoxel.object_store.files.change_json` has it.

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
