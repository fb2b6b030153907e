"""Files of pictures and reports: whether one may be written, and what must not stand in it.

What a user asks to be drawn is never worth a file of theirs: each picture, drawing and page says in its first bytes
that isovoxel made it, and what does not say so stays.

Passwords, keys and signatures stand in addresses of object stores and in options. They are known by their names alone:
now and then a word is hidden that is no secret, and a secret under a name of its own is not known.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
from collections.abc import Sequence
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


HIDDEN = "***"
_TELLING = r"[\w.-]*(?:key|token|secret|passw|pwd|credential|signature|\bsas\b)[\w.-]*"
"""Names of secrets."""
_HIDE = (
    # who://name:password@host, and what follows the question mark of an address
    (re.compile(r"(\w[\w+.-]*://)[^/\s@\"']*@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(\w[\w+.-]*://[^\s?\"'<>]*)\?[^\s\"'<>]*"), rf"\1?{HIDDEN}"),
    # name=value, and "name": "value"
    (re.compile(rf"(?i)({_TELLING}=[\"']?)[^\s\"'&,;]+"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)([\"']{_TELLING}[\"']\s*:\s*[\"']?)[^\s\"'&,;]+"), rf"\1{HIDDEN}"),
)
_TELLING_OPTION = re.compile(rf"(?i)--?{_TELLING}")


def without_secrets(words: str) -> str:
    """Return text in which what looks like a secret is hidden.

    Examples
    --------
    >>> without_secrets("read s3://me:pw@host/a.zarr?X-Amz-Signature=1 with secret_key=abc")
    'read s3://***@host/a.zarr?*** with secret_key=***'
    """
    for pattern, instead in _HIDE:
        words = pattern.sub(instead, words)
    return words


def printable(words: str) -> str:
    r"""Return text without secrets, and without characters that no page or picture may hold.

    Examples
    --------
    >>> printable("a <b> & \x01\udcff")
    'a <b> & ??'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in without_secrets(words))


def redacted_command(words: Sequence[str]) -> str:
    """Return a command as it could be typed again, but for the secrets in it.

    Examples
    --------
    >>> redacted_command(["isovoxel", "scale", "my stack.tif", "--secret-key", "abc", "out.zarr"])
    "isovoxel scale 'my stack.tif' --secret-key *** out.zarr"
    """
    said, hide = [], False
    for word in words:
        said.append(HIDDEN if hide else shlex.quote(word) if without_secrets(word) == word else without_secrets(word))
        hide = _TELLING_OPTION.fullmatch(word) is not None
    return " ".join(said)
