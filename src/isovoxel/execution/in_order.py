"""Do the same with each of many items on threads, and take the results in the order of the items.

So what is made of the results is the same, bit by bit, however many threads there are, and the failure that is raised
is that of the first item that failed, as in a loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from isovoxel.object_store.retries import carried, patience

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2
"""How many items are begun for each thread before the first of their results is taken."""


@contextmanager
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
