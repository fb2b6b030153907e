"""Projections are NumPy's maxima in bounded memory, and the picture shows what lies where, in proportion."""

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

import isovoxel
from isovoxel.errors import OptionError, OutputError
from isovoxel.geometry.grid import Box, Float3, Index3
from isovoxel.readers.base import Volume
from isovoxel.reporting import views as module
from isovoxel.reporting.figures import drawing, round_length, text_width
from isovoxel.reporting.show import ACCENT, before_after, draw, save
from isovoxel.reporting.views import (
    LABEL_FONT,
    MAGNIFIED,
    ViewPlace,
    arrange,
    held_while_reading,
    maximum_projections,
)

YELLOW = tuple(bytes.fromhex(ACCENT[1:]))
"""Red, green and blue of scale bars and frames."""

shapes = hnp.array_shapes(min_dims=3, max_dims=3, max_side=9)


def volume_of(
    array: NDArray[Any],
    *,
    chunks: Index3 = (1, 1, 1),
    voxel_size: Float3 | None = None,
    unit: str | None = None,
    read: Callable[[Box], NDArray[Any]] | None = None,
) -> Volume:
    return Volume(
        name="test",
        kind="NumPy array",
        shape=array.shape,  # type: ignore[arg-type]
        dtype=array.dtype,
        read=read or (lambda box: np.ascontiguousarray(array[box.slices])),
        chunks=chunks,
        voxel_size=voxel_size,
        unit=unit,
    )


def spark(shape: Index3, at: Index3) -> NDArray[np.uint16]:
    """Return one bright voxel in the void."""
    array = np.zeros(shape, np.uint16)
    array[at] = 1000
    return array


def part(pixels: NDArray[np.uint8], place: ViewPlace) -> NDArray[np.uint8]:
    """Return the pixels of one view."""
    left, top, width, height = place.image
    return pixels[top : top + height, left : left + width]


@given(
    array=hnp.arrays(st.sampled_from(["uint8", "int16", "uint32", "float32"]), shapes),
    chunks=st.tuples(*[st.integers(1, 12)] * 3),
    tile_bytes=st.integers(4, 600),
)
def test_projections_are_numpys_maxima(array: NDArray[Any], chunks: Index3, tile_bytes: int) -> None:
    """However a volume is chunked and tiled, its projections are NumPy's; only what is all NaN stays NaN."""
    with mock.patch.object(module, "TILE_BYTES", tile_bytes):
        projected = maximum_projections(volume_of(array, chunks=chunks))
    for axis in range(3):
        assert projected.along[axis].dtype == array.dtype
        np.testing.assert_array_equal(projected.along[axis], np.fmax.reduce(array, axis=axis))


@given(
    array=hnp.arrays(st.sampled_from(["uint16", "float32"]), shapes),
    chunks=st.tuples(*[st.integers(1, 12)] * 3),
    tile_bytes=st.integers(4, 600),
    threads=st.integers(2, 4),
)
def test_any_number_of_threads_draws_the_same_bits(
    array: NDArray[Any], chunks: Index3, tile_bytes: int, threads: int
) -> None:
    """Of zeros of either sign and of what is no number, too; and progress is told in order."""
    told: list[tuple[int, int]] = []
    with mock.patch.object(module, "TILE_BYTES", tile_bytes):
        one, many = (
            maximum_projections(volume_of(array, chunks=chunks), lambda *how: told.append(how), threads=n)
            for n in (1, threads)
        )
    assert [image.tobytes() for image in one.along] == [image.tobytes() for image in many.along]
    half = len(told) // 2
    assert told[:half] == told[half:] == sorted(told[:half])


@given(
    shape=st.tuples(*[st.integers(1, 400)] * 3),
    overhead=st.integers(0, 2**26),
    room=st.integers(0, 2**32),
    threads=st.integers(1, 64),
    sequential=st.booleans(),
)
def test_fewer_threads_read_where_memory_is_short(
    shape: Index3, overhead: int, room: int, threads: int, sequential: bool
) -> None:
    """What is held stays within the room, unless one thread with the least tile takes more; more room is used."""
    voxels = np.broadcast_to(np.uint16(0), shape)
    volume = replace(volume_of(voxels), read_overhead=overhead, sequential=sequential)
    least, most = held_while_reading(volume, 0, threads), held_while_reading(volume, None, threads)
    held = held_while_reading(volume, room, threads)
    assert least <= held <= max(least, min(room, most))
    assert held_while_reading(volume, most, threads) == most
    if sequential:  # which other threads would decode once more
        assert most == held_while_reading(volume, None, 1)


@given(
    array=hnp.arrays("int8", shapes),
    chunks=st.tuples(*[st.integers(1, 12)] * 3),
    tile_bytes=st.integers(1, 300),
    largest=st.integers(1, 10),
)
def test_long_axes_are_binned_by_their_maxima(
    array: NDArray[np.int8], chunks: Index3, tile_bytes: int, largest: int
) -> None:
    """A projection longer than allowed shows the largest voxel of each bin, wherever tiles end."""
    volume = volume_of(array, chunks=chunks)
    with (
        mock.patch.object(module, "TILE_BYTES", tile_bytes),
        mock.patch.object(module, "LARGEST", largest),
    ):
        projected = maximum_projections(volume)
    for axis, image in enumerate(projected.along):
        whole = array.max(axis=axis)
        k, m = (bins for other, bins in enumerate(projected.bins) if other != axis)
        assert max(image.shape) <= largest
        expected = [
            [whole[i : i + k, j : j + m].max() for j in range(0, whole.shape[1], m)]
            for i in range(0, whole.shape[0], k)
        ]
        np.testing.assert_array_equal(image, expected)


@given(
    chunks=st.tuples(*[st.integers(1, 40)] * 3),
    shape=st.tuples(*[st.integers(1, 30)] * 3),
    tile_bytes=st.integers(2, 5000),
)
def test_a_read_is_bounded_and_wastes_no_chunk(chunks: Index3, shape: Index3, tile_bytes: int) -> None:
    """No read is larger than the tile's bytes, and where a whole chunk fits, no chunk is read twice."""
    array = np.zeros(shape, np.uint16)
    boxes: list[Box] = []

    def read(box: Box) -> NDArray[np.uint16]:
        boxes.append(box)
        return array[box.slices]

    with mock.patch.object(module, "TILE_BYTES", tile_bytes):
        maximum_projections(volume_of(array, chunks=chunks, read=read))
    assert max(box.size for box in boxes) * 2 <= tile_bytes
    assert sum(box.size for box in boxes) == array.size
    if np.prod(np.minimum(chunks, shape)) * 2 <= tile_bytes:
        for box in boxes:
            starts_and_ends = zip(box.start, box.stop, chunks, shape, strict=True)
            assert all(a % c == 0 and (b % c == 0 or b == n) for a, b, c, n in starts_and_ends)


@given(
    array=hnp.arrays(st.sampled_from(["uint8", "float32"]), shapes),
    largest=st.integers(1, 10),
    all_bytes=st.integers(1, 400),
    thick=st.integers(1, 3),
)
def test_planes_are_left_out_only_where_that_saves_reading(
    array: NDArray[Any], largest: int, all_bytes: int, thick: int
) -> None:
    """Of a large volume kept plane by plane, each bin shows some planes, its first among them; else all."""
    read: set[int] = set()

    def keep(box: Box) -> NDArray[Any]:
        read.update(range(box.start[0], box.stop[0]))
        return np.ascontiguousarray(array[box.slices])

    told: list[tuple[int, int]] = []
    with (
        mock.patch.object(module, "LARGEST", largest),
        mock.patch.object(module, "ALL_BYTES", all_bytes),
    ):
        volume = volume_of(array, chunks=(thick, *array.shape[1:]), read=keep)
        projected = maximum_projections(volume, lambda done, total: told.append((done, total)))
    depth, k = array.shape[0], projected.bins[0]
    assert projected.planes == len(read)
    assert told[-1] == (told[-1][1],) * 2 == (array[sorted(read)].size,) * 2
    assert read >= set(range(0, depth, k))
    if thick > 1 or array.nbytes <= all_bytes or k == 1:
        assert len(read) == depth
    else:
        assert len(read) < depth or depth == 1
        assert len(read) >= depth * min(1, all_bytes / array.nbytes) // 2
    part = array[sorted(read)].max(axis=0) if array.dtype.kind != "f" else np.fmax.reduce(array[sorted(read)], axis=0)
    ky, kx = projected.bins[1:]
    expected = [
        [np.fmax.reduce(part[i : i + ky, j : j + kx], axis=None) for j in range(0, part.shape[1], kx)]
        for i in range(0, part.shape[0], ky)
    ]
    np.testing.assert_array_equal(projected.along[0], expected)


def test_memory_does_not_grow_with_the_volume() -> None:
    """600 MB that are made as they are read are projected within 150 MB."""
    shape = (150, 2000, 2000)
    corner = np.zeros(shape[1:], np.uint8)
    corner[-1, -1] = 77

    def read(box: Box) -> NDArray[np.uint8]:
        voxels = np.empty(box.shape, np.uint8)
        voxels[:] = corner[box.slices[1:]]
        return voxels

    volume = Volume("function", "function", shape, np.dtype(np.uint8), read, chunks=(64, 256, 256))
    tracemalloc.start()
    projected = maximum_projections(volume)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6
    assert projected.bins == (1, 2, 2)
    assert projected.along[0][-1, -1] == projected.along[1][75, -1] == projected.along[2][0, -1] == 77
    assert np.count_nonzero(projected.along[0]) == 1


@pytest.mark.parametrize("at", [(0, 0, 0), (9, 39, 59), (3, 30, 20)])
def test_a_bright_voxel_shows_where_it_lies(tmp_path: Path, at: Index3) -> None:
    """A bright voxel is a white rectangle of true proportions, at its place in each of the three views."""
    size = (4.0, 1.0, 1.0)
    volume = volume_of(spark((10, 40, 60), at), voxel_size=size, unit="micrometer")
    save(draw([volume], [""]), tmp_path / "view.png")
    pixels = np.asarray(Image.open(tmp_path / "view.png").convert("RGB"))
    (layout,) = arrange([volume], [""])
    scale = layout.views[0].image[2] / 60
    assert scale == round(scale) >= 8
    for place in layout.views:
        white = (part(pixels, place) == 255).all(axis=2)
        rows, columns = np.nonzero(white)
        down, right = place.axes
        assert rows.min() == at[down] * size[down] * scale
        assert rows.max() + 1 == (at[down] + 1) * size[down] * scale
        assert columns.min() == at[right] * size[right] * scale
        assert columns.max() + 1 == (at[right] + 1) * size[right] * scale


@pytest.mark.parametrize("at", [(0, 0, 0), (4, 7, 9), (2, 7000, 33)])
def test_a_bright_voxel_of_a_reduced_volume_is_not_lost(tmp_path: Path, at: Index3) -> None:
    """One bright voxel among thousands along an axis is still white, at its place."""
    array = spark((5, 9000, 40), at)
    volume = volume_of(array)
    save(draw([volume], [""]), tmp_path / "view.png")
    pixels = np.asarray(Image.open(tmp_path / "view.png").convert("RGB"))
    (layout,) = arrange([volume], [""])
    xy = layout.views[0]
    rows = np.nonzero((part(pixels, xy) == 255).all(axis=2))[0]
    assert abs(rows.mean() - at[1] * xy.image[3] / 9000) < 1.5


@pytest.mark.parametrize(
    ("shape", "voxel_size"),
    [
        ((86, 396, 393), (1.0, 0.202, 0.202)),
        ((300, 20, 400), (0.1, 3.0, 0.2)),
        ((50, 5000, 3000), (2.0, 0.5, 0.4)),
    ],
)
def test_views_have_the_volumes_proportions(shape: Index3, voxel_size: Float3) -> None:
    """Every view is as high and wide as the volume's physical sides, at one scale, to a pixel."""
    (layout,) = arrange([volume_of(np.broadcast_to(np.uint8(0), shape), voxel_size=voxel_size)], [""])
    lengths = np.multiply(shape, voxel_size)
    longest = int(lengths.argmax())
    shown = {axis: place.image[3 - i] for place in layout.views for i, axis in enumerate(place.axes)}
    assert 400 <= max(shown.values()) <= 1000
    for axis in range(3):
        assert shown[axis] == pytest.approx(lengths[axis] * shown[longest] / lengths[longest], abs=1)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("shape", "voxel_size", "unit", "symbol"),
    [
        ((86, 396, 393), (1.0, 0.202, 0.202), "micrometer", "µm"),
        ((40, 30, 2000), (0.5, 0.3, 0.3), "millimeter", "mm"),
        ((4, 3, 5), (2e3, 2e3, 2e3), "parsec", "parsec"),
        ((1, 1, 1), None, None, "voxels"),
    ],
)
def test_scale_bars_are_as_long_as_they_say(
    tmp_path: Path, shape: Index3, voxel_size: Float3 | None, unit: str | None, symbol: str
) -> None:
    """Every bar in the picture has the length in pixels that its round number of units takes."""
    volume = volume_of(np.zeros(shape, np.uint8), voxel_size=voxel_size, unit=unit)
    save(draw([volume], [""]), tmp_path / "view.png")
    pixels = np.asarray(Image.open(tmp_path / "view.png").convert("RGB"))
    (layout,) = arrange([volume], [""])
    lengths = np.multiply(shape, voxel_size or (1.0, 1.0, 1.0))
    places = [(place, 1) for place in layout.views]
    places += [(layout.detail, MAGNIFIED)] if layout.detail else []
    scale = max(p.image[2] / lengths[p.axes[1]] for p in layout.views if p.image[2] > 100)
    for place, magnified in places:
        number, words = place.bar_label.split()
        assert words == symbol
        assert number[0] in "0125"
        left, top, width, height = place.bar
        row = (pixels[top + height // 2, :] == YELLOW).all(axis=1)
        end = left + int(np.argmin(row[left:]))
        assert row[left]
        assert not row[left - 1]
        assert end - left == width
        assert width == pytest.approx(float(number) * scale * magnified, rel=0.01, abs=1)
        assert 15 <= width <= 160


@given(limit=st.floats(1e-12, 1e12))
def test_round_lengths_are_round_and_close_below(limit: float) -> None:
    """A round length is 1, 2 or 5 times a power of ten, above two fifths of the limit and not above it."""
    length = round_length(limit)
    assert 0.4 * limit * 0.999 <= length <= limit * (1 + 1e-12)
    assert f"{length:e}".rstrip("0123456789-+").rstrip("e") in {"1.000000", "2.000000", "5.000000"}


def test_before_and_after_share_scale_and_contrast(tmp_path: Path) -> None:
    """The same world is as large in both halves, and a value as bright, though one has no bright voxels."""
    dim = np.full((40, 80, 80), 100, np.uint16)
    dim[:20] = 0
    bright = dim.repeat(4, axis=0)[:, ::2, ::2].copy()
    bright[80:] = 200
    before = volume_of(dim, voxel_size=(4.0, 1.0, 1.0), unit="micrometer")
    after = volume_of(bright, voxel_size=(1.0, 2.0, 2.0), unit="micrometer")
    before_after(before, after, tmp_path / "both.png")
    pixels = np.asarray(Image.open(tmp_path / "both.png").convert("RGB"))
    left, right = arrange([before, after], ["before: ", "after: "])
    for a, b in zip(left.views, right.views, strict=True):
        assert a.image[1:] == b.image[1:]
        assert a.bar_label == b.bar_label
        assert a.image[0] + a.image[2] < b.image[0]
    assert set(np.unique(part(pixels, left.views[2])[..., 0])) == {0, 128}
    assert set(np.unique(part(pixels, right.views[2])[..., 0])) == {0, 255}


def test_detail_enlarges_what_its_frame_encloses(tmp_path: Path) -> None:
    """The detail shows the framed part of xz, every pixel repeated."""
    rng = np.random.default_rng(5)
    array = np.zeros((90, 30, 90), np.uint8)
    array[35:55, :, 35:55] = rng.integers(0, 255, (20, 30, 20))
    volume = volume_of(array, voxel_size=(1.0, 1.0, 1.0))
    save(draw([volume], [""]), tmp_path / "view.png")
    pixels = np.asarray(Image.open(tmp_path / "view.png").convert("RGB"))
    (layout,) = arrange([volume], [""])
    assert layout.detail is not None
    xz = part(pixels, layout.views[1])
    rows, columns = np.nonzero((xz == YELLOW).all(axis=2))
    framed = xz[rows.min() + 1 : rows.max(), columns.min() + 1 : columns.max()]
    assert len(np.unique(framed)) > 10
    expected = framed.repeat(MAGNIFIED, axis=0).repeat(MAGNIFIED, axis=1)
    np.testing.assert_array_equal(part(pixels, layout.detail), expected)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("value", [0.0, -3.5, np.nan, np.inf])
def test_one_voxel_of_any_value_is_drawn(tmp_path: Path, value: float) -> None:
    """The smallest volume makes a picture, whatever it holds, with one grey in its views."""
    volume = volume_of(np.full((1, 1, 1), value, np.float32))
    save(draw([volume], [""]), tmp_path / "view.png")
    pixels = np.asarray(Image.open(tmp_path / "view.png").convert("RGB"))
    (layout,) = arrange([volume], [""])
    assert layout.detail is not None
    for place in (layout.views[0], layout.views[2]):
        assert len(np.unique(part(pixels, place))) == 1


def test_nothing_in_a_picture_overlaps() -> None:
    """Views, scale bars and what is written beside them keep apart, however thin a view is."""
    for shape in [(1, 1, 1), (1, 900, 3), (900, 1, 1), (2, 1, 30000), (86, 80, 79)]:
        volume = volume_of(np.broadcast_to(np.uint8(0), shape))
        layouts = arrange([volume, volume], ["before: ", "after: "])
        taken: list[tuple[int, int, int, int]] = []
        for layout in layouts:
            places = [*layout.views, *([layout.detail] if layout.detail else [])]
            for place in places:
                x, y, width, height = place.bar
                with drawing():
                    width += 8 + math.ceil(text_width(place.bar_label, LABEL_FONT))
                taken += [place.image, (x, y - 10, width, height + 20)]
                assert x + width <= layout.corner[0] + layout.size[0]
        for i, (x, y, width, height) in enumerate(taken):
            for other_x, other_y, other_width, other_height in taken[:i]:
                apart_x = x >= other_x + other_width or other_x >= x + width
                assert apart_x or y >= other_y + other_height or other_y >= y + height


def test_different_units_are_refused(tmp_path: Path) -> None:
    """Two volumes whose lengths are in different units are not drawn at one scale, and nothing is written."""
    array = np.zeros((2, 2, 2), np.uint8)
    one = volume_of(array, voxel_size=(1.0, 1.0, 1.0), unit="micrometer")
    other = volume_of(array, voxel_size=(1.0, 1.0, 1.0), unit="nanometer")
    with pytest.raises(OptionError, match=r"micrometer .* nanometer"):
        before_after(one, other, tmp_path / "both.png")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """A path in a folder that is not there is an error that names the path."""
    with pytest.raises(OutputError, match=r"nowhere.view\.png cannot be written: its folder does not"):
        save(draw([volume_of(np.zeros((1, 1, 1), np.uint8))], [""]), tmp_path / "nowhere" / "view.png")


@pytest.mark.parametrize("size", [(5e-324, 1, 1), (1e-300, 1, 1), (1e308, 1, 1)])
def test_voxels_without_proportions_are_not_drawn(size: Any) -> None:
    """They are thinner than float64 can count pixels in the whole, or its length is no number."""
    with pytest.raises(OptionError, match="the NumPy array cannot be drawn in true proportions: its voxels are"):
        isovoxel.show(np.zeros((4, 5, 6), np.uint8), voxel_size=size)
