"""Attempt: one hold of an output's lock, as all know it that write for the holder, and the fence around it.

A writer that lost the lock finds its unsealed files gone, so it can rename none of them. A thread, a process or a
machine may stop between any two of its steps, and go on when another job has begun, or is complete. So it is not enough
to look at the lock before a file is renamed to its place:

1. What is not sealed lies in a folder of the attempt's own, one in each level's folder, so on the same disk. Only the
   holder makes these folders, after it has taken the lock.
2. Whoever takes the lock first moves the folders of all attempts away, and deletes them; whoever gives it back does so
   with its own. From then on an older attempt can neither make files nor rename any.
3. Between two steps it looks at the lock as well: that costs little, and says why it must end.

A store renames nothing. There, what an attempt puts is put on a condition that its successor makes untrue, see
`isovoxel.object_store.objects.ObjectPlace.upload` and `isovoxel.output.ome_zarr.begin_attempt`.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from isovoxel.errors import OutputBusyError
from isovoxel.object_store.files import parse_json
from isovoxel.object_store.objects import ObjectPlace, Place

_UNSEALED, _GONE = "isovoxel-unsealed-", "isovoxel-gone-"
"""How the names of such folders begin, and of those that were moved away."""
DEAD_SECONDS = 60.0
"""After how long without a touch a holder on another host counts as dead; its clock may be off, but not its beat."""
ASK_SECONDS = 1.0
"""How often a process that writes for a holder elsewhere asks a store for the lock."""
_LONGEST = 2**14
"""More bytes than any lock has."""
CLOCK_SECONDS = 2.0
"""How far the start of one process may be off between two readings, where the host's clock was set meanwhile."""

now = partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
"""Seconds of a clock that goes on while the machine sleeps."""

_ended: set[str] = set()
"""Words of locks that this process held, and does no more."""
_beats: dict[str, float] = {}
"""Until when nobody takes locks in a store over that this process holds, by their words and `now`."""
_asked: dict[str, float] = {}
"""When the store was asked last for locks that other processes hold."""


@dataclass(frozen=True)
class Holder:
    """Who holds an output."""

    host: str
    """Name of the machine."""
    pid: int
    """Process there."""
    began: float
    """When that process was started, in its host's seconds since 1970: process numbers come again."""
    since: str
    """Since when it holds the output, ISO 8601."""

    @classmethod
    def own(cls) -> Holder:
        """Return this process."""
        since = datetime.now(UTC).astimezone().isoformat(" ", "seconds")
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time(), since)

    @classmethod
    def from_json(cls, text: bytes) -> Holder | None:
        """Return who is named in a file, or None where nobody is, or half a name."""
        try:
            named = parse_json(text)
            holder = cls(str(named["host"]), int(named["pid"]), float(named["began"]), str(named["since"]))
        except (ValueError, KeyError, TypeError, OverflowError):
            return None
        return holder if 0 < holder.pid < 2**31 and math.isfinite(holder.began) else None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@dataclass(frozen=True)
class Attempt:
    """One hold of an output's lock, as all know it that write for the holder, in other processes too."""

    lock: Place
    """The lock's file or object."""
    word: str
    """What it says as long as it is held."""
    output: Place
    """What the user called the output."""

    def check(self) -> None:
        """Do nothing while the lock is held; a store is asked for it only now and then.

        Raises
        ------
        OutputBusyError
            If it is not, or another process has taken it over.
        OSError
            If nobody can tell at this moment.
        """
        if self.word in _ended:
            raise OutputBusyError(
                f"this process has ended its job of {self.output}, and writes nothing into it any more"
            )
        asked = now()
        if asked < _beats.get(self.word, _asked.get(self.word, -math.inf) + ASK_SECONDS):
            return
        try:
            text = self.lock.read_bytes() if isinstance(self.lock, ObjectPlace) else _read(self.lock)
        except FileNotFoundError:
            text = b""
        if said(text) == self.word:
            if isinstance(self.lock, ObjectPlace):
                _asked[self.word] = asked
            return
        if not text:
            raise OutputBusyError(f"{self.output} is not locked by this job any more: {self.lock} is gone, or empty")
        raise OutputBusyError(
            f"{self.output} was taken over by {Holder.from_json(text) or 'another process'}, because this one gave no "
            f"sign of life for {DEAD_SECONDS:.0f} seconds"
        )


def _read(lock: Path) -> bytes:
    """Return what a lock's file says, in few calls: each lets other threads have the interpreter."""
    descriptor = os.open(lock, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        return os.read(descriptor, _LONGEST)
    finally:
        os.close(descriptor)


def end_attempt(word: str) -> None:
    """Let nothing more be written in this process by whoever knows this word."""
    _ended.add(word)
    _beats.pop(word, None)
    _asked.pop(word, None)


def forget(word: str) -> None:
    """Let the store be asked for a lock that this process held."""
    _beats[word] = -math.inf


def note_beat(word: str, asked: float) -> None:
    """Note that a lock in a store was held at this time, and a sign of life was given: nobody takes it over so soon."""
    _beats[word] = asked + DEAD_SECONDS / 2


def said(text: bytes, key: str = "word") -> str:
    """Return what a lock's text says beside its holder, by default its word; empty where it does not."""
    try:
        named: Any = parse_json(text)
        return str(named[key])
    except (ValueError, KeyError, TypeError):
        return ""


def process_lives(holder: Holder) -> bool:
    """Return whether a process of this machine lives that is named in a lock."""
    try:
        return bool(abs(psutil.Process(holder.pid).create_time() - holder.began) < CLOCK_SECONDS)
    except psutil.Error:
        return False


def unsealed_folder(level: Path, attempt: Attempt | None) -> Path:
    """Return where files of a level lie until they are sealed: beside each other where nobody holds a lock."""
    return level if attempt is None else level / f"{_UNSEALED}{attempt.word}"


def make_folders(output: Path, attempt: Attempt) -> None:
    """Make the folders of an attempt; only the holder of the lock may."""
    for level in _levels(output):
        unsealed_folder(level, attempt).mkdir()


def end_attempts(output: Path, attempt: Attempt | None = None) -> None:
    """Take away what one attempt, or by default any, has not sealed; it seals nothing more.

    Raises
    ------
    OSError
        If the file system refuses.
    """
    wanted = _UNSEALED if attempt is None else f"{_UNSEALED}{attempt.word}"
    for level in _levels(output):
        with os.scandir(level) as entries:
            found = [Path(entry) for entry in entries if entry.name.startswith((wanted, _GONE))]
        for folder in found:
            gone = level / f"{_GONE}{uuid.uuid4().hex}"
            with contextlib.suppress(FileNotFoundError):  # another thread was faster
                folder.rename(gone)  # at once, while its files go one by one
            shutil.rmtree(gone, ignore_errors=True)


def _levels(output: Path) -> Iterator[Path]:
    """Yield the folders of an output's levels."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(output) as entries:
        yield from [Path(entry) for entry in entries if entry.name.isdecimal() and entry.is_dir()]
