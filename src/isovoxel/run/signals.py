"""How does a job end when the system, or whoever watches it, says so?

The first signal is a KeyboardInterrupt: blocks in flight come to their end, and the job becomes an error that says how
to go on. The second, while they do, ends the process at once, for its threads still run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

LATER = 0.01
"""Seconds until a signal is sent again that came at the wrong moment."""
WEAK = ("weakref.py", "_weakrefset.py")
"""Modules of Python's whose functions weak references call."""


class Stopped(KeyboardInterrupt):
    """The system asks this process to end, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Let SIGTERM, and the SIGHUP of a closed terminal, end a job as Ctrl-C does; a second one ends it at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if _would_be_lost(frame):
            threading.Timer(LATER, os.kill, (os.getpid(), number)).start()
            return
        raise Stopped(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {
        number: signal.signal(number, stop)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup: whoever started this wants it to go on
    }
    try:
        yield
    except KeyboardInterrupt as second:
        # A job makes an error of the first: threads still run, and nobody wants to wait for them.
        with contextlib.suppress(OSError):
            print("interrupted", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(128 + getattr(second, "signal", signal.SIGINT))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _would_be_lost(frame: FrameType | None) -> bool:
    """Tell whether Python is in a finalizer or a weak reference's callback: of what these raise it says so only."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or Path(code.co_filename).name in WEAK:
            return True
        frame = frame.f_back
    return False
