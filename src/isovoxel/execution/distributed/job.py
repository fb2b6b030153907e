"""How is a plan carried out by many workers? This process says who makes which block, and keeps lock and ledger.

1. Before anything is written, every worker is asked whether it sees input and output, and is told of the job, which
   ends what a job of before has left running for the same output.
2. Blocks go to workers (`isovoxel.execution.distributed.submit`), are made there
   (`isovoxel.execution.distributed.worker_session`), and are noted here as they come back.

=============================  ===================================================================================
a worker is lost               its blocks go to others; one that comes takes part
a worker's device is lost      its process is started again; where that does not help it is set aside
a worker cannot begin          it is set aside, as long as another one does blocks
a block fails                  another worker tries; where it fails there too, or there is none, the job ends
no worker, or no scheduler     the job ends after a while, and can be gone on with
=============================  ===================================================================================
"""

from __future__ import annotations

import contextlib
import pickle
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from isovoxel.errors import (
    ClusterError,
    CorruptInputError,
    DeviceError,
    JobError,
    OptionError,
)
from isovoxel.execution.distributed.connect import Cluster
from isovoxel.execution.distributed.outcomes import Answer, BlockOutcome, NoWorkersLeftError
from isovoxel.execution.distributed.rpc import add_plugin, ask_workers, remove_plugin, waiting
from isovoxel.execution.distributed.shared_files import blind
from isovoxel.execution.distributed.submit import WINDOW, Submission
from isovoxel.execution.distributed.windows import Windows
from isovoxel.execution.distributed.worker_info import WorkerInfo, WorkerPool, same_clesperanto, survey
from isovoxel.execution.distributed.worker_session import (
    JobPlugin,
    Made,
    Outcome,
    cancel_blocks,
    job_plugin_of,
    make_block,
    prepare,
)
from isovoxel.execution.events import Listener, WorkerJoined
from isovoxel.execution.retry import BlockFailed, Room, clause, is_full, missing
from isovoxel.execution.task import Task
from isovoxel.object_store.place import Place, absolute
from isovoxel.output.shard import ShardReceipt
from isovoxel.planning.memory import human_bytes
from isovoxel.terminal import trace

MOST_PICKLED = 16 * 2**20
"""Most bytes that a job may be when it is sent to workers: each of them gets all of it."""
TELL_SECONDS = 120.0
"""How long workers may take to be told of a job, the end of what they did before included."""
PREPARE_SECONDS = 300.0
"""How long they may take to build kernels, and to pin memory: seconds for gigabytes."""
BYE_SECONDS = 20.0
"""How long they may take to end it: one that is silent, though connected, does not hold up a job that is done."""


@dataclass
class Crew:
    """The workers of one job, told of it; a context manager that ends it there."""

    cluster: Cluster
    """The scheduler and its workers."""
    task: Task
    """What to do."""
    identity: Mapping[str, Any]
    """What tells the input from another one."""
    folder: Place
    """The ledger's."""
    listener: Listener
    """Told what happens."""
    after: Crew | None = None
    """The crew of the level before: its workers have been asked what they see, those that came later too."""
    token: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)
    """Tells this run of the job from others."""

    def __post_init__(self) -> None:
        self.client = self.cluster.client
        self.members = {member.address: member for member in self.cluster.fleet.members}
        self.name = job_plugin_of(self.task.output)
        self.introduced: set[str] = set()
        """Addresses of workers that were told of."""
        if self.after is not None:
            # Those that have gone are not asked for again; those that come will be.
            self.members = {a: member for a, member in self.after.members.items() if not self._unfit(member)}
            self.introduced = self.after.introduced

    @contextlib.contextmanager
    def told(self) -> Iterator[Crew]:
        """Tell the workers of the job, and at the end that it has ended.

        Raises
        ------
        ClusterError
            If a worker does not see input or output, or none can begin.
        OptionError
            If the input cannot be sent to them.
        """
        self._check_size()
        if self.after is None:
            self._check_sight()
        try:
            self._register()
            self._prepare()
            yield self
        finally:
            with contextlib.suppress(Exception), self._waiting("workers to end their part", BYE_SECONDS):
                remove_plugin(self.client, self.name, seconds=BYE_SECONDS)  # who does not answer is not there

    def _check_sight(self) -> None:
        members = tuple(self.members.values())
        for address, what in blind(self.client, self.task, self.identity, self.folder, members).items():
            member = self.members[address]
            raise ClusterError(
                f"the worker {member.name} on {member.host} {what}; give paths that all workers see, the same"
            )

    def _register(self) -> None:
        task = replace(self.task, output=absolute(self.task.output), source=_absolute(self.task.source))
        try:
            with self._waiting("workers to take the job", TELL_SECONDS):
                add_plugin(self.client, JobPlugin(self.name, self.token, task), self.name, seconds=TELL_SECONDS)
        except Exception as error:
            raise ClusterError(f"the workers cannot be told of the job: {clause(error)}") from error

    def _prepare(self) -> None:
        """Let the workers build kernels and allocate; one that cannot shows at its first block, and is set aside."""
        with self._waiting("workers to build kernels and take memory", PREPARE_SECONDS):
            said = ask_workers(
                self.client, prepare, self.name, self.token, workers=list(self.members), seconds=PREPARE_SECONDS
            )
        reasons = [answer if isinstance(answer, str) else clause(answer) for answer in said.values()]
        if reasons and all(reasons):
            raise ClusterError(f"no worker can begin: {reasons[0]}")

    def _waiting(self, what: str, seconds: float) -> AbstractContextManager[None]:
        return waiting(self.listener, what, seconds)

    def _check_size(self) -> None:
        import cloudpickle

        try:
            size = len(cloudpickle.dumps(self.task))
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
                found = survey(self.client, self.cluster.wishes, [address]).members
                if not found:
                    return "it has gone again"
                (member,) = found
                if other := self._other_clesperanto(member):
                    return f"it cannot take part: {other}"
                said = blind(self.client, self.task, self.identity, self.folder, [member])
            except (ClusterError, DeviceError) as error:
                return str(error)
            if reason := said.get(address) or self._unfit(member):
                return f"it cannot take part: it {reason}" if address in said else f"it cannot take part: {reason}"
            self.members[address] = member
        if address not in self.introduced:
            self.introduced.add(address)
            self.listener(WorkerJoined(name, member.host, member.device.name, member.pci))
        return ""

    def _other_clesperanto(self, member: WorkerInfo) -> str:
        """Return how a worker's clEsperanto differs from that of the job, or nothing."""
        wanted = self.task.plan.library
        if not wanted:
            return ""
        found, why_not = same_clesperanto(self.client, WorkerPool((member,)))
        return "" if found == wanted else f"its clEsperanto is not {wanted}: {found or why_not}"

    def _unfit(self, member: WorkerInfo) -> str:
        """Return why the job's plan does not suit a worker, or nothing."""
        plan = self.task.plan
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
            ask_workers(self.client, cancel_blocks, self.name, self.token, workers=addresses, seconds=TELL_SECONDS)


def _absolute(source: Any) -> Any:
    """Return the input as workers find it, whose working directories are others."""
    return str(Path(source).absolute()) if isinstance(source, str | Path) and "://" not in str(source) else source


@dataclass
class ClusterJob:
    """One run of a plan by a crew."""

    crew: Crew
    """Who does it."""
    done: bytearray
    """A 1 for each block that is done, in the plan's order."""
    record: Callable[[int, Sequence[ShardReceipt]], None]
    """Called with each block that is done and the seals of its shards."""
    listener: Listener
    """Told what happens."""
    array: Any = None
    """The source as a dask array, where it is one."""

    def __post_init__(self) -> None:
        self.plan = self.crew.task.plan
        self._written = self._stored = 0
        self._busy = 0.0
        self._failed: set[int] = set()

    def run(self) -> tuple[float, float]:
        """Carry out what is left of the plan; return the seconds it took, and for how long threads had no block.

        Raises
        ------
        JobError
            If it fails.
        KeyboardInterrupt
            If the user interrupts; blocks in flight are finished or given up first.
        """
        began = time.perf_counter()
        try:
            if self.plan.halo_mode == "map_overlap":
                self._windows().run()
            self._submission().run()
        except Exception as failure:
            raise self._told(failure) from failure
        seconds = time.perf_counter() - began
        threads = self.plan.in_flight * len(self.crew.cluster.fleet.members)
        return seconds, max(0.0, threads * seconds - self._busy)

    def _windows(self) -> Windows:
        crew = self.crew
        for address, member in crew.members.items():
            crew.admit(address, member.name)

        def take(index: int, made: Outcome) -> None:
            self.judge(index, "", made)

        workers = list(crew.members)
        return Windows(crew.client, self.plan, self.array, crew.name, crew.token, workers, take, crew.stop)

    def _submission(self) -> Submission:
        crew = self.crew
        return Submission(
            crew.client,
            partial(make_block, crew.name, crew.token),
            self.done,
            self.judge,
            tell=self.listener,
            admit=crew.admit,
            stop=crew.stop,
            at_once=WINDOW * self.plan.in_flight,
            # Texture units round as they like: under cle two devices need not make the same bits.
            twice=self.plan.engine != "cle" or len({m.device.name for m in crew.members.values()}) == 1,
        )

    def judge(self, index: int, _worker: str, outcome: Outcome) -> BlockOutcome:
        """Take what a worker made of a block."""
        for event in outcome.events:
            self.listener(event)
        if isinstance(outcome, Made):
            self._finish(index, outcome)
            return BlockOutcome(Answer.DONE)
        trace(outcome.error)
        said = clause(outcome.error)
        match outcome.why:
            case "cancelled":
                return BlockOutcome(Answer.AGAIN)
            case "lost":
                return BlockOutcome(Answer.RESTART, str(outcome.error))
            case "worker":
                return BlockOutcome(Answer.BROKEN, said)
        failure = BlockFailed(outcome.doing, self.plan.block(index), outcome.error)
        failure.__cause__ = outcome.error
        if isinstance(outcome.error, CorruptInputError) or is_full(outcome.error) or index in self._failed:
            raise failure  # nobody else fares better
        self._failed.add(index)
        return BlockOutcome(Answer.ELSEWHERE, said, failure)

    def _finish(self, index: int, made: Made) -> None:
        """Note that a block is done, and only then say so."""
        try:
            self.record(index, made.seals)
        except OSError as error:
            raise BlockFailed("writing", self.plan.block(index), error) from error
        self.done[index] = 1
        self._written += made.done.voxels
        self._stored += made.done.stored_bytes
        self._busy += made.done.read_seconds + made.done.wait_seconds
        self._busy += made.done.scale_seconds + made.done.write_seconds
        self.listener(made.done)

    def _told(self, failure: Exception) -> JobError:
        """Return what is raised of a failure."""
        if isinstance(failure, BlockFailed):
            return JobError(failure.reason(self._missing))
        if isinstance(failure, NoWorkersLeftError):
            return JobError(str(failure))
        return JobError(f"the job failed with {clause(failure)}")

    def _missing(self) -> Room:
        """Return how much room the rest of the output needs."""
        from isovoxel.output.writer import shelf_of

        free = shelf_of(self.crew.task.output).free_bytes()
        return missing(self.plan, self.done, self._written, self._stored, free)
