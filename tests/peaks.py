"""How much does a call hold at its peak? Measured where other threads of the process may allocate as well."""

from __future__ import annotations

import subprocess
import sys
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


WATCH = """
import select, sys, pynvml
pynvml.nvmlInit()
handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
used = lambda: [pynvml.nvmlDeviceGetMemoryInfo(h).used for h in handles]
before = most = used()
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    most = [max(a, b) for a, b in zip(most, used())]
print(max(a - b for a, b in zip(most, before)))
"""
"""Prints by how much the used memory of one GPU rose until standard input was closed."""


def device_rise(do: Callable[[], object]) -> int:
    """Return by how many bytes the used memory of one NVIDIA GPU rose, at most, while something was done."""
    with subprocess.Popen(
        [sys.executable, "-c", WATCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "ready\n"
        do()
        return int(watcher.communicate()[0])
