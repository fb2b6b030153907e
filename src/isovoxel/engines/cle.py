"""The default engine: `cle.scale`, block by block. The only place that speaks x, y, z.

A block's output voxel i takes its value, along each axis, from position ``(i + 0.5) / factor + shift`` of the padded
input it is given, in the coordinates of cle's kernels (the centre of sample 0 is at 0.5). The shift follows in
float64 from the block's place in the volume. Where it is 0 on all axes the block's grid coincides with the volume's,
and ``cle.scale`` itself is called; elsewhere ``cle.affine_transform``, which is what ``cle.scale`` calls, with the
same matrix and that shift.

cle computes in float32. Voxels travel in the source's dtype and become float32 on the device, where the result is
rounded half to even and saturated. Integers of 32 bits are moved (nearest) in two halves of 16, which float32 holds.
Where no axis is scaled, voxels are copied as they are: neither float32 nor a texture holds all of them. Of floats near
the largest, sums that end beyond it by rounding are made again in smaller numbers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.clesperanto import Clesperanto, Scaling, clesperanto
from isovoxel.engines.devices import Device, opencl_device
from isovoxel.engines.opencl import C_TYPES, TURN, quiet_compiler, rows_of
from isovoxel.engines.pipeline import StagedEngine
from isovoxel.errors import DeviceError
from isovoxel.geometry.grid import Axis, Float3, Index3
from isovoxel.planning.memory import thick
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan

_HALVES = ("low", "high")
"""Parts of an integer of 32 bits."""


class CleEngine(StagedEngine):
    """Scales blocks with pyclesperanto on one OpenCL device.

    Parameters
    ----------
    device
        Where to compute.
    library
        The generation of clEsperanto that scales; by default that of this process.
    """

    name = "cle"

    def __init__(self, device: Device, library: Clesperanto | None = None) -> None:
        self.library = library or clesperanto()
        with TURN:
            super().__init__(device, self.library.queue(opencl_device(device)))
        self._proven: set[str] = set()

    def build(self, plan: Plan) -> None:
        """Build the conversions, and scale a few voxels with cle, which builds its kernels as they are called."""
        for part in self._parts(plan):
            self._conversion(np.dtype(plan.source.dtype), part)
        if plan.interpolation in self._proven:
            return
        try:
            with quiet_compiler():
                source, result = (self._floats(name, (n, n, n)) for name, n in (("padded", 2), ("scaled", 3)))
                self._scale(source, result, (1.5, 1.5, 1.5), (0.0, 0.0, 0.0), plan.interpolation)
                self._queue.finish()
                self._buffers.clear()
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise DeviceError(f"{self.device.name} does not run OpenCL kernels: {reason}") from error
        self._proven.add(plan.interpolation)

    def uploads(self, block: Block, plan: Plan) -> dict[str, NDArray[Any]]:
        """Return nothing: cle makes and uploads its matrix by itself."""
        del block, plan
        return {}

    def enqueue(self, source: Any, target: Any, small: dict[str, Any], block: Block, plan: Plan) -> None:
        """Give the block's kernels to the queue; see `StagedEngine.enqueue`."""
        del small
        if plan.identity:
            self.copy(target, source, block.write_box.size * np.dtype(plan.source.dtype).itemsize)
            return
        factor, shift = placement(block, plan)
        padded, written = block.padded_shape, block.write_box.shape
        given, made = self._shapes(block, plan)
        real, scaled = self._floats("padded", given), self._floats("scaled", made)
        grid = rows_of(written, self._queue)
        for part in self._parts(plan):
            kernels = self._conversion(np.dtype(plan.source.dtype), part)
            sizes = [_int3(n) for n in (block.read_box.shape, block.pad_before, padded)]
            kernels["widen"](self._queue, *rows_of(given, self._queue), source, real[0], *sizes, _int3(given))
            self._scale(real, scaled, factor, shift, plan.interpolation)
            result = (_int3(written), _int3(made))
            if plan.interpolation == "linear" and plan.source.dtype == "float32":
                where = (_float3(factor), _float3(shift))
                kernels["mend"](self._queue, *grid, source, scaled[0], *sizes, *result, *where)
            kernels["narrow"](self._queue, *grid, scaled[0], target, *result)

    def _shapes(self, block: Block, plan: Plan) -> tuple[Index3, Index3]:
        """Return the shapes of cle's arrays: where it compiles for each, those of the largest block for all.

        It also takes an array that is one voxel thin for one of fewer axes, and samples nothing beside it there.
        """
        if not self.library.fixed_shapes:
            return block.padded_shape, block.write_box.shape
        if block.write_box == plan.block(block.index).write_box:
            return thick(plan.largest.padded), thick(plan.largest.written)
        return thick(block.padded_shape), thick(block.write_box.shape)

    def _scale(
        self,
        source: tuple[Any, Index3],
        result: tuple[Any, Index3],
        factor: Float3,
        shift: Float3,
        interpolation: str,
    ) -> None:
        """Let cle scale an array on the device. The caller has the turn."""
        matrix = None if shift == (0.0, 0.0, 0.0) else _matrix(factor, shift)
        self.library.scale(self._queue, Scaling(source, result, factor, matrix, interpolation == "linear"))

    def _floats(self, name: str, shape: Index3) -> tuple[Any, Index3]:
        """Return a float32 array of that shape, in a buffer that is kept."""
        return self._buffers.get(name, 4 * math.prod(shape)), shape

    @staticmethod
    def _parts(plan: Plan) -> tuple[str, ...]:
        """Return the parts of a voxel that go through cle one after the other."""
        kind = np.dtype(plan.source.dtype)
        split = plan.interpolation == "nearest" and kind.kind in "iu" and kind.itemsize == 4
        return _HALVES if split else ("all",)

    @lru_cache(maxsize=32)  # noqa: B019 - engines live as long as the process
    def _conversion(self, kind: np.dtype[Any], part: str) -> dict[str, Any]:
        """Build the kernels between voxels of this type, or 16 of their bits, and float32."""
        name = C_TYPES[kind.name]
        voxel = "(v)" if kind.kind == "f" else f"convert_{name}_sat_rte(v)"
        convert = {
            "all": {"FLOAT(v)": "convert_float(v)", "VOXEL(v)": voxel, "JOIN(a, b)": "(b)"},
            "low": {"FLOAT(v)": "convert_float((v) & 0xffff)", "VOXEL(v)": "convert_uint(v)", "JOIN(a, b)": "(b)"},
            "high": {
                "FLOAT(v)": "convert_float((uint)(v) >> 16)",
                "VOXEL(v)": "convert_uint(v) << 16",
                "JOIN(a, b)": "((a) | (b))",
            },
        }[part]
        return self.build_kernels("convert.cl", {"IN": name} | convert)


def placement(block: Block, plan: Plan) -> tuple[Float3, Float3]:
    """Return the factor and shift, z, y, x, with which a block's padded input is sampled, in float64."""
    factors, shifts = [], []
    for axis, first, start, stop, pad in zip(
        plan.axes,
        block.read_box.start,
        block.write_box.start,
        block.write_box.stop,
        block.pad_before,
        strict=True,
    ):
        exact = plan.interpolation == "nearest"
        factor, shift = _axis_placement(axis, start, stop, first - pad, exact=exact, as_cle=plan.boundary == "constant")
        factors.append(factor)
        shifts.append(shift)
    return cast(Float3, tuple(factors)), cast(Float3, tuple(shifts))


def _axis_placement(axis: Axis, start: int, stop: int, base: int, *, exact: bool, as_cle: bool) -> tuple[float, float]:
    if (start + 0.5) / axis.factor - 0.5 > axis.n:
        # The single sample of an axis that shrank away: its position was drawn back, and has no neighbours.
        return 1.0, float(axis.source(np.array([start]))[0]) - base
    shift = start / axis.factor - base
    if not exact or (shift == 0 and as_cle):
        return axis.factor, shift
    # Nearest truncates a float32 position. Of all shifts that give every sample the index it must have, take the
    # one in the middle, so that no rounding on the device moves a sample across a voxel's face.
    position = (np.arange(stop - start) + 0.5) / axis.factor
    index = axis.nearest(np.arange(start, stop)) - base
    low, high = (index - position).max(), (index + 1 - position).min()
    return axis.factor, float((low + high) / 2)


def _matrix(factor: Float3, shift: Float3) -> NDArray[np.float64]:
    """Return the 4 x 4 matrix, x, y, z, from input to output coordinates, whose inverse cle applies."""
    matrix = np.eye(4)
    for i, (f, s) in enumerate(zip(reversed(factor), reversed(shift), strict=True)):
        matrix[i, i] = f
        matrix[i, 3] = -f * s
    return matrix


def _int3(shape: Index3) -> Any:
    """Return three numbers, z, y, x, as an OpenCL vector x, y, z."""
    from pyopencl import cltypes

    vectors: Any = cltypes  # made when it is imported, out of sight of type checkers
    return vectors.make_int3(*reversed(shape))


def _float3(numbers: Float3) -> Any:
    """Return three numbers, z, y, x, as an OpenCL vector x, y, z."""
    from pyopencl import cltypes

    vectors: Any = cltypes
    return vectors.make_float3(*reversed(numbers))
