"""Flush shards on background threads while others are encoded.

A disk has most to do for many shards at a time, and from early on: each shard of a block waits as soon as it is
encoded. The thread that is done with the last of them notes the block, whatever becomes of the job meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from isovoxel.engines.base import Cancelled
from isovoxel.execution.events import BlockDone
from isovoxel.output.shard import PendingShard, ShardReceipt
from isovoxel.planning.model import Block

T = TypeVar("T")

FLUSHING = 2
"""How many shards may wait for the disk for each block that is in flight."""

Conclude = Callable[[Block, "list[ShardReceipt] | Exception", BlockDone], T]
"""Called when all shards of a block are on the disk, or one cannot be brought there, in the thread that was last."""


@dataclass(frozen=True)
class Flusher:
    """Waits for the disk."""

    pool: ThreadPoolExecutor
    """What waits."""
    free: threading.BoundedSemaphore
    """For how many shards at the same time; who has more to flush waits too."""
    patient: Callable[[Block], AbstractContextManager[None]]
    """Sets the patience with which a block's shards are brought to their place."""


@dataclass(eq=False)
class Flushing(Generic[T]):
    """A block whose shards are on their way to the disk; one thread adds them and ends."""

    _flusher: Flusher
    """Waits for the disk."""
    _block: Block
    """Whose shards will come."""
    _conclude: Conclude[T]
    """What is done with it when all are on the disk."""
    _future: Future[T] = field(default_factory=Future, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _receipts: list[ShardReceipt | None] = field(default_factory=list, init=False)
    _error: Exception | None = field(default=None, init=False)
    _left: int = field(default=1, init=False)  # until `end`
    _event: BlockDone | None = field(default=None, init=False)
    _began: float = field(default=0.0, init=False)

    def add(self, shard: PendingShard) -> None:
        """Begin to flush the next shard of the block, once fewer wait than may; seal what waits for no disk."""
        self._flusher.free.acquire()  # so that none is queued, and forgotten when the job fails
        with self._lock:
            number = len(self._receipts)
            self._receipts.append(None)
            self._left += 1
        if not shard.waits:
            self._seal(number, shard)
            return
        try:
            self._flusher.pool.submit(self._seal, number, shard)
        except RuntimeError:  # of a pool that was shut down: nobody waits for the job any more
            shard.drop()
            raise Cancelled from None

    def end(self, event: BlockDone) -> Future[T]:
        """Say that this was the last shard.

        Returns
        -------
        Future
            Of what `conclude` returns, or raises.
        """
        self._event, self._began = event, time.perf_counter()
        self._leave()
        return self._future

    def _seal(self, number: int, shard: PendingShard) -> None:
        """Flush a shard, or drop it where another has failed."""
        try:
            if self._error is None:
                with self._flusher.patient(self._block):
                    self._receipts[number] = shard.seal()
            else:
                shard.drop()
        except Exception as error:  # noqa: BLE001 - kept for whoever concludes
            self._error = error
        self._flusher.free.release()
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        assert self._event is not None  # noqa: S101 - for type checkers: `end` was called
        receipts = [receipt for receipt in self._receipts if receipt is not None]
        seconds, stored = time.perf_counter() - self._began, sum(receipt.size for receipt in receipts)
        event = replace(self._event, flush_seconds=seconds, stored_bytes=stored)
        try:
            done = self._conclude(self._block, self._error or receipts, event)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the future raises it
            self._future.set_exception(error)
        else:
            self._future.set_result(done)
