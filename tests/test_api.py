"""What a Python user calls: arrays and paths in, plans, limits, files and lazy arrays out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

import isovoxel
from isovoxel.errors import (
    DeviceError,
    DoesNotFitError,
    InputError,
    InputMissingError,
    IsovoxelError,
    OptionError,
    OutputError,
    OutputExistsError,
)
from isovoxel.execution.events import BlockDone, Event, JobFinished, JobStarted

SHAPE = (10, 30, 20)
SIZE = (2.0, 0.5, 0.5)


@pytest.fixture
def voxels() -> NDArray[np.uint16]:
    return np.random.default_rng(1).integers(0, 60_000, SHAPE).astype(np.uint16)


def as_zarr(data: NDArray[Any]) -> Any:
    array = zarr.create_array({}, shape=data.shape, chunks=(4, 8, 16), dtype=data.dtype)
    array[:] = data
    return array


ARRAYS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "numpy": np.asarray,
    "dask": lambda data: da.from_array(data, chunks=(4, 8, 16)),
    "zarr": as_zarr,
}


def read(path: Path) -> NDArray[Any]:
    return np.asarray(zarr.open_array(path / "0", mode="r")[:])


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_scale_as_files_do(voxels: NDArray[np.uint16], kind: str, tmp_path: Path) -> None:
    """Where the voxels come from makes no difference to the result."""
    tifffile.imwrite(tmp_path / "stack.tif", voxels)
    isovoxel.scale(tmp_path / "stack.tif", tmp_path / "file", factor=(4, 1, 0.7))
    isovoxel.scale(ARRAYS[kind](voxels), tmp_path / "array", factor=(4, 1, 0.7))
    np.testing.assert_array_equal(read(tmp_path / "array"), read(tmp_path / "file"))


def test_paths_may_be_text_or_path_like(voxels: NDArray[np.uint16], tmp_path: Path) -> None:
    """Input and output take `str` and `os.PathLike`; the result says where it lies as a path."""

    class Place(os.PathLike[str]):
        def __init__(self, path: Path) -> None:
            self.path = path

        def __fspath__(self) -> str:
            return str(self.path)

    np.save(tmp_path / "stack.npy", voxels)
    text = isovoxel.scale(str(tmp_path / "stack.npy"), str(tmp_path / "a.zarr"), input_voxel_size=SIZE)
    place = isovoxel.scale(Place(tmp_path / "stack.npy"), tmp_path / "b.zarr", input_voxel_size=SIZE)
    assert (text.path, place.path) == (tmp_path / "a.zarr", tmp_path / "b.zarr")
    np.testing.assert_array_equal(read(text.path), read(place.path))


def test_an_output_is_an_input(voxels: NDArray[np.uint16], tmp_path: Path) -> None:
    """What was written opens with the voxel size, unit and origin that it got."""
    planned = isovoxel.scale(voxels, tmp_path / "a.zarr", input_voxel_size=SIZE, unit="nm").plan
    volume = isovoxel.open_volume(tmp_path / "a.zarr")
    assert volume.grid == planned.output
    assert volume.voxel_size == (0.5, 0.5, 0.5)
    again = isovoxel.scale(volume, tmp_path / "b.zarr", zoom=1)
    assert again.plan.output.shape == (20, 15, 10)


def test_factors_may_be_any_three_numbers(voxels: NDArray[np.uint16]) -> None:
    """A list and a NumPy array make the same plan as a tuple."""
    tuples = isovoxel.plan(voxels, factor=(2.0, 1.0, 0.5))
    listed: Any = [2, 1, 0.5]
    assert isovoxel.plan(voxels, factor=listed).fingerprint == tuples.fingerprint
    assert isovoxel.plan(voxels, factor=np.array(listed)).factor == tuples.factor
    assert isovoxel.scale_array(voxels, listed).shape == tuples.output.shape


def test_plan_takes_budgets_as_numbers_and_text(voxels: NDArray[np.uint16]) -> None:
    """Bytes may be an integer or such as "8GiB"."""
    options: Any = {"input_voxel_size": SIZE, "device_memory": 10_000_000}
    planned = isovoxel.plan(voxels, memory="8GiB", **options)
    assert (planned.host.allowed, planned.device.allowed) == (8 << 30, 10_000_000)
    assert planned.projected_device <= 10_000_000
    assert planned == isovoxel.plan(voxels, memory=8 << 30, **options)


def test_result_tells_what_was_done(voxels: NDArray[np.uint16], tmp_path: Path) -> None:
    """Plan, seconds, speed, stages and peak memory are in it, and listeners hear each block."""
    heard: list[Event] = []
    result = isovoxel.scale(
        voxels,
        tmp_path / "out.zarr",
        listeners=[heard.append],
        input_voxel_size=SIZE,
        chunk=(16, 16, 16),
        shard=(16, 16, 16),
        device_memory="30kB",
    )
    assert result.plan.n_blocks > 1
    assert result.plan.output.shape == (40, 30, 20)
    assert result.seconds > 0
    assert result.voxels_per_second == pytest.approx(40 * 30 * 20 / result.seconds)
    assert set(result.stages) == {"read", "wait", "scale", "write", "flush", "idle"}
    assert all(seconds >= 0 for seconds in result.stages.values())
    assert result.peak_host_bytes > voxels.nbytes
    assert heard[0] == JobStarted(result.plan)
    assert isinstance(heard[-1], JobFinished)
    blocks = [event for event in heard if isinstance(event, BlockDone)]
    assert sorted(block.index for block in blocks) == list(range(result.plan.n_blocks))
    assert sum(block.voxels for block in blocks) == 40 * 30 * 20


def test_output_says_what_made_it(voxels: NDArray[np.uint16], tmp_path: Path) -> None:
    """Version, engine, factors and input stand in the group's attributes, next to OME's."""
    result = isovoxel.scale(voxels, tmp_path / "out.zarr", input_voxel_size=SIZE, unit="micrometer", engine="cle")
    attributes = json.loads((result.path / "zarr.json").read_text())["attributes"]["isovoxel"]
    assert attributes["version"] == isovoxel.__version__
    assert (attributes["engine"], attributes["factor"]) == ("cle", [4.0, 1.0, 1.0])
    assert attributes["input"]["shape"] == list(SHAPE)
    assert attributes["input"]["voxel_size"] == list(SIZE)
    assert attributes["fingerprint"] == result.plan.fingerprint
    assert attributes["complete"] is True


def test_limits_say_where_one_piece_stops(voxels: NDArray[np.uint16]) -> None:
    """Below the first limit's zoom the image fits, from there on it does not."""
    found = isovoxel.limits(voxels, input_voxel_size=SIZE)
    assert 0 < found.first.zoom < float("inf")
    assert found.fits(0.999 * found.first.zoom)
    assert not found.fits(found.first.zoom)
    assert found.device.name in {device.name for device in isovoxel.devices()}


def test_limits_of_nearest_know_no_image(voxels: NDArray[np.uint16]) -> None:
    """Only linear interpolation makes an OpenCL image of the input."""
    device = isovoxel.devices()[0]
    wide = da.zeros((1, 1, device.image_shape[2] + 1), dtype="uint8", chunks=-1)
    assert isovoxel.limits(wide, input_voxel_size=(1, 1, 1), device="0").first.limit == "image size"
    assert isovoxel.limits(wide, input_voxel_size=(1, 1, 1), device="0", interpolation="nearest").first.zoom > 0
    with pytest.raises(OptionError, match="must be one of linear, nearest"):
        isovoxel.limits(voxels, input_voxel_size=SIZE, interpolation="cubic")


# ---- scale_array -------------------------------------------------------------------------------------------------


def test_scale_array_cuts_what_the_device_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default chunks get smaller until one fits; those that the caller chose are refused instead."""
    from isovoxel.engines.devices import Device

    limits = Device.limits
    monkeypatch.setattr(Device, "limits", lambda self, budget=1_000_000: limits(self, budget))
    stack = da.zeros((64, 64, 64), dtype="uint8", chunks=64)
    scaled = isovoxel.scale_array(stack, 2)
    assert scaled.npartitions > 1
    assert float(scaled.max().compute()) == 0
    with pytest.raises(DoesNotFitError, match="choose smaller chunks"):
        isovoxel.scale_array(stack, 2, chunks=(128, 128, 128))


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "builtin"),
    [
        ({"zoom": float("nan")}, OptionError, ValueError),
        ({"zoom": 1, "factor": (1, 1, 1)}, OptionError, ValueError),
        ({"factor": (2, 1)}, OptionError, ValueError),
        ({"factor": 2}, OptionError, ValueError),
        ({"memory": "8 potatoes"}, OptionError, ValueError),
        ({"memory": 1}, DoesNotFitError, MemoryError),
        ({"device": "quantum"}, DeviceError, RuntimeError),
    ],
)
def test_errors_are_what_python_users_expect(
    voxels: NDArray[np.uint16], tmp_path: Path, options: Any, error: type[IsovoxelError], builtin: type[Exception]
) -> None:
    """Each is an `IsovoxelError` and a built-in error; nothing is written."""
    with pytest.raises(error) as raised:
        isovoxel.scale(voxels, tmp_path / "out.zarr", input_voxel_size=SIZE, **options)
    assert isinstance(raised.value, builtin)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_inputs_and_outputs(voxels: NDArray[np.uint16], tmp_path: Path) -> None:
    """A missing file is a `FileNotFoundError`, no voxel size a `ValueError`, an output a `FileExistsError`."""
    with pytest.raises(FileNotFoundError) as missing:
        isovoxel.open_volume(tmp_path / "none.tif")
    assert isinstance(missing.value, InputMissingError)
    with pytest.raises(InputError, match="the voxel size of the NumPy array is not known"):
        isovoxel.plan(voxels)
    with pytest.raises(InputError, match="an input of type list is no volume"):
        isovoxel.open_volume([[[1]]])
    isovoxel.scale(voxels, tmp_path / "out.zarr", factor=(1, 1, 1))
    with pytest.raises(FileExistsError) as exists:
        isovoxel.scale(voxels, tmp_path / "out.zarr", factor=(2, 1, 1))
    assert isinstance(exists.value, OutputExistsError)
    assert isovoxel.scale(voxels, tmp_path / "out.zarr", factor=(1, 1, 1), overwrite=True).seconds > 0


def test_a_disk_that_is_full_at_once_is_an_output_error(
    voxels: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where not a folder can be made the reason is told, not shown as a traceback."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OutputError, match=r"out\.zarr\.isovoxel.* cannot be written: No space left on device"):
        isovoxel.scale(voxels, tmp_path / "out.zarr", factor=(1, 1, 1))


def test_auto_is_decided_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is planned for the device that runs it, though another may have more memory free a moment later."""
    from isovoxel.engines import devices

    wanted: list[str] = []
    find = devices.find_device

    def watched(name: str = "auto") -> devices.Device:
        wanted.append(name)
        return find(name)

    monkeypatch.setattr(devices, "find_device", watched)
    isovoxel.scale(np.ones((4, 4, 4), np.uint8), tmp_path / "out.zarr", factor=(2, 1, 1))
    assert wanted[0] == "auto"
    assert all(name.isdecimal() for name in wanted[1:])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"antialias": "no"}, "antialias must be True or False, not 'no'"),
        ({"labels": "no"}, "labels must be True or False, not 'no'"),
        ({"keep_receipts": 1}, "keep_receipts must be True or False, not 1"),
        ({"chunk": (2.0, 4.0, 4.0)}, "chunk must be three whole numbers z, y, x such as"),
        ({"shard": 5}, "shard must be three whole numbers z, y, x such as"),
        ({"levels": 1.5}, "levels must be auto or a number from 0 on, not 1.5"),
        ({"threads": 1.5}, "threads must be a whole number, not 1.5"),
        ({"threads": "2"}, "threads must be a whole number, not '2'"),
    ],
)
def test_values_of_another_type_are_refused(tmp_path: Path, given: dict[str, Any], told: str) -> None:
    """Not taken for what they are not: the word no is true in Python."""
    volume = np.zeros((4, 5, 6), np.uint8)
    with pytest.raises(OptionError, match=re.escape(told)):
        isovoxel.scale(volume, tmp_path / "out.zarr", factor=(1, 1, 1), input_voxel_size=(1, 1, 1), **given)
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """As arithmetic gives them."""
    volume = np.random.default_rng(0).integers(0, 9, (2, 4, 5, 6), np.uint8)
    how: dict[str, Any] = {"axes": "tzyx", "time": np.int64(1), "threads": np.int64(1), "levels": np.int32(0)}
    how |= {"memory": np.int64(2**31), "antialias": np.False_, "chunk": np.array([4, 4, 4]), "shard": (4, 4, 4)}
    out = tmp_path / "out.zarr"
    isovoxel.scale(volume, out, factor=np.ones(3), input_voxel_size=(1, 1, 1), engine="exact", device=0, **how)
    found: Any = zarr.open_array(out / "0", mode="r")
    np.testing.assert_array_equal(found[...], volume[1])
