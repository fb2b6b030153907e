"""Zarr arrays and OME-Zarr images as volumes, their levels, and images inside plates and collections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from command_line import Isovoxel, check_refused
from inputs import check_sentence
from isovoxel.errors import InputError, IsovoxelError, OptionError
from isovoxel.geometry.grid import Box
from isovoxel.object_store.objects import ObjectPlace, place_of
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import Selection
from ome_zarrs import halved, put_attributes, pyramid
from store_server import upload
from strategies import examples

DATA = np.random.default_rng(0).integers(0, 60_000, (8, 12, 16)).astype(np.uint16)
VERSIONS = pytest.mark.parametrize("version", ["0.4", "0.5"])


def plate(path: Path, version: str, wells: int = 1) -> Path:
    """Write a plate of wells with two images each."""
    names = [f"A/{column}" for column in range(1, wells + 1)]
    put_attributes(path, version, {"plate": {"wells": [{"path": name} for name in names]}})
    for name in names:
        put_attributes(path / name, version, {"well": {"images": [{"path": "0"}, {"path": "1"}]}})
        for image in ("0", "1"):
            pyramid(path / name / image, [DATA], version)
    return path


def collection(path: Path, version: str, series: list[str] | None) -> Path:
    """Write what bioformats2raw makes of a file of two images."""
    put_attributes(path, version, {"bioformats2raw.layout": 3})
    if series is not None:
        put_attributes(path / "OME", version, {"series": series})
    for image in series or ["0", "1"]:
        pyramid(path / image, halved(DATA, 2), version)
    return path


@VERSIONS
@pytest.mark.parametrize("level", [0, 1, 2])
def test_any_level_is_read_where_it_lies(level: int, version: str, tmp_path: Path) -> None:
    """Each has its own voxels, voxel size and origin, and another identity than the others."""
    path = pyramid(tmp_path / "a.zarr", halved(DATA, 3), version)
    volume = open_volume(path, selection=Selection(level=level))
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), halved(DATA, 3)[level])
    assert volume.voxel_size == (2.0 * 2**level, 0.5 * 2**level, 0.5 * 2**level)
    assert volume.origin == (2.0**level - 1, (2.0**level - 1) / 4, (2.0**level - 1) / 4)
    assert (volume.identity == open_volume(path).identity) == (level == 0)


def test_a_level_that_is_not_there_is_named(isovoxel: Isovoxel, tmp_path: Path) -> None:
    """And so is one of an input that has none, or that is no number of a level."""
    path = pyramid(tmp_path / "a.zarr", halved(DATA, 2))
    check_refused(isovoxel("info", path, "--level", 2), "has 2 resolution levels, counted from 0: give --level 0 to 1")
    check_refused(isovoxel("info", path, "--level", -1), "level must be a whole number from 0 on, not -1")
    np.save(tmp_path / "a.npy", DATA)
    check_refused(isovoxel("info", tmp_path / "a.npy", "--level", 1), "selects no resolution levels; leave out --level")
    check_refused(isovoxel("info", path / "level0", "--level", 0), "selects no resolution levels; leave out --level")
    with pytest.raises(OptionError, match="level must be a whole number"):
        Selection(level=True)


def test_a_level_is_scaled_verified_and_gone_on_with(isovoxel: Isovoxel, tmp_path: Path) -> None:
    """The output is that of the level by itself; another level is another input."""
    path, out = pyramid(tmp_path / "a.zarr", halved(DATA, 2)), tmp_path / "out.zarr"
    words = ("scale", path, out, "--factor", "2,1,1", "--quiet")
    assert isovoxel(*words, "--level", 1).code == 0
    assert isovoxel("info", out, "--json").json["shape"] == [8, 6, 8]
    assert isovoxel("info", out, "--json").json["origin"] == [0.0, 0.25, 0.25]
    assert isovoxel("verify", out, "--samples", 50).code == 0
    assert isovoxel("verify", out, "--against", path, "--samples", 50).code == 0
    assert "nothing was done" in isovoxel(*words[:-1], "--level", 1).out
    assert "nothing was done" in isovoxel(*words[:-1]).out, "what is not said is taken from the output"
    check_refused(isovoxel(*words, "--level", 0), "level 1, now none")


@VERSIONS
def test_an_image_inside_a_plate_or_a_collection_is_an_image(version: str, tmp_path: Path) -> None:
    """It is named by its path."""
    inside = [
        plate(tmp_path / "plate.zarr", version) / "A/1/0",
        collection(tmp_path / "file.zarr", version, None) / "1",
    ]
    for path in inside:
        volume = open_volume(path)
        np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), DATA)


@VERSIONS
@pytest.mark.parametrize("series", [None, ["0", "1"], ["first", "second"]])
def test_a_collection_names_its_images(version: str, series: list[str] | None, tmp_path: Path) -> None:
    """As its metadata list them, or as they are counted."""
    path = collection(tmp_path / "file.zarr", version, series)
    listed = ", ".join(str(path / name) for name in series or ["0", "1"])
    with pytest.raises(InputError, match="is a collection of images; give the path of one image in it") as refused:
        open_volume(path)
    assert str(refused.value).endswith(f": {listed}")


@VERSIONS
def test_a_plate_and_a_well_name_their_images(version: str, tmp_path: Path) -> None:
    """The first of them, where there are many."""
    path = plate(tmp_path / "plate.zarr", version, wells=5)
    with pytest.raises(InputError, match="is a plate of 5 wells; give the path of one image in it") as refused:
        open_volume(path)
    assert f"{path / 'A/4/1'}, and so on" in str(refused.value)
    assert "A/5" not in str(refused.value)
    with pytest.raises(InputError, match=r"is a well of a plate; .* one image in it: .*/A/1/0, .*/A/1/1$"):
        open_volume(path / "A/1")


@VERSIONS
def test_paths_that_lead_elsewhere_are_not_followed(version: str, tmp_path: Path) -> None:
    """Nor does a well that is not there stop the list of the others."""
    outside = plate(tmp_path / "other.zarr", version)
    wells = [{"path": f"../{outside.name}/A/1"}, {"path": "B/1"}, 7]
    put_attributes(tmp_path / "plate.zarr", version, {"plate": {"wells": wells}})
    with pytest.raises(InputError, match="is a plate of 1 well, in which no image is found; give the path"):
        open_volume(tmp_path / "plate.zarr")


@pytest.mark.usefixtures("server")
def test_it_is_the_same_by_address(tmp_path: Path) -> None:
    """Levels, images inside, and what a collection holds."""
    collection(tmp_path / "file.zarr", "0.5", ["0", "1"])
    place = place_of(f"s3://bucket/{tmp_path.name}/file.zarr")
    assert isinstance(place, ObjectPlace)
    upload(tmp_path / "file.zarr", place)
    volume = open_volume(f"{place}/1", selection=Selection(level=1))
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), halved(DATA, 2)[1])
    with pytest.raises(InputError, match=f"one image in it: {place}/0, {place}/1$"):
        open_volume(str(place))


# ---- zarr arrays and images ------------------------------------------------------------------------------------------


STACK = np.arange(5 * 6 * 7, dtype="uint16").reshape(5, 6, 7)


def multiscales(
    axes: str = "zyx",
    *,
    scale: tuple[float, ...] = (2.0, 0.5, 0.5),
    translation: tuple[float, ...] | None = (1.0, 0.0, -3.5),
    unit: str | None = "micrometer",
    level: str = "0",
    version: str | None = None,
) -> list[dict[str, Any]]:
    """Return the metadata of an image of one level; axes other than space get scale 1 and translation 0."""
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": n, "type": kinds.get(n, "space")} for n in axes]
    for axis in described:
        if axis["type"] == "space" and unit is not None:
            axis["unit"] = unit
    extra = len(axes) - 3
    transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0] * extra + list(scale)}]
    if translation is not None:
        transforms.append({"type": "translation", "translation": [0.0] * extra + list(translation)})
    image = {"axes": described, "datasets": [{"path": level, "coordinateTransformations": transforms}]}
    return [image | ({"version": version} if version else {})]


def ome_zarr(path: Path, array: np.ndarray = STACK, version: str = "0.5", **options: Any) -> Path:
    """Write an OME-Zarr image of this version with one level."""
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    if version == "0.5":
        group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales(**options)}
    else:
        group.attrs["multiscales"] = multiscales(version="0.4", **options)
    group.create_array("0", data=array, chunks=(*([1] * (array.ndim - 3)), 2, 3, 4))
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "czyx", "tczyx"])
def test_an_ome_zarr_image(version: str, axes: str, tmp_path: Path) -> None:
    """Voxel size, origin, unit and voxels come from the finest level, whatever axes of length 1 there are."""
    path = ome_zarr(tmp_path / "a.zarr", STACK.reshape((1,) * (len(axes) - 3) + STACK.shape), version, axes=axes)
    volume = open_volume(path)
    assert volume.kind == f"OME-Zarr {version}"
    assert volume.shape == STACK.shape
    assert volume.chunks == (2, 3, 4)
    assert volume.voxel_size == (2.0, 0.5, 0.5)
    assert volume.origin == (1.0, 0.0, -3.5)
    assert volume.unit == "micrometer"
    assert volume.sources["voxel size"] == "OME-Zarr scale"
    np.testing.assert_array_equal(volume.read(Box((1, 0, 2), (5, 6, 7))), STACK[1:, :, 2:])


def test_without_a_unit_lengths_have_none(tmp_path: Path) -> None:
    """An image without a unit has a voxel size without a unit; one in pixels is not calibrated."""
    volume = open_volume(ome_zarr(tmp_path / "a.zarr", unit=None))
    assert (volume.voxel_size, volume.unit) == ((2.0, 0.5, 0.5), None)
    volume = open_volume(ome_zarr(tmp_path / "b.zarr", unit="pixel"))
    assert volume.voxel_size is None
    assert "'pixel', whose unit is no known length" in volume.missing


def test_an_unfinished_output_says_so(tmp_path: Path) -> None:
    """The output of a job that has not ended is an image, but its kind says that it is incomplete."""
    path = ome_zarr(tmp_path / "a.zarr")
    zarr.open_group(path).attrs["isovoxel"] = {"complete": False}
    assert open_volume(path).kind == "OME-Zarr 0.5 (incomplete)"
    zarr.open_group(path).attrs["isovoxel"] = {"complete": True}
    assert open_volume(path).kind == "OME-Zarr 0.5"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_level_is_a_bare_array(version: str, tmp_path: Path) -> None:
    """The path of an array in an image opens it as an array, which by itself has no voxel size."""
    volume = open_volume(ome_zarr(tmp_path / "a.zarr", version=version) / "0")
    assert volume.kind == f"zarr v{2 if version == '0.4' else 3} array"
    assert volume.voxel_size is None
    assert "name the image's group" in volume.missing


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("shape", "names", "message"),
    [
        ((5, 6, 7), ("z", "y", "x"), None),
        ((5, 6, 7), ("Z", "Y", "X"), None),
        ((5, 6, 7), None, None),
        ((1, 1, 5, 6, 7), ("t", "c", "z", "y", "x"), None),
        ((5, 6, 7), ("t", "y", "x"), "has 5 time points"),
        ((2, 6, 7), ("c", "y", "x"), "has 2 channels"),
        ((0, 5, 6, 7), ("c", "z", "y", "x"), "has 0 channels; isovoxel takes z, y, x"),
        ((5, 6, 7), ("time", "y", "x"), "has 5 time points; give --time 0 to 4"),
        ((2, 5, 6, 7), None, "is 4-D"),
        ((7,), None, "is 1-D"),
        ((), None, "is 0-D"),
        ((0, 6, 7), None, "is empty"),
    ],
)
def test_axes_of_a_bare_array(
    zarr_format: int, shape: tuple[int, ...], names: tuple[str, ...] | None, message: str | None, tmp_path: Path
) -> None:
    """Named axes must be z, y, x; three without names are; everything else is refused."""
    options: dict[str, Any] = {"dimension_names": names} if zarr_format == 3 else {}
    array = zarr.create_array(tmp_path / "a", shape=shape, dtype="uint8", zarr_format=zarr_format, **options)
    if zarr_format == 2 and names:
        array.attrs["_ARRAY_DIMENSIONS"] = list(names)
    if message is None:
        assert open_volume(tmp_path / "a").shape == (5, 6, 7)
        assert open_volume(array).shape == (5, 6, 7)
    else:
        for source in (tmp_path / "a", array):
            with pytest.raises(InputError, match=message):
                open_volume(source)


def test_a_zarr_array_in_memory() -> None:
    """An array that the caller opened is read from wherever it is stored."""
    array = zarr.create_array({}, data=STACK, chunks=(2, 3, 4))
    volume = open_volume(array, voxel_size=(2, 1, 1))
    np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)
    assert json.loads(json.dumps(volume.identity)) == volume.identity


def test_a_plain_group_names_its_arrays(tmp_path: Path) -> None:
    """A group that is no image is refused with the arrays that could be opened instead."""
    for zarr_format in (2, 3):
        path = tmp_path / f"{zarr_format}.zarr"
        group = zarr.create_group(path, zarr_format=zarr_format)
        with pytest.raises(InputError, match="without arrays"):
            open_volume(path)
        group.create_array("raw", data=STACK)
        group.create_group("more").create_array("labels", data=STACK)
        with pytest.raises(InputError) as error:
            open_volume(path)
        assert f"name one of its arrays: {path}/more/labels, {path}/raw" in str(error.value)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("path", ["../secret", "/etc", "0/../../secret", "..", "a\\..\\..\\secret"])
def test_a_path_out_of_the_image_is_refused(version: str, path: str, tmp_path: Path) -> None:
    """Metadata cannot make isovoxel read an array outside the image."""
    zarr.create_array(tmp_path / "secret", data=STACK)
    with pytest.raises(InputError, match="does not lead to an array inside"):
        open_volume(ome_zarr(tmp_path / "a.zarr", version=version, level=path))


def test_a_link_in_the_image_is_followed(tmp_path: Path) -> None:
    """Where metadata must not lead out of the image a link may: whoever made it wanted the array there."""
    path = ome_zarr(tmp_path / "a.zarr")
    (path / "0").rename(tmp_path / "large disk")
    (path / "0").symlink_to(tmp_path / "large disk")
    np.testing.assert_array_equal(open_volume(path).read(Box.whole(STACK.shape)), STACK)


def test_axes_that_the_array_lacks_are_refused(tmp_path: Path) -> None:
    """An image whose metadata and array contradict each other is an error, never a guess."""
    with pytest.raises(InputError, match="metadata have 4 axes, its array '0' has 3"):
        open_volume(ome_zarr(tmp_path / "a.zarr", axes="czyx"))


def test_a_broken_chunk_is_an_input_error(tmp_path: Path) -> None:
    """A chunk that cannot be decoded is named by its place when it is read."""
    path = ome_zarr(tmp_path / "a.zarr")
    (path / "0/c/1/0/0").write_bytes(b"garbage")
    volume = open_volume(path)
    with pytest.raises(InputError, match=r"chunk \(1, 0, 0\) of .* is corrupt"):
        volume.read(Box.whole(STACK.shape))


def test_the_identity_changes_with_the_metadata(tmp_path: Path) -> None:
    """The identity is JSON, stays where nothing changes, and changes with any metadata of group or array."""
    path = ome_zarr(tmp_path / "a.zarr")
    first = open_volume(path).identity
    assert json.loads(json.dumps(first)) == first == open_volume(path).identity
    assert first["path"] == str(path)
    zarr.open_group(path).attrs["note"] = 1
    second = open_volume(path).identity
    zarr.open_array(path / "0").attrs["note"] = 1
    assert first != second != open_volume(path).identity != first


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"node_type": "array"}', '{"zarr_format": 3, "node_type": "group", "attributes": 3}'],
)
@pytest.mark.parametrize("file", ["zarr.json", ".zgroup", ".zattrs", ".zarray", "0/zarr.json", "0/.zarray"])
def test_broken_metadata_are_an_input_error(file: str, text: str, tmp_path: Path) -> None:
    """Metadata that are no JSON, or not zarr's, are refused in one sentence."""
    path = ome_zarr(tmp_path / "a.zarr", version="0.5" if "json" in file else "0.4")
    (path / file).write_text(text)
    with pytest.raises(InputError) as error:
        open_volume(path)
    assert "\n" not in str(error.value)


@settings(max_examples=examples(120), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["zarr.json", "0/zarr.json"]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(32, 126)), min_size=1, max_size=4),
)
def test_any_damage_to_metadata_opens_or_is_an_input_error(
    tmp_path: Path, file: str, damage: list[tuple[int, int]]
) -> None:
    """Whatever characters of the metadata are changed, the image opens or is refused in one sentence."""
    path = tmp_path / "a.zarr"
    if not path.exists():
        ome_zarr(path)
    whole = (path / file).read_bytes()
    data = bytearray(whole)
    for place, value in damage:
        data[place % len(data)] = value
    (path / file).write_bytes(data)
    try:
        volume = open_volume(path)
        if Box.whole(volume.shape).size < 10**5 and volume.read_overhead < 10**7:
            volume.read(Box.whole(volume.shape))
    except IsovoxelError as error:
        check_sentence(error)
    finally:
        (path / file).write_bytes(whole)


@pytest.mark.parametrize(
    ("units", "size", "origin", "unit"),
    [
        (("nanometer", "micrometer", "micrometer"), (0.002, 0.5, 0.5), (0.001, 0, -3.5), "micrometer"),
        (("micrometer", "micrometer", "nanometer"), (2000, 500, 0.5), (1000, 0, -3.5), "nanometer"),
        (("um", "µm", "micrometer"), (2, 0.5, 0.5), (1, 0, -3.5), "micrometer"),
        (("micrometer", None, "micrometer"), None, None, None),
        (("micrometer", "parsnip", "micrometer"), None, None, None),
    ],
)
def test_each_axis_has_a_unit_of_its_own(units: Any, size: Any, origin: Any, unit: Any, tmp_path: Path) -> None:
    """Sizes and positions are converted to the unit of x, and are none where one axis says none."""
    path = ome_zarr(tmp_path / "a.zarr")
    group = zarr.open_group(path)
    ome = dict(group.attrs["ome"])
    for axis, of_axis in zip(ome["multiscales"][0]["axes"], units, strict=True):
        axis.pop("unit")
        axis.update({"unit": of_axis} if of_axis else {})
    group.attrs["ome"] = ome
    volume = open_volume(path)
    assert (volume.voxel_size, volume.unit) == (None if size is None else pytest.approx(size), unit)
    if size is not None:
        assert volume.origin == pytest.approx(origin)


def test_names_of_axes_may_be_capitals(tmp_path: Path) -> None:
    """They are free in the specification, and some write Z, Y, X."""
    path = ome_zarr(tmp_path / "a.zarr")
    group = zarr.open_group(path)
    ome = dict(group.attrs["ome"])
    for axis in ome["multiscales"][0]["axes"]:
        axis["name"] = axis["name"].upper()
    group.attrs["ome"] = ome
    volume = open_volume(path)
    assert (volume.voxel_size, volume.unit, volume.origin) == ((2, 0.5, 0.5), "micrometer", (1, 0, -3.5))
    np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)


def test_a_version_without_voxel_sizes_is_told_with_a_way_on(tmp_path: Path) -> None:
    """The array in it opens with a size that the user gives."""
    path = ome_zarr(tmp_path / "a.zarr", version="0.4")
    zarr.open_group(path).attrs["multiscales"] = [
        {"version": "0.3", "axes": ["z", "y", "x"], "datasets": [{"path": "0"}]}
    ]
    with pytest.raises(InputError, match=r"is OME-Zarr 0.3, which has no voxel sizes; name one of its arrays, such as"):
        open_volume(path)
    assert open_volume(path / "0", voxel_size=(2, 1, 1)).voxel_size == (2, 1, 1)
