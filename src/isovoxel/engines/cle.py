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
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.devices import Device, opencl_device
from isovoxel.engines.opencl import C_TYPES, build_kernels, quiet_compiler, rows_of
from isovoxel.engines.staging import TURN, StagedEngine
from isovoxel.errors import DeviceError
from isovoxel.geometry.axis import Axis
from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import Float3
from isovoxel.planning.limits import LANES
from isovoxel.planning.parts import Block
from isovoxel.planning.plan import Plan

_HALVES = ("low", "high")
"""Parts of an integer of 32 bits."""


class CleEngine(StagedEngine):
    """Scales blocks with pyclesperanto on one OpenCL device.

    Parameters
    ----------
    device
        Where to compute.
    """

    name = "cle"

    def __init__(self, device: Device) -> None:
        with TURN:
            super().__init__(device, select(opencl_device(device)).get_device().queue)
        self._proven: set[str] = set()
        self._transfers: deque[Any] = deque(maxlen=2 * len(_HALVES) * LANES[device.kind])

    def build(self, plan: Plan) -> None:
        """Build the conversions, and scale a few voxels with cle, which builds its kernels as they are called."""
        for part in self._parts(plan):
            self._conversion(np.dtype(plan.source.dtype), part)
        if plan.interpolation in self._proven:
            return
        try:
            with quiet_compiler():
                cle = select(self._handle)
                source, result = cle.push(np.ones((2, 2, 2), np.float32)), cle.create((3, 3, 3))
                self._scale(source, result, (1.5, 1.5, 1.5), (0.0, 0.0, 0.0), plan.interpolation)
                result.get()
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
        import pyopencl as cl

        del small
        if plan.identity:
            nbytes = block.write_box.size * np.dtype(plan.source.dtype).itemsize
            cl.enqueue_copy(self._queue, target, source, byte_count=nbytes)
            return
        factor, shift = placement(block, plan)
        padded, written = block.padded_shape, block.write_box.shape
        real, scaled = self._floats("padded", padded), self._floats("scaled", written)
        for part in self._parts(plan):
            kernels = self._conversion(np.dtype(plan.source.dtype), part)
            sizes = [_int3(n) for n in (block.read_box.shape, block.pad_before, padded)]
            kernels["widen"](self._queue, *rows_of(padded, self._queue), source, real.base_data, *sizes)
            self._scale(real, scaled, factor, shift, plan.interpolation)
            if plan.interpolation == "linear" and plan.source.dtype == "float32":
                grid = rows_of(written, self._queue)
                where = (_float3(factor), _float3(shift))
                kernels["mend"](self._queue, *grid, source, scaled.base_data, *sizes, _int3(written), *where)
            kernels["narrow"](self._queue, *rows_of(written, self._queue), scaled.base_data, target, _int3(written))

    def _scale(self, source: Any, result: Any, factor: Float3, shift: Float3, interpolation: str) -> None:
        """Let cle scale an array on the device. The caller has the turn."""
        cle = select(self._handle)
        linear = interpolation == "linear"
        with self._own_backend():
            if shift == (0.0, 0.0, 0.0):
                fz, fy, fx = factor
                cle.scale(
                    source,
                    result,
                    factor_x=fx,
                    factor_y=fy,
                    factor_z=fz,
                    centered=False,
                    linear_interpolation=linear,
                )
            else:
                cle.affine_transform(source, result, transform=_matrix(factor, shift), linear_interpolation=linear)

    def _floats(self, name: str, shape: Index3) -> Any:
        """Return cle's array of that shape, in a buffer that is kept."""
        from pyclesperanto_prototype._tier0._pycl import OCLArray

        return OCLArray(self._queue, shape, np.float32, data=self._buffers.get(name, 4 * math.prod(shape)))

    @contextmanager
    def _own_backend(self) -> Iterator[None]:
        """Let cle raise where an image cannot be made, and not wait for the device. The caller has the turn.

        cle takes any reason, a lack of memory too, for one that will stay: it warns, and goes on with nearest. And it
        waits until its matrix is on the device, behind all that the queue has to do before.
        """
        from pyclesperanto_prototype._tier0._backends import Backend

        backend = Backend.get_instance().get()
        backend.empty_image_like = self._image_like
        backend.from_array = self._matrix_on_device
        try:
            yield
        finally:
            del backend.empty_image_like, backend.from_array

    def _image_like(self, array: Any, _: Any = None) -> Any:
        """Return cle's image of a float32 array's shape, made as pyopencl wants it: cle's way gives a warning."""
        import pyopencl as cl
        from pyclesperanto_prototype._tier0._pycl import _OCLImage

        pixel = cl.ImageFormat(cl.channel_order.R, cl.channel_type.FLOAT)
        image: Any = cl.create_image(self._queue.context, cl.mem_flags.READ_WRITE, pixel, shape=array.shape[::-1])
        image.dtype, image.num_channels = array.dtype, 1
        return _OCLImage(image)

    def _matrix_on_device(self, matrix: NDArray[np.float32]) -> Any:
        """Return cle's array of its matrix, which the queue copies before it comes to what uses it."""
        import pyopencl as cl
        from pyclesperanto_prototype._tier0._pycl import OCLArray

        buffer = cl.Buffer(self._queue.context, cl.mem_flags.READ_ONLY, matrix.nbytes)
        # pyopencl waits for a transfer whose event nobody keeps; with as many kept, the oldest has come to its end.
        self._transfers.append(cl.enqueue_copy(self._queue, buffer, matrix, is_blocking=False))
        return OCLArray(self._queue, matrix.shape, matrix.dtype, data=buffer)

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
        return build_kernels(self._queue, "convert.cl", {"IN": name} | convert)


def select(handle: Any) -> Any:
    """Return cle with this ``pyopencl.Device`` as its current one. The caller has the turn.

    cle makes a new context each time it goes from one device to another, in which nothing works that was made in the
    old one. Here a device keeps the context that it got first.
    """
    import pyclesperanto_prototype as cle
    from pyclesperanto_prototype._tier0._device import _current_device, filter_devices

    if handle in _selected:
        _current_device._instance = _selected[handle]  # noqa: SLF001 - cle has no other way to say so
    else:
        # By name cle takes the first of several that are alike; by its place in cle's own order it takes this one.
        _selected[handle] = cle.select_device(device_index=filter_devices().index(handle))
    return cle


_selected: dict[Any, Any] = {}
"""cle's devices, each a context and a queue, by what pyopencl calls them."""


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
