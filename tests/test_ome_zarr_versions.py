"""Outputs of OME-Zarr 0.4 and 0.6: what one of 0.5 is, voxel by voxel, as independent readers have it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v04 as models
import pytest
import tifffile
import xarray
import yaozarrs
import zarr
from numpy.typing import NDArray

import isovoxel as package
from command_line import Isovoxel, check_refused
from independent_readers import library
from isovoxel.errors import InputError, JobError, OutputExistsError
from isovoxel.execution.output import OutputState
from isovoxel.geometry.grid import Box
from isovoxel.metadata.ome import image_attributes, read_levels
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output.ledger import ledger_of
from isovoxel.output.provenance import read_provenance
from isovoxel.planning.chunking import CODECS
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import Selection
from small_jobs import stop_after
from store_server import Server, contents

VOXELS = np.random.default_rng(4).integers(1, 2**16, (16, 25, 35)).astype(np.uint16)
OPTIONS: dict[str, Any] = {
    "factor": (2.0, 1.3, 1.0),
    "chunk": (8, 8, 8),
    "input_voxel_size": (2.0, 1.3, 1.0),
    "unit": "micrometer",
    "threads": 2,
}


def voxels(output: Path | str, level: str = "0", zarr_format: int = 2) -> NDArray[Any]:
    """Return what zarr-python reads of a level."""
    array: Any = zarr.open_array(Path(output) / level, mode="r", zarr_format=zarr_format)
    return np.asarray(array[...])


def check_valid(output: Path, *, labels: bool = False) -> None:
    """Let two libraries judge."""
    yaozarrs.validate_zarr_store(str(output))
    group = zarr.open_group(output, mode="r", zarr_format=2)
    kind = models.ImageLabel if labels else models.Image
    kind.from_zarr(group)


def both(source: Any, tmp_path: Path, **options: Any) -> tuple[Path, Path]:
    """Make an output of each version, and check that their levels hold the same voxels."""
    new, old = tmp_path / "new.zarr", tmp_path / "old.zarr"
    # With shards of one chunk the blocks are the same, on which the bits of cle depend.
    package.scale(source, new, **OPTIONS | {"shard": OPTIONS["chunk"]} | options)
    done = package.scale(source, old, ome_zarr="0.4", **OPTIONS | options)
    for level in range(len(done.plan.levels)):
        np.testing.assert_array_equal(voxels(old, str(level)), voxels(new, str(level), 3))
    return new, old


@pytest.mark.sampled(1)
@pytest.mark.parametrize("engine", ["cle", "exact"])
@pytest.mark.parametrize("codec", CODECS)
def test_the_same_voxels_in_the_other_format(source: Path, tmp_path: Path, engine: str, codec: str) -> None:
    """Both engines and all codecs, in blocks that chunks do not divide; valid, open again, and verified."""
    new, old = both(source, tmp_path, engine=engine, codec=codec, levels=2, device_memory="300kB")
    check_valid(old)
    again, as_new = package.open_volume(old), package.open_volume(new)
    assert again.kind == "OME-Zarr 0.4"
    assert again.grid == as_new.grid
    assert [level().grid for level in again.coarser] == [level().grid for level in as_new.coarser]
    assert package.verify(old, samples=60).holds
    assert package.verify(old, samples=60).levels == 3
    assert package.output_state(old) == OutputState(complete=True)
    assert list(tmp_path.glob("*.isovoxel")) == []


def test_what_the_files_are(source: Path, tmp_path: Path) -> None:
    """Metadata of zarr v2 and nothing else, and a file for each chunk, those at the rim and, if asked, of zeros too."""
    np.save(source, VOXELS * (np.arange(35) < 8))
    _, old = both(source, tmp_path, engine="exact", codec="none", levels=0, empty="write")
    array = json.loads((old / "0" / ".zarray").read_text())
    assert array == {
        "zarr_format": 2,
        "shape": [32, 32, 35],
        "chunks": [8, 8, 8],
        "dtype": "<u2",
        "fill_value": 0,
        "order": "C",
        "filters": None,
        "dimension_separator": "/",
        "compressor": None,
    }
    assert json.loads((old / "0" / ".zattrs").read_text()) == {"_ARRAY_DIMENSIONS": ["z", "y", "x"]}
    assert json.loads((old / ".zgroup").read_text()) == {"zarr_format": 2}
    files = {p.relative_to(old / "0").as_posix(): p.stat().st_size for p in (old / "0").rglob("*/*") if p.is_file()}
    assert files == {f"{z}/{y}/{x}": 8**3 * 2 for z, y, x in np.ndindex(4, 4, 5)}
    assert not list(old.rglob("zarr.json"))
    assert xarray.open_zarr(old, consolidated=False, zarr_format=2)["0"].dims == ("z", "y", "x")
    attributes = json.loads((old / ".zattrs").read_text())
    assert attributes["multiscales"][0]["version"] == "0.4"
    assert attributes["isovoxel"]["storage"]["ome_zarr"] == "0.4"


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "none"])
def test_zarr_describes_the_codec_as_it_is(tmp_path: Path, source: Path, codec: str) -> None:
    """Whoever writes a chunk anew by zarr-python makes what is read alike."""
    package.scale(source, tmp_path / "out.zarr", ome_zarr="0.4", codec=codec, **OPTIONS)
    array: Any = zarr.open_array(tmp_path / "out.zarr" / "0", mode="r+", zarr_format=2)
    file = tmp_path / "out.zarr" / "0" / "1" / "1" / "1"
    mine, values = file.read_bytes(), array[8:16, 8:16, 8:16]
    array[8:16, 8:16, 8:16] = values
    assert file.read_bytes()[:4] == mine[:4]  # blosc's versions, flags and size of a voxel, or who the others are
    np.testing.assert_array_equal(array[8:16, 8:16, 8:16], values)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "uint64"])
def test_every_kind_of_voxel(tmp_path: Path, dtype: str) -> None:
    """Signed ones, floats, and labels of 64 bits, which are marked as such."""
    data = VOXELS.astype(dtype)
    data[0, 0, 0] = 3
    if dtype == "uint64":
        data = data + np.uint64(2**60)
    labels = dtype == "uint64"
    _, old = both(data, tmp_path, levels=1, labels=labels)
    check_valid(old, labels=labels)
    assert voxels(old).dtype == dtype
    assert package.open_volume(old).labels == labels


def test_a_series(tmp_path: Path) -> None:
    """Time points and channels, each volume in chunks of its own, levels, and open again."""
    series = np.stack([VOXELS, VOXELS[::-1], VOXELS // 2, VOXELS + 1]).reshape(2, 2, 16, 25, 35)
    source = tmp_path / "in.ome.tif"
    metadata = {"axes": "TCZYX", "TimeIncrement": 90.0, "TimeIncrementUnit": "ms"}
    tifffile.imwrite(source, series, ome=True, metadata=metadata)
    new, old = both(source, tmp_path, engine="exact", levels=1)
    check_valid(old)
    assert (old / "0/1/1/3/3/4").is_file()
    assert package.open_volume(old).series == package.open_volume(new).series
    assert package.open_volume(old / "0").series == package.open_volume(new / "0").series
    assert package.verify(old, samples=20).holds


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 1])
def test_a_job_goes_on(source: Path, tmp_path: Path, level: int) -> None:
    """It does what is left, a chunk that is torn again, and makes the same files."""
    options = OPTIONS | {"engine": "exact", "device_memory": "30kB", "levels": 1, "ome_zarr": "0.4"}
    out = tmp_path / "out.zarr"
    package.scale(source, tmp_path / "whole.zarr", **options)
    with pytest.raises(JobError, match="are done and kept"):
        package.scale(source, out, listeners=[stop_after(4, level=level)], **options)
    state = package.output_state(out)
    assert state is not None
    assert 4 <= state.done < state.blocks
    torn = next(p for p in sorted((out / "0").rglob("*/*/*")) if p.is_file())
    torn.write_bytes(torn.read_bytes()[:-5])
    result = package.scale(source, out, **options)
    # Blocks of the next level that were made of the torn one are made again with it.
    assert 0 < result.tally.done_before < state.done
    files = [
        {p.relative_to(o): p.read_bytes() for p in o.rglob("[0-9]") if p.is_file()} for o in (out, torn.parents[3])
    ]
    whole = tmp_path / "whole.zarr"
    assert files[0] == {p.relative_to(whole): p.read_bytes() for p in whole.rglob("[0-9]") if p.is_file()}
    assert not ledger_of(out).exists()


@pytest.mark.slow
def test_workers_make_it(source: Path, tmp_path: Path) -> None:
    options = OPTIONS | {"engine": "exact", "levels": 1, "device_memory": "300kB", "ome_zarr": "0.4"}
    package.scale(source, tmp_path / "one.zarr", **options)
    package.scale(source, tmp_path / "two.zarr", workers="cpu:2", **options)
    for level in "01":
        np.testing.assert_array_equal(voxels(tmp_path / "one.zarr", level), voxels(tmp_path / "two.zarr", level))


def test_another_version_is_another_output(source: Path, tmp_path: Path) -> None:
    """Refused until it replaces the one that is there; one of before there was a choice is 0.5."""
    out = tmp_path / "out.zarr"
    options = OPTIONS | {"engine": "exact"}
    package.scale(source, out, **options)
    with pytest.raises(OutputExistsError, match=r"was made with OME-Zarr version 0\.5, now 0\.4: give --overwrite"):
        package.scale(source, out, ome_zarr="0.4", **options)
    attributes = json.loads((out / "zarr.json").read_text())
    del attributes["attributes"]["isovoxel"]["storage"]["ome_zarr"]
    (out / "zarr.json").write_text(json.dumps(attributes))
    assert package.scale(source, out, **options).tally.done_before > 0
    package.scale(source, out, ome_zarr="0.4", overwrite=True, **options)
    assert not (out / "zarr.json").exists()
    assert package.open_volume(out).kind == "OME-Zarr 0.4"
    with pytest.raises(OutputExistsError, match=r"OME-Zarr version 0\.4, now 0\.5"):
        package.scale(source, out, ome_zarr="0.5", **options)
    package.scale(source, out, overwrite=True, ome_zarr="0.5", **options)
    assert not list(out.rglob(".z*"))
    assert package.open_volume(out).kind == "OME-Zarr 0.5"


def test_a_group_without_its_file_is_no_output(source: Path, tmp_path: Path) -> None:
    """Attributes that a deletion has left are a remainder."""
    out = tmp_path / "out.zarr"
    package.scale(source, out, ome_zarr="0.4", **OPTIONS)
    assert read_provenance(out)["complete"] is True
    (out / ".zgroup").unlink()
    assert package.output_state(out) is None


def test_verify_counts_chunks(source: Path, tmp_path: Path) -> None:
    """One that is missing is told."""
    out = tmp_path / "out.zarr"
    package.scale(source, out, ome_zarr="0.4", levels=1, **OPTIONS)
    (out / "1" / "0" / "1" / "1").unlink()
    found = package.verify(out, samples=4)
    assert (found.holds, found.missing_shards) == (False, 1)


def test_on_the_command_line(isovoxel: Isovoxel, source: Path, tmp_path: Path) -> None:
    """As an option of plan, scale and convert, and from a job file; shards, and versions that are none, are refused."""
    size, out, svg = ("--input-voxel-size", "2,1,1"), tmp_path / "out.zarr", tmp_path / "plan.svg"
    said = isovoxel("plan", source, out, *size, "--ome-zarr", "0.4", "--save", tmp_path / "job.toml")
    assert "chunks of (32, 25, 35), a file each (OME-Zarr 0.4), blosc-lz4" in said.out
    assert isovoxel("plan", source, *size, "--ome-zarr", "0.4", "--picture", svg).code == 0
    assert "chunk, 32 x 25 x 35 voxels" in svg.read_text()
    assert "in 1 chunk of 32 x 25 x 35 voxels" in svg.read_text()
    assert isovoxel("plan", source, *size, "--ome-zarr", "0.4", "--json").json["output"]["ome_zarr"] == "0.4"
    assert isovoxel("scale", "--config", tmp_path / "job.toml", "--quiet").code == 0
    assert isovoxel("info", out, "--json").json["kind"] == "OME-Zarr 0.4"
    (tmp_path / "number.toml").write_text("ome_zarr = 0.4\n")
    words = ("convert", source, tmp_path / "same.zarr", *size, "--config", tmp_path / "number.toml", "--quiet")
    assert isovoxel(*words).code == 0
    np.testing.assert_array_equal(voxels(tmp_path / "same.zarr"), VOXELS)
    words = ("scale", source, tmp_path / "no.zarr", *size, "--ome-zarr")
    check_refused(isovoxel(*words, "0.4", "--shard", "16,16,16"), "OME-Zarr 0.4 has no shards")
    check_refused(isovoxel(*words, "0.3"), "ome_zarr must be one of 0.4, 0.5, 0.6, not '0.3'")
    assert not (tmp_path / "no.zarr").exists()


def test_attributes_of_either_version_say_the_same() -> None:
    """But for the place of the version."""
    grid = package.open_volume(VOXELS, voxel_size=(2.0, 1.0, 1.0), unit="micrometer").grid
    new, old = (image_attributes(grid, name="a", labels=True, method="mode", version=v) for v in ("0.5", "0.4"))
    assert old["multiscales"][0].pop("version") == "0.4"
    assert old["multiscales"] == new["ome"]["multiscales"]
    assert old.keys() == {"multiscales", "image-label"}


@pytest.mark.slow
def test_in_a_store(source: Path, tmp_path: Path, server: Server) -> None:
    """The same objects as files, the group's own file last; gone on with, verified, replaced by the other version."""
    out = ObjectPlace("s3://bucket", "lab/out.zarr")
    options = OPTIONS | {"engine": "exact", "levels": 1, "device_memory": "30kB"}
    package.scale(source, tmp_path / "out.zarr", ome_zarr="0.4", **options)
    server.asked.clear()
    with pytest.raises(JobError, match="are done and kept"):
        package.scale(source, str(out), ome_zarr="0.4", listeners=[stop_after(4)], **options)
    put = [asked.rpartition("/")[2] for asked in server.asked if asked.startswith("PUT /bucket/lab/out.zarr/")]
    made = [name for name in put if name.startswith(".")]
    assert made[-1] == ".zgroup"
    package.scale(source, str(out), ome_zarr="0.4", **options)
    there = contents(out)
    here = {p.relative_to(tmp_path / "out.zarr").as_posix(): p for p in (tmp_path / "out.zarr").rglob("*")}
    assert {path: file.read_bytes() for path, file in here.items() if file.is_file()} == there
    assert package.verify(str(out), samples=20).holds
    (out / "1/1/1/1").unlink()
    assert package.verify(str(out), samples=4).missing_shards == 1
    package.scale(source, str(out), overwrite="now", **options)
    assert not [path for path in contents(out) if ".z" in path]
    package.scale(source, str(out), ome_zarr="0.4", overwrite="now", **options)
    assert contents(out) == there


# ---- OME-Zarr 0.6 ----------------------------------------------------------------------------------------------------


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
