"""Retry policy for everything remote: retry transient failures after pauses that grow.

Reads and writes over a network, and of disks that others share, fail for a moment and work the next time. The first
pauses are short ones for hiccups, the later ones are for a server that is being restarted. Together they last about a
minute and a half.

1. Whatever asks an object store does so by `retry`, and so does whatever else may fail for a moment.
2. `patience` says who is notified of a new attempt, and what ends the pauses. It holds for the calls inside its
   ``with`` statement, and in other threads by `carried`.
3. Attempts do not multiply: an error that was raised after the last attempt is not transient to a `retry` around it,
   and after it everything of this job is tried once, until something works again.

`map_in_order` does the same with each of many items on threads, and returns the results in the order of the items: so
what is made of them is the same, bit by bit, however many threads there are, and the failure that is raised is that of
the first item that failed, as in a loop.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from isovoxel.errors import CorruptInputError
from isovoxel.log import logger

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

PAUSES = (0.2, 1.0, 3.0, 10.0, 25.0, 50.0)
"""Seconds before each new attempt."""

_PASSING_NAMES = (
    "EIO ESTALE EAGAIN EINTR EBUSY EREMOTEIO ETIMEDOUT ECONNRESET ECONNREFUSED ECONNABORTED "
    "ENETDOWN ENETUNREACH ENETRESET EHOSTDOWN EHOSTUNREACH"
)
_PASSING = frozenset(getattr(errno, name) for name in _PASSING_NAMES.split() if hasattr(errno, name))
"""What a disk or a network may say once and not the next time."""

_NETWORK = frozenset(
    ("ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError", "ClientPayloadError")
)
"""Names of Python's, botocore's, requests' and aiohttp's classes of such errors; not all of them are an `OSError`."""

_EXHAUSTED = "isovoxel_exhausted"
"""Attribute of an error that was raised after the last attempt."""


def is_transient(error: BaseException) -> bool:
    """Return whether a new attempt may help: a disk or a network failed, not the data, nor who asked for them.

    The error and what caused it are asked in turn; the first that is clearly one or the other decides.
    """
    if gave_up(error):
        return False
    for cause in _causes(error):
        if isinstance(cause, CorruptInputError | MemoryError):
            return False
        status = _http_status(cause)
        if status is not None:
            return is_passing(status)
        if any(kind.__name__ in _NETWORK for kind in type(cause).__mro__):
            return True
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno in _PASSING
    return False


def gave_up(error: BaseException) -> bool:
    """Return whether an error was raised after the last attempt: it says nothing of what was asked for."""
    return any(_EXHAUSTED in vars(cause) for cause in _causes(error))


def is_passing(status: int) -> bool:
    """Return whether a server that answers with an HTTP status may answer with another one the next time."""
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS):
        return True
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED


def _log(error: Exception, pause: float) -> None:
    logger.warning("%s; tried again in %g s", error, pause)


@dataclass(frozen=True)
class Patience:
    """How long failures are retried, and what is notified of them."""

    told: Callable[[Exception, float], None] = _log
    """Called with the error and the seconds until the next attempt."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set, it ends pauses, and everything is tried once."""
    tries: bool = True
    """Whether anything is tried again."""
    spent: threading.Event = field(default_factory=threading.Event)
    """Set after a last attempt, until something works again."""


_patience: contextvars.ContextVar[Patience] = contextvars.ContextVar("isovoxel_patience")


@contextlib.contextmanager
def patience(
    told: Callable[[Exception, float], None] | None = None,
    ended: threading.Event | None = None,
    *,
    tries: bool | None = None,
) -> Iterator[None]:
    """Set the patience of all calls inside; what is not given stays as it is.

    Parameters
    ----------
    told, ended, tries
        As in `Patience`.
    """
    changes: dict[str, Any] = {"told": told, "ended": ended, "tries": tries}
    now = replace(_patience.get(Patience()), **{name: value for name, value in changes.items() if value is not None})
    token = _patience.set(now)
    try:
        yield
    finally:
        _patience.reset(token)


def carried(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that has the caller's patience in whichever thread it is called."""
    given = _patience.get(None)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if given is not None:
            _patience.set(given)
        return function(*args, **kwargs)

    return call


class Attempts:
    """Attempts at one thing.

    Parameters
    ----------
    may_pass
        Returns whether an error is one after which a new attempt may help.
    """

    def __init__(self, may_pass: Callable[[Exception], bool] = is_transient) -> None:
        self._may_pass = may_pass
        self._patience = _patience.get(Patience())
        self._pauses = iter(PAUSES)

    def pause(self, error: Exception) -> None:
        """Pause after a failed attempt; raises the error where there is no other one."""
        patience = self._patience
        if not self._may_pass(error):
            raise error
        if not patience.tries or patience.ended.is_set() or patience.spent.is_set():
            raise error
        pause = next(self._pauses, None)
        if pause is None:
            patience.spent.set()
            vars(error)[_EXHAUSTED] = True
            raise error
        patience.told(error, pause)
        if patience.ended.wait(pause):
            raise error

    def succeed(self) -> None:
        """Note that an attempt has worked."""
        self._patience.spent.clear()


def retry(do: Callable[[], T], may_pass: Callable[[Exception], bool] = is_transient) -> T:
    """Call `do`, and again after each pause where it fails with what may pass.

    Parameters
    ----------
    do
        What to do; doing it twice does no harm.
    may_pass
        Returns whether an error is one after which a new attempt may help.

    Raises
    ------
    Exception
        The last attempt's.
    """
    attempts = Attempts(may_pass)
    while True:
        try:
            result = do()
        except Exception as error:  # noqa: BLE001 - raised by `pause`, but where it may pass
            attempts.pause(error)
        else:
            attempts.succeed()
            return result


def interruptible(do: Callable[[], T]) -> T:
    """Call `do`, which Ctrl-C interrupts on the main thread, also where a library would hold that up.

    On the main thread it is called in another one, which is left alone then: it must change nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return do()
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(do())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            result.set_exception(error)

    threading.Thread(target=carried(run), name="isovoxel-ask", daemon=True).start()
    return result.result()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Go from an error to what caused it, and on, as a traceback does."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _http_status(error: BaseException) -> int | None:
    """Return the status that a server answered with, wherever its library keeps it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        response = response.get("ResponseMetadata", {})
        found = [response.get("HTTPStatusCode") if isinstance(response, dict) else None]
    else:
        found = [getattr(place, key, None) for place in (error, response) for key in ("status", "status_code", "code")]
    return next((status for status in found if isinstance(status, int) and 400 <= status < 600), None)


AHEAD = 2
"""How many items are begun for each thread before the first of their results is taken."""


@contextlib.contextmanager
def map_in_order(do: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[Iterator[R]]:
    """Yield what returns the results of many items, in their order; however its context ends, so do the threads.

    Parameters
    ----------
    do
        What to do with an item. A single thread is the caller's own.
    items
        Taken by the caller's thread, as their turn comes.
    threads
        How many work at a time. At most `AHEAD` times as many items are at work or have a result that waits.
    """
    if threads == 1:
        yield map(do, items)
        return
    ended = threading.Event()
    with patience(ended=ended):  # after which pauses between attempts end, and all is tried once
        call = carried(do)
    pool = ThreadPoolExecutor(threads, "isovoxel-read")
    try:
        yield _results(pool, call, iter(items), AHEAD * threads)
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)


def _results(pool: ThreadPoolExecutor, do: Callable[[T], R], items: Iterator[T], most: int) -> Iterator[R]:
    begun: deque[Future[R]] = deque(pool.submit(do, item) for item in islice(items, most))
    while begun:
        yield begun.popleft().result()
        begun.extend(pool.submit(do, item) for item in islice(items, 1))
