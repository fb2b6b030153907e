"""One GPU as CUDA sees it: its memory, memory of the host that it reaches, kernels, and what is lent to threads.

Drivers take half a second for each GiB of memory of the host that a GPU shall reach. Ordinary memory in the system's
large pages, which is registered afterwards, takes a third of that in one thread and a seventh in four (benchmarks/
RESULTS.md, "Memory that a GPU reaches").
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.cuda_driver import (
    HOST,
    OUT_OF_MEMORY,
    Address,
    CopiedRows,
    CudaError,
    call,
    call_waiting,
    compiled,
    compiler_file,
)
from isovoxel.codecs.nvcomp import NvcompError
from isovoxel.geometry.grid import ceil_div

LARGE_PAGE = 2**21
"""Bytes of the large pages that systems give."""

MOST_ARGUMENTS = 24
"""A kernel has no more arguments."""

GROUP = 256
"""Work items of a group."""

T = TypeVar("T")


def new_memory(nbytes: int) -> NDArray[np.uint8]:
    """Return zeros in large pages, where the system has them, which are there before a driver asks for them.

    Raises
    ------
    MemoryError
        If there is not so much.
    """
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        room = mmap.mmap(-1, nbytes + LARGE_PAGE, **private)
    except OSError as error:
        raise MemoryError(f"the host has no {nbytes} bytes") from error
    memory = np.frombuffer(room, np.uint8)
    start = -memory.ctypes.data % LARGE_PAGE
    whole = nbytes // LARGE_PAGE * LARGE_PAGE
    if whole and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            room.madvise(mmap.MADV_HUGEPAGE, start, whole)
    memory = memory[start : start + nbytes]
    memory[:: mmap.PAGESIZE] = 0  # in this thread, while others do the same; a driver has them wait for each other
    return memory


def can_code() -> bool:
    """Return whether what encodes and decodes on NVIDIA's GPUs is installed, without loading it."""
    with contextlib.suppress(ImportError):  # of a package above
        return compiler_file() is not None and find_spec("nvidia.libnvcomp") is not None
    return False


class GpuCodecError(Exception):
    """The GPU did not encode or decode."""


@dataclass(frozen=True)
class DeviceVoxels:
    """Voxels on a GPU, z, y, x, one after the other along x; a box of them, by slices, is such as well."""

    address: int
    shape: tuple[int, int, int]
    strides: tuple[int, int, int]
    """Bytes from plane to plane, from row to row, and of a voxel."""
    dtype: np.dtype[Any]
    ready: Event
    """The event of CUDA after which they are there."""
    download: Callable[[DeviceVoxels], NDArray[Any]]
    """Returns them as an array on the host."""

    def __getitem__(self, box: tuple[slice, slice, slice]) -> DeviceVoxels:
        ends = [part.indices(n) for part, n in zip(box, self.shape, strict=True)]
        z, y, x = (stop - start for start, stop, _ in ends)
        inside = sum(start * stride for (start, _, _), stride in zip(ends, self.strides, strict=True))
        return replace(self, address=self.address + inside, shape=(z, y, x))


Voxels = NDArray[Any] | DeviceVoxels
"""Voxels on the host or on a GPU."""


def on_host(voxels: Voxels) -> NDArray[Any]:
    """Return voxels on the host: those of a GPU in new memory."""
    return voxels.download(voxels) if isinstance(voxels, DeviceVoxels) else voxels


class Registration:
    """Memory of the host that the GPU reaches, until this is collected; until then the memory stays.

    Parameters
    ----------
    gpu
        The GPU.
    memory
        The memory.
    """

    def __init__(self, gpu: Gpu, memory: NDArray[Any]) -> None:
        self._gpu, self.memory, self._there = gpu, memory, False
        portable, mapped = 1, 2
        address, nbytes = Address(memory.ctypes.data), ctypes.c_size_t(memory.nbytes)
        call_waiting("cuMemHostRegister_v2", address, nbytes, portable | mapped)
        self._there = True

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # where CUDA has ended before
            if self._there:
                with self._gpu.used():
                    call_waiting("cuMemHostUnregister", Address(self.memory.ctypes.data))


class DeviceMemory:
    """Memory on the device, until this is collected.

    Parameters
    ----------
    gpu
        The GPU, which is in use.
    size
        How many bytes.
    """

    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu, self.size, self.ptr = gpu, size, 0
        found = Address()
        call_waiting("cuMemAlloc_v2", ctypes.byref(found), ctypes.c_size_t(size))
        self.ptr = found.value

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # where CUDA has ended before
            if self.ptr:
                with self._gpu.used():
                    call_waiting("cuMemFree_v2", Address(self.ptr))


class Gpu:
    """One GPU; any number of threads may use it. With the last of them CUDA gives back what it holds by itself.

    Parameters
    ----------
    pci
        Its place on the PCI bus, such as "0000:1b:00.0".

    Raises
    ------
    ImportError
        If CUDA's driver or compiler is not installed.
    GpuCodecError
        If the GPU cannot be used.
    """

    def __init__(self, pci: str) -> None:
        self._device = device = ctypes.c_int()
        self._context = ctypes.c_void_p()
        with _failures():
            call("cuDeviceGetByPCIBusId", ctypes.byref(device), pci.encode())
            call_waiting("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
            major, minor = ctypes.c_int(), ctypes.c_int()
            call("cuDeviceGetAttribute", ctypes.byref(major), 75, device)
            call("cuDeviceGetAttribute", ctypes.byref(minor), 76, device)
        self._capability = 10 * major.value + minor.value

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # where CUDA has ended before
            if self._context:
                call_waiting("cuDevicePrimaryCtxRelease_v2", self._device)

    def kernels(self, source: str, *options: str) -> Kernels:
        """Return kernels of a source; called while the GPU is in use."""
        module, code = ctypes.c_void_p(), compiled(source, options, self._capability)
        call_waiting("cuModuleLoadData", ctypes.byref(module), code)
        return Kernels(module)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Use the GPU in this thread; its failures are raised as `MemoryError` and `GpuCodecError`."""
        with _failures():
            call("cuCtxPushCurrent_v2", self._context)
            try:
                yield
            finally:
                call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def register(self, memory: NDArray[Any]) -> Registration | None:
        """Let the GPU reach memory of the host; None where it does not, and copies take longer."""
        with contextlib.suppress(MemoryError, GpuCodecError), self.used():
            return Registration(self, memory)
        return None

    def host_memory(self, nbytes: int) -> Registration:
        """Return new memory of the host that the GPU reaches."""
        memory = new_memory(nbytes)
        with self.used():
            return Registration(self, memory)

    def reaches(self, address: int) -> bool:
        """Return whether the GPU reaches the host's memory at an address; called while the GPU is in use."""
        kind, memory_type = ctypes.c_uint(), 2
        with contextlib.suppress(CudaError):  # it knows nothing of ordinary memory
            call("cuPointerGetAttribute", ctypes.byref(kind), memory_type, Address(address))
        return kind.value == HOST


class Event:
    """An event of CUDA, until this is collected; who waits for it leaves the processor to others.

    Parameters
    ----------
    gpu
        The GPU, which is in use.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self.handle = gpu, ctypes.c_void_p()
        blocking, without_time = 1, 2
        call("cuEventCreate", ctypes.byref(self.handle), blocking | without_time)

    def __del__(self) -> None:
        with contextlib.suppress(Exception), self._gpu.used():
            call("cuEventDestroy_v2", self.handle)


class Kernels(dict[str, ctypes.c_void_p]):
    """Kernels of a module by their names."""

    def __init__(self, module: ctypes.c_void_p) -> None:
        super().__init__()
        self._module = module

    def __missing__(self, name: str) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        call_waiting("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode())
        self[name] = function
        return function


@contextmanager
def _failures() -> Iterator[None]:
    """Raise failures of CUDA as `MemoryError` and `GpuCodecError`."""
    try:
        yield
    except CudaError as error:
        if error.status == OUT_OF_MEMORY:
            raise MemoryError("there is too little memory for the device's codec") from error
        raise GpuCodecError(str(error)) from error
    except NvcompError as error:
        raise GpuCodecError(str(error)) from error


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
        self._made: list[T] = []
        self._free = threading.Semaphore(number)

    @contextmanager
    def one(self) -> Iterator[T]:
        """Lend one, of those that were made if any is there; who finds none waits."""
        with self._free:
            try:
                lent = self._made.pop()
            except IndexError:
                lent = self._make()
            try:
                yield lent
            finally:
                self._made.append(lent)

    def make_ahead(self, number: int) -> None:
        """Begin to make so many on threads; where that fails, it is done again when one is needed, and raises there."""

        def make() -> None:
            with contextlib.suppress(Exception), self.one():
                pass

        for _ in range(number):
            threading.Thread(target=make, name="isovoxel-ahead", daemon=True).start()

    def clear(self) -> None:
        """Let go of all, none of which is lent."""
        self._made.clear()


class Stream:
    """A stream of CUDA: what is given to it is done in order, beside what is done on others.

    One thread at a time uses it.

    Parameters
    ----------
    gpu
        The GPU, which is in use.
    kernels
        Kernels by their names.
    """

    def __init__(self, gpu: Gpu, kernels: Kernels | None = None) -> None:
        self._gpu, self._kernels = gpu, kernels
        non_blocking = 1
        self.pointer = ctypes.c_void_p()
        call("cuStreamCreate", ctypes.byref(self.pointer), non_blocking)
        self._done = Event(gpu)
        self._values = (Address * MOST_ARGUMENTS)()
        start, size = ctypes.addressof(self._values), ctypes.sizeof(Address)
        self._arguments = (ctypes.c_void_p * MOST_ARGUMENTS)(*(start + size * i for i in range(MOST_ARGUMENTS)))

    def launch(self, kernel: str, items: int, *arguments: int | DeviceMemory, group: int = GROUP) -> None:
        """Begin with a kernel, on so many items in groups of some."""
        assert self._kernels is not None  # noqa: S101 - for type checkers: who has none launches grids
        self.launch_grid(self._kernels[kernel], (ceil_div(items, group), 1, 1), (group, 1, 1), arguments)

    def launch_grid(
        self, kernel: ctypes.c_void_p, groups: Sequence[int], group: Sequence[int], arguments: Sequence[Any]
    ) -> None:
        """Begin with a kernel, on groups of work items along x, y and z.

        Arguments are device memory and whole numbers of up to 64 bits; a kernel takes as many of them as it declares.
        """
        for number, argument in enumerate(arguments):
            self._values[number] = argument.ptr if isinstance(argument, DeviceMemory) else int(argument)
        call("cuLaunchKernel", kernel, *groups, *group, 0, self.pointer, self._arguments, None)

    def upload(self, to: int, source: NDArray[Any], *, pinned: bool = False) -> None:
        """Begin to copy an array to the device; memory that is not pinned is read before this returns."""
        do, nbytes = call if pinned else call_waiting, ctypes.c_size_t(source.nbytes)
        do("cuMemcpyHtoDAsync_v2", Address(to), Address(source.ctypes.data), nbytes, self.pointer)

    def download(self, to: NDArray[Any], source: int, *, pinned: bool = False) -> None:
        """Begin to fill an array from the device; memory that is not pinned is filled when this returns."""
        do, nbytes = call if pinned else call_waiting, ctypes.c_size_t(to.nbytes)
        do("cuMemcpyDtoHAsync_v2", Address(to.ctypes.data), Address(source), nbytes, self.pointer)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Begin to copy bytes on the device."""
        call("cuMemcpyDtoDAsync_v2", Address(to), Address(source), ctypes.c_size_t(nbytes), self.pointer)

    def upload_rows(self, to: int, source: int, stride: int, nbytes: int, rows: int) -> None:
        """Begin to copy rows that lie so many bytes apart on the host to one after the other."""
        call_waiting("cuMemcpy2DAsync_v2", ctypes.byref(CopiedRows.up(to, source, stride, nbytes, rows)), self.pointer)

    def download_rows(self, to: int, to_stride: int, source: int, stride: int, nbytes: int, rows: int) -> None:
        """Begin to copy rows that lie so many bytes apart on the device to the host."""
        part = CopiedRows.down(to, to_stride, source, stride, nbytes, rows)
        call_waiting("cuMemcpy2DAsync_v2", ctypes.byref(part), self.pointer)

    def zero(self, to: int, nbytes: int) -> None:
        """Begin to set bytes on the device to 0."""
        call("cuMemsetD8Async", Address(to), ctypes.c_ubyte(0), ctypes.c_size_t(nbytes), self.pointer)

    def mark(self) -> Event:
        """Return the event of the end of what was given to the stream until now."""
        event = Event(self._gpu)
        call("cuEventRecord", event.handle, self.pointer)
        return event

    def follow(self, event: Event) -> None:
        """Let what is given to the stream next wait for an event."""
        call("cuStreamWaitEvent", self.pointer, event.handle, 0)

    def wait(self) -> None:
        """Wait until all is done, without a processor."""
        call("cuEventRecord", self._done.handle, self.pointer)
        call_waiting("cuEventSynchronize", self._done.handle)

    def __del__(self) -> None:
        with contextlib.suppress(Exception), self._gpu.used():
            call("cuStreamDestroy_v2", self.pointer)
