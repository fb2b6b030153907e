"""Who makes the blocks of a level? The engine of this process, workers, or a process of its own, level after level.

Each level is a `Task`: the full one of the user's input, each further one of the level before, which is opened as any
zarr array is. So whatever holds for one level (what is tried again, who takes over, what is noted) holds for all.

A device that was lost stays lost for the levels to come.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from isovoxel.engines.base import Engine
from isovoxel.engines.open import open_engine
from isovoxel.errors import DeviceLostError, InterruptedJobError
from isovoxel.execution.events import Listener, Restarted
from isovoxel.execution.host import return_freed_memory
from isovoxel.execution.recipe import Recipe
from isovoxel.execution.subprocess import run_apart
from isovoxel.execution.task import Task
from isovoxel.object_store.place import Place, place_of
from isovoxel.output.shard import ShardReceipt
from isovoxel.output.shard_store import level_path
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume
from isovoxel.readers.open import open_volume

if TYPE_CHECKING:
    from isovoxel.execution.distributed.connect import Cluster
    from isovoxel.execution.distributed.job import Crew


def level_task(task: Task, plan: Plan) -> tuple[Task, Volume]:
    """Return the task of a further level, and its input: the level before, which is complete.

    Parameters
    ----------
    task
        That of the full level.
    plan
        The further level's.

    Raises
    ------
    InputError
        If the level before cannot be read.
    """
    source = task.output / level_path(plan.level - 1)
    # What is damaged in a file of our own is not filled: it can be made again.
    made = replace(task, plan=plan, source=source, voxel_size=None, unit=None, fill=False)
    return made, open_volume(source)


def open_levels(output: str | os.PathLike[str], recipe: Recipe) -> list[Volume]:
    """Open the further levels of an output.

    Raises
    ------
    InputError
        If one of them is not there, or cannot be read.
    """
    place = place_of(output)
    return [open_volume(place / level_path(level)) for level in range(1, len(recipe.further) + 1)]


@dataclass
class LevelMaker:
    """Makes levels, one after the other; a context manager.

    `prepare` is called for each, and then `make`.
    """

    folder: Place
    """The ledger's."""
    listener: Listener
    """Told what happens."""
    apart: bool
    """Whether blocks are done in a process of their own."""
    cluster: Cluster | None
    """The workers that do the blocks, where it is not this process."""
    lost: str = field(default="", init=False)
    """Why the device does not serve this process any more, until that is told."""

    def __post_init__(self) -> None:
        self._engine: Engine | None = None
        self._crew: Crew | None = None
        self._crews = ExitStack()
        self._in_flight = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._crews.__exit__(kind, error, trace)
        # A second interrupt waits for no device.
        if not isinstance(error, KeyboardInterrupt) or isinstance(error, InterruptedJobError):
            self.release()

    def prepare(self, task: Task, volume: Volume) -> None:
        """Open the engine, or tell the workers; nothing is written.

        Raises
        ------
        IsovoxelError
            If the device cannot serve, or the workers cannot take part.
        """
        self._task, self._volume = task, volume
        if self._engine is not None or self._crew is not None:
            return_freed_memory()  # of the level before
        if self.cluster is not None:
            # distributed is only loaded by jobs that need it.
            from isovoxel.execution.distributed.job import Crew

            self._crews.close()  # workers end what they do for one level before they are told of the next
            crew = Crew(self.cluster, task, volume.identity, self.folder, self.listener, self._crew)
            self._crew = self._crews.enter_context(crew.told())
        elif not self.apart:
            try:
                self._open(task)
            except DeviceLostError as error:  # by what this process did before
                self.apart, self.lost = True, str(error)

    def release(self) -> None:
        """Let go of what `prepare` has taken, where the level is not made, and of what was kept for another one."""
        if self._engine is not None:
            self._engine.release()

    def make(
        self, record: Callable[[int, Sequence[ShardReceipt]], None], done: bytearray, *, last: bool = True
    ) -> tuple[float, float]:
        """Do all blocks of the level that are not done.

        Parameters
        ----------
        record
            Called with each block that is done and the seals of its shards.
        done
            A 1 for each block that is done.
        last
            Whether no level comes after it, for which memory is kept.

        Returns
        -------
        seconds, idle
            How long it took, and for how long threads had no block.

        Raises
        ------
        JobError
            If it fails.
        """
        if self._crew is not None:
            from isovoxel.execution.distributed.job import ClusterJob

            return ClusterJob(self._crew, done, record, self.listener, self._volume.array).run()
        if not self.apart and self._engine is not None:
            try:
                return self._task.run(
                    self._volume,
                    self._engine,
                    done=done,
                    record=record,
                    listener=self.listener,
                    in_flight=self._in_flight,
                    keep_hosts=not last,
                )
            except DeviceLostError as error:
                self.apart, self.lost = True, str(error)
        if self.lost:
            self.listener(Restarted(self.lost))
            self.lost = ""
        return run_apart(self._task, done=done, record=record, listener=self.listener)

    def _open(self, task: Task) -> None:
        """Open the engine, and keep how many blocks in flight it has memory for."""
        if self._engine is None or self._engine.name != task.plan.engine:
            before, self._engine = self._engine, open_engine(task.plan.engine, task.device)
            if before is not None:
                self._engine.take_over(before)
        with ThreadPoolExecutor(1) as compiling:
            prepared = compiling.submit(self._engine.prepare, task.plan)
            import isovoxel.output.writer  # noqa: F401 - takes as long to load as kernels take to build

            self._in_flight = prepared.result()
