"""The oracle itself: against an even slower loop over exact fractions, and against SciPy where both mean the same."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import ndimage

from isovoxel.engines.reference import reference
from isovoxel.geometry.grid import Box, VoxelGrid
from strategies import as_dtype, read_from

# As fractions, so that ties are ties: 11/10 and 23/10 have no exact float64.
FACTORS = ["1", "2", "3", "1/2", "1/3", "3/2", "5/2", "11/10", "23/10", "7/10", "1/100"]


def voxel_by_voxel(
    volume: np.ndarray, factors: list[Fraction], shape: tuple[int, int, int], interpolation: str, boundary: str
) -> np.ndarray:
    """Scale with Python loops and exact arithmetic, from the definition and nothing else."""

    def value(index: tuple[int, int, int]) -> Fraction:
        inside = all(0 <= i < n for i, n in zip(index, volume.shape, strict=True))
        if boundary == "constant" and not inside:
            return Fraction(0)
        return Fraction(float(volume[tuple(min(max(i, 0), n - 1) for i, n in zip(index, volume.shape, strict=True))]))

    half = Fraction(1, 2)
    result = np.zeros(shape)
    for output in itertools.product(*map(range, shape)):
        position = [(o + half) / f - half for o, f in zip(output, factors, strict=True)]
        if interpolation == "nearest":
            result[output] = value(tuple(math.floor(p + half) for p in position))
            continue
        total = Fraction(0)
        for corner in itertools.product((0, 1), repeat=3):
            index = tuple(math.floor(p) + c for p, c in zip(position, corner, strict=True))
            total += math.prod(1 - abs(p - i) for p, i in zip(position, index, strict=True)) * value(index)
        result[output] = total
    return result


@pytest.mark.sampled(21)
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("boundary", ["nearest", "constant"])
@pytest.mark.parametrize("text", FACTORS)
def test_it_equals_a_loop_over_voxels_and_exact_fractions(text: str, boundary: str, interpolation: str) -> None:
    """Along each axis in turn, ties and the rim included, it differs from exact arithmetic by float64's rounding."""
    rng = np.random.default_rng(len(text))
    factor = Fraction(text)
    for shape, factors in (
        ((17, 1, 2), [factor, Fraction(1), Fraction(2)]),
        ((2, 19, 1), [Fraction(3, 2), factor, Fraction(1)]),
        ((1, 2, 23), [Fraction(1), Fraction(1, 2), factor]),
    ):
        volume = rng.integers(0, 65536, shape).astype(np.float64)
        floats = tuple(float(f) for f in factors)
        out = VoxelGrid(shape).scaled(floats).shape
        expected = voxel_by_voxel(volume, factors, out, interpolation, boundary)
        found = reference(read_from(volume), shape, floats, Box.whole(out), interpolation, boundary)
        # 2^16 grey levels, float64: positions below 100 round by 2^-47, weights and sums by less.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 if interpolation == "linear" else 0)


@pytest.mark.parametrize("factors", [(2, 3, 1), (0.5, 2, 4), (1.5, 0.25, 5), (1, 1, 1)])
def test_it_equals_scipy_where_conventions_coincide(factors: tuple[float, float, float]) -> None:
    """SciPy's zoom in grid mode is edge-aligned as well where n * factor is whole (else it stretches to the shape)."""
    volume = np.random.default_rng(1).random((8, 12, 16))
    found = reference(
        read_from(volume), volume.shape, factors, Box.whole(VoxelGrid(volume.shape).scaled(factors).shape)
    )
    # Both compute in float64, SciPy from one matrix of weights, so they differ in the last bits only.
    np.testing.assert_allclose(
        found, ndimage.zoom(volume, factors, order=1, grid_mode=True, mode="nearest"), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_a_box_of_the_result_is_that_box_of_the_whole_result(interpolation: str) -> None:
    """However the output is cut, its voxels are the same to the bit."""
    volume = np.random.default_rng(2).random((5, 9, 7))
    factors = (2.3, 0.7, 1.1)
    out = Box.whole(VoxelGrid(volume.shape).scaled(factors).shape)
    whole = reference(read_from(volume), volume.shape, factors, out, interpolation)
    for tile in out.tiles((4, 3, 5)):
        part = reference(read_from(volume), volume.shape, factors, tile, interpolation)
        np.testing.assert_array_equal(part, whole[tile.slices])


def test_a_sample_of_no_weight_does_not_count() -> None:
    """A NaN reaches the output voxels that give it weight, and no others."""
    volume = np.zeros((1, 1, 9))
    volume[0, 0, 4] = np.nan
    same = reference(read_from(volume), volume.shape, (1.0, 1.0, 1.0), Box.whole(volume.shape))
    np.testing.assert_array_equal(same, volume)
    finer = reference(read_from(volume), volume.shape, (1.0, 1.0, 2.0), Box.whole((1, 1, 18)))
    assert np.flatnonzero(np.isnan(finer)).tolist() == [7, 8, 9, 10]


def test_integers_are_rounded_half_to_even_and_saturated() -> None:
    """Real values become integers as `np.rint` has it, and stay within the dtype."""
    values = np.array([-1.0, 0.5, 1.5, 2.5, 254.5, 300.0])
    np.testing.assert_array_equal(as_dtype(values, np.dtype("uint8")), [0, 0, 2, 2, 254, 255])
    assert as_dtype(values, np.dtype("float32")).dtype == np.float32
