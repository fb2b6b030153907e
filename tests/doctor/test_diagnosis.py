"""The diagnosis, of answers that processes might give: what is a fault, what mends it, and whether jobs run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from isovoxel.doctor import diagnosis
from isovoxel.doctor.diagnosis import Diagnosis, diagnose, lines
from isovoxel.doctor.machine import CONDA, Fault, Machine, Package, Packages
from isovoxel.doctor.trials import Answer

GIB = 2**30


def device(**changes: Any) -> dict[str, Any]:
    """Return PoCL's device, changed."""
    return {
        "index": 0,
        "name": "pthread-EPYC",
        "kind": "cpu",
        "platform": "Portable Computing Language",
        "driver": "3.0",
        "memory": 8 * GIB,
        "free": None,
    } | changes


def devices(*found: Mapping[str, Any], **changes: Any) -> Answer:
    handle = {"name": "pthread-EPYC", "vendor": "AuthenticAMD", "kind": "cpu", "available": True, "images": True}
    platform = {"name": "Portable Computing Language", "version": "3", "devices": [handle] * len(found), "error": ""}
    shown = {"pyopencl": "2026.1", "loader": "", "error": "", "no_cache": "", "platforms": [platform]}
    return Answer(value=shown | {"devices": list(found)} | changes)


def folder(name: str, path: str = "/somewhere", free: int | None = 50 * GIB, problem: str = "") -> dict[str, Any]:
    return {"name": name, "path": path, "free": free, "problem": problem}


def host(*folders: Mapping[str, Any], allowed: int = 4 * GIB) -> Answer:
    """Return what is found of folders and memory."""
    return Answer(value={"memory": {"available": 2 * allowed, "allowed": allowed}, "folders": list(folders)})


def opened(name: str, version: str) -> list[Any]:
    """Return what a trial told that could import a clEsperanto."""
    return [["opened", name, version]]


SCALES = Answer(value={"device": "pthread-EPYC", "seconds": 0.1})
PROTOTYPE = Answer(value=SCALES.value, told=opened("pyclesperanto-prototype", "0.24.6"))
SUCCESSOR = Answer(value=SCALES.value, told=opened("pyclesperanto", "0.25.1"))
GONE = Answer(reason="engine cle needs clEsperanto, which cannot be imported; pip install pyclesperanto", known=True)
CRASHED = Answer(reason="its process was ended by SIGSEGV", ended=True)
HUNG = Answer(reason="it did not answer within 120 s", ended=True)
WELL: dict[str, Answer] = {
    "opencl_devices": devices(device()),
    "imports": Answer(),
    "command_line": Answer(),
    "host": host(folder("temporary files"), folder("working folder")),
    "job exact": SCALES,
    "job prototype": PROTOTYPE,
    "job pyclesperanto": GONE,
}
NEEDED = Packages(core=[Package("numpy", "numpy>=1.26", "2.5", fits=True)], extras={"prototype": []})


def examine(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answers: Mapping[str, Answer],
    *,
    needed: Packages = NEEDED,
    variables: Mapping[str, str] | None = None,
    installed: tuple[str, ...] = (),
    **machine: Any,
) -> Diagnosis:
    """Return the diagnosis where processes give these answers, and else those where all is well."""

    def ask(trial: str, *args: Any, **said: str) -> Answer:
        name = f"job {said.get('ISOVOXEL_CLE', args[0])}" if trial == "job" else trial
        return ({**WELL, **answers})[name]

    def version(name: str) -> str | None:
        return "1.0" if name in installed else None

    monkeypatch.setattr(
        diagnosis, "look_at_packages", lambda _: Packages(needed.core, needed.extras, "", list(needed.faults))
    )
    monkeypatch.setattr("isovoxel.doctor.opencl.installed", version)
    monkeypatch.setattr("isovoxel.doctor.diagnosis.installed", version)
    monkeypatch.setattr(Machine, "pip", lambda _, *words: f"pip install {' '.join(words)}")
    told = {"system": "linux", "processor": "x86_64", "root": tmp_path, "is_root": False} | machine
    return diagnose(Machine(environment=variables or {}, **told), ask)


def test_where_all_is_well_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The table says so, and which GPUs were tried."""
    found = examine(monkeypatch, tmp_path, {})
    assert (found.faults, found.jobs_run) == ([], True)
    text = "\n".join(lines(found))
    for part in (
        "all 1 that isovoxel needs are installed",
        "device 0         pthread-EPYC (CPU, Portable Computing Language 3.0): 8.0 GiB; tried\n",
        "scales: a trial job on pthread-EPYC was verified (pyclesperanto-prototype 0.24.6)",
        "pyclesperanto-prototype: 0.24.6, used, since it is the first that can be imported",
        "pyclesperanto: not used, since it is not installed",
        "NVIDIA H100, NVIDIA H200, PoCL on x86-64 processors; never on GPUs of AMD, Intel, Apple",
    ):
        assert part in text
    assert text.endswith("verdict          jobs run here")


NUMPY_GONE = Packages(
    core=[Package("numpy", "numpy>=1.26", None, fits=False)],
    faults=[Fault("numpy is not installed, which isovoxel needs", "pip install numpy>=1.26", fatal=True)],
)
NO_NUMPY = Answer(reason="ModuleNotFoundError: No module named 'numpy'")
EVERYWHERE = dict.fromkeys(set(WELL) - {"imports"}, NO_NUMPY)
WITH_CLE = Packages(core=[*NEEDED.core, Package("pyclesperanto", "pyclesperanto<0.26", None, fits=False)])
UNKNOWN = Packages(faults=[Fault("isovoxel is not installed", "pip install isovoxel")])
NONE = devices(error="PLATFORM_NOT_FOUND_KHR", platforms=[])
FAILS = Answer(reason="out of luck", told=opened("pyclesperanto-prototype", "0.24.6"))
NO_CACHE = "PoCL cannot build kernels, for it can write nowhere; set POCL_CACHE_DIR to a folder with 32.0 MiB free"
DEBIAN = "ID=debian"
FATAL: dict[str, tuple[dict[str, Any], str, str]] = {
    "NumPy is missing": (
        {"answers": EVERYWHERE, "needed": NUMPY_GONE},
        "numpy is not installed, which isovoxel needs",
        "pip install numpy>=1.26",
    ),
    "nothing is installed": (
        {"answers": EVERYWHERE, "needed": UNKNOWN},
        "isovoxel is not installed",
        "pip install isovoxel",
    ),
    "no device, Linux": (
        {"answers": {"opencl_devices": NONE}},
        "there is no OpenCL device (PLATFORM_NOT_FOUND_KHR)",
        "pip install pyopencl[pocl]",
    ),
    "no device, PoCL's wheel": (
        {"answers": {"opencl_devices": NONE}, "installed": ("pocl-binary-distribution",)},
        "there is no OpenCL device (PLATFORM_NOT_FOUND_KHR)",
        "pip install --force-reinstall pyopencl pocl-binary-distribution",
    ),
    "no device, Debian on ARM": (
        {"answers": {"opencl_devices": NONE}, "processor": "aarch64", "release": DEBIAN},
        "there is no OpenCL device (PLATFORM_NOT_FOUND_KHR)",
        "sudo apt install pocl-opencl-icd",
    ),
    "no device, Linux on ARM": (
        {"answers": {"opencl_devices": NONE}, "processor": "aarch64"},
        "there is no OpenCL device (PLATFORM_NOT_FOUND_KHR)",
        "conda install -c conda-forge pyopencl pocl, in a conda environment",
    ),
    "no device, macOS": (
        {"answers": {"opencl_devices": NONE}, "system": "darwin", "processor": "arm64"},
        "there is no OpenCL device (PLATFORM_NOT_FOUND_KHR)",
        "conda install -c conda-forge pyopencl pocl ocl_icd_wrapper_apple, in a conda environment",
    ),
    "no device, Windows": (
        {"answers": {"opencl_devices": NONE}, "system": "win32", "processor": "amd64"},
        "there is no OpenCL device (PLATFORM_NOT_FOUND_KHR)",
        f"install the graphics card's driver, which brings OpenCL; or {CONDA}, in a conda environment",
    ),
    "PoCL's devices hidden": (
        {"answers": {"opencl_devices": devices()}, "variables": {"POCL_DEVICES": "basic4"}},
        "there is no OpenCL device, and POCL_DEVICES is 'basic4', which may hide PoCL's",
        "unset POCL_DEVICES",
    ),
    "no folder for kernels": (
        {"answers": {"opencl_devices": devices(no_cache=NO_CACHE)}},
        "PoCL cannot build kernels, for it can write nowhere",
        "set POCL_CACHE_DIR to a folder with 32.0 MiB free",
    ),
    "a driver crashes": (
        {"answers": {"opencl_devices": CRASHED}},
        "a driver of OpenCL crashes or hangs: its process was ended by SIGSEGV",
        "install that driver anew, or remove it",
    ),
    "a driver hangs": (
        {
            "answers": {"opencl_devices": Answer(reason=HUNG.reason, ended=True, told=[["begun", "Fast GPUs"]])},
            "installed": ("pocl-binary-distribution",),
        },
        "OpenCL's driver 'Fast GPUs' crashes or hangs: it did not answer within 120 s",
        "mkdir -p no-drivers && export OCL_ICD_VENDORS=$PWD/no-drivers, which leaves PoCL; or install that driver anew",
    ),
    "pyopencl is broken": (
        {"answers": {"opencl_devices": Answer(reason="ImportError: libOpenCL.so.1: cannot open shared object file")}},
        "OpenCL cannot be used: ImportError: libOpenCL.so.1: cannot open shared object file",
        "pip install --force-reinstall pyopencl",
    ),
    "kernels do not build": (
        {"answers": {"job exact": CRASHED, "job prototype": FAILS}},
        "a trial job with engine exact failed: its process was ended by SIGSEGV",
        "pip install --force-reinstall pyopencl[pocl]",
    ),
    "kernels are not linked": (
        {
            "answers": {
                "job exact": Answer(
                    reason="its process was ended by SIGABRT (Final linking of kernel f failed.)", ended=True
                ),
                "job prototype": FAILS,
            },
        },
        "a trial job with engine exact failed: its process was ended by SIGABRT (Final linking of kernel f failed.)",
        "apt install gcc libc6-dev, or your system's packages with ld, libc and libgcc",
    ),
    "too little memory": (
        {
            "answers": {
                "job exact": Answer(reason="no block fits; choose --memory 700MiB or more", known=True),
                "job prototype": FAILS,
            }
        },
        "a trial job failed: no block fits",
        "choose --memory 700MiB or more",
    ),
    "a GPU computes nonsense": (
        {
            "answers": {
                "opencl_devices": devices(device(kind="gpu"), device()),
                "job exact": Answer(reason="ArithmeticError: 7 voxels are wrong"),
                "job prototype": FAILS,
            }
        },
        "a trial job with engine exact failed: ArithmeticError: 7 voxels are wrong",
        "isovoxel scale ... --device cpu, and install the graphics card's driver anew",
    ),
    "the command line is broken": (
        {"answers": {"command_line": Answer(reason="AttributeError: typer")}},
        "the command line cannot be loaded: AttributeError: typer",
        "isovoxel doctor --json > doctor.json, and report it with that file",
    ),
    "an unknown variable": (
        {
            "answers": {
                "command_line": Answer(
                    reason="the environment has ISOVOXEL_X, which is no option; rename or unset it", known=True
                )
            }
        },
        "the environment has ISOVOXEL_X, which is no option",
        "rename or unset it",
    ),
}


@pytest.mark.parametrize("case", FATAL)
def test_faults_without_whose_mending_no_job_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str) -> None:
    """Each is one fault, of which all that fails because of it is none, and has its command."""
    given, what, mend = FATAL[case]
    found = _examined(monkeypatch, tmp_path, given)
    assert [fault for fault in found.faults if fault.fatal] == [Fault(what, mend, fatal=True)]
    assert not found.jobs_run
    assert lines(found)[-1].endswith("no job can run here before the faults are mended")


def test_what_no_job_missed_hinders_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a GPU does the trial job, a lack of PoCL, say, is a warning."""
    lacking = [Fault("isovoxel is run and not installed, and it lacks pocl", "pip install isovoxel", fatal=True)]
    found = examine(monkeypatch, tmp_path, {}, needed=Packages(NEEDED.core, NEEDED.extras, "", lacking))
    assert found.faults == [lacking[0]._replace(fatal=False)]
    assert found.jobs_run


def _examined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: Mapping[str, Any]) -> Diagnosis:
    given = dict(given)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os-release").write_text(given.pop("release", ""))
    return examine(monkeypatch, tmp_path, given.pop("answers", {}), **given)


CHOOSE = "ISOVOXEL_CLE"
WARNINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no clEsperanto": (
        {"answers": {"job prototype": GONE}, "needed": WITH_CLE},
        "no clEsperanto is installed, so that engine cle does not scale",
        "pip install pyclesperanto<0.26",
    ),
    "clEsperanto is broken": (
        {"answers": {"job prototype": GONE}, "needed": WITH_CLE, "installed": ("pyclesperanto",)},
        f"pyclesperanto is installed, but cannot be imported: {GONE.reason}",
        "pip install --force-reinstall --no-deps pyclesperanto",
    ),
    "the first crashes, the other scales": (
        {"answers": {"job prototype": CRASHED, "job pyclesperanto": SUCCESSOR}},
        "engine cle does not scale with pyclesperanto-prototype: its process was ended by SIGSEGV",
        "export ISOVOXEL_CLE=pyclesperanto",
    ),
    "it does not scale": (
        {"answers": {"job prototype": FAILS}},
        "engine cle does not scale with pyclesperanto-prototype: out of luck",
        "isovoxel scale ... --engine exact",
    ),
    "a choice that is none": (
        {"variables": {CHOOSE: "clij"}},
        "ISOVOXEL_CLE is 'clij', but must be prototype or pyclesperanto",
        "unset ISOVOXEL_CLE",
    ),
    "exact fails, and cle scales": (
        {"answers": {"job exact": Answer(reason="ValueError: no")}},
        "a trial job with engine exact failed: ValueError: no",
        "isovoxel doctor --json > doctor.json, and report it with that file",
    ),
    "caches": (
        {"answers": {"host": host(folder("PoCL's cache", "/c", problem="Permission denied"))}},
        "kernels cannot be kept in /c (Permission denied), so that each job builds them anew",
        "export XDG_CACHE_HOME=FOLDER, a folder that can be written",
    ),
    "both caches are full": (
        {"answers": {"host": host(folder("a", "/a", 5, "5 B are free"), folder("b", "/b", 5, "5 B are free"))}},
        "kernels cannot be kept in /a (5 B are free) and /b (5 B are free), so that each job builds them anew",
        "export XDG_CACHE_HOME=FOLDER, a folder that can be written",
    ),
    "the temporary folder is full": (
        {"answers": {"host": host(folder("temporary files", "/t", 5, "5 B are free"), folder("working folder"))}},
        "temporary files cannot be written into /t (5 B are free)",
        "export TMPDIR=FOLDER, a folder that can be written",
    ),
    "on Windows": (
        {"answers": {"host": host(folder("temporary files", "/t", 5, "full"))}, "system": "win32"},
        "temporary files cannot be written into /t (full)",
        "set TEMP=FOLDER, a folder that can be written",
    ),
    "another folder than TMPDIR's": (
        {"variables": {"TMPDIR": "/proc/nowhere"}},
        f"TMPDIR is /proc/nowhere, which cannot be written, so that {tempfile.gettempdir()} is used",
        "export TMPDIR=FOLDER, a folder that can be written",
    ),
    "little disk": (
        {"answers": {"host": host(folder("working folder", "/w", GIB // 2))}},
        "only 512.0 MiB are free in /w",
        "make room in /w",
    ),
    "little memory": (
        {"answers": {"host": host(allowed=GIB // 2)}},
        "only 1.0 GiB of memory are free, of which a job takes half",
        "close other programs, or ask the batch system for more",
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_faults_beside_which_jobs_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str) -> None:
    given, what, mend = WARNINGS[case]
    found = _examined(monkeypatch, tmp_path, given)
    assert found.faults == [Fault(what, mend)]
    assert lines(found)[-1].endswith("jobs run here, but see the warning")


@pytest.mark.parametrize(
    ("answers", "variables", "told"),
    [
        ({}, {}, ["0.24.6, used, since it is the first that can be imported", "not used, since it is not installed"]),
        (
            {"job pyclesperanto": SUCCESSOR},
            {},
            ["0.24.6, used, since it is the first that can be imported", "0.25.1, not used, since the other one comes"],
        ),
        (
            {"job pyclesperanto": SUCCESSOR},
            {CHOOSE: "pyclesperanto"},
            [
                "0.24.6, not used, since ISOVOXEL_CLE chooses the other one; it scales",
                "0.25.1, used, since ISOVOXEL_CLE",
            ],
        ),
        (
            {"job prototype": GONE, "job pyclesperanto": SUCCESSOR},
            {},
            ["not used, since it is not installed", "0.25.1, used, since it is the first that can be imported"],
        ),
    ],
)
def test_which_clesperanto_is_used_is_told_and_why_not_the_other(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answers: Mapping[str, Answer],
    variables: Mapping[str, str],
    told: list[str],
) -> None:
    """The variable chooses; without it the first that can be imported is used."""
    found = examine(monkeypatch, tmp_path, answers, variables=variables)
    said = [text for label, text in found.rows if text.startswith("pyclesperanto")]
    assert [part in text for part, text in zip(told, said, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("changes", "processor", "tried"),
    [
        ({}, "x86_64", True),
        ({}, "aarch64", False),
        ({"platform": "Intel(R) OpenCL"}, "x86_64", False),
        ({"kind": "gpu", "name": "NVIDIA H100 80GB HBM3", "platform": "NVIDIA CUDA"}, "x86_64", True),
        ({"kind": "gpu", "name": "NVIDIA H100-PCIE", "platform": "NVIDIA CUDA"}, "aarch64", True),
        ({"kind": "gpu", "name": "NVIDIA H200", "platform": "NVIDIA CUDA"}, "x86_64", True),
        ({"kind": "gpu", "name": "NVIDIA GeForce RTX 4090", "platform": "NVIDIA CUDA"}, "x86_64", False),
        ({"kind": "gpu", "name": "gfx1100", "platform": "AMD Accelerated Parallel Processing"}, "x86_64", False),
        ({"kind": "gpu", "name": "Apple M3", "platform": "Apple"}, "arm64", False),
    ],
)
def test_devices_say_whether_isovoxel_was_tried_on_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: Mapping[str, Any], processor: str, *, tried: bool
) -> None:
    """H100 and H200 of NVIDIA, and PoCL on x86-64."""
    found = examine(monkeypatch, tmp_path, {"opencl_devices": devices(device(**changes))}, processor=processor)
    [text] = [text for label, text in found.rows if label == "device 0"]
    assert text.endswith("; tried" if tried else "; isovoxel was not tried on it: check results with isovoxel verify")


def test_devices_that_cannot_be_used_say_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A platform without devices, and devices that are off or have no images."""
    off = {"name": "Old", "vendor": "x", "kind": "gpu", "available": False, "images": False}
    platforms = [
        {"name": "One", "version": "1", "devices": [off], "error": ""},
        {"name": "Two", "version": "1", "devices": [], "error": "DEVICE_NOT_FOUND"},
    ]
    found = examine(monkeypatch, tmp_path, {"opencl_devices": devices(device(), platforms=platforms)})
    texts = [text for _, text in found.rows]
    assert "One: 1 device; Old is not available, and is left out; Old has no images, and is left out" in texts
    assert "Two: no devices, because DEVICE_NOT_FOUND" in texts


def test_without_any_folder_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(diagnosis.os, "getcwd", none)
    found = examine(monkeypatch, tmp_path, {})
    assert "no folder for temporary files can be written" in [fault.what for fault in found.faults]
    assert "does not scale: no folder can be written in which it could be tried" in dict(found.rows)["engine exact"]


def test_the_record_has_all_of_it_and_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the environment it has the values of named variables, and of others of isovoxel's the names."""
    variables = {
        "CUDA_VISIBLE_DEVICES": "0",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "ISOVOXEL_SCHEDULER": "tls://user:secret@head",
    }
    record = examine(monkeypatch, tmp_path, {}, variables=variables).record
    text = json.dumps(record, allow_nan=False)
    assert "secret" not in text
    assert record["environment"] == {"CUDA_VISIBLE_DEVICES": "0"}
    assert record["other_variables"] == ["ISOVOXEL_SCHEDULER"]
    assert {
        "isovoxel",
        "python",
        "system",
        "packages",
        "extras",
        "opencl",
        "cards",
        "engines",
        "folders",
        "memory",
    } <= set(record)
    assert (record["faults"], record["jobs_run"]) == ([], True)
