"""Forks of processes that use OpenCL: drivers hang there for ever, so an error says to spawn processes instead.

Python calls `_look` in each fork. A driver was loaded before if isovoxel has asked for devices, or if the memory map
lists one, whichever library has loaded it (Linux).
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from isovoxel.errors import DeviceError

_DRIVER = re.compile(r"(?:pocl|nvidia-opencl|amdocl|intelocl|igdrcl|rusticl|mali)[^/]*\.so", re.IGNORECASE)
"""Files of OpenCL drivers; the loader, libOpenCL, does no harm."""


class _Opencl:
    """What this process knows of OpenCL."""

    used = False
    """Whether isovoxel has loaded drivers."""
    cut_off = False
    """Whether this process is a fork of one in which drivers were loaded."""


def note_use() -> None:
    """Note that drivers are about to be loaded."""
    _Opencl.used = True


def check_process() -> None:
    """Raise where this process is a fork of one that had loaded OpenCL: what it asks of a driver there never returns.

    Raises
    ------
    DeviceError
        With what to do in place of it.
    """
    if _Opencl.cut_off:
        raise DeviceError(
            "OpenCL was used before this process was forked, and does not work in a fork; start processes by spawn: "
            'multiprocessing.get_context("spawn"), or mp_context= of a ProcessPoolExecutor'
        )


def _look() -> None:
    """Look in a fork whether drivers were loaded before."""
    with contextlib.suppress(OSError):  # such as a system without such a map
        _Opencl.used = _Opencl.used or _DRIVER.search(Path("/proc/self/maps").read_text(errors="replace")) is not None
    _Opencl.cut_off = _Opencl.cut_off or _Opencl.used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_look)
