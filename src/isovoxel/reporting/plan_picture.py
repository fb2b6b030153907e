"""What does a plan look like? Its blocks and shards on three faces of the output, and one block's halo, as SVG.

1. The faces are xy, with zy at its side and xz below, at one number of pixels per length.
2. Lines that would be too near to each other to be seen are left out evenly, and the drawing says so: a plan of a
   million blocks is as quickly drawn, and as large, as one of a few.
3. One block in the middle is marked on the faces, and drawn once more below with what it reads around it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from isovoxel.errors import OptionError
from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import AXES
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan
from isovoxel.reporting.block_picture import DASHED, PANEL, block_drawing, block_lines, times, unit_of
from isovoxel.reporting.layout import VIEWS
from isovoxel.reporting.own import MARK, check_own, write_own
from isovoxel.reporting.records import count
from isovoxel.reporting.redaction import without_secrets
from isovoxel.reporting.svg import drawing, length, lines, rect, style, text, text_width
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


@dataclass(frozen=True)
class Face:
    """One face of the volume."""

    axes: tuple[int, int]
    """The axes that point down and right, as indices into z, y, x."""
    left: float
    top: float
    width: float
    height: float

    def along(self, axis: int) -> tuple[float, float]:
        """Return where an axis begins, and how many pixels long it is."""
        return (self.left, self.width) if axis == self.axes[1] else (self.top, self.height)


def plan_svg(plan: Plan) -> str:
    """Return a drawing of a plan, as an SVG element that can stand in a page or alone."""
    faces = _faces(plan)
    block = plan.block_at(_middle(plan))
    parts = [f"<style>{style()}</style>", _title(plan)]
    for face in faces:
        parts += _face(plan, face, block)
    parts.append(_dimensions(plan, faces))
    bottom = max(f.top + f.height for f in faces) + 34
    legend, bottom = _legend(plan, faces, bottom)
    parts.append(legend)
    # The corner that the faces leave free takes the block, if it is large enough.
    corner, said = faces[1].left + faces[1].width + GAP, block_lines(plan, block)
    x, bottom = float(MARGIN), bottom + ROW
    if faces[1].height >= PANEL and WIDTH - corner >= PANEL + MARGIN:
        parts.append(block_drawing(plan, block, corner, faces[1].top))
        height = bottom + ROW * len(said)
    else:
        parts.append(block_drawing(plan, block, MARGIN, bottom))
        x, height = x + PANEL + 40, bottom + max(PANEL, ROW * len(said))
    for row, line in enumerate(said):
        parts.append(text(x, bottom + 16 + ROW * row, line, size=14 if row else 16))
    paper = rect(0, 0, WIDTH, height + MARGIN, "iv-paper")
    return drawing(WIDTH, height + MARGIN, f"plan of {count(plan.n_blocks, 'block')}", paper, *parts)


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


def save_plan_svg(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a drawing of a plan as an SVG file.

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
        Face(VIEWS[0], LEFT, TOP, width, height),
        Face(VIEWS[1], LEFT, TOP + height + GAP, width, depth),
        Face(VIEWS[2], LEFT + width + GAP, TOP, depth, height),
    )


def _middle(plan: Plan) -> Index3:
    z, y, x = (n // 2 for n in plan.block_grid)
    return (z, y, x)


def _title(plan: Plan) -> str:
    grid, size = " x ".join(map(str, plan.block_grid)), " x ".join(f"{v:.4g}" for v in plan.output.voxel_size)
    blocks = f"{count(plan.n_blocks, 'block')} of {times(plan.block_shape)} voxels"
    grid = f"in {count(plan.source.n_volumes, 'volume')} of {grid}" if plan.source.series else grid
    name = without_secrets(plan.source.name)  # as a whole, for half of one is not known as such
    name = name if len(name) <= 64 else f"{name[:30]}...{name[-30:]}"
    return (
        text(MARGIN, 40, f"Plan for {name}", size=20)
        + text(MARGIN, 64, f"Output {times(plan.output.shape)} voxels of {size} {unit_of(plan)} (z, y, x)")
        + text(MARGIN, 84, f"{blocks}, {grid} along z, y, x, {plan.in_flight} in flight")
    )


def _face(plan: Plan, face: Face, block: Block) -> list[str]:
    """Draw a face: shards, blocks, and where the block in the middle lies."""
    name = "".join(AXES[axis] for axis in reversed(face.axes))
    parts = [rect(face.left, face.top, face.width, face.height, "iv-face", f'data-face="{name}"')]
    inside = [_span(plan, face, axis, block.write_box.start[axis], block.write_box.stop[axis]) for axis in face.axes]
    (top, height), (left, width) = inside
    parts.append(rect(left, top, width, height, "iv-write", 'data-box="write"'))
    shards, blocks = [], []
    for axis in face.axes:
        shards += _cuts(plan, face, axis, plan.storage.shard[axis], within=plan.block_shape[axis])
        blocks += _cuts(plan, face, axis, plan.block_shape[axis])
    parts += [lines(shards, "iv-shard", 0.75), lines(blocks, "iv-block", 1.25)]
    reads = [
        _span(plan, face, axis, block.read_box.start[axis] * f, block.read_box.stop[axis] * f)
        for axis in face.axes
        for f in [plan.factor[axis]]
    ]
    (top, height), (left, width) = reads
    # Dashes around what is smaller than they are would not be seen as such.
    dashes = DASHED if min(height, width) > SMALLEST_DASHED else 'fill="none" stroke-width="2"'
    edge = rect(face.left, face.top, face.width, face.height, "iv-edge", 'fill="none" stroke-width="1.5"')
    return [*parts, edge, rect(left, top, width, height, "iv-read", f'{dashes} data-box="read"')]


def _span(plan: Plan, face: Face, axis: int, start: float, stop: float) -> tuple[float, float]:
    """Return where an interval of output voxels begins on a face, and how long it is."""
    first, side = face.along(axis)
    scale = side / plan.output.shape[axis]
    start, stop = max(0.0, start), min(float(plan.output.shape[axis]), stop)
    return first + start * scale, (stop - start) * scale


def _every(plan: Plan, face: Face, axis: int, step: int) -> int:
    """Return which share of the lines along an axis is drawn: all (1), every second (2) and so on."""
    return max(1, math.ceil(NEAREST / (step * face.along(axis)[1] / plan.output.shape[axis])))


def _cuts(plan: Plan, face: Face, axis: int, step: int, within: int = 0) -> list[tuple[float, float, float, float]]:
    """Return the lines that cut a face along an axis; inside of blocks `within` long only where all can be seen."""
    every = _every(plan, face, axis, step)
    if within and every > 1:
        return []
    end = plan.output.shape[axis]
    found = []
    for position in range(step * every, end, step * every):
        if within and position % within == 0:
            continue
        at, _ = _span(plan, face, axis, position, end)
        across = (face.left, at, face.left + face.width, at), (at, face.top, at, face.top + face.height)
        found.append(across[axis == face.axes[1]])
    return found


def _dimensions(plan: Plan, faces: tuple[Face, Face, Face]) -> str:
    """Draw a line beside each side, with its length in voxels and in the world."""
    xy, xz, zy = faces
    parts, taken = [], 0.0
    for face, axis in ((xy, 2), (zy, 0)):
        y, middle = face.top - 14, face.left + face.width / 2
        words = _length(plan, axis)
        half = text_width(words, 13) / 2
        if face.width < 2 * half and face is zy:  # it stands beside xz as well
            words, half = AXES[axis], text_width(AXES[axis], 13) / 2
        start = max(middle - half, taken, LEFT)
        parts.append(_ruler(face.left, y, face.left + face.width, y))
        parts.append(text(start, y - 8, words, size=13))
        taken = start + 2 * half + 12
    for face, axis in ((xy, 1), (xz, 0)):
        x, middle = face.left - 14, face.top + face.height / 2
        words = _length(plan, axis) if text_width(_length(plan, axis), 13) < face.height + GAP - 12 else AXES[axis]
        parts.append(_ruler(x, face.top, x, face.top + face.height))
        parts.append(text(x - 8, middle, words, size=13, anchor="middle", turned=True))
    return "".join(parts)


def _ruler(x0: float, y0: float, x1: float, y1: float) -> str:
    tick = 4
    if y0 == y1:
        ends = [(x0, y0 - tick, x0, y0 + tick), (x1, y0 - tick, x1, y0 + tick)]
    else:
        ends = [(x0 - tick, y0, x0 + tick, y0), (x0 - tick, y1, x0 + tick, y1)]
    return lines([(x0, y0, x1, y1), *ends], "iv-rule")


def _length(plan: Plan, axis: int) -> str:
    n = plan.output.shape[axis]
    return f"{AXES[axis]}: {count(n, 'voxel')}, {length(n * plan.output.voxel_size[axis])} {unit_of(plan)}"


def _legend(plan: Plan, faces: tuple[Face, Face, Face], top: float) -> tuple[str, float]:
    """Say what lines mean, and which of them are not drawn; return that and where it ends."""
    sides = [(face, axis) for face in faces for axis in face.axes]
    left_out = {
        AXES[axis]: every
        for face, axis in sides
        if (every := _every(plan, face, axis, plan.block_shape[axis])) > 1 and plan.block_grid[axis] > 1
    }
    blocks = "block"
    if left_out:
        blocks += f"; of so many, every {' and every '.join(f'{_nth(k)} along {a}' for a, k in left_out.items())}"
    shards = f"{'shard' if plan.storage.sharded else 'chunk'}, {times(plan.storage.shard)} voxels"
    if any(_every(plan, face, axis, plan.storage.shard[axis]) > 1 for face, axis in sides):
        shards += ", where it can be seen"
    keys = (("iv-block", blocks), ("iv-shard", shards), ("iv-write", "what one block writes"), ("iv-read", "and reads"))
    parts, x = [], float(MARGIN)
    for kind, words in keys:
        width = 30 + text_width(words, 13)
        if x > MARGIN and x + width > WIDTH - MARGIN:
            x, top = float(MARGIN), top + ROW
        if kind == "iv-write":
            parts.append(rect(x, top - 10, 22, 11, kind))
        elif kind == "iv-read":
            parts.append(rect(x, top - 10, 22, 11, kind, DASHED))
        else:
            parts.append(lines([(x, top - 4, x + 22, top - 4)], kind, 2))
        parts.append(text(x + 30, top, words, size=13, kind="iv-soft"))
        x += width + 16
    return "".join(parts), top


def _nth(k: int) -> str:
    ending = "th" if k % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(k % 10, "th")
    return f"{k:,}{ending}"
