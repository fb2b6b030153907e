"""Executor interface: makes the blocks of a job, level after level, on threads, in a process apart, or on workers.

1. A job enters its executor, and prepares it for a level before anything of that level is written: what cannot serve
   is found then.
2. It runs the level: the executor makes each block that is not done, and hands it to the level's `LevelProgress`, which
   notes the block and only then tells of it.
3. Each level is a `Task`: the full one of the user's input, each further one of the level before, which is opened as
   any zarr array is. So what holds for one level (retries, restarts, resuming) holds for all.

Which executor a job has changes neither its blocks nor their bits, nor the errors that its caller sees. What fails is
tried again as `isovoxel.object_store.retries` has it, a device whose memory other programs hold as well.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGINT
from typing import Any, NamedTuple, NoReturn, Protocol, Self, TypeGuard

import numpy as np

from isovoxel.codecs.cuda import GpuCodecError
from isovoxel.engines.base import Engine
from isovoxel.errors import (
    CorruptInputError,
    DeviceFullError,
    DeviceLostError,
    InputChangedError,
    InputError,
    JobError,
    clause,
)
from isovoxel.execution.events import BlockDone, DecodedByProcessor, Event, Listener, started
from isovoxel.geometry.grid import Float3
from isovoxel.object_store.files import has_no_inodes, refusal
from isovoxel.object_store.objects import Place, place_of
from isovoxel.object_store.retries import is_transient
from isovoxel.output.attempt import Attempt
from isovoxel.output.shard import ShardReceipt
from isovoxel.output.shard_store import store_of
from isovoxel.planning.chunking import Storage
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import ReadBox, Volume
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import EVERYTHING, Selection

GO_ON = "to resume, run the same command without --overwrite"
ANEW = "to begin anew, run the same command with --overwrite"


def may_pass(error: Exception) -> bool:
    """Return whether a new attempt may help, where a device may have had too little memory as well."""
    return not isinstance(error, BlockFailed) and (is_transient(error) or isinstance(error, DeviceFullError))


def kept(plan: Plan, parts: Sequence[bytearray]) -> str:
    """Say how many blocks of a job are done, of all levels, as its progress counts them, and how to go on.

    Parameters
    ----------
    plan
        That of the full level.
    parts
        A 1 for each block that is done, level by level.
    """
    return f"{sum(map(sum, parts))} of {plan.all_blocks} blocks are done and kept; {GO_ON}"


def changed(name: str) -> str:
    """Say that an input is another than the one that a job was begun with, and what to do."""
    return (
        f"{name} has changed since the job began, so that the output would be made of two inputs; it is left "
        "incomplete: leave the input as it is, and run the same command again, with --overwrite"
    )


def is_full(error: Exception) -> TypeGuard[OSError]:
    """Tell whether an error means that a disk is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Room(NamedTuple):
    """What the rest of an output needs of a disk, and what that has."""

    needed: float
    """Bytes, about."""
    free: int
    """Bytes."""

    def __str__(self) -> str:
        return f"about {human_bytes(self.needed)} are still to be written, {human_bytes(self.free)} are free"


def missing(plan: Plan, done: bytearray, written: int, stored: int, free: int) -> Room:
    """Return how much room the rest of an output needs: as much per voxel as what is written, or as a voxel has.

    Parameters
    ----------
    plan, done
        What is to be done, and a 1 for each block that is.
    written, stored
        Voxels that this run has written, and the bytes that they take on the disk.
    free
        Bytes that are free there.
    """
    voxels = plan.all_voxels - started(plan, done).voxels_done
    return Room(voxels * (stored / written if written else plan.source.itemsize), free)


def is_of_input(error: BaseException) -> bool:
    """Return whether an error, or what led to it, is the input's fault, so that another input may fare better."""
    while True:
        if isinstance(error, InputError | InputChangedError):
            return True
        if isinstance(error, BlockFailed) and error.doing == "reading" and not error.short_of_memory:
            return True
        if error.__cause__ is None:
            return False
        error = error.__cause__


class BlockFailed(Exception):  # noqa: N818 - never seen by a user
    """Carries what was being done with which block when something failed."""

    def __init__(self, doing: str, block: Block, error: Exception) -> None:
        super().__init__(doing, block, error)
        self.doing, self.block, self.error = doing, block, error

    @property
    def short_of_memory(self) -> bool:
        """Whether the host had too little memory."""
        return isinstance(self.error, MemoryError)

    def __str__(self) -> str:
        box = self.block.read_box if self.doing == "reading" else self.block.write_box
        return f"{self.doing} {self.block} (z, y, x from {box.start} to {box.stop}) failed"

    def reason(self, missing: Callable[[], Room]) -> str:
        """Say in a clause what failed, where, and why; `missing` says how much room the disk lacks."""
        error = self.error
        if is_full(error):
            return f"{self} because {_lack(error, missing)}"
        if isinstance(error, CorruptInputError):
            return f"{self}: {error}, or have it filled with --on-corrupt fill"
        if self.doing == "writing" and isinstance(error, OSError) and isinstance(error.filename, str):
            return f"{self} because {refusal(error, Path(error.filename))}"
        return f"{self} with {clause(error)}"


def _lack(error: OSError, missing: Callable[[], Room]) -> str:
    """Say what a disk lacks."""
    if has_no_inodes(error):
        return "the disk has no inodes left for another file; remove files, or take larger shards"
    room = missing()
    if error.errno == errno.EDQUOT:
        return f"this user's disk quota is used up: {room}; make room, or ask for more"
    if room.free > 2 * room.needed:
        return f"the disk takes no more, although it has room: {room}; look for another limit, such as a quota"
    return f"the disk is full: {room}; make room"


Record = Callable[[int, Sequence[ShardReceipt], BlockDone], None]
"""Notes a block that is on the disk, the receipts of its shards, and what was made along with it: the receipts of those
blocks follow, one block after the other."""


class InterruptedAgain(KeyboardInterrupt):
    """A second signal during shutdown: stop without waiting for blocks in flight.

    Their threads end when the device has answered. They cannot write any more once the lock is given back, see
    `isovoxel.output.attempt`, so the same job may resume at once, also in this process.
    """

    def __init__(self, number: int | None) -> None:
        super().__init__(f"interrupted again; blocks in flight are given up, and write nothing more; {GO_ON}")
        self.signal = number or SIGINT


@dataclass(frozen=True)
class VolumeSource:
    """The input of a job, as any process can open it."""

    given: Any
    """What the user gave: a path, an address, or an array."""
    voxel_size: Float3 | None = None
    """Its voxel size in place of what its metadata say."""
    unit: str | None = None
    """Its unit in place of what its metadata say."""
    selection: Selection = EVERYTHING
    """Which part of it is meant."""
    fill: bool = False
    """Whether damaged parts of it are filled."""
    written: Storage | None = None
    """How it is stored, where it is a level of the job's own output."""

    def open(self) -> Volume:
        """Open it."""
        return open_volume(self.given, voxel_size=self.voxel_size, unit=self.unit, selection=self.selection)


@dataclass(frozen=True)
class Task:
    """The blocks of one level, as any process can make them."""

    plan: Plan
    """The level's plan."""
    source: VolumeSource
    """The input of its blocks."""
    output: Place
    """The OME-Zarr, which exists before a block is made."""
    attempt: Attempt | None = None
    """The hold of the output's lock that blocks are written for, once it is held."""

    def open(self) -> Volume:
        """Open the input, in whichever process this is.

        Raises
        ------
        JobError
            If it is not the one that was planned.
        """
        if self.source.written is not None:
            from isovoxel.readers.zarr_array import open_written

            of = self.plan.source
            return open_written(
                place_of(self.source.given), of.grid.shape, np.dtype(of.dtype), self.source.written, of.series
            )
        volume = self.source.open()
        planned = self.plan.source.identity
        if any(planned[key] != volume.identity[key] for key in volume.identity if key in planned and key != "tag"):
            raise InputChangedError(changed(volume.name))
        return volume

    def free_bytes(self) -> int:
        """Return how much room the output's disk has."""
        return store_of(self.output).free_bytes()

    def further(self, plan: Plan, before: Plan) -> Task:
        """Return the task of a further level, whose input is the level before."""
        # Damage in a file of our own is not filled: the file can be made again.
        source = VolumeSource(self.output / str(before.level), written=before.storage)
        return replace(self, plan=plan, source=source)


@dataclass(eq=False)
class LevelProgress:
    """The finished blocks of a level: each is noted first, and only then told of."""

    plan: Plan
    """The level's."""
    done: bytearray
    """A 1 for each block that is done, in the plan's order."""
    _record: Record
    """Called with each block that is done, one call at a time."""
    tell: Listener
    """Told what happens."""
    _free_bytes: Callable[[], int]
    """Returns how much room the output's disk has."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _written: int = field(default=0, init=False)
    """Voxels of the blocks that were finished here."""
    _stored: int = field(default=0, init=False)
    """Bytes of their shards."""

    def finish(self, index: int, receipts: Sequence[ShardReceipt], event: BlockDone) -> None:
        """Note a block that is on the disk, and tell of it.

        Raises
        ------
        BlockFailed
            If the block cannot be noted.
        """
        try:
            with self._lock:
                self._record(index, receipts, event)
                self.done[index] = 1
                self._written += event.voxels
                self._stored += sum(receipt.size for receipt in receipts)
        except OSError as error:
            raise BlockFailed("writing", self.plan.block(index), error) from error
        self.tell(event)

    def fail(self, failure: Exception) -> NoReturn:
        """Raise what an executor raises of a failure that ended the level.

        Raises
        ------
        JobError
            Says what failed, in a sentence.
        DeviceLostError
            If the device was lost.
        """
        if isinstance(failure, JobError):
            raise failure
        if not isinstance(failure, BlockFailed):
            raise JobError(f"the job failed with {clause(failure)}") from failure
        if isinstance(failure.error, DeviceLostError):
            raise failure.error
        done = self.done, self._written, self._stored
        reason = failure.reason(lambda: missing(self.plan, *done, self._free_bytes()))
        raise JobError(reason) from failure


class Elapsed(NamedTuple):
    """The time that a level took."""

    seconds: float
    """Wall time."""
    idle: float
    """Seconds in which a block could have been in flight and was none, yet or any more, summed over threads."""


class Executor(Protocol):
    """Makes the blocks of one job; a context manager that frees what it took."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Free engines, memory, and workers; after `InterruptedAgain` nothing is waited for."""
        ...

    def prepare(self, task: Task, volume: Volume, listener: Listener) -> None:
        """Take what the blocks of a level need; nothing is written.

        Parameters
        ----------
        task, volume
            The level, and its input, opened.
        listener
            Told what happens meanwhile.

        Raises
        ------
        IsovoxelError
            If the device cannot serve, or the workers cannot take part.
        """
        ...

    def run(self, progress: LevelProgress, *, last: bool) -> Elapsed:
        """Make all blocks of the prepared level that are not done.

        Parameters
        ----------
        progress
            Takes each block that is on the disk.
        last
            Whether no level follows, for which memory is kept.

        Raises
        ------
        JobError
            If the level fails.
        KeyboardInterrupt
            If the user interrupts; blocks in flight are finished or given up first.
        InterruptedAgain
            If the user interrupts again meanwhile.
        """
        ...


class KeptExecutors(ExitStack):
    """Executors that live from job to job; a context manager, which frees what they took.

    Parameters
    ----------
    make
        Returns an executor of a device, given the options, the workers or None, and the device.
    """

    def __init__(self, make: Callable[[Any, Any, str], Executor]) -> None:
        super().__init__()
        self._make = make
        self._kept: dict[str, Executor] = {}

    def __call__(self, options: Any, cluster: Any, device: str) -> AbstractContextManager[Executor]:
        """Return a context of the executor of a device, or of the workers, which does not end it."""
        if device not in self._kept:
            self._kept[device] = self.enter_context(self._make(options, cluster, device))
        return nullcontext(self._kept[device])


def input_reader(volume: Volume, plan: Plan, engine: Engine, tell: Callable[[Event], None]) -> ReadBox:
    """Return what reads a volume, with a cache where the plan has one; an event tells where the GPU should, and cannot.

    Parameters
    ----------
    volume, plan
        The input of a plan, and the plan.
    engine
        On whose device chunks are decoded.
    tell
        Told of events.
    """
    if plan.device.decoding and volume.by_gpu is not None:
        try:
            decoder = engine.decoder(plan, volume.by_gpu.coding)
        except (ImportError, MemoryError, GpuCodecError) as error:
            tell(DecodedByProcessor(str(error)))
        else:
            if decoder is not None:
                return volume.by_gpu.reader(decoder, lambda reason: tell(DecodedByProcessor(reason)))
    return volume.cached(plan.cache) if volume.cached and plan.cache else volume.read
