"""OpenCL devices: those that are here, the one that a user means, and its limits."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from isovoxel.codecs.cuda import Gpu, can_code
from isovoxel.engines.clesperanto import SYSTEM_VENDORS, VENDORS, clesperanto
from isovoxel.engines.opencl import TURN, prepare_caches, wake_device, wake_drivers
from isovoxel.engines.registry import check_process, note_use
from isovoxel.errors import DeviceError, OptionError
from isovoxel.geometry.grid import Index3
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.model import LANES, DeviceLimits

POCL = "Portable Computing Language"
"""What PoCL calls its platform."""
SHOWN = "CUDA_VISIBLE_DEVICES"
"""Variable that names the GPUs which NVIDIA's driver shows a process."""
CHOOSING = {SHOWN, "CUDA_DEVICE_ORDER", VENDORS, "OCL_ICD_FILENAMES", "OPENCL_VENDOR_PATH"}
"""Variables that choose or order GPUs, or name drivers."""
SYSTEM_GPUS = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver for Linux has a folder for each GPU, by its PCI bus id, with a file that has its UUID."""
OPENCL_CONTEXT = 9 * 2**19
"""Bytes that NVIDIA's driver holds on a GPU for a process that uses OpenCL, for each of its multiprocessors: on an H200
with 132 of them 527 MiB for a context, 531 with its queues, and up to 565 in jobs, by NVML."""
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
    """Its PCI bus id with the domain, such as "0000:3B:00.0", or nothing where the drivers do not tell all of it."""
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
            encoders=self.compute_units if self.pci and can_code() else 0,
            context=OPENCL_CONTEXT * self.compute_units if self.pci else 0,
        )


def list_devices() -> list[Device]:
    """Return all OpenCL devices, GPUs first, each kind in the order of the drivers."""
    return [_describe(index, handle) for index, handle in enumerate(_handles())]


_starting: list[threading.Thread] = []
"""The thread that loads drivers, if there is one."""


def start_drivers(device: str, engine: str | None) -> None:
    """Begin to load OpenCL and its drivers on a thread, and on another what the engine needs.

    Once in a process: for a command after the first one they are there. Whoever asks for devices waits for it; what
    fails then is done again, and raises there.

    Parameters
    ----------
    device
        As in `find_device`.
    engine
        The one that the user names, if any.
    """

    def start() -> None:
        if device != "cpu":
            threading.Thread(target=wake_only_gpu, args=(device,), name="isovoxel-cuda", daemon=True).start()
        with contextlib.suppress(Exception):
            _load_pyopencl()
            wake_drivers()
            found = find_device(device)
            threading.Thread(target=wake, args=(found, engine), name="isovoxel-device", daemon=True).start()

    if not _starting:
        thread = threading.Thread(target=start, name="isovoxel-drivers", daemon=True)
        _starting.append(thread)
        thread.start()


def wake(device: Device, engine: str | None) -> None:
    """Load what an engine needs ahead, and make the contexts for its kernels: of CUDA, where it may encode, and OpenCL.

    Without a named engine it is cle on a GPU, where it can be imported, and exact on a CPU.
    """
    codes = False
    with contextlib.suppress(Exception):  # what fails is done again, and raises there
        codes = device.limits().encoders > 0
        if codes:
            _wake_cuda(device.pci)
    with contextlib.suppress(Exception):
        if engine == "cle" or (engine is None and device.kind == "gpu"):
            generation = clesperanto()
            with TURN:
                generation.queue(opencl_device(device))
        elif not codes:
            with TURN:
                wake_device(opencl_device(device))


def wake_only_gpu(wanted: str = "auto") -> None:
    """Make CUDA's context on the only NVIDIA GPU of a process, where it may encode; OpenCL takes longer to name it.

    NVML, of which its free memory is asked, begins before.

    Parameters
    ----------
    wanted
        As in `find_device`; a number but 0 is left to OpenCL.
    """
    with contextlib.suppress(Exception):
        _begin_nvml()
        gpu = _only_gpu()
        told = _words((gpu / "information").read_text())
        if (wanted in ("auto", "gpu", "0") or f" {_words(wanted)} " in f" {told} ") and can_code():
            _wake_cuda(gpu.name)


_woken: list[Gpu] = []
"""What holds contexts of CUDA that were made ahead, until an engine is prepared."""
_prepared = threading.Event()
"""Set once one is."""


def _wake_cuda(pci: str) -> None:
    _woken.append(Gpu(pci))
    if _prepared.is_set():
        _woken.clear()


def let_cuda_go() -> None:
    """Have CUDA give back what it holds of a GPU, where an engine that is prepared has no use for it."""
    _prepared.set()
    _woken.clear()


def _only_gpu() -> Path:
    """Return what the system tells of the GPU that a variable shows alone, by its UUID, or of the only one there is."""
    shown = os.environ.get(SHOWN, "")
    uuid = shown if shown.startswith("GPU-") else "GPU-"
    (found,) = (gpu for gpu in SYSTEM_GPUS.iterdir() if uuid in (gpu / "information").read_text())
    return found


def nvidia_gpus() -> tuple[str, ...]:
    """Return the UUIDs of all GPUs where NVML knows them, else nothing; OpenCL takes a second longer for four.

    OpenCL is to be asked where a variable chooses GPUs or drivers, where it has a driver of other GPUs or cannot load
    NVIDIA's, where a GPU is divided (MIG), and where they are not alike, for it may have them in another order.
    """
    chosen = CHOOSING & os.environ.keys() or Path(sys.prefix, *SYSTEM_VENDORS.parts[1:]).exists()  # conda's
    try:
        drivers = [path.read_text().strip() for path in SYSTEM_VENDORS.glob("*.icd")]
        others = [driver for driver in drivers if "pocl" not in driver]
        if chosen or not others or not all("nvidia" in driver for driver in others):
            return ()
        for driver in others:
            ctypes.CDLL(driver)
    except (OSError, ValueError):
        return ()
    import pynvml

    try:
        _begin_nvml()
        gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        if any(map(_is_divided, gpus)) or len({_text(pynvml.nvmlDeviceGetName(gpu)) for gpu in gpus}) > 1:
            return ()
        return tuple(_text(pynvml.nvmlDeviceGetUUID(gpu)) for gpu in gpus)
    except pynvml.NVMLError:
        return ()


def _is_divided(gpu: Any) -> bool:
    import pynvml

    try:
        return any(pynvml.nvmlDeviceGetMigMode(gpu))
    except pynvml.NVMLError_NotSupported:
        return False


def has_coding_gpu() -> bool:
    """Return whether an NVIDIA GPU may encode and decode here; NVML is asked, neither OpenCL nor CUDA is loaded."""
    if not can_code():
        return False
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        _begin_nvml()
        return bool(pynvml.nvmlDeviceGetCount())
    return False


def find_device(wanted: str = "auto") -> Device:
    """Return the device that a user means.

    Parameters
    ----------
    wanted
        "auto" (the GPU with the most free memory, else the first CPU), "gpu" or "cpu" (the first), a number from
        `list_devices`, a GPU's UUID or PCI bus id, a name, or whole words of one ("L4" is not "L40S"), in any case. Of
        several devices of one name, it means the first.

    Raises
    ------
    DeviceError
        If there is none, or the words are in several names; the message lists the devices.
    """
    return choose(list_devices(), wanted)


def choose(found: Sequence[Device], wanted: str) -> Device:
    """Return the one of these devices that a user means; see `find_device`."""
    if not found:
        raise DeviceError(
            prepare_caches().missing
            or f"no OpenCL device found; install a GPU driver with OpenCL, or PoCL for the CPU ({_pocl()}); "
            "isovoxel doctor says more"
        )
    if wanted == "auto":
        gpus = [device for device in found if device.kind == "gpu"]
        return max(gpus, key=lambda device: device.spare) if gpus else found[0]
    meant = [device for device in found if _is_called(device, wanted)]
    words = _words(wanted)
    if not meant and words not in ("", *LANES) and not wanted.isdecimal():
        meant = [device for device in found if f" {words} " in f" {_words(device.name)} "]
        if len({device.name for device in meant}) > 1:
            raise DeviceError(
                f"{wanted!r} is in the names of several devices: {_listed(meant)}; give a number or a name"
            )
    if not meant:
        raise DeviceError(f"no OpenCL device is called {wanted!r}; known devices: {_listed(found)}")
    return meant[0]


def _pocl() -> str:
    """Return what brings PoCL to a system: its wheel is for Linux on x86-64 only."""
    if sys.platform != "linux":
        return "conda install -c conda-forge pyopencl pocl"
    if platform.machine() == "x86_64":
        return "pip install 'pyopencl[pocl]'"
    return "apt install pocl-opencl-icd, dnf install pocl, or conda install -c conda-forge pyopencl pocl"


def opencl_device(device: Device) -> Any:
    """Return the ``pyopencl.Device`` of a device found earlier in this process."""
    return _handles()[device.index]


def _is_called(device: Device, wanted: str) -> bool:
    """Return whether a device's kind, number, UUID, PCI bus id or whole name is what is wanted."""
    names = (device.kind, str(device.index), device.name, device.uuid)
    wanted = wanted.strip().lower()
    return wanted in {name.lower() for name in names if name} or (bool(device.pci) and _pci(wanted) == device.pci)


def _words(name: str) -> str:
    return " ".join(re.findall(r"\w+", name.lower()))


def _listed(found: Sequence[Device]) -> str:
    return ", ".join(f"{device.index} = {device.name!r}" for device in found)


def _load_pyopencl() -> str:
    """Load pyopencl with caches that can be used; return why PoCL can have none, or nothing."""
    check_process()
    missing = prepare_caches().missing
    import pyopencl  # noqa: F401

    note_use()
    return missing


def _handles() -> list[Any]:
    """Return all devices that OpenCL has, in the order of `list_devices`."""
    if threading.current_thread() not in _starting:
        for thread in _starting:
            thread.join()
    missing = _load_pyopencl()
    import pyopencl as cl

    if not _starting:
        with contextlib.suppress(OSError, AttributeError):
            wake_drivers()
    try:
        platforms = [platform for platform in cl.get_platforms() if not (missing and platform.name == POCL)]
    except cl.Error:  # the loader's way to say that there is not one driver
        return []
    handles = []
    for found in platforms:
        with contextlib.suppress(cl.Error):  # a driver whose hardware is absent
            handles += found.get_devices()
    handles = [d for d in handles if d.available and d.image_support]
    handles.sort(key=lambda d: not _is_gpu(d))
    return handles


def _is_gpu(handle: Any) -> bool:
    import pyopencl as cl

    return bool(handle.type & cl.device_type.GPU)


def _describe(index: int, handle: Any) -> Device:
    pci, uuid, free = _ask_nvml(*_place(handle)) if "NVIDIA" in handle.vendor else ("", "", None)
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


def _place(handle: Any) -> tuple[int | None, int | None, int | None]:
    """Return PCI domain, bus and slot of an NVIDIA device, of each None where OpenCL does not tell."""
    import pyopencl as cl

    found: list[int | None] = []
    for name in ("pci_domain_id_nv", "pci_bus_id_nv", "pci_slot_id_nv"):
        try:
            found.append(int(getattr(handle, name)))
        except (AttributeError, cl.Error):  # the domain is newer than the others
            found.append(None)
    return (found[0], found[1], found[2])


def _ask_nvml(domain: int | None, bus: int | None, slot: int | None) -> tuple[str, str, int | None]:
    """Return PCI bus id, UUID and free bytes of the GPU at a place, as far as anything tells: OpenCL has no free bytes.

    Without a domain it is the only GPU with that bus and slot. Where there are several, one in each of several domains,
    it might be any: then nothing is known of it.
    """
    if bus is None or slot is None:
        return "", "", None
    told = "" if domain is None else f"{domain:04X}:{bus:02X}:{slot:02X}.0"
    import pynvml

    try:
        _begin_nvml()
        if told:  # of the others NVML would wake each
            gpus = [pynvml.nvmlDeviceGetHandleByPciBusId(told)]
        else:
            gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        places = [_pci(_text(pynvml.nvmlDeviceGetPciInfo(gpu).busId)) for gpu in gpus]
        here = [
            (place, gpu)
            for place, gpu in zip(places, gpus, strict=True)
            if place == told or (not told and place.endswith(f":{bus:02X}:{slot:02X}.0"))
        ]
        if len(here) != 1:
            return told, "", None
        place, gpu = here[0]
        return place, _text(pynvml.nvmlDeviceGetUUID(gpu)), int(pynvml.nvmlDeviceGetMemoryInfo(gpu).free)
    except pynvml.NVMLError:
        return told, "", None


@lru_cache
def _begin_nvml() -> None:
    """Let NVML begin, once in a process: it takes 0.05 s, and as long to end it each time that devices are listed."""
    import pynvml

    pynvml.nvmlInit()


def _pci(text: str) -> str:
    """Return a PCI bus id as this module writes it: NVML's have eight digits for the domain; without one, it is 0."""
    found = re.fullmatch(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.[0-7])?", text.strip().lower())
    if not found:
        return ""
    domain, bus, slot = (int(part or "0", 16) for part in found.groups())
    return f"{domain:04X}:{bus:02X}:{slot:02X}.0"


def _text(value: str | bytes) -> str:
    """Return what NVML says: bytes in versions below 11.5."""
    return value if isinstance(value, str) else value.decode()
