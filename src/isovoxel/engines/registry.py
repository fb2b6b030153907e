"""Engines of this process: one of each name for each device, made when first asked for, and never in a fork.

Drivers of OpenCL hang for ever in a fork of a process that has used them, so an error says to spawn processes instead.
Python calls `_look` in each fork. A driver was loaded before if isovoxel has asked for devices, or if the memory map
lists one, whichever library has loaded it (Linux). `isovoxel` imports this module, which therefore loads little.
"""

from __future__ import annotations

import contextlib
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from isovoxel.errors import DeviceError

if TYPE_CHECKING:
    from isovoxel.engines.base import Engine
    from isovoxel.planning.plan import Plan


def open_engine(name: str = "cle", device: str = "auto") -> Engine:
    """Return this process' engine of that name on a device.

    Parameters
    ----------
    name
        "cle" or "exact".
    device
        "auto", "gpu", "cpu", a number or a name, as `isovoxel.engines.devices.find_device` takes it.

    Raises
    ------
    DeviceError
        If there is no such device, or this process is a fork of one that had used OpenCL.
    """
    check_process()
    return _opened(name, device)


def engine_for(plan: Plan, device: str = "auto") -> Engine:
    """Return this process' engine for a plan: that of CUDA where its codecs run on the GPU, and CUDA can be had.

    Where it cannot, the codecs cannot either, and who asks for them learns why.

    Parameters
    ----------
    plan
        Says which engine.
    device
        As in `open_engine`.

    Raises
    ------
    DeviceError
        As in `open_engine`.
    """
    check_process()
    if plan.device.encoding or plan.device.decoding:
        from isovoxel.codecs.cuda import GpuCodecError
        from isovoxel.engines.cuda import serves

        with contextlib.suppress(ImportError, MemoryError, GpuCodecError):
            if serves(plan):
                return _opened("exact by CUDA", device)
    return _opened(plan.engine, device)


@lru_cache
def _opened(name: str, device: str) -> Engine:
    from isovoxel.engines.devices import find_device

    found = find_device(device)
    if name == "exact":
        from isovoxel.engines.exact import ExactEngine

        return ExactEngine(found)
    if name == "exact by CUDA":
        from isovoxel.engines.cuda import CudaEngine

        return CudaEngine(found)
    from isovoxel.engines.cle import CleEngine

    return CleEngine(found)


GENERATIONS = {"prototype": "pyclesperanto-prototype", "pyclesperanto": "pyclesperanto"}
"""Generations of clEsperanto, as ``ISOVOXEL_CLE`` calls them, and their packages, in the order of trying them."""

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
