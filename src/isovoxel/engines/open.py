"""Which engine serves this process? One for each device, made when first asked for."""

from __future__ import annotations

from functools import lru_cache

from isovoxel.engines.base import Engine
from isovoxel.engines.devices import find_device


@lru_cache
def open_engine(device: str = "auto") -> Engine:
    """Return this process' engine on a device.

    Parameters
    ----------
    device
        "auto", a number or a part of a name, as `isovoxel.engines.devices.find_device` takes it.

    Raises
    ------
    DeviceError
        If there is no such device, or it does not run kernels.
    """
    from isovoxel.engines.cle import CleEngine

    return CleEngine(find_device(device))
