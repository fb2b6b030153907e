"""Redaction of pictures and reports: what looks like a secret in names and commands is not for all who get them.

Passwords, keys and signatures stand in addresses of object stores and in options. They are known by their names alone:
now and then a word is hidden that is no secret, and a secret under a name of its own is not known.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

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
