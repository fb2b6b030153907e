"""Another program that holds the memory of a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from isovoxel.engines.devices import Device

HOG = """
import sys
import numpy as np
import pyopencl as cl
from isovoxel.engines.devices import find_device, opencl_device
index, leave = sys.argv[1], int(sys.argv[2])
context = cl.Context([opencl_device(find_device(index))])
queue, held = cl.CommandQueue(context), []
while (room := find_device(index).free - leave) >= 2**25:
    held.append(cl.Buffer(context, cl.mem_flags.READ_WRITE, min(room, 2**30) // 2**21 * 2**21))
    cl.enqueue_fill_buffer(queue, held[-1], np.zeros(1, np.uint8), 0, held[-1].size)  # memory is given on first use
    queue.finish()
print(find_device(index).free, flush=True)
sys.stdin.read()
"""
"""Takes the memory of a device but for so many bytes, tells how many are left, and holds it until its input ends."""


@contextmanager
def hog(device: Device, *, leave: int) -> Iterator[int]:
    """Hold all of a device's free memory but so many bytes; says how many are left."""
    command = [sys.executable, "-c", HOG, str(device.index), str(leave)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
