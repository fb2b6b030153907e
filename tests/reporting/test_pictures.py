"""A label has one colour, whatever its dtype, and labels with near numbers have colours that are far apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.reporting.show import label_colours

NEAR = 12
"""Labels whose numbers differ by no more than this are told apart at a glance."""


@given(label=st.integers(1, 2**64 - 1 - NEAR), step=st.integers(1, NEAR))
def test_labels_with_near_numbers_do_not_look_alike(label: int, step: int) -> None:
    """Wherever numbers begin, and up to the last that 64 bits hold."""
    one, other = label_colours(np.array([label, label + step], np.uint64)).astype(int)
    assert np.abs(one - other).max() > 30
    assert one.max() > 150


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64"])
def test_the_colour_is_the_labels_and_not_the_dtypes(dtype: str) -> None:
    """The same label has the same colour in any dtype and place; the background is black."""
    colours = label_colours(np.array([[0, 1], [100, 1]], dtype))
    assert colours.shape == (2, 2, 3)
    assert colours.dtype == np.uint8
    np.testing.assert_array_equal(colours, label_colours(np.array([[0, 1], [100, 1]], np.uint32)))
    np.testing.assert_array_equal(colours[0, 1], colours[1, 1])
    assert colours[0, 0].tolist() == [0, 0, 0]


def test_large_labels_are_not_rounded() -> None:
    """Beyond 2^53, where floats no longer tell neighbours apart, colours do."""
    one, other = label_colours(np.array([2**60, 2**60 + 1], np.int64)).astype(int)
    assert np.abs(one - other).max() > 30


def test_negative_labels_have_colours() -> None:
    """A sign makes a label of its own."""
    assert label_colours(np.array([-1], np.int8)).any()
