"""OpenCL context and queue of each device: one of each in a process, whichever engine asks.

Engines of one context can hand host memory on from level to level. Kernel objects and queues are shared by threads, so
whoever uses them has the `TURN`.
"""

from __future__ import annotations

import threading
from typing import Any

TURN = threading.Lock()
"""Held by the thread that gives commands: cle has one device, one queue and shared kernel objects per process."""

_queues: dict[Any, Any] = {}


def queue_of(handle: Any) -> Any:
    """Return the queue for kernels on a ``pyopencl.Device``. The caller has the turn."""
    import pyopencl as cl

    if handle not in _queues:
        _queues[handle] = cl.CommandQueue(cl.Context(devices=[handle]), handle)
    return _queues[handle]
