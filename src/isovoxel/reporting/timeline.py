"""How fast was a job, and what did it hold in memory, from its start to its end? In a bounded number of samples.

Time is cut into slots. When there are too many of them, each two become one, twice as long: whatever a job's length,
its record is as small, and as fine as that allows.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

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
