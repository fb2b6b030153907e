"""OpenCL: its loader, platforms and devices, and why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isovoxel.doctor.children import Answer, Ask
from isovoxel.doctor.faults import Fault, Section
from isovoxel.doctor.graphics import count_cards, why_not_shown
from isovoxel.doctor.machine import CONDA, Machine
from isovoxel.doctor.packages import installed

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
