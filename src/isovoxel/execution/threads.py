"""Make the blocks of a level on threads of this process.

Each block is read, scaled and encoded by one thread; as many blocks are in flight as the plan allows, so that while
the device scales one, others are read and encoded. Then another thread waits until its shards are on the disk, which
takes neither memory nor a processor. Two ways lead to a block's input, and to the same bits:

- direct: the thread reads the block's read box, halo included, from the source itself;
- map_overlap: dask reads each input block once and hands its neighbours their halo, window by window.

Not every failure ends a job:

==========================  =====================================================================================
a read or a write           tried again, where that may help (`isovoxel.object_store.retries`)
too little host memory      half as many blocks in flight; where there is one only, a shard of it at a time
too little device memory    the engine scales the block in pieces (`isovoxel.engines.pipeline`); with no room for the
                            smallest piece it is tried again
a device that is lost       the rest of the job, further levels included, is done in a process apart
                            (`isovoxel.execution.subprocess`)
==========================  =====================================================================================
"""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import BoundedSemaphore, Thread, current_thread
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.base import Cancelled, Engine
from isovoxel.engines.registry import engine_for
from isovoxel.errors import DeviceLostError, clause
from isovoxel.execution.blocks import BlockMaker
from isovoxel.execution.events import BlockDone, Listener, Retried, Slowed
from isovoxel.execution.executor import BlockFailed, Elapsed, InterruptedAgain, LevelProgress, Task
from isovoxel.execution.flushing import FLUSHING, Flusher, Flushing
from isovoxel.execution.resources import return_freed_memory
from isovoxel.execution.subprocess import SubprocessExecutor
from isovoxel.object_store import retries
from isovoxel.object_store.retries import carried, is_transient, patience
from isovoxel.output.shard import ShardReceipt
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume

if TYPE_CHECKING:
    from isovoxel.execution.map_overlap import OverlapWindow


@dataclass(eq=False)
class ThreadExecutor(AbstractContextManager["ThreadExecutor"]):
    """Makes blocks on threads of this process, as long as its device serves it; an `Executor`."""

    _device: str
    """Where to compute, as ``--device`` takes it."""
    _engine: Engine | None = field(default=None, init=False)
    _apart: SubprocessExecutor | None = field(default=None, init=False)

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if self._engine is not None and not isinstance(error, InterruptedAgain):
            self._engine.release()

    def prepare(self, task: Task, volume: Volume, listener: Listener) -> None:
        """Open the engine, and build its kernels; see `Executor`."""
        if self._engine is not None:
            return_freed_memory(task.plan.host.baseline)  # of the level before
        self._task, self._volume = task, volume
        if self._apart is None:
            try:
                if self._engine is None or self._engine.name != task.plan.engine:
                    before, self._engine = self._engine, engine_for(task.plan, self._device)
                    if before is not None:
                        self._engine.take_over(before)
                with ThreadPoolExecutor(1) as compiling:
                    prepared = compiling.submit(self._engine.prepare, task.plan)
                    # They take as long to load as kernels take to build.
                    import isovoxel.output.ome_zarr
                    import isovoxel.output.writer  # noqa: F401

                    prepared.result()
            except DeviceLostError as error:  # by what this process did before
                self._apart = SubprocessExecutor(self._device, str(error))
        if self._apart is not None:
            self._apart.prepare(task, volume, listener)

    def run(self, progress: LevelProgress, *, last: bool) -> Elapsed:
        """Make the blocks here, or what is left of them in a process apart; see `Executor`."""
        if self._apart is None and self._engine is not None:
            maker = BlockMaker.of_task(self._task, self._volume, self._engine, progress.tell)
            try:
                return ThreadRun(progress, maker, self._volume.array).run(keep_hosts=not last)
            except DeviceLostError as error:
                self._apart = SubprocessExecutor(self._device, str(error))
                self._apart.prepare(self._task, self._volume, progress.tell)
        assert self._apart is not None  # noqa: S101 - for type checkers: `prepare` was called
        return self._apart.run(progress, last=last)


@dataclass(eq=False)
class ThreadRun:
    """One run of the blocks of a level on threads."""

    progress: LevelProgress
    """Takes each block that is on the disk."""
    _maker: BlockMaker
    """Makes a block; it is closed in the end."""
    _array: Any = None
    """The source as a dask array, where it is one."""
    plan: Plan = field(init=False)
    """The level's, as it is run."""
    in_flight: int = field(init=False)
    """How many blocks are in flight: fewer than planned where the host has too little memory."""
    _unflushed: Counter[int] = field(default_factory=Counter, init=False)
    """How often the shards of a block could not be flushed."""

    def run(self, *, keep_hosts: bool = False) -> Elapsed:
        """Make all blocks that are not done.

        Parameters
        ----------
        keep_hosts
            Whether the engine keeps host memory in the end, for a level to come.

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
        self.plan = self.progress.plan
        threads = self.in_flight = self.plan.in_flight
        # Flush on separate threads, so that encoders keep their memory warm.
        waiting = FLUSHING * threads
        try:
            with self._threads(waiting, "flush", ends=True) as pool:
                flusher = Flusher(pool, BoundedSemaphore(waiting), self._maker.patient)
                if self.plan.halo_mode == "map_overlap":
                    self._run_windows(flusher)
                again: deque[int] = deque()
                left = (index for index in range(self.plan.n_blocks) if not self.progress.done[index])
                while short := self._make_until_short(flusher, again, left):
                    if self.in_flight > 1:
                        again.extend(short)
                        self._slow_down()
                        continue
                    for index in short:  # which the memory holds shard by shard at most
                        receipts, event = self._maker.make_by_shards(self.plan.block(index), flusher)
                        self.progress.finish(index, receipts, event)
        except InterruptedAgain:
            raise  # even freeing memory waits for the device
        except Exception as failure:  # noqa: BLE001 - raised again
            self._maker.close()
            self.progress.fail(failure)
        except KeyboardInterrupt:
            self._maker.close()
            raise
        ended = time.perf_counter()
        self._maker.close(keep_hosts=keep_hosts)  # which takes as long as getting the memory took
        return Elapsed(ended - began, self._maker.idle(threads, began, ended))

    # ---- direct reads ----------------------------------------------------------------------------------------

    def _make_until_short(self, flusher: Flusher, again: deque[int], left: Iterator[int]) -> list[int]:
        """Make blocks, a bounded number at a time, however many there are, until memory is short.

        Returns
        -------
        list of int
            Those for which it was; the others that were begun are done.
        """
        encoding: dict[Future[Any], int] = {}
        waiting: dict[Future[Any], int] = {}
        # Waiting for any of so many futures takes a lock of each, time and again.
        ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        short: list[int] = []
        with self._threads(self.in_flight, "isovoxel") as pool:
            while True:
                while not short and len(encoding) < 2 * self.in_flight:
                    index = again.popleft() if again else next(left, None)
                    if index is None:
                        break
                    future: Future[Any] = pool.submit(self._encode, index, flusher)
                    encoding[future] = index
                    future.add_done_callback(ended.put)
                if not encoding and not waiting:
                    return short
                self._maker.spare_cores(min(len(encoding), self.in_flight))
                future = ended.get()
                index = encoding.pop(future) if future in encoding else waiting.pop(future)
                try:
                    flushed = future.result()
                    if isinstance(flushed, Future):
                        waiting[flushed] = index
                        flushed.add_done_callback(ended.put)
                    elif flushed is False:
                        again.append(index)
                except BlockFailed as error:
                    if not error.short_of_memory:
                        raise
                    short.append(index)

    def _encode(self, index: int, flusher: Flusher) -> Future[bool] | None:
        """Read, scale and encode a block, and leave it to threads that wait for the disk; nothing if cancelled."""
        attempts = self._unflushed[index]
        if attempts and self._maker.cancelled.wait(retries.PAUSES[attempts - 1]):
            return None
        block = self.plan.block(index)
        try:
            shards = Flushing(flusher, block, self._flushed)
            return shards.end(self._maker.encode(block, shards.add))
        except Cancelled:
            return None

    def _flushed(self, block: Block, receipts: list[ShardReceipt] | Exception, event: BlockDone) -> bool:
        """Note that a block is on the disk; False where it must be made again."""
        if isinstance(receipts, list):
            self.progress.finish(block.index, receipts, event)
            return True
        attempts = self._unflushed[block.index]
        if not is_transient(receipts) or attempts == len(retries.PAUSES):
            raise BlockFailed("writing", block, receipts) from receipts
        self._unflushed[block.index] += 1
        self.progress.tell(Retried(block.index, "writing", clause(receipts), retries.PAUSES[attempts], block.level))
        return False

    def _slow_down(self) -> None:
        """Continue with half as many blocks in flight."""
        self.in_flight = max(1, self.in_flight // 2)
        self._maker.engine.release()
        self.progress.tell(Slowed(self.in_flight))

    @contextmanager
    def _threads(self, number: int, name: str, *, ends: bool = False) -> Iterator[ThreadPoolExecutor]:
        """Lend threads for blocks; whatever ends them, blocks in flight come to their end or give up, and count.

        With `ends`, all that was given to them comes to its end, even where no thread has begun with it yet.
        """
        begun: list[Thread] = []
        with patience(ended=self._maker.cancelled):  # after which a pool's threads try everything once
            pool = ThreadPoolExecutor(number, name, carried(lambda: begun.append(current_thread())))
        try:
            yield pool
        except InterruptedAgain:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        except BaseException:
            self._maker.cancelled.set()
            try:
                pool.shutdown(cancel_futures=not ends)
                for thread in begun:  # one that was interrupted while it was started is unknown to the pool
                    thread.join()
            except KeyboardInterrupt as again:
                raise InterruptedAgain(getattr(again, "signal", None)) from again
            raise
        pool.shutdown()

    # ---- map_overlap -----------------------------------------------------------------------------------------

    def _run_windows(self, flusher: Flusher) -> None:
        """Let dask exchange halos, one window of blocks after the other, as long as memory suffices for that."""
        # dask is only loaded by jobs that need it.
        import dask

        from isovoxel.execution.map_overlap import OverlapWindow

        workers, short = self.in_flight, False
        self._maker.spare_cores(min(self.plan.n_blocks, workers))
        with (
            self._threads(workers, "isovoxel") as pool,
            dask.config.set(scheduler="threads", pool=pool, num_workers=workers),
        ):
            for places in self.plan.windows():
                window = OverlapWindow(self.plan, places)
                try:
                    write = partial(self._make_overlapped, flusher)
                    window.written(self._window_input(window), write).compute()
                except (BlockFailed, MemoryError) as error:
                    if isinstance(error, BlockFailed) and not error.short_of_memory:
                        raise
                    short = True
                    break
        if short:
            self._slow_down()

    def _window_input(self, window: OverlapWindow) -> Any:
        """Return the window's input as a dask array, read from the source or taken from the caller's dask array."""
        if self._array is not None:
            return self._array[window.read_box.slices].rechunk(window.input_chunks)

        return window.source(lambda place, box: self._maker.read(self.plan.block_at(place, box.volume), box))

    def _make_overlapped(self, flusher: Flusher, voxels: NDArray[Any], block: Block) -> NDArray[Any]:
        receipts, event = self._maker.make(block, flusher, voxels)
        self.progress.finish(block.index, receipts, event)
        return np.ones((1, 1, 1), np.bool_)
