"""Voxel sizes of TIFFs that are neither ImageJ's nor OME's."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.metadata.tiff import read_tiff_tags
from isovoxel.metadata.units import METERS

NONE, INCH, CENTIMETER = 1, 2, 3


@pytest.mark.parametrize(
    ("description", "resolution", "unit", "size", "length"),
    [
        ({"spacing": 2.0, "unit": "um"}, (5, 1), NONE, (2.0, 0.2, 0.2), "micrometer"),
        ({"spacing": 2, "unit": "um"}, (50_000, 1), CENTIMETER, (2e-4, 2e-5, 2e-5), "centimeter"),
        ({"spacing": 2, "unit": "inch"}, (5, 1), INCH, (2.0, 0.2, 0.2), "inch"),
        ({"spacing": 2.0}, (5, 1), NONE, (2.0, 0.2, 0.2), None),
    ],
)
def test_spacing_and_resolution_tags(
    description: dict[str, Any], resolution: tuple[int, int], unit: int, size: tuple[float, ...], length: str
) -> None:
    """The description's spacing is z, the resolution tags are y and x, in one unit."""
    found = read_tiff_tags(description, resolution, resolution, unit)
    assert found.voxel_size == pytest.approx(size, rel=1e-15)
    assert found.unit == length


@pytest.mark.parametrize(
    ("description", "resolution", "unit", "clause"),
    [
        ({}, (25_400, 1), INCH, "y and x are 3.937e-05 inch, but the TIFF has no spacing for z"),
        ({}, (10_000, 1), CENTIMETER, "y and x are 0.0001 centimeter, but the TIFF has no spacing for z"),
        ({}, (300, 1), None, "y and x are 0.003333 inch, but the TIFF has no spacing for z"),
        ({}, (1, 1), NONE, "the TIFF has no spacing for z and no resolution tag that tells a size for y and x"),
        ({}, None, None, "no resolution tag"),
        ({"spacing": 2, "unit": "um"}, (5, 1), INCH, "counts in 'um', but its resolution tags per inch"),
        ({"spacing": 2}, (5, 1), CENTIMETER, "has no unit for z, but one for the rest"),
        ({"spacing": "2", "unit": "um"}, (5, 1), NONE, "the spacing '2', which is no number, for z"),
        ({"spacing": 10**400, "unit": "um"}, (5, 1), NONE, "which is no number, for z"),
        ({"spacing": 0, "unit": "um"}, (5, 1), NONE, "not a finite number above 0, for z"),
        ({"spacing": 2, "unit": "pixel"}, (5, 1), NONE, "whose unit is no known length"),
    ],
)
def test_what_is_not_known_is_said(
    description: dict[str, Any], resolution: tuple[int, int] | None, unit: int | None, clause: str
) -> None:
    """What the tags do not tell leaves the voxel size unknown, with what is known and the reason."""
    found = read_tiff_tags(description, resolution, resolution, unit)
    assert found.voxel_size is None
    assert clause in found.missing


json_values = st.one_of(st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text())
tags = st.none() | st.tuples(st.integers(-(2**31), 2**32), st.integers(-(2**31), 2**32))


@given(
    st.fixed_dictionaries({}, optional={"spacing": json_values, "unit": json_values | st.just("um")}),
    tags,
    tags,
    st.none() | st.integers(0, 5),
)
def test_any_description_gives_a_size_or_a_reason(
    description: dict[str, Any], x: tuple[int, int] | None, y: tuple[int, int] | None, unit: int | None
) -> None:
    """Whatever is written, either all three sizes are real lengths that were stated, or there is a reason."""
    found = read_tiff_tags(description, x, y, unit)
    assert (found.voxel_size is None) == bool(found.missing)
    assert found.unit is None or found.unit in METERS
    if found.voxel_size is not None:
        assert all(math.isfinite(size) and size > 0 for size in found.voxel_size)
        assert description["spacing"]
        assert x
        assert y
