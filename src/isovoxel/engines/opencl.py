"""Build and launch OpenCL kernels."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from isovoxel.errors import DeviceError
from isovoxel.geometry.axis import round_up
from isovoxel.geometry.box import Index3

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


def grid_of(shape: Index3) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
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
