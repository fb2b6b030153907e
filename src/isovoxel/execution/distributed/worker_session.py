"""A worker's part of a job: a session that keeps volume, engine and writer open, and makes blocks.

A `JobPlugin` is sent to every worker, and to those that come later. It opens its session when the client asks for it,
before anything is written, or else at the first block. Its name follows from the output: a job that is started again
replaces, and so ends, what an earlier one left running for the same output.

As many blocks as the plan allows hold memory at a time; threads beyond them wait for the disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from distributed import WorkerPlugin, get_worker
from numpy.typing import NDArray

from isovoxel.engines.base import Cancelled
from isovoxel.errors import DeviceLostError, clause
from isovoxel.execution.blocks import BlockMaker
from isovoxel.execution.distributed.worker_info import held_device
from isovoxel.execution.events import BlockDone, Event, Slowed
from isovoxel.execution.executor import BlockFailed, Task
from isovoxel.execution.flushing import FLUSHING, Flusher
from isovoxel.execution.resources import return_freed_memory
from isovoxel.geometry.grid import Box
from isovoxel.object_store.objects import Place, absolute
from isovoxel.output.shard import ShardReceipt
from isovoxel.planning.model import Block
from isovoxel.terminal import carry_trace

log = logging.getLogger("distributed.worker.isovoxel")

MOST_EVENTS = 100
"""How many events of threads without a block are kept until the next block carries them."""
END_SECONDS = 60.0
"""How long blocks in flight may take to finish when a job ends."""


@dataclass(frozen=True, slots=True)
class Made:
    """A block that is on the disk."""

    receipts: tuple[ShardReceipt, ...]
    """Those of its shards."""
    done: BlockDone
    """Its times and sizes."""
    events: tuple[Event, ...]
    """What else happened meanwhile."""


@dataclass(frozen=True, slots=True)
class NotMade:
    """A block that is not on the disk."""

    why: str
    """"block": something failed that has to do with the block. "worker": the worker could not begin with any.
    "lost": its device does not answer this process any more. "cancelled": the job ends."""
    doing: str
    """What was being done with the block, as `BlockFailed` has it."""
    error: Exception
    """What failed."""
    events: tuple[Event, ...] = ()
    """What else happened meanwhile."""


Outcome = Made | NotMade


def plugin_name(output: Place) -> str:
    """Return the name of the plugin that makes an output: the same whenever its job is started."""
    return f"isovoxel-{hashlib.sha256(os.fsencode(str(absolute(output)))).hexdigest()[:16]}"


class ResizableSemaphore:
    """Limits how many blocks hold memory at a time; a context manager."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._taken = 0
        self._free = threading.Condition()

    def __enter__(self) -> None:
        with self._free:
            self._free.wait_for(lambda: self._taken < self.number)
            self._taken += 1

    def __exit__(self, *_: object) -> None:
        with self._free:
            self._taken -= 1
            self._free.notify()

    def halve(self, number: int) -> bool:
        """Halve the slots, unless another thread did so since there were `number`; False where there is only one."""
        with self._free:
            if self.number == 1:
                return False
            if self.number == number:
                self.number = number // 2
            return True


class WorkerSession:
    """A worker's part of one level: opened by the first block, released when all have finished.

    Parameters
    ----------
    task
        What to do.
    device
        The worker's device, as ``--device`` takes it.
    worker
        The worker's name.
    """

    def __init__(self, task: Task, device: str, worker: str) -> None:
        from isovoxel.engines.registry import engine_for

        self.plan, self._worker = task.plan, worker
        self._here = threading.local()
        self._elsewhere: deque[Event] = deque(maxlen=MOST_EVENTS)
        volume, engine = task.open(), engine_for(task.plan, device)
        engine.prepare(task.plan)
        self.slots = ResizableSemaphore(task.plan.in_flight)
        waiting = FLUSHING * self.slots.number
        self._flushing = ThreadPoolExecutor(waiting, thread_name_prefix="flush")
        self._maker = BlockMaker.of_task(task, volume, engine, self._tell)
        self._flusher = Flusher(self._flushing, threading.BoundedSemaphore(waiting), self._maker.patient)

    def make(self, index: int, voxels: NDArray[Any] | None = None) -> Outcome:
        """Make a block, and wait until it is on the disk."""
        self._here.events = events = [self._elsewhere.popleft() for _ in range(len(self._elsewhere))]
        block = self.plan.block(index)
        try:
            receipts, done = self._made(block, voxels)
        except Cancelled as error:
            return NotMade("cancelled", "", error, tuple(events))
        except BlockFailed as failure:
            lost = isinstance(failure.error, DeviceLostError)
            if not lost:
                log.warning("%s with %s", failure, clause(failure.error))
            return NotMade("lost" if lost else "block", failure.doing, portable(failure.error), tuple(events))
        return Made(tuple(receipts), replace(done, worker=self._worker), tuple(events))

    def read(self, block: Block, box: Box) -> NDArray[Any]:
        """Return voxels that several blocks need (map_overlap)."""
        self._here.events = []
        with self.slots:
            return self._maker.read(block, box)

    def cancel(self) -> None:
        """Let blocks give up that wait for the device or for another attempt."""
        self._maker.cancelled.set()

    def release(self) -> None:
        """Free memory and threads, once no block is in flight."""
        self._flushing.shutdown()
        self._maker.close()

    def _made(self, block: Block, voxels: NDArray[Any] | None) -> tuple[list[ShardReceipt], BlockDone]:
        """Make a block: with fewer in flight where memory is short, and where it is the only one, shard by shard."""
        while True:
            number = self.slots.number
            try:
                return self._maker.make(block, self._flusher, voxels, self.slots)
            except BlockFailed as failure:
                if not failure.short_of_memory:
                    raise
            if not self.slots.halve(number):
                return self._maker.make_by_shards(block, self._flusher, self.slots)
            self._maker.engine.release()
            self._tell(Slowed(self.slots.number))

    def _tell(self, event: Event) -> None:
        getattr(self._here, "events", self._elsewhere).append(event)


class JobPlugin(WorkerPlugin):
    """Plugin of distributed that carries a level to a worker, and keeps its `WorkerSession` there.

    Parameters
    ----------
    name
        As `plugin_name` returns it.
    token
        Tells this run of the job from others.
    task
        What to do.
    """

    def __init__(self, name: str, token: str, task: Task) -> None:
        self.name, self.token, self._task = name, token, task

    async def setup(self, worker: Any) -> None:
        """Begin on a worker; distributed calls it there."""
        self._worker = str(worker.name)
        # It looks at each thread a hundred times a second, which takes ninety threads most of the interpreter.
        self._profiling = worker.periodic_callbacks.get("profile")
        if self._profiling is not None:
            self._profiling.stop()
        self._changed = threading.Condition()
        self._session: WorkerSession | None = None
        self._busy, self._ended = 0, False

    async def teardown(self, worker: Any) -> None:
        """End on a worker; distributed calls it when the job ends, a plugin replaces this one, or the worker ends."""
        del worker
        await asyncio.to_thread(self.end)
        if self._profiling is not None:
            self._profiling.start()

    def do(self, work: Callable[[WorkerSession], Any]) -> Any:
        """Call a function with the session, which is opened if need be.

        Raises
        ------
        Cancelled
            If the job has ended here.
        """
        session = self._enter()
        try:
            return work(session)
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _enter(self) -> WorkerSession:
        with self._changed:
            if self._ended:
                raise Cancelled
            if self._session is None:
                device = held_device(self._worker)
                self._session = WorkerSession(self._task, str(device.index), self._worker)
            self._busy += 1
            return self._session

    def prepare(self) -> None:
        """Open what the first block would open: volume, engine and writer."""
        self.do(lambda _session: None)

    def cancel(self) -> None:
        """Let blocks in flight finish or give up, and begin no other."""
        with self._changed:
            self._ended = True
            if self._session is not None:
                self._session.cancel()

    def end(self) -> None:
        """Cancel, wait for the blocks in flight, and free everything."""
        self.cancel()
        with self._changed:
            idle = self._changed.wait_for(lambda: not self._busy, END_SECONDS)
            if idle and self._session is not None:
                self._session.release()
                self._session = None
        return_freed_memory(self._task.plan.host.baseline)


def job_plugin(name: str, token: str) -> JobPlugin:
    """Return this worker's plugin of that name and run.

    Raises
    ------
    Cancelled
        If that run has ended here.
    """
    found = get_worker().plugins.get(name)
    if not isinstance(found, JobPlugin) or found.token != token:
        raise Cancelled
    return found


def make_block(name: str, token: str, index: int, voxels: NDArray[Any] | None = None) -> Outcome:
    """Make a block on the worker that this runs on; every failure is a value."""
    try:
        outcome: Outcome = job_plugin(name, token).do(lambda session: session.make(index, voxels))
    except Cancelled as error:
        return NotMade("cancelled", "", error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the worker's
        log.warning("the job cannot begin here: %s", clause(error))
        return NotMade("lost" if isinstance(error, DeviceLostError) else "worker", "", portable(error))
    return outcome


async def prepare(name: str, token: str, dask_worker: Any = None) -> str:
    """Open what the first block would open, on the worker that this runs on.

    Returns
    -------
    str
        Why that fails, or nothing; nothing also where the device is lost, for which a fresh process helps.
    """
    found = dask_worker.plugins.get(name)
    try:
        if isinstance(found, JobPlugin) and found.token == token:
            await asyncio.to_thread(found.prepare)
    except DeviceLostError:
        return ""
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the worker's
        return clause(error)
    return ""


async def cancel_blocks(name: str, token: str, dask_worker: Any = None) -> None:
    """Let blocks in flight finish or give up, on the worker that this runs on."""
    found = dask_worker.plugins.get(name)
    if isinstance(found, JobPlugin) and found.token == token:
        await asyncio.to_thread(found.cancel)


def portable(error: Exception) -> Exception:
    """Return an error that can be pickled: itself, or one of the same text."""
    carry_trace(error, error)
    try:
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - of our own making
    except Exception:  # noqa: BLE001 - libraries raise what they like
        again = None
    if type(again) is type(error) and str(again) == str(error):
        return error
    other = OSError(error.errno, error.strerror) if isinstance(error, OSError) else RuntimeError(clause(error))
    carry_trace(other, error)
    return other
