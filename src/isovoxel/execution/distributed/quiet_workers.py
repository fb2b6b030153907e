"""Workers of isovoxel's own, which log for the client and not to a terminal.

Ctrl-C in a terminal reaches all of its processes: workers must leave it to the client, and so must those that a nanny
starts in place of one that died.
"""

from __future__ import annotations

import logging
import os
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


class _SafePath:
    """Sets PYTHONSAFEPATH while processes are being started, any number at once, of one event loop.

    What Python spawns begins with ``python -c``, which looks for modules in the working folder first. The variable is
    not left there, where it would change what else a caller starts.
    """

    NAME = "PYTHONSAFEPATH"

    def __init__(self) -> None:
        self._starting = 0
        self._before: str | None = None

    def __enter__(self) -> None:
        if not self._starting:
            self._before = os.environ.get(self.NAME)
        self._starting += 1
        os.environ[self.NAME] = "1"

    def __exit__(self, *_: object) -> None:
        self._starting -= 1
        if not self._starting:
            os.environ.pop(self.NAME, None)
            if self._before is not None:
                os.environ[self.NAME] = self._before


_safe_path = _SafePath()


def start_tracker() -> None:
    """Start multiprocessing's tracker of resources, which removes what a worker leaves that is killed, without a word.

    It would warn of that on standard error, in words of Python's own.
    """
    name, quiet = "PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker"
    before = os.environ.get(name)
    os.environ[name] = f"{before},{quiet}" if before else quiet
    try:
        with _safe_path:
            resource_tracker.ensure_running()
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


class OwnNanny(Nanny):
    """A nanny whose workers hear no signal of the terminal while they start, and import nothing of the folder."""

    async def instantiate(self) -> Any:
        """Start the worker's process, which begins with the mask of signals that this thread, the loop's, has."""
        with _safe_path:
            if hasattr(signal, "pthread_sigmask"):
                start_tracker()  # started later, it would unblock SIGINT in this thread
                signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL)
            return await super().instantiate()
