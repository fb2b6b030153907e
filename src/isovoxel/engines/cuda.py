"""Engine `exact` on CUDA in place of OpenCL, for plans whose chunks an NVIDIA GPU encodes or decodes.

The kernels are the same, in CUDA's words (`opencl_as_cuda.h`), and have the same bits. CUDA does not reach what OpenCL
has on a device: voxels went through memory of the host that both reach, which takes time to get, and two copies. Here
blocks stay on the device until they are encoded (benchmarks/RESULTS.md, "Encoding on the GPU").
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.cuda import DeviceMemory, DeviceVoxels, Event, Gpu, GpuCodecError, Kernels, Registration, Stream
from isovoxel.engines.base import Scaled
from isovoxel.engines.buffers import Buffers, HostBuffer, HostPair, Lane, Register, Reserved
from isovoxel.engines.devices import Device
from isovoxel.engines.exact import ExactEngine
from isovoxel.engines.opencl import DriverError
from isovoxel.engines.staged_block import StagedBlock
from isovoxel.errors import DeviceError
from isovoxel.geometry.grid import Box, Index3, ceil_div
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan

WORDS = "opencl_as_cuda.h"
"""What stands before the kernels."""

MOST_LANES = 64
"""How many blocks may be on the device at a time; a plan has fewer in flight (`isovoxel.planning.codecs`)."""

MOST_GROUPS = 2**16
"""CUDA has fewer groups along all axes of work but the first."""


def serves(plan: Plan) -> bool:
    """Return whether the engine of a plan shall be that of CUDA."""
    largest = max(*plan.largest.read, *plan.largest.written)
    coded = plan.device.encoding or plan.device.decoding
    return bool(coded) and plan.engine == "exact" and largest < MOST_GROUPS and not sys.platform.startswith("win")


class CudaEngine(ExactEngine):
    """Scales blocks by tables on one NVIDIA GPU.

    Parameters
    ----------
    device
        Where to compute.

    Raises
    ------
    ImportError
        If CUDA's driver or compiler is not installed.
    GpuCodecError
        If CUDA cannot use the GPU.
    """

    def __init__(self, device: Device) -> None:
        self.gpu = Gpu(device.pci)
        with self.gpu.used():
            self._stream = Stream(self.gpu)
        self.spilling = threading.Lock()
        """Held for a block whose output is on the host, for the device has no room: one at a time is projected."""
        super().__init__(device)

    def download(self, lane: _Lane, voxels: DeviceVoxels) -> NDArray[Any]:
        """Return voxels in new memory of the host.

        Raises
        ------
        DeviceLostError
            If the device no longer answers.
        """
        array = np.empty(voxels.shape, voxels.dtype)
        row = array.shape[2] * array.itemsize
        try:
            with _failures(self.gpu):
                for z, plane in enumerate(array):
                    source = voxels.address + z * voxels.strides[0]
                    lane.stream.download_rows(plane.ctypes.data, row, source, voxels.strides[1], row, len(plane))
                lane.stream.wait()
        except DriverError as error:
            raise self.lost(str(error)) from error
        return array

    @contextmanager
    def staged(self, block: Block, plan: Plan) -> Iterator[StagedBlock]:
        """Lend a block its host memory; see `isovoxel.engines.base.Engine`. It holds its lane until it is written."""
        if not plan.keeps_blocks:
            with super().staged(block, plan) as stage:
                yield stage
            return
        hosts = self.hosts.take(plan)
        try:
            with contextlib.ExitStack() as held:
                yield _KeptBlock(self, block, plan, hosts, held)
        finally:
            self.hosts.give(hosts)

    @property
    def most_lanes(self) -> int:
        """How many lanes there are: more than blocks in flight, each of which holds one until it is written."""
        return MOST_LANES

    def staging(self, plan: Plan) -> tuple[int, int]:
        """Return the bytes of the host's memory for a block in flight: of its output, only for further levels."""
        return plan.staging_on_host

    def open_queue(self, device: Device) -> Any:
        """Return what stands in the place of OpenCL's queue."""
        del device
        return _Queue(self.gpu, self._stream)

    def allocate(self, nbytes: int) -> Any:
        """Return new memory on the device."""
        with _failures(self.gpu):
            return DeviceMemory(self.gpu, nbytes)

    def host_buffer(self, nbytes: int, register: Register | None, memory: Reserved) -> HostBuffer:
        """Return memory of the host that the device reaches, its codecs too."""
        del register
        return _HostBuffer(self.gpu, nbytes, memory)

    def new_lane(self) -> Lane:
        """Return a lane, whose buffers are not there yet."""
        return _Lane(self)

    def build_kernels(self, file: str, macros: dict[str, Any]) -> dict[str, Any]:
        """Return the kernels of a file by name, built with macros.

        Raises
        ------
        DeviceError
            If CUDA does not build them.
        """
        words, source = (files("isovoxel.engines").joinpath(name).read_text("utf-8") for name in (WORDS, file))
        defines = "".join(f"#define {name} {value}\n" for name, value in macros.items())
        try:
            with self.gpu.used():
                found = self.gpu.kernels(f"{words}{defines}{source}\n}}\n", "--fmad=false", "--std=c++17")
        except GpuCodecError as error:
            raise DeviceError(f"{self.device.name} does not build the kernels of {file}: {error}") from error
        return _Launches(found, self._launch)

    def copy(self, target: Any, source: Any, nbytes: int) -> None:
        """Give a copy of a buffer to the stream."""
        with _failures(self.gpu):
            self._stream.copy(target.ptr, source.ptr, nbytes)

    def begin_after(self, event: Any) -> None:
        """Let what is given to the stream next wait for an event of a lane."""
        with _failures(self.gpu):
            self._stream.follow(event)

    def computed(self) -> Any:
        """Return the event of the end of what was given to the stream."""
        with _failures(self.gpu):
            return self._stream.mark()

    def answers(self) -> bool:
        """Return whether the device still does what this process asks of it."""
        try:
            with self.gpu.used():
                few = DeviceMemory(self.gpu, 64)
                self._stream.zero(few.ptr, 64)
                self._stream.wait()
        except MemoryError:  # it does answer
            return True
        except GpuCodecError:
            return False
        return True

    def _launch(self, kernel: Any, _queue: Any, items: Any, group: Any, *arguments: Any) -> None:
        """Begin with a kernel on so many items in groups of some, its arguments buffers and numbers."""
        groups = [ceil_div(n, g) for n, g in zip(items, group, strict=True)]
        with _failures(self.gpu):
            self._stream.launch_grid(kernel, groups, group, arguments)


class _KeptBlock(StagedBlock):
    """A block that stays on the device until it is encoded there, as its block of level 1 may.

    Parameters
    ----------
    held
        Keeps the lane of the block until it is written.
    """

    _engine: CudaEngine

    def __init__(
        self, engine: CudaEngine, block: Block, plan: Plan, hosts: HostPair, held: contextlib.ExitStack
    ) -> None:
        super().__init__(engine, block, plan, hosts)
        self._held = held

    def scale(self, cancelled: threading.Event | None = None) -> Scaled:
        """Return the voxels of ``block.write_box`` on the device, or on the host where it has no room for the whole."""
        engine, plan, block = self._engine, self._plan, self._block
        if not engine.fit.depth(plan) and not self._attempt(block, self._kept(), cancelled):
            voxels, *halves = self._staying
            return Scaled(voxels, self._waited, 1, (*halves, *self._made(self._halves[len(halves) :])))
        target = self._target
        with contextlib.ExitStack() as spilling:
            spilling.enter_context(self._waiting_for(engine.spilling, cancelled))
            self._target = _SpilledBuffer(plan.staging[1])
            try:
                scaled = super().scale(cancelled)
            except BaseException:  # it may be tried again
                self._target = target
                raise
            self._held.push(spilling.pop_all())
        return scaled

    @contextmanager
    def _kept(self) -> Iterator[Lane]:
        """Lend a lane that stays with the block, unless it fails."""
        with contextlib.ExitStack() as held:
            lane = held.enter_context(self._engine.lanes.one())
            held.callback(lane.finish)  # before another block has its memory
            yield lane
            self._held.push(held.pop_all())

    def _carry(self, piece: Block, lane: Lane, cancelled: threading.Event | None) -> None:
        """Bring the block to the device, and what it becomes on further levels back."""
        if isinstance(self._target, _SpilledBuffer):
            super()._carry(piece, lane, cancelled)
            return
        assert isinstance(lane, _Lane)  # noqa: S101 - for type checkers
        shapes = piece.write_box.shape, *self._halves
        sizes = [math.prod(shape) * self._kind.itemsize for shape in shapes]  # they lie one behind the other
        stay = 2 if self._plan.keeps_halves else 1
        try:
            arrays = self._engine.uploads(piece, self._plan)
            lane.buffers.begin(self._plan)
            small = {name: lane.upload(name, array) for name, array in arrays.items()}
            source = lane.upload("input", self.input)
            target = lane.buffers.get("output", sum(sizes))
            computed = self._compute(piece, source, target, small, lane, cancelled)
            lane.follow(computed)
            if fetched := sum(sizes[stay:]):
                lane.fetch(target.ptr + sum(sizes[:stay]), self._target.view((fetched,), np.dtype(np.uint8)))
        except BaseException:
            lane.finish()
            raise
        begins = accumulate(sizes, initial=target.ptr)
        places = zip(begins, shapes[:stay], strict=False)
        self._staying = [self._on_device(begin, shape, lane, computed) for begin, shape in places]

    def _on_device(self, address: int, shape: Index3, lane: _Lane, computed: Event) -> DeviceVoxels:
        """Return voxels that lie in one piece on the device, once what was given to it is done."""
        width, download = self._kind.itemsize, partial(self._engine.download, lane)
        return DeviceVoxels(
            address, shape, (shape[1] * shape[2] * width, shape[2] * width, width), self._kind, computed, download
        )


class _SpilledBuffer(HostBuffer):
    """Ordinary memory of the host for the output of a block that the device has no room for."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes, self._memory = nbytes, np.empty(nbytes, np.uint8)

    def _bytes(self) -> Any:
        return self._memory


class _Launches(dict[str, Any]):
    """Calls that begin with a kernel, by its name."""

    def __init__(self, kernels: Kernels, launch: Callable[..., None]) -> None:
        super().__init__()
        self._kernels, self._launch = kernels, launch

    def __missing__(self, name: str) -> Any:
        self[name] = launch = partial(self._launch, self._kernels[name])
        return launch


class _Queue:
    """A stream of CUDA where a queue of OpenCL is expected; the GPU stands for the context.

    Parameters
    ----------
    context
        The GPU.
    stream
        The stream.
    """

    def __init__(self, context: Gpu, stream: Stream) -> None:
        self.context, self._stream = context, stream

    def finish(self) -> None:
        """Wait until all is done."""
        with _failures(self.context):
            self._stream.wait()


class _HostBuffer(HostBuffer):
    """Memory of the host that CUDA reaches."""

    def __init__(self, gpu: Gpu, nbytes: int, memory: Reserved) -> None:
        self.nbytes = nbytes
        with _failures(gpu):
            self._registered = None if memory is None else Registration(gpu, memory)

    def free(self) -> None:
        """Give the memory back; nothing uses it any more."""
        self._registered = None

    def _bytes(self) -> Any:
        return np.empty(0, np.uint8) if self._registered is None else self._registered.memory


class _Lane(Lane):
    """The way of one block to the device and back: a stream for transfers, and device buffers of its own."""

    def __init__(self, engine: CudaEngine) -> None:
        self._gpu = engine.gpu
        with _failures(self._gpu):
            self.stream = Stream(self._gpu)
        self.queue = _Queue(self._gpu, self.stream)
        self.buffers = Buffers(engine.allocate)
        self._transfers: list[Any] = []

    def upload(self, name: str, data: NDArray[Any], box: Box | None = None) -> Any:
        """Begin to copy an array, or a box of one, to the device; it must stay as it is until the lane is done."""
        part = data if box is None else data[box.slices]
        buffer = self.buffers.get(name, part.nbytes)
        self._transfers.append(part)
        with _failures(self._gpu):
            if part.flags.c_contiguous:
                self.stream.upload(buffer.ptr, part, pinned=self._gpu.reaches(part.ctypes.data))
                return buffer
            nbytes = part[0].nbytes
            for z, plane in enumerate(part):
                to, row = buffer.ptr + z * nbytes, plane.shape[1] * part.itemsize
                self.stream.upload_rows(to, plane.ctypes.data, plane.strides[0], row, len(plane))
        return buffer

    def uploaded(self) -> Any:
        """Return the event of the end of all uploads until now."""
        with _failures(self._gpu):
            return self.stream.mark()

    def download(self, buffer: Any, data: NDArray[Any], box: Box | None, computed: Any) -> None:
        """Copy a buffer to an array, or a box of one, after an event, and wait for it."""
        part = data if box is None else data[box.slices]
        with _failures(self._gpu):
            self.stream.follow(computed)
            if part.flags.c_contiguous:
                self.stream.download(part, buffer.ptr, pinned=self._gpu.reaches(part.ctypes.data))
            else:
                nbytes = part[0].nbytes
                for z, plane in enumerate(part):
                    source, row = buffer.ptr + z * nbytes, plane.shape[1] * part.itemsize
                    self.stream.download_rows(plane.ctypes.data, plane.strides[0], source, row, row, len(plane))
            self.stream.wait()

    def follow(self, event: Any) -> None:
        """Let what is given to the lane next wait for an event, and so who waits for the lane."""
        with _failures(self._gpu):
            self.stream.follow(event)

    def fetch(self, address: int, array: NDArray[Any]) -> None:
        """Copy what lies at an address on the device to an array, and wait for it."""
        with _failures(self._gpu):
            self.stream.download(array, address, pinned=self._gpu.reaches(array.ctypes.data))
            self.stream.wait()

    def finish(self) -> None:
        """Wait until the device is done with what the lane gave it."""
        try:
            self.queue.finish()
        finally:
            self._transfers.clear()


@contextmanager
def _failures(gpu: Gpu) -> Iterator[None]:
    """Use the GPU in this thread; its failures are raised as `MemoryError` and `DriverError`."""
    try:
        with gpu.used():
            yield
    except GpuCodecError as error:
        raise DriverError(str(error)) from error
