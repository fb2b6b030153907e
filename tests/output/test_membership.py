"""Does an output become a member of a zarr that is there, and does nothing else in that change?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
import zarr

import isovoxel as package
from command_line import Isovoxel, check_refused
from isovoxel.errors import JobError, OutputBusyError, OutputError
from isovoxel.execution.events import BlockDone, Event
from isovoxel.execution.output import OutputState
from isovoxel.object_store import files as small_files
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output.files import LOCK
from isovoxel.output.ledger import ledger_of
from isovoxel.output.lock import FileLock
from isovoxel.output.provenance import membership_of
from small_jobs import stop_after
from store_server import contents, upload

VOXELS = np.random.default_rng(5).integers(0, 99, (16, 24, 20)).astype(np.uint16)
OPTIONS: dict[str, Any] = {
    "factor": (2.0, 1.0, 1.0),
    "chunk": (8, 8, 8),
    "input_voxel_size": (1.0, 0.5, 0.5),
    "engine": "exact",
    "interpolation": "nearest",
    "threads": 2,
    "device_memory": "18kB",
    "levels": 1,
}
FORMATS = {"0.4": 2, "0.5": 3}


@pytest.fixture(params=["0.4", "0.5"])
def version(request: pytest.FixtureRequest) -> str:
    """Both versions, and so both formats of zarr."""
    return str(request.param)


def options(version: str, **more: Any) -> dict[str, Any]:
    """Return the options of a job of many blocks."""
    return OPTIONS | {"ome_zarr": version} | more


@pytest.fixture
def store(tmp_path: Path, version: str) -> Path:
    """A store of a group with a member and a folder that is none, and of an array."""
    path = tmp_path / "store.zarr"
    group = zarr.create_group(path, zarr_format=FORMATS[version], attributes={"mine": [1, "two"]})
    group.create_group("raw").create_array("a", data=VOXELS, chunks=(8, 8, 8))
    group.create_array("plain", data=VOXELS[0])
    (path / "notes").mkdir()
    (path / "notes" / "readme.txt").write_text("not zarr's")
    return path


@pytest.fixture
def image(source: Path, tmp_path: Path, version: str) -> Path:
    package.scale(source, tmp_path / "image.zarr", **options(version))
    return tmp_path / "image.zarr"


def files(folder: Path, but: str = "") -> dict[str, tuple[bytes, int]]:
    """Return bytes and time of last change of every file, but for those in one member."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not (but and path.is_relative_to(folder / but))
    }


def members(path: Path, version: str) -> list[str]:
    """Return all that zarr-python finds in a store; it warns of what is no zarr, and that is an error here."""
    group = zarr.open_group(path, mode="r", zarr_format=FORMATS[version], use_consolidated=False)
    return sorted(name for name, _ in group.members(max_depth=None))


@pytest.mark.slow
def test_a_member_in_groups_that_are_made_with_it(source: Path, store: Path, version: str) -> None:
    """All of them of the store's format; its neighbours keep every byte, through an interruption and an --overwrite."""
    (store / "notes" / "readme.txt").unlink()
    (store / "notes").rmdir()
    before, names = files(store), members(store, version)
    out = store / "path" / "in" / "group"
    with pytest.raises(JobError, match="are done and kept"):
        package.scale(source, out, listeners=[stop_after(3)], **options(version))
    new = ["path", "path/in", "path/in/group", "path/in/group/0", "path/in/group/1"]
    assert members(store, version) == sorted(names + new)
    state = package.output_state(out)
    assert state is not None
    assert state.done >= 3
    result = package.scale(source, out, **options(version))
    assert result.tally.done_before == state.done
    assert package.output_state(out) == OutputState(complete=True)
    assert members(store, version) == sorted(names + new)
    assert files(store, "path") == before
    again: Any = zarr.open_group(store, mode="r", zarr_format=FORMATS[version])["path/in/group/0"]
    np.testing.assert_array_equal(again[::2], VOXELS)
    yaozarrs.validate_zarr_store(str(out))
    assert package.verify(out, samples=10).holds
    between = files(store, "path/in/group")
    package.scale(source, out, overwrite=True, **options(version, factor=(1.0, 1.0, 1.0)))
    assert files(store, "path/in/group") == between
    package.scale(source, store / "path" / "other", **options(version))
    assert files(store, "path/other") == files(store, "path/other") | between
    assert {path.name for path in store.parent.iterdir()} == {"store.zarr", "in.npy"}


def test_the_ledger_lies_beside_the_store(source: Path, store: Path, version: str) -> None:
    """Each member has its own, whichever way leads to it."""
    with pytest.raises(JobError):
        package.scale(source, store / "raw" / "b", listeners=[stop_after(1)], **options(version))
    found = ledger_of(store / "raw" / "b")
    assert isinstance(found, Path)
    assert (found.parent, found.is_dir()) == (store.parent, True)
    assert len({ledger_of(store / name) for name in ("raw/b", "raw/c", "b", "raw/x/b", "raw.b", "raw-b")}) == 6
    link = store.parent / "link"
    link.symlink_to(store / "raw")
    assert ledger_of(link / "b") == found
    assert ledger_of(store.parent / "b") == store.parent / "b.isovoxel"
    assert ledger_of(store / "notes" / "b") == store / "notes" / "b.isovoxel"
    with FileLock(found / LOCK, store), pytest.raises(OutputBusyError):
        package.scale(source, store / "raw" / "b", **options(version))


def test_what_is_refused_leaves_nothing(isovoxel: Isovoxel, source: Path, store: Path, version: str) -> None:
    """The other format, an array, an input that is none: one sentence, and every folder is as it was."""
    other = {"0.4": "0.5", "0.5": "0.4"}[version]
    before = {path: path.lstat().st_mtime_ns for path in store.parent.rglob("*")}
    words = ("scale", source, store / "new" / "one", "--input-voxel-size", "2,1,1", "--ome-zarr")
    said = isovoxel(*words, other)
    check_refused(said, f"{store} is zarr v{FORMATS[version]}, and OME-Zarr {other} is zarr v{FORMATS[other]}: ")
    check_refused(said, f"give --ome-zarr {version} or another output")
    check_refused(isovoxel(*words, version, "--zoom", "-1"), "zoom")
    check_refused(isovoxel(*words, version, "--crop", "0:99,:,:"), "crop")
    for inside in (store / "plain" / "x", store / "raw" / "a" / "c" / "y", store / "plain" / "deep" / "x"):
        refused = isovoxel("scale", source, inside, *words[3:], version)
        check_refused(refused, f"{inside} lies inside the zarr array {store}")
    assert {path: path.lstat().st_mtime_ns for path in store.parent.rglob("*")} == before


@pytest.mark.slow
def test_workers_make_a_member(source: Path, store: Path, version: str) -> None:
    """They find the ledger where it is, and make what one process makes."""
    package.scale(source, store / "new" / "one", **options(version))
    package.scale(source, store / "new" / "two", workers="cpu:2", **options(version))
    one, two = (zarr.open_array(store / "new" / name / "1", mode="r") for name in ("one", "two"))
    np.testing.assert_array_equal(one[...], two[...])
    assert not list(store.parent.glob("*.isovoxel"))


def test_a_plain_folder_is_no_group(source: Path, store: Path, version: str) -> None:
    """What is written into one is a zarr of its own, of either format, and groups are not made of folders."""
    other = {"0.4": "0.5", "0.5": "0.4"}[version]
    package.scale(source, store / "notes" / "out.zarr", **options(other))
    assert {path.name for path in (store / "notes").iterdir()} == {"readme.txt", "out.zarr"}
    with pytest.raises(OutputError, match=r"notes/new for the output out does not exist; create it first"):
        package.scale(source, store / "notes" / "new" / "out", **options(version))


def listed(image: Path, version: str) -> Any:
    """Return the attributes of the group of labels."""
    file = image / "labels" / {"0.4": ".zattrs", "0.5": "zarr.json"}[version]
    found = json.loads(file.read_text())
    return found if version == "0.4" else found["attributes"]


@pytest.mark.sampled(1)
def test_labels_of_an_image_are_listed(source: Path, image: Path, version: str) -> None:
    """When they are complete, and once; what else the group says stays, and so does every other file."""
    before = files(image)
    out = image / "labels" / "cells"
    with pytest.raises(JobError):
        package.scale(source, out, labels=True, listeners=[stop_after(2)], **options(version))
    assert listed(image, version) == {}
    package.scale(source, out, labels=True, **options(version))
    expected = {"labels": ["cells"]} if version == "0.4" else {"ome": {"version": "0.5", "labels": ["cells"]}}
    assert listed(image, version) == expected
    assert files(image, "labels") == before
    yaozarrs.validate_zarr_store(str(image))
    group = zarr.open_group(image / "labels", mode="r+", zarr_format=FORMATS[version])
    group.attrs["mine"] = {"a": 1}
    package.scale(source, image / "labels" / "nuclei", labels=True, **options(version))
    found = listed(image, version)
    assert found["mine"] == {"a": 1}
    assert (found if version == "0.4" else found["ome"])["labels"] == ["cells", "nuclei"]
    between = files(image, "labels/cells")
    package.scale(source, out, labels=True, overwrite=True, **options(version))
    package.scale(source, out, labels=True, **options(version))
    assert files(image, "labels/cells") == between
    assert package.open_volume(out).labels


@pytest.mark.sampled(2)
def test_an_image_has_no_other_members(isovoxel: Isovoxel, source: Path, image: Path, version: str) -> None:
    """Neither in place of a level, nor beside them, nor as labels what is none; nothing is written."""
    before = files(image.parent)
    words = ("--input-voxel-size", "2,1,1", "--ome-zarr", version)
    for name in ("0", "7", "labels", "labels/a/b", "other/cells"):
        said = isovoxel("scale", source, image / name, "--labels", "--overwrite", *words)
        check_refused(said, f"{image} is an image, whose members are its levels; give {image}/labels/NAME for labels")
    check_refused(isovoxel("scale", source, image / "labels/cells", *words), "is a place for labels of the image")
    (image / "labels").mkdir()
    said = isovoxel("scale", source, image / "labels/cells", "--labels", *words)
    check_refused(said, f"{image}/labels is no zarr group")
    (image / "labels").rmdir()
    assert files(image.parent) == before
    group = zarr.create_group(image / "labels", zarr_format=FORMATS[version])
    group.attrs.update({"labels": "x"} if version == "0.4" else {"ome": {"labels": {"x": 1}}})
    said = isovoxel("scale", source, image / "labels/cells", "--labels", *words)
    check_refused(said, "does not list its labels as OME-Zarr does")
    if version == "0.4":
        (image / "labels" / ".zattrs").write_text("no json")
        said = isovoxel("scale", source, image / "labels/cells", "--labels", *words)
        check_refused(said, "does not list its labels as OME-Zarr does")


@pytest.mark.sampled(1)
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_consolidated_metadata_know_the_member(source: Path, image: Path, version: str) -> None:
    """When it is complete, of its own level and above; not while it is made anew; and nothing else in them changes."""
    home = image / "labels"
    zarr.create_group(home, zarr_format=FORMATS[version]).create_array("old", data=VOXELS)
    for path in (home, image):
        zarr.consolidate_metadata(zarr.storage.LocalStore(path), zarr_format=FORMATS[version])

    def known(path: Path) -> list[str]:
        group = zarr.open_group(path, mode="r", zarr_format=FORMATS[version], use_consolidated=True)
        return sorted(name for name, _ in group.members(max_depth=None))

    before = known(image), known(home)
    with pytest.raises(JobError):
        package.scale(source, home / "cells", labels=True, listeners=[stop_after(2)], **options(version))
    assert (known(image), known(home)) == before
    package.scale(source, home / "cells", labels=True, **options(version))
    new = ["cells", "cells/0", "cells/1"]
    assert known(home) == sorted([*before[1], *new])
    assert known(image) == sorted([*before[0], *(f"labels/{name}" for name in new)])
    group: Any = zarr.open_group(image, mode="r", zarr_format=FORMATS[version], use_consolidated=True)
    assert group["labels/cells"].attrs["isovoxel"]["complete"] is True
    np.testing.assert_array_equal(group["labels/cells/0"][::2], VOXELS)
    there = {str(p): json.loads(p.read_text()) for p in image.rglob("*") if p.name in ("zarr.json", ".zmetadata")}
    for path in (home, image):
        zarr.consolidate_metadata(zarr.storage.LocalStore(path), zarr_format=FORMATS[version])
        assert known(path) == sorted([*before[path == home], *(new if path == home else [f"labels/{n}" for n in new])])
    now = {str(p): json.loads(p.read_text()) for p in image.rglob("*") if p.name in ("zarr.json", ".zmetadata")}
    assert now.keys() == there.keys()
    with pytest.raises(JobError):
        package.scale(
            source, home / "cells", labels=True, overwrite=True, listeners=[stop_after(2)], **options(version)
        )
    assert (known(image), known(home)) == before


@pytest.mark.sampled(1)
def test_metadata_that_nobody_can_change(source: Path, image: Path, version: str) -> None:
    """What comes to be damaged while a job runs costs no block; what was damaged in a copy before stays as it is."""
    (image / ".zmetadata").write_text("no json")
    home = image / "labels"

    def damage(event: Event) -> None:
        if isinstance(event, BlockDone):
            (home / {"0.4": ".zattrs", "0.5": "zarr.json"}[version]).write_text("[]")

    with pytest.raises(JobError, match="marking the output complete failed"):
        package.scale(source, home / "cells", labels=True, listeners=[damage], **options(version))
    for path in home.iterdir():
        if path.is_file():
            path.unlink()
    zarr.create_group(home, zarr_format=FORMATS[version])
    result = package.scale(source, home / "cells", labels=True, **options(version))
    assert result.tally.done_before == result.plan.all_blocks
    assert "cells" in str(listed(image, version))
    assert (image / ".zmetadata").read_text() == "no json"


def test_two_jobs_list_their_labels(image: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change by another process in between is not lost."""
    home = image / "labels"
    zarr.create_group(home, zarr_format=FORMATS[version])
    cells, nuclei = membership_of(home / "cells"), membership_of(home / "nuclei")
    assert cells is not None
    assert nuclei is not None
    order: list[str] = []
    alone = small_files._alone

    def told(folder: Path) -> Any:
        order.append(folder.name)
        return alone(folder)

    monkeypatch.setattr(small_files, "_alone", told)
    cells.announce({})
    nuclei.announce({})
    cells.announce({})
    assert order == ["labels"] * 3
    found = listed(image, version)
    assert (found if version == "0.4" else found["ome"])["labels"] == ["cells", "nuclei"]


def test_a_group_that_another_process_makes_meanwhile(
    source: Path, store: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both members are in it."""
    rename, made = Path.rename, []

    def late(path: Path, target: Path) -> Path:
        if path.name == "new" and not made:
            made.append(zarr.create_group(store / "both", zarr_format=FORMATS[version], attributes={"first": 1}))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    package.scale(source, store / "both" / "mine", **options(version))
    assert made[0].attrs["first"] == 1
    group = zarr.open_group(store / "both", mode="r", zarr_format=FORMATS[version])
    assert group.attrs["first"] == 1
    assert list(group.group_keys()) == ["mine"]


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_in_an_object_store(source: Path, image: Path, store: Path, version: str) -> None:
    """The same objects as files: of a member in new groups, and of labels, and no others change."""
    bucket = ObjectPlace("s3://bucket", version)
    (store / "notes" / "readme.txt").unlink()
    for folder in (image, store):
        upload(folder, bucket / folder.name)
    before = contents(bucket)
    with pytest.raises(OutputError, match="lies inside the zarr array"):
        package.scale(source, str(bucket / "store.zarr/plain/c/x"), **options(version))
    with pytest.raises(OutputError, match="is a place for labels of the image"):
        package.scale(source, str(bucket / "image.zarr/labels/cells"), **options(version))
    assert contents(bucket) == before
    for name, labels in (("store.zarr/path/in/group", False), ("image.zarr/labels/cells", True)):
        with pytest.raises(JobError):
            package.scale(source, str(bucket / name), labels=labels, listeners=[stop_after(2)], **options(version))
        assert not [path for path in contents(bucket) if path.startswith(f"{name}.isovoxel")]
        assert package.scale(source, str(bucket / name), labels=labels, **options(version)).tally.done_before >= 2
        package.scale(source, image.parent / name, labels=labels, **options(version))
        package.scale(source, str(bucket / name), labels=labels, overwrite="now", **options(version))
    here = {
        path.relative_to(image.parent).as_posix(): path.read_bytes()
        for folder in (image, store)
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert contents(bucket) == here
    assert {path: here[path] for path in before} == before
    bucket.delete_tree()
