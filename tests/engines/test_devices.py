"""Which device is meant, and what is said where there is none."""

import platform
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pyopencl as cl
import pytest

from isovoxel.engines import devices
from isovoxel.engines.devices import (
    Device,
    _ask_nvml,
    _pci,
    _place,
    choose,
    find_device,
    list_devices,
    nvidia_gpus,
    opencl_device,
)
from isovoxel.errors import DeviceError, OptionError

GIB = 2**30


def device(**changes: object) -> Device:
    """A GPU with 10 GiB, of which 8 are free, changed as asked."""
    gpu = Device(
        index=0,
        name="Test GPU",
        kind="gpu",
        platform="test",
        driver="1",
        compute_units=10,
        memory=10 * GIB,
        free=8 * GIB,
        largest_allocation=GIB,
        image_shape=(2048, 4096, 8192),
        shares_host_memory=False,
    )
    return replace(gpu, **changes)


def test_a_device_is_found_by_number_name_and_auto() -> None:
    """Whatever a user calls it, in any case, it is that device, and its handle is the same one."""
    for known in list_devices():
        assert find_device(str(known.index)).index == known.index
        handle = opencl_device(known)
        assert handle.name.strip() == known.name
        first = next(d for d in list_devices() if d.name == known.name)  # of several alike, a name means the first
        assert find_device(known.name).index == first.index
    found = find_device()
    assert found.kind == ("gpu" if any(d.kind == "gpu" for d in list_devices()) else "cpu")


AHEAD = """
import threading, time
import numpy as np
from isovoxel.engines import devices, opencl
from isovoxel.engines.exact import ExactEngine

order = []
def waking(*arguments, now=opencl.wake_drivers):
    order.append("drivers")
    {does}
    now(*arguments)
devices.wake_drivers = waking
devices.start_drivers("cpu", None)
found = devices.find_device("cpu")
order.append("found")
for thread in devices._starting:
    assert not thread.is_alive()
for thread in threading.enumerate():
    if thread.name == "isovoxel-device":
        thread.join()
made = list(opencl._queues)
ExactEngine(found)
assert [devices.opencl_device(found)] == list(opencl._queues)
print(order, len(made))
"""


@pytest.mark.parametrize(("does", "made"), [("pass", 1), ("raise OSError('no such function')", 0)])
def test_a_device_that_is_started_ahead_is_the_one_that_scales(does: str, made: int) -> None:
    """Who asks for devices waits until drivers are there; where that fails it is made when it is asked for."""
    program = AHEAD.replace("{does}", does)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"['drivers', 'found'] {made}\n"
    assert not done.stderr


TWICE = """
import threading
from isovoxel.engines import devices, opencl

both = threading.Event()
def waking(now=opencl.wake_drivers):
    both.wait()
    now()
devices.wake_drivers = waking
devices.start_drivers("cpu", None)
devices.start_drivers("cpu", None)
both.set()
print(devices.find_device("cpu").kind, len(devices._starting))
"""


def test_drivers_are_started_once() -> None:
    """Commands in one process, the first of which ended before they were there, do not wait for each other."""
    words = [sys.executable, "-c", TWICE]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "cpu 1\n"


@pytest.mark.parametrize("wanted", ["no such device", "99", "", "-1"])
def test_an_unknown_device_is_answered_with_those_that_exist(wanted: str) -> None:
    """The message quotes what was asked for, and lists every device with its number."""
    with pytest.raises(DeviceError) as error:
        find_device(wanted)
    assert repr(wanted) in str(error.value)
    for known in list_devices():
        assert f"{known.index} = {known.name!r}" in str(error.value)


CLOUD = ("NVIDIA L4", "NVIDIA L40S", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100", "AMD EPYC", "CPU")


def cloud() -> list[Device]:
    """GPUs of a cloud, two with the same bus and slot in different PCI domains, and two processors."""
    return [
        device(
            index=i,
            name=name,
            kind="gpu" if name.startswith("NVIDIA") else "cpu",
            free=i * GIB,
            pci=f"{i % 4:04X}:65:00.0" if i < 4 else "",
            uuid=f"GPU-{i}" if i < 4 else "",
        )
        for i, name in enumerate(CLOUD)
    ]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ("auto", 4),
        ("gpu", 0),
        ("GPU", 0),
        ("cpu", 5),  # a kind before a name
        ("5", 5),
        ("L4", 0),
        ("l40s", 1),
        ("nvidia l4", 0),
        ("NVIDIA A100", 4),  # the whole name, though it begins others
        ("a100-sxm4-80gb", 2),
        ("SXM4 80GB", 2),  # of two alike the first
        ("EPYC", 5),
        ("GPU-3", 3),
        ("gpu-3", 3),
        ("0001:65:00.0", 1),
        ("00000002:65:00.0", 2),
        ("65:00.0", 0),
    ],
)
def test_names_are_compared_whole(wanted: str, index: int) -> None:
    """A kind, a number, a PCI bus id with its domain, a whole name, or whole words of one."""
    assert choose(cloud(), wanted).index == index


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            "A100",
            r"'A100' is in the names of several devices: 2 = 'NVIDIA A100-SXM4-80GB', 3 = .*, 4 = 'NVIDIA A100'; g",
        ),
        ("processor gpu", "no OpenCL device is called 'processor gpu'"),
        ("nvidia", r"'nvidia' is in the names of several devices: 0 = 'NVIDIA L4', 1 = 'NVIDIA L40S', 2 = "),
        ("L", r"no OpenCL device is called 'L'; known devices: 0 = 'NVIDIA L4', 1 = 'NVIDIA L40S', .*, 6 = 'CPU'$"),
        ("40", "no OpenCL device is called '40'"),
        ("0009:65:00.0", "no OpenCL device is called '0009:65:00.0'"),
        ("9" * 5000, "no OpenCL device is called '9"),
        (" ", "no OpenCL device is called ' '"),
    ],
)
def test_what_names_no_device_or_several_is_answered_with_names_and_numbers(wanted: str, said: str) -> None:
    """One sentence, from which the right name can be copied."""
    with pytest.raises(DeviceError, match=said):
        choose(cloud(), wanted)


@pytest.mark.parametrize(("wanted", "kind"), [("gpu", "cpu"), ("cpu", "gpu")])
def test_a_kind_that_is_not_here_is_told_with_what_is(wanted: str, kind: str) -> None:
    """It reads as a list of devices, not as none."""
    with pytest.raises(DeviceError, match=rf"no OpenCL device is called '{wanted}'; known devices: 0 = 'Test GPU'"):
        choose([device(kind=kind)], wanted)


# ---- the place on the bus ------------------------------------------------------------------------------------------


class Handle:
    """What pyopencl says of a device's place, without the domain where the driver is older than that."""

    def __init__(self, domain: int | None, bus: int, slot: int) -> None:
        self.pci_bus_id_nv, self.pci_slot_id_nv, self._domain = bus, slot, domain

    @property
    def pci_domain_id_nv(self) -> int:
        if self._domain is None:
            raise cl.LogicError("clGetDeviceInfo failed: INVALID_VALUE")
        return self._domain


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the bus ids, as NVML has them, of the GPUs that it knows: what the test puts there."""
    places: list[str] = []

    def at(place: str) -> int:
        if place not in (known := [_pci(known) for known in places]):
            raise pynvml.NVMLError_NotFound
        return known.index(place)

    for name, value in {
        "nvmlDeviceGetHandleByPciBusId": at,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(places),
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetPciInfo": lambda i: SimpleNamespace(busId=places[i].encode() if i % 2 else places[i]),
        "nvmlDeviceGetUUID": lambda i: f"GPU-{i}",
        "nvmlDeviceGetMemoryInfo": lambda i: SimpleNamespace(free=i),
    }.items():
        monkeypatch.setattr(pynvml, name, value)
    return places


@pytest.mark.parametrize(
    ("places", "handle", "found"),
    [
        (["00000000:65:00.0"], Handle(0, 0x65, 0), ("0000:65:00.0", "GPU-0", 0)),
        (["00000000:65:00.0", "00010000:65:00.0"], Handle(0x10000, 0x65, 0), ("10000:65:00.0", "GPU-1", 1)),
        (["0000AB12:65:00.0", "00000000:65:00.0"], Handle(0xAB12, 0x65, 0), ("AB12:65:00.0", "GPU-0", 0)),
        (["0000ab12:65:00.0"], Handle(None, 0x65, 0), ("AB12:65:00.0", "GPU-0", 0)),  # the only one it can be
        (["00000001:65:00.0", "00000002:65:00.0"], Handle(None, 0x65, 0), ("", "", None)),  # either
        (["00000001:65:00.0"], Handle(2, 0x65, 0), ("0002:65:00.0", "", None)),
        ([], Handle(None, 0x65, 0), ("", "", None)),
        (["00000000:65:00.0"], object(), ("", "", None)),
    ],
)
def test_a_gpu_is_known_by_its_pci_domain_too(
    nvml: list[str], places: list[str], handle: object, found: tuple[str, str, int | None]
) -> None:
    """Two of the same bus and slot in two domains are two; without a domain neither is taken for the other."""
    nvml += places
    assert _ask_nvml(*_place(handle)) == found


def no_platforms() -> list[cl.Platform]:
    """What the loader does where no driver is installed."""
    raise cl.LogicError("clGetPlatformIDs failed: PLATFORM_NOT_FOUND_KHR")


@pytest.mark.parametrize("platforms", [no_platforms, list])
@pytest.mark.parametrize(
    ("system", "machine", "what"),
    [
        ("linux", "x86_64", r"\(pip install 'pyopencl\[pocl\]'\)"),
        ("linux", "aarch64", r"\(apt install pocl-opencl-icd, .* conda-forge pyopencl pocl\)"),
        ("darwin", "arm64", r"\(conda install -c conda-forge pyopencl pocl\)"),
        ("win32", "AMD64", r"\(conda install -c conda-forge pyopencl pocl\)"),
    ],
)
def test_without_any_driver_the_user_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, platforms: object, system: str, machine: str, what: str
) -> None:
    """A loader that fails and a loader that finds nothing both give the one clear error, true on each system."""
    monkeypatch.setattr(cl, "get_platforms", platforms)
    assert list_devices() == []
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(DeviceError, match=rf"no OpenCL device found; install a GPU driver .*{what}; isovoxel doctor"):
        find_device()


def test_the_limits_are_those_that_opencl_reports() -> None:
    """Sizes come from the device, image sizes in the order z, y, x."""
    found = find_device()
    handle = opencl_device(found)
    limits = found.limits()
    assert limits.image_shape == (handle.image3d_max_depth, handle.image3d_max_height, handle.image3d_max_width)
    assert limits.largest_allocation <= limits.memory
    assert limits.buffer_voxels == 2**31 - 1


@pytest.mark.parametrize(
    ("changes", "budget", "allowed"),
    [
        ({}, None, int(0.9 * 8 * GIB)),
        ({"free": None}, None, int(0.9 * 10 * GIB)),
        ({"kind": "cpu", "free": None}, None, 10 * GIB),
        ({}, 10 * GIB, 10 * GIB),
        ({}, 1, 1),
    ],
)
def test_a_budget_counts_and_without_one_what_a_device_can_spare(
    changes: dict[str, object], budget: int | None, allowed: int
) -> None:
    """A GPU gives nine tenths of what is free, a CPU all it has, and a budget is taken as it is."""
    assert device(**changes).limits(budget).allowed == allowed


def test_a_budget_beyond_the_device_is_refused_with_both_numbers() -> None:
    """Nobody is promised memory that is not there."""
    with pytest.raises(OptionError, match=r"--device-memory 11.0 GiB is more than the 10.0 GiB of Test GPU"):
        device().limits(11 * GIB)


def test_a_full_gpu_has_nothing_to_spare() -> None:
    """No free memory is not taken for not knowing: nothing is allowed, and another device is preferred."""
    full = replace(find_device(), kind="gpu", free=0)
    assert full.limits().allowed == 0
    assert replace(full, free=None).limits().allowed > 0


DRIVERS = {
    "unlike": "libnvidia-unlike.so.1\n",
    "broken": "libnvidia-broken.so.1\n",
    "nvidia": "libnvidia-opencl.so.1\n",
    "pocl": "/usr/lib/libpocl.so.2\n",
    "intel": "libigdrcl.so\n",
}


@pytest.mark.parametrize(
    ("drivers", "variable", "divided", "found"),
    [
        (["nvidia"], "", [], ("GPU-0", "GPU-1")),
        (["nvidia", "pocl"], "", [], ("GPU-0", "GPU-1")),
        (["nvidia", "intel"], "", [], ()),  # whose GPU NVML does not know
        (["pocl"], "", [], ()),  # OpenCL sees no NVIDIA GPU
        ([], "", [], ()),
        (["nvidia"], "CUDA_VISIBLE_DEVICES", [], ()),
        (["nvidia"], "OCL_ICD_VENDORS", [], ()),
        (["nvidia"], "OCL_ICD_FILENAMES", [], ()),
        (["nvidia"], "", [1], ()),  # OpenCL lists parts of the second one
        (["broken"], "", [], ()),
        (["nvidia", "unlike"], "", [], ()),
    ],
)
def test_nvml_names_gpus_where_it_knows_all_that_opencl_does(
    nvml: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    drivers: list[str],
    variable: str,
    divided: list[int],
    found: tuple[str, ...],
) -> None:
    """Else nothing is said, and OpenCL is asked."""

    def mode(gpu: int) -> list[int]:
        if gpu not in divided:
            raise pynvml.NVMLError_NotSupported
        return [1, 1]

    nvml += ["00000000:01:00.0", "00000000:02:00.0"]

    def load(name: str) -> None:
        if "broken" in name:
            raise OSError(f"{name}: cannot open shared object file")

    for name in drivers:
        (tmp_path / f"{name}.icd").write_text(DRIVERS[name])
    monkeypatch.setattr(devices.ctypes, "CDLL", load)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda gpu: f"L4{gpu if 'unlike' in drivers else ''}")
    monkeypatch.setattr(devices, "SYSTEM_VENDORS", tmp_path)
    monkeypatch.setattr(devices.sys, "prefix", str(tmp_path / "no such"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMigMode", mode, raising=False)
    for name in ("CUDA_VISIBLE_DEVICES", "OCL_ICD_VENDORS"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "0")
    assert nvidia_gpus() == found


@pytest.mark.parametrize(
    ("gpus", "shown", "wanted", "pci"),
    [
        (2, "GPU-1", "auto", "0000:02:00.0"),
        (1, "", "gpu", "0000:01:00.0"),
        (1, "", "nvidia", "0000:01:00.0"),
        (1, "", "GPU-0", "0000:01:00.0"),
        (1, "", "0", "0000:01:00.0"),
        (1, "", "1", ""),
        (1, "", "L40", ""),
        (1, "", "pthread", ""),
        (2, "", "auto", ""),
        (2, "GPU-0,GPU-1", "auto", ""),
        (1, "0", "auto", "0000:01:00.0"),
        (2, "1", "auto", ""),
        (0, "", "auto", ""),
    ],
)
def test_a_process_that_sees_one_gpu_wakes_that(
    nvml: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, shown: str, wanted: str, pci: str
) -> None:
    """The only one, or that of a UUID, as workers see it, if it is meant; of several a job wakes the one it uses."""
    del nvml
    for number in range(gpus):
        (tmp_path / f"0000:0{number + 1}:00.0").mkdir()
        told = f"Model: \t\t NVIDIA L4\nGPU UUID: \t GPU-{number}\n"
        (tmp_path / f"0000:0{number + 1}:00.0" / "information").write_text(told)
    woken: list[str] = []
    monkeypatch.setattr(devices, "SYSTEM_GPUS", tmp_path)
    monkeypatch.setattr(devices, "can_code", lambda: True)
    monkeypatch.setattr(devices, "Gpu", woken.append)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    monkeypatch.setattr(devices, "_woken", held := [])
    monkeypatch.setattr(devices, "_prepared", threading.Event())
    devices.wake_only_gpu(wanted)
    assert woken == ([pci] if pci else [])
    assert len(held) == len(woken)
    devices.let_cuda_go()
    assert not held
    devices.wake_only_gpu(wanted)  # when the engine was sooner
    assert not held


def test_nvml_says_whether_a_gpu_may_code(nvml: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the codecs are installed, and NVIDIA's driver knows a GPU; no device is listed."""
    monkeypatch.setattr(devices, "list_devices", lambda: pytest.fail("devices are listed"))
    monkeypatch.setattr(devices, "can_code", lambda: True)
    assert not devices.has_coding_gpu()
    nvml.append("00000000:65:00.0")
    assert devices.has_coding_gpu()
    monkeypatch.setattr(devices, "can_code", lambda: False)
    assert not devices.has_coding_gpu()

    def fail() -> int:
        raise pynvml.NVMLError_Uninitialized

    monkeypatch.setattr(devices, "can_code", lambda: True)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", fail)
    assert not devices.has_coding_gpu()
