"""Engine interface: scale one block at a time on one device."""

from __future__ import annotations

from contextlib import AbstractContextManager
from threading import Event
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from isovoxel.codecs.cuda import Voxels
from isovoxel.codecs.decoder import GpuDecoder
from isovoxel.codecs.gpu import GpuEncoder
from isovoxel.codecs.streams import ChunkCoding
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan


class Scaled(NamedTuple):
    """The result of scaling one block."""

    data: Voxels
    """The block's output voxels, in the volume's dtype."""
    waited: float
    """Seconds spent waiting for the device while it served other blocks."""
    pieces: int = 1
    """In how many pieces it was scaled: more than one where the device had no room for the whole."""
    halves: tuple[Voxels, ...] = ()
    """The block of level 1 that is made of it, and what becomes of that on level 2, as far as the device made them."""


class Cancelled(Exception):  # noqa: N818 - not an error: the user asked for it
    """The job was cancelled while the block waited for the device."""


class Stage(Protocol):
    """One block on its way through an engine."""

    @property
    def input(self) -> NDArray[Any]:
        """Where the voxels of ``block.read_box`` belong, until the block is scaled: host memory, used again later."""
        ...

    def scale(self, cancelled: Event | None = None) -> Scaled:
        """Return the voxels of ``block.write_box``, in memory that is used again when the stage is left.

        Parameters
        ----------
        cancelled
            When set, a block that still waits for the device raises `Cancelled` in place of computing.

        Raises
        ------
        DeviceFullError
            If the device has no room for the smallest piece of the block.
        DeviceLostError
            If the device no longer answers this process.
        """
        ...


class Engine(Protocol):
    """Scales blocks. May be called from several threads; takes the device for one block at a time."""

    name: str
    """The engine's name in plans and options."""

    def staged(self, block: Block, plan: Plan) -> AbstractContextManager[Stage]:
        """Lend a block host memory that the device reaches: for as many blocks at a time as there are threads."""
        ...

    def scale(self, data: NDArray[Any], block: Block, plan: Plan, cancelled: Event | None = None) -> Scaled:
        """Return the voxels of ``block.write_box`` as a new array.

        Parameters
        ----------
        data
            The voxels of ``block.read_box``, z, y, x, in the source's dtype.
        block, plan
            Where they lie, and how they are scaled.
        cancelled
            As in `Stage.scale`.
        """
        ...

    def prepare(self, plan: Plan) -> None:
        """Build and allocate what a block needs, so that a device that cannot is found before anything is written.

        Raises
        ------
        DeviceError
            If the device does not build it, or gives no memory for a single block.
        DeviceLostError
            If the device no longer answers this process.
        """
        ...

    def encoder(self, plan: Plan) -> GpuEncoder | None:
        """Return what encodes a plan's chunks on the device, None where the processor does; kept until `release`.

        Raises
        ------
        ImportError, MemoryError, GpuCodecError
            If the device shall encode, and cannot.
        """
        ...

    def decoder(self, plan: Plan, coding: ChunkCoding) -> GpuDecoder | None:
        """Return what decodes the chunks of a plan's input on the device, None where the processor does; kept likewise.

        Raises
        ------
        ImportError, MemoryError, GpuCodecError
            If the device shall decode, and cannot.
        """
        ...

    def release(self, *, keep_hosts: bool = False) -> None:
        """Free the buffers that are kept from block to block; host memory, too, unless it is to be kept."""
        ...

    def take_over(self, other: Engine) -> None:
        """Take over the host memory that another engine has kept."""
        ...
