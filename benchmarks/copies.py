"""How fast do bytes move on this machine? On the device, between it and the host, and to the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from benchmarks.machine import best
from isovoxel.engines.devices import find_device, opencl_device

COPY = "kernel void copy(global const ushort8 *a, global ushort8 *b) { b[get_global_id(0)] = a[get_global_id(0)]; }"
VECTOR, GROUP = 16, 64
PIECE = 64 * 2**20
"""Bytes of the file that a thread writes at a time."""


def device_bandwidth(device: str, nbytes: int) -> float:
    """Return the bytes that the device reads and writes per second in the simplest kernel there is, a copy."""
    queue = cl.CommandQueue(cl.Context([opencl_device(find_device(device))]))
    nbytes = _fitting(queue.device, nbytes)
    source, target = (cl.Buffer(queue.context, cl.mem_flags.READ_WRITE, nbytes) for _ in range(2))
    cl.enqueue_copy(queue, source, np.ones(nbytes, np.uint8))
    kernel = cl.Kernel(cl.Program(queue.context, COPY).build(), "copy")

    def run() -> None:
        kernel(queue, (nbytes // VECTOR,), (GROUP,), source, target)
        queue.finish()

    run()
    return 2 * nbytes / best(run)


def host_device_copies(device: str, nbytes: int) -> dict[str, float]:
    """Return the bytes per second between host and device, from pinned and from ordinary memory touched before.

    Where the host is the device (PoCL), all of them are plain copies in memory, and "to" and "from" say nothing.
    """
    context = cl.Context([opencl_device(find_device(device))])
    up, down = cl.CommandQueue(context), cl.CommandQueue(context)
    nbytes = _fitting(up.device, nbytes)
    on_device = [cl.Buffer(context, cl.mem_flags.READ_WRITE, nbytes) for _ in range(2)]
    pins = [cl.Buffer(context, cl.mem_flags.READ_WRITE | cl.mem_flags.ALLOC_HOST_PTR, nbytes) for _ in range(2)]
    access = cl.map_flags.READ | cl.map_flags.WRITE
    pinned = [cl.enqueue_map_buffer(up, pin, access, 0, (nbytes,), np.uint8)[0] for pin in pins]
    ordinary = [np.empty(nbytes, np.uint8) for _ in range(2)]
    rates = {}
    for name, (there, back) in (("pinned", pinned), ("ordinary", ordinary)):
        there[...], back[...] = 1, 1

        def to(there: NDArray[Any] = there) -> None:
            cl.enqueue_copy(up, on_device[0], there, is_blocking=False)

        def from_(back: NDArray[Any] = back) -> None:
            cl.enqueue_copy(down, back, on_device[1], is_blocking=False)

        def run(*copies: Callable[[], None]) -> None:
            for copy in copies:
                copy()
            up.finish()
            down.finish()

        run(to, from_)
        rates[f"to the device, {name}"] = nbytes / best(lambda to=to: run(to))
        rates[f"from the device, {name}"] = nbytes / best(lambda from_=from_: run(from_))
        rates[f"both ways at once, {name}"] = 2 * nbytes / best(lambda to=to, from_=from_: run(to, from_))
    return rates


def disk_write(folder: Path, data: NDArray[Any], threads: int) -> float:
    """Return the bytes per second of writing an array to one large file on several threads, and flushing it."""
    file = folder / "plain"
    flat = data.reshape(-1).view(np.uint8)

    def run() -> None:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT)
        try:
            with ThreadPoolExecutor(threads) as pool:
                starts = range(0, flat.size, PIECE)
                list(pool.map(lambda a: os.pwrite(handle, memoryview(flat[a : a + PIECE]), a), starts))
            os.fsync(handle)
        finally:
            os.close(handle)

    return flat.size / best(run, reset=file.unlink)


def _fitting(handle: Any, nbytes: int) -> int:
    """Return as many bytes as asked for, or fewer where the device does not hold several such buffers."""
    nbytes = min(nbytes, handle.max_mem_alloc_size // 2, handle.global_mem_size // 8)
    return max(1, nbytes // (VECTOR * GROUP)) * VECTOR * GROUP
