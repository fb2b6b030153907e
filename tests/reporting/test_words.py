"""What people read: sizes with units, lengths of a few digits, and what was taken for granted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import xarray
import zarr

from command_line import Isovoxel, check_refused
from isovoxel import api
from isovoxel.errors import InputError, OptionError
from isovoxel.options import parse_size

VOXELS = np.random.default_rng(0).integers(0, 250, (4, 9, 9)).astype("uint8")

SIZES: dict[Any, int | str] = {
    "4GiB": 2**32,
    "4gib": 2**32,
    "4 G": 4 * 10**9,
    "4gb": 4 * 10**9,
    " 1.5 kB ": 1500,
    "7B": 7,
    "1e3kB": 10**6,
    4096: 4096,
    "4": "memory needs a unit, such as 4GiB or 4MB; '4' has none",
    " 4 ": "such as 4GiB or 4MB",
    "4.5": "memory needs a unit, such as 4.5GiB",
    "1e9": "memory needs a unit, such as 1e9GiB",
    "-4": "memory must be a size above 0, not '-4'",
    "-4GiB": "memory must be a size above 0, not '-4GiB'",
    "0B": "memory must be a size above 0",
    "nan": "must be a size such as 8GiB",
    "inf GiB": "must be a size such as 8GiB",
    "1e999GiB": "must be a size such as 8GiB",
    "GiB": "must be a size such as 8GiB",
    "": "must be a size such as 8GiB",
    "4 elephants": "must be a size such as 8GiB",
    True: "must be a size such as 8GiB",
    0: "memory must be a size above 0, not 0",
}


@pytest.mark.parametrize("given", SIZES, ids=repr)
def test_a_size_has_a_unit(given: Any) -> None:
    """Text without one is asked for it; an integer, which only Python gives, is bytes."""
    expected = SIZES[given]
    if isinstance(expected, int):
        assert parse_size("memory", given) == expected
    else:
        with pytest.raises(OptionError, match=re.escape(expected)):
            parse_size("memory", given)


@pytest.mark.parametrize("option", ["memory", "device_memory"])
def test_every_way_to_a_size_asks_for_the_unit(
    isovoxel: Isovoxel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """The command line, the environment, a job file, and Python's text."""
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", VOXELS)
    words = ["plan", "in.npy", "--factor", "1,1,1"]
    check_refused(isovoxel(*words, f"--{option.replace('_', '-')}", 4), "needs a unit, such as 4GiB")
    Path("job.toml").write_text(f"{option} = 8000000000")
    check_refused(isovoxel(*words, "--config", "job.toml"), "needs a unit, such as 8000000000GiB")
    monkeypatch.setenv(f"ISOVOXEL_{option.upper()}", "4")
    check_refused(isovoxel(*words), "needs a unit, such as 4GiB")
    with pytest.raises(OptionError, match="needs a unit"):
        api.plan("in.npy", factor=(1, 1, 1), **{option: "4"})  # type: ignore[arg-type]
    check_refused(isovoxel(*words, "--memory", "1e30GiB", "--device-memory", "1B"), "")


LONG = (1.7999999999999998, 0.1 + 0.2, 0.30000000000000004)


def test_lengths_have_few_digits(isovoxel: Isovoxel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever people read them; JSON has them all."""
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", VOXELS)
    size = ["--input-voxel-size", ",".join(map(repr, LONG)), "--unit", "um"]
    words = ["scale", "in.npy", "out.zarr", *size]
    said = [
        isovoxel("info", "in.npy", *size),
        isovoxel("plan", "in.npy", *size, "--voxel-size", LONG[1]),
        isovoxel("limits", "in.npy", *size),
        isovoxel(*words, "--report", "r.html"),
        isovoxel(*words, "--voxel-size", LONG[0]),
        isovoxel(*words, "--factor", ",".join(map(repr, LONG))),
        isovoxel("scale", "in.npy", "out.zarr", "--input-voxel-size", "2,0.30000000000000004,0.3"),
        isovoxel("info", "out.zarr"),
        isovoxel("show", "in.npy", "out.zarr", *size),
        isovoxel("plan", "in.npy", *size, "--zoom", -LONG[0]),
    ]
    for one in said:
        assert not re.search(r"99999|00000", one.out + one.err), one
    assert "1.8 x 0.3 x 0.3" in Path("r.html").read_text()
    assert isovoxel("info", "in.npy", *size, "--json").json["voxel_size"] == list(LONG)


TOLD = [
    (["--zoom", "3"], "was made with zoom 2, now zoom 3: "),
    (["--voxel-size", "0.25"], "was made with voxel size 0.5, now voxel size 0.25: "),
    (["--factor", "3,1,1"], "was made with factor (4, 0.4, 0.4), now factor (3, 1, 1): "),
]


def test_a_change_is_told_in_the_words_of_the_command(isovoxel: Isovoxel, tmp_path: Path) -> None:
    """Zoom, voxel size or factor, as the user says it now."""
    metadata = {"axes": "ZYX", "spacing": 2.0, "unit": "micron"}
    tifffile.imwrite(tmp_path / "in.tif", VOXELS, imagej=True, resolution=(5, 5), metadata=metadata)
    words = ["scale", tmp_path / "in.tif", tmp_path / "out.zarr"]
    assert isovoxel(*words, "--zoom", 2).code == 0
    for more, said in TOLD:
        check_refused(isovoxel(*words, *more), said)


def test_info_tells_where_the_first_voxel_lies(isovoxel: Isovoxel, tmp_path: Path) -> None:
    """With the unit; not where lengths are unknown."""
    np.save(tmp_path / "in.npy", VOXELS)
    assert "origin" not in isovoxel("info", tmp_path / "in.npy").out
    words = ["info", tmp_path / "in.npy", "--input-voxel-size", "2,0.5,0.5", "--unit", "um", "--crop", "1:,:,3:"]
    assert "origin      (2, 0, 1.5) micrometer, the centre of voxel 0\n" in isovoxel(*words).out
    assert isovoxel(*words, "--json").json["origin"] == [2, 0, 1.5]


@pytest.mark.parametrize("unit", [[], ["--unit", "um"]])
def test_a_size_that_is_not_known_is_not_made_up(isovoxel: Isovoxel, tmp_path: Path, unit: list[str]) -> None:
    """Scaled by factors, the output counts input voxels, says so, and has no unit."""
    np.save(tmp_path / "in.npy", VOXELS)
    words = [tmp_path / "in.npy", tmp_path / "out.zarr", "--factor", "2,1,1", *unit]
    note = "note: the voxel size is not known: a .npy file has none; lengths of the output count input voxels, without"
    assert note in isovoxel("plan", words[0], *words[2:]).err
    assert note in isovoxel("scale", *words).err
    attributes: Any = zarr.open_group(tmp_path / "out.zarr", mode="r").attrs["ome"]
    assert all("unit" not in axis for axis in attributes["multiscales"][0]["axes"])
    assert "note: the voxel size" not in isovoxel("plan", *words[:1], *words[2:], "--input-voxel-size", "1,1,1").err


@pytest.mark.parametrize(
    ("size", "doubted"),
    [("0.3,0.3,2", True), ("0.3,0.2,0.6", True), ("2,0.3,0.3", False), ("0.3,0.3,0.4", False), ("1,1,1", False)],
)
def test_an_order_that_looks_wrong_is_doubted(isovoxel: Isovoxel, tmp_path: Path, size: str, *, doubted: bool) -> None:
    """Voxels that are by far longest along x are noted, with what was meant perhaps; the job is done."""
    np.save(tmp_path / "in.npy", VOXELS)
    turned = ",".join(reversed(size.split(",")))
    for words in (["info"], ["plan"], ["scale", tmp_path / "out.zarr"]):
        said = isovoxel(words[0], tmp_path / "in.npy", *words[1:], "--input-voxel-size", size)
        assert said.code == 0
        assert ("if it was meant as x, y, z, give " + turned in said.out + said.err) is doubted


def coordinates(**more: Any) -> dict[str, Any]:
    """Return coordinates of 2 x 0.5 x 0.5 micrometer."""
    axes = {"z": (4, 2.0, 10.0), "y": (9, 0.5, 0.0), "x": (9, 0.5, -1.0)}
    return {d: (d, o + s * np.arange(n), {"units": "um"}) for d, (n, s, o) in axes.items()} | more


@pytest.mark.parametrize("lazy", [False, True])
def test_a_dataarray_is_a_volume(tmp_path: Path, *, lazy: bool) -> None:
    """With the voxel size, place and unit of its coordinates."""
    array = xarray.DataArray(VOXELS, coordinates(), ("z", "y", "x"), name="gfp")
    volume = api.open_volume(array.chunk(4) if lazy else array)
    assert (volume.voxel_size, volume.origin, volume.unit) == ((2, 0.5, 0.5), (10, 0, -1), "micrometer")
    api.scale(volume, tmp_path / "out.zarr")
    assert api.verify(tmp_path / "out.zarr", against=array, samples=50).holds
    plane = api.open_volume(array.isel(z=0, drop=True))
    assert (plane.shape, plane.voxel_size, plane.origin) == ((1, 9, 9), (0.5, 0.5, 0.5), (0, 0, -1))


@pytest.mark.parametrize(
    ("coords", "dims", "why"),
    [
        ({}, ("z", "y", "x"), "coordinates along z are not evenly spaced"),
        ({}, ("depth", "lat", "lon"), "coordinates along depth are not"),
        (coordinates(y=("y", 2.0 ** np.arange(9))), ("z", "y", "x"), "coordinates along y are not"),
        (coordinates(x=("x", -np.arange(9.0))), ("z", "y", "x"), "coordinates along x are not"),
        (coordinates(z=("z", list("abcd"))), ("z", "y", "x"), "coordinates along z are not"),
    ],
)
def test_coordinates_that_are_no_lengths_say_nothing(coords: Any, dims: tuple[str, ...], why: str) -> None:
    """Then the voxel size is not known, and the reason is told."""
    volume = api.open_volume(xarray.DataArray(VOXELS, coords, dims))
    assert (volume.voxel_size, volume.unit) == (None, None)
    assert why in volume.missing


def test_lengths_in_several_units_are_those_of_one() -> None:
    """The unit of the last axis; where only some have a unit, the voxel size is not known."""
    other = ("x", 500.0 * np.arange(9) - 1000, {"units": "nm"})
    volume = api.open_volume(xarray.DataArray(VOXELS, coordinates(x=other), ("z", "y", "x")))
    assert (volume.voxel_size, volume.origin) == ((2000, 500, 500), (10_000, 0, -1000))
    assert volume.unit == "nanometer"
    bare = api.open_volume(xarray.DataArray(VOXELS, coordinates(x=("x", 0.5 * np.arange(9))), ("z", "y", "x")))
    assert (bare.voxel_size, bare.missing) == (None, "its coordinates along x name no unit of length, and others do")


def test_a_single_plane_of_a_stack_lies_where_its_coordinate_says() -> None:
    """As thick as its pixels are high, unless its thickness is given."""
    array = xarray.DataArray(VOXELS, coordinates(), ("z", "y", "x")).isel(z=[2])
    for given, size in ({}, (0.5, 0.5, 0.5)), ({"voxel_size": (2, 0.5, 0.5)}, (2, 0.5, 0.5)):
        volume = api.open_volume(array, **given)
        assert (volume.voxel_size, volume.origin, volume.unit) == (size, (14, 0, -1), "micrometer")


@pytest.mark.parametrize("dims", [("x", "y", "z"), ("z", "x", "y"), ("t", "z", "y", "x"), ("x",)])
def test_a_dataarray_in_another_order_is_refused(dims: tuple[str, ...]) -> None:
    """With what to write."""
    shape = (2, 3, 4, 5)[: len(dims)]
    with pytest.raises(InputError, match=r"has the dimensions .*transpose it, and select"):
        api.open_volume(xarray.DataArray(np.zeros(shape, np.uint8), dims=dims))
