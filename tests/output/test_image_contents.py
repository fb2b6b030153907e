"""What --overwrite replaces is one image, by what isovoxel or OME-Zarr says; whatever else lies there is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import isovoxel as package
from command_line import Isovoxel, check_refused
from isovoxel.errors import OutputError
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.metadata.ome import image_attributes
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output.replacing import check_image
from small_jobs import OPTIONS, VOXELS
from snapshots import snapshot
from store_server import contents, serving, upload
from strategies import examples

Maker = Callable[[Path], None]


def image(path: Path, zarr_format: Any = 3, **more: Any) -> zarr.Group:
    """Make an image of another program's."""
    version = "0.5" if zarr_format == 3 else "0.4"
    grids = [VoxelGrid((8, 8, 8)), VoxelGrid((4, 4, 4))]
    attributes = image_attributes(grids[0], name="x", path="0", further=grids[1:], version=version)
    group = zarr.create_group(path, zarr_format=zarr_format, attributes=attributes | more)
    for level, grid in enumerate(grids):
        group.create_array(str(level), data=np.ones(grid.shape, np.uint8), chunks=(4, 4, 4))
    return group


def labels(path: Path, *names: str, listed: bool = True) -> None:
    attributes = {"ome": {"version": "0.5", "labels": list(names)}} if listed else {}
    zarr.create_group(path / "labels", attributes=attributes)
    for name in names:
        image(path / "labels" / name)


def ours(path: Path, **options: Any) -> None:
    package.scale(VOXELS, path, **OPTIONS | {"levels": 1} | options)


def ours_with_labels(path: Path) -> None:
    ours(path, with_labels=VOXELS % 7)


def _drawn_beside(path: Path) -> None:
    ours_with_labels(path)
    image(path / "labels" / "by_hand")
    meta = json.loads((path / "labels" / "zarr.json").read_text())
    meta["attributes"]["ome"]["labels"].append("by_hand")
    (path / "labels" / "zarr.json").write_text(json.dumps(meta))


def _with_file(name: str) -> Maker:
    def make(path: Path) -> None:
        ours(path)
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("mine")

    return make


def _files(path: Path) -> None:
    image(path)
    for name in "abcde":
        (path / f"{name}.txt").write_text("mine")


def _images(path: Path) -> None:
    zarr.create_group(path)
    image(path / "a")
    image(path / "b")


def _collection(path: Path) -> None:
    attributes = {"ome": {"version": "0.5", "bioformats2raw.layout": 3}}
    zarr.create_group(path, attributes=attributes)
    image(path / "0")
    image(path / "1")


def _linked_level(path: Path) -> None:
    image(path)
    (path / "1").rename(path.with_name("elsewhere"))
    (path / "1").symlink_to(path.with_name("elsewhere"))


def _linked_chunk(path: Path) -> None:
    image(path)
    (path / "0" / "c" / "9").symlink_to(path.with_name("in.npy"))


def _two_images(path: Path) -> None:
    group = image(path)
    other = group.attrs["ome"]["multiscales"][0] | {"datasets": [{"path": "b"}]}  # type: ignore[index, call-overload]
    group.attrs["ome"] = group.attrs["ome"] | {"multiscales": [*group.attrs["ome"]["multiscales"], other]}  # type: ignore[index, call-overload, operator]
    group.create_array("b", data=VOXELS)


def _lists(path: str) -> Maker:
    def make(out: Path) -> None:
        group = image(out)
        level = group.attrs["ome"]["multiscales"][0]  # type: ignore[index, call-overload]
        level["datasets"][0]["path"] = path  # type: ignore[index, call-overload]
        group.attrs["ome"] = {"version": "0.5", "multiscales": [level]}

    return make


REPLACED: dict[str, Maker] = {
    "isovoxel's": ours,
    "isovoxel's, of 0.4": lambda path: ours(path, ome_zarr="0.4", shard=None),
    "isovoxel's, with labels": ours_with_labels,
    "another program's image": lambda path: image(path) and None,
    "another program's image of 0.4": lambda path: image(path, 2) and None,
    "an image that somebody has looked at": _with_file(".DS_Store"),
}
"""What lies at the output's place, and is replaced."""

REFUSED: dict[str, tuple[Maker, str]] = {
    "an empty group": (lambda path: zarr.create_group(path) and None, "neither isovoxel nor OME-Zarr says"),
    "an array": (lambda path: zarr.save_array(path, VOXELS), "neither isovoxel nor OME-Zarr says"),
    "a group of images": (_images, "a, b lie in it"),
    "a collection": (_collection, "0, 1 lie in it"),
    "an array beside levels": (
        lambda path: image(path).create_array("mask", data=VOXELS) and None,
        "mask lies in",
    ),
    "tables beside levels": (
        lambda path: image(path).create_group("tables").create_group("roi") and None,
        "tables lies in",
    ),
    "a file": (_with_file("notes.txt"), "notes.txt lies in"),
    "a file in a folder": (_with_file("scripts/run.py"), "scripts lies in"),
    "a file in a level": (_with_file("0/notes.txt"), "0/notes.txt lies in"),
    "a file among chunks": (_with_file("1/c/0/notes.txt"), "1/c/0/notes.txt lies in"),
    "many things": (_files, "a.txt, b.txt, c.txt and 2 more lie in"),
    "labels drawn by hand": (lambda path: labels(image(path) and path, "nuclei"), "labels/nuclei lies in"),
    "labels that nobody lists": (
        lambda path: labels(image(path) and path, "nuclei", listed=False),
        "labels/nuclei lies in",
    ),
    "labels drawn by hand under isovoxel's image": (lambda path: labels(ours(path) or path, "a"), "labels/a lies in"),
    "labels drawn by hand beside isovoxel's": (_drawn_beside, "labels/by_hand lies in"),
    "a level that is a link": (_linked_level, "1 lies in"),
    "a chunk that is a link": (_linked_chunk, "0/c/9 lies in"),
    "two images in one group": (_two_images, "b lies in"),
    "levels outside of the group": (_lists("../elsewhere"), "neither isovoxel nor OME-Zarr says"),
    "the group as its own level": (_lists("."), "neither isovoxel nor OME-Zarr says"),
}
"""What lies at the output's place, and is not, and how that is said."""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("word", ["", "now"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_or_more_than_one_is_refused_and_kept(
    kind: str, word: str, source: Path, tmp_path: Path, isovoxel: Isovoxel
) -> None:
    """It is named, nothing of it is touched, and nothing else is made; by both commands, also in a group."""
    make, why = REFUSED[kind]
    make(tmp_path / "out.zarr")
    before = snapshot(tmp_path)
    words = ["--overwrite", *([word] if word else [])]
    check_refused(isovoxel("scale", source, tmp_path / "out.zarr", "--factor", "2,1,1", *words), why)
    check_refused(isovoxel("convert", source, tmp_path / "out.zarr", *words, "--input-voxel-size", "1,1,1"), why)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", REPLACED)
def test_an_image_is_replaced(kind: str, source: Path, tmp_path: Path) -> None:
    """Whoever has written it, with labels that isovoxel has."""
    REPLACED[kind](tmp_path / "out.zarr")
    package.scale(source, tmp_path / "out.zarr", overwrite=True, **OPTIONS)
    state = package.output_state(tmp_path / "out.zarr")
    assert state is not None
    assert state.complete
    assert sorted(path.name for path in (tmp_path / "out.zarr").iterdir()) == ["0", "zarr.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "out.zarr"]


@pytest.mark.parametrize("kind", ["labels drawn by hand", "a group of images", "a file", "a file in a level"])
def test_a_member_is_held_to_the_same(kind: str, source: Path, tmp_path: Path) -> None:
    """In a group of a zarr; its neighbours never matter."""
    zarr.create_group(tmp_path / "store.zarr")
    image(tmp_path / "store.zarr" / "neighbour")
    make, why = REFUSED[kind]
    make(tmp_path / "store.zarr" / "x")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match=why):
        package.scale(source, tmp_path / "store.zarr" / "x", overwrite=True, **OPTIONS)
    assert snapshot(tmp_path) == before


@pytest.fixture(scope="module")
def bucket() -> Iterator[ObjectPlace]:
    with serving():
        yield ObjectPlace("s3://bucket", "")


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "kind", [kind for kind in REFUSED if "link" not in kind and kind not in ("an empty group", "an array")]
)
def test_objects_are_held_to_the_same(kind: str, source: Path, tmp_path: Path, bucket: ObjectPlace) -> None:
    """Under a prefix."""
    make, why = REFUSED[kind]
    make(tmp_path / "out.zarr")
    place = upload(tmp_path / "out.zarr", bucket / kind.replace(" ", "-").replace("'", ""))
    before = contents(place)
    for overwrite in (True, "now"):
        with pytest.raises(OutputError, match=why):
            package.scale(source, str(place), overwrite=overwrite, **OPTIONS)
    assert contents(place) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["isovoxel's", "isovoxel's, with labels", "another program's image"])
def test_in_a_store_what_is_complete_goes_by_an_explicit_word(
    kind: str, source: Path, tmp_path: Path, bucket: ObjectPlace
) -> None:
    """It cannot be kept there until its successor is complete, which the message says; nothing is touched before."""
    REPLACED[kind](tmp_path / "out.zarr")
    place = upload(tmp_path / "out.zarr", bucket / f"goes-{kind.replace(' ', '-')}")
    before = contents(bucket)
    with pytest.raises(OutputError, match=r"cannot keep it elsewhere until .* give --overwrite now to delete it first"):
        package.scale(source, str(place), overwrite=True, **OPTIONS)
    assert contents(bucket) == before
    package.scale(source, str(place), overwrite="now", **OPTIONS)
    assert {path.split("/")[0] for path in contents(place)} == {"0", "zarr.json"}


names = st.text("abc019._-", min_size=1, max_size=8).filter(lambda name: name.strip("."))


@settings(max_examples=examples(40))
@given(st.lists(names, min_size=1, max_size=4))
def test_no_file_of_any_name_is_overlooked(tmp_path_factory: pytest.TempPathFactory, way: list[str]) -> None:
    """But for names of chunks within a level, of metadata, and of what systems leave, it is told wherever it lies."""
    path = tmp_path_factory.mktemp("any") / "out.zarr"
    image(path)
    file = path.joinpath(*way)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("x").close()
    except OSError:  # a file or a folder is there
        return
    inner = way[1:] if way[0] in ("0", "1") else []
    numbers = inner[1:] if inner[:1] == ["c"] else inner
    chunk = bool(inner) and all(part and part.isdecimal() for name in numbers for part in name.split("."))
    if inner and not chunk and inner[0].startswith("c."):
        chunk = all(part.isdecimal() for name in ".".join(inner)[2:].split("/") for part in name.split("."))
    if chunk or file.name.startswith("._"):
        return
    with pytest.raises(OutputError, match=r"in .*out.zarr, which isovoxel has not written"):
        check_image(path)
