"""Read boxes from the chunks of a zarr, decoded straight into the result or a shared cache.

Shard by shard and chunk by chunk in the thread that reads; any number of threads read at once. From an object store,
which takes its time for every answer, a few chunks of a box are read at once.

1. The box is cut along the chunks, axis by axis.
2. A chunk that lies in one piece in the returned array is decoded straight into it; every other into a buffer
   that all chunks of the read share, or into the cache, and the part that is wanted is copied.
3. A chunk that another thread is decoding into the cache is put off until the next ones are done.

What a chunk's bytes make fail names the chunk, as damaged; what the system makes fail, does not.
"""

from __future__ import annotations

import copy
import errno
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cached_property
from itertools import groupby, islice, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputUnavailableError
from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Box, Index3
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.retries import carried
from isovoxel.readers.base import output_array
from isovoxel.readers.chunks import CHUNK_COST, CachedChunk, ChunkCache
from isovoxel.readers.files import reason_of
from isovoxel.readers.tiled import chunk_of, failure_in
from isovoxel.readers.zarr_files import ChunkFile, IndexCache, ShardIndexError
from isovoxel.readers.zarr_layout import AT_ONCE, ChunkLayout

MOST_PUT_OFF = 4
"""How many chunks a read leaves to other threads before it waits for the first; they keep their buffers."""

Slices = tuple[slice, slice, slice]


class Piece(NamedTuple):
    """What one chunk holds of an interval, along one axis."""

    chunk: int
    """Which chunk."""
    here: slice
    """The voxels, counted from the interval's start."""
    there: slice
    """The same voxels, counted from the chunk's start."""


class Part(NamedTuple):
    """What one chunk holds of a box."""

    chunk: Index3
    """The chunk's place."""
    out: NDArray[Any]
    """Where its voxels go."""
    there: Slices
    """Which of its voxels."""


class Scratch:
    """The buffers of one read, each made when it is first needed."""

    def __init__(self, layout: ChunkLayout) -> None:
        self._layout = layout

    @cached_property
    def encoded(self) -> NDArray[np.uint8]:
        """Room for the bytes of an encoded chunk; only as much of it as is used becomes memory."""
        return np.empty(self._layout.encoded_limit, np.uint8)

    @cached_property
    def decoded(self) -> NDArray[Any]:
        """Room for the voxels of a chunk."""
        return _room_for_chunk(self._layout)


class ChunkReader:
    """Reads boxes of a zarr array in a local folder or an object store; safe to call from many threads.

    Parameters
    ----------
    name
        What the user called the input, for messages.
    layout
        Where the chunks lie.
    capacity
        Most bytes of decoded chunks to keep. The files must not change while chunks of them are kept.

    Attributes
    ----------
    decoded : int
        Number of chunks that were decoded so far.
    """

    def __init__(self, name: str, layout: ChunkLayout, capacity: int = 0) -> None:
        self.name = name
        self.layout = layout
        self.capacity = capacity
        self.decoded = 0
        self._lock = threading.Lock()
        self._indices = IndexCache()
        self._cache = ChunkCache(capacity // (layout.chunk_bytes + CHUNK_COST), lambda: _room_for_chunk(layout))

    def __reduce__(self) -> tuple[type[ChunkReader], tuple[str, ChunkLayout, int]]:
        # Another process has buffers of its own.
        return (ChunkReader, (self.name, self.layout, self.capacity))

    def cached(self, capacity: int) -> ChunkReader:
        """Return a reader of the same array that keeps at most so many bytes of decoded chunks."""
        return ChunkReader(self.name, self.layout, capacity)

    def at(self, others: Mapping[int, int]) -> ChunkReader:
        """Return a reader of another volume of the array, which shares with this one what is kept.

        Parameters
        ----------
        others
            As `ChunkLayout` has it.
        """
        reader = copy.copy(self)
        reader.layout = replace(self.layout, others=others)
        return reader

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        CorruptInputError
            If a chunk is damaged, or the index of a shard.
        InputUnavailableError
            If the system cannot read a file.
        """
        whole = output_array(box, self.layout.dtype.newbyteorder("="), out)
        files = self._files(box, whole)
        if isinstance(self.layout.folder, ObjectPlace):
            self._read_at_once(files)
        else:
            self._read_files(files)
        return whole

    def is_empty(self, box: Box) -> bool:
        """Return whether no chunk of a box is stored, and what is not has no bit set; no voxel is read.

        False where a file is damaged or out of reach, and where each chunk is an object of its own: a store would be
        asked for one after the other.
        """
        layout = self.layout
        in_objects = isinstance(layout.folder, ObjectPlace) and layout.index is None
        if in_objects or any(np.array(layout.fill, layout.dtype).tobytes()):
            return False
        try:
            for place, parts in self._files(box, np.broadcast_to(np.zeros((), layout.dtype), box.shape)):
                with ChunkFile(layout, self._indices, place, self._key(place)) as file:
                    if any(file.stores(part.chunk) for part in parts):
                        return False
        except Exception:  # noqa: BLE001 - whoever reads the box is told
            return False
        return True

    def _read_at_once(self, files: Iterable[tuple[Index3, Iterable[Part]]]) -> None:
        """Read a few parts at a time, each in a thread of its own: from a store they are mostly waited for."""
        read_files = carried(self._read_files)
        with ThreadPoolExecutor(AT_ONCE, "isovoxel-read") as pool:
            running: set[Future[None]] = set()
            for place, parts in files:
                rest = iter(parts)
                if self.layout.index is not None:  # which the first one gets for all of them
                    self._read_files([(place, list(islice(rest, 1)))])
                for part in rest:
                    if len(running) == AT_ONCE:
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        for future in done:
                            future.result()
                    running.add(pool.submit(read_files, [(place, [part])]))
            for future in running:
                future.result()

    def _read_files(self, files: Iterable[tuple[Index3, Iterable[Part]]]) -> None:
        """Read what files hold of a box, in this thread."""
        put_off: deque[tuple[Part, CachedChunk]] = deque()
        scratch = Scratch(self.layout)
        try:
            for place, parts in files:
                with ChunkFile(self.layout, self._indices, place, self._key(place)) as file:
                    for part in parts:
                        self._read(part, file, scratch, put_off)
            while put_off:
                self._take(*put_off.popleft())
        finally:
            for _, chunk in put_off:
                self._cache.release(chunk)

    def _files(self, box: Box, whole: NDArray[Any]) -> Iterator[tuple[Index3, Iterator[Part]]]:
        """Cut a box into what every file holds of it: the file's place, and the parts of its chunks."""
        z_runs, y_runs, x_runs = (
            _runs(_pieces(start, stop, chunk), count)
            for start, stop, chunk, count in zip(
                box.start, box.stop, self.layout.chunk, self.layout.per_shard, strict=True
            )
        )
        # Along z, where volumes are cut most finely, one file's chunks at a time.
        rows, columns = list(y_runs), list(x_runs)
        for z, zs in z_runs:
            for (y, ys), (x, xs) in product(rows, columns):
                yield (z, y, x), _parts(whole, product(zs, ys, xs))

    def _read(self, part: Part, file: ChunkFile, scratch: Scratch, put_off: deque[tuple[Part, CachedChunk]]) -> None:
        """Read what a chunk holds of the box, or put it off where another thread is decoding the chunk."""
        try:
            chunk, ours = self._cache.claim(self._key(part.chunk))
            if chunk is None:
                self._decode_uncached(part, file, scratch)
                return
            if ours:
                self._decode(part.chunk, chunk, file, scratch)
        except Exception as error:
            raise self._failure(part.chunk, error) from error
        if chunk.ready.is_set():
            self._take(part, chunk)
        else:
            put_off.append((part, chunk))
        while put_off and (len(put_off) > MOST_PUT_OFF or put_off[0][1].ready.is_set()):
            self._take(*put_off.popleft())

    def _decode_uncached(self, part: Part, file: ChunkFile, scratch: Scratch) -> None:
        straight = part.out.shape == self.layout.chunk and part.out.flags.c_contiguous
        voxels = part.out if straight else scratch.decoded
        if not file.read(part.chunk, scratch.encoded, voxels):
            part.out[...] = self.layout.fill
            return
        self._count()
        if not straight:
            part.out[...] = voxels[part.there]

    def _decode(self, place: Index3, chunk: CachedChunk, file: ChunkFile, scratch: Scratch) -> None:
        """Decode a chunk into its place in the cache, and let those go on that wait for it."""
        try:
            stored = file.read(place, scratch.encoded, chunk.buffer)
        except BaseException as error:
            # Whatever it was, an interrupt too, the others must not wait for ever. They get an error that was never
            # raised: the frames of this one would keep all arrays of this read alive.
            self._cache.settle(self._key(place), chunk, stored=False, failure=self._failure(place, error))
            self._cache.release(chunk)
            raise
        self._cache.settle(self._key(place), chunk, stored=stored)
        if stored:
            self._count()

    def _take(self, part: Part, chunk: CachedChunk) -> None:
        """Copy the part from a chunk of the cache, waiting for it if need be, and release it."""
        try:
            chunk.ready.wait()
            if chunk.failure is not None:
                raise copy.copy(chunk.failure)
            part.out[...] = chunk.buffer[part.there] if chunk.stored else self.layout.fill
        finally:
            self._cache.release(chunk)

    def _key(self, place: Index3) -> tuple[int, ...]:
        """Return what tells a chunk from others, of other volumes too."""
        return (*self.layout.others.values(), *place)

    def _count(self) -> None:
        with self._lock:
            self.decoded += 1

    def _failure(self, place: Index3, error: BaseException) -> Exception:
        """Return what a chunk's reader is told: whose fault it was, and of which voxels."""
        if isinstance(error, MemoryError):
            return MemoryError(*error.args)
        if not isinstance(error, Exception):
            return InputUnavailableError(
                errno.EINTR, f"reading chunk {place} of {self.name} ended by {reason_of(error)}"
            )
        layout = self.layout
        what, shape = ("shard", layout.file) if isinstance(error, ShardIndexError) else ("chunk", layout.chunk)
        z, y, x = (at * n for at, n in zip(place, layout.chunk, strict=True))
        stored = chunk_of(what, Box((z, y, x), (z + 1, y + 1, x + 1)), shape, layout.shape)
        return failure_in(stored, self.name, error, lambda error: not isinstance(error, OSError))


def _room_for_chunk(layout: ChunkLayout) -> NDArray[Any]:
    return np.empty(layout.chunk, layout.dtype.newbyteorder("="))


def _pieces(start: int, stop: int, length: int) -> Iterator[Piece]:
    """Cut an interval along chunks of a length."""
    for chunk in range(start // length, ceil_div(stop, length)) if stop > start else ():
        first, last = max(start, chunk * length), min(stop, (chunk + 1) * length)
        yield Piece(chunk, slice(first - start, last - start), slice(first - chunk * length, last - chunk * length))


def _runs(pieces: Iterator[Piece], count: int) -> Iterator[tuple[int, list[Piece]]]:
    """Gather the pieces by the file that they lie in, of so many chunks each."""
    for file, run in groupby(pieces, key=lambda piece: piece.chunk // count):
        yield file, list(run)


def _parts(whole: NDArray[Any], pieces: Iterator[tuple[Piece, Piece, Piece]]) -> Iterator[Part]:
    """Join the pieces of the three axes."""
    for z, y, x in pieces:
        yield Part((z.chunk, y.chunk, x.chunk), whole[z.here, y.here, x.here], (z.there, y.there, x.there))
