"""Output lock: one writer at a time; a second gets an error naming the holder.

1. The system's own lock on a file (flock) ends with the process that holds it, however that ends. It decides between
   processes of one host, and of several where the file system passes locks on.
2. The file says who holds it: host, process, since when. That is for people, and for file systems that keep the locks
   of other hosts to themselves, or have none: there the holder touches the file each few seconds, as a sign of life.
3. The file also has a word that no other hold of the lock ever has. All that write for the holder know it (threads,
   other processes, workers): see `Attempt`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from isovoxel.errors import OutputBusyError, OutputError
from isovoxel.object_store.addresses import Place
from isovoxel.object_store.files import parse_json, refusal, write_all
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output.ledger_folder import claim, open_own, read_own, unclaim

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: the file alone says who holds it
    fcntl = None

BEAT_SECONDS = 5.0
"""How often the holder touches the file."""
DEAD_SECONDS = 60.0
"""After how long without a touch a holder on another host counts as dead; its clock may be off, but not its beat."""
ASK_SECONDS = 1.0
"""How often a process that writes for a holder elsewhere asks a store for the lock."""
CLOCK_SECONDS = 2.0
"""How far the start of one process may be off between two readings, where the host's clock was set meanwhile."""

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
            text = self.lock.read_bytes()
        except FileNotFoundError:
            text = b""
        if word_of(text) == self.word:
            if isinstance(self.lock, ObjectPlace):
                _asked[self.word] = asked
            return
        if not text:
            raise OutputBusyError(f"{self.output} is not locked by this job any more: {self.lock} is gone, or empty")
        raise OutputBusyError(
            f"{self.output} was taken over by {Holder.from_json(text) or 'another process'}, because this one gave no "
            f"sign of life for {DEAD_SECONDS:.0f} seconds"
        )


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


def now() -> float:
    """Return seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class OutputLock:
    """Held by the one process that writes an output; a context manager.

    Parameters
    ----------
    path
        The file to lock; its folder is made.
    output
        What the user called the output.

    Raises
    ------
    OutputBusyError
        On entering, if another process holds it.
    OutputError
        On entering, if the file system refuses.
    """

    def __init__(self, path: Path, output: Place) -> None:
        self._path = path
        self._output = output
        self.word = uuid.uuid4().hex
        """What the file says as long as the lock is held."""
        self._file = -1
        self._ended = threading.Event()
        self._beat: threading.Thread | None = None

    def __enter__(self) -> Self:
        new = not os.path.lexists(self._path.parent)
        try:
            while not self._take():
                pass
        except OutputError:
            raise
        except OSError as error:
            if new:
                unclaim(self._path.parent)
            raise OutputError(refusal(error, self._path)) from error
        self._ended.clear()
        self._beat = threading.Thread(target=self._touch, name="isovoxel-lock", daemon=True)
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_attempt(self.word)
        self._ended.set()
        try:
            if self._beat is not None:
                self._beat.join()
        finally:  # also where an impatient user interrupts that
            file, self._file = self._file, -1
            with contextlib.suppress(OSError):
                if self._is_ours(file):
                    os.ftruncate(file, 0)  # nobody holds it
            _unlock(file)
            os.close(file)

    def _take(self) -> bool:
        """Take the lock, or return False where its file was removed meanwhile by who held it before."""
        try:
            claim(self._path.parent)
            file = open_own(self._path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            if not self._path.parent.parent.is_dir():
                raise
            return False  # the folder went with the job that is just finished
        try:
            self._refuse_where_held(file)
            same = self._path.exists() and os.path.samestat(os.fstat(file), self._path.stat())
            if same:
                os.ftruncate(file, 0)
                os.lseek(file, 0, os.SEEK_SET)
                self._sign(file)
        except BaseException:
            os.close(file)
            raise
        if not same:
            os.close(file)
            return False
        self._file = file
        return True

    def _sign(self, file: int) -> None:
        """Write who holds the lock; half of it would be nobody, and so the file goes where there is no room."""
        try:
            write_all(file, json.dumps(asdict(Holder.own()) | {"word": self.word}).encode(), self._path)
        except OSError:
            self._path.unlink(missing_ok=True)
            raise

    def _refuse_where_held(self, file: int) -> None:
        locks = _lock(file)
        holder = Holder.from_json(os.read(file, 4096))
        # Of a process of this host that lives, the system does not give the lock away.
        trusted = locks and holder is not None and holder.host == socket.gethostname()
        alive = holder is not None and _lives(holder, os.fstat(file).st_mtime)
        if locks is None or (alive and not trusted):
            raise OutputBusyError(
                f"{self._output} is being written by {holder or 'another process'}; "
                "wait for it, end it, or give another output"
            )

    def _is_ours(self, file: int) -> bool:
        """Tell whether nobody has taken the lock over, which another host may where it does not see it."""
        os.lseek(file, 0, os.SEEK_SET)
        return word_of(os.read(file, 4096)) == self.word

    def _touch(self) -> None:
        file = self._file
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if not self._is_ours(file):
                    return
                os.utime(file if os.utime in os.supports_fd else self._path)


def word_of(text: bytes) -> str:
    """Return the word of a lock's text; empty where it has none."""
    return said(text, "word")


def said(text: bytes, key: str) -> str:
    """Return what a lock's text says beside its holder."""
    try:
        named: Any = parse_json(text)
        return str(named[key])
    except (ValueError, KeyError, TypeError):
        return ""


def read_holder(path: Path) -> Holder | None:
    """Return who holds an output by its lock file, or None where nobody does who lives."""
    try:
        holder = Holder.from_json(read_own(path))
        return holder if holder is not None and _lives(holder, path.stat().st_mtime) else None
    except OSError:
        return None


def _lock(file: int) -> bool | None:
    """Lock an open file: True if that worked, None if another holds it, False where the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        return False
    return True


def _unlock(file: int) -> None:
    """Give a lock back, also where a process that was forked meanwhile has the file open."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def _lives(holder: Holder, touched: float) -> bool:
    """Tell whether who is named in a file still holds it: by the process, or by its beat where that is elsewhere."""
    if holder.host != socket.gethostname():
        return time.time() - touched < DEAD_SECONDS
    return process_lives(holder)


def process_lives(holder: Holder) -> bool:
    """Tell whether a process of this machine lives that is named in a lock."""
    try:
        return bool(abs(psutil.Process(holder.pid).create_time() - holder.began) < CLOCK_SECONDS)
    except psutil.Error:
        return False
