"""What does a process need to carry out a job, or the rest of one?

A `Task` can be sent to another process: it opens the volume, the engine and the output there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from isovoxel.engines.base import Engine
from isovoxel.errors import InputChangedError
from isovoxel.execution.events import Listener
from isovoxel.execution.job import Job
from isovoxel.execution.retry import changed
from isovoxel.geometry.grid import Float3
from isovoxel.object_store.place import Place
from isovoxel.output.lock import Attempt
from isovoxel.output.shard import ShardReceipt
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import EVERYTHING, Selection

FILL = 0
"""What damaged voxels become."""


@dataclass(frozen=True)
class Task:
    """A plan, and where its input, device and output are."""

    plan: Plan
    """What to do."""
    source: Any
    """The input as the user gave it."""
    voxel_size: Float3 | None
    """Its voxel size in place of what its metadata say."""
    unit: str | None
    """Its unit in place of what its metadata say."""
    device: str
    """Where to compute, as ``--device`` takes it."""
    output: Place
    """The OME-Zarr, which is there."""
    fill: bool
    """Whether damaged parts of the input are filled."""
    selection: Selection = EVERYTHING
    """Which part of the input is meant."""
    attempt: Attempt | None = None
    """The hold of the output's lock that this is done for, once it is held."""

    def open(self) -> Volume:
        """Open the input, in whichever process this is.

        Raises
        ------
        JobError
            If it is not the one that was planned.
        """
        volume = open_volume(self.source, voxel_size=self.voxel_size, unit=self.unit, selection=self.selection)
        planned = self.plan.source.identity
        if any(planned[key] != volume.identity[key] for key in volume.identity if key in planned and key != "tag"):
            raise InputChangedError(changed(volume.name))
        return volume

    def run(
        self,
        volume: Volume,
        engine: Engine,
        *,
        done: bytearray,
        record: Callable[[int, Sequence[ShardReceipt]], None],
        listener: Listener,
        in_flight: int,
        keep_hosts: bool = False,
    ) -> tuple[float, float]:
        """Do what is left of the job in this process.

        Parameters
        ----------
        volume
            The input, opened.
        engine
            The engine, which has prepared the plan.
        done, record, in_flight, keep_hosts
            As `isovoxel.execution.job.Job` has them.
        listener
            Told what happens.

        Returns
        -------
        seconds, idle
            How long it took, and for how long its threads were idle.

        Raises
        ------
        JobError, DeviceLostError
            As `Job.run` does.
        """
        from isovoxel.output.writer import OmeZarrWriter, next_writer

        read = volume.cached(self.plan.cache) if volume.cached and self.plan.cache else volume.read
        writer = OmeZarrWriter.of_plan(self.output, self.plan, self.plan.helpers, self.attempt)
        job = Job(
            self.plan,
            read,
            engine,
            writer,
            listeners=(listener,),
            array=volume.array,
            done=done,
            record=record,
            in_flight=in_flight,
            next_writer=next_writer(self.output, self.plan, self.attempt),
            fill=FILL if self.fill else None,
            keep_hosts=keep_hosts,
        )
        return job.run(), job.idle
