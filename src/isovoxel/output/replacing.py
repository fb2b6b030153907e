"""Replace an old output, and nothing else: keep it until its successor is complete, once all of it is known to be ours.

An old output is replaced as a whole, so all of it must be one image, by what isovoxel or OME-Zarr says: the metadata of
its group, and the arrays that `multiscales` lists, with nothing in them but metadata and chunks; of its labels those
that isovoxel has written, likewise. An output of several images is each of these, and the groups around them, by what
isovoxel says. Whatever else is there belongs to somebody else, and is named.

On a disk the old output is kept in the ledger's folder:

1. `set_aside` renames the old output to `replaced` in that folder. One that was not complete takes along what was done
   of it: `job.json` and `blocks`, as `replaced.job.json` and `replaced.blocks`.
2. The new output is made at its place. When it is complete, the ledger goes, and with it what was replaced.
3. `settle` puts the old one back where the process died before the new one was there. `put_back` does so where the job
   fails before its first block.

Each step is a rename, so the old output is whole at every moment, at one place or the other. Of several attempts to
replace it, the first one's `replaced` stays: those that came between were never complete. What must go at once, since
the user said so or since it is such an attempt, is renamed to `discarded` first, and deleted there.

A store renames nothing, so an old output cannot be kept until the new one is complete, and goes first: where it is
complete, only if the user says so. What makes a zarr of objects is the metadata at its top: they are written last and
deleted first. Whatever lies at the place in between is a remainder, of which a note in the ledger's folder tells, so
that the next process may delete it. Without such a note, nothing is ever deleted but an image.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isovoxel.errors import OutputError
from isovoxel.object_store.files import (
    ATTRIBUTES,
    NODE,
    TOP,
    V2_ARRAY,
    V2_GROUP,
    is_zarr,
    parse_json,
    read_attributes,
    sync_folder,
)
from isovoxel.object_store.objects import ObjectPlace, Place
from isovoxel.output.files import BLOCKS, DISCARDED, JOB, NEW, REPLACED, SAVED, discard, read_own
from isovoxel.output.provenance import (
    LABELS,
    has_receipts,
    images_of_output,
    is_complete,
    is_unfinished,
    made_by,
    membership_of,
    read_provenance,
)
from isovoxel.planning.resume import plan_from_json


def check_kept(target: Path, folder: Path) -> None:
    """Raise an `OutputError` where an output would have to be set aside and another one is kept already."""
    if os.path.lexists(folder / REPLACED) and os.path.lexists(target) and not is_unfinished(target):
        raise OutputError(
            f"{folder / REPLACED} holds an old output that was never replaced, and another one is at {target}; "
            "move one of them away"
        )


def set_aside(target: Place, folder: Place, *, now: bool, check: Callable[[], None] = lambda: None) -> None:
    """Take an old output, if there is one, out of its place, and forget what groups above say of it in one piece.

    Parameters
    ----------
    target
        Its place.
    folder
        The ledger's, which has no plan of the old output any more, see `save_ledger`.
    now
        Whether it is deleted, and so is what was kept before; in an object store it always is.
    check
        Raises where another process has taken the output over; asked before each step.

    Raises
    ------
    OutputError
        If it is no image, or something else lies in it.
    OSError
        If the file system refuses; then it is at its place, or in `replaced`.
    """
    if isinstance(target, ObjectPlace) or isinstance(folder, ObjectPlace):
        if isinstance(target, ObjectPlace) and isinstance(folder, ObjectPlace):
            check()
            if (store := membership_of(target)) is not None:
                store.forget(check)
            check()
            remove_objects(target, folder / REPLACED)
        return
    shutil.rmtree(folder / DISCARDED, ignore_errors=True)
    if os.path.lexists(target):
        check_image(target)
        check_kept(target, folder)
        check()
        if (store := membership_of(target)) is not None:
            store.forget(check)
        check()
        if now or os.path.lexists(folder / REPLACED):
            discard(target, folder)
        else:
            target.rename(folder / REPLACED)
            sync_folder(folder)
    if now:
        for name in (REPLACED, *SAVED.values()):
            discard(folder / name, folder)


def remove_objects(target: ObjectPlace, note: ObjectPlace) -> None:
    """Delete an old output; the metadata at its top first, so that it is never there in part.

    Parameters
    ----------
    target
        The output.
    note
        Where it is noted that it is being deleted.

    Raises
    ------
    OutputError
        If it is no image, or something else lies in it.
    OSError
        If the store refuses; what is left of it is deleted by who comes next.
    """
    if not target.is_dir():
        return
    if not (is_noted(note) and not is_zarr(target)):
        check_image(target)
    note.write(b"")
    for name in TOP:
        (target / name).unlink()
    target.delete_tree()


def is_noted(note: ObjectPlace) -> bool:
    """Tell whether it is noted that an output is being made or deleted."""
    return any(note.with_name(name).find() is not None for name in (NEW, REPLACED))


def save_ledger(target: Place, folder: Place) -> None:
    """Keep what is done of an output that will be set aside, or its receipts, unless an older one is kept."""
    if not isinstance(target, Path) or not isinstance(folder, Path):
        return
    if os.path.lexists(folder / REPLACED) or not os.path.lexists(folder / JOB):
        return
    if is_unfinished(target) or has_receipts(target):
        (folder / BLOCKS).touch()
        for name in (JOB, BLOCKS):
            (folder / name).replace(folder / SAVED[name])


def settle(target: Path, folder: Path) -> bool:
    """Put an old output back whose replacement has not begun, or remove it where its successor is complete.

    The process must hold the output's lock.

    Parameters
    ----------
    target, folder
        As in `set_aside`.

    Returns
    -------
    bool
        Whether an output is back at its place.
    """
    shutil.rmtree(folder / DISCARDED, ignore_errors=True)
    kept = os.path.lexists(folder / REPLACED)
    if not kept:
        return _restore_ledger(folder)  # of an output that was never moved
    if not os.path.lexists(target):
        return target.parent.is_dir() and _restore(target, folder)
    if _is_successor(target, folder):
        for name in (REPLACED, *SAVED.values()):
            discard(folder / name, folder)
    return False


def needs_settling(target: Path, folder: Path) -> bool:
    """Return whether `settle` has something to do with what is kept of an old output."""
    return not (os.path.lexists(folder / REPLACED) and os.path.lexists(target)) or _is_successor(target, folder)


def _is_successor(target: Path, folder: Path) -> bool:
    """Tell whether an output is complete, and is the one by whose plan what is kept was replaced."""
    if not is_complete(target):
        return False
    try:
        text, several = read_own(folder / JOB), images_of_output(target) is not None
        begun = parse_json(text)["fingerprint"] if several else plan_from_json(text.decode()).fingerprint
        return bool(begun == read_provenance(target).get("fingerprint"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def put_back(target: Path, folder: Path) -> bool:
    """Put an old output back in place of a new one of which nothing is done; return False where none is kept.

    No thread and no other process may be writing the new one.
    """
    if os.path.lexists(folder / REPLACED) and is_unfinished(target):
        discard(target, folder)
    return settle(target, folder)


def _restore(target: Path, folder: Path) -> bool:
    """Move what is kept to its place, with what was done of it, and let groups above know of it again."""
    (folder / REPLACED).rename(target)
    sync_folder(target.parent)
    if not _restore_ledger(folder):
        for name in (JOB, BLOCKS):  # of the replacement
            (folder / name).unlink(missing_ok=True)
    images = images_of_output(target)
    for place in [target] if images is None else [target / image for image in images]:
        if place.is_dir() and (store := membership_of(place)) is not None and not is_unfinished(place):
            store.announce(read_attributes(place))
    return True


def _restore_ledger(folder: Path) -> bool:
    if not os.path.lexists(folder / SAVED[JOB]):
        return False
    for name in (BLOCKS, JOB):  # the plan last: it says that this is still to be done
        if os.path.lexists(folder / SAVED[name]):
            (folder / SAVED[name]).replace(folder / name)
    return True


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
    check_zarr(target)
    found = _parts(target) or _parts_of_several(target)
    entries = _Entries(target)
    if found is None:
        there = _named(dict.fromkeys(path.partition("/")[0] for path in entries if not _METADATA.fullmatch(path)))
        raise OutputError(
            f"{target} is a zarr, but neither isovoxel nor OME-Zarr says that it is an image"
            f"{f'; {there} in it' if there else ''}, so --overwrite does not replace it; give another output"
        )
    groups, arrays = found
    ours = frozenset(arrays)
    foreign = dict.fromkeys(_topmost(path, groups, ours) for path in entries if not _belongs(path, groups, ours))
    if foreign:
        raise OutputError(
            f"{_named(foreign)} in {target}, which isovoxel has not written and which no level of the image is, so "
            "--overwrite does not replace it; move that away, or give another output"
        )
    return entries.nbytes


def _parts(image: Place) -> tuple[set[str], list[str]] | None:
    """Return the groups and the arrays of an image and of its labels; None where a group is no image."""
    levels = _levels(image)
    if levels is None:
        return None
    arrays = list(levels)
    groups = {"", *_above(arrays)}
    for labels in labels_of(image):
        arrays += [f"{labels}/{path}" for path in _levels(image / labels) or ()]
        groups |= {LABELS, labels, *_above(arrays)}
    if _attributes(image / LABELS) is not None:
        groups.add(LABELS)
    return groups, arrays


def labels_of(target: Place) -> list[str]:
    """Return the paths of labels in an output that isovoxel has written: where that is replaced, they go with it."""
    found = []
    for home in [f"{image}/{LABELS}" for image in images_of_output(target) or ()] or [LABELS]:
        places = (target / home).iterdir() if (target / home).is_dir() else ()
        ours = (place.name for place in places if made_by(place) is not None)
        found += [f"{home}/{name}" for name in sorted(ours)]
    return found


def _parts_of_several(target: Place) -> tuple[set[str], list[str]] | None:
    """Return the groups and the arrays of an output of several images; None of any other."""
    images = images_of_output(target)
    if images is None:
        return None
    groups, arrays = {"", "OME", *_above(images)}, []
    for image in images:
        if (found := _parts(target / image)) is not None:
            groups |= {f"{image}/{group}".rstrip("/") for group in found[0]}
            arrays += [f"{image}/{array}" for array in found[1]]
    return groups, arrays


def check_zarr(target: Place) -> None:
    """Raise an `OutputError` unless what is at `target` is a zarr itself, and no link to one."""
    if isinstance(target, ObjectPlace):
        if not is_zarr(target):
            raise OutputError(
                f"{target} holds objects but is no zarr, so --overwrite does not delete it; give another output"
            )
        return
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
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, IndexError):
        return None
    return None if any(name in ("", ".", "..") for path in found for name in path.split("/")) else found


def _above(arrays: Iterable[str]) -> Iterator[str]:
    """Yield the groups on the way to arrays."""
    for path in arrays:
        while "/" in path:
            path = path.rpartition("/")[0]  # noqa: PLW2901 - climbs
            yield path


def _attributes(place: Place) -> dict[str, Any] | None:
    """Return the attributes of a zarr, or None where none is that can be read."""
    try:
        return read_attributes(place)
    except (OSError, ValueError):
        return None


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
