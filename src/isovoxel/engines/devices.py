"""Which OpenCL devices are here, and which limits of theirs matter?"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from isovoxel.errors import DeviceError, OptionError
from isovoxel.geometry.box import Index3
from isovoxel.planning.cost import human_bytes
from isovoxel.planning.limits import DeviceLimits

GPU_SHARE = 0.9
"""How much of a GPU's free memory is taken unless told otherwise: drivers and displays need the rest."""


@dataclass(frozen=True, slots=True)
class Device:
    """One OpenCL device. Sizes in bytes."""

    index: int
    """Its number in `list_devices`, which ``--device`` takes."""
    name: str
    """Its name as OpenCL reports it."""
    kind: str
    """"gpu" or "cpu"."""
    platform: str
    """The OpenCL implementation."""
    driver: str
    """Its version."""
    compute_units: int
    """Multiprocessors or cores."""
    memory: int
    """All of its memory."""
    free: int | None
    """Free memory at this moment, or None where the driver does not tell."""
    largest_allocation: int
    """Largest single buffer or image."""
    image_shape: Index3
    """Largest 3-D image, z, y, x voxels."""
    shares_host_memory: bool
    """Whether its memory is the host's."""
    pci: str = ""
    """Its PCI bus id, such as "0000:3B:00.0", or nothing where the driver does not tell."""
    uuid: str = ""
    """What NVML calls the GPU with that PCI bus id, or nothing where it knows none."""

    @property
    def spare(self) -> int:
        """Its free memory, or all of it where the driver does not tell."""
        return self.memory if self.free is None else self.free

    def limits(self, budget: int | None = None) -> DeviceLimits:
        """Return its limits, with `budget` bytes allowed or, without one, what it can spare.

        Raises
        ------
        OptionError
            If the budget is more than the device has.
        """
        if budget is not None and budget > self.memory:
            raise OptionError(
                f"--device-memory {human_bytes(budget)} is more than the {human_bytes(self.memory)} of {self.name}"
            )
        allowed = self.memory if self.kind == "cpu" else int(GPU_SHARE * self.spare)
        return DeviceLimits(
            name=self.name,
            kind=self.kind,
            memory=self.memory,
            allowed=allowed if budget is None else budget,
            largest_allocation=self.largest_allocation,
            image_shape=self.image_shape,
            shares_host_memory=self.shares_host_memory,
        )


def list_devices() -> list[Device]:
    """Return all OpenCL devices, GPUs first, each kind in the order of the drivers."""
    return [device for device, _ in _enumerate()]


def find_device(wanted: str = "auto") -> Device:
    """Return the device that a user means.

    Parameters
    ----------
    wanted
        "auto" (the GPU with the most free memory, else the first CPU), a number from `list_devices`, or a part of a
        name, in any case.

    Raises
    ------
    DeviceError
        If there is none; the message lists those that exist.
    """
    return _find(wanted)[0]


def opencl_device(device: Device) -> Any:
    """Return the ``pyopencl.Device`` of a device found earlier in this process."""
    return _find(str(device.index))[1]


def _find(wanted: str) -> tuple[Device, Any]:
    found = _enumerate()
    if not found:
        raise DeviceError(
            "no OpenCL device is here; install a GPU driver with OpenCL, "
            "or PoCL for the CPU (pip install 'pyopencl[pocl]')"
        )
    if wanted == "auto":
        gpus = [pair for pair in found if pair[0].kind == "gpu"]
        return max(gpus, key=lambda pair: pair[0].spare) if gpus else found[0]
    if wanted.isdecimal() and int(wanted) < len(found):
        return found[int(wanted)]
    for pair in found:
        if wanted and wanted.lower() in pair[0].name.lower() and not wanted.isdecimal():
            return pair
    names = "; ".join(f"{d.index}: {d.name}" for d, _ in found)
    raise DeviceError(f"no OpenCL device is called {wanted!r}; there are {names}")


def _enumerate() -> list[tuple[Device, Any]]:
    import pyopencl as cl

    try:
        platforms = cl.get_platforms()
    except cl.Error:  # the loader's way to say that there is not one driver
        return []
    handles = []
    for platform in platforms:
        with contextlib.suppress(cl.Error):  # a driver whose hardware is absent
            handles += platform.get_devices()
    handles = [d for d in handles if d.available and d.image_support]
    handles.sort(key=lambda d: not _is_gpu(d))
    return [(_describe(i, d), d) for i, d in enumerate(handles)]


def _is_gpu(handle: Any) -> bool:
    import pyopencl as cl

    return bool(handle.type & cl.device_type.GPU)


def _describe(index: int, handle: Any) -> Device:
    pci = _pci_bus_id(handle) if "NVIDIA" in handle.vendor else ""
    uuid, free = _ask_nvml(pci) if pci else ("", None)
    return Device(
        index=index,
        name=handle.name.strip(),
        kind="gpu" if _is_gpu(handle) else "cpu",
        platform=handle.platform.name,
        driver=handle.driver_version,
        compute_units=handle.max_compute_units,
        memory=handle.global_mem_size,
        free=free,
        largest_allocation=handle.max_mem_alloc_size,
        image_shape=(handle.image3d_max_depth, handle.image3d_max_height, handle.image3d_max_width),
        shares_host_memory=bool(handle.host_unified_memory),
        pci=pci,
        uuid=uuid,
    )


def _pci_bus_id(handle: Any) -> str:
    """Return the PCI bus id of an NVIDIA device as OpenCL tells it."""
    try:
        # The domain has no attribute of its own in OpenCL before NVIDIA's newest extension; 0 on ordinary machines.
        return f"0000:{handle.pci_bus_id_nv:02X}:{handle.pci_slot_id_nv:02X}.0"
    except AttributeError:
        return ""


def _ask_nvml(pci: str) -> tuple[str, int | None]:
    """Return the name that nobody else has, and the free bytes, of the GPU with a PCI bus id: OpenCL tells neither."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return "", None
    try:
        gpu = pynvml.nvmlDeviceGetHandleByPciBusId(f"0000{pci}".encode())
        uuid = pynvml.nvmlDeviceGetUUID(gpu)  # bytes in versions below 11.5
        free = int(pynvml.nvmlDeviceGetMemoryInfo(gpu).free)
        return uuid if isinstance(uuid, str) else uuid.decode(), free
    except pynvml.NVMLError:
        return "", None
    finally:
        pynvml.nvmlShutdown()
