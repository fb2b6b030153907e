"""Calls to a cluster with time limits: they return even where a machine was cut off.

distributed's client offers them without a limit. Here each is a coroutine that `Client.sync` runs with one.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from isovoxel.errors import ClusterError, JobError, clause
from isovoxel.execution.events import Event, Waiting

ANSWER_SECONDS = 10.0
"""How long the scheduler may take to answer, or to pass a result on, before it is asked again."""
GONE_SECONDS = 60.0
"""For how long the scheduler may not answer at all."""
SILENT_SECONDS = 5.0
"""After how long a wait is reported."""
LOOK_SECONDS = 0.5
"""How often to check that the workers that were asked are still connected."""


class SchedulerGoneError(JobError):
    """The scheduler does not answer any more; says why, in a clause."""


class SchedulerWatch:
    """Asks the scheduler which workers there are, as long as it answers.

    Parameters
    ----------
    client
        A ``distributed.Client`` that is synchronous.
    """

    def __init__(self, client: Any) -> None:
        self._client, self._heard = client, time.monotonic()

    def workers(self) -> Mapping[str, Any] | None:
        """Return what the scheduler knows of its workers, by their addresses, or None where it does not answer now.

        Raises
        ------
        SchedulerGoneError
            If it has not answered for a while, or has gone.
        """
        self.check()
        asked = time.monotonic()
        try:
            there = known_workers(self._client, seconds=ANSWER_SECONDS)
        except Exception as error:
            self.check()
            if asked - self._heard > GONE_SECONDS:
                raise SchedulerGoneError(f"the scheduler does not answer ({clause(error)})") from error
            return None
        self._heard = asked
        return there

    def check(self) -> None:
        """Raise where the client has no connection to the scheduler any more; see `workers`."""
        if self._client.status != "running":
            raise SchedulerGoneError(f"the scheduler has gone, to which the client is {self._client.status}")


def ask_workers(
    client: Any, function: Callable[..., Any], *args: Any, workers: Sequence[str] | None = None, seconds: float
) -> dict[str, Any]:
    """Run a function on workers, concurrently with blocks; return each result or exception.

    Parameters
    ----------
    client
        A ``distributed.Client``.
    function, args
        What to call, with which arguments; it is called again on the others where a worker is lost meanwhile.
    workers
        Their addresses; by default all. One that the scheduler has lost is not asked.
    seconds
        How long they may take.

    Raises
    ------
    ClusterError
        If one does not answer.
    """
    from distributed.comm.core import CommClosedError

    async def ask(there: Collection[str]) -> dict[str, Any]:
        chosen = [address for address in (there if workers is None else workers) if address in there]
        answers: dict[str, Any] = await client.run(function, *args, workers=chosen, on_error="return")
        for answer in answers.values():
            if isinstance(answer, CommClosedError):  # its worker is about to be lost
                raise answer
        return answers

    try:
        found: dict[str, Any] = client.sync(_ask_those_there, client, ask, callback_timeout=seconds)
    except Exception as error:
        raise ClusterError(f"not all workers answer ({clause(error)}); end those that hang, and try again") from error
    return found


def add_plugin(client: Any, plugin: Any, name: str, *, seconds: float) -> None:
    """Give all workers a plugin, those that come later too, in place of any other of its name."""

    async def add(_: Collection[str]) -> None:
        await client.register_plugin(plugin, name=name)

    client.sync(_ask_those_there, client, add, callback_timeout=seconds)


def remove_plugin(client: Any, name: str, *, seconds: float) -> None:
    """Take a plugin back from all workers."""

    async def remove() -> None:
        await client.unregister_worker_plugin(name)

    client.sync(remove, callback_timeout=seconds)


async def _ask_those_there(client: Any, ask: Callable[[Collection[str]], Awaitable[Any]]) -> Any:
    """Ask workers by a coroutine that takes those that are there; ask again where one of them is lost meanwhile.

    The scheduler tries for half a minute to connect to that one, and then answers for none. One that hangs it loses
    after its ``worker-ttl``.
    """

    def begin() -> asyncio.Future[Any]:
        asked = asyncio.ensure_future(ask(there))
        asked.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # silences asyncio about one that is dropped
        return asked

    there = await _there(client)
    asked = begin()
    try:
        while True:
            await asyncio.wait([asked], timeout=LOOK_SECONDS)
            if asked.done() and asked.exception() is None:
                return asked.result()
            before, there = there, await _there(client)
            if not before.keys() <= there.keys():
                asked.cancel()
                asked = begin()
            elif asked.done():
                if not isinstance(asked.exception(), OSError):
                    return asked.result()
                await asyncio.sleep(LOOK_SECONDS)  # no connection to one that is not lost, or not yet
                asked = begin()
    finally:
        asked.cancel()


async def _there(client: Any) -> Mapping[str, Any]:
    """Return what the scheduler knows of its workers, by their addresses."""
    known: Mapping[str, Any] = (await client.scheduler.identity(n_workers=-1))["workers"]
    return known


def gather(client: Any, keys: Iterable[Any], *, seconds: float) -> dict[Any, Any]:
    """Return the results of finished tasks, by their keys, except those that were lost with their worker.

    distributed's own `gather` would wait until these are computed again, which only the lost worker may do.
    """

    async def ask() -> dict[Any, Any]:
        left = list(keys)
        while left:
            said = await client.scheduler.gather(keys=left)
            if said["status"] == "OK":
                found: dict[Any, Any] = said["data"]
                return found
            left = [key for key in left if key not in said["keys"]]
        return {}

    results: dict[Any, Any] = client.sync(ask, callback_timeout=seconds)
    return results


def drain(arrived: queue.SimpleQueue[Any], seconds: float) -> list[Any]:
    """Wait for the first item at most so long, then return all items that have arrived."""
    found = []
    with contextlib.suppress(queue.Empty):
        found.append(arrived.get(timeout=max(0.001, seconds)))
        while True:
            found.append(arrived.get_nowait())
    return found


@contextlib.contextmanager
def waiting(tell: Callable[[Event], None], what: str, seconds: float) -> Iterator[None]:
    """Report a wait and its limit where it takes a while, from a separate thread."""
    timer = threading.Timer(SILENT_SECONDS, tell, [Waiting(seconds, what)])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def known_workers(client: Any, *, seconds: float) -> Mapping[str, Any]:
    """Return what the scheduler knows of its workers, by their addresses."""
    known: Mapping[str, Any] = client.sync(_there, client, callback_timeout=seconds)
    return known


def worker_log(client: Any, address: str, lines: int, *, seconds: float) -> tuple[str, ...]:
    """Return the last lines that a worker has logged, oldest first."""

    async def ask() -> Any:
        return await client.get_worker_logs(lines, workers=[address])

    said = client.sync(ask, callback_timeout=seconds)
    return tuple(line for _, text in reversed(said[address]) for line in text.splitlines()[:2])
