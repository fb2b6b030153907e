"""Small files: written so that a dying process or machine leaves them whole, and read where they may be damaged.

Metadata of zarr nodes are such files, on a disk or in an object store.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from isovoxel.object_store.clients import ChangedError
from isovoxel.object_store.objects import ObjectPlace, Place

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
"""Locks of files, or None where the system has none of this kind."""

LARGEST = 2**20
"""Bytes that a file may have that an option names."""


def write_whole(path: Path, data: bytes | Iterable[bytes], check: Callable[[], None] = lambda: None) -> None:
    """Write a file that is there completely or not at all, even if the power goes.

    Parameters
    ----------
    path
        The file.
    data
        What it shall hold, in one or more parts.
    check
        Called when all is on the disk under another name; raises where it must not become the file any more.

    Raises
    ------
    OSError
        If the file system refuses; it names the file. What was there before is still there.
    """
    # A name that no file of a user's has, and that is not too long where the file's is not.
    partial = path.with_name(f"{path.name[:50]}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        check()
        partial.replace(path)
    except BaseException as error:
        if not isinstance(error, FileExistsError):
            with contextlib.suppress(OSError):
                partial.unlink()
        if isinstance(error, OSError):
            name_file(error, path)
        raise
    sync_folder(path.parent)


def name_file(error: OSError, path: Path) -> None:
    """Let an error of the system say which file it is about: of open files it does not, of others the name of a part.

    One that is isovoxel's own says so itself.
    """
    if error.errno is not None:
        error.filename, error.filename2 = str(path), None


def write_all(descriptor: int, data: bytes, path: Path) -> None:
    """Write all of some bytes into an open file, which a disk that becomes full takes a part of without an error.

    Raises
    ------
    OSError
        If the file system refuses; it names the file.
    """
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        name_file(error, path)
        raise


def has_no_inodes(error: OSError) -> bool:
    """Return whether a file could not be made because its disk has no room for the file itself, whatever is free."""
    if error.errno != errno.ENOSPC or not isinstance(error.filename, str) or not hasattr(os, "statvfs"):
        return False
    for folder in Path(error.filename).parents:
        with contextlib.suppress(OSError):  # it is not there yet, or not any more
            found = os.statvfs(folder)
            return found.f_files > 0 and found.f_favail == 0
    return False


def refusal(error: OSError, place: Place) -> str:
    """Say which file the system does not let isovoxel write, where it says, else which output; and why."""
    file = error.filename if isinstance(error.filename, str) else place
    return f"{file} cannot be written: {refusal_reason(error)}"


def refusal_reason(error: OSError) -> str:
    """Return why the system does not let isovoxel write, as a clause."""
    if has_no_inodes(error):
        return "the disk has no inodes left for another file; remove files"
    return str(error.strerror or error)


def sync_folder(folder: Path) -> None:
    """Flush what a folder lists to the disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some file systems flush none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_small(path: str | os.PathLike[str]) -> str:
    """Return the text of a small file that an option names, and of nothing else that may lie at its path.

    Raises
    ------
    OSError
        If there is none, or something that may have no end: a device, a pipe, a file of more than `LARGEST` bytes.
        Its ``strerror`` is a clause that says why.
    UnicodeDecodeError
        If it is no UTF-8; it may begin with a byte order mark, as Windows' editors write it.
    """
    # Opening a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(None, "it is a folder", os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(None, "it is a device or a pipe, and not a file", os.fspath(path))
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(None, f"it is larger than {LARGEST // 2**20} MiB", os.fspath(path))
    return data.decode("utf-8-sig")


def parse_json(text: bytes | str) -> Any:
    """Return what JSON says.

    Raises
    ------
    ValueError
        If it is none, or nested too deeply to be parsed.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


# ---- metadata of zarr nodes --------------------------------------------------------------------------------------

# Metadata of zarr nodes, groups and arrays of either format, on a disk or in an object store, without zarr-python.
#
# Those of a node of zarr v3 stand in its `zarr.json`, its attributes among them. In v2, `.zgroup` or `.zarray` makes
# the node, and its attributes have a file of their own, `.zattrs`.


NODE, ATTRIBUTES, V2_GROUP, V2_ARRAY = "zarr.json", ".zattrs", ".zgroup", ".zarray"
"""The files of metadata: of v3, and of v2."""

TOP = {NODE: 3, V2_GROUP: 2, V2_ARRAY: 2}
"""Files that make a folder, or what lies in a place, a zarr; and the format that each of them must name."""

N5_ATTRIBUTES = "attributes.json"
"""The file with the attributes of a dataset or a group of N5."""

GROUP_FILES = (NODE, V2_GROUP, ATTRIBUTES)
"""The files that a group may have."""

ARRAY_FILES = (NODE, V2_ARRAY, ATTRIBUTES)
"""The files that an array may have."""

Kind = Literal["group", "array"]

Change = Callable[[dict[str, Any]], dict[str, Any]]
"""Returns what an object of JSON shall be, of what it is, which it leaves as it is."""


# ---- what a node is ------------------------------------------------------------------------------------------------


def kind_of_node(place: Place) -> Kind | None:
    """Return what a folder is by its files: a group too where `zarr.json` is damaged, and None where it is no zarr."""
    if (place / NODE).is_file():
        try:
            node = parse_json((place / NODE).read_bytes())
        except ValueError:
            return "group"  # opening it says what is wrong with it
        return "array" if isinstance(node, dict) and node.get("node_type") == "array" else "group"
    if (place / V2_ARRAY).is_file():
        return "array"
    return "group" if (place / V2_GROUP).is_file() else None


def sound_node(place: Place) -> tuple[Kind | None, int]:
    """Return what a folder is by what its metadata say, and of which format; None where they are of neither."""
    kinds: dict[str, Kind | None] = {NODE: None, V2_GROUP: "group", V2_ARRAY: "array"}
    for name, zarr_format in TOP.items():
        try:
            node = _of_format(place / name)
        except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError):
            continue
        kind = kinds[name] or node.get("node_type")
        return (kind, zarr_format) if kind in ("group", "array") else (None, 0)
    return None, 0


def is_zarr(place: Place) -> bool:
    """Return whether a place is a zarr by the metadata at its top.

    Raises
    ------
    OSError
        If a store does not say.
    """
    for name in TOP:
        try:
            _of_format(place / name)
        except (FileNotFoundError, ValueError):
            continue
        except OSError:
            if isinstance(place, ObjectPlace):
                raise
            continue
        return True
    return False


# ---- what its metadata say -----------------------------------------------------------------------------------------


def files_of_node(place: Place, names: Iterable[str]) -> list[Place]:
    """Return those of the files of a node that are there."""
    return [place / name for name in names if (place / name).is_file()]


def read_group(group: Place) -> dict[str, Any]:
    """Return the metadata of a zarr group as v3 has them, whatever their format.

    Raises
    ------
    OSError
        If it is no group, or cannot be read.
    ValueError
        If its metadata are no JSON object, or name another format.
    """
    try:
        return _of_format(group / NODE)
    except FileNotFoundError:
        pass
    except PermissionError:
        if isinstance(group, Path):
            raise
        # A store may answer so for what is not there.
    _of_format(group / V2_GROUP)  # without it, attributes are a remainder
    node: dict[str, Any] = {"zarr_format": 2, "node_type": "group"}
    try:
        node["attributes"] = parse_json((group / ATTRIBUTES).read_bytes())
    except FileNotFoundError:
        pass
    except PermissionError:
        if isinstance(group, Path):
            raise
    return node


def _of_format(file: Place) -> dict[str, Any]:
    """Return what a file at the top of a zarr holds, where that names the format that goes with it."""
    node = parse_json(file.read_bytes())
    if not isinstance(node, dict) or node.get("zarr_format") != TOP[file.name]:
        raise ValueError(f"its {file.name} does not say that zarr_format is {TOP[file.name]}")
    return node


def read_attributes(group: Place) -> dict[str, Any]:
    """Return the attributes of a zarr group.

    Raises
    ------
    OSError
        If it is no group, or cannot be read.
    ValueError
        If its metadata are none.
    """
    node = read_group(group)
    attributes = node.get("attributes", {})
    if not isinstance(attributes, dict):
        raise ValueError(f"the attributes of {group} are no object")  # noqa: TRY004 - of a file, not of a caller
    return attributes


def read_array(array: Place) -> tuple[dict[str, Any], int]:
    """Return the metadata of a zarr array, and their format.

    Raises
    ------
    OSError
        If it is none, or cannot be read.
    ValueError
        If its metadata are no JSON.
    """
    try:
        return parse_json((array / NODE).read_bytes()), 3
    except FileNotFoundError:
        return parse_json((array / V2_ARRAY).read_bytes()), 2


# ---- how they are changed ------------------------------------------------------------------------------------------


def change_attributes(group: Place, change: Change, check: Callable[[], None] = lambda: None) -> None:
    """Change the attributes of a zarr group that no other process changes, whole or not at all, and nothing else of it.

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
        (group / NODE).read_bytes()
    except FileNotFoundError:
        file, changed = group / ATTRIBUTES, change
    else:
        file, changed = group / NODE, in_node
    if isinstance(file, ObjectPlace):
        change_json(file, changed, check)
    else:
        write_whole(file, document_text(changed(_held(file, file.read_bytes()))), check)


def change_json(file: Place, change: Change, check: Callable[[], None] = lambda: None) -> None:
    """Change a file or an object of JSON that other processes may be changing, too: no change is lost.

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
            write_whole(file, document_text(wanted), check)


def _changed(file: ObjectPlace, change: Change, check: Callable[[], None]) -> bool:
    """Change an object, or return False where another process has changed it meanwhile."""
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
        file.write(document_text(wanted), new=found is None, of=None if found is None else found.version)
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


def document_text(document: Mapping[str, Any]) -> bytes:
    """Return metadata as zarr-python writes them."""
    return json.dumps(document, indent=2).encode()
