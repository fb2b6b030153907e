"""One axis' map between output and input samples."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.geometry.grid import Axis, round_up
from strategies import factor


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
