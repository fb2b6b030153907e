"""What `examples/questions.md` answers: options that exist, and what the answers say of voxels and grids."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import zarr

import isovoxel
from isovoxel import cli

PAGE = (Path(__file__).parents[1] / "examples" / "questions.md").read_text(encoding="utf-8")


def test_every_question_has_one_line_and_a_link() -> None:
    """Question, answer, and where there is more."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 15
    for row in rows:
        assert len(row) == 3, row
        assert "?" in row[0]
        assert re.fullmatch(r"\[.+\]\(.+\)", row[2])


def test_options_and_commands_that_it_names_exist() -> None:
    """Each is one of the command line's."""
    commands = cli.command().commands
    options = {word for command in commands.values() for each in command.params for word in each.opts}
    named = set(re.findall(r"(?<=[` ])--[a-z][a-z-]+", PAGE))
    assert named
    assert named <= options
    assert set(re.findall(r"`isovoxel (\w+)", PAGE)) <= commands.keys()


@pytest.mark.parametrize("engine", ["cle", "exact"])
def test_the_rim_is_dark_where_that_is_asked_for_only(engine: str, tmp_path: Path) -> None:
    """The outermost voxels are repeated unless they are to blend with 0, as those of cle.scale do."""
    even = np.full((8, 8, 8), 100, np.float32)
    smallest = {}
    for boundary in ("nearest", "constant"):
        out = isovoxel.scale(even, tmp_path / boundary, factor=(2, 2, 2), engine=engine, boundary=boundary)
        smallest[boundary] = float(np.min(zarr.open_array(out.path / "0", mode="r")[...]))
    assert smallest["nearest"] == pytest.approx(100)
    assert smallest["constant"] < 80
