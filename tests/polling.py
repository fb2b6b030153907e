"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 600.0
"""Seconds after which a test fails; no machine is so slow, and nothing else depends on it."""


def wait_until(so: Callable[[], object], why: Callable[[], object] = lambda: "") -> None:
    """Wait until something is so; fail where it never is, and say why."""
    deadline = time.monotonic() + PATIENCE
    while not so():
        assert time.monotonic() < deadline, why()
        time.sleep(0.01)
