"""How is a plan carried out and written? Block by block, on threads of this process.

Each block is read, scaled and encoded by one thread; as many blocks are in flight as the plan allows, so that while
the device scales one, others are read and encoded. Then another thread waits until its shards are on the disk, which
takes neither memory nor a processor. Two ways lead to a block's input, and to the same bits:

- direct: the thread reads the block's read box, halo included, from the source itself;
- map_overlap: dask reads each input block once and hands its neighbours their halo, window by window.

Not every failure ends a job:

==========================  =====================================================================================
a read or a write           tried again, where that may help (`isovoxel.object_store.retries`)
too little host memory      half as many blocks in flight; where there is one only, a shard of it at a time
too little device memory    the engine scales the block in pieces (`isovoxel.engines.pieces`); with no room for the
                            smallest piece it is tried again
a device that is lost       passed on as `DeviceLostError`: only a fresh process helps (`isovoxel.execution.subprocess`)
==========================  =====================================================================================
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from signal import SIGINT
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.base import Cancelled, Engine
from isovoxel.errors import CorruptInputError, DeviceLostError, JobError
from isovoxel.execution.blocks import BlockMaker, Writer
from isovoxel.execution.events import BlockDone, Event, Filled, Listener, Retried, Slowed, started
from isovoxel.execution.flushing import Flusher
from isovoxel.execution.retry import GO_ON, BlockFailed, Room, clause, missing
from isovoxel.object_store import retries
from isovoxel.object_store.retries import carried, is_transient, patience
from isovoxel.output.shard import ShardReceipt
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import ReadBox
from isovoxel.readers.filled import FilledReader

if TYPE_CHECKING:
    from isovoxel.execution.map_overlap import Window


FLUSHING = 2
"""How many shards may wait for the disk for each block that is in flight."""


class Impatient(KeyboardInterrupt):
    """A second signal, while blocks in flight were coming to their end: nobody waits for them any more.

    Their threads end when the device has answered. They cannot write any more once the lock is given back, see
    `isovoxel.output.fence`, so the same job may go on at once, also in this process.
    """

    def __init__(self, number: int | None) -> None:
        super().__init__(f"interrupted again; blocks in flight are given up, and write nothing more; {GO_ON}")
        self.signal = number or SIGINT


@dataclass
class Job:
    """One run of a plan."""

    plan: Plan
    """What to do."""
    read: ReadBox
    """Reads a box of the source."""
    engine: Engine
    """Scales."""
    writer: Writer
    """Writes."""
    listeners: Sequence[Listener] = ()
    """Told what happens."""
    array: Any = None
    """The source as a dask array, where it is one."""
    done: bytearray = field(default_factory=bytearray)
    """A 1 for each block that is done, in the plan's order; by default none is."""
    record: Callable[[int, Sequence[ShardReceipt]], None] = lambda _block, _seals: None
    """Called with each block that is done and the seals of its shards, one call at a time; those of the shards of the
    next level follow, where they were made with it."""
    in_flight: int = 0
    """How many blocks are in flight; by default as many as the plan says."""
    next_writer: Writer | None = None
    """Writes the next level, where it is made of this one's blocks while they are in memory."""
    fill: float | None = None
    """What damaged parts of the input are filled with; None if they end the job."""
    keep_hosts: bool = False
    """Whether the engine keeps host memory in the end, for a level to come."""
    idle: float = field(default=0.0, init=False)
    """Seconds in which a block could have been in flight and was none, yet or any more, all together."""

    def __post_init__(self) -> None:
        self.done = self.done or bytearray(self.plan.n_blocks)
        self.in_flight = self.in_flight or self.plan.in_flight
        if self.fill is not None:
            self.read = FilledReader(self.read, np.dtype(self.plan.source.dtype), self.fill, self._tell_filled)
        self._telling = threading.Lock()
        self._blocks = BlockMaker(self.plan, self.read, self.engine, self.writer, self._tell, self.next_writer)
        self._unflushed: Counter[int] = Counter()
        self._written = self._stored = 0

    def run(self) -> float:
        """Carry out what is left of the plan and return the seconds it took.

        Raises
        ------
        JobError
            If a block fails.
        KeyboardInterrupt
            If the user interrupts; blocks in flight are finished or given up first.
        DeviceLostError
            If the device does not serve this process any more.
        """
        began = time.perf_counter()
        threads = self.in_flight
        try:
            self._carry_out()
        except Impatient:
            raise  # even letting go of memory waits for the device
        except Exception as failure:
            self._let_go()
            raise self._told(failure) from failure
        except KeyboardInterrupt:
            self._let_go()
            raise
        ended = time.perf_counter()
        self._let_go(keep_hosts=self.keep_hosts)  # else as long as getting it took
        self.idle = self._blocks.idle(threads, began, ended)
        return ended - began

    def _carry_out(self) -> None:
        self._tell(started(self.plan, self.done))
        # Blocks that wait for the disk do so in threads of their own: those that encode keep their memory warm.
        waiting = FLUSHING * self.in_flight
        with self._threads(waiting, "flush") as threads:
            flusher = Flusher(threads, waiting, self._blocks.patient)
            if self.plan.halo_mode == "map_overlap":
                self._run_windows(flusher)
            self._run_direct(flusher)

    def _let_go(self, *, keep_hosts: bool = False) -> None:
        self.writer.close()
        if self.next_writer is not None:
            self.next_writer.close()
        self.engine.release(keep_hosts=keep_hosts)

    def _told(self, failure: Exception) -> Exception:
        """Return what is raised of a failure."""
        if isinstance(failure, BlockFailed):
            if isinstance(failure.error, DeviceLostError):
                return failure.error
            return JobError(failure.reason(self._missing))
        return JobError(f"the job failed with {clause(failure)}")

    # ---- direct reads ----------------------------------------------------------------------------------------

    def _run_direct(self, flusher: Flusher) -> None:
        """Do all blocks that are not done, with fewer of them in flight where the host has too little memory."""
        again: deque[Block] = deque()
        left = (self.plan.block(i) for i in range(self.plan.n_blocks) if not self.done[i])
        while True:
            with self._threads(self.in_flight, "isovoxel") as pool:
                short = self._do_all(pool, flusher, again, left)
            if not short:
                return
            if self.in_flight == 1:
                for block in short:
                    self._finish(block, *self._blocks.make_by_shards(block, flusher))
            else:
                again.extend(short)
                self._slow_down()

    def _do_all(
        self, pool: ThreadPoolExecutor, flusher: Flusher, again: deque[Block], left: Iterator[Block]
    ) -> list[Block]:
        """Do blocks, a bounded number at a time, however many there are, until memory is short.

        Returns
        -------
        list of Block
            Those for which it was; the others that were begun are done.
        """
        encoding: dict[Future[Any], Block] = {}
        waiting: dict[Future[Any], Block] = {}
        short: list[Block] = []
        while True:
            while not short and len(encoding) < 2 * self.in_flight:
                block = again.popleft() if again else next(left, None)
                if block is None:
                    break
                encoding[pool.submit(self._encode, block, flusher)] = block
            if not encoding and not waiting:
                return short
            self._spare_cores(len(encoding))
            for future in wait([*encoding, *waiting], return_when=FIRST_COMPLETED).done:
                block = encoding.pop(future, None) or waiting.pop(future)
                try:
                    flushed = future.result()
                    if isinstance(flushed, Future):
                        waiting[flushed] = block
                    elif flushed is False:
                        again.append(block)
                except BlockFailed as error:
                    if not error.short_of_memory:
                        raise
                    short.append(block)

    def _encode(self, block: Block, flusher: Flusher) -> Future[bool] | None:
        """Read, scale and encode a block, and leave it to threads that wait for the disk; nothing if cancelled."""
        attempts = self._unflushed[block.index]
        if attempts and self._blocks.cancelled.wait(retries.PAUSES[attempts - 1]):
            return None
        try:
            shards = flusher.begin(block, self._flushed)
            return shards.end(self._blocks.encode(block, shards.add))
        except Cancelled:
            return None

    def _flushed(self, block: Block, seals: list[ShardReceipt] | Exception, event: BlockDone) -> bool:
        """Note that a block is on the disk; False where it must be made again."""
        if isinstance(seals, list):
            self._finish(block, seals, event)
            return True
        attempts = self._unflushed[block.index]
        if not is_transient(seals) or attempts == len(retries.PAUSES):
            raise BlockFailed("writing", block, seals) from seals
        self._unflushed[block.index] += 1
        self._tell(Retried(block.index, "writing", clause(seals), retries.PAUSES[attempts], block.level))
        return False

    def _slow_down(self) -> None:
        """Go on with half as many blocks in flight."""
        self.in_flight = max(1, self.in_flight // 2)
        self.engine.release()
        self._tell(Slowed(self.in_flight))

    @contextmanager
    def _threads(self, number: int, name: str) -> Iterator[ThreadPoolExecutor]:
        """Threads for blocks; whatever ends them, blocks in flight come to their end or give up, and count."""
        with patience(ended=self._blocks.cancelled):  # after which a pool's threads try everything once
            pool = ThreadPoolExecutor(number, name, carried(lambda: None))
        try:
            yield pool
        except Impatient:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        except BaseException:
            self._blocks.cancelled.set()
            try:
                pool.shutdown(cancel_futures=True)
            except KeyboardInterrupt as again:
                raise Impatient(getattr(again, "signal", None)) from again
            raise
        pool.shutdown()

    def _spare_cores(self, blocks: int) -> None:
        """Tell the writer how many cores are left while so many blocks are to be encoded."""
        self.writer.spare(max(0, self.plan.helpers + 1 - min(blocks, self.in_flight)))

    # ---- map_overlap -----------------------------------------------------------------------------------------

    def _run_windows(self, flusher: Flusher) -> None:
        """Let dask exchange halos, one window of blocks after the other, as long as memory suffices for that."""
        # dask is only loaded by jobs that need it.
        import dask

        from isovoxel.execution.map_overlap import Window

        self._spare_cores(self.plan.n_blocks)
        workers, short = self.in_flight, False
        with (
            self._threads(workers, "isovoxel") as pool,
            dask.config.set(scheduler="threads", pool=pool, num_workers=workers),
        ):
            for places in self.plan.windows():
                window = Window(self.plan, places)
                try:
                    write = partial(self._do_overlapped, flusher)
                    window.written(self._window_input(window), write).compute()
                except (BlockFailed, MemoryError) as error:
                    if isinstance(error, BlockFailed) and not error.short_of_memory:
                        raise
                    short = True
                    break
        if short:
            self._slow_down()

    def _window_input(self, window: Window) -> Any:
        """Return the window's input as a dask array, read from the source or taken from the caller's dask array."""
        if self.array is not None:
            return self.array[window.read_box.slices].rechunk(window.input_chunks)

        return window.source(lambda place, box: self._blocks.read(self.plan.block_at(place, box.volume), box))

    def _do_overlapped(self, flusher: Flusher, voxels: NDArray[Any], block: Block) -> NDArray[Any]:
        self._finish(block, *self._blocks.make(block, flusher, voxels))
        return np.ones((1, 1, 1), np.bool_)

    # ---- what is told ----------------------------------------------------------------------------------------

    def _finish(self, block: Block, seals: Sequence[ShardReceipt], event: BlockDone) -> None:
        """Note that a block is done, and only then say so."""
        try:
            with self._telling:
                self.record(block.index, seals)
                self.done[block.index] = 1
                self._written += block.write_box.size
                self._stored += sum(seal.size for seal in seals)
        except OSError as error:
            raise BlockFailed("writing", block, error) from error
        self._tell(event)

    def _tell_filled(self, error: CorruptInputError) -> None:
        self._tell(Filled(f"{error.chunk}: {error.reason}"))

    def _tell(self, event: Event) -> None:
        with self._telling:
            for listener in self.listeners:
                listener(event)

    def _missing(self) -> Room:
        """Return how much room the rest of the output needs."""
        return missing(self.plan, self.done, self._written, self._stored, self.writer.free_bytes())
