"""One channel, one time point and one plane as volumes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr

import isovoxel
from command_line import Isovoxel, check_refused
from isovoxel.api import scale
from isovoxel.errors import InputError, OptionError
from isovoxel.geometry.grid import Box, VoxelGrid, factor_for_voxel_size, factor_for_zoom
from isovoxel.readers.base import Volume
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import Selection
from ome_zarrs import pyramid

DATA = np.random.default_rng(0).integers(0, 60_000, (3, 2, 5, 14, 17)).astype(np.uint16)
"""Time points, channels, z, y, x."""
PLANE = DATA[0, 0, 0]
PIXEL: dict[str, Any] = {
    "PhysicalSizeX": 0.25,
    "PhysicalSizeY": 0.5,
    "PhysicalSizeXUnit": "um",
    "PhysicalSizeYUnit": "um",
}


def voxels(volume: Volume) -> np.ndarray:
    """Return all voxels, read in two boxes."""
    z, y, x = volume.shape
    parts = [Box((0, 0, 0), (z, y // 2, x)), Box((0, y // 2, 0), (z, y, x))]
    return np.concatenate([volume.read(part) for part in parts], axis=1)


def check_all(path: Any) -> None:
    """Check every channel of every time point, and that no two of them are the same input."""
    identities = []
    for t, c in itertools.product(range(3), range(2)):
        volume = open_volume(path, selection=Selection(channel=c, time=t))
        np.testing.assert_array_equal(voxels(volume), DATA[t, c])
        identities.append(volume.identity)
        again = open_volume(path, selection=Selection.of_identity(volume.identity))
        assert again.identity == volume.identity
        assert set(volume.sources["axes"].split(", ")[1:]) == {f"channel {c}", f"time {t}"}
    assert len({str(identity) for identity in identities}) == 6


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["".join(order) for order in itertools.permutations("TCZ")])
def test_of_an_ome_tiff_in_any_order(order: str, compression: str | None, tmp_path: Path) -> None:
    """A page is where the OME-XML says, whichever axis runs fastest."""
    data = DATA.transpose([*("TCZ".index(axis) for axis in order), 3, 4])
    metadata = {"axes": f"{order}YX", "PhysicalSizeZ": 2.0, "PhysicalSizeZUnit": "um", **PIXEL}
    tifffile.imwrite(tmp_path / "a.tif", data, ome=True, metadata=metadata, compression=compression)
    check_all(tmp_path / "a.tif")
    assert open_volume(tmp_path / "a.tif", selection=Selection(channel=0, time=0)).voxel_size == (2.0, 0.5, 0.25)


def test_of_an_imagej_hyperstack(tmp_path: Path) -> None:
    """Whose order is time, z, channel."""
    data = DATA.transpose(0, 2, 1, 3, 4)
    metadata = {"axes": "TZCYX", "spacing": 2.0, "unit": "um"}
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, resolution=(4, 2), metadata=metadata)
    check_all(tmp_path / "a.tif")


def test_of_a_tiff_that_tifffile_shaped(tmp_path: Path) -> None:
    """By its own description."""
    tifffile.imwrite(tmp_path / "a.tif", DATA, metadata={"axes": "TCZYX"}, photometric="minisblack")
    check_all(tmp_path / "a.tif")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("chunks", [(1, 1, 4, 8, 8), (2, 2, 4, 8, 8)])
def test_of_an_ome_zarr(version: str, chunks: tuple[int, ...], tmp_path: Path) -> None:
    """Where a chunk holds several of them, that is noted."""
    path = pyramid(tmp_path / "a.zarr", [DATA], version, "tczyx", chunks)
    check_all(path)
    volume = open_volume(path, selection=Selection(channel=1, time=2))
    assert (volume.voxel_size, volume.unit) == ((2.0, 0.5, 0.5), "micrometer")
    several = "each of its chunks holds 4 volumes, which are all decoded for one"
    assert volume.notes == ((several,) if chunks[0] == 2 else ())


def test_of_a_sharded_array(tmp_path: Path) -> None:
    """Named axes are enough, and an array that the caller opened is as good as its path."""
    names = ("time", "channel", "z", "y", "x")
    options: Any = {"chunks": (1, 1, 2, 4, 4), "shards": (1, 1, 4, 8, 8), "dimension_names": names}
    array = zarr.create_array(tmp_path / "a.zarr", shape=DATA.shape, dtype=DATA.dtype, **options)
    array[...] = DATA
    check_all(tmp_path / "a.zarr")
    check_all(array)


def test_what_is_not_selected_of_planes_is_refused_with_the_options(isovoxel: Isovoxel, tmp_path: Path) -> None:
    """And what is selected must be there."""
    planes = pyramid(tmp_path / "planes.zarr", [DATA[:, :, 0]], axes="tcyx")
    check_refused(
        isovoxel("info", planes), "has 3 time points; give --time 0 to 2 and --channel 0 to 1 for one of them"
    )
    check_refused(isovoxel("info", planes, "--time", 1), "has 2 channels; give --channel 0 to 1 for one of them")
    path = pyramid(tmp_path / "a.zarr", [DATA], axes="tczyx")
    words = ("info", path, "--time", 1, "--channel")
    check_refused(isovoxel(*words, 2), "has 2 channels, counted from 0: give --channel 0 to 1, not 2")
    check_refused(isovoxel(*words, -1), "channel must be a whole number from 0 on, not -1")
    np.save(tmp_path / "a.npy", PLANE)
    check_refused(isovoxel("info", tmp_path / "a.npy", "--channel", 1), "selects no channels; leave out --channel")
    tifffile.imwrite(tmp_path / "a.tif", DATA[0, 0], photometric="minisblack")
    check_refused(
        isovoxel("info", tmp_path / "a.tif", "--channel", 1), "has 1 channel, counted from 0: give --channel 0"
    )
    assert isovoxel("info", tmp_path / "a.tif", "--channel", 0, "--time", 0).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tif", "zarr"])
def test_a_channel_is_scaled_verified_and_gone_on_with(kind: str, isovoxel: Isovoxel, tmp_path: Path) -> None:
    """As its voxels by themselves would be; the first one too is only one of them."""
    path, out = tmp_path / f"a.{kind}", tmp_path / "out.zarr"
    if kind == "zarr":
        pyramid(path, [DATA], axes="tczyx")
    else:
        metadata = {"axes": "TCZYX", "PhysicalSizeZ": 2.0, "PhysicalSizeZUnit": "um", **PIXEL}
        tifffile.imwrite(path, DATA, ome=True, metadata=metadata)
    words = ("scale", path, out, "--factor", "2,1,1", "--time", 1, "--engine", "exact")
    assert isovoxel(*words, "--channel", 0, "--crop", "1:,:,:").code == 0
    alone = scale(DATA[1, 0, 1:], tmp_path / "alone.zarr", factor=(2, 1, 1), engine="exact")
    np.testing.assert_array_equal(*(zarr.open_array(made / "0", mode="r")[:] for made in (out, Path(alone.path))))
    assert isovoxel("verify", out, "--samples", 50).code == 0
    assert "nothing was done" in isovoxel(*words, "--channel", 0, "--crop", "1:,:,:").out
    check_refused(isovoxel(*words, "--channel", 1, "--crop", "1:,:,:"), "channel 0, now 1")


# ---- single planes ---------------------------------------------------------------------------------------------


def flat(folder: Path, kind: str) -> Any:
    """Return a plane of pixels of 0.5 x 0.25, where the kind knows that, as an input of a kind."""
    path = folder / f"a.{kind}"
    match kind:
        case "numpy":
            return PLANE
        case "dask":
            return da.from_array(PLANE, chunks=8)
        case "npy" | "fortran.npy":
            np.save(path, PLANE if kind == "npy" else np.asfortranarray(PLANE))
        case "ome.tif":
            tifffile.imwrite(path, PLANE, ome=True, metadata={"axes": "YX", **PIXEL})
        case "imagej.tif":
            tifffile.imwrite(path, PLANE, imagej=True, resolution=(4, 2), metadata={"unit": "um"})
        case "plain.tif":
            options: Any = {"resolution": (4, 2), "resolutionunit": "CENTIMETER"}
            tifffile.imwrite(path, PLANE, photometric="minisblack", compression="zlib", **options)
        case "ome.zarr":
            pyramid(path, [PLANE], axes="yx")
        case _:
            options = {"dimension_names": ("y", "x")} if kind == "named.zarr" else {}
            zarr.create_array(path, shape=PLANE.shape, chunks=(4, 8), dtype=PLANE.dtype, **options)[...] = PLANE
    return path


KINDS = ["numpy", "dask", "npy", "fortran.npy", "ome.tif", "imagej.tif", "plain.tif", "ome.zarr", "named.zarr", "zarr"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", KINDS)
def test_a_plane_is_a_volume_of_one_plane(kind: str, tmp_path: Path) -> None:
    """As thick as its pixels are high, for nobody says more; what is made of it has z, y, x and one plane too."""
    source = flat(tmp_path, kind)
    volume = open_volume(source)
    assert volume.shape == (1, *PLANE.shape)
    np.testing.assert_array_equal(voxels(volume)[0], PLANE)
    size = {"ome.zarr": (0.5, 0.5, 0.5)}.get(kind, (0.5, 0.5, 0.25) if kind.endswith(".tif") else None)
    assert volume.voxel_size == (None if size is None else pytest.approx(size))
    given = (0.5, 0.5, 0.25) if size is None else None
    result = isovoxel.scale(source, tmp_path / "out.zarr", voxel_size=0.25, input_voxel_size=given)
    assert result.plan.output.shape == (1, 28, 34 if kind == "ome.zarr" else 17)
    assert result.plan.output.voxel_size == pytest.approx((0.5, 0.25, 0.25))
    assert zarr.open_array(result.path / "0", mode="r").shape == result.plan.output.shape
    yaozarrs.validate_zarr_store(str(result.path))
    assert isovoxel.verify(result.path, against=source, samples=50).holds


def test_one_of_several_channels_may_be_a_plane(tmp_path: Path) -> None:
    """Named as such; two planes in one file are not guessed between, and unnamed pages stay z."""
    tifffile.imwrite(tmp_path / "a.tif", DATA[0, :, 0], ome=True, metadata={"axes": "CYX"})
    volume = open_volume(tmp_path / "a.tif", selection=Selection(channel=1))
    np.testing.assert_array_equal(voxels(volume)[0], DATA[0, 1, 0])
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(PLANE, photometric="minisblack")
        writer.write(PLANE[:5], photometric="minisblack")
    with pytest.raises(InputError, match="holds 2 volumes"):
        open_volume(tmp_path / "b.tif")


def test_a_plane_stays_one_by_zoom_and_voxel_size() -> None:
    """Whatever its thickness; only a factor makes more of it, and the finest size is that in the plane."""
    grid = VoxelGrid((1, 20, 30), (0.1, 2.0, 1.0))
    assert factor_for_zoom(grid, 4.0) == (1.0, 8.0, 4.0)
    assert factor_for_voxel_size(grid, 0.5) == (1.0, 4.0, 2.0)
    plane = np.zeros((20, 30), "uint8")
    assert isovoxel.plan(plane, input_voxel_size=(0.1, 2.0, 1.0)).output.shape == (1, 40, 30)
    assert isovoxel.plan(plane, factor=(3, 1, 1)).output.shape == (3, 20, 30)
    assert isovoxel.limits(plane, input_voxel_size=(0.1, 2.0, 1.0)).fits(2)
    cut = isovoxel.plan(DATA[0, 0], input_voxel_size=(2.0, 0.5, 0.5), crop="2:3,:,:")
    assert cut.output.shape == (1, 14, 17)
    assert cut.output.origin == (4.0, 0.0, 0.0)


def test_a_number_of_a_channel_is_whole() -> None:
    """As are those of time points and levels."""
    with pytest.raises(OptionError, match="channel must be a whole number"):
        isovoxel.open_volume(PLANE, channel=1.5)  # type: ignore[arg-type]
