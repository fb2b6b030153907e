"""Tell what lies at an output's place besides the image itself.

An old output is replaced as a whole, so all of it must be one image, by what isovoxel or OME-Zarr says:

1. the metadata of its group, and the arrays that `multiscales` lists, with nothing in them but metadata and chunks;
2. of its labels those that isovoxel has written, likewise.

Whatever else is there belongs to somebody else, and is named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from isovoxel.errors import OutputError
from isovoxel.object_store.addresses import Place
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.zarr_nodes import ATTRIBUTES, NODE, V2_ARRAY, V2_GROUP, is_zarr, read_attributes
from isovoxel.output.membership import LABELS
from isovoxel.output.provenance import PROVENANCE

MOST_NAMED = 3
"""How many things that are not the image's are named."""

_METADATA = re.compile(
    rf"(?:{'|'.join(map(re.escape, (NODE, ATTRIBUTES, V2_GROUP, V2_ARRAY, '.zmetadata')))})(?:(?:\.\w+)?\.partial)?"
)
"""Files of metadata, and what is left of one that was half written."""
_CHUNK = re.compile(
    r"(?:c|(?:c[./])?\d+(?:[./]\d+)*)(?:\.[0-9a-f]{32}\.partial)?"
    r"|(?:isovoxel-(?:unsealed|gone)-[0-9a-f]{32}/)?[0-9a-f]{32}\.partial"
)
"""Keys of chunks and shards in an array, of either format of zarr, and what is left of one that was half written."""
_LITTER = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+")
"""Files that systems leave in folders which somebody looks at."""


def check_image(target: Place) -> int:
    """Raise unless all that lies at a place is one image; return how many bytes it takes.

    Parameters
    ----------
    target
        A folder, or a place in a store where objects lie.

    Raises
    ------
    OutputError
        If it is no image by what its metadata say, or something else lies in it, which is named.
    OSError
        If it cannot be looked into.
    """
    if isinstance(target, Path):
        check_zarr(target)
    levels = _levels(target)
    entries = _Entries(target)
    if levels is None:
        there = _named(dict.fromkeys(path.partition("/")[0] for path in entries if not _METADATA.fullmatch(path)))
        raise OutputError(
            f"{target} is a zarr, but neither isovoxel nor OME-Zarr says that it is an image"
            f"{f'; {there} in it' if there else ''}, so --overwrite does not replace it; give another output"
        )
    arrays = list(levels)
    groups = {"", *_above(arrays)}
    for name in _own_labels(target):
        of_labels = _levels(target / LABELS / name) or ()
        arrays += [f"{LABELS}/{name}/{path}" for path in of_labels]
        groups |= {LABELS, f"{LABELS}/{name}", *_above(arrays)}
    if _is_group(target / LABELS):
        groups.add(LABELS)
    ours = frozenset(arrays)
    foreign = dict.fromkeys(_topmost(path, groups, ours) for path in entries if not _belongs(path, groups, ours))
    if foreign:
        raise OutputError(
            f"{_named(foreign)} in {target}, which isovoxel has not written and which no level of the image is, so "
            "--overwrite does not replace it; move that away, or give another output"
        )
    return entries.nbytes


def check_zarr(target: Path) -> None:
    """Raise an `OutputError` unless what is at `target` is a zarr itself, and no link to one."""
    if target.is_symlink():
        raise OutputError(
            f"{target} is a link to {target.readlink()}, which --overwrite does not follow; "
            f"give the path it leads to, or another output"
        )
    if not target.is_dir():
        raise OutputError(f"{target} is a file and no zarr, so --overwrite does not delete it; give another output")
    if not is_zarr(target):
        raise OutputError(f"{target} is a folder but no zarr, so --overwrite does not delete it; give another output")


def bytes_on_disk(folder: Path) -> int:
    """Return the bytes that deleting a folder gives back; 0 where there is none."""
    entries = _Entries(folder)
    if folder.is_dir():
        for _ in entries:
            pass
    return entries.nbytes


def _named(names: Iterable[str]) -> str:
    """Say that things lie somewhere, the first ones by name; nothing where there are none."""
    found = sorted(names)
    if not found:
        return ""
    more = len(found) - MOST_NAMED
    listed = ", ".join(found[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{listed} {'lies' if len(found) == 1 else 'lie'}"


@dataclass
class _Entries:
    """The paths of all files at a place, with ``/`` between names; links count as files."""

    target: Place
    """Where."""
    nbytes: int = field(default=0, init=False)
    """What they take, once all were asked for."""

    def __iter__(self) -> Iterator[str]:
        if isinstance(self.target, ObjectPlace):
            for path, found in self.target.walk():
                self.nbytes += found.size
                yield path
            return

        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError) or error.filename == str(self.target):
                raise error

        for root, folders, files in os.walk(self.target, onerror=fail):
            home = Path(root)
            folders.sort()
            for name in sorted([*files, *(name for name in folders if (home / name).is_symlink())]):
                try:
                    info = (home / name).lstat()
                except FileNotFoundError:  # a process that was taken for dead is still at work, or its successor is
                    continue
                # Where the system tells, what is allocated counts: files may have holes.
                self.nbytes += info.st_blocks * 512 if hasattr(info, "st_blocks") else info.st_size
                path = (home / name).relative_to(self.target).as_posix()
                yield f"{path}{LINK}" if (home / name).is_symlink() else path


LINK = "\0link"
"""Ends the path of a link, which is no part of any image."""


def _levels(group: Place) -> list[str] | None:
    """Return the paths of an image's arrays, or None where a group is no image."""
    try:
        attributes = read_attributes(group)
        home = attributes.get("ome", attributes)
        found = [str(level["path"]).strip("/") for level in home["multiscales"][0]["datasets"]]
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError, TypeError, KeyError, IndexError):
        return None
    return found if all(_is_inside(path) for path in found) else None


def _is_inside(path: str) -> bool:
    return all(name not in ("", ".", "..") for name in path.split("/"))


def _above(arrays: Iterable[str]) -> Iterator[str]:
    """Yield the groups on the way to arrays."""
    for path in arrays:
        while "/" in path:
            path = path.rpartition("/")[0]  # noqa: PLW2901 - climbs
            yield path


def _own_labels(image: Place) -> list[str]:
    """Return the names of the labels of an image that isovoxel has written."""
    home = image / LABELS
    if not home.is_dir():
        return []
    found = []
    for place in home.iterdir():
        try:
            if isinstance(read_attributes(place).get(PROVENANCE), dict):
                found.append(place.name)
        except (OSError, ValueError, AttributeError, TypeError):
            continue
    return found


def _is_group(place: Place) -> bool:
    try:
        read_attributes(place)
    except (OSError, ValueError, AttributeError, TypeError):
        return False
    return True


def _belongs(path: str, groups: set[str], arrays: frozenset[str]) -> bool:
    """Tell whether a file is a part of the image."""
    if path.endswith(LINK):
        return False
    home, _, name = path.rpartition("/")
    if _LITTER.fullmatch(name):
        return True
    if home in groups or home in arrays:
        if _METADATA.fullmatch(name):
            return True
        if home in groups and home not in arrays:
            return False
    array = next((above for above in (path[:i] for i, c in enumerate(path) if c == "/") if above in arrays), None)
    return array is not None and _CHUNK.fullmatch(path[len(array) + 1 :]) is not None


def _topmost(path: str, groups: set[str], arrays: frozenset[str]) -> str:
    """Return the outermost folder on the way to a foreign file that is none of the image's, or the file itself."""
    path = path.removesuffix(LINK)
    names, known = path.split("/"), groups.union(arrays)
    for depth in range(1, len(names)):
        if (above := "/".join(names[:depth])) not in known:
            return path if any(above.startswith(f"{array}/") for array in arrays) else above
    return path
