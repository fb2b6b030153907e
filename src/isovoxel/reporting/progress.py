"""Progress of jobs, and of reading volumes that are drawn: bars on a terminal, and notes on what else happens.

Where nobody watches (a log file, a pipe) it writes whole lines instead: one at the start, then one each 30
seconds at most, one at the end. Speed and time left count output voxels, since blocks at the rim are smaller, and
those that this run has made. What a user should know besides is said above the bar, or between the lines.

A terminal that is closed, or a pipe that nobody reads any more, ends what is said and not the job.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

from isovoxel.engines.opencl import prepare_caches
from isovoxel.execution.events import (
    BlockDone,
    Connected,
    DecodedByProcessor,
    EncodedByProcessor,
    Event,
    Filled,
    ImageBegun,
    ImageFailed,
    ImagesFinished,
    ImagesStarted,
    JobFinished,
    JobStarted,
    JobStopped,
    LevelBegun,
    Listener,
    Replacing,
    Restarted,
    Retried,
    Slowed,
    Waiting,
    WorkerJoined,
    WorkerLeft,
)
from isovoxel.execution.result import count_files
from isovoxel.planning.plan import Plan
from isovoxel.reporting.text import count, duration, shortened
from isovoxel.terminal import plain, put, say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


LOG_SECONDS = 30.0
"""Least time between two lines where there is no terminal."""
MOST_LINES = 16
"""Most workers that get a line of their own below the bar."""


LONGEST = 60
"""Most characters of what stands before a bar, so that 80 columns have room for the share that is done."""
MOMENT = 1.0
"""Seconds after which a bar appears."""


class _Worker:
    """What a worker's line says."""

    def __init__(self, device: str, clock: Callable[[], float]) -> None:
        self._device, self._clock, self._began = device, clock, clock()
        self.blocks = self.voxels = 0
        self.left = False

    def __str__(self) -> str:
        took = self._clock() - self._began
        speed = f"{self.voxels / took / 1e6:,.1f} Mvoxel/s" if took > 0 else ""
        parts = [self._device, count(self.blocks, "block"), "does no more" if self.left else speed]
        return plain(", ".join(part for part in parts if part))


class ProgressView:
    """A listener for the events of one job, and a context manager that leaves the terminal as it was.

    Parameters
    ----------
    console
        Where to draw; by default standard error, drawn on if it is a terminal and else written to.
    bar
        Whether to show how far the job is.
    notes
        Whether to say what else happens.
    cell
        Whether to draw in the output of a notebook's cell in place of standard error.
    clock
        Returns seconds.

    Examples
    --------
    >>> with ProgressView(bar=False) as view:
    ...     listeners = [view]
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        bar: bool = True,
        notes: bool = True,
        cell: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console if console is not None or cell or not (bar or notes) else terminal()
        self._cell = cell
        self._quiet = not bar
        self._notes = Notes() if notes else None
        self._clock = clock
        self._bar: Progress | None = None
        self._workers: dict[str, tuple[_Worker, TaskID]] = {}
        self._running = self._several = False
        self._doing = "scaling"
        self._blocks = self._blocks_done = 0
        self._voxels = self._voxels_done = self._voxels_before = 0
        self._started = self._last_block = self._last_line = self._took = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._end("stopped")

    def __call__(self, event: Event) -> None:
        """Take note of an event, and show it."""
        try:
            for note in self._notes.of(event) if self._notes else ():
                self._write(note)
            if isinstance(event, ImagesStarted | ImageBegun | ImagesFinished) or self._several:
                self._follow_images(event)
            else:
                self._follow(event)
        except OSError:  # nobody reads it any more
            self._quiet, self._notes, self._bar = True, None, None

    def _follow(self, event: Event) -> None:
        match event:
            case JobStarted(plan=plan, done=done, voxels_done=voxels_done):
                self._blocks, self._voxels = plan.all_blocks, plan.all_voxels
                self._blocks_done, self._voxels_done = done, voxels_done
                self._voxels_before = voxels_done
                self._begin()
            case WorkerJoined() | WorkerLeft():
                self._follow_worker(event)
            case BlockDone(voxels=voxels, worker=worker):
                if worker in self._workers:
                    self._count_for(worker, voxels)
                self._blocks_done += 1
                self._voxels_done += voxels
                self._last_block = self._clock()
                self._show()
            case LevelBegun(level=level, levels=levels):
                self._say_doing(f"level {level} of {levels}")
            case JobFinished(seconds=seconds):
                self._end("done", seconds)
            case JobStopped(done=done, voxels_done=voxels_done):
                self._blocks_done, self._voxels_done = done, voxels_done
                self._end("stopped")

    def _say_doing(self, doing: str) -> None:
        self._doing = doing
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=doing)

    def _count_for(self, worker: str, voxels: int) -> None:
        """Count a block for the worker that made it."""
        line, task = self._workers[worker]
        line.blocks += 1
        line.voxels += voxels
        if self._bar is not None:
            self._bar.update(task, completed=line.voxels)

    def _follow_images(self, event: Event) -> None:
        """Count all blocks of several images together."""
        match event:
            case ImagesStarted():
                self._several = True
                self._blocks, self._voxels = event.blocks, event.voxels
                self._blocks_done, self._voxels_done = event.blocks_done, event.voxels_done
                self._voxels_before = event.voxels_done
                self._begin()
            case ImageBegun(number=number, images=images):
                self._say_doing(f"image {number} of {images}")
            case ImagesFinished(seconds=seconds):
                self._end("done", seconds)
            case JobStarted(done=done, voxels_done=voxels_done):
                self._blocks_done += done
                self._voxels_done += voxels_done
                self._voxels_before += voxels_done
            case BlockDone() | WorkerJoined() | WorkerLeft():
                self._follow(event)

    def _follow_worker(self, event: WorkerJoined | WorkerLeft) -> None:
        """Give a worker a line, on a terminal, or say on it that it is gone."""
        if isinstance(event, WorkerLeft):
            if event.name in self._workers:
                self._workers[event.name][0].left = True
        elif event.name in self._workers:
            self._workers[event.name][0].left = False
        elif self._bar is not None and len(self._workers) < MOST_LINES:
            line = _Worker(event.device, self._clock)
            task = self._bar.add_task(f"  {plain(event.name)}", total=self._voxels, view=line)
            self._workers[event.name] = line, task

    def __str__(self) -> str:
        """Return blocks, speed, and time left or taken, as of now."""
        parts = [f"{self._blocks_done:,}/{count(self._blocks, 'block')}"]
        took = self._last_block - self._started
        # One block that came with no time passed says nothing about speed.
        speed = (self._voxels_done - self._voxels_before) / took if took > 0 else 0.0
        if speed:
            parts.append(f"{speed / 1e6:,.1f} Mvoxel/s")
        if not self._running:
            parts.append(f"in {duration(self._took)}")
        elif speed:
            left = (self._voxels - self._voxels_done) / speed - (self._clock() - self._last_block)
            parts.append(f"{duration(max(0.0, left))} left")
        return ", ".join(parts)

    def _begin(self) -> None:
        self._running = True
        self._doing = "scaling"
        self._started = self._last_block = self._last_line = self._clock()
        if self._quiet:
            return
        if not self._cell and (self._console is None or not self._console.is_interactive):
            self._write(f"scaling {count(self._blocks, 'block')}, {self._voxels / 1e6:,.1f} Mvoxel")
            return
        from isovoxel.reporting.bars import job_bars

        self._bar = job_bars(self._console, self._clock)
        self._bar.add_task("scaling", total=self._voxels, completed=self._voxels_done, view=self)
        self._bar.start()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._voxels_done)
        elif not self._quiet and self._clock() - self._last_line >= LOG_SECONDS:
            self._last_line = self._clock()
            self._write(f"{self._doing}: {self}")

    def _end(self, word: str, seconds: float | None = None) -> None:
        """Close the bar, whose last state stays on the screen, or write the last line; once."""
        if not self._running:
            return
        self._running = False
        self._took = self._clock() - self._started if seconds is None else seconds
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=word, completed=self._voxels_done)
            self._bar.stop()
        elif not self._quiet:
            self._write(f"{word}: {self}")

    def _write(self, line: str) -> None:
        if self._cell:
            put([line])  # notebooks show standard error as if something had failed
        elif self._console is None:
            say(line)
        else:
            self._console.print(plain(line), markup=False, highlight=False, soft_wrap=True)


class ReadingView:
    """Told how much is read, it shows that, and leaves the terminal as it was.

    Parameters
    ----------
    console
        Where to draw; by default standard error, drawn on if it is a terminal and else written to.
    quiet
        Whether nothing is shown.
    cell
        Whether to draw in the output of a notebook's cell in place of standard error.
    clock
        Returns seconds.

    Examples
    --------
    >>> with ReadingView(quiet=True) as view:
    ...     view("reading stack.tif", 1, 2)
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        quiet: bool = False,
        cell: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console if console is not None or cell or quiet else terminal()
        self._quiet, self._cell, self._clock = quiet, cell, clock
        self._began = self._last_line = clock()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            if self._bar is not None:
                self._bar.stop()

    def __call__(self, doing: str, done: int, total: int) -> None:
        """Show how much is done.

        Parameters
        ----------
        doing
            What is read, in a clause.
        done, total
            How much of it is, and of how much: voxels, boxes or chunks.
        """
        try:
            self._show(doing, done, total)
        except OSError:  # nobody reads it any more
            self._quiet, self._bar = True, None

    def _show(self, doing: str, done: int, total: int) -> None:
        now = self._clock()
        if self._quiet or now - self._began < MOMENT:
            return
        if not self._cell and (self._console is None or not self._console.is_interactive):
            if now - self._last_line >= LOG_SECONDS:
                self._last_line = now
                say(f"{doing}: {100 * done // total} %")
            return
        if self._bar is None:
            from isovoxel.reporting.bars import reading_bars

            self._bar = reading_bars(self._console, self._clock)
            self._bar.start()
        (task,) = self._bar.task_ids or [self._bar.add_task("")]
        self._bar.update(task, description=shortened(plain(doing), LONGEST), total=total, completed=done)


def terminal() -> Console | None:
    """Return standard error as something to draw on, or None where it is a log file or a pipe."""
    # Asked here, for rich takes FORCE_COLOR, which many log files set, for a terminal.
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(stderr=True, force_terminal=True)


def in_cell() -> bool:
    """Return whether this process is a notebook's kernel, whose cells display more than text."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None


@contextlib.contextmanager
def job_progress() -> Iterator[Sequence[Listener]]:
    """Lend what shows a job to a caller of a public function: a view on a terminal or in a notebook.

    A log file gets nothing, because the program that writes it has not asked for lines in it.
    """
    cell, shown = _seen(progress=True)
    if not shown:
        yield ()
        return
    with ProgressView(cell=cell) as view:
        yield (view,)


def reading_progress(progress: bool) -> ReadingView:
    """Return a view of reading for a caller of a public function, which shows nothing where none is asked for."""
    cell, shown = _seen(progress=progress)
    return ReadingView(quiet=not shown, cell=cell)


def _seen(*, progress: bool) -> tuple[bool, bool]:
    """Return whether progress is shown in a notebook's cell, and whether it is shown at all."""
    cell = progress and in_cell()
    return cell, cell or (progress and sys.stderr is not None and sys.stderr.isatty())


# ---- what is said of events --------------------------------------------------------------------------------------

# Notes: the lines that a job's events make for people, beside its progress.


class Notes:
    """Makes lines of events; what happens to many blocks is said once."""

    def __init__(self) -> None:
        self._blocks = 0
        self._pieces = 1
        self._said: set[str] = set()
        self._gone: set[str] = set()
        self._several = False

    def of(self, event: Event) -> Iterator[str]:
        """Yield what there is to say of an event; of several images what is the same for them is said once."""
        for line in self._of(event):
            if not (self._several and isinstance(event, JobStarted) and line in self._said):
                yield line
            if self._several:
                self._said.add(line)

    def _of(self, event: Event) -> Iterator[str]:
        match event:
            case ImagesStarted() | ImageFailed():
                yield from self._of_images(event)
            case JobStarted():
                yield from self._of_start(event)
            case BlockDone(pieces=pieces) if pieces > self._pieces:
                self._pieces = pieces
                yield f"note: the device has too little memory for a block; {pieces} pieces of one fit"
            case Retried(level=level):
                block = "" if event.index is None else f" block {event.index}" + (f" of level {level}" if level else "")
                yield (f"note: {event.doing}{block} failed ({event.reason}); it is tried again in {event.pause:g} s")
            case Filled(part=part):
                yield f"note: filled with 0, because it is damaged: {part}"
            case Slowed() | EncodedByProcessor() | DecodedByProcessor() | Restarted() | Replacing():
                yield from self._of_hindrance(event)
            case Connected() | WorkerJoined() | WorkerLeft() | Waiting():
                yield from self._of_workers(event)

    def _of_start(self, event: JobStarted) -> Iterator[str]:
        plan, done = event.plan, event.done
        self._blocks = plan.all_blocks
        if plan.device.kind == "cpu":
            yield f"note: the CPU scales, not a GPU ({plan.device.name})"
        if done:
            of = f" of {plan.source.name}" if self._several else ""
            yield f"note: resuming: {done} of {plan.all_blocks} blocks{of} already done"
        yield from hints(plan)

    def _of_images(self, event: ImagesStarted | ImageFailed) -> Iterator[str]:
        if isinstance(event, ImageFailed):
            yield f"note: {event}"
            return
        self._several = True
        if event.complete:
            yield f"note: resuming: {event.complete} of {event.images} images already complete"

    def _of_hindrance(self, event: Event) -> Iterator[str]:
        """Yield what there is to say of an event that the user may not want, or did not foresee."""
        said, repeated = str(event), isinstance(event, EncodedByProcessor | DecodedByProcessor)
        if not repeated or said not in self._said:  # by another worker
            yield f"note: {said}"
        if repeated:
            self._said.add(said)

    def _of_workers(self, event: Event) -> Iterator[str]:
        """Yield what there is to say of workers; of those that are there from the beginning the summary tells."""
        match event:
            case Connected(dashboard=dashboard, notes=notes):
                if dashboard:
                    yield f"dashboard: {dashboard}"
                for note in notes:
                    yield f"note: {note}"
            case WorkerJoined(name=name, host=host, device=device) if name in self._gone:
                self._gone.remove(name)
                yield f"note: worker {name} on {host} is there again, with {device}"
            case WorkerLeft(name=name, log=log):
                self._gone.add(name)
                yield f"note: {event}"
                for line in log:
                    yield f"  {name}: {line}"
            case Waiting():
                yield f"note: {event}"


MANY_FILES, SMALL_FILE = 100_000, 2**18
"""From how many files on, of fewer bytes each, fewer and larger ones are suggested: copies and listings take long."""


def hints(plan: Plan) -> Iterator[str]:
    """Yield what a user may not know of a plan."""
    yield from (f"note: {note}" for note in (*plan.source.notes, prepare_caches().note) if note)
    if plan.coarse:
        yield (
            f"hint: between two voxels cle.scale takes 256 steps on a GPU, coarser than {plan.source.dtype}; "
            "--engine exact has no steps"
        )
    if plan.aliases:
        axes = " and ".join(plan.aliases)
        yield f"hint: shrinking along {axes} skips voxels, which aliases; --antialias averages them"
    if (files := count_files(plan)) > MANY_FILES and plan.disk_bytes < SMALL_FILE * files:
        option = "--shard" if plan.storage.sharded else "--chunk"
        yield f"hint: the output has {files:,} files, which take long to copy and list; a larger {option} makes fewer"
