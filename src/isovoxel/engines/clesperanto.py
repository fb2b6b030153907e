"""The two generations of clEsperanto behind one protocol: the prototype where it can be imported, else its successor.

Which of them can be imported is tried, for pins and versions say less than the import. ``ISOVOXEL_CLE=prototype`` or
``ISOVOXEL_CLE=pyclesperanto`` chooses. The prototype's arrays and queue are pyopencl's. Of pyclesperanto:

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
import platform
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.opencl import DriverError, let_go_of, prepare_caches, queue_of
from isovoxel.errors import DeviceError, OptionError
from isovoxel.geometry.grid import Float3, Index3

NEWEST = (3, 15)
"""First Python without wheels of either."""
WITHOUT = "without --engine cle exact scales"
"""What to do where none is there."""
CHOICE = "ISOVOXEL_CLE"
"""Variable that chooses between the two."""


class Scaling(NamedTuple):
    """How a float32 array in device memory is scaled."""

    source: tuple[Any, Index3]
    """Buffer and shape, z, y, x, of the array that is read."""
    result: tuple[Any, Index3]
    """Likewise of the one that is written."""
    factor: Float3
    """Output samples per input sample, z, y, x, for ``cle.scale``."""
    matrix: NDArray[np.float64] | None
    """In place of it, the 4 x 4 matrix, x, y, z, from input to output coordinates, for ``cle.affine_transform``."""
    linear: bool
    """Whether to interpolate; otherwise the nearest sample is taken."""


class Clesperanto(Protocol):
    """What engine `cle` needs of either generation. Its callers hold the `TURN`."""

    package: str
    """Its name on PyPI."""
    version: str
    """Its version."""
    fixed_shapes: bool
    """Whether its kernels are compiled for each shape of an array, so that all blocks of a job should have one."""

    def queue(self, handle: Any) -> Any:
        """Return a queue on a ``pyopencl.Device``, of the context in which this generation's arrays lie."""
        ...

    def scale(self, queue: Any, scaling: Scaling) -> None:
        """Scale an array, behind what a queue that `queue` has returned has to do and before what it gets next."""
        ...


TRANSFERS = 8
"""Matrices on their way to the device at a time, for two blocks in two halves each, and as many kept."""


class Prototype:
    """pyclesperanto-prototype; importing it takes half a second."""

    package = "pyclesperanto-prototype"
    fixed_shapes = False

    def __init__(self) -> None:
        import pyclesperanto_prototype as cle

        self._cle = cle
        self.version = str(cle.__version__)
        self._devices: dict[Any, Any] = {}
        self._transfers: deque[Any] = deque(maxlen=TRANSFERS)

    def queue(self, handle: Any) -> Any:
        """Return the queue of the context in which a device's arrays lie. The caller has the turn."""
        return queue_of(handle)

    def scale(self, queue: Any, scaling: Scaling) -> None:
        """Give the scaling of an array to the queue; see `Clesperanto`."""
        from pyclesperanto_prototype._tier0._pycl import OCLArray

        source, result, factor, matrix, linear = scaling
        given, made = (OCLArray(queue, shape, np.float32, data=buffer) for buffer, shape in (source, result))
        with self._current(queue):
            if matrix is None:
                fz, fy, fx = factor
                self._cle.scale(
                    given, made, factor_x=fx, factor_y=fy, factor_z=fz, centered=False, linear_interpolation=linear
                )
            else:
                self._cle.affine_transform(given, made, transform=matrix, linear_interpolation=linear)

    @contextlib.contextmanager
    def _current(self, queue: Any) -> Iterator[None]:
        """Let cle use a queue, raise where an image cannot be made, and not wait for the device.

        By itself cle makes a new context each time it goes from one device to another, in which nothing works that was
        made in the old one. It takes any reason why an image cannot be made, a lack of memory too, for one that will
        stay: it warns, and computes nearest. And it waits until its matrix is on the device, behind all that the
        queue has to do before. A caller's own choice of a device is put back.
        """
        from pyclesperanto_prototype._tier0._backends import Backend
        from pyclesperanto_prototype._tier0._device import Device, _current_device

        if queue not in self._devices:
            self._devices[queue] = Device(queue.device, queue.context, queue)
        before, _current_device._instance = _current_device._instance, self._devices[queue]  # noqa: SLF001 - no other way
        backend = Backend.get_instance().get()
        backend.empty_image_like = lambda array, _: _image(queue.context, array.shape)
        backend.from_array = lambda matrix: self._matrix_on_device(queue, matrix)
        try:
            yield
        finally:
            del backend.empty_image_like, backend.from_array
            _current_device._instance = before or self._devices[queue]  # noqa: SLF001

    def _matrix_on_device(self, queue: Any, matrix: NDArray[np.float32]) -> Any:
        """Return cle's array of its matrix, which the queue copies before it comes to what uses it."""
        import pyopencl as cl
        from pyclesperanto_prototype._tier0._pycl import OCLArray

        buffer = cl.Buffer(queue.context, cl.mem_flags.READ_ONLY, matrix.nbytes)
        # pyopencl waits for a transfer whose event is dropped; with so many kept, the oldest has ended.
        self._transfers.append(cl.enqueue_copy(queue, buffer, matrix, is_blocking=False))
        return OCLArray(queue, matrix.shape, matrix.dtype, data=buffer)


def _image(context: Any, shape: Index3) -> Any:
    """Return an image of float32, by the constructor that stays in pyopencl."""
    import pyopencl as cl
    from pyclesperanto_prototype._tier0._pycl import _OCLImage

    format_ = cl.ImageFormat(cl.channel_order.R, cl.channel_type.FLOAT)
    image: Any = cl.create_image(context, cl.mem_flags.READ_WRITE, format_, shape=tuple(reversed(shape)))
    image.dtype, image.num_channels = np.float32, 1
    return _OCLImage(image)


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

    def scale(self, queue: Any, scaling: Scaling) -> None:
        """Scale an array, and wait for it; see `Clesperanto`.

        Raises
        ------
        DriverError
            If the driver fails, with its code.
        """
        cle, device = self._cle, self._devices[queue]
        source, result, factor, matrix, linear = scaling
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
        except BaseException as error:
            let_go_of(error)  # clEsperanto's frames hold arrays too
            if isinstance(error, RuntimeError):
                raise DriverError.said(error) from error
            raise
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


_GENERATIONS: dict[str, Callable[[], Clesperanto]] = {"prototype": Prototype, "pyclesperanto": Successor}
"""The generations, in the order in which they are tried."""


@lru_cache
def clesperanto() -> Clesperanto:
    """Return the generation of clEsperanto that this process uses.

    Raises
    ------
    OptionError
        If `CHOICE` names none.
    DeviceError
        If none can be imported; the message says why, and what helps.
    """
    found = _tried()
    if isinstance(found, str):
        raise DeviceError(f"engine cle needs clEsperanto, which cannot be imported: {found}; {remedy()}; {WITHOUT}")
    return found


def scales_with() -> tuple[str, str]:
    """Return package and version of the clEsperanto that this process uses, or nothing and why there is none.

    Raises
    ------
    OptionError
        If `CHOICE` names none.
    """
    try:
        found = clesperanto()
    except DeviceError:
        return "", f"clEsperanto cannot be imported: {why_missing()}; {remedy()}"
    return f"{found.package} {found.version}", ""


def why_missing() -> str:
    """Return why no clEsperanto can be imported, or nothing where one can."""
    try:
        found = _tried()
    except OptionError as error:
        return str(error)
    return found if isinstance(found, str) else ""


_trying = threading.Lock()
"""Held while generations are imported, which takes a second: a thread may do it ahead."""


def _tried() -> Clesperanto | str:
    """Return the first generation that can be imported, or why none can."""
    with _trying:
        return _first_that_loads()


@lru_cache
def _first_that_loads() -> Clesperanto | str:
    chosen = os.environ.get(CHOICE, "")
    if chosen and chosen not in _GENERATIONS:
        raise OptionError(f"{CHOICE} must be {' or '.join(_GENERATIONS)}, not {chosen!r}")
    prepare_caches()  # either loads OpenCL
    reasons = []
    for name in [chosen] if chosen else list(_GENERATIONS):
        try:
            return _GENERATIONS[name]()
        except Exception as error:  # noqa: BLE001 - an import that fails may raise anything
            reasons.append(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")
    return "; ".join(reasons)


def remedy() -> str:
    """Say how clEsperanto is had here, or that it is not."""
    machine = platform.machine().lower()
    if sys.version_info >= NEWEST:
        return f"there is no wheel of it for Python {platform.python_version()}, use one before 3.{NEWEST[1]} for it"
    if sys.platform != "darwin" and machine not in ("x86_64", "amd64"):
        return f"there is no wheel of it for {platform.system()} on {machine}"
    return "pip install pyclesperanto brings it"


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
