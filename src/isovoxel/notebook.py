"""Notebook hook: values render as HTML without importing what draws.

It asks whoever was named here. `isovoxel` itself names the views when it is imported, and they are loaded only once a
notebook shows something; without them a value is shown as the text that it is anyway.
"""

from __future__ import annotations

from collections.abc import Callable

_drawn: list[Callable[[object], str]] = []


def draw_with(html: Callable[[object], str]) -> None:
    """Name what returns a value as HTML; it stands in place of what was named before."""
    _drawn[:] = [html]


class InNotebooks:
    """A value that notebooks show as tables and drawings."""

    def _repr_html_(self) -> str | None:
        return _drawn[0](self) if _drawn else None
