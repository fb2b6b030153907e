"""Metadata as anybody may write them: a voxel size is what is written, or there is a reason why there is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isovoxel.errors import InputError
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.metadata.ome import image_attributes, is_label_image, read_levels
from isovoxel.metadata.series import stays_inside
from isovoxel.metadata.tiff import MOST_PLANES, Resolution, read_imagej, read_ome, read_ome_xml, read_tiff_tags
from isovoxel.metadata.units import METERS, Calibration, Length, calibrate
from strategies import examples

SHAPE = (6, 20, 24)
IMAGEJ = "ImageJ=1.53t\nimages=6\nslices=6\nunit=\\u00B5m\nspacing=2.0\nloop=false\nmin=0.0\nmax=255.0\nzunit=nm\n"
XML = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="24" SizeY="20" SizeZ="6" '
    'SizeC="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5" PhysicalSizeZ="2000" PhysicalSizeZUnit="nm">'
    '<TiffData IFD="0" PlaneCount="6"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData></Pixels></Image></OME>'
)
OME = image_attributes(VoxelGrid(SHAPE, (2.0, 0.5, 0.5), unit="micrometer"), name="a")
TIFFFILE = {"shape": [6, 20, 24], "axes": "ZYX", "spacing": 2.0, "unit": "um"}
NASTY = [
    "", "0", "-1", "nan", "inf", "-inf", "1e400", "1e-400", "1,5", "0x10", "1_000", "\u0661", "9" * 400, "null", "true",
    "\0", "\ud800", "\N{RIGHT-TO-LEFT OVERRIDE}", "<", ">", "&", '"', "\n", "=", "\\u00B5", "\\uZZZZ", "]]>", "&a;",
    "<!DOCTYPE a [<!ENTITY b 'c'>]>", "<!--", "../", "/etc/passwd", "\\\\host\\share", "C:\\", "{", "[", "}", "]",
]  # fmt: skip
nasty = st.sampled_from(NASTY) | st.text(max_size=6)
rationals = st.none() | st.tuples(st.integers(-(2**31), 2**32), st.integers(-(2**31), 2**32))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | nasty,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(nasty, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """Text with a few parts cut out, doubled, or replaced."""
    for _ in range(draw(st.integers(1, 4))):
        first, last = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        part = text[first : min(last, first + draw(st.integers(0, 30)))]
        text = text[:first] + draw(nasty | st.just(part * 2)) + text[first + len(part) :]
    return text


@st.composite
def mutated_json(draw: st.DrawFn, value: Any) -> Any:
    """JSON with one value, anywhere in it, replaced or taken out."""
    value = json.loads(json.dumps(value))
    place = value
    while True:
        key = draw(st.sampled_from(sorted(place))) if isinstance(place, dict) else draw(st.integers(0, len(place) - 1))
        if isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 9)):
            place = place[key]
        elif draw(st.booleans()):
            place[key] = draw(json_values)
            return value
        else:
            del place[key]
            return value


def check_sentence(error: Exception) -> None:
    """Check that a refusal is one line that a terminal shows as it is."""
    assert str(error).isprintable()


def check(found: Calibration) -> None:
    """Check that a voxel size is one, or that there is a reason, in one line, why there is none."""
    if found.voxel_size is None:
        assert found.missing
        assert found.missing.isprintable()
    else:
        assert not found.missing
        assert all(math.isfinite(size) and size > 0 for size in found.voxel_size)
        assert found.source
    assert found.unit is None or found.unit in METERS


@settings(max_examples=examples(150))
@given(mutated(IMAGEJ) | st.text(), rationals, rationals, st.none() | st.integers(0, 5))
def test_imagej(text: str, x: tuple[int, int] | None, y: tuple[int, int] | None, unit: int | None) -> None:
    """An ImageJ description gives z what it says, and x and y what the tags say, or nothing."""
    found = read_imagej(text, Resolution(x, y, unit))
    check(found)
    if found.voxel_size is not None:
        assert "spacing" in text
        assert x is not None
        assert y is not None


@settings(max_examples=examples(150))
@given(mutated(XML) | st.text())
def test_ome_xml(text: str) -> None:
    """OME-XML gives what it says, or nothing, or is refused."""
    try:
        pixels = read_ome(text, "a").checked().pixels
    except InputError as error:
        check_sentence(error)
        return
    found = read_ome_xml(pixels, 0, 1, SHAPE)
    check(found)
    if found.voxel_size is not None:
        assert all(f"PhysicalSize{axis}" in text for axis in "XYZ")


@settings(max_examples=examples(150))
@given(mutated_json(OME) | json_values, st.booleans())
def test_ome_zarr(attributes: Any, as_text: bool) -> None:
    """OME-Zarr gives levels inside the group whose voxels have a size, or is refused."""
    if as_text:
        attributes = json.loads(json.dumps(attributes))
    if not isinstance(attributes, dict):
        return
    assert is_label_image(attributes) in (False, True)
    try:
        levels = read_levels(attributes, "a")
    except InputError as error:
        check_sentence(error)
        return
    for level in levels:
        assert stays_inside(level.path)
        named = zip(level.axes, level.scale, level.units, strict=True)
        spatial = [Length(size, unit) for axis, size, unit in named if axis.lower() in ("z", "y", "x")]
        assert all(math.isfinite(length.value or 0) and (length.value or 0) > 0 for length in spatial)
        assert all(math.isfinite(value) for value in level.translation)
        z, y, x = [Length(1.0), *spatial][-3:]
        check(calibrate("a", "b", (z, y, x)))


@settings(max_examples=examples(150))
@given(
    mutated_json(TIFFFILE) | st.dictionaries(nasty, json_values), rationals, rationals, st.none() | st.integers(-1, 9)
)
def test_tiff_tags(
    description: dict[str, Any], x: tuple[int, int] | None, y: tuple[int, int] | None, unit: int | None
) -> None:
    """Resolution tags and tifffile's description give what they say, or nothing."""
    found = read_tiff_tags(description, Resolution(x, y, unit))
    check(found)
    if found.voxel_size is not None:
        assert found.voxel_size[0] > 0
        assert isinstance(description["spacing"], int | float)


@given(st.lists(st.sampled_from(["a", "..", ".", "", "c:", "\\", "/", "//", "\0", "b c"]), max_size=6))
def test_paths_stay_inside(parts: list[str]) -> None:
    """No path that leads outside is let through, whichever system reads it."""
    import ntpath
    import posixpath

    for path in ("/".join(parts), "\\".join(parts), "".join(parts)):
        if stays_inside(path):
            for system, root in ((posixpath, "/in/here"), (ntpath, "C:\\in\\here")):
                there = system.normpath(system.join(root, path))
                assert there.startswith(root + system.sep)


LAUGHS = "".join(f"<!ENTITY {b} '{f'&{a};' * 10}'>" for a, b in zip("abcdefg", "bcdefgz", strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: f"<!DOCTYPE a [<!ENTITY a 'ha'>{LAUGHS}]><OME>&z;</OME>",
        lambda: f"<!DOCTYPE a [<!ENTITY z '{'x' * 100_000}'>]><OME>{'&z;' * 100_000}</OME>",
        lambda: '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><OME/>',
        lambda: '<!DOCTYPE a [<!ENTITY z SYSTEM "file:///dev/zero">]><OME>&z;</OME>',
        lambda: '<!DOCTYPE a [<!ENTITY % z SYSTEM "file:///dev/zero"> %z;]><OME/>',
        lambda: '<!DOCTYPE a [<!ENTITY z SYSTEM "file:///etc/passwd">]><OME Name="&z;"/>',
    ],
    ids=["a billion laughs", "quadratic", "a DTD elsewhere", "an endless file", "a parameter", "in an attribute"],
)  # fmt: skip
def test_entities_are_refused(make: Callable[[], str]) -> None:
    """A document type definition is refused as soon as it begins."""
    with pytest.raises(InputError, match="has a document type definition"):
        read_ome(make(), "a").checked()


def test_deep_xml_is_read_or_refused() -> None:
    """A million elements in one another are no reason to crash."""
    with pytest.raises(InputError):
        read_ome("<a>" * 1_000_000, "a").checked()
    assert read_ome("<a>" * 100_000 + "</a>" * 100_000, "a").checked().pixels == []


@pytest.mark.parametrize("name", ["../b.tif", "/b.tif", "C:\\b.tif", "\\\\host\\b.tif", "sub/../../b.tif", "..\\b.tif"])
def test_files_outside_are_refused(name: str) -> None:
    """A document may not make anybody read what lies elsewhere."""
    with pytest.raises(InputError, match="is not in the folder of a"):
        read_ome(XML.replace("a.ome.tif", name), "a").checked()
    assert read_ome(XML.replace("a.ome.tif", "sub/b.tif"), "a").checked().pixels


@pytest.mark.parametrize("old", ['SizeZ="6"', 'SizeT="1"', 'PlaneCount="6"', 'IFD="0"'])
def test_too_many_planes_are_refused(old: str) -> None:
    """A document may not make anybody list a trillion planes."""
    key = old.partition("=")[0]
    with pytest.raises(InputError, match="planes, more than any file has"):
        read_ome(XML.replace(old, f'{key}="{10 * MOST_PLANES}"'), "a").checked()
    for number in ("nan", "many", "", *(["-5"] if key != "IFD" else [])):
        assert read_ome(XML.replace(old, f'{key}="{number}"'), "a").checked().pixels


def test_pages_before_the_first_are_refused() -> None:
    """To tifffile page -1 is the last one, and planes would change their places."""
    with pytest.raises(InputError, match="begin at page -1 of a file"):
        read_ome(XML.replace('IFD="0"', 'IFD="-1"'), "a").checked()
