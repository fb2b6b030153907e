"""How are small files written so that a dying process or machine leaves them whole?"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there completely or not at all, even if the power goes.

    Raises
    ------
    OSError
        If the file system refuses. What was there before is still there.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")  # a name that no file of a user's has
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
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
