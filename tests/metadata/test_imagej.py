"""Voxel sizes as ImageJ writes them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.metadata.tiff import parse_description, read_imagej
from isovoxel.metadata.units import METERS

RESOLUTION = (45527587, 1_000_000)


def description(**values: object) -> str:
    """Return an image description with these lines."""
    return "".join(f"{key}={value}\n" for key, value in {"ImageJ": "1.53f", "images": 21, **values}.items())


@pytest.mark.parametrize(
    ("values", "size", "unit"),
    [
        ({"unit": r"\u00B5m", "spacing": 0.125}, (0.125, 1e6 / 45527587, 1e6 / 45527587), "micrometer"),
        ({"unit": "micron", "spacing": "1.0"}, (1.0, 1e6 / 45527587, 1e6 / 45527587), "micrometer"),
        ({"unit": "inch", "spacing": "2E-4"}, (2e-4, 1e6 / 45527587, 1e6 / 45527587), "inch"),
        ({"unit": "um", "zunit": "nm", "spacing": 300}, (0.3, 1e6 / 45527587, 1e6 / 45527587), "micrometer"),
        ({"unit": "um", "yunit": "nm", "spacing": 1}, (1.0, 1e3 / 45527587, 1e6 / 45527587), "micrometer"),
        ({"spacing": 0.5}, (0.5, 1e6 / 45527587, 1e6 / 45527587), None),
    ],
)
def test_a_calibrated_stack(values: dict[str, object], size: tuple[float, ...], unit: str | None) -> None:
    """Spacing gives z, the resolution tags y and x, all in the description's unit."""
    found = read_imagej(description(**values), RESOLUTION, RESOLUTION, 1)
    assert found.voxel_size == pytest.approx(size, rel=1e-15)
    assert (found.unit, found.missing) == (unit, "")
    assert found.source == "ImageJ spacing and resolution tags"


@pytest.mark.parametrize(
    ("values", "resolution", "unit", "clause"),
    [
        (
            {"unit": "um"},
            (5, 1),
            1,
            "y and x are 0.2 micrometer, but the ImageJ description has no spacing (ImageJ leaves out",
        ),
        ({"unit": "pixel", "spacing": 2}, (1, 1), 1, "counts in pixels"),
        ({"unit": "pixels", "spacing": 2}, (5, 1), 1, "counts in pixels"),
        ({"spacing": 2}, (72, 1), 2, "has no unit"),
        ({"spacing": 2}, (1000, 1), 3, "has no unit"),
        ({"spacing": 2}, (1, 1), 1, "has no unit"),
        ({"spacing": 2}, None, None, "has no unit"),
        ({"unit": "um", "spacing": 2}, None, 1, "no usable resolution tag for y and x"),
        ({"unit": "um", "spacing": 2}, (0, 0), 1, "no usable resolution tag for y and x"),
        ({"unit": "um", "spacing": 0}, (5, 1), 1, "the size 0 'um', not a finite number above 0, for z"),
        ({"unit": "um", "spacing": -2}, (5, 1), 1, "not a finite number above 0, for z"),
        ({"unit": "um", "spacing": "nan"}, (5, 1), 1, "not a finite number above 0, for z"),
        ({"unit": "um", "spacing": "inf"}, (5, 1), 1, "not a finite number above 0, for z"),
        ({"unit": "um", "spacing": "0,5"}, (5, 1), 1, "the spacing '0,5', which is no number, for z"),
        ({"unit": "um", "spacing": 1e40}, (5, 1), 1, "which no voxel has, for z"),
        ({"unit": "sec", "spacing": 2}, (5, 1), 1, "whose unit is no known length"),
        ({"unit": "um", "zunit": "sec", "spacing": 2}, (5, 1), 1, "whose unit is no known length, for z"),
        ({"zunit": "um", "spacing": 2}, (5, 1), 1, "has no unit for y and x, but one for the rest"),
    ],
)
def test_what_is_not_known_is_said(
    values: dict[str, object], resolution: tuple[int, int] | None, unit: int | None, clause: str
) -> None:
    """An axis that is not stated, or makes no sense, leaves the voxel size unknown, with the reason."""
    found = read_imagej(description(**values), resolution, resolution, unit)
    assert found.voxel_size is None
    assert clause in found.missing


numbers = st.integers(-(2**31), 2**32)
keys = st.sampled_from(["unit", "yunit", "zunit", "spacing", "images", "min"])
values = st.one_of(
    st.text(), st.floats().map(str), st.sampled_from(["um", "nm", "pixel", r"\u00B5m", "inch", "1_0", "-1"])
)


@given(
    st.one_of(st.text(), st.dictionaries(keys, values).map(lambda v: description(**v))),
    st.none() | st.tuples(numbers, numbers),
    st.none() | st.tuples(numbers, numbers),
    st.none() | st.integers(0, 5),
)
def test_any_text_gives_a_size_or_a_reason(
    text: str, x: tuple[int, int] | None, y: tuple[int, int] | None, unit: int | None
) -> None:
    """Whatever is written, either all three sizes are real lengths that were stated, or there is a reason."""
    found = read_imagej(text, x, y, unit)
    assert (found.voxel_size is None) == bool(found.missing)
    assert found.unit is None or found.unit in METERS
    if found.voxel_size is not None:
        assert all(math.isfinite(size) and size > 0 for size in found.voxel_size)
        assert "spacing" in parse_description(text)
        assert x
        assert y


def test_the_first_of_equal_keys_counts() -> None:
    """A key that comes twice has its first value, and lines without a value are passed over."""
    assert parse_description("ImageJ=1\nnote\nunit=um\nunit=nm\r\n") == {"ImageJ": "1", "unit": "um"}
