"""The drawing of a plan has its proportions and its lines, says what it leaves out, and needs nothing from outside."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

import isovoxel
from command_line import Isovoxel, check_refused, listing
from isovoxel.geometry.grid import Float3, Index3
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume
from isovoxel.reporting import figures
from isovoxel.reporting.figures import NAMESPACE, VIEWS, text_width
from isovoxel.reporting.files import MARK
from isovoxel.reporting.plan_picture import LEFT, NEAREST, TOP, WIDTH, plan_svg

SVG = f"{{{NAMESPACE}}}"


def plan_of(
    shape: Index3,
    voxel_size: Float3 = (2.0, 0.5, 0.5),
    factor: Float3 = (4, 1, 1),
    *,
    blocks: Index3 | None = None,
    name: str = "a.tif",
) -> Plan:
    """Return a plan, with blocks of this shape."""
    volume = Volume(
        name, "nothing", shape, np.dtype("uint16"), lambda _: np.zeros(0), voxel_size=voxel_size, unit="micrometer"
    )
    side = 128 if blocks is None else 32
    planned = isovoxel.plan(volume, factor=factor, engine="exact", chunk=(side,) * 3, shard=(side,) * 3)
    return planned if blocks is None else replace(planned, block_shape=blocks)


def parsed(plan: Plan) -> ET.Element:
    return ET.fromstring(plan_svg(plan))  # noqa: S314 - our own


def corners(drawing: ET.Element, name: str) -> list[list[tuple[float, float]]]:
    """Return the corners of each path that bears a name."""
    paths = [path for e in drawing.iter(f"{SVG}g") if e.get("class") == name for path in e.iter(f"{SVG}path")]
    found = (re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"]) for path in paths)
    return [[(float(x), float(y)) for x, y in path] for path in found]


def boxes(drawing: ET.Element, name: str) -> list[dict[str, float]]:
    """Return the rectangles that bear a name, xy, xz and zy."""
    found = []
    for path in corners(drawing, name):
        (left, right), (top, bottom) = ((min(at), max(at)) for at in zip(*path, strict=True))
        found.append({"x": left, "y": top, "width": right - left, "height": bottom - top})
    return found


def faces(drawing: ET.Element) -> list[dict[str, float]]:
    return [box for name in ("xy", "xz", "zy") for box in boxes(drawing, f"iv-face-{name}")]


def block_lines(drawing: ET.Element) -> list[tuple[list[float], list[float]]]:
    """Return where block lines lie, of each face: those that go across, and those that go down."""
    found = []
    for path in corners(drawing, "iv-block"):
        ends = [(*first, *last) for first, last in zip(path[::2], path[1::2], strict=True)]
        found.append(([y0 for _, y0, _, y1 in ends if y0 == y1], [x0 for x0, _, x1, _ in ends if x0 == x1]))
    return found


@pytest.mark.parametrize(
    ("shape", "voxel_size", "factor"),
    [
        ((86, 396, 393), (1.0, 0.202, 0.202), (2, 0.404, 0.404)),
        ((300, 20, 400), (0.1, 3.0, 0.2), (1, 2, 3)),
        ((3, 900, 9000), (1.0, 0.2, 0.2), (5, 1, 1)),
    ],
)
def test_faces_have_the_outputs_proportions(shape: Index3, voxel_size: Float3, factor: Float3) -> None:
    """At one number of pixels per length, to a pixel; and all of them lie inside of the drawing."""
    plan = plan_of(shape, voxel_size, factor)
    drawing = parsed(plan)
    lengths = np.multiply(plan.output.shape, plan.output.voxel_size)
    found = faces(drawing)
    scale = max(face["width"] for face in found) / max(lengths[[2, 0]])
    for (down, right), face in zip(VIEWS, found, strict=True):
        assert face["width"] == pytest.approx(lengths[right] * scale, abs=1)
        assert face["height"] == pytest.approx(lengths[down] * scale, abs=1)
        assert face["x"] >= LEFT
        assert face["y"] >= TOP
        assert face["x"] + face["width"] <= WIDTH
        assert face["y"] + face["height"] <= float(drawing.attrib["height"])


def test_each_block_has_its_lines() -> None:
    """They lie where blocks meet, and the marked one is where its boxes are, halo included."""
    plan = plan_of((60, 200, 320), (2.0, 0.5, 0.5), (4, 1, 1), blocks=(96, 64, 128))
    assert plan.block_grid == (3, 4, 3)
    drawing = parsed(plan)
    block = plan.block_at((1, 2, 1))
    for i, (axes, face, (across, down)) in enumerate(zip(VIEWS, faces(drawing), block_lines(drawing), strict=True)):
        for row, (axis, at, first, length) in enumerate(
            zip(axes, (across, down), (face["y"], face["x"]), (face["height"], face["width"]), strict=True)
        ):
            voxel = length / plan.output.shape[axis]
            expected = [first + k * plan.block_shape[axis] * voxel for k in range(1, plan.block_grid[axis])]
            assert at == pytest.approx(expected, abs=0.02)
            write, read = boxes(drawing, "iv-write")[i], boxes(drawing, "iv-read")[i]
            start, side = (("y", "height"), ("x", "width"))[row]
            assert write[start] == pytest.approx(first + block.write_box.start[axis] * voxel, abs=0.02)
            assert write[side] == pytest.approx(block.write_box.shape[axis] * voxel, abs=0.02)
            f = plan.factor[axis]
            assert read[start] == pytest.approx(first + block.read_box.start[axis] * f * voxel, abs=0.02)
            assert read[side] == pytest.approx(block.read_box.shape[axis] * f * voxel, abs=0.02)
    words = " ".join(drawing.itertext())
    assert "36 blocks of 96 x 64 x 128 voxels, 3 x 4 x 3 along z, y, x" in words
    assert "x: 320 voxels, 160 µm" in words
    assert "halo at most z 1+1, y 0+0, x 0+0 input voxels" in words
    assert "z 96 to 192, y 128 to 192, x 128 to 256 of the output" in words


@pytest.mark.slow
def test_a_million_blocks_are_as_many_lines_as_can_be_seen() -> None:
    """The drawing stays small, no two lines are nearer than can be told apart, and it says what it leaves out."""
    plan = plan_of((20_000, 60_000, 60_000), blocks=(320, 320, 320))
    assert plan.n_blocks > 10**6
    drawing = parsed(plan)
    for across, down in block_lines(drawing):
        for at in (across, down):
            assert len(at) > 50
            assert min(np.diff(at)) >= NEAREST - 0.02
    assert len(plan_svg(plan)) < 40_000
    words = " ".join(drawing.itertext())
    assert f"{plan.n_blocks:,} blocks" in words
    assert re.search(r"of so many, every \d+\w\w along y", words)


def test_one_block_is_drawn_as_one() -> None:
    """It has no lines inside and no halo, and covers all."""
    plan = plan_of((10, 20, 30))
    drawing = parsed(plan)
    assert block_lines(drawing) == []
    assert boxes(drawing, "iv-write") == faces(drawing)
    words = " ".join(drawing.itertext())
    assert "1 block of" in words
    assert "this block has none" in words


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 50_000), (9000, 1, 1), (1, 5000, 5000)])
def test_any_plan_is_drawn_inside_of_its_paper(shape: Index3) -> None:
    """However thin a volume is, every line lies inside, and every line of text from its beginning to its end."""
    drawing = parsed(plan_of(shape, (1.0, 1.0, 1.0), (1, 1, 1)))
    height = float(drawing.attrib["height"])
    for path in drawing.iter(f"{SVG}path"):
        for x, y in re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"]):
            assert 0 <= float(x) <= WIDTH
            assert 0 <= float(y) <= height
    for element in drawing.iter(f"{SVG}text"):
        x, size = float(element.attrib["x"]), float(element.attrib["font-size"].removesuffix("px"))
        with figures.drawing():
            width = text_width(element.text or "", size) if element.attrib["text-anchor"] == "start" else 0
        assert 0 <= x <= x + width <= WIDTH
        assert 0 <= float(element.attrib["y"]) <= height


def test_volumes_of_a_series_are_counted() -> None:
    """The faces are those of each; the title says how many there are."""
    plan = plan_of((20, 64, 64))
    series = replace(plan, source=replace(plan.source, series=(("t", 2), ("c", 3))))
    assert "6 blocks of 80 x 64 x 64 voxels, in 6 volumes of 1 x 1 x 1 along z, y, x" in plan_svg(series)


NAMES = [
    "$x_1$ \\alpha.tif",
    "$x_{$.tif",
    "試料 Проба עברית.tif",
    "a$b&lt;.tif",
    '<script src="https://example.com/x.js">&.tif',
]


@pytest.mark.parametrize(("name", "shown"), [*((name, name) for name in NAMES), ("a\udcff\x01b.tif", "a??b.tif")])
def test_names_stay_text_in_any_script(name: str, shown: str) -> None:
    """They are characters, neither outlines nor mathematics; what no encoding or XML may hold is marked."""
    svg = plan_svg(plan_of((4, 4, 4), name=name))
    words = ET.fromstring(svg.encode()).iter(f"{SVG}text")  # noqa: S314 - our own
    assert f"Plan for {shown}" in [element.text for element in words]
    assert "<script" not in svg


def test_the_command_writes_a_file_of_its_own(isovoxel: Isovoxel, tmp_path: Path) -> None:
    """Nothing in it leads elsewhere; it is made again in its own place, and no other file is replaced."""
    np.save(tmp_path / "a.npy", np.zeros((8, 9, 10), np.uint8))
    words = ["plan", tmp_path / "a.npy", "--factor", "2,1,1"]
    for _ in range(2):
        said = isovoxel(*words, "--picture", tmp_path / "plan.svg")
        assert said.out.splitlines()[-1].split() == ["picture", str(tmp_path / "plan.svg")]
    file = (tmp_path / "plan.svg").read_text(encoding="utf-8")
    assert MARK in file[:200]
    assert re.findall(r"\w+://[^\"]*", file) == [NAMESPACE]
    assert not re.search(r"@import|url\(|href", file)
    (tmp_path / "mine.svg").write_text("<svg/>")
    before = listing(tmp_path)
    check_refused(isovoxel(*words, "--picture", tmp_path / "mine.svg"), "is no picture of isovoxel's")
    check_refused(isovoxel(*words, "--picture", tmp_path / "plan.png"), "must end in .svg")
    assert listing(tmp_path) == before
