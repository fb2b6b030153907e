"""How is an output made from beginning to end? It is held, begun or gone on with, filled with blocks, marked complete.

1. The engine is opened and prepared first: a device that cannot serve is found before anything is written.
2. The ledger is begun, an old output moved away, the new one moved to its place.
3. Blocks are done in this process; where its device is lost, or the user wants it apart, in another; or by workers.
4. The output is marked complete, and the ledger goes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from isovoxel.engines.base import Engine
from isovoxel.engines.open import open_engine
from isovoxel.errors import DeviceLostError, IsovoxelError, JobError, OutputError
from isovoxel.run.events import Event, Filled, JobFinished, Listener, Restarted, started
from isovoxel.run.output import Begun, Wanted, held
from isovoxel.run.recovery import kept
from isovoxel.run.task import Task
from isovoxel.run.worker import run_apart
from isovoxel.store.destination import remove
from isovoxel.store.ledger import NEW, REPLACED, Ledger
from isovoxel.volumes.base import Volume

if TYPE_CHECKING:
    from isovoxel.run.cluster.connect import Cluster
    from isovoxel.run.cluster.job import Crew


@dataclass(frozen=True)
class Session:
    """One run of a job."""

    wanted: Wanted
    """The output."""
    task: Task
    """What to do, if it is begun now."""
    volume: Volume
    """The input."""
    labels: bool
    """Whether its voxels are labels."""
    listeners: Sequence[Listener]
    """Told what happens."""
    isolate: bool
    """Whether blocks are done in a process of their own."""
    cluster: Cluster | None = None
    """The workers that do the blocks, where it is not this process."""

    def run(self) -> tuple[Task, float, float]:
        """Make the output, or what is left of it.

        Returns
        -------
        task, seconds, idle
            What was done, how long it took, and for how long its threads were idle.

        Raises
        ------
        IsovoxelError
            If the output must not or cannot be written, or the device cannot serve; then nothing is written.
        JobError
            If the job fails half-way.
        """
        with held(self.wanted) as begun, ExitStack() as ending:
            task = replace(self.task, plan=begun.plan)
            crew = ending.enter_context(self._told(self.cluster, task, begun)) if self.cluster else None
            engine, in_flight, lost = None, 0, ""
            if not (self.isolate or crew):
                try:
                    engine, in_flight = self._prepared(task)
                except DeviceLostError as error:  # by what this process did before
                    lost = str(error)
            try:
                ledger, done = self._go_on(begun, task) if begun.ledger else (self._begin(begun), bytearray())
            except BaseException:
                if engine:
                    engine.release()
                raise
            done = done or bytearray(task.plan.n_blocks)
            ledger.check = begun.check
            try:
                if engine is None:
                    self._tell(started(task.plan, done))
                if lost:
                    self._tell(Restarted(lost))
                seconds, idle = self._do(task, engine, crew, in_flight, ledger, done)
                self._finish(ledger, done)
            finally:
                with contextlib.suppress(OSError):  # of a store: blocks of which it keeps no line are done again
                    ledger.close()
            self._tell(JobFinished(seconds))
            return task, seconds, idle

    def _prepared(self, task: Task) -> tuple[Engine, int]:
        """Return the engine, and how many blocks in flight it has memory for."""
        engine = open_engine(task.plan.engine, task.device)
        with ThreadPoolExecutor(1) as compiling:
            prepared = compiling.submit(engine.prepare, task.plan)
            import isovoxel.store.writer  # noqa: F401 - takes as long to load as kernels take to build

            return engine, prepared.result()

    def _told(self, cluster: Cluster, task: Task, begun: Begun) -> AbstractContextManager[Crew]:
        """Tell the workers of the job; what they still do for one of before ends first."""
        # distributed is only loaded by jobs that need it.
        from isovoxel.run.cluster.job import Crew

        return Crew(cluster, task, self.volume.identity, begun.folder, self._tell).told()

    def _begin(self, begun: Begun) -> Ledger:
        """Make the output, with nothing in it yet."""
        from isovoxel.store.writer import OmeZarrWriter

        wanted, plan = self.wanted, begun.plan
        try:
            ledger = Ledger.begin(begun.folder, plan)
            if wanted.overwrite:
                remove(wanted.path, begun.folder / REPLACED)
            OmeZarrWriter.create(
                wanted.path,
                grid=plan.output,
                dtype=self.volume.dtype,
                storage=plan.storage,
                provenance=wanted.made,
                labels=self.labels,
                by_way_of=begun.folder / NEW,
            ).close()
        except IsovoxelError:
            raise
        except OSError as error:  # such as a disk that has just become full
            raise OutputError(f"{wanted.path} cannot be written: {error.strerror or error}") from error
        return ledger

    def _go_on(self, begun: Begun, task: Task) -> tuple[Ledger, bytearray]:
        """Return the ledger and what is done, once nothing is left of what was half written."""
        from isovoxel.store.writer import OmeZarrWriter

        assert begun.ledger is not None  # noqa: S101 - for type checkers
        plan = task.plan
        writer = OmeZarrWriter.open(
            task.output, grid=plan.output, dtype=np.dtype(plan.source.dtype), storage=plan.storage
        )
        try:
            writer.sweep()
            return begun.ledger, begun.ledger.done(
                lambda index, seals: writer.holds(plan.block(index).write_box, seals)
            )
        except OSError as error:
            raise OutputError(f"{task.output} cannot be gone on with: {error.strerror or error}") from error
        finally:
            writer.close()

    def _do(
        self, task: Task, engine: Engine | None, crew: Crew | None, in_flight: int, ledger: Ledger, done: bytearray
    ) -> tuple[float, float]:
        """Do all blocks that are not done, by this process' engine, by a crew of workers, or in another process."""

        def listen(event: Event) -> None:
            if isinstance(event, Filled):
                ledger.add_filled(event.part)
            self._tell(event)

        if crew is not None:
            from isovoxel.run.cluster.job import ClusterJob

            return ClusterJob(crew, done, ledger.add, listen, self.volume.array).run()
        if engine is not None:
            try:
                return task.run(self.volume, engine, done=done, record=ledger.add, listener=listen, in_flight=in_flight)
            except DeviceLostError as lost:
                self._tell(Restarted(str(lost)))
        return run_apart(task, done=done, record=ledger.add, listener=listen)

    def _finish(self, ledger: Ledger, done: bytearray) -> None:
        from isovoxel.store.writer import mark_complete

        try:
            ledger.check()
            mark_complete(self.wanted.path, ledger.filled)
        except OSError as error:
            raise JobError(f"marking the output complete failed: {error.strerror or error}; {kept(done)}") from error

    def _tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)
