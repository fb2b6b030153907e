"""Trials that end as drivers and broken packages do; processes that are asked import them from here."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

from isovoxel.doctor.trials import tell
from isovoxel.errors import DeviceError


def add(a: int, b: int) -> int:
    """Return a sum, among what a driver prints."""
    os.write(1, b"driver: hello\nno end of line")
    return a + b


def abort() -> NoReturn:
    """Crash as an assertion of a driver's does."""
    tell(["begun", "a driver"])
    os.write(2, b"assertion failed\n")
    os.abort()


def hang() -> None:
    """Never answer."""
    tell(["begun", "a driver"])
    threading.Event().wait()


def leave() -> NoReturn:
    """End the process as a library does that calls exit."""
    os._exit(0)


def fail() -> NoReturn:
    """End the process with a code."""
    os.write(2, b"cannot go on\n")
    os._exit(3)


def quit_() -> NoReturn:
    """Raise what is no Exception."""
    sys.exit("no licence")


class _Odd(BaseException):
    """An error that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError


def odd() -> NoReturn:
    """Raise an error that cannot be printed."""
    raise _Odd


def refuse() -> NoReturn:
    """Raise an error of isovoxel's."""
    raise DeviceError("it is off; switch it on")


def variable() -> str | None:
    return os.environ.get("ODD")


def path() -> list[str]:
    return sys.path
