"""Pool of host buffer pairs that blocks in flight reuse.

Getting memory that a GPU reaches takes a quarter of a second for a GiB, and giving it back as long (measured), longer
than a small level takes. So a level may use the larger buffers of the level before, but only as far as the job holds no
more memory for it than it was projected to hold.
"""

from __future__ import annotations

import threading
from typing import Any

from isovoxel.engines.memory import HostBuffer
from isovoxel.planning.plan import Plan

HostPair = tuple[HostBuffer, HostBuffer]
"""Memory for a block's input and for its output."""


class HostBufferPool:
    """Pairs of host buffers of one size; safe to use from many threads.

    Parameters
    ----------
    queue
        Of the device that reaches them.
    """

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._free: list[HostPair] = []
        self._sizes = (0, 0)
        self._projected = 0  # the largest projection of the plans that these served
        self._lock = threading.Lock()

    def take(self, plan: Plan) -> HostPair:
        """Return a pair with room for the largest block of a plan; those of another size are let go of."""
        with self._lock:
            if not self._serve(plan):
                self._free.clear()
                self._sizes = plan.staging
            self._projected = max(self._projected, plan.projected_host)
            if self._free:
                return self._free.pop()
            read, written = self._sizes
        return HostBuffer(self._queue, read), HostBuffer(self._queue, written)

    def give(self, hosts: HostPair) -> None:
        """Take a pair back."""
        with self._lock:
            if self._sizes == (hosts[0].nbytes, hosts[1].nbytes):
                self._free.append(hosts)

    def drop(self) -> None:
        """Let go of the pairs that are free; the next ones are as large as they were."""
        with self._lock:
            self._free.clear()

    def forget(self) -> None:
        """Let go of the pairs that are free, and of how large they were."""
        with self._lock:
            self._free.clear()
            self._sizes = (0, 0)
            self._projected = 0

    def _serve(self, plan: Plan) -> bool:
        """Return whether the pairs are what a plan needs, or more within what is projected; the caller has the lock."""
        if self._sizes == plan.staging:
            return True
        more = sum(self._sizes) - sum(plan.staging)
        enough = all(there >= needed for there, needed in zip(self._sizes, plan.staging, strict=True))
        return enough and plan.projected_host + plan.in_flight * more <= self._projected
