"""Notebooks show volumes, plans and results as what the command line says of them, escaped, and read no voxel."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import isovoxel
from isovoxel.execution.result import forecast
from isovoxel.geometry.grid import Box
from isovoxel.readers.base import Volume
from isovoxel.reporting.report import notebook_html
from isovoxel.reporting.text import plan_lines, result_lines, volume_lines

NAME = "<b>a & b</b>.tif"


def unread(_box: Box, /, _out: Any = None) -> NoReturn:
    raise AssertionError("a voxel was read")


VOLUME = Volume(NAME, "nothing", (30, 40, 50), np.dtype("uint8"), unread, voxel_size=(2.0, 1.0, 1.0), unit="micrometer")


class Cells(HTMLParser):
    """Collects the cells of tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and self.tags[-1] in ("th", "td"):
            self.cells[-1] += data


def test_a_volume_is_a_table() -> None:
    """Of what `isovoxel info` says."""
    shown = VOLUME._repr_html_()
    assert shown is not None
    assert Cells(shown).cells == [cell for line in volume_lines(VOLUME) for cell in line]
    assert "<b>" not in shown


def test_a_plan_is_a_table_and_a_picture() -> None:
    """Of what `isovoxel plan` says, and of its blocks."""
    plan = isovoxel.plan(VOLUME)
    shown = plan._repr_html_()
    assert shown is not None
    found = Cells(shown)
    assert found.cells == [cell for line in plan_lines(plan, forecast(plan)) for cell in line]
    assert found.tags.count("svg") == 1
    assert "<b>" not in shown


def test_a_result_is_both(tmp_path: Path) -> None:
    """What was done, and by which plan."""
    result = isovoxel.scale(np.zeros((4, 5, 6), np.uint8), tmp_path / "out.zarr", factor=(2, 1, 1))
    shown = result._repr_html_()
    assert shown is not None
    found = Cells(shown)
    assert found.cells == [cell for line in [*result_lines(result), *plan_lines(result.plan)] for cell in line]
    assert found.tags.count("svg") == 1


def test_nothing_else_is_shown() -> None:
    """A slip is an error and not an empty page."""
    with pytest.raises(TypeError, match="a dict is not shown"):
        notebook_html({})


def test_importing_isovoxel_loads_no_views() -> None:
    """They come when a notebook shows something."""
    code = "import sys, isovoxel; print([m for m in sys.modules if m.startswith(('isovoxel.reporting', 'PIL'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
