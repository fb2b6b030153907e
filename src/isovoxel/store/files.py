"""How are small files written so that a dying process or machine leaves them whole?"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path


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
        If the file system refuses. What was there before is still there.
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
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush what a folder lists to the disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some file systems flush none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
