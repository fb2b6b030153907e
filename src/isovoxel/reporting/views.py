"""Views of a volume: its maximum projections along three axes, and where they lie in a picture.

1. The volume is read tile by tile, on all cores and in memory that does not grow with it, and every tile raises three
   images. An axis longer than the images may be is binned, each bin showing its largest voxel.
2. What is larger than `ALL_BYTES` and kept plane by plane is read in part: some planes of each bin, the first among
   them. Of anything else whatever is left out would be decoded all the same, or leave holes, so it is read whole.
3. The views are arranged as usual, for each volume: xy, with zy at its side and xz below, and in the corner that they
   leave free a part of xz enlarged further. All have one number of pixels per length, and a scale bar of a round one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import OptionError
from isovoxel.geometry.grid import MAX_SAMPLES, Box, Float3, Index3, ceil_div, number_text, triple
from isovoxel.object_store.retries import map_in_order
from isovoxel.readers.base import Volume
from isovoxel.reporting.figures import SYMBOLS, VIEWS, drawable, drawing, round_length, text_width

TILE_BYTES = 8 * 2**20
"""Most bytes that a thread reads at once, unless reading anything of the volume holds more than that anyway."""
SEQUENTIAL_TILES = 4
"""How many times as much is read at once of a volume of which what lies before a tile is decoded with it."""
TILE_COPIES = 3
"""How often a tile is held for each thread: its maximum along a short axis is as large, and so is one that waits."""
LARGEST = 1200
"""Most pixels along a side of a projection."""
ALL_BYTES = 16 * 2**30
"""Bytes of voxels up to which a volume is read whole, whatever its storage."""

LEAST_TILE = 2**20
"""Bytes that are read at once where memory is short; less would decode chunks too often."""

Tell = Callable[[int, int], None]
"""Told how many voxels are read, and of how many."""


@dataclass(frozen=True)
class Projections:
    """The largest voxels of a volume, seen along each axis."""

    along: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
    """Seen along z as (y, x), along y as (z, x), along x as (z, y); of the volume's dtype."""
    bins: Index3
    """Voxels per pixel, z, y, x; the last pixel of an axis may hold fewer."""
    planes: int
    """How many of the volume's planes were read; fewer than it has where that is much faster."""


def maximum_projections(
    volume: Volume, tell: Tell = lambda _done, _total: None, room: int | None = None, threads: int = 1
) -> Projections:
    """Return the maximum of a volume along z, y and x, reading it box by box.

    Parameters
    ----------
    volume
        What to look at. Not-a-number is passed over; where there is nothing else it stays.
    tell
        Called after each box.
    room
        Bytes that this may hold, images included, as `held_while_reading` counts them; None for as many as it takes.
    threads
        How many may read; fewer do where memory is short.

    Returns
    -------
    Projections
        Three images of at most `LARGEST` pixels a side.

    Raises
    ------
    InputError
        If the volume cannot be read.
    """
    upper = np.fmax if volume.dtype.kind == "f" else np.maximum
    lowest = math.nan if volume.dtype.kind == "f" else np.iinfo(volume.dtype).min
    bins = [ceil_div(n, LARGEST) for n in volume.shape]
    sides = [ceil_div(n, k) for n, k in zip(volume.shape, bins, strict=True)]
    images = [np.full(sides[:axis] + sides[axis + 1 :], lowest, volume.dtype) for axis in range(3)]
    planes = _planes(volume, bins[0])
    done, total = 0, planes * volume.shape[1] * volume.shape[2]
    threads, tile_bytes = _shares(volume, room, threads)

    def read(tile: Box) -> tuple[Box, list[NDArray[Any]]]:
        voxels, x = volume.read(tile), tile.start[2]
        for axis in (0, 1):  # at once for all images, and x for each: bins of neighbours in memory take longer
            voxels = _binned(voxels, axis, tile.start[axis], bins[axis], upper)
        faces = [upper.reduce(voxels, axis=axis) for axis in range(3)]
        return tile, [*(_binned(face, 1, x, bins[2], upper) for face in faces[:2]), faces[2]]

    with map_in_order(read, _tiles(volume, planes, bins[0], tile_bytes), threads) as results:
        for tile, faces in results:
            pixels = [slice(a // k, ceil_div(b, k)) for a, b, k in zip(tile.start, tile.stop, bins, strict=True)]
            for axis, (image, face) in enumerate(zip(images, faces, strict=True)):
                part = image[tuple(pixels[:axis] + pixels[axis + 1 :])]
                upper(part, face, out=part)
            done += tile.size
            tell(done, total)
    return Projections(triple(images), triple(bins), planes)


def _binned(voxels: NDArray[Any], axis: int, start: int, k: int, upper: np.ufunc) -> NDArray[Any]:
    """Return the maxima in bins of `k` along an axis, along which the first voxel is number `start` of the volume.

    NumPy's ``reduceat`` does the same, and takes fifty times as long.
    """
    if k == 1:
        return voxels
    shape = voxels.shape
    first = min(shape[axis], -start % k)
    whole = (shape[axis] - first) // k
    before, inside, behind = np.split(voxels, [first, first + whole * k], axis)
    inside = inside.reshape(*shape[:axis], whole, k, *shape[axis + 1 :])
    parts = [upper.reduce(inside, axis=axis + 1)]
    if before.size:
        parts.insert(0, upper.reduce(before, axis=axis, keepdims=True))
    if behind.size:
        parts.append(upper.reduce(behind, axis=axis, keepdims=True))
    return np.concatenate(parts, axis)


def held_while_reading(volume: Volume, room: int | None = None, threads: int = 1) -> int:
    """Return how many bytes `maximum_projections` holds at its peak.

    Parameters
    ----------
    volume
        What to look at.
    room
        Bytes that it may hold, or None for as many as it takes; the least that it takes may be more.
    threads
        How many may read.
    """
    threads, tile_bytes = _shares(volume, room, threads)
    return _image_bytes(volume) + threads * (volume.read_overhead + TILE_COPIES * tile_bytes)


def _image_bytes(volume: Volume) -> int:
    """Return the bytes of the images."""
    sides = [min(n, LARGEST) for n in volume.shape]
    return sum(math.prod(sides) // n for n in sides) * volume.dtype.itemsize


def _shares(volume: Volume, room: int | None, threads: int) -> tuple[int, int]:
    """Return how many threads read, and the bytes of a tile, of which none is smaller unless one thread's does not fit.

    So the tiles are the same for any number of threads.
    """
    at_once = TILE_BYTES * (SEQUENTIAL_TILES if volume.sequential else 1)
    tile_bytes = max(at_once, volume.read_overhead, volume.dtype.itemsize)
    threads = (
        1
        if volume.sequential
        else min(threads, ceil_div(Box.whole(volume.shape).size * volume.dtype.itemsize, tile_bytes))
    )
    if room is None:
        return threads, tile_bytes
    room -= _image_bytes(volume)
    threads = max(1, min(threads, room // (volume.read_overhead + TILE_COPIES * tile_bytes)))
    if threads == 1:
        tile_bytes = max(LEAST_TILE, min(tile_bytes, (room - volume.read_overhead) // TILE_COPIES))
    return threads, tile_bytes


def bytes_to_read(volume: Volume) -> int:
    """Return how many bytes of voxels `maximum_projections` reads of a volume, all in all."""
    return volume.nbytes // volume.shape[0] * _planes(volume, ceil_div(volume.shape[0], LARGEST))


def _planes(volume: Volume, thick: int) -> int:
    """Return how many planes are read."""
    return sum(len(planes) for planes in _bins_of_planes(volume, thick))


def _bins_of_planes(volume: Volume, thick: int) -> Iterator[range]:
    """Yield the planes that are read of each bin of so many."""
    step = 1
    if volume.chunks[0] == 1:
        step = min(thick, max(1, ceil_div(volume.nbytes, ALL_BYTES)))
    depth = volume.shape[0]
    return (range(z, min(z + thick, depth), step) for z in range(0, depth, thick))


def _tiles(volume: Volume, planes: int, thick: int, tile_bytes: int) -> Iterator[Box]:
    """Cut what is read into boxes."""
    depth, rows, columns = volume.shape
    if planes == depth:
        yield from Box.whole(volume.shape).tiles(_tile_shape(volume, depth, tile_bytes))
        return
    shape = _tile_shape(volume, 1, tile_bytes)
    for bin_ in _bins_of_planes(volume, thick):
        for z in bin_:
            yield from Box((z, 0, 0), (z + 1, rows, columns)).tiles(shape)


def _tile_shape(volume: Volume, planes: int, tile_bytes: int) -> Index3:
    """Return whole chunks, of at most so many planes, or where one alone is too large for the memory a part of one.

    Chunks of several planes are stacked along z, so that each is decoded into its place in the tile.
    """
    allowed = tile_bytes // volume.dtype.itemsize
    most = (planes, *volume.shape[1:])
    tile = [min(c, n) for c, n in zip(volume.chunks, most, strict=True)]
    for axis in range(3):
        others = math.prod(tile) // tile[axis]
        tile[axis] = max(1, min(tile[axis], allowed // others))
    for axis in (2, 1, 0) if volume.chunks[0] == 1 else (0, 2, 1):
        tile[axis] = min(most[axis], tile[axis] * max(1, allowed // math.prod(tile)))
    return triple(tile)


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
    views = triple(map(_place, VIEWS, images, bars))
    enlarged = None
    if details and detail >= SMALLEST_DETAIL:
        bar = _scale_bar(detail, scale * MAGNIFIED, unit)
        enlarged = _place(VIEWS[1], (lefts[1], tops[1], detail, detail), bar)

    texts = [*(_width(line, TITLE_FONT) for line in title), _width(caption, LABEL_FONT)]
    width = max(lefts[1] + max(z, needs[2], detail) - left, *texts)
    bottom = tops[1] + max(z, LABEL) + BAR_ROW
    box = (width, bottom - MARGIN + (LABEL if caption else 0))
    return Layout(title, (left, bottom), (left, MARGIN), box, views, enlarged)


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
    if pixels * MAX_SAMPLES < 1:
        raise OptionError(
            f"{volumes[0].name} cannot be drawn in true proportions: its voxels are {number_text(finest)} thin beside "
            f"{number_text(widest)} in all; give another voxel size"
        )
    return (math.floor(pixels) if pixels >= 1 else 1 / math.ceil(1 / pixels)) / finest


def _lengths(volume: Volume) -> Float3:
    return triple(n * s for n, s in zip(volume.shape, volume.voxel_size or (1.0, 1.0, 1.0), strict=True))


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{v}" if isinstance(v, int) else f"{v:.4g}" for v in values)
