"""What happened in a job, and when? A listener that keeps what a report tells of it, in bounded memory.

Beside it a thread looks now and then how much memory the process holds, and those that it has started.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import psutil

from isovoxel.execution.events import BlockDone, Event, JobFinished, JobStarted, JobStopped
from isovoxel.execution.tally import Tally
from isovoxel.planning.plan import Plan
from isovoxel.reporting.notes import Notes
from isovoxel.reporting.timeline import Timeline

MOST_NOTES = 60
"""How many lines of what happened are kept; of the others only their number is."""
LONGEST_PAUSE = 5.0
"""Most seconds between two looks at the memory."""


class Recorder:
    """A listener for the events of one job, and a context manager that ends its thread.

    Parameters
    ----------
    clock
        Returns seconds.
    held
        Returns the bytes that are held.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, held: Callable[[], int] | None = None) -> None:
        self._clock, self._held = clock, held or held_bytes
        self._notes = Notes()
        self._done = threading.Event()
        self._looking: threading.Thread | None = None
        self._began, self._blocks = 0.0, 0
        self.plan: Plan | None = None
        """The plan that is carried out; None until the job has started."""
        self.timeline = Timeline()
        """Voxels and memory over time."""
        self.tally = Tally()
        """What happened, all in all."""
        self.notes: list[tuple[float, str]] = []
        """What a user should know, each with its second."""
        self.more_notes = 0
        """How many more there were."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._looking is not None:
            self._looking.join()

    @property
    def blocks_done(self) -> int:
        """Blocks that are done, those from before included."""
        return self.tally.done_before + self._blocks

    def __call__(self, event: Event) -> None:
        """Take note of an event; of those of another job, such as that of the image's labels, no more."""
        if self._done.is_set():
            return
        if isinstance(event, JobStarted) and self.plan is None:
            self._begin(event)
        # What comes before the start, such as workers that connect, takes no time of the job's.
        now = self._clock() - self._began if self.plan is not None else 0.0
        self.tally(event)
        for note in self._notes.of(event):
            if len(self.notes) < MOST_NOTES:
                self.notes.append((now, note))
            else:
                self.more_notes += 1
        if isinstance(event, BlockDone):
            self._blocks += 1
            self.timeline.add_voxels(now - _seconds(event), now, event.voxels)
        elif isinstance(event, JobFinished):
            self._done.set()  # what is held from now on is not the job's
        elif isinstance(event, JobStopped):
            self._blocks = event.done - self.tally.done_before

    def _begin(self, event: JobStarted) -> None:
        self.plan, self._began = event.plan, self._clock()
        self._looking = threading.Thread(target=self._look, name="isovoxel report", daemon=True)
        self._looking.start()

    def _look(self) -> None:
        while True:
            with contextlib.suppress(psutil.Error):  # a process may end while it is looked at
                self.timeline.add_memory(self._clock() - self._began, self._held())
            if self._done.wait(min(LONGEST_PAUSE, self.timeline.slot)):
                return


def held_bytes() -> int:
    """Return the memory that this process and those that it has started hold."""
    held = process_bytes()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            held += int(child.memory_info().rss)
    return held


def process_bytes() -> int:
    """Return the memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


def _seconds(block: BlockDone) -> float:
    """Return how long a block was in flight."""
    return block.read_seconds + block.wait_seconds + block.scale_seconds + block.write_seconds + block.flush_seconds
