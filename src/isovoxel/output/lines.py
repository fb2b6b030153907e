"""Lines of a ledger: appended to a file, or, in a store without appending, objects of many lines.

In a store a line is not there when it has been added, but when the object has been put that it goes into:

1. Lines wait in memory while a put is under way; the next one takes all of them. Whoever adds a line waits for none.
2. An object is put again with more lines until it is large; then another is begun. So a million blocks take some
   hundred objects, and as many requests to read them.
3. Names count up from the last one that is there, each with a word of its own: two processes never share one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from isovoxel.object_store.files import write_all, write_whole
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.retries import carried, patience
from isovoxel.output.ledger_folder import open_own

SEGMENT_BYTES = 1 << 18
"""From how many bytes on an object takes no more lines."""

AGAIN_SECONDS = 1.0
"""Pause after a put that failed for good, which is a client's that has asked again many times."""


class Lines(Protocol):
    """Lines of text that outlast the process that added them; any thread may add some."""

    def add(self, line: bytes) -> None:
        """Add a line, with its newline."""
        ...

    def __iter__(self) -> Iterator[bytes]:
        """Yield all whole lines, one at a time."""
        ...

    def clear(self) -> None:
        """Forget all lines."""
        ...

    def hold(self, check: Callable[[], None]) -> None:
        """Take the lines over from whoever added some before, who adds none any more.

        Parameters
        ----------
        check
            Raises where they have been taken over from this process; asked before anything is kept.
        """
        ...

    def close(self) -> None:
        """Keep what was added, and let go of the rest."""
        ...


class FileLines:
    """Lines of a file: a new one for each process, with the whole lines of the one before.

    So what another process still has open, which was taken for dead, is read by nobody, and one that was torn when a
    process died is cut off.

    Parameters
    ----------
    path
        The file, which may not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._closed = False
        self._lock = threading.Lock()

    def hold(self, check: Callable[[], None] = lambda: None) -> None:
        """Begin the new file.

        Raises
        ------
        OSError
            If the file system refuses.
        """
        self._let_go()
        write_whole(self._path, self, check)
        self._file = open_own(self._path, os.O_RDWR | os.O_APPEND)

    def add(self, line: bytes) -> None:
        """Append a line.

        Raises
        ------
        OSError
            If the file system refuses, or the lines were closed; then nothing is appended.
        """
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, f"{self._path} was closed")
            if self._file < 0:
                self.hold()
            end = os.lseek(self._file, 0, os.SEEK_END)
            try:
                write_all(self._file, line, self._path)
            except OSError:
                with contextlib.suppress(OSError):  # a line that is torn is none
                    os.ftruncate(self._file, end)
                raise

    def __iter__(self) -> Iterator[bytes]:
        try:
            with os.fdopen(open_own(self._path, os.O_RDONLY), "rb") as file:
                yield from (line for line in file if line.endswith(b"\n"))
        except FileNotFoundError:
            return

    def clear(self) -> None:
        """Remove the file."""
        with self._lock:
            self._let_go()
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; a thread that comes later adds no line."""
        with self._lock:
            self._closed = True
            self._let_go()

    def _let_go(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class ObjectLines:
    """Lines in a store.

    Parameters
    ----------
    place
        What the names of their objects begin with.
    """

    def __init__(self, place: ObjectPlace) -> None:
        self._place = place
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._busy = self._closing = False
        self._failure: OSError | None = None
        self._thread: threading.Thread | None = None
        self._check: Callable[[], None] = lambda: None
        with patience(ended=threading.Event()):  # lines are worth the wait, also when the job is interrupted
            self._put = carried(self._put_all)

    def hold(self, check: Callable[[], None]) -> None:
        """Ask before each put."""
        self._check = check

    def add(self, line: bytes) -> None:
        """Add a line, which is in the store a moment later.

        Raises
        ------
        OSError
            If the lines before it could not be put; they are kept, and so is this one, for the next attempt.
        """
        with self._changed:
            self._waiting.append(line)
            self._changed.notify_all()
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._put, name="isovoxel-ledger", daemon=True)
                self._thread.start()
            self._raise()

    def __iter__(self) -> Iterator[bytes]:
        with self._changed:
            while (self._waiting or self._busy) and self._failure is None and self._thread is not None:
                self._changed.wait()
            self._raise()
        for name in self._names():
            with contextlib.suppress(FileNotFoundError):  # which its process has deleted meanwhile
                yield from (self._place / name).read_bytes().splitlines(keepends=True)

    def clear(self) -> None:
        """Delete all objects."""
        self._place.delete_tree()

    def close(self) -> None:
        """Wait until all lines are in the store.

        Raises
        ------
        OSError
            If the store refuses some.
        """
        thread = self._thread
        if thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        thread.join()
        self._thread = None
        self._raise()

    def _raise(self) -> None:
        """Say once what has failed."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _names(self) -> list[str]:
        return sorted(path for path, _ in self._place.walk())

    def _next(self) -> int:
        numbers = (name.partition("-")[0] for name in self._names())
        return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1

    def _put_all(self) -> None:
        """Put what waits, until nothing does and none will come."""
        segment: ObjectPlace | None = None
        kept: list[bytes] = []
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                batch, self._waiting, self._busy = self._waiting, [], True
                last = self._closing
            failure = None
            try:
                if segment is None or sum(map(len, kept)) >= SEGMENT_BYTES:
                    segment, kept = self._place / f"{self._next():08}-{uuid.uuid4().hex}", []
                self._check()
                segment.write(b"".join([*kept, *batch]))
                kept += batch
            except OSError as error:
                failure = error
            with self._changed:
                self._busy = False
                if failure is not None:
                    self._failure = failure
                    self._waiting[:0] = batch
                self._changed.notify_all()
                if failure is not None:
                    if last:
                        return
                    self._changed.wait_for(lambda: self._closing, AGAIN_SECONDS)
