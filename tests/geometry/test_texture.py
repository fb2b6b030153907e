"""What cle reads along one axis."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.geometry.axis import Axis
from isovoxel.geometry.texture import Texture
from strategies import boundaries, factor, interpolations


def axis_of(n: int, f: float) -> Axis:
    """The axis of n samples scaled by f."""
    return Axis(n, max(1, int(np.around(n * f))), f)


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
