"""Voxel sizes of TIFFs, as ImageJ writes them and as tags do; `test_hostile.py` has any other text."""

from __future__ import annotations

from typing import Any

import pytest

from isovoxel.metadata.tiff import Resolution, parse_description, read_imagej, read_tiff_tags

NONE, INCH, CENTIMETER = 1, 2, 3
RESOLUTION = (45527587, 1_000_000)


def description(**values: object) -> str:
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
def test_imagej_states_spacing_and_resolution(
    values: dict[str, object], size: tuple[float, ...], unit: str | None
) -> None:
    """Spacing gives z, the resolution tags y and x, all in the description's unit."""
    found = read_imagej(description(**values), Resolution(RESOLUTION, RESOLUTION, 1))
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
def test_what_imagej_does_not_state_is_said(
    values: dict[str, object], resolution: tuple[int, int] | None, unit: int | None, clause: str
) -> None:
    """An axis that is not stated, or makes no sense, leaves the voxel size unknown, with the reason."""
    found = read_imagej(description(**values), Resolution(resolution, resolution, unit))
    assert found.voxel_size is None
    assert clause in found.missing


def test_the_first_of_equal_keys_counts() -> None:
    """A key that comes twice has its first value, and lines without a value are passed over."""
    assert parse_description("ImageJ=1\nnote\nunit=um\nunit=nm\r\n") == {"ImageJ": "1", "unit": "um"}


@pytest.mark.parametrize(
    ("description", "resolution", "unit", "size", "length"),
    [
        ({"spacing": 2.0, "unit": "um"}, (5, 1), NONE, (2.0, 0.2, 0.2), "micrometer"),
        ({"spacing": 2, "unit": "um"}, (50_000, 1), CENTIMETER, (2e-4, 2e-5, 2e-5), "centimeter"),
        ({"spacing": 2, "unit": "inch"}, (5, 1), INCH, (2.0, 0.2, 0.2), "inch"),
        ({"spacing": 2.0}, (5, 1), NONE, (2.0, 0.2, 0.2), None),
    ],
)
def test_tags_state_spacing_and_resolution(
    description: dict[str, Any], resolution: tuple[int, int], unit: int, size: tuple[float, ...], length: str
) -> None:
    """The description's spacing is z, the resolution tags are y and x, in one unit."""
    found = read_tiff_tags(description, Resolution(resolution, resolution, unit))
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
def test_what_tags_do_not_state_is_said(
    description: dict[str, Any], resolution: tuple[int, int] | None, unit: int | None, clause: str
) -> None:
    """What the tags do not tell leaves the voxel size unknown, with what is known and the reason."""
    found = read_tiff_tags(description, Resolution(resolution, resolution, unit))
    assert found.voxel_size is None
    assert clause in found.missing
