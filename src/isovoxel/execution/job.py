"""Make an output from beginning to end: begin or resume it, fill it with blocks, and mark it complete.

1. The executor is prepared first: a device or workers that cannot serve are found before anything is written.
2. The ledger is begun, an old output moved into its folder, the new one moved to its place; or a half-done job resumes.
3. The executor makes the blocks, of the full level and then of each further one.
4. The output is marked complete, and the ledger goes, with the old output.

The display window of a channel goes from its darkest to its brightest voxels, except for a few of either. Some chunks
of the full level are read back when it is complete, all where there are few, else at random, always the same ones, on
as many threads as have made blocks. So this takes a moment, however large the volume, and a job that is interrupted
meanwhile does it again when it goes on. Looking at every block while it is in memory would take every thread more time,
and the ledger more room, for what few chunks tell as well; the coarsest level is at hand, but its means hide what is
small and bright.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import (
    InputChangedError,
    InputError,
    InputUnavailableError,
    InterruptedJobError,
    IsovoxelError,
    JobError,
    OutputError,
    clause,
)
from isovoxel.execution.events import (
    BlockDone,
    Event,
    Filled,
    JobFinished,
    LevelBegun,
    Listener,
    Replacing,
    Retried,
    started,
    stopped,
)
from isovoxel.execution.executor import (
    ANEW,
    GO_ON,
    Elapsed,
    Executor,
    InterruptedAgain,
    LevelProgress,
    Task,
    VolumeSource,
    changed,
    kept,
)
from isovoxel.execution.output import OutputClaim, OutputRequest, claim_output, has_ledger
from isovoxel.geometry.grid import Box, ceil_div
from isovoxel.metadata.series import DisplayWindow, omero_attribute
from isovoxel.object_store.files import refusal
from isovoxel.object_store.objects import Place
from isovoxel.object_store.retries import map_in_order, patience, retry
from isovoxel.output.files import NEW, NOW
from isovoxel.output.ledger import Ledger, shard_counts
from isovoxel.output.provenance import RECEIPTS, read_provenance
from isovoxel.output.replacing import save_ledger, set_aside
from isovoxel.output.shard import ShardReceipt
from isovoxel.output.shard_store import store_of
from isovoxel.planning.plan import Plan
from isovoxel.planning.pyramid import reading
from isovoxel.readers.base import Volume
from isovoxel.readers.files import InputWatch
from isovoxel.readers.zarr_array import open_written


@dataclass(frozen=True)
class Job:
    """One run of a job."""

    plan: Plan
    """What to do, if it is begun now."""
    source: VolumeSource
    """The input, as any process can open it."""
    output: OutputRequest
    """The output that the user asks for."""
    watch: InputWatch
    """The input, opened; notices when it changes."""
    listeners: Sequence[Listener] = ()
    """Told what happens."""
    _telling: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    def run(self, made_by: AbstractContextManager[Executor]) -> tuple[Plan, Elapsed]:
        """Make the output, or what is left of it.

        Parameters
        ----------
        made_by
            A context of what makes the blocks; for this job alone.

        Returns
        -------
        plan, elapsed
            By which plan it was made, and how long that took.

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
            claim_output(self.plan, self.output) as claim,
            made_by as executor,
        ):
            plan = claim.plan
            task = Task(plan, self.source, self.output.path, claim.attempt)
            executor.prepare(task, self.watch.volume, self._tell)
            from isovoxel.output.ome_zarr import mark_complete  # which executors load while kernels are built

            ledger, done = self._resume(claim) if claim.ledger else (self._begin(claim), bytearray(plan.all_blocks))
            parts = plan.split(done)
            try:
                with self._counted(plan, parts):
                    self._tell(started(plan, done))
                    began = time.perf_counter()
                    made = self._make_levels(task, executor, ledger, parts)
                    with self._marking():
                        self._check_shards(ledger, *plan.levels)
                        omero = None
                        if not self.output.labels:  # how viewers shall show the image
                            windows = display_windows(self.output.path, plan)
                            omero = omero_attribute(self.watch.volume.channels, windows, plan.output.shape[0])
                        receipts = {RECEIPTS: True} if RECEIPTS in self.output.made else {}
                        more = receipts | ledger.empty.to_json()
                        retry(partial(mark_complete, self.output.path, ledger.filled, omero, claim.attempt, more=more))
                    seconds = time.perf_counter() - began
            except KeyboardInterrupt:
                ended.set()  # what is still to be done is tried once
                raise
            finally:
                with contextlib.suppress(OSError):  # of a store: blocks of which it keeps no line are done again
                    ledger.close()
            self._tell(JobFinished(seconds))
            # Between levels, and while the output is marked complete, no thread has a block.
            threads = plan.in_flight * plan.host.workers
            return plan, Elapsed(seconds, made.idle + max(0.0, seconds - made.seconds) * threads)

    def _begin(self, claim: OutputClaim) -> Ledger:
        """Make the output, with nothing in it yet."""
        from isovoxel.output.ome_zarr import create_output

        request, plan = self.output, claim.plan
        check = claim.attempt.check
        try:
            if request.overwrite:
                check()
                save_ledger(request.path, request.folder)
            ledger = Ledger.begin(request.folder, plan, check)
            if request.overwrite:
                if lost := request.whole.lost:
                    self._tell(Replacing(lost))
                set_aside(request.path, request.folder, now=request.overwrite == NOW, check=check)
            create_output(
                request.path,
                levels=[(level.output, level.storage) for level in plan.levels],
                dtype=self.watch.volume.dtype,
                method={"area": "mean"}.get(plan.further[0].interpolation, "mode") if plan.further else None,
                provenance=request.made,
                labels=request.labels,
                series=self.watch.volume.series,
                by_way_of=request.folder / NEW,
                attempt=claim.attempt,
            )
        except IsovoxelError:
            raise
        except OSError as error:  # such as a disk that has just become full
            raise OutputError(refusal(error, request.path)) from error
        return ledger

    def _resume(self, claim: OutputClaim) -> tuple[Ledger, bytearray]:
        """Return the ledger and what is done, once nothing is left of what was half written."""
        from isovoxel.output.ome_zarr import begin_attempt
        from isovoxel.output.writer import OmeZarrWriter

        assert claim.ledger is not None  # noqa: S101 - for type checkers
        path, levels = self.output.path, claim.plan.levels
        writers = [OmeZarrWriter.of_plan(path, plan) for plan in levels]
        try:
            begin_attempt(path, claim.attempt)
            claim.ledger.hold(claim.attempt.check)
            done = claim.ledger.done(
                lambda level, index, receipts: writers[level].holds(levels[level].block(index).write_box, receipts)
            )
            return claim.ledger, _without_lost(claim.plan, claim.ledger.noted(), done)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be gone on with: {refusal(error, path)}; what is done of it is kept"
            ) from error
        finally:
            for writer in writers:
                writer.close()

    def _make_levels(self, task: Task, executor: Executor, ledger: Ledger, parts: list[bytearray]) -> Elapsed:
        """Make all levels, one after the other, of each the blocks that are not done."""
        plan, listen = task.plan, partial(self._listen, ledger)
        try:
            record = partial(self._record, ledger, parts, 0)
            progress = LevelProgress(plan, parts[0], record, listen, task.free_bytes)
            elapsed = executor.run(progress, last=not plan.further)
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
        for level, part in zip(plan.further, parts[1:], strict=True):
            if all(part):
                continue
            self._check_shards(ledger, plan.levels[level.level - 1])
            self._tell(LevelBegun(level.level, len(plan.further)))
            further = task.further(level, plan.levels[level.level - 1])
            try:
                with self._patient(f"opening level {level.level}"):
                    executor.prepare(further, retry(further.open), listen)
            except IsovoxelError as error:
                raise JobError(f"level {level.level} cannot be begun: {error}") from error
            record = partial(self._record, ledger, parts, level.level)
            progress = LevelProgress(level, part, record, listen, task.free_bytes)
            took = executor.run(progress, last=level is plan.further[-1])
            elapsed = Elapsed(elapsed.seconds + took.seconds, elapsed.idle + took.idle)
        return elapsed

    def _record(
        self,
        ledger: Ledger,
        parts: list[bytearray],
        level: int,
        index: int,
        receipts: Sequence[ShardReceipt],
        event: BlockDone,
    ) -> None:
        """Note a block of a level, and those of further levels that were made with it."""
        left = iter(receipts)
        for at, block in ((level, index), *event.along):
            ledger.add(block, list(islice(left, ledger.plan.levels[at].shards_of(block))), level=at)
            parts[at][block] = 1

    def _check_input(self, ledger: Ledger, is_changed: bool) -> None:
        """Check that all blocks were made of one input; else none of them is done.

        Raises
        ------
        InputChangedError
            If it has changed since it was opened.
        """
        if is_changed:
            ledger.forget()
            raise InputChangedError(changed(self.watch.volume.name))

    @contextlib.contextmanager
    def _marking(self) -> Iterator[None]:
        """Say, of what fails meanwhile, that the output could not be marked complete."""
        try:
            with self._patient("marking the output complete"):
                yield
        except (OSError, InputError) as error:
            if isinstance(error, OSError) and isinstance(error.filename, str):
                raise JobError(f"marking the output complete failed: {refusal(error, self.output.path)}") from error
            reason = getattr(error, "strerror", None) or error
            raise JobError(f"marking the output complete failed: {reason}") from error

    def _check_shards(self, ledger: Ledger, *levels: Plan) -> None:
        """Raise a `JobError` where shards are not there that were: readers would take them for zeros."""
        missing, first = 0, ""
        for level in levels:
            try:
                with self._patient("counting shards"):
                    store = store_of(self.output.path, level.level, level.storage.zarr_format)
                    gone, key = retry(partial(store.missing, shard_counts(level), ledger.empty.flags.get(level.level)))
            except OSError as error:
                raise JobError(f"the shards cannot be counted: {error.strerror or error}") from error
            missing, first = missing + gone, first or key
        if missing:
            were = "shard that was written is" if missing == 1 else "shards that were written are"
            raise JobError(
                f"{missing} {were} not there any more, the first at {self.output.path / first}: something else has "
                "removed them, so some blocks that are done will be made again"
            )

    def _listen(self, ledger: Ledger, event: Event) -> None:
        """Note what the ledger keeps, and pass everything on."""
        if isinstance(event, Filled):
            ledger.add_filled(event.part)
        self._tell(event)
        if isinstance(event, BlockDone):
            for level, index in event.along:
                voxels = ledger.plan.levels[level].block(index).write_box.size
                self._tell(BlockDone(index, voxels, 0, 0, 0, 0, 0, level=level, worker=event.worker))

    @contextlib.contextmanager
    def _counted(self, plan: Plan, parts: Sequence[bytearray]) -> Iterator[None]:
        """Say what is kept, of all levels, where a job ends before its time: who makes a level knows that one alone."""
        try:
            yield
        except InterruptedAgain:
            raise
        except KeyboardInterrupt as stop:
            said = self._kept(plan, parts)
            ended = InterruptedJobError(f"interrupted; {said}", getattr(stop, "signal", None))
            ended.goes_on = said.endswith(GO_ON)
            raise ended from None
        except InputChangedError:
            self._tell(stopped(plan, plan.split(bytearray(plan.all_blocks))))
            raise
        except JobError as error:
            raise JobError(f"{error}; {self._kept(plan, parts)}") from error

    def _kept(self, plan: Plan, parts: Sequence[bytearray]) -> str:
        """Report what is kept, and say it and how to go on: nothing where something has deleted output or ledger."""
        path, folder, gone = self.output.path, self.output.folder, ""
        with patience(tries=False), contextlib.suppress(OutputError):  # of a ledger that cannot be read
            if self._is_gone():
                gone = (
                    f"{path} was deleted while the job ran, so nothing is kept: remove what is left of it, and run the "
                    "same command again"
                )
            elif not has_ledger(folder):
                gone = f"{folder} was deleted while the job ran, so what is done is not known; {ANEW}"
        self._tell(stopped(plan, plan.split(bytearray(plan.all_blocks)) if gone else parts))
        return gone or kept(plan, parts)

    def _is_gone(self) -> bool:
        """Return whether the output is not there any more; not where a store does not say."""
        try:
            read_provenance(self.output.path)
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


MOST_CHUNKS = 16
"""How many chunks are read for a channel."""
MOST_VOXELS = 2**13
"""How many voxels of a chunk count for the percentiles."""
COPIES = 3
"""How often a chunk is held for each thread: what is read, which of it are numbers, and these."""
PERCENTILES = (0.1, 99.9)
"""How many of a hundred voxels may be shown as black, and from which one on they may be shown as the brightest."""


def display_windows(output: Place, plan: Plan) -> list[DisplayWindow]:
    """Return the window of each channel, or of the only one; from 0 to 1 where a channel holds no numbers.

    Parameters
    ----------
    output
        The OME-Zarr, all shards of which are written.
    plan
        That of its full level.

    Raises
    ------
    InputError
        If a chunk cannot be read back.
    """
    place, source = output / str(plan.level), plan.source
    volume = open_written(place, plan.output.shape, np.dtype(source.dtype), plan.storage, source.series)
    channels = dict(plan.source.series).get("c", 1)
    takes = volume.read_overhead + COPIES * math.prod(volume.chunks) * volume.dtype.itemsize
    threads = max(1, min(plan.in_flight, plan.in_flight * plan.cost.host // takes))
    windows = []
    for channel in range(channels):
        kept: list[NDArray[np.float64]] = []
        with map_in_order(partial(_some_voxels, volume), _some_chunks(plan, channel, channels), threads) as results:
            low, high = math.inf, -math.inf
            for voxels, least, most in results:
                kept.append(voxels)
                low, high = min(low, least), max(high, most)
        if low > high:  # no numbers at all
            windows.append(DisplayWindow(0.0, 0.0, 1.0, 1.0))
            continue
        start, end = (float(value) for value in np.percentile(np.concatenate(kept), PERCENTILES))
        if start == end:  # one value nearly everywhere: what is brighter must show
            end = high if high > start else start + 1.0
        windows.append(DisplayWindow(low, start, end, max(high, end)))
    return windows


def _some_voxels(volume: Volume, chunk: Box) -> tuple[NDArray[np.float64], float, float]:
    """Return some of the numbers in a chunk, and the least and the largest of all."""
    voxels = retry(partial(volume.read, chunk)).reshape(-1)
    if voxels.dtype.kind == "f":
        voxels = voxels[np.isfinite(voxels)]
    if not voxels.size:
        return np.empty(0), math.inf, -math.inf
    some = voxels[:: ceil_div(voxels.size, MOST_VOXELS)].astype(np.float64)
    return some, float(voxels.min()), float(voxels.max())


def _some_chunks(plan: Plan, channel: int, channels: int) -> Iterator[Box]:
    """Yield chunks of a channel, at random where there are many."""
    counts = [ceil_div(n, c) for n, c in zip(plan.output.shape, plan.storage.chunk, strict=True)]
    of_one = math.prod(counts)
    every = of_one * plan.source.n_volumes // channels
    chosen: Sequence[int] = range(every)
    if every > MOST_CHUNKS:
        chosen = sorted(set(np.random.default_rng(0).integers(0, every, MOST_CHUNKS).tolist()))
    for index in chosen:
        time, inside = divmod(index, of_one)
        places = np.unravel_index(inside, counts)
        z, y, x = (int(i) * c for i, c in zip(places, plan.storage.chunk, strict=True))
        dz, dy, dx = plan.storage.chunk
        # Channels are counted fastest.
        box = Box((z, y, x), (z + dz, y + dy, x + dx), time * channels + channel)
        yield box & Box.whole(plan.output.shape)
