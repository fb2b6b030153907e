"""OME-Zarr metadata in and out, and voxel sizes in OME-XML."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaozarrs
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.errors import InputError
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.metadata.ome import Level, image_attributes, read_levels
from isovoxel.metadata.series import Channel, DisplayWindow, SeriesAxis, omero_attribute
from isovoxel.metadata.tiff import read_ome, read_ome_xml

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
lengths = st.floats(min_value=1e-300, max_value=1e300)
positions = st.floats(allow_nan=False, allow_infinity=False)
grids = st.builds(
    VoxelGrid,
    st.tuples(*[st.integers(1, 2**40)] * 3),
    st.tuples(lengths, lengths, lengths),
    st.tuples(positions, positions, positions),
    st.none() | st.sampled_from(["micrometer", "nanometer", "angstrom"]) | st.text(min_size=1),
)


def image04(**changes: Any) -> dict[str, Any]:
    """Return a valid 0.4 image of two levels, t and c included, with `changes` to its only multiscale."""
    multiscale: dict[str, Any] = {
        "version": "0.4",
        "name": "cells",
        "axes": [
            {"name": "t", "type": "time", "unit": "second"},
            {"name": "c", "type": "channel"},
            *({"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"),
        ],
        "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 2, 0.5, 0.5]}]},
            {
                "path": "s1/data",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1, 1, 2, 1, 1]},
                    {"type": "translation", "translation": [0, 0, 0, 0.25, 0.25]},
                ],
            },
        ],
    }
    return {"multiscales": [multiscale | changes]}


def image05(**changes: Any) -> dict[str, Any]:
    """Return a valid 0.5 image of one level, z, y, x, with `changes` to its only multiscale."""
    attributes = image_attributes(VoxelGrid((2, 3, 4), (1.0, 0.5, 0.5), unit="micrometer"), name="cells")
    attributes["ome"]["multiscales"][0].update(changes)
    return attributes


def dataset(*transforms: dict[str, Any], path: Any = "0") -> list[dict[str, Any]]:
    """Return a list of one level with these transforms."""
    return [{"path": path, "coordinateTransformations": list(transforms)}]


def scale(*values: Any) -> dict[str, Any]:
    return {"type": "scale", "scale": list(values)}


def translation(*values: Any) -> dict[str, Any]:
    return {"type": "translation", "translation": list(values)}


@given(grids)
def test_what_is_written_of_a_grid_is_read_back_to_the_last_bit(grid: VoxelGrid) -> None:
    """Scale, translation and unit survive the way through JSON text unchanged."""
    attributes = json.loads(json.dumps(image_attributes(grid, name="image", path="s0")))
    assert read_levels(attributes, "x") == [
        Level("s0", ("z", "y", "x"), grid.voxel_size, grid.origin, (grid.unit,) * 3, "0.5", types=("space",) * 3)
    ]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("labels", [False, True])
def test_the_models_of_another_library_write_the_same(version: str, labels: bool) -> None:
    """The models of yaozarrs take all that is written, and neither add nor change anything."""
    grid = VoxelGrid((2, 3, 4), (1.0, 0.5, 0.25), (0.5, 0.0, -3.0), "micrometer")
    series = (SeriesAxis("t", 3, 2.5, "second"), SeriesAxis("c", 2))
    how: dict[str, Any] = {"further": [grid, grid], "method": "mean", "labels": labels, "series": series}
    written = image_attributes(grid, name="cells", version=version, **how)
    window = DisplayWindow(0.0, 1.0, 2.0, 3.0)
    omero = omero_attribute([Channel("dapi", "0000FF"), Channel()], [window, window], depth=5)
    image = (written if version == "0.4" else written["ome"]) | ({} if labels else {"omero": omero})
    models: Any = yaozarrs.v04 if version == "0.4" else yaozarrs.v05
    model = models.LabelImage if labels else models.Image
    assert model.model_validate(image).model_dump(mode="json", exclude_none=True) == image


def test_a_grid_without_unit_is_written_without_the_key() -> None:
    """No unit in the grid means no unit in the axes, not an empty one."""
    attributes = image_attributes(VoxelGrid((1, 1, 1)), name="n")
    assert attributes["ome"]["multiscales"][0]["axes"][0] == {"name": "z", "type": "space"}


def test_version_04_is_read_with_all_its_levels() -> None:
    """Every level of a 0.4 image comes with its own scale and translation, over all five axes."""
    axes = ("t", "c", "z", "y", "x")
    units = ("second", None, *["micrometer"] * 3)
    types = ("time", "channel", *["space"] * 3)
    assert read_levels(image04(), "x") == [
        Level("0", axes, (1, 1, 2, 0.5, 0.5), (0, 0, 0, 0, 0), units, "0.4", types=types),
        Level("s1/data", axes, (1, 1, 2, 1, 1), (0, 0, 0, 0.25, 0.25), units, "0.4", types=types),
    ]


def test_the_images_own_transform_comes_after_the_levels() -> None:
    """The outer scale multiplies the level's scale and translation before the outer translation is added."""
    attributes = image05(
        datasets=dataset(scale(1, 2, 3), translation(10, 20, 30)),
        coordinateTransformations=[scale(2, 2, 0.5), translation(1, 0, -1)],
    )
    (level,) = read_levels(attributes, "x")
    assert level.scale == (2.0, 4.0, 1.5)
    assert level.translation == (21.0, 40.0, 14.0)


@pytest.mark.parametrize(
    "attributes",
    [
        {
            **image04(extra={"deep": [1]}, type="gaussian", metadata=None),
            "omero": {"channels": "none"},
            "x": 1,
        },
        {"multiscales": [{k: v for k, v in image04()["multiscales"][0].items() if k not in ("name", "version")}]},
        image04(name=7, coordinateTransformations=[]),
        image04(axes=[{"name": n, "unit": "micrometer"} if n in "zyx" else {"name": n} for n in "tczyx"]),
        image04(datasets=dataset(scale(1, 1, 2, 0.5, 0.5), {"type": "identity"}, path="0/")),
        {"multiscales": [image04()["multiscales"][0], "a second image, broken"]},
    ],
    ids=[
        "extra-keys",
        "no-name-no-version",
        "odd-name",
        "no-axis-types",
        "identity-and-slash",
        "second-image",
    ],
)
def test_sins_that_leave_the_geometry_alone_are_forgiven(attributes: dict[str, Any]) -> None:
    """What the specification demands beyond geometry may be missing or wrong."""
    level = read_levels(attributes, "x")[0]
    assert (level.path, level.scale, level.units[2:]) == ("0", (1, 1, 2, 0.5, 0.5), ("micrometer",) * 3)


ZYX = [{"name": axis, "type": "space"} for axis in "zyx"]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "without OME-Zarr metadata"),
        ({"ome": 3}, "'ome' must be an object, not 3"),
        ({"ome": {"version": "0.5", "plate": {}}}, "is a plate of OME-Zarr images"),
        ({"ome": {"version": "0.5", "bioformats2raw.layout": 3}}, "is a collection of OME-Zarr images"),
        ({"multiscales": []}, "multiscales must be a list of objects, not an empty list"),
        ({"multiscales": [3]}, "multiscales must be a list of objects"),
        (image04(version="0.3"), "is OME-Zarr 0.3, which has no voxel sizes; name one of its arrays, such as"),
        (image04(version="0.6"), "version is '0.6'; isovoxel reads 0.4"),
        ({"ome": {"multiscales": image04()["multiscales"]}}, "version is nothing"),
        (image05(axes=["z", "y", "x"]), "every axis must be an object with a name, not 'z'"),
        (image05(axes=ZYX[:1]), "axes must be a list of 2 to 5 axes"),
        (image05(axes=[*ZYX, ZYX[0]]), "two axes are called 'z'"),
        (image05(axes=[*ZYX[:2], {"name": "w", "type": "space"}]), "axis 'w' has type 'space'"),
        (image05(axes=[{"name": "z", "type": "time"}, *ZYX[1:]]), "axis 'z' has type 'time'"),
        (image05(axes=[*ZYX[:2], {**ZYX[2], "unit": 5}]), "unit of axis 'x' must be a text, not 5"),
        (image05(axes=[*ZYX, {"name": "Z", "type": "space"}]), "two axes are called 'Z'"),
        (image05(axes=[{"name": "c"}, {"name": "t"}, ZYX[2]]), "fewer than two space axes"),
        (image05(datasets=None), "datasets must be a list of levels, not nothing"),
        (image05(datasets=[]), "datasets must be a list of levels, not an empty list"),
        (image05(datasets=["0"]), "level 0 must be an object, not '0'"),
        (
            image05(datasets=[{"path": "0"}]),
            "the coordinateTransformations of level '0' must be a list, not nothing",
        ),
        (image05(datasets=dataset()), "level '0' has no scale"),
        (image05(datasets=dataset(translation(1, 2, 3))), "level '0' has no scale"),
        (
            image05(datasets=dataset(scale(1, 1))),
            "must be a list of 3 numbers, one per axis, not a list of 2",
        ),
        (
            image05(datasets=dataset({"type": "scale"})),
            "must be a list of 3 numbers, one per axis, not nothing",
        ),
        (image05(datasets=dataset(scale(1, "1", 1))), "must hold finite numbers, not '1'"),
        (image05(datasets=dataset(scale(1, True, 1))), "must hold finite numbers, not true"),
        (image05(datasets=dataset(scale(1, float("nan"), 1))), "must hold finite numbers, not nan"),
        (image05(datasets=dataset(scale(1, 10**400, 1))), "must hold finite numbers, not a huge integer"),
        (image05(datasets=dataset(scale(0, 1, 1))), "above 0, not 0"),
        (image05(datasets=dataset(scale(1, 1, -2))), "above 0, not -2"),
        (image05(datasets=dataset(scale(1, 1, 1), scale(1, 1, 1))), "more than one scale"),
        (image05(datasets=dataset(translation(1, 1, 1), scale(1, 1, 1))), "translation before the scale"),
        (image05(datasets=dataset({"type": "affine"})), "must be scale and translation, not 'affine'"),
        (image05(datasets=dataset(7)), "must be scale and translation, not 7"),  # type: ignore[arg-type]
        (
            image05(coordinateTransformations="big"),
            "the coordinateTransformations of the image must be a list",
        ),
        (
            image05(datasets=dataset(scale(1e200, 1, 1)), coordinateTransformations=[scale(1e200, 1, 1)]),
            "above 0, not inf",
        ),
        (
            image05(
                datasets=dataset(scale(1, 1, 1), translation(1e200, 1, 1)),
                coordinateTransformations=[scale(1e200, 1, 1)],
            ),
            "translation of level '0' is not finite",
        ),
    ],
)
def test_metadata_that_is_wrong_is_named(attributes: dict[str, Any], message: str) -> None:
    """One sentence begins with the input's name and says what is wrong."""
    with pytest.raises(InputError) as caught:
        read_levels(attributes, "in.zarr")
    text = str(caught.value)
    assert text.startswith("in.zarr ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "..",
        "a/../../b",
        "",
        "/",
        ".",
        "a//b",
        "\\\\host\\a",
        "a\\..\\b",
        "C:\\a",
        "C:a",
        "s3://a",
        "0\0",
    ],
)
def test_a_level_outside_the_image_is_refused(path: str) -> None:
    """Paths that are absolute, climb, or mean another place on another system open nothing."""
    with pytest.raises(InputError, match="does not lead to an array inside it"):
        read_levels(image05(datasets=dataset(scale(1, 1, 1), path=path)), "in.zarr")


@given(
    json_values,
    st.sampled_from(["", "ome", "multiscales", "axes", "datasets", "scale", "outer", "path", "transform"]),
)
def test_arbitrary_json_raises_nothing_but_an_input_error(value: Any, place: str) -> None:
    """Whatever JSON stands wherever in the attributes is read or refused with an `InputError`."""
    attributes: dict[str, Any]
    if place == "":
        attributes = value if isinstance(value, dict) else {}
    elif place in ("ome", "multiscales"):
        attributes = {place: value}
    else:
        attributes = image05(
            **{
                "axes": {"axes": value if isinstance(value, list) else [value, *ZYX[1:]]},
                "datasets": {"datasets": value if isinstance(value, list) else [value]},
                "scale": {"datasets": dataset(scale(value, 1, 1))},
                "outer": {"coordinateTransformations": value},
                "path": {"datasets": dataset(scale(1, 1, 1), path=value)},
                "transform": {"datasets": dataset(value)},
            }[place]
        )
    try:
        levels = read_levels(attributes, "in.zarr")
    except InputError:
        return
    assert levels


# ---- OME-XML ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("own", "inner", "companion"),
    [
        ("", "<OME/>", None),
        ("", '<OME UUID="b"/>', None),
        ('<BinaryOnly MetadataFile="a.ome"/>', '<OME UUID="b"><BinaryOnly MetadataFile="b.ome"/></OME>', "a.ome"),
    ],
)
def test_an_annotation_does_not_say_which_file_this_is(own: str, inner: str, companion: str | None) -> None:
    """OME-XML of another file in an annotation changes neither the file's own UUID nor its companion."""
    found = read_ome(f'<OME UUID="a">{own}<XMLAnnotation><Value>{inner}</Value></XMLAnnotation></OME>', "a")
    assert (found.uuid, found.companion) == ("a", companion)


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
