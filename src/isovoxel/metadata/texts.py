"""Texts as metadata may hold them: Unicode, which names of files and other metadata need not be."""

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
