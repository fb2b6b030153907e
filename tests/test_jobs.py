"""An image and its labels, in one command: on the same voxels, in one group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr
from distributed import Client, LocalCluster
from numpy.typing import NDArray

import isovoxel
import isovoxel as package
from command_line import Isovoxel, check_refused
from isovoxel.errors import InputError, InterruptedJobError, OptionError
from isovoxel.execution.distributed import executor
from isovoxel.execution.distributed.rpc import remove_plugin
from isovoxel.execution.distributed.worker_session import plugin_name
from isovoxel.execution.events import BlockDone, Event, JobStarted, Replacing
from isovoxel.geometry.grid import Box
from ome_zarrs import collection

RNG = np.random.default_rng(11)
IMAGE = RNG.integers(0, 4000, (2, 12, 30, 34)).astype(np.uint16)
LABELS = RNG.integers(0, 2**31, (12, 30, 34)).astype(np.uint32)
SIZES = {"PhysicalSizeZ": 1.0, "PhysicalSizeY": 0.5, "PhysicalSizeX": 0.5}
OPTIONS: dict[str, Any] = {"engine": "exact", "chunk": (8, 16, 16), "shard": (8, 16, 16), "levels": 1}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image of two channels, and labels that know no voxel size."""
    tifffile.imwrite(
        tmp_path / "im.ome.tif", IMAGE, ome=True, metadata={"axes": "CZYX", **SIZES}, photometric="minisblack"
    )
    tifffile.imwrite(tmp_path / "nuclei.tif", LABELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def level(path: Path, number: int = 0) -> NDArray[Any]:
    array: Any = zarr.open_array(path / str(number), mode="r")
    return np.asarray(array[...])


def listed(output: Path) -> list[str]:
    """Return which labels an image lists."""
    found: list[str] = json.loads((output / "labels" / "zarr.json").read_bytes())["attributes"]["ome"]["labels"]
    return found


def test_labels_lie_on_the_image(files: Path) -> None:
    """Where its voxels are, at every level, and verified like any result."""
    out = files / "out.zarr"
    result = isovoxel.scale("im.ome.tif", out, with_labels="nuclei.tif", **OPTIONS)
    assert result.labels is not None
    assert str(result.labels.path) == str(out / "labels" / "nuclei")
    image, labels = isovoxel.open_volume(out), isovoxel.open_volume(out / "labels" / "nuclei")
    assert labels.labels
    assert (labels.shape, labels.grid) == (image.shape, image.grid)
    assert labels.coarser[0]().grid == image.coarser[0]().grid
    moved = isovoxel.scale_array(LABELS, (2, 1, 1), labels=True).compute()
    np.testing.assert_array_equal(level(out / "labels" / "nuclei"), moved)
    assert listed(out) == ["nuclei"]
    yaozarrs.validate_zarr_store(out)
    yaozarrs.validate_zarr_store(out / "labels")
    yaozarrs.validate_zarr_store(out / "labels" / "nuclei")
    for path in (out, out / "labels" / "nuclei"):
        assert isovoxel.verify(path, samples=30).holds


@pytest.mark.parametrize(("by", "interpolation"), [("auto", "mode"), ("nearest", "nearest"), ("mode", "mode")])
def test_labels_shrink_by_majority(files: Path, by: str, interpolation: str) -> None:
    """Unless the nearest is asked for."""
    out = files / "out.zarr"
    isovoxel.scale("im.ome.tif", out, with_labels="nuclei.tif", labels_by=by, factor=(1, 0.5, 0.5), **OPTIONS)
    expected = isovoxel.scale_array(LABELS, (1, 0.5, 0.5), labels=True, interpolation=interpolation).compute()
    np.testing.assert_array_equal(level(out / "labels" / "nuclei"), expected)


def test_a_crop_is_of_both(files: Path) -> None:
    out = files / "out.zarr"
    isovoxel.scale("im.ome.tif", out, with_labels="nuclei.tif", crop="2:9,:,5:30", channel=1, **OPTIONS)
    image, labels = isovoxel.open_volume(out), isovoxel.open_volume(out / "labels" / "nuclei")
    assert labels.grid == image.grid
    moved = isovoxel.scale_array(LABELS[2:9, :, 5:30], (2, 1, 1), labels=True).compute()
    np.testing.assert_array_equal(labels.read(Box.whole(labels.shape)), moved)


def test_both_go_on(files: Path) -> None:
    """An interruption among the labels leaves the image complete, and the same command does the rest."""
    out = files / "out.zarr"
    jobs: list[str] = []

    def stop(event: Event) -> None:
        if isinstance(event, JobStarted):
            jobs.append(event.plan.source.dtype)
        if isinstance(event, BlockDone) and jobs == ["uint16", "uint32"]:
            raise KeyboardInterrupt

    small: dict[str, Any] = {**OPTIONS, "device_memory": "100kB"}
    with pytest.raises(InterruptedJobError, match="blocks are done and kept"):
        isovoxel.scale("im.ome.tif", out, with_labels="nuclei.tif", listeners=[stop], **small)
    state = isovoxel.output_state(out)
    assert state is not None
    assert state.complete
    result = isovoxel.scale("im.ome.tif", out, with_labels="nuclei.tif", **small)
    assert result.tally.done_before == result.plan.all_blocks
    assert result.labels is not None
    assert result.labels.tally.done_before > 0
    moved = isovoxel.scale_array(LABELS, (2, 1, 1), labels=True).compute()
    np.testing.assert_array_equal(level(out / "labels" / "nuclei"), moved)
    again = isovoxel.scale("im.ome.tif", out, with_labels="nuclei.tif", overwrite=True, **small)
    assert again.tally.done_before == 0
    assert listed(out) == ["nuclei"]


def test_several_labels_of_one_image(files: Path) -> None:
    """A second run adds others, and makes nothing of the image again."""
    tifffile.imwrite("cells.tif", LABELS // 2)
    out = files / "out.zarr"
    isovoxel.scale("im.ome.tif", out, with_labels="nuclei.tif", **OPTIONS)
    result = isovoxel.scale("im.ome.tif", out, with_labels="cells.tif", **OPTIONS)
    assert result.tally.done_before == result.plan.all_blocks
    assert listed(out) == ["nuclei", "cells"]


def test_of_every_time_point(files: Path) -> None:
    """Labels of a series have its time points, whatever its channels."""
    image = RNG.integers(0, 4000, (3, 2, 6, 20, 20)).astype(np.uint16)
    labels = RNG.integers(0, 90, (3, 6, 20, 20)).astype(np.uint16)
    tifffile.imwrite("t.ome.tif", image, ome=True, metadata={"axes": "TCZYX", **SIZES})
    tifffile.imwrite("tl.ome.tif", labels, ome=True, metadata={"axes": "TZYX"})
    isovoxel.scale("t.ome.tif", "out.zarr", with_labels="tl.ome.tif", **OPTIONS)
    found = level(files / "out.zarr" / "labels" / "tl")
    for t in range(3):
        np.testing.assert_array_equal(found[t], isovoxel.scale_array(labels[t], (2, 1, 1), labels=True).compute())
    with pytest.raises(InputError, match=r"at 3 time points: labels must lie on the voxels"):
        isovoxel.scale("t.ome.tif", "other.zarr", with_labels=labels[0], **OPTIONS)


@pytest.mark.slow
def test_by_workers_as_zarr_v2(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same workers do both, and 0.4 has labels too; no memory of the first job stays, nor files of the workers."""
    taken_back: list[str] = []

    def remove(client: Any, name: str, *, seconds: float) -> None:
        taken_back.append(name)
        remove_plugin(client, name, seconds=seconds)

    monkeypatch.setattr(executor, "remove_plugin", remove)
    options = {key: value for key, value in OPTIONS.items() if key != "shard"}
    with dask.config.set({"temporary-directory": str(files / "tmp")}):
        result = isovoxel.scale(
            "im.ome.tif", "out.zarr", with_labels="nuclei.tif", workers="cpu:2", ome_zarr="0.4", **options
        )
    assert taken_back == [plugin_name(files / "out.zarr")]
    assert [path.suffix for path in (files / "tmp" / "dask-scratch-space").iterdir()] == [".lock"] * 2
    assert result.labels is not None
    assert result.workers.keys() == result.labels.workers.keys() != set()
    moved = isovoxel.scale_array(LABELS, (2, 1, 1), labels=True).compute()
    np.testing.assert_array_equal(level(files / "out.zarr" / "labels" / "nuclei"), moved)
    assert json.loads((files / "out.zarr" / "labels" / ".zattrs").read_bytes())["labels"] == ["nuclei"]


def test_what_cannot_be_is_told_before_anything_is_written(files: Path, isovoxel: Isovoxel) -> None:
    """Other voxels, no labels, or nothing at all."""
    tifffile.imwrite("small.tif", LABELS[:5])
    tifffile.imwrite("floats.tif", LABELS.astype(np.float32))
    for words, told in (
        (("--with-labels", "small.tif"), "labels must lie on the voxels of the image"),
        (("--with-labels", "floats.tif"), "labels are integers"),
        (("--with-labels", "gone.tif"), "gone.tif is not there"),
        (("--with-labels", "nuclei.tif", "--labels-by", "linear"), "labels_by must be one of auto, nearest, mode"),
        (("--with-labels", "nuclei.tif", "--labels"), "leave out --labels or --with-labels"),
        (("--labels-by", "mode"), "give them with --with-labels"),
    ):
        check_refused(isovoxel("scale", "im.ome.tif", "out.zarr", *words), told)
        assert not (files / "out.zarr").exists()


def test_labels_that_an_old_output_takes_along_are_named(files: Path, isovoxel: Isovoxel) -> None:
    """Where --overwrite is advised, and before it does so; those that are made again are none of them."""
    tifffile.imwrite("cells.tif", LABELS % 9)
    scale = ("scale", "im.ome.tif", "out.zarr", "--engine", "exact")
    for name in ("nuclei", "cells"):
        assert isovoxel(*scale, "--with-labels", f"{name}.tif").code == 0
    again = (*scale, "--with-labels", "nuclei.tif", "--labels-by", "mode")
    check_refused(
        isovoxel(*again),
        "labels/nuclei exists, and was made with --labels-by nearest, now mode: give --overwrite, which makes out.zarr "
        "anew and removes labels/cells, or another output\n",
    )
    check_refused(
        isovoxel(*scale, "--zoom", 1, "--with-labels", "cells.tif"),
        "error: out.zarr exists, and was made with zoom 2, now zoom 1: give --overwrite, which removes labels/nuclei, "
        "or another output\n",
    )
    planned = isovoxel("plan", *scale[1:], "--overwrite")
    assert planned.err == "note: out.zarr would be replaced, and with it labels/cells, labels/nuclei\n"
    assert listed(files / "out.zarr") == ["nuclei", "cells"]
    seen: list[list[str]] = []

    def look(event: Event) -> None:
        if isinstance(event, Replacing):
            seen.append([event.labels, *listed(files / "out.zarr")])

    said = isovoxel(*again, "--overwrite")
    assert (said.code, listed(files / "out.zarr")) == (0, ["nuclei"])
    assert "note: the old output is replaced, and with it labels/cells, not made again by this job\n" in said.err
    how: dict[str, Any] = {"with_labels": "nuclei.tif", "overwrite": True, "listeners": [look], **OPTIONS}
    package.scale("im.ome.tif", "out.zarr", **how)
    assert seen == []
    package.scale("im.ome.tif", "out.zarr", **how | {"with_labels": None, "overwrite": "now"})
    assert seen == [["labels/nuclei", "nuclei"]]


def test_labels_of_several_images_are_named(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """They go where all images are replaced."""
    collection(tmp_path / "in.zarr")
    out = tmp_path / "out.zarr"
    scale = ("scale", tmp_path / "in.zarr", out, "--image", "all", "--engine", "exact", "--factor", "2,1,1")
    assert isovoxel(*scale, "--quiet").code == 0
    np.save(tmp_path / "cells.npy", np.ones((4, 8, 8), np.uint8))
    beside = ("scale", tmp_path / "cells.npy", out / "1" / "labels" / "cells", "--labels", "--factor", "2,1,1")
    assert isovoxel(*beside, "--quiet").code == 0
    said = isovoxel(*scale, "--overwrite")
    assert said.code == 0
    assert "the old output is replaced, and with it 1/labels/cells, not made again by this job\n" in said.err


def test_the_command_line_tells_of_both(files: Path, isovoxel: Isovoxel) -> None:
    """People and machines; the report is the image's."""
    words = ("scale", "im.ome.tif", "out.zarr", "--with-labels", "nuclei.tif", "--engine", "exact")
    said = isovoxel(*words, "--json", "--report", "report.html").json
    assert Path(said["labels"]["path"]) == files / "out.zarr" / "labels" / "nuclei" or said["labels"]["path"].endswith(
        "out.zarr/labels/nuclei"
    )
    assert "labels    of the image:" in isovoxel(*words).out


def test_labels_that_no_worker_sees_are_told_before_the_image_is_made(files: Path) -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", protocol="inproc://"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        pytest.raises(OptionError, match="not there for workers"),
    ):
        isovoxel.scale("im.ome.tif", "out.zarr", with_labels=LABELS, client=client, **OPTIONS)
    assert not (files / "out.zarr").exists()
