"""Which device is meant, and what is said where there is none."""

from dataclasses import replace

import pyopencl as cl
import pytest

from isovoxel.engines.devices import Device, find_device, list_devices, opencl_device
from isovoxel.errors import DeviceError, OptionError

GIB = 2**30


def device(**changes: object) -> Device:
    """A GPU with 10 GiB, of which 8 are free, changed as asked."""
    gpu = Device(
        index=0,
        name="Test GPU",
        kind="gpu",
        platform="test",
        driver="1",
        compute_units=10,
        memory=10 * GIB,
        free=8 * GIB,
        largest_allocation=GIB,
        image_shape=(2048, 4096, 8192),
        shares_host_memory=False,
    )
    return replace(gpu, **changes)


def test_a_device_is_found_by_number_name_part_of_a_name_and_auto() -> None:
    """Whatever a user calls it, in any case, it is that device, and its handle is the same one."""
    for known in list_devices():
        assert find_device(str(known.index)).index == known.index
        handle = opencl_device(known)
        assert handle.name.strip() == known.name
        first = next(d for d in list_devices() if d.name == known.name)  # of several alike, a name means the first
        assert find_device(known.name).index == first.index
        assert known.name[:6].lower() in find_device(known.name[:6].upper()).name.lower()
    found = find_device()
    assert found.kind == ("gpu" if any(d.kind == "gpu" for d in list_devices()) else "cpu")


@pytest.mark.parametrize("wanted", ["no such device", "99", "", "-1"])
def test_an_unknown_device_is_answered_with_those_that_exist(wanted: str) -> None:
    """The message quotes what was asked for, and lists every device with its number."""
    with pytest.raises(DeviceError) as error:
        find_device(wanted)
    assert repr(wanted) in str(error.value)
    for known in list_devices():
        assert f"{known.index}: {known.name}" in str(error.value)


def no_platforms() -> list[cl.Platform]:
    """What the loader does where no driver is installed."""
    raise cl.LogicError("clGetPlatformIDs failed: PLATFORM_NOT_FOUND_KHR")


@pytest.mark.parametrize("platforms", [no_platforms, list])
def test_without_any_driver_the_user_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, platforms: object
) -> None:
    """A loader that fails and a loader that finds nothing both give the one clear error."""
    monkeypatch.setattr(cl, "get_platforms", platforms)
    assert list_devices() == []
    with pytest.raises(DeviceError, match=r"no OpenCL device is here; install a GPU driver .*pip install"):
        find_device()


def test_the_limits_are_those_that_opencl_reports() -> None:
    """Sizes come from the device, image sizes in the order z, y, x."""
    found = find_device()
    handle = opencl_device(found)
    limits = found.limits()
    assert limits.image_shape == (handle.image3d_max_depth, handle.image3d_max_height, handle.image3d_max_width)
    assert limits.largest_allocation <= limits.memory
    assert limits.buffer_voxels == 2**31 - 1


@pytest.mark.parametrize(
    ("changes", "budget", "allowed"),
    [
        ({}, None, int(0.9 * 8 * GIB)),
        ({"free": None}, None, int(0.9 * 10 * GIB)),
        ({"kind": "cpu", "free": None}, None, 10 * GIB),
        ({}, 10 * GIB, 10 * GIB),
        ({}, 1, 1),
    ],
)
def test_a_budget_counts_and_without_one_what_a_device_can_spare(
    changes: dict[str, object], budget: int | None, allowed: int
) -> None:
    """A GPU gives nine tenths of what is free, a CPU all it has, and a budget is taken as it is."""
    assert device(**changes).limits(budget).allowed == allowed


def test_a_budget_beyond_the_device_is_refused_with_both_numbers() -> None:
    """Nobody is promised memory that is not there."""
    with pytest.raises(OptionError, match=r"--device-memory 11.0 GiB is more than the 10.0 GiB of Test GPU"):
        device().limits(11 * GIB)


def test_a_full_gpu_has_nothing_to_spare() -> None:
    """No free memory is not taken for not knowing: nothing is allowed, and another device is preferred."""
    full = replace(find_device(), kind="gpu", free=0)
    assert full.limits().allowed == 0
    assert replace(full, free=None).limits().allowed > 0
