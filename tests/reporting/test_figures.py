"""Figures are the same whatever the user has set, and charts put values where they belong, with round numbers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isovoxel.reporting.figures import (
    BOTTOM,
    HEIGHT,
    LEFT,
    NAMESPACE,
    RIGHT,
    TOP,
    WIDTH,
    Canvas,
    Limit,
    drawing,
    over_time,
    png,
)
from isovoxel.reporting.show import label_colours
from strategies import examples

SVG = f"{{{NAMESPACE}}}"


def points_of(figure: ET.Element, name: str) -> list[list[tuple[float, float]]]:
    """Return the corners of each path that bears a name."""
    paths = [path for e in figure.iter(f"{SVG}g") if e.get("class") == name for path in e.iter(f"{SVG}path")]
    found = (re.findall(r"([-\d.]+) ([-\d.]+)", path.attrib["d"]) for path in paths)
    return [[(float(x), float(y)) for x, y in path] for path in found]


def words_of(figure: ET.Element) -> list[str]:
    """Return what is written in a figure."""
    return [element.text or "" for element in figure.iter(f"{SVG}text")]


def some_chart(title: str = "title") -> str:
    """Return a chart with a limit."""
    return over_time(title, [(0.0, 1.0), (1.0, 3.0)], 2.0, "{:g} $µ_1$".format, [Limit(4.0, "most")])


def some_picture() -> bytes:
    """Return text on a dark ground as PNG."""
    with drawing():
        canvas = Canvas(200, 60, "#10121b")
        canvas.text(10, 40, "$x_1$ µ", 20, colour="#e2e6f0")
        return png(canvas.pixels(), "software")


@pytest.mark.parametrize("make", [some_chart, some_picture])
def test_users_settings_change_nothing_and_are_not_changed(make: Callable[[], str | bytes]) -> None:
    """A notebook may have its own style, LaTeX and sketches: figures are what they are without."""
    before = make()
    theirs: dict[str, Any] = {
        "axes.facecolor": "red",
        "font.family": "serif",
        "font.weight": "bold",
        "path.sketch": (1, 100, 2),
        "savefig.bbox": "tight",
        "savefig.facecolor": "green",
        "svg.fonttype": "path",
        "text.usetex": True,
    }
    with mpl.rc_context(theirs):
        kept = mpl.rcParams.copy()
        assert make() == before
        assert mpl.rcParams.copy() == kept


def test_threads_draw_the_same() -> None:
    """Reports of several jobs may be written at once."""
    expected = some_chart(), some_picture()
    with ThreadPoolExecutor(4) as threads:
        charts = [threads.submit(some_chart) for _ in range(8)]
        drawn = [threads.submit(some_picture) for _ in range(8)]
    assert {future.result() for future in charts} == {expected[0]}
    assert {future.result() for future in drawn} == {expected[1]}


def test_a_figure_has_two_schemes_of_colours() -> None:
    """What it is drawn in is light; a style sheet has a dark colour for each, for systems that are dark."""
    chart = some_chart()
    drawn = set(re.findall(r' (?:fill|stroke)="(#\w+)"', chart))
    dark = re.findall(r'\.iv \[(fill|stroke)="(#\w+)"\]\{\1:(#\w+)\}', chart.partition("prefers-color-scheme:dark")[2])
    assert len(drawn) > 5
    assert drawn <= {light for _, light, _ in dark}
    assert all(light != other for _, light, other in dark)


def test_titles_cannot_break_a_figure() -> None:
    """A title is text, without secrets."""
    chart = some_chart('"><script>alert(1)</script> s3://me:hunter2@host/a')
    assert "<script" not in chart
    assert "hunter2" not in chart


SAY = "from isovoxel.cli import main; import sys; sys.argv[0] = 'isovoxel'; main()"
NO_FOLDER = "import tempfile; tempfile.mkdtemp = lambda *_, **__: open('/dev/null/nothing')"


@pytest.mark.slow
@pytest.mark.parametrize(("first", "code"), [("", 0), (NO_FOLDER, 2)])
def test_a_home_that_cannot_be_written_is_no_matter(tmp_path: Path, first: str, code: int) -> None:
    """Nothing is said of it, whatever matplotlib would say; where no folder is left, one sentence is."""
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 5), np.uint8))
    (tmp_path / "home").write_text("no folder")
    unset = ("MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    environment |= {name: str(tmp_path / "home") for name in ("HOME", "USERPROFILE")}
    words = ["plan", "a.npy", "--factor", "2,1,1", "--engine", "exact", "--picture", "plan.svg"]
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\n{SAY}", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "plan.svg").exists() == (code == 0)
    said = [line for line in done.stderr.splitlines() if "atplotlib" in line or "Traceback" in line]
    assert len(said) == (1 if code else 0)
    assert all(line.startswith("error: nothing can be drawn: ") for line in said)


@settings(max_examples=examples(30))
@given(
    values=st.lists(st.just(0.0) | st.floats(1e-3, 1e12), min_size=2, max_size=50),
    seconds=st.floats(0.01, 1e7),
    share=st.floats(0.1, 3.9),
)
def test_a_chart_is_to_scale(values: list[float], seconds: float, share: float) -> None:
    """Heights are in proportion to values, a limit's too, and everything lies between the axes."""
    highest = max(values) or 1.0
    points = [(seconds * i / (len(values) - 1), value) for i, value in enumerate(values)]
    svg = over_time("title", points, seconds, "{:g}".format, [Limit(share * highest, "limit"), Limit(1e30, "far")])
    figure = ET.fromstring(svg)  # noqa: S314 - our own
    (line,), ((_, limit), _) = points_of(figure, "iv-line"), points_of(figure, "iv-limit")[0]
    bottom = HEIGHT - BOTTOM
    scale = (bottom - limit) / (share * highest)
    for (x, y), (at, value) in zip(line, points, strict=True):
        assert bottom - y == pytest.approx(value * scale, abs=0.1)
        assert x == pytest.approx(LEFT + (WIDTH - LEFT - RIGHT) * at / seconds, abs=0.01)
        assert TOP <= y <= bottom
    words = words_of(figure)
    assert "above: far 1e+30" in words
    assert 3 <= len(points_of(figure, "iv-grid")) <= 8


@pytest.mark.parametrize("seconds", [0.0, 0.3, 7.0, 200.0, 4000.0, 1e5, 3e6])
def test_times_are_round_and_few(seconds: float) -> None:
    """From the start, in steps that people count in."""
    figure = ET.fromstring(over_time("title", [(0.0, 1.0)], seconds, lambda _: "value"))  # noqa: S314
    words = [word for word in words_of(figure) if word != "value"]
    assert words[0] == "0 s"
    assert 2 <= len(words) <= 8
    assert len(set(words)) == len(words)


def test_a_chart_of_nothing_is_empty() -> None:
    """A job that made no block has axes and no line."""
    figure = ET.fromstring(over_time("title", [], 0.0, "{:g}".format))  # noqa: S314
    assert points_of(figure, "iv-line") == []


# ---- colours of labels -----------------------------------------------------------------------------------------------


NEAR = 12
"""Labels whose numbers differ by no more than this are told apart at a glance."""


@given(label=st.integers(1, 2**64 - 1 - NEAR), step=st.integers(1, NEAR))
def test_labels_with_near_numbers_do_not_look_alike(label: int, step: int) -> None:
    """Wherever numbers begin, and up to the last that 64 bits hold."""
    one, other = label_colours(np.array([label, label + step], np.uint64)).astype(int)
    assert np.abs(one - other).max() > 30
    assert one.max() > 150


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64"])
def test_the_colour_is_the_labels_and_not_the_dtypes(dtype: str) -> None:
    """The same label has the same colour in any dtype and place; the background is black."""
    colours = label_colours(np.array([[0, 1], [100, 1]], dtype))
    assert colours.shape == (2, 2, 3)
    assert colours.dtype == np.uint8
    np.testing.assert_array_equal(colours, label_colours(np.array([[0, 1], [100, 1]], np.uint32)))
    np.testing.assert_array_equal(colours[0, 1], colours[1, 1])
    assert colours[0, 0].tolist() == [0, 0, 0]


def test_negative_labels_have_colours() -> None:
    """A sign makes a label of its own."""
    assert label_colours(np.array([-1], np.int8)).any()
