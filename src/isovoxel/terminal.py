"""Standard output and standard error, through which every text goes that a terminal may see, and its signals.

Three things make a message harmless:

- Names, metadata and texts of other programs may hold anything; `plain` leaves no character that a terminal would obey.
- A stream that is closed, full, or that nobody reads any more takes nothing; `open_streams` lets no print fail for it,
  and remembers why, for `lost`.
- A stream whose encoding lacks a character gets it escaped.

`signals` lets a job end in order by the first one, and at once by the second. The first signal is a KeyboardInterrupt:
blocks in flight come to their end, and an `InterruptedJobError` says how to go on. The second, while they do, is a
KeyboardInterrupt too, of which nothing is waited for.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import select
import signal
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

SHOW_CURSOR = b"\x1b[?25h"
"""What shows a terminal's cursor again that a progress bar has hidden."""
DEBUG = "ISOVOXEL_DEBUG"
"""The variable that asks for tracebacks."""
_BREAKS = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+ *")
_JOINERS = "\u200c\u200d"
"""Characters without a width that words and emojis need."""


def plain(text: object) -> str:
    r"""Return a text as one line without control characters.

    Line breaks and tabs become a space. Every other character that is not printable (C0 and C1 controls, and with them
    escape sequences, those that turn the direction of writing, bytes of names that are no text) is escaped.

    Examples
    --------
    >>> print(plain("a\x1b[31m\u202eb\nc\udcff"))
    a\x1b[31m\u202eb c\xff
    """
    line = str(text)
    return line if line.isprintable() else "".join(map(_harmless, _BREAKS.sub(" ", line)))


def _harmless(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    if "\udc80" <= character <= "\udcff":  # a byte of a name that is no text
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def say(line: object) -> None:
    """Write a line to standard error: what is not a result. Nothing is raised where it cannot be written."""
    # A stream that is None would mean standard output.
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(plain(line), file=sys.stderr, flush=True)  # noqa: T201 - this is what it is for


def debugging() -> bool:
    """Return whether ``--debug`` or its variable asks for tracebacks; processes that are started have the variable."""
    return switched_on(DEBUG)


def switched_on(variable: str) -> bool:
    """Return whether an environment variable is set to anything that does not mean no."""
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no", "off", "f", "n")


def trace(error: BaseException) -> None:
    """Show where an error comes from, if that is asked for: its traceback, and what it carries from other processes."""
    if debugging():
        import traceback

        for part in traceback.format_exception(error):
            for line in part.splitlines():
                say(line)


def carry_trace(error: BaseException, trace: BaseException | str) -> None:
    """Let an error that goes to another process carry a traceback, which ends where it is pickled."""
    if isinstance(trace, BaseException):
        import traceback

        trace = "".join(traceback.format_exception(trace))
    error.add_note(f"in another process:\n{trace.rstrip()}")


def put(lines: Sequence[object]) -> None:
    """Write lines to standard output: a result."""
    print("\n".join(map(plain, lines)), flush=True)  # noqa: T201 - likewise


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows of cells as lines whose cells stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


class Abandoned(SystemExit):
    """The end of a command that was interrupted and comes to no end of its own: its threads may still run."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def exit_code(code: int) -> int:
    """Return a command's exit code, or 1 where all is done but standard output did not take what was put."""
    if code != 0 or (error := lost()) is None:
        return code
    if error.errno != errno.EPIPE:  # of which whoever has stopped reading knows
        say(f"error: the result cannot be printed: {error.strerror}")
    return 1


def lost() -> OSError | None:
    """Return why standard output did not take all that was put, once.

    Where it was closed from the beginning nobody wanted it.
    """
    file = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(file, _Forgiving):
        return None
    error, file.untold = file.untold, None
    return None if error is None or error.errno == errno.EBADF else error


class _Forgiving(io.FileIO):
    """The file of a stream: what it does not take is dropped, and the first reason kept."""

    error: OSError | None = None
    """What ended it."""
    untold: OSError | None = None
    """The same, until `lost` has returned it."""

    def write(self, data: Any) -> int:
        """Write, and claim to have written."""
        try:
            while self.error is None:
                written = super().write(data)
                if written is not None:
                    return written
                select.select([], [self], [])  # another process has made it one that does not block
        except OSError as error:
            self.error = self.untold = error
        return len(data)


def open_streams() -> None:
    """Make the standard streams of this process such that no print fails, whatever its caller has made of them.

    A closed one becomes the null device, lest the next file that is opened takes its number, and with it what drivers
    print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
    sys.stdout = _stream(sys.stdout, 1)
    sys.stderr = _stream(sys.stderr, 2)


def _stream(before: Any, number: int) -> io.TextIOWrapper:
    """Return a stream in place of one, in the same encoding."""
    if before is not None:
        with contextlib.suppress(OSError):
            before.flush()
    file = io.BufferedWriter(_Forgiving(number, "w", closefd=False))
    encoding = getattr(before, "encoding", None) or "utf-8"
    return io.TextIOWrapper(file, encoding=encoding, errors="backslashreplace", line_buffering=True)


def show_cursor() -> None:
    """Show the cursor of the terminal that standard error is, if it is one."""
    with contextlib.suppress(OSError):
        if os.isatty(2):
            os.write(2, SHOW_CURSOR)


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
