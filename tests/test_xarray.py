"""xarray: what scaling keeps of a DataArray, and how a written OME-Zarr is opened with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import isovoxel
from isovoxel.dask_array import between
from isovoxel.errors import InputError
from isovoxel.geometry.grid import Axis, VoxelGrid

VOXELS = np.random.default_rng(0).integers(0, 60_000, (6, 10, 12)).astype(np.uint16)
SIZE = (2.0, 0.5, 0.25)
ORIGIN = (-1.0, 3.0, 0.0)


def stack() -> xarray.DataArray:
    """Return voxels with positions in micrometer, and coordinates of other kinds."""
    coordinates = {
        dim: (dim, o + size * np.arange(n), {"units": "um"})
        for dim, o, size, n in zip("zyx", ORIGIN, SIZE, VOXELS.shape, strict=True)
    }
    others = {"channel": "DAPI", "row": ("y", [f"r{i}" for i in range(10)]), "slide": (("y", "x"), VOXELS[0])}
    names = {"plane": ("z", [f"p{i}" for i in range(6)])}
    return xarray.DataArray(
        VOXELS, dims=("z", "y", "x"), coords=coordinates | others | names, name="nuclei", attrs={"a": 1}
    )


def test_names_attributes_and_dimensions_are_kept() -> None:
    """And the voxels are those of the bare array, not computed yet."""
    scaled = isovoxel.scale_array(stack(), (1.0, 2.0, 0.5), engine="exact")
    assert isinstance(scaled, xarray.DataArray)
    assert (scaled.dims, scaled.name, scaled.attrs) == (("z", "y", "x"), "nuclei", {"a": 1})
    assert isinstance(scaled.data, da.Array)
    bare = isovoxel.scale_array(da.from_array(VOXELS), (1.0, 2.0, 0.5), engine="exact")
    np.testing.assert_array_equal(scaled.values, bare.compute())


@given(factor=st.tuples(*[st.sampled_from([1.0, 2.0, 0.5, 1.3, 3.7])] * 3))
def test_coordinates_are_where_the_samples_are(factor: tuple[float, float, float]) -> None:
    """As the grid of an output has them: half a voxel of each size from the same outer face."""
    scaled = isovoxel.scale_array(stack(), factor, engine="exact")
    grid = VoxelGrid(VOXELS.shape, SIZE, ORIGIN).scaled(factor)
    for dim, o, size, n in zip("zyx", grid.origin, grid.voxel_size, grid.shape, strict=True):
        np.testing.assert_allclose(scaled[dim], o + size * np.arange(n), atol=1e-9)
        assert scaled[dim].attrs == {"units": "um"}


def test_what_has_no_place_between_samples_is_kept_where_nothing_changes() -> None:
    """Names of planes stay as long as the planes do; a coordinate of two axes stays while both do."""
    scaled = isovoxel.scale_array(stack(), (1.0, 2.0, 1.0), engine="exact")
    assert set(scaled.coords) == {"z", "y", "x", "channel", "plane"}
    assert list(scaled["plane"].values) == [f"p{i}" for i in range(6)]
    unchanged = isovoxel.scale_array(stack(), (2.0, 1.0, 1.0), engine="exact")
    assert set(unchanged.coords) == {"z", "y", "x", "channel", "row", "slide"}


@given(
    steps=st.lists(st.floats(0.1, 10), min_size=1, max_size=20), factor=st.floats(0.2, 5), first=st.floats(-100, 100)
)
def test_uneven_coordinates_grow_as_they_did(steps: list[float], factor: float, first: float) -> None:
    """NumPy's interpolation inside, and the outer steps beyond."""
    values = np.concatenate([[first], first + np.cumsum(steps)])
    n = len(values)
    axis = Axis(n, max(1, round(n * factor)), factor)
    found = between(values, axis)
    position = (np.arange(axis.m) + 0.5) / factor - 0.5
    inside = (position >= 0) & (position <= n - 1)
    np.testing.assert_allclose(found[inside], np.interp(position[inside], np.arange(n), values), rtol=1e-9, atol=1e-9)
    before, after = position < 0, position > n - 1
    np.testing.assert_allclose(found[before], values[0] + position[before] * steps[0], atol=1e-6)
    np.testing.assert_allclose(found[after], values[-1] + (position[after] - n + 1) * steps[-1], atol=1e-6)


def test_time_points_and_channels_are_selected_as_before() -> None:
    """By their dimensions' names; their coordinates are kept, and what is selected is all that is computed."""
    computed: list[tuple[int, ...]] = []

    def note(block: NDArray[np.uint16], block_id: tuple[int, ...]) -> NDArray[np.uint16]:
        computed.append(block_id)
        return block

    voxels = np.stack([[VOXELS, VOXELS + 1], [VOXELS + 2, VOXELS + 3], [VOXELS + 4, VOXELS + 5]])
    lazy = da.from_array(voxels, chunks=(1, 1, 3, 10, 12)).map_blocks(note, dtype=VOXELS.dtype, meta=voxels[:0])
    times = np.array(["2026-01-01", "2026-01-02", "2026-01-04"], "datetime64[ns]")
    coordinates = {"time": times, "channel": ["DAPI", "GFP"], "z": 2.0 * np.arange(6)}
    series = xarray.DataArray(lazy, dims=("time", "channel", "z", "y", "x"), coords=coordinates)
    scaled = isovoxel.scale_array(series, (4, 1, 1), engine="exact", chunks=(6, 10, 12))
    assert (scaled.dims, scaled.shape, computed) == (series.dims, (3, 2, 24, 10, 12), [])
    np.testing.assert_allclose(scaled.z, -0.75 + 0.5 * np.arange(24))
    found = scaled.sel(time="2026-01-04", channel="GFP").sel(z=-0.75, method="nearest").compute(scheduler="synchronous")
    assert computed == [(2, 1, 0, 0, 0)]
    np.testing.assert_array_equal(found, isovoxel.scale_array(voxels[2, 1], (4, 1, 1), engine="exact")[0])
    places = series.rename(time="place", channel="tile")
    assert isovoxel.scale_array(places, (2, 1, 1), engine="exact").dims == ("place", "tile", "z", "y", "x")
    with pytest.raises(InputError, match=r"the DataArray is 5-D; name its axes, such as axes='tczyx'"):
        isovoxel.scale_array(places.rename(z="depth"), (2, 1, 1))
    assert isovoxel.scale_array(places.rename(z="depth"), (2, 1, 1), axes="tczyx", engine="exact").shape[2] == 12


def test_other_orders_are_refused() -> None:
    """Where the names tell."""
    with pytest.raises(InputError, match=r"the dimensions x, y, z; give it transposed: array\.transpose"):
        isovoxel.scale_array(stack().transpose("x", "y", "z"), (1, 1, 2))
    assert isovoxel.scale_array(stack()[0], (1, 1, 2), engine="exact").dims == ("y", "x")
    named = isovoxel.scale_array(stack().rename(z="plane_number", y="v", x="u"), (2, 1, 1), engine="exact")
    assert named.dims == ("plane_number", "v", "u")


def test_a_written_image_opens_with_xarray(tmp_path: Path) -> None:
    """As the variable "0" of a group, its dimensions named; what isovoxel tells of it makes coordinates."""
    source = isovoxel.open_volume(VOXELS, voxel_size=SIZE, unit="um")
    result = isovoxel.scale(source, tmp_path / "a.zarr", factor=(2, 1, 1), engine="exact")
    with xarray.open_zarr(result.path, consolidated=False) as opened:
        image = opened["0"]
        assert image.dims == ("z", "y", "x")
        grid = isovoxel.open_volume(result.path).grid
        image = image.assign_coords(
            {
                d: o + s * np.arange(n)
                for d, o, s, n in zip(image.dims, grid.origin, grid.voxel_size, grid.shape, strict=True)
            }
        )
        assert image.shape == (12, 10, 12)
        assert image.sel(z=1.5, y=0, x=0, method="nearest") == image[2, 0, 0]
        np.testing.assert_allclose(image.z, -0.5 + np.arange(12))


@pytest.mark.parametrize("size", [None, SIZE])
@pytest.mark.parametrize("lost", ["input", "like"])
def test_what_says_in_vain_where_it_lies_is_put_nowhere(size: Any, lost: str) -> None:
    """Not to 0 in silence, with a voxel size given or not; what the error advises helps."""
    bare = stack().drop_attrs().drop_vars(["row", "slide", "plane"])
    fallen = bare.isel(z=slice(None, None, -1))
    array, like = (fallen, bare) if lost == "input" else (bare, fallen)
    with pytest.raises(InputError, match=r"lies is not known: its coordinates along z are not.*sortby.*drop_vars"):
        isovoxel.scale_array(array, like=like, voxel_size=size)
    sorted_again = isovoxel.scale_array(array.sortby("z"), like=like.sortby("z"))
    np.testing.assert_array_equal(sorted_again.values, VOXELS)
    left_out = isovoxel.scale_array(array.drop_vars(list("zyx")), like=like.drop_vars(list("zyx")))
    np.testing.assert_array_equal(left_out.values, array.values)


def test_a_voxel_size_without_a_place_is_noted() -> None:
    """Where coordinates do not say it in a way that is read."""
    volume = isovoxel.open_volume(stack().isel(y=slice(None, None, -1)), voxel_size=SIZE)
    assert any("along y are not evenly spaced" in note and "lie at 0" in note for note in volume.notes)
