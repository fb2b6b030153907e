"""One GPU as CUDA sees it: its memory, memory of the host that it reaches, kernels, and what is lent to threads.

CUDA's own memory of the host takes a second for each gigabyte; ordinary memory that is registered afterwards takes a
third of that, in each thread at the same time (measured, H200).
"""

from __future__ import annotations

import contextlib
import mmap
import queue
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.blosc import kernels
from isovoxel.codecs.nvcomp import NvcompError
from isovoxel.geometry.grid import ceil_div

GROUP = 256
"""Work items of a group."""

T = TypeVar("T")


def can_code() -> bool:
    """Return whether what encodes and decodes on NVIDIA's GPUs is installed, without loading it."""
    with contextlib.suppress(ImportError):  # of a package above
        return find_spec("cupy") is not None and find_spec("nvidia.libnvcomp") is not None
    return False


class GpuCodecError(Exception):
    """The GPU did not encode or decode."""


class Registration:
    """Memory of the host that the GPU reaches, until this is collected; until then the memory stays.

    Parameters
    ----------
    cupy
        The module.
    memory
        The memory.
    """

    def __init__(self, cupy: Any, memory: NDArray[Any]) -> None:
        self._runtime, self.memory = cupy.cuda.runtime, memory
        portable, mapped = 1, 2
        self._runtime.hostRegister(memory.ctypes.data, memory.nbytes, portable | mapped)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # of memory that could not be registered, and where CUDA has ended before
            self._runtime.hostUnregister(self.memory.ctypes.data)


class Gpu:
    """One GPU, and its memory that is kept for later; any number of threads may use it.

    Parameters
    ----------
    pci
        Its place on the PCI bus, such as "0000:1b:00.0".

    Raises
    ------
    ImportError
        If cupy is not installed.
    GpuCodecError
        If the GPU cannot be used.
    """

    def __init__(self, pci: str) -> None:
        import cupy

        self.cupy = cupy
        with self._failures():
            self._device = cupy.cuda.Device(cupy.cuda.runtime.deviceGetByPCIBusId(pci))
            with self._device:
                self.pool = cupy.cuda.MemoryPool()

    def kernels(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return kernels of `blosc.cl`, built; called while the GPU is in use."""
        module = self.cupy.RawModule(code=kernels())
        return {name: module.get_function(name) for name in names}

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Use the GPU in this thread; its failures are raised as `MemoryError` and `GpuCodecError`."""
        with self._failures(), self._device:
            yield

    def register(self, memory: NDArray[Any]) -> Registration | None:
        """Let the GPU reach memory of the host; None where it does not, and copies take longer."""
        with contextlib.suppress(MemoryError, GpuCodecError), self.used():
            return Registration(self.cupy, memory)
        return None

    def host_memory(self, nbytes: int) -> Registration:
        """Return new memory of the host that the GPU reaches."""
        memory = np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)
        with self.used():
            return Registration(self.cupy, memory)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        runtime = self.cupy.cuda.runtime
        try:
            yield
        except self.cupy.cuda.memory.OutOfMemoryError as error:
            raise MemoryError("the device has too little memory for its codec") from error
        except runtime.CUDARuntimeError as error:
            if error.status == runtime.cudaErrorMemoryAllocation:
                raise MemoryError("there is too little memory for the device's codec") from error
            raise GpuCodecError(str(error)) from error
        except (NvcompError, self.cupy.cuda.driver.CUDADriverError, self.cupy.cuda.compiler.CompileException) as error:
            raise GpuCodecError(str(error).splitlines()[0]) from error


class Lent(Generic[T]):
    """A number of things that are lent to threads, each made when it is needed first, by the thread that needs it.

    Parameters
    ----------
    number
        How many there are.
    make
        Makes one.
    """

    def __init__(self, number: int, make: Callable[[], T]) -> None:
        self._make = make
        self._free: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        for _ in range(number):
            self._free.put(None)

    @contextlib.contextmanager
    def one(self) -> Iterator[T]:
        """Lend one; who finds none waits."""
        lent = self._free.get()
        try:
            if lent is None:
                lent = self._make()
            yield lent
        finally:
            self._free.put(lent)

    def clear(self) -> None:
        """Let go of all, none of which is lent."""
        number = self._free.qsize()
        for _ in range(number):
            self._free.get()
        for _ in range(number):
            self._free.put(None)


class Stream:
    """A stream of CUDA: what is given to it is done in order, beside what is done on others.

    Parameters
    ----------
    gpu
        The GPU.
    functions
        Its kernels by their names.
    """

    def __init__(self, gpu: Gpu, functions: dict[str, Any]) -> None:
        self._cupy, self._functions = gpu.cupy, functions
        self.stream = self._cupy.cuda.Stream(non_blocking=True)
        self.pointer: int = self.stream.ptr
        # Who waits for an event of another kind keeps a core busy.
        self._done = self._cupy.cuda.Event(block=True, disable_timing=True)

    def launch(self, kernel: str, items: int, *arguments: Any, group: int = GROUP) -> None:
        """Begin with a kernel, on so many items in groups of some."""
        with self.stream:
            self._functions[kernel]((ceil_div(items, group),), (group,), arguments)

    def upload(self, to: Any, source: NDArray[Any]) -> None:
        """Begin to copy an array to the device."""
        kind = self._cupy.cuda.runtime.memcpyHostToDevice
        self._copy(to.data.ptr, source.ctypes.data, source.nbytes, kind)

    def download(self, to: NDArray[Any], source: Any) -> None:
        """Begin to copy the beginning of an array on the device, as much as there is room for."""
        kind = self._cupy.cuda.runtime.memcpyDeviceToHost
        self._copy(to.ctypes.data, source.data.ptr, to.nbytes, kind)

    def upload_rows(self, to: Any, source: int, stride: int, nbytes: int, rows: int) -> None:
        """Begin to copy rows that lie so many bytes apart on the host to one after the other."""
        runtime = self._cupy.cuda.runtime
        kind = runtime.memcpyHostToDevice
        runtime.memcpy2DAsync(to.data.ptr, nbytes, source, stride, nbytes, rows, kind, self.pointer)

    def download_rows(self, to: int, stride: int, source: int, nbytes: int, rows: int) -> None:
        """Begin to copy rows that lie one after the other on the device to so many bytes apart."""
        runtime = self._cupy.cuda.runtime
        kind = runtime.memcpyDeviceToHost
        runtime.memcpy2DAsync(to, stride, source, nbytes, nbytes, rows, kind, self.pointer)

    def wait(self) -> None:
        """Wait until all is done, without a processor."""
        self._done.record(self.stream)
        self._done.synchronize()

    def _copy(self, to: int, source: int, nbytes: int, kind: int) -> None:
        self._cupy.cuda.runtime.memcpyAsync(to, source, nbytes, kind, self.pointer)
