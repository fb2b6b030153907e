"""HTML of volumes, plans and results for notebooks: what the command line says of them, and a plan's picture."""

from __future__ import annotations

from isovoxel.api import ScaleResult
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume
from isovoxel.reporting.plan_picture import plan_svg
from isovoxel.reporting.report import table
from isovoxel.reporting.text import plan_lines, result_lines, volume_lines


def html(value: object) -> str:
    """Return a value as HTML: tables, and what a plan looks like. No voxel is read for it.

    Parameters
    ----------
    value
        A `Volume`, a `Plan` or a `ScaleResult`.

    Raises
    ------
    TypeError
        If it is none of them.
    """
    match value:
        case Volume():
            return table(volume_lines(value))
        case Plan():
            return f"<div>{table(plan_lines(value))}{plan_svg(value)}</div>"
        case ScaleResult():
            return f"<div>{table([*result_lines(value), *plan_lines(value.plan)])}{plan_svg(value.plan)}</div>"
        case _:
            raise TypeError(f"a {type(value).__name__} is not shown as HTML")
