"""Images of inputs that hold several: how they are listed, and how one of them is selected."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array
import numpy as np
import pytest
import tifffile
import zarr

import isovoxel as package
from command_line import Isovoxel, check_refused
from isovoxel.errors import InputError, OptionError
from isovoxel.geometry.grid import Box
from isovoxel.readers.open import images_of, open_part
from isovoxel.readers.plugins import volume_of_reader
from isovoxel.readers.selection import ImageEntry, Selection, find_image, matching_images
from ome_zarrs import FIELDS, collection, plate, positions, pyramid


def voxels_of(source: Any, **selected: Any) -> np.ndarray:
    volume = package.open_volume(source, **selected)
    return volume.read(Box.whole(volume.shape))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_field_of_a_plate(version: str, tmp_path: Path) -> None:
    """By its path or its number, as if its own path were given; a well has numbers of its own."""
    path = plate(tmp_path / "plate.zarr", version)
    assert [image.path for image in images_of(path).images] == list(FIELDS)
    for n, (field, voxels) in enumerate(FIELDS.items()):
        for image in (field, f"/{field}/", n, str(n)):
            np.testing.assert_array_equal(voxels_of(path, image=image), voxels)
    np.testing.assert_array_equal(voxels_of(path / "B" / "2", image=1), FIELDS["B/2/1"])
    opened = package.open_volume(path, image="A/1/1")
    assert opened.identity == package.open_volume(path / "A/1/1").identity
    assert opened.name == f"{path}/A/1/1"


@pytest.mark.parametrize("listed", [True, False])
def test_an_image_of_a_collection(listed: bool, tmp_path: Path) -> None:
    """Its group "OME" lists them, or they are counted."""
    path = collection(tmp_path / "c.zarr", listed=listed)
    assert [image.path for image in images_of(path).images] == ["0", "1"]
    np.testing.assert_array_equal(voxels_of(path, image=1), FIELDS["A/1/1"])


def test_images_in_a_plain_group(tmp_path: Path) -> None:
    """They need no list."""
    zarr.create_group(tmp_path / "g.zarr")
    pyramid(tmp_path / "g.zarr" / "raw", [FIELDS["A/1/0"]])
    pyramid(tmp_path / "g.zarr" / "other", [FIELDS["A/1/1"]])
    assert [image.path for image in images_of(tmp_path / "g.zarr").images] == ["other", "raw"]
    np.testing.assert_array_equal(voxels_of(tmp_path / "g.zarr", image="raw"), FIELDS["A/1/0"])


def test_images_in_a_zip(tmp_path: Path) -> None:
    """As in the folder that it holds; `verify` and others open the same one again."""
    path = Path(shutil.make_archive(str(tmp_path / "plate.zarr"), "zip", plate(tmp_path / "plate.zarr")))
    assert [image.path for image in images_of(path).images] == list(FIELDS)
    np.testing.assert_array_equal(voxels_of(path, image="B/2/0"), FIELDS["B/2/0"])
    identity = package.open_volume(path, image="B/2/0").identity
    np.testing.assert_array_equal(open_part(identity["path"], identity).read(Box.whole((4, 8, 8))), FIELDS["B/2/0"])


def test_a_position_of_a_tiff(tmp_path: Path) -> None:
    """By its number, which is a part of its identity; the one image of another file needs none."""
    path = positions(tmp_path / "two.ome.tif")
    assert [image.path for image in images_of(path).images] == ["0", "1"]
    for n, voxels in enumerate(list(FIELDS.values())[:2]):
        opened = package.open_volume(path, image=n)
        assert (opened.identity["image"], opened.voxel_size) == (str(n), (2.0, 0.5, 0.5))
        np.testing.assert_array_equal(opened.read(Box.whole(opened.shape)), voxels)
        np.testing.assert_array_equal(open_part(path, opened.identity).read(Box.whole(opened.shape)), voxels)
    alone = package.open_volume(positions(tmp_path / "one.ome.tif", 1), image=0)
    assert "image" not in alone.identity


def test_an_image_that_is_not_there(tmp_path: Path, isovoxel: Isovoxel) -> None:
    path = plate(tmp_path / "plate.zarr")
    for image, why in (
        ("C/1/0", f"{path} has no image C/1/0; its images are A/1/0, A/1/1, B/2/0, B/2/1"),
        ("4", f"{path} has no image 4; its images are A/1/0"),
        ("../plate.zarr", "has no image ../plate.zarr"),
    ):
        check_refused(isovoxel("info", path, "--image", image), why)
    for image in ("A/*/0", "all"):
        check_refused(isovoxel("limits", path, "--image", image), f"image {image} means several images, of which this")
    two = positions(tmp_path / "two.ome.tif")
    check_refused(isovoxel("info", two, "--image", "2"), f"{two} has no image 2; its images are 0, 1")
    tifffile.imwrite(one := tmp_path / "one.tif", np.zeros((2, 3, 4), np.uint8), photometric="minisblack")
    check_refused(isovoxel("info", one, "--image", "3"), f"{one} has no image 3; its only image is 0")
    check_refused(isovoxel("plan", two), "holds 2 volumes (0: 4 x 8 x 8, 1: 4 x 8 x 8); give --image and its number")
    np.save(tmp_path / "in.npy", FIELDS["A/1/0"])
    check_refused(isovoxel("info", tmp_path / "in.npy", "--image", "0"), "selects no images; leave out --image")
    with pytest.raises(OptionError, match="selects no images"):
        package.open_volume(FIELDS["A/1/0"], image=0)
    with pytest.raises(InputError, match="is one image itself; leave out --image"):
        images_of(path / "A/1/0")


def test_a_job_resumes_with_the_image_that_it_was_begun_with(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """Said or not; another one is refused."""
    path, out = positions(tmp_path / "two.ome.tif"), tmp_path / "out.zarr"
    made = package.scale(path, out, image=1, engine="exact", factor=(2, 1, 1), interpolation="nearest")
    np.testing.assert_array_equal(made.open().compute()[::2], FIELDS["A/1/1"])
    assert package.scale(path, out).tally.done_before == made.plan.all_blocks
    check_refused(isovoxel("scale", path, out, "--image", "0"), "was made with image 1, now 0")
    assert package.verify(out, samples=5).holds


def test_names_and_patterns() -> None:
    """A path is found before a number, that before a name; a pattern matches paths and names."""
    images = [ImageEntry("a", "1"), ImageEntry("1", "left"), ImageEntry("b", "twice"), ImageEntry("c", "twice")]
    found = {wanted: find_image(images, wanted, "x").path for wanted in ("1", "0", "left")}
    assert found == {"1": "1", "0": "a", "left": "1"}
    with pytest.raises(OptionError, match=r"x has 2 images called twice: give --image b \(twice\), c \(twice\)"):
        find_image(images, "twice", "x")
    assert [image.path for image in matching_images(images, "t*", "x")] == ["b", "c"]
    assert len(matching_images(images, "all", "x")) == 4
    with pytest.raises(OptionError, match=r"no image of x matches z\*; its images are a \(1\), 1 \(left\), b"):
        matching_images(images, "z*", "x")
    with pytest.raises(OptionError, match=r"no image of x matches z\*; its only image is 0$"):
        matching_images([ImageEntry("0")], "z*", "x")
    with pytest.raises(OptionError, match=r"no image of x matches all; it holds none$"):
        matching_images([], "all", "x")


def test_a_group_without_images_is_said_to_be_one(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """By `info` as by `scale`."""
    zarr.open_group(tmp_path / "empty", mode="w")
    for words in (["info"], ["plan"]):
        check_refused(isovoxel(*words, tmp_path / "empty"), "is a zarr group without OME-Zarr metadata and without")


class Scenes:
    """What isovoxel asks of a reader of bioio's."""

    scenes = ("left", "right")
    dims = SimpleNamespace(order="TCZYX")
    physical_pixel_sizes = SimpleNamespace(Z=2.0, Y=0.5, X=0.5)
    channel_names = ("c",)

    def __init__(self) -> None:
        self.scene = 0

    def set_scene(self, scene: int) -> None:
        self.scene = scene

    @property
    def dask_data(self) -> Any:
        voxels = list(FIELDS.values())[self.scene][None, None]
        return dask.array.from_array(voxels, chunks=(1, 1, 1, 8, 8))


def test_a_scene_of_a_microscopes_file(tmp_path: Path) -> None:
    """By its number or its name; without either they are listed."""
    (tmp_path / "a.lif").write_bytes(b"x")
    for image in ("1", "right"):
        opened = volume_of_reader(Scenes(), tmp_path / "a.lif", "a.lif", "LIF", Selection(image=image))
        np.testing.assert_array_equal(opened.read(Box.whole(opened.shape)), FIELDS["A/1/1"])
        assert opened.identity["image"] == "1"
    with pytest.raises(InputError, match=r"a.lif holds 2 images \(0 \(left\), 1 \(right\)\); give --image 0 to 1"):
        volume_of_reader(Scenes(), tmp_path / "a.lif", "a.lif", "LIF", Selection())


def test_images_none_of_which_can_be_opened_are_not_listed(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """The error says why the input cannot be read, as of any other."""
    with tifffile.TiffWriter(tmp_path / "rgb.ome.tif", ome=True) as tif:
        for length in (8, 9):
            tif.write(np.zeros((length, 16, 3), np.uint8), photometric="rgb", metadata={"axes": "YXS"})
    check_refused(isovoxel("info", tmp_path / "rgb.ome.tif"), "colour samples per voxel")
