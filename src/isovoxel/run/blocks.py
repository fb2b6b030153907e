"""How is one block made? It is read, scaled and encoded, and then waits for the disk.

What fails is tried again where that may help, at the place where it failed. Only what could not be flushed to the disk
must be made anew, for its memory has been given to another block, and flushing once more would say that all is well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from isovoxel.engines.base import Cancelled, Engine, Stage
from isovoxel.geometry.box import Box
from isovoxel.planning.plan import Block, Plan
from isovoxel.run.events import BlockDone, Event, Retried
from isovoxel.run.recovery import BlockFailed, clause, patiently
from isovoxel.store.shard import Seal
from isovoxel.volumes.base import ReadBox

T = TypeVar("T")


class OnItsWay(Protocol):
    """A shard on its way to the disk."""

    def seal(self) -> Seal:
        """Wait until it is there."""
        ...

    def drop(self) -> None:
        """Give it up."""
        ...


class Writer(Protocol):
    """Where blocks go."""

    def encode(self, box: Box, data: NDArray[Any]) -> Sequence[OnItsWay]:
        """Encode the voxels of a box of whole shards; several threads do disjoint boxes at the same time."""
        ...

    def spare(self, cores: int) -> None:
        """Learn how many cores no block uses."""
        ...

    def free_bytes(self) -> int:
        """Return how much room the disk has."""
        ...

    def close(self) -> None:
        """Let go of what writing holds."""
        ...


class BlockMaker:
    """Makes blocks, from any number of threads.

    Parameters
    ----------
    plan
        What blocks are.
    read, engine, writer
        What reads, scales and encodes them.
    tell
        Called with what happens.
    """

    def __init__(
        self,
        plan: Plan,
        read: ReadBox,
        engine: Engine,
        writer: Writer,
        tell: Callable[[Event], None],
    ) -> None:
        self._plan, self._read, self._engine, self._writer = plan, read, engine, writer
        self._tell = tell
        self.cancelled = threading.Event()
        """Set, it lets blocks that wait for the device or for another attempt raise `Cancelled`."""
        self._lock = threading.Lock()
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._read_seconds: dict[int, float] = {}

    def idle(self, threads: int, began: float, ended: float) -> float:
        """Return the seconds in which so many threads had no block yet, or none any more, all together."""
        never = max(0, threads - len(self._first)) * (ended - began)
        yet = sum(first - began for first in self._first.values())
        return never + yet + sum(ended - last for last in self._last.values())

    def read(self, block: Block, box: Box) -> NDArray[Any]:
        """Return a box that is read for a block before that is made (map_overlap)."""
        with self._at_work():
            began = time.perf_counter()
            voxels = self._attempt("reading", block, lambda: self._read(box))
            self._read_seconds[block.index] = time.perf_counter() - began
        return voxels

    def encode(self, block: Block, voxels: NDArray[Any] | None = None) -> tuple[Sequence[OnItsWay], BlockDone]:
        """Read, scale and encode a block; its shards are on their way to the disk then.

        Parameters
        ----------
        block
            A block of the plan, or a part of one: whole shards.
        voxels
            Those of its read box; by default they are read.

        Raises
        ------
        BlockFailed
            If something fails for good.
        Cancelled
            If the job was cancelled meanwhile.
        """
        with self._at_work(), self._engine.staged(block, self._plan) as stage:
            began = time.perf_counter()
            if voxels is None:
                self._attempt("reading", block, lambda: self._read(block.read_box, stage.input))
            else:
                stage.input[...] = voxels
            seconds = time.perf_counter() - began + self._read_seconds.pop(block.index, 0.0)
            return self._scale_and_encode(stage, block, seconds)

    def flush(self, shards: Sequence[OnItsWay], event: BlockDone) -> tuple[list[Seal], BlockDone]:
        """Wait until shards are on the disk; where that fails, nothing is left of those that are not."""
        began = time.perf_counter()
        seals: list[Seal] = []
        try:
            for shard in shards:
                seals.append(shard.seal())  # noqa: PERF401 - those before one that fails are counted below
        finally:
            for shard in shards[len(seals) :]:
                shard.drop()
        return seals, replace(event, flush_seconds=time.perf_counter() - began)

    def make(self, block: Block, voxels: NDArray[Any] | None = None) -> tuple[list[Seal], BlockDone]:
        """Encode a block and wait until it is on the disk, all in one thread; see `encode`."""
        return self._attempt("writing", block, lambda: self.flush(*self.encode(block, voxels)))

    def _scale_and_encode(
        self, stage: Stage, block: Block, read_seconds: float
    ) -> tuple[Sequence[OnItsWay], BlockDone]:
        began = time.perf_counter()
        scaled = self._attempt("scaling", block, lambda: stage.scale(self.cancelled))
        between = time.perf_counter()
        shards = self._attempt("writing", block, lambda: self._writer.encode(block.write_box, scaled.data))
        return shards, BlockDone(
            index=block.index,
            voxels=block.write_box.size,
            read_seconds=read_seconds,
            wait_seconds=scaled.waited,
            scale_seconds=between - began - scaled.waited,
            write_seconds=time.perf_counter() - between,
            flush_seconds=0.0,
            pieces=scaled.pieces,
        )

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Keep when a thread began with its first block, and when it was done with its last."""
        if self.cancelled.is_set():
            raise Cancelled
        thread, began = threading.get_ident(), time.perf_counter()
        with self._lock:
            self._first.setdefault(thread, began)
        try:
            yield
        finally:
            with self._lock:
                self._last[thread] = time.perf_counter()

    def _attempt(self, doing: str, block: Block, do: Callable[[], T]) -> T:
        """Read, scale or write, and try again where that may help."""

        def told(error: Exception, pause: float) -> None:
            self._tell(Retried(block.index, doing, clause(error), pause))

        try:
            return patiently(do, told, self.cancelled)
        except (Cancelled, BlockFailed):
            raise
        except Exception as error:
            raise BlockFailed(doing, block, error) from error
