"""The command line as a user meets it: what it prints where, what it writes, and how it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from command_line import Isovoxel, Outcome, check_refused, listing
from isovoxel import api
from isovoxel.engines.clesperanto import clesperanto
from isovoxel.execution.events import BlockDone, Event
from isovoxel.geometry.grid import Float3
from isovoxel.output.provenance import read_provenance
from isovoxel.planning.chunking import CODECS

SHAPE = (6, 20, 24)
PYTHON = [sys.executable, "-m", "isovoxel"]


def voxels(shape: tuple[int, ...] = SHAPE, dtype: str = "uint8") -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def write_stack(path: Path, data: NDArray[Any]) -> Path:
    """Write a stack with voxels of 2 x 0.5 x 0.5 micrometer as Fiji does."""
    metadata = {"axes": "ZYX", "spacing": 2.0, "unit": "micron"}
    tifffile.imwrite(path, data, imagej=True, resolution=(2, 2), metadata=metadata)
    return path


def interpolated(data: NDArray[Any], factor: Float3, order: int) -> NDArray[np.float64]:
    """Return the volume scaled by SciPy, edge-aligned, the rim repeated."""
    shape = [max(1, round(n * f)) for n, f in zip(data.shape, factor, strict=True)]
    at = [(np.arange(m) + 0.5) / f - 0.5 for m, f in zip(shape, factor, strict=True)]
    grid = np.meshgrid(*at, indexing="ij")
    result: NDArray[np.float64] = map_coordinates(data.astype(float), grid, order=order, mode="nearest")
    return result


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    return write_stack(tmp_path / "stack.tif", voxels())


# ---- what each command says --------------------------------------------------------------------------------------


def test_info_says_what_is_known_and_from_where(isovoxel: Isovoxel, stack: Path) -> None:
    """Shape, dtype, axes, voxel size and unit stand on standard output, each with its source."""
    said = isovoxel("info", stack)
    assert (said.code, said.err) == (0, "")
    for what in ("(6, 20, 24)", "uint8", "z, y, x", "2 x 0.5 x 0.5", "micrometer", "ImageJ spacing"):
        assert what in said.out
    record = isovoxel("info", stack, "--json").json
    assert (record["shape"], record["dtype"], record["axes"]) == ([6, 20, 24], "uint8", ["z", "y", "x"])
    assert (record["voxel_size"], record["unit"]) == ([2.0, 0.5, 0.5], "micrometer")
    assert set(record["sources"]) == {"shape", "axes", "voxel size", "unit"}


def test_info_works_without_a_voxel_size(isovoxel: Isovoxel, tmp_path: Path) -> None:
    """What the input does not say is called unknown, and is no error."""
    np.save(tmp_path / "bare.npy", voxels())
    said = isovoxel("info", tmp_path / "bare.npy")
    assert said.code == 0
    assert "unknown" in said.out
    assert isovoxel("info", tmp_path / "bare.npy", "--json").json["voxel_size"] is None


def test_plan_says_what_would_happen_and_writes_nothing(isovoxel: Isovoxel, stack: Path, tmp_path: Path) -> None:
    """Output, factors, blocks and bytes are told; the folder stays as it was."""
    before = listing(tmp_path)
    said = isovoxel("plan", stack, "--zoom", 2, "--engine", "exact")
    assert (said.code, said.err) == (0, "")
    assert "(24, 20, 24) voxels of 0.5 x 0.5 x 0.5 micrometer" in said.out
    assert all(word in said.out for word in ("blocks", "halo", "uses at most", "limit"))
    assert listing(tmp_path) == before


def test_plan_prints_one_json_object(isovoxel: Isovoxel, stack: Path) -> None:
    """Input, output, factors, engine, device, blocks and bytes are in it."""
    record = isovoxel("plan", stack, "--json").json
    assert {"input", "output", "factors", "engine", "device", "blocks", "projected", "allowed"} <= set(record)
    assert {"count", "shape", "halo"} <= set(record["blocks"])
    assert record["factors"] == [4.0, 1.0, 1.0]
    for where in ("host_bytes", "device_bytes"):
        assert 0 < record["projected"][where] <= record["allowed"][where]


def test_limits_answers_the_three_questions(isovoxel: Isovoxel, stack: Path) -> None:
    """At which zoom one piece stops, how large the image would be, and what the device has."""
    said = isovoxel("limits", stack)
    assert (said.code, said.err) == (0, "")
    assert all(word in said.out for word in ("fails from zoom", "at that zoom", "allocates at most"))
    record = isovoxel("limits", stack, "--json").json
    zooms = [c["zoom"] for c in record["crossings"] if c["zoom"] is not None]
    assert record["stops_at_zoom"] == min(zooms) > 0
    assert {c["limit"] for c in record["crossings"]} >= {"largest allocation", "device memory"}
    assert record["device"]["memory"] > 0


def test_devices_lists_what_is_there(isovoxel: Isovoxel) -> None:
    """Each device has a line, and in JSON a record with its limits."""
    record = isovoxel("devices", "--json").json
    assert len(record["devices"]) == isovoxel("devices").out.count("\n") > 0
    for i, device in enumerate(record["devices"]):
        assert device["index"] == i
        assert device["kind"] in ("cpu", "gpu")
        assert 0 < device["largest_allocation"] <= device["memory"]


def test_version_and_help_need_nothing(isovoxel: Isovoxel) -> None:
    """`--version` prints the version; without a command the help comes, as with `--help`."""
    assert isovoxel("--version").out.startswith("isovoxel 0.")
    assert isovoxel().out == isovoxel("--help").out
    assert "Commands" in isovoxel("-h").out
    assert "--device-memory" in isovoxel("scale", "--help").out
    said = " ".join(isovoxel("plan", "--help").out.split())
    assert "Nothing is written but what --picture and --save name." in said
    assert "a zarr in an object store (s3://, gs://, az://, https://)" in said
    said = " ".join(isovoxel("convert", "--help").out.split())
    assert "OME-Zarr to write: a path, or an address (s3://, gs://, az://)." in said


# ---- scale -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ([], (4.0, 1.0, 1.0)),
        (["--zoom", "1.5"], (3.0, 0.75, 0.75)),
        (["--voxel-size", "0.8"], (2.5, 0.625, 0.625)),
        (["--factor", "1,2,0.5"], (1.0, 2.0, 0.5)),
        (["--input-voxel-size", "0.9,0.3,0.6", "--unit", "nm"], (3.0, 1.0, 2.0)),
        (["--interpolation", "nearest", "--zoom", "1.5"], (3.0, 0.75, 0.75)),
    ],
)
def test_scale_writes_ome_zarr(
    isovoxel: Isovoxel, stack: Path, tmp_path: Path, options: list[str], factor: Float3
) -> None:
    """Values, scale, translation and unit are those asked for, and both yaozarrs and zarr-python take the result."""
    out = tmp_path / "out.zarr"
    assert isovoxel("scale", stack, out, *options).code == 0
    yaozarrs.validate_zarr_store(out)
    group = zarr.open_group(out, mode="r")
    array = group["0"]
    assert isinstance(array, zarr.Array)
    expected = interpolated(voxels(), factor, order=0 if "nearest" in options else 1)
    # 2 grey levels, for textures of a GPU weigh neighbours in steps of 1/256.
    np.testing.assert_allclose(np.asarray(array[:], float), expected, atol=0 if "nearest" in options else 2)

    size = (0.9, 0.3, 0.6) if "--input-voxel-size" in options else (2.0, 0.5, 0.5)
    ome: Any = group.attrs["ome"]
    (image,) = ome["multiscales"]
    scale, translation = image["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == pytest.approx([s / f for s, f in zip(size, factor, strict=True)])
    shift = [(s / f - s) / 2 for s, f in zip(size, factor, strict=True)]
    assert translation["translation"] == pytest.approx(shift, abs=1e-12)
    unit = "nanometer" if "--unit" in options else "micrometer"
    assert [(a["name"], a["unit"]) for a in image["axes"]] == [("z", unit), ("y", unit), ("x", unit)]
    made: Any = group.attrs["isovoxel"]
    assert made["factor"] == pytest.approx(factor)
    assert made["complete"] is True


ENGINES = [
    ("", "exact", "linear"),
    ("--engine cle", "cle", "linear"),
    ("--interpolation nearest", "exact", "nearest"),
    ("--engine cle --interpolation nearest", "cle", "nearest"),
    ("--engine exact", "exact", "linear"),
    ("--engine exact --interpolation nearest", "exact", "nearest"),
    ("--interpolation cubic", "exact", "cubic"),
    ("--interpolation area", "exact", "area"),
    ("--interpolation mode", "exact", "mode"),
    ("--antialias", "exact", "linear"),
    ("--antialias --interpolation cubic", "exact", "cubic"),
    ("--antialias --interpolation lanczos3", "exact", "lanczos3"),
    ("--labels", "exact", "nearest"),
    ("--labels --engine cle", "cle", "nearest"),
    ("--labels --interpolation mode", "exact", "mode"),
]


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("options", "engine", "kernel"), ENGINES, ids=[options for options, *_ in ENGINES])
def test_the_engine_is_the_one_that_can(
    isovoxel: Isovoxel, stack: Path, tmp_path: Path, options: str, engine: str, kernel: str
) -> None:
    """On a CPU exact by default, cle where it is asked for; plan, JSON and the output's attributes name it."""
    words = [*options.split(), "--factor", "1.5,0.7,1"]
    said = isovoxel("plan", stack, *words)
    assert said.code == 0
    library = f" of {clesperanto().package} {clesperanto().version}" if engine == "cle" else ""
    assert f"engine   {engine}{library} on " in said.out
    antialias = "--antialias" in words
    assert f"({kernel}{', anti-aliased along y' if antialias else ''}, boundary nearest)" in said.out
    record = isovoxel("scale", stack, tmp_path / "out.zarr", *words, "--json").json
    assert (record["engine"], record["interpolation"], record["antialias"]) == (engine, kernel, antialias)
    made: Any = zarr.open_group(tmp_path / "out.zarr", mode="r").attrs["isovoxel"]
    assert (made["engine"], made["interpolation"], made["antialias"]) == (engine, kernel, antialias)
    assert isovoxel("verify", tmp_path / "out.zarr", "--samples", 10).code == 0


def test_antialiasing_reads_further(isovoxel: Isovoxel, tmp_path: Path) -> None:
    """The halo grows with 1 / factor along the axes that shrink, and along no other."""
    stack = write_stack(tmp_path / "stack.tif", voxels((40, 200, 200)))
    cut = ["--chunk", "8,8,8", "--shard", "8,8,8", "--device-memory", "10kB"]

    def halo(*words: object) -> list[int]:
        record = isovoxel("plan", stack, *cut, "--json", *words).json
        assert record["blocks"]["count"] > 1
        return [max(before, after) for before, after in record["blocks"]["halo"]]

    for factor in (0.5, 0.2, 0.1):
        plain = halo("--factor", f"1,{factor},1", "--engine", "exact")
        wide = halo("--factor", f"1,{factor},1", "--antialias")
        assert (wide[0], wide[2]) == (plain[0], plain[2])
        # Half an output voxel belongs to the block itself, the kernel reaches one from its centre.
        assert plain[1] <= 1
        assert abs(wide[1] - 0.5 / factor) <= 1


HINT = "hint: shrinking along y and x skips voxels, which aliases; --antialias averages them\n"
HINTED = [
    ("--factor 1,0.49,0.49", True),
    ("--factor 1,0.49,0.49 --engine exact", True),
    ("--factor 1,0.49,0.49 --interpolation cubic", True),
    ("--factor 1,0.5,0.5", False),
    ("--factor 2,1,1", False),
    ("--factor 1,0.49,0.49 --antialias", False),
    ("--factor 1,0.49,0.49 --interpolation area", False),
    ("--factor 1,0.49,0.49 --labels", False),
    ("--factor 1,0.49,0.49 --labels --interpolation mode", False),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("options", "hinted"), HINTED, ids=[options for options, _ in HINTED])
def test_skipped_voxels_are_hinted_at_once(
    isovoxel: Isovoxel, stack: Path, tmp_path: Path, options: str, hinted: bool
) -> None:
    """On standard error, where an axis shrinks by more than 2 and nothing averages; JSON stays JSON."""
    said = [
        isovoxel("plan", stack, *options.split()),
        isovoxel("plan", stack, *options.split(), "--json"),
        isovoxel("scale", stack, tmp_path / "out.zarr", *options.split()),
        isovoxel("scale", stack, tmp_path / "json.zarr", *options.split(), "--json"),
    ]
    for outcome in said:
        assert outcome.code == 0
        assert outcome.err.count("hint:") == outcome.err.count(HINT) == hinted
        assert "hint:" not in outcome.out
    quiet = isovoxel("scale", stack, tmp_path / "quiet.zarr", *options.split(), "--quiet")
    assert quiet == Outcome(0, "", "")


@pytest.mark.parametrize("codec", [*CODECS, "lz4"])
def test_chunk_shard_and_codec_are_as_asked(isovoxel: Isovoxel, stack: Path, tmp_path: Path, codec: str) -> None:
    """They stand in the array's metadata, and the voxels do not depend on them."""
    out = tmp_path / "out.zarr"
    said = isovoxel("scale", stack, out, "--chunk", "4,5,6", "--shard", "8,10,12", "--codec", codec, "--json")
    how = said.json["output"]["codec"], said.json["output"]["plain"]
    assert how == CODECS[codec if codec in CODECS else f"blosc-{codec}"]
    array = zarr.open_array(out / "0", mode="r")
    assert (array.chunks, array.shards) == ((4, 5, 6), (8, 10, 12))
    assert (codec.removeprefix("blosc-") in repr(array.compressors).lower()) == (codec != "none")
    assert ("Blosc" in repr(array.compressors)) == (not how[1] and codec != "none")
    np.testing.assert_allclose(np.asarray(array[:], float), interpolated(voxels(), (4, 1, 1), order=1), atol=2)


def test_both_halos_write_the_same_files(isovoxel: Isovoxel, stack: Path, tmp_path: Path) -> None:
    """map_overlap and direct reads agree in every bit, and the plan names the one that was asked for."""
    for halo in ("map_overlap", "direct"):
        small = ["--shard", "8,10,12", "--chunk", "8,10,12", "--device-memory", "80kB", "--engine", "cle"]
        said = isovoxel("scale", stack, tmp_path / halo, "--halo", halo, *small, "--json")
        assert said.json["blocks"]["halo_mode"] == halo
        assert said.json["blocks"]["count"] > 1
    one, other = (zarr.open_array(tmp_path / halo / "0", mode="r")[:] for halo in ("map_overlap", "direct"))
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_scale_prints_one_json_object(isovoxel: Isovoxel, stack: Path, tmp_path: Path) -> None:
    """All of the plan, and what it took; progress is no part of it."""
    record = isovoxel("scale", stack, tmp_path / "out.zarr", "--json").json
    planned = isovoxel("plan", stack, "--json").json
    assert set(planned) < set(record)
    assert record["fingerprint"] == planned["fingerprint"]
    assert record["path"] == str(tmp_path / "out.zarr")
    assert all(record[key] > 0 for key in ("seconds", "voxels_per_second", "peak_host_bytes"))


def test_results_and_the_rest_go_apart(isovoxel: Isovoxel, stack: Path, tmp_path: Path) -> None:
    """What was written stands on standard output; progress, and that it was a CPU, on standard error."""
    said = isovoxel("scale", stack, tmp_path / "out.zarr")
    assert said.out.startswith("written")
    assert "done: 1/1 block" in said.err
    kind = isovoxel("devices", "--json").json["devices"][0]["kind"]
    assert ("note: the CPU scales, not a GPU" in said.err) == (kind == "cpu")


def test_quiet_prints_nothing(isovoxel: Isovoxel, stack: Path, tmp_path: Path) -> None:
    """`--quiet` leaves both streams empty, and the output is there all the same."""
    said = isovoxel("scale", stack, tmp_path / "out.zarr", "--quiet")
    assert said == Outcome(0, "", "")
    assert read_provenance(tmp_path / "out.zarr")["complete"] is True


def test_an_output_that_is_there_stays_unless_overwritten(isovoxel: Isovoxel, stack: Path, tmp_path: Path) -> None:
    """Without `--overwrite` it is an error that changes nothing; with it the image is replaced, and nothing else."""
    out = tmp_path / "out.zarr"
    assert isovoxel("scale", stack, out, "--factor", "1,1,1").code == 0
    (out / "notes.txt").write_text("of the old output")
    before = listing(tmp_path)
    said = isovoxel("scale", stack, out, "--factor", "4,1,1")
    how = "was made with factor (1, 1, 1), now factor (4, 1, 1)"
    assert (said.code, said.err) == (2, f"error: {out} exists, and {how}: give --overwrite or another output\n")
    said = isovoxel("scale", stack, out, "--factor", "4,1,1", "--overwrite")
    assert said.code == 2
    assert "notes.txt" in said.err
    assert listing(tmp_path) == before
    (out / "notes.txt").unlink()
    assert isovoxel("scale", stack, out, "--factor", "4,1,1", "--overwrite").code == 0
    assert zarr.open_array(out / "0", mode="r").shape == (24, 20, 24)


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of an input, and of one that has no voxel size."""
    folder = tmp_path_factory.mktemp("bad")
    write_stack(folder / "good.tif", voxels())
    tifffile.imwrite(folder / "bare.tif", voxels())
    return folder


BAD_OPTIONS = [
    ("--zoom nan", "zoom must be a finite number above 0, not nan"),
    ("--zoom 0", "zoom must be a finite number above 0, not 0"),
    ("--zoom much", "'--zoom'"),
    ("--zoom 1e12", "shards along z"),
    ("--zoom 1e300", "more than can be counted"),
    ("--factor 1,1e-19,1", "makes one voxel of more than can be counted"),
    ("--voxel-size -inf", "voxel size must be"),
    ("--voxel-size -0.5", "voxel size must be"),
    ("--voxel-size 1e-12", "shards along z"),
    ("--factor 1,inf,1", "factor must be"),
    ("--factor 2", "is not three numbers z,y,x"),
    ("--factor 1,2,many", "is not three numbers z,y,x"),
    ("--input-voxel-size nan,1,1", "voxel size must be"),
    ("--unit parsnip", "is no unit of length"),
    ("--zoom 2 --factor 2,1,1", "zoom and factor each say how far to scale; give only one of them"),
    (
        "--interpolation lanczos",
        "interpolation must be one of linear, nearest, cubic, lanczos3, area, mode, smooth, not 'lanczos'",
    ),
    ("--interpolation cubic --engine cle", "must be one of linear, nearest, not 'cubic'; engine exact has it"),
    ("--engine magic", "engine must be one of cle, exact, not 'magic'"),
    ("--antialias --engine cle", "engine cle has no anti-aliasing; use engine exact"),
    (
        "--antialias --interpolation nearest",
        "anti-aliasing widens linear, cubic and lanczos3 interpolation, not nearest",
    ),
    ("--antialias --interpolation area", "anti-aliasing widens linear, cubic and lanczos3 interpolation, not area"),
    (
        "--labels --interpolation linear",
        "labels must not be mixed; use interpolation nearest, mode or smooth, not linear",
    ),
    ("--labels --antialias", "anti-aliasing widens linear, cubic and lanczos3 interpolation, not nearest"),
    ("--boundary mirror", "boundary must be one of nearest, constant"),
    ("--halo saint", "halo must be one of auto, map_overlap, direct"),
    ("--device quantum", "no OpenCL device is called 'quantum'; known devices: 0 = '"),
    ("--device 99", "no OpenCL device is called '99'"),
    ("--codec gif", "codec must be one of blosc-lz4, blosc-zstd, zstd, gzip, none, not 'gif'"),
    ("--chunk 0,1,1", "at least one voxel"),
    ("--chunk 1.5,1,1", "is not three numbers z,y,x"),
    ("--chunk 3,4,4 --shard 8,8,8", "a shard must be a whole number of chunks"),
    ("--memory GiB", "memory must be a size such as"),
    ("--memory nan", "memory must be a size such as"),
    ("--memory -1", "memory must be a size above 0"),
    ("--memory 0B", "memory must be a size above 0"),
    ("--memory 1B", "of host memory"),
    ("--memory 1kB", "already; 1000 B are allowed; choose --memory "),
    ("--device-memory many", "device memory must be a size such as"),
    ("--device-memory 1kB", "of which 1000 B are allowed"),
    ("--device-memory 1PB", "is more than the"),
    ("--threads 0", "threads must be at least 1, not 0"),
    ("--threads two", "'--threads'"),
    ("--nonsense", "No such option: --nonsense"),
    ("surplus more", "unexpected extra argument"),
    ("--crop 0:99,:,:", "the crop z 0:99 reaches beyond"),
    ("--crop 1,2,3", "a crop is z0:z1,y0:y1,x0:x1"),
    ("--level two", "'--level'"),
    ("--channel 1", "has 1 channel, counted from 0: give --channel 0, not 1"),
    ("--time 0.5", "'--time'"),
    ("--config no.toml", "the job file no.toml cannot be read"),
]


@pytest.mark.parametrize(("options", "why"), BAD_OPTIONS, ids=[options for options, _ in BAD_OPTIONS])
def test_bad_options_are_refused(isovoxel: Isovoxel, bad: Path, tmp_path: Path, options: str, why: str) -> None:
    """Options that make no sense, alone or together, are one line on standard error; nothing is written."""
    check_refused(isovoxel("plan", bad / "good.tif", *options.split()), why)
    check_refused(isovoxel("scale", bad / "good.tif", tmp_path / "out.zarr", *options.split()), why)
    assert list(tmp_path.iterdir()) == []


def test_a_size_of_words_is_refused(isovoxel: Isovoxel, bad: Path) -> None:
    """Sizes are numbers with units that exist."""
    said = isovoxel("plan", bad / "good.tif", "--memory", "8 potatoes")
    check_refused(said, "memory must be a size such as 8GiB or 500MB, not '8 potatoes'")


@pytest.mark.parametrize("words", ["frobnicate", "plan", "scale in.tif", "--loud", "limits in.tif --zoom 2"])
def test_wrong_commands_are_refused(isovoxel: Isovoxel, words: str) -> None:
    """Unknown commands and options, and missing arguments, point to the help."""
    check_refused(isovoxel(*words.split()), "see isovoxel --help")


def test_limits_refuses_other_interpolations(isovoxel: Isovoxel, bad: Path) -> None:
    """`limits` knows those that `scale` knows."""
    check_refused(
        isovoxel("limits", bad / "good.tif", "--interpolation", "cubic"), "linear, nearest, which cle.scale has"
    )


def test_no_voxel_size_is_refused_but_not_with_factors(isovoxel: Isovoxel, bad: Path) -> None:
    """Without metadata the error names the options that help, and each of them does."""
    check_refused(isovoxel("plan", bad / "bare.tif"), "give --input-voxel-size Z,Y,X, or --factor FZ,FY,FX")
    assert isovoxel("plan", bad / "bare.tif", "--factor", "2,1,1").code == 0
    sized = isovoxel("plan", bad / "bare.tif", "--input-voxel-size", "2,1,1", "--unit", "um", "--json").json
    assert (sized["factors"], sized["input"]["unit"]) == ([2.0, 1.0, 1.0], "micrometer")


def test_more_bytes_than_the_disk_has_are_refused(isovoxel: Isovoxel, bad: Path, tmp_path: Path) -> None:
    """The message has both numbers: what the output takes, all its levels, and what is free."""
    said = isovoxel("scale", bad / "good.tif", tmp_path / "out.zarr", "--zoom", 20_000)
    check_refused(said, "the output takes up to 11.7 PiB, before compression, but the disk of ")
    assert "B free; make room, or choose another disk or a smaller factor" in said.err
    assert list(tmp_path.iterdir()) == []


def write_file(path: Path) -> None:
    """Make a file that is worth keeping."""
    path.write_text("a thesis")


def write_folder(path: Path) -> None:
    """Make a folder that is worth keeping, and no zarr."""
    path.mkdir()
    write_file(path / "thesis.txt")


def write_link(path: Path) -> None:
    """Make a link to a zarr."""
    zarr.create_group(path.with_name("target"))
    path.symlink_to("target")


def nothing(_: Path) -> None:
    """Make nothing."""


BAD_OUTPUTS = [
    ("out.zarr", write_file, "is a file and no zarr, so --overwrite does not delete it"),
    ("out.zarr", write_folder, "is a folder but no zarr, so --overwrite does not delete it"),
    ("out.zarr", write_link, "is a link to target, which --overwrite does not follow"),
    ("stack.tif", nothing, "is the input itself"),
    ("../{folder}", nothing, "lies inside the output"),
    ("stack.tif/out.zarr", nothing, "lies inside the input"),
    ("no/out.zarr", nothing, "does not exist; create it first"),
    ("thesis/out.zarr", lambda path: write_file(path.parent), "is no folder"),
    ("..", nothing, "is no name for an output"),
    ("x" * 300, nothing, "cannot be written: File name too long"),
]


@pytest.mark.parametrize("make", [write_file, write_folder, write_link, Path.mkdir])
def test_overwrite_is_not_offered_where_it_does_not_help(
    isovoxel: Isovoxel, stack: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """What is no zarr, or a link, is not replaced; so the advice is another output."""
    make(tmp_path / "out.zarr")
    check_refused(isovoxel("scale", stack, tmp_path / "out.zarr"), "out.zarr exists; give another output")


@pytest.mark.skipif(os.name == "nt", reason="a working folder cannot be deleted")
def test_a_file_in_a_working_folder_that_is_gone_is_refused(
    isovoxel: Isovoxel, stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path from there leads nowhere; one sentence says why."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    check_refused(isovoxel("show", stack), "the working folder was deleted; change to another one")
    check_refused(isovoxel("plan", stack, "--save", "job.toml"), "the working folder was deleted")


@pytest.mark.parametrize(("name", "make", "why"), BAD_OUTPUTS, ids=[why for *_, why in BAD_OUTPUTS])
def test_bad_outputs_are_refused(
    isovoxel: Isovoxel, stack: Path, tmp_path: Path, name: str, make: Callable[[Path], None], why: str
) -> None:
    """`--overwrite` deletes old outputs and nothing else, and says why."""
    output = tmp_path / name.format(folder=tmp_path.name)
    make(output)
    before = listing(tmp_path)
    check_refused(isovoxel("scale", stack, output, "--overwrite"), why)
    assert listing(tmp_path) == before


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return what mounts a file system in memory with these options, which takes a privileged user."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(options: str) -> Path:
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("only root may mount a file system")
        command = ["mount", "-t", "tmpfs", "-o", options, "isovoxel-test", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_a_folder_that_must_not_be_written_to_is_refused(
    isovoxel: Isovoxel, stack: Path, tmp_path: Path, disk: Callable[[str], Path]
) -> None:
    """For root that is a file system mounted read-only, for everyone else a folder without permission."""
    if os.geteuid() == 0:
        folder = disk("ro,size=1M")
    else:
        folder = tmp_path / "disk"
        folder.chmod(0o555)
    check_refused(isovoxel("scale", stack, folder / "out.zarr"), f"writing to {folder} is not permitted")
    assert list(folder.iterdir()) == []


def test_demo_refuses_a_folder_that_cannot_be(isovoxel: Isovoxel, stack: Path) -> None:
    """Where a file lies no folder can be made."""
    check_refused(isovoxel("demo", stack), f"the folder {stack} cannot be made")


# ---- processes of their own --------------------------------------------------------------------------------------


def run_alone(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process."""
    command = [*PYTHON, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("command", ["devices", "plan", "limits", "scale", "demo"])
def test_no_device_is_refused(bad: Path, tmp_path: Path, command: str) -> None:
    """Where there is no OpenCL driver the message says what to install; only the demo's stack may be there."""
    words = {"devices": [], "demo": [tmp_path / "demo"], "scale": [bad / "good.tif", tmp_path / "out.zarr"]}
    nowhere = str(tmp_path / "no-drivers")
    done = run_alone(
        command, *words.get(command, [bad / "good.tif"]), OCL_ICD_VENDORS=nowhere, OCL_ICD_FILENAMES=nowhere
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no OpenCL device found; install ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.zarr"))
    if command != "demo":
        assert done.stdout == ""


def test_it_runs_as_a_module_of_its_own(bad: Path, tmp_path: Path) -> None:
    """A new process scales without a word that a user need not read."""
    done = run_alone("scale", bad / "good.tif", tmp_path / "out.zarr")
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert all(line.startswith(("note: ", "scaling ", "done: ")) for line in lines), lines
    assert read_provenance(tmp_path / "out.zarr")["complete"] is True


@pytest.mark.sampled(1)
@pytest.mark.skipif(sys.platform == "win32", reason="there is no shell as others have it")
@pytest.mark.parametrize("command", ["plan", "--help"])
def test_a_broken_pipe_is_silent(bad: Path, command: str) -> None:
    """Whoever reads the output may leave at any time."""
    words = [*PYTHON, command, *([str(bad / "good.tif"), "--engine", "exact"] if command == "plan" else [])]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(write)
    assert done.stderr == b""
    assert done.returncode == 1


# ---- failures half-way -------------------------------------------------------------------------------------------


def fill(disk: Path) -> None:
    """Take all room that is left on a disk, as another program would."""
    with (disk / "other").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


def after_blocks(monkeypatch: pytest.MonkeyPatch, count: int, do: Callable[[], None]) -> None:
    """Let something happen once so many blocks of the next jobs are written."""
    scale = api.scale

    def wrapped(*arguments: Any, listeners: Any, **options: Any) -> api.ScaleResult:
        seen = []

        def listen(event: Event) -> None:
            seen.append(event)
            if isinstance(event, BlockDone) and sum(isinstance(e, BlockDone) for e in seen) == count:
                do()

        return scale(*arguments, listeners=(*listeners, listen), **options)

    monkeypatch.setattr(api, "scale", wrapped)


@pytest.mark.parametrize("full_after", [1, 4])
def test_a_disk_that_fills_is_told(
    isovoxel: Isovoxel,
    tmp_path: Path,
    disk: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    full_after: int,
) -> None:
    """The exit code is 1, the message says what is kept and how to go on, and that way works."""
    stack = write_stack(tmp_path / "stack.tif", voxels((8, 64, 64)))
    folder = disk("size=1M")
    after_blocks(monkeypatch, full_after, lambda: fill(folder))
    command = ["scale", stack, folder / "out.zarr", "--threads", 1, "--codec", "none"]
    command += ["--chunk", "8,64,64", "--shard", "8,64,64", "--device-memory", "500kB", "--engine", "cle"]
    said = isovoxel(*command)
    assert (said.code, said.out) == (1, "")
    error = said.err.splitlines()[-1]
    assert error.startswith("error: ")
    kept = int(error.split(" of 4 blocks are done and kept; ")[0][-1])
    assert kept >= full_after
    if kept < 4:  # others may have been on their way to the disk
        left = {1: "96.1 KiB", 2: "64.0 KiB", 3: "32.0 KiB"}[kept]
        assert f"because the disk is full: about {left} are still to be written, 0 B are free; make room; " in error
    else:  # the last that is written is that all is written
        assert "zarr.json cannot be written: No space left on device; 4 of 4 blocks are done and kept" in error
    assert error.endswith("to resume, run the same command without --overwrite")
    assert read_provenance(folder / "out.zarr")["complete"] is False

    (folder / "other").unlink()
    monkeypatch.undo()
    again = isovoxel(*command, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["happened"]["done_before"] == kept
    assert read_provenance(folder / "out.zarr")["complete"] is True
