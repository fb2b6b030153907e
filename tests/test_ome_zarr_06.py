"""OME-Zarr 0.6, which is still being made (RFC-5): read and written as independent readers have it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from command_line import Isovoxel, check_refused
from independent_readers import library
from isovoxel.errors import InputError
from isovoxel.geometry.grid import Box
from isovoxel.metadata.ome import read_levels
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import Selection

STACK = np.random.default_rng(0).integers(0, 60_000, (2, 3, 5, 30, 36)).astype("uint16")
AXES = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
SCALE = {"type": "scale", "scale": [2.0, 0.5, 0.5]}
MOVED = {"type": "translation", "translation": [1.0, 0.0, -3.0]}


def image(*transforms: dict[str, Any], version: str = "0.6.dev4", **changes: Any) -> dict[str, Any]:
    """Return the attributes of an image of one level."""
    one = {"input": {"path": "0"}, "output": {"name": "physical"}}
    how = transforms[0] if len(transforms) == 1 else {"type": "sequence", "transformations": list(transforms)}
    multiscale = {
        "coordinateSystems": [{"name": "physical", "axes": AXES}],
        "datasets": [{"path": "0", "coordinateTransformations": [{**one, **how}]}],
    }
    return {"ome": {"version": version, "multiscales": [{**multiscale, **changes}]}}


@pytest.mark.parametrize("version", ["0.6", "0.6.dev3", "0.6.dev4"])
def test_scale_and_translation_are_read(version: str) -> None:
    """Alone, in a sequence, or left out; an earlier state has the name of the system alone."""
    for transforms, scale, translation in (
        ((SCALE,), (2, 0.5, 0.5), (0, 0, 0)),
        ((SCALE, MOVED), (2, 0.5, 0.5), (1, 0, -3)),
        (({"type": "identity"},), (1, 1, 1), (0, 0, 0)),
        (({**SCALE, "output": "physical"},), (2, 0.5, 0.5), (0, 0, 0)),
    ):
        (level,) = read_levels(image(*transforms, version=version), "a.zarr")
        assert (level.version, level.scale, level.translation, level.note) == ("0.6", scale, translation, "")
        assert (level.axes, level.units) == (("z", "y", "x"), ("micrometer",) * 3)


def test_other_coordinate_systems_are_told_of() -> None:
    """Their transforms are not applied."""
    systems = [{"name": "physical", "axes": AXES}, {"name": "world", "axes": AXES}]
    turned = [{"type": "rotation", "input": {"name": "physical"}, "output": {"name": "world"}}]
    (level,) = read_levels(image(SCALE, coordinateSystems=systems, coordinateTransformations=turned), "a.zarr")
    assert level.note == "its voxels lie in the coordinate system 'physical'; others are not regarded"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (image({"type": "affine", "affine": [[1, 0, 0, 0]] * 3}), "must be scale and translation, not 'affine'"),
        (image(SCALE, {"type": "rotation"}), "must be scale and translation, not 'rotation'"),
        (image(MOVED, SCALE), "has a translation before the scale"),
        (
            image({"type": "scale", "path": "scales"}),
            "the scale must be a list of 3 numbers, one per axis, not nothing",
        ),
        (image({"type": "sequence", "transformations": 5}), "must be a list, not 5"),
        (image({**SCALE, "output": {"name": "world"}}), "do not all lead to one of its coordinateSystems"),
        (image(SCALE, coordinateSystems=None), "coordinateSystems must be a list of objects, not nothing"),
        (image(SCALE, datasets=[{"path": "0"}]), "of level 0 must be a list of one object"),
        (image(SCALE, datasets=[]), "do not all lead to one"),
        (image(SCALE, version="0.7"), "says that its OME-Zarr version is '0.7'; isovoxel reads 0.4, and 0.5 and 0.6"),
        (image(SCALE, version="0.60"), "says that its OME-Zarr version is '0.60'"),
    ],
)
def test_what_is_not_read_is_named(attributes: dict[str, Any], message: str) -> None:
    """In one sentence."""
    with pytest.raises(InputError, match=message):
        read_levels(attributes, "a.zarr")


@pytest.mark.slow
def test_what_is_written_is_what_others_read(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """By ome-zarr-models and by ngff-zarr, all levels, with channels and time points; labels beside it."""
    np.save(tmp_path / "a.npy", STACK)
    np.save(tmp_path / "labels.npy", STACK[0, 0] // 20_000)
    words = [tmp_path / "a.npy", tmp_path / "out.zarr", "--axes", "tczyx", "--input-voxel-size", "2,0.5,0.5"]
    words += ["--unit", "um", "--engine", "exact", "--levels", 1]
    assert isovoxel("scale", *words, "--ome-zarr", "0.6").code == 0
    assert isovoxel("verify", tmp_path / "out.zarr", "--samples", 50).code == 0
    assert "nothing was done" in isovoxel("scale", *words, "--ome-zarr", "0.6").out
    check_refused(isovoxel("scale", *words, "--ome-zarr", "0.5"), "was made with OME-Zarr version 0.6, now 0.5")
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    models = library("ome_zarr_models.v06.image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the state of 0.6
        read = models.Image.from_zarr(group).attributes.ome.multiscales[0]
    assert [one.path for one in read.datasets] == ["0", "1"]
    seen = library("ngff_zarr").from_ngff_zarr(str(tmp_path / "out.zarr"))
    for level, one in enumerate(seen.images):
        volume = open_volume(tmp_path / "out.zarr", selection=Selection(level=level))
        assert volume.kind == "OME-Zarr 0.6"
        assert tuple(one.scale[axis] for axis in "zyx") == volume.voxel_size
        assert tuple(one.translation[axis] for axis in "zyx") == volume.origin
        for which, (t, c) in enumerate(np.ndindex(2, 3)):
            found = volume.read(Box.whole(volume.shape).of(which))
            np.testing.assert_array_equal(found, np.asarray(one.data[t, c]))
    labels = [tmp_path / "labels.npy", tmp_path / "out.zarr/labels/cells", "--labels", *words[4:]]
    assert isovoxel("scale", *labels, "--ome-zarr", "0.6").code == 0
    assert zarr.open_group(tmp_path / "out.zarr/labels", mode="r").attrs["ome"] == {
        "version": "0.6.dev4",
        "labels": ["cells"],
    }
    assert open_volume(tmp_path / "out.zarr/labels/cells").labels
