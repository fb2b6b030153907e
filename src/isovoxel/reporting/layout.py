"""Layout of a picture of volumes: orthogonal views at one number of pixels per length.

The usual order, for each volume: xy, with zy at its side and xz below, and in the corner that they leave free
a part of xz enlarged further. Every view has a scale bar of a round length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isovoxel.geometry.grid import Float3
from isovoxel.readers.base import Volume
from isovoxel.reporting.figures import SYMBOLS, VIEWS, drawable, drawing, round_length, text_width

PANEL = 1000
"""Most pixels that the views of one volume take together, side by side or one below the other."""
MARGIN = 28
LABEL = 26
"""Pixels kept free for the name of an axis, left of and above the views."""
TITLE_ROW = 30
TITLE_FONT, LABEL_FONT = 20, 16
BAR_ROW = 42
"""Pixels kept free below a view for its scale bar."""
BAR_THICKNESS = 5
SHORTEST_BAR, LONGEST_BAR = 40, 160
"""A scale bar is a round length of at most two fifths of its view, kept within these pixels."""
MAGNIFIED = 4
"""How much larger the detail is drawn than the views."""
SMALLEST_DETAIL = 120
"""Pixels a side below which a detail is left out."""

Pixels = tuple[int, int, int, int]
"""A rectangle of a picture: left, top, width, height."""


@dataclass(frozen=True)
class ViewPlace:
    """Where one view and its scale bar lie in a picture."""

    axes: tuple[int, int]
    """The axes that point down and right, as indices into z, y, x."""
    image: Pixels
    """Where its pixels lie."""
    bar: Pixels
    """Where its scale bar lies."""
    bar_label: str
    """How long the scale bar is, in words."""


@dataclass(frozen=True)
class Layout:
    """Where the views of one volume lie in a picture."""

    title: tuple[str, str]
    """What it says above: the shape, and the voxel size."""
    caption: tuple[int, int]
    """Left and top of a line below, which says what is drawn."""
    corner: tuple[int, int]
    """Left and top of everything it needs."""
    size: tuple[int, int]
    """Width and height of everything it needs."""
    views: tuple[ViewPlace, ViewPlace, ViewPlace]
    """The views xy, xz and zy."""
    detail: ViewPlace | None
    """Where a part of xz is drawn `MAGNIFIED` times larger; None where there is no room."""


@drawing()
def arrange(
    volumes: Sequence[Volume], names: Sequence[str], captions: Sequence[str] = (), *, details: bool = True
) -> list[Layout]:
    """Return where the views of each volume lie in a picture of all of them, from left to right.

    Parameters
    ----------
    volumes
        What is to be drawn, with one number of pixels per length; one without a voxel size has cubes of 1.
    names
        What stands before each title.
    captions
        A line below each volume, for which room is left.
    details
        Whether a part of each volume is enlarged.
    """
    scale = _pixels_per_unit(volumes)
    unit = "" if volumes[0].unit is None else SYMBOLS.get(volumes[0].unit, volumes[0].unit)
    if any(v.voxel_size is None for v in volumes):
        unit = "voxels"
    layouts: list[Layout] = []
    left = MARGIN
    for volume, name, caption in zip(volumes, names, captions or [""] * len(volumes), strict=True):
        layouts.append(_arrange_one(volume, name, caption, scale, unit, left, details=details))
        left += layouts[-1].size[0] + 2 * MARGIN
    return layouts


def _arrange_one(
    volume: Volume, name: str, caption: str, scale: float, unit: str, left: int, *, details: bool
) -> Layout:
    z, y, x = (max(1, round(length * scale)) for length in _lengths(volume))
    size = "voxel size unknown"
    if volume.voxel_size is not None:
        size = f"{_times(volume.voxel_size)} {unit}".rstrip() + " per voxel (z, y, x)"
    title = (drawable(f"{name}{_times(volume.shape)} voxels"), drawable(size))
    detail = min(z // MAGNIFIED, x) * MAGNIFIED

    bars = [_scale_bar(width, scale, unit) for width in (x, x, z)]
    # A view narrower than its scale bar and the words beside it leaves them room.
    needs = [bar + LABEL + _width(label, LABEL_FONT) for bar, label in bars]
    lefts = (left + LABEL, left + LABEL + max(x, needs[0], needs[1]) + MARGIN)
    first_row = MARGIN + 2 * TITLE_ROW + LABEL
    tops = (first_row, first_row + max(y, LABEL) + BAR_ROW)
    images = [(lefts[0], tops[0], x, y), (lefts[0], tops[1], x, z), (lefts[1], tops[0], z, y)]
    views = [_place(axes, i, bar) for axes, i, bar in zip(VIEWS, images, bars, strict=True)]
    enlarged = None
    if details and detail >= SMALLEST_DETAIL:
        bar = _scale_bar(detail, scale * MAGNIFIED, unit)
        enlarged = _place(VIEWS[1], (lefts[1], tops[1], detail, detail), bar)

    texts = [*(_width(line, TITLE_FONT) for line in title), _width(caption, LABEL_FONT)]
    width = max(lefts[1] + max(z, needs[2], detail) - left, *texts)
    bottom = tops[1] + max(z, LABEL) + BAR_ROW
    box = (width, bottom - MARGIN + (LABEL if caption else 0))
    return Layout(title, (left, bottom), (left, MARGIN), box, (views[0], views[1], views[2]), enlarged)


def _scale_bar(width: int, scale: float, unit: str) -> tuple[int, str]:
    """Return the length of a scale bar in pixels and in words, for a view of this width."""
    longest = min(LONGEST_BAR, max(SHORTEST_BAR, 0.4 * width))
    length = round_length(longest / scale)
    return round(length * scale), drawable(f"{length:g} {unit}".rstrip())


def _width(words: str, size: int) -> int:
    return math.ceil(text_width(words, size))


def _place(axes: tuple[int, int], image: Pixels, bar: tuple[int, str]) -> ViewPlace:
    left, top, _, height = image
    bar_top = top + max(height, LABEL) + (BAR_ROW - BAR_THICKNESS) // 2 - 4
    return ViewPlace(axes, image, (left, bar_top, bar[0], BAR_THICKNESS), bar[1])


def _pixels_per_unit(volumes: Sequence[Volume]) -> float:
    """Return a scale at which all fit; the first volume's finest voxel is n or 1 / n pixels, n whole."""
    widest = max(z + max(y, x) for z, y, x in map(_lengths, volumes))
    finest = min(volumes[0].voxel_size or (1.0, 1.0, 1.0))
    pixels = PANEL / widest * finest
    return (math.floor(pixels) if pixels >= 1 else 1 / math.ceil(1 / pixels)) / finest


def _lengths(volume: Volume) -> Float3:
    z, y, x = (n * s for n, s in zip(volume.shape, volume.voxel_size or (1.0, 1.0, 1.0), strict=True))
    return (z, y, x)


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{v}" if isinstance(v, int) else f"{v:.4g}" for v in values)
