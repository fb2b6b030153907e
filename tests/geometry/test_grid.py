"""Boxes, axes and voxel grids."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.errors import OptionError
from isovoxel.geometry.grid import Axis, Box, VoxelGrid, factor_for_voxel_size, factor_for_zoom, round_up
from isovoxel.geometry.resampling import Table
from strategies import boxes, factor, factors, shapes, triples

# ---- boxes -----------------------------------------------------------------------------------------------------------


def test_a_box_that_stops_before_it_starts_is_refused() -> None:
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


# ---- axes ------------------------------------------------------------------------------------------------------------


def axis_of(n: int, f: float) -> Axis:
    """The axis of n samples scaled by f."""
    return Axis(n, max(1, int(np.around(n * f))), f)


@given(st.integers(1, 10_000), factor, st.integers(1, 500))
def test_cuts_ascend_from_the_first_sample_to_the_last(n: int, f: float, length: int) -> None:
    """Cuts of the input are ascending, inside the volume, and end at its end."""
    axis = axis_of(n, f)
    cuts = axis.cuts(axis.intervals(length)[1])
    assert (np.diff(cuts) >= 0).all()
    assert cuts[0] >= 0
    assert cuts[-1] == n


@given(st.integers(1, 10**18), st.integers(1, 10**9))
def test_rounding_up_is_exact_for_large_integers(a: int, b: int) -> None:
    """The multiple is at least the number, and the one before it is not."""
    assert round_up(a, b) % b == 0
    assert round_up(a, b) - b < a <= round_up(a, b)


# ---- grids -----------------------------------------------------------------------------------------------------------

BLASTOCYST = VoxelGrid((86, 396, 393), (1.0, 0.202, 0.202), unit="micrometer")


@pytest.mark.parametrize(("zoom", "shape"), [(1, (86, 80, 79)), (2, (172, 160, 159)), (5, (430, 400, 397))])
def test_zoom_gives_the_shapes_of_the_tutorial(zoom: float, shape: tuple[int, int, int]) -> None:
    """The shapes are those that cle.scale makes of the tutorial's stack."""
    grid = BLASTOCYST.scaled(factor_for_zoom(BLASTOCYST, zoom))
    assert grid.shape == shape
    assert grid.voxel_size == pytest.approx((1 / zoom,) * 3)


@given(shapes(300), factors, triples(st.floats(0.01, 100)), triples(st.floats(-1e3, 1e3)))
def test_the_first_faces_of_a_volume_stay_where_they_are(
    shape: tuple[int, int, int],
    factor: tuple[float, float, float],
    size: tuple[float, float, float],
    origin: tuple[float, float, float],
) -> None:
    """The world position of the face before voxel 0 does not change, and that of the last by half a voxel at most."""
    before = VoxelGrid(shape, size, origin)
    after = before.scaled(factor)
    for n, m, f, s, t, o, p in zip(
        shape, after.shape, factor, size, after.voxel_size, origin, after.origin, strict=True
    ):
        assert p - t / 2 == pytest.approx(o - s / 2, abs=1e-9 * (abs(o) + s + t))
        assert t == s / f
        if n * f >= 0.5:  # an axis that shrinks to nothing keeps one voxel
            assert abs(m * t - n * s) <= t / 2 * (1 + 1e-9)
        assert m == max(1, int(np.around(n * f)))


def test_isotropic_target_is_met_exactly() -> None:
    """A target voxel size makes cubes of that size."""
    assert BLASTOCYST.scaled(factor_for_voxel_size(BLASTOCYST, 0.5)).voxel_size == pytest.approx((0.5,) * 3)


def test_lengths_of_numpy_become_pythons() -> None:
    """Messages and metadata show numbers, and not the types that a caller has them in."""
    grid = VoxelGrid((10, 20, 30), (np.float64(4), 1.0, 1.0), (np.float64(1), 0.0, 0.0))
    scaled = grid.scaled(factor_for_zoom(grid, float(np.float64(2))))
    placed = scaled.placed_on(grid)
    found = (*scaled.voxel_size, *scaled.origin, *placed.factor, *placed.shift, *factor_for_voxel_size(grid, 1.0))
    assert {type(number) for number in found} == {float}


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_senseless_numbers_are_refused(bad: float) -> None:
    """Zero, negative, NaN and infinite sizes, zooms and factors are errors that name the value."""
    for make in (
        lambda: VoxelGrid((1, 1, 1), (1.0, bad, 1.0)),
        lambda: factor_for_zoom(BLASTOCYST, bad),
        lambda: factor_for_voxel_size(BLASTOCYST, bad),
        lambda: BLASTOCYST.scaled((1.0, 1.0, bad)),
    ):
        with pytest.raises(OptionError, match="finite number above 0"):
            make()


def test_an_axis_beyond_counting_is_refused() -> None:
    """A factor whose output no integer of float64 counts names the axis."""
    with pytest.raises(OptionError, match="voxels of the 86 along z"):
        BLASTOCYST.scaled((1e15, 1.0, 1.0))


def test_an_empty_volume_is_refused() -> None:
    with pytest.raises(OptionError, match="at least one voxel"):
        VoxelGrid((0, 3, 3))


# ---- onto another grid ---------------------------------------------------------------------------------------------

grids = st.builds(
    VoxelGrid, shapes(300), triples(st.floats(0.05, 20)), triples(st.floats(-1e4, 1e4) | st.sampled_from([0.0, 0.1]))
)


def axes_onto(source: VoxelGrid, output: VoxelGrid) -> list[Axis]:
    """Return the axes of a scaling of one grid onto the voxels of another."""
    factor, shift = output.placed_on(source)
    return [Axis(*axis) for axis in zip(source.shape, output.shape, factor, shift, strict=True)]


@given(grids, grids)
def test_positions_on_another_grid_follow_from_both_origins(source: VoxelGrid, output: VoxelGrid) -> None:
    """Within 1e-9 of a voxel, against exact arithmetic, as far as the origins have digits."""
    for i, axis in enumerate(axes_onto(source, output)):
        size, other = Fraction(source.voxel_size[i]), Fraction(output.voxel_size[i])
        apart = Fraction(output.origin[i]) - Fraction(source.origin[i])
        ends = [0, axis.m // 2, axis.m - 1]
        exact = [float((apart + o * other) / size) for o in ends]
        digits = 2.0**-49 * max(abs(source.origin[i]), abs(output.origin[i])) / source.voxel_size[i]
        np.testing.assert_allclose(axis.position(np.array(ends)), exact, rtol=1e-14, atol=1e-9 + digits)


@given(grids, factors)
def test_a_scaled_grid_has_the_positions_of_the_scaling(grid: VoxelGrid, factor: tuple[float, float, float]) -> None:
    """To the bit, if its factors are whole or the inverses of whole ones."""
    whole = tuple(float(round(f)) if f >= 1 else 1 / round(1 / f) for f in factor)
    scaled = grid.scaled(whole)
    assert scaled.placed_on(grid) == (whole, (0.0, 0.0, 0.0))
    for axis, f in zip(axes_onto(scaled, grid), whole, strict=True):
        assert (axis.factor, axis.shift) == (1 / f, 0.0)


@given(grids, triples(st.integers(1, 7)), triples(st.integers(0, 400)), shapes(40))
def test_a_crop_of_a_scaled_grid_begins_a_whole_number_of_samples_later(
    grid: VoxelGrid, by: tuple[int, int, int], start: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    factor = (float(by[0]), float(by[1]), float(by[2]))
    whole = grid.scaled(factor)
    origin = tuple(o + k * s for o, k, s in zip(whole.origin, start, whole.voxel_size, strict=True))
    crop = VoxelGrid(shape, whole.voxel_size, origin)
    assert crop.placed_on(grid) == (factor, tuple(map(float, start)))


@given(grids, triples(st.integers(1, 7)))
def test_labels_that_grew_by_whole_factors_come_back_by_nearest(grid: VoxelGrid, by: tuple[int, int, int]) -> None:
    """Each voxel takes a sample that was made of itself, wherever the grid lies."""
    larger = grid.scaled((float(by[0]), float(by[1]), float(by[2])))
    for there, back in zip(axes_onto(grid, larger), axes_onto(larger, grid), strict=True):
        grown = Table(there, "nearest").rows(np.arange(there.m)).first
        returned = Table(back, "nearest").rows(np.arange(back.m)).first
        np.testing.assert_array_equal(grown[returned], np.arange(there.n))


@pytest.mark.parametrize(("size", "origin"), [(1e-300, 0.0), (1.0, 1e17), (1e300, 0.0)])
def test_grids_that_float64_cannot_place_are_refused(size: float, origin: float) -> None:
    """Positions beyond 2^53 voxels have no fractions left."""
    with pytest.raises(OptionError):
        VoxelGrid((4, 4, 4), (1.0, 1.0, size), (0.0, 0.0, origin)).placed_on(VoxelGrid((4, 4, 4), (1.0, 1.0, 1e-10)))
