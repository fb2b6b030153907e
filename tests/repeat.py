"""An engine without a device, and a volume and plans for it: for tests of how jobs run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isovoxel.engines.base import Cancelled, Scaled
from isovoxel.execution.blocks import BlockMaker
from isovoxel.execution.events import Event, Listener
from isovoxel.execution.executor import LevelProgress, Record
from isovoxel.execution.threads import ThreadRun
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan
from strategies import MemoryWriter, cut, read_from

VOLUME = np.random.default_rng(0).integers(1, 65536, (8, 24, 32)).astype(np.uint16)
MODES = ["direct", "map_overlap"]


def thread_run(
    plan: Plan,
    read: Any,
    engine: Any,
    writer: Any,
    listeners: Sequence[Listener] = (),
    *,
    done: bytearray | None = None,
    record: Record = lambda _block, _receipts, _event: None,
    array: Any = None,
    fill: float | None = None,
) -> ThreadRun:
    """Return a run of a plan's blocks on threads, with nothing of a job around it."""

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    progress = LevelProgress(plan, bytearray(plan.n_blocks) if done is None else done, record, tell, lambda: 0)
    return ThreadRun(progress, BlockMaker(plan, read, engine, writer, tell, fill=fill), array)


class Repeat:
    """An engine without a device: it repeats voxels, as nearest with whole factors does."""

    name = "repeat"

    def __init__(self, before: Callable[[Block], None] = lambda _: None) -> None:
        self.before = before
        self.released = 0

    @contextmanager
    def staged(self, block: Block, plan: Plan) -> Iterator[RepeatedBlock]:
        yield RepeatedBlock(self, block, plan, np.empty(block.read_box.shape, plan.source.dtype))

    def release(self, *, keep_hosts: bool = False) -> None:  # noqa: ARG002 - it keeps nothing
        """Count how often a job let go of what the engine keeps."""
        self.released += 1


@dataclass
class RepeatedBlock:
    """A block on its way through that engine."""

    engine: Repeat
    block: Block
    plan: Plan
    input: np.ndarray

    def scale(self, cancelled: threading.Event | None = None) -> Scaled:
        self.engine.before(self.block)
        if cancelled is not None and cancelled.is_set():
            raise Cancelled
        write, read = self.block.write_box, self.block.read_box
        index = [
            axis.nearest(np.arange(start, stop)) - first
            for axis, start, stop, first in zip(self.plan.axes, write.start, write.stop, read.start, strict=True)
        ]
        return Scaled(self.input[np.ix_(*index)], 0.0)


def carry_out(engine: Any, plan: Plan, volume: np.ndarray) -> np.ndarray:
    """Carry a plan out as a job does, and return what was written: each voxel once."""
    writer = MemoryWriter(plan)
    thread_run(plan, read_from(volume), engine, writer).run()
    assert (writer.times == 1).all()
    return writer.data


EXPECTED = VOLUME.repeat(2, 0).repeat(2, 1).repeat(2, 2)


def planned(mode: str, **changes: Any) -> Plan:
    """64 blocks of twice the volume, two in flight."""
    plan = cut(VOLUME.shape, (2.0, 2.0, 2.0), (4, 12, 16), interpolation="nearest", halo_mode=mode)
    return replace(plan, **{"in_flight": 2} | changes)
