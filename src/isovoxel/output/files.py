"""Files of a ledger: its folder is isovoxel's, and lines are appended to its files, or to objects of a store.

Whoever finds a folder of the ledger's name need not have been asked by isovoxel to make it. So it is used only where

1. it is empty, or has the mark; or was left by isovoxel 0.1, whose folders have none: then its `job.json` is a plan,
   or its `lock` names a holder;
2. it is a folder itself, and what isovoxel keeps in it are plain files of one name each, and folders.

In an object store, which has no links, objects whose keys begin like the ledger's are isovoxel's where `job.json` or
`lock` is. There a line is not kept when it has been added, but when the object has been put that it goes into:

1. Lines wait in memory while a put is under way; the next one takes all of them. Whoever adds a line waits for none.
2. An object is put again with more lines until it is large; then another is begun. So a million blocks take some
   hundred objects, and as many requests to read them.
3. Names count up from the last one that is there, each with a word of its own: two processes never share one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from isovoxel.errors import OutputError
from isovoxel.object_store.files import parse_json, write_all, write_whole
from isovoxel.object_store.objects import ObjectPlace, Place
from isovoxel.object_store.retries import carried, gave_up, patience
from isovoxel.planning.resume import plan_from_json

JOB, BLOCKS, LOCK, MARK = "job.json", "blocks", "lock", "made-by-isovoxel"
"""Files of a ledger."""
NEW, REPLACED, DISCARDED = "new", "replaced", "discarded"
"""Folders of a ledger: an output on its way to its place, an old one that is kept, and one that is being deleted."""
NOW = "now"
"""The word that lets an old output go before its successor is begun."""
SAVED = {JOB: "replaced.job.json", BLOCKS: "replaced.blocks"}
"""Files of a ledger that tell what is done of an old output that is kept and was not complete."""
FILES, FOLDERS = (JOB, BLOCKS, LOCK, MARK, *SAVED.values()), (NEW, REPLACED, DISCARDED)
"""What isovoxel keeps in a ledger's folder on a disk."""

_SAID = b"isovoxel keeps here what is done of an output until that is complete; see its README.\n"
"""What the mark holds; a process that dies may leave a beginning of it."""
_HOLDER = {"host", "pid", "began", "since"}
"""What a lock of 0.1 says of who holds it."""
_NOFOLLOW = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
"""Opens no link, and waits for nobody at a pipe."""


def check_folder(folder: Place) -> None:
    """Raise unless a ledger's folder is not there, or is isovoxel's; nothing is changed.

    Raises
    ------
    OutputError
        If it is somebody else's, or it or something of the ledger in it is a link, or of another kind.
    OSError
        If it cannot be looked into.
    """
    if isinstance(folder, ObjectPlace):
        if folder.is_dir() and not _is_ours(folder):
            raise OutputError(f"objects lie in {folder}, {_PURPOSE}, and isovoxel has not put them there; {_REMEDY}")
        return
    try:
        mode = folder.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(mode):
        raise OutputError(f"{folder}, {_PURPOSE}, is {_kind(folder)}; {_REMEDY}")
    names = set(os.listdir(folder))  # noqa: PTH208 - their names are all that is asked for
    for name in names.intersection(FILES):
        os.close(open_own(folder / name, os.O_RDONLY))
    for name in names.intersection(FOLDERS):
        if not stat.S_ISDIR((folder / name).lstat().st_mode):
            raise OutputError(f"{folder / name}, {_PURPOSE}, is {_kind(folder / name)}; {_REMEDY}")
    if names and not _is_ours(folder):
        raise OutputError(f"{folder}, {_PURPOSE}, is a folder that isovoxel has not made; {_REMEDY}")


def claim(folder: Place) -> None:
    """Make a ledger's folder and mark it, or mark one that is there and isovoxel's; a store has no folder to be made.

    Raises
    ------
    OutputError
        As `check_folder` does.
    OSError
        If it cannot be made.
    """
    if isinstance(folder, ObjectPlace):
        check_folder(folder)
        return
    try:
        folder.mkdir()
    except FileExistsError:
        check_folder(folder)
    with contextlib.suppress(FileExistsError):
        mark = os.open(folder / MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW, 0o666)
        try:
            write_all(mark, _SAID, folder / MARK)
        finally:
            os.close(mark)


def unclaim(folder: Path) -> None:
    """Remove a ledger's folder in which nothing is but its mark."""
    with contextlib.suppress(OSError):
        if not {entry.name for entry in os.scandir(folder)} - {MARK}:
            (folder / MARK).unlink(missing_ok=True)
            folder.rmdir()


def open_own(file: Path, flags: int) -> int:
    """Open a file of a ledger and return its descriptor: a plain file of one name, and through no link.

    Parameters
    ----------
    file
        Which.
    flags
        As `os.open` has them.

    Raises
    ------
    OutputError
        If it is a link, has other names as well, or is no plain file.
    OSError
        If it cannot be opened.
    """
    try:
        descriptor = os.open(file, flags | _NOFOLLOW, 0o666)
    except OSError as error:
        # ELOOP of a link, ENXIO of a pipe or socket, EISDIR of a folder that would be written.
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR) and not file.is_symlink():
            raise
        raise OutputError(f"{file}, {_PURPOSE}, is {_kind(file)}; {_REMEDY}") from None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    raise OutputError(f"{file}, {_PURPOSE}, is {_kind(file)}; {_REMEDY}")


def read_own(file: Place) -> bytes:
    """Return what a file or an object of a ledger holds.

    Raises
    ------
    OSError
        As `open_own` does.
    """
    if isinstance(file, ObjectPlace):
        return file.read_bytes()
    with os.fdopen(open_own(file, os.O_RDONLY), "rb") as opened:
        return opened.read()


def discard(path: Path, folder: Path) -> None:
    """Delete what is at a path, if anything is; a folder leaves it at once, and is then deleted in the ledger's folder.

    Raises
    ------
    OSError
        If the file system refuses.
    """
    discarded = folder / DISCARDED
    shutil.rmtree(discarded, ignore_errors=True)
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    path.rename(discarded)
    shutil.rmtree(discarded)


_PURPOSE = "where isovoxel keeps what is done of the output"
_REMEDY = "move what is there away, or give another output"


def _kind(path: Path) -> str:
    """Say what is at a path in place of what should be there."""
    found = path.lstat()
    for test, kind in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(found.st_mode):
            return kind
    if stat.S_ISLNK(found.st_mode):
        return f"a link to {path.readlink()}"
    return "a file that has other names as well (hard links)" if found.st_nlink > 1 else "a file"


def _is_ours(folder: Place) -> bool:
    """Return whether a ledger's folder is isovoxel's, by what files in it hold."""
    known: dict[str, Callable[[bytes], object]] = {
        MARK: _SAID.startswith,
        JOB: lambda text: set(parse_json(text)) == {"fingerprint"} or plan_from_json(text.decode()),
        LOCK: lambda text: parse_json(text).keys() >= _HOLDER,
    }
    for name, is_ours in known.items():
        try:
            if is_ours(read_own(folder / name)):
                return True
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if gave_up(error):
                raise
    return False


SEGMENT_BYTES = 1 << 18
"""From how many bytes on an object takes no more lines."""

AGAIN_SECONDS = 1.0
"""Pause after a put that failed for good, which is a client's that has asked again many times."""


@dataclass(eq=False)
class FileLines:
    """Lines of a file, which outlast the process that added them; any thread may add some.

    Each process begins a new file, with the whole lines of the one before. So what another process still has open,
    which was taken for dead, is read by nobody, and a line that was torn when a process died is cut off.
    """

    _path: Path
    """The file, which may not be there."""
    _file: int = field(default=-1, init=False)
    _end: int = field(default=0, init=False)
    """Where the next line begins: nobody else writes to the file."""
    _closed: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def hold(self, check: Callable[[], None] = lambda: None, *, anew: bool = False) -> None:
        """Take the lines over from whoever added some before, who adds none any more: begin the new file.

        Parameters
        ----------
        check
            Raises where they have been taken over from this process; asked before anything is kept.
        anew
            Whether there are none in the new file.

        Raises
        ------
        OSError
            If the file system refuses.
        """
        self._let_go()
        write_whole(self._path, () if anew else self, check)
        self._file = open_own(self._path, os.O_RDWR | os.O_APPEND)
        self._end = os.lseek(self._file, 0, os.SEEK_END)

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
            try:
                write_all(self._file, line, self._path)
            except OSError:
                with contextlib.suppress(OSError):  # a line that is torn is none
                    os.ftruncate(self._file, self._end)
                raise
            self._end += len(line)

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
    """Lines in a store, as `FileLines` has them on a disk.

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

    def hold(self, check: Callable[[], None] = lambda: None, *, anew: bool = False) -> None:
        """Ask before each put; delete all objects first where the lines begin anew."""
        self._check = check
        if anew:
            self.clear()

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
