"""Which engine serves this process? One of each name for each device, made when first asked for."""

from __future__ import annotations

from functools import lru_cache

from isovoxel.engines.base import Engine
from isovoxel.engines.devices import find_device


@lru_cache
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
        If there is no such device.
    """
    found = find_device(device)
    if name == "exact":
        from isovoxel.engines.exact import ExactEngine

        return ExactEngine(found)
    from isovoxel.engines.cle import CleEngine

    return CleEngine(found)
