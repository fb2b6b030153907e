"""OpenCL: kernels, the queue of each device, what its errors mean, and where compilers keep what they have built.

1. Engines of one context can hand host memory on from level to level, so a process has one context and queue of each
   device, whichever engine asks. Kernel objects and queues are shared by threads, which take the `TURN`.
2. Drivers report in many ways that memory ran out, and seldom where it did: NVIDIA's gives memory on first use, so that
   a buffer is made and the command that touches it fails.
3. PoCL builds kernels in its cache folder: without one it is no device, or builds nothing, or ends the process.
   pyopencl fails with a database's error. Both look for their folders once, when they are loaded. So before that
   `prepare_caches` gives PoCL a temporary folder, and pyopencl none, where they could not write theirs.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import re
import shutil
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Self

from isovoxel.errors import DeviceError
from isovoxel.geometry.grid import Index3, round_up
from isovoxel.planning.memory import human_bytes

C_TYPES = {
    "uint8": "uchar",
    "uint16": "ushort",
    "uint32": "uint",
    "uint64": "ulong",
    "int8": "char",
    "int16": "short",
    "int32": "int",
    "int64": "long",
    "float32": "float",
    "float64": "double",
}
"""What OpenCL calls NumPy's types."""

GROUP = 64
"""Work items per group, along the contiguous axis, where each makes one voxel: whole warps of a GPU."""


def build_kernels(queue: Any, file: str, macros: Mapping[str, object]) -> dict[str, Any]:
    """Build a file of kernels of this package with macros, and return its kernels by name.

    Asking pyopencl's program for a kernel makes a new object each time; these are made once.

    Raises
    ------
    DeviceError
        If the device does not build them.
    """
    import pyopencl as cl

    source = files("isovoxel.engines").joinpath(file).read_text("utf-8")
    defines = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    if "double" in defines:
        defines = "#pragma OPENCL EXTENSION cl_khr_fp64 : enable\n" + defines
    try:
        with quiet_compiler():
            program = cl.Program(queue.context, defines + source).build()
        return {kernel.function_name: kernel for kernel in program.all_kernels()}
    except cl.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise DeviceError(f"{queue.device.name.strip()} does not build the kernels of {file}: {reason}") from error


def work_items(shape: Index3) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return global and local size, x, y, z, for one work item a voxel.

    Left to itself, a driver may take groups of one where x is a prime.
    """
    z, y, x = shape
    return (round_up(x, GROUP), y, z), (GROUP, 1, 1)


def rows_of(shape: Index3, queue: Any) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return global and local size, x, y, z, for one work group a row: of one work item on a CPU, which loops."""
    import pyopencl as cl

    z, y, _ = shape
    items = 1 if queue.device.type & cl.device_type.CPU else GROUP
    return (items, y, z), (items, 1, 1)


@contextlib.contextmanager
def quiet_compiler() -> Iterator[None]:
    """Let a compiler say nothing for a while: of the best of kernels, on standard error or as a Python warning."""
    import pyopencl as cl

    with quiet_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore", cl.CompilerWarning)
        yield


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Send what C code writes to file descriptor 2 to nowhere for a moment."""
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # there is no standard error to protect
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


TURN = threading.Lock()
"""Held by the thread that gives commands: cle has one device, one queue and shared kernel objects per process."""

_queues: dict[Any, Any] = {}


def queue_of(handle: Any) -> Any:
    """Return the queue for kernels on a ``pyopencl.Device``. The caller has the turn."""
    import pyopencl as cl

    with contextlib.suppress(OSError, AttributeError, cl.Error):
        wake_device(handle)
    if handle not in _queues:
        _queues[handle] = cl.CommandQueue(cl.Context(devices=[handle]), handle)
    return _queues[handle]


def wake_drivers() -> None:
    """Let all drivers come up. pyopencl would keep the interpreter's lock meanwhile, which other threads need.

    Raises
    ------
    OSError, AttributeError
        Where OpenCL's functions are not found in what pyopencl has loaded.
    """
    import pyopencl as cl

    library, count = ctypes.CDLL(cl._cl.__file__), ctypes.c_uint()  # noqa: SLF001 - what it has linked
    library.clGetPlatformIDs(0, None, ctypes.byref(count))
    platforms = (ctypes.c_void_p * count.value)()
    library.clGetPlatformIDs(count, platforms, None)
    every = ctypes.c_uint64(cl.device_type.ALL)
    for platform in platforms:
        library.clGetDeviceIDs(ctypes.c_void_p(platform), every, 0, None, ctypes.byref(count))


def wake_device(handle: Any) -> None:
    """Make the context for kernels on a ``pyopencl.Device`` as `wake_drivers` does. The caller has the turn.

    Raises
    ------
    OSError, AttributeError, pyopencl.Error
        If that does not go; then `queue_of` says why.
    """
    import pyopencl as cl

    if handle in _queues:
        return
    library, status = ctypes.CDLL(cl._cl.__file__), ctypes.c_int()  # noqa: SLF001 - as above
    make = library.clCreateContext
    make.restype = ctypes.c_void_p
    made = make(None, 1, ctypes.byref(ctypes.c_void_p(handle.int_ptr)), None, None, ctypes.byref(status))
    if made:
        _queues[handle] = cl.CommandQueue(cl.Context.from_int_ptr(made, retain=False), handle)


OUT_OF_MEMORY = (
    "MEM_OBJECT_ALLOCATION_FAILURE",
    "OUT_OF_RESOURCES",
    "OUT_OF_HOST_MEMORY",
    "INVALID_BUFFER_SIZE",
    "INVALID_IMAGE_SIZE",
    # A command whose dependency failed for a reason that is not reported, so it is tried with less.
    "EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST",
)
"""OpenCL's names of errors after which less memory may do."""

LOST = ("INVALID_COMMAND_QUEUE", "INVALID_CONTEXT", "DEVICE_NOT_AVAILABLE")
"""Those that a queue and a context which once were valid give when the driver has ended them."""


class DriverError(RuntimeError):
    """What a driver said to a library that has no classes for it, with the driver's code.

    Parameters
    ----------
    reason
        What it said.
    code
        OpenCL's number of the error, or None where the library does not tell.
    """

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code

    @classmethod
    def said(cls, error: Exception) -> Self:
        """Return what a library's error says, its code read from its text: "CL_OUT_OF_RESOURCES (-5)"."""
        code = re.search(r"\((-\d+)\)", str(error))
        return cls(str(error), int(code[1]) if code else None)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error may mean that memory ran out, on the device or on the host for its sake."""
    import pyopencl as cl

    return isinstance(error, MemoryError | cl.MemoryError) or _is_one_of(OUT_OF_MEMORY, error)


def is_lost(error: BaseException) -> bool:
    """Return whether an error means that the device answers this process no more: only a new process recovers."""
    return _is_one_of(LOST, error)


def driver_reason(error: BaseException) -> str:
    """Return what a driver said, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def let_go_of(error: BaseException) -> None:
    """Clear what the frames that an error came through hold, device buffers among them; it keeps only its message."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__context__


def _is_one_of(names: tuple[str, ...], error: BaseException) -> bool:
    import pyopencl as cl

    # Errors that were not made by a driver have no code.
    return getattr(error, "code", None) in {getattr(cl.status_code, name) for name in names}


MIB = 2**20
LEAST_FREE = 32 * MIB
"""What the kernels of a few jobs take, and then some (measured: 0.5 MiB each)."""
PROBE = MIB
"""What is written to see whether it can be: a quota shows in no number of free bytes."""


class Caches(NamedTuple):
    """What became of the caches."""

    note: str
    """What a user should know, a clause, or nothing."""
    missing: str
    """Why PoCL has no folder at all, a sentence with what to do, or nothing where it has one."""


@lru_cache
def prepare_caches() -> Caches:
    """See to it that PoCL and pyopencl can be loaded; called before they are, and once in a process."""
    if unusable(_user_caches()):
        os.environ["PYOPENCL_NO_CACHE"] = "1"
    if not sys.platform.startswith("linux"):  # PoCL comes along there
        return Caches("", "")
    folder = _pocl_folder()
    if folder is None or not (why := unusable(folder)):
        return Caches("", "")
    for parent in (*_temporary(), Path("/dev/shm")):  # noqa: S108 - a folder of its own is made there
        if not unusable(parent):
            made = tempfile.mkdtemp("", "isovoxel-kernels-", parent)
            atexit.register(_remove, made, os.getpid())
            os.environ["POCL_CACHE_DIR"] = made
            return Caches(f"PoCL cannot keep its kernels in {folder} ({why}); they are built anew each time", "")
    return Caches(
        "",
        f"PoCL cannot build kernels, for it can write neither into {folder} ({why}) nor into a temporary folder; "
        f"set POCL_CACHE_DIR to a folder with {human_bytes(LEAST_FREE)} free",
    )


def unusable(folder: Path) -> str:
    """Return why kernels cannot be kept in a folder, which is made if it is not there, or nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < LEAST_FREE:
            return f"{human_bytes(free)} are free"
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            if probe.write(bytes(PROBE)) < PROBE:
                return "No space left on device"
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def cache_folders() -> dict[str, Path]:
    """Return where pyopencl and PoCL keep kernels, as far as it is known before they are loaded."""
    pocl = _pocl_folder() if sys.platform.startswith("linux") else None
    return {"pyopencl's cache": _user_caches()} | ({} if pocl is None else {"PoCL's cache": pocl})


def _user_caches() -> Path:
    """Return the folder below which pyopencl keeps its caches, its database among them."""
    import platformdirs

    return Path(os.environ.get("XDG_CACHE_HOME") or platformdirs.user_cache_dir())


def _pocl_folder() -> Path | None:
    """Return where PoCL keeps kernels, or None where no variable says so: then it takes a folder in /tmp."""
    if given := os.environ.get("POCL_CACHE_DIR"):
        return Path(given)
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "pocl" / "kcache"
    if given := os.environ.get("HOME"):
        return Path(given) / ".cache" / "pocl" / "kcache"
    return None


def _temporary() -> tuple[Path, ...]:
    """Return the folder for temporary files, if there is one that can be written."""
    with contextlib.suppress(OSError):
        return (Path(tempfile.gettempdir()),)
    return ()


def _remove(folder: str, process: int) -> None:
    """Remove a folder at the end of the process that made it, and not of one that was forked of that."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
