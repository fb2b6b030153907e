"""Scale a block in pieces: it is halved along its longest axis until the pieces fit the device.

A plan counts on memory that another program may take while it is carried out, or that a driver told of and does not
give. Neither reading nor writing knows of pieces: a block keeps its memory on the host, of which a piece uploads a part
and into a part of which its result is put.

1. A piece is a block of its own: its rows, read box and pads follow from its place in the volume. So the exact engine
   has the same bits however a block is cut; cle agrees within its texture precision, and nearest with 0 around the
   volume up to ties, about which float32 decides in a block at the volume's start (see `isovoxel.engines.cle`).
2. A piece for which memory runs out is tried again while no other block is on the device and nothing is kept there.
   Only what fails then is halved.
3. What was learnt of a plan's blocks holds for those to come (`Fit`).
"""

from __future__ import annotations

import threading
from dataclasses import replace

from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan

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
