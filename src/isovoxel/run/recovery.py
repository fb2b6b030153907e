"""What can be tried again, and what is said of what cannot?

Reads and writes over a network, and of disks that others share, fail for a moment and work the next; so does a device
whose memory others hold to the last page. They are tried again after pauses that grow: short ones for hiccups, then for
a server that is being restarted. Together they last about a minute and a half; then it is time that somebody looks.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TypeVar

from isovoxel.engines.base import Cancelled
from isovoxel.errors import CorruptInputError, DeviceFullError
from isovoxel.planning.cost import human_bytes
from isovoxel.planning.parts import Block
from isovoxel.planning.plan import Plan
from isovoxel.run.events import started
from isovoxel.volumes.files import is_transient

T = TypeVar("T")

GO_ON = "run the same command again, without --overwrite, to go on"

PAUSES = (0.2, 1.0, 3.0, 10.0, 25.0, 50.0)
"""Seconds before each new attempt."""


def patiently(do: Callable[[], T], told: Callable[[Exception, float], None], cancelled: threading.Event) -> T:
    """Do something, and again where it fails with what may work the next time.

    Parameters
    ----------
    do
        What to do; doing it twice does no harm.
    told
        Called with the error and the seconds until the next attempt.
    cancelled
        Ends the pauses.

    Raises
    ------
    Cancelled
        If the job was cancelled in a pause.
    Exception
        The last attempt's.
    """
    for pause in PAUSES:
        try:
            return do()
        except Exception as error:
            if isinstance(error, BlockFailed) or not (is_transient(error) or isinstance(error, DeviceFullError)):
                raise
            told(error, pause)
        if cancelled.wait(pause):
            raise Cancelled
    return do()


def clause(error: BaseException) -> str:
    """Return what went wrong as a clause: the first line of what it says."""
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0]}" if said else type(error).__name__


def kept(plan: Plan, done: bytearray) -> str:
    """Say what of a job is done, of which a level is being made and all before are complete, and how to go on."""
    where = f" of level {plan.level}, and all of those before," if plan.level else ""
    return f"{sum(done)} of {plan.all_blocks} blocks{where} are done and kept; {GO_ON}"


def is_full(error: Exception) -> bool:
    """Tell whether an error means that a disk is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def missing(plan: Plan, done: bytearray, written: int, stored: int, free: int) -> str:
    """Say how much room the rest of an output needs: as much per voxel as what is written, or as a voxel has.

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
    each = stored / written if written else plan.source.itemsize
    return f"about {human_bytes(voxels * each)} are still to be written, {human_bytes(free)} are free"


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

    def reason(self, missing: Callable[[], str]) -> str:
        """Say in a clause what failed, where, and why; `missing` says how much room the disk lacks."""
        error = self.error
        if is_full(error):
            return f"{self} because the disk is full: {missing()}; make room"
        if isinstance(error, CorruptInputError):
            return f"{self}: {error}, or have it filled with --on-corrupt fill"
        return f"{self} with {clause(error)}"
