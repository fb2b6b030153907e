"""Recorder of a job: a listener that keeps what a report tells of it, in bounded memory.

Speed and memory are kept over time, which is cut into slots. When there are too many of them, each two become one,
twice as long: whatever a job's length, its record is as small, and as fine as that allows. Beside it a thread looks now
and then how much memory the process holds, and those that it has started.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import psutil

from isovoxel.execution.events import BlockDone, Event, JobFinished, JobStarted, JobStopped
from isovoxel.execution.result import Tally
from isovoxel.planning.plan import Plan
from isovoxel.reporting.progress import Notes

MOST_NOTES = 60
"""How many lines of what happened are kept; of the others only their number is."""
LONGEST_PAUSE = 5.0
"""Most seconds between two looks at the memory."""
MOST_SLOTS = 240
FIRST_SLOT = 0.1
"""Seconds of a slot at first."""


@dataclass
class Timeline:
    """Output voxels and bytes held, over seconds since the start. Several threads may add to it."""

    slot: float = FIRST_SLOT
    """Seconds of a slot."""
    voxels: list[float] = field(default_factory=list)
    """Output voxels made in each slot."""
    memory: list[int] = field(default_factory=list)
    """Most bytes held in each slot; 0 where nobody has looked."""
    end: float = 0.0
    """Seconds until the last thing that was added."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add_voxels(self, start: float, stop: float, voxels: int) -> None:
        """Add what was made from `start` to `stop`, evenly.

        Parameters
        ----------
        start, stop
            Seconds; a start before 0 is cut off.
        voxels
            How many.
        """
        with self._lock:
            self._reach(stop)
            start = min(max(0.0, start), stop)
            first, last = self._at(start), self._at(stop)
            if first == last:
                self.voxels[first] += voxels
                return
            rate = voxels / (stop - start)
            for i in range(first, last + 1):
                begin, finish = max(start, i * self.slot), min(stop, (i + 1) * self.slot)
                self.voxels[i] += rate * max(0.0, finish - begin)

    def add_memory(self, at: float, held: int) -> None:
        """Add how many bytes were held at a time in seconds."""
        with self._lock:
            self._reach(at)
            i = self._at(at)
            self.memory[i] = max(self.memory[i], held)

    def rates(self) -> list[tuple[float, float]]:
        """Return (seconds, output voxels per second) in the middle of each slot."""
        with self._lock:
            found = []
            for i, voxels in enumerate(self.voxels):
                # The last slot has just begun.
                length = min(self.slot, self.end - i * self.slot) if i else min(self.slot, self.end)
                if length > self.slot / 20:
                    found.append((i * self.slot + length / 2, voxels / length))
            return found

    def held(self) -> list[tuple[float, int]]:
        """Return (seconds, bytes) of each slot in which somebody has looked."""
        with self._lock:
            return [(min((i + 0.5) * self.slot, self.end), held) for i, held in enumerate(self.memory) if held]

    def _at(self, seconds: float) -> int:
        return min(int(seconds / self.slot), len(self.voxels) - 1)

    def _reach(self, seconds: float) -> None:
        """Have a slot for a time."""
        self.end = max(self.end, seconds)
        while seconds >= self.slot * MOST_SLOTS:
            self.slot *= 2
            self.voxels = [sum(self.voxels[i : i + 2]) for i in range(0, len(self.voxels), 2)]
            self.memory = [max(self.memory[i : i + 2]) for i in range(0, len(self.memory), 2)]
        missing = int(seconds / self.slot) + 1 - len(self.voxels)
        self.voxels += [0.0] * missing
        self.memory += [0] * missing


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
        self._clock, self._held = clock, held or process_tree_bytes
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


def process_tree_bytes() -> int:
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
