"""How much does a call hold at its peak? Measured where other threads of the process may allocate as well."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 8


def least_peak(
    call: Callable[[], T], enough: Callable[[T], int], make_ready: Callable[[], object] = lambda: None
) -> tuple[T, int]:
    """Return what a call returns, and the least of several peaks: servers of other tests allocate now and then.

    Parameters
    ----------
    call
        What is measured.
    enough
        Returns, of what it returned, the peak that need not be any less.
    make_ready
        Called before each attempt.
    """
    peaks = []
    for _ in range(ATTEMPTS):
        make_ready()
        tracemalloc.start()
        try:
            result = call()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        if peaks[-1] <= enough(result):
            break
    return result, min(peaks)
