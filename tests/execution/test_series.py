"""Are images of several time points and channels scaled as one job, each volume as if it were alone?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

import isovoxel
from isovoxel.errors import InputError, InterruptedJobError, OptionError
from isovoxel.execution.events import BlockDone, Event
from isovoxel.geometry.grid import Box, VoxelGrid
from isovoxel.metadata.ome import image_attributes
from isovoxel.metadata.series import Channel, SeriesAxis
from isovoxel.planning.resume import plan_from_json
from isovoxel.reporting.records import plan_record

SHAPE = (3, 2, 9, 20, 24)
"""t, c, z, y, x."""
VOXELS = np.random.default_rng(7).integers(0, 2**16, SHAPE).astype(np.uint16)
FACTOR = (2.5, 1.0, 1.0)
OPTIONS: dict[str, Any] = {"factor": FACTOR, "engine": "exact", "chunk": (8, 8, 8), "shard": (16, 16, 16)}
SIZES = {"PhysicalSizeZ": 1.0, "PhysicalSizeY": 0.4, "PhysicalSizeX": 0.4}
AXES = (SeriesAxis("t", 3), SeriesAxis("c", 2))


def expected(t: int, c: int) -> NDArray[Any]:
    """What a volume becomes that is scaled alone."""
    scaled: NDArray[Any] = isovoxel.scale_array(VOXELS[t, c], FACTOR, engine="exact").compute()
    return scaled


def ome_tiff(path: Path, axes: str = "TCZYX", **options: Any) -> Path:
    """Write the voxels in an order of axes."""
    voxels = VOXELS.transpose(["TCZYX".index(axis) for axis in axes])
    channels = {"Name": ["DAPI", "GFP"], "Color": [0x0000FF80, -16711681]}
    metadata = {**SIZES, "axes": axes, "TimeIncrement": 90.0, "TimeIncrementUnit": "ms", "Channel": channels}
    tifffile.imwrite(path, voxels, ome=True, metadata=metadata, **options)
    return path


def check(output: Path) -> None:
    """Compare every volume of an output with what it becomes alone."""
    array: Any = zarr.open_array(output / "0", mode="r")
    assert array.shape == (3, 2, 22, 20, 24)
    for t, c in np.ndindex(3, 2):
        np.testing.assert_array_equal(array[t, c], expected(t, c))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("axes", ["TCZYX", "TZCYX", "CTZYX", "ZCTYX"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_tiff_of_any_order(tmp_path: Path, axes: str, compression: str | None) -> None:
    """Raw and encoded pages: all volumes in one job, named as the file names them."""
    source = ome_tiff(tmp_path / "in.ome.tif", axes, compression=compression)
    volume = isovoxel.open_volume(source)
    assert volume.shape == SHAPE[2:]
    assert volume.series == (SeriesAxis("t", 3, 90.0, "millisecond"), SeriesAxis("c", 2))
    assert volume.channels == (Channel("DAPI", "0000FF"), Channel("GFP", "FF00FF"))
    assert volume.nbytes == VOXELS.nbytes
    isovoxel.scale(source, tmp_path / "out.zarr", **OPTIONS)
    check(tmp_path / "out.zarr")
    assert isovoxel.verify(tmp_path / "out.zarr", samples=40).holds


def test_imagej_hyperstack(tmp_path: Path) -> None:
    """Its interval and the colours of its lookup tables are kept."""
    source = tmp_path / "in.tif"
    ramp = np.arange(256, dtype=np.uint8)
    zero = np.zeros_like(ramp)
    metadata = {"axes": "TZCYX", "spacing": 1.0, "unit": "um", "finterval": 2.5, "tunit": "min"}
    tables = [np.stack([ramp, zero, zero]), np.stack([zero, ramp, zero])]
    tifffile.imwrite(
        source,
        VOXELS.transpose(0, 2, 1, 3, 4),
        imagej=True,
        resolution=(2.5, 2.5),
        metadata=metadata | {"LUTs": tables, "mode": "composite"},
    )
    volume = isovoxel.open_volume(source)
    assert volume.series == (SeriesAxis("t", 3, 2.5, "minute"), SeriesAxis("c", 2))
    assert [channel.color for channel in volume.channels] == ["FF0000", "00FF00"]
    isovoxel.scale(source, tmp_path / "out.zarr", **OPTIONS)
    check(tmp_path / "out.zarr")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("chunks", [(1, 1, 4, 8, 8), (1, 2, 4, 8, 8)])
@pytest.mark.parametrize("order", ["tczyx", "ctzyx"])
def test_zarr_arrays(tmp_path: Path, chunks: tuple[int, ...], order: str) -> None:
    """With one volume a chunk, and with several, in either order."""
    turned = ["tczyx".index(axis) for axis in order]
    array: Any = zarr.create_array(
        tmp_path / "in.zarr",
        shape=tuple(SHAPE[i] for i in turned),
        chunks=tuple(chunks[i] for i in turned),
        dtype=VOXELS.dtype,
        dimension_names=list(order),
    )
    array[...] = VOXELS.transpose(turned)
    volume = isovoxel.open_volume(tmp_path / "in.zarr")
    assert volume.series == AXES
    isovoxel.scale(tmp_path / "in.zarr", tmp_path / "out.zarr", **OPTIONS)
    check(tmp_path / "out.zarr")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_time_and_channels_stay_where_they_are(tmp_path: Path, version: str) -> None:
    """Scale, translation and unit are those of the input, in all levels of both versions, and of labels too."""
    times, channels = SeriesAxis("t", 3, 2.5, "minute", 40.0), SeriesAxis("c", 2, 2.0, None, -3.0)
    grid = VoxelGrid(SHAPE[2:], (1.0, 0.4, 0.4), unit="micrometer")
    attributes = image_attributes(grid, name="in", series=(times, channels), version=version)
    zarr_format: Any = 2 if version == "0.4" else 3
    group = zarr.create_group(tmp_path / "in.zarr", zarr_format=zarr_format, attributes=attributes)
    group.create_array("0", data=VOXELS)
    text = json.dumps(attributes).replace('"t"', '"time"').replace('"c"', '"Channel"')  # as others call them
    group.attrs.put(json.loads(text))
    volume = isovoxel.open_volume(tmp_path / "in.zarr")
    assert volume.series == (times, channels)
    labels = zarr.create_array(tmp_path / "cells.zarr", data=VOXELS[:, 0], dimension_names=list("tzyx"))
    for written in ("0.4", "0.5"):
        out = tmp_path / f"{written}.zarr"
        how = OPTIONS | {"shard": None, "ome_zarr": written, "levels": 1}
        result = isovoxel.scale(tmp_path / "in.zarr", out, with_labels=labels.store_path.store.root, **how)
        for level in (0, 1):
            assert isovoxel.open_volume(out, level=level).series == (times, channels)
            assert isovoxel.open_volume(out / "labels" / "cells", level=level).series == (times,)
        assert result.to_xarray(1).coords["t"].values.tolist() == [40.0, 42.5, 45.0]
        assert isovoxel.verify(out, samples=8).holds


@pytest.mark.parametrize("start", [0.0, 40.0])
def test_one_time_point_has_no_axis_for_its_time(tmp_path: Path, start: float) -> None:
    """Where the input gives it, a note says that it is not kept."""
    series = (SeriesAxis("t", 3, 2.5, "second", start),)
    attributes = image_attributes(VoxelGrid(SHAPE[2:]), name="in", series=series)
    zarr.create_group(tmp_path / "in.zarr", attributes=attributes).create_array("0", data=VOXELS[:, 0])
    note = "its time, 45 second, is not kept: a single time point has no time axis"
    assert (note in isovoxel.open_volume(tmp_path / "in.zarr", time=2).notes) == (start > 0)
    assert not any("its time" in said for said in isovoxel.open_volume(tmp_path / "in.zarr").notes)


def test_an_output_is_an_input_again(tmp_path: Path) -> None:
    """Axes, steps, units and levels of a series come back as they were written."""
    isovoxel.scale(ome_tiff(tmp_path / "in.ome.tif"), tmp_path / "out.zarr", levels=2, **OPTIONS)
    volume = isovoxel.open_volume(tmp_path / "out.zarr")
    assert volume.series == (SeriesAxis("t", 3, 90.0, "millisecond"), SeriesAxis("c", 2))
    assert volume.voxel_size == (0.4, 0.4, 0.4)
    assert len(volume.coarser) == 2
    coarser = volume.coarser[0]()
    assert coarser.series == volume.series
    first = isovoxel.open_volume(tmp_path / "out.zarr", time=2, channel=1, level=1)
    everything: Any = zarr.open_array(tmp_path / "out.zarr" / "1", mode="r")
    box = Box.whole(first.shape)
    np.testing.assert_array_equal(first.read(box), everything[2, 1])
    np.testing.assert_array_equal(coarser.read(box.of(5)), everything[2, 1])
    halved = isovoxel.scale_array(expected(2, 1), (0.5, 0.5, 0.5), interpolation="area", engine="exact").compute()
    np.testing.assert_array_equal(first.read(box), halved)


def test_a_part_of_a_series(tmp_path: Path) -> None:
    """One channel of all time points, cropped: the rest of the axes is left out."""
    source = ome_tiff(tmp_path / "in.ome.tif")
    isovoxel.scale(source, tmp_path / "out.zarr", channel=1, crop="2:8,:,4:20", **OPTIONS)
    array: Any = zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")
    assert array.shape == (3, 15, 20, 16)
    assert array.metadata.dimension_names == ("t", "z", "y", "x")
    for t in range(3):
        alone = isovoxel.scale_array(VOXELS[t, 1, 2:8, :, 4:20], FACTOR, engine="exact").compute()
        np.testing.assert_array_equal(array[t], alone)
    assert isovoxel.open_volume(source, channel=1).channels == (Channel("GFP", "FF00FF"),)


def test_planes_are_no_series(tmp_path: Path) -> None:
    """Slices that were saved as time points or channels are a mistake that is told."""
    tifffile.imwrite(tmp_path / "in.ome.tif", VOXELS[0, 0], ome=True, metadata={"axes": "TYX"})
    with pytest.raises(InputError, match="if they are slices, name that axis z"):
        isovoxel.open_volume(tmp_path / "in.ome.tif")
    with pytest.raises(OptionError, match="has 3 time points"):
        isovoxel.open_volume(ome_tiff(tmp_path / "five.ome.tif"), time=3)


@pytest.mark.slow
@pytest.mark.parametrize("halo", ["direct", "map_overlap"])
def test_a_job_goes_on_in_the_middle_of_a_series(tmp_path: Path, halo: str) -> None:
    """Interrupted after some volumes, it does the others only."""
    source, output = ome_tiff(tmp_path / "in.ome.tif"), tmp_path / "out.zarr"
    done: list[int] = []

    def stop(event: Event) -> None:
        if isinstance(event, BlockDone):
            done.append(event.index)
            if len(done) == 2:
                raise KeyboardInterrupt

    with pytest.raises(InterruptedJobError, match="blocks are done and kept"):
        isovoxel.scale(source, output, listeners=[stop], halo=halo, threads=2, **OPTIONS)
    state = isovoxel.output_state(output)
    assert state is not None
    assert 2 <= state.done < state.blocks
    result = isovoxel.scale(source, output, halo=halo, threads=2, **OPTIONS)
    assert result.tally.done_before == state.done
    check(output)


def test_damage_is_told_by_its_volume(tmp_path: Path) -> None:
    """The same chunk is damaged in two volumes: both are told, and filled."""
    array: Any = zarr.create_array(
        tmp_path / "in.zarr", shape=SHAPE, chunks=(1, 1, 9, 20, 24), dtype="uint16", dimension_names=list("tczyx")
    )
    array[...] = VOXELS
    for place in ("0/1", "2/0"):
        (tmp_path / "in.zarr" / "c" / place / "0/0/0").write_bytes(b"nothing that was ever encoded")
    result = isovoxel.scale(tmp_path / "in.zarr", tmp_path / "out.zarr", on_corrupt="fill", **OPTIONS)
    told = sorted(part.partition(", chunk")[0] for part in result.tally.filled)
    assert told == ["time point 0, channel 1", "time point 2, channel 0"]
    out: Any = zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")
    assert not out[0, 1].any()
    assert not out[2, 0].any()
    np.testing.assert_array_equal(out[1, 1], expected(1, 1))


def test_a_plan_counts_all_volumes(tmp_path: Path) -> None:
    """Blocks, bytes, and what a machine is told."""
    plan = isovoxel.plan(ome_tiff(tmp_path / "in.ome.tif"), **OPTIONS)
    assert plan.source.series == (("t", 3), ("c", 2))
    assert plan.n_blocks == 6 * math.prod(plan.block_grid)
    assert plan.output_bytes == 6 * 22 * 20 * 24 * 2
    assert [plan.block(i).write_box.volume for i in range(0, plan.n_blocks, math.prod(plan.block_grid))] == list(
        range(6)
    )
    assert plan.voxels_of(bytes([1]) * plan.n_blocks) == 6 * 22 * 20 * 24
    again = plan_from_json(plan.to_json())
    assert (again.source.series, again.fingerprint) == (plan.source.series, plan.fingerprint)
    assert json.loads(json.dumps(plan_record(plan)))["input"]["series"] == {"t": 3, "c": 2}
