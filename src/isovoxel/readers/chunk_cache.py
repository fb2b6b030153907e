"""Cache of decoded chunks that threads share: a chunk which several boxes need is decoded once.

1. A thread that needs a chunk claims it. The first to do so decodes it into the buffer that it is given; the
   others do other chunks first and then wait for it.
2. A buffer is made when it is first needed, up to the given number. Later ones are those of the chunks that
   were not used for longest: memory that is touched for the first time is slow.
3. A chunk in use keeps its buffer until the last thread releases it. Where all buffers are in use, the thread
   gets none, and decodes for itself.
"""

from __future__ import annotations

import copy
import errno
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from isovoxel.errors import InputUnavailableError

CHUNK_COST = 1 << 11
"""What keeping a chunk takes beside its voxels."""

Place = tuple[int, ...]
"""Where a chunk lies in its array: z, y, x, and what of several volumes lies before."""


@dataclass(eq=False)
class CachedChunk:
    """A chunk in the cache, being decoded or ready."""

    buffer: NDArray[Any]
    """Its voxels, once it is ready and `stored`."""
    users: int = 1
    """Number of threads that have claimed it and not yet released it."""
    stored: bool = False
    """Whether there is such a chunk; if not, the buffer holds nothing of it."""
    failure: Exception | None = None
    """Why it could not be decoded; None where it could."""
    ready: threading.Event = field(default_factory=threading.Event)
    """Set once the thread that decodes it is done, or has failed."""


class ChunkCache:
    """The decoded chunks that were used last; safe to use from many threads.

    Parameters
    ----------
    slots
        Most buffers to make; 0 for a cache that holds nothing.
    make
        Makes a buffer for one chunk.
    """

    def __init__(self, slots: int, make: Callable[[], NDArray[Any]]) -> None:
        self._unmade = slots
        self._make = make
        self._free: list[NDArray[Any]] = []
        self._lock = threading.Lock()
        self._chunks: OrderedDict[Place, CachedChunk] = OrderedDict()

    def claim(self, place: Place) -> tuple[CachedChunk | None, bool]:
        """Claim a chunk, which must be released.

        Returns
        -------
        tuple of (CachedChunk or None, bool)
            The chunk, and whether the caller must decode it into its buffer and call `settle`. None where no
            buffer is left for it.
        """
        with self._lock:
            chunk = self._chunks.get(place)
            if chunk is not None:
                chunk.users += 1
                self._chunks.move_to_end(place)
                return chunk, False
            buffer = self._room()
            if buffer is None:
                return None, True
            chunk = self._chunks[place] = CachedChunk(buffer)
            return chunk, True

    def settle(self, place: Place, chunk: CachedChunk, *, stored: bool, failure: Exception | None = None) -> None:
        """Say how decoding a claimed chunk ended; one that failed or is not stored is not kept for later."""
        chunk.stored, chunk.failure = stored, failure
        if not stored:
            with self._lock:
                del self._chunks[place]
        chunk.ready.set()

    def release(self, chunk: CachedChunk) -> None:
        """Give a claimed chunk back."""
        with self._lock:
            chunk.users -= 1
            if not chunk.users and not chunk.stored:
                self._free.append(chunk.buffer)

    @contextmanager
    def decoded(
        self, place: Place, decode: Callable[[NDArray[Any]], bool], spare: NDArray[Any]
    ) -> Iterator[NDArray[Any] | None]:
        """Give a chunk's buffer while it is used: decoded by this thread, or by another that is waited for.

        Parameters
        ----------
        place
            Which chunk.
        decode
            Decodes it into a buffer, and tells whether it is stored; it must not use this cache.
        spare
            A buffer of the caller's, for a chunk that no buffer is left for.

        Yields
        ------
        numpy.ndarray or None
            The buffer, or None where the chunk is not stored.

        Raises
        ------
        Exception
            What `decode` raised, in this thread or the other.
        """
        chunk, ours = self.claim(place)
        if chunk is None:
            yield spare if decode(spare) else None
            return
        try:
            if ours:
                self._fill(place, chunk, decode)
            chunk.ready.wait()
            if chunk.failure is not None:
                raise copy.copy(chunk.failure)
            yield chunk.buffer if chunk.stored else None
        finally:
            self.release(chunk)

    def _fill(self, place: Place, chunk: CachedChunk, decode: Callable[[NDArray[Any]], bool]) -> None:
        """Decode a claimed chunk, and let those go on that wait for it, however that ends."""
        stored = False
        failed: Exception | None = InputUnavailableError(errno.EINTR, f"reading chunk {place} was interrupted")
        try:
            stored = decode(chunk.buffer)
            failed = None
        except Exception as error:
            # One that was never raised: the frames of this one would keep all arrays of this read alive.
            failed = copy.copy(error)
            raise
        finally:
            self.settle(place, chunk, stored=stored, failure=failed)

    def _room(self) -> NDArray[Any] | None:
        """Return a buffer that nobody uses; the lock is held."""
        if self._free:
            return self._free.pop()
        if self._unmade > 0:
            buffer = self._make()
            self._unmade -= 1
            return buffer
        unused = next((place for place, chunk in self._chunks.items() if not chunk.users), None)
        return None if unused is None else self._chunks.pop(unused).buffer
