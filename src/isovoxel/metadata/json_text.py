"""Parse JSON that may be damaged: whatever is wrong with it is a `ValueError`."""

from __future__ import annotations

import json
from typing import Any


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
