"""What lies in a folder, to the byte, so that a test can tell what was touched."""

from __future__ import annotations

import os
import stat
from pathlib import Path

Snapshot = dict[str, tuple[object, ...]]
"""By the path of each entry: what it is, its bytes or where it leads, and when it was changed."""


def snapshot(folder: Path, *but: Path) -> Snapshot:
    """Return everything in a folder, however deep, and through no link.

    Parameters
    ----------
    folder
        Which.
    but
        What is left out, with all that lies in it.
    """
    found: Snapshot = {}
    for root, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            path = Path(root, name)
            if any(path == left or left in path.parents for left in but):
                continue
            state = path.lstat()
            held: object = None
            if stat.S_ISLNK(state.st_mode):
                held = str(path.readlink())
            elif stat.S_ISREG(state.st_mode):
                held = path.read_bytes()
            # Writing a file beside others changes when their folder was changed, and nothing else of theirs.
            when = None if stat.S_ISDIR(state.st_mode) else state.st_mtime_ns
            found[str(path.relative_to(folder))] = (stat.S_IFMT(state.st_mode), held, when)
    return found
