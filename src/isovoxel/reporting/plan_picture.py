"""Picture of a plan, as SVG: its blocks and shards on three faces of the output, and one block's halo.

1. The faces are xy, with zy at its side and xz below, at one number of pixels per length.
2. Lines that would be too near to each other to be seen are left out evenly, and the figure says so: a plan of a
   million blocks is as quickly drawn, and as large, as one of a few.
3. One block in the middle is marked on the faces, and drawn once more below with what it reads around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isovoxel.errors import OptionError
from isovoxel.geometry.grid import AXES, Index3, triple
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan
from isovoxel.reporting import figures
from isovoxel.reporting.figures import VIEWS, Canvas, draw_lines, draw_rect, drawing, text_width, wrapped
from isovoxel.reporting.files import MARK, check_own, printable, write_own
from isovoxel.reporting.text import count, shortened
from isovoxel.version import __version__

WIDTH = 1000
MARGIN = 28
LEFT = 72
"""Where the faces begin: left of it stand their dimension lines."""
TOP = 132
"""Likewise above, with the title."""
GAP = 56
"""Pixels between two faces."""
TALLEST = 680
"""Most pixels that the faces take together from top to bottom."""
SMALLEST_DASHED = 8.0
"""Pixels a side above which a box is dashed."""
NEAREST = 4.0
"""Pixels between two lines below which some are left out."""
ROW = 24
"""Pixels from one line of text to the next."""
LONGEST_TITLE = 64
"""Most characters of a name in a title."""
KEY = 22
"""Pixels that the sample of a legend's entry is wide."""

PANEL = 240.0
"""Pixels a side that the drawing of one block takes."""
HALO = 16.0
"""Pixels that a halo is drawn wide where that is not to scale."""
THINNEST, THICKEST = 8.0, 30.0
"""Pixels between which a halo is drawn to scale."""
SHORTEST = 40.0
"""Fewest pixels of a block's side."""

_DASHED: dict[str, Any] = {"edgecolor": figures.RED, "linewidth": 1.5, "linestyle": (0, (5 / 1.5, 3 / 1.5))}


@dataclass(frozen=True)
class Face:
    """One face of a plan's output."""

    plan: Plan
    axes: tuple[int, int]
    """The axes that point down and right, as indices into z, y, x."""
    box: tuple[float, float, float, float]
    """Left, top, width and height in pixels."""

    @property
    def name(self) -> str:
        """Both axes, such as "xy"."""
        return "".join(AXES[axis] for axis in reversed(self.axes))

    def every(self, axis: int, step: int) -> int:
        """Return which share of the lines along an axis is drawn: all (1), every second (2) and so on."""
        pixels = self.box[2] if axis == self.axes[1] else self.box[3]
        return max(1, math.ceil(NEAREST / (step * pixels / self.plan.output.shape[axis])))


@drawing()
def plan_svg(plan: Plan) -> str:
    """Return a figure of a plan, as an SVG element that can stand in a page or alone."""
    faces = _faces(plan)
    block = plan.block_at(triple(n // 2 for n in plan.block_grid))
    _, xz, _ = faces
    legend = _legend(plan, faces)
    # The corner that the faces leave free takes the block, if it is large enough.
    corner = xz.box[0] + xz.box[2] + GAP
    in_corner = xz.box[3] >= PANEL and WIDTH - corner >= PANEL + MARGIN
    legend_top = xz.box[1] + xz.box[3] + 34
    bottom = legend_top + ROW * (1 + max(row for _, row, _, _ in legend))
    x = MARGIN if in_corner else MARGIN + PANEL + 40
    said = _block_lines(plan, block, WIDTH - MARGIN - x)
    height = bottom + ROW * len(said) if in_corner else bottom + max(PANEL, ROW * len(said))

    canvas = Canvas(WIDTH, height + MARGIN)
    _title(canvas, plan)
    for face in faces:
        _draw_face(canvas, face, block)
    _dimensions(canvas, plan, faces)
    _draw_legend(canvas, legend, legend_top)
    if in_corner:
        _draw_block(canvas, plan, block, corner, xz.box[1])
    else:
        _draw_block(canvas, plan, block, MARGIN, bottom)
    for row, line in enumerate(said):
        canvas.text(x, bottom + 16 + ROW * row, line, 14 if row else 16)
    return canvas.svg(f"plan of {count(plan.n_blocks, 'block')}")


def check_plan_picture(path: str) -> None:
    """Check that a plan can be drawn there; nothing is written.

    Raises
    ------
    OptionError
        If its name is not an SVG's.
    OutputError
        If a file must not or cannot be written there.
    """
    if not path.lower().endswith(".svg"):
        raise OptionError(f"the picture of a plan is an SVG, so its name must end in .svg, not as {path!r} does")
    check_own(path, "picture")


def save_plan_svg(plan: Plan, path: str) -> None:
    """Write a figure of a plan as an SVG file.

    Raises
    ------
    OutputError
        If the file must not or cannot be written.
    """
    file = f'<?xml version="1.0" encoding="UTF-8"?>\n<!-- {MARK} {__version__} -->\n{plan_svg(plan)}\n'
    write_own(check_own(path, "picture"), file.encode(), "picture")


def _faces(plan: Plan) -> tuple[Face, Face, Face]:
    z, y, x = (n * v for n, v in zip(plan.output.shape, plan.output.voxel_size, strict=True))
    scale = min((WIDTH - LEFT - GAP - MARGIN) / (x + z), (TALLEST - GAP) / (y + z))
    depth, height, width = (max(1.0, side * scale) for side in (z, y, x))
    return (
        Face(plan, VIEWS[0], (LEFT, TOP, width, height)),
        Face(plan, VIEWS[1], (LEFT, TOP + height + GAP, width, depth)),
        Face(plan, VIEWS[2], (LEFT + width + GAP, TOP, depth, height)),
    )


def _title(canvas: Canvas, plan: Plan) -> None:
    grid, size = " x ".join(map(str, plan.block_grid)), " x ".join(f"{v:.4g}" for v in plan.output.voxel_size)
    blocks = f"{count(plan.n_blocks, 'block')} of {_times(plan.block_shape)} voxels"
    grid = f"in {count(plan.source.n_volumes, 'volume')} of {grid}" if plan.source.series else grid
    name = printable(plan.source.name)  # as a whole, for half of a secret is not known as such
    canvas.text(MARGIN, 40, f"Plan for {shortened(name, LONGEST_TITLE)}", 20)
    canvas.text(MARGIN, 64, f"Output {_times(plan.output.shape)} voxels of {size} {_unit(plan)} (z, y, x)")
    canvas.text(MARGIN, 84, f"{blocks}, {grid} along z, y, x, {plan.in_flight} in flight")


def _draw_face(canvas: Canvas, face: Face, block: Block) -> None:
    """Draw a face in voxels of the output: shards, blocks, and where the block in the middle lies."""
    plan, (down, right) = face.plan, face.axes
    rows, columns = plan.output.shape[down], plan.output.shape[right]
    axes = canvas.part(face.box, (0, columns), (rows, 0))
    whole = (0, 0, columns, rows)
    draw_rect(axes, whole, figures.FACE, f"iv-face-{face.name}")
    write = [(block.write_box.start[a], block.write_box.stop[a]) for a in (right, down)]
    draw_rect(axes, _box(*write), figures.AMBER, "iv-write")
    shards = [cut for a in face.axes for cut in _cuts(face, a, plan.storage.shard[a], within=plan.block_shape[a])]
    draw_lines(axes, shards, figures.PALE_BLUE, 0.75)
    blocks = [cut for a in face.axes for cut in _cuts(face, a, plan.block_shape[a])]
    draw_lines(axes, blocks, figures.BLUE, 1.25, gid="iv-block")
    draw_rect(axes, whole, edgecolor=figures.EDGE, linewidth=1.5)
    starts, stops = (
        [min(max(0.0, end[a] * plan.factor[a] - plan.shift[a]), plan.output.shape[a]) for a in (right, down)]
        for end in (block.read_box.start, block.read_box.stop)
    )
    box = _box((starts[0], stops[0]), (starts[1], stops[1]))
    # Dashes around what is smaller than they are would not be seen as such.
    dashed = min(box[2] * face.box[2] / columns, box[3] * face.box[3] / rows) > SMALLEST_DASHED
    draw_rect(axes, box, name="iv-read", **(_DASHED if dashed else {"edgecolor": figures.RED, "linewidth": 2.0}))


def _box(x: tuple[float, float], y: tuple[float, float]) -> tuple[float, float, float, float]:
    return x[0], y[0], x[1] - x[0], y[1] - y[0]


def _cuts(face: Face, axis: int, step: int, within: int = 0) -> list[tuple[int, int, int, int]]:
    """Return the lines that cut a face along an axis; inside of blocks `within` long only where all can be seen."""
    every = face.every(axis, step)
    if within and every > 1:
        return []
    shape, right = face.plan.output.shape, face.axes[1]
    cuts = [k for k in range(step * every, shape[axis], step * every) if not within or k % within]
    if axis == right:
        return [(k, 0, k, shape[face.axes[0]]) for k in cuts]
    return [(0, k, shape[right], k) for k in cuts]


def _dimensions(canvas: Canvas, plan: Plan, faces: tuple[Face, Face, Face]) -> None:
    """Draw a line beside each side, with its length in voxels and in the world."""
    xy, xz, zy = faces
    taken, tick = float(LEFT), 4
    for face, axis in ((xy, 2), (zy, 0)):
        left, top, width, _ = face.box
        y, words = top - 14, _length(plan, axis)
        if face is zy and width < text_width(words, 13):  # it stands beside xz as well
            words = AXES[axis]
        start = max(left + (width - text_width(words, 13)) / 2, taken)
        taken = start + text_width(words, 13) + 12
        canvas.text(start, y - 8, words, 13)
        ends = [(x, y - tick, x, y + tick) for x in (left, left + width)]
        draw_lines(canvas.whole, [(left, y, left + width, y), *ends], figures.RULE)
    for face, axis in ((xy, 1), (xz, 0)):
        left, top, _, height = face.box
        x, words = left - 14, _length(plan, axis)
        if text_width(words, 13) > height + GAP - 12:
            words = AXES[axis]
        canvas.text(x - 8, top + height / 2, words, 13, align="center", turned=True)
        ends = [(x - tick, y, x + tick, y) for y in (top, top + height)]
        draw_lines(canvas.whole, [(x, top, x, top + height), *ends], figures.RULE)


def _length(plan: Plan, axis: int) -> str:
    n = plan.output.shape[axis]
    return f"{AXES[axis]}: {count(n, 'voxel')}, {length(n * plan.output.voxel_size[axis])} {_unit(plan)}"


def _legend(plan: Plan, faces: tuple[Face, Face, Face]) -> list[tuple[float, int, str, str]]:
    """Return what lines mean, and which of them are not drawn: x, row, kind and words of each entry."""
    sides = [(face, axis) for face in faces for axis in face.axes]
    left_out = {
        AXES[axis]: every
        for face, axis in sides
        if (every := face.every(axis, plan.block_shape[axis])) > 1 and plan.block_grid[axis] > 1
    }
    blocks = "block"
    if left_out:
        blocks += f"; of so many, every {' and every '.join(f'{_nth(k)} along {a}' for a, k in left_out.items())}"
    shards = f"{'shard' if plan.storage.sharded else 'chunk'}, {_times(plan.storage.shard)} voxels"
    if any(face.every(axis, plan.storage.shard[axis]) > 1 for face, axis in sides):
        shards += ", where it can be seen"
    entries: list[tuple[float, int, str, str]] = []
    x, row = float(MARGIN), 0
    for kind, words in (
        ("block", blocks),
        ("shard", shards),
        ("write", "what one block writes"),
        ("read", "and reads"),
    ):
        width = KEY + 8 + text_width(words, 13)
        if x > MARGIN and x + width > WIDTH - MARGIN:
            x, row = float(MARGIN), row + 1
        entries.append((x, row, kind, words))
        x += width + 16
    return entries


def _draw_legend(canvas: Canvas, entries: Sequence[tuple[float, int, str, str]], top: float) -> None:
    for x, row, kind, words in entries:
        y = top + ROW * row
        match kind:
            case "write":
                draw_rect(canvas.whole, (x, y - 10, KEY, 11), figures.AMBER)
            case "read":
                draw_rect(canvas.whole, (x, y - 10, KEY, 11), **_DASHED)
            case _:
                colour = figures.BLUE if kind == "block" else figures.PALE_BLUE
                draw_lines(canvas.whole, [(x, y - 4, x + KEY, y - 4)], colour, 2)
        canvas.text(x + KEY + 8, y, words, 13, colour=figures.SOFT)


def _draw_block(canvas: Canvas, plan: Plan, block: Block, left: float, top: float) -> None:
    """Draw the face of a block on which most of its halo shows, in a square of `PANEL` pixels."""
    axes, widths, _ = _halo_pixels(plan, block)
    height, width = _sides(plan, block, axes)
    (above, below), (before, after) = widths
    x, y = left + THICKEST, top + THICKEST
    canvas.text(x - before, y - above - 7, "reads: its part and the halo", 12, colour=figures.SOFT)
    draw_rect(canvas.whole, (x, y, width, height), figures.AMBER)
    draw_rect(canvas.whole, (x - before, y - above, width + before + after, height + above + below), **_DASHED)
    name = f"{AXES[axes[1]]}{AXES[axes[0]]}"
    canvas.text(x + width / 2, y + height / 2 + 5, name, 13, align="center", colour=figures.ON_ACCENT)


def _block_lines(plan: Plan, block: Block, width: float) -> list[str]:
    """Return what a block is, writes and reads, and what its halo is, in lines of so many pixels."""
    halo = ", ".join(f"{axis} {a}+{b}" for axis, (a, b) in zip(AXES, plan.halo, strict=True))
    _, widths, to_scale = _halo_pixels(plan, block)
    note = "" if to_scale else "; not drawn to scale"
    if not any(sum(pair) for pair in widths):
        note = "; this block has none"
    file, storage = "chunk", f"{_times(plan.storage.chunk)} voxels"
    if plan.storage.sharded:
        file, storage = "shard", f"{_times(plan.storage.shard)} voxels in chunks of {_times(plan.storage.chunk)}"
    said = [
        f"Block {block.index:,}, counted from 0",
        f"writes {_interval(block.write_box.start, block.write_box.stop)} of the output",
        f"in {count(plan.shards_of(block.index), file)} of {storage}",
        f"reads {_interval(block.read_box.start, block.read_box.stop)} of the input",
        f"halo at most {halo} input voxels (before + after a block's own part){note}",
    ]
    return [line for words in said for line in wrapped(words, 14, width)]


def _sides(plan: Plan, block: Block, axes: tuple[int, int]) -> tuple[float, float]:
    """Return height and width of what a block writes, in pixels: true proportions, but for a side too short to see."""
    own = [block.write_box.shape[a] * plan.output.voxel_size[a] for a in axes]
    scale = (PANEL - 2 * THICKEST) / max(own)
    return max(SHORTEST, own[0] * scale), max(SHORTEST, own[1] * scale)


def _halo_pixels(plan: Plan, block: Block) -> tuple[tuple[int, int], list[tuple[float, float]], bool]:
    """Return the face on which most of a block's halo shows, its width there in pixels, and whether to scale."""
    halos = []
    for axis, (f, shift) in enumerate(zip(plan.factor, plan.shift, strict=True)):
        before = (block.write_box.start[axis] + shift) / f - block.read_box.start[axis]
        after = block.read_box.stop[axis] - (block.write_box.stop[axis] + shift) / f
        # What is less than a millionth of a voxel is rounding.
        halos.append((before if before > 1e-6 else 0.0, after if after > 1e-6 else 0.0))
    axes = max(VIEWS, key=lambda view: sum(sum(halos[axis]) > 0 for axis in view))
    scale = max(_sides(plan, block, axes)) / max(block.write_box.shape[a] * plan.output.voxel_size[a] for a in axes)
    widths = [
        (before * size * scale, after * size * scale)
        for before, after, size in ((*halos[axis], plan.source.grid.voxel_size[axis]) for axis in axes)
    ]
    if all(w == 0 or THINNEST <= w <= THICKEST for pair in widths for w in pair):
        return axes, widths, True
    return axes, [(HALO if before else 0.0, HALO if after else 0.0) for before, after in widths], False


def length(value: float) -> str:
    """Return a length with four digits at least, and never as a power of ten.

    Examples
    --------
    >>> length(79.3333), length(31622.8), length(80.0), length(2.5e-5)
    ('79.33', '31,623', '80', '0.000025')
    """
    digits = max(0, 3 - math.floor(math.log10(value)))
    short = f"{value:,.{digits}f}"
    return short.rstrip("0").rstrip(".") if digits else short


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{n:,}" for n in shape)


def _unit(plan: Plan) -> str:
    """Return how people write the unit of a plan's lengths, or that they have none."""
    unit = plan.output.unit
    return figures.SYMBOLS.get(unit, unit) if unit else "(no unit)"


def _interval(start: Index3, stop: Index3) -> str:
    return ", ".join(f"{axis} {a:,} to {b:,}" for axis, a, b in zip(AXES, start, stop, strict=True))


def _nth(k: int) -> str:
    ending = "th" if k % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(k % 10, "th")
    return f"{k:,}{ending}"
