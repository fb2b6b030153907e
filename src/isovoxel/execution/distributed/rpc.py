"""Calls to a cluster that return, even if a machine was cut off.

distributed's client does so in `Client.sync`, given the coroutine behind what it offers to all: here they are, each
with a limit, and nowhere else.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from isovoxel.errors import ClusterError
from isovoxel.execution.events import Event, Waiting
from isovoxel.execution.retry import clause

SILENT_SECONDS = 5.0
"""After how long it is said that somebody is waited for."""


def ask_workers(
    client: Any, function: Callable[..., Any], *words: Any, workers: Sequence[str] | None = None, seconds: float
) -> dict[str, Any]:
    """Run a function on workers, beside their blocks, and return what each says, or the error that it raised.

    One that the scheduler has lost is not asked, for who asks it would wait for its connection half a minute.

    Parameters
    ----------
    client
        A ``distributed.Client``.
    function, words
        What to call, with what.
    workers
        Their addresses; by default all.
    seconds
        How long they may take.

    Raises
    ------
    ClusterError
        If one does not answer.
    """
    chosen = None if workers is None else list(workers)
    try:
        if chosen is not None:
            there = identity(client, seconds=seconds)["workers"]
            chosen = [address for address in chosen if address in there]
        found: dict[str, Any] = client.sync(
            client._run,  # noqa: SLF001
            function,
            *words,
            workers=chosen,
            on_error="return",
            callback_timeout=seconds,
        )
    except Exception as error:
        raise ClusterError(f"not all workers answer ({clause(error)}); end those that hang, and try again") from error
    return found


def add_plugin(client: Any, plugin: Any, name: str, *, seconds: float) -> None:
    """Give all workers a plugin, those that come later too, in place of any other of its name."""
    client.sync(
        client._register_worker_plugin,  # noqa: SLF001
        plugin=plugin,
        name=name,
        idempotent=False,
        callback_timeout=seconds,
    )


def remove_plugin(client: Any, name: str, *, seconds: float) -> None:
    """Take a plugin back from all workers."""
    client.sync(client._unregister_worker_plugin, name=name, callback_timeout=seconds)  # noqa: SLF001


def gather(client: Any, keys: Iterable[Any], *, seconds: float) -> dict[Any, Any]:
    """Return the results of tasks that are finished, by their keys; without those that a lost worker took along.

    distributed's client would wait until those have been done again, which nobody may do but the worker that is lost.
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


@contextlib.contextmanager
def waiting(tell: Callable[[Event], None], what: str, seconds: float) -> Iterator[None]:
    """Say what is waited for, and for how long at most, where that takes a while; from a thread of its own."""
    timer = threading.Timer(SILENT_SECONDS, tell, [Waiting(seconds, what)])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def identity(client: Any, *, seconds: float) -> dict[str, Any]:
    """Return what the scheduler knows of itself and its workers."""
    found: dict[str, Any] = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=seconds)
    return found


def worker_log(client: Any, address: str, lines: int, *, seconds: float) -> tuple[str, ...]:
    """Return the last lines that a worker has logged, oldest first."""
    said = client.sync(client.scheduler.worker_logs, n=lines, workers=[address], nanny=False, callback_timeout=seconds)
    return tuple(line for _, text in reversed(said[address]) for line in text.splitlines()[:2])
