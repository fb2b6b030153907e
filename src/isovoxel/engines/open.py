"""Engines of this process: one of each name for each device, made when first asked for."""

from __future__ import annotations

from functools import lru_cache

from isovoxel.engines.base import Engine
from isovoxel.engines.devices import find_device
from isovoxel.engines.forks import check_process


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


@lru_cache
def _opened(name: str, device: str) -> Engine:
    found = find_device(device)
    if name == "exact":
        from isovoxel.engines.exact import ExactEngine

        return ExactEngine(found)
    from isovoxel.engines.cle import CleEngine

    return CleEngine(found)
