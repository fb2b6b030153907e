"""Retry transient failures of a block; describe permanent ones.

The policy is that of `isovoxel.object_store.retries`. A device whose memory other programs hold is retried after the
same pauses as a store; after the last one the job ends.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeGuard

from isovoxel.errors import CorruptInputError, DeviceFullError, InputChangedError, InputError, clause
from isovoxel.execution.events import started
from isovoxel.object_store.files import has_no_inodes, refusal
from isovoxel.object_store.retries import is_transient
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan

GO_ON = "to resume, run the same command without --overwrite"


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
