"""How are channels shown? By their names and colours, from their darkest to their brightest voxels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr

import isovoxel
from isovoxel.errors import InterruptedJobError
from isovoxel.execution import job
from isovoxel.metadata.series import Channel

OPTIONS: dict[str, Any] = {"factor": (2, 1, 1), "engine": "exact", "chunk": (8, 8, 8), "shard": (16, 16, 16)}


def omero(output: Path) -> dict[str, Any]:
    """Return the attribute of an output, which must be valid."""
    yaozarrs.validate_zarr_store(output)
    found: dict[str, Any] = json.loads((output / "zarr.json").read_bytes())["attributes"]["ome"]["omero"]
    return found


def test_windows_hold_nearly_all_voxels(tmp_path: Path) -> None:
    """Those of a small volume are exact, and a few hot voxels do not darken the rest."""
    voxels = np.random.default_rng(0).integers(100, 200, (2, 12, 16, 16)).astype(np.uint16)
    voxels[1] += 1000
    voxels[0, 3, 4, 5] = 60_000
    metadata = {"axes": "CZYX", "Channel": {"Name": ["DAPI", "GFP"], "Color": [65535, 0x00FF00FF]}}
    tifffile.imwrite(tmp_path / "in.ome.tif", voxels, ome=True, metadata=metadata, photometric="minisblack")
    isovoxel.scale(tmp_path / "in.ome.tif", tmp_path / "out.zarr", **OPTIONS)
    found = omero(tmp_path / "out.zarr")
    out: Any = zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")
    for channel, shown in enumerate(found["channels"]):
        window = shown["window"]
        assert (window["min"], window["max"]) == (out[channel].min(), out[channel].max())
        low, high = np.percentile(out[channel], [0.1, 99.9])
        assert (window["start"], window["end"]) == (pytest.approx(low), pytest.approx(high))
    assert found["channels"][0]["window"]["end"] < 2000
    assert [(c["label"], c["color"]) for c in found["channels"]] == [("DAPI", "0000FF"), ("GFP", "00FF00")]
    assert found["rdefs"] == {"defaultT": 0, "defaultZ": 12, "model": "color"}
    assert isovoxel.open_volume(tmp_path / "out.zarr", channel=1).channels == (Channel("GFP", "00FF00"),)


def test_one_chosen_channel_keeps_its_name(tmp_path: Path) -> None:
    """And its colour."""
    metadata = {"axes": "CZYX", "Channel": {"Name": ["DAPI", "GFP"], "Color": [65535, 0x00FF00FF]}}
    voxels = np.ones((2, 4, 8, 8), np.uint8)
    tifffile.imwrite(tmp_path / "in.ome.tif", voxels, ome=True, metadata=metadata, photometric="minisblack")
    isovoxel.scale(tmp_path / "in.ome.tif", tmp_path / "out.zarr", channel=1, **OPTIONS)
    (shown,) = omero(tmp_path / "out.zarr")["channels"]
    assert (shown["label"], shown["color"]) == ("GFP", "00FF00")
    assert shown["window"] == {"min": 1.0, "start": 1.0, "end": 2.0, "max": 2.0}


def test_what_is_no_number_is_not_counted(tmp_path: Path) -> None:
    """Of nothing but that, the window is from 0 to 1."""
    voxels = np.linspace(-1, 1, 4 * 8 * 8, dtype=np.float32).reshape(4, 8, 8)
    voxels[0, 0, 0], voxels[3, 7, 7] = np.nan, np.inf
    isovoxel.scale(voxels, tmp_path / "some.zarr", interpolation="nearest", **OPTIONS)
    window = omero(tmp_path / "some.zarr")["channels"][0]["window"]
    assert -1 < window["min"] <= window["start"] < window["end"] <= window["max"] < 1
    isovoxel.scale(np.full_like(voxels, np.nan), tmp_path / "none.zarr", interpolation="nearest", **OPTIONS)
    window = omero(tmp_path / "none.zarr")["channels"][0]["window"]
    assert window == {"min": 0.0, "start": 0.0, "end": 1.0, "max": 1.0}


def test_labels_have_no_window(tmp_path: Path) -> None:
    """Viewers give them colours of their own."""
    isovoxel.scale(np.ones((4, 8, 8), np.uint32), tmp_path / "out.zarr", labels=True, **OPTIONS)
    assert "omero" not in json.loads((tmp_path / "out.zarr" / "zarr.json").read_bytes())["attributes"]["ome"]


def test_an_interruption_in_the_end_is_a_job_to_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While windows are found: all blocks are kept, and the next run does no more than that."""

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    voxels = np.ones((4, 8, 8), np.uint8)
    monkeypatch.setattr(job, "display_windows", interrupt)
    with pytest.raises(InterruptedJobError, match="1 of 1 blocks are done and kept"):
        isovoxel.scale(voxels, tmp_path / "out.zarr", **OPTIONS)
    monkeypatch.undo()
    result = isovoxel.scale(voxels, tmp_path / "out.zarr", **OPTIONS)
    assert result.tally.done_before == result.plan.all_blocks
    assert omero(tmp_path / "out.zarr")["channels"]


def test_windows_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    """Of any number of chunks."""
    voxels = np.random.default_rng(3).normal(0, 100, (16, 32, 32)).astype(np.float32)
    plan = isovoxel.scale(voxels, tmp_path / "out.zarr", **OPTIONS).plan
    one, many = (job.display_windows(tmp_path / "out.zarr", replace(plan, in_flight=n)) for n in (1, 5))
    assert one == many
    assert one[0].high > one[0].low


def test_few_chunks_are_read_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many for each channel, of all time points."""
    plan = isovoxel.plan(np.zeros((64, 64, 64), np.uint8), **OPTIONS)
    boxes = list(job._some_chunks(plan, 0, 1))
    assert 8 <= len(boxes) <= job.MOST_CHUNKS
    assert len(set(boxes)) == len(boxes)
    monkeypatch.setattr(job, "MOST_CHUNKS", 10**6)
    every = list(job._some_chunks(plan, 0, 1))
    assert sum(box.size for box in every) == 128 * 64 * 64
