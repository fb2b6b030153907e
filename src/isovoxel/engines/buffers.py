"""Memory of a block's voxels: host memory that the device reaches, and buffers on the device.

Whatever is allocated is kept for the blocks to come: allocating and first touching memory costs more than a kernel.
Getting memory that a GPU reaches takes longer than a small level. So a level may use the larger host buffers of the
level before, but only as far as the job holds no more memory for it than it was projected to hold. Each block in flight
gets its own when it first needs it, while others are read.

`Fit` remembers how small the pieces of a block must be where the device has less than was projected.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.cuda import Registration
from isovoxel.engines.opencl import is_out_of_memory
from isovoxel.geometry.grid import Box
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan

Register = Callable[[NDArray[Any]], Registration | None]
"""Lets CUDA reach memory of the host, for as long as what is returned is there; None where it does not."""

Reserved = NDArray[np.uint8] | None
"""Memory of the host for a buffer, None where the driver gets it."""

POLL_SECONDS = (1e-4, 1e-3)
"""How long a block sleeps before it looks again whether the device is done with it: at first, and at most.

Each look takes the interpreter's lock, for which the threads that encode wait.
"""

POLLS = 1000
"""After so many looks the queue itself is asked whether it still lives."""


class HostBuffer:
    """Host memory that the device reaches: a mapped buffer of its own.

    Parameters
    ----------
    queue
        A queue of the device.
    nbytes
        How large.
    register
        Lets what encodes or decodes reach it as well, for as long as it is there.
    memory
        The memory, where the device's driver shall not get it itself.
    """

    def __init__(
        self, queue: Any, nbytes: int, register: Register | None = None, memory: NDArray[np.uint8] | None = None
    ) -> None:
        import pyopencl as cl

        if memory is None:
            flags = cl.mem_flags.READ_WRITE | cl.mem_flags.ALLOC_HOST_PTR
            self.buffer: Any = cl.Buffer(queue.context, flags, max(1, nbytes))
        else:
            flags = cl.mem_flags.READ_WRITE | cl.mem_flags.USE_HOST_PTR
            self.buffer = cl.Buffer(queue.context, flags, hostbuf=memory)
        self.nbytes = nbytes
        self._queue = queue
        self._mapped: Any = None
        memory = self._bytes()
        self._registration = None if register is None else register(memory)

    def free(self) -> None:
        """Give the memory back; nothing uses it any more."""
        self._registration = None
        with suppress(Exception):  # where the driver has ended before
            if self._mapped is not None:
                self._mapped.base.release(self._queue).wait()  # before the memory goes that the driver was given
        self._mapped = self.buffer = None

    def __del__(self) -> None:
        with suppress(Exception):
            self.free()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Leave the memory to the device's kernels for a while; it comes back when the queue has done its work."""
        if self._mapped is not None:
            self._mapped.base.release(self._queue)
            self._mapped = None
        try:
            yield
        finally:
            self._bytes()

    def view(self, shape: Sequence[int], dtype: np.dtype[Any], behind: int = 0) -> NDArray[Any]:
        """Return the bytes behind so many voxels as an array."""
        start, nbytes = behind * dtype.itemsize, int(np.prod(shape)) * dtype.itemsize
        array: NDArray[Any] = self._bytes()[start : start + nbytes].view(dtype).reshape(tuple(shape))
        return array

    def _bytes(self) -> Any:
        """Return the memory, mapped: anew where it is lent, or where mapping it failed the last time."""
        import pyopencl as cl

        if self._mapped is None:
            # pyopencl's types know neither flags that are joined nor NumPy's scalar types.
            flags: Any = cl.map_flags.READ | cl.map_flags.WRITE
            dtype: Any = np.uint8
            size = (self.buffer.size,)
            self._mapped, _ = cl.enqueue_map_buffer(self._queue, self.buffer, flags, 0, size, dtype, is_blocking=True)
        return self._mapped


class Buffers:
    """Device buffers by name, grown when need be.

    Parameters
    ----------
    allocate
        Returns a new buffer of so many bytes, with a `size`.
    """

    def __init__(self, allocate: Callable[[int], Any]) -> None:
        self._allocate = allocate
        self._held: dict[str, Any] = {}
        self._plan: Plan | None = None

    def begin(self, plan: Plan) -> None:
        """Free another plan's buffers: two plans' maxima together can exceed the projection."""
        if plan is not self._plan and plan != self._plan:
            self._held.clear()
        self._plan = plan

    def get(self, name: str, nbytes: int) -> Any:
        """Return the buffer of that name, with room for so many bytes."""
        buffer = self._held.get(name)
        if buffer is None or buffer.size < nbytes:
            self._held.pop(name, None)
            buffer = None  # the old one is freed before the new one is there
            self._held[name] = buffer = self._allocate(max(1, nbytes))
        return buffer

    def clear(self) -> None:
        """Free all of them."""
        self._held.clear()
        self._plan = None


class Lane:
    """The way of one block to the device and back: a queue for transfers, and device buffers of its own."""

    def __init__(self, context: Any, handle: Any) -> None:
        import pyopencl as cl

        self.queue: Any = cl.CommandQueue(context, handle)
        self.buffers = Buffers(lambda nbytes: cl.Buffer(context, cl.mem_flags.READ_WRITE, nbytes))
        self._transfers: list[Any] = []

    def upload(self, name: str, data: NDArray[Any], box: Box | None = None) -> Any:
        """Begin to copy an array, or a box of one, to the device; it must stay as it is until the lane is done."""
        import pyopencl as cl

        part, how = (data, {}) if box is None else _part(data, box)
        buffer = self.buffers.get(name, part.nbytes)
        source = data if how else part
        # pyopencl waits for a transfer whose event is dropped, and holds the interpreter's lock.
        self._transfers.append(cl.enqueue_copy(self.queue, buffer, source, is_blocking=False, **how))
        return buffer

    def uploaded(self) -> Any:
        """Return the event of the end of all uploads until now."""
        import pyopencl as cl

        event = cl.enqueue_marker(self.queue)
        self.queue.flush()
        return event

    def download(self, buffer: Any, data: NDArray[Any], box: Box | None, computed: Any) -> None:
        """Copy a buffer to an array, or a box of one, after an event, and wait for it."""
        import pyopencl as cl

        part, how = (data, {}) if box is None else _part(data, box)
        target = data if how else part
        self.wait_for(cl.enqueue_copy(self.queue, target, buffer, is_blocking=False, wait_for=[computed], **how))

    def wait_for(self, event: Any) -> None:
        """Wait for an event of the lane's queue, asleep: drivers of GPUs wait busily, and need a core for it."""
        self.queue.flush()
        for look in itertools.count():
            if event.command_execution_status <= 0:  # complete or failed
                break
            time.sleep(min(POLL_SECONDS[0] * (1 + look / 4), POLL_SECONDS[1]))
            if look % POLLS == POLLS - 1:
                self.queue.flush()  # events of a queue that died may stay as they are; this raises
        event.wait()  # raises what made it fail

    def finish(self) -> None:
        """Wait until the device is done with what the lane gave it."""
        try:
            self.queue.finish()
        finally:
            self._transfers.clear()


class Lanes:
    """A device's lanes, lent one by one, or all to a caller that has to be alone.

    Callers queue without holding a lane, so that lanes come back and nothing overtakes a caller that waits for all.

    Parameters
    ----------
    lanes
        The lanes.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = tuple(lanes)
        self._idle = deque(lanes)
        self._free = threading.Semaphore(len(lanes))
        self._gate = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[Lane]:
        """Wait for a lane that is free, and lend it."""
        with self._gate:
            self._free.acquire()
        lane = self._idle.pop()  # one that has memory already
        try:
            yield lane
        finally:
            self._idle.append(lane)
            self._free.release()

    @contextmanager
    def all(self) -> Iterator[tuple[Lane, ...]]:
        """Wait until all lanes are free, and lend them."""
        with self._gate, ExitStack() as held:
            for _ in self._lanes:
                held.enter_context(self._free)
            yield self._lanes

    def clear(self) -> None:
        """Free the device memory of all lanes, but for what is in use at this moment."""
        for lane in self._lanes:
            lane.buffers.clear()


def _part(data: NDArray[Any], box: Box) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return a box of a contiguous array, and how OpenCL finds it in the array where it is not contiguous itself."""
    part = data[box.slices]
    if part.flags.c_contiguous:
        return part, {}
    (z, y, x), (nz, ny, nx), voxel = box.start, box.shape, data.itemsize
    row = data.shape[2] * voxel
    return part, {
        "buffer_origin": (0, 0, 0),
        "host_origin": (x * voxel, y, z),
        "region": (nx * voxel, ny, nz),
        "host_pitches": (row, data.shape[1] * row),
    }


HostPair = tuple[HostBuffer, HostBuffer]
"""Memory for a block's input and for its output."""


class HostBufferPool:
    """Pairs of host buffers of one size; safe to use from many threads.

    Where the host has no memory for another one, a thread waits for one that comes back.

    Parameters
    ----------
    reserve
        Gets memory of so many bytes, in several threads at the same time; None where `make` does it.
    make
        Makes a buffer of so many bytes, of memory that was reserved, and lets a codec reach it.
    sizes
        Returns how many bytes a pair has for a plan.
    """

    def __init__(
        self,
        reserve: Callable[[int], Reserved],
        make: Callable[[int, Register | None, Reserved], HostBuffer],
        sizes: Callable[[Plan], tuple[int, int]],
    ) -> None:
        self._reserve, self._make, self._sizes_for = reserve, make, sizes
        self._free: list[HostPair] = []
        self._sizes = (0, 0)
        self._projected = 0  # the largest projection of the plans that these served
        self._used = 0  # by threads that have a pair, or are about to get one
        self._most: int | None = None  # how many the host had memory for, once it had none for another
        self._changed = threading.Condition()
        self._making = threading.Lock()  # or two threads could get half a pair each
        self.registers: tuple[Register | None, Register | None] = (None, None)
        """Let what decodes reach the input's memory of new pairs, and what encodes the output's, where a GPU does."""

    def take(self, plan: Plan) -> HostPair:
        """Return a pair with room for the largest block of a plan; those of another size are freed.

        Raises
        ------
        pyopencl.Error, MemoryError
            If the host has no memory for one, and none is in use.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_ready(plan))
                self._projected = max(self._projected, plan.projected_host)
                self._used += 1
                if self._free:
                    return self._free.pop()
                (read, written), (decoded, encoded) = self._sizes, self.registers
                alone = self._used == 1
            try:
                inputs, outputs = self._reserve(read), self._reserve(written)
                with self._making:
                    alone = self._used == 1 and not self._free  # now: what others give back later may be freed
                    return self._make(read, decoded, inputs), self._make(written, encoded, outputs)
            except Exception as error:
                with self._changed:
                    self._used -= 1
                    self._changed.notify_all()
                    if alone or not is_out_of_memory(error):
                        raise
                    self._most = max(1, self._used - 1)  # the driver needs some itself

    def give(self, hosts: HostPair) -> None:
        """Take a pair back."""
        with self._changed:
            fits = self._most is None or self._used <= self._most
            if fits and self._sizes == (hosts[0].nbytes, hosts[1].nbytes):
                self._free.append(hosts)
                self._used -= 1
                self._changed.notify()
                return
        for host in hosts:
            host.free()  # before another thread finds that there is no memory, and no pair that has any
        with self._changed:
            self._used -= 1
            self._changed.notify()

    def keep(self, number: int) -> None:
        """Free all pairs that are not in use but so many."""
        with self._changed:
            del self._free[number:]

    def forget(self) -> None:
        """Free the pairs that are not in use, and forget how large they were, and how many there could be."""
        with self._changed:
            self._free.clear()
            self._sizes = (0, 0)
            self._projected = 0
            self._most = None
            self._changed.notify_all()

    def _is_ready(self, plan: Plan) -> bool:
        """Return whether there may be one more pair, of a plan's sizes from now on; the caller has the lock."""
        if not self._serve(plan):
            self._free.clear()
            self._sizes = self._sizes_for(plan)
            self._most = self._most_of(plan)
        return self._most is None or self._used < self._most

    def _most_of(self, plan: Plan) -> int | None:
        """Return how many pairs there may be where one takes more than a plan projects, else None.

        Its blocks were to stay on the device, which CUDA does not serve here.
        """
        projected = sum(plan.staging_on_host)
        return None if sum(self._sizes) <= projected else max(1, plan.in_flight * projected // sum(self._sizes))

    def _serve(self, plan: Plan) -> bool:
        """Return whether the pairs are what a plan needs, or more within what is projected; the caller has the lock."""
        sizes = self._sizes_for(plan)
        if self._sizes == sizes:
            return True
        more = sum(self._sizes) - sum(sizes)
        enough = all(there >= needed for there, needed in zip(self._sizes, sizes, strict=True))
        return enough and plan.projected_host + plan.in_flight * more <= self._projected


# ---- how small a piece must be to fit ------------------------------------------------------------------------------


SMALLEST = 2**22
"""Bytes on the device that halving goes down to: about 64³ voxels. Drivers give memory in pages of 2 MiB, so that
smaller pieces hardly take less."""

OFTEN = 3
"""So many pieces may fit only while they are alone on the device before those to come are halved. Two are one event
for a GPU's two lanes."""


def halves(block: Block, plan: Plan) -> tuple[Block, ...]:
    """Return both halves of a block along the longest axis of its write box, or none where it is small enough."""
    box = block.write_box
    if box.size == 1 or device_bytes(block, plan) <= SMALLEST:
        return ()
    axis = box.shape.index(max(box.shape))
    middle = (box.start[axis] + box.stop[axis] + 1) // 2
    stop, start = list(box.stop), list(box.start)
    stop[axis] = start[axis] = middle
    parts = replace(box, stop=(stop[0], stop[1], stop[2])), replace(box, start=(start[0], start[1], start[2]))
    return tuple(plan.block_of(block.index, part) for part in parts)


def device_bytes(block: Block, plan: Plan) -> int:
    """Return the projected bytes of a block or a piece that is alone on the device."""
    cost = plan.cost_of(read=block.read_box.shape, padded=block.padded_shape, written=block.write_box.shape)
    return cost.device - cost.pinned  # as many are pinned as the voxels in a GPU's other lane take


class Fit:
    """How often the blocks of a plan are halved before they fit, as far as it is known. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def depth(self, plan: Plan) -> int:
        """Return how often blocks of this plan are halved; of another plan nothing is known."""
        with self._lock:
            self._begin(plan)
            return self._depth

    def too_large(self, plan: Plan, depth: int) -> None:
        """Learn that a piece that was halved so often does not fit."""
        with self._lock:
            self._begin(plan)
            self._halve_more(depth)

    def fits_alone(self, plan: Plan, depth: int) -> None:
        """Learn that a piece that was halved so often fitted only while it was alone on the device."""
        with self._lock:
            self._begin(plan)
            self._crowded += 1
            if self._crowded >= OFTEN:
                self._halve_more(depth)

    def forget(self) -> None:
        """Begin anew."""
        with self._lock:
            self._plan: Plan | None = None
            self._depth = self._crowded = 0

    def _begin(self, plan: Plan) -> None:
        if plan is not self._plan and plan != self._plan:
            self._plan, self._depth, self._crowded = plan, 0, 0

    def _halve_more(self, depth: int) -> None:
        if depth >= self._depth:
            self._depth, self._crowded = depth + 1, 0
