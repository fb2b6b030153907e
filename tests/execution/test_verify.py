"""Verifying a result: it holds for what the engines write, and for nothing that was changed afterwards."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import isovoxel as api
from command_line import Isovoxel, check_refused
from isovoxel.errors import DoesNotFitError, InputError, InputMissingError, IsovoxelError, OptionError
from isovoxel.execution.comparison import SIDE, bytes_of, sample_boxes
from isovoxel.execution.recipe import Recipe
from isovoxel.execution.verify import Verdict, verify_level, verify_levels
from isovoxel.geometry.grid import Box
from isovoxel.output.provenance import read_provenance
from isovoxel.planning.model import HostLimits
from isovoxel.readers.base import Volume

SHAPE = (16, 50, 54)
FACTOR = (3.7, 1.2, 1.15)
BLOCK = (16, 16, 16)
CUT = {"chunk": BLOCK, "shard": BLOCK, "device_memory": 40_500, "threads": 2}


def noise(dtype: str = "uint16", shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    """Return noise over much of a dtype's range, without 0."""
    rng = np.random.default_rng(0)
    if dtype == "float32":
        return rng.normal(0, 1000, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(1, info.max, shape, dtype=dtype)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a result of each engine, of 64 blocks, from one stack."""
    folder = tmp_path_factory.mktemp("results")
    np.save(folder / "stack.npy", noise())
    for engine in ("cle", "exact"):
        done = api.scale(folder / "stack.npy", folder / f"{engine}.zarr", factor=FACTOR, engine=engine, **CUT)
        assert done.plan.block_grid == (4, 4, 4)
    return {engine: folder / f"{engine}.zarr" for engine in ("cle", "exact")}


# ---- what holds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["cle", "exact"])
def test_a_result_of_64_blocks_holds(results: dict[str, Path], isovoxel: Isovoxel, engine: str) -> None:
    """Either engine keeps its stated precision; the exit code is 0, and JSON has the numbers that the lines have."""
    said = isovoxel("verify", results[engine], "--samples", 40)
    assert (said.code, said.err) == (0, "")
    assert "compared  20,480 voxels in 40 boxes" in said.out
    assert "verdict   holds" in said.out
    record = isovoxel("verify", results[engine], "--json").json
    assert (record["holds"], record["samples"], record["wrong"], record["missing_shards"]) == (True, 400, 0, 0)
    assert record["faces"] > 200
    assert record["first_wrong"] is None
    assert record["source_changes"] == []
    assert record["face_jump"] <= record["jump_allowed"]
    if engine == "exact":
        assert record["off_share"] == 0
        assert 0.4 < record["largest_error"] < 0.51


KERNELS = [
    ("cle", "linear", False),
    ("cle", "nearest", False),
    ("exact", "nearest", False),
    ("exact", "linear", False),
    ("exact", "cubic", False),
    ("exact", "area", False),
    ("exact", "mode", False),
    ("exact", "linear", True),
    ("exact", "cubic", True),
    ("exact", "lanczos3", False),
    ("exact", "lanczos3", True),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("factor", [(3.7, 1.3, 1.3), (1, 0.202, 0.61)], ids=str)
@pytest.mark.parametrize(("engine", "interpolation", "antialias"), KERNELS)
def test_every_kernel_holds(
    tmp_path: Path, engine: str, interpolation: str, antialias: bool, factor: tuple[float, float, float]
) -> None:
    """Integers of 8, 16 and 32 bits and float32, with either boundary, growing and shrinking, ties included."""
    cases = [("uint8", "nearest"), ("uint16", "constant"), ("int32", "nearest"), ("float32", "constant")]
    for dtype, boundary in [*cases, ("uint16", "nearest")]:
        if interpolation == "mode" and dtype == "float32":
            continue
        np.save(tmp_path / "stack.npy", noise(dtype, (9, 40, 33)))
        api.scale(
            tmp_path / "stack.npy",
            tmp_path / "out.zarr",
            factor=factor,
            engine=engine,
            interpolation=interpolation,
            antialias=antialias,
            boundary=boundary,
            chunk=(16, 16, 16),
            shard=(16, 16, 16),
            device_memory="500kB",
            overwrite=True,
        )
        found = api.verify(tmp_path / "out.zarr", samples=24)
        assert found.holds, (dtype, boundary, found)
        assert found.off_share == 0 or found.off_allowed


def test_what_is_not_finite_holds(tmp_path: Path) -> None:
    """NaN and infinity in the source are those of the result."""
    stack = noise("float32", (8, 20, 20))
    stack[3, 4, 5], stack[6, 15, 15] = np.nan, np.inf
    np.save(tmp_path / "stack.npy", stack)
    api.scale(tmp_path / "stack.npy", tmp_path / "out.zarr", factor=(2, 1.5, 1), engine="exact")
    assert api.verify(tmp_path / "out.zarr", samples=100).holds


# ---- what does not hold ------------------------------------------------------------------------------------------


def shift(out: Path, block: Box) -> None:
    """Shift one block by one voxel along x."""
    array: Any = zarr.open_array(out / "0", mode="r+")
    array[block.slices] = np.roll(array[block.slices], 1, axis=2)


def zero_lower_face(out: Path, block: Box) -> None:
    """Make a block's first plane along z 0, as where it had no halo."""
    array: Any = zarr.open_array(out / "0", mode="r+")
    z, y, x = block.slices
    array[z.start, y, x] = 0


def zero_upper_face(out: Path, block: Box) -> None:
    """Make a block's last column along x 0."""
    array: Any = zarr.open_array(out / "0", mode="r+")
    z, y, x = block.slices
    array[z, y, x.stop - 1] = 0


def delete_shard(out: Path, block: Box) -> None:
    out.joinpath("0", "c", *(str(a // n) for a, n in zip(block.start, BLOCK, strict=True))).unlink()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("engine", "block"),
    [("cle", (32, 32, 16)), ("exact", (0, 16, 48)), ("exact", (16, 16, 32))],
    ids=["cle", "exact, at the rim", "exact"],
)
@pytest.mark.parametrize("damage", [shift, zero_lower_face, zero_upper_face, delete_shard], ids=lambda f: f.__name__)
def test_damage_to_one_block_of_64_is_found(
    results: dict[str, Path],
    isovoxel: Isovoxel,
    tmp_path: Path,
    engine: str,
    damage: Callable[[Path, Box], None],
    block: tuple[int, int, int],
) -> None:
    """By default, whichever block it is, the exit code is 1, and a wrong voxel is one of that block."""
    out = tmp_path / "out.zarr"
    shutil.copytree(results[engine], out)
    last = zarr.open_array(out / "0", mode="r").shape
    stop = [min(a + n, m) for a, n, m in zip(block, BLOCK, last, strict=True)]
    box = Box(block, (stop[0], stop[1], stop[2]))
    damage(out, box)
    said = isovoxel("verify", out, "--json")
    record = json.loads(said.out)
    assert (said.code, said.err, record["holds"]) == (1, "", False)
    assert record["missing_shards"] == (damage is delete_shard)
    assert all(a <= i < b for a, i, b in zip(box.start, record["first_wrong"], box.stop, strict=True))
    assert record["face_jump"] > record["jump_allowed"]


def test_a_missing_file_is_found_where_no_box_lies(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """A file of nothing but zeros that is not there is work not done, though its voxels read as they should."""
    np.save(tmp_path / "stack.npy", np.zeros(SHAPE, np.uint8))
    options = CUT | {"device_memory": None, "empty": "write"}
    api.scale(tmp_path / "stack.npy", tmp_path / "out.zarr", factor=(1, 1, 1), **options)
    (tmp_path / "out.zarr" / "0" / "c" / "0" / "2" / "1").unlink()
    said = isovoxel("verify", tmp_path / "out.zarr", "--samples", 1)
    assert said.code == 1
    assert "shards    1 shard missing" in said.out
    assert "verdict   does not hold" in said.out


@pytest.mark.parametrize("block", [(16, 16, 16), (512, 256, 1024)], ids=str)
def test_400_boxes_meet_every_corner_and_face_of_64_blocks(block: tuple[int, int, int]) -> None:
    """Those at the volume's rim are among them, and some boxes lie anywhere."""
    shape = tuple(4 * b - 3 for b in block)
    cuts = [[*range(0, n, b), n] for n, b in zip(shape, block, strict=True)]
    boxes = list(itertools.islice(sample_boxes(shape, block, np.random.default_rng(7)), 400))
    assert all(box.shape == (SIDE, SIDE, SIDE) and Box.whole(shape).contains(box) for box in boxes)

    def met(axis: int, box: Box) -> list[int]:
        return [i for i, cut in enumerate(cuts[axis]) if box.start[axis] <= cut <= box.stop[axis]]

    corners, faces = set(), set()
    for box in boxes:
        corners |= set(itertools.product(*(met(axis, box) for axis in range(3))))
        for axis in range(3):
            within = [
                met(axis, box) if a == axis else {box.start[a] // block[a], (box.stop[a] - 1) // block[a]}
                for a in range(3)
            ]
            faces |= {(axis, *place) for place in itertools.product(*within)}
    assert len(corners) == 5**3
    assert len(faces) == 3 * 5 * 4 * 4


def test_the_seed_chooses_the_boxes() -> None:
    """The same seed chooses the same boxes, another one others."""
    drawn = [
        list(itertools.islice(sample_boxes((90, 90, 90), (30, 30, 30), np.random.default_rng(s)), 9)) for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


# ---- what is read ------------------------------------------------------------------------------------------------


def test_only_the_boxes_are_read() -> None:
    """Of two terabytes a few megabytes are read, a box at a time, on both sides."""
    shape = (4096, 16384, 16384)
    read: list[tuple[str, Box]] = []

    def voxels(box: Box, shrink: int) -> NDArray[np.uint16]:
        z, y, x = np.ogrid[box.slices]
        return (z // shrink * 7919 + y * 104729 + x * 1299709).astype(np.uint16)

    def volume(name: str, shape: tuple[int, int, int], shrink: int) -> Volume:
        def read_box(box: Box) -> NDArray[np.uint16]:
            read.append((name, box))
            return voxels(box, shrink)

        return Volume(name, "computed", shape, np.dtype("uint16"), read_box)

    recipe = Recipe((2, 1, 1), "nearest", False, "nearest", "exact", "cpu", (512,) * 3, shape, "uint16", {}, True)
    result = volume("result", (8192, 16384, 16384), 2)
    found = verify_level(volume("source", shape, 1), result, recipe, samples=200)
    assert found.holds
    assert (found.samples, found.voxels) == (200, 200 * SIDE**3)
    assert [name for name, _ in read].count("result") == [name for name, _ in read].count("source") == 200
    assert all(box.size <= (SIDE + 2) ** 3 for _, box in read)


def test_it_is_enough_to_have_the_output_and_its_source(
    results: dict[str, Path], tmp_path: Path, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any folder: the attributes know where the source is; a source that has moved is given."""
    for name in ("stack.npy", "exact.zarr"):
        source = results["exact"].with_name(name)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert isovoxel("verify", "exact.zarr", "--samples", 20).code == 0
    said = isovoxel("verify", "exact.zarr", "--against", "stack.npy", "--samples", 20)
    assert said.code == 0
    assert "compared  10,240 voxels in 20 boxes" in said.out
    assert "faces     mean error step " in said.out
    assert "has changed" not in said.out


def test_a_result_from_memory_is_verified_against_what_is_given(tmp_path: Path) -> None:
    """A NumPy array leaves no path; given again, it is compared with."""
    array = noise("uint8", (8, 20, 20))
    api.scale(array, tmp_path / "out.zarr", factor=(2, 1, 1))
    assert api.verify(tmp_path / "out.zarr", against=array, samples=20).holds
    assert not api.verify(tmp_path / "out.zarr", against=array[::-1], samples=20).holds
    with pytest.raises(InputError, match="was made from an array in memory"):
        api.verify(tmp_path / "out.zarr")


def test_a_zarr_array_that_was_given_is_found_again(tmp_path: Path) -> None:
    """Where it lies in files they are opened, where in memory it must be given."""
    data = noise("uint8", (8, 20, 20))
    array = zarr.create_array(tmp_path / "in.zarr", data=data, chunks=(4, 10, 10))
    api.scale(array, tmp_path / "out.zarr", factor=(2, 1, 1))
    assert api.verify(tmp_path / "out.zarr", samples=20).holds
    passing = zarr.create_array(zarr.storage.MemoryStore(), data=data, chunks=(4, 10, 10))
    api.scale(passing, tmp_path / "out.zarr", factor=(2, 1, 1), overwrite=True)
    with pytest.raises(InputError, match="was made from an array in memory"):
        api.verify(tmp_path / "out.zarr")


# ---- a source that is another ------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    np.save(tmp_path / "stack.npy", noise("uint8", (8, 20, 20)))
    api.scale(tmp_path / "stack.npy", tmp_path / "out.zarr", factor=(2, 1, 1))
    return tmp_path / "stack.npy", tmp_path / "out.zarr"


def test_a_source_that_was_touched_is_told(pair: tuple[Path, Path], isovoxel: Isovoxel) -> None:
    """What counts are its voxels: the same ones hold, others do not; either way its new time is told."""
    source, out = pair
    os.utime(source, (1, 1))
    said = isovoxel("verify", out, "--samples", 20)
    assert said.code == 0
    assert "faces     no box lies between two blocks" in said.out
    assert "source    has changed since the result was made (modification time)" in said.out
    np.save(source, 255 - np.load(source))
    said = isovoxel("verify", out, "--samples", 20, "--json")
    assert said.code == 1
    assert json.loads(said.out)["source_changes"] == ["modification time"]


def test_a_source_that_cannot_be_compared_with_is_refused(pair: tuple[Path, Path], isovoxel: Isovoxel) -> None:
    """One of another shape or dtype, and one that is gone: the message says what to give."""
    source, out = pair
    for other in (noise("uint8", (8, 20, 21)), noise("uint16", (8, 20, 20))):
        np.save(source, other)
        check_refused(
            isovoxel("verify", out), f"but {out} was made from (8, 20, 20) of uint8; give its source with --against"
        )
    source.unlink()
    check_refused(isovoxel("verify", out), f"the source {source} is not found; give its new path with --against")
    check_refused(isovoxel("verify", out, "--against", source.with_name("nowhere.npy")), "nowhere.npy is not there")
    with pytest.raises(InputMissingError):
        api.verify(out)


def test_what_is_no_finished_output_is_refused(pair: tuple[Path, Path], isovoxel: Isovoxel, tmp_path: Path) -> None:
    """Files of others, outputs that are not complete, and attributes that somebody has edited."""
    source, out = pair
    check_refused(isovoxel("verify", tmp_path / "nowhere.zarr"), "is not there; check the path")
    check_refused(isovoxel("verify", source), "was not written by isovoxel: its attributes do not say what made it")
    group = zarr.open_group(out, mode="r+")
    made: Any = group.attrs["isovoxel"]
    for wrong, why in (
        ({**made, "complete": False}, "is incomplete: its job is running, failed or was interrupted; finish it first"),
        ({**made, "factor": [2, 1]}, "does not say in its attributes how isovoxel made it: not enough values"),
        ({k: v for k, v in made.items() if k != "input"}, "how isovoxel made it: 'input' is missing"),
        ({"made by": "hand"}, "how isovoxel made it: 'factor' is missing"),
        ("by hand", "was not written by isovoxel"),
    ):
        group.attrs["isovoxel"] = wrong
        check_refused(isovoxel("verify", out), why)
        with pytest.raises(IsovoxelError):
            api.verify(out)
    del group.attrs["isovoxel"]
    check_refused(isovoxel("verify", out), "was not written by isovoxel")


def test_no_samples_are_refused(pair: tuple[Path, Path], isovoxel: Isovoxel) -> None:
    check_refused(isovoxel("verify", pair[1], "--samples", 0), "samples must be at least 1, not 0")
    with pytest.raises(OptionError):
        api.verify(pair[1], samples=-1)


def test_any_number_of_threads_finds_the_same(pair: tuple[Path, Path]) -> None:
    """To the last bit of the mean; each thread holds as much, and where memory is short there are fewer."""
    source, result = map(api.open_volume, pair)
    recipe = Recipe.from_provenance(read_provenance(pair[1]), "out")

    def found(allowed: int, threads: int) -> Verdict:
        host = HostLimits(allowed=allowed, baseline=5, threads=threads)
        return verify_levels(source, [result], recipe, samples=40, host=host)

    one, many = found(2**40, 1), found(2**40, 5)
    assert many.projected - 5 == 5 * (one.projected - 5)
    assert replace(many, projected=one.projected) == one
    fewer = found(3 * one.projected, 5)
    assert fewer.projected - 5 == 3 * (one.projected - 5)
    assert replace(fewer, projected=one.projected, allowed=one.allowed) == one


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["linear", "mode"])
def test_a_small_budget_changes_nothing_of_what_is_found(tmp_path: Path, interpolation: str) -> None:
    """Boxes that take more than there is are computed in pieces; where not even a voxel fits it is said."""
    voxels = np.random.default_rng(4).integers(0, 60000, (30, 40, 40)).astype(np.uint16)
    np.save(tmp_path / "in.npy", voxels)
    how = {"labels": True} if interpolation == "mode" else {"antialias": True}
    out = tmp_path / "out.zarr"
    api.scale(tmp_path / "in.npy", out, factor=(0.5, 0.4, 0.4), interpolation=interpolation, engine="exact", **how)
    source, result = api.open_volume(tmp_path / "in.npy", voxel_size=(1, 1, 1)), api.open_volume(out)
    recipe = Recipe.from_provenance(read_provenance(out), "out")
    takes = [bytes_of(source, recipe, side) for side in (8, 4, 1)]
    assert takes[0] > takes[1] > takes[2]
    usual = verify_levels(source, [result], recipe, samples=3)
    assert usual.holds
    beside = source.read_overhead + result.read_overhead
    for room in takes:
        host = HostLimits(allowed=beside + room + 5, baseline=5, threads=1)
        found = verify_levels(source, [result], recipe, samples=3, host=host)
        assert found.holds
        assert found.projected == host.allowed
        # Sums of floats, whose order depends on where the library's buffers lie.
        assert found.largest_error == pytest.approx(usual.largest_error)
    host = HostLimits(allowed=beside + takes[-1] + 4, baseline=5, threads=1)
    with pytest.raises(DoesNotFitError, match="choose more --memory"):
        verify_levels(source, [result], recipe, samples=3, host=host)
