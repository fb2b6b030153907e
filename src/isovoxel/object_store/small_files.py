"""Small text files that options name, read whole; nothing else that may lie at their path is."""

from __future__ import annotations

import os
import stat

LARGEST = 2**20
"""Bytes that such a file may have."""


def read_small(path: str | os.PathLike[str]) -> str:
    """Return the text of a file.

    Raises
    ------
    OSError
        If there is none, or something that may have no end: a device, a pipe, a file of more than `LARGEST` bytes.
        Its ``strerror`` is a clause that says why.
    UnicodeDecodeError
        If it is no UTF-8.
    """
    # Opening a pipe waits for whoever writes to it.
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
