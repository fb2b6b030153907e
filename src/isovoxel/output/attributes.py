"""What do the attributes of a zarr group say, and how are they changed? Read and written without loading zarr.

Those of a group of zarr v3 stand in its `zarr.json`, with what makes it a group; those of one of v2 in a file of their
own, `.zattrs`, beside `.zgroup`, which makes it one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from isovoxel.metadata.json_text import parse_json
from isovoxel.object_store.failures import ChangedError
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.place import Place
from isovoxel.output.files import write_whole

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

GROUP, ATTRIBUTES, V2_GROUP, V2_ARRAY = "zarr.json", ".zattrs", ".zgroup", ".zarray"
"""The files of metadata: of v3, and of v2."""

Change = Callable[[dict[str, Any]], dict[str, Any]]
"""Returns what an object of JSON shall be, of what it is, which it leaves as it is."""


def read_attributes(group: Place) -> dict[str, Any]:
    """Return the attributes of a zarr group.

    Raises
    ------
    OSError
        If it is no group, or cannot be read.
    ValueError, AttributeError, TypeError
        If its metadata are none.
    """
    try:
        attributes = parse_json((group / GROUP).read_bytes()).get("attributes", {})
    except FileNotFoundError:
        (group / V2_GROUP).read_bytes()  # without it, attributes are a remainder
        try:
            attributes = parse_json((group / ATTRIBUTES).read_bytes())
        except FileNotFoundError:
            return {}
    if not isinstance(attributes, dict):
        raise TypeError("attributes are an object")
    return attributes


def change_attributes(group: Place, change: Change, check: Callable[[], None] = lambda: None) -> None:
    """Change the attributes of a zarr group that nobody else changes, whole or not at all, and nothing else of it.

    No lock is taken on a disk: a process that was stopped while it had one would hold up its successor for ever.

    Parameters
    ----------
    group
        The group.
    change, check
        As `change_json` has them, `change` for attributes.

    Raises
    ------
    OSError
        If they cannot be written; then they are as they were.
    """

    def in_node(node: dict[str, Any]) -> dict[str, Any]:
        return node | {"attributes": change(node.get("attributes", {}))}

    try:
        (group / GROUP).read_bytes()
    except FileNotFoundError:
        file, changed = group / ATTRIBUTES, change
    else:
        file, changed = group / GROUP, in_node
    if isinstance(file, ObjectPlace):
        change_json(file, changed, check)
    else:
        write_whole(file, _text(changed(_held(file, file.read_bytes()))), check)


def change_json(file: Place, change: Change, check: Callable[[], None] = lambda: None) -> None:
    """Change a file or an object of JSON that others of us may be changing too: nobody's change is lost.

    Parameters
    ----------
    file
        Which; attributes of v2 that are not there are made.
    change
        Returns what it shall hold, of what it holds. Where that is the same, nothing is written.
    check
        Called between reading and writing; raises where nothing may be written any more.

    Raises
    ------
    OSError
        If it cannot be written; then it is as it was.
    """
    if isinstance(file, ObjectPlace):
        while not _changed(file, change, check):
            pass
        return
    with _alone(file.parent):
        try:
            held = _held(file, file.read_bytes())
        except FileNotFoundError:
            if file.name != ATTRIBUTES:
                raise
            held = {}
        wanted = change(held)
        if wanted != held:
            write_whole(file, _text(wanted), check)


def _changed(file: ObjectPlace, change: Change, check: Callable[[], None]) -> bool:
    """Change an object, or return False where somebody else has meanwhile."""
    try:
        data, found = file.read()
    except FileNotFoundError:
        if file.name != ATTRIBUTES:
            raise
        data, found = b"{}", None
    held = _held(file, data)
    wanted = change(held)
    if wanted == held:
        return True
    check()
    try:
        file.write(_text(wanted), new=found is None, of=None if found is None else found.version)
    except (ChangedError, FileExistsError):
        return False
    return True


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time change the metadata in a folder, where the system can tell."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _held(file: Place, data: bytes) -> dict[str, Any]:
    """Return what a file holds, or raise an `OSError` where it is no object of JSON."""
    try:
        held = parse_json(data)
    except ValueError:
        held = None
    if not isinstance(held, dict):
        raise OSError(errno.EINVAL, f"{file} holds no JSON object")
    return held


def _text(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()
