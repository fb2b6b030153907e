"""Units of length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.errors import OptionError
from isovoxel.metadata.units import METERS, canonical_unit, checked_unit, convert_length, unescaped

units = st.sampled_from(sorted(METERS))


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        (r"\u00B5m", "micrometer"),
        ("\u00b5m", "micrometer"),
        ("\u03bcm", "micrometer"),
        ("um", "micrometer"),
        ("micron", "micrometer"),
        ("Microns", "micrometer"),
        ("micrometre", "micrometer"),
        (" micrometers ", "micrometer"),
        ("Âµm", "micrometer"),
        ("nm", "nanometer"),
        ("mm", "millimeter"),
        ("Mm", "megameter"),
        ("pm", "picometer"),
        ("Pm", "petameter"),
        ("cm", "centimeter"),
        ("m", "meter"),
        ("\u00c5", "angstrom"),
        ("\u212b", "angstrom"),
        ("inch", "inch"),
        ("inches", "inch"),
        ('"', "inch"),
        ("feet", "foot"),
        ("pixel", None),
        ("sec", None),
        ("s", None),
        ("", None),
        ("µ m", None),
    ],
)
def test_units_as_programs_write_them(text: str, unit: str | None) -> None:
    """Every usual spelling of a length is read as OME-Zarr's name for it, and nothing else is."""
    assert canonical_unit(text) == unit


@given(units)
def test_canonical_names_stay(unit: str) -> None:
    """A canonical name is its own canonical name, in the plural and in British spelling too."""
    assert canonical_unit(unit) == unit
    assert canonical_unit(unit.replace("meter", "metre")) == unit
    assert canonical_unit(f"{unit.capitalize()}s") == unit


@given(st.text())
def test_any_text_is_a_unit_or_none(text: str) -> None:
    """Whatever the text, the answer is a known unit or None, and what a user typed wrong is an OptionError."""
    unit = canonical_unit(text)
    assert unit is None or unit in METERS
    if unit is None:
        with pytest.raises(OptionError, match="no unit of length"):
            checked_unit(text)
    else:
        assert checked_unit(text) == unit


@given(st.floats(1e-30, 1e30), units, units)
def test_converting_back_gives_the_length_again(value: float, unit: str, target: str) -> None:
    """There and back again is the same length, but for the last bits."""
    assert convert_length(convert_length(value, unit, target), target, unit) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("value", "unit", "target", "result"),
    [
        (250.0, "nanometer", "micrometer", 0.25),
        (0.202, "millimeter", "micrometer", 202.0),
        (1.0, "inch", "micrometer", 25400.0),
        (1.0, "angstrom", "nanometer", 0.1),
    ],
)
def test_conversion_rounds_once(value: float, unit: str, target: str, result: float) -> None:
    """A length is the float nearest to the exact one."""
    assert convert_length(value, unit, target) == result


@given(st.text(max_size=4))
def test_escapes_become_their_characters(text: str) -> None:
    """What ImageJ escapes comes back as it was, wherever it stands."""
    plain = "".join(c for c in text if c != "\\" and ord(c) <= 0xFFFF)
    escaped = "".join(f"\\u{ord(c):04X}" for c in plain)
    assert unescaped(escaped) == plain
