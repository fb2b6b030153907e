"""What does a volume look like? A picture of its maximum projections, alone or beside another volume.

1. Of an image with several levels the coarsest is read that still has a voxel for each pixel.
2. The projections are drawn in true proportions (`layout`). Voxels are enlarged without interpolation: one sees what
   shape they have, and best in the detail, a part of xz that is enlarged further.
3. What is drawn (which level, which planes, from which value to which) stands below it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from isovoxel.errors import DoesNotFitError, OptionError
from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.grid import AXES
from isovoxel.metadata.series import told_place
from isovoxel.planning.limits import HostLimits
from isovoxel.planning.memory import human_bytes
from isovoxel.readers.base import Volume
from isovoxel.reporting.colours import label_colours
from isovoxel.reporting.layout import (
    LABEL,
    LABEL_FONT,
    MAGNIFIED,
    MARGIN,
    TITLE_FONT,
    TITLE_ROW,
    Layout,
    Pixels,
    ViewPlace,
    arrange,
    printable,
)
from isovoxel.reporting.own import MARK, check_own, write_own
from isovoxel.reporting.projections import Projections, bytes_to_read, held_while_reading, maximum_projections

PERCENTILES = (0.1, 99.9)
"""Share of darker pixels, in percent, at which a picture is black, and at which it is white."""

DRAWING = 96 * 2**20
"""Bytes that the views of one volume take at most on their way into the picture (measured: 61 MiB)."""

BACKGROUND = (16, 18, 27)
TEXT = (226, 230, 240)
ACCENT = (255, 205, 80)
"""Colour of scale bars and of the frame around what the detail shows."""

Reading = Callable[[str, int, int], None]
"""Told what is read, how many voxels of it are, and of how many."""


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
        if self.level is not self.volume:
            return f"maximum of a coarser level, {' x '.join(map(str, self.level.shape))} voxels"
        planes, depth = self.projected.planes, self.volume.shape[0]
        return "maximum of all voxels" if planes == depth else f"maximum of {planes} of {depth} planes"


@dataclass(frozen=True)
class Picture:
    """What volumes look like, side by side."""

    image: Image.Image
    """All of them."""
    parts: tuple[Pixels, ...]
    """Where each volume lies in it."""
    captions: tuple[str, ...]
    """What is drawn of each."""
    projected: int = 0
    """Projected bytes of drawing, with the memory that the process held before, where it was limited."""

    def png(self, part: int | None = None) -> bytes:
        """Return the picture, or one volume's part of it, as a PNG file that says who made it."""
        image = self.image
        if part is not None:
            left, top, width, height = self.parts[part]
            image = image.crop((left, top, left + width, top + height))
        told, file = PngInfo(), io.BytesIO()
        told.add_text("Software", MARK)
        image.save(file, "PNG", pnginfo=told)
        return file.getvalue()


def picture(volume: Volume, path: str | os.PathLike[str]) -> None:
    """Draw the three maximum projections of a volume, in true proportions, as a PNG file.

    Parameters
    ----------
    volume
        What to draw; without a voxel size every voxel is drawn as a cube.
    path
        Where the PNG goes; in place of one that isovoxel has made, or where no file is.

    Raises
    ------
    OutputError
        If the file must not or cannot be written.
    """
    save(draw([volume], [""]), path)


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
        Memory that the process may hold and holds, where it is limited.

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
    room = None if host is None else host.allowed - host.baseline - DRAWING * len(volumes)
    takes = max(held_while_reading(level, room) for level in levels)
    if host is not None and room is not None and takes > room:
        raise DoesNotFitError(
            f"drawing takes {human_bytes(host.allowed - room + takes)} of host memory, of which "
            f"{human_bytes(host.allowed)} are allowed; choose more --memory"
        )
    subjects = []
    for volume, level in zip(volumes, levels, strict=True):
        projected = maximum_projections(level, partial(reading, f"reading {volume.name}"), room)
        subjects.append(_Subject(volume, level, projected, volume.labels if labels is None else labels))
    window = _window([_view(s, p) for s, layout in zip(subjects, places, strict=True) for p in layout.views])
    captions = tuple(f"{s.what}{_first(s.volume)}, {_seen(s, window)}" for s in subjects)
    # Where a level is drawn, details would show its voxels, and not the image's.
    details = all(s.level is s.volume for s in subjects)
    picture = _drawn(subjects, arrange(volumes, names, captions, details=details), window, captions)
    return replace(picture, projected=(host.baseline if host else 0) + DRAWING * len(volumes) + takes)


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


def _drawn(
    subjects: Sequence[_Subject], layouts: Sequence[Layout], window: tuple[float, float], captions: tuple[str, ...]
) -> Picture:
    width = layouts[-1].corner[0] + layouts[-1].size[0] + MARGIN
    canvas = Image.new("RGB", (width, max(p.size[1] for p in layouts) + 2 * MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    chosen: tuple[int, int] | None = None
    parts: list[Pixels] = []
    for subject, layout, caption in zip(subjects, layouts, captions, strict=True):
        left, top = layout.corner
        parts.append((left - MARGIN, 0, layout.size[0] + 2 * MARGIN, layout.size[1] + 2 * MARGIN))
        for row, line in enumerate(layout.title):
            _write(draw, (left, top + row * TITLE_ROW), line, TITLE_FONT)
        _write(draw, layout.caption, caption, LABEL_FONT)
        for place in layout.views:
            canvas.paste(_shades(subject, _view(subject, place), window), place.image[:2])
            _write_axes(draw, place)
            _draw_bar(draw, place)
        if layout.detail is not None:
            xz, side = layout.views[1], layout.detail.image[2] // MAGNIFIED
            # The first volume chooses, and every detail shows the same part of the world.
            whole = _shades(subject, _view(subject, xz), window)
            chosen = chosen or _liveliest(np.asarray(whole), side)
            detail = _sample(subject, xz, (*chosen, side, side), MAGNIFIED)
            canvas.paste(_shades(subject, detail, window), layout.detail.image[:2])
            _draw_bar(draw, layout.detail)
            _draw_frame(draw, layout.detail.image)
            _draw_frame(draw, (xz.image[0] + chosen[0], xz.image[1] + chosen[1], side, side))
    return Picture(canvas, tuple(parts), captions)


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


def _shades(subject: _Subject, view: NDArray[Any], window: tuple[float, float]) -> Image.Image:
    if subject.labels:
        return Image.fromarray(label_colours(view))
    black, white = window
    with np.errstate(invalid="ignore"):
        shares = np.clip((view.astype(np.float64) - black) / (white - black), 0, 1)
    return Image.fromarray(np.around(255 * np.nan_to_num(shares)).astype(np.uint8))


def _first(volume: Volume) -> str:
    """Say which volume of a series is drawn."""
    names = [axis.name for axis in volume.series]
    return f" of {told_place(names, [0] * len(names))}" if names else ""


def _seen(subject: _Subject, window: tuple[float, float]) -> str:
    """Return what colours mean."""
    return "one colour per label" if subject.labels else f"black {window[0]:.5g}, white {window[1]:.5g}"


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
    """Write text from its upper left corner on; Pillow's own font has no µ: it is drawn as a u with a tail."""
    font, text = ImageFont.load_default(size=size), printable(text)
    x, baseline = corner[0], corner[1] + size
    draw.text((x, baseline), text.replace("µ", "u"), font=font, fill=TEXT, anchor="ls")
    if "µ" in text:
        stem = x + round(font.getlength(text[: text.index("µ")]) + 0.07 * size)
        draw.rectangle((stem, baseline - size // 3, stem + size // 14, baseline + size // 4), fill=TEXT)
