"""Preload of a dask worker: ``dask worker ADDRESS --preload isovoxel.worker``.

It takes its device (see `isovoxel.execution.distributed.worker_info`), says in its log which one, and loads what
takes time, the engines' libraries, while the worker joins and a client plans. Without the preload the first question
of a client does it, and all works the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from typing import Any

from isovoxel.engines.devices import SHOWN, Device, wake, wake_only_gpu
from isovoxel.errors import DeviceError
from isovoxel.execution.distributed.worker_info import DEVICE, ENGINE, held_device
from isovoxel.version import __version__

log = logging.getLogger("distributed.worker.isovoxel")


async def dask_setup(worker: Any) -> None:
    """Prepare a worker; distributed calls it."""
    name = str(worker.name)
    if os.environ.get(DEVICE) and os.environ.get(DEVICE) == os.environ.get(SHOWN):
        threading.Thread(target=wake_only_gpu, name="isovoxel-cuda", daemon=True).start()
    try:
        device = await asyncio.to_thread(held_device, name)
    except DeviceError as error:  # the client is told too, when it asks
        log.error("isovoxel %s has no device for the worker %s: %s", __version__, name, error)  # noqa: TRY400
        return
    log.info("isovoxel %s: the worker %s holds %s %s", __version__, name, device.name, device.pci)
    threading.Thread(target=_load, args=(device,), name="isovoxel-load", daemon=True).start()


def _load(device: Device) -> None:
    with contextlib.suppress(Exception):  # what fails is done again, and raises there
        import isovoxel.execution.distributed.worker_session
        import isovoxel.output.writer  # noqa: F401

        if device.kind == "gpu":  # where engine cle is the default
            wake(device, os.environ.get(ENGINE))
