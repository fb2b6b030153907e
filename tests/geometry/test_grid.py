"""Voxel grids and their scaling."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.errors import OptionError
from isovoxel.geometry.grid import VoxelGrid, factor_for_voxel_size, factor_for_zoom
from strategies import factors, shapes, triples

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
    """A grid has a voxel at least."""
    with pytest.raises(OptionError, match="at least one voxel"):
        VoxelGrid((0, 3, 3))
