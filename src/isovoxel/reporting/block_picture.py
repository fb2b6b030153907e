"""What does one block of a plan write and read? A drawing of it with its halo, and lines that say it, for SVG."""

from __future__ import annotations

import math

from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import AXES
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan
from isovoxel.reporting.layout import SYMBOLS, VIEWS
from isovoxel.reporting.records import count
from isovoxel.reporting.svg import rect, text

PANEL = 240.0
"""Pixels a side that the drawing takes."""
HALO = 16.0
"""Pixels that a halo is drawn wide where that is not to scale."""
THINNEST, THICKEST = 8.0, 30.0
"""Pixels between which a halo is drawn to scale."""
SHORTEST = 40.0
"""Fewest pixels of a side."""

DASHED = 'fill="none" stroke-width="1.5" stroke-dasharray="5 3"'


def block_drawing(plan: Plan, block: Block, left: float, top: float) -> str:
    """Return the face of a block on which most of its halo shows, as SVG elements in a square of `PANEL` pixels."""
    axes, widths, _ = _halo_pixels(plan, block)
    height, width = _sides(plan, block, axes)
    (above, below), (before, after) = widths
    x, y = left + THICKEST, top + THICKEST
    name = f"{AXES[axes[1]]}{AXES[axes[0]]}"
    return (
        text(x - before, y - above - 7, "reads: its part and the halo", size=12, kind="iv-soft")
        + rect(x, y, width, height, "iv-write")
        + rect(x - before, y - above, width + before + after, height + above + below, "iv-read", DASHED)
        + text(x + width / 2, y + height / 2 + 5, name, size=13, anchor="middle", kind="iv-on")
    )


def block_lines(plan: Plan, block: Block) -> list[str]:
    """Return what a block is, writes and reads, and what its halo is."""
    halo = ", ".join(f"{axis} {a}+{b}" for axis, (a, b) in zip(AXES, plan.halo, strict=True))
    _, widths, to_scale = _halo_pixels(plan, block)
    note = "" if to_scale else "; not drawn to scale"
    if not any(sum(pair) for pair in widths):
        note = "; this block has none"
    shards = math.prod(ceil_div(n, s) for n, s in zip(block.write_box.shape, plan.storage.shard, strict=True))
    file, storage = "chunk", f"{times(plan.storage.chunk)} voxels"
    if plan.storage.sharded:
        file, storage = "shard", f"{times(plan.storage.shard)} voxels in chunks of {times(plan.storage.chunk)}"
    return [
        f"Block {block.index:,}, counted from 0",
        f"writes {_interval(block.write_box.start, block.write_box.stop)} of the output",
        f"in {count(shards, file)} of {storage}",
        f"reads {_interval(block.read_box.start, block.read_box.stop)} of the input",
        f"halo at most {halo} input voxels (before + after a block's own part){note}",
    ]


def times(shape: tuple[int, ...]) -> str:
    """Return a shape for people."""
    return " x ".join(f"{n:,}" for n in shape)


def unit_of(plan: Plan) -> str:
    """Return how people write the unit of a plan's lengths, or that they have none."""
    unit = plan.output.unit
    return "(no unit)" if unit is None else SYMBOLS.get(unit, unit)


def _sides(plan: Plan, block: Block, axes: tuple[int, int]) -> tuple[float, float]:
    """Return height and width of what a block writes, in pixels: true proportions, but for a side too short to see."""
    own = [block.write_box.shape[a] * plan.output.voxel_size[a] for a in axes]
    scale = (PANEL - 2 * THICKEST) / max(own)
    return max(SHORTEST, own[0] * scale), max(SHORTEST, own[1] * scale)


def _halo_pixels(plan: Plan, block: Block) -> tuple[tuple[int, int], list[tuple[float, float]], bool]:
    """Return the face on which most of a block's halo shows, its width there in pixels, and whether to scale."""
    halos = []
    for axis, f in enumerate(plan.factor):
        before = block.write_box.start[axis] / f - block.read_box.start[axis]
        after = block.read_box.stop[axis] - block.write_box.stop[axis] / f
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


def _interval(start: Index3, stop: Index3) -> str:
    return ", ".join(f"{axis} {a:,} to {b:,}" for axis, a, b in zip(AXES, start, stop, strict=True))
