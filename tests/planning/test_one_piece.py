"""Where scaling in one piece stops."""

import math

import pytest

from isovoxel.geometry.grid import VoxelGrid, factor_for_zoom
from isovoxel.planning.one_piece import whole_limits
from strategies import GIB, device_limits

GRID = VoxelGrid((86, 396, 393), (1.0, 0.202, 0.202))


def test_the_first_limit_is_crossed_exactly_at_its_zoom() -> None:
    """Just below the zoom the output fits the largest allocation, at the zoom it does not."""
    found = whole_limits(GRID, device_limits())
    zoom = found.first.zoom
    assert found.first.limit == "largest allocation"
    sizes = [4 * math.prod(GRID.scaled(factor_for_zoom(GRID, z)).shape) for z in (zoom * (1 - 1e-9), zoom)]
    assert sizes[0] <= GIB < sizes[1]
    assert not found.fits(zoom)
    assert found.fits(zoom * (1 - 1e-9))


def test_limits_stand_in_the_order_in_which_they_are_crossed() -> None:
    """The first crossing is the smallest zoom, and each limit is there once."""
    zooms = [c.zoom for c in whole_limits(GRID, device_limits()).crossings]
    assert zooms == sorted(zooms)
    assert len(zooms) == 4


def test_an_input_wider_than_an_image_stops_at_any_zoom() -> None:
    """Linear needs an image of the input; nearest does not."""
    wide = VoxelGrid((4, 4, 2049))
    linear = whole_limits(wide, device_limits(), "linear").first
    assert (linear.limit, linear.zoom) == ("image size", 0.0)
    assert whole_limits(wide, device_limits(), "nearest").first.limit == "largest allocation"


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({"largest_allocation": 64 * GIB, "memory": 4 * GIB}, "device memory"),
        ({"largest_allocation": 64 * GIB, "memory": 80 * GIB}, "voxels in a buffer"),
    ],
)
def test_each_limit_can_be_the_first(change: dict, limit: str) -> None:
    """Memory binds where allocations may be large, and 2^31 - 1 voxels where memory is ample."""
    assert whole_limits(GRID, device_limits(**change)).first.limit == limit


def test_memory_counts_input_buffer_image_and_output() -> None:
    """At the zoom where memory is exceeded, 8 bytes per input and 4 per output voxel are more than there is."""
    found = whole_limits(GRID, device_limits(largest_allocation=64 * GIB))
    crossing = next(c for c in found.crossings if c.limit == "device memory")
    assert 8 * math.prod(GRID.shape) + 4 * math.prod(crossing.shape) + 64 > 4 * GIB
