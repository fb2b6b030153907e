"""Work-stealing queue of contiguous block ranges: neighbours share source chunks.

1. What is left is cut into one contiguous run for each worker.
2. A worker takes blocks from the front of its own run, so what it has decoded is still warm.
3. One whose run has come to its end takes a run that nobody has, or else the back half of the longest. So a slow
   worker does less, without any planning.
4. A block that is given back is taken before all others, by any worker except the excluded one.

Runs are pairs of numbers; what of them is done already, a byte for each block tells. However many blocks there are,
nothing is kept for a block by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Run = tuple[int, int]
"""Blocks from the first number to before the second."""


class Runs:
    """Blocks that are left to assign, in contiguous ranges; independent of any network.

    Parameters
    ----------
    done
        A 1 for each block that is done, in the plan's order; looked at again whenever a block is taken.
    workers
        Who begins.
    """

    def __init__(self, done: bytearray, workers: Sequence[str] = ()) -> None:
        self._done = done
        self._again: list[tuple[int, str]] = []
        n, parts = len(done), max(1, len(workers))
        cuts = [n * i // parts for i in range(parts + 1)]
        runs = list(pairwise(cuts))
        self._owned: dict[str, Run] = dict(zip(workers, runs, strict=False))
        self._free: list[Run] = [] if workers else runs

    def __bool__(self) -> bool:
        """Return whether there is a block to be taken."""
        self._again = [(block, shunned) for block, shunned in self._again if not self._done[block]]
        return bool(self._again) or any(self._first(run) >= 0 for run in (*self._owned.values(), *self._free))

    def take(self, worker: str, *, shunned: bool = False) -> int | None:
        """Give a worker its next block, or None where there is none for it.

        Parameters
        ----------
        worker
            Who asks.
        shunned
            Whether it also gets what was given back so that another one does it: where there is no other one.
        """
        for at, (block, avoid) in enumerate(self._again):
            if shunned or avoid != worker:
                del self._again[at]
                return self.take(worker, shunned=shunned) if self._done[block] else block
        found = self._next(worker)
        return self._next(worker) if found is None and self._more(worker) else found

    def give_back(self, block: int, shun: str = "") -> None:
        """Take a block back that was not done, to be given again, but not to the worker that is named."""
        self._again.append((block, shun))

    def leave(self, worker: str) -> None:
        """Free the run of a worker that takes no more."""
        if (run := self._owned.pop(worker, None)) is not None:
            self._free.append(run)

    def _next(self, worker: str) -> int | None:
        """Take the first block of a worker's own run."""
        start, stop = self._owned.get(worker, (0, 0))
        block = self._first((start, stop))
        if block < 0:
            self._owned.pop(worker, None)
            return None
        self._owned[worker] = (block + 1, stop)
        return block

    def _more(self, worker: str) -> bool:
        """Give a worker that has no run another one; False where there is none."""
        self._free = [run for run in self._free if self._first(run) >= 0]
        if self._free:
            longest = max(self._free, key=self._left)
            self._free.remove(longest)
            self._owned[worker] = longest
            return True
        owner = max(self._owned, key=lambda name: self._left(self._owned[name]), default=None)
        if owner is None or (start := self._first(self._owned[owner])) < 0:
            return False
        stop = self._done.rfind(0, start, self._owned[owner][1]) + 1
        middle = (start + stop) // 2
        self._owned[owner], self._owned[worker] = (start, middle), (middle, stop)
        return True

    def _first(self, run: Run) -> int:
        """Return the first block of a run that is not done, or -1."""
        return self._done.find(0, *run)

    def _left(self, run: Run) -> int:
        return self._done.count(0, *run)
