"""Small files: written so that a dying process or machine leaves them whole, and read where they may be damaged."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from isovoxel.object_store.objects import Place

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
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")  # a name that no file of a user's has
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
        If it is no UTF-8.
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
    return data.decode()


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
