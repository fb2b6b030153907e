"""What happens during a job, as values, and the log of it. Executors emit them; progress bars and reports only listen.

As text, an event is what the log says of it.

A listener is called from the thread in which something happened, one call at a time, and must return quickly.

The log is that of Python's ``logging``, under the name "isovoxel". Nothing is printed unless the user configures it:
``logging.basicConfig(level="INFO")`` is enough. What a user should look at is a warning, how a job proceeds is info,
and every block is for debugging.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isovoxel.log import logger
from isovoxel.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class JobStarted:
    """The output is there and the first block is about to be read."""

    plan: Plan
    """The plan that is being carried out."""
    done: int = 0
    """Blocks that were done before, where the job goes on, of all levels."""
    voxels_done: int = 0
    """Output voxels of those."""

    def __str__(self) -> str:
        begun = f"{self.done} of {self.plan.all_blocks} blocks are done"
        return f"job begins: {begun}, output {self.plan.output.shape}"


@dataclass(frozen=True, slots=True)
class Replacing:
    """An old output is about to be replaced, and labels go with it."""

    labels: str
    """Their paths in it."""

    def __str__(self) -> str:
        return f"the old output is replaced, and with it {self.labels}, not made again by this job"


@dataclass(frozen=True, slots=True)
class BlockDone:
    """One block has been read, scaled and written."""

    index: int
    """Which block, counted from 0 in the plan's order."""
    voxels: int
    """Output voxels written."""
    read_seconds: float
    """Time spent reading and decoding its input."""
    wait_seconds: float
    """Time spent waiting for the device, which serves one block at a time."""
    scale_seconds: float
    """Time spent on the device, transfers included, and on converting to the output's dtype."""
    write_seconds: float
    """Time spent encoding its shards and giving them to the system, and waiting where it had too many of them."""
    flush_seconds: float
    """Time until they all were on the disk then; another block was in flight meanwhile."""
    pieces: int = 1
    """In how many pieces it was scaled; more than 1 where the device had too little memory for it."""
    read_bytes: int = 0
    """Bytes of the voxels that were read for it, as they are in memory."""
    stored_bytes: int = 0
    """Bytes of its shards on the disk."""
    worker: str = ""
    """Name of the worker that made it, where there are several."""
    level: int = 0
    """Which level of the output it belongs to."""
    along: tuple[tuple[int, int], ...] = ()
    """Level and index of each block of a further level that was made with it, while it was in memory."""

    def __str__(self) -> str:
        return f"{_block(self.index, self.level)} is done{f' by {self.worker}' if self.worker else ''}"


@dataclass(frozen=True, slots=True)
class LevelBegun:
    """All levels before are complete, and blocks of a further one are about to be made."""

    level: int
    """Which level, counted from 1."""
    levels: int
    """How many further levels there are."""

    def __str__(self) -> str:
        return f"level {self.level} of {self.levels} begins"


@dataclass(frozen=True, slots=True)
class Retried:
    """Something failed that may work the next time."""

    index: int | None
    """Which block it was for; None where it was for none."""
    doing: str
    """"reading", "scaling" or "writing"; or without a block what the job was at, such as "opening level 1"."""
    reason: str
    """What went wrong, in a clause."""
    pause: float
    """Seconds until it is tried again."""
    level: int = 0
    """Which level of the output the block belongs to."""

    def __str__(self) -> str:
        what = self.doing if self.index is None else f"{self.doing} {_block(self.index, self.level)}"
        return f"{what} failed ({self.reason}); tried again in {self.pause:g} s"


@dataclass(frozen=True, slots=True)
class Filled:
    """A part of the input is damaged, and was filled."""

    part: str
    """Which, and what is wrong with it."""

    def __str__(self) -> str:
        return f"filled, because it is damaged: {self.part}"


@dataclass(frozen=True, slots=True)
class Slowed:
    """The host has too little memory: the job goes on with less of it."""

    in_flight: int
    """How many blocks are in flight from now on."""

    def __str__(self) -> str:
        return f"the host has too little memory; from now on {self.in_flight} blocks are in flight"


@dataclass(frozen=True, slots=True)
class EncodedByProcessor:
    """The GPU does not encode chunks, although the plan says so: the processor does it."""

    reason: str
    """Why, in a clause."""

    def __str__(self) -> str:
        return f"the processor compresses in the GPU's place: {self.reason}"


@dataclass(frozen=True, slots=True)
class DecodedByProcessor:
    """The GPU does not decode chunks of the input, although the plan says so: the processor does it."""

    reason: str
    """Why, in a clause."""

    def __str__(self) -> str:
        return f"the processor decompresses in the GPU's place: {self.reason}"


@dataclass(frozen=True, slots=True)
class Restarted:
    """The job goes on in a fresh process."""

    reason: str
    """Why, in a clause."""

    def __str__(self) -> str:
        return f"{self.reason}; the job goes on in a fresh process"


@dataclass(frozen=True, slots=True)
class Connected:
    """The job will be done by workers."""

    dashboard: str
    """Address of the scheduler's dashboard, or nothing where it has none."""
    notes: tuple[str, ...]
    """What a user should know of the workers."""

    def __str__(self) -> str:
        return f"connected to workers{f', dashboard {self.dashboard}' if self.dashboard else ''}"


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker takes part in the job from now on."""

    name: str
    """What the scheduler calls it."""
    host: str
    """The machine that it runs on."""
    device: str
    """The name of its device."""
    pci: str
    """The device's PCI bus id, or nothing where it has none."""

    def __str__(self) -> str:
        return f"worker {self.name} on {self.host} takes part, with {self.device} {self.pci}"


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker takes no part in the job any more, or not for now."""

    name: str
    """What the scheduler calls it."""
    reason: str
    """Why, in a clause."""
    log: tuple[str, ...] = ()
    """The last lines that it logged, where they may tell more."""

    def __str__(self) -> str:
        return f"worker {self.name} does no more blocks: {self.reason}"


@dataclass(frozen=True, slots=True)
class Waiting:
    """The job waits for workers."""

    seconds: float
    """For how long at most, before it ends, or goes on without them."""
    what: str = ""
    """What it waits for; nothing where no worker is left, and it waits for one."""

    def __str__(self) -> str:
        if self.what:
            return f"the job waits for {self.what}, for up to {self.seconds:g} s"
        return f"no worker is there; the job waits for one, for up to {self.seconds:g} s"


@dataclass(frozen=True, slots=True)
class JobStopped:
    """The job has failed or was interrupted."""

    done: int
    """Blocks that are done and kept, of all levels."""
    voxels_done: int
    """Output voxels of those."""

    def __str__(self) -> str:
        return f"job ends before its time: {self.done} blocks are done"


@dataclass(frozen=True, slots=True)
class JobFinished:
    """All blocks are written and the output is marked complete."""

    seconds: float
    """Wall time from when the first block could be read until the output was marked complete."""

    def __str__(self) -> str:
        return f"job is done, in {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class ImagesStarted:
    """All images of a job of several are planned; what each image has to tell follows."""

    images: int
    """How many there are."""
    complete: int
    """How many of them are complete already."""
    blocks: int
    """Blocks of all of them."""
    voxels: int
    """Output voxels of all of them."""
    blocks_done: int = 0
    """Blocks of those that are complete."""
    voxels_done: int = 0
    """Output voxels of those."""

    def __str__(self) -> str:
        return f"{self.images} images, of which {self.complete} are complete, {self.blocks} blocks in all"


@dataclass(frozen=True, slots=True)
class ImageBegun:
    """An image of several is next."""

    path: str
    """Its path in the output."""
    number: int
    """Which, counted from 1."""
    images: int
    """How many there are."""

    def __str__(self) -> str:
        return f"image {self.number} of {self.images} begins: {self.path}"


@dataclass(frozen=True, slots=True)
class ImageFailed:
    """An image of several cannot be scaled; the job goes on with the others."""

    path: str
    """Its path in the output."""
    reason: str
    """Why, in a sentence."""

    def __str__(self) -> str:
        return f"image {self.path} is left out: {self.reason}"


@dataclass(frozen=True, slots=True)
class ImagesFinished:
    """All images are complete."""

    seconds: float
    """Wall time from when all were planned."""

    def __str__(self) -> str:
        return f"all images are done, in {self.seconds:.1f} s"


def started(plan: Plan, done: bytearray) -> JobStarted:
    """Return the start of a job of which some blocks are done: those with a 1, in the plan's order.

    Parameters
    ----------
    plan
        The plan that is being carried out.
    done
        One byte for each block of the full level, or of all levels.
    """
    voxels = (level.voxels_of(part) for level, part in zip(plan.levels, plan.split(done), strict=True) if part)
    return JobStarted(plan, sum(done), sum(voxels))


def stopped(plan: Plan, parts: Sequence[bytearray]) -> JobStopped:
    """Return the early end of a job of which some blocks are done: those with a 1, level by level."""
    start = started(plan, bytearray().join(parts))
    return JobStopped(start.done, start.voxels_done)


Event = (
    JobStarted
    | Replacing
    | BlockDone
    | LevelBegun
    | Retried
    | Filled
    | Slowed
    | EncodedByProcessor
    | DecodedByProcessor
    | Restarted
    | Connected
    | WorkerJoined
    | WorkerLeft
    | Waiting
    | JobFinished
    | JobStopped
    | ImagesStarted
    | ImageBegun
    | ImageFailed
    | ImagesFinished
)
Listener = Callable[[Event], None]

Reading = Callable[[str, int, int], None]
"""Told what is read, in a clause, how much of it is, and of how much: voxels, boxes or chunks."""


_LEVELS = {
    BlockDone: logging.DEBUG,
    **dict.fromkeys((Retried, Filled, Slowed, EncodedByProcessor, DecodedByProcessor, Restarted), logging.WARNING),
    **dict.fromkeys((WorkerLeft, Waiting, ImageFailed, Replacing), logging.WARNING),
}
"""How much what is logged matters, where it is more or less than information."""


def log_event(event: Event) -> None:
    """Log an event; a listener."""
    logger.log(_LEVELS.get(type(event), logging.INFO), "%s", event)
    if isinstance(event, Connected):
        for note in event.notes:
            logger.warning("%s", note)
    elif isinstance(event, WorkerLeft):
        for line in event.log:
            logger.warning("%s: %s", event.name, line)


def _block(index: int, level: int) -> str:
    return f"block {index}" + (f" of level {level}" if level else "")
