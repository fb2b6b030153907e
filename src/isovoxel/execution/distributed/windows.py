"""Halo exchange between workers by dask's `map_overlap`, one window of blocks after the other.

Each input block is read once, by any worker, and goes to the workers that need parts of it. A block's result is its
`Outcome`, which is recorded as it comes; voxels never reach this process.

What does not go well here (a worker that is lost again and again, memory that is short) is left for direct reads, which
know what to do about it: `run` returns, and the blocks are not done.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.base import normalize_token
from numpy.typing import NDArray

from isovoxel.execution.distributed import rpc
from isovoxel.execution.distributed.rpc import ANSWER_SECONDS, SchedulerGoneError, SchedulerWatch
from isovoxel.execution.distributed.worker_session import Made, Outcome, job_plugin, make_block
from isovoxel.execution.map_overlap import OverlapWindow
from isovoxel.geometry.grid import Box, Index3
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan

WATCH_SECONDS = 1.0
"""How often the scheduler is asked whether the workers are still there, while no block comes back."""
QUIET_SECONDS = 2.0
"""How long to wait for another result when the job ends before its time."""


@dataclass(frozen=True)
class _OnWorker:
    """A callable that uses the `JobPlugin` of the worker that it runs on."""

    name: str
    token: str

    def __dask_tokenize__(self) -> Any:
        return normalize_token((type(self).__name__, self.name, self.token))


class ReadOnWorker(_OnWorker):
    """Reads what several blocks need."""

    def __call__(self, place: Index3, box: Box) -> NDArray[Any]:
        """Return the voxels of a box, for the block at that place of the plan."""
        found: NDArray[Any] = job_plugin(self.name, self.token).do(
            lambda session: session.read(session.plan.block_at(place, box.volume), box)
        )
        return found


class MakeOnWorker(_OnWorker):
    """Scales and writes a block."""

    def __call__(self, voxels: NDArray[Any], block: Block) -> NDArray[Any]:
        """Return the block's index and `Outcome` as the only element of an array."""
        outcome = np.empty((1, 1, 1), object)
        outcome[0, 0, 0] = block.index, make_block(self.name, self.token, block.index, voxels)
        return outcome


@dataclass
class Windows:
    """Makes the blocks of a plan, window by window."""

    client: Any
    """A ``distributed.Client`` that is synchronous."""
    plan: Plan
    """What to do."""
    array: Any
    """The source as a dask array, or None where workers read it."""
    name: str
    """Name of the workers' `JobPlugin`."""
    token: str
    """The token of this run of the job."""
    workers: Sequence[str]
    """Addresses of the workers that take part."""
    take: Callable[[int, str, Outcome], object]
    """Called with each block that is done, and the name of its worker, which is not known."""
    stop: Callable[[Sequence[str]], None]
    """Called where the job ends before its time: blocks in flight finish or give up."""

    def run(self) -> None:
        """Do windows as long as all goes well.

        Raises
        ------
        SchedulerGoneError
            If the scheduler does not answer any more.
        Exception
            What `take` raises.
        """
        self._scheduler = SchedulerWatch(self.client)
        for places in self.plan.windows():
            if not self._do(OverlapWindow(self.plan, places)):
                return

    def _do(self, window: OverlapWindow) -> bool:
        """Do the blocks of a window; False where not all of them are done."""
        from distributed import futures_of

        array = (
            window.source(ReadOnWorker(self.name, self.token))
            if self.array is None
            else self.array[window.read_box.slices].rechunk(window.input_chunks)
        )
        signs = window.written(array, MakeOnWorker(self.name, self.token))
        persisted = self.client.persist(signs, workers=list(self.workers), allow_other_workers=False)
        futures = {future.key: future for future in futures_of(persisted)}  # type: ignore[no-untyped-call]
        del persisted
        back: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for future in futures.values():
            future.add_done_callback(back.put)
        try:
            well = True
            while futures and well:
                came = rpc.drain(back, WATCH_SECONDS)
                well = self._taken(futures, came) if came else self._is_any_there()
        except SchedulerGoneError:
            raise
        except BaseException:
            with contextlib.suppress(Exception):  # why the job ends is known already
                self.stop(self.workers)
                while came := rpc.drain(back, QUIET_SECONDS):
                    self._taken(futures, came)
            raise
        finally:
            for future in futures.values():
                future.release()  # its callback refers to it, so deleting it is not enough
        return well

    def _taken(self, futures: dict[Any, Any], came: Sequence[Any]) -> bool:
        """Take what came back; False where not all of it is blocks that are done."""
        whole = [future.key for future in came if future.status == "finished"]
        results: dict[Any, Any] = {}
        # Whatever it was, direct reads do these blocks again, and look at the scheduler.
        with contextlib.suppress(Exception):
            results = rpc.gather(self.client, whole, seconds=ANSWER_SECONDS)
        well = len(results) == len(came)
        for future in came:
            futures.pop(future.key).release()
        for result in results.values():
            index, outcome = result[0, 0, 0]
            if isinstance(outcome, Made):
                self.take(index, "", outcome)
            else:
                well = False
        return well

    def _is_any_there(self) -> bool:
        """Return whether a worker is there that may do what is left."""
        there = self._scheduler.workers()
        return there is None or any(address in there for address in self.workers)
