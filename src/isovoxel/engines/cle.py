"""The default engine: `cle.scale`, block by block. The only place that speaks x, y, z.

A block's output voxel i takes its value, along each axis, from position ``(i + 0.5) / factor + shift`` of the padded
input it is given, in the coordinates of cle's kernels (the centre of sample 0 is at 0.5). The shift follows in
float64 from the block's place in the volume. Where it is 0 on all axes the block's grid coincides with the volume's,
and ``cle.scale`` itself is called; elsewhere ``cle.affine_transform``, which is what ``cle.scale`` calls, with the
same matrix and that shift.

cle computes in float32. Integers are rounded half to even and saturated here; labels of 32 bits that float32 cannot
hold go through in two halves of 16 bits.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.base import Cancelled, Scaled
from isovoxel.engines.devices import Device, opencl_device
from isovoxel.errors import DeviceError
from isovoxel.geometry.axis import Axis
from isovoxel.geometry.box import Box, Index3
from isovoxel.geometry.grid import Float3
from isovoxel.planning.plan import Block, Plan

FLOAT_EXACT = 2**24
"""Up to here float32 holds every integer."""

# cle has one device, one queue and shared kernel objects per process: one thread at a time may call it.
TURN = threading.Lock()


class CleEngine:
    """Scales blocks with pyclesperanto on one OpenCL device.

    Parameters
    ----------
    device
        Where to compute.

    Raises
    ------
    DeviceError
        If the device does not run a first, tiny scaling.
    """

    name = "cle"

    def __init__(self, device: Device) -> None:
        self.device = device
        self._handle = opencl_device(device)
        # Staging arrays are float32, belong to one thread, and grow to its largest block.
        self._staging = threading.local()
        self._warm_up()

    def scale(self, data: NDArray[Any], block: Block, plan: Plan, cancelled: threading.Event | None = None) -> Scaled:
        """Return the voxels of ``block.write_box``; see `isovoxel.engines.base.Engine`."""
        shape = block.write_box.shape
        factor, shift = placement(block, plan)
        staged = self._stage("input", block.padded_shape)
        inside = Box(
            block.pad_before,
            cast(Index3, tuple(b + n for b, n in zip(block.pad_before, data.shape, strict=True))),
        )

        def run(result: NDArray[np.float32]) -> float:
            _repeat_rim(staged, inside)
            began = time.perf_counter()
            with TURN:
                waited = time.perf_counter() - began
                if cancelled is not None and cancelled.is_set():
                    raise Cancelled
                self._run(staged, result, factor, shift, plan.interpolation)
            return waited

        if plan.interpolation == "nearest" and _exceeds_float(data):
            bits = data.view(np.uint32)
            wide = np.empty(shape, np.uint32)
            half = self._stage("output", shape)
            np.bitwise_and(bits, 0xFFFF, out=staged[inside.slices], casting="unsafe")
            waited = run(half)
            wide[...] = half
            np.right_shift(bits, 16, out=staged[inside.slices], casting="unsafe")
            waited += run(half)
            for plane, high in zip(wide, half, strict=True):
                np.bitwise_or(plane, high.astype(np.uint32) << 16, out=plane)
            return Scaled(wide.view(data.dtype), waited)

        staged[inside.slices] = data
        if data.dtype == np.float32:
            result = np.empty(shape, np.float32)
            return Scaled(result, run(result))
        real = self._stage("output", shape)
        waited = run(real)
        return Scaled(rounded(real, data.dtype), waited)

    def prepare(self, plan: Plan) -> None:
        """Do nothing: all that cle needs was built when the engine was made."""

    def release(self) -> None:
        """Let go of the staging arrays; those of threads that have ended are gone already."""
        self._staging = threading.local()

    def _run(
        self,
        source: NDArray[np.float32],
        result: NDArray[np.float32],
        factor: Float3,
        shift: Float3,
        interpolation: str,
    ) -> None:
        """Scale on the device: upload, compute, download. The caller has the turn."""
        cle = select(self._handle)
        upload = cle.create(source.shape)
        upload.set(source)
        output = cle.create(result.shape)
        linear = interpolation == "linear"
        if shift == (0.0, 0.0, 0.0):
            fz, fy, fx = factor
            cle.scale(
                upload,
                output,
                factor_x=fx,
                factor_y=fy,
                factor_z=fz,
                centered=False,
                linear_interpolation=linear,
            )
        else:
            cle.affine_transform(upload, output, transform=_matrix(factor, shift), linear_interpolation=linear)
        output.get(ary=result)

    def _stage(self, name: str, shape: Index3) -> NDArray[np.float32]:
        """Return this thread's staging array of that name, grown if need be, in that shape."""
        size = int(np.prod(shape))
        held: NDArray[np.float32] | None = getattr(self._staging, name, None)
        if held is None or held.size < size:
            setattr(self._staging, name, None)  # let go of the old one before the new one is there
            held = np.empty(size, np.float32)
            setattr(self._staging, name, held)
        return held[:size].reshape(shape)

    def _warm_up(self) -> None:
        """Scale a few voxels, so that a device that cannot is found before anything is written.

        PoCL's compiler prints its count of warnings to the process' standard error when it first builds a kernel.
        """
        data = np.ones((2, 2, 2), np.float32)
        try:
            with TURN, quiet_stderr():
                for interpolation in ("linear", "nearest"):
                    for shift in ((0.0, 0.0, 0.0), (0.25, 0.25, 0.25)):
                        self._run(data, np.empty((3, 3, 3), np.float32), (1.5, 1.5, 1.5), shift, interpolation)
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise DeviceError(f"{self.device.name} does not run OpenCL kernels: {reason}") from error


def select(handle: Any) -> Any:
    """Return cle with this ``pyopencl.Device`` as its current one. The caller has the turn."""
    import pyclesperanto_prototype as cle
    from pyclesperanto_prototype._tier0._device import filter_devices

    # By name cle takes the first of several that are alike; by its place in cle's own order it takes this one.
    cle.select_device(device_index=filter_devices().index(handle))
    return cle


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


def rounded(real: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return float32 voxels as integers, rounded half to even and saturated, plane by plane (`real` is used up)."""
    info = np.iinfo(dtype)
    result = np.empty(real.shape, dtype)
    for plane, target in zip(real, result, strict=True):
        np.rint(plane, out=plane)
        if dtype.itemsize < 4:
            np.clip(plane, info.min, info.max, out=plane)
            target[...] = plane
        else:  # float32 has no 2^31 - 1 or 2^32 - 1: what reaches the next power of two is beyond
            exact = plane.astype(np.float64)
            np.clip(exact, info.min, info.max, out=exact)
            target[...] = exact
    return result


def _exceeds_float(data: NDArray[Any]) -> bool:
    """Tell whether some integer in the array is beyond what float32 holds exactly."""
    if data.dtype.itemsize < 4 or data.dtype.kind == "f":
        return False
    return int(data.max()) > FLOAT_EXACT or int(data.min()) < -FLOAT_EXACT


def _repeat_rim(padded: NDArray[np.float32], inside: Box) -> None:
    """Repeat the outermost voxels of the box `inside` over the rest of the array, in place."""
    for axis in range(3):
        first, last = inside.start[axis], inside.stop[axis]
        at: list[Any] = [slice(None)] * 3

        def planes(where: slice, at: list[Any] = at, axis: int = axis) -> tuple[Any, ...]:
            return (*at[:axis], where, *at[axis + 1 :])

        padded[planes(slice(0, first))] = padded[planes(slice(first, first + 1))]
        padded[planes(slice(last, None))] = padded[planes(slice(last - 1, last))]


def _matrix(factor: Float3, shift: Float3) -> NDArray[np.float64]:
    """Return the 4 x 4 matrix, x, y, z, from input to output coordinates, whose inverse cle applies."""
    matrix = np.eye(4)
    for i, (f, s) in enumerate(zip(reversed(factor), reversed(shift), strict=True)):
        matrix[i, i] = f
        matrix[i, 3] = -f * s
    return matrix


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Send what C code writes to file descriptor 2 to nowhere for a moment."""
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # there is no standard error to protect
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
