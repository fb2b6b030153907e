"""Whole plates, collections and files of several images: one command, one job, one output."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v04
import ome_zarr_models.v05
import pytest
import yaozarrs
import zarr

import isovoxel as package
from command_line import Isovoxel, check_refused, listing
from independent_readers import library
from isovoxel.errors import InterruptedJobError, OutputBusyError, OutputError, OutputExistsError
from isovoxel.execution.events import BlockDone, Event, ImageBegun, ImagesStarted
from isovoxel.execution.output import OutputState
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output.ledger import LOCK, ledger_of
from isovoxel.output.lock import FileLock
from ome_zarrs import FIELDS, collection, plate, positions, pyramid
from store_server import Server, contents, serving

OPTIONS: dict[str, Any] = {"engine": "exact", "factor": (2.0, 1.0, 1.0), "chunk": (4, 8, 8), "levels": 1}
MODELS = {"0.4": ome_zarr_models.v04, "0.5": ome_zarr_models.v05}
PATHS = tuple(FIELDS)
CHANNELS = np.random.default_rng(4).integers(0, 4000, (4, 2, 6, 16, 20)).astype(np.uint16)
"""Of each field."""


def level(path: Path, number: int = 0) -> np.ndarray:
    array: Any = zarr.open_array(path / str(number), mode="r")
    return np.asarray(array[...])


def check_plate(path: Path, version: str, images: tuple[str, ...] = PATHS) -> None:
    """Validate a plate, its wells and its images with two libraries."""
    yaozarrs.validate_zarr_store(str(path))
    group = zarr.open_group(path, mode="r", zarr_format=3 if version == "0.5" else 2)
    found = MODELS[version].HCS.from_zarr(group)
    wells = dict.fromkeys(image.rpartition("/")[0] for image in images)
    assert [well.path for well in found.attributes.plate.wells] == list(wells) if version == "0.4" else True
    for well in wells:
        fields = MODELS[version].Well.from_zarr(group[well])
        assert fields is not None
    for image in images:
        MODELS[version].Image.from_zarr(group[image])


def single(source: Path, image: str, out: Path, **options: Any) -> None:
    """Check that an image of the output is what a job of it alone makes, at each level."""
    alone = out.with_name("alone.zarr")
    result = package.scale(source, alone, image=image, **OPTIONS | options)
    for number in range(len(result.plan.levels)):
        np.testing.assert_array_equal(level(out / image, number), level(alone, number))
    shutil.rmtree(alone)


def by_ngff_zarr(path: Path, version: str) -> Path:
    """Let ngff-zarr write a plate of 2 wells x 2 fields x 2 channels."""
    nz = library("ngff_zarr")
    metadata = nz.Plate(
        columns=[nz.PlateColumn("1"), nz.PlateColumn("2")],
        rows=[nz.PlateRow("A"), nz.PlateRow("B")],
        wells=[nz.PlateWell("A/1", 0, 0), nz.PlateWell("B/2", 1, 1)],
        acquisitions=[nz.PlateAcquisition(id=0)],
        name="two wells",
        field_count=2,
        version=version,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nz.to_hcs_zarr(nz.HCSPlate(store=str(path), plate_metadata=metadata), str(path))
        for voxels, field in zip(CHANNELS, PATHS, strict=True):
            row, column, n = field.split("/")
            image = nz.to_ngff_image(
                voxels,
                dims=("c", "z", "y", "x"),
                scale={"c": 1.0, "z": 2.0, "y": 0.5, "x": 0.5},
                axes_units={"z": "micrometer", "y": "micrometer", "x": "micrometer"},
            )
            nz.write_hcs_well_image(
                str(path), nz.to_multiscales(image, scale_factors=[]), metadata, row, column, int(n), version=version
            )
    return path


@pytest.mark.sampled(1)
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_a_plate_of_ngff_zarr_is_scaled(version: str, tmp_path: Path, isovoxel: Isovoxel) -> None:
    """By one command: each field is what it is alone, plate and wells are valid for two libraries, and nothing else."""
    source, out = by_ngff_zarr(tmp_path / "plate.zarr", version), tmp_path / "out.zarr"
    words = ("scale", source, out, "--image", "all", "--engine", "exact", "--levels", "1", "--ome-zarr", version)
    said = isovoxel(*words, "--json").json
    assert said["path"] == str(out)
    assert list(said["images"]) == list(PATHS)
    assert all(image["output"]["shape"] == [24, 16, 20] for image in said["images"].values())
    check_plate(out, version)
    for field in PATHS:
        alone = tmp_path / "alone.zarr"
        isovoxel("scale", source, alone, "--image", field, *words[5:], "--json").json  # noqa: B018
        for number in (0, 1):
            np.testing.assert_array_equal(level(out / field, number), level(alone, number))
        shutil.rmtree(alone)
    assert {path.name for path in tmp_path.iterdir()} == {"plate.zarr", "out.zarr"}
    home = json.loads((out / ("zarr.json" if version == "0.5" else ".zattrs")).read_text())
    home = home["attributes"]["ome"] if version == "0.5" else home
    assert home["plate"]["name"] == "two wells"
    assert package.output_state(out) == OutputState(complete=True)
    again = isovoxel(*words)
    assert again.code == 0
    assert "nothing was done" in again.out


def stop_in(image: int) -> Any:
    """Return a listener that interrupts the job after the first block of an image, counted from 1."""
    at = [0]

    def listen(event: Event) -> None:
        if isinstance(event, ImageBegun):
            at[0] = event.number
        if isinstance(event, BlockDone) and at[0] == image:
            raise KeyboardInterrupt

    return listen


def test_an_interrupted_plate_is_gone_on_with(tmp_path: Path) -> None:
    """What is complete is not touched again; options are those that it was begun with."""
    source, out = plate(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    with pytest.raises(InterruptedJobError, match=r"image B/2/0: interrupted; .* 2 of 4 images are complete"):
        package.scale(source, out, image="all", listeners=[stop_in(3)], **OPTIONS)
    state = package.output_state(out)
    assert state is not None
    assert not state.complete
    before = listing(out / "A")
    events: list[Event] = []
    result = package.scale(source, out, image="all", listeners=[events.append])
    assert listing(out / "A") == before
    assert [image.seconds == 0 for image in result.images.values()] == [True, True, False, False]
    (begun,) = (event for event in events if isinstance(event, ImagesStarted))
    assert (begun.images, begun.complete, begun.blocks_done) == (4, 2, begun.blocks // 2)
    check_plate(out, "0.5")
    for image in PATHS:
        single(source, image, out)
    assert not list(tmp_path.glob("*.isovoxel"))


def test_a_plate_whose_ledger_is_deleted_is_gone_on_with(tmp_path: Path) -> None:
    """The same command begins that image anew, and says so; it need not begin all of them."""
    source, out = plate(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    stop = stop_in(3)

    def forget(event: Event) -> None:
        try:
            stop(event)
        except KeyboardInterrupt:
            for job in tmp_path.glob("*0-*.isovoxel"):
                shutil.rmtree(job)
            raise

    with pytest.raises(InterruptedJobError, match=r"was deleted .* 2 of 4 images are complete; to resume") as ended:
        package.scale(source, out, image="all", listeners=[forget], **OPTIONS)
    assert "begin anew" not in str(ended.value)
    package.scale(source, out, image="all")
    check_plate(out, "0.5")


@pytest.mark.slow
def test_a_killed_plate_is_gone_on_with(tmp_path: Path) -> None:
    """Wherever SIGKILL meets it."""
    source, out = plate(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    program = (
        "import os, sys, isovoxel\n"
        "from isovoxel.execution.events import BlockDone\n"
        "left = [int(sys.argv[3])]\n"
        "def listen(event):\n"
        "    left[0] -= isinstance(event, BlockDone)\n"
        "    if left[0] == 0: os.kill(os.getpid(), 9)\n"
        "isovoxel.scale(*sys.argv[1:3], image='all', engine='exact', factor=(2, 1, 1), chunk=(4, 8, 8), levels=1,\n"
        "    listeners=[listen])\n"
    )
    for blocks in (3, 1):
        killed = subprocess.run([sys.executable, "-c", program, source, out, str(blocks)], check=False)
        assert killed.returncode == -signal.SIGKILL
    done = [image for image in PATHS if (out / image).exists() and package.output_state(out / image).complete]
    before = {image: listing(out / image) for image in done}
    package.scale(source, out, image="all", **OPTIONS)
    assert {image: listing(out / image) for image in done} == before != {}
    check_plate(out, "0.5")
    for image in PATHS:
        single(source, image, out)
    assert not list(tmp_path.glob("*.isovoxel"))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_a_collection_and_a_file_of_several_become_a_collection(version: str, tmp_path: Path) -> None:
    """Of bioformats2raw's layout; labels are labels in it."""
    for source in (collection(tmp_path / "c.zarr", version), positions(tmp_path / "two.ome.tif")):
        out = tmp_path / f"{source.name}.out.zarr"
        options = {**OPTIONS, "ome_zarr": version, "labels": True}
        result = package.scale(source, out, image="all", **options)
        assert list(result.images) == ["0", "1"]
        for image in result.images:
            single(source, image, out, ome_zarr=version, labels=True)
            assert package.open_volume(out / image).labels
            assert package.open_volume(out, image=image).shape == (8, 8, 8)
        group = zarr.open_group(out, mode="r", zarr_format=3 if version == "0.5" else 2)
        yaozarrs.validate_zarr_store(str(out))
        assert (group["OME"].attrs["ome"] if version == "0.5" else group["OME"].attrs)["series"] == ["0", "1"]
        if version == "0.5":
            assert MODELS[version].BioFormats2Raw.from_zarr(group) is not None


def test_a_well_stays_a_well(tmp_path: Path) -> None:
    """One that is given by its own path."""
    source, out = plate(tmp_path / "plate.zarr") / "B" / "2", tmp_path / "well.zarr"
    package.scale(source, out, image="all", **OPTIONS)
    yaozarrs.validate_zarr_store(str(out))
    for image in ("0", "1"):
        single(source, image, out)


def test_a_pattern_selects_and_others_come_later(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """The plate lists what is there; another command adds to it, by the same options."""
    source, out = plate(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    words = ("--engine", "exact", "--factor", "2,1,1")
    assert isovoxel("scale", source, out, "--image", "*/0", *words).code == 0
    check_plate(out, "0.5", ("A/1/0", "B/2/0"))
    before = listing(out / "B/2/0")
    check_refused(
        isovoxel("scale", source, out, "--image", "A/*", "--factor", "3,1,1"), "was begun with factor [2.0, 1.0"
    )
    check_refused(isovoxel("scale", source, out, "--image", "A/*", "--codec", "zstd"), "codec its default, now zstd")
    assert isovoxel("scale", source, out, "--image", "A/*").code == 0
    check_plate(out, "0.5", ("A/1/0", "B/2/0", "A/1/1"))
    assert listing(out / "B/2/0") == before
    refused = isovoxel("scale", source, tmp_path / "none.zarr", "--image", "C/*", *words)
    check_refused(refused, f"no image of {source} matches C/*; its images are A/1/0, A/1/1, B/2/0, B/2/1")
    assert not (tmp_path / "none.zarr").exists()


def damaged(path: Path) -> Path:
    """Write a plate with a field whose chunk is damaged, one without its array, and a well that is not there."""
    plate(path)
    chunk = next(file for file in (path / "A/1/1/level0/c").rglob("*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-9] + b"not zstd!")
    shutil.rmtree(path / "B/2/0/level0")
    home = json.loads((path / "zarr.json").read_text())
    home["attributes"]["ome"]["plate"]["wells"].append({"path": "B/1", "rowIndex": 1, "columnIndex": 0})
    (path / "zarr.json").write_text(json.dumps(home))
    return path


def test_damaged_images_are_named_and_the_others_made(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """At once; the exit code is 1, and once they are mended the same command does them alone."""
    source, out = damaged(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    words = ("scale", source, out, "--image", "all", "--engine", "exact", "--factor", "2,1,1")
    said = isovoxel(*words)
    assert (said.code, said.out) == (1, "")
    *notes, error = said.err.strip().splitlines()
    assert error.startswith("error: 3 of 5 images cannot be scaled: image B/2/0: ")
    assert error.endswith("the other 2 are complete and kept; to resume, run the same command without --overwrite")
    left_out = [note for note in notes if "is left out" in note]
    assert [note.split()[2] for note in left_out] == ["B/2/0", "B/1", "A/1/1"]
    assert notes.index(left_out[1]) < next(n for n, note in enumerate(notes) if note.startswith("scaling"))
    for image in ("A/1/0", "B/2/1"):
        single(source, image, out, levels=0)
    before = listing(out / "B/2/1")
    healthy = plate(tmp_path / "healthy.zarr")
    shutil.copytree(healthy / "B/2/0", source / "B/2/0", dirs_exist_ok=True)
    shutil.copytree(healthy / "A/1/1/level0", source / "A/1/1/level0", dirs_exist_ok=True)
    shutil.copy(healthy / "zarr.json", source / "zarr.json")
    assert isovoxel(*words).code == 0
    assert listing(out / "B/2/1") == before
    check_plate(out, "0.5")
    for image in PATHS:
        single(source, image, out, levels=0)
    shutil.copytree(healthy / "A/1/0/level0", source / "A/1/0/level0", dirs_exist_ok=True)
    changed = isovoxel(*words)
    assert changed.code == 2
    assert "A/1/0 exists, and was made with another state of the chunks of the input: give --overwrite" in changed.err


def test_one_that_stays_damaged_may_be_left_out(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """By a pattern; what is not there leaves the plate's list, and the plate is complete."""
    source, out = damaged(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    words = ("scale", source, out, "--engine", "exact", "--factor", "2,1,1")
    assert isovoxel(*words, "--image", "[AB]/[12]/*").code == 1
    assert not package.output_state(out).complete
    assert isovoxel(*words, "--image", "A/1/*", "--on-corrupt", "fill").code == 0
    check_plate(out, "0.5", ("A/1/0", "A/1/1", "B/2/1"))
    assert package.output_state(out).complete


def test_nothing_is_written_where_no_image_can_be_opened(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """Nor where an option fits none, or the place is not ours."""
    source, out = plate(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    words = ("scale", source, out, "--image", "all", "--engine", "exact")
    check_refused(isovoxel(*words, "--crop", "0:99,:,:"), "reaches beyond")
    check_refused(isovoxel(*words, "--with-labels", "x.tif"), "labels are scaled beside one image")
    check_refused(isovoxel(*words, "--report", tmp_path / "r.html"), "a report is of one image")
    check_refused(isovoxel("scale", source, source / "out", "--image", "all"), "lies inside the input")
    check_refused(isovoxel("scale", source, tmp_path, "--image", "all"), "lies inside the output")
    (tmp_path / "mine").mkdir()
    check_refused(isovoxel("scale", source, tmp_path / "mine", "--image", "all", "--overwrite"), "but no zarr")
    for image in PATHS:
        shutil.rmtree(source / image)
    check_refused(isovoxel(*words), "none of 4 images can be opened")
    assert {path.name for path in tmp_path.iterdir()} == {"plate.zarr", "mine"}


def test_an_output_of_several_is_replaced_as_a_whole(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """When its successor is complete; only if all that is in it is ours."""
    source, out = plate(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    package.scale(source, out, image="all", **OPTIONS)
    old = listing(out)
    (out / "A" / "notes.txt").write_text("mine")
    words = ("scale", source, out, "--image", "B/*", "--engine", "exact", "--factor", "1,1,1", "--overwrite")
    check_refused(isovoxel(*words), "A/notes.txt lies in")
    (out / "A" / "notes.txt").unlink()
    check_refused(isovoxel(*words[:3], "--image", "all", "--zoom", "3"), "was begun with")

    with pytest.raises(InterruptedJobError):
        package.scale(
            source, out, image="B/*", overwrite=True, listeners=[stop_in(2)], **OPTIONS | {"factor": (1, 1, 1)}
        )
    kept = ledger_of(out) / "replaced"
    assert listing(kept).keys() == old.keys()
    package.scale(source, out, image="B/*")
    check_plate(out, "0.5", ("B/2/0", "B/2/1"))
    assert not list(tmp_path.glob("*.isovoxel"))
    one = tmp_path / "one.zarr"
    package.scale(source, one, image="A/1/0", **OPTIONS)
    with pytest.raises(OutputExistsError, match="is one image"):
        package.scale(source, one, image="all", **OPTIONS)
    with pytest.raises(OutputExistsError, match="does not say in its attributes how isovoxel made it"):
        package.scale(source, out, image="A/1/0", **OPTIONS)
    package.scale(source, one, image="all", overwrite=True, **OPTIONS)
    check_plate(one, "0.5")
    package.scale(source, one, image="A/1/0", overwrite="now", **OPTIONS)
    assert package.open_volume(one).shape == (8, 8, 8)


def test_an_old_output_comes_back_where_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = plate(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    package.scale(source, out, image="all", **OPTIONS)
    old = listing(out)

    def refuse(*_: Any, **__: Any) -> None:
        raise OutputError("no device")

    with monkeypatch.context() as patch:
        patch.setattr("isovoxel.image_jobs.run_job", refuse)
        with pytest.raises(OutputError, match="no device"):
            package.scale(source, out, image="all", overwrite=True, **OPTIONS)
        with pytest.raises(OutputError, match="no device"):
            package.scale(source, tmp_path / "new.zarr", image="all", **OPTIONS)
    assert listing(out) == old
    assert {path.name for path in tmp_path.iterdir()} == {"plate.zarr", "out.zarr"}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """The second one is told who the first is."""
    source, out = plate(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    with FileLock(Path(str(ledger_of(out))) / LOCK, out), pytest.raises(OutputBusyError, match="is being written by"):
        package.scale(source, out, image="all", **OPTIONS)


def test_all_images_go_onto_the_voxels_of_another(tmp_path: Path) -> None:
    """Said once for all, and kept for those that go on."""
    source, out = plate(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    package.scale(source / "A/1/0", tmp_path / "like.zarr", factor=(3, 1, 2), engine="exact")
    options = {"like": tmp_path / "like.zarr", "levels": 0}
    package.scale(source, out, image="A/*", **options)
    package.scale(source, out, image="all")
    for image in PATHS:
        package.scale(source, tmp_path / "alone.zarr", image=image, overwrite=True, **options)
        np.testing.assert_array_equal(level(out / image), level(tmp_path / "alone.zarr"))


def test_one_plan_for_images_on_the_same_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isovoxel import image_jobs

    source, planned = plate(tmp_path / "plate.zarr"), []

    def plan(*args: Any) -> Any:
        planned.append(args)
        return original(*args)

    original = image_jobs.plan_volume
    monkeypatch.setattr(image_jobs, "plan_volume", plan)
    result = package.scale(source, tmp_path / "out.zarr", image="all", **OPTIONS)
    assert len(planned) == 1
    assert len({image.plan.fingerprint for image in result.images.values()}) == 4


@pytest.mark.slow
def test_two_workers_go_from_image_to_image(tmp_path: Path) -> None:
    """They make what one process makes, stopped half-way too."""
    source, out = by_ngff_zarr(tmp_path / "plate.zarr", "0.5"), tmp_path / "out.zarr"
    options = {**OPTIONS, "workers": "cpu:2"}
    with pytest.raises(InterruptedJobError):
        package.scale(source, out, image="all", listeners=[stop_in(2)], **options)
    result = package.scale(source, out, image="all", **options)
    assert len(result.workers) == 2
    assert sum(share.blocks for share in result.workers.values()) > 0
    check_plate(out, "0.5")
    for image in PATHS:
        single(source, image, out)


def test_images_are_listed_planned_verified_and_drawn(
    tmp_path: Path, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, or those of a pattern, or one."""
    monkeypatch.chdir(tmp_path)
    source, out = plate(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    put = collection(tmp_path / "c.zarr")
    assert package.images(source) == PATHS
    assert package.images(source, "B/*") == PATHS[2:]
    info = isovoxel("info", source, "--json").json
    assert list(info["images"]) == list(PATHS)
    assert info["images"]["A/1/0"]["shape"] == [4, 8, 8]
    assert "image B/2/1" in isovoxel("info", source).out
    assert list(isovoxel("info", put, "--image", "1*", "--json").json["images"]) == ["1"]
    planned = isovoxel("plan", source, out, "--image", "all", "--factor", "2,1,1", "--json").json
    assert planned["grids"] == [list(PATHS)]
    assert planned["blocks"] == sum(image["blocks"]["count"] for image in planned["images"].values())
    lines = isovoxel("plan", source, "--image", "[AB]/*", "--factor", "2,1,1").out
    assert lines.count("grid") == 2
    assert "4 images (A/1/0, A/1/1, B/2/0, ...)" in lines
    assert not out.exists()
    package.scale(source, out, image="all", **OPTIONS)
    found = isovoxel("verify", out, "--samples", "20", "--json").json
    assert (list(found["images"]), found["holds"]) == (list(PATHS), True)
    assert found["samples"] == sum(image["samples"] for image in found["images"].values())
    assert "images" not in isovoxel("verify", out, "--image", "B/2/1", "--samples", "20", "--json").json
    check_refused(isovoxel("verify", out / "A/1/0", "--image", "0"), "is no output of several images")
    moved = source.rename(tmp_path / "moved.zarr")
    check_refused(isovoxel("verify", out), "is not found; give its new path with --against")
    assert package.verify(out, against=moved, samples=20, image="A/*").holds
    array = zarr.open_array(out / "A/1/1/0", mode="r+")
    array[...] = 7
    spoiled = isovoxel("verify", out, "--against", moved, "--samples", "20")
    assert spoiled.code == 1
    assert [line.split()[2:] for line in spoiled.out.splitlines() if line.startswith("image A")] == [
        ["holds"],
        ["does", "not", "hold"],
    ]
    drawn = isovoxel("show", out, "--image", "A/1/*", "--json").json
    assert [picture["path"] for picture in drawn["pictures"]] == ["out_A_1_0.png", "out_A_1_1.png"]
    assert all((tmp_path / picture["path"]).is_file() for picture in drawn["pictures"])
    check_refused(isovoxel("show", out, "--image", "all", "-o", "x.png"), "of which each gets a file")


def test_labels_in_one_of_several_images_are_verified_with_it(tmp_path: Path) -> None:
    """By their paths in the output, also where that image alone is meant."""
    source, out = plate(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    package.scale(source, out, image="all", **OPTIONS)
    labels, path = FIELDS["A/1/0"] % 5, "A/1/0/labels/nuclei"
    np.save(tmp_path / "labels.npy", labels)
    package.scale(tmp_path / "labels.npy", out / path, labels=True, input_voxel_size=(2, 0.5, 0.5), **OPTIONS)
    zarr.open_array(out / path / "0", mode="r+")[...] = 7
    found = package.verify(out, samples=5)
    assert [image for image in found.images if not found.images[image].holds] == [path]
    assert set(found.images) - {path} == set(PATHS)
    assert not found.holds
    assert list(package.verify(out, samples=5, image="A/1/0").images) == ["A/1/0", path]
    assert package.verify(out, samples=5, image="B/2/0").images == {}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_in_an_object_store(tmp_path: Path) -> None:
    """The same objects as files, stopped half-way, and replaced where the user says so."""
    source, out = plate(tmp_path / "plate.zarr"), ObjectPlace("s3://bucket", "out.zarr")
    with pytest.raises(InterruptedJobError):
        package.scale(source, str(out), image="all", listeners=[stop_in(2)], **OPTIONS)
    result = package.scale(source, str(out), image="all")
    assert next(iter(result.images.values())).seconds == 0
    with pytest.raises(OutputExistsError, match="was begun with"):
        package.scale(source, str(out), image="all", factor=(3, 1, 1))
    package.scale(source, str(out), image="all", overwrite="now", **OPTIONS)
    package.scale(source, tmp_path / "out.zarr", image="all", **OPTIONS)
    here = {
        path.relative_to(tmp_path / "out.zarr").as_posix(): path.read_bytes()
        for path in (tmp_path / "out.zarr").rglob("*")
        if path.is_file()
    }
    found = contents(out)
    assert found.keys() == here.keys()
    assert {key for key in here if found[key] != here[key]} <= {"zarr.json"}  # which has a token of its own
    assert package.verify(str(out), samples=10).holds
    out.delete_tree()


def test_somebody_elses_image_is_not_replaced(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """Nor is what lies in the place of an image by another name."""
    source, out = plate(tmp_path / "plate.zarr"), tmp_path / "out.zarr"
    package.scale(source, out, image="A/1/0", **OPTIONS)
    shutil.rmtree(out)
    package.scale(source, out, image="A/*", **OPTIONS)
    foreign = pyramid(out / "B/2/0", [FIELDS["B/2/0"]])
    before = listing(foreign)
    said = isovoxel("scale", source, out, "--image", "all")
    assert said.code == 1
    assert "B/2/0 exists; give --overwrite or another output; 2 of 4 images are complete" in said.err
    assert listing(foreign) == before
