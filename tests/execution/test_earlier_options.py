"""Options that are not given are those that an output was made with; those that are given and differ are refused.

`test_golden.py` shows it with every default changed, of outputs of 0.1.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

import isovoxel as api
from command_line import Isovoxel, check_refused
from isovoxel.engines import devices
from isovoxel.errors import JobError, OutputExistsError
from isovoxel.execution.output import as_begun
from isovoxel.options import Options, ScalingOptions
from isovoxel.output.provenance import read_provenance
from small_jobs import stop_after

SMALL: dict[str, Any] = {"chunk": (8, 8, 8), "shard": (8, 8, 8), "threads": 1, "device_memory": "20kB"}
MADE: dict[str, Any] = {
    "factor": (2.0, 1.0, 1.0),
    "interpolation": "cubic",
    "antialias": True,
    "boundary": "constant",
    "engine": "exact",
    "codec": "zstd",
    "levels": 1,
    "input_voxel_size": (2.0, 1.0, 1.0),
    "unit": "nanometer",
    "crop": "1:9,:,2:",
}
OTHERS: dict[str, tuple[Any, str]] = {
    "factor": ((3.0, 1.0, 1.0), "factor (2, 1, 1), now factor (3, 1, 1)"),
    "zoom": (2.0, "zoom 1, now zoom 2"),
    "interpolation": ("area", "interpolation cubic, now area"),
    "antialias": (False, "antialias True, now False"),
    "boundary": ("nearest", "boundary constant, now nearest"),
    "engine": ("cle", "engine exact, now cle"),
    "labels": (True, "labels False, now True"),
    "codec": ("lz4", "codec zstd, now blosc-lz4"),
    "ome_zarr": ("0.4", "OME-Zarr version 0.5, now 0.4"),
    "levels": (0, "further levels 1, now 0"),
    "chunk": ((4, 8, 8), "chunk (8, 8, 8), now (4, 8, 8)"),
    "shard": ((16, 8, 8), "shard (8, 8, 8), now (16, 8, 8)"),
    "input_voxel_size": ((3.0, 1.0, 1.0), "input voxel size (2, 1, 1), now (3, 1, 1)"),
    "unit": ("um", "input unit nanometer, now micrometer"),
    "crop": ("2:9,:,2:", "crop 1:9,"),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file that says nothing of its voxels."""
    np.save(tmp_path / "in.npy", np.random.default_rng(3).integers(0, 999, (10, 12, 14)).astype(np.uint16))
    return tmp_path / "in.npy"


def begin(source: Path, out: Path, options: dict[str, Any]) -> None:
    """Leave a job half-way."""
    with pytest.raises(JobError):
        api.scale(source, out, listeners=[stop_after()], **options)


def voxels(out: Path) -> list[Any]:
    group: Any = zarr.open_group(out, mode="r")
    return [np.asarray(group[key][...]) for key in sorted(group.array_keys())]


@pytest.mark.parametrize("half", [True, False], ids=["begun", "finished"])
def test_none_of_them_has_to_be_given_again(source: Path, tmp_path: Path, *, half: bool) -> None:
    """Nor any of several; None is not given, as on the command line."""
    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    api.scale(source, whole, **MADE, **SMALL)
    (begin if half else lambda *given: api.scale(*given[:2], **given[2]))(source, out, MADE | SMALL)
    nothing: Any = dict.fromkeys(ScalingOptions.__annotations__)
    result = api.scale(source, out, **nothing)
    assert (result.seconds > 0) is half
    for mine, its in zip(voxels(out), voxels(whole), strict=True):
        np.testing.assert_array_equal(mine, its)
    some: Any
    for some in ({"engine": "exact"}, {"crop": MADE["crop"], "interpolation": "cubic"}, {"device": "auto"}):
        assert api.scale(source, out, **some).seconds == 0


@pytest.mark.parametrize("half", [True, False], ids=["begun", "finished"])
def test_one_that_differs_is_named(source: Path, tmp_path: Path, *, half: bool) -> None:
    """It alone, though it would not go with those that are taken; and nothing is changed."""
    out = tmp_path / "out.zarr"
    (begin if half else lambda *given: api.scale(*given[:2], **given[2]))(source, out, MADE | SMALL)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for name, (other, says) in OTHERS.items():
        with pytest.raises(OutputExistsError) as refused:
            api.scale(source, out, **{name: other})
        assert says in str(refused.value)
        assert ("was begun with" if half else "was made with") in str(refused.value)
        told = {"input_voxel_size": 2, "crop": 3}.get(name, 1)  # of a size its unit, of a crop its origin too
        assert str(refused.value).count(", now ") == told
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_they_are_not_those_of_an_output_that_is_replaced(source: Path, tmp_path: Path) -> None:
    """A new output has today's defaults."""
    out = tmp_path / "out.zarr"
    api.scale(source, out, **MADE, **SMALL)
    api.scale(source, out, overwrite=True, factor=(2, 1, 1))
    made = read_provenance(out)
    assert (made["engine"], made["interpolation"], made["boundary"]) == ("exact", "linear", "nearest")
    assert (made["storage"]["codec"], made["input"]["identity"].get("crop")) == ("lz4", None)


def test_another_input_is_named_as_that(source: Path, tmp_path: Path) -> None:
    """Though it has no such part: what is taken is none of its options."""
    out, small = tmp_path / "out.zarr", tmp_path / "small.npy"
    api.scale(source, out, **MADE, **SMALL)
    np.save(small, np.zeros((2, 2, 2), np.uint16))
    with pytest.raises(OutputExistsError, match=r"input .*in\.npy, now .*small\.npy"):
        api.scale(small, out)


def test_a_channel_and_a_time_are_taken(tmp_path: Path) -> None:
    """Of an input that has several."""
    data = np.random.default_rng(0).integers(0, 99, (2, 4, 3, 8, 8)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", data, ome=True, metadata={"axes": "TZCYX"}, photometric="minisblack")
    out = tmp_path / "out.zarr"
    options: Any = {"channel": 2, "time": 1, "factor": (1, 1, 1), "engine": "exact"}
    api.scale(tmp_path / "a.ome.tif", out, **options)
    assert api.scale(tmp_path / "a.ome.tif", out).seconds == 0
    with pytest.raises(OutputExistsError, match="channel 2, now 1"):
        api.scale(tmp_path / "a.ome.tif", out, channel=1)


def test_job_files_and_variables_give_options_too(
    source: Path, tmp_path: Path, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they say is given; what they do not say is not."""
    out, job = tmp_path / "out.zarr", tmp_path / "job.toml"
    words = ("--factor", "2,1,1", "--engine", "exact", "--codec", "zstd", "--boundary", "constant", "--levels", "0")
    assert isovoxel("scale", source, out, *words).code == 0
    job.write_text(f'input = "{source}"\noutput = "{out}"\nengine = "exact"\n')
    assert isovoxel("scale", "--config", job, "--json").json["seconds"] == 0
    with monkeypatch.context() as patch:
        patch.setenv("ISOVOXEL_CODEC", "lz4")
        check_refused(isovoxel("scale", "--config", job), "codec zstd, now blosc-lz4")
    job.write_text(job.read_text() + 'boundary = "nearest"\n')
    check_refused(isovoxel("scale", "--config", job), "boundary constant, now nearest")


def test_converting_goes_on_as_it_was_begun(source: Path, tmp_path: Path, isovoxel: Isovoxel) -> None:
    """Its factor is its own: an output that was scaled is no converted one."""
    out = tmp_path / "out.zarr"
    assert isovoxel("convert", source, out, "--input-voxel-size", "1,1,1", "--codec", "none").code == 0
    assert isovoxel("convert", source, out, "--json").json["seconds"] == 0
    assert isovoxel("scale", source, out, "--json").json["seconds"] == 0
    api.scale(source, tmp_path / "scaled.zarr", **MADE, **SMALL)
    check_refused(isovoxel("convert", source, tmp_path / "scaled.zarr"), "factor (2, 1, 1), now factor (1, 1, 1)")


def test_labels_take_their_own_and_then_the_images(source: Path, tmp_path: Path) -> None:
    """Of the labels that are there what they were made with, of others what the image was."""
    out = tmp_path / "out.zarr"
    for name in ("cells", "nuclei"):
        np.save(tmp_path / f"{name}.npy", np.ones((10, 12, 14), np.uint32))
    made: Any = {"factor": (1, 0.5, 0.5), "ome_zarr": "0.4", "codec": "zstd", "levels": 1, "engine": "exact"}
    api.scale(source, out, with_labels=tmp_path / "cells.npy", labels_by="nearest", **made)
    result = api.scale(source, out, with_labels=tmp_path / "cells.npy")
    assert result.labels is not None
    assert (result.seconds, result.labels.seconds) == (0, 0)
    with pytest.raises(OutputExistsError, match="--labels-by nearest, now mode"):
        api.scale(source, out, with_labels=tmp_path / "cells.npy", labels_by="mode")
    api.scale(source, out, with_labels=tmp_path / "nuclei.npy")
    of_labels = json.loads((out / "labels/nuclei/.zattrs").read_text())["isovoxel"]
    assert (of_labels["storage"]["ome_zarr"], of_labels["interpolation"]) == ("0.4", "mode")
    assert of_labels["factor"] == [1, 0.5, 0.5]


def test_a_device_that_is_not_given_is_that_of_the_bits(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of cle's, which depend on it: the one of that name, wherever it stands in the list."""
    out = tmp_path / "out.zarr"
    api.scale(source, out, factor=(2, 1, 1), engine="cle")
    device = devices.find_device()
    others = [replace(device, name="another", index=0), replace(device, index=1)]
    monkeypatch.setattr(devices, "list_devices", lambda: others)
    assert as_begun(out, Options()).device == "1"
    assert as_begun(out, Options(device="0")).device == "0"
    assert as_begun(out, Options(), here=False).device is None
    assert as_begun(out, Options(overwrite=True)).device is None
