"""How is a plan carried out and written? Block by block, on threads of this process.

Each block is read, scaled and written by one thread; as many blocks are in flight as the plan allows, so that while
the device scales one, others are read and written. Two ways lead to a block's input, and to the same bits:

- direct: the thread reads the block's read box, halo included, from the source itself;
- map_overlap: dask reads each input block once and hands its neighbours their halo, window by window.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.base import Cancelled, Engine, Stage
from isovoxel.errors import InterruptedJobError, JobError
from isovoxel.geometry.box import Box, Index3
from isovoxel.planning.plan import Block, Plan
from isovoxel.run.events import BlockDone, Event, JobFinished, JobStarted, Listener
from isovoxel.volumes.base import ReadBox

if TYPE_CHECKING:
    from isovoxel.run.overlap import Window

T = TypeVar("T")


class Writer(Protocol):
    """Where blocks go."""

    def write(self, box: Box, data: NDArray[Any]) -> None:
        """Write the voxels of a box of whole shards; several threads write disjoint boxes at the same time."""
        ...

    def spare(self, cores: int) -> None:
        """Learn how many cores no block uses."""
        ...

    def finish(self) -> None:
        """Mark the output complete, and close."""
        ...

    def close(self) -> None:
        """Let go of what writing holds."""
        ...


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
    done: int = field(default=0, init=False)
    """Blocks written so far."""
    idle: float = field(default=0.0, init=False)
    """Seconds in which the job's threads had no block yet or none any more, all together."""

    def __post_init__(self) -> None:
        self._cancelled = threading.Event()
        self._telling = threading.Lock()
        self._read_seconds: dict[int, float] = {}
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}

    def run(self) -> float:
        """Carry the plan out and return the seconds it took.

        Raises
        ------
        JobError
            If a block fails, or the output cannot be marked complete; the message says what is kept.
        InterruptedJobError
            If the user interrupts; blocks in flight are finished or given up first.
        """
        try:
            return self._carry_out()
        finally:
            self.engine.release()

    def _carry_out(self) -> float:
        began = time.perf_counter()
        self._tell(JobStarted(self.plan))
        self._spare_cores(self.plan.n_blocks)
        pool = ThreadPoolExecutor(self.plan.in_flight, thread_name_prefix="isovoxel")
        failure: BaseException | None = None
        try:
            if self.plan.halo_mode == "direct":
                self._run_direct(pool)
            else:
                self._run_windows(pool)
        except BaseException as error:  # noqa: BLE001 - raised below, when it is known what is kept
            failure = error
        # Blocks in flight still come to their end, and count.
        self._cancelled.set()
        pool.shutdown(wait=True, cancel_futures=True)
        if failure is not None:
            self.writer.close()
        if isinstance(failure, KeyboardInterrupt):
            raise InterruptedJobError(f"interrupted; {self._kept()}") from None
        if isinstance(failure, Exception):
            raise JobError(f"{_reason(failure)}; {self._kept()}") from failure
        if failure is not None:
            raise failure
        try:
            self.writer.finish()
        except OSError as error:
            self.writer.close()
            raise JobError(f"marking the output complete failed: {error.strerror or error}; {self._kept()}") from error
        ended = time.perf_counter()
        seconds = ended - began
        without = self.plan.in_flight - len(self._first)
        self.idle = without * seconds + sum(first - began for first in self._first.values())
        self.idle += sum(ended - last for last in self._last.values())
        self._tell(JobFinished(seconds))
        return seconds

    # ---- direct reads ----------------------------------------------------------------------------------------

    def _run_direct(self, pool: ThreadPoolExecutor) -> None:
        """Keep the pool busy with a bounded number of blocks, however many there are."""
        blocks = self.plan.blocks()
        waiting: set[Future[None]] = set()
        while True:
            room = 2 * self.plan.in_flight - len(waiting)
            waiting |= {pool.submit(self._do_block, block) for block in islice(blocks, room)}
            if not waiting:
                return
            self._spare_cores(len(waiting))
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()

    def _spare_cores(self, blocks: int) -> None:
        """Tell the writer how many cores are left while so many blocks are to be done."""
        self.writer.spare(max(0, self.plan.helpers + 1 - min(blocks, self.plan.in_flight)))

    def _do_block(self, block: Block) -> None:
        if self._cancelled.is_set():
            return
        with self._at_work(), self.engine.staged(block, self.plan) as stage:
            began = time.perf_counter()
            self._guard("reading", block, lambda: self.read(block.read_box, stage.input))
            self._scale_and_write(stage, block, time.perf_counter() - began)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Keep when a thread began with its first block, and when it was done with its last."""
        thread, began = threading.get_ident(), time.perf_counter()
        with self._telling:
            self._first.setdefault(thread, began)
        try:
            yield
        finally:
            with self._telling:
                self._last[thread] = time.perf_counter()

    def _scale_and_write(self, stage: Stage, block: Block, read_seconds: float) -> None:
        began = time.perf_counter()
        scaled = self._guard("scaling", block, lambda: stage.scale(self._cancelled))
        between = time.perf_counter()
        self._guard("writing", block, lambda: self.writer.write(block.write_box, scaled.data))
        self._tell(
            BlockDone(
                index=block.index,
                voxels=block.write_box.size,
                read_seconds=read_seconds,
                wait_seconds=scaled.waited,
                scale_seconds=between - began - scaled.waited,
                write_seconds=time.perf_counter() - between,
            )
        )

    @staticmethod
    def _guard(doing: str, block: Block, do: Callable[[], T]) -> T:
        try:
            return do()
        except Cancelled:
            raise
        except Exception as error:
            raise _BlockFailed(doing, block, error) from error

    # ---- map_overlap -----------------------------------------------------------------------------------------

    def _run_windows(self, pool: ThreadPoolExecutor) -> None:
        """Let dask exchange halos, one window of blocks after the other."""
        # dask is only loaded by jobs that need it.
        import dask

        from isovoxel.run.overlap import Window

        with dask.config.set(scheduler="threads", pool=pool, num_workers=self.plan.in_flight):
            for places in Box.whole(self.plan.block_grid).tiles(self.plan.window):
                window = Window(self.plan, places)
                window.written(self._window_input(window), self._do_overlapped).compute()

    def _window_input(self, window: Window) -> Any:
        """Return the window's input as a dask array, read from the source or taken from the caller's dask array."""
        if self.array is not None:
            return self.array[window.read_box.slices].rechunk(window.input_chunks)

        def read(place: Index3, box: Box) -> NDArray[Any]:
            if self._cancelled.is_set():
                raise Cancelled
            block = self.plan.block_at(place)
            began = time.perf_counter()
            with self._at_work():
                voxels = self._guard("reading", block, lambda: self.read(box))
            self._read_seconds[block.index] = time.perf_counter() - began
            return voxels

        return window.source(read)

    def _do_overlapped(self, voxels: NDArray[Any], block: Block) -> NDArray[Any]:
        if self._cancelled.is_set():
            raise Cancelled
        with self._at_work(), self.engine.staged(block, self.plan) as stage:
            began = time.perf_counter()
            stage.input[...] = voxels
            copied = time.perf_counter() - began
            self._scale_and_write(stage, block, self._read_seconds.pop(block.index, 0.0) + copied)
        return np.ones((1, 1, 1), np.bool_)

    # ---- what happened ---------------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        with self._telling:
            if isinstance(event, BlockDone):
                self.done += 1
            for listener in self.listeners:
                listener(event)

    def _kept(self) -> str:
        return (
            f"{self.done} of {self.plan.n_blocks} blocks are written and the output is marked incomplete; "
            "run it again with --overwrite to begin anew"
        )


class _BlockFailed(Exception):  # noqa: N818 - never seen by a user
    """Carries what was being done with which block when something failed."""

    def __init__(self, doing: str, block: Block, error: Exception) -> None:
        super().__init__(doing, block, error)
        self.doing, self.block, self.error = doing, block, error


def _reason(error: Exception) -> str:
    """Say in a clause what failed, where, and why."""
    if not isinstance(error, _BlockFailed):
        return f"the job failed with {type(error).__name__}: {error}"
    cause = error.error
    box = error.block.read_box if error.doing == "reading" else error.block.write_box
    where = f"{error.doing} block {error.block.index} (z, y, x from {box.start} to {box.stop}) failed"
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return f"{where} because the disk is full; make room"
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else "no reason given"
    return f"{where} with {type(cause).__name__}: {reason}"
