"""Boxes of voxels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.geometry.grid import Box
from strategies import boxes, shapes, triples


def test_a_box_that_stops_before_it_starts_is_refused() -> None:
    """A box never has a negative length."""
    with pytest.raises(ValueError, match="must not stop before it starts"):
        Box((1, 0, 0), (0, 1, 1))


@given(st.data(), shapes(12))
def test_the_intersection_holds_what_both_hold(data: st.DataObject, shape: tuple[int, int, int]) -> None:
    """A voxel is in `a & b` exactly where it is in `a` and in `b`."""
    a, b = data.draw(boxes(shape)), data.draw(boxes(shape))
    both = np.zeros((3, *shape), dtype=bool)
    for mask, box in zip(both, (a, b, a & b), strict=True):
        mask[box.slices] = True
    assert np.array_equal(both[0] & both[1], both[2])
    assert a.contains(a & b) or (a & b).size == 0


@given(st.data(), shapes(12), triples(st.integers(1, 7)))
def test_tiles_cover_a_box_once_and_keep_to_their_cells(
    data: st.DataObject, shape: tuple[int, int, int], cell: tuple[int, int, int]
) -> None:
    """Tiles hold every voxel of the box once, nothing else, and none crosses a border of the grid of cells."""
    box = data.draw(boxes(shape))
    count = np.zeros(shape, dtype=int)
    for tile in box.tiles(cell):
        count[tile.slices] += 1
        assert all(a // n == (b - 1) // n for a, b, n in zip(tile.start, tile.stop, cell, strict=True))
    expected = np.zeros(shape, dtype=int)
    expected[box.slices] = 1
    assert np.array_equal(count, expected)


def test_relative_boxes_index_a_part_as_the_whole() -> None:
    """A box seen from a part's first voxel selects the same voxels of the part as the box does of the whole."""
    whole = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    part, box = Box((1, 1, 2), (4, 5, 6)), Box((2, 2, 3), (3, 4, 6))
    assert box.relative_to(part.start).slices == box.slices_from(part.start)
    assert np.array_equal(whole[part.slices][box.slices_from(part.start)], whole[box.slices])
