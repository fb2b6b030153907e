"""Graphics cards that OpenCL does not show: the first step that fails is told, with the command that mends it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from isovoxel.doctor.machine import Machine
from isovoxel.doctor.opencl import LIBRARY, count_cards, why_not_shown
from isovoxel.doctor.trials import Answer

NVIDIA, AMD, INTEL = "0x10de", "0x1002", "0x8086"
UBUNTU = {"etc/os-release": 'ID=ubuntu\nID_LIKE=debian\nPRETTY_NAME="Ubuntu 24.04"\n'}
DEBIAN = {"etc/os-release": "ID=debian\n"}
FEDORA = {"etc/os-release": "ID=fedora\n"}
LOADED = {"proc/driver/nvidia/version": "NVRM", "dev/nvidia0": "", "dev/nvidiactl": ""}
NAMED = {"etc/OpenCL/vendors/nvidia.icd": f"{LIBRARY}\n"}
DOCKER = {".dockerenv": ""}
RENDERING = {"dev/dri/renderD128": ""}


def card(vendor: str, number: int = 0, kind: str = "0x030200") -> dict[str, str]:
    folder = f"sys/bus/pci/devices/0000:0{number}:00.0"
    return {f"{folder}/vendor": f"{vendor}\n", f"{folder}/class": f"{kind}\n"}


def machine(root: Path, files: Mapping[str, str], variables: Mapping[str, str] | None = None, **more: Any) -> Machine:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    told = {"system": "linux", "processor": "x86_64", "is_root": False} | more
    return Machine(root=root, environment=variables or {}, **told)


def ask(there: bool) -> Any:
    """Return what answers whether the driver's library can be loaded."""
    return lambda *_, **__: Answer(value=True) if there else Answer(reason="OSError: no such file")


DOCKER_RUN = "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility ..."
TEE = (
    f"sudo mkdir -p /etc/OpenCL/vendors && echo {LIBRARY} | sudo tee /etc/OpenCL/vendors/nvidia.icd",
    f"mkdir -p /etc/OpenCL/vendors && echo {LIBRARY} | tee /etc/OpenCL/vendors/nvidia.icd",
)
NVIDIA_FAULTS: dict[str, tuple[dict[str, str], dict[str, Any], str, str]] = {
    "hidden": (
        LOADED,
        {"variables": {"CUDA_VISIBLE_DEVICES": ""}},
        "CUDA_VISIBLE_DEVICES is ''",
        "unset CUDA_VISIBLE_",
    ),
    "hidden by -1": (
        LOADED,
        {"variables": {"CUDA_VISIBLE_DEVICES": "-1"}},
        "is '-1', which hides",
        "unset CUDA_VISIBLE_",
    ),
    "no module, Ubuntu": (UBUNTU, {}, "its driver is not loaded", "sudo ubuntu-drivers install"),
    "no module": (FEDORA, {}, "its driver is not loaded", "https://www.nvidia.com/drivers"),
    "WSL": ({"dev/dxg": ""} | LOADED, {}, "driver for WSL has no OpenCL", "install isovoxel in Windows itself"),
    "docker without": (DOCKER, {}, "this container was not given it", DOCKER_RUN),
    "apptainer without": (
        {},
        {"variables": {"APPTAINER_CONTAINER": "x.sif"}},
        "was not given it",
        "apptainer exec --nv",
    ),
    "no library, docker": (DOCKER | LOADED, {"there": False}, f"{LIBRARY} cannot be loaded (OSError", DOCKER_RUN),
    "no library, Debian": (DEBIAN | LOADED, {"there": False}, "cannot be loaded", "sudo apt install nvidia-opencl-icd"),
    "no library": (UBUNTU | LOADED, {"there": False}, "cannot be loaded", "install NVIDIA's driver with all its parts"),
    "no icd": (LOADED, {}, f"names {LIBRARY}", TEE[0]),
    "no icd, root": (LOADED | DOCKER, {"is_root": True}, f"names {LIBRARY}", TEE[1]),
    "another's icd": (LOADED | {"etc/OpenCL/vendors/pocl.icd": "libpocl.so"}, {}, f"names {LIBRARY}", TEE[0]),
    "broken": (LOADED | NAMED, {}, "its driver does not give it (DEVICE_NOT_FOUND)", "nvidia-smi"),
}


@pytest.mark.parametrize("fault", NVIDIA_FAULTS)
def test_each_step_of_nvidias_driver_has_its_sentence(tmp_path: Path, fault: str) -> None:
    """From the card in the machine to the file that names the library."""
    files, more, what, mend = NVIDIA_FAULTS[fault]
    more = dict(more)
    there = more.pop("there", True)
    here = machine(tmp_path, card(NVIDIA) | files, **more)
    platforms = [{"name": "NVIDIA CUDA", "devices": [], "error": "DEVICE_NOT_FOUND"}]
    [found] = why_not_shown(count_cards(here, platforms), here, ask(there), platforms)
    assert found.what.startswith("a graphics card of NVIDIA is here, but OpenCL does not show it, because ")
    assert what in found.what
    assert found.mend.startswith(mend) or mend in found.mend
    assert not found.fatal


OTHERS: dict[str, tuple[str, dict[str, str], dict[str, str], str, str]] = {
    "hidden": (
        AMD,
        RENDERING,
        {"ROCR_VISIBLE_DEVICES": ""},
        "ROCR_VISIBLE_DEVICES is ''",
        "unset ROCR_VISIBLE_DEVICES",
    ),
    "no module": (AMD, {}, {}, "its driver is not loaded", "sudo modprobe amdgpu"),
    "docker": (AMD, DOCKER, {}, "was not given it", "docker run --device /dev/dri --device /dev/kfd ..."),
    "docker, Intel": (INTEL, DOCKER, {}, "was not given it", "docker run --device /dev/dri ..."),
    "Intel, Ubuntu": (
        INTEL,
        UBUNTU | RENDERING,
        {},
        "OpenCL has no driver for it",
        "sudo apt install intel-opencl-icd",
    ),
    "Intel": (INTEL, FEDORA | RENDERING, {}, "OpenCL has no driver", "sudo dnf install intel-compute-runtime"),
    "AMD, Fedora": (AMD, FEDORA | RENDERING, {}, "OpenCL has no driver for it", "sudo dnf install rocm-opencl"),
    "AMD, Ubuntu": (
        AMD,
        UBUNTU | RENDERING,
        {},
        "OpenCL has no driver for it",
        "install rocm-opencl-runtime from AMD's",
    ),
    "unknown system": (INTEL, RENDERING, {}, "OpenCL has no driver for it", "install Intel's compute runtime"),
}


@pytest.mark.parametrize("fault", OTHERS)
def test_each_step_of_other_drivers_has_its_sentence(tmp_path: Path, fault: str) -> None:
    """AMD and Intel."""
    vendor, files, variables, what, mend = OTHERS[fault]
    here = machine(tmp_path, card(vendor, kind="0x030000") | files, variables)
    [found] = why_not_shown(count_cards(here, []), here, ask(there=True), [])
    assert what in found.what
    assert found.mend.startswith(mend)


@pytest.mark.parametrize(
    ("vendor", "node", "mend"),
    [
        (NVIDIA, "dev/nvidia0", "sudo chmod a+rw "),
        (AMD, "dev/dri/renderD128", "sudo usermod -aG render $USER, and log"),
    ],
)
def test_device_files_that_may_not_be_opened_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vendor: str, node: str, mend: str
) -> None:
    """With the group that may."""
    here = machine(tmp_path, card(vendor) | (LOADED if vendor == NVIDIA else RENDERING))
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path / node)
    monkeypatch.setattr(Path, "group", lambda _: "render")
    [found] = why_not_shown(count_cards(here, []), here, ask(there=True), [])
    assert f"{tmp_path / node} may not be opened by this user" in found.what
    assert found.mend.startswith(mend)


def device(vendor: str, kind: str = "gpu") -> dict[str, str]:
    return {"name": "x", "vendor": vendor, "kind": kind}


@pytest.mark.parametrize(
    ("cards", "devices", "missed"),
    [
        ([], [], []),
        ([NVIDIA], [device("NVIDIA Corporation")], []),
        ([NVIDIA, INTEL], [device("NVIDIA Corporation")], []),  # the one that it was tried on is enough
        ([NVIDIA, INTEL], [device("Intel(R) Corporation")], ["NVIDIA"]),
        ([INTEL], [device("Intel(R) Corporation", "cpu")], ["Intel"]),
        ([AMD, AMD], [device("Advanced Micro Devices, Inc.")], []),
        ([AMD], [device("AMD")], []),
        (["0x1a03"], [], []),  # a server's console
    ],
)
def test_cards_that_are_shown_are_not_missed(
    tmp_path: Path, cards: list[str], devices: list[dict[str, str]], missed: list[str]
) -> None:
    """A processor is no card."""
    files: dict[str, str] = {}
    for number, vendor in enumerate(cards):
        files |= card(vendor, number)
    here = machine(tmp_path, files)
    platforms = [{"name": "x", "devices": devices, "error": ""}]
    found = why_not_shown(count_cards(here, platforms), here, ask(there=True), platforms)
    assert [fault.what.partition(" is here")[0].rpartition(" ")[2] for fault in found] == missed


def test_several_cards_are_counted(tmp_path: Path) -> None:
    """By the bus, and where a container hides that, by device files."""
    files = card(NVIDIA, 1) | card(NVIDIA, 2) | card(NVIDIA, 3, kind="0x040300")  # the last is its sound
    here = machine(tmp_path / "bus", files)
    assert count_cards(here, []).found == {"NVIDIA": 2}
    [fault] = why_not_shown(count_cards(here, []), here, ask(there=True), [])
    assert fault.what.startswith("2 graphics cards of NVIDIA are here")
    files = {f"dev/nvidia{n}": "" for n in ("0", "1", "2", "ctl", "-uvm")}
    assert count_cards(machine(tmp_path / "files", files), []).found == {"NVIDIA": 3}
