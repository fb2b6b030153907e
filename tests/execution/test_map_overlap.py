"""Windows of blocks whose halo `map_overlap` exchanges."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from isovoxel.execution.map_overlap import OverlapWindow
from isovoxel.geometry.grid import Box
from isovoxel.planning.plan import Plan
from strategies import examples, plans


@settings(max_examples=examples(100))
@given(plans(40), st.data())
def test_a_window_reads_what_its_blocks_read_and_no_more(plan: Plan, data: st.DataObject) -> None:
    """Cut anywhere, a window's input holds the read boxes of its blocks, each within one neighbour's reach."""
    places = Box.whole(plan.block_grid)
    size = tuple(data.draw(st.integers(1, n)) for n in places.stop)
    tiles = list(places.tiles(size))
    window = OverlapWindow(plan, data.draw(st.sampled_from(tiles)))
    assert tuple(map(sum, window.input_chunks)) == window.read_box.shape
    for place in (window.places.start, tuple(n - 1 for n in window.places.stop)):
        block = plan.block_at(place)
        assert window.read_box.contains(block.read_box)
