"""Engine `exact`: per-axis tables of weights, applied by OpenCL kernels of our own. Needs pyopencl alone.

Weights are float32 (float64 for integers of 32 bits, whose values float32 cannot tell apart) and sums run in a fixed
order, so a voxel has the same bits however the volume is cut and on whichever device. Voxels travel in the source's
dtype and are rounded half to even and saturated on the device. Nearest and mode move bits and never compute with them.

Axes are scaled one after the other, those of factor 1 not at all, in the order that is cheapest for the whole
volume. Where x comes after another axis the two are scaled at once: what lies between them stays in the
device's local memory (`Plan.passes`). Sums of floats that leave the range of float32 on their way are made again in
smaller numbers, voxel by voxel (`mend`), so that a result is infinite only where a sample is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.devices import Device, opencl_device
from isovoxel.engines.opencl import C_TYPES, TURN, queue_of, work_items
from isovoxel.engines.pipeline import StagedEngine
from isovoxel.geometry.grid import Index3, ceil_div, round_up
from isovoxel.geometry.resampling import SPAN, Rows, Table, accumulator, outputs_of
from isovoxel.planning.model import MOVES, Block
from isovoxel.planning.plan import Plan

KEPT_WEIGHTS = 2**14
"""Tables of up to so many weights are kept for the blocks to come: `KEPT` of them take 13 MiB at most."""
KEPT = 64


class _Share(NamedTuple):
    """How a kind of device shares the work of a pass."""

    vector: int
    """Bytes of a vector of sums."""
    group: int
    """Work items per group."""
    tile: int
    """Voxels of a row that a group makes."""
    checked: int
    """Voxels that a work item looks at together for sums out of range."""
    mended: int
    """Voxels that it looks at in all."""


# A work item of a processor makes its tile in a loop. Vectors longer than these end the process where PoCL takes the
# processor for another one than its library was built for.
_CPU = _Share(vector=32, group=1, tile=4096, checked=128, mended=2**14)
_GPU = _Share(vector=16, group=128, tile=512, checked=4, mended=4)


class ExactEngine(StagedEngine):
    """Scales blocks by tables on one OpenCL device.

    Parameters
    ----------
    device
        Where to compute.
    """

    name = "exact"

    def __init__(self, device: Device) -> None:
        with TURN:
            super().__init__(device, self.open_queue(device))

    def open_queue(self, device: Device) -> Any:
        """Return the queue for kernels on a device. The caller has the turn."""
        return queue_of(opencl_device(device))

    def build(self, plan: Plan) -> None:
        """Build the kernels of a plan; a device without float64 does not build those for integers of 32 bits."""
        kind = np.dtype(plan.source.dtype)
        if plan.interpolation in MOVES:
            self._picking(kind) if plan.interpolation != "smooth" else self._smoothing(kind, *_all_widths(plan.tables))
            return
        steps = plan.passes
        for step, axes in enumerate(steps):
            self._weighted(*self._kinds(kind, step, len(steps)), *_widths(plan.tables, axes), kind.kind == "f")
        if kind.kind == "f" and steps:
            self._mending(*_weighed(plan.tables))

    def uploads(self, block: Block, plan: Plan) -> dict[str, NDArray[Any]]:
        """Return the block's rows of each axis' table, as its kernels take them."""
        moves = plan.interpolation in MOVES
        kind = None if moves else accumulator(np.dtype(plan.source.dtype))
        arrays: dict[str, NDArray[Any]] = {}
        if plan.interpolation == "smooth":
            kind = np.dtype(np.float64)
        for axis in range(3) if moves else chain(*plan.passes):
            table, base = plan.tables[axis], block.read_box.start[axis]
            start, stop = block.write_box.start[axis], block.write_box.stop[axis]
            make = _arrays if (stop - start) * table.width <= KEPT_WEIGHTS else _arrays.__wrapped__
            arrays |= make(table, axis, start, stop, base, kind)
        return arrays

    def enqueue(self, source: Any, target: Any, small: dict[str, Any], block: Block, plan: Plan) -> None:
        """Give the block's kernels to the queue; see `StagedEngine.enqueue`."""
        if plan.interpolation in MOVES:
            self._pick(source, target, small, block, plan)
            return
        kind, steps, before = np.dtype(plan.source.dtype), plan.passes, block.read_box.shape
        if not steps:
            self.copy(target, source, block.read_box.size * kind.itemsize)
        voxels = source
        for step, axes in enumerate(steps):
            z, y, x = (block.write_box.shape[axis] if axis in axes else before[axis] for axis in range(3))
            kinds = self._kinds(kind, step, len(steps))
            last = step == len(steps) - 1
            result = target if last else self._buffers.get(f"pass {step}", z * y * x * kinds[1].itemsize)
            kernels = self._weighted(*kinds, *_widths(plan.tables, axes), kind.kind == "f")
            tables = (small[f"table {axis}"] for axis in axes)
            self._pass(kernels, axes, plan, (before, (z, y, x)), voxels, result, *tables)
            voxels, before = result, (z, y, x)
        if plan.source.dtype == "float32":
            self._mend(source, target, small, block, plan)

    @staticmethod
    def _kinds(kind: np.dtype[Any], step: int, steps: int) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """Return what a pass reads and writes: sums between passes, voxels before and after all of them."""
        work = accumulator(kind)
        return kind if step == 0 else work, kind if step == steps - 1 else work

    def _pass(
        self,
        kernels: dict[str, Any],
        axes: tuple[int, ...],
        plan: Plan,
        shapes: tuple[Index3, Index3],
        *buffers: Any,
    ) -> None:
        """Scale along one axis, or along one and x at once. The buffers are source, target, and each axis' table."""
        axis, (before, after), share = axes[0], shapes, self._share
        n, m, outer, inner = before[axis], after[axis], math.prod(before[:axis]), math.prod(before[axis + 1 :])
        numbers: tuple[int, ...]
        if len(axes) == 2:
            tile, between = outputs_of(SPAN, plan.tables[2]), math.prod(before[axis + 1 : 2])
            kernel, numbers = "rows_then_x", (n, m, between, before[2], after[2], tile)
            tiles, rows, planes = ceil_div(after[2], tile), m, outer * between
        elif axis == 2:
            each = max(1, share.tile // m) if share is _CPU else 1
            kernel, numbers = "along_x", (n, m, outer, share.tile, each)
            tiles, rows, planes = ceil_div(outer, each), ceil_div(m, share.tile), 1
        else:
            kernel, numbers = "along_rows", (n, m, inner, share.tile)
            tiles, rows, planes = ceil_div(inner, share.tile), m, outer
        size, group = (tiles * share.group, rows, planes), (share.group, 1, 1)
        kernels[kernel](self._queue, size, group, *buffers, *map(np.uint64, numbers))

    def _mend(self, source: Any, target: Any, small: dict[str, Any], block: Block, plan: Plan) -> None:
        """Give the kernel to the queue that makes sums again which left the range of float32."""
        widths = _weighed(plan.tables)
        if any(widths):
            # The source stands for a table where there is none, of which nothing is read.
            tables = (small.get(f"table {axis}", source) for axis in range(3))
            sizes = (*block.read_box.shape[1:], *block.write_box.shape)
            items = ceil_div(block.write_box.size, self._share.mended)
            grid = (round_up(items, self._share.group), 1, 1), (self._share.group, 1, 1)
            self._mending(*widths)["mend"](self._queue, *grid, source, target, *tables, *map(np.uint64, sizes))

    @cached_property
    def _share(self) -> _Share:
        """How this engine's device shares the work of a pass."""
        return _CPU if self.device.kind == "cpu" else _GPU

    def _pick(self, source: Any, target: Any, small: dict[str, Any], block: Block, plan: Plan) -> None:
        """Give the kernel that moves bits to the queue: nearest voxel, most frequent label, or largest share."""
        ny, nx = (np.uint64(n) for n in block.read_box.shape[1:])
        kind = np.dtype(plan.source.dtype)
        z, y, x = block.write_box.shape
        sizes, extent = work_items((z, y, x)), (ny, nx, np.uint64(x))
        if plan.interpolation == "smooth":
            tables = [small[f"table {axis}"] for axis in range(3)]
            kernel = self._smoothing(kind, *_all_widths(plan.tables))["smooth"]
            kernel(self._queue, *sizes, source, target, *tables, *extent, *map(np.uint64, (z, y)))
            return
        kernels = self._picking(kind)
        if plan.interpolation == "mode":
            per_axis = [small[f"{name} {axis}"] for axis in range(3) for name in ("from", "to", "nearest")]
            kernels["mode"](self._queue, *sizes, source, target, *per_axis, *extent)
        else:
            kernels["pick"](
                self._queue, *sizes, source, target, *(small[f"nearest {axis}"] for axis in range(3)), *extent
            )

    @lru_cache(maxsize=64)  # noqa: B019 - engines live as long as the process
    def _weighted(
        self, kind_in: np.dtype[Any], kind_out: np.dtype[Any], width: int, width_x: int, skips: bool
    ) -> dict[str, Any]:
        """Build the kernels that weigh, for these voxel types and table widths; x has width 0 if it comes alone."""
        work = accumulator(kind_in, kind_out)
        suffix = "f" if work == np.float32 else ""
        macros: dict[str, object] = {}
        if kind_out.kind in "iu":
            info = np.iinfo(kind_out)
            macros = {"LOWEST": f"{info.min}.0{suffix}", "HIGHEST": f"{info.max}.0{suffix}"}
        if width_x:
            macros["SPAN"] = SPAN
        return self._build(
            "WEIGHTED",
            IN=C_TYPES[kind_in.name],
            OUT=C_TYPES[kind_out.name],
            ACC=C_TYPES[work.name],
            K=width,
            KX=width_x or width,
            V=self._share.vector // work.itemsize,
            SKIP=int(skips),
            SHIFT=f"{1.5 * 2 ** np.finfo(work).nmant}{suffix}",
            PROCESSOR=int(self._share is _CPU),
            **macros,
        )

    @lru_cache(maxsize=16)  # noqa: B019
    def _picking(self, kind: np.dtype[Any]) -> dict[str, Any]:
        """Build the kernels that move bits; floats move as integers of their size."""
        moved = {"float32": "uint32"}.get(kind.name, kind.name)
        return self._build("PICKED", IN=C_TYPES[moved])

    @lru_cache(maxsize=16)  # noqa: B019
    def _smoothing(self, kind: np.dtype[Any], width_z: int, width_y: int, width_x: int) -> dict[str, Any]:
        """Build the kernel that takes the label with the largest share, for these table widths."""
        return self._build("SMOOTHED", IN=C_TYPES[kind.name], KZ=width_z, KY=width_y, KX=width_x)

    @lru_cache(maxsize=16)  # noqa: B019
    def _mending(self, width_z: int, width_y: int, width_x: int) -> dict[str, Any]:
        """Build the kernel that makes sums again, for these table widths."""
        widths = {"KZ": width_z, "KY": width_y, "KX": width_x}
        share = self._share
        return self._build(
            "MENDED",
            V=share.vector // 4,
            CHECKED=share.checked,
            TILE=share.mended,
            PROCESSOR=int(share is _CPU),
            **widths,
        )

    def _build(self, part: str, **macros: object) -> dict[str, Any]:
        return self.build_kernels("exact.cl", {part: 1} | macros)


@lru_cache(maxsize=KEPT)
def _arrays(
    table: Table, axis: int, start: int, stop: int, base: int, kind: np.dtype[Any] | None
) -> tuple[tuple[str, NDArray[Any]], ...]:
    """Return what kernels need of a table's rows [start, stop) where the input begins at `base`.

    That is the rows with weights of this kind, or, without one, indices of the samples to move. Blocks side by side
    have most of them in common.
    """
    outputs = np.arange(start, stop)
    first, weights = table.rows(outputs)
    if kind is not None:
        return ((f"table {axis}", _packed(Rows(first - base, weights), axis, kind)),)
    nearest = (f"nearest {axis}", np.where(weights[:, 0] == 0, -1, first - base).astype(np.int32))
    if table.interpolation != "mode":
        return (nearest,)
    begin, end = (n - base for n in table.footprints(outputs))
    return (nearest, (f"from {axis}", begin.astype(np.int32)), (f"to {axis}", end.astype(np.int32)))


def _widths(tables: Sequence[Table], axes: tuple[int, ...]) -> tuple[int, int]:
    """Return the weights per row of a pass' axis, and of x if that comes with it."""
    return tables[axes[0]].width, tables[2].width if len(axes) == 2 else 0


def _all_widths(tables: Sequence[Table]) -> tuple[int, int, int]:
    """Return the weights per row of each axis' table."""
    z, y, x = (table.width for table in tables)
    return (z, y, x)


def _weighed(tables: Sequence[Table]) -> tuple[int, int, int]:
    """Return the weights per row of each axis' table, 0 for an axis that stays as it is."""
    z, y, x = (0 if table.identity else table.width for table in tables)
    return (z, y, x)


def _packed(rows: Rows, axis: int, kind: np.dtype[Any]) -> NDArray[np.uint8]:
    """Return the bytes of an axis' table as its kernel takes them: all weights, then the first samples.

    Along x, where neighbours have rows of their own, the weights of a sample lie side by side.
    """
    weights = rows.weights.T if axis == 2 else rows.weights
    parts = weights.astype(kind).ravel(), rows.first.astype(np.int32)
    return np.concatenate([part.view(np.uint8) for part in parts])
