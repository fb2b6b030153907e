"""The demo's stack is the same each time, is like microscopy in its numbers, and reads as Fiji's files do."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from command_line import Isovoxel
from isovoxel import demo
from isovoxel.engines.clesperanto import clesperanto
from isovoxel.errors import OutputError
from isovoxel.output.provenance import read_provenance


@pytest.fixture
def stack(blastocyst: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return blastocyst


def autocorrelation(values: NDArray[np.float64], axis: int, lag: int) -> float:
    """Return the mean product of values that lie `lag` samples apart."""
    n = values.shape[axis]
    a, b = np.take(values, range(n - lag), axis), np.take(values, range(lag, n), axis)
    return float((a * b).mean())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_stack(stack: NDArray[np.uint8]) -> None:
    """Two calls agree in every voxel, another seed does not."""
    small = (12, 60, 50)
    np.testing.assert_array_equal(demo.blastocyst(small), demo.blastocyst(small))
    assert not np.array_equal(demo.blastocyst(small), demo.blastocyst(small, seed=21))
    assert stack.shape == (86, 396, 393)
    assert stack.dtype == np.uint8


def test_it_has_nuclei_on_dark_ground(stack: NDArray[np.uint8]) -> None:
    """A few percent of the voxels are bright, hardly any saturated, and the background is dark, not empty."""
    assert 0.02 < (stack > 40).mean() < 0.2
    assert (stack == 255).mean() < 1e-4
    assert np.percentile(stack, 99.9) > 90
    assert 3 < np.median(stack) < 15


def test_the_embryo_is_hollow_and_inside(stack: NDArray[np.uint8]) -> None:
    """The stack's rim holds no nucleus, the shell many, the cavity opposite the inner mass hardly any."""
    faces = [stack[[0, -1]], stack[:, [0, -1]], stack[:, :, [0, -1]]]
    assert all(face.mean() < 12 for face in faces)
    z, y, x = np.ogrid[-1:1:86j, -1:1:396j, -1:1:393j]
    radius = np.sqrt(z**2 + y**2 + x**2)
    shell, cavity = (radius > 0.7) & (radius < 0.85), (radius < 0.5) & (y + z < -0.2)
    assert (stack[shell] > 40).mean() > 5 * (stack[cavity] > 40).mean()


def test_background_is_photon_noise(stack: NDArray[np.uint8]) -> None:
    """Far from the embryo the variance equals the mean, as photons have it."""
    corner = stack[:8, :60, :60].astype(float)
    assert corner.var() == pytest.approx(corner.mean(), rel=0.03)


def test_blur_is_longer_along_z(stack: NDArray[np.uint8]) -> None:
    """At 4 micrometers a nucleus' own light is more alike along z than within a plane."""
    light = stack.astype(float) - stack.mean()
    along_z = autocorrelation(light, 0, 4)
    within = (autocorrelation(light, 1, 20) + autocorrelation(light, 2, 20)) / 2
    assert along_z > 1.1 * within


def test_depth_dims(stack: NDArray[np.uint8]) -> None:
    """Nuclei of the far shell are dimmer than those of the near one."""
    assert np.percentile(stack[60:75], 99) < 0.8 * np.percentile(stack[10:25], 99)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 200, 5)])
def test_any_shape_works(shape: tuple[int, int, int]) -> None:
    """A stack of one voxel, or a thin one, is made as well."""
    assert demo.blastocyst(shape, (2.0, 0.3, 0.3)).shape == shape


def test_memory_is_little_more_than_the_stack() -> None:
    """Beside its result it holds nuclei, not volumes of float32 or float64."""
    tracemalloc.start()
    result = demo.blastocyst((43, 198, 196))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - result.nbytes < 5 * result.nbytes


@pytest.mark.slow
def test_the_file_reads_as_one_of_fijis(tmp_path: Path, stack: NDArray[np.uint8]) -> None:
    """An ImageJ TIFF, big-endian, with spacing, unit and resolution; nothing else is left beside it."""
    path = tmp_path / "blastocyst.tif"
    demo.write_blastocyst(path)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_imagej
        assert tiff.byteorder == ">"
        assert tiff.series[0].axes == "ZYX"
        metadata = tiff.imagej_metadata
        assert metadata is not None
        assert (metadata["slices"], metadata["spacing"], metadata["unit"]) == (86, 1.0, "micron")
        for tag in ("XResolution", "YResolution"):
            numerator, denominator = tiff.pages.first.tags[tag].value
            assert denominator / numerator == pytest.approx(0.202, rel=1e-9)
        np.testing.assert_array_equal(tiff.asarray(), stack)
    assert [p.name for p in tmp_path.iterdir()] == ["blastocyst.tif"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full no part of the file is left; one that is there is another's, or the same."""
    path = tmp_path / "blastocyst.tif"

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "blastocyst", lambda: np.zeros((2, 3, 4), np.uint8))
    with monkeypatch.context() as patch:
        patch.setattr("isovoxel.object_store.files.sync_folder", full)
        patch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match=r"blastocyst\.tif cannot be written: No space left"):
            demo.write_blastocyst(path)
    assert not list(tmp_path.iterdir())
    demo.write_blastocyst(path)
    before = path.stat().st_mtime_ns
    demo.write_blastocyst(path)
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists and is not what the demo makes here; give another folder"):
        demo.write_blastocyst(path)
    assert path.read_bytes() == b"old"


@pytest.mark.usefixtures("_made_before")
def test_demo_does_all_of_it(isovoxel: Isovoxel, tmp_path: Path) -> None:
    """It shows each command that it runs, by cle and which, and ends with an isotropic result and a picture of it."""
    said = isovoxel("demo", tmp_path / "demo")
    assert said.code == 0
    for command in ("devices", "info", "limits", "plan", "scale"):
        assert f"\n$ isovoxel {command}" in said.out
    result = zarr.open_group(tmp_path / "demo" / "isotropic.zarr", mode="r")["0"]
    assert isinstance(result, zarr.Array)
    assert (result.shape, result.dtype) == ((172, 160, 159), np.dtype("uint8"))
    found = clesperanto()
    assert "--engine cle" in said.out
    assert f"cle of {found.package} {found.version} on " in said.out
    assert read_provenance(tmp_path / "demo" / "isotropic.zarr")["engine"] == "cle"
    picture = tmp_path / "demo" / "before_after.png"
    assert said.out.rstrip().endswith(str(picture))
    with Image.open(picture) as image:
        assert image.format == "PNG"
