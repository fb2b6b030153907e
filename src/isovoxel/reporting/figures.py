"""Figures by matplotlib: a canvas measured in pixels, as SVG in two colour schemes or as pixels, and charts on it.

- Text is text: no mathematics is seen in it, and SVG keeps its characters, whatever fonts are here.
- The user's settings of matplotlib, a home that cannot be written and glyphs that are missing change or say nothing.
- SVG refers to nothing outside of itself and is the same each time. Its colours are the light ones; a style sheet
  gives the dark ones to programs that know whether the reader's system is dark.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import OutputError
from isovoxel.reporting.files import printable
from isovoxel.reporting.text import clock

_LOCK = threading.RLock()
"""matplotlib is for one thread at a time."""


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep matplotlib from telling of folders, fonts and glyphs that it does not find."""
    logger = logging.getLogger("matplotlib")
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


with _silent():
    try:
        import matplotlib as mpl
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure
        from matplotlib.font_manager import FontProperties, findfont, get_font
        from matplotlib.image import imsave
        from matplotlib.patches import PathPatch, Rectangle
        from matplotlib.path import Path
        from matplotlib.textpath import text_to_path
        from matplotlib.ticker import EngFormatter
    except OSError as error:
        raise OutputError(f"nothing can be drawn: {error}") from error

NAMESPACE = "http://www.w3.org/2000/svg"
FONT = "DejaVu Sans"
"""The font that matplotlib brings along: pictures look the same on every machine, and text is measured with it."""
FONTS = f"system-ui,-apple-system,'Segoe UI',Roboto,'{FONT}',sans-serif"
"""What SVG and HTML are written in; where a font lacks a character, the reader's program finds one that has it."""
_DPI = 72
"""A point is a pixel then."""

VIEWS = ((1, 2), (0, 2), (1, 0))
"""The views as (axis that points down, axis that points right): xy, xz, zy."""
SYMBOLS = {"micrometer": "µm", "nanometer": "nm", "millimeter": "mm", "centimeter": "cm", "meter": "m"}
"""How people write the units that OME-Zarr spells out; any other is written as it is."""

WIDTH, HEIGHT = 580, 240
LEFT, RIGHT, TOP, BOTTOM = 74, 18, 16, 44
"""Pixels between the axes of a chart and its edges."""
say_number = EngFormatter()
"""Returns a number for an axis, such as "5 M"."""
HIGHEST_LIMIT = 4
"""How many times higher than all values a limit may be to be drawn."""
_STEPS_OF_TIME = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)
_DAY = 86400

PAPER, INK, SOFT, ON_ACCENT = "#ffffff", "#1c2230", "#5b6579", "#3a2a00"
RULE, GRID, FACE, EDGE = "#8d97ab", "#dfe4ee", "#f3f6fb", "#3d4a63"
BLUE, PALE_BLUE, LIGHT_BLUE, AMBER, RED = "#2c66cf", "#b4c4e2", "#dbe7fb", "#f2b632", "#b4420b"
_DARK = {
    # light colour: what has it, and the dark one
    PAPER: ("fill", "#10121b"),
    INK: ("fill", "#e2e6f0"),
    SOFT: ("fill", "#a3acc0"),
    ON_ACCENT: ("fill", "#1c1400"),
    RULE: ("stroke", "#6c768c"),
    GRID: ("stroke", "#272c3c"),
    FACE: ("fill", "#191d2b"),
    EDGE: ("stroke", "#c3cbdc"),
    BLUE: ("stroke", "#6fa3f5"),
    PALE_BLUE: ("stroke", "#4a5f92"),
    LIGHT_BLUE: ("fill", "#1b2b4c"),
    AMBER: ("fill", "#c98f12"),
    RED: ("stroke", "#ff9d5c"),
}
_STYLE = (
    f".iv text{{font-family:{FONTS}}}@media (prefers-color-scheme:dark){{"
    + "".join(f'.iv [{what}="{light}"]{{{what}:{dark}}}' for light, (what, dark) in _DARK.items())
    + "}"
)


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Draw alone, with settings of our own in place of the user's, and without warnings."""
    with _silent(), mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "font.family": FONT,
                "patch.linewidth": 0.0,
                "path.simplify": False,
                "svg.fonttype": "none",
                "svg.hashsalt": "isovoxel",
                "text.parse_math": False,
            }
        )
        yield


def text_width(words: str, size: float) -> float:
    """Return how many pixels wide a line of text is. Use it within `drawing`."""
    width, _, _ = text_to_path.get_text_width_height_descent(words, FontProperties(size=size), ismath=False)
    return float(width)


def drawable(words: str) -> str:
    """Return text as `printable`, a question mark in place of each character that the font of pictures lacks.

    Examples
    --------
    >>> drawable("Müller's 5 µm Проба 試料.tif")
    "Müller's 5 µm Проба ??.tif"
    """
    font = get_font(findfont(FontProperties()))
    return "".join(c if font.get_char_index(ord(c)) else "?" for c in unicodedata.normalize("NFC", printable(words)))


def wrapped(words: str, size: float, width: float) -> list[str]:
    """Return text as lines of at most so many pixels, unless a word alone is longer."""
    lines: list[str] = []
    for word in words.split(" "):
        if lines and text_width(longer := f"{lines[-1]} {word}", size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


class Drawing(Figure):
    """A figure that notebooks show as the value of a cell, whether pyplot is loaded or not."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        with drawing():
            self.savefig(file, format="png")
        return file.getvalue()


class Canvas:
    """A figure whose coordinates are pixels, y downwards. Use it within `drawing`.

    Parameters
    ----------
    width, height
        In pixels.
    paper
        The colour of its ground.
    """

    def __init__(self, width: float, height: float, paper: str = PAPER) -> None:
        self.width, self.height = width, height
        self.figure = Drawing(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=paper)
        """What is drawn on."""
        self.whole = self.part((0, 0, width, height), (0, width), (height, 0))
        """All of it, in pixels."""
        self.whole.set_zorder(1)  # what is written stands above what is drawn in parts

    def part(self, box: Sequence[float], x: tuple[float, float], y: tuple[float, float]) -> Axes:
        """Return a part of the canvas with coordinates of its own.

        Parameters
        ----------
        box
            Its left, top, width and height in pixels.
        x, y
            Its coordinates at the left and the right, and at the bottom and the top.
        """
        left, top, width, height = box
        place = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(place, xlim=x, ylim=y)
        axes.set_axis_off()
        return axes

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 14,
        *,
        colour: str = INK,
        align: str = "left",
        turned: bool = False,
    ) -> None:
        """Write a line of text whose base line is at `y`; `turned` reads upwards."""
        turn: dict[str, Any] = {"rotation": 90, "rotation_mode": "anchor"} if turned else {}
        line = printable(words).translate({ord("\n"): " ", ord("\t"): " "})
        self.whole.text(x, y, line, size=size, color=colour, ha=align, va="baseline", **turn)

    def image(self, left: int, top: int, pixels: NDArray[np.uint8]) -> None:
        """Place an RGB image, each of whose pixels is one of the canvas, behind all else."""
        height, width, _ = pixels.shape
        axes = self.part((left, top, width, height), (0, width), (height, 0))
        axes.set_zorder(-1)
        # Neither smoothed nor bound to the resolution, as a figure's own image would be.
        axes.imshow(pixels, extent=(0, width, height, 0), aspect="auto", interpolation="nearest", resample=False)

    def svg(self, title: str) -> str:
        """Return the canvas as an SVG element, which can stand in a page or alone, and shrinks in proportion.

        Parameters
        ----------
        title
            What it shows, for who cannot see it.
        """
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(file, format="svg", dpi=_DPI, metadata=nothing)
        root = ET.fromstring(file.getvalue())  # noqa: S314 - our own
        for element in root.iter():
            _simplify(element)
        size = {"width": _short(self.width), "height": _short(self.height)}
        root.attrib = {
            "xmlns": NAMESPACE,
            "class": "iv",
            **size,
            "viewBox": f"0 0 {size['width']} {size['height']}",
            "role": "img",
            "aria-label": printable(title),
            "style": "max-width:100%;height:auto",
        }
        return ET.tostring(root, encoding="unicode")

    def pixels(self) -> NDArray[np.uint8]:
        """Return the canvas as RGB."""
        file = io.BytesIO()
        self.figure.savefig(file, format="rgba", dpi=_DPI)
        pixels = np.frombuffer(file.getbuffer(), np.uint8)
        return pixels.reshape(round(self.height), round(self.width), 4)[..., :3]


def draw_rect(
    axes: Axes,
    box: Sequence[float],
    fill: str = "none",
    name: str | None = None,
    **edge: Any,
) -> None:
    """Draw a rectangle.

    Parameters
    ----------
    axes
        Where.
    box
        Its x, y, width and height.
    fill
        Its colour.
    name
        Its class in SVG, which begins with "iv-".
    **edge
        How its edge looks, as of a patch of matplotlib's.
    """
    x, y, width, height = box
    axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, gid=name, clip_on=False, snap=False, **edge))


def draw_lines(axes: Axes, ends: Sequence[Sequence[float]], colour: str, width: float = 1.0, **how: Any) -> None:
    """Draw straight lines, each from (x, y) to (x, y), as one path.

    Parameters
    ----------
    axes
        Where.
    ends
        Of each line, x and y at its beginning and at its end.
    colour, width
        How it looks.
    **how
        As of a patch of matplotlib's.
    """
    if ends:
        path = Path(np.reshape(ends, (-1, 2)), [Path.MOVETO, Path.LINETO] * len(ends))
        axes.add_patch(PathPatch(path, facecolor="none", edgecolor=colour, linewidth=width, clip_on=False, **how))


def png(pixels: NDArray[np.uint8], software: str) -> bytes:
    """Return an image as a PNG file that says which software made it."""
    file = io.BytesIO()
    with drawing():
        imsave(file, pixels, format="png", metadata={"Software": software})
    return file.getvalue()


def _simplify(element: ET.Element) -> None:
    """Leave of an element what its looks need: attributes that a style sheet may change, in hundredths of a pixel."""
    element.tag, element.tail = element.tag.removeprefix(f"{{{NAMESPACE}}}"), None
    name = element.attrib.pop("id", "")
    if name.startswith("iv-"):  # the others are matplotlib's, and would not be unique in a page of several figures
        element.set("class", name)
    looks = dict(pair.split(": ", 1) for pair in element.attrib.pop("style", "").split("; ") if pair)
    element.attrib |= {key: value for key, value in looks.items() if key != "font"}
    if "font" in looks:  # of versions that say all of a font at once, which no attribute does
        element.set("style", f"font: {looks['font']}")
    for key in ("d", "x", "y", "transform"):
        if key in element.attrib:
            numbers = " ".join(element.attrib[key].split())
            element.set(key, re.sub(r"-?\d+\.\d+", lambda number: _short(float(number[0])), numbers))
    if element.tag == "style":
        element.text = _STYLE
    elif element.tag != "text":
        element.text = None


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


# ---- charts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """A line across a chart."""

    value: float
    """How high."""
    name: str
    """What it is."""


@drawing()
def over_time(
    title: str,
    points: Sequence[tuple[float, float]],
    seconds: float,
    say: Callable[[float], str],
    limits: Sequence[Limit] = (),
    *,
    binary: bool = False,
) -> str:
    """Return a chart of values over time, as SVG.

    Parameters
    ----------
    title
        What it shows, for who cannot see it.
    points
        (seconds, value), in their order.
    seconds
        How long the axis is.
    say
        Returns a value's words.
    limits
        Lines across; one far above all values is only named.
    binary
        Whether round values are those of bytes: multiples of powers of 1024.
    """
    highest = max([value for _, value in points], default=0.0) or 1.0
    drawn = [limit for limit in limits if limit.value <= HIGHEST_LIMIT * highest]
    top = 1.08 * max([highest, *(limit.value for limit in drawn)])
    seconds = max(seconds, 1e-3)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    right, bottom = LEFT + width, TOP + height
    canvas = Canvas(WIDTH, HEIGHT)
    axes = canvas.part((LEFT, TOP, width, height), (0, seconds), (0, top))

    for value in _values(top, binary=binary):
        draw_lines(axes, [(0, value, seconds, value)], GRID, gid="iv-grid")
        canvas.text(LEFT - 8, bottom - height * value / top + 4, say(value), 12, colour=SOFT, align="right")
    marks = [(LEFT + width * at / seconds, clock(at)) for at in _times_of(seconds)]
    draw_lines(canvas.whole, [(LEFT, bottom, right, bottom), *((x, bottom, x, bottom + 5) for x, _ in marks)], RULE)
    for x, words in marks:
        canvas.text(x, bottom + 20, words, 12, colour=SOFT, align="center")
    # A line needs two ends.
    line = [(0.0, points[0][1]), (seconds, points[0][1])] if len(points) == 1 else points
    if line:
        at, values = np.transpose(line)
        at = np.minimum(at, seconds)
        axes.fill([at[0], *at, at[-1]], [0, *values, 0], facecolor=LIGHT_BLUE, clip_on=False)
        axes.plot(at, values, color=BLUE, linewidth=1.75, clip_on=False, gid="iv-line")
    for limit in drawn:
        draw_lines(axes, [(0, limit.value, seconds, limit.value)], RED, 1.25, gid="iv-limit", linestyle=(0, (4.8, 3.2)))
        above = bottom - height * limit.value / top - 5
        canvas.text(right, above, f"{limit.name} {say(limit.value)}", 12, align="right")
    far = [f"{limit.name} {say(limit.value)}" for limit in limits if limit not in drawn]
    if far:
        canvas.text(LEFT, HEIGHT - 4, f"above: {', '.join(far)}", 12, colour=SOFT)
    return canvas.svg(title)


def round_length(limit: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not above `limit`.

    Examples
    --------
    >>> [round_length(limit) for limit in (0.3, 1.0, 7.2, 49.0)]
    [0.2, 1.0, 5.0, 20.0]
    """
    power = math.floor(math.log10(limit))
    # Read as text: 5 * 10.0**-3 is not always the float that is nearest to 0.005.
    candidates = [float(f"{digit}e{power}") for digit in (5, 2, 1)]
    return next((c for c in candidates if c <= limit), candidates[-1])


def _values(top: float, *, binary: bool) -> list[float]:
    """Return three to seven round values from 0 to the top of a chart."""
    unit = 1024 ** math.floor(math.log(top, 1024)) if binary else 1
    step = unit * round_length(top / unit / 3)
    return [i * step for i in range(math.floor(top / step) + 1)]


def _times_of(seconds: float) -> list[float]:
    """Return round times from 0 to the end of a chart."""
    if seconds < 4:
        step = round_length(seconds / 3)
    else:
        step = next((s for s in _STEPS_OF_TIME if seconds / s <= 6), _DAY * math.ceil(seconds / _DAY / 6))
    return [round(i * step, 9) for i in range(math.floor(seconds / step) + 1)]
