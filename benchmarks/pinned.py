"""How long does memory of the host take that a GPU reaches? From the driver, and in the system's large pages.

Buffers like those of blocks in flight are got and given back, by one thread and by four, as `HostBufferPool` does it:
ordinary memory in all threads at the same time, what the driver does one after the other. And a copy from the device
into one of them tells whether the driver knows it.
"""

from __future__ import annotations

import argparse
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyopencl as cl

from benchmarks.cases import add_machine_options
from benchmarks.machine import describe, print_header, print_row, sentence, write_json
from isovoxel.codecs.cuda import new_memory
from isovoxel.engines.buffers import HostBuffer
from isovoxel.engines.devices import find_device, opencl_device
from isovoxel.engines.opencl import queue_of

KINDS = ("from the driver", "in large pages")


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks pinned", description=__doc__)
    add_machine_options(options)
    options.add_argument("--buffers", type=int, default=8, help="how many")
    options.add_argument("--bytes", type=int, default=2**27, help="of each")
    options.add_argument("--threads", default="1 4", help="by how many threads")
    chosen = options.parse_args(arguments)
    queue = queue_of(opencl_device(find_device(chosen.device)))
    record: dict[str, Any] = {"machine": describe(chosen.folder, chosen.device), "rows": []}
    print(f"{sentence(record['machine'])}; {chosen.buffers} buffers of {chosen.bytes:,} bytes\n")
    print_header(["memory", "threads", "got, GB/s", "given back, GB/s", "copied into, GB/s"])
    for threads in map(int, chosen.threads.split()):
        for kind in KINDS:
            got, back, copied = _rates(queue, chosen.buffers, chosen.bytes, threads, large=kind == KINDS[1])
            row = {"memory": kind, "threads": threads, "got": got, "given_back": back, "copied": copied}
            record["rows"].append(row)
            print_row([kind, str(threads), *(f"{rate / 1e9:.1f}" for rate in (got, back, copied))])
    write_json(chosen.json, record)


def _rates(queue: Any, number: int, nbytes: int, threads: int, *, large: bool) -> tuple[float, float, float]:
    """Return bytes per second of getting, giving back, and copying into the memory."""
    one_by_one = threading.Lock()

    def get(_: int) -> HostBuffer:
        memory = new_memory(nbytes) if large else None
        with one_by_one:
            return HostBuffer(queue, nbytes, None, memory)

    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        buffers = list(pool.map(get, range(number)))
        got = time.perf_counter()
        array = buffers[0].view((nbytes,), np.dtype("u1"))
        copied = _copying(queue, array)
        del array
        freeing = time.perf_counter()
        list(pool.map(HostBuffer.free, buffers))
        freed = time.perf_counter()
    return number * nbytes / (got - began), number * nbytes / (freed - freeing), nbytes / copied


def _copying(queue: Any, array: Any) -> float:
    """Return the seconds of a copy from the device, the second one, for which all is there."""
    source = cl.Buffer(queue.context, cl.mem_flags.READ_WRITE, array.nbytes)
    cl.enqueue_fill_buffer(queue, source, np.zeros(1, np.uint8), 0, array.nbytes)
    queue.finish()
    for _ in range(2):
        began = time.perf_counter()
        cl.enqueue_copy(queue, array, source, is_blocking=True)
    return time.perf_counter() - began
