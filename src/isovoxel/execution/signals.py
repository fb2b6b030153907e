"""Signals that end a job: the first one in order, the second one at once.

The first signal is a KeyboardInterrupt: blocks in flight come to their end, and an `InterruptedJobError` says how to go
on. The second, while they do, is a KeyboardInterrupt too, of which nothing is waited for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

LATER = 0.01
"""Seconds until a signal is sent again that came at the wrong moment."""
LATEST = 0.5
"""Seconds for which an import may put it off."""
WEAK = ("weakref.py", "_weakrefset.py")
"""Modules of Python's whose functions weak references call."""
IMPORTING = "<frozen importlib._bootstrap>"
"""Where Python imports modules: some of what an exception there interrupts hides it, or prints it as ignored."""


class Stopped(KeyboardInterrupt):
    """The system asks this process to end, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Let SIGTERM, and the SIGHUP of a closed terminal, end what runs here as Ctrl-C does: by a `Stopped`."""
    put_off: dict[int, float] = {}
    """When signals came first that are still to be raised."""

    def stop(number: int, frame: FrameType | None) -> None:
        waited = time.monotonic() - put_off.setdefault(number, time.monotonic())
        if _would_be_lost(frame) or (waited < LATEST and _importing(frame)):
            _again(number)
            return
        put_off.clear()
        raise Stopped(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {
        number: signal.signal(number, stop)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup: whoever started this wants it to go on
    }
    try:
        yield
        for number in put_off:
            raise Stopped(number)
    finally:
        if put_off and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _again(number: int) -> None:
    """Send a signal again, a little later."""
    if hasattr(signal, "setitimer"):  # a thread cannot be started from within whatever was interrupted
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), number))
        signal.setitimer(signal.ITIMER_REAL, LATER)
    else:
        threading.Timer(LATER, os.kill, (os.getpid(), number)).start()


def _would_be_lost(frame: FrameType | None) -> bool:
    """Tell whether Python is in a finalizer or a weak reference's callback: of what these raise it says so only."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or Path(code.co_filename).name in WEAK or _ends_import(code):
            return True
        frame = frame.f_back
    return False


def _ends_import(code: CodeType) -> bool:
    """Return whether a function is what the lock of a module calls when it is collected."""
    return code.co_name == "cb" and code.co_filename == IMPORTING


def _importing(frame: FrameType | None) -> bool:
    """Return whether Python is importing a module."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            return True
        frame = frame.f_back
    return False
