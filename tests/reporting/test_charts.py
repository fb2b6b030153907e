"""Charts put values where they belong: to scale, limits among them, with round numbers at their axes."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.reporting.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Limit, over_time, stage_bar
from isovoxel.reporting.svg import NAMESPACE

SVG = f"{{{NAMESPACE}}}"


def points_of(drawing: ET.Element, kind: str) -> list[list[tuple[float, float]]]:
    """Return the corners of each path of a class."""
    paths = [e.attrib["d"] for e in drawing.iter(f"{SVG}path") if e.get("class") == kind]
    return [[(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", path)] for path in paths]


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
    drawing = ET.fromstring(svg)  # noqa: S314 - our own
    (line,), ((_, limit), _) = points_of(drawing, "iv-line"), points_of(drawing, "iv-limit")[0]
    bottom = HEIGHT - BOTTOM
    scale = (bottom - limit) / (share * highest)
    for (x, y), (at, value) in zip(line, points, strict=True):
        assert bottom - y == pytest.approx(value * scale, abs=0.1)
        assert x == pytest.approx(LEFT + (WIDTH - LEFT - RIGHT) * at / seconds, abs=0.01)
        assert TOP <= y <= bottom
    words = list(drawing.itertext())
    assert "above: far 1e+30" in words
    assert 3 <= sum(e.get("class") == "iv-grid" for e in drawing.iter(f"{SVG}path")) <= 8


@pytest.mark.parametrize("seconds", [0.0, 0.3, 7.0, 200.0, 4000.0, 1e5, 3e6])
def test_times_are_round_and_few(seconds: float) -> None:
    """From the start, in steps that people count in."""
    drawing = ET.fromstring(over_time("title", [(0.0, 1.0)], seconds, lambda _: "value"))  # noqa: S314
    words = [word for word in drawing.itertext() if word != "value"]
    assert words[0] == "0 s"
    assert 2 <= len(words) <= 8
    assert len(set(words)) == len(words)


def test_a_chart_of_nothing_is_empty() -> None:
    """A job that made no block has axes and no line."""
    drawing = ET.fromstring(over_time("title", [], 0.0, "{:g}".format))  # noqa: S314
    assert points_of(drawing, "iv-line") == []


def test_stages_are_as_long_as_their_time() -> None:
    """Side by side, all of the bar."""
    drawing = ET.fromstring(stage_bar("title", [1.0, 0.0, 3.0]))  # noqa: S314
    parts = [(float(e.attrib["x"]), float(e.attrib["width"])) for e in drawing.iter(f"{SVG}rect")]
    assert parts == [(0.0, 250.0), (250.0, 0.0), (250.0, 750.0)]
