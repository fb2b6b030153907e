"""The submission loop by itself: bounded, fair, and fast, however many blocks there are."""

from __future__ import annotations

import gc
import re
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster

from isovoxel.execution.distributed import submission
from isovoxel.execution.distributed.submission import WINDOW, BlockOutcome, NoWorkersLeftError, OutcomeKind, Submission
from isovoxel.execution.events import Event, Waiting, WorkerLeft
from polling import PATIENCE, wait_until


@pytest.fixture(autouse=True)
def _not_over() -> Iterator[None]:
    """Let what waits wait, and go on at the end of the test however that comes."""
    TWIN.clear()
    OVER.clear()
    yield
    OVER.set()


@pytest.fixture(scope="module")
def threads() -> Iterator[Any]:
    """Return a client whose scheduler and workers, of two threads each, are threads of this process."""
    with (
        # What they log of each block is bounded, and here soon full; profiles hold the source of what they met.
        dask.config.set({"distributed.admin.low-level-log-length": 100, "distributed.worker.profile.enabled": False}),
        LocalCluster(
            n_workers=2, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0", protocol="inproc://"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


class Judge:
    """Takes what comes, and counts."""

    def __init__(self, blocks: int) -> None:
        self.done = bytearray(blocks)
        self.taken: Counter[int] = Counter()
        self.by: Counter[str] = Counter()

    def __call__(self, block: int, worker: str, result: Any) -> BlockOutcome:
        """Take a block's number doubled."""
        assert result == 2 * block
        self.done[block] = 1
        self.taken[block] += 1
        self.by[worker] += 1
        return BlockOutcome(OutcomeKind.DONE)


def double(block: int) -> int:
    return 2 * block


def run(client: Any, blocks: int, function: Any = double) -> Judge:
    """Do trivial blocks; return what was taken."""
    judge = Judge(blocks)
    Submission(client, function, judge.done, judge).run()
    return judge


def test_every_block_is_taken_once(threads: Any) -> None:
    """By both workers."""
    judge = run(threads, 500)
    assert judge.taken == dict.fromkeys(range(500), 1)
    assert len(judge.by) == 2


HELD = 60
"""The first block of worker 1, where there are 120."""
TWIN, OVER = threading.Event(), threading.Event()
"""Whether worker 0 has begun with that block too, and whether it may come back now: workers are threads here."""


def held(block: int, *, by: tuple[int, ...]) -> int:
    """Do a block; some workers hold one until it is over, and others until both have it."""
    from distributed import get_worker

    if block == HELD:
        name = get_worker().name
        if name == 0:
            TWIN.set()
        (OVER if name in by else TWIN).wait(60)
    return 2 * block


def waits(block: int, *, on: int) -> int:
    """Do a block, for which one of the workers waits until it is over."""
    from distributed import get_worker

    if get_worker().name == on:
        assert OVER.wait(PATIENCE)
    return 2 * block


@pytest.mark.slow
def test_a_slow_worker_holds_nobody_up(threads: Any) -> None:
    """What it has and others could do is given to them as well."""
    judge = run(threads, 300, partial(waits, on=1))
    assert judge.taken == dict.fromkeys(range(300), 1)
    assert set(judge.by) == {"0"}


def number_of_tasks(dask_scheduler: Any) -> int:
    """Return how many tasks a scheduler knows; runs there."""
    return len(dask_scheduler.tasks)


@pytest.mark.parametrize(
    ("twice", "by", "counts"),
    [
        pytest.param(True, (1,), "0", id="the second comes first"),
        pytest.param(True, (0,), "1", id="the first comes first"),
        pytest.param(True, (), "01", id="both come at once"),
        pytest.param(False, (1,), "1", id="nobody else may make it"),
    ],
)
def test_a_late_block_is_given_to_a_second_worker(
    threads: Any, monkeypatch: pytest.MonkeyPatch, twice: bool, by: tuple[int, ...], counts: str
) -> None:
    """What comes first counts, once; the other one is not waited for. Where both must not make it, the first is."""
    monkeypatch.setattr(submission, "LATE_SECONDS", 0.2)
    judge, makers = Judge(120), dict[int, str]()

    def note(block: int, worker: str, result: Any) -> BlockOutcome:
        makers[block] = worker
        if not twice and len(makers) == 119:
            threading.Timer(0.6, OVER.set).start()
        return judge(block, worker, result)

    Submission(threads, partial(held, by=by), judge.done, note, twice=twice).run()
    assert OVER.is_set() == (not twice)
    wait_until(lambda: not threads.run_on_scheduler(number_of_tasks))  # it forgets the one that is not waited for
    assert TWIN.is_set() == twice
    assert judge.taken == dict.fromkeys(range(120), 1)
    assert makers[HELD] in counts


def test_a_bounded_number_of_blocks_is_out(threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, the scheduler knows of a window for each worker."""
    most, land = [0], Submission._receive

    def watch(self: Submission, keys: Any) -> None:
        most.append(len(self._blocks))
        land(self, keys)

    monkeypatch.setattr(Submission, "_receive", watch)
    run(threads, 300)
    assert max(most) <= WINDOW * 4


class Weighing(Judge):
    """Notes how many bytes Python holds, here, in scheduler and workers, after so many blocks."""

    def __init__(self, *after: int) -> None:
        super().__init__(max(after))
        self.after, self.held = after, list[int]()

    def __call__(self, block: int, worker: str, result: Any) -> BlockOutcome:
        """Take a result, and weigh."""
        outcome = super().__call__(block, worker, result)
        if sum(self.taken.values()) in self.after:
            gc.collect()
            self.held.append(tracemalloc.get_traced_memory()[0])
        return outcome


def growth(client: Any, first: int, last: int) -> int:
    """Return how many bytes are held after the last block beyond those after the first, both by number."""
    judge = Weighing(first, last)
    tracemalloc.start()
    try:
        Submission(client, double, judge.done, judge).run()
    finally:
        tracemalloc.stop()
    return judge.held[1] - judge.held[0]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_blocks(threads: Any) -> None:
    """What grows are the names of blocks, of which dask remembers the last 100,000, and no results, no futures."""
    # What distributed logs meanwhile varies from run to run; what grows with the blocks grows in each.
    assert any(growth(threads, 400, 800) < 400 * 1000 for _ in range(5))


class Fussy(Judge):
    """Does not take the first result of a block from a worker."""

    def __init__(self, blocks: int, answer: OutcomeKind, worker: str) -> None:
        super().__init__(blocks)
        self.answer, self.worker = answer, worker

    def __call__(self, block: int, worker: str, result: Any) -> BlockOutcome:
        """Take a result, unless it is that worker's."""
        if worker == self.worker:
            return BlockOutcome(self.answer, "its fan is loud", ValueError("it is warm"))
        return super().__call__(block, worker, result)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "left"),
    [
        (OutcomeKind.ELSEWHERE, None),
        (OutcomeKind.BROKEN, r"its fan is loud"),
        # Workers that are threads have no nanny that could start them again.
        (OutcomeKind.RESTART, r"its fan is loud, and it cannot be started again \(.*\)"),
    ],
)
def test_what_one_worker_fails_with_another_does(threads: Any, answer: OutcomeKind, left: str | None) -> None:
    """Block by block, or all of them, and then it is said; the other one has none done before that."""
    judge, events = Fussy(200, answer, "1"), list[Event]()

    def note(event: Event) -> None:
        events.append(event)
        if isinstance(event, WorkerLeft) and left and re.fullmatch(left, event.reason):
            OVER.set()

    if left is None:
        OVER.set()
    Submission(threads, partial(waits, on=0), judge.done, judge, tell=note).run()
    assert judge.taken == dict.fromkeys(range(200), 1)
    assert set(judge.by) == {"0"}
    said = [event for event in events if isinstance(event, WorkerLeft)]
    assert {event.name for event in said} == ({"1"} if left else set())
    assert not left or re.fullmatch(left, said[-1].reason)


@pytest.fixture
def one() -> Iterator[Any]:
    """Return a client of a cluster with one worker, which can be scaled."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0", protocol="inproc://"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_where_there_is_one_worker_its_failure_is_the_jobs(one: Any) -> None:
    judge = Fussy(10, OutcomeKind.ELSEWHERE, "0")
    with pytest.raises(ValueError, match="it is warm"):
        Submission(one, double, judge.done, judge).run()


def but_for_the_first(block: int) -> int:
    """Do block 0, and any other once it is over."""
    assert block == 0 or OVER.wait(PATIENCE)
    return 2 * block


def test_a_worker_that_comes_takes_part(one: Any) -> None:
    """From when it is there, with the back half of what is left; the first one waits for it."""
    judge = Judge(150)

    def admit(_address: str, name: str) -> str:
        if name != "0":
            OVER.set()
        return ""

    def scale(block: int, worker: str, result: Any) -> BlockOutcome:
        if not judge.taken:
            one.cluster.scale(2)
        return judge(block, worker, result)

    Submission(one, but_for_the_first, judge.done, scale, admit=admit).run()
    assert judge.taken == dict.fromkeys(range(150), 1)
    assert len(judge.by) == 2


def until_it_closes(block: int) -> int:
    """Do block 0, and any other once the worker is about to go."""
    from distributed import Status, get_worker

    worker = get_worker()
    wait_until(lambda: block == 0 or worker.status != Status.running)
    return 2 * block


@pytest.mark.slow
def test_nobody_is_waited_for_for_ever(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all workers go, others may come; the job says that it waits, and ends when none does."""
    monkeypatch.setattr(submission, "NO_WORKER_SECONDS", 0.5)
    judge, events = Judge(100), list[Event]()

    def close(block: int, worker: str, result: Any) -> BlockOutcome:
        one.cluster.scale(0)
        return judge(block, worker, result)

    with pytest.raises(NoWorkersLeftError, match=r"all workers have gone, and none came for 0.5 s"):
        Submission(one, until_it_closes, judge.done, close, tell=events.append).run()
    assert Waiting(0.5) in events
    assert 0 < sum(judge.done) < 100
