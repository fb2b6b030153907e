"""pyclesperanto, the prototype's successor, behind the seam of `isovoxel.engines.clesperanto`.

1. It has a context and a queue of its own, in C++. Its arrays and pyopencl's buffers share memory by DLPack: an array
   that it exports points to a ``cl_mem``, which names the context; buffers of that context go in as arrays.
2. Its queue cannot be reached, so each side waits for the other: ours is finished before it begins, and it is told to
   return when its kernels have ended. Other threads run meanwhile.
3. Where it cannot make an image it silently takes nearest in place of linear. So the image is made here, which raises.
4. It is asked for a device by number, and what it gives is compared with the device that is meant: for a number or a
   name that it does not know it gives the last one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.failures import DriverError
from isovoxel.errors import DeviceError
from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import Float3

VENDORS = "OCL_ICD_VENDORS"
"""Variable that names the folder in which a loader of OpenCL looks for drivers."""
SYSTEM_VENDORS = Path("/etc/OpenCL/vendors")


class Successor:
    """pyclesperanto."""

    package = "pyclesperanto"
    fixed_shapes = True

    def __init__(self) -> None:
        with _drivers_found():
            import pyclesperanto as cle

            cle.list_available_devices()
        self._cle = cle
        self.version = version("pyclesperanto")
        self._queues: dict[Any, Any] = {}
        self._devices: dict[Any, Any] = {}

    def queue(self, handle: Any) -> Any:
        """Return a queue of the context in which a device's arrays lie. The caller has the turn.

        Raises
        ------
        DeviceError
            If pyclesperanto does not find the device.
        """
        import pyopencl as cl

        if handle in self._queues:
            return self._queues[handle]
        for index in range(len(self._cle.list_available_devices())):
            device = self._cle.select_device(index)
            array = self._cle.create((1, 1, 1), dtype=np.float32, device=device)
            memory: Any = cl.MemoryObject.from_int_ptr(_pointer(array), retain=True)
            context = memory.context
            if handle in context.devices:
                device.set_wait_to_finish(True)
                self._queues[handle] = queue = cl.CommandQueue(context, handle)
                self._devices[queue] = device
                return queue
        raise DeviceError(
            f"pyclesperanto {self.version} does not find the device {handle.name.strip()}; leave out --engine cle, and "
            "exact scales, or pip install pyclesperanto-prototype"
        )

    def scale(
        self,
        queue: Any,
        source: tuple[Any, Index3],
        result: tuple[Any, Index3],
        factor: Float3,
        matrix: NDArray[np.float64] | None,
        *,
        linear: bool,
    ) -> None:
        """Scale a float32 array, and wait for it; see `isovoxel.engines.clesperanto.Clesperanto`.

        Raises
        ------
        DriverError
            If the driver fails, with its code.
        """
        cle, device = self._cle, self._devices[queue]
        queue.finish()
        given, made = (_Exported(buffer, shape, device.index) for buffer, shape in (source, result))
        try:
            image = array = cle.from_dlpack(given, device=device)
            target = cle.from_dlpack(made, device=device)
            if linear:
                image = cle.create(source[1], dtype=np.float32, mtype="image", device=device)
                cle.copy(array, image, device=device)
            if matrix is None:
                fz, fy, fx = factor
                how = {"centered": False, "interpolate": linear, "resize": False, "device": device}
                cle.scale(image, target, factor_x=fx, factor_y=fy, factor_z=fz, **how)
            else:
                cle.transform.affine_transform(
                    image, target, transform_matrix=matrix, interpolate=linear, device=device
                )
        except RuntimeError as error:
            raise DriverError.said(error) from error
        finally:
            image = array = target = None  # while what they were made of is there


@contextlib.contextmanager
def _drivers_found() -> Iterator[None]:
    """Let a second loader of OpenCL find what pyopencl's finds: PoCL of its wheel is named there by a relative name."""
    import pyopencl as cl

    with contextlib.suppress(cl.Error):
        cl.get_platforms()  # or pyopencl would list what it finds below too
    ours = list(Path(cl.__file__).parent.glob(".libs/libpocl*"))
    if not ours:
        yield
        return
    before = os.environ.get(VENDORS)
    named = Path(before) if before else SYSTEM_VENDORS
    known = [named] if named.suffix == ".icd" else sorted(named.glob("*.icd"))
    with tempfile.TemporaryDirectory(prefix="isovoxel-opencl-") as folder:
        for number, path in enumerate(known):
            with contextlib.suppress(OSError):
                Path(folder, f"{number}.icd").write_bytes(path.read_bytes())
        for number, library in enumerate(ours, start=len(known)):
            Path(folder, f"{number}.icd").write_text(f"{library}\n")
        os.environ[VENDORS] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[VENDORS]
            else:
                os.environ[VENDORS] = before


# ---- DLPack, version 1 (https://dmlc.github.io/dlpack/latest/c_api.html) ---------------------------------------------

OPENCL = 4
"""DLPack's number of OpenCL as a kind of device."""
FLOAT = 2
"""DLPack's number of floats as a kind of number."""
NAME = b"dltensor_versioned"


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


_python = ctypes.pythonapi
_get_pointer, _new_capsule = _python.PyCapsule_GetPointer, _python.PyCapsule_New
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def _pointer(array: Any) -> int:
    """Return the ``cl_mem`` of one of pyclesperanto's arrays."""
    capsule = array.__dlpack__()
    return int(_Managed.from_address(_get_pointer(capsule, NAME)).tensor.data)


class _Exported:
    """A pyopencl buffer of float32 as DLPack passes it on; it must outlive what is made of it.

    Parameters
    ----------
    buffer, shape
        The buffer, and the shape of the array in it.
    index
        pyclesperanto's number of the device.
    """

    def __init__(self, buffer: Any, shape: Index3, index: int) -> None:
        _, ny, nx = shape
        self._index = index
        self._sides, self._strides = (ctypes.c_int64 * 3)(*shape), (ctypes.c_int64 * 3)(ny * nx, nx, 1)
        tensor = _Tensor(buffer.int_ptr, OPENCL, index, 3, FLOAT, 32, 1, self._sides, self._strides, 0)
        self._managed = _Managed(1, 0, None, _Deleter(lambda _: None), 0, tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return OPENCL, self._index

    def __dlpack__(self, **_: Any) -> Any:
        return _new_capsule(ctypes.addressof(self._managed), NAME, None)
