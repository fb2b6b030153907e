"""Executor on the workers of a cluster: this process assigns blocks, and keeps lock and ledger.

1. Before anything is written, every worker must see the client's input, and the folder that the output goes to: the
   client writes a file beside the ledger, each worker reads it and writes one of its own. Then it gets the job as a
   plugin, which ends what an earlier job has left running for the same output.
2. Blocks go to workers (`isovoxel.execution.distributed.submission`), are made there
   (`isovoxel.execution.distributed.worker_session`), and are recorded here as they come back.

=============================  ===================================================================================
a worker is lost               its blocks go to others; one that comes takes part
a worker's device is lost      its process is started again; where that does not help it is set aside
a worker cannot begin          it is set aside, as long as another one makes blocks
a block fails                  another worker tries; where it fails there too, or there is none, the job ends
no worker, or no scheduler     the job ends after a while, and can be resumed
=============================  ===================================================================================

With `map_overlap`, dask exchanges halos between workers, one window of blocks after the other: each input
block is read once, by any worker, and goes to the workers that need parts of it; voxels never reach this process. What
does not go well here (a worker that is lost again and again, memory that is short) is left for direct reads, which
know what to do about it: `run` returns, and the blocks are not done.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import time
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from dask.base import normalize_token
from numpy.typing import NDArray

from isovoxel.errors import ClusterError, CorruptInputError, DeviceError, OptionError, clause
from isovoxel.execution.distributed import rpc
from isovoxel.execution.distributed.connect import Cluster
from isovoxel.execution.distributed.rpc import (
    ANSWER_SECONDS,
    SchedulerGoneError,
    SchedulerWatch,
    add_plugin,
    ask_workers,
    remove_plugin,
    waiting,
)
from isovoxel.execution.distributed.submission import WINDOW, BlockOutcome, OutcomeKind, Submission
from isovoxel.execution.distributed.worker_info import (
    WorkerInfo,
    WorkerPool,
    file_faults,
    same_clesperanto,
    survey,
)
from isovoxel.execution.distributed.worker_session import (
    JobPlugin,
    Made,
    Outcome,
    cancel_blocks,
    job_plugin,
    make_block,
    plugin_name,
    prepare,
)
from isovoxel.execution.events import Listener, WorkerJoined
from isovoxel.execution.executor import BlockFailed, Elapsed, LevelProgress, Task, is_full
from isovoxel.execution.map_overlap import OverlapWindow
from isovoxel.execution.resources import return_freed_memory
from isovoxel.geometry.grid import Box, Index3
from isovoxel.object_store.objects import ObjectPlace, Place, absolute
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.model import Block
from isovoxel.readers.base import Volume
from isovoxel.terminal import trace

WATCH_SECONDS = 1.0
"""How often the scheduler is asked whether the workers are still there, while no block comes back."""
QUIET_SECONDS = 2.0
"""How long to wait for another result when the job ends before its time."""
MOST_PICKLED = 16 * 2**20
"""Most bytes that a job may be when it is sent to workers: each of them gets all of it."""
TELL_SECONDS = 120.0
"""How long workers may take to receive a level, including the end of what they did before."""
PREPARE_SECONDS = 300.0
"""How long they may take to build kernels, and to pin memory: seconds for gigabytes."""
LEAVE_SECONDS = 10.0
"""How long workers may take to end a job; one that hangs does not delay a job that is done for longer."""


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


class DistributedExecutor(AbstractContextManager["DistributedExecutor"]):
    """Makes blocks on the workers of a cluster; an `Executor`.

    Parameters
    ----------
    cluster
        The scheduler and its workers.
    whole
        The output that all tasks are parts of, where these have outputs of their own, one after the other.
    """

    def __init__(self, cluster: Cluster, whole: Place | None = None) -> None:
        self.cluster, self.client = cluster, cluster.client
        self._whole = whole
        self.members = {member.address: member for member in cluster.pool.members}
        """The workers that take part, by their addresses; those that came later too."""
        self._introduced: set[str] = set()
        """Addresses of workers that were reported."""
        self._name = ""
        """Name of the plugin that workers have been given, or nothing."""

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if self._name and self.cluster.ends and error is None and not isinstance(self._task.output, ObjectPlace):
            self.cluster.left.append(self._name)  # the next job takes it back, if there is one
        elif self._name:  # with the folder for files that wait for their upload
            with contextlib.suppress(Exception), self._waiting("workers to end their part", LEAVE_SECONDS):
                remove_plugin(self.client, self._name, seconds=LEAVE_SECONDS)  # one that does not answer has gone

    def prepare(self, task: Task, volume: Volume, listener: Listener) -> None:
        """Send a level to the workers, and let them build kernels; see `Executor`.

        Raises
        ------
        ClusterError
            If a worker does not see input or output, or none can begin.
        OptionError
            If the input cannot be sent to them.
        """
        is_first = not self._name
        if not task.plan.level:
            self._introduced.clear()  # each output is told who makes it
        self._task, self._identity, self._array, self._listener = task, volume.identity, volume.array, listener
        self._check_size()
        if is_first:
            self._check_files()
        else:
            return_freed_memory(task.plan.host.baseline)  # of the level before
            # Those that have gone are not asked for again; those that come will be.
            self.members = {a: member for a, member in self.members.items() if not self._unfit(member)}
        self._register()
        self._build()

    def run(self, progress: LevelProgress, *, last: bool) -> Elapsed:  # noqa: ARG002 - workers keep nothing
        """Make blocks on the workers; see `Executor`."""
        plan, members = self._task.plan, self.members
        results = BlockResults(progress)
        began = time.perf_counter()
        try:
            if plan.halo_mode == "map_overlap":
                for address, member in members.items():
                    self.admit(address, member.name)
                self._run_windows(results)
            Submission(
                self.client,
                partial(make_block, self._name, self._token),
                progress.done,
                results.judge,
                tell=progress.tell,
                admit=self.admit,
                stop=self.stop,
                at_once=WINDOW * plan.in_flight,
                # Texture units round as they like: under cle two devices need not make the same bits.
                twice=plan.engine != "cle" or len({m.device.name for m in members.values()}) == 1,
            ).run()
        except Exception as failure:  # noqa: BLE001 - raised again
            progress.fail(failure)
        seconds = time.perf_counter() - began
        threads = plan.in_flight * len(self.cluster.pool.members)
        return Elapsed(seconds, max(0.0, threads * seconds - results.busy))

    def _run_windows(self, results: BlockResults) -> None:
        """Make blocks window by window, as long as all goes well."""
        scheduler = SchedulerWatch(self.client)
        for places in self._task.plan.windows():
            if not self._window(OverlapWindow(self._task.plan, places), scheduler, results):
                return

    def _window(self, window: OverlapWindow, scheduler: SchedulerWatch, results: BlockResults) -> bool:
        """Make the blocks of a window; False where not all of them are done."""
        from distributed import futures_of

        array = (
            window.source(ReadOnWorker(self._name, self._token))
            if self._array is None
            else self._array[window.read_box.slices].rechunk(window.input_chunks)
        )
        signs = window.written(array, MakeOnWorker(self._name, self._token))
        persisted = self.client.persist(signs, workers=list(self.members), allow_other_workers=False)
        futures = {future.key: future for future in futures_of(persisted)}  # type: ignore[no-untyped-call]
        del persisted
        back: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for future in futures.values():
            future.add_done_callback(back.put)
        try:
            well = True
            while futures and well:
                if came := rpc.drain(back, WATCH_SECONDS):
                    well = self._taken(futures, came, results)
                else:
                    there = scheduler.workers()
                    well = there is None or any(address in there for address in self.members)
        except SchedulerGoneError:
            raise
        except BaseException:
            with contextlib.suppress(Exception):  # why the job ends is known already
                self.stop(list(self.members))
                while came := rpc.drain(back, QUIET_SECONDS):
                    self._taken(futures, came, results)
            raise
        finally:
            for future in futures.values():
                future.release()  # its callback refers to it, so deleting it is not enough
        return well

    def _taken(self, futures: dict[Any, Any], came: Sequence[Any], results: BlockResults) -> bool:
        """Take what came back of a window; False where not all of it is blocks that are done."""
        whole = [future.key for future in came if future.status == "finished"]
        found: dict[Any, Any] = {}
        # Whatever it was, direct reads do these blocks again, and look at the scheduler.
        with contextlib.suppress(Exception):
            found = rpc.gather(self.client, whole, seconds=ANSWER_SECONDS)
        well = len(found) == len(came)
        for future in came:
            futures.pop(future.key).release()
        for result in found.values():
            index, outcome = result[0, 0, 0]
            if isinstance(outcome, Made):
                results.judge(index, "", outcome)
            else:
                well = False
        return well

    def _check_files(self) -> None:
        members = tuple(self.members.values())
        for address, what in file_faults(self.client, self._task, self._identity, members).items():
            member = self.members[address]
            raise ClusterError(
                f"the worker {member.name} on {member.host} {what}; give paths that all workers see, the same"
            )

    def _register(self) -> None:
        """Send the level to all workers, each of which first ends what it does for a level before."""
        source = replace(self._task.source, given=_absolute(self._task.source.given))
        task = replace(self._task, output=absolute(self._task.output), source=source)
        self._name, self._token = plugin_name(self._whole or task.output), uuid.uuid4().hex
        try:
            with self._waiting("workers to take the job", TELL_SECONDS):
                while self.cluster.left:
                    name = self.cluster.left.pop()
                    with contextlib.suppress(Exception):  # of a worker that is gone there is nothing to take back
                        remove_plugin(self.client, name, seconds=LEAVE_SECONDS)
                add_plugin(self.client, JobPlugin(self._name, self._token, task), self._name, seconds=TELL_SECONDS)
        except Exception as error:
            raise ClusterError(f"cannot send the job to the workers: {clause(error)}") from error

    def _build(self) -> None:
        """Let the workers build kernels and allocate; one that cannot is set aside at its first block."""
        with self._waiting("workers to build kernels and take memory", PREPARE_SECONDS):
            said = ask_workers(
                self.client, prepare, self._name, self._token, workers=list(self.members), seconds=PREPARE_SECONDS
            )
        reasons = [answer if isinstance(answer, str) else clause(answer) for answer in said.values()]
        if reasons and all(reasons):
            raise ClusterError(f"no worker can begin: {reasons[0]}")

    def _waiting(self, what: str, seconds: float) -> AbstractContextManager[None]:
        return waiting(self._listener, what, seconds)

    def _check_size(self) -> None:
        import cloudpickle

        try:
            size = len(cloudpickle.dumps(self._task))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise OptionError(
                f"the input cannot be sent to workers ({clause(error)}); give the path of a file that they see"
            ) from error
        if size > MOST_PICKLED:
            raise OptionError(
                f"the input takes {human_bytes(size)} to be sent to each worker; give the path of a file that they see"
            )

    def admit(self, address: str, name: str) -> str:
        """Return why a worker that came later must not take part, or nothing."""
        if (member := self.members.get(address)) is None:
            try:
                found = survey(self.client, self.cluster.requested, [address]).members
                if not found:
                    return "it has gone again"
                (member,) = found
                if other := self._other_clesperanto(member):
                    return f"it cannot take part: {other}"
                said = file_faults(self.client, self._task, self._identity, [member])
            except (ClusterError, DeviceError) as error:
                return str(error)
            if reason := said.get(address) or self._unfit(member):
                return f"it cannot take part: it {reason}" if address in said else f"it cannot take part: {reason}"
            self.members[address] = member
        if address not in self._introduced:
            self._introduced.add(address)
            self._listener(WorkerJoined(name, member.host, member.device.name, member.pci))
        return ""

    def _other_clesperanto(self, member: WorkerInfo) -> str:
        """Return how a worker's clEsperanto differs from that of the job, or nothing."""
        wanted = self._task.plan.library
        if not wanted:
            return ""
        found, why_not = same_clesperanto(self.client, WorkerPool((member,)))
        return "" if found == wanted else f"its clEsperanto is not {wanted}: {found or why_not}"

    def _unfit(self, member: WorkerInfo) -> str:
        """Return why the job's plan does not suit a worker, or nothing."""
        plan = self._task.plan
        if plan.engine == "cle" and member.device.name not in plan.device.name:
            return (
                f"its device is {member.device.name}, and engine cle gives other bits there than on {plan.device.name}"
            )
        if excess := plan.cost.excess(member.device, 1):
            return f"a block takes {excess}"
        return ""

    def stop(self, addresses: Sequence[str]) -> None:
        """Let blocks in flight finish or give up."""
        with self._waiting("blocks in flight to end", TELL_SECONDS):
            ask_workers(self.client, cancel_blocks, self._name, self._token, workers=addresses, seconds=TELL_SECONDS)


def _absolute(source: Any) -> Any:
    """Return the input by a path that does not depend on the working directory."""
    return str(Path(source).absolute()) if isinstance(source, str | Path) and "://" not in str(source) else source


class BlockResults:
    """Records what comes back from workers, and decides what becomes of each block.

    Parameters
    ----------
    progress
        Takes each block that is on the disk.
    """

    def __init__(self, progress: LevelProgress) -> None:
        self.busy = 0.0
        """Seconds in which a thread had a block, summed over threads."""
        self._progress = progress
        self._failed: set[int] = set()

    def judge(self, index: int, _worker: str, outcome: Outcome) -> BlockOutcome:
        """Record what a worker made of a block, and return what that means."""
        for event in outcome.events:
            self._progress.tell(event)
        if isinstance(outcome, Made):
            self._progress.finish(index, outcome.receipts, outcome.done)
            self.busy += outcome.done.read_seconds + outcome.done.wait_seconds
            self.busy += outcome.done.scale_seconds + outcome.done.write_seconds
            return BlockOutcome(OutcomeKind.DONE)
        trace(outcome.error)
        said = clause(outcome.error)
        match outcome.why:
            case "cancelled":
                return BlockOutcome(OutcomeKind.AGAIN)
            case "lost":
                return BlockOutcome(OutcomeKind.RESTART, str(outcome.error))
            case "worker":
                return BlockOutcome(OutcomeKind.BROKEN, said)
        failure = BlockFailed(outcome.doing, self._progress.plan.block(index), outcome.error)
        failure.__cause__ = outcome.error
        if isinstance(outcome.error, CorruptInputError) or is_full(outcome.error) or index in self._failed:
            raise failure  # no other worker fares better
        self._failed.add(index)
        return BlockOutcome(OutcomeKind.ELSEWHERE, said, failure)
