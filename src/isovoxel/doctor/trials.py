"""Trials in processes of their own, since what is tried may crash or hang: drivers, and libraries in C.

`Asker` starts a process that calls one of the trials here, which returns values that JSON has. The process writes lines
of JSON among whatever drivers print: what it is about to try, and at last what the trial returned or raised. It has the
module path of the process that asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import packages_distributions
from io import StringIO
from pathlib import Path
from typing import Any

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
                tell(["failed", package, error_text(error), _involved(error)])


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
    from isovoxel.execution.resources import available_bytes, host_limits

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


def opencl_devices() -> dict[str, Any]:
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
        error = error_text(failure)
    platforms = []
    for platform in found:
        tell(["begun", platform.name])
        one: dict[str, Any] = {"name": platform.name, "version": platform.version, "devices": [], "error": ""}
        try:
            handles = platform.get_devices()
        except cl.Error as failure:
            handles, one["error"] = [], error_text(failure)
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


PATIENCE = 120.0
"""Seconds after which a process is taken to hang; the slowest that is known compiles kernels for 10."""
MARK = "\x1eisovoxel "
"""How lines begin that are meant for the process that asks."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from isovoxel.doctor.trials import reply; reply(*sys.argv[2:])"
)


@dataclass(frozen=True)
class Answer:
    """What a process answered."""

    value: Any = None
    """What the function returned, or None."""
    reason: str = ""
    """Why it returned nothing, a clause, or nothing where it did."""
    known: bool = False
    """Whether the reason is an error of isovoxel's, which says what to do behind its last semicolon."""
    ended: bool = False
    """Whether the process crashed, hung, or ended in another way before it answered."""
    told: Sequence[Any] = field(default_factory=list)
    """What it told on its way."""


Ask = Callable[..., Answer]
"""Asks a process: returns what a trial of some name found, given arguments, and variables of its environment."""


@dataclass(frozen=True)
class Asker:
    """Asks processes that have a limited time."""

    patience: float = PATIENCE
    """Seconds that each may take."""

    def __call__(self, trial: str, *args: Any, **variables: str) -> Answer:
        """Call a function in a process of its own.

        Parameters
        ----------
        trial
            A function of `isovoxel.doctor.trials`, or of another module, as "module:name".
        args
            Its arguments, which JSON can hold; what it returns must be such too.
        variables
            Environment variables that it gets.
        """
        words = [sys.executable, "-P", "-c", _START, json.dumps(sys.path), trial, json.dumps(args)]
        try:
            child = subprocess.Popen(
                words,
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except (OSError, ValueError) as error:
            return Answer(reason=f"no process can be started ({error})", ended=True)
        try:
            out, err = child.communicate(timeout=self.patience)
        except subprocess.TimeoutExpired:
            child.kill()
            out = b""
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for hardware cannot be killed
                out, _ = child.communicate(timeout=self.patience)
            return Answer(reason=f"it did not answer within {self.patience:g} s", ended=True, told=_told(out))
        told = _told(out)
        last = told.pop() if told and isinstance(told[-1], dict) else {}
        if "value" in last or "reason" in last:
            return Answer(told=told, **last)
        complaint = (err.decode(errors="replace").strip().splitlines() or [""])[-1].strip()
        if child.returncode == 0:
            return Answer(reason="its process ended without an answer", ended=True, told=told)
        said = f" ({complaint})" if complaint else ""
        return Answer(reason=f"its process {_end_of(child.returncode)}{said}", ended=True, told=told)


def _told(out: bytes) -> list[Any]:
    lines = out.decode(errors="replace").split("\n")  # not splitlines, for which the mark ends a line
    found = []
    for line in lines:
        _, mark, text = line.partition(MARK)  # a driver may leave a line without an end
        if mark:
            with contextlib.suppress(ValueError):  # cut off
                found.append(json.loads(text))
    return found


def _end_of(code: int) -> str:
    """Return how a process ended."""
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"crashed with code 0x{code:08X}" if code > 0xFF else f"ended with exit code {code}"


# ---- in the process that is asked --------------------------------------------------------------------------------


def tell(what: Any) -> None:
    """Tell the process that asks, in case this one comes to no end."""
    sys.stdout.flush()
    os.write(1, f"\n{MARK}{json.dumps(what)}\n".encode())


def reply(trial: str, args: str) -> None:
    """Call a function and tell what it returned or raised, whatever it raises."""
    module, _, name = trial.rpartition(":")
    try:
        found = getattr(import_module(module or "isovoxel.doctor.trials"), name)(*json.loads(args))
    except BaseException as error:  # noqa: BLE001 - an import may raise anything
        from isovoxel.errors import IsovoxelError

        tell({"reason": error_text(error), "known": isinstance(error, IsovoxelError)})
    else:
        tell({"value": found})
    sys.stdout.flush()
    os._exit(0)  # drivers may crash at the end, which is of no interest


def error_text(error: BaseException) -> str:
    """Return an error as a clause, in one line."""
    from isovoxel.errors import IsovoxelError

    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an error that cannot even be printed
        text = ""
    name = type(error).__name__
    if isinstance(error, IsovoxelError) and text:
        return text
    return f"{name}: {text[:300]}" if text else name
