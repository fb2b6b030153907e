"""Where does a block wait for the device, and its result for the disk?

In host memory that the device reaches by itself, allocated once and used for block after block: pinned pages, which a
GPU copies at the full rate of its bus, or, on a CPU, memory that kernels work on where it lies::

    read ──▶ input ══upload══▶ ┌──────┐         ┌──────┐ ══download══▶ output ──▶ write
             (host)            │ lane │ kernels │ lane │               (host)
                               └──────┘         └──────┘

1. A block in flight has a `Stage`: one host buffer for its input and one for its output.
2. To be scaled it takes a `Lane`: a queue for transfers and, on a GPU, buffers for input and output on the device.
   A GPU has two, so that one block is uploaded or downloaded while the kernels of another run.
3. Kernels run one block after another on cle's own queue; a block's first kernel waits for its upload, its download
   for its last kernel.

All buffers are as large as the plan's largest block needs, so a plan allocates nothing after its first blocks.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.base import Cancelled, Scaled
from isovoxel.engines.devices import Device, opencl_device
from isovoxel.errors import DeviceError
from isovoxel.planning.cost import human_bytes
from isovoxel.planning.limits import LANES
from isovoxel.planning.plan import Block, Plan

T = TypeVar("T")

POLL_SECONDS = 1e-4
"""How long a block sleeps before it looks again whether the device is done with it."""

# cle has one device, one queue and shared kernel objects per process: one thread at a time may call it.
TURN = threading.Lock()


class HostBuffer:
    """Host memory that the device reaches: a mapped buffer of its own.

    Parameters
    ----------
    queue
        A queue of the device.
    nbytes
        How large.
    """

    def __init__(self, queue: Any, nbytes: int) -> None:
        import pyopencl as cl

        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.ALLOC_HOST_PTR
        self.buffer = cl.Buffer(queue.context, flags, max(1, nbytes))
        self._queue = queue
        self._map()
        # The first touch of memory costs more than a kernel: here, and not in the middle of a job.
        self.bytes[...] = 0

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Leave the memory to the device's kernels for a while; it comes back when the queue has done its work."""
        self.bytes.base.release(self._queue)
        try:
            yield
        finally:
            self._map()

    def _map(self) -> None:
        import pyopencl as cl

        # pyopencl's types know neither flags that are joined nor NumPy's scalar types.
        flags: Any = cl.map_flags.READ | cl.map_flags.WRITE
        dtype: Any = np.uint8
        size = (self.buffer.size,)
        self.bytes, _ = cl.enqueue_map_buffer(self._queue, self.buffer, flags, 0, size, dtype, is_blocking=True)

    def view(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the first bytes as an array."""
        nbytes = int(np.prod(shape)) * dtype.itemsize
        array: NDArray[Any] = self.bytes[:nbytes].view(dtype).reshape(tuple(shape))
        return array


HostPair = tuple[HostBuffer, HostBuffer]
"""Where a block's input lies, and where its output does."""


class Buffers:
    """Device buffers by name, grown when need be."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._held: dict[str, Any] = {}
        self._plan: Plan | None = None

    def begin(self, plan: Plan) -> None:
        """Let go of what another plan needed: what was most there and what is most here may be more than projected."""
        if plan is not self._plan and plan != self._plan:
            self._held.clear()
        self._plan = plan

    def get(self, name: str, nbytes: int) -> Any:
        """Return the buffer of that name, with room for so many bytes."""
        import pyopencl as cl

        if name not in self._held or self._held[name].size < nbytes:
            self._held.pop(name, None)  # let go of the old one before the new one is there
            self._held[name] = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, max(1, nbytes))
        return self._held[name]

    def clear(self) -> None:
        """Let go of all."""
        self._held.clear()
        self._plan = None


class Lane:
    """The way of one block to the device and back: a queue for transfers, and device buffers of its own."""

    def __init__(self, context: Any, handle: Any) -> None:
        import pyopencl as cl

        self.queue = cl.CommandQueue(context, handle)
        self.buffers = Buffers(context)

    def upload(self, name: str, data: NDArray[Any]) -> Any:
        """Begin to copy an array, which must stay as it is until the lane's queue is done, to the device."""
        import pyopencl as cl

        buffer = self.buffers.get(name, data.nbytes)
        cl.enqueue_copy(self.queue, buffer, data, is_blocking=False)
        return buffer

    def wait_for(self, event: Any) -> None:
        """Wait for an event of the lane's queue, asleep: drivers of GPUs wait busily, and need a core for it."""
        self.queue.flush()
        while event.command_execution_status > 0:  # neither complete nor failed
            time.sleep(POLL_SECONDS)
        event.wait()  # raises what made it fail


class Stage:
    """One block on its way: where its input is read to, and where its result lies."""

    def __init__(self, engine: StagedEngine, block: Block, plan: Plan, hosts: HostPair) -> None:
        self._engine, self._block, self._plan = engine, block, plan
        self._source, self._target = hosts
        self._waited = 0.0

    @property
    def input(self) -> NDArray[Any]:
        """Where the voxels of ``block.read_box`` belong, until the block is scaled."""
        return self._source.view(self._block.read_box.shape, self._kind)

    def scale(self, cancelled: threading.Event | None = None) -> Scaled:
        """Return the voxels of ``block.write_box``; see `isovoxel.engines.base.Stage`."""
        arrays = self._engine.uploads(self._block, self._plan)
        with self._waiting_for(self._engine.lane(), cancelled) as lane:
            lane.buffers.begin(self._plan)
            try:
                small = {name: lane.upload(name, array) for name, array in arrays.items()}
                if self._engine.in_place:
                    with self._source.lent(), self._target.lent():
                        self._compute(self._source.buffer, self._target.buffer, small, lane, cancelled).wait()
                else:
                    self._copy_and_compute(small, lane, cancelled)
            finally:
                # Whatever went wrong: nobody gets memory that the device still works on.
                lane.queue.finish()
        return Scaled(self._target.view(self._block.write_box.shape, self._kind), self._waited)

    @property
    def _kind(self) -> np.dtype[Any]:
        return np.dtype(self._plan.source.dtype)

    def _copy_and_compute(self, small: dict[str, Any], lane: Lane, cancelled: threading.Event | None) -> None:
        import pyopencl as cl

        read, written = (box.size * self._kind.itemsize for box in (self._block.read_box, self._block.write_box))
        source = lane.upload("input", self._source.bytes[:read])
        target = lane.buffers.get("output", written)
        computed = self._compute(source, target, small, lane, cancelled)
        lane.wait_for(
            cl.enqueue_copy(lane.queue, self._target.bytes[:written], target, is_blocking=False, wait_for=[computed])
        )

    def _compute(
        self, source: Any, target: Any, small: dict[str, Any], lane: Lane, cancelled: threading.Event | None
    ) -> Any:
        """Give the kernels to cle's queue, behind what the lane uploads; return the event of their end."""
        import pyopencl as cl

        uploaded = cl.enqueue_marker(lane.queue)
        lane.queue.flush()
        with self._waiting_for(TURN, cancelled):
            return self._engine.enqueue_after(uploaded, source, target, small, self._block, self._plan)

    @contextmanager
    def _waiting_for(self, resource: AbstractContextManager[T], cancelled: threading.Event | None) -> Iterator[T]:
        """Enter a lock or the like, and count the seconds until it is free; a cancelled block gives up here."""
        began = time.perf_counter()
        with resource as it:
            self._waited += time.perf_counter() - began
            if cancelled is not None and cancelled.is_set():
                raise Cancelled
            yield it


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
        self._handle = opencl_device(device)
        self.in_place = device.kind == "cpu"
        self._buffers = Buffers(queue.context)
        self._lanes = deque(Lane(queue.context, self._handle) for _ in range(LANES[device.kind]))
        self._free_lane = threading.Semaphore(len(self._lanes))
        self._hosts: list[HostPair] = []
        self._hosts_for: tuple[int, int] = (0, 0)
        self._built_for: Plan | None = None
        self._lock = threading.Lock()

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
        """Build kernels, and allocate host memory for all blocks in flight; see `isovoxel.engines.base.Engine`."""
        import pyopencl as cl

        with TURN:
            self.build(plan)
        self._built_for = plan
        try:
            taken = [self._take_hosts(plan) for _ in range(plan.in_flight)]
        except (cl.Error, MemoryError) as error:
            self.release()
            needed = human_bytes(plan.in_flight * sum(plan.staging))
            raise DeviceError(
                f"{self.device.name} does not give the {needed} of host memory for {plan.in_flight} blocks in flight: "
                f"{str(error).strip() or type(error).__name__}; choose fewer --threads or less --memory"
            ) from error
        for hosts in taken:
            self._give_hosts(plan, hosts)

    @contextmanager
    def staged(self, block: Block, plan: Plan) -> Iterator[Stage]:
        """Lend a block its host memory; see `isovoxel.engines.base.Engine`."""
        hosts = self._take_hosts(plan)
        try:
            yield Stage(self, block, plan, hosts)
        finally:
            self._give_hosts(plan, hosts)

    def scale(self, data: NDArray[Any], block: Block, plan: Plan, cancelled: threading.Event | None = None) -> Scaled:
        """Return the voxels of ``block.write_box`` as a new array; see `isovoxel.engines.base.Engine`."""
        if plan is not self._built_for:
            with TURN:
                self.build(plan)
            self._built_for = plan
        with self.staged(block, plan) as stage:
            stage.input[...] = data
            scaled = stage.scale(cancelled)
            return Scaled(scaled.data.copy(), scaled.waited)

    def release(self) -> None:
        """Let go of all memory that is not in use, on host and device."""
        with TURN, self._lock:
            self._hosts.clear()
            self._buffers.clear()
            for lane in self._lanes:
                lane.buffers.clear()

    # ---- what a stage calls ----------------------------------------------------------------------------------

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """Wait for a lane that is free, and lend it."""
        self._free_lane.acquire()
        with self._lock:
            lane = self._lanes.popleft()
        try:
            yield lane
        finally:
            with self._lock:
                self._lanes.append(lane)
            self._free_lane.release()

    def enqueue_after(
        self, uploaded: Any, source: Any, target: Any, small: dict[str, Any], block: Block, plan: Plan
    ) -> Any:
        """Give a block's kernels to the queue, after an event; return that of their end. The caller has the turn."""
        import pyopencl as cl

        self._buffers.begin(plan)
        cl.enqueue_barrier(self._queue, wait_for=[uploaded])
        self.enqueue(source, target, small, block, plan)
        computed = cl.enqueue_marker(self._queue)
        self._queue.flush()
        return computed

    def _take_hosts(self, plan: Plan) -> HostPair:
        with self._lock:
            if self._hosts_for != plan.staging:
                self._hosts.clear()
                self._hosts_for = plan.staging
            if self._hosts:
                return self._hosts.pop()
        read, written = plan.staging
        return HostBuffer(self._queue, read), HostBuffer(self._queue, written)

    def _give_hosts(self, plan: Plan, hosts: HostPair) -> None:
        with self._lock:
            if self._hosts_for == plan.staging:
                self._hosts.append(hosts)
