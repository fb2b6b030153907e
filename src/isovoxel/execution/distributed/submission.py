"""Submit blocks to workers: a few at a time for each worker, so that nothing grows with their number.

1. A worker has `WINDOW` blocks for each of its threads, from its own run (`isovoxel.execution.distributed.runs`). As
   one comes back, it gets the next: scheduler, client and workers hold the same for ten blocks as for ten million.
2. Every `WATCH_SECONDS` the scheduler is asked which workers there are. The blocks of a worker that has gone are given
   to others; one that comes takes part. One that has not been heard of for `QUIET_SECONDS` counts as gone, until it is
   heard of: a scheduler's own limit (``worker-ttl``) is its owner's, and minutes long.
3. Where no block is left to be given, an idle worker also gets those that take several times as long as others did.
   What comes first counts.

A block is a task of distributed that is bound to its worker, because the scheduler knows nothing of source chunks: with
tasks of 4 to 16 neighbours that it places itself, 8 workers decode each chunk 3 to 4 times, with runs 1.6 times
(simulated for 768 blocks, each worker with a cache of 2 GB). Results come through a queue and not by ``as_completed``,
which has one deadline for all that it yields, and so no pause in which to check workers.

It does not depend on volumes: its caller judges what a result means.
"""

from __future__ import annotations

import contextlib
import enum
import queue
import statistics
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from isovoxel.errors import JobError, clause
from isovoxel.execution.distributed import rpc
from isovoxel.execution.distributed.rpc import ANSWER_SECONDS, SchedulerWatch
from isovoxel.execution.distributed.runs import Runs
from isovoxel.execution.events import Event, Waiting, WorkerLeft

WINDOW = 2
"""Blocks that a worker has, or has been sent, for each of its threads."""
WATCH_SECONDS = 1.0
"""How often the scheduler is asked which workers there are."""
QUIET_SECONDS = 30.0
"""After how long without a sign of life a worker counts as gone. It gives one each few seconds at most."""
NO_WORKER_SECONDS = 300.0
"""How long the job waits for a worker when none is left."""
DEATHS = 3
"""How many workers may be lost while they had a block, as distributed has it."""
LATE = 3.0
"""A block is late when it takes so many times as long as the median of those before."""
LATE_SECONDS = 1.0
"""A block is not late before."""
END_SECONDS = 60.0
"""How long blocks in flight may take to come to their end when a job ends before its time."""
LOG_LINES = 6
"""How many lines of a worker's log are shown when it fails."""
LOG_SECONDS = 5.0
"""How long a worker may take to return its log."""


class OutcomeKind(enum.Enum):
    """What a result means."""

    DONE = enum.auto()
    """The block is done."""
    AGAIN = enum.auto()
    """It is not, and any worker may try."""
    ELSEWHERE = enum.auto()
    """It is not, and another worker may try, if there is one."""
    BROKEN = enum.auto()
    """It is not, and this worker will do no other either."""
    RESTART = enum.auto()
    """It is not, and this worker may do so in a fresh process."""


@dataclass(frozen=True, slots=True)
class BlockOutcome:
    """What a result means, and why."""

    kind: OutcomeKind
    """What it means."""
    reason: str = ""
    """Why, in a clause, where the block is not done."""
    failure: Exception | None = None
    """What ends the job where no other worker may try."""


class NoWorkersLeftError(JobError):
    """No worker can continue; says why, in a clause."""


@dataclass(eq=False, slots=True)
class _Worker:
    """A worker that is there."""

    address: str
    name: str
    threads: int
    leaving: bool = False
    """Whether it gets no more blocks."""
    blocks: dict[str, _InFlight] = field(default_factory=dict)
    """What it has in flight, by key, oldest first."""


@dataclass(eq=False, slots=True)
class _InFlight:
    """A block that a worker was given."""

    key: str
    block: int
    worker: _Worker
    since: float
    """When, by the clock that `time.monotonic` reads."""
    future: Any
    """distributed's."""
    twin: _InFlight | None
    """The same block on another worker, as long as it is in flight there too."""


@dataclass
class Submission:
    """Assigns blocks to workers and collects their results.

    Call `run` once.
    """

    client: Any
    """A ``distributed.Client`` that is synchronous."""
    function: Callable[[int], Any]
    """Does a block on a worker, by its number, and returns anything but None; must pickle."""
    done: bytearray
    """A 1 for each block that is done, which `judge` sets."""
    judge: Callable[[int, str, Any], BlockOutcome]
    """Called with a block, the name of the worker that had it, and what came back. What it raises ends the job."""
    tell: Callable[[Event], None] = lambda _event: None
    """Receives events."""
    admit: Callable[[str, str], str] = lambda _address, _name: ""
    """Called with address and name of each worker; returns why it must not take part, or nothing."""
    stop: Callable[[Sequence[str]], None] = lambda _addresses: None
    """Called where the job ends before its time: blocks in flight on these workers finish or give up."""
    at_once: int = 0
    """How many blocks a worker has, or has been sent, at a time; by default `WINDOW` for each of its threads."""
    twice: bool = True
    """Whether a late block may be given to a second worker: both must make the same of it."""

    def __post_init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._aside: set[str] = set()
        self._refused: set[str] = set()
        self._runs = Runs(self.done)
        self._left = self.done.count(0)
        self._blocks: dict[str, _InFlight] = {}
        self._keys = (f"block-{uuid.uuid4().hex[:8]}-{number}" for number in range(1 << 62))
        self._back: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._took: deque[float] = deque(maxlen=101)
        self._deaths: Counter[int] = Counter()
        self._restarts: Counter[str] = Counter()
        self._watched = 0.0
        self._errors: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()

    def run(self) -> None:
        """Do all blocks that are not done.

        Raises
        ------
        NoWorkersLeftError
            If no worker can continue.
        SchedulerGoneError
            If the scheduler does not answer any more.
        Exception
            What `judge` raises, or the failure that it named where no other worker may try.
        """
        try:
            self._scheduler = SchedulerWatch(self.client)
            self._last_worker, self._waiting = time.monotonic(), False
            self._check_workers()
            self._runs = Runs(self.done, list(self._workers))
            while self._runs or self._blocks:
                self._fill()
                self._receive(self._wait())
                if time.monotonic() - self._watched >= self._pause:
                    self._check_workers()
        except rpc.SchedulerGoneError:
            raise
        except BaseException:
            self._finish_early()
            raise
        finally:
            for sent in list(self._blocks.values()):
                self._drop(sent)

    @property
    def _pause(self) -> float:
        """Seconds between two questions for workers: the scheduler takes long to describe many."""
        return WATCH_SECONDS * (1 + len(self._workers) / 100)

    # ---- blocks go -------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Give every worker as many blocks as it may have."""
        alone, late = self._alone, None
        # Where few are left, no worker gets more than its share: what waits at one worker another one could do.
        share = max(1, -(-self._left // max(1, len(self._workers))))
        for worker in [worker for worker in self._workers.values() if not worker.leaving]:
            number = min(share, (self.at_once or WINDOW * worker.threads) - len(worker.blocks))
            blocks: list[int] = []
            while len(blocks) < number and (block := self._runs.take(worker.address, shunned=alone)) is not None:
                blocks.append(block)
            self._left -= len(blocks)
            if blocks:
                self._send(worker, blocks)
            elif self.twice and not worker.blocks:
                late = self._late() if late is None else late
                twins, late = late[: worker.threads], late[worker.threads :]
                self._send(worker, [twin.block for twin in twins], twins)

    def _send(self, worker: _Worker, blocks: Sequence[int], twins: Sequence[_InFlight] = ()) -> None:
        """Give a worker blocks; `twins` are the same blocks on other workers."""
        keys = [next(self._keys) for _ in blocks]
        futures = self.client.map(
            self.function, blocks, key=keys, workers=[worker.address], allow_other_workers=False, pure=False, retries=0
        )
        for at, (key, block, future) in enumerate(zip(keys, blocks, futures, strict=True)):
            twin = twins[at] if twins else None
            sent = _InFlight(key, block, worker, time.monotonic(), future, twin)
            if twin is not None:
                twin.twin = sent
            self._blocks[key] = worker.blocks[key] = sent
            future.add_done_callback(self._back.put)

    def _late(self) -> list[_InFlight]:
        """Return blocks that are late and in flight on one worker only, the oldest first."""
        if not self._took:
            return []
        limit = time.monotonic() - max(LATE_SECONDS, LATE * statistics.median(self._took))
        return [sent for sent in self._blocks.values() if sent.since < limit and sent.twin is None]

    @property
    def _alone(self) -> bool:
        """Whether only one worker takes blocks."""
        return sum(not worker.leaving for worker in self._workers.values()) == 1

    # ---- blocks come back ------------------------------------------------------------------------------------

    def _wait(self) -> list[str]:
        """Wait for results until workers must be checked; return the keys of what has come back."""
        pause = self._pause - (time.monotonic() - self._watched)
        return [future.key for future in rpc.drain(self._back, pause) if future.key in self._blocks]

    def _receive(self, keys: Sequence[str]) -> None:
        """Judge what has come back."""
        for sent, result, error in self._results(keys):
            if self.done[sent.block]:
                continue
            if result is not None:
                self._took.append(time.monotonic() - sent.since)
                self._judged(sent, self.judge(sent.block, sent.worker.name, result))
            elif error is not None:
                self._judged(sent, BlockOutcome(OutcomeKind.BROKEN, clause(error)))
            else:  # cancelled by somebody, or with the connection; or its result was lost with its worker
                self._scheduler.check()
                self._give_back(sent)

    def _results(self, keys: Sequence[str]) -> Iterator[tuple[_InFlight, Any, Exception | None]]:
        """Yield blocks that came back, each with its result, or None and the exception of its task."""
        whole = [key for key in keys if self._blocks[key].future.status == "finished"]
        results = self._gather(whole) if whole else {}
        for key in keys:
            if (sent := self._blocks.get(key)) is not None:  # else its twin came with it
                error = sent.future.exception() if sent.future.status == "error" else None
                self._drop(sent)
                yield sent, results.get(key), error

    def _gather(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return the results that arrive in time; blocks without one are done again."""
        names = sorted({self._blocks[key].worker.name for key in keys})
        what = f"the results of {'worker' if len(names) == 1 else 'workers'} {', '.join(names)}"
        results: dict[str, Any] = {}
        with contextlib.suppress(Exception), rpc.waiting(self.tell, what, ANSWER_SECONDS):
            results = rpc.gather(self.client, keys, seconds=ANSWER_SECONDS)
        return results

    def _drop(self, sent: _InFlight) -> None:
        """Remove a block from what is in flight, and its task from the scheduler."""
        sent.future.release()  # its callback refers to it, so deleting it is not enough
        del self._blocks[sent.key], sent.worker.blocks[sent.key]
        if sent.twin is not None:
            sent.twin.twin = None

    def _judged(self, sent: _InFlight, outcome: BlockOutcome) -> None:
        worker = sent.worker
        match outcome.kind:
            case OutcomeKind.DONE:
                self._restarts.pop(worker.name, None)
                if sent.twin is not None and sent.twin.key in self._blocks:
                    self._drop(sent.twin)
            case OutcomeKind.AGAIN:
                self._give_back(sent)
            case OutcomeKind.ELSEWHERE:
                if self._alone:
                    self._report_log(worker, outcome.reason)
                    raise outcome.failure or NoWorkersLeftError(outcome.reason)
                self._give_back(sent, shun=worker.address)
            case OutcomeKind.BROKEN:
                self._give_back(sent)
                self._set_aside(worker, outcome.reason)
            case OutcomeKind.RESTART:
                self._give_back(sent)
                if not worker.leaving:
                    self._restart(worker, outcome.reason)

    def _give_back(self, sent: _InFlight, shun: str = "") -> None:
        """Return a block to the queue, unless it is done or its twin is in flight."""
        if not self.done[sent.block] and (sent.twin is None or sent.twin.key not in self._blocks):
            self._runs.give_back(sent.block, shun)
            self._left += 1

    # ---- workers come and go ---------------------------------------------------------------------------------

    def _check_workers(self) -> None:
        """Add workers that have come, and remove those that have gone."""
        self._watched = time.monotonic()
        there = self._scheduler.workers()
        if there is None:
            return
        # The newest sign of life is as good a clock as the scheduler's own: heartbeats are seconds apart.
        newest = max((known["last_seen"] for known in there.values()), default=0.0)
        for worker in list(self._workers.values()):
            if worker.address not in there:
                self._lose(worker, "the scheduler has lost it")
            elif newest - there[worker.address]["last_seen"] > QUIET_SECONDS:
                self._lose(worker, f"it has not been heard of for {QUIET_SECONDS:g} s")
        for address, known in there.items():
            name = str(known["name"])
            new = address not in self._workers and address not in self._refused and name not in self._aside
            if new and newest - known["last_seen"] <= QUIET_SECONDS and known["status"] == "running":
                self._add(_Worker(address, name, known["nthreads"]))
        while not self._errors.empty():  # workers that could not be restarted
            name, reason = self._errors.get()
            for worker in [worker for worker in self._workers.values() if worker.name == name]:
                self._set_aside(worker, reason)
        self._await_worker()

    def _add(self, worker: _Worker) -> None:
        if reason := self.admit(worker.address, worker.name):
            self._refused.add(worker.address)
            self.tell(WorkerLeft(worker.name, reason))
        else:
            self._workers[worker.address] = worker

    def _lose(self, worker: _Worker, reason: str) -> None:
        """Remove a worker, and return its blocks to the queue."""
        del self._workers[worker.address]
        self._runs.leave(worker.address)
        lost = list(worker.blocks.values())
        for sent in lost:
            self._drop(sent)
        if not worker.leaving:
            self.tell(WorkerLeft(worker.name, reason))
            for sent in lost[: worker.threads]:  # those that it may have begun
                self._deaths[sent.block] += 1
                if self._deaths[sent.block] == DEATHS and not self.done[sent.block]:
                    raise NoWorkersLeftError(
                        f"{DEATHS} workers were lost while they had block {sent.block}, {worker.name} last"
                    )
        for sent in lost:
            self._give_back(sent)

    def _set_aside(self, worker: _Worker, reason: str) -> None:
        """Give a worker no more blocks; results of those that it has begun still count."""
        if worker.name in self._aside:
            return
        self._aside.add(worker.name)
        worker.leaving = True
        self._runs.leave(worker.address)
        self._report_log(worker, reason)
        if all(other.leaving for other in self._workers.values()):
            raise NoWorkersLeftError(f"no worker can go on: {worker.name} says that {reason}")

    def _restart(self, worker: _Worker, reason: str) -> None:
        """Let the worker's nanny start a fresh process: once, until that process has done a block."""
        self._restarts[worker.name] += 1
        if self._restarts[worker.name] > 1:
            self._set_aside(worker, f"{reason}, and again in a fresh process")
            return
        worker.leaving = True
        self._runs.leave(worker.address)
        self.tell(WorkerLeft(worker.name, f"{reason}; it is started again"))

        def restart() -> None:
            try:
                said = self.client.restart_workers([worker.address], timeout=END_SECONDS, raise_for_error=False)
                if said.get(worker.address) != "OK":
                    self._errors.put((worker.name, f"{reason}, and it was not started again in time"))
            except Exception as error:  # noqa: BLE001 - such as that it has no nanny
                self._errors.put((worker.name, f"{reason}, and it cannot be started again ({clause(error)})"))

        threading.Thread(target=restart, name="isovoxel-restart", daemon=True).start()

    def _await_worker(self) -> None:
        """Wait a while for a worker where none is left."""
        if any(not worker.leaving for worker in self._workers.values()):
            self._last_worker, self._waiting = self._watched, False
        elif not self._waiting:
            self._waiting = True
            self.tell(Waiting(NO_WORKER_SECONDS))
        elif self._watched - self._last_worker > NO_WORKER_SECONDS:
            raise NoWorkersLeftError(f"all workers have gone, and none came for {NO_WORKER_SECONDS:g} s")

    def _report_log(self, worker: _Worker, reason: str) -> None:
        """Report why a worker gets no more blocks, with the end of its log."""
        lines: tuple[str, ...] = ()
        with contextlib.suppress(Exception):  # it may not answer: then there is nothing to show
            lines = rpc.worker_log(self.client, worker.address, LOG_LINES, seconds=LOG_SECONDS)
        self.tell(WorkerLeft(worker.name, reason, lines))

    # ---- the end ---------------------------------------------------------------------------------------------

    def _finish_early(self) -> None:
        """Let blocks in flight finish or give up, and record those that are done."""
        with contextlib.suppress(Exception):  # why the job ends is known already
            self.stop(list(self._workers))
            deadline = time.monotonic() + END_SECONDS
            while self._blocks and time.monotonic() < deadline and self.client.status == "running":
                # Not only what the queue tells: some of that may have been taken from it when the job ended.
                ended = [key for key, sent in self._blocks.items() if sent.future.status != "pending"]
                if not ended:
                    self._watched = time.monotonic()
                    if not self._wait():
                        there = rpc.known_workers(self.client, seconds=ANSWER_SECONDS)
                        for sent in [sent for sent in self._blocks.values() if sent.worker.address not in there]:
                            self._drop(sent)
                for sent, result, _ in self._results(ended):
                    if result is not None and not self.done[sent.block]:
                        with contextlib.suppress(Exception):  # such as another block's failure
                            self.judge(sent.block, sent.worker.name, result)
