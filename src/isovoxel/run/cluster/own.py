"""How do isovoxel's own workers behave where distributed's would disturb a terminal? They log for the client only.

Ctrl-C in a terminal reaches all of its processes: workers must leave it to the client, and so must those that a nanny
starts in place of one that died.
"""

from __future__ import annotations

import logging
import signal
from multiprocessing import resource_tracker
from typing import Any

from distributed import Nanny, Worker

_TERMINAL = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]
"""Signals that a terminal sends to all of its processes."""


class OwnWorker(Worker):
    """A worker that leaves the terminal to the client: its signals, and what is written there.

    What it logs is kept for the client to ask for.
    """

    def __init__(self, *words: Any, **options: Any) -> None:
        for handler in logging.getLogger("distributed").handlers:
            handler.setLevel(logging.CRITICAL + 1)
        for number in _TERMINAL:
            signal.signal(number, signal.SIG_IGN)
        super().__init__(*words, **options)


class OwnNanny(Nanny):
    """A nanny whose workers hear no signal of the terminal while they start, either."""

    async def instantiate(self) -> Any:
        """Start the worker's process, which begins with the mask of signals that this thread, the loop's, has."""
        if hasattr(signal, "pthread_sigmask"):
            resource_tracker.ensure_running()  # started later, it would unblock SIGINT in this thread
            signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL)
        return await super().instantiate()
