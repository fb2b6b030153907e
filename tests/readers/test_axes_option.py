"""Axes that the user names, where an input does not: every kind that has some without names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from command_line import Isovoxel, check_refused
from isovoxel import api
from isovoxel.errors import InputError, OptionError
from isovoxel.geometry.grid import Box

VOXELS = np.random.default_rng(0).integers(0, 250, (2, 3, 4, 6, 7)).astype("uint8")
"""Time points, channels, z, y, x."""


def _zarr(folder: Path, array: NDArray[Any], zarr_format: Any = 3) -> Any:
    zarr.create_array(folder / "a.zarr", data=array, chunks=(2,) * array.ndim, zarr_format=zarr_format)
    return folder / "a.zarr"


def _npy(folder: Path, array: NDArray[Any]) -> Any:
    np.save(folder / "a.npy", array)
    return folder / "a.npy"


def _tiff(folder: Path, array: NDArray[Any]) -> Any:
    tifffile.imwrite(folder / "a.tif", array, photometric="minisblack")
    return folder / "a.tif"


def _hdf5(folder: Path, array: NDArray[Any]) -> Any:
    with h5py.File(folder / "a.h5", "w") as file:
        file["a"] = array
    return folder / "a.h5"


KINDS: dict[str, Callable[[Path, NDArray[Any]], Any]] = {
    "zarr v3": _zarr,
    "zarr v2": lambda folder, array: _zarr(folder, array, 2),
    "a zarr array": lambda folder, array: zarr.open_array(_zarr(folder, array), mode="r"),
    "npy": _npy,
    "TIFF": _tiff,
    "HDF5": _hdf5,
    "NumPy": lambda _folder, array: array,
    "dask": lambda _folder, array: da.from_array(array, chunks=2),
}
SEVERAL = [kind for kind in KINDS if kind != "HDF5"]
"""Kinds of which several volumes are read."""


def read(volume: Any) -> NDArray[Any]:
    """Return all voxels, of all volumes one after the other."""
    n = volume.n_volumes
    return np.stack([volume.read(Box.whole(volume.shape).of(i)) for i in range(n)])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", SEVERAL)
def test_five_axes_are_what_the_user_says(tmp_path: Path, kind: str) -> None:
    """Time points and channels make a series, or one of them is selected; whichever comes first."""
    source = KINDS[kind](tmp_path, VOXELS)
    volume = api.open_volume(source, axes="TCZYX")
    assert [(axis.name, axis.length) for axis in volume.series] == [("t", 2), ("c", 3)]
    np.testing.assert_array_equal(read(volume), VOXELS.reshape(6, 4, 6, 7))
    assert volume.sources["axes"].startswith("given by the caller")
    other = api.open_volume(source, axes="ctzyx")
    assert [(axis.name, axis.length) for axis in other.series] == [("t", 3), ("c", 2)]
    np.testing.assert_array_equal(read(other), VOXELS.swapaxes(0, 1).reshape(6, 4, 6, 7))
    one = api.open_volume(source, axes="tczyx", time=1, channel=2)
    np.testing.assert_array_equal(read(one)[0], VOXELS[1, 2])
    assert len({str(v.identity) for v in (volume, other, one)}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_axes_of_one_entry_are_dropped(tmp_path: Path, kind: str) -> None:
    """Of HDF5 too, of which several volumes are refused."""
    volume = api.open_volume(KINDS[kind](tmp_path, VOXELS[:1, :1]), axes="tczyx")
    np.testing.assert_array_equal(read(volume)[0], VOXELS[0, 0])


@pytest.mark.parametrize("kind", SEVERAL)
def test_three_axes_may_be_other_ones(tmp_path: Path, kind: str) -> None:
    """Pages that are channels, of one plane each, one of which is selected."""
    source = KINDS[kind](tmp_path, VOXELS[0, 0])
    np.testing.assert_array_equal(read(api.open_volume(source))[0], VOXELS[0, 0])
    plane = api.open_volume(source, axes="cyx", channel=1)
    np.testing.assert_array_equal(read(plane)[0], VOXELS[0, 0, 1:2])


def test_planes_of_other_axes_between(tmp_path: Path) -> None:
    """Channels may lie between z and y in a .npy, in Fortran's order too; within the planes they are refused."""
    between = VOXELS[0].swapaxes(0, 1)
    np.testing.assert_array_equal(read(api.open_volume(_npy(tmp_path, between), axes="zcyx")), VOXELS[0])
    last = np.moveaxis(VOXELS[0], 0, -1)
    np.testing.assert_array_equal(
        read(api.open_volume(_npy(tmp_path, np.asfortranarray(last)), axes="zyxc")), VOXELS[0]
    )
    for array, axes in ((np.ascontiguousarray(last), "zyxc"), (np.asfortranarray(VOXELS[0]), "czyx")):
        with pytest.raises(
            InputError, match=r"has other voxels between those of a plane .*; save its channels one after"
        ):
            api.open_volume(_npy(tmp_path, array), axes=axes)


@pytest.mark.parametrize("kind", KINDS)
def test_who_has_many_axes_is_told_to_name_them(tmp_path: Path, kind: str) -> None:
    """By the option that does it."""
    with pytest.raises(InputError, match="name them with --axes, such as --axes tczyx"):
        api.open_volume(KINDS[kind](tmp_path, VOXELS))


@pytest.mark.parametrize("axes", ["", "abc", "zzyx", "tcz", "z,y,x", 5, "tczyxs"])
def test_names_that_are_none_are_refused(axes: Any) -> None:
    """Each axis has one letter, and y and x are there."""
    with pytest.raises(OptionError, match="axes must name each axis of the input once, by the letters t, c, z, y, x"):
        api.open_volume(VOXELS, axes=axes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_number_of_names_is_refused(tmp_path: Path, kind: str) -> None:
    """With the lengths of the axes that are there."""
    with pytest.raises(OptionError, match=r"has 5 axes \(2 x 3 x 4 x 6 x 7\), but --axes zyx names 3"):
        api.open_volume(KINDS[kind](tmp_path, VOXELS), axes="zyx")


@pytest.mark.slow
def test_a_job_is_done_and_verified(isovoxel: Isovoxel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line, a job file or the environment; other names are another input."""
    monkeypatch.chdir(tmp_path)
    _zarr(tmp_path, VOXELS)
    words = ["a.zarr", "out.zarr", "--factor", "2,1,1", "--levels", 0]
    assert isovoxel("plan", *words, "--axes", "tczyx", "--save", "job.toml").code == 0
    assert isovoxel("scale", "--config", "job.toml").code == 0
    assert isovoxel("verify", "out.zarr", "--samples", 50).code == 0
    assert "nothing was done" in isovoxel("scale", *words, "--axes", "tczyx").out
    check_refused(isovoxel("scale", *words, "--axes", "ctzyx"), "was made with axes tczyx, now ctzyx")
    monkeypatch.setenv("ISOVOXEL_AXES", "tczyx")
    assert isovoxel("info", "a.zarr", "--json").json["series"] == {"t": 2, "c": 3}
    check_refused(isovoxel("info", "out.zarr"), "is of a kind that names its axes itself; leave out --axes")
