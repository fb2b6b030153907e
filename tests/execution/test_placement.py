"""Metadata of an output that say other than its recipe: verify finds them, whatever else may be changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import isovoxel
from command_line import Isovoxel
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.metadata.ome import image_attributes
from isovoxel.metadata.series import SeriesAxis
from ome_zarrs import FIELDS, collection, plate

Json = dict[str, Any]
Change = Callable[[Json], Any]

SERIES = (SeriesAxis("t", 2, 2.5, "second", 40.0), SeriesAxis("c", 2))
GRID = VoxelGrid((6, 12, 10), (2.0, 0.5, 0.5), (7.0, 8.0, 9.0), "micrometer")
OPTIONS: Json = {"levels": 2, "engine": "exact", "factor": (2, 1, 1), "chunk": (8, 8, 8)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an output of each version."""
    folder = tmp_path_factory.mktemp("made")
    group = zarr.create_group(folder / "in.zarr", attributes=image_attributes(GRID, name="in", series=SERIES))
    group.create_array("0", data=np.random.default_rng(3).integers(1, 60000, (2, 2, *GRID.shape)).astype(np.uint16))
    for version in ("0.4", "0.5"):
        isovoxel.scale(folder / "in.zarr", folder / f"{version}.zarr", ome_zarr=version, **OPTIONS)
    return folder


@pytest.fixture(params=["0.4", "0.5"])
def out(made: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a copy of an output, at another place than where it was made."""
    shutil.copytree(made / f"{request.param}.zarr", tmp_path / "elsewhere" / "out.zarr")
    return tmp_path / "elsewhere" / "out.zarr"


def edit(group: Path, change: Change) -> None:
    """Change the attributes of a group where they stand."""
    file = group / ("zarr.json" if (group / "zarr.json").exists() else ".zattrs")
    node = json.loads(file.read_text())
    change(node["attributes"] if file.name == "zarr.json" else node)
    file.write_text(json.dumps(node))


def home(attributes: Json) -> Json:
    """Return where OME-Zarr's attributes are."""
    return attributes.get("ome", attributes)


def image(attributes: Json) -> Json:
    """Return the image's metadata."""
    found: Json = home(attributes)["multiscales"][0]
    return found


def transform(level: int, which: int, axis: int, value: Any) -> Change:
    """Return what sets a number of a level's scale (0) or translation (1)."""

    def change(attributes: Json) -> None:
        found = image(attributes)["datasets"][level]["coordinateTransformations"][which]
        found[found["type"]][axis] = value

    return change


def put(axis: int, **said: Any) -> Change:
    """Return what changes an axis."""
    return lambda attributes: image(attributes)["axes"][axis].update(said)


def nanometers(attributes: Json, *, convert: bool) -> None:
    """Say nanometer for micrometer, with the numbers that go with it, or not."""
    for axis in image(attributes)["axes"][2:]:
        axis["unit"] = "nanometer"
    for level in image(attributes)["datasets"] if convert else ():
        for found in level["coordinateTransformations"]:
            found[found["type"]][2:] = [1000 * value for value in found[found["type"]][2:]]


def swap_paths(attributes: Json) -> None:
    first, second, *_ = image(attributes)["datasets"]
    first["path"], second["path"] = "1", "0"


def outer(*transforms: Json) -> Change:
    return lambda attributes: image(attributes).update(coordinateTransformations=list(transforms))


WRONG: dict[str, tuple[Change, str]] = {
    "scale": (transform(0, 0, 2, 2.0), "the scale of level 0 along z is 2 micrometer, and must be 1 micrometer"),
    "scale of a level": (transform(2, 0, 4, 1.0), "the scale of level 2 along x is 1 micrometer, and must be 2 micro"),
    "a small scale": (transform(0, 0, 4, 0.50001), "level 0 along x is 0.50001 micrometer, and must be 0.5 micrometer"),
    "translation": (transform(1, 1, 3, -8.0), "the translation of level 1 along y is -8 micrometer, and must be "),
    "time step": (transform(0, 0, 0, 2.0), "the scale of level 0 along t is 2 second, and must be 2.5 second"),
    "first time": (transform(0, 1, 0, 0.0), "the translation of level 0 along t is 0 second, and must be 40 second"),
    "channel": (transform(0, 1, 1, 3.0), "the translation of level 0 along c is 3, and must be 0"),
    "unit": (lambda a: nanometers(a, convert=False), "level 0 along z is 1 nanometer, and must be 1 micrometer"),
    "no unit": (lambda a: image(a)["axes"][3].pop("unit"), "level 0 along y is 0.5, and must be 0.5 micrometer"),
    "unit of time": (put(0, unit="minute"), "level 0 along t is 2.5 minute, and must be 2.5 second"),
    "level missing": (lambda a: image(a)["datasets"].pop(1), "list the levels 0, 2, and must list 0, 1, 2"),
    "last level missing": (lambda a: image(a)["datasets"].pop(), "list the levels 0, 1, and must list 0, 1, 2"),
    "level added": (
        lambda a: image(a)["datasets"].append(image(a)["datasets"][2] | {"path": "3"}),
        "list the levels 0, 1, 2, 3, and must list 0, 1, 2",
    ),
    "paths swapped": (swap_paths, "the metadata list the levels 1, 0, 2, and must list 0, 1, 2"),
    "levels turned": (lambda a: image(a)["datasets"].reverse(), "list the levels 2, 1, 0, and must list 0, 1, 2"),
    "axis renamed": (put(0, name="time"), "have the axes time, c, z, y, x, and must have t, c, z, y, x"),
    "axis of another type": (put(0, type="channel"), "give the axis t the type channel, and must give it time"),
    "axis of no kind": (put(2, name="depth"), "axis 'depth' has type 'space'"),
    "axes turned": (lambda a: image(a)["axes"].reverse(), "have the axes x, y, z, c, t, and must have t, c, z, y, x"),
    "outer scale": (outer({"type": "scale", "scale": [1, 1, 2, 1, 1]}), "level 0 along z is 2 micrometer, and must"),
    "no scale": (lambda a: image(a)["datasets"][0]["coordinateTransformations"].pop(0), "level '0' has no scale"),
    "no number": (transform(1, 0, 2, "1"), "the scale must hold finite numbers"),
    "no levels": (lambda a: image(a).pop("datasets"), "datasets must be a list of levels"),
    "no image": (lambda a: home(a).pop("multiscales"), "without OME-Zarr metadata of an image"),
    "another image first": (
        lambda a: home(a)["multiscales"].insert(0, image(a) | {"datasets": image(a)["datasets"][1:]}),
        "list the levels 1, 2, and must list 0, 1, 2",
    ),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", WRONG)
def test_metadata_that_place_voxels_elsewhere_do_not_hold(out: Path, isovoxel: Isovoxel, name: str) -> None:
    """The exit code is that of wrong voxels, and a sentence says what is and what must be, in text and in JSON."""
    change, why = WRONG[name]
    edit(out, change)
    said = isovoxel("verify", out, "--samples", 20)
    assert (said.code, said.err) == (1, "")
    lines = said.out.splitlines()
    assert why in next(line for line in lines if line.startswith("metadata"))
    assert why in next(line for line in lines if line.startswith("verdict   does not hold: "))
    assert "shards    all of the levels compared are there" in said.out
    said = isovoxel("verify", out, "--samples", 20, "--json")
    record = json.loads(said.out)
    assert (said.code, record["holds"], record["wrong"]) == (1, False, 0)
    assert why in record["metadata_changes"][0]


OMERO: Json = {"channels": [{"label": "mine", "color": "00FF00", "window": {"start": 1, "end": 2, "min": 0, "max": 9}}]}
IDENTITY = {"type": "scale", "scale": [1, 1, 1, 1, 1]}
RIGHT: dict[str, Change] = {
    "nothing": lambda _: None,
    "name": lambda a: image(a).update(name="mine", type="gaussian", metadata={"by": "hand"}),
    "order of keys": lambda a: a.update({key: a.pop(key) for key in reversed(list(a))}),
    "foreign keys": lambda a: (a.update(mine=[1]), home(a).update(mine=2), put(0, longName="time")(a)),
    "omero": lambda a: home(a).update(omero=OMERO),
    "no omero": lambda a: home(a).pop("omero", None),
    "labels": lambda a: home(a).update({"labels": ["cells"], "image-label": {"colors": []}}),
    "outer identity": outer(IDENTITY),
    "outer nothing": outer(),
    "another spelling": lambda a: [axis.update(unit="µm") for axis in image(a)["axes"][2:]],
    "another unit": lambda a: nanometers(a, convert=True),
    "milliseconds": lambda a: (
        put(0, unit="ms")(a),
        [transform(n, 0, 0, 2500.0)(a) for n in range(3)],
        [transform(n, 1, 0, 40000.0)(a) for n in range(3)],
    ),
    "integers": transform(0, 0, 2, 1),
    "rounded": transform(2, 0, 4, 2 * (1 + 1e-12)),
    "another image": lambda a: home(a)["multiscales"].append({"mine": 1}),
    "no type": lambda a: image(a)["axes"][2].pop("type"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", RIGHT)
def test_what_changes_no_meaning_holds(out: Path, name: str) -> None:
    """An output is a user's own, to move, to name and to note in."""
    edit(out, RIGHT[name])
    found = isovoxel.verify(out, samples=20)
    assert (found.holds, found.metadata_changes, found.levels) == (True, (), 3)


def test_a_group_of_another_format_is_refused(out: Path, isovoxel: Isovoxel) -> None:
    """No reader of zarr opens it."""
    file = next(file for file in (out / "zarr.json", out / ".zgroup") if file.exists())
    old = file.read_text()
    for new in (old.replace(": 3", ": 2") if file.name == "zarr.json" else old.replace("2", "3"), "{", ""):
        file.write_text(new)
        said = isovoxel("verify", out)
        assert (said.code, said.out) == (2, "")
        assert "cannot be read as zarr metadata" in said.err


ARRAYS: dict[str, tuple[Json, Json, str]] = {
    "shape": ({"shape": [2, 2, 12, 12, 18]},) * 2 + ("level 0 has the shape (2, 2, 12, 12, 18), and must have (2, ",),
    "data type": ({"dtype": "<i2"}, {"data_type": "int16"}, "level 0 has the data type int16, and must have uint16"),
    "fill value": ({"fill_value": 7},) * 2 + ("level 0 has the fill value 7, and must have 0",),
    "axes": (
        {"_ARRAY_DIMENSIONS": list("ctzyx")},
        {"dimension_names": list("ctzyx")},
        "level 0 has the axes ('c', 't', 'z', 'y', 'x'), and must have ('t', 'c', 'z', 'y', 'x')",
    ),
}


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_others_do_not_hold(out: Path, isovoxel: Isovoxel, name: str, level: int) -> None:
    """Voxels of that level and of those made of it are not compared: they would be others."""
    old, new, why = ARRAYS[name]
    v2 = not (out / "zarr.json").exists()
    file = out / str(level) / ("zarr.json" if not v2 else ".zattrs" if name == "axes" else ".zarray")
    file.write_text(json.dumps(json.loads(file.read_text()) | (old if v2 else new)))
    said = isovoxel("verify", out, "--json", "--every-chunk")
    record = json.loads(said.out)
    assert (said.code, record["levels"], record["wrong"]) == (1, level, 0)
    assert why.replace("level 0", f"level {level}") in record["metadata_changes"][0]


def test_a_level_that_is_gone_does_not_hold(out: Path) -> None:
    """Though the metadata do not list it any more."""
    shutil.rmtree(out / "2")
    edit(out, lambda a: image(a)["datasets"].pop())
    found = isovoxel.verify(out, samples=20)
    assert not found.holds
    assert found.metadata_changes == (
        "the metadata list the levels 0, 1, and must list 0, 1, 2",
        "the array of level 2 is not there",
    )
    assert (found.levels, found.wrong, found.missing_shards) == (2, 0, 0)


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6"])
def test_labels_and_what_lies_on_other_voxels(made: Path, tmp_path: Path, version: str) -> None:
    """Their levels are where they must be, and labels stay labels."""
    like = VoxelGrid((7, 9, 11), (1.5, 0.7, 0.6), (7.5, 8.0, 9.5), "micrometer")
    how = OPTIONS | {"factor": None, "like": like, "labels": True, "ome_zarr": version}
    isovoxel.scale(made / "in.zarr", tmp_path / "out.zarr", **how)
    assert isovoxel.verify(tmp_path / "out.zarr", samples=20).holds
    edit(tmp_path / "out.zarr", lambda a: home(a).pop("image-label"))
    found = isovoxel.verify(tmp_path / "out.zarr", samples=20)
    assert not found.holds
    assert found.metadata_changes == ("the metadata do not say that it is an image of labels (image-label), and must",)


def test_one_level_and_no_voxel_size(tmp_path: Path) -> None:
    """Lengths that count voxels are compared likewise."""
    np.save(tmp_path / "in.npy", np.arange(6 * 7 * 8, dtype=np.uint8).reshape(6, 7, 8))
    isovoxel.scale(tmp_path / "in.npy", tmp_path / "out.zarr", **OPTIONS | {"levels": 0, "crop": "1:,2:,:"})
    assert isovoxel.verify(tmp_path / "out.zarr", samples=20).holds
    edit(tmp_path / "out.zarr", lambda a: image(a)["axes"][0].update(unit="micrometer"))
    found = isovoxel.verify(tmp_path / "out.zarr", samples=20)
    assert found.metadata_changes == ("the scale of level 0 along z is 0.5 micrometer, and must be 0.5",)


GROUPS: dict[str, tuple[str, str, Change, str]] = {
    "well elsewhere": (
        "plate",
        "",
        lambda a: home(a)["plate"]["wells"][0].update(rowIndex=1),
        "the plate has the well A/1 in row 1 and column 0, and must have it in row 0 and column 0",
    ),
    "rows turned": (
        "plate",
        "",
        lambda a: home(a)["plate"]["rows"].reverse(),
        "the plate has the well A/1 in row 0 and column 0, and must have it in row 1 and column 0",
    ),
    "column renamed": (
        "plate",
        "",
        lambda a: home(a)["plate"]["columns"][1].update(name="9"),
        "the plate has the well B/2 in row 1 and column 1, and must have it in row 1 and column none",
    ),
    "well missing": ("plate", "", lambda a: home(a)["plate"]["wells"].pop(), "do not list the image B/2/0, and must"),
    "field missing": ("plate", "B/2", lambda a: home(a)["well"]["images"].pop(0), "do not list the image B/2/0, and"),
    "a plate of nothing": ("plate", "", lambda a: home(a).update(plate=[]), "do not list the image A/1/0, and must"),
    "no plate": ("plate", "", lambda a: home(a).pop("plate"), "do not list the image A/1/0, and must"),
    "series turned": (
        "collection",
        "OME",
        lambda a: home(a)["series"].reverse(),
        "the groups list the images 1, 0, and must list 0, 1",
    ),
    "series missing": ("collection", "OME", lambda a: home(a)["series"].pop(1), "do not list the image 1, and must"),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_groups_that_list_images_otherwise_do_not_hold(
    tmp_path: Path, isovoxel: Isovoxel, name: str, version: str
) -> None:
    """A well is where its path says; a user's own keys, and images beside those of isovoxel, are free."""
    kind, group, change, why = GROUPS[name]
    (plate if kind == "plate" else collection)(tmp_path / "in.zarr", version)
    out = tmp_path / "out.zarr"
    how = ("--factor", "2,1,1", "--image", "all", "--engine", "exact", "--quiet", "--ome-zarr", version)
    assert isovoxel("scale", tmp_path / "in.zarr", out, *how).code == 0

    def free(attributes: Json) -> None:
        attributes["mine"] = home(attributes)["mine"] = 1
        for key in {"series", "plate"} & set(home(attributes)):
            home(attributes)[key].append("mine") if key == "series" else home(attributes)[key].update(name="mine")

    edit(out / group, free)
    assert isovoxel("verify", out, "--samples", 5).code == 0
    edit(out / group, change)
    said = isovoxel("verify", out, "--samples", 5)
    assert (said.code, said.err) == (1, "")
    assert why in next(line for line in said.out.splitlines() if line.startswith("verdict"))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_image_of_a_plate_is_named(tmp_path: Path, isovoxel: Isovoxel, version: str) -> None:
    """Of several images each is compared."""
    plate(tmp_path / "in.zarr", version)
    how = ("--factor", "2,1,1", "--image", "all", "--engine", "exact", "--quiet", "--ome-zarr", version)
    assert isovoxel("scale", tmp_path / "in.zarr", tmp_path / "out.zarr", *how).code == 0
    assert isovoxel("verify", tmp_path / "out.zarr", "--samples", 5).code == 0
    last = list(FIELDS)[-1]
    edit(tmp_path / "out.zarr" / last, transform(0, 0, 2, 3.0))
    said = isovoxel("verify", tmp_path / "out.zarr", "--samples", 5)
    assert said.code == 1
    assert f"image {last}: the scale of level 0 along x is 3" in said.out
