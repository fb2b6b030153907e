"""Nothing that a command reads is written over, deleted or hidden by what it writes, however either is spelt."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tifffile
import xarray
import zarr

import isovoxel as package
from command_line import Isovoxel, check_refused
from isovoxel.errors import IsovoxelError, OutputError
from isovoxel.execution.inputs import check_apart, folders_of, read_as
from isovoxel.object_store.objects import ObjectPlace
from small_jobs import OPTIONS, VOXELS, save_input
from snapshots import snapshot
from store_server import contents, upload

WORDS = ("--factor", "2,1,1", "--engine", "exact", "--levels", "0")


def places_of(source: Any) -> list[Any]:
    """Return where an input lies."""
    return [each.place for each in read_as("input", source)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an input and an output of it, in which files lie, and links to it."""
    monkeypatch.chdir(tmp_path)
    save_input(tmp_path / "in.npy")
    package.scale("in.npy", "out.zarr", **OPTIONS | {"with_labels": VOXELS % 7, "device_memory": None})
    Path("other.zarr").symlink_to("out.zarr")
    Path("loop").symlink_to(".")
    Path("deep").mkdir()
    Path("job.toml").write_text('factor = [2.0, 1.0, 1.0]\nengine = "exact"\n')
    return tmp_path


def put_in(folder: Path) -> None:
    """Put an input of each kind into a folder."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "a.npy", VOXELS)
    tifffile.imwrite(folder / "a.tif", VOXELS)
    for z, plane in enumerate(VOXELS):
        (folder / "slices").mkdir(exist_ok=True)
        tifffile.imwrite(folder / "slices" / f"a{z:02}.tif", plane)
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "a.h5", "w") as file:
        file["a"] = VOXELS
    zarr.create_array(folder / "a.zarr", data=VOXELS, chunks=(4, 8, 8))


INSIDE: dict[str, str] = {
    "a file": "out.zarr/x/a.npy",
    "a TIFF": "out.zarr/x/a.tif",
    "by ..": "deep/../out.zarr/x/a.npy",
    "by a link to the output": "other.zarr/x/a.npy",
    "by a link above": "loop/loop/out.zarr/x/a.tif",
    "an address of a file": "file://{here}/out.zarr/x/a.npy",
    "a folder of slices": "out.zarr/x/slices",
    "a pattern": "out.zarr/x/slices/a*.tif",
    "a pattern of folders": "out.z*/x/slices/*.tif",
    "a dataset": "out.zarr/x/a.h5:/a",
    "a zarr": "out.zarr/x/a.zarr",
    "the output's labels": "out.zarr/labels/labels",
    "a level": "out.zarr/0",
    "a file in the ledger's folder": "out.zarr.isovoxel/a.tif",
    "a link to a file": "deep/link.npy",
    "a folder of links": "deep/links",
}
"""Inputs that lie in the output, or in its ledger's folder."""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("command", ["scale", "convert", "labels", "plan"])
def test_an_input_in_the_output_is_refused_by_every_command(command: str, here: Path, isovoxel: Isovoxel) -> None:
    """Whether it is the input or its labels, with --overwrite as without; nothing is touched."""
    put_in(here / "out.zarr" / "x")
    put_in(here / "out.zarr.isovoxel")
    (here / "deep" / "link.npy").symlink_to(here / "out.zarr" / "x" / "a.npy")
    (here / "deep" / "links").mkdir()
    for path in (here / "out.zarr" / "x" / "slices").iterdir():
        (here / "deep" / "links" / path.name).symlink_to(path)
    before = snapshot(here)
    for number, way in enumerate(INSIDE.values()):
        source = way.format(here=here)
        words = {
            "scale": ("scale", source, "out.zarr", *WORDS),
            "convert": ("convert", source, "out.zarr"),
            "labels": ("scale", "in.npy", "out.zarr", *WORDS, "--with-labels", source),
            "plan": ("plan", source, "out.zarr", *WORDS),
        }[command]
        said = isovoxel(*words, *((), ("--overwrite",), ("--overwrite", "now"))[number % 3])
        check_refused(said, "the labels " if command == "labels" else "the input ")
        assert "inside the output out.zarr" in said.err or "lies in out.zarr.isovoxel, where" in said.err, way
        assert snapshot(here) == before, way


WRITTEN: dict[str, tuple[tuple[str, ...], str]] = {
    "a report that is the input": (
        ("scale", "page.html", "new.zarr", *WORDS, "--report", "page.html"),
        "the report page.html is the input itself",
    ),
    "a report that is the input by a hard link": (
        ("scale", "page.html", "new.zarr", *WORDS, "--report", "hard.html"),
        "the report hard.html is the input itself",
    ),
    "a report that is the labels": (
        ("scale", "in.npy", "new.zarr", *WORDS, "--with-labels", "page.html", "--report", "page.html"),
        "is the labels itself",
    ),
    "a report in the output": (
        ("scale", "in.npy", "new.zarr", *WORDS, "--report", "loop/new.zarr/r.html"),
        "must not lie inside of the output",
    ),
    "a report in an input": (
        ("convert", "out.zarr", "new.zarr", "--report", "out.zarr/r.html"),
        "lies inside the input out.zarr",
    ),
    "a report in the ledger's folder": (
        ("scale", "in.npy", "new.zarr", *WORDS, "--report", "new.zarr.isovoxel/r.html"),
        "must not lie inside of the output",
    ),
    "a picture that is the input": (("show", "page.png", "-o", "deep/../page.png"), "is the input itself"),
    "a picture that is the second input": (("show", "in.npy", "page.png", "-o", "page.png"), "is the input itself"),
    "a plan's picture that is the input": (
        ("plan", "page.svg", *WORDS, "--picture", "page.svg"),
        "the picture page.svg is the input itself",
    ),
    "a plan's picture in the output": (
        ("plan", "in.npy", "new.zarr", *WORDS, "--picture", "new.zarr/p.svg"),
        "must not lie inside of the output",
    ),
    "a saved job that is the picture": (
        ("plan", "in.npy", *WORDS, "--picture", "p.svg", "--save", "loop/p.svg"),
        "would be the picture and the saved job",
    ),
    "a saved job that is the job file": (
        ("plan", "--config", "job.toml", "in.npy", "--save", "job.toml"),
        "the saved job job.toml is the job file itself",
    ),
    "a job file in the output": (
        ("scale", "--config", "out.zarr/job.toml", "in.npy", "out.zarr", "--overwrite"),
        "the job file out.zarr/job.toml lies inside the output out.zarr",
    ),
    "an output that is the input": (("convert", "out.zarr", "other.zarr", "--overwrite"), "is the input itself"),
    "an output in the input": (("convert", "out.zarr", "out.zarr/new"), "lies inside the input"),
    "an output that holds the input": (("convert", "out.zarr/0", "out.zarr", "--overwrite"), "lies inside the output"),
}
"""Commands that would write over what they read, or over something else that they write."""


def test_no_file_that_is_written_is_one_that_is_read(here: Path, isovoxel: Isovoxel) -> None:
    """Also where its bytes say that isovoxel made it, for which it could be replaced otherwise."""
    for ending in ("html", "svg", "png"):  # what decides of an input is what it holds
        np.save(here / f"page.{ending}.npy", VOXELS)
        (here / f"page.{ending}.npy").rename(here / f"page.{ending}")
    (here / "hard.html").hardlink_to(here / "page.html")
    (here / "out.zarr" / "job.toml").write_text((here / "job.toml").read_text())
    before = snapshot(here)
    for kind, (words, why) in WRITTEN.items():
        said = isovoxel(*words)
        check_refused(said, "error: ")
        assert why in said.err or "isovoxel's" in said.err or "folder does not exist" in said.err, kind
        assert snapshot(here) == before, kind


HELD: dict[str, Callable[[Path], Any]] = {
    "a memory map": lambda path: np.load(path / "a.npy", mmap_mode="r"),
    "a part of a memory map": lambda path: np.load(path / "a.npy", mmap_mode="r")[1:, ::2].view(np.uint16),
    "a zarr array": lambda path: zarr.open_array(path / "a.zarr", mode="r"),
    "a dask array of a zarr": lambda path: da.from_zarr(path / "a.zarr") + 1,
    "a dask array of a zarr array": lambda path: da.from_array(zarr.open_array(path / "a.zarr", mode="r"), chunks=8),
    "a dask array of delayed reading": lambda path: da.from_delayed(
        __import__("dask").delayed(tifffile.imread)(str(path / "a.tif")), VOXELS.shape, VOXELS.dtype
    ),
    "a DataArray": lambda path: xarray.DataArray(np.load(path / "a.npy", mmap_mode="r"), dims=("z", "y", "x")),
    "a DataArray of a dask array": lambda path: xarray.DataArray(da.from_zarr(path / "a.zarr"), dims=("z", "y", "x")),
    "an open volume": lambda path: package.open_volume(path / "a.tif"),
}
"""Arrays that a caller holds, of files in a folder."""


def test_an_array_that_lies_in_the_output_is_refused(here: Path) -> None:
    """As far as it can be seen where it comes from; that it lies elsewhere is no obstacle."""
    put_in(here / "out.zarr" / "x")
    put_in(here / "elsewhere")
    before = snapshot(here)
    for kind, hold in HELD.items():
        held = hold(here / "out.zarr" / "x")
        if not kind.startswith("a DataArray"):
            with pytest.raises(OutputError, match=r"the input .* lies inside the output out.zarr"):
                package.scale(held, "out.zarr", overwrite=True, **OPTIONS)
        with pytest.raises(OutputError, match=r"the labels .* lies inside the output out.zarr"):
            check_apart(read_as("labels", held), folders_of("out.zarr"))
        check_apart(read_as("input", hold(here / "elsewhere")), folders_of("out.zarr"))
        assert snapshot(here) == before, kind


def test_all_files_of_an_input_are_found(here: Path) -> None:
    """Of a memory map one, of a pattern each, of an array in memory none."""
    put_in(here / "x")
    assert places_of(VOXELS) == []
    assert len(places_of("x/slices/*.tif")) == len(VOXELS)
    assert places_of("tcp://host:8786") == []
    assert places_of("gone.tif") == []


def test_the_input_is_never_the_output(here: Path) -> None:
    """By whatever path or link; nor is one in the other, but a name that begins like the input's is another place."""
    (here / "another.zarr").symlink_to(here / "out.zarr")
    ways = ["out.zarr", "deep/../out.zarr", f"{here}/out.zarr"]
    for output, source in [*product(ways, ways), ("out.zarr", "another.zarr")]:
        with pytest.raises(OutputError, match="is the input itself"):
            check_apart(read_as("input", source), folders_of(output))
    with pytest.raises(OutputError, match=r"the output out.zarr/new lies inside the input out.zarr"):
        check_apart(read_as("input", "out.zarr"), folders_of("out.zarr/new"))
    check_apart(read_as("input", "out.zarr"), folders_of("out.zarr2"))


def test_addresses_are_compared_as_paths_are(here: Path, bucket: ObjectPlace) -> None:
    """By whatever scheme, also by that of the server which shows the bucket."""
    upload(here / "out.zarr", bucket / "out.zarr")
    before = contents(bucket)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    sources = ["s3://bucket/out.zarr/labels/labels", "s3a://bucket/out.zarr/0/"]
    for source in sources:
        for given in ({"source": source}, {"source": "in.npy", "with_labels": source}):
            with pytest.raises(IsovoxelError, match=r"lies inside the output s3://bucket/out.zarr"):
                package.scale(output="s3://bucket/out.zarr", overwrite="now", **OPTIONS | given)
    assert contents(bucket) == before
    for source in ("s3://bucket/out.zarr", "s3a://bucket/out.zarr/"):
        with pytest.raises(OutputError, match="is the input itself"):
            check_apart(read_as("input", source), folders_of("s3://bucket/out.zarr"))
        with pytest.raises(OutputError, match=r"the output .* lies inside the input"):
            check_apart(read_as("input", source), folders_of("s3://bucket/out.zarr/new"))
        check_apart(read_as("input", source), folders_of("s3://bucket/out.zarr2"))
    assert places_of(f"{endpoint}/bucket/out.zarr") == [bucket / "out.zarr"]
    assert places_of("https://bucket.s3.eu-west-1.amazonaws.com/a/b.zarr") == [ObjectPlace("s3://bucket", "a/b.zarr")]
    assert places_of("https://storage.googleapis.com/bucket/a") == [ObjectPlace("gs://bucket", "a")]


# ---- plan IN OUT -------------------------------------------------------------------------------------------------


def test_a_plan_of_an_output_says_what_scale_would(here: Path, isovoxel: Isovoxel) -> None:
    """In the same words, and with the same code where that refuses; and writes nothing at all."""
    (here / "plain").mkdir()
    (here / "foreign.zarr.isovoxel").mkdir()
    (here / "foreign.zarr.isovoxel" / "mine").touch()
    cases = [
        ("out.zarr", ("--factor", "3,1,1")),
        ("out.zarr", ("--factor", "2,1,1", "--codec", "zstd")),
        ("plain", WORDS),
        ("plain", (*WORDS, "--overwrite")),
        ("gone/out.zarr", WORDS),
        ("foreign.zarr", WORDS),
        ("in.npy", WORDS),
        ("new.tif", WORDS),
        ("out.zarr/x", WORDS),
        ("", WORDS),
    ]
    for output, words in cases:
        before = snapshot(here)
        planned = isovoxel("plan", "in.npy", output, *words)
        assert snapshot(here) == before
        scaled = isovoxel("scale", "in.npy", output, *words)
        assert (planned.code, planned.err) == (2, scaled.err), output
        assert snapshot(here) == before


def test_a_plan_says_what_is_done(here: Path, isovoxel: Isovoxel) -> None:
    """New, complete, half done, or to be replaced."""
    from small_jobs import interrupt

    interrupt(here / "in.npy", here / "half.zarr")
    options = ["--chunk", "8,8,8", "--shard", "8,8,8", "--device-memory", "18kB", "--threads", 1, *WORDS]
    before = snapshot(here)
    for output, words, told in (
        ("new.zarr", (), ""),
        ("out.zarr", (), "note: out.zarr is complete, and was made in this way: nothing is left to do\n"),
        ("out.zarr", ("--overwrite",), "note: out.zarr would be replaced, and with it labels/labels\n"),
        ("half.zarr", (), "blocks of half.zarr are done: the job would go on\n"),
        ("half.zarr", ("--overwrite", "now"), "note: half.zarr would be replaced\n"),
    ):
        said = isovoxel("plan", "in.npy", output, *options, *words)
        assert said.code == 0, said.err
        assert told in said.err
        assert (".zarr" in said.err) == bool(told)
    assert snapshot(here) == before
    plan = package.plan("in.npy", "half.zarr", **OPTIONS)
    assert package.scale("in.npy", "half.zarr", **OPTIONS).plan.block_shape == plan.block_shape


# ---- names -------------------------------------------------------------------------------------------------------


NAMES = {
    "out.tif": "out.zarr",
    "OUT.TIFF": "OUT.zarr",
    "a.ome.tif": "a.ome.zarr",
    "a.nii.gz": "a.zarr",
    "a.h5": "a.zarr",
    "a.npy": "a.zarr",
    "a.ims": "a.zarr",
    "a.n5": "a.zarr",
    "a.czi": "a.zarr",
    "a.zarr.zip": "a.zarr",
    "a.png": "a.zarr",
    ".tif": "out.zarr",
}
"""What an output must not be called, and what it is to be called."""


def test_an_output_is_not_called_like_another_kind_of_file(here: Path, isovoxel: Isovoxel) -> None:
    """It would be a folder of that name; the message has the name to take."""
    before = snapshot(here)
    for name, call in NAMES.items():
        for command in (("scale", "in.npy", name, *WORDS), ("plan", "in.npy", f"{name}/", *WORDS)):
            check_refused(isovoxel(*command), f"but an output is OME-Zarr, which is a folder; call it {call}")
        assert snapshot(here) == before, name


def test_an_output_of_0_1_of_such_a_name_is_gone_on_with(here: Path, isovoxel: Isovoxel) -> None:
    """And may be replaced: it is there. Names that only look alike are names."""
    (here / "out.zarr").rename(here / "out.tif")
    assert isovoxel("scale", "in.npy", "out.tif", *WORDS, "--overwrite").code == 0
    assert isovoxel("scale", "in.npy", "out.tif", *WORDS).code == 0
    for name in ("tif", "out.zarr.tif.zarr", "a.tiffs", "v1.2"):
        assert isovoxel("plan", "in.npy", name, *WORDS).code == 0


# ---- pictures and the demo ---------------------------------------------------------------------------------------


def test_a_file_that_only_speaks_of_isovoxel_is_the_users(here: Path, isovoxel: Isovoxel) -> None:
    """What isovoxel has made says so where it says so, not somewhere."""
    for content in (
        b"<html><p>the picture was made by isovoxel",
        b"<!DOCTYPE html>\n<title>made by isovoxel</title>",
        b"<svg><!-- made by isovoxel --></svg>",
        b"notes: made by isovoxel",
    ):
        for name in ("x.png", "x.svg", "x.html"):
            (here / name).write_bytes(content)
        before = snapshot(here)
        for words, kind in (
            (("show", "in.npy", "-o", "x.png"), "picture"),
            (("plan", "in.npy", *WORDS, "--picture", "x.svg"), "picture"),
            (("scale", "in.npy", "new.zarr", *WORDS, "--report", "x.html"), "report"),
        ):
            check_refused(isovoxel(*words), f"exists and is no {kind} of isovoxel's")
        assert snapshot(here) == before


def test_a_link_is_not_replaced_by_a_picture(here: Path, isovoxel: Isovoxel) -> None:
    """Though what it leads to were isovoxel's."""
    assert isovoxel("show", "in.npy", "-o", "real.png").code == 0
    (here / "link.png").symlink_to("real.png")
    before = snapshot(here)
    check_refused(isovoxel("show", "in.npy", "-o", "link.png"), "is a link, which is not replaced")
    assert snapshot(here) == before


@pytest.mark.usefixtures("_made_before")
@pytest.mark.parametrize("name", ["blastocyst.tif", "isotropic.zarr", "before_after.png"])
def test_the_demo_replaces_nothing_of_the_users(name: str, here: Path, isovoxel: Isovoxel) -> None:
    """Files of its names are the user's, unless it has made them."""
    folder = here / "demo"
    folder.mkdir()
    if name == "isotropic.zarr":
        (here / "out.zarr").rename(folder / name)
    else:
        (folder / name).write_bytes(b"made by isovoxel, perhaps")
    before = snapshot(here)
    said = isovoxel("demo", folder)
    assert said.code == 2
    assert f"{name} exists and is" in said.err
    assert snapshot(here) == before
