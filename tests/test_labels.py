"""Labels are moved, never mixed: from file to file, bit by bit, and an image of labels stays one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import ome_zarr_models.v05.image_label as models
import pytest
import yaozarrs
import zarr
from numpy.typing import NDArray
from yaozarrs import v05

import isovoxel
from isovoxel.errors import DeviceError, InputError, OptionError
from isovoxel.geometry.grid import Float3
from outputs import voxels_of

INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")


def labels(dtype: str = "uint64", shape: tuple[int, int, int] = (6, 20, 24)) -> NDArray[Any]:
    """Return boxes of a few labels: the dtype's smallest and largest, and neighbours that floats cannot tell apart."""
    info = np.iinfo(dtype)
    some = np.array([0, 1, 7, info.max, info.max - 1, info.min, info.min + 1, info.max // 2 + 1], dtype)
    coarse = np.random.default_rng(0).choice(some, tuple(-(-n // 3) for n in shape))
    return coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)[: shape[0], : shape[1], : shape[2]]


def nearest(data: NDArray[Any], factor: Float3) -> NDArray[Any]:
    """Return labels scaled: each voxel is that in whose cell its centre lies."""
    index = [
        np.minimum(np.floor((np.arange(max(1, round(n * f))) + 0.5) / f).astype(int), n - 1)
        for n, f in zip(data.shape, factor, strict=True)
    ]
    return data[np.ix_(*index)]


def write_label_image(path: Path, data: NDArray[Any], version: str) -> Path:
    """Write an OME-Zarr image of labels as others do."""
    multiscale = {
        "name": "cells",
        "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"],
        "datasets": [{"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": [2.0, 0.5, 0.5]}]}],
    }
    about = {"image-label": {"colors": [{"label-value": 1, "rgba": [255, 0, 0, 255]}]}}
    if version == "0.5":
        attributes: Any = {"ome": {"version": "0.5", "multiscales": [multiscale], **about}}
        names = {"dimension_names": ("z", "y", "x")}
    else:
        attributes = {"multiscales": [{**multiscale, "version": "0.4"}], **about}
        names = {}
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2, attributes=attributes)
    group.create_array("s0", data=data, chunks=(4, 10, 10), **names)
    return path


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", INTEGERS[::-1])
def test_every_bit_of_a_label_is_kept(tmp_path: Path, dtype: str) -> None:
    """From a file of integers of any size to another, in several blocks, labels are those of the nearest voxels."""
    data = labels(dtype)
    np.save(tmp_path / "in.npy", data)
    cut = {"chunk": (8, 8, 8), "shard": (8, 8, 8), "device_memory": 10_000 * data.itemsize}
    done = isovoxel.scale(tmp_path / "in.npy", tmp_path / "out.zarr", factor=(3.7, 1.3, 0.8), labels=True, **cut)
    assert done.plan.n_blocks > 1
    assert (done.plan.engine, done.plan.interpolation) == ("exact", "nearest")
    result = voxels_of(tmp_path / "out.zarr")
    assert result.dtype == data.dtype
    np.testing.assert_array_equal(result, nearest(data, (3.7, 1.3, 0.8)))
    assert isovoxel.verify(tmp_path / "out.zarr", samples=20).holds


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_image_of_labels_is_recognised_and_stays_one(tmp_path: Path, version: str) -> None:
    """Nobody has to say `--labels`; the result is an image of labels for yaozarrs, ome-zarr-models and isovoxel."""
    data = labels("uint32")
    source = isovoxel.open_volume(write_label_image(tmp_path / "cells.zarr", data, version))
    assert (source.labels, source.kind) == (True, f"OME-Zarr {version} label image")
    done = isovoxel.scale(source, tmp_path / "out.zarr")
    assert done.plan.interpolation == "nearest"
    np.testing.assert_array_equal(voxels_of(tmp_path / "out.zarr"), data.repeat(4, axis=0))

    yaozarrs.validate_zarr_store(tmp_path / "out.zarr")
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    ome: Any = group.attrs["ome"]
    assert v05.LabelImage.model_validate(ome).image_label is not None
    models.ImageLabel.from_zarr(group)
    again = isovoxel.open_volume(tmp_path / "out.zarr")
    assert (again.labels, again.voxel_size, again.unit) == (True, (0.5, 0.5, 0.5), "micrometer")


@pytest.mark.parametrize("inside", [True, False], ids=["labels", "an image"])
def test_only_labels_become_an_image_of_labels(tmp_path: Path, inside: bool) -> None:
    """What was said of the input is said of the output, and no more."""
    isovoxel.scale(labels("uint8"), tmp_path / "out.zarr", factor=(2, 1, 1), labels=inside, interpolation="nearest")
    assert isovoxel.open_volume(tmp_path / "out.zarr").labels is inside


def test_a_recognised_image_may_be_scaled_as_any_other(tmp_path: Path) -> None:
    """`labels=False` overrules what the file says, as where intensities are stored as if they were labels."""
    source = write_label_image(tmp_path / "cells.zarr", labels("uint8"), "0.5")
    planned = isovoxel.plan(source, labels=False)
    assert (planned.interpolation, planned.engine) == ("linear", "exact")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "uint64", "int64"])
def test_mode_takes_the_majority(tmp_path: Path, dtype: str) -> None:
    """Shrunk by 3, a voxel has the label that most of its 27 voxels have, though the one in the middle is another."""
    few, many = np.array([5, np.iinfo(dtype).max], dtype)
    data = np.full((9, 12, 15), many, dtype)
    data[1::3, 1::3, 1::3] = few
    np.save(tmp_path / "in.npy", data)
    factor = (1 / 3, 1 / 3, 1 / 3)
    for interpolation, label in (("nearest", few), ("mode", many)):
        done = isovoxel.scale(
            tmp_path / "in.npy",
            tmp_path / "out.zarr",
            factor=factor,
            labels=True,
            interpolation=interpolation,
            overwrite=True,
        )
        assert done.plan.engine == "exact"
        result = voxels_of(tmp_path / "out.zarr")
        assert result.shape == (3, 4, 5)
        assert (result == label).all()
        assert isovoxel.verify(tmp_path / "out.zarr", samples=5).holds


def test_no_kernel_for_labels_makes_new_ones() -> None:
    """Growing and shrinking, by nearest and by mode, the labels of the result are among those of the input."""
    data = labels("int64")
    for factor in ((2.3, 0.7, 1.9), (0.3, 0.4, 0.5)):
        for interpolation in ("nearest", "mode"):
            lazy = isovoxel.scale_array(
                da.from_array(data, chunks=(3, 9, 10)), factor, labels=True, interpolation=interpolation
            )
            assert set(np.unique(lazy.compute())) <= set(np.unique(data))


@pytest.mark.parametrize(
    ("dtype", "options", "error", "says"),
    [
        ("uint8", {"labels": True, "interpolation": "linear"}, OptionError, "labels must not be mixed"),
        ("uint8", {"labels": True, "interpolation": "cubic"}, OptionError, "use interpolation nearest, mode or smooth"),
        ("uint8", {"labels": True, "interpolation": "area"}, OptionError, "not area"),
        ("uint8", {"labels": True, "antialias": True}, OptionError, "not nearest"),
        ("float32", {"labels": True}, OptionError, "labels are integers, but the NumPy array holds float32"),
        ("float32", {"interpolation": "mode"}, OptionError, "leave out labels, mode and smooth"),
        ("uint64", {}, InputError, "holds uint64, which is scaled as labels only; give --labels, or convert it"),
        ("int64", {"interpolation": "cubic"}, InputError, "holds int64, which is scaled as labels only"),
        ("int64", {"labels": True, "engine": "cle"}, OptionError, "does not hold int64; use engine exact"),
        ("uint8", {"labels": True, "interpolation": "mode", "engine": "cle"}, OptionError, "engine exact has it"),
    ],
    ids=str,
)
def test_what_would_spoil_labels_is_refused(
    tmp_path: Path, dtype: str, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    """Before anything is written, with what would do instead; in a plan, a job and a dask graph alike."""
    data = np.ones((4, 8, 8), dtype)
    with pytest.raises(error, match=says):
        isovoxel.plan(data, factor=(2, 1, 1), **options)
    with pytest.raises(error, match=says):
        isovoxel.scale(data, tmp_path / "out.zarr", factor=(2, 1, 1), **options)
    with pytest.raises(error):
        isovoxel.scale_array(da.from_array(data), (2, 1, 1), **options)
    assert list(tmp_path.iterdir()) == []


def test_labels_of_32_bits_go_through_cle_too() -> None:
    """Who asks for cle gets it, and neighbours beyond 2^24 stay apart."""
    data = labels("uint32")
    lazy = isovoxel.scale_array(da.from_array(data), (2, 1, 1), labels=True, engine="cle")
    np.testing.assert_array_equal(lazy.compute(), data.repeat(2, axis=0))


def test_an_image_wrongly_called_labels_can_be_scaled_as_one(tmp_path: Path) -> None:
    """What the input says is overruled with labels=False (--no-labels), and the refusal without it says so."""
    source = write_label_image(tmp_path / "in.zarr", labels("uint16"), "0.5")
    with pytest.raises(OptionError, match=r"says that its voxels are labels \(--no-labels if not\)"):
        isovoxel.plan(source, zoom=1, interpolation="linear")
    assert isovoxel.plan(source, zoom=1, labels=False).interpolation == "linear"


def test_a_device_that_cannot_build_the_kernels_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device without float64, say, refuses integers of 32 bits with the engine exact, and no output is begun."""
    import pyopencl as cl

    def refuse(*_: Any, **__: Any) -> None:
        raise cl.RuntimeError("clBuildProgram failed: BUILD_PROGRAM_FAILURE")

    monkeypatch.setattr(cl.Program, "build", refuse)
    # A table width that no other test has, so that no kernel of it has been built.
    with pytest.raises(DeviceError, match=r"does not build the kernels of exact\.cl: clBuildProgram failed"):
        isovoxel.scale(
            labels("uint32", (40, 8, 8)),
            tmp_path / "out.zarr",
            factor=(1 / 19, 1, 1),
            interpolation="cubic",
            antialias=True,
        )
    assert not list(tmp_path.iterdir())
