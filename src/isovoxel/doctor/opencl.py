"""OpenCL: its loader, platforms and devices, and graphics cards that the machine has and OpenCL does not show.

Why a card is not shown is known for Linux only, which tells of cards in files. Each vendor's driver has steps that may
fail: the card is handed to this container, its kernel module is loaded, its device files may be opened, a library is
there, and an ``.icd`` file names that library to OpenCL's loaders.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isovoxel.doctor.machine import CONDA, Fault, Machine, Section, installed
from isovoxel.doctor.trials import Answer, Ask

TRIED = ("NVIDIA H100", "NVIDIA H200", "PoCL on x86-64 processors")
"""What isovoxel was tried on."""
NOT_TRIED = ("AMD", "Intel", "Apple")
"""Whose GPUs it was never tried on."""
POCL = "Portable Computing Language"


def look_at_opencl(answer: Answer, machine: Machine, ask: Ask) -> Section:
    """Return what OpenCL shows, given what a process found that asked it, and which cards it does not show."""
    found = Section()
    shown: Mapping[str, Any] = answer.value or {"platforms": [], "devices": [], "error": "", "no_cache": ""}
    found.record["opencl"] = dict(shown) | {"reason": answer.reason}
    if answer.reason:
        found.rows.append(("OpenCL", f"its devices cannot be listed: {answer.reason}"))
        found.faults.append(_failure(answer, machine))
    else:
        pyopencl = f"pyopencl {shown['pyopencl']}"
        loader = f"loader {shown['loader']}" if shown["loader"] else "loader not known"
        found.rows.append(("OpenCL", f"{pyopencl}, {loader}"))
        found.rows += [("", _platform(platform)) for platform in shown["platforms"]]
    found.rows += [(f"device {device['index']}", _device(device, machine)) for device in shown["devices"]]
    cards = count_cards(machine, shown["platforms"])
    found.record["cards"] = {"in_the_machine": cards.found, "shown_by_opencl": cards.shown}
    if cards.found:
        told = (
            f"{n} of {vendor}, of which OpenCL shows {cards.shown.get(vendor, 0)}" for vendor, n in cards.found.items()
        )
        found.rows.append(("graphics cards", "; ".join(told)))
    elif machine.system == "linux":
        found.rows.append(("graphics cards", "none of NVIDIA, AMD or Intel"))
    if answer.reason:
        return found
    found.faults += why_not_shown(cards, machine, ask, shown["platforms"])
    if not shown["devices"]:
        found.rows.append(("devices", "none"))
        found.faults.insert(0, _none(shown, machine))
    return found


def _platform(platform: Mapping[str, Any]) -> str:
    name, n = platform["name"], len(platform["devices"])
    if platform["error"]:
        return f"{name}: no devices, because {platform['error']}"
    lacking = {"available": "is not available", "images": "has no images"}
    odd = [
        f"{device['name']} {what}, and is left out"
        for device in platform["devices"]
        for has, what in lacking.items()
        if not device[has]
    ]
    return f"{name}: {'; '.join([f'{n} device' if n == 1 else f'{n} devices', *odd])}"


def _device(device: Mapping[str, Any], machine: Machine) -> str:
    from isovoxel.planning.memory import human_bytes  # which a process has loaded before

    free = "" if device["free"] is None else f", {human_bytes(device['free'])} free"
    tried = "tried" if is_tried(device, machine) else "isovoxel was not tried on it: check results with isovoxel verify"
    memory = f"{human_bytes(device['memory'])}{free}"
    return f"{device['name']} ({device['kind'].upper()}, {device['platform']} {device['driver']}): {memory}; {tried}"


def is_tried(device: Mapping[str, Any], machine: Machine) -> bool:
    """Return whether isovoxel was tried on this kind of device."""
    if device["kind"] == "cpu":
        return device["platform"] == POCL and machine.processor in ("x86_64", "amd64")
    words = device["name"].upper().replace("-", " ").split()
    return "NVIDIA" in device["platform"].upper() and bool({"H100", "H200"} & set(words))


def _failure(answer: Answer, machine: Machine) -> Fault:
    """Return why devices cannot be listed: a driver that crashes or hangs, or pyopencl."""
    if not answer.ended:
        return Fault(
            f"OpenCL cannot be used: {answer.reason}", machine.pip("--force-reinstall", "pyopencl"), fatal=True
        )
    begun = [told[1] for told in answer.told if told[0] == "begun"]
    which = f"OpenCL's driver {begun[-1]!r}" if begun else "a driver of OpenCL"
    what = f"{which} crashes or hangs: {answer.reason}"
    if machine.has_pocl_wheel and installed("pocl-binary-distribution"):
        mend = f"mkdir -p no-drivers && {machine.export('OCL_ICD_VENDORS', '$PWD/no-drivers')}"
        return Fault(what, f"{mend}, which leaves PoCL; or install that driver anew", fatal=True)
    return Fault(what, "install that driver anew, or remove it", fatal=True)


def _none(shown: Mapping[str, Any], machine: Machine) -> Fault:
    """Return why there is no device at all, and what brings one."""
    if shown["no_cache"]:
        what, _, mend = shown["no_cache"].rpartition("; ")
        return Fault(what, mend, fatal=True)
    error = f" ({shown['error']})" if shown["error"] else ""
    what = f"there is no OpenCL device{error}"
    if "POCL_DEVICES" in machine.environment and any(p["name"] == POCL for p in shown["platforms"]):
        hides = f"{what}, and POCL_DEVICES is {machine.environment['POCL_DEVICES']!r}, which may hide PoCL's"
        return Fault(hides, machine.unset("POCL_DEVICES"), fatal=True)
    if machine.has_pocl_wheel:
        again = ["--force-reinstall", "pyopencl", "pocl-binary-distribution"]
        mend = machine.pip(*again) if installed("pocl-binary-distribution") else machine.pip("pyopencl[pocl]")
    elif machine.system == "linux":
        names = {"apt": "pocl-opencl-icd", "dnf": "pocl", "pacman": "pocl", "zypper": "pocl"}
        mend = machine.install(**names) or f"{CONDA}, in a conda environment"
    elif machine.system == "darwin":
        mend = f"{CONDA} ocl_icd_wrapper_apple, in a conda environment"
    else:
        mend = f"install the graphics card's driver, which brings OpenCL; or {CONDA}, in a conda environment"
    return Fault(what, mend, fatal=True)


NVIDIA, AMD, INTEL = "NVIDIA", "AMD", "Intel"
_PCI = {"0x10de": NVIDIA, "0x1002": AMD, "0x8086": INTEL}
"""Vendors by PCI number."""
_DISPLAYS = "0x03"
"""How the PCI classes of graphics cards begin, those without a display included."""
_SAID = {NVIDIA: "nvidia", AMD: "advanced micro", INTEL: "intel"}
"""What is in the vendor's name that OpenCL tells."""
_HIDERS = {
    NVIDIA: ("CUDA_VISIBLE_DEVICES",),
    AMD: ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
    INTEL: (),
}
"""Variables by which drivers hide devices."""
VENDORS = "etc/OpenCL/vendors"
LIBRARY = "libnvidia-opencl.so.1"


@dataclass(frozen=True)
class Cards:
    """Graphics cards."""

    found: dict[str, int]
    """How many of each vendor the machine has."""
    shown: dict[str, int]
    """How many of each vendor OpenCL shows."""


def count_cards(machine: Machine, platforms: Sequence[Any]) -> Cards:
    """Return the cards that the machine has, and those that OpenCL shows."""
    found: dict[str, int] = {}
    for folder in sorted((machine.root / "sys/bus/pci/devices").glob("*")):
        vendor = _PCI.get(_read(folder / "vendor"))
        if vendor is not None and _read(folder / "class").startswith(_DISPLAYS):
            found[vendor] = found.get(vendor, 0) + 1
    if NVIDIA not in found and (nodes := len(_nodes(machine))):  # the bus is hidden in some containers
        found[NVIDIA] = nodes
    shown: dict[str, int] = {}
    for device in (d for platform in platforms for d in platform["devices"] if d["kind"] == "gpu"):
        for vendor, said in _SAID.items():
            if said in device["vendor"].lower() or (vendor == AMD and device["vendor"].startswith("AMD")):
                shown[vendor] = shown.get(vendor, 0) + 1
    return Cards(found, shown)


def _nodes(machine: Machine) -> list[Path]:
    return sorted(p for p in (machine.root / "dev").glob("nvidia*") if p.name.removeprefix("nvidia").isdecimal())


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def why_not_shown(cards: Cards, machine: Machine, ask: Ask, platforms: Sequence[Any]) -> list[Fault]:
    """Return for each vendor of whose cards OpenCL shows none the first step that fails.

    Where it shows those of NVIDIA, which isovoxel was tried on, others are not missed.
    """
    faults: list[Fault] = []
    if NVIDIA in cards.shown:
        return faults
    for vendor, n in cards.found.items():
        if cards.shown.get(vendor):
            continue
        named = f"{n} graphics cards of {vendor} are" if n > 1 else f"a graphics card of {vendor} is"
        fault = _hidden(vendor, machine)
        if fault is None:
            fault = _nvidia(machine, ask, platforms) if vendor == NVIDIA else _rendering(vendor, machine)
        faults.append(Fault(f"{named} here, but OpenCL does not show it, because {fault.what}", fault.mend))
    return faults


def _hidden(vendor: str, machine: Machine) -> Fault | None:
    for variable in _HIDERS[vendor]:
        if (value := machine.environment.get(variable)) is not None:
            return Fault(f"{variable} is {value!r}, which hides it", machine.unset(variable))
    return None


def _nvidia(machine: Machine, ask: Ask, platforms: Sequence[Any]) -> Fault:
    """Return which step of NVIDIA's driver fails."""
    nodes = _nodes(machine)
    found = _nvidia_kernel(machine, nodes) or _nvidia_library(machine, ask)
    if found is not None:
        return found
    said = next((f" ({p['error']})" for p in platforms if NVIDIA in p["name"] and p["error"]), "")
    mend = "nvidia-smi, which says what is wrong with the driver; after an update of the driver, restart the machine"
    return Fault(f"its driver does not give it{said}", mend)


def _nvidia_kernel(machine: Machine, nodes: Sequence[Path]) -> Fault | None:
    """Return why there is no device file that this process may open."""
    if machine.is_wsl:
        return Fault("NVIDIA's driver for WSL has no OpenCL", "install isovoxel in Windows itself, and run it there")
    if machine.container and not nodes:
        return Fault("this container was not given it", _CONTAINERS[machine.container])
    if not nodes and not (machine.root / "proc/driver/nvidia/version").exists():
        ubuntu = machine.distribution.get("ID") == "ubuntu"
        return Fault("its driver is not loaded", machine.sudo("ubuntu-drivers install") if ubuntu else _FROM_NVIDIA)
    if shut := [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]:
        mend = machine.sudo(f"chmod a+rw {' '.join(map(str, shut))}")
        return Fault(f"{shut[0]} may not be opened by this user", mend)
    return None


def _nvidia_library(machine: Machine, ask: Ask) -> Fault | None:
    """Return why loaders of OpenCL do not find the driver's library."""
    answer = ask("library", LIBRARY)
    if answer.reason:
        debian = machine.distribution.get("ID") == "debian"
        mend = machine.install(apt="nvidia-opencl-icd") if debian else _FROM_NVIDIA
        return Fault(f"{LIBRARY} cannot be loaded ({answer.reason})", _CONTAINERS.get(machine.container, mend))
    if not _is_named(machine):
        write = f"tee /{VENDORS}/nvidia.icd"
        mend = f"{machine.sudo(f'mkdir -p /{VENDORS}')} && echo {LIBRARY} | {machine.sudo(write)}"
        return Fault(f"no .icd file in {_folder(machine)} names {LIBRARY}", mend)
    return None


_CONTAINERS = {
    "docker": "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility ...",
    "apptainer": "apptainer exec --nv --bind /etc/OpenCL ...",
}
_FROM_NVIDIA = "install NVIDIA's driver with all its parts, from https://www.nvidia.com/drivers"


def _folder(machine: Machine) -> Path:
    """Return where the loaders of OpenCL look for drivers."""
    given = machine.environment.get("OCL_ICD_VENDORS")
    return Path(given) if given else machine.root / VENDORS


def _is_named(machine: Machine) -> bool:
    folder = _folder(machine)
    files = [folder] if folder.suffix == ".icd" else folder.glob("*.icd")
    return any("nvidia-opencl" in _read(file) for file in files)


def _rendering(vendor: str, machine: Machine) -> Fault:
    """Return which step of AMD's or Intel's driver fails."""
    nodes = sorted((machine.root / "dev/dri").glob("renderD*"))
    if vendor == AMD and (machine.root / "dev/kfd").exists():
        nodes.append(machine.root / "dev/kfd")
    if not nodes:
        if machine.container == "docker":
            more = " --device /dev/kfd" if vendor == AMD else ""
            return Fault("this container was not given it", f"docker run --device /dev/dri{more} ...")
        return Fault("its driver is not loaded (there is no /dev/dri)", machine.sudo("modprobe " + _MODULES[vendor]))
    if shut := [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]:
        return Fault(
            f"{shut[0]} may not be opened by this user",
            f"{machine.sudo('usermod -aG ' + _group(shut[0]) + ' $USER')}, and log in again",
        )
    return Fault("OpenCL has no driver for it", machine.install(**_DRIVERS[vendor]) or _ELSE[vendor])


_MODULES = {AMD: "amdgpu", INTEL: "i915"}
_ELSE = {
    AMD: "install rocm-opencl-runtime from AMD's ROCm, as https://rocm.docs.amd.com says",
    INTEL: "install Intel's compute runtime, from https://github.com/intel/compute-runtime",
}
_DRIVERS = {
    AMD: {"dnf": "rocm-opencl", "pacman": "rocm-opencl-runtime"},
    INTEL: {
        "apt": "intel-opencl-icd",
        "dnf": "intel-compute-runtime",
        "pacman": "intel-compute-runtime",
        "zypper": "intel-opencl",
    },
}


def _group(node: Path) -> str:
    """Return the group that may open a device file."""
    try:
        return shlex.quote(node.group())
    except (OSError, KeyError, NotImplementedError):
        return "render,video"
