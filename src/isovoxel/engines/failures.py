"""Classify driver errors: out of memory, or device lost.

Drivers tell that memory ran out in many ways, and seldom where it did: NVIDIA's gives memory on first use, so that a
buffer is made and the command that touches it fails.
"""

from __future__ import annotations

import re
import traceback
from typing import Self

OUT_OF_MEMORY = (
    "MEM_OBJECT_ALLOCATION_FAILURE",
    "OUT_OF_RESOURCES",
    "OUT_OF_HOST_MEMORY",
    "INVALID_BUFFER_SIZE",
    "INVALID_IMAGE_SIZE",
    # A command that waited for one that failed: why that failed nobody says, so it is tried with less.
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
    """Tell whether an error may mean that memory ran out, on the device or on the host for its sake."""
    import pyopencl as cl

    return isinstance(error, MemoryError | cl.MemoryError) or _is_one_of(OUT_OF_MEMORY, error)


def is_lost(error: BaseException) -> bool:
    """Tell whether an error means that the device answers this process no more: only a new process recovers."""
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
