"""Draw one or two volumes, as a figure or a PNG file, and say what was drawn and where."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import OptionError
from isovoxel.execution.events import Reading
from isovoxel.execution.inputs import Named, check_apart, read_as
from isovoxel.execution.resources import check_fits, peak_bytes, reading_limits
from isovoxel.geometry.grid import AXES, ceil_div
from isovoxel.metadata.series import told_place
from isovoxel.options import Opening, parse_size
from isovoxel.planner import open_by
from isovoxel.planning.model import HostLimits
from isovoxel.readers.base import Volume
from isovoxel.readers.open import images_of
from isovoxel.readers.selection import matching_images, means_several
from isovoxel.reporting.figures import Canvas, Drawing, draw_rect, drawing, png
from isovoxel.reporting.files import HIDDEN, MARK, check_own, without_secrets, write_own
from isovoxel.reporting.records import Record
from isovoxel.reporting.text import Line, shortened
from isovoxel.reporting.views import (
    LABEL,
    LABEL_FONT,
    MAGNIFIED,
    MARGIN,
    TITLE_FONT,
    TITLE_ROW,
    Layout,
    Pixels,
    Projections,
    ViewPlace,
    arrange,
    bytes_to_read,
    held_while_reading,
    maximum_projections,
)

LONGEST_NAME = 40
"""Most characters of a name that stand above a picture."""


@dataclass(frozen=True)
class Shown:
    """A picture of one or two files."""

    path: Path
    """The PNG file."""
    size: tuple[int, int]
    """Its width and height in pixels."""
    drawn: tuple[tuple[str, str], ...]
    """Each input's name, and what is drawn of it."""
    projected: int
    """Bytes of host memory that the process takes at most, as projected."""
    allowed: int
    """Bytes that it may take."""


def save_drawing(
    sources: Sequence[str],
    output: str | None,
    opening: Opening,
    *,
    labels: bool | None,
    memory: int | str | None,
    reading: Reading,
) -> Shown:
    """Draw one file, or two side by side at one scale, as a PNG file.

    Parameters
    ----------
    sources
        As in `isovoxel.open_volume`: what to draw.
    output
        The PNG file; by default one in the working folder, named after what is drawn.
    opening, labels, memory, reading
        As in `drawing_of`.

    Raises
    ------
    IsovoxelError
        As `drawing_of`.
    OptionError
        If its name is not a PNG's.
    OutputError
        If the picture must not or cannot be written.
    """
    path = check_own(default_name(sources) if output is None else output, "picture")
    if path.suffix.lower() != ".png":
        raise OptionError(f"the picture is a PNG, so its name must end in .png, not as {output!r} does")
    check_apart([where for source in sources for where in read_as("input", source)], files=[Named("picture", path)])
    drawn, volumes, host = drawing_of(sources, opening, labels=labels, memory=memory, reading=reading)
    save(drawn, path)
    return Shown(
        path,
        drawn.size,
        tuple(zip((v.name for v in volumes), drawn.captions, strict=True)),
        drawn.projected,
        host.allowed,
    )


def save_drawings(sources: Sequence[str], output: str | None, opening: Opening, **how: Any) -> Sequence[Shown]:
    """Draw what `save_drawing` does, or each of several images as a file of its own, named after it too.

    Raises
    ------
    IsovoxelError
        As `save_drawing`; also if several images are to be drawn into one file.
    """
    image = opening.get("image")
    if not means_several(image):
        return [save_drawing(sources, output, opening, **how)]
    if len(sources) > 1 or output is not None:
        raise OptionError(
            f"image {image} means several images, of which each gets a file: leave out FILE2 and --output"
        )
    source, stem = sources[0], default_name(sources).removesuffix(".png")
    found = matching_images(images_of(source).images, str(image), source)
    names = [f"{stem}_" + re.sub(r"[^\w.+-]+", "_", each.path) + ".png" for each in found]
    return [
        save_drawing([source], name, {**opening, "image": each.path}, **how)
        for each, name in zip(found, names, strict=True)
    ]


def drawing_of(
    sources: Sequence[Any], opening: Opening, *, labels: bool | None, memory: int | str | None, reading: Reading
) -> tuple[Picture, list[Volume], HostLimits]:
    """Draw one volume, or two side by side at one scale; return that, the volumes, and the memory that was allowed.

    Parameters
    ----------
    sources
        As in `isovoxel.open_volume`: what to draw.
    opening
        How the first is opened: voxel_size, unit, level, channel, time and crop, as in `isovoxel.open_volume`.
    labels
        Whether voxels are labels; by default what each file says.
    memory
        Host memory to stay within, in bytes or as text such as "2GiB"; by default half of what is free.
    reading
        Told how far files are read.

    Raises
    ------
    InputError
        If one cannot be opened or read.
    OptionError
        If the files cannot be drawn at one scale, or as labels.
    DoesNotFitError
        If drawing takes more than `memory`.
    """
    host = reading_limits(parse_size("memory", memory))
    volumes = [open_by(sources[0], opening), *(open_by(source, {}) for source in sources[1:])]
    names = [f"{shortened(PurePath(without_secrets(v.name)).name, LONGEST_NAME)}: " for v in volumes]
    return draw(volumes, names, labels=labels, reading=reading, host=host), volumes, host


def default_name(sources: Sequence[str]) -> str:
    """Return the name of a picture of files.

    Examples
    --------
    >>> default_name(["data/stack.tif"]), default_name(["stack.tif", "s3://bucket/out.ome.zarr/"])
    ('stack.png', 'stack_out.ome.png')
    """
    addresses = (without_secrets(source).removesuffix(f"?{HIDDEN}") for source in sources)
    stems = [re.sub(r"[^\w.+-]+", "_", PurePath(address).stem) for address in addresses]
    return "_".join(stem or "volume" for stem in stems) + ".png"


def shown_record(found: Sequence[Shown]) -> Record:
    """Return what was drawn, one picture or several."""
    if len(found) > 1:
        return {"pictures": [shown_record([one]) for one in found]}
    return _record(found[0])


def _record(found: Shown) -> Record:
    drawn = [{"name": name, "drawn": what} for name, what in found.drawn]
    return {
        "path": str(found.path),
        "size": list(found.size),
        "volumes": drawn,
        "projected": {"host_bytes": found.projected},
        "allowed": {"host_bytes": found.allowed},
        "peak_host_bytes": peak_bytes(),
    }


def shown_lines(found: Sequence[Shown]) -> list[Line]:
    """Return what was drawn, one picture or several."""
    return [line for one in found for line in _lines(one)]


def _lines(found: Shown) -> list[Line]:
    width, height = found.size
    return [
        *(("drawn", f"{name}   {what}") for name, what in found.drawn),
        ("picture", f"{found.path}   {width} x {height} pixels"),
    ]


# ---- pictures ----------------------------------------------------------------------------------------------------

# Pictures of volumes, as PNG: maximum projections of one, or of two side by side.
#
# 1. Of an image with several levels the coarsest is read that still has a voxel for each pixel.
# 2. The projections are drawn in true proportions (`layout`). Voxels are enlarged without interpolation: one sees what
#    shape they have, and best in the detail, a part of xz that is enlarged further.
# 3. Labels have colours instead of greys. They are numbered in the order in which they were found, so neighbours have
#    numbers that are near to each other. Multiplied by the golden ratio, of which only the fraction is kept,
#    consecutive numbers are spread around the circle of hues as evenly as can be (Knuth, The Art of Computer
#    Programming 3, 6.4); three tones tell apart those that come close again.
# 4. What is drawn (which level, which planes, from which value to which) stands below it.


PERCENTILES = (0.1, 99.9)
"""Share of darker pixels, in percent, at which a picture is black, and at which it is white."""

DRAWING = 96 * 2**20
"""Bytes that the views of one volume take at most on their way into the picture (measured: 43 MiB)."""

BACKGROUND, TEXT = "#10121b", "#e2e6f0"
ACCENT = "#ffcd50"
"""Colour of scale bars and of the frame around what the detail shows."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: in arithmetic modulo 2^64, the fraction is what is left."""
_TONES = np.array([(0.62, 1.0), (0.9, 0.78), (0.32, 0.94)])
"""Saturation and value of labels whose number leaves 0, 1 and 2 when divided by three."""


@dataclass(frozen=True)
class _Subject:
    """One volume of a picture."""

    volume: Volume
    """What its title and its proportions are taken from."""
    level: Volume
    """The level of it that is read."""
    projected: Projections
    """What that looks like."""
    labels: bool
    """Whether voxels are labels, each of its own colour."""

    @property
    def what(self) -> str:
        """Which voxels are drawn."""
        planes, depth = self.projected.planes, self.volume.shape[0]
        what = "all voxels" if planes == depth else f"{planes} of {depth} planes"
        if self.level is not self.volume:
            what = f"a coarser level, {' x '.join(map(str, self.level.shape))} voxels"
        return f"maximum of {what}{', of an incomplete output' if self.volume.incomplete else ''}"


@dataclass(frozen=True)
class Picture:
    """What volumes look like, side by side."""

    pixels: NDArray[np.uint8]
    """All of them, as RGB."""
    parts: tuple[Pixels, ...]
    """Where each volume lies in it."""
    captions: tuple[str, ...]
    """What is drawn of each."""
    figure: Drawing
    """The same, at any resolution."""
    projected: int = 0
    """Projected bytes of drawing, with the memory that the process held before."""

    def png(self, part: int | None = None) -> bytes:
        """Return the picture, or one volume's part of it, as a PNG file that says who made it."""
        left, top, width, height = (0, 0, *self.size) if part is None else self.parts[part]
        return png(self.pixels[top : top + height, left : left + width], MARK)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        height, width, _ = self.pixels.shape
        return width, height


def before_after(before: Volume, after: Volume, path: str | os.PathLike[str]) -> None:
    """Draw two volumes side by side at one scale and one contrast, as a PNG file.

    Parameters
    ----------
    before, after
        What to draw, left and right; one without a voxel size is drawn with cubes of 1.
    path
        Where the PNG goes; in place of one that isovoxel has made, or where no file is.

    Raises
    ------
    OptionError
        If their lengths are in different units.
    OutputError
        If the file must not or cannot be written.
    """
    save(draw([before, after], ["before: ", "after: "]), path)


def save(drawn: Picture, path: str | os.PathLike[str]) -> None:
    """Write a picture as a PNG file.

    Raises
    ------
    OutputError
        If the file must not or cannot be written.
    """
    write_own(check_own(path, "picture"), drawn.png(), "picture")


def draw(
    volumes: Sequence[Volume],
    names: Sequence[str],
    *,
    labels: bool | None = None,
    reading: Reading = lambda _what, _done, _total: None,
    host: HostLimits | None = None,
) -> Picture:
    """Draw volumes side by side, at one scale and one contrast.

    Parameters
    ----------
    volumes
        What to draw; one without a voxel size is drawn with cubes of 1.
    names
        What stands before each title.
    labels
        Whether voxels are labels, each of its own colour; by default what each volume says.
    reading
        Told how far volumes are read.
    host
        Memory that the process may hold and holds, and how many threads may read; by default what a command may use.

    Raises
    ------
    OptionError
        If their lengths are in different units, or their voxels shall be labels and are no integers.
    DoesNotFitError
        If drawing takes more memory than is allowed.
    InputError
        If one cannot be read.
    """
    for volume in volumes:
        if volume.unit != volumes[0].unit:
            raise OptionError(
                f"one scale cannot show both {volumes[0].name} in {volumes[0].unit or 'no unit'} "
                f"and {volume.name} in {volume.unit or 'no unit'}; draw them one by one"
            )
        if labels and volume.dtype.kind not in "iu":
            raise OptionError(f"labels are integers, but {volume.name} holds {volume.dtype}; leave out labels")
    places = arrange(volumes, names)
    levels = [_level(volume, layout) for volume, layout in zip(volumes, places, strict=True)]
    host = reading_limits() if host is None else host
    room = host.allowed - host.baseline - DRAWING * len(volumes)
    takes = max(held_while_reading(level, room, host.threads) for level in levels)
    check_fits("drawing", host.allowed - room + takes, host)
    subjects = []
    for volume, level in zip(volumes, levels, strict=True):
        projected = maximum_projections(level, partial(reading, f"reading {volume.name}"), room, host.threads)
        subjects.append(_Subject(volume, level, projected, volume.labels if labels is None else labels))
    window = _window([_view(s, p) for s, layout in zip(subjects, places, strict=True) for p in layout.views])
    captions = tuple(f"{s.what}{_first(s.volume)}, {_seen(s, window)}" for s in subjects)
    # Where a level is drawn, details would show its voxels, and not the image's.
    details = all(s.level is s.volume for s in subjects)
    picture = _drawn(subjects, arrange(volumes, names, captions, details=details), window, captions)
    return replace(picture, projected=host.baseline + DRAWING * len(volumes) + takes)


def label_colours(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the colour of each label.

    Parameters
    ----------
    labels
        Integers of any dtype and shape; 0 is the background, and black.

    Returns
    -------
    numpy.ndarray
        uint8, of the labels' shape and one more axis of length 3: red, green, blue.
    """
    numbers = labels.astype(np.int64).view(np.uint64) if labels.dtype.kind == "i" else labels.astype(np.uint64)
    hue = 6 * (numbers * _GOLDEN >> np.uint64(40)).astype(np.float64) / 2**24
    saturation, value = np.moveaxis(_TONES[(numbers % np.uint64(3)).astype(np.intp)], -1, 0)
    # Red, green and blue rise and fall along the circle of hues, a third of it apart (the HSV model).
    distance = np.abs((hue[..., None] + np.array([3.0, 1.0, 5.0])) % 6 - 3) - 1
    share = 1 - saturation[..., None] * (1 - np.clip(distance, 0, 1))
    colours: NDArray[np.uint8] = np.around(255 * value[..., None] * share).astype(np.uint8)
    colours[numbers == 0] = 0
    return colours


def bytes_to_draw(volumes: Sequence[Volume]) -> int:
    """Return how many bytes of voxels `draw` reads."""
    layouts = arrange(volumes, [""] * len(volumes))
    return sum(bytes_to_read(_level(v, layout)) for v, layout in zip(volumes, layouts, strict=True))


def _level(volume: Volume, layout: Layout) -> Volume:
    """Return the coarsest level of a volume that has a voxel for each pixel, or all that there are."""
    xy, xz, _ = (place.image for place in layout.views)
    wanted = [min(n, pixels) for n, pixels in zip(volume.shape, (xz[3], xy[3], xy[2]), strict=True)]
    found = volume
    for open_level in volume.coarser:
        level = open_level()
        if all(n >= m for n, m in zip(level.shape, wanted, strict=True)) and level.nbytes < found.nbytes:
            found = level
    return found


@drawing()
def _drawn(
    subjects: Sequence[_Subject], layouts: Sequence[Layout], window: tuple[float, float], captions: tuple[str, ...]
) -> Picture:
    width = layouts[-1].corner[0] + layouts[-1].size[0] + MARGIN
    canvas = Canvas(width, max(p.size[1] for p in layouts) + 2 * MARGIN, BACKGROUND)
    chosen: tuple[int, int] | None = None
    parts: list[Pixels] = []
    for subject, layout, caption in zip(subjects, layouts, captions, strict=True):
        left, top = layout.corner
        parts.append((left - MARGIN, 0, layout.size[0] + 2 * MARGIN, layout.size[1] + 2 * MARGIN))
        for row, line in enumerate(layout.title):
            _write(canvas, (left, top + row * TITLE_ROW), line, TITLE_FONT)
        _write(canvas, layout.caption, caption, LABEL_FONT)
        for place in layout.views:
            canvas.image(*place.image[:2], _shades(subject, _view(subject, place), window))
            _write_axes(canvas, place)
            _draw_bar(canvas, place)
        if layout.detail is not None:
            xz, side = layout.views[1], layout.detail.image[2] // MAGNIFIED
            # The first volume chooses, and every detail shows the same part of the world.
            whole = _shades(subject, _view(subject, xz), window)
            chosen = chosen or _liveliest(whole, side)
            detail = _sample(subject, xz, (*chosen, side, side), MAGNIFIED)
            canvas.image(*layout.detail.image[:2], _shades(subject, detail, window))
            _draw_bar(canvas, layout.detail)
            _draw_frame(canvas, layout.detail.image)
            _draw_frame(canvas, (xz.image[0] + chosen[0], xz.image[1] + chosen[1], side, side))
    return Picture(canvas.pixels(), tuple(parts), captions, canvas.figure)


def _view(subject: _Subject, place: ViewPlace) -> NDArray[Any]:
    return _sample(subject, place, (0, 0, *place.image[2:]))


def _sample(subject: _Subject, place: ViewPlace, part: Pixels, magnified: int = 1) -> NDArray[Any]:
    """Return a part of a view, enlarged: voxels are repeated; of several in one pixel the largest shows."""
    down, right = place.axes
    image = subject.projected.along[3 - down - right]
    # Projections keep the order of the axes; a view whose axes are in the other order is their transpose.
    image = image.T if down > right else image
    for row, axis in enumerate(place.axes):
        n, k, side = subject.level.shape[axis], subject.projected.bins[axis], place.image[3 - row] * magnified
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


def _window(views: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Return the values shown black and white, common to all views; never the same value."""
    with np.errstate(invalid="ignore"):  # of NaN that signal
        values = np.concatenate([view.ravel().astype(np.float64) for view in views])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    black, white = np.percentile(values, PERCENTILES)
    if black == white:  # a few voxels in the void
        black, white = values.min(), values.max()
    if black == white:  # one value everywhere: grey
        black, white = np.nextafter(black, -np.inf), np.nextafter(white, np.inf)
    return float(black), float(white)


def _shades(subject: _Subject, view: NDArray[Any], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Return a view as RGB."""
    if subject.labels:
        return label_colours(view)
    black, white = window
    with np.errstate(invalid="ignore"):
        shares = np.clip((view.astype(np.float64) - black) / (white - black), 0, 1)
    grey = np.around(255 * np.nan_to_num(shares)).astype(np.uint8)
    return np.broadcast_to(grey[..., None], (*grey.shape, 3))


def _first(volume: Volume) -> str:
    """Say which volume of a series is drawn."""
    names = [axis.name for axis in volume.series]
    return f" of {told_place(names, [0] * len(names))}" if names else ""


def _seen(subject: _Subject, window: tuple[float, float]) -> str:
    """Return what colours mean."""
    return "one colour per label" if subject.labels else f"black {window[0]:.5g}, white {window[1]:.5g}"


def _write_axes(canvas: Canvas, place: ViewPlace) -> None:
    """Name a view's axes, unless a view beside or above it has named them."""
    left, top, width, height = place.image
    down, right = (AXES[axis] for axis in place.axes)
    if right == "x":
        _write(canvas, (left - LABEL + 6, top + height // 2 - 10), down, TITLE_FONT)
    if down == "y":
        _write(canvas, (left + width // 2 - 4, top - LABEL), right, TITLE_FONT)


def _draw_bar(canvas: Canvas, place: ViewPlace) -> None:
    left, top, width, height = place.bar
    draw_rect(canvas.whole, place.bar, ACCENT)
    _write(canvas, (left + width + 8, top + height // 2 - 10), place.bar_label, LABEL_FONT)


def _draw_frame(canvas: Canvas, inside: Pixels) -> None:
    """Draw a frame of one pixel around a part of the picture."""
    left, top, width, height = inside
    draw_rect(canvas.whole, (left - 0.5, top - 0.5, width + 1, height + 1), edgecolor=ACCENT, linewidth=1)


def _write(canvas: Canvas, corner: tuple[int, int], words: str, size: int) -> None:
    """Write text from its upper left corner on."""
    canvas.text(corner[0], corner[1] + size, words, size, colour=TEXT)
