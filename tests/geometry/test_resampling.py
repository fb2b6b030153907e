"""Resampling tables and textures: laws that hold for every kernel, boundary, length and factor."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain, permutations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from isovoxel.errors import OptionError
from isovoxel.geometry.grid import Axis, halo
from isovoxel.geometry.resampling import Table, Texture, accumulator, passes_at_once
from isovoxel.planning.model import FILTERS
from strategies import boundaries, factor, interpolations

KERNELS = ["nearest", "linear", "cubic", "lanczos3", "area", "mode", "smooth"]

special = st.sampled_from([0.001, 0.01, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.75, 1.0, 1.1, 1.5, 2.0, 2.3, 3.0, 10.0, 1000.0])
any_factor = special | st.floats(math.log(0.001), math.log(1000)).map(math.exp)
shrinking = special.filter(lambda f: f < 1) | st.floats(0.001, 0.99)


def axis_of(n: int, factor: float) -> Axis:
    """An axis as a scaling makes it."""
    return Axis(n, max(1, int(np.around(n * factor))), factor)


@st.composite
def tables(
    draw: st.DrawFn,
    kernels: list[str] = KERNELS,
    factors: st.SearchStrategy[float] = any_factor,
    antialias: st.SearchStrategy[bool] = st.booleans(),  # noqa: B008 - a strategy is a constant
) -> Table:
    """Tables of axes with up to a few thousand samples on either side."""
    factor = draw(factors)
    axis = axis_of(draw(st.integers(1, max(1, min(2000, int(3000 / factor))))), factor)
    kernel = draw(st.sampled_from(kernels))
    wide = draw(antialias) and kernel in FILTERS
    assume(axis.m * axis.n * max(1, 1 / factor) < 3e6)
    return Table(axis, kernel, wide, draw(st.sampled_from(["nearest", "constant"])))


@st.composite
def placed(draw: st.DrawFn) -> Table:
    """Tables whose outputs begin elsewhere than the input, and may lie outside of it."""
    table = draw(tables())
    m = draw(st.integers(1, 200))
    shift = draw(st.integers(-300, 300).map(float) | st.floats(-300, 300))
    return replace(table, axis=replace(table.axis, m=m, shift=shift))


def everything(table: Table) -> np.ndarray:
    return np.arange(table.axis.m)


def dense(table: Table) -> np.ndarray:
    """The table as a matrix of outputs times inputs."""
    first, weights = table.rows(everything(table))
    matrix = np.zeros((table.axis.m, table.axis.n))
    for k in range(weights.shape[1]):
        matrix[everything(table), first + k] += weights[:, k]
    return matrix


@given(tables() | placed())
def test_rows_lie_inside_the_volume_and_have_the_width_they_say(table: Table) -> None:
    """No row begins before the first sample or ends after the last, and all are as wide as the table."""
    first, weights = table.rows(everything(table))
    assert weights.shape == (table.axis.m, table.width)
    assert np.isfinite(weights).all()
    assert (first >= 0).all()
    assert (first + table.width <= table.axis.n).all()


@given(tables() | placed())
def test_weights_sum_to_1(table: Table) -> None:
    """A volume of one value stays so; with 0 around it, a row whose support is inside sums to 1 as well."""
    sums = table.rows(everything(table)).weights.sum(1)
    position = table.axis.position(everything(table))
    inside = (position - table.radius >= -0.5) & (position + table.radius <= table.axis.n - 0.5)
    where = slice(None) if table.boundary == "nearest" else inside
    np.testing.assert_allclose(sums[where], 1, rtol=0, atol=1e-12)
    if table.interpolation not in ("cubic", "lanczos3"):
        assert (sums <= 1 + 1e-12).all()


@given(tables() | placed())
def test_first_never_decreases_and_is_that_of_the_rows(table: Table) -> None:
    """The first sample of a row can be had without its weights, and rows follow each other."""
    first = table.first(everything(table))
    np.testing.assert_array_equal(first, table.rows(everything(table)).first)
    assert (np.diff(first) >= 0).all()


@given(tables() | placed(), st.data())
def test_spans_hold_what_their_rows_take(table: Table, data: st.DataObject) -> None:
    """Any interval's span holds every sample that one of its rows or footprints has, and begins where one does."""
    start = data.draw(st.integers(0, table.axis.m - 1))
    stop = data.draw(st.integers(start + 1, table.axis.m))
    span = table.spans(np.array([start]), np.array([stop]))
    first, last = int(span.first[0]), int(span.last[0])
    outputs = np.arange(start, stop)
    rows = table.rows(outputs)
    assert 0 <= first <= rows.first.min()
    assert rows.first.max() + table.width <= last <= table.axis.n
    assert not span.before.any()
    assert not span.after.any()
    if table.interpolation == "mode":
        from_, to = table.footprints(outputs)
        assert (first, last) == (from_.min(), to.max())
    else:
        assert (first, last) == (rows.first.min(), rows.first.max() + table.width)


@given(tables() | placed(), st.data())
def test_rows_do_not_depend_on_what_they_are_asked_with(table: Table, data: st.DataObject) -> None:
    """Rows of an interval, or in any order, are those of the whole axis to the bit."""
    start = data.draw(st.integers(0, table.axis.m - 1))
    stop = data.draw(st.integers(start + 1, min(table.axis.m, start + 50)))
    first, weights = table.rows(everything(table))
    part = table.rows(np.arange(start, stop))
    np.testing.assert_array_equal(part.first, first[start:stop])
    np.testing.assert_array_equal(part.weights, weights[start:stop])
    backwards = table.rows(np.arange(start, stop)[::-1])
    np.testing.assert_array_equal(backwards.weights[::-1], part.weights)


@given(tables(list(FILTERS), any_factor.filter(lambda f: f >= 1)))
def test_antialiasing_leaves_axes_that_grow_alone(table: Table) -> None:
    """The kernel widens by 1 / factor on axes that shrink, and on no other."""
    plain, wide = (Table(table.axis, table.interpolation, flag, table.boundary) for flag in (False, True))
    assert wide.width == plain.width
    assert wide.stretch == 1
    for a, b in zip(plain.rows(everything(table)), wide.rows(everything(table)), strict=True):
        np.testing.assert_array_equal(a, b)


@given(tables(["linear", "cubic"], shrinking, st.just(True)))
def test_antialiasing_weighs_every_sample(table: Table) -> None:
    """On an axis that shrinks no sample between the first and the last output is skipped."""
    assume(table.axis.m > 1 and table.boundary == "nearest")
    position = table.axis.position(everything(table))
    between = np.arange(max(0, math.ceil(position[0])), min(table.axis.n - 1, math.floor(position[-1])) + 1)
    assert (dense(table).sum(0)[between] > 0).all()


@given(tables(["area"], antialias=st.just(False)))
def test_area_weighs_by_overlap(table: Table) -> None:
    """A sample weighs what its cell shares with the output voxel's; with 0 around it, nothing outside is counted."""
    low = everything(table)[:, None] / table.axis.factor
    high = (everything(table)[:, None] + 1) / table.axis.factor
    cells = np.arange(table.axis.n)
    shared = np.clip(np.minimum(cells + 1, high) - np.maximum(cells, low), 0, None) * table.axis.factor
    if table.boundary == "nearest":
        shared[:, -1] += 1 - shared.sum(1)  # what reaches beyond the volume, always at its end, is the rim's
    if table.identity:
        shared = np.eye(table.axis.n)
    np.testing.assert_allclose(dense(table), shared, rtol=0, atol=1e-9)


@given(tables(factors=st.just(1.0)))
def test_an_axis_that_stays_is_its_own_table(table: Table) -> None:
    """Factor 1 is the identity, whatever the kernel."""
    assert table.identity
    assert table.width == 1
    np.testing.assert_array_equal(dense(table), np.eye(table.axis.n))


@pytest.mark.parametrize(("kernel", "factor", "antialias", "width"), [
    ("nearest", 0.01, False, 1),
    ("linear", 3.0, False, 2),
    ("linear", 0.1, False, 2),
    ("linear", 0.1, True, 20),
    ("cubic", 3.0, True, 4),
    ("cubic", 0.25, True, 16),
    ("lanczos3", 3.0, False, 6),
    ("lanczos3", 0.5, True, 12),
    ("area", 0.2, False, 6),
    ("area", 2.5, False, 2),
])  # fmt: skip
def test_widths_are_those_of_the_kernels(kernel: str, factor: float, antialias: bool, width: int) -> None:
    """2 weights for linear, 4 for cubic, 6 for lanczos3, over the factor if anti-aliased; the footprint's for area."""
    assert Table(axis_of(1000, factor), kernel, antialias).width == width
    assert Table(axis_of(1, factor), kernel, antialias).width == 1


@pytest.mark.parametrize("kernel", ["linear", "cubic"])
@pytest.mark.parametrize("factor", [0.3, 0.5, 1.7, 4.0])
def test_a_straight_line_stays_straight(kernel: str, factor: float) -> None:
    """Away from the rim each kernel's output is the line's value at the sample's position."""
    table = Table(axis_of(200, factor), kernel)
    position = table.axis.position(everything(table))
    inner = (position > table.radius) & (position < 199 - table.radius)
    # Positions below 200 in float64, and as many roundings as weights.
    np.testing.assert_allclose((dense(table) @ np.arange(200.0))[inner], position[inner], rtol=0, atol=1e-10)


@given(tables(["lanczos3"], any_factor.filter(lambda f: f != 1), st.just(False)))
def test_lanczos3_is_a_sinc_in_the_window_of_a_sinc(table: Table) -> None:
    """Inside the volume weights are sinc(d) sinc(d / 3) over their sum, whatever sine the processor has."""
    outputs = everything(table)
    distance = table.axis.position(outputs)[:, None] - np.arange(table.axis.n)
    inside = (table.axis.position(outputs) > 2) & (table.axis.position(outputs) < table.axis.n - 3)
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)[inside]
    np.testing.assert_allclose(dense(table)[inside], weights / weights.sum(1, keepdims=True), rtol=0, atol=1e-11)


def test_lanczos3_keeps_a_sample_that_an_output_falls_on() -> None:
    """Its other weights are 0 there, so that a NaN beside it does not spread."""
    table = Table(axis_of(20, 3.0), "lanczos3")
    on_samples = np.arange(10, 50, 3)
    np.testing.assert_array_equal(dense(table)[on_samples], np.eye(20)[(on_samples - 1) // 3])


# ---- footprints ----------------------------------------------------------------------------------------------------


@given(tables(["mode"], shrinking))
def test_footprints_of_an_axis_that_shrinks_tile_the_input(table: Table) -> None:
    """Each sample is in one footprint, from the first sample on and without a gap."""
    start, stop = table.footprints(everything(table))
    assert start[0] == 0
    np.testing.assert_array_equal(start[1:], stop[:-1])
    reach = min(table.axis.n, math.ceil(table.axis.m / table.axis.factor - 0.5))
    assert stop[-1] == reach


@given(tables(["mode"]) | placed())
def test_footprints_are_never_empty_and_hold_the_nearest_sample(table: Table) -> None:
    """Every output voxel has somebody to ask, even one between two samples."""
    start, stop = table.footprints(everything(table))
    nearest = np.clip(table.axis.nearest(everything(table)), 0, table.axis.n - 1)
    assert ((start >= 0) & (stop <= table.axis.n)).all()
    assert ((start <= nearest) & (nearest < stop)).all()


@given(placed())
def test_a_shifted_row_is_that_of_the_longer_output(table: Table) -> None:
    """Shifted by whole samples, an output is a part of one that begins with the input."""
    assume(table.axis.shift.is_integer() and table.axis.shift >= 0)
    start = int(table.axis.shift)
    longer = replace(table, axis=replace(table.axis, m=start + table.axis.m, shift=0.0))
    assume(longer.identity == table.identity)
    mine, its = table.rows(everything(table)), longer.rows(start + everything(table))
    np.testing.assert_array_equal(mine.weights, its.weights)
    np.testing.assert_array_equal(mine.first, its.first)


# ---- passes --------------------------------------------------------------------------------------------------------


@given(st.lists(tables(), min_size=3, max_size=3))
def test_the_order_of_passes_costs_least(chosen: list[Table]) -> None:
    """Axes that stay have no pass, and no other order reads and weighs fewer voxels."""
    order = tuple(chain.from_iterable(passes_at_once(chosen)))
    assert sorted(order) == [i for i, table in enumerate(chosen) if not table.identity]

    def cost(passes: tuple[int, ...]) -> int:
        lengths, total = [t.axis.n for t in chosen], 0
        for axis in passes:
            total += lengths[0] * lengths[1] * lengths[2]
            lengths[axis] = chosen[axis].axis.m
            total += lengths[0] * lengths[1] * lengths[2] * chosen[axis].width
        return total

    assert cost(order) == min(cost(other) for other in permutations(order))


def test_axes_that_shrink_go_first() -> None:
    """Fewer voxels are left for the axes after them."""
    chosen = [Table(axis_of(100, factor), "linear", antialias=True) for factor in (4.0, 0.5, 2.0)]
    assert passes_at_once(chosen) == ((1, 2), (0,))


@given(tables(), st.integers(1, 100))
def test_what_a_plan_asks_of_a_table_is_within_the_volume(table: Table, length: int) -> None:
    """The longest read is at most the volume and holds a row; the halo is at most the volume."""
    read, padded = table.spans(*table.axis.intervals(length)).longest()
    assert table.width <= read == padded <= table.axis.n
    assert all(0 <= side <= table.axis.n for side in halo(table, length))


@pytest.mark.parametrize(
    ("dtypes", "work"),
    [
        (["uint8"], "float32"),
        (["int16", "float32"], "float32"),
        (["uint32"], "float64"),
        (["int32", "float64"], "float64"),
        (["float64", "float32"], "float64"),
        (["float32"], "float32"),
    ],
)
def test_sums_are_wide_where_float32_has_too_few_digits(dtypes: list[str], work: str) -> None:
    """Integers of 32 bits are summed in float64, everything else in float32."""
    assert accumulator(*map(np.dtype, dtypes)) == np.dtype(work)


@pytest.mark.parametrize(
    ("interpolation", "antialias"), [("area", False), ("linear", True), ("cubic", True), ("lanczos3", True)]
)
def test_a_kernel_of_millions_of_samples_is_refused(interpolation: str, antialias: bool) -> None:
    """A factor of a billionth would average a billion samples for each voxel, and fill the memory with weights."""
    with pytest.raises(OptionError, match="would average 1,000,000,000 voxels into one"):
        Table(Axis(10, 1, 1e-9), interpolation, antialias)


def used(axis: Axis, outputs: np.ndarray, interpolation: str) -> np.ndarray:
    """Input samples with a weight, clipped to the volume, straight from the definition."""
    position = (outputs + 0.5) / axis.factor - 0.5
    if interpolation == "nearest":
        index = np.floor(position + 0.5)
    else:
        index = np.concatenate([np.floor(position), np.ceil(position)])
    return np.clip(index, 0, axis.n - 1).astype(int)


@given(st.integers(1, 200), factor, interpolations, boundaries, st.data())
def test_a_span_holds_every_sample_that_its_outputs_use(
    n: int, f: float, interpolation: str, boundary: str, data: st.DataObject
) -> None:
    """Law 2, along one axis: the support of every output sample, clipped to the volume, is in the span."""
    axis = axis_of(n, f)
    texture = Texture(axis, interpolation, boundary)
    start = data.draw(st.integers(0, axis.m - 1))
    stop = data.draw(st.integers(start + 1, axis.m))
    span = texture.spans(np.array([start]), np.array([stop]))
    index = used(axis, np.arange(start, stop), interpolation)
    assert 0 <= span.first[0] <= index.min()
    assert index.max() < span.last[0] <= n


@given(st.integers(1, 200), factor, interpolations, st.integers(1, 60))
def test_a_span_reads_little_more_than_its_outputs_use(n: int, f: float, interpolation: str, length: int) -> None:
    """A span has at most one sample more on either side than the definition uses."""
    axis = axis_of(n, f)
    starts, stops = axis.intervals(length)
    span = Texture(axis, interpolation, "nearest").spans(starts, stops)
    for first, last, start, stop in zip(span.first, span.last, starts, stops, strict=True):
        index = used(axis, np.arange(start, stop), interpolation)
        assert first >= index.min() - 1
        assert last <= index.max() + 2


@given(st.integers(1, 200), boundaries, st.integers(1, 60))
def test_an_axis_that_stays_as_it_is_needs_no_halo(n: int, boundary: str, length: int) -> None:
    """At factor 1 a span is what its outputs are; the block's rim stands for neighbours, but 0 is around the volume."""
    starts, stops = axis_of(n, 1.0).intervals(length)
    span = Texture(axis_of(n, 1.0), "linear", boundary).spans(starts, stops)
    np.testing.assert_array_equal((span.first, span.last), (starts, stops))
    inside_before, inside_after = starts > 0, stops < n
    np.testing.assert_array_equal(span.before, 1 if boundary == "nearest" else inside_before)
    np.testing.assert_array_equal(span.after, 1 if boundary == "nearest" else inside_after)


def test_what_may_be_nan_is_read_wherever_its_weight_may_be_0() -> None:
    """NaN times 0 is NaN: whether a voxel is NaN must not depend on how the volume was cut."""
    span = Texture(axis_of(20, 1.0), "linear", "nearest", finite=False).spans(np.array([10]), np.array([15]))
    assert (span.first[0], span.last[0]) == (9, 16)


def test_an_axis_that_shrinks_away_reads_its_rim() -> None:
    """A factor of one millionth reads the last sample, not half a million beyond it."""
    axis = axis_of(10, 1e-6)
    span = Texture(axis, "linear", "nearest").spans(np.array([0]), np.array([1]))
    assert (span.first[0], span.last[0]) == (9, 10)
    assert span.after[0] <= 2


@given(st.integers(1, 200), factor, interpolations)
def test_only_a_rim_that_repeats_is_padded(n: int, f: float, interpolation: str) -> None:
    """With 0 around the volume nothing is padded, and an axis in one piece is read whole."""
    axis = axis_of(n, f)
    span = Texture(axis, interpolation, "constant").spans(*axis.intervals(axis.m))
    assert (span.first[0], span.last[0], span.before[0], span.after[0]) == (0, n, 0, 0)
