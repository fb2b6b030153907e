"""Blocks that are in flight with workers, and what has come back of them.

A flight is a block on one worker; a block that is late may have two. Each is a task on the scheduler, bound to its
worker. Whoever drops a flight drops its future: the scheduler then forgets the task too.
"""

from __future__ import annotations

import contextlib
import queue
import statistics
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from isovoxel.execution.distributed import rpc

ANSWER_SECONDS = 20.0
"""How long the scheduler may take to answer, or to pass a result on, before it is asked again."""
LATE = 3.0
"""A block is late when it takes so many times as long as the median of those before."""
LATE_SECONDS = 1.0
"""And not before."""


@dataclass(frozen=True, slots=True)
class InFlightBlock:
    """A block that a worker was given."""

    block: int
    """Its number."""
    worker: str
    """The worker's address."""
    since: float
    """When, by the clock that `time.monotonic` reads."""
    future: Any
    """distributed's."""


class InFlightBlocks:
    """Blocks that are out; its length is how many, those that are out twice counted twice.

    Parameters
    ----------
    client
        A ``distributed.Client`` that is synchronous.
    function
        Does a block on a worker, by its number; must pickle.
    """

    def __init__(self, client: Any, function: Callable[[int], Any]) -> None:
        self._client, self._function = client, function
        self._flights: dict[str, InFlightBlock] = {}
        self._of_block: dict[int, set[str]] = {}
        self._of_worker: dict[str, set[str]] = {}
        self._landed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._tags = f"block-{uuid.uuid4().hex[:8]}"
        self._sent = 0
        self._took: deque[float] = deque(maxlen=101)

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, block: int) -> bool:
        """Tell whether a block is out."""
        return block in self._of_block

    def get(self, key: str) -> InFlightBlock | None:
        """Return a flight by its key, or None where it was dropped."""
        return self._flights.get(key)

    def with_worker(self, worker: str) -> int:
        """Return how many flights a worker has."""
        return len(self._of_worker.get(worker, ()))

    def send(self, worker: str, blocks: Sequence[int]) -> None:
        """Give blocks to the worker at an address."""
        keys = [f"{self._tags}-{self._sent + i}" for i in range(len(blocks))]
        self._sent += len(blocks)
        futures = self._client.map(
            self._function, blocks, key=keys, workers=[worker], allow_other_workers=False, pure=False, retries=0
        )
        now = time.monotonic()
        for key, block, future in zip(keys, blocks, futures, strict=True):
            self._flights[key] = InFlightBlock(block, worker, now, future)
            self._of_block.setdefault(block, set()).add(key)
            self._of_worker.setdefault(worker, set()).add(key)
            future.add_done_callback(lambda _future, key=key: self._landed.put(key))

    def late(self) -> list[int]:
        """Return the blocks that take long and are out once: first those that took longest."""
        if not self._took:
            return []
        limit = time.monotonic() - max(LATE_SECONDS, LATE * statistics.median(self._took))
        late = [f for f in self._flights.values() if f.since < limit and len(self._of_block[f.block]) == 1]
        return [f.block for f in sorted(late, key=lambda f: f.since)]

    def landed(self, seconds: float) -> list[str]:
        """Return the keys of what has come back, once something has or the time is over."""
        keys: list[str] = []
        with contextlib.suppress(queue.Empty):
            keys.append(self._landed.get(timeout=max(0.001, seconds)))
            while True:
                keys.append(self._landed.get_nowait())
        return [key for key in keys if key in self._flights]

    def ended(self) -> list[str]:
        """Return the keys of all that is not on its way any more, told by `landed` or not."""
        return [key for key, flight in self._flights.items() if flight.future.status != "pending"]

    def results(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the results that could be had, of those of these flights that are finished."""
        whole = [key for key in keys if self._flights[key].future.status == "finished"]
        if not whole:
            return {}
        try:
            return rpc.gather(self._client, whole, seconds=ANSWER_SECONDS)
        except Exception:  # noqa: BLE001 - whatever it was, the blocks are done again, and the scheduler is looked at
            return {}

    def took(self, flight: InFlightBlock) -> None:
        """Note how long a block took that is done: what is late is measured by it."""
        self._took.append(time.monotonic() - flight.since)

    def drop(self, keys: Iterable[str]) -> None:
        """Forget flights."""
        for key in list(keys):
            flight = self._flights.pop(key)
            for index, name in ((self._of_block, flight.block), (self._of_worker, flight.worker)):
                _discard(index, name, key)

    def drop_block(self, block: int) -> None:
        """Forget all flights of a block."""
        self.drop(self._of_block.get(block, ()))

    def drop_worker(self, worker: str) -> list[InFlightBlock]:
        """Forget all flights of a worker, and return them, oldest first."""
        keys = self._of_worker.get(worker, set())
        flights = sorted((self._flights[key] for key in keys), key=lambda flight: flight.since)
        self.drop(keys)
        return flights

    def drop_all(self, except_on: Iterable[str] = ()) -> None:
        """Forget all flights but those of some workers."""
        kept = set(except_on)
        self.drop([key for key, flight in self._flights.items() if flight.worker not in kept])


def _discard(index: dict[Any, set[str]], name: Any, key: str) -> None:
    """Take a key from the set of that name, and the set where it was the last."""
    index[name].discard(key)
    if not index[name]:
        del index[name]
