"""Make blocks of the further levels while blocks of the full one are in memory.

1. Level 1 has the blocks of the full level, halved: each is made of one block, by the device that has scaled that, or
   by the processor where the device had no room for the whole block.
2. A block of a level after that one is put together of what several blocks of the level before become, halved: those of
   level 1 by the device as well. It is written once it is whole; until then it is open. As many blocks are open as the
   plan counts, which is enough where blocks are made in their order. Where it is not, the one that was begun first is
   given up.
3. What is given up, or misses a part, for a part of the full level was done before or on another worker, is read back
   when the full level is done, as it is where nothing is made in memory.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.cuda import Voxels, on_host
from isovoxel.geometry.grid import Box, ceil_div
from isovoxel.geometry.resampling import Halver
from isovoxel.planning.memory import WRITERS
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan

Array = NDArray[Any]
Write = Callable[[Plan, Block, "Voxels | None"], None]
"""Writes a block of a level, by the level's plan; without voxels it is zeros."""


class FurtherLevels:
    """Makes blocks of further levels of those of the full one, from any number of threads.

    Parameters
    ----------
    plan
        Of the full level; some levels are made along with it.
    """

    def __init__(self, plan: Plan) -> None:
        self._first, *others = plan.made_along
        self._open = [OpenBlocks(level) for level in others]
        self._kept = threading.local()

    def make(
        self, index: int, voxels: Voxels | None, write: Write, halves: Sequence[Voxels] = ()
    ) -> tuple[tuple[int, int], ...]:
        """Make what can be made of a block of the full level.

        Parameters
        ----------
        index, voxels
            The block; without voxels it is zeros, as what is made of it is.
        write
            Called with each block that is whole, in turn.
        halves
            The block of level 1, and what that becomes on level 2, as far as they are made already.

        Returns
        -------
        tuple of (level, index)
            The blocks that were written, in that order.
        """
        block = self._first.block(index)
        half, *quarter = halves or (None,)
        if half is None and voxels is not None:
            half = self._halved(0, voxels, self._first, block.write_box)
        write(self._first, block, half)
        return ((1, index), *self._gather(0, block, half, write, *quarter))

    def _gather(
        self, number: int, block: Block, voxels: Voxels | None, write: Write, half: Any = None
    ) -> list[tuple[int, int]]:
        """Add a block to those of the next level, of which `half` may be made already, and write what is whole then."""
        if number == len(self._open):
            return []
        level = self._open[number]
        box = level.plan.halved(block.write_box)
        if not box.size:
            return []
        if voxels is None:
            half = np.broadcast_to(np.zeros((), level.dtype), box.shape)
        elif half is None:
            half = self._halved(1, voxels, level.plan, box)
        made = []
        for whole, data in level.add(block.index, box, half):
            with level.writing:  # for the memory of so many threads
                write(level.plan, whole, data)
            made += [(level.plan.level, whole.index), *self._gather(number + 1, whole, data, write)]
        return made

    def _halved(self, which: int, voxels: Voxels, plan: Plan, box: Box) -> Array:
        """Return voxels of the level before as those of a box of this one, in memory of this thread."""
        if not hasattr(self._kept, "halvers"):
            self._kept.halvers = (Halver(), Halver())  # what the second halves, the first has made
        half: Array = self._kept.halvers[which](on_host(voxels), plan.factor, box.shape)
        return half


@dataclass
class _Open:
    """A block that misses some of its voxels."""

    voxels: Array
    missing: int
    """How many voxels it misses."""
    parts: set[int]
    """Blocks of the level before that were added, by their index."""


class OpenBlocks:
    """Blocks of a level that are put together of parts.

    Parameters
    ----------
    plan
        The level's; `Plan.gathered` says how many are open at a time.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.dtype = plan, np.dtype(plan.source.dtype)
        self.writing = threading.BoundedSemaphore(WRITERS)
        """Held by each thread that writes one."""
        self._blocks: dict[int, _Open] = {}
        self._ended = bytearray(plan.n_blocks)
        self._lock = threading.Lock()

    def add(self, part: int, box: Box, voxels: Array) -> Sequence[tuple[Block, Array]]:
        """Add what a block of the level before becomes, and return the blocks that are whole now.

        Parameters
        ----------
        part
            Index of that block; whatever is added twice counts once.
        box, voxels
            What it becomes, in voxels of this level.
        """
        found = []
        grids = zip(box.start, box.stop, self.plan.block_shape, strict=True)
        for z, y, x in itertools.product(*(range(a // n, ceil_div(b, n)) for a, b, n in grids)):
            block = self.plan.block_at((z, y, x), box.volume)
            shared = block.write_box & box
            into = self._begin(block, part)
            if into is None:
                continue
            own = shared.slices_from(block.write_box.start)
            into.voxels[own] = voxels[shared.slices_from(box.start)]
            with self._lock:
                into.missing -= shared.size
                if into.missing:
                    continue
                self._blocks.pop(block.index, None)
                self._ended[block.index] = 1
            found.append((block, into.voxels))
        return found

    def _begin(self, block: Block, part: int) -> _Open | None:
        """Return a block that a part is to be added to; None where it has that part, was given up, or is whole."""
        with self._lock:
            if self._ended[block.index]:
                return None
            into = self._blocks.get(block.index)
            if into is None:
                if len(self._blocks) == self.plan.gathered:
                    first = next(iter(self._blocks))
                    del self._blocks[first]
                    self._ended[first] = 1
                try:
                    voxels = np.empty(block.write_box.shape, self.dtype)
                except MemoryError:  # read back, it takes less
                    self._ended[block.index] = 1
                    return None
                into = self._blocks[block.index] = _Open(voxels, voxels.size, set())
            if part in into.parts:
                return None
            into.parts.add(part)
            return into
