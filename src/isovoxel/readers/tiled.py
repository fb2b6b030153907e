"""Read a box from tiles (chunks, blocks, strips or pages), one after another in the calling thread.

1. The box is cut along the tiles, and each part is read into its place in the result; so one tile is held beside it.
2. Failures are mapped here for all formats. What the system did not give may pass, so it is an `InputUnavailableError`.
   What an installed library cannot do is no fault of the file. All else is damage where the format can tell, a
   `CorruptInputError` that says which voxels are lost, and an `InputError` where it cannot.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import CorruptInputError, InputError
from isovoxel.geometry.grid import Box, Index3, triple
from isovoxel.object_store.retries import is_transient
from isovoxel.readers.base import ReadBox, damage_moved, is_known_empty, output_array
from isovoxel.readers.files import WAY_ON, is_ours, limit_of, number_of, reason_of, unavailable


class Stored(NamedTuple):
    """What is decoded in one go, and so is damaged as a whole."""

    what: str
    """Its name, for messages: "chunk (1, 2, 3)", "strip 4 of page 3"."""
    box: Box
    """Its voxels."""


class TiledReader(ABC):
    """Reads boxes of a volume that is stored in tiles; safe to call from many threads where `read_tile` is."""

    name: str
    """What the user called the input, for messages."""
    tile_name: ClassVar[str] = "chunk"
    """What a tile is called, for messages."""
    if TYPE_CHECKING:  # dataclasses would take a property for a default

        @property
        def dtype(self) -> np.dtype[Any]:
            """Of the voxels; what is returned is in native byte order."""

        @property
        def shape(self) -> Index3:
            """Number of voxels, z, y, x."""

        @property
        def chunk(self) -> Index3:
            """Shape of a tile."""

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        CorruptInputError
            If a tile is damaged.
        InputUnavailableError
            If the system cannot read it.
        InputError
            If it cannot be read for another reason, which is the error's cause.
        """
        out = output_array(box, self.dtype.newbyteorder("="), out)
        if out.size:
            self.read_tiles(self.tiles(box), box.start, out)
        return out

    def read_tiles(self, tiles: Iterable[Box], corner: Index3, out: NDArray[Any]) -> None:
        """Read parts of a box into the array for it, whose voxel 0 is `corner`; all else is as above."""
        with self.opened() as source:
            for tile in tiles:
                try:  # and no context manager, which would take 3 % of the time of a small chunk
                    self.read_tile(tile, out[tile.slices_from(corner)], source)
                except (InputError, MemoryError):
                    raise
                except Exception as error:
                    raise self.failure(tile, error) from error

    def tiles(self, box: Box) -> Iterable[Box]:
        """Cut a box into parts, none of which reaches over more than one tile."""
        return box.tiles(self.chunk)

    @abstractmethod
    def read_tile(self, tile: Box, out: NDArray[Any], source: Any) -> None:
        """Read one of these parts from what `opened` gives."""

    def stored(self, tile: Box) -> Stored:
        """Return what one of these parts is stored in."""
        return chunk_of(self.tile_name, tile, self.chunk, self.shape)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Open what all parts of a box are read from, if there is such a thing."""
        yield None

    def is_damage(self, _error: Exception) -> bool:
        """Return whether an error that is neither the system's nor a library's is one of bytes that are damaged."""
        return True

    @contextmanager
    def failures_of(self, tile: Box) -> Iterator[None]:
        """Turn whatever is raised into what a reader raises."""
        try:
            yield
        except (InputError, MemoryError):
            raise
        except Exception as error:
            raise self.failure(tile, error) from error

    def failure(self, tile: Box, error: Exception) -> InputError:
        """Return what a reader raises where a part cannot be read."""
        return failure_in(self.stored(tile), self.name, error, self.is_damage)


def failure_in(stored: Stored, name: str, error: Exception, is_damage: Callable[[Exception], bool]) -> InputError:
    """Return what a reader raises where something that is decoded in one go cannot be read.

    Parameters
    ----------
    stored
        What cannot be read.
    name
        What the user called the input.
    error
        Why it cannot.
    is_damage
        Returns whether an error that is neither the system's nor a library's is one of bytes that are damaged.
    """
    what, box = stored
    where = f"{name} cannot be read, in {what}"
    if isinstance(error, OSError) and (number_of(error) is not None or is_transient(error)):
        return unavailable(where, error)
    if is_ours(error):
        return InputError(f"{what} of {name} cannot be decoded here: {limit_of(error)}; {WAY_ON}")
    if is_damage(error):
        return CorruptInputError(name, what, box.start, box.stop, reason_of(error))
    return InputError(f"{where}: {reason_of(error)}")


def chunk_place(tile: Box, chunk: Index3) -> Index3:
    """Return the place of the chunk that a part lies in."""
    (z, y, x), (deep, high, wide) = tile.start, chunk
    return (z // deep, y // high, x // wide)


def chunk_start(place: Index3, chunk: Index3) -> Index3:
    """Return the first voxel of the chunk at a place."""
    (z, y, x), (deep, high, wide) = place, chunk
    return (z * deep, y * high, x * wide)


def chunk_of(what: str, tile: Box, chunk: Index3, shape: Index3) -> Stored:
    """Return the chunk of a regular grid that a part lies in.

    Examples
    --------
    >>> chunk_of("chunk", Box((2, 5, 0), (3, 6, 2)), (2, 4, 4), (4, 6, 6))
    Stored(what='chunk (1, 1, 0)', box=Box(start=(2, 4, 0), stop=(4, 6, 4)))
    """
    place = chunk_place(tile, chunk)
    return Stored(f"{what} {place}", Box.whole(chunk).shifted(chunk_start(place, chunk)) & Box.whole(shape))


# ---- planes of several readers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MixedReader(TiledReader):
    """Reads boxes of planes that several readers have; safe to call from many threads where these are."""

    name: str
    """What the user called the input, for messages."""
    readers: tuple[ReadBox, ...]
    """Of planes of equal size."""
    which: NDArray[np.int64]
    """Which of them reads each plane."""
    place: NDArray[np.int64]
    """Which of its planes that is."""
    plane: tuple[int, int]
    """Shape of a plane, y and x."""
    dtype: np.dtype[Any]
    """Of the voxels."""
    files: tuple[str, ...]
    """Paths of the files."""
    segment_shape: Index3
    """Number of voxels that are decoded in one go, at most, along each axis."""
    overhead: int
    """Largest number of bytes held beside the returned array."""

    @property
    def shape(self) -> Index3:
        """Number of planes, rows and columns."""
        return (len(self.which), *self.plane)

    def taking(self, planes: NDArray[np.int64]) -> MixedReader:
        """Return a reader of some of the planes, in their order."""
        return replace(self, which=self.which[planes], place=self.place[planes])

    @cached_property
    def borders(self) -> list[int]:
        """Where planes begin that follow one another in one reader, and the number of all planes."""
        breaks = (np.diff(self.which) != 0) | (np.diff(self.place) != 1)
        return [0, *(1 + np.flatnonzero(breaks)).tolist(), len(self.which)]

    def tiles(self, box: Box) -> Iterator[Box]:
        """Cut a box where its planes come from another reader, or from elsewhere in one."""
        run = bisect_right(self.borders, box.start[0]) - 1
        while self.borders[run] < box.stop[0]:
            yield box & self._planes(run)
            run += 1

    def read_tile(self, tile: Box, out: NDArray[Any], _source: Any) -> None:
        """Read planes that follow one another in one reader."""
        z = tile.start[0]
        by = z - int(self.place[z])
        # What lies beyond these planes in the reader may be others' neighbours.
        inside = self._planes(bisect_right(self.borders, z) - 1).shifted((-by, 0, 0))
        with damage_moved((by, 0, 0), inside):
            self.readers[self.which[z]](tile.shifted((-by, 0, 0)), out)

    def stored(self, tile: Box) -> Stored:
        """Return the part itself."""
        return Stored(f"planes {tile.start[0]} to {tile.stop[0] - 1}", tile)

    def _planes(self, run: int) -> Box:
        first, last = self.borders[run : run + 2]
        return Box((first, 0, 0), (last, *self.plane))


# ---- damaged parts filled ------------------------------------------------------------------------------------------

# Read a volume on where parts of it are damaged: these are filled, and what lies around them is read.
#
# 1. The box is read. If that names a damaged part, the part's voxels are filled.
# 2. What is left of the box around the part, at most six boxes, is read in the same way.
#
# So every voxel that can be read is read, however many parts of a box are damaged. A box without damage costs nothing
# more; one with damage holds, for a moment, up to its own size once more.


class FilledReader:
    """Reads boxes and fills what is damaged in them; safe to call from many threads.

    Parameters
    ----------
    read
        Reads boxes, and raises a `CorruptInputError` for what is damaged; all other errors are passed on.
    dtype
        Of its voxels, in native byte order.
    value
        What damaged voxels are filled with.
    tell
        Called once for every damaged part that is met, with the error; never from two threads at once.
    """

    def __init__(
        self, read: ReadBox, dtype: np.dtype[Any], value: float, tell: Callable[[CorruptInputError], None]
    ) -> None:
        self._read = read
        self._dtype = dtype
        self._value = value
        self._tell = tell
        self._told: set[tuple[int, Index3, Index3]] = set()
        self._lock = threading.Lock()

    def is_empty(self, box: Box) -> bool:
        """Return whether a box is known to hold nothing but zeros."""
        return is_known_empty(self._read, box)

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`."""
        out = output_array(box, self._dtype, out)
        left = [box]
        while left:
            piece = left.pop()
            view = out[piece.slices_from(box.start)]
            try:
                if view.flags.c_contiguous:
                    self._read(piece, view)
                else:
                    view[...] = self._read(piece)
            except CorruptInputError as error:
                damaged = piece & Box(error.start, error.stop)
                if not damaged.size:
                    raise  # filling it would change nothing, and the piece would be read for ever
                out[damaged.slices_from(box.start)] = self._value
                left += around(damaged, piece)
                self._tell_once(error, piece.volume)
        return out

    def _tell_once(self, error: CorruptInputError, volume: int) -> None:
        part = (volume, error.start, error.stop)
        with self._lock:
            if part not in self._told:
                self._told.add(part)
                self._tell(error)


def around(hole: Box, box: Box) -> Iterator[Box]:
    """Cut what a box holds beside a hole in it into at most six boxes.

    Those before and behind it along z are whole planes, which lie in one piece.

    Examples
    --------
    >>> sum(piece.size for piece in around(Box((1, 1, 1), (2, 2, 2)), Box.whole((3, 3, 3))))
    26
    """
    start, stop = box.start, box.stop
    for axis in range(3):
        first, last = hole.start[axis], hole.stop[axis]
        if start[axis] < first:
            yield Box(start, _with(stop, axis, first), box.volume)
        if last < stop[axis]:
            yield Box(_with(start, axis, last), stop, box.volume)
        start, stop = _with(start, axis, first), _with(stop, axis, last)


def _with(index: Index3, axis: int, value: int) -> Index3:
    """Return an index with another value along one axis."""
    return triple(value if i == axis else n for i, n in enumerate(index))
