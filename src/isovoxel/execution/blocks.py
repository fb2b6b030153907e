"""Make one block: read, scale and encode it; its shards are flushed by `isovoxel.execution.flushing`.

A block whose input is known to be zeros before a voxel is read, for no chunk of it is stored, is left out where that is
proven to change no bit.

What fails is tried again where that may help, at the place where it failed. Only what could not be flushed to the disk
must be made anew, for its memory has been given to another block, and flushing once more would say that all is well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.cuda import DeviceVoxels, GpuCodecError, Voxels
from isovoxel.engines.base import Cancelled, Engine
from isovoxel.errors import CorruptInputError, clause
from isovoxel.execution.events import BlockDone, EncodedByProcessor, Event, Filled, Retried
from isovoxel.execution.executor import BlockFailed, Task, input_reader, may_pass
from isovoxel.execution.flushing import Flusher, Flushing
from isovoxel.execution.further_levels import FurtherLevels
from isovoxel.geometry.grid import Box, Index3
from isovoxel.object_store.retries import patience, retry
from isovoxel.output.shard import PendingShard, ShardReceipt
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan
from isovoxel.readers.arrays import unmasked
from isovoxel.readers.base import ReadBox, Volume, is_known_empty
from isovoxel.readers.tiled import FilledReader

if TYPE_CHECKING:
    from isovoxel.output.writer import OmeZarrWriter

FILL = 0
"""What damaged voxels become."""

MOST_IN_PARTS = 0.75
"""Of how much of a block its shards are made one by one: each reads a halo and decodes the chunks that it lies in."""

T = TypeVar("T")


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
    further
        What encodes blocks of further levels, by level, where they are made of these.
    fill
        What damaged parts of the input are filled with; None if they end the job.
    """

    def __init__(
        self,
        plan: Plan,
        read: ReadBox,
        engine: Engine,
        writer: OmeZarrWriter,
        tell: Callable[[Event], None],
        further: Mapping[int, OmeZarrWriter] | None = None,
        fill: float | None = None,
    ) -> None:
        self.plan, self.engine = plan, engine
        if fill is not None:
            read = FilledReader(read, np.dtype(plan.source.dtype), fill, self._tell_filled)
        self._read, self._writer, self._further_writers = read, writer, further or {}
        self._further = FurtherLevels(plan) if further else None
        self._tell = tell
        self.cancelled = threading.Event()
        """Set, it lets blocks that wait for the device or for another attempt raise `Cancelled`."""
        self._lock = threading.Lock()
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._read_seconds: dict[int, float] = {}

    @classmethod
    def of_task(cls, task: Task, volume: Volume, engine: Engine, tell: Callable[[Event], None]) -> Self:
        """Return what makes the blocks of a task, of its input and engine, which are open and prepared."""
        from isovoxel.output.writer import OmeZarrWriter

        plan, fill = task.plan, FILL if task.source.fill else None
        read = input_reader(volume, plan, engine, tell)

        def on_processor(reason: str) -> None:
            tell(EncodedByProcessor(reason))

        gpu = None
        try:
            gpu = engine.encoder(plan)
        except (ImportError, MemoryError, GpuCodecError) as error:
            on_processor(str(error))
        writer = OmeZarrWriter.of_plan(task.output, plan, plan.helpers, task.attempt, gpu, on_processor)
        further = {
            level.level: OmeZarrWriter.of_plan(
                task.output, level, 0, task.attempt, gpu if plan.fills_batches(level) else None
            )
            for level in plan.made_along
        }
        return cls(plan, read, engine, writer, tell, further, fill)

    def spare_cores(self, blocks: int) -> None:
        """Tell the writer how many cores are left while so many blocks are encoded."""
        self._writer.spare(max(0, self.plan.helpers + 1 - blocks))

    def close(self, *, keep_hosts: bool = False) -> None:
        """Free what writing and scaling hold, but for host memory where it is kept for a level to come."""
        self._writer.close()
        for writer in self._further_writers.values():
            writer.close()
        self.engine.release(keep_hosts=keep_hosts)

    def idle(self, threads: int, began: float, ended: float) -> float:
        """Return the seconds in which so many threads had no block yet, or none any more, all together."""
        never = max(0, threads - len(self._first)) * (ended - began)
        yet = sum(first - began for first in self._first.values())
        return never + yet + sum(ended - last for last in self._last.values())

    def read(self, block: Block, box: Box) -> NDArray[Any]:
        """Return a box that is read for a block before that is made (map_overlap)."""
        with self._at_work():
            began = time.perf_counter()
            voxels = self._attempt("reading", block, partial(self._read, box))
            self._read_seconds[block.index] = time.perf_counter() - began
        return voxels

    def encode(
        self, block: Block, flush: Callable[[PendingShard], None], voxels: NDArray[Any] | None = None
    ) -> BlockDone:
        """Read, scale and encode a block.

        Parameters
        ----------
        block
            A block of the plan, or a part of one: whole shards.
        flush
            Called with each shard as soon as it is encoded, in the order of `Box.tiles`; it is on its way to the disk.
            Those of further levels follow, where they are made of these, and the event says of which blocks.
        voxels
            Those of its read box; by default they are read.

        Raises
        ------
        BlockFailed
            If something fails for good.
        Cancelled
            If the job was cancelled meanwhile.
        """
        if voxels is None and self.plan.leaves_out_empty:
            if is_known_empty(self._read, block.read_box):
                return self._leave_out(block, flush)
            parts = self._parts(block)
            if sum(part.size for _, part in parts if part is not None) < MOST_IN_PARTS * block.write_box.size:
                return self._encode_parts(block, parts, flush)
        return self._encode(block, list(block.write_box.tiles(self.plan.storage.shard)), flush, voxels)

    def _encode_parts(
        self, block: Block, parts: Sequence[tuple[Box, Box | None]], flush: Callable[[PendingShard], None]
    ) -> BlockDone:
        """Make of each shard of a block the part that is not empty; the seconds are those of all of them."""
        done = BlockDone(block.index, block.write_box.size, 0, 0, 0, 0, 0, level=block.level)
        for shard, part in parts:
            if part is None:
                flush(self._writer.leave_out(shard))
                continue
            made = self._encode(self.plan.block_of(block.index, part), [shard], flush)
            done = replace(
                done,
                read_seconds=done.read_seconds + made.read_seconds,
                wait_seconds=done.wait_seconds + made.wait_seconds,
                scale_seconds=done.scale_seconds + made.scale_seconds,
                write_seconds=done.write_seconds + made.write_seconds,
                pieces=max(done.pieces, made.pieces),
                read_bytes=done.read_bytes + made.read_bytes,
            )
        return done

    def _encode(
        self,
        block: Block,
        shards: Sequence[Box],
        flush: Callable[[PendingShard], None],
        voxels: NDArray[Any] | None = None,
    ) -> BlockDone:
        """Read, scale and encode a block: whole shards, or a part of the only one."""
        with self._at_work(), self.engine.staged(block, self.plan) as stage:
            began = time.perf_counter()
            if voxels is None:
                self._attempt("reading", block, partial(self._read, block.read_box, stage.input))
            else:
                stage.input[...] = unmasked(voxels)
            read_seconds = time.perf_counter() - began + self._read_seconds.pop(block.index, 0.0)
            began = time.perf_counter()
            scaled = self._attempt("scaling", block, partial(stage.scale, self.cancelled))
            between = time.perf_counter()
            for shard in shards:
                part = shard & block.write_box
                data = scaled.data[part.slices_from(block.write_box.start)]
                flush(self._attempt("writing", block, partial(self._writer.encode, shard, data, part)))
            along = self._make_further(block, scaled.data, flush, scaled.halves)
            return BlockDone(
                index=block.index,
                voxels=block.write_box.size,
                read_seconds=read_seconds,
                wait_seconds=scaled.waited,
                scale_seconds=between - began - scaled.waited,
                write_seconds=time.perf_counter() - between,
                flush_seconds=0.0,
                pieces=scaled.pieces,
                read_bytes=block.read_box.size * self.plan.source.itemsize,
                level=block.level,
                along=along,
            )

    def make(
        self,
        block: Block,
        flusher: Flusher,
        voxels: NDArray[Any] | None = None,
        seat: AbstractContextManager[Any] | None = None,
    ) -> tuple[list[ShardReceipt], BlockDone]:
        """Encode a block, and wait until it is on the disk; see `encode`.

        Parameters
        ----------
        block, voxels
            As in `encode`.
        flusher
            Waits for the disk.
        seat
            What a block in flight holds, entered again for another attempt; it is left while the disk is waited for.
        """

        def once() -> tuple[list[ShardReceipt], BlockDone]:
            with seat or nullcontext():
                shards = Flushing(flusher, block, _sealed)
                event = self.encode(block, shards.add, voxels)
            return shards.end(event).result()

        return self._attempt("writing", block, once)

    def make_by_shards(
        self, block: Block, flusher: Flusher, seat: AbstractContextManager[Any] | None = None
    ) -> tuple[list[ShardReceipt], BlockDone]:
        """Make a block that is too large for the host's memory, one shard after the other; see `make`."""
        receipts: list[ShardReceipt] = []
        along: tuple[tuple[int, int], ...] = ()
        for box in block.write_box.tiles(self.plan.storage.shard):
            more, event = self.make(self.plan.block_of(block.index, box), flusher, seat=seat)
            receipts, along = receipts + more, event.along
        return receipts, BlockDone(block.index, block.write_box.size, 0, 0, 0, 0, 0, level=block.level, along=along)

    def _parts(self, block: Block) -> list[tuple[Box, Box | None]]:
        """Return of each shard of a block the least part, in whole chunks, beside which it reads nothing but zeros.

        It is None where that is all of it, and a whole shard where a GPU encodes. Of a block of which further levels
        are made it is the shard as well: they take all its voxels.
        """
        shards = list(block.write_box.tiles(self.plan.storage.shard))
        if self._further is not None:
            return [(shard, shard) for shard in shards]
        cells = self.plan.storage.chunk if self._writer.takes_parts else self.plan.storage.shard
        return [(shard, self._full_part(block, shard, cells)) for shard in shards]

    def _full_part(self, block: Block, shard: Box, cells: Index3) -> Box | None:
        """Return the hull of those cells of a shard that are not known to read nothing but zeros."""
        read_boxes = ((cell, self.plan.block_of(block.index, cell).read_box) for cell in shard.tiles(cells))
        full = [cell for cell, box in read_boxes if not is_known_empty(self._read, box)]
        if not full:
            return None
        z, y, x = ((min(box.start[axis] for box in full), max(box.stop[axis] for box in full)) for axis in range(3))
        return Box((z[0], y[0], x[0]), (z[1], y[1], x[1]), shard.volume)

    def _leave_out(self, block: Block, flush: Callable[[PendingShard], None]) -> BlockDone:
        """Make no file of a block that reads nothing but zeros, nor of that of the next level which is made of it."""
        with self._at_work():
            for box in block.write_box.tiles(self.plan.storage.shard):
                flush(self._writer.leave_out(box))
            along = self._make_further(block, None, flush)
        return BlockDone(block.index, block.write_box.size, 0, 0, 0, 0, 0, level=block.level, along=along)

    def _make_further(
        self,
        block: Block,
        voxels: Voxels | None,
        flush: Callable[[PendingShard], None],
        halves: Sequence[Voxels] = (),
    ) -> tuple[tuple[int, int], ...]:
        """Make what can be made of further levels of a whole block, its shards after those of this level.

        Parameters
        ----------
        block, voxels, halves
            The block, its voxels, and what the device has made of it on further levels.
        flush
            As in `encode`.

        Returns
        -------
        tuple of (level, index)
            The blocks that were made.
        """
        if self._further is None or block.write_box != self.plan.block(block.index).write_box:
            return ()
        if isinstance(voxels, DeviceVoxels):
            voxels = None if halves else voxels.download(voxels)

        def write(plan: Plan, made: Block, voxels: Voxels | None) -> None:
            writer, whole = self._further_writers[plan.level], made.write_box
            if voxels is not None:
                shards = self._attempt("writing", block, partial(writer.encode_together, whole, voxels))
                if shards is not None:
                    left = iter(shards)
                    try:
                        for shard in left:
                            flush(shard)
                    finally:
                        for shard in left:  # of a job that has ended meanwhile
                            shard.drop()
                    return
            for box in whole.tiles(plan.storage.shard):
                if voxels is None:
                    flush(writer.leave_out(box))
                else:
                    part = voxels[box.slices_from(whole.start)]
                    flush(self._attempt("writing", block, partial(writer.encode, box, part)))

        return self._further.make(block.index, voxels, write, halves)

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

    def patient(self, block: Block) -> AbstractContextManager[None]:
        """Notify of what is tried again while a block's shards are brought to their place."""
        return patience(partial(self._told, "writing", block), self.cancelled)

    def _tell_filled(self, error: CorruptInputError) -> None:
        self._tell(Filled(f"{error.chunk}: {error.reason}"))

    def _told(self, doing: str, block: Block, error: Exception, pause: float) -> None:
        self._tell(Retried(block.index, doing, clause(error), pause, block.level))

    def _attempt(self, doing: str, block: Block, do: Callable[[], T]) -> T:
        """Read, scale or write, and again after each pause where that may help, the device's memory included."""
        try:
            with patience(partial(self._told, doing, block), self.cancelled):
                return retry(do, may_pass)
        except (Cancelled, BlockFailed):
            raise
        except Exception as error:
            if self.cancelled.is_set() and may_pass(error):
                raise Cancelled from error
            raise BlockFailed(doing, block, error) from error


def _sealed(
    _block: Block, receipts: list[ShardReceipt] | Exception, event: BlockDone
) -> tuple[list[ShardReceipt], BlockDone]:
    """Pass on what became of a block's shards."""
    if isinstance(receipts, Exception):
        raise receipts
    return receipts, event
