"""Kernel caches: where PoCL or pyopencl could not write theirs, the one gets a folder for a while, the other none.

PoCL builds kernels in its cache folder: without one it is no device, or builds nothing, or ends the process. pyopencl
fails with a database's error. Both look for their folders once, when they are loaded, so this comes before.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from isovoxel.planning.memory import human_bytes

MIB = 2**20
LEAST_FREE = 32 * MIB
"""What the kernels of a few jobs take, and then some (measured: 0.5 MiB each)."""
PROBE = MIB
"""What is written to see whether it can be: a quota shows in no number of free bytes."""


class Caches(NamedTuple):
    """What became of the caches."""

    note: str
    """What a user should know, a clause, or nothing."""
    missing: str
    """Why PoCL has no folder at all, a sentence with what to do, or nothing where it has one."""


@lru_cache
def prepare_caches() -> Caches:
    """See to it that PoCL and pyopencl can be loaded; called before they are, and once in a process."""
    if unusable(_user_caches()):
        os.environ["PYOPENCL_NO_CACHE"] = "1"
    if not sys.platform.startswith("linux"):  # PoCL comes along there
        return Caches("", "")
    folder = _pocl_folder()
    if folder is None or not (why := unusable(folder)):
        return Caches("", "")
    for parent in (*_temporary(), Path("/dev/shm")):  # noqa: S108 - a folder of its own is made there
        if not unusable(parent):
            made = tempfile.mkdtemp("", "isovoxel-kernels-", parent)
            atexit.register(_remove, made, os.getpid())
            os.environ["POCL_CACHE_DIR"] = made
            return Caches(f"PoCL cannot keep its kernels in {folder} ({why}); they are built anew each time", "")
    return Caches(
        "",
        f"PoCL cannot build kernels, for it can write neither into {folder} ({why}) nor into a temporary folder; "
        f"set POCL_CACHE_DIR to a folder with {human_bytes(LEAST_FREE)} free",
    )


def unusable(folder: Path) -> str:
    """Return why kernels cannot be kept in a folder, which is made if it is not there, or nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < LEAST_FREE:
            return f"{human_bytes(free)} are free"
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            if probe.write(bytes(PROBE)) < PROBE:
                return "No space left on device"
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def cache_folders() -> dict[str, Path]:
    """Return where pyopencl and PoCL keep kernels, as far as it is known before they are loaded."""
    pocl = _pocl_folder() if sys.platform.startswith("linux") else None
    return {"pyopencl's cache": _user_caches()} | ({} if pocl is None else {"PoCL's cache": pocl})


def _user_caches() -> Path:
    """Return the folder below which pyopencl keeps its caches, its database among them."""
    import platformdirs

    return Path(os.environ.get("XDG_CACHE_HOME") or platformdirs.user_cache_dir())


def _pocl_folder() -> Path | None:
    """Return where PoCL keeps kernels, or None where no variable says so: then it takes a folder in /tmp."""
    if given := os.environ.get("POCL_CACHE_DIR"):
        return Path(given)
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "pocl" / "kcache"
    if given := os.environ.get("HOME"):
        return Path(given) / ".cache" / "pocl" / "kcache"
    return None


def _temporary() -> tuple[Path, ...]:
    """Return the folder for temporary files, if there is one that can be written."""
    with contextlib.suppress(OSError):
        return (Path(tempfile.gettempdir()),)
    return ()


def _remove(folder: str, process: int) -> None:
    """Remove a folder at the end of the process that made it, and not of one that was forked of that."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
