"""Output lock in an object store: an object that only one process can create.

1. The lock is put on the condition that there is none (If-None-Match). It names its holder: host, process, since when.
2. The holder puts it again each few seconds, on the condition that it is still its own (If-Match), as a sign of life.
3. The word that it has beside them tells this hold from all others, see `isovoxel.output.lock.Attempt`.
4. A lock whose holder was a process of this very machine that is gone, or that had no sign of life for a minute by the
   store's own clock, is taken over, on the condition that it is still as it was found. Its holder, should it wake up,
   finds that out at its next sign of life, and stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from isovoxel.errors import OutputBusyError, OutputError
from isovoxel.object_store.addresses import Place
from isovoxel.object_store.clients import ChangedError, Found, Version
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.retries import patience
from isovoxel.output import lock
from isovoxel.output.lock import Holder, end_attempt, note_beat, process_lives, said, word_of

_held: set[str] = set()
"""Words of the locks that this process holds; one that it could not delete, for the store was gone, it holds not."""


class ObjectLock:
    """Held by the one process that writes an output in a store; a context manager.

    Parameters
    ----------
    place
        Of the lock.
    output
        What the user called the output.

    Raises
    ------
    OutputBusyError
        On entering, if another process holds it.
    OutputError
        On entering, if the store refuses.
    """

    def __init__(self, place: ObjectPlace, output: Place) -> None:
        self._place = place
        self._output = output
        self.word = uuid.uuid4().hex
        """What the object says as long as the lock is held."""
        self._holder = Holder.own()
        self._beats = 0
        self._version = Version(None)
        self._ended = threading.Event()
        self._beat: threading.Thread | None = None

    def __enter__(self) -> Self:
        _held.add(self.word)  # before anybody can see it
        try:
            asked = lock.now()
            while not self._take():
                asked = lock.now()
        except OSError as error:
            _held.discard(self.word)
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{self._output} cannot be written: {error.strerror}") from error
        note_beat(self.word, asked)
        self._beat = threading.Thread(target=self._give_signs, name="isovoxel-lock", daemon=True)
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
        if word_of(text) == self.word:  # it was put by a request whose answer was lost
            self._version = found.version
            return True
        if self._lives(text, found):
            holder = Holder.from_json(text)
            raise OutputBusyError(
                f"{self._output} is being written by {holder or 'another process'}; wait for it, end it, or give "
                f"another output; if it died, its lock ends {lock.DEAD_SECONDS:.0f} seconds after its last sign of life"
            )
        try:
            self._version = self._place.write(self._text(), of=found.version)
        except ChangedError:
            return False
        return True

    def _lives(self, text: bytes, found: Found) -> bool:
        """Tell whether who is named in a lock still holds it."""
        return not _is_dead(text) and self._now_ns() - found.written_ns < lock.DEAD_SECONDS * 1e9

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
        known = {"machine": machine(), "word": self.word, "beat": self._beats}
        return json.dumps(asdict(self._holder) | known).encode()

    def _is_ours(self) -> Found | None:
        """Return what the store knows of the lock, if it is ours."""
        with contextlib.suppress(FileNotFoundError):
            text, found = self._place.read()
            return found if word_of(text) == self.word else None
        return None

    def _give_signs(self) -> None:
        while not self._ended.wait(lock.BEAT_SECONDS):
            with contextlib.suppress(OSError), patience(tries=False):  # the next one may get through
                asked = lock.now()
                try:
                    self._version = self._place.write(self._text(), of=self._version)
                except ChangedError:
                    # By us, where the answer to a request was lost; else by another.
                    found = self._is_ours()
                    if found is None:
                        lock.forget(self.word)
                        return
                    self._version = found.version
                note_beat(self.word, asked)


def read_object_holder(place: ObjectPlace) -> Holder | None:
    """Return who holds an output by its lock, or None where nobody does who lives."""
    try:
        text, found = place.read()
    except OSError:
        return None
    # Whoever only asks writes nothing, not even to learn what the store's clock says.
    lives = not _is_dead(text) and time.time() - found.written_ns / 1e9 < lock.DEAD_SECONDS
    return Holder.from_json(text) if lives else None


def machine() -> str:
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
    if holder is None or not _machine(text) == machine() != "":
        return False
    return not process_lives(holder) or (holder.pid == os.getpid() and word_of(text) not in _held)


def _machine(text: bytes) -> str:
    """Return on which machine a holder is, or was."""
    return said(text, "machine")
