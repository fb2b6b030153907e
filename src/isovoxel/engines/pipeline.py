"""Pipeline of blocks through a device: host memory, transfers and kernels.

Voxels lie in host memory that the device reaches by itself, allocated once and used for block after block: pinned
pages, which a GPU copies at the full rate of its bus, or, on a CPU, memory that kernels work on where it lies::

    read ──▶ input ══upload══▶ ┌──────┐         ┌──────┐ ══download══▶ output ──▶ write
             (host)            │ lane │ kernels │ lane │               (host)
                               └──────┘         └──────┘

1. A block in flight has a `StagedBlock`: one host buffer for its input and one for its output. Where its block of level
   1 is made of it, and a part of one of level 2 of that, they lie behind its output, on the device and on the host. It
   goes in pieces where the device has no room for the whole.
2. To be scaled it takes a `Lane`: a queue for transfers and, on a GPU, buffers for input and output on the device.
   A GPU has two, so that one block is uploaded or downloaded while the kernels of another run.
3. Kernels run one block after another on cle's own queue; a block's first kernel waits for its upload, its download
   for its last kernel.

All buffers are as large as the plan's largest block needs, so a plan allocates nothing after its first blocks.
"""

from __future__ import annotations

import contextlib
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.blosc import ContainerLayout
from isovoxel.codecs.cuda import Gpu, GpuCodecError, new_memory, on_host
from isovoxel.codecs.decoder import GpuDecoder
from isovoxel.codecs.gpu import GpuEncoder
from isovoxel.codecs.streams import ChunkCoding
from isovoxel.engines.base import Engine, Scaled
from isovoxel.engines.buffers import (
    Buffers,
    Fit,
    HostBuffer,
    HostBufferPool,
    Lane,
    Lanes,
    Register,
    Reserved,
)
from isovoxel.engines.devices import Device, let_cuda_go, opencl_device
from isovoxel.engines.opencl import (
    C_TYPES,
    TURN,
    DriverError,
    build_kernels,
    driver_reason,
    is_lost,
)
from isovoxel.engines.registry import check_process
from isovoxel.engines.staged_block import StagedBlock
from isovoxel.errors import DeviceError, DeviceLostError
from isovoxel.geometry.grid import Float3, Index3, ceil_div, round_up
from isovoxel.planning.chunking import CHECKSUM_BYTES
from isovoxel.planning.codecs import DecodedBatches, EncodedBatches
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.model import LANES, Block, DeviceLimits
from isovoxel.planning.plan import Plan


class _Share(NamedTuple):
    """How a kind of device shares the work of halving a block."""

    group: int
    """Work items per group."""
    rows: int
    """Rows that a work item makes."""
    tile: int
    """Voxels of a row that it makes."""


def _share_of(kind: str) -> _Share:
    return _Share(1, 16, 4096) if kind == "cpu" else _Share(128, 1, 1)


def new_decoder(pci: str, coding: ChunkCoding, limits: DeviceLimits) -> GpuDecoder:
    """Return what decodes chunks on the GPU at a place, in what its limits hold for that; raises as `GpuDecoder`."""
    batches = DecodedBatches(coding.chunk_bytes, coding.codec)
    lanes = batches.lanes_within(limits)
    return GpuDecoder(pci, coding, batch=batches.chunks, lanes=lanes, hosts=lanes * batches.hosts)


class StagedEngine(ABC):
    """What both engines share: host buffers, lanes, and the order of things.

    Parameters
    ----------
    device
        Where to compute.
    queue
        cle's queue on it, for kernels.
    """

    name: str
    """The engine's name in plans and options."""

    def __init__(self, device: Device, queue: Any) -> None:
        self.device = device
        self._queue = queue
        self.context = queue.context
        """The OpenCL context of what it allocates."""
        self.in_place = device.kind == "cpu"
        self._buffers = Buffers(self.allocate)
        self.lanes = Lanes([self.new_lane() for _ in range(self.most_lanes)])
        self.fit = Fit()
        self.hosts = HostBufferPool(self.reserve, self.host_buffer, self.staging)
        self._built_for: Plan | None = None
        self._encoder: GpuEncoder | None = None
        self._decoder: GpuDecoder | None = None
        self._cuda: Gpu | None = None
        """Kept for codecs to come, once there was one: CUDA takes half a second to come up again."""

    # ---- what an engine adds ---------------------------------------------------------------------------------

    @abstractmethod
    def uploads(self, block: Block, plan: Plan) -> dict[str, NDArray[Any]]:
        """Return the small arrays, by name, that a block's kernels need beside its voxels."""

    @abstractmethod
    def enqueue(self, source: Any, target: Any, small: dict[str, Any], block: Block, plan: Plan) -> None:
        """Give a block's kernels to the queue. The caller has the turn.

        Parameters
        ----------
        source, target
            Device buffers of the read box' voxels and of the write box', in the plan's dtype.
        small
            The device buffers of `uploads`.
        block, plan
            What to compute.
        """

    @abstractmethod
    def build(self, plan: Plan) -> None:
        """Build the kernels of a plan that are not built yet. The caller has the turn."""

    # ---- what a job calls ------------------------------------------------------------------------------------

    def prepare(self, plan: Plan) -> None:
        """Build kernels, and allocate host memory for a block in flight; see `isovoxel.engines.base.Engine`."""
        import pyopencl as cl

        check_process()
        with TURN:
            self.build(plan)
            for level in plan.halved_along:
                self._halving(plan.source.dtype, level.factor)
        self._built_for = plan
        self.hosts.registers = self._registers(plan)
        try:
            self.hosts.give(self.hosts.take(plan))
        except (cl.Error, DriverError, MemoryError) as error:
            if is_lost(error):
                raise self.lost(driver_reason(error)) from error
            self.release()
            raise DeviceError(
                f"{self.device.name} does not give the {human_bytes(sum(plan.staging))} of host memory for a block "
                f"in flight: {driver_reason(error)}; choose less --memory"
            ) from error
        self.hosts.keep(plan.in_flight)
        let_cuda_go()

    @contextmanager
    def staged(self, block: Block, plan: Plan) -> Iterator[StagedBlock]:
        """Lend a block its host memory; see `isovoxel.engines.base.Engine`."""
        hosts = self.hosts.take(plan)
        try:
            yield StagedBlock(self, block, plan, hosts)
        finally:
            self.hosts.give(hosts)

    def scale(self, data: NDArray[Any], block: Block, plan: Plan, cancelled: threading.Event | None = None) -> Scaled:
        """Return the voxels of ``block.write_box`` as a new array; see `isovoxel.engines.base.Engine`."""
        if plan is not self._built_for:
            with TURN:
                self.build(plan)
            self._built_for = plan
        with self.staged(block, plan) as stage:
            stage.input[...] = data
            scaled = stage.scale(cancelled)
            return scaled._replace(data=np.array(on_host(scaled.data)))

    def halve(self, voxels: Any, dtype: str, factor: Float3, shapes: tuple[Index3, Index3], first: int = 0) -> None:
        """Give the kernel to the queue that makes the means of neighbours. The caller has the turn.

        Parameters
        ----------
        voxels
            Device buffer of voxels, behind which their means are put.
        dtype, factor
            Of the voxels, and 0.5 for each axis that is halved, else 1.
        shapes
            Of the voxels and of the means, which may leave out the last voxel of an odd axis, or have one that is it.
        first
            How many voxels of the buffer lie before them.
        """
        share, (z, y, x) = _share_of(self.device.kind), shapes[1]
        items = round_up(ceil_div(x, share.tile), share.group), ceil_div(y, share.rows), z
        numbers = map(np.uint64, (first, *shapes[0], *shapes[1]))
        self._halving(dtype, factor)["halve"](self._queue, items, (share.group, 1, 1), voxels, *numbers)

    @lru_cache(maxsize=16)  # noqa: B019 - engines live as long as the process
    def _halving(self, dtype: str, factor: Float3) -> dict[str, Any]:
        """Build the kernel that makes means, for a type of voxels and the axes that are halved."""
        share = _share_of(self.device.kind)
        halves = {f"H{axis}": int(f == 0.5) for axis, f in zip("ZYX", factor, strict=True)}
        bits = 8 * np.dtype(dtype).itemsize
        macros = {"T": C_TYPES[dtype], "PAIR": C_TYPES[f"uint{2 * bits}"], "BITS": bits}
        macros |= {"ROWS": share.rows, "TILE": share.tile}
        return self.build_kernels("halve.cl", macros | halves)

    def encoder(self, plan: Plan) -> GpuEncoder | None:
        """Return what encodes a plan's chunks on the device; see `isovoxel.engines.base.Engine`."""
        if not plan.device.encoding:
            return None
        layout = ContainerLayout(plan.chunk_bytes, plan.source.itemsize, plan.storage.codec)
        gap = CHECKSUM_BYTES if plan.storage.checksum else 0
        if self._encoder is None or (self._encoder.layout, self._encoder.chunk, self._encoder.gap) != (
            layout,
            plan.storage.chunk,
            gap,
        ):
            self._close_encoder()
            batches = EncodedBatches(layout.chunk_bytes, layout.codec)
            lanes = batches.lanes_within(plan.device)
            self._encoder = GpuEncoder(
                self.device.pci,
                layout,
                plan.storage.chunk,
                batch=batches.chunks,
                lanes=lanes,
                hosts=lanes * batches.hosts,
                gap=gap,
            )
            self._cuda = self._encoder.gpu
            self._encoder.make_ahead(min(lanes, plan.n_blocks))
        return self._encoder

    def decoder(self, plan: Plan, coding: ChunkCoding) -> GpuDecoder | None:
        """Return what decodes the chunks of a plan's input on the device; see `isovoxel.engines.base.Engine`."""
        if not plan.device.decoding or plan.source.encoded is None:
            return None
        if self._decoder is None or self._decoder.coding != coding:
            self._close_decoder()
            self._decoder = new_decoder(self.device.pci, coding, plan.device)
            self._cuda = self._decoder.gpu
        return self._decoder

    def _registers(self, plan: Plan) -> tuple[Register | None, Register | None]:
        """Return what lets a plan's codecs reach the memory of a block's input, and of its output."""
        encoder = gpu = None
        with suppress(ImportError, MemoryError, GpuCodecError):  # a later call for the encoder or decoder raises it
            encoder = self.encoder(plan)
        with suppress(ImportError, MemoryError, GpuCodecError):
            gpu = Gpu(self.device.pci) if plan.device.decoding else None
        return None if gpu is None else gpu.register, None if encoder is None else encoder.gpu.register

    def close_codecs(self) -> None:
        """Free what encodes and decodes on the device, which nobody uses any more."""
        self._close_encoder()
        self._close_decoder()

    def _close_encoder(self) -> None:
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None

    def _close_decoder(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def release(self, *, keep_hosts: bool = False) -> None:
        """Free all memory that is not in use, on host and device; see `isovoxel.engines.base.Engine`."""
        if not keep_hosts:
            self.hosts.forget()
            self.close_codecs()
        with TURN:
            self._buffers.clear()
            self.lanes.clear()
        self.fit.forget()

    def take_over(self, other: Engine) -> None:
        """Take over the host memory that another engine has kept, if both have one context; else free it.

        The memory of its codecs is freed: this engine has its own.
        """
        if not isinstance(other, StagedEngine) or other is self:
            return
        other.close_codecs()
        if self.context == other.context:
            self.hosts, other.hosts = other.hosts, HostBufferPool(other.reserve, other.host_buffer, other.staging)
        else:
            other.hosts.forget()

    # ---- what OpenCL does, and CUDA in its place (`isovoxel.engines.cuda`) --------------------------------------

    def allocate(self, nbytes: int) -> Any:
        """Return a new buffer on the device."""
        import pyopencl as cl

        return cl.Buffer(self.context, cl.mem_flags.READ_WRITE, nbytes)

    def reserve(self, nbytes: int) -> Reserved:
        """Return memory for a host buffer where NVIDIA's driver reaches any, which it takes much longer to get."""
        return new_memory(nbytes) if nbytes and self.device.pci else None

    def host_buffer(self, nbytes: int, register: Register | None, memory: Reserved) -> HostBuffer:
        """Return memory of the host that the device reaches."""
        return HostBuffer(self._queue, nbytes, register, memory)

    @property
    def most_lanes(self) -> int:
        """How many lanes there are."""
        return LANES[self.device.kind]

    def staging(self, plan: Plan) -> tuple[int, int]:
        """Return the bytes of the host's memory for the input and the output of a block in flight."""
        return plan.staging

    def new_lane(self) -> Lane:
        """Return a lane, whose buffers are not there yet."""
        return Lane(self.context, opencl_device(self.device))

    def build_kernels(self, file: str, macros: dict[str, Any]) -> dict[str, Any]:
        """Return the kernels of a file by name, built with macros. The caller has the turn."""
        return build_kernels(self._queue, file, macros)

    def copy(self, target: Any, source: Any, nbytes: int) -> None:
        """Give a copy of a buffer to the queue. The caller has the turn."""
        import pyopencl as cl

        cl.enqueue_copy(self._queue, target, source, byte_count=nbytes)

    def begin_after(self, event: Any) -> None:
        """Let what is given to the queue next wait for an event of a lane. The caller has the turn."""
        import pyopencl as cl

        cl.enqueue_barrier(self._queue, wait_for=[event])

    def computed(self) -> Any:
        """Return the event of the end of what was given to the queue. The caller has the turn."""
        import pyopencl as cl

        event = cl.enqueue_marker(self._queue)
        self._queue.flush()
        return event

    def answers(self) -> bool:
        """Return whether the device still does what this process asks of it."""
        import pyopencl as cl

        try:
            with TURN:
                few = cl.Buffer(self._queue.context, cl.mem_flags.READ_WRITE, 64)
                cl.enqueue_fill_buffer(self._queue, few, np.zeros(1, np.uint8), 0, 64)
                self._queue.finish()
        except cl.MemoryError:  # it does answer: that there is no room, not even for this
            return True
        except cl.Error:
            return False
        return True

    # ---- what a stage calls ----------------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[Lane]:
        """Wait until no block is on the device, free what is kept there, and lend a lane while the others wait.

        Raises
        ------
        DeviceLostError
            If the device no longer answers.
        """
        with self.lanes.all() as lanes:
            self._let_go(lanes)
            yield lanes[0]

    def lost(self, reason: str) -> DeviceLostError:
        """Return the error that says that the device does not answer."""
        return DeviceLostError(f"{self.device.name} no longer answers this process: {reason}; only a new one can go on")

    def enqueue_after(
        self,
        uploaded: Any,
        source: Any,
        target: Any,
        small: dict[str, Any],
        block: Block,
        plan: Plan,
        halves: Sequence[Index3] = (),
    ) -> Any:
        """Give a block's kernels to the queue, after an event; return that of their end. The caller has the turn.

        What it becomes on further levels, whose shapes are given, is made behind its voxels.
        """
        self._buffers.begin(plan)
        self.begin_after(uploaded)
        self.enqueue(source, target, small, block, plan)
        first = 0
        for level, shapes in zip(plan.further, pairwise((block.write_box.shape, *halves)), strict=False):
            self.halve(target, plan.source.dtype, level.factor, shapes, first)
            first += math.prod(shapes[0])
        return self.computed()

    def _let_go(self, lanes: Sequence[Lane]) -> None:
        """Free what is kept on the device. The caller holds all lanes."""
        import pyopencl as cl

        self.lanes.clear()
        with TURN:
            self._buffers.clear()
        for queue in (*(lane.queue for lane in lanes), self._queue):
            with contextlib.suppress(cl.Error, DriverError):  # what else is wrong shows below
                queue.finish()
        if not self.answers():
            raise self.lost("it fails to fill 64 bytes after it ran out of memory")
