"""The exact engine and its oracle against what others define: SciPy, PyTorch, Pillow and plain means.

Each comparison is made where both mean the same. Everywhere that is the edge-aligned grid, and

- SciPy's zoom stretches the grid to the rounded shape, so ``n * factor`` must be whole;
- PyTorch and Pillow divide by the weights inside the image where a wide kernel reaches beyond its rim, isovoxel repeats
  the rim: they agree where the kernel's support is inside the image;
- PyTorch's bicubic has a = -3/4 without and a = -1/2 with ``antialias=True``, Pillow's a = -1/2; ours is -1/2.

PyTorch's values were computed once, with torch 2.13.0+cpu in float64 by ``torch.nn.functional.interpolate(input,
size=size, mode=mode, align_corners=False, antialias=antialias)``, for the integers that `VOLUME` and `IMAGE` hold, and
rounded to 6 decimals.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from isovoxel.engines.reference import reference
from isovoxel.engines.registry import open_engine
from isovoxel.geometry.grid import Box
from isovoxel.geometry.resampling import Table
from strategies import cut, read_from

Float3 = tuple[float, float, float]

RNG = np.random.default_rng(2013)
VOLUME = RNG.integers(0, 100, (3, 4, 5)).astype(np.float32)
"""The input of PyTorch's trilinear and area modes."""
IMAGE = RNG.integers(0, 100, (1, 12, 15)).astype(np.float32)
"""The input of its 2-D modes, as a volume of one plane."""

FLOAT_ERROR = 2e-6
"""Of our float32 sums, and of theirs where they compute in float32, relative to the largest voxel."""
DIGITS = 1e-6
"""Of the values below, which are rounded, and far above what float64 sums differ by."""


def both(volume: np.ndarray, factor: Float3, interpolation: str, *, antialias: bool = False) -> list[np.ndarray]:
    """Scale float32 voxels with the exact engine and with its oracle."""
    plan = cut(
        volume.shape,
        factor,
        (9999,) * 3,
        "float32",
        engine="exact",
        interpolation=interpolation,
        antialias=antialias,
    )
    found = open_engine("exact").scale(volume[plan.block(0).read_box.slices], plan.block(0), plan).data
    whole = Box.whole(plan.output.shape)
    real = reference(read_from(volume), volume.shape, factor, whole, interpolation, antialias=antialias)
    return [found, real]


def inside(volume: np.ndarray, factor: Float3, interpolation: str, *, antialias: bool = True) -> tuple[slice, ...]:
    """Return the output voxels whose kernel's support is inside the volume."""
    plan = cut(
        volume.shape, factor, (9999,) * 3, "float32", engine="exact", interpolation=interpolation, antialias=antialias
    )

    def along(table: Table) -> slice:
        position = table.axis.position(np.arange(table.axis.m))
        low, high = position - table.radius, position + table.radius
        whole = np.flatnonzero((low >= -1) & (high <= table.axis.n)) if not table.identity else [0, table.axis.m - 1]
        assert len(whole) > 0
        return slice(int(whole[0]), int(whole[-1]) + 1)

    z, y, x = (along(table) for table in plan.tables)
    return (z, y, x)


# ---- PyTorch -------------------------------------------------------------------------------------------------------

# fmt: off
TRILINEAR_6_2_5 = [[[33, 40, 78.5, 25, 89.5], [95, 58.5, 74, 48.5, 68.5]], [[38.625, 39.5, 66.25, 29, 78.625], [84.75, 66.75, 70.625, 48.375, 65.75]], [[49.875, 38.5, 41.75, 37, 56.875], [64.25, 83.25, 63.875, 48.125, 60.25]], [[47.5, 38.625, 31.375, 45.25, 42.375], [57.625, 82, 61.625, 48.125, 46]], [[31.5, 39.875, 35.125, 53.75, 35.125], [64.875, 63, 63.875, 48.375, 23]], [[23.5, 40.5, 37, 58, 31.5], [68.5, 53.5, 65, 48.5, 11.5]]]  # noqa: E501
TRILINEAR_1_6_10 = [[[72, 59, 33, 16, 8, 14.5, 35.5, 41.25, 31.75, 27], [55.5, 51.125, 42.375, 35.875, 31.625, 32.375, 38.125, 42.25, 44.75, 46], [35.666667, 42.208333, 55.291667, 61.958333, 62.208333, 56.625, 45.208333, 44.583333, 54.75, 59.833333], [22.333333, 38.041667, 69.458333, 86.791667, 90.041667, 82.125, 63.041667, 49.916667, 42.75, 39.166667], [54, 63.375, 82.125, 83.75, 68.25, 57.375, 51.125, 50.375, 55.125, 57.5], [89, 89.75, 91.25, 74.5, 39.5, 26.25, 34.75, 49.5, 70.5, 81]]]  # noqa: E501
BILINEAR_6_5 = [[49.375, 64.793651, 49.031746, 44.619048, 46.553571], [49.796875, 48.583333, 56.138889, 47.375, 34.671875], [63.515625, 57.402778, 57.597222, 63.25, 46.515625], [70.28125, 38.569444, 50.027778, 68.041667, 52.25], [49.171875, 41.763889, 56.597222, 57.986111, 66.25], [61.267857, 44.111111, 59.111111, 43.063492, 66.732143]]  # noqa: E501
BICUBIC_6_5 = [[49.921618, 67.530615, 47.491606, 43.948617, 47.343375], [47.930039, 47.988229, 57.553029, 45.162868, 31.996705], [63.714115, 60.665825, 57.805556, 64.880383, 46.728646], [74.662083, 33.850133, 47.68017, 73.067597, 49.832969], [45.22888, 41.745127, 57.638114, 57.949148, 67.914543], [61.963794, 43.671497, 60.16473, 39.674048, 69.060418]]  # noqa: E501
BILINEAR_4_10 = [[38.03125, 55.277778, 67.972222, 47.75, 60.125, 43.583333, 39.833333, 48.305556, 43.944444, 34.046875], [50.402778, 67.851852, 55, 52.358025, 60.345679, 56.296296, 65.962963, 53.888889, 46.333333, 40.291667], [60.458333, 65.123457, 42.432099, 34.024691, 36.308642, 66.123457, 62.765432, 65.320988, 67.641975, 38.041667], [65.453125, 48.180556, 40.027778, 46.763889, 65.194444, 58.25, 38.541667, 52.388889, 71.611111, 69.46875]]  # noqa: E501
BICUBIC_8_10 = [[46.225851, 55.253894, 86.966142, 51.109638, 63.338982, 39.766771, 35.677774, 65.781643, 45.88411, 64.310203], [22.616639, 53.673286, 57.427278, 49.299962, 65.54117, 47.471055, 32.277038, 31.758401, 40.296739, 8.906179], [46.079735, 66.131629, 53.449288, 29.854526, 63.126172, 57.804555, 72.815798, 47.463149, 47.389489, 34.805468], [52.984698, 73.877444, 55.898817, 70.088568, 62.28145, 42.707264, 69.913218, 66.324596, 41.652114, 52.332499], [87.790071, 81.803733, 41.445207, 34.74845, 20.46403, 77.160003, 72.136948, 67.275553, 70.808538, 26.992379], [34.433412, 61.30155, 37.580883, 19.113516, 37.840321, 70.622642, 60.865014, 61.107825, 71.717304, 37.417675], [58.460558, 41.09065, 42.819047, 50.018332, 70.122138, 63.572897, 33.563962, 61.542146, 88.072566, 69.359263], [86.019952, 49.943547, 34.518184, 50.54285, 71.148663, 49.593407, 29.642287, 39.541647, 55.045639, 74.403442]]  # noqa: E501
CUBIC_UP = [[78.441176, 11.882353, 85.735294, 85.382353, 82.205882], [68.036496, 19.124088, 76.591241, 87.963504, 76.240876], [46.007634, 34.473282, 57.21374, 93.442748, 63.625954], [28.304688, 33, 55.398438, 87.0625, 44.265625], [16.476562, 13.625, 72.507812, 68.4375, 19.046875], [23.179688, 22.664062, 70.773438, 67.03125, 4.851562], [48.414062, 60.117188, 50.195312, 82.84375, 1.679688], [48.453125, 73.015625, 51.328125, 86.125, 5.765625], [23.296875, 61.359375, 74.171875, 76.875, 17.109375], [21.099237, 63.419847, 80.305344, 59.755725, 43.923664], [40.49635, 78.160584, 70.423358, 36.408759, 83.430657], [49.647059, 85.117647, 65.764706, 25.382353, 102.088235]]  # noqa: E501
CUBIC_UP_PLAIN = [[79.113281, 11.46875, 86.269531, 85.261719, 82.636719], [66.867188, 20.351562, 75.132812, 88.605469, 75.917969], [46.945312, 35.304688, 56.492188, 94.472656, 65.410156], [26.019531, 32.53125, 55.222656, 86.359375, 42.414062], [15.152344, 12.40625, 72.636719, 68.390625, 20.054688], [23.800781, 23.308594, 70.503906, 66.75, 2.824219], [48.589844, 58.863281, 49.949219, 82.5625, 0.472656], [48.570312, 74.539062, 51.257812, 87.015625, 5.273438], [23.554688, 61.523438, 73.492188, 78.984375, 14.039062], [19.894531, 63.066406, 81.519531, 58.917969, 45.164062], [38.902344, 77.105469, 71.402344, 37.691406, 81.210938], [50.164062, 85.53125, 65.523438, 24.675781, 103.277344]]  # noqa: E501
AREA = [[[37.333333, 39.5, 48.333333, 41.333333, 55.666667], [72.5, 67.833333, 66.5, 48.333333, 45.833333]]]
# fmt: on


def assert_both_equal(found: list[np.ndarray], theirs: object, where: tuple[slice, ...] = (slice(None),) * 3) -> None:
    """Compare the engine within float32's precision and the oracle to the last digit given."""
    expected = np.array(theirs)
    expected = expected[None] if expected.ndim == 2 else expected
    for ours, tolerance in zip(found, (100 * FLOAT_ERROR, DIGITS), strict=True):
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours[where], expected[where], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("factor", "theirs"), [((2.0, 0.5, 1.0), TRILINEAR_6_2_5), ((1 / 3, 1.5, 2.0), TRILINEAR_1_6_10)]
)
def test_linear_equals_torch_trilinear(factor: Float3, theirs: list) -> None:
    """``mode="trilinear", align_corners=False`` is linear, growing and shrinking, the rim included."""
    assert_both_equal(both(VOLUME, factor, "linear"), theirs)


@pytest.mark.parametrize(
    ("interpolation", "factor", "theirs"),
    [
        ("linear", (1.0, 0.5, 1 / 3), BILINEAR_6_5),
        ("linear", (1.0, 1 / 3, 2 / 3), BILINEAR_4_10),
        ("cubic", (1.0, 0.5, 1 / 3), BICUBIC_6_5),
        ("cubic", (1.0, 2 / 3, 2 / 3), BICUBIC_8_10),
    ],
)
def test_antialiased_kernels_equal_torch_inside_the_image(interpolation: str, factor: Float3, theirs: list) -> None:
    """``antialias=True`` widens bilinear and bicubic (a = -1/2) as we do; at the rim torch weighs what is inside."""
    where = inside(IMAGE, factor, interpolation)
    found = both(IMAGE, factor, interpolation, antialias=True)
    assert_both_equal(found, theirs, where)
    assert np.abs(found[1] - np.array(theirs)[None]).max() > 1  # at the rim they do differ


def test_cubic_equals_torch_where_its_a_is_minus_a_half() -> None:
    """Growing, torch's bicubic is ours with ``antialias=True`` and inside; without it a is -3/4, and it is another."""
    image, factor = IMAGE[:, :6, :5].copy(), (1.0, 2.0, 1.0)
    found = both(image, factor, "cubic")
    where = inside(image, factor, "cubic")
    assert_both_equal(found, CUBIC_UP, where)
    assert np.abs(found[1] - np.array(CUBIC_UP_PLAIN)[None])[where].max() > 1


def test_area_equals_torch_area() -> None:
    """``mode="area"``, an adaptive mean, is area where the input is a whole multiple of the output."""
    assert_both_equal(both(VOLUME, (1 / 3, 0.5, 1.0), "area"), AREA)


# ---- Pillow --------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("interpolation", "filter_"),
    [("linear", Image.Resampling.BILINEAR), ("cubic", Image.Resampling.BICUBIC), ("area", Image.Resampling.BOX)],
)
@pytest.mark.parametrize("size", [(12, 10), (6, 15), (8, 60), (48, 60), (24, 6)], ids=str)
def test_antialiased_kernels_equal_pillow_inside_the_image(
    interpolation: str, filter_: Image.Resampling, size: tuple[int, int]
) -> None:
    """Pillow's resize of 32-bit floats always widens; its BOX is area where factors or their inverses are whole."""
    image = np.random.default_rng(3).integers(0, 1000, (1, 24, 30)).astype(np.float32)
    theirs = np.asarray(Image.fromarray(image[0]).resize(size[::-1], filter_))[None]
    factor = (1.0, size[0] / 24, size[1] / 30)
    antialias = interpolation != "area"
    where = inside(image, factor, interpolation, antialias=antialias)
    for ours in both(image, factor, interpolation, antialias=antialias):
        # Pillow sums in float64, and rounds to float32 after each of its two passes.
        np.testing.assert_allclose(ours[where], theirs[where], rtol=0, atol=1000 * FLOAT_ERROR)


# ---- plain means ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [(2, 2, 2), (1, 4, 3), (5, 1, 2), (4, 6, 9)])
def test_area_equals_means_of_blocks(by: tuple[int, int, int]) -> None:
    """Shrinking by whole numbers is the mean of each block (as ``skimage.measure.block_reduce(func=np.mean)``)."""
    shape = (4 * by[0], 3 * by[1], 5 * by[2])
    volume = np.random.default_rng(4).random(shape, np.float32)
    means = volume.astype(np.float64).reshape(4, by[0], 3, by[1], 5, by[2]).mean((1, 3, 5))
    found, real = both(volume, (1 / by[0], 1 / by[1], 1 / by[2]), "area")
    np.testing.assert_allclose(found, means, rtol=0, atol=FLOAT_ERROR)
    np.testing.assert_allclose(real, means, rtol=0, atol=1e-12)


@pytest.mark.parametrize("by", [(2, 3, 4), (1, 5, 1)])
def test_area_repeats_voxels_when_growing_by_whole_numbers(by: tuple[int, int, int]) -> None:
    """An output voxel that lies inside one input voxel is that voxel."""
    volume = np.random.default_rng(5).random((3, 4, 5), np.float32)
    repeated = volume.repeat(by[0], 0).repeat(by[1], 1).repeat(by[2], 2)
    for ours in both(volume, (float(by[0]), float(by[1]), float(by[2])), "area"):
        np.testing.assert_allclose(ours, repeated, rtol=0, atol=FLOAT_ERROR)


@pytest.mark.parametrize("factor", [(2.0, 2.0, 2.0), (1.0, 3.0, 5.0)])
def test_nearest_equals_scipy_zoom_of_order_0(factor: Float3) -> None:
    """``zoom(order=0, grid_mode=True, mode="nearest")`` by whole numbers picks the same voxels."""
    volume = np.random.default_rng(6).random((4, 5, 6), np.float32)
    theirs = ndimage.zoom(volume, factor, order=0, grid_mode=True, mode="nearest")
    for ours in both(volume, factor, "nearest"):
        np.testing.assert_array_equal(ours, theirs)
