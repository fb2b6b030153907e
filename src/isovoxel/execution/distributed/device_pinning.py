"""The one device that a worker holds, found once and kept for as long as its process lives.

``ISOVOXEL_DEVICE`` names it, as ``--device`` does: "gpu" or "cpu", a GPU's UUID or PCI bus id, a number of `isovoxel
devices`, or a name. Without it, where several GPUs are seen, the number that the worker's name ends with chooses:
workers of one host that are called "gpu-0" and "gpu-1" take the first and the second.

dask-cuda shows each of its workers all GPUs, in ``CUDA_VISIBLE_DEVICES``, and its own one first ("1,2,3,0" for the
second of four); NVIDIA's OpenCL lists them in that order. There the first counts, whatever the worker is called.
"""

from __future__ import annotations

import os
import re
import sys

from isovoxel.engines.devices import Device, choose, list_devices
from isovoxel.errors import DeviceError

DEVICE = "ISOVOXEL_DEVICE"
"""The variable of the environment that says which device a worker holds."""
DASK_CUDA = "dask_cuda.initialize"
"""The module that dask-cuda lets its workers load before anything of them is set up."""

_held: dict[str, Device] = {}
"""The device of this process' worker, by the worker's name."""


def held_device(worker: str) -> Device:
    """Return the device that this process holds as the worker of that name.

    Raises
    ------
    DeviceError
        If there is none, or not the one that is asked for.
    """
    if worker not in _held:
        _held[worker] = _choose(worker, os.environ.get(DEVICE, ""))
    return _held[worker]


def _choose(worker: str, wanted: str) -> Device:
    found = list_devices()
    if wanted:
        try:
            return choose(found, wanted)
        except DeviceError as error:
            raise DeviceError(f"{error} ({DEVICE} asks for it)") from error
    gpus = [d for d in found if d.kind == "gpu"]
    if gpus and DASK_CUDA in sys.modules:
        return gpus[0]
    number = re.search(r"\d+$", worker)
    if len(gpus) > 1 and number and "://" not in worker:  # an address ends with its port
        return gpus[int(number[0]) % len(gpus)]
    return choose(found, "auto")
