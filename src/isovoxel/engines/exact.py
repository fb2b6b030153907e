"""The engine whose numbers can be trusted: per-axis tables, applied by our own kernels on cle's device and context.

Weights are float32 (float64 for integers of 32 bits, whose values float32 cannot tell apart) and sums run in a fixed
order, so a voxel has the same bits however the volume is cut and on whichever device. Voxels travel in the source's
dtype and are rounded half to even and saturated on the device. Nearest and mode move bits and never compute with them.

Axes are scaled one after the other, those of factor 1 not at all, in the order that `pass_order` finds cheapest for
the whole volume.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.base import Cancelled, Scaled
from isovoxel.engines.cle import TURN, quiet_stderr, select
from isovoxel.engines.devices import Device, opencl_device
from isovoxel.errors import DeviceError
from isovoxel.geometry.axis import ceil_div, round_up
from isovoxel.geometry.tables import Rows, Table, accumulator, pass_order
from isovoxel.planning.plan import MOVES, Block, Plan

VECTOR_BYTES = 32
"""Bytes of a vector of sums: PoCL does not build longer ones for a processor without AVX-512."""

GROUP = 64
"""Work items per group, along the contiguous axis: whole warps of a GPU, whole vectors of a CPU."""

_Typed = tuple[Any, np.dtype[Any]]
"""A buffer, and the type of its voxels."""

_C_TYPES = {
    "uint8": "uchar",
    "uint16": "ushort",
    "uint32": "uint",
    "uint64": "ulong",
    "int8": "char",
    "int16": "short",
    "int32": "int",
    "int64": "long",
    "float32": "float",
    "float64": "double",
}


class ExactEngine:
    """Scales blocks by tables on one OpenCL device.

    Parameters
    ----------
    device
        Where to compute.

    Raises
    ------
    DeviceError
        If the device does not build or run the kernels.
    """

    name = "exact"

    def __init__(self, device: Device) -> None:
        self.device = device
        self._handle = opencl_device(device)
        self._buffers: dict[str, Any] = {}
        self._plan: Plan | None = None
        with TURN:
            self._queue = select(self._handle).get_device().queue

    def scale(self, data: NDArray[Any], block: Block, plan: Plan, cancelled: threading.Event | None = None) -> Scaled:
        """Return the voxels of ``block.write_box``; see `isovoxel.engines.base.Engine`."""
        data = np.ascontiguousarray(data)
        began = time.perf_counter()
        with TURN:
            waited = time.perf_counter() - began
            if cancelled is not None and cancelled.is_set():
                raise Cancelled
            if plan != self._plan:
                # What another plan needed most of need not be what this one does: both may be more than is projected.
                self._buffers.clear()
                self._plan = plan
            if plan.interpolation in MOVES:
                return Scaled(self._pick(data, block, plan), waited)
            return Scaled(self._weigh(data, block, plan), waited)

    def prepare(self, plan: Plan) -> None:
        """Build the kernels of a plan; a device without float64 does not build those for integers of 32 bits."""
        kind = np.dtype(plan.source.dtype)
        with TURN:
            if plan.interpolation in MOVES:
                self._picking(kind)
                return
            order = pass_order(plan.tables)
            for step, axis in enumerate(order):
                kinds = self._kinds(kind, step, len(order))
                self._weighted(*kinds, plan.tables[axis].width)

    @staticmethod
    def _kinds(kind: np.dtype[Any], step: int, steps: int) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """Return what a pass reads and writes: sums between passes, voxels before and after all of them."""
        work = accumulator(kind)
        return kind if step == 0 else work, kind if step == steps - 1 else work

    def release(self) -> None:
        """Let go of the device's buffers."""
        with TURN:
            self._buffers.clear()
            self._plan = None

    def _weigh(self, data: NDArray[Any], block: Block, plan: Plan) -> NDArray[Any]:
        """Return weighted sums, one pass an axis. The caller has the turn."""
        result = np.empty(block.write_box.shape, data.dtype)
        if pass_order(plan.tables):
            self._download(self.passes(self._upload("input", data), data.dtype, block, plan), result)
        else:
            result[...] = data
        return result

    def passes(self, source: Any, kind: np.dtype[Any], block: Block, plan: Plan) -> Any:
        """Enqueue a block's passes over its voxels on the device; return the buffer with the last one's result."""
        order, shape = pass_order(plan.tables), list(block.read_box.shape)
        for step, axis in enumerate(order):
            rows = self._rows(plan.tables[axis], block, axis)
            kind_in, kind_out = self._kinds(kind, step, len(order))
            after = [*shape[:axis], len(rows.first), *shape[axis + 1 :]]
            target = self._buffer(f"pass {step}", math.prod(after) * kind_out.itemsize)
            self._pass(axis, rows, shape, (source, kind_in), (target, kind_out))
            shape, source = after, target
        return source

    def _pass(self, axis: int, rows: Rows, shape: list[int], source: _Typed, target: _Typed) -> None:
        """Scale a buffer of this shape along one axis. The table's buffer is referred to by nothing afterwards."""
        work = accumulator(source[1], target[1])
        n, m = shape[axis], len(rows.first)
        kernels = self._weighted(source[1], target[1], rows.weights.shape[1])
        table = self._upload("table", _packed(rows, work))
        arguments = [source[0], target[0], table, np.uint64(n), np.uint64(m)]
        if axis == 2:
            kernels.along_x(self._queue, *_sizes(m, shape[1], shape[0]), *arguments)
        else:
            inner, outer = math.prod(shape[axis + 1 :]), math.prod(shape[:axis])
            vectors = ceil_div(inner, VECTOR_BYTES // work.itemsize)
            kernels.along_rows(self._queue, *_sizes(vectors, m, outer), *arguments, np.uint64(inner))

    def _pick(self, data: NDArray[Any], block: Block, plan: Plan) -> NDArray[Any]:
        """Return moved bits: the nearest voxel, or the most frequent label. The caller has the turn."""
        result = np.empty(block.write_box.shape, data.dtype)
        picked, spans = [], []
        for axis in range(3):
            rows = self._rows(plan.tables[axis], block, axis)
            nearest = np.where(rows.weights[:, 0] == 0, -1, rows.first).astype(np.int32)
            picked.append(self._upload(f"nearest {axis}", nearest))
            if plan.interpolation == "mode":
                outputs = np.arange(block.write_box.start[axis], block.write_box.stop[axis])
                footprint = plan.tables[axis].footprints(outputs)
                base = block.read_box.start[axis]
                start, stop = ((end - base).astype(np.int32) for end in footprint)
                spans.append((self._upload(f"from {axis}", start), self._upload(f"to {axis}", stop)))
        source = self._upload("input", data)
        target = self._buffer("pass 0", result.nbytes)
        ny, nx = (np.uint64(n) for n in data.shape[1:])
        kernels = self._picking(data.dtype)
        z, y, x = result.shape
        sizes, extent = _sizes(x, y, z), (ny, nx, np.uint64(x))
        if plan.interpolation == "mode":
            per_axis = [a for (start, stop), index in zip(spans, picked, strict=True) for a in (start, stop, index)]
            kernels.mode(self._queue, *sizes, source, target, *per_axis, *extent)
        else:
            kernels.pick(self._queue, *sizes, source, target, *picked, *extent)
        self._download(target, result)
        return result

    @staticmethod
    def _rows(table: Table, block: Block, axis: int) -> Rows:
        """Return a block's rows of the volume's table, as indices into the block's input."""
        outputs = np.arange(block.write_box.start[axis], block.write_box.stop[axis])
        first, weights = table.rows(outputs)
        return Rows(first - block.read_box.start[axis], weights)

    # ---- the device ------------------------------------------------------------------------------------------

    def _buffer(self, name: str, nbytes: int) -> Any:
        """Return this engine's buffer of that name, grown if need be."""
        import pyopencl as cl

        if name not in self._buffers or self._buffers[name].size < nbytes:
            self._buffers.pop(name, None)  # let go of the old one before the new one is there
            self._buffers[name] = cl.Buffer(self._queue.context, cl.mem_flags.READ_WRITE, nbytes)
        return self._buffers[name]

    def _upload(self, name: str, data: NDArray[Any]) -> Any:
        import pyopencl as cl

        buffer = self._buffer(name, data.nbytes)
        cl.enqueue_copy(self._queue, buffer, data, is_blocking=True)
        return buffer

    def _download(self, buffer: Any, result: NDArray[Any]) -> None:
        import pyopencl as cl

        cl.enqueue_copy(self._queue, result, buffer, is_blocking=True)

    @lru_cache(maxsize=64)  # noqa: B019 - engines live as long as the process
    def _weighted(self, kind_in: np.dtype[Any], kind_out: np.dtype[Any], width: int) -> Any:
        """Build the kernels that weigh, for these voxel types and this table width."""
        work = accumulator(kind_in, kind_out)
        vector = VECTOR_BYTES // work.itemsize
        out = _C_TYPES[kind_out.name]
        rounds = kind_out.kind in "iu"
        # A sum that stays in the type it was computed in needs no conversion.
        convert = "convert_{}_sat_rte(v)" if rounds else "convert_{}(v)"
        return self._build(
            "WEIGHTED",
            IN=_C_TYPES[kind_in.name],
            OUT=out,
            ACC=_C_TYPES[work.name],
            K=width,
            V=vector,
            SKIP=int(kind_in.kind == "f"),
            **{"ROUND(v)": convert.format(out), "ROUNDV(v)": convert.format(f"{out}{vector}")},
        )

    @lru_cache(maxsize=16)  # noqa: B019
    def _picking(self, kind: np.dtype[Any]) -> Any:
        """Build the kernels that move bits; floats move as integers of their size."""
        moved = {"float32": "uint32"}.get(kind.name, kind.name)
        return self._build("PICKED", IN=_C_TYPES[moved])

    def _build(self, part: str, **macros: object) -> Any:
        import pyopencl as cl

        source = files("isovoxel.engines").joinpath("exact.cl").read_text("utf-8")
        defines = "".join(f"#define {name} {value}\n" for name, value in macros.items())
        if "double" in defines:
            defines = "#pragma OPENCL EXTENSION cl_khr_fp64 : enable\n" + defines
        try:
            # Compilers have something to say of the best of kernels: to standard error, or as a warning.
            with quiet_stderr(), warnings.catch_warnings():
                warnings.simplefilter("ignore", cl.CompilerWarning)
                program = cl.Program(self._queue.context, f"#define {part}\n{defines}{source}").build()
            return _Kernels({kernel.function_name: kernel for kernel in program.all_kernels()})
        except cl.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise DeviceError(f"{self.device.name} does not build the kernels of the exact engine: {reason}") from error


def _sizes(x: int, y: int, z: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return global and local size: left to itself, a driver may take groups of one where x is a prime."""
    return (round_up(x, GROUP), y, z), (GROUP, 1, 1)


def _packed(rows: Rows, kind: np.dtype[Any]) -> NDArray[np.uint8]:
    """Return the bytes of a table as the kernels take it: all weights, then the first samples."""
    weights, first = rows.weights.astype(kind), rows.first.astype(np.int32)
    return np.concatenate([weights.view(np.uint8).ravel(), first.view(np.uint8)])


class _Kernels:
    """The kernels of one program, as attributes: asking pyopencl's program makes a new object each time."""

    def __init__(self, kernels: dict[str, Any]) -> None:
        self.__dict__.update(kernels)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)
