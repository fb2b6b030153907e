"""A file system that refuses: calls that write to files of a test's choice fail with an error of the system."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest


class Refusal:
    """Which calls are refused, and how many were.

    Parameters
    ----------
    number
        The error.
    matches
        Which paths are meant.
    calls
        Of which kinds: "open", "write", "fsync", "mkdir", "move".
    spared
        How many of them succeed first.
    """

    def __init__(self, number: int, matches: Callable[[str], bool], calls: set[str], spared: int = 0) -> None:
        self._number, self._matches, self._calls, self._spared = number, matches, calls, spared
        self.refused = 0

    def look(self, call: str, path: object, *, named: bool) -> None:
        """Raise where a call is refused; calls that have a descriptor only do not name the file."""
        if call not in self._calls or not self._matches(os.fspath(path) if isinstance(path, Path) else str(path)):
            return
        self._spared -= 1
        if self._spared < 0:
            self.refused += 1
            raise OSError(self._number, os.strerror(self._number), *((str(path),) if named else ()))


def path_of(descriptor: Any) -> str:
    """Return the path of an open file."""
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    return ""


class _Opened:
    """A file that is open for writing, and refuses that where it is meant."""

    def __init__(self, file: Any, path: Path, refusal: Refusal) -> None:
        self._file, self._path, self._refusal = file, path, refusal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        if name in ("write", "writelines"):
            self._refusal.look("write", self._path, named=False)
        return getattr(self._file, name)


@contextlib.contextmanager
def refusing(patch: pytest.MonkeyPatch, refusal: Refusal) -> Iterator[Refusal]:
    """Refuse calls in this process, by whichever thread."""
    write, fsync, open_file = os.write, os.fsync, os.open
    path_open, replace, rename, mkdir = Path.open, Path.replace, Path.rename, Path.mkdir
    creates = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def refused_write(descriptor: int, data: Any) -> int:
        refusal.look("write", path_of(descriptor), named=False)
        return write(descriptor, data)

    def refused_fsync(descriptor: int) -> None:
        refusal.look("fsync", path_of(descriptor), named=False)
        fsync(descriptor)

    def refused_open(path: Any, flags: int, *words: Any, **options: Any) -> int:
        if flags & creates:
            refusal.look("open", path, named=True)
        return open_file(path, flags, *words, **options)

    def refused_path_open(self: Path, mode: str = "r", *words: Any, **options: Any) -> Any:
        if set(mode) & set("wxa+"):
            refusal.look("open", self, named=True)
        opened = path_open(self, mode, *words, **options)
        return _Opened(opened, self, refusal) if set(mode) & set("wxa+") else opened

    def refused_replace(self: Path, target: Any) -> Path:
        refusal.look("move", target, named=True)
        return replace(self, target)

    def refused_rename(self: Path, target: Any) -> Path:
        refusal.look("move", target, named=True)
        return rename(self, target)

    def refused_mkdir(self: Path, *words: Any, **options: Any) -> None:
        refusal.look("mkdir", self, named=True)
        mkdir(self, *words, **options)

    with patch.context() as patched:
        patched.setattr(os, "write", refused_write)
        patched.setattr(os, "fsync", refused_fsync)
        patched.setattr(os, "open", refused_open)
        patched.setattr(Path, "open", refused_path_open)
        patched.setattr(Path, "replace", refused_replace)
        patched.setattr(Path, "rename", refused_rename)
        patched.setattr(Path, "mkdir", refused_mkdir)
        yield refusal
