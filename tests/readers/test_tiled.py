"""The one loop over tiles, and what it makes of whatever fails in it."""

from __future__ import annotations

import errno
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from isovoxel.errors import CorruptInputError, InputError, InputUnavailableError
from isovoxel.geometry.grid import Box
from isovoxel.readers.base import damage_moved
from isovoxel.readers.tiled import Stored, TiledReader, chunk_of
from strategies import boxes

VOXELS = np.arange(5 * 7 * 9, dtype=">u2").reshape(5, 7, 9)
CHUNK = (2, 3, 4)
BAD = (2, 3, 4)
"""First voxel of the chunk that fails."""


@dataclass(frozen=True)
class Reader(TiledReader):
    """Reads an array in memory, but for one chunk."""

    name: str
    dtype: np.dtype[Any]
    error: BaseException | None = None
    telling: bool = True

    def tiles(self, box: Box) -> Iterable[Box]:
        return box.tiles(CHUNK)

    def read_tile(self, tile: Box, out: NDArray[Any], _source: Any) -> None:
        assert all(a // n == (b - 1) // n for a, b, n in zip(tile.start, tile.stop, CHUNK, strict=True))
        if self.error is not None and self.stored(tile).box.start == BAD:
            raise self.error
        out[...] = VOXELS[tile.slices]

    def stored(self, tile: Box) -> Stored:
        return chunk_of("chunk", tile, CHUNK, VOXELS.shape)

    def is_damage(self, _error: Exception) -> bool:
        return self.telling


@given(boxes(VOXELS.shape))
def test_a_box_is_put_together_of_its_tiles(box: Box) -> None:
    """In native byte order, in a new array or in the one that is given."""
    reader = Reader("a", VOXELS.dtype)
    out = np.empty(box.shape, "u2")
    assert reader(box, out) is out
    for read in (out, reader(box)):
        np.testing.assert_array_equal(read, VOXELS[box.slices])
        assert read.dtype.isnative


FAILURES: dict[str, tuple[BaseException, type[Exception], str]] = {
    "damage": (ValueError("cut\nshort"), CorruptInputError, "chunk (1, 1, 1) of a is corrupt: cut; copy or write it"),
    "zlib": (zlib.error("bad data"), CorruptInputError, "chunk (1, 1, 1) of a is corrupt: bad data"),
    "disk": (OSError(errno.EIO, "I/O error"), InputUnavailableError, "a cannot be read, in chunk (1, 1, 1): I/O error"),
    "HDF5": (OSError("cannot read (errno = 5, x)"), InputUnavailableError, "in chunk (1, 1, 1): Input/output error"),
    "library": (TypeError("no such thing"), InputError, "chunk (1, 1, 1) of a cannot be decoded here: no such thing"),
    "ours": (InputError("as it is"), InputError, "as it is"),
    "memory": (MemoryError("none"), MemoryError, "none"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_told_by_whose_fault_it_is(case: str) -> None:
    """Only damage may be filled, and only it says which voxels are lost."""
    error, kind, why = FAILURES[case]
    with pytest.raises(kind) as raised:
        Reader("a", VOXELS.dtype, error)(Box.whole(VOXELS.shape))
    assert type(raised.value) is kind
    assert why in str(raised.value)
    if isinstance(raised.value, CorruptInputError):
        assert (raised.value.start, raised.value.stop) == (BAD, (4, 6, 8))


def test_a_format_that_cannot_tell_damage_calls_nothing_damaged() -> None:
    """It would be filled, though the bytes may be whole."""
    with pytest.raises(InputError, match=r"^a cannot be read, in chunk \(1, 1, 1\): cut$") as raised:
        Reader("a", VOXELS.dtype, ValueError("cut"), telling=False)(Box.whole(VOXELS.shape))
    assert not isinstance(raised.value, CorruptInputError)


def test_what_lies_beside_the_tile_is_read() -> None:
    """A box that does not touch it never meets the failure."""
    box = Box((0, 0, 0), (2, 7, 9))
    np.testing.assert_array_equal(Reader("a", VOXELS.dtype, ValueError("cut"))(box), VOXELS[box.slices])


def test_damage_moves_with_its_volume() -> None:
    """Clipped to what belongs to it, and counted as it counts."""
    with (
        pytest.raises(CorruptInputError) as raised,
        damage_moved((-1, 0, 2), Box((1, 0, 0), (9, 9, 3))),
    ):
        raise CorruptInputError("a", "chunk", (0, 1, 2), (4, 5, 6), "cut")
    assert (raised.value.start, raised.value.stop) == ((0, 1, 4), (3, 5, 5))
