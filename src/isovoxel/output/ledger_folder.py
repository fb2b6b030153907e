"""Own the folder of a ledger: a mark says that isovoxel made it, and nothing in it is reached through a link.

Whoever finds a folder of the ledger's name need not have been asked by isovoxel to make it. So it is used only where

1. it is empty, or has the mark; or was left by isovoxel 0.1, whose folders have none: then its `job.json` is a plan,
   or its `lock` names a holder;
2. it is a folder itself, and what isovoxel keeps in it are plain files of one name each, and folders.

In an object store, which has no links, objects whose keys begin like the ledger's are isovoxel's where `job.json` or
`lock` is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from isovoxel.errors import OutputError
from isovoxel.object_store.addresses import Place
from isovoxel.object_store.files import parse_json, write_all
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.retries import gave_up
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
        if folder.is_dir() and not _is_ours(lambda name: (folder / name).read_bytes()):
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
    if names and not _is_ours(lambda name: read_own(folder / name)):
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


def read_own(file: Path) -> bytes:
    """Return what a file of a ledger holds.

    Raises
    ------
    OSError
        As `open_own` does.
    """
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


def _is_ours(read: Callable[[str], bytes]) -> bool:
    """Tell whether a ledger's folder is isovoxel's, by what files in it hold."""

    def holds(name: str, known: Callable[[bytes], object]) -> bool:
        try:
            return bool(known(read(name)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if gave_up(error):
                raise
            return False

    return (
        holds(MARK, _SAID.startswith)
        or holds(JOB, lambda text: plan_from_json(text.decode()))
        or holds(LOCK, lambda text: parse_json(text).keys() >= _HOLDER)
    )
