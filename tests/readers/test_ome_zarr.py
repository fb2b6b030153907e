"""Levels of OME-Zarr images, and images inside plates and collections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from command_line import Isovoxel, check_refused
from isovoxel.errors import InputError, OptionError
from isovoxel.geometry.grid import Box
from isovoxel.object_store.objects import ObjectPlace, place_of
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import Selection
from ome_zarrs import halved, put_attributes, pyramid
from store_server import upload

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
