"""Texts as metadata may hold them: Unicode that no file can have, and paths that lead out of their folder.

Metadata come from others, and must not make isovoxel read what the user did not name. Links in the folder are
followed wherever they lead: making them is the user's own doing.
"""

from __future__ import annotations

import re

_HALVES = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    r"""Return a text with U+FFFD in place of what UTF-8 cannot encode.

    Examples
    --------
    >>> ascii(encodable("a\udcff\u00b5"))
    "'a\\ufffd\\xb5'"
    """
    return _HALVES.sub("\ufffd", text)


def stays_inside(path: str) -> bool:
    r"""Tell whether a path leads to something inside its folder, on every system.

    Examples
    --------
    >>> [stays_inside(path) for path in ("0", "a/b", "../b", "/etc", r"C:\b", r"\\host\b", "a//b", "")]
    [True, True, False, False, False, False, False, False]
    """
    if re.match(r"[A-Za-z]:", path) or "\0" in path:
        return False
    return all(part not in ("", ".", "..") for part in re.split(r"[/\\]", path))
