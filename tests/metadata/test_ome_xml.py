"""Voxel sizes in OME-XML."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.errors import InputError
from isovoxel.metadata.tiff import read_ome, read_ome_xml

SIZES = {"PhysicalSizeZ": "2", "PhysicalSizeY": "0.5", "PhysicalSizeX": "0.25"}
SHAPE = (3, 4, 5)


def document(*pixels: dict[str, str]) -> str:
    """Return an OME-XML document with an image for each of these Pixels."""
    images = "".join(
        "<Image><Pixels " + " ".join(f'{k}="{v}"' for k, v in p.items()) + "><TiffData/></Pixels></Image>"
        for p in pixels
    )
    return f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/">{images}</OME>'


@pytest.mark.parametrize(
    ("units", "size", "unit"),
    [
        ({}, (2, 0.5, 0.25), "micrometer"),
        ({"PhysicalSizeXUnit": "nm"}, (2000, 500, 0.25), "nanometer"),
        ({"PhysicalSizeZUnit": "nm"}, (0.002, 0.5, 0.25), "micrometer"),
        (dict.fromkeys((f"PhysicalSize{a}Unit" for a in "XYZ"), "Å"), (2, 0.5, 0.25), "angstrom"),
    ],
)
def test_physical_sizes_come_in_the_unit_of_x(
    units: dict[str, str], size: tuple[float, float, float], unit: str
) -> None:
    """The physical sizes are read with their units, micrometre where none is named."""
    found = read_ome_xml(read_ome(document(SIZES | units), "a").checked().pixels, 0, 1, SHAPE)
    assert found.voxel_size == pytest.approx(size, rel=1e-15)
    assert found.unit == unit


@pytest.mark.parametrize(
    ("changes", "clause"),
    [
        (
            {"PhysicalSizeZ": None},
            "y is 0.5 micrometer and x is 0.25 micrometer, but the OME-XML has no PhysicalSize for z",
        ),
        ({"PhysicalSizeZ": None, "PhysicalSizeY": None, "PhysicalSizeX": None}, "no PhysicalSize for z, y and x"),
        ({"PhysicalSizeZ": "-1"}, "not a finite number above 0, for z"),
        ({"PhysicalSizeZ": "thick"}, "the PhysicalSize 'thick', which is no number, for z"),
        ({"PhysicalSizeXUnit": "reference frame"}, "whose unit is no known length, for x"),
        ({"PhysicalSizeXUnit": "pixel"}, "whose unit is no known length, for x"),
    ],
)
def test_what_is_not_known_is_said(changes: dict[str, str | None], clause: str) -> None:
    """A physical size that is missing or makes no sense leaves the voxel size unknown, with the reason."""
    pixels = {key: value for key, value in (SIZES | changes).items() if value is not None}
    found = read_ome_xml(read_ome(document(pixels), "a").checked().pixels, 0, 1, SHAPE)
    assert found.voxel_size is None
    assert clause in found.missing


def test_the_image_is_found_by_place_or_by_shape() -> None:
    """Of several images the one in the same place counts; with other numbers of images, the one of that shape."""
    first = SIZES | {"SizeZ": "3", "SizeY": "4", "SizeX": "5"}
    second = SIZES | {"SizeZ": "9", "SizeY": "4", "SizeX": "5", "PhysicalSizeZ": "7"}
    pixels = read_ome(document(first, second), "a").checked().pixels
    assert read_ome_xml(pixels, 1, 2, SHAPE).voxel_size == (7, 0.5, 0.25)
    assert read_ome_xml(pixels, 0, 1, SHAPE).voxel_size == (2, 0.5, 0.25)
    unclear = read_ome_xml([first, first | {"PhysicalSizeZ": "8"}], 0, 1, SHAPE)
    assert unclear.voxel_size is None
    assert "2 of them could be this one" in unclear.missing


@pytest.mark.parametrize(
    "xml",
    [
        '<!DOCTYPE OME [<!ENTITY a "aaaaaaaaaa">]><OME>&a;</OME>',
        '<!DOCTYPE OME SYSTEM "file:///etc/hostname"><OME/>',
        "<!DOCTYPE OME><OME/>",
    ],
)
def test_a_document_type_definition_is_refused(xml: str) -> None:
    """A DTD is refused before its entities mean anything."""
    with pytest.raises(InputError, match="document type definition"):
        read_ome(xml, "a").checked()


@pytest.mark.parametrize("xml", ["", "OME", "<OME>", "<OME></Image></OME>", "<OME>&a;</OME>"])
def test_broken_xml_is_an_input_error(xml: str) -> None:
    """XML that is not well-formed is said to be so."""
    with pytest.raises(InputError, match="not well-formed"):
        read_ome(xml, "a").checked()


attributes = st.dictionaries(
    st.sampled_from([f"PhysicalSize{a}{u}" for a in "XYZ" for u in ("", "Unit")]),
    st.one_of(
        st.sampled_from(["1", "0.5", "nm", "µm", "-1", "nan", "1e999"]),
        st.floats().map(str),
        st.text(st.characters(codec="utf-8", exclude_characters='<&"', exclude_categories=["Cc"])),
    ),
)


@given(st.lists(attributes, max_size=3))
def test_any_attributes_give_a_size_or_a_reason(pixels: list[dict[str, str]]) -> None:
    """Whatever the attributes, either all three sizes are real lengths that were stated, or there is a reason."""
    try:
        found = read_ome_xml(read_ome(document(*pixels), "a").checked().pixels, 0, 1, SHAPE)
    except InputError:
        return
    assert (found.voxel_size is None) == bool(found.missing)
    if found.voxel_size is not None:
        assert all(math.isfinite(size) and size > 0 for size in found.voxel_size)
        assert any({"PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ"} <= p.keys() for p in pixels)


@given(st.text())
def test_any_text_is_xml_or_an_input_error(text: str) -> None:
    """Arbitrary text instead of XML is an InputError and nothing else."""
    with pytest.raises(InputError):
        read_ome(f"{text}<", "a").checked()
