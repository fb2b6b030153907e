"""Output lock: one writer at a time; a second gets an error naming the holder.

On a disk it is a file:

1. The system's own lock on it (flock) ends with the process that holds it, however that ends. It decides between
   processes of one host, and of several where the file system passes locks on.
2. The file says who holds it: host, process, since when. That is for people, and for file systems that keep the locks
   of other hosts to themselves, or have none: there the holder touches the file each few seconds, as a sign of life.
3. The file also has a word that no other hold of the lock ever has. All that write for the holder know it (threads,
   other processes, workers): see `isovoxel.output.attempt.Attempt`.

In an object store it is an object that says the same, and that only one process can create:

1. The lock is put on the condition that there is none (If-None-Match).
2. The holder puts it again each few seconds, on the condition that it is still its own (If-Match), as a sign of life.
3. A lock whose holder was a process of this very machine that is gone, or that had no sign of life for a minute by the
   store's own clock, is taken over, on the condition that it is still as it was found. Its holder, should it wake up,
   finds that out at its next sign of life, and stops.
"""

from __future__ import annotations

import abc
import contextlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from isovoxel.errors import OutputBusyError, OutputError
from isovoxel.object_store.clients import ChangedError, Found, Version
from isovoxel.object_store.files import fcntl, refusal, write_all
from isovoxel.object_store.objects import ObjectPlace, Place
from isovoxel.object_store.retries import patience
from isovoxel.output.attempt import (
    DEAD_SECONDS,
    Holder,
    end_attempt,
    forget,
    note_beat,
    now,
    process_lives,
    said,
)
from isovoxel.output.files import claim, open_own, read_own, unclaim

BEAT_SECONDS = 5.0
"""How often the holder touches the file."""


@dataclass(eq=False)
class OutputLock(abc.ABC):
    """Held by the one process that writes an output; a context manager, which `lock_output` returns.

    Raises
    ------
    OutputBusyError
        On entering, if another process holds it.
    OutputError
        On entering, if the file system or the store refuses.
    """

    _place: Any
    """The lock's file or object."""
    _output: Place
    """What the user called the output."""
    word: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)
    """What the file or object says as long as the lock is held."""
    _ended: threading.Event = field(default_factory=threading.Event, init=False)
    _beat: threading.Thread | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self._acquire()
        self._beat = threading.Thread(target=self._give_signs, name="isovoxel-lock", daemon=True)
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        end_attempt(self.word)
        self._ended.set()
        try:
            if self._beat is not None:
                self._beat.join()
        finally:  # also where an impatient user interrupts that
            self._release()

    @abc.abstractmethod
    def _acquire(self) -> None:
        """Take the lock."""

    @abc.abstractmethod
    def _release(self) -> None:
        """Give it back, where it is still ours."""

    @abc.abstractmethod
    def _beat_once(self) -> bool:
        """Give a sign of life; return False where the lock is another's by now."""

    def _give_signs(self) -> None:
        going = True
        while going and not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # the next one may get through
                going = self._beat_once()


class FileLock(OutputLock):
    """The lock of an output on a disk: a file, whose folder is made."""

    _place: Path
    _file = -1

    def _acquire(self) -> None:
        new = not os.path.lexists(self._place.parent)
        try:
            while not self._take():
                pass
        except OutputError:
            raise
        except OSError as error:
            if new:
                unclaim(self._place.parent)
            raise OutputError(refusal(error, self._place)) from error

    def _release(self) -> None:
        file, self._file = self._file, -1
        with contextlib.suppress(OSError):
            if self._is_ours(file):
                os.ftruncate(file, 0)  # nobody holds it
        if fcntl is not None:  # a process that was forked meanwhile may have the file open
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)

    def _take(self) -> bool:
        """Take the lock, or return False where its file was removed meanwhile by who held it before."""
        try:
            claim(self._place.parent)
            file = open_own(self._place, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            if not self._place.parent.parent.is_dir():
                raise
            return False  # the folder went with the job that is just finished
        with contextlib.ExitStack() as closing:
            closing.callback(os.close, file)
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
            if not (self._place.exists() and os.path.samestat(os.fstat(file), self._place.stat())):
                return False
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            try:
                write_all(file, json.dumps(asdict(Holder.own()) | {"word": self.word}).encode(), self._place)
            except OSError:  # half of a name would be nobody
                self._place.unlink(missing_ok=True)
                raise
            closing.pop_all()
        self._file = file
        return True

    def _is_ours(self, file: int) -> bool:
        """Tell whether nobody has taken the lock over, which another host may where it does not see it."""
        os.lseek(file, 0, os.SEEK_SET)
        return said(os.read(file, 4096)) == self.word

    def _beat_once(self) -> bool:
        if not self._is_ours(self._file):
            return False
        os.utime(self._file if os.utime in os.supports_fd else self._place)
        return True


def _lock(file: int) -> bool | None:
    """Lock an open file: True if that worked, None if another holds it, False where the file system has no locks."""
    if fcntl is None:  # the file alone says who holds it
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        return False
    return True


def _lives(holder: Holder, touched: float) -> bool:
    """Tell whether who is named in a file still holds it: by the process, or by its beat where that is elsewhere."""
    if holder.host != socket.gethostname():
        return time.time() - touched < DEAD_SECONDS
    return process_lives(holder)


_held: set[str] = set()
"""Words of the locks that this process holds; one that it could not delete, for the store was gone, it holds not."""


class ObjectLock(OutputLock):
    """The lock of an output in a store: an object."""

    _place: ObjectPlace

    def __init__(self, place: ObjectPlace, output: Place) -> None:
        super().__init__(place, output)
        self._holder = Holder.own()
        self._beats = 0
        self._version = Version(None)

    def _acquire(self) -> None:
        _held.add(self.word)  # before anybody can see it
        try:
            asked = now()
            while not self._take():
                asked = now()
        except OSError as error:
            _held.discard(self.word)
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{self._output} cannot be written: {error.strerror}") from error
        note_beat(self.word, asked)

    def _release(self) -> None:
        _held.discard(self.word)
        with contextlib.suppress(OSError):  # then it goes stale
            if self._is_ours() is not None:
                self._place.unlink()

    def _take(self) -> bool:
        """Take the lock, or return False where it has just changed."""
        try:
            self._version = self._place.write(self._text(), new=True)
        except FileExistsError:
            pass
        else:
            return True
        try:
            text, found = self._place.read()
        except FileNotFoundError:
            return False
        if said(text) == self.word:  # it was put by a request whose answer was lost
            self._version = found.version
            return True
        if self._lives(text, found):
            holder = Holder.from_json(text)
            raise OutputBusyError(
                f"{self._output} is being written by {holder or 'another process'}; wait for it, end it, or give "
                f"another output; if it died, its lock ends {DEAD_SECONDS:.0f} seconds after its last sign of life"
            )
        try:
            self._version = self._place.write(self._text(), of=found.version)
        except ChangedError:
            return False
        return True

    def _lives(self, text: bytes, found: Found) -> bool:
        """Tell whether who is named in a lock still holds it."""
        return not _is_dead(text) and self._now_ns() - found.written_ns < DEAD_SECONDS * 1e9

    def _now_ns(self) -> int:
        """Return what the store's clock says, which is the one by which locks were written."""
        probe = self._place.with_name(f"{self._place.name}-{self.word}")
        probe.write(b"")
        try:
            found = probe.find()
        finally:
            probe.unlink()
        if found is None:
            raise OutputError(f"{self._output} cannot be written: what was just put there is gone")
        return found.written_ns

    def _text(self) -> bytes:
        self._beats += 1  # every sign of life is another object
        known = {"machine": _machine(), "word": self.word, "beat": self._beats}
        return json.dumps(asdict(self._holder) | known).encode()

    def _is_ours(self) -> Found | None:
        """Return what the store knows of the lock, if it is ours."""
        with contextlib.suppress(FileNotFoundError):
            text, found = self._place.read()
            return found if said(text) == self.word else None
        return None

    def _beat_once(self) -> bool:
        with patience(tries=False):
            asked = now()
            try:
                self._version = self._place.write(self._text(), of=self._version)
            except ChangedError:
                # By us, where the answer to a request was lost; else by another.
                found = self._is_ours()
                if found is None:
                    forget(self.word)
                    return False
                self._version = found.version
            note_beat(self.word, asked)
        return True


def _machine() -> str:
    """Return what tells this machine and its container from all others, as process numbers are known in it.

    Empty where the system does not say: host names come again, in containers above all.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _is_dead(text: bytes) -> bool:
    """Tell whether a lock's holder was a process of this machine that is gone, or was in this one and let go of it."""
    holder = Holder.from_json(text)
    if holder is None or not said(text, "machine") == _machine() != "":
        return False
    return not process_lives(holder) or (holder.pid == os.getpid() and said(text) not in _held)


def lock_output(place: Place, output: Place) -> OutputLock:
    """Return the lock of an output: the file or object that says who holds it, and what the user called the output."""
    return ObjectLock(place, output) if isinstance(place, ObjectPlace) else FileLock(place, output)


def read_holder(place: Place) -> Holder | None:
    """Return who holds an output by its lock, or None where nobody does who lives."""
    try:
        if isinstance(place, ObjectPlace):
            text, found = place.read()
            # Whoever only asks writes nothing, not even to learn what the store's clock says.
            lives = not _is_dead(text) and time.time() - found.written_ns / 1e9 < DEAD_SECONDS
            return Holder.from_json(text) if lives else None
        holder = Holder.from_json(read_own(place))
        return holder if holder is not None and _lives(holder, place.stat().st_mtime) else None
    except OSError:
        return None
