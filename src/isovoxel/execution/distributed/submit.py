"""Submit blocks to workers: a few at a time for each worker, so that nothing grows with their number.

1. A worker has `WINDOW` blocks for each of its threads, from its own run (`isovoxel.execution.distributed.runs`). As
   one comes to its end, it gets the next: scheduler, client and workers hold the same for ten blocks as for ten
   million.
2. Every `WATCH_SECONDS` the scheduler is asked who is there. The blocks of a worker that has gone are given to others;
   one that comes takes part. One that has not been heard of for `QUIET_SECONDS` counts as gone, until it is heard of.
3. Where no block is left to be given, an idle worker also gets those that take several times as long as others did.
   What comes first counts.

It knows nothing of volumes: what a result means, whoever calls says.
"""

from __future__ import annotations

import contextlib
import enum
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from isovoxel.errors import JobError
from isovoxel.execution.distributed import rpc
from isovoxel.execution.distributed.in_flight import ANSWER_SECONDS, InFlightBlock, InFlightBlocks
from isovoxel.execution.distributed.runs import Runs
from isovoxel.execution.events import Event, Waiting, WorkerLeft
from isovoxel.execution.retry import clause

WINDOW = 2
"""Blocks that a worker has, or has been sent, for each of its threads."""
WATCH_SECONDS = 1.0
"""How often the scheduler is asked who is there."""
QUIET_SECONDS = 30.0
"""After how long without a sign of life a worker counts as gone. It gives one each few seconds at most."""
GONE_SECONDS = 60.0
"""How long it may not answer at all."""
NO_WORKER_SECONDS = 300.0
"""How long the job waits for a worker when none is left."""
DEATHS = 3
"""How many workers may be lost while they had a block, as distributed has it."""
END_SECONDS = 60.0
"""How long blocks in flight may take to come to their end when a job ends before its time."""
LOG_LINES = 6
"""How many lines of a worker's log are shown when it fails."""
LOG_SECONDS = 5.0
"""How long it may take to say them."""


class OutcomeKind(enum.Enum):
    """What a result means."""

    DONE = enum.auto()
    """The block is done."""
    AGAIN = enum.auto()
    """It is not, and anybody may try."""
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
    """What ends the job where nobody else may try."""


class NoWorkersLeftError(JobError):
    """No worker can continue; says why, in a clause."""


class SchedulerGoneError(NoWorkersLeftError):
    """The scheduler does not answer any more."""


@dataclass
class _Worker:
    """A worker that is there."""

    address: str
    name: str
    threads: int
    leaving: bool = False
    """Whether it gets no more blocks."""


@dataclass
class Submission:
    """Blocks on their way to workers and back.

    Call `run` once.
    """

    client: Any
    """A ``distributed.Client`` that is synchronous."""
    function: Callable[[int], Any]
    """Does a block on a worker, by its number; must pickle."""
    done: bytearray
    """A 1 for each block that is done; the one who judges sets it."""
    judge: Callable[[int, str, Any], BlockOutcome]
    """Called with a block, the name of the worker that had it, and what came back. What it raises ends the job."""
    tell: Callable[[Event], None] = lambda _event: None
    """Told what happens."""
    admit: Callable[[str, str], str] = lambda _address, _name: ""
    """Asked about each worker, by address and name, that is there or comes; returns why it must not take part."""
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
        self._flights = InFlightBlocks(self.client, self.function)
        self._deaths: Counter[int] = Counter()
        self._restarts: Counter[str] = Counter()
        self._watched = self._heard = self._last_worker = 0.0
        self._waiting = False
        self._errors: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()

    def run(self) -> None:
        """Do all blocks that are not done.

        Raises
        ------
        NoWorkersLeftError
            If nobody can go on.
        Exception
            What `judge` raises, or the failure that it named where no other worker may try.
        """
        try:
            self._heard = self._last_worker = time.monotonic()
            self._look_around()
            self._runs = Runs(self.done, list(self._workers))
            while self._runs or self._flights:
                self._fill()
                self._land(self._wait())
                if time.monotonic() - self._watched >= self._pause:
                    self._look_around()
        except SchedulerGoneError:
            self._flights.drop_all()
            raise
        except BaseException:
            self._come_to_an_end()
            raise

    @property
    def _pause(self) -> float:
        """Seconds between two looks around: what the scheduler tells of many workers takes it long to say."""
        return WATCH_SECONDS * (1 + len(self._workers) / 100)

    # ---- blocks go -------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Give every worker what it has room for."""
        alone, late = self._alone, None
        # Where few are left, nobody gets more than his share: what waits at one worker another one could do.
        share = max(1, -(-self._left // max(1, len(self._workers))))
        for worker in list(self._workers.values()):
            out = self._flights.with_worker(worker.address)
            room = 0 if worker.leaving else (self.at_once or WINDOW * worker.threads) - out
            room = min(room, share)
            blocks: list[int] = []
            while len(blocks) < room and (block := self._runs.take(worker.address, shunned=alone)) is not None:
                blocks.append(block)
            self._left -= len(blocks)
            if room and not blocks and not out and self.twice:
                late = self._flights.late() if late is None else late
                blocks, late = late[: worker.threads], late[worker.threads :]
            if blocks:
                self._flights.send(worker.address, blocks)

    @property
    def _alone(self) -> bool:
        """Whether no second worker is there for what one has failed with."""
        return sum(not worker.leaving for worker in self._workers.values()) == 1

    # ---- blocks come back ------------------------------------------------------------------------------------

    def _wait(self) -> list[str]:
        """Return the keys of what has come back, once something has or it is time to look around."""
        return self._flights.landed(self._pause - (time.monotonic() - self._watched))

    def _land(self, keys: Sequence[str]) -> None:
        """Take results, and judge them."""
        with rpc.waiting(self.tell, self._whose(keys), ANSWER_SECONDS):
            results = self._flights.results(keys)
        for key in keys:
            if (flight := self._flights.get(key)) is None:
                continue  # its twin came with it
            worker = self._workers[flight.worker]
            if key in results:
                self._flights.drop([key])
                if not self.done[flight.block]:
                    self._flights.took(flight)
                    self._judged(flight, worker, self.judge(flight.block, worker.name, results[key]))
            elif flight.future.status == "error":
                error = flight.future.exception()
                self._flights.drop([key])
                self._judged(flight, worker, BlockOutcome(OutcomeKind.BROKEN, clause(error)))
            else:  # cancelled by somebody, or with the connection; or its result was lost with its worker
                self._check_scheduler()
                self._flights.drop([key])
                self._give_back(flight)

    def _whose(self, keys: Sequence[str]) -> str:
        """Return whose results these are, as a user may read it."""
        flights = (self._flights.get(key) for key in keys)
        names = sorted({self._workers[flight.worker].name for flight in flights if flight is not None})
        return f"the results of {'worker' if len(names) == 1 else 'workers'} {', '.join(names)}"

    def _judged(self, flight: InFlightBlock, worker: _Worker, outcome: BlockOutcome) -> None:
        match outcome.kind:
            case OutcomeKind.DONE:
                self._restarts.pop(worker.name, None)
                self._flights.drop_block(flight.block)
            case OutcomeKind.AGAIN:
                self._give_back(flight)
            case OutcomeKind.ELSEWHERE:
                if self._alone:
                    self._say_log(worker, outcome.reason)
                    raise outcome.failure or NoWorkersLeftError(outcome.reason)
                self._give_back(flight, shun=worker.address)
            case OutcomeKind.BROKEN:
                self._give_back(flight)
                self._set_aside(worker, outcome.reason)
            case OutcomeKind.RESTART:
                self._give_back(flight)
                if not worker.leaving:
                    self._restart(worker, outcome.reason)

    def _give_back(self, flight: InFlightBlock, shun: str = "") -> None:
        if not self.done[flight.block] and flight.block not in self._flights:
            self._runs.give_back(flight.block, shun)
            self._left += 1

    # ---- workers come and go ---------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """Ask the scheduler who is there."""
        self._check_scheduler()
        self._watched = now = time.monotonic()
        try:
            info = rpc.identity(self.client, seconds=ANSWER_SECONDS)
        except Exception as error:
            self._check_scheduler()
            if now - self._heard > GONE_SECONDS:
                raise SchedulerGoneError(f"the scheduler does not answer ({clause(error)})") from error
            return
        self._heard = now
        there = info
        # The newest sign of life is as good a clock as the scheduler's own: heartbeats are seconds apart.
        newest = max((w["last_seen"] for w in there.values()), default=0.0)
        for address in list(self._workers):
            if address not in there:
                self._lose(self._workers[address], "the scheduler has lost it")
            elif newest - there[address]["last_seen"] > QUIET_SECONDS:
                self._lose(self._workers[address], f"it has not been heard of for {QUIET_SECONDS:g} s")
        for address, known in there.items():
            name = str(known["name"])
            new = address not in self._workers and address not in self._refused and name not in self._aside
            if new and newest - known["last_seen"] <= QUIET_SECONDS and known["status"] == "running":
                self._welcome(address, name, known["nthreads"])
        self._raise_errors()
        self._check_anybody(now)

    def _welcome(self, address: str, name: str, threads: int) -> None:
        if reason := self.admit(address, name):
            self._refused.add(address)
            self.tell(WorkerLeft(name, reason))
            return
        self._workers[address] = _Worker(address, name, threads)

    def _lose(self, worker: _Worker, reason: str) -> None:
        """Give what a worker had to others."""
        del self._workers[worker.address]
        self._runs.leave(worker.address)
        flights = self._flights.drop_worker(worker.address)
        if not worker.leaving:
            self.tell(WorkerLeft(worker.name, reason))
            for flight in flights[: worker.threads]:  # those that it may have begun with
                self._deaths[flight.block] += 1
                if self._deaths[flight.block] == DEATHS and not self.done[flight.block]:
                    raise NoWorkersLeftError(
                        f"{DEATHS} workers were lost while they had block {flight.block}, {worker.name} last"
                    )
        for flight in flights:
            self._give_back(flight)

    def _set_aside(self, worker: _Worker, reason: str) -> None:
        """Give a worker no more blocks; what it has begun with may still come."""
        if worker.name in self._aside:
            return
        self._aside.add(worker.name)
        worker.leaving = True
        self._runs.leave(worker.address)
        self._say_log(worker, reason)
        if all(other.leaving for other in self._workers.values()):
            raise NoWorkersLeftError(f"no worker can go on: {worker.name} says that {reason}")

    def _restart(self, worker: _Worker, reason: str) -> None:
        """Let the worker's nanny start a fresh process; once, until that has done a block."""
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

    def _raise_errors(self) -> None:
        """Set those aside that could not be restarted."""
        with contextlib.suppress(queue.Empty):
            while True:
                name, reason = self._errors.get_nowait()
                for worker in [w for w in self._workers.values() if w.name == name]:
                    self._set_aside(worker, reason)

    def _check_anybody(self, now: float) -> None:
        if any(not worker.leaving for worker in self._workers.values()):
            self._last_worker, self._waiting = now, False
        elif not self._waiting:
            self._waiting = True
            self.tell(Waiting(NO_WORKER_SECONDS))
        elif now - self._last_worker > NO_WORKER_SECONDS:
            raise NoWorkersLeftError(f"all workers have gone, and none came for {NO_WORKER_SECONDS:g} s")

    def _check_scheduler(self) -> None:
        if self.client.status != "running":
            raise SchedulerGoneError(f"the scheduler has gone, to which the client is {self.client.status}")

    def _say_log(self, worker: _Worker, reason: str) -> None:
        """Tell why a worker does no more, and what it logged."""
        lines: tuple[str, ...] = ()
        with contextlib.suppress(Exception):  # it may not answer: then there is nothing to show
            lines = rpc.worker_log(self.client, worker.address, LOG_LINES, seconds=LOG_SECONDS)
        self.tell(WorkerLeft(worker.name, reason, lines))

    # ---- the end ---------------------------------------------------------------------------------------------

    def _come_to_an_end(self) -> None:
        """Let blocks in flight finish or give up, and count those that are done."""
        with contextlib.suppress(Exception):  # why the job ends is known already
            self.stop(list(self._workers))
            deadline = time.monotonic() + END_SECONDS
            while self._flights and time.monotonic() < deadline and self.client.status == "running":
                # Not only what the queue tells: some of that may have been taken from it when the job ended.
                if not (keys := self._flights.ended()):
                    self._watched = time.monotonic()
                    if not self._wait():
                        self._flights.drop_all(rpc.identity(self.client, seconds=ANSWER_SECONDS))
                self._take_last(keys)
        self._flights.drop_all()

    def _take_last(self, keys: Sequence[str]) -> None:
        """Take results that are whole, and whatever is wrong with others."""
        results = self._flights.results(keys)
        for key in keys:
            if (flight := self._flights.get(key)) is None:
                continue
            self._flights.drop([key])
            if key in results and not self.done[flight.block]:
                with contextlib.suppress(Exception):  # such as another block's failure
                    self.judge(flight.block, self._workers[flight.worker].name, results[key])
