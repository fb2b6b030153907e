"""CRC-32C of bytes, computed without the interpreter's lock where the library can be called directly.

`google_crc32c` holds the lock for the 40 microseconds that a MiB takes. Threads that encode or decode chunks on many
cores would wait for each other there. So the C function that it wraps is called through ctypes, which gives the lock
back; where that function cannot be found (Windows, a build without C), the package's own function is called.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def _found() -> Callable[[int, int | None, int], int] | None:
    """Return the library's function of a checksum so far, an address and a length, or None where it is not there."""
    try:
        from google_crc32c import _crc32c

        function = ctypes.CDLL(_crc32c.__file__).crc32c_extend
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes, function.restype = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_uint32
    return function


_extend = _found()


def crc32c(data: Bytes, crc: int = 0) -> int:
    """Return the CRC-32C of contiguous bytes, or of those that `crc` is of and these behind them.

    Examples
    --------
    >>> hex(crc32c(np.frombuffer(b"123456789", np.uint8)))
    '0xe3069283'
    """
    if _extend is None:
        found: Any = google_crc32c.extend(crc, data)
        return int(found)
    return _extend(crc, data.ctypes.data, data.size)
