"""OME-Zarr and zarr arrays whose axes are in another order, read as z, y, x."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import isovoxel
from isovoxel.errors import CorruptInputError, InputError
from isovoxel.geometry.grid import Box
from isovoxel.readers import base
from isovoxel.readers.open import open_volume
from peaks import least_peak

DATA = np.random.default_rng(5).integers(0, 60_000, (6, 24, 32), "u2")
SIZES = {"t": 1.0, "c": 1.0, "z": 2.0, "y": 0.5, "x": 0.25}


def image(path: Path, axes: str, data: NDArray[Any], version: str = "0.4", **options: Any) -> Path:
    """Write an OME-Zarr whose array has these axes; `data` is in this order."""
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    options = {"chunks": tuple(min(n, 7) for n in data.shape), **options}
    group.create_array("0", data=data, **options)
    kinds = {"t": "time", "c": "channel"}
    scale = {"type": "scale", "scale": [SIZES[axis] for axis in axes]}
    units = {axis: {"unit": "micrometer"} for axis in "zyx"}
    multiscale = {
        "axes": [{"name": axis, "type": kinds.get(axis, "space"), **units.get(axis, {})} for axis in axes],
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
    if version == "0.5":
        group.attrs["ome"] = {"version": version, "multiscales": [multiscale]}
    else:
        group.attrs["multiscales"] = [{**multiscale, "version": version}]
    return path


@pytest.mark.parametrize("axes", ["".join(order) for order in permutations("zyx")])
def test_any_order_is_read_as_zyx(axes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Voxels as NumPy transposes them, sizes with their axes, chunks likewise; shards too."""
    monkeypatch.setattr(base, "PART_BYTES", 500)
    stored = DATA.transpose(["zyx".index(axis) for axis in axes])
    shard = {"chunks": tuple(n // 2 for n in stored.shape), "shards": stored.shape}
    for path in (
        image(tmp_path / "a.zarr", axes, stored),
        image(tmp_path / "b.zarr", axes, stored, "0.5", **shard),
    ):
        volume = open_volume(path)
        assert (volume.shape, volume.voxel_size, volume.unit) == (DATA.shape, (2.0, 0.5, 0.25), "micrometer")
        if path.name == "a.zarr":
            assert volume.chunks == (6, 7, 7)
        for box in (Box.whole(DATA.shape), Box((1, 5, 3), (5, 23, 31)), Box((3, 3, 3), (4, 4, 4))):
            np.testing.assert_array_equal(volume.read(box), DATA[box.slices])
            assert volume.cached is not None
            np.testing.assert_array_equal(volume.cached(1 << 20)(box), DATA[box.slices])
        assert any("turned into z, y, x" in note for note in volume.notes) == (axes != "zyx")


@pytest.mark.parametrize("axes", ["tcxyz", "xyzct", "xy"])
def test_series_and_planes_are_turned_too(axes: str, tmp_path: Path) -> None:
    """Channels and time points stay what they are; a plane is turned as well."""
    full = np.random.default_rng(6).integers(0, 255, (2, 3, 6, 24, 32), "u1")
    index = tuple(slice(None) if axis in axes else 0 for axis in "tczyx")
    left = [axis for axis in "tczyx" if axis in axes]
    path = image(tmp_path / "a.zarr", axes, full[index].transpose([left.index(axis) for axis in axes]))
    for time in range(2 if "t" in axes else 1):
        for channel in range(3 if "c" in axes else 1):
            chosen = {**({"time": time} if "t" in axes else {}), **({"channel": channel} if "c" in axes else {})}
            volume = isovoxel.open_volume(path, **chosen)
            expected = full[time, channel] if "z" in axes else full[time, channel, :1]
            np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), expected)
    every = open_volume(path)
    assert every.n_volumes == (2 if "t" in axes else 1) * (3 if "c" in axes else 1)
    last = every.read(Box.whole(every.shape).of(every.n_volumes - 1))
    np.testing.assert_array_equal(last, full[1 if "t" in axes else 0, 2 if "c" in axes else 0][: len(last)])


def test_axes_that_are_named_may_be_in_any_order(tmp_path: Path) -> None:
    """Of a zarr array, by its own names or by --axes."""
    zarr.create_array(tmp_path / "a", data=DATA.T.copy(), chunks=(8, 8, 3))
    zarr.create_array(tmp_path / "b", data=DATA.T.copy(), chunks=(8, 8, 3), dimension_names=["x", "y", "z"])
    for volume in (isovoxel.open_volume(tmp_path / "a", axes="xyz"), open_volume(tmp_path / "b")):
        np.testing.assert_array_equal(volume.read(Box.whole(DATA.shape)), DATA)


def test_a_refusal_has_the_names_of_the_axes(tmp_path: Path) -> None:
    """Not those that the axes get."""
    zarr.create_array(tmp_path / "a", data=DATA.T[..., None].repeat(3, -1), dimension_names=["x", "y", "z", "s"])
    with pytest.raises(InputError, match=r"3 colour samples.* found are the axes x 32, y 24, z 6, s 3"):
        open_volume(tmp_path / "a")


def test_a_volume_in_another_order_is_scaled_alike(tmp_path: Path) -> None:
    """The same voxels as of the volume in z, y, x, and verified."""
    isovoxel.scale(image(tmp_path / "a.zarr", "xyz", DATA.T.copy()), tmp_path / "a2.zarr")
    isovoxel.scale(image(tmp_path / "b.zarr", "zyx", DATA), tmp_path / "b2.zarr")
    a, b = (zarr.open_array(tmp_path / f"{name}2.zarr" / "0", mode="r")[...] for name in "ab")
    np.testing.assert_array_equal(a, b)
    assert isovoxel.verify(tmp_path / "a2.zarr", samples=50).holds


def test_damage_is_told_as_zyx(tmp_path: Path) -> None:
    """The voxels that a damaged chunk holds."""
    path = image(tmp_path / "a.zarr", "xyz", DATA.T.copy(), chunks=(8, 6, 3))
    (path / "0" / "1.2.0").write_bytes(b"no chunk")
    with pytest.raises(CorruptInputError) as raised:
        open_volume(path).read(Box.whole(DATA.shape))
    assert (raised.value.start, raised.value.stop) == ((0, 12, 8), (3, 18, 16))


def test_what_is_held_does_not_grow_with_the_box(tmp_path: Path) -> None:
    """Beside the result, parts of a megabyte."""
    data = np.zeros((300, 300, 40), "u2")
    volume = open_volume(image(tmp_path / "a.zarr", "xyz", data, chunks=(64, 64, 40)))
    found, peak = least_peak(lambda: volume.read(Box.whole(volume.shape)), lambda f: f.nbytes + volume.read_overhead)
    assert peak <= found.nbytes + volume.read_overhead + (1 << 16)


def test_files_of_a_box_are_those_of_its_chunks(tmp_path: Path) -> None:
    """Counted as they are stored."""
    volume = open_volume(image(tmp_path / "a.zarr", "xyz", DATA.T.copy(), chunks=(8, 6, 3)))
    assert volume.files is not None
    names = {str(path).rsplit("/", 1)[-1] for path in volume.files(Box((0, 12, 8), (3, 18, 16)))}
    assert {name for name in names if name[0].isdigit()} == {"1.2.0"}
