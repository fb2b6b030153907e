"""CUDA by the C interfaces of its driver and of NVRTC, its compiler for kernels.

Packages that bind them let go of the interpreter's lock in each call, and take it again, for which a thread waits
milliseconds while others compute; a batch of chunks has fifteen calls of microseconds. So calls that only give work to
the GPU keep the lock here, and those that wait let go of it. cupy takes 0.9 s to load besides (measured).

Source: https://docs.nvidia.com/cuda/cuda-driver-api and https://docs.nvidia.com/cuda/nvrtc
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

OUT_OF_MEMORY = 2
"""CUDA's number of the error that says that memory is missing."""

Address = ctypes.c_uint64


class CudaError(Exception):
    """CUDA did not do what it was asked.

    Parameters
    ----------
    message
        What the driver or the compiler said.
    status
        Its number of the error.
    """

    def __init__(self, message: str, status: int = -1) -> None:
        super().__init__(message)
        self.status = status


class _Side(ctypes.Structure):
    """Where rows lie."""

    _fields_ = (
        ("x", ctypes.c_size_t),
        ("y", ctypes.c_size_t),
        ("memory", ctypes.c_uint),
        ("host", ctypes.c_void_p),
        ("device", Address),
        ("array", ctypes.c_void_p),
        ("pitch", ctypes.c_size_t),
    )


class CopiedRows(ctypes.Structure):
    """CopiedRows of bytes to copy: the driver's `CUDA_MEMCPY2D`."""

    _fields_ = (("source", _Side), ("target", _Side), ("width", ctypes.c_size_t), ("height", ctypes.c_size_t))

    @classmethod
    def up(cls, to: int, source: int, stride: int, nbytes: int, rows: int) -> CopiedRows:
        """Return rows of the host, so many bytes apart, that go to one after the other on the device."""
        there = _Side(memory=HOST, host=source, pitch=stride), _Side(memory=DEVICE, device=to, pitch=nbytes)
        return cls(*there, nbytes, rows)

    @classmethod
    def down(cls, to: int, to_stride: int, source: int, stride: int, nbytes: int, rows: int) -> CopiedRows:
        """Return rows of the device that go to the host, both so many bytes apart."""
        there = _Side(memory=DEVICE, device=source, pitch=stride), _Side(memory=HOST, host=to, pitch=to_stride)
        return cls(*there, nbytes, rows)


HOST, DEVICE = 1, 2
"""Kinds of memory."""


@cache
def _driver() -> tuple[ctypes.PyDLL, ctypes.CDLL]:
    """Return the driver's library for calls that keep the interpreter's lock, and for those that let go of it."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise ImportError(f"CUDA's driver cannot be loaded: {error}") from error
    waits = ctypes.CDLL(name, handle=library._handle)  # noqa: SLF001 - the same library once more
    keeps = ctypes.PyDLL(name, handle=library._handle)  # noqa: SLF001
    _check(waits, waits.cuInit(0))
    return keeps, waits


def call(name: str, *arguments: Any) -> None:
    """Call a function of the driver that takes microseconds; numbers of more than 32 bits are given as C types.

    Raises
    ------
    CudaError
        If it fails.
    """
    library = _driver()[0]
    _check(library, getattr(library, name)(*arguments))


def call_waiting(name: str, *arguments: Any) -> None:
    """Call a function of the driver that may take long; see `call`."""
    library = _driver()[1]
    _check(library, getattr(library, name)(*arguments))


def _check(library: Any, status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        library.cuGetErrorString(status, ctypes.byref(text))
        raise CudaError((text.value or b"CUDA's error").decode() + f" ({status})", status)


@cache
def compiler_file() -> Path | None:
    """Return where NVRTC is, None where it is not installed."""
    with contextlib.suppress(ImportError, ValueError):
        spec = find_spec("nvidia")
        for folder in (spec and spec.submodule_search_locations) or ():
            for pattern in ("*/lib*/libnvrtc.so.*", "*/bin/**/nvrtc64_*.dll"):
                found = [path for path in sorted(Path(folder).glob(pattern)) if ".alt" not in path.name]
                if found:
                    return found[0]
    return None


@cache
def _compiler() -> ctypes.CDLL:
    """Return NVRTC.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    path = compiler_file()
    if path is None:
        raise ImportError("NVRTC, CUDA's compiler for kernels, is not installed")
    for part in sorted(path.parent.glob("libnvrtc-builtins.so*")):  # which it looks for by name
        ctypes.CDLL(str(part))
    return ctypes.CDLL(str(path))


def compiled(source: str, options: tuple[str, ...], capability: int) -> bytes:
    """Return kernels as PTX, which the driver translates for its GPU; kept in the user's cache.

    Parameters
    ----------
    source, options
        What is compiled, and how.
    capability
        The GPU's compute capability, such as 90.

    Raises
    ------
    ImportError
        If NVRTC is not installed.
    CudaError
        If it does not compile the source.
    """
    import platformdirs

    library, count = _compiler(), ctypes.c_int()
    library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    library.nvrtcGetSupportedArchs(known)
    version = (ctypes.c_int * 2)()
    library.nvrtcVersion(ctypes.byref(version), ctypes.byref(version, ctypes.sizeof(ctypes.c_int)))
    target = max((one for one in known if one <= capability), default=capability)
    options = (*options, f"--gpu-architecture=compute_{target}")
    key = hashlib.sha256("\n".join((source, *options, str(list(version)))).encode()).hexdigest()
    kept = Path(platformdirs.user_cache_dir("isovoxel")) / f"{key}.ptx"
    with contextlib.suppress(OSError):
        return kept.read_bytes()
    made = _compiled(library, source, options)
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f"{kept.name}.{os.getpid()}")
        part.write_bytes(made)
        part.replace(kept)
    return made


def _compiled(library: ctypes.CDLL, source: str, options: tuple[str, ...]) -> bytes:
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    try:
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = library.nvrtcCompileProgram(program, len(options), words)
        if status:
            told = _text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program).decode()
            lines = [line for line in told.splitlines() if "error" in line] or [f"NVRTC answers {status}"]
            raise CudaError(lines[0], status)
        return _text(library.nvrtcGetPTXSize, library.nvrtcGetPTX, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(size_of: Any, get: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    get(program, text)
    return text.raw
