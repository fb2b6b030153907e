"""What processes find out that are asked: each function here is called in one of its own, and returns JSON's values."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import packages_distributions
from io import StringIO
from pathlib import Path
from typing import Any

from isovoxel.doctor.children import tell, why
from isovoxel.errors import OptionError

NO_PACKAGES = frozenset({"benchmarks", "doc", "docs", "example", "examples", "scripts", "test", "tests"})
"""Modules that some packages install beside their own."""


def imports(packages: Sequence[str]) -> None:
    """Import the modules of packages, and tell before each which it is, and after each that failed why."""
    modules: dict[str, list[str]] = {}
    for module, providers in packages_distributions().items():
        for provider in providers:
            if module.isidentifier() and not module.startswith("_") and module not in NO_PACKAGES:
                modules.setdefault(_plain(provider), []).append(module)
    for package in packages:
        tell(["begun", package])
        for module in modules.get(_plain(package), []):
            try:
                import_module(module)
            except BaseException as error:  # noqa: BLE001 - an import may raise anything
                tell(["failed", package, why(error), _involved(error)])


def _involved(error: BaseException) -> list[str]:
    """Return the packages in which an error was raised and through which it went, and the one that is missing."""
    modules = [error.name or ""] if isinstance(error, ModuleNotFoundError) else []
    frames = error.__traceback__
    while frames is not None:
        modules.append(str(frames.tb_frame.f_globals.get("__name__", "")))
        frames = frames.tb_next
    return sorted({module.partition(".")[0] for module in modules})


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def host(folders: dict[str, str]) -> dict[str, Any]:
    """Return free memory, and of folders, those of the caches included, what is free and why they cannot be used."""
    import shutil

    from isovoxel.engines.opencl import cache_folders, unusable
    from isovoxel.execution.host import available_bytes, host_limits

    found: list[dict[str, Any]] = []
    for name, folder in {**{name: Path(path) for name, path in folders.items()}, **cache_folders()}.items():
        problem, free = unusable(folder), None
        for parent in (folder, *folder.parents):
            if parent.is_dir():
                free = shutil.disk_usage(parent).free
                break
        found.append({"name": name, "path": str(folder), "free": free, "problem": problem})
    memory = {"available": available_bytes(), "allowed": host_limits().allowed}
    return {"memory": memory, "folders": found}


def devices() -> dict[str, Any]:
    """Return platforms and devices of OpenCL, those that isovoxel can use and those that it cannot."""
    from isovoxel.engines.devices import list_devices
    from isovoxel.engines.opencl import prepare_caches

    caches = prepare_caches()
    import pyopencl as cl

    error = ""
    found: list[Any] = []
    try:
        found = cl.get_platforms()
    except cl.Error as failure:
        error = why(failure)
    platforms = []
    for platform in found:
        tell(["begun", platform.name])
        one: dict[str, Any] = {"name": platform.name, "version": platform.version, "devices": [], "error": ""}
        try:
            handles = platform.get_devices()
        except cl.Error as failure:
            handles, one["error"] = [], why(failure)
        for handle in handles:
            kind = "gpu" if handle.type & cl.device_type.GPU else "cpu" if handle.type & cl.device_type.CPU else "other"
            usable = bool(handle.available), bool(handle.image_support)
            one["devices"].append(
                {"name": handle.name.strip(), "vendor": handle.vendor, "kind": kind}
                | dict(zip(("available", "images"), usable, strict=True))
            )
        platforms.append(one)
    return {
        "pyopencl": cl.VERSION_TEXT,
        "loader": _loaded("libOpenCL", "OpenCL.framework", "OpenCL.dll"),
        "error": error,
        "no_cache": caches.missing,
        "platforms": platforms,
        "devices": [asdict(device) for device in list_devices()],
    }


def _loaded(*names: str) -> str:
    """Return which file of some name this process has loaded, where the system tells."""
    import psutil

    try:
        files = [each.path for each in psutil.Process().memory_maps()]
    except (psutil.Error, OSError, AttributeError, NotImplementedError):  # macOS
        return ""
    return next((file for file in files if any(name.lower() in file.lower() for name in names)), "")


def library(name: str) -> bool:
    """Return whether the system finds a shared library, such as a driver; raise what it says otherwise."""
    ctypes.CDLL(name)
    return True


def command_line() -> None:
    """Load the command line, and let it check the environment's variables; raise what it says."""
    cli = import_module("isovoxel.cli")  # lies above this package
    sys.argv = ["isovoxel", "--version"]
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
        code = cli.run()
    if code:
        raise OptionError(said.getvalue().strip().removeprefix("error: "))


def job(engine: str, folder: str) -> dict[str, Any]:
    """Do a whole small job with an engine, verify it, and return on which device."""
    if engine == "cle":
        from isovoxel.engines.clesperanto import clesperanto

        opened = clesperanto()
        tell(["opened", opened.package, opened.version])
    import numpy as np

    from isovoxel import api

    voxels = (np.arange(12 * 14 * 16, dtype=np.uint32) * 40503 % 65536).astype(np.uint16).reshape(12, 14, 16)
    with tempfile.TemporaryDirectory(prefix="isovoxel-doctor-", dir=folder, ignore_cleanup_errors=True) as made:
        output = os.path.join(made, "trial.zarr")  # noqa: PTH118 - what the API takes
        result = api.scale(voxels, output, factor=(2.5, 1.5, 0.75), engine=engine)
        verdict = api.verify(output, against=voxels)
    if not verdict.holds:
        raise ArithmeticError(f"{verdict.wrong} voxels are wrong, by up to {verdict.largest_error:.4g} of 65,535")
    return {"device": result.plan.device.name, "seconds": round(result.seconds, 3)}
