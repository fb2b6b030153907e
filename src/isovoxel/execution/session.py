"""How is an output made from beginning to end? It is held, begun or gone on with, filled with blocks, marked complete.

1. The engine is opened and prepared first: a device that cannot serve is found before anything is written.
2. The ledger is begun, an old output moved into its folder, the new one moved to its place.
3. Blocks are done in this process; where its device is lost, or the user wants it apart, in another; or by workers.
4. Further levels are made, each of the one before, in the same way.
5. The output is marked complete, and the ledger goes, with the old output.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from isovoxel.errors import (
    InputChangedError,
    InputError,
    InputUnavailableError,
    InterruptedJobError,
    IsovoxelError,
    JobError,
    OutputError,
)
from isovoxel.execution.contrast import display_windows
from isovoxel.execution.events import (
    BlockDone,
    Event,
    Filled,
    JobFinished,
    JobStarted,
    LevelBegun,
    Listener,
    Retried,
    started,
    stopped,
)
from isovoxel.execution.job import Impatient
from isovoxel.execution.levels import LevelMaker, level_task
from isovoxel.execution.output import Begun, Wanted, held
from isovoxel.execution.retry import changed, clause, kept
from isovoxel.execution.task import Task
from isovoxel.metadata.omero import omero_attribute
from isovoxel.object_store.files import refusal
from isovoxel.object_store.retries import patience, retry
from isovoxel.output.ledger import NEW, Ledger
from isovoxel.output.ledger_folder import NOW
from isovoxel.output.provenance import RECEIPTS, read_provenance
from isovoxel.output.replacing import save_ledger, set_aside
from isovoxel.output.shard import ShardReceipt
from isovoxel.planning.plan import Plan
from isovoxel.planning.pyramid import reading
from isovoxel.readers.base import Volume
from isovoxel.readers.input_state import InputWatch

if TYPE_CHECKING:
    from isovoxel.execution.distributed.connect import Cluster


@dataclass(frozen=True)
class Session:
    """One run of a job."""

    wanted: Wanted
    """The output."""
    task: Task
    """What to do, if it is begun now."""
    volume: Volume
    """The input."""
    watch: InputWatch
    """Tells whether the input is as it was."""
    labels: bool
    """Whether its voxels are labels."""
    listeners: Sequence[Listener]
    """Told what happens."""
    isolate: bool
    """Whether blocks are done in a process of their own."""
    cluster: Cluster | None = None
    """The workers that do the blocks, where it is not this process."""
    _along: set[int] = field(default_factory=set, init=False, repr=False, compare=False)
    """Blocks of the next level that were noted with those of the full one, and of which no event has told yet."""
    _telling: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

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
        ended = threading.Event()
        with (
            patience(ended=ended),
            self._patient("reading or writing the output"),
            held(self.wanted) as begun,
            LevelMaker(begun.folder, self._tell, self.isolate, self.cluster) as maker,
        ):
            task = replace(self.task, plan=begun.plan, attempt=begun.attempt)
            maker.prepare(task, self.volume)
            try:
                ledger, done = self._go_on(begun, task) if begun.ledger else (self._begin(begun), bytearray())
            except BaseException:
                maker.release()
                raise
            done = done or bytearray(task.plan.all_blocks)
            maker.listener = partial(self._listen, ledger)
            parts = task.plan.split(done)
            try:
                with self._counted(task.plan, parts):
                    self._tell(started(task.plan, done))
                    began = time.perf_counter()
                    made, idle = self._make(task, maker, ledger, parts)
                    self._finish(begun, ledger)
                    seconds = time.perf_counter() - began
            except KeyboardInterrupt:
                ended.set()  # what is still to be done is tried once
                raise
            finally:
                with contextlib.suppress(OSError):  # of a store: blocks of which it keeps no line are done again
                    ledger.close()
            self._tell(JobFinished(seconds))
            # Between levels, and while the output is marked complete, no thread has a block.
            threads = task.plan.in_flight * task.plan.host.workers
            return task, seconds, idle + max(0.0, seconds - made) * threads

    def _begin(self, begun: Begun) -> Ledger:
        """Make the output, with nothing in it yet."""
        from isovoxel.output.writer import OmeZarrWriter, begin_attempt

        wanted, plan = self.wanted, begun.plan
        check = begun.attempt.check
        try:
            if wanted.overwrite:
                check()
                save_ledger(wanted.path, begun.folder)
            ledger = Ledger.begin(begun.folder, plan, check)
            if wanted.overwrite:
                set_aside(wanted.path, begun.folder, now=wanted.overwrite == NOW, check=check)
            OmeZarrWriter.create(
                wanted.path,
                grid=plan.output,
                dtype=self.volume.dtype,
                storage=plan.storage,
                further=[(level.output, level.storage) for level in plan.further],
                method={"area": "mean"}.get(plan.further[0].interpolation, "mode") if plan.further else None,
                provenance=wanted.made,
                labels=self.labels,
                series=self.volume.series,
                by_way_of=begun.folder / NEW,
                attempt=begun.attempt,
            ).close()
            begin_attempt(wanted.path, begun.attempt)
        except IsovoxelError:
            raise
        except OSError as error:  # such as a disk that has just become full
            raise OutputError(refusal(error, wanted.path)) from error
        return ledger

    def _go_on(self, begun: Begun, task: Task) -> tuple[Ledger, bytearray]:
        """Return the ledger and what is done, once nothing is left of what was half written."""
        from isovoxel.output.writer import OmeZarrWriter, begin_attempt

        assert begun.ledger is not None  # noqa: S101 - for type checkers
        levels = task.plan.levels
        writers = [OmeZarrWriter.of_plan(task.output, plan) for plan in levels]
        try:
            begin_attempt(task.output, begun.attempt)
            begun.ledger.hold(begun.attempt.check)
            done = begun.ledger.done(
                lambda level, index, seals: writers[level].holds(levels[level].block(index).write_box, seals)
            )
            return begun.ledger, _without_lost(task.plan, begun.ledger.noted(), done)
        except OSError as error:
            raise OutputError(
                f"{task.output} cannot be gone on with: {refusal(error, task.output)}; what is done of it is kept"
            ) from error
        finally:
            for writer in writers:
                writer.close()

    def _make(self, task: Task, maker: LevelMaker, ledger: Ledger, done: list[bytearray]) -> tuple[float, float]:
        """Make all levels, one after the other; return the seconds it took, and those of threads without a block."""
        try:
            seconds, idle = maker.make(self._recorder(task.plan, ledger, done), done[0], last=not task.plan.further)
        except InterruptedJobError:
            raise
        except JobError:
            with contextlib.suppress(InputError):  # what has failed is told
                self._check_input(ledger, self.watch.is_changed())
            raise
        try:
            with self._patient("looking at the input"):
                self._check_input(ledger, retry(self.watch.is_changed))
        except InputError as error:
            raise JobError(str(error)) from error
        for plan, part in zip(task.plan.further, done[1:], strict=True):
            if all(part):
                continue
            self._check_shards(task.plan.levels[plan.level - 1])
            self._tell(LevelBegun(plan.level, len(task.plan.further)))
            try:
                with self._patient(f"opening level {plan.level}"):
                    maker.prepare(*retry(partial(level_task, task, plan)))
            except IsovoxelError as error:
                raise JobError(f"level {plan.level} cannot be begun: {error}") from error
            last = plan is task.plan.further[-1]
            took, waited = maker.make(partial(ledger.add, level=plan.level), part, last=last)
            seconds, idle = seconds + took, idle + waited
        return seconds, idle

    def _check_input(self, ledger: Ledger, is_changed: bool) -> None:
        """Check that all blocks were made of one input; else none of them is done.

        Raises
        ------
        InputChangedError
            If it has changed since it was opened.
        """
        if is_changed:
            ledger.forget()
            raise InputChangedError(changed(self.volume.name))

    def _recorder(
        self, plan: Plan, ledger: Ledger, done: list[bytearray]
    ) -> Callable[[int, Sequence[ShardReceipt]], None]:
        """Return what notes a block of the full level, and that of the next one, where it was made along with it."""

        def record(index: int, seals: Sequence[ShardReceipt]) -> None:
            own = plan.shards_of(index)
            ledger.add(index, seals[:own])
            if len(seals) > own:
                ledger.add(index, seals[own:], level=1)
                done[1][index] = 1
                self._along.add(index)

        return record

    def _finish(self, begun: Begun, ledger: Ledger) -> None:
        from isovoxel.output.writer import mark_complete

        plan = begun.plan
        try:
            self._check_shards(*plan.levels)
            with self._patient("marking the output complete"):
                omero = None if self.labels else self._shown(plan)
                receipts = RECEIPTS in self.wanted.made
                retry(partial(mark_complete, self.wanted.path, ledger.filled, omero, begun.attempt, receipts=receipts))
        except (OSError, InputError) as error:
            if isinstance(error, OSError) and isinstance(error.filename, str):
                raise JobError(f"marking the output complete failed: {refusal(error, self.wanted.path)}") from error
            reason = getattr(error, "strerror", None) or error
            raise JobError(f"marking the output complete failed: {reason}") from error

    def _check_shards(self, *levels: Plan) -> None:
        """Raise a `JobError` where shards are not there that were: readers would take them for zeros."""
        from isovoxel.output.writer import missing_of_plan

        missing, first = 0, ""
        for level in levels:
            try:
                with self._patient("counting shards"):
                    gone, key = retry(partial(missing_of_plan, self.wanted.path, level))
            except OSError as error:
                raise JobError(f"the shards cannot be counted: {error.strerror or error}") from error
            missing, first = missing + gone, first or key
        if missing:
            were = "shard that was written is" if missing == 1 else "shards that were written are"
            raise JobError(
                f"{missing} {were} not there any more, the first at {self.wanted.path / first}: something else has "
                "removed them, so some blocks that are done will be made again"
            )

    def _shown(self, plan: Plan) -> dict[str, Any]:
        """Return how viewers shall show the image."""
        windows = display_windows(self.wanted.path, plan, retry)
        return omero_attribute(self.volume.channels, windows, plan.output.shape[0])

    def _listen(self, ledger: Ledger, event: Event) -> None:
        """Note what the ledger keeps, and pass everything on but the start of a level: that of all was told."""
        if isinstance(event, Filled):
            ledger.add_filled(event.part)
        if isinstance(event, JobStarted):
            return
        self._tell(event)
        if isinstance(event, BlockDone) and event.level == 0 and event.index in self._along:
            self._along.discard(event.index)
            voxels = ledger.plan.further[0].block(event.index).write_box.size
            self._tell(BlockDone(event.index, voxels, 0, 0, 0, 0, 0, level=1, worker=event.worker))

    @contextlib.contextmanager
    def _counted(self, plan: Plan, parts: Sequence[bytearray]) -> Iterator[None]:
        """Say what is kept, of all levels, where a job ends before its time: who makes a level knows that one alone."""
        try:
            yield
        except Impatient:
            raise
        except KeyboardInterrupt as stop:
            self._tell(stopped(plan, parts))
            raise InterruptedJobError(f"interrupted; {kept(plan, parts)}", getattr(stop, "signal", None)) from None
        except InputChangedError:
            self._tell(stopped(plan, plan.split(bytearray(plan.all_blocks))))
            raise
        except JobError as error:
            if self._is_gone():
                self._tell(stopped(plan, plan.split(bytearray(plan.all_blocks))))
                raise JobError(
                    f"{error}; {self.wanted.path} was deleted while the job ran, so nothing is kept: remove what is "
                    "left of it, and run the same command again"
                ) from error
            self._tell(stopped(plan, parts))
            raise JobError(f"{error}; {kept(plan, parts)}") from error

    def _is_gone(self) -> bool:
        """Return whether the output is not there any more; not where a store does not say."""
        try:
            read_provenance(self.wanted.path)
        except InputError as error:
            return not isinstance(error, InputUnavailableError)
        return False

    def _patient(self, doing: str) -> AbstractContextManager[None]:
        """Notify of what is tried again while the job is at something."""
        return patience(lambda error, pause: self._tell(Retried(None, doing, clause(error), pause)))

    def _tell(self, event: Event) -> None:
        with self._telling:  # the ledger's thread has events too
            for listener in self.listeners:
                listener(event)


def _without_lost(plan: Plan, noted: bytearray, done: bytearray) -> bytearray:
    """Return what is done without the blocks of further levels that were made of blocks which are lost since.

    When these were lost is not known: they may have been read as zeros.
    """
    parts = plan.split(done)
    lost = bytearray(plan.n_blocks)
    for before, after, was_noted, is_done in zip(
        (plan, *plan.levels), plan.levels, plan.split(noted), parts, strict=False
    ):
        if after.level:
            doubtful = reading(before, after, lost)
            is_done[:] = bytes(a and not b for a, b in zip(is_done, doubtful, strict=True))
        lost = bytearray(a and not b for a, b in zip(was_noted, is_done, strict=True))
    return bytearray().join(parts)
