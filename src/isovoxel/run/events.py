"""What happens during a job, as values. Executors emit them; progress bars, logs and reports only listen.

A listener is called from the thread in which something happened, one call at a time, and must return quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isovoxel.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class JobStarted:
    """The output has been created and the first block is about to be read."""

    plan: Plan
    """The plan that is being carried out."""


@dataclass(frozen=True, slots=True)
class BlockDone:
    """One block has been read, scaled and written."""

    index: int
    """Which block, counted from 0 in the plan's order."""
    voxels: int
    """Output voxels written."""
    read_seconds: float
    """Time spent reading and decoding its input."""
    wait_seconds: float
    """Time spent waiting for the device, which serves one block at a time."""
    scale_seconds: float
    """Time spent on the device, transfers included, and on converting to the output's dtype."""
    write_seconds: float
    """Time spent encoding and writing its shards."""


@dataclass(frozen=True, slots=True)
class JobFinished:
    """All blocks are written and the output is marked complete."""

    seconds: float
    """Wall time from the first block to the last."""


Event = JobStarted | BlockDone | JobFinished
Listener = Callable[[Event], None]
