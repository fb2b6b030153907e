"""What does a volume look like from its three sides? Maximum projections, and a picture of them.

1. The volume is read tile by tile, and every tile raises three images: memory does not grow with the volume.
   An axis longer than the images may be is binned, each bin showing its largest voxel.
2. The images are drawn in true proportions (`layout`). Voxels are enlarged without interpolation: one sees
   what shape they have, and best in the detail, a part of xz that is enlarged further.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from isovoxel.errors import OptionError, OutputError
from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Box, Index3
from isovoxel.geometry.grid import AXES
from isovoxel.views.layout import (
    LABEL,
    LABEL_FONT,
    MAGNIFIED,
    MARGIN,
    TITLE_FONT,
    TITLE_ROW,
    Pixels,
    ViewPlace,
    arrange,
)
from isovoxel.volumes.base import Volume

TILE_BYTES = 32 * 2**20
"""Most bytes that are read at once, unless reading anything of the volume holds more than that anyway."""
LARGEST = 1200
"""Most pixels along a side of a projection."""
PERCENTILES = (0.1, 99.9)
"""Share of darker pixels, in percent, at which a picture is black, and at which it is white."""

BACKGROUND = (16, 18, 27)
TEXT = (226, 230, 240)
ACCENT = (255, 205, 80)
"""Colour of scale bars and of the frame around what the detail shows."""


@dataclass(frozen=True)
class Projections:
    """The largest voxels of a volume, seen along each axis."""

    along: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
    """Seen along z as (y, x), along y as (z, x), along x as (z, y); of the volume's dtype."""
    bins: Index3
    """Voxels per pixel, z, y, x; the last pixel of an axis may hold fewer."""


def maximum_projections(volume: Volume) -> Projections:
    """Return the maximum of a volume along z, y and x, reading it box by box.

    Parameters
    ----------
    volume
        What to look at. Not-a-number is passed over; where there is nothing else it stays.

    Returns
    -------
    Projections
        Three images of at most `LARGEST` pixels a side.
    """
    upper = np.fmax if volume.dtype.kind == "f" else np.maximum
    lowest = math.nan if volume.dtype.kind == "f" else np.iinfo(volume.dtype).min
    bins = [ceil_div(n, LARGEST) for n in volume.shape]
    sides = [ceil_div(n, k) for n, k in zip(volume.shape, bins, strict=True)]
    images = [np.full(sides[:axis] + sides[axis + 1 :], lowest, volume.dtype) for axis in range(3)]
    for tile in Box.whole(volume.shape).tiles(_tile_shape(volume)):
        voxels = volume.read(tile)
        for axis, image in enumerate(images):
            face = upper.reduce(voxels, axis=axis)
            where = []
            for row, other in enumerate(a for a in range(3) if a != axis):
                start, stop, k = tile.start[other], tile.stop[other], bins[other]
                pixels = range(start // k, ceil_div(stop, k))
                if k > 1:
                    face = upper.reduceat(face, [max(0, p * k - start) for p in pixels], axis=row)
                where.append(slice(pixels.start, pixels.stop))
            part = image[tuple(where)]
            upper(part, face, out=part)
    return Projections((images[0], images[1], images[2]), (bins[0], bins[1], bins[2]))


def picture(volume: Volume, path: str | os.PathLike[str]) -> None:
    """Draw the three maximum projections of a volume, in true proportions, as a PNG file.

    Parameters
    ----------
    volume
        What to draw; without a voxel size every voxel is drawn as a cube.
    path
        Where the PNG goes; a file that is there is replaced.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    _save(_draw([volume], [""]), path)


def before_after(before: Volume, after: Volume, path: str | os.PathLike[str]) -> None:
    """Draw two volumes side by side at one scale and one contrast, as a PNG file.

    Parameters
    ----------
    before, after
        What to draw, left and right; one without a voxel size is drawn with cubes of 1.
    path
        Where the PNG goes; a file that is there is replaced.

    Raises
    ------
    OptionError
        If their lengths are in different units.
    OutputError
        If the file cannot be written.
    """
    if before.unit != after.unit:
        raise OptionError(
            f"one scale cannot show both {before.name} in {before.unit or 'no unit'} "
            f"and {after.name} in {after.unit or 'no unit'}; draw them one by one"
        )
    _save(_draw([before, after], ["before: ", "after: "]), path)


def _tile_shape(volume: Volume) -> Index3:
    """Return whole chunks, or where one alone is too large for the memory, a part of one."""
    allowed = max(TILE_BYTES, volume.read_overhead) // volume.dtype.itemsize
    tile = [min(c, n) for c, n in zip(volume.chunks, volume.shape, strict=True)]
    for axis in range(3):
        others = math.prod(tile) // tile[axis]
        tile[axis] = max(1, min(tile[axis], allowed // others))
    for axis in (2, 1, 0):
        tile[axis] = min(volume.shape[axis], tile[axis] * max(1, allowed // math.prod(tile)))
    return (tile[0], tile[1], tile[2])


def _draw(volumes: Sequence[Volume], names: Sequence[str]) -> Image.Image:
    layouts = arrange(volumes, names)
    projections = [maximum_projections(v) for v in volumes]
    contrast = _contrast(projections)
    width = layouts[-1].corner[0] + layouts[-1].size[0] + MARGIN
    canvas = Image.new("RGB", (width, max(p.size[1] for p in layouts) + 2 * MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    chosen: tuple[int, int] | None = None
    for volume, layout, projected in zip(volumes, layouts, projections, strict=True):
        for row, line in enumerate(layout.title):
            left, top = layout.corner
            _write(draw, (left, top + row * TITLE_ROW), line, TITLE_FONT)
        for place in layout.views:
            view = _sample(volume, projected, place, (0, 0, *place.image[2:]))
            canvas.paste(_grey(view, contrast), place.image[:2])
            _write_axes(draw, place)
            _draw_bar(draw, place)
        if layout.detail is not None:
            xz, side = layout.views[1], layout.detail.image[2] // MAGNIFIED
            # The first volume chooses, and every detail shows the same part of the world.
            whole = _grey(_sample(volume, projected, xz, (0, 0, *xz.image[2:])), contrast)
            chosen = chosen or _liveliest(np.asarray(whole), side)
            detail = _sample(volume, projected, xz, (*chosen, side, side), MAGNIFIED)
            canvas.paste(_grey(detail, contrast), layout.detail.image[:2])
            _draw_bar(draw, layout.detail)
            _draw_frame(draw, layout.detail.image)
            _draw_frame(draw, (xz.image[0] + chosen[0], xz.image[1] + chosen[1], side, side))
    return canvas


def _sample(
    volume: Volume, projected: Projections, place: ViewPlace, part: Pixels, magnified: int = 1
) -> NDArray[np.float64]:
    """Return a part of a view, enlarged: voxels are repeated; of several in one pixel the largest shows."""
    down, right = place.axes
    image = projected.along[3 - down - right].astype(np.float64)
    # Projections keep the order of the axes; a view whose axes are in the other order is their transpose.
    image = image.T if down > right else image
    for row, axis in enumerate(place.axes):
        n, k, side = volume.shape[axis], projected.bins[axis], place.image[3 - row] * magnified
        start, length = part[1 - row] * magnified, part[3 - row] * magnified
        edges = np.minimum(np.arange(start, start + length + 1) * n // side, n)
        first = np.minimum(edges[:-1], n - 1) // k
        stop = max(int(first[-1]) + 1, ceil_div(int(edges[-1]), k))
        image = np.take(image, np.arange(first[0], stop), axis=row)
        image = np.fmax.reduceat(image, first - first[0], axis=row)
    return image


def _liveliest(view: NDArray[np.uint8], side: int) -> tuple[int, int]:
    """Return left and top of the square in a view whose values differ most."""
    step = max(1, side // 2)
    corners = product(range(0, view.shape[1] - side + 1, step), range(0, view.shape[0] - side + 1, step))
    return max(corners, key=lambda c: float(view[c[1] : c[1] + side, c[0] : c[0] + side].std()))


def _contrast(projections: Sequence[Projections]) -> tuple[float, float]:
    """Return the values shown black and white, common to all images; never the same value."""
    values = np.concatenate([i.ravel().astype(np.float64) for p in projections for i in p.along])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    black, white = np.percentile(values, PERCENTILES)
    if black == white:  # a few voxels in the void
        black, white = values.min(), values.max()
    if black == white:  # one value everywhere: grey
        black, white = np.nextafter(black, -np.inf), np.nextafter(white, np.inf)
    return float(black), float(white)


def _grey(view: NDArray[np.float64], contrast: tuple[float, float]) -> Image.Image:
    black, white = contrast
    shares = np.clip((view - black) / (white - black), 0, 1)
    return Image.fromarray(np.around(255 * np.nan_to_num(shares)).astype(np.uint8))


def _write_axes(draw: ImageDraw.ImageDraw, place: ViewPlace) -> None:
    """Name a view's axes, unless a view beside or above it has named them."""
    left, top, width, height = place.image
    down, right = (AXES[axis] for axis in place.axes)
    if right == "x":
        _write(draw, (left - LABEL + 6, top + height // 2 - 10), down, TITLE_FONT)
    if down == "y":
        _write(draw, (left + width // 2 - 4, top - LABEL), right, TITLE_FONT)


def _draw_bar(draw: ImageDraw.ImageDraw, place: ViewPlace) -> None:
    left, top, width, height = place.bar
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=ACCENT)
    _write(draw, (left + width + 8, top + height // 2 - 10), place.bar_label, LABEL_FONT)


def _draw_frame(draw: ImageDraw.ImageDraw, inside: Pixels) -> None:
    left, top, width, height = inside
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=ACCENT)


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int) -> None:
    """Write text from its upper left corner on.

    Pillow's own font, the only one that is there on every machine, has no µ: it is drawn as a u with a tail.
    """
    font = ImageFont.load_default(size=size)
    x, baseline = corner[0], corner[1] + size
    draw.text((x, baseline), text.replace("µ", "u"), font=font, fill=TEXT, anchor="ls")
    if "µ" in text:
        stem = x + round(font.getlength(text[: text.index("µ")]) + 0.07 * size)
        draw.rectangle((stem, baseline - size // 3, stem + size // 14, baseline + size // 4), fill=TEXT)


def _save(image: Image.Image, path: str | os.PathLike[str]) -> None:
    try:
        image.save(path, format="PNG")
    except OSError as error:
        raise OutputError(f"the picture {os.fspath(path)} cannot be written: {error.strerror or error}") from error
