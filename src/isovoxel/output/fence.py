"""Fence of an output: a writer that lost the lock finds its unsealed files gone, so it can rename none of them.

A thread, a process or a machine may stop between any two of its steps, and go on when another job has begun, or is
complete. So it is not enough to look at the lock before a file is renamed to its place:

1. What is not sealed lies in a folder of the attempt's own (`isovoxel.output.lock.Attempt`), one in each level's
   folder, so on the same disk. Only the holder makes these folders, after it has taken the lock.
2. Whoever takes the lock first moves the folders of all attempts away, and deletes them; whoever gives it back does so
   with its own. From then on an older attempt can neither make files nor rename any.
3. Between two steps it looks at the lock as well: that costs little, and says why it must end.

A store renames nothing. There, what an attempt puts is put on a condition that its successor makes untrue, see
`isovoxel.object_store.objects.ObjectPlace.upload` and `isovoxel.output.writer.begin_attempt`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from isovoxel.output.lock import Attempt

_UNSEALED, _GONE = "isovoxel-unsealed-", "isovoxel-gone-"
"""How the names of such folders begin, and of those that were moved away."""


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
