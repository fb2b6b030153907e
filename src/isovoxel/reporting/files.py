"""Files of pictures and reports: written where no file is, or in place of one that isovoxel has made itself.

What a user asks to be drawn is never worth a file of theirs: each picture, drawing and page says in its first bytes
that isovoxel made it, and what does not say so stays.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from isovoxel.errors import OutputError, OutputExistsError
from isovoxel.object_store.files import refusal_reason, write_whole

MARK = "made by isovoxel"
"""What is found in the first bytes of everything that isovoxel draws."""
_FIRST_BYTES = 1024
_SIGNS = (
    (b"\x89PNG\r\n\x1a\n", b"tEXtSoftware\0" + MARK.encode()),
    (b"<?xml ", b"\n<!-- " + MARK.encode()),
    (b"<!DOCTYPE html>", b'<meta name="generator" content="' + MARK.encode()),
)
"""How a PNG, an SVG and a page of isovoxel's begin, and where in its first bytes each says who made it."""


def check_own(path: str | os.PathLike[str], what: str) -> Path:
    """Return the path if `write_own` may write to it; nothing is changed.

    Parameters
    ----------
    path
        Where a file shall be.
    what
        What it is, for messages: "picture".

    Raises
    ------
    OutputExistsError
        If a file is there that isovoxel has not made.
    OutputError
        If nothing can be written there.
    """
    target = Path(path)
    try:
        _check(target, os.fspath(path), what)
    except OutputError:
        raise
    except (OSError, ValueError) as error:  # such as a name that is too long, or has a character that no name has
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"the {what} {target} cannot be written: {reason}") from error
    return target


def _check(target: Path, name: str, what: str) -> None:
    if not name or target.is_dir():
        raise OutputError(f"the {what} {name!r} cannot be written, for that is no name of a file; give one")
    if not target.parent.is_dir():
        raise OutputError(f"the {what} {target} cannot be written: its folder does not exist; create it first")
    if target.is_symlink():
        raise OutputExistsError(f"{target} is a link, which is not replaced; give the {what} another name")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(target.stat().st_mode):
            raise OutputExistsError(f"{target} is a device or a pipe; give the {what} the name of a file")
        with target.open("rb") as file:
            begins = file.read(_FIRST_BYTES)
        if not any(begins.startswith(kind) and sign in begins for kind, sign in _SIGNS):
            raise OutputExistsError(f"{target} exists and is no {what} of isovoxel's; give the {what} another name")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the {what} {target} cannot be written, because writing to {target.parent} is not permitted")


def write_own(path: Path, data: bytes, what: str) -> None:
    """Write a file whole, or not at all.

    Parameters
    ----------
    path
        Where; `check_own` has found nothing against it.
    data
        The file's bytes, with `MARK` among the first.
    what
        What it is, for messages.

    Raises
    ------
    OutputError
        If the system refuses.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise OutputError(f"the {what} {path} cannot be written: {refusal_reason(error)}") from error
